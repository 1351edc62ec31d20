"""Which requests the cache is for, and whose answers they share."""

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from ollama_pack.cache.key import NotCacheable
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.semantic import Lent
from ollama_pack.services.cacheable import (
    LARGE_CHARACTERS,
    CacheRequest,
    question_of,
    scope_facts,
    why_bypassed,
)
from ollama_pack.webui.connections import asks_as_user

Json = dict[str, Any]

KEYRING = Keyring("a secret of tests alone")
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def asked(metadata: Json | None = None, body: Json | None = None, **more: Any) -> CacheRequest:
    facts = {"user_id": "u1", "digest": "d1"} | more
    return CacheRequest(body=body or BODY, metadata=metadata or {}, **facts)


def question(request: CacheRequest, rule: Any = "user") -> Question:
    found = asyncio.run(question_of(request, rule, KEYRING))
    assert isinstance(found, Question)
    return found


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, ""),
        ({"chat_id": "c1", "session_id": "s1", "task": None}, ""),
        ({"task": "title_generation"}, "background task"),
        ({"chat_id": "temporary:s1"}, "temporary chat"),
        ({"chat_id": "local:s1"}, "temporary chat"),
        ({"assistant_message_id": "m1"}, "continued answer"),
        ({"automation_id": "a1"}, "scheduled run"),
        ({"internal": True}, "scheduled run"),
        ({"direct": True}, "direct connection"),
    ],
)
def test_what_the_cache_is_not_for(metadata: Json, reason: str) -> None:
    """Would catch a temporary chat that is kept, or an ordinary one that is not."""
    assert why_bypassed(BODY, metadata, "always") == reason


def test_only_deterministic_requests_where_that_is_wanted() -> None:
    """Would catch `deterministic` that lets everything in, or nothing."""
    assert why_bypassed(BODY, {}, "deterministic") == "not deterministic"
    assert why_bypassed({**BODY, "options": {"temperature": 0}}, {}, "deterministic") == ""


@pytest.mark.parametrize(
    "metadata",
    [
        {"files": [{"id": "f"}]},
        {"sources": [{"source": {}}]},
        {"folder_id": "f"},
        {"folder_knowledge": [{"id": "f"}]},
        {"features": {"web_search": True}},
        {"features": {"memory": True}},
        {"tools": {"clock": {}}},
        {"tool_ids": ["t"]},
        {"model": {"info": {"meta": {"knowledge": [{"id": "k"}]}}}},
    ],
)
def test_what_draws_on_private_things_stays_with_the_user(metadata: Json) -> None:
    """Would catch what one user's files or tools say in another user's chat."""
    assert scope_facts(asked(metadata)).private
    assert question(asked(metadata), "global").scope == "user:u1"


def test_engine_that_is_asked_as_the_user_answers_nobody_else() -> None:
    """Would catch what an engine shows to one user's token in another user's chat."""
    assert question(asked(as_user=True), "global").scope == "user:u1"
    assert question(asked(as_user=True, group_ids=("g",)), "group").scope == "user:u1"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, False),
        ({"auth_type": "bearer", "headers": {"X-Site": "school"}}, False),
        ({"auth_type": "azure_ad"}, False),
        ({"auth_type": "session"}, True),
        ({"auth_type": "system_oauth"}, True),
        ({"forward_cookies": True}, True),
        ({"headers": {"X-Groups": "of {{USER_GROUPS}}"}}, True),
    ],
)
def test_connection_that_knows_who_asks(
    monkeypatch: pytest.MonkeyPatch, own: Json, *, expected: bool
) -> None:
    """Would catch a connection to an agent, entered with each user's own token, whose answers are shared."""
    stored = {
        "ollama.enable": True,
        "ollama.base_urls": ["http://gpu0:11434"],
        "ollama.api_configs": {"0": own},
        "openai.api_base_urls": ["http://plain", "http://agent"],
        "openai.api_configs": {"0": {}, "1": own},
    }

    class Config:
        @staticmethod
        async def get_many(*names: str) -> Json:
            return {name: stored[name] for name in names}

    for name in ("open_webui", "open_webui.models", "open_webui.models.config"):
        module = ModuleType(name)
        module.Config = Config  # type: ignore[attr-defined] # a module of tests
        monkeypatch.setitem(sys.modules, name, module)
    assert asyncio.run(asks_as_user()) is expected
    assert asyncio.run(asks_as_user(0)) is False
    assert asyncio.run(asks_as_user(1)) is expected


def test_plain_question_is_shared_as_the_rule_says() -> None:
    """Would catch a rule without effect."""
    metadata: Json = {
        "features": {"memory": False, "web_search": False},
        "files": [],
        "tools": {},
        "model": None,
    }
    assert question(asked(metadata), "global").scope == "global"
    assert question(asked(metadata, group_ids=("g",)), "group").scope == "group:g"
    assert question(asked(metadata), "user").scope == "user:u1"


def test_answers_are_found_by_what_they_belong_to() -> None:
    """Would catch an answer that stays when its chat, its user or its message is gone."""
    metadata = {"chat_id": "c1", "message_id": "m1"}
    assert set(question(asked(metadata)).labels) == {"user:u1", "chat:c1", "message:m1"}
    assert question(asked({"chat_id": "", "message_id": None})).labels == ("user:u1",)


def test_large_request_has_the_key_of_its_content() -> None:
    """Would catch a key that is made differently in a thread, or of a part."""
    large = [{"role": "user", "content": "a" * (LARGE_CHARACTERS + number)} for number in (1, 1, 2)]
    slots = [question(asked(body={"model": "m", "messages": [message]})).slot for message in large]
    assert slots[0] == slots[1] != slots[2]


def test_what_cannot_be_told_apart_is_not_asked() -> None:
    """Would catch an answer of weights that nobody knows, or of nobody."""
    for request in (asked(digest=None), asked(user_id="")):
        assert isinstance(asyncio.run(question_of(request, "user", KEYRING)), NotCacheable)


def test_an_answer_without_figures_is_for_those_who_want_none() -> None:
    """Would catch `usage: null` for a client that asks for it, as another has had the answer without."""

    def slot(*, asks: bool = True, **how: Any) -> object:
        return question(asked(body=BODY | how, usage_when_asked=asks)).slot

    without = slot(stream=True)
    assert slot(stream=True, stream_options={"include_usage": False}) == without
    apart = slot(stream=True, stream_options={"include_usage": True})
    assert apart == slot() == slot(stream=False)
    assert apart != without
    assert slot(asks=False, stream=True) == slot(asks=False) == without  # it gives them always


def test_preset_and_digest_are_in_the_key() -> None:
    """Would catch a changed system prompt, or a pulled model, that gets the old answer."""
    requests = [asked(), asked(preset={"system": "be brief"}), asked(digest="d2")]
    assert len({question(request).slot for request in requests}) == 3


def test_questions_about_files_are_not_compared_by_meaning() -> None:
    """Would catch an answer about one file that is given to a question about another."""
    lent = Lent("m|user", 0.01, None, None)  # type: ignore[arg-type] # nothing is called
    more: Json = {"similar": True, "lend": lambda _: lent}
    assert question(asked(**more)).lent is lent
    private: list[Json] = [{"files": [{"id": "f1"}]}, {"sources": [{"source": {}}]}]
    for metadata in private:
        assert question(asked(metadata, **more)).lent is None
