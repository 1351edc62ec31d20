"""Aliases on a real Open WebUI: which model answers an admin, a plain user and an OpenAI client."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.chat_bodies import HELLO, IMAGE, PIXEL, TOOL, ask, ask_streaming, asked_for
from harness.ollama_node import OllamaNode
from local.webui import RunningWebUI

Json = dict[str, Any]


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = request.getfixturevalue(request.param)
    return api


@pytest.fixture
def client(webui: RunningWebUI, user: OpenWebUI) -> Iterator[openai.OpenAI]:
    """The OpenAI client, pointed at Open WebUI."""
    with openai.OpenAI(base_url=f"{webui.url}/api", api_key=user.key) as client:
        yield client


@pytest.mark.parametrize(
    ("alias", "model"), [("gpt-3.5-turbo", "llama3:8b"), ("gpt-4o", "llama3:70b-instruct-q8_0")]
)
def test_alias_is_answered(user: OpenWebUI, node: OllamaNode, alias: str, model: str) -> None:
    """Would catch an alias that is not published, not granted, or resolved to another model."""
    answer = ask(user, alias)
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    assert asked_for(node) == model


def test_next_candidate_answers_when_the_first_is_missing(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch an alias that insists on a model that is not installed."""
    ask(user, "gpt-4")
    assert asked_for(node) == "llama3:70b-instruct-q4_K_M"


