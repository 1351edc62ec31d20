"""What a pipeline reads off a request, and what its inlet writes into one."""

from typing import Any

import pytest

from ollama_pack.services.pipeline_requests import (
    NOTE_FIELD,
    Asking,
    asking,
    goes_to_router,
    noted,
    with_hints,
    without_asking,
)

Json = dict[str, Any]

ADA: Json = {"id": "u1", "name": "Ada", "email": "ada@example.org", "role": "user"}
METADATA: Json = {
    "chat_id": "c1",
    "message_id": "m1",
    "features": {"memory": True},
    "files": [{"id": "f1", "name": "private.pdf"}],
    "variables": {"{{USER_NAME}}": "Ada"},
    "model": {
        "info": {"id": "gpt-4", "base_model_id": "gpu_router.gpt-4", "meta": {"knowledge": [{"id": 1}]}}
    },
}


def test_open_webuis_user() -> None:
    """Would catch fairness by nobody, or a chat that is not known again."""
    body = {"model": "gpu_router.gpt-4", "stream": True, "user": ADA, "prompt_cache_key": "c1"}
    assert asking(body) == Asking(user="u1", chat="c1", from_webui=True)


@pytest.mark.parametrize(
    "body",
    [{}, {"user": None}, {"user": {"id": 7}}, {"user": ["u1"], "prompt_cache_key": 5}, {"ollama_pack": "x"}],
)
def test_odd_fields_count_as_absent(body: Json) -> None:
    """Would catch a chat that fails for what a client has put where something else belongs."""
    found = asking(body)
    assert (found.user, found.chat, found.background, found.note) == ("", "", False, None)


TASK = [{"role": "user", "content": "### Task:\nGenerate a concise title"}]
QUERY = [{"role": "user", "content": "### Task:\nAnalyze the chat history to determine"}]
SOURCES = [{"role": "user", "content": "### Task:\nRespond to the user query using the provided context"}]


@pytest.mark.parametrize(
    ("body", "background"),
    [
        ({"service_tier": "flex"}, True),
        ({"service_tier": "auto"}, False),
        ({"user": ADA, "messages": TASK, "stream": False}, True),
        ({"user": ADA, "messages": TASK, "stream": True}, False),
        ({"user": "ada", "messages": TASK}, False),
        ({"user": ADA, "messages": QUERY}, False),
        ({"user": ADA, "messages": SOURCES}, False),
    ],
)
def test_what_nobody_waits_for(body: Json, background: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Would catch titles that keep people waiting, or people who are taken for titles."""
    assert asking(body).background is background


def test_nothing_of_it_goes_further() -> None:
    """Would catch a name, an e-mail address or the note that a node gets."""
    body = {"model": "x", "user": ADA, "prompt_cache_key": "c", "service_tier": "flex", NOTE_FIELD: {}}
    assert without_asking(body | {"seed": 1}) == {"model": "x", "seed": 1}


def test_hints_for_the_pipe() -> None:
    """Would catch a chat's id or a task that is lost on its way, or a part of the body."""
    body = {"model": "gpu_router.gpt-4", "seed": 1, "metadata": METADATA | {"task": "title_generation"}}
    assert with_hints(body) == body | {"prompt_cache_key": "c1", "service_tier": "flex"}
    assert with_hints({"model": "x"}) == {"model": "x"}


def test_the_note_has_no_conversation() -> None:
    """Would catch names of files or users in what travels on, or a fact that the cache lacks."""
    note = noted({"model": "gpt-4", "metadata": METADATA})[NOTE_FIELD]
    assert note == {
        "chat_id": "c1",
        "message_id": "m1",
        "features": {"memory": True},
        "files": True,
        "model": {"info": {"meta": {"knowledge": True}}},
    }


@pytest.mark.parametrize(
    ("body", "goes"),
    [
        ({"model": "gpu_router.llama3:8b"}, True),
        ({"model": "gpt-4", "metadata": METADATA}, True),
        ({"model": "llama3:8b", "metadata": METADATA}, False),  # an alias filter has changed it
        ({"model": "gpt-4"}, False),
        ({"model": None, "metadata": None}, False),
    ],
)
def test_only_the_routers_chats_are_noted(body: Json, goes: bool) -> None:  # noqa: FBT001 - as above
    """Would catch a field of ours that another provider gets, which may refuse the request for it."""
    assert goes_to_router(body) is goes


def test_the_user_s_language_travels() -> None:
    """Would catch an error or a reason in English for somebody who has set Open WebUI to Chinese."""
    metadata = METADATA | {"variables": {"{{USER_LANGUAGE}}": "zh-CN"}}
    body = with_hints({"model": "gpt-4", "metadata": metadata})
    assert asking(body).language == "zh-CN"
    assert asking(with_hints({"model": "gpt-4", "metadata": METADATA})).language == "en"
    assert "ollama_pack_language" not in without_asking(body)
