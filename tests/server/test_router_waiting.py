"""What one plain user does to others on a real Open WebUI: options, poison requests, and calls that wait."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from harness.fixtures_routing import RoutedWebUI
from harness.ollama_node import Answer, Fault

Json = dict[str, Any]
STRANGE = {"num_ctx": 256, "num_batch": 64, "num_gpu": 0, "num_thread": 1, "keep_alive": -1}
QUICK_SECONDS = 2.0  # a call that comes behind people takes 2.5 s at least beside a prefix that is in use
BOOK = "The same long text, which takes long to read. " * 1500


@pytest.fixture(autouse=True)
def fresh(routed: RoutedWebUI) -> Iterator[None]:
    """Nodes without faults and answers lined up by another test."""
    yield
    for node in routed.nodes:
        node.clear_faults()
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back


def ask(routed: RoutedWebUI, api: OpenWebUI, text: str = "hello", **more: Any) -> requests.Response:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **more}
    headers = {"Authorization": f"Bearer {api.key}"}
    return requests.post(f"{routed.webui.url}/api/chat/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("context", [256, 131072])
@pytest.mark.parametrize("where", ["options", "params", "top"])
def test_one_user_s_options_are_not_another_s(routed: RoutedWebUI, where: str, context: int) -> None:
    """Would catch a plain user's `num_ctx` of 256 that cuts all prompts, or `num_gpu` 0 that slows all."""
    strange: Json = {**STRANGE, "num_ctx": context}
    mark = f"{where} {context}"
    for user in (routed.student, routed.admin):
        assert ask(routed, user, mark, **(strange if where == "top" else {where: strange})).ok
        for _ in range(2):
            assert ask(routed, user, mark).ok
    chats = [chat for chat in routed.chats() if mark in str(chat)]
    asked = [chat.get("options") or {} for chat in chats]
    own = {name: value for name, value in strange.items() if name != "keep_alive"}
    assert asked == [{"num_ctx": context}, {}, {}, own, {}, {}]
    assert [chat.get("keep_alive") for chat in chats] == [None, None, None, -1, None, None]


@pytest.fixture
def _default_params(routed: RoutedWebUI) -> Iterator[None]:
    """What an admin has set for all models."""
    before = routed.admin.get("/api/v1/configs/models")
    params = {"keep_alive": "9m", "num_thread": 3}
    routed.admin.post("/api/v1/configs/models", before | {"DEFAULT_MODEL_PARAMS": params})
    yield
    routed.admin.post("/api/v1/configs/models", before)


@pytest.mark.usefixtures("_default_params")
def test_what_an_admin_sets_for_all_models_counts_for_plain_users(routed: RoutedWebUI) -> None:
    """A plain user's `keep_alive` is left out, and the admin's is not."""
    assert ask(routed, routed.student, "as the admin says", keep_alive=-1, options={"num_thread": 400}).ok
    (chat,) = [chat for chat in routed.chats() if "as the admin says" in str(chat)]
    assert [chat["keep_alive"], chat["options"]] == ["9m", {"num_thread": 3}]


def test_a_poison_request_is_its_sender_s_alone(routed: RoutedWebUI) -> None:
    """Would catch a model that nobody can use for minutes after one user's odd requests."""
    for _ in range(14):
        for node in routed.nodes:
            node.enqueue(*[Answer(refusal=(500, "grammar cannot be parsed"))] * 2)
        ask(routed, routed.student, "poison")
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
    began = time.monotonic()
    answer = ask(routed, routed.admin, "well").json()
    assert answer["choices"][0]["message"]["content"] == "You said: well"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("odd", [{"format": "xml"}, {"format": {"type": "nonsense"}}, {"num_batch": 0}])
def test_what_no_node_can_use_reaches_none(routed: RoutedWebUI, odd: Json) -> None:
    """Would catch a body that ends a runner which others use."""
    before = len(routed.chats())
    # a plain user's `num_batch` is left out, so that one reaches none either
    said = ask(routed, routed.admin if "num_batch" in odd else routed.student, options=odd).text
    assert next(iter(odd)) in said
    assert len(routed.chats()) == before


def test_another_model_s_answer_is_not_shown(routed: RoutedWebUI) -> None:
    """Would catch the words of a model that nobody asked for."""
    for node in routed.nodes:
        node.enqueue(Answer(["hm"], model="tinyllama:1b"))
    said = ask(routed, routed.admin).text
    assert "tinyllama:1b" in said
    assert '"hm"' not in said


def test_calls_that_somebody_waits_for_do_not_come_behind_people(routed: RoutedWebUI) -> None:
    """Would catch a search query that waits for seconds on idle nodes, as a title does."""
    config = routed.admin.get("/api/v1/tasks/config")
    routed.admin.post("/api/v1/tasks/config/update", config | {"ENABLE_AUTOCOMPLETE_GENERATION": True})
    try:
        for number in range(6):  # both nodes hold a long prompt that its chat may come back to
            assert ask(routed, routed.student, f"{number} {BOOK}").ok
        messages = [{"role": "user", "content": "hello"}]
        calls: dict[str, Json] = {
            "queries": {"messages": messages, "type": "web_search"},
            "image_prompt": {"messages": messages},
            "auto": {"messages": messages, "prompt": "hel", "type": "general"},
            "moa": {"prompt": "hello", "responses": ["a", "b"]},
        }
        took = {}
        for name, body in calls.items():
            began = time.monotonic()
            routed.admin.post(f"/api/v1/tasks/{name}/completions", {"model": "gpt-4", **body})
            took[name] = time.monotonic() - began
        assert {name for name, seconds in took.items() if seconds >= QUICK_SECONDS} == set(), took
    finally:
        routed.admin.post("/api/v1/tasks/config/update", config)


def test_a_failing_node_is_named_to_admins(routed: RoutedWebUI) -> None:
    """Would catch a broken model that goes first for every chat."""
    routed.nodes[0].command(Fault("error", path="/api/chat", message="tensor is corrupt"))
    for number in range(4):
        assert ask(routed, routed.student, f"chat {number}").ok
