"""`gpu_router` on the real Pipelines server behind a real Open WebUI."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from deploy.client import OpenWebUI
from harness.chat_bodies import said
from harness.fixtures_pipelines_router import JSON, chunks_of
from harness.fixtures_pipelines_webui import PipedWebUI
from harness.ollama_node import Answer

LEAVING_SECONDS = 40.0
SLASHED = "gpu_router.hf.co--maker--model:Q4"


@pytest.fixture(autouse=True)
def fresh(piped: PipedWebUI) -> Iterator[None]:
    """Nodes without answers lined up by another test."""
    yield
    for node in piped.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest, piped: PipedWebUI) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = getattr(piped, request.param)
    return api


def test_the_models_are_offered(piped: PipedWebUI) -> None:
    """Would catch models that do not come through, and a router that is a function as well."""
    offered = set(piped.admin.models(refresh=True))
    assert {"gpt-4", "gpu_router.gpt-4", "gpu_router.llama3:8b", SLASHED} <= offered
    assert "gpu_router" not in piped.admin.plugins("functions")


def test_an_alias_is_streamed(piped: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch chunks out of form, a second finish reason, or an answer that does not say whose it is."""
    chunks = chunks_of(piped.ask(user, "gpt-4"))
    assert said(chunks) == "You said: hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert chunks[-1]["ollama_pack"]["node"] in {"gpu0", "gpu1"}


def test_an_alias_is_answered_whole(piped: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch a stream where none was asked for, and an answer that does not say who gave it and why."""
    answer = piped.ask(user, "gpt-4", stream=False).json()
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    told = answer["ollama_pack"]
    assert (answer["model"], told["model"]) == ("gpt-4", "llama3:8b")
    assert told["node"] in {"gpu0", "gpu1"}
    assert "mixtral:8x7b is not installed" in told["reason"]


def test_a_name_with_a_slash_is_answered(piped: PipedWebUI) -> None:
    """Would catch an id for which Open WebUI's own request to the model's inlet ends in "Not Found"."""
    assert said(chunks_of(piped.ask(piped.admin, SLASHED))) == "You said: hello"


def test_another_node_answers_for_one_that_is_gone(piped: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch an error that a user sees though another node could answer."""
    first = chunks_of(piped.ask(user, "gpt-4"))[-1]["ollama_pack"]["node"]
    home = piped.nodes[0 if first == "gpu0" else 1]
    home.enqueue(Answer(refusal=(500, "llama runner process has terminated")))
    chunks = chunks_of(piped.ask(user, "gpt-4"))
    assert said(chunks) == "You said: hello"
    assert chunks[-1]["ollama_pack"]["node"] != first


def test_a_refusal_has_its_sentence(piped: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch an error of the router that Open WebUI turns into one without a reason."""
    for stream in (True, False):
        answer = piped.ask(user, "gpt-4", stream=stream, temperature="hot")
        assert "temperature must be a number, not 'hot'" in answer.text


FAILURES = {
    "refused": ([(400, "this prompt is too long")] * 2, 400),
    "poison": ([(500, "no such grammar")] * 2, 400),
    "failed": ([(500, "out of memory"), (500, "the runner has ended")], 502),
    "busy": ([(503, "server busy")] * 2, 503),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", ["pipelines", "openai", "anthropic"])
def test_a_failure_is_the_sdk_s_own_exception(piped: PipedWebUI, way: str, *, stream: bool) -> None:
    """Would catch failures with status 200, which clients take for an answer, and poison that stays."""
    for what, (refusals, status) in FAILURES.items():
        for node, refusal in zip(piped.nodes, refusals, strict=True):
            node.enqueue(Answer(refusal=refusal))
        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
            ask_by_sdk(piped, way, stream=stream)
        assert caught.value.status_code == status, what
        assert caught.value.response.headers.get("retry-after") == ("10" if status == 503 else None)
        assert "127.0.0.1" not in str(caught.value)
    assert ask_by_sdk(piped, way, stream=stream) == "You said: hello"


def ask_by_sdk(piped: PipedWebUI, way: str, *, stream: bool) -> str:
    """What an SDK makes of an answer: of Open WebUI's, as a plain user, or of the Pipelines server's own."""
    messages: Any = [{"role": "user", "content": "hello"}]
    base, key = f"{piped.webui.url}/api", str(piped.student.key)
    if way == "anthropic":
        with anthropic.Anthropic(base_url=base, auth_token=key, max_retries=0) as client:
            asked: Any = {"model": "gpt-4", "max_tokens": 100, "messages": messages}
            if not stream:
                (block,) = client.messages.create(**asked).content
                return block.text if block.type == "text" else ""
            with client.messages.stream(**asked) as events:
                return "".join(events.text_stream)
    model = "gpt-4"
    if way == "pipelines":
        base, key, model = f"{piped.pipelines.url}/v1", piped.pipelines.key, "gpu_router.gpt-4"
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client:
        if not stream:
            whole = client.chat.completions.create(model=model, messages=messages)
            return whole.choices[0].message.content or ""
        chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_client_who_leaves_ends_the_generation(piped: PipedWebUI) -> None:
    """Would catch a node that goes on writing for somebody who is gone."""
    for node in piped.nodes:
        node.enqueue(Answer([f"word{number} " for number in range(3000)], pause=0.02))
    before = {id(request) for request in piped.chats()}
    answer = piped.ask(piped.student, "gpt-4")
    next(answer.iter_lines())
    (asked,) = [request for request in piped.chats() if id(request) not in before]
    answer.close()
    assert asked.left.wait(LEAVING_SECONDS)


def test_settings_of_a_models_row(piped: PipedWebUI) -> None:
    """Would catch a context length that an admin has set for a model, and that no node is told."""
    params = {"num_ctx": 8192, "keep_alive": "7m", "temperature": 0.25}
    row: JSON = {
        "id": "gpu_router.llama3:8b",
        "name": "Llama",
        "base_model_id": None,
        "meta": {},
        "params": params,
        "access_grants": [],
    }
    rows = piped.admin.model_rows()
    known = row["id"] in rows
    piped.admin.post("/api/v1/models/model/update" if known else "/api/v1/models/create", row)
    piped.admin.models(refresh=True)
    try:
        chunks_of(piped.ask(piped.admin, "gpu_router.llama3:8b", "settings?"))
    finally:
        if known:
            piped.admin.post("/api/v1/models/model/update", rows["gpu_router.llama3:8b"])
        else:
            piped.admin.post("/api/v1/models/model/delete", {"id": row["id"]})
    asked = piped.asked("settings?")
    assert (asked["options"]["num_ctx"], asked["options"]["temperature"]) == (8192, 0.25)
    assert asked["keep_alive"] == "7m"