def test_images_choose_the_vision_row(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch images going to a text model, which ignores them silently."""
    ask(user, "gpt-4", IMAGE)
    assert asked_for(node) == "llava:13b"
    body = node.requests[-1].body
    assert body is not None
    assert body["messages"][0]["images"] == [PIXEL]


def test_tools_choose_the_tools_row(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch tools going to a model that Ollama refuses them for."""
    ask(user, "gpt-4", tools=[TOOL])
    assert asked_for(node) == "qwen2.5:32b"


def test_openai_client(client: openai.OpenAI, node: OllamaNode) -> None:
    """Would catch an answer that the OpenAI client does not read, whole or streamed."""
    whole = client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert whole.choices[0].message.content == "You said: hello"
    stream = client.chat.completions.create(model="gpt-3.5-turbo", messages=HELLO, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == "You said: hello"
    assert asked_for(node) == "llama3:8b"


@pytest.mark.parametrize("word", [b"[DONE]", b'"finish_reason":"stop"'])
def test_a_client_that_leaves_at_the_last_word(webui: RunningWebUI, user: OpenWebUI, word: bytes) -> None:
    """Would catch a read that is cancelled after an answer: its database connection answers nobody again."""
    before = webui.log.stat().st_size
    for _ in range(10):
        with ask_streaming(user, "gpt-4") as answer:
            assert any(word in line.replace(b" ", b"") for line in answer.iter_lines(chunk_size=1))
    ask(user, "gpt-4")
    with webui.log.open("rb") as log:
        log.seek(before)
        assert b"Exception terminating connection" not in log.read()


def test_unlisted_name_keeps_open_webuis_error(user: OpenWebUI) -> None:
    """Would catch a pack that swallows or answers names that nobody published."""
    with pytest.raises(ServerError) as refused:
        ask(user, "gpt-5")
    assert (refused.value.status, refused.value.detail) == (400, "Model not found")


def test_alias_without_a_grant_is_refused(admin: OpenWebUI, student: OpenWebUI) -> None:
    """Would catch an alias for admins that a plain user can reach."""
    assert ask(admin, "gpt-4-admin")["choices"]
    with pytest.raises(ServerError) as refused:
        ask(student, "gpt-4-admin")
    assert (refused.value.status, refused.value.detail) == (400, "Model not found")


def test_model_that_is_no_alias_passes_through(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch a filter that touches requests which are none of its business."""
    ask(user, "llama3:8b", params={"temperature": 0.25})
    body = node.requests[-1].body
    assert body is not None
    assert (body["model"], body["options"]["temperature"]) == ("llama3:8b", 0.25)
    assert not [key for key in body if "ollama_pack" in key]


@contextmanager
def published(admin: OpenWebUI, name: str) -> Iterator[None]:
    """A model row made by hand for everybody, on which a wildcard of the table acts."""
    row = {
        "id": name,
        "base_model_id": "llama3:8b",
        "name": name,
        "meta": {},
        "params": {},
        "access_grants": [{"principal_type": "user", "principal_id": "*", "permission": "read"}],
    }
    admin.post("/api/v1/models/create", row)
    admin.models(refresh=True)
    try:
        yield
    finally:
        admin.post("/api/v1/models/model/delete", {"id": name})
        admin.models(refresh=True)


def test_model_without_permission_is_passed_over(
    admin: OpenWebUI, student: OpenWebUI, node: OllamaNode
) -> None:
    """Would catch a candidate that the user may not use failing the chat instead of giving way."""
    with published(admin, "private:x"):
        ask(student, "private:x")
        assert asked_for(node) == "llama3:8b"
        ask(admin, "private:x")
        assert asked_for(node) == "private:1b"


def test_alias_that_nothing_can_answer_says_why(admin: OpenWebUI, student: OpenWebUI) -> None:
    """Would catch another model answering unasked, and models named to users who may not use them."""
    with published(admin, "locked-away"), pytest.raises(ServerError) as refused:
        ask(student, "locked-away")
    assert refused.value.status == 404
    assert "No model behind this name can be used." in refused.value.detail
    assert "private:1b" not in str(refused.value)


def test_alias_without_an_installed_model_tells_admins_why(admin: OpenWebUI) -> None:
    """Would catch an error that names neither models nor reasons to those who can act on it."""
    with published(admin, "not-here"), pytest.raises(ServerError) as refused:
        ask(admin, "not-here")
    assert refused.value.status == 404
    assert "can answer: mixtral:8x7b is not installed." in refused.value.detail


def test_settings_of_the_alias_row_hold_for_every_candidate(admin: OpenWebUI, node: OllamaNode) -> None:
    """Would catch a system prompt on `gpt-4` that is lost when another model than the row's base answers."""
    row = admin.model_rows()["gpt-4"]
    params = {"system": "Answer as {{USER_NAME}} would.", "temperature": 0.125}
    admin.post("/api/v1/models/model/update", row | {"params": params})
    try:
        for messages, model in ((HELLO, "llama3:70b-instruct-q4_K_M"), (IMAGE, "llava:13b")):
            ask(admin, "gpt-4", messages)
            body = node.requests[-1].body
            assert body is not None
            assert body["model"] == model
            assert body["messages"][0] == {"role": "system", "content": "Answer as Admin would."}
            assert body["options"]["temperature"] == 0.125
    finally:
        admin.post("/api/v1/models/model/update", row)


def test_bad_table_is_refused_when_it_is_saved(admin: OpenWebUI, webui: RunningWebUI) -> None:
    """Would catch a table that is stored although no request could use it, or a refusal without its reason.

    Open WebUI shows the admin no validator's words; they are in its log, and `upload.py` prints them.
    """
    before = admin.valves("functions", "model_alias_filter")
    bad = {"aliases": "gpt-4 = llama3:8b\ngpt-5 = gpt-6\ngpt-6 = gpt-5"}
    with pytest.raises(ServerError) as refused:
        admin.post("/api/v1/functions/id/model_alias_filter/valves/update", bad)
    assert refused.value.status == 400
    reason = "row 2 ('gpt-5 = gpt-6'): the alias leads back to itself: gpt-5 → gpt-6 → gpt-5"
    assert reason in webui.log.read_text()
    assert admin.valves("functions", "model_alias_filter") == before


def test_anthropic_form_is_answered(student: OpenWebUI, node: OllamaNode) -> None:
    """Would catch an alias that only the OpenAI form knows."""
    body = {"model": "gpt-4", "max_tokens": 50, "messages": HELLO}
    answer = student.post("/api/v1/messages", body)
    assert answer["content"][0]["text"] == "You said: hello"
    assert asked_for(node) == "llama3:70b-instruct-q4_K_M"
