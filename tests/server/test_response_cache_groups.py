"""The response cache shared within groups, on a real Open WebUI: by whom, and by whom not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from harness.chat_bodies import TOOL
from harness.fixtures_cache import DIRECT, CachedWebUI
from local.webui import Account

Json = dict[str, Any]


class Group:
    """A group of Open WebUI, made by the admin.

    Attributes:
        id: of the group.
    """

    def __init__(self, admin: OpenWebUI, name: str) -> None:
        self._admin = admin
        self.id = str(admin.post("/api/v1/groups/create", {"name": name, "description": ""})["id"])

    def add(self, *members: str) -> None:
        self._admin.post(f"/api/v1/groups/id/{self.id}/users/add", {"user_ids": list(members)})

    def remove(self, *members: str) -> None:
        self._admin.post(f"/api/v1/groups/id/{self.id}/users/remove", {"user_ids": list(members)})


@contextmanager
def group(admin: OpenWebUI, name: str) -> Iterator[Group]:
    """A group, and none of it afterwards."""
    made = Group(admin, name)
    try:
        yield made
    finally:
        requests.delete(
            f"{admin.url}/api/v1/groups/id/{made.id}/delete",
            headers={"Authorization": f"Bearer {admin.key}"},
            timeout=30,
        ).raise_for_status()


@pytest.fixture(scope="module")
def stranger_account(cached_webui: CachedWebUI) -> Account:
    return cached_webui.webui.add_user("stranger", "stranger-password")


@pytest.fixture
def stranger(cached_webui: CachedWebUI, stranger_account: Account) -> Iterator[OpenWebUI]:
    """A third plain user, who is in no group."""
    api = OpenWebUI(cached_webui.webui.url, stranger_account.token)
    yield api
    api.close()


@pytest.fixture
def course(cached: CachedWebUI) -> Iterator[Group]:
    """A group of the student and the other, where answers are shared within groups."""
    cached.set_valves(**cached.admin.valves("functions", "response_cache_filter") | {"scope": "group"})
    with group(cached.admin, "course") as course:
        course.add(cached.account.id, user_id(cached.other))
        yield course


def user_id(api: OpenWebUI) -> str:
    return str(api.get("/api/v1/auths/")["id"])


def is_served(api: OpenWebUI, text: str, **more: Any) -> bool:
    """Ask; whether the answer came from the cache."""
    body = {"model": DIRECT, "messages": [{"role": "user", "content": text}], **more}
    answer: Json = api.post("/api/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == f"You said: {text}"
    return "cache" in answer.get("ollama_pack", {})


@pytest.mark.usefixtures("course")
def test_members_share_and_a_third_user_does_not(cached: CachedWebUI, stranger: OpenWebUI) -> None:
    """Would catch a scope `group` without effect, or one that everybody without a group shares as well."""
    assert not is_served(cached.student, "within the course")
    assert is_served(cached.other, "within the course")
    for outsider in (stranger, cached.admin):
        assert not is_served(outsider, "within the course")
        assert is_served(outsider, "within the course")  # an answer of one's own
    assert len(cached.generations()) == 3


def test_only_who_is_in_the_same_groups_shares(cached: CachedWebUI, course: Group) -> None:
    """Would catch what one group may see and is shown to another, or to who has left."""
    assert not is_served(cached.student, "among us")
    with group(cached.admin, "staff") as staff:
        staff.add(cached.account.id)
        assert not is_served(cached.student, "among us")  # what the staff knows may be in it
        assert is_served(cached.other, "among us")
    assert is_served(cached.student, "among us")
    course.remove(user_id(cached.other))
    assert not is_served(cached.other, "among us")
    course.add(user_id(cached.other))
    assert is_served(cached.other, "among us")
    assert len(cached.generations()) == 3


@pytest.mark.usefixtures("course")
def test_what_draws_on_tools_stays_with_its_user(cached: CachedWebUI) -> None:
    """Would catch private answers that a group gets to see."""
    asked = {"tools": [TOOL]}
    assert not is_served(cached.student, "with tools", **asked)
    assert not is_served(cached.other, "with tools", **asked)
    assert is_served(cached.student, "with tools", **asked)


@pytest.mark.usefixtures("course")
def test_connection_that_knows_who_asks_answers_each_user_anew(cached: CachedWebUI) -> None:
    """Would catch what an engine says to one user, by his token or his name, and a group gets to see."""
    config = cached.admin.get("/ollama/config")
    own = {"0": {"enable": True, "headers": {"X-Who": "{{USER_ID}}"}}}
    try:
        cached.admin.post("/ollama/config/update", config | {"OLLAMA_API_CONFIGS": own})
        assert not is_served(cached.student, "who am I?")
        assert not is_served(cached.other, "who am I?")
        assert is_served(cached.student, "who am I?")
    finally:
        cached.admin.post("/ollama/config/update", config)
    assert not is_served(cached.student, "who are we?")
    assert is_served(cached.other, "who are we?")
