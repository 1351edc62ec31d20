"""`gpu_router` on the Pipelines server, asked as any client of OpenAI's API asks it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from deploy.errors import ServerError
from harness.chat_bodies import said
from harness.fixtures_pipelines_router import (
    ALIASES,
    CHAT,
    ROUTER_FILE,
    RoutedPipelines,
    chunks_of,
    dictation,
    until,
)
from harness.ollama_node import Answer, Model, OllamaNode

LEAVING_SECONDS = 20.0
FOREVER = Answer(["never"], delay=3600.0)
WORDS = [f"word{number} " for number in range(200)]


@pytest.fixture(autouse=True)
def fresh(routed_pipelines: RoutedPipelines) -> Iterator[None]:
    """Nodes without answers lined up by another test, and a log in which nothing broke."""
    yield
    for node in routed_pipelines.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    assert "Traceback" not in routed_pipelines.server.log.read_text()


def test_models_are_offered(routed_pipelines: RoutedPipelines) -> None:
    """Would catch an empty list at the start, and an id with a slash, of which Open WebUI finds no inlet."""
    with routed_pipelines.client() as client:
        offered = {model.id: getattr(model, "name", "") for model in client.models.list().data}
    assert {name for name in offered if name.startswith("gpu_router")} == {
        "gpu_router.gpt-4",
        "gpu_router.llama3:8b",
        "gpu_router.hf.co--maker--model:Q4",
    }
    assert offered["gpu_router.hf.co--maker--model:Q4"] == "hf.co/maker/model:Q4"


def test_the_openai_client_streams(routed_pipelines: RoutedPipelines) -> None:
    """Would catch chunks that OpenAI's own client does not understand, and an end made up by the server."""
    with routed_pipelines.client() as client:
        chunks = list(
            client.chat.completions.create(
                model=CHAT, messages=[{"role": "user", "content": "hello"}], stream=True
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].ollama_pack["node"] in {"gpu0", "gpu1"}


def test_the_openai_client_gets_a_whole_answer(routed_pipelines: RoutedPipelines) -> None:
    """Would catch figures, finish reason or node lost on the way, and conversations in the server's log."""
    with routed_pipelines.client() as client:
        answer = client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "a secret matter"}],
            stream=False,
            max_tokens=2,
        )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("You said:", "length")
    assert answer.usage.completion_tokens == 2
    assert answer.ollama_pack["reason"]
    assert "You said" not in routed_pipelines.server.log.read_text()


def test_a_name_with_a_slash_is_answered(routed_pipelines: RoutedPipelines) -> None:
    """Would catch an id that is not turned back into the model's name."""
    assert said(chunks_of(routed_pipelines.ask("gpu_router.hf.co--maker--model:Q4"))) == "You said: hello"
    assert (routed_pipelines.nodes[0].requests[-1].body or {})["model"] == "hf.co/maker/model:Q4"


def test_a_refusal_has_a_status_and_a_reason(routed_pipelines: RoutedPipelines) -> None:
    """Would catch "Internal Server Error", or a broken stream, instead of a sentence."""
    messages = [{"role": "user", "content": "hello"}]
    with routed_pipelines.client() as client:
        with pytest.raises(openai.BadRequestError, match="temperature must be a number, not 'hot'"):
            client.chat.completions.create(model=CHAT, messages=messages, stream=False, temperature="hot")
        with pytest.raises(openai.APIError, match="temperature must be a number, not 'hot'"):
            list(
                client.chat.completions.create(model=CHAT, messages=messages, stream=True, temperature="hot")
            )


def test_another_node_answers_for_one_that_is_gone(routed_pipelines: RoutedPipelines) -> None:
    """Would catch a chat that is lost with the node that was about to answer it."""
    first = chunks_of(routed_pipelines.ask())[-1]["ollama_pack"]["node"]
    home, other = routed_pipelines.nodes if first == "gpu0" else routed_pipelines.nodes[::-1]
    home.enqueue(FOREVER)
    before = len(home.requests)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: chunks_of(routed_pipelines.ask()))
        until(lambda: any(request.path == "/api/chat" for request in home.requests[before:]))
        home.kill()
        try:
            chunks = waiting.result()
        finally:
            home.start()
    assert said(chunks) == "You said: hello"
    assert chunks[-1]["ollama_pack"]["node"] != first
    assert other.requests[-1].path in {"/api/chat", "/api/show"}


def test_a_client_who_leaves_ends_the_generation(routed_pipelines: RoutedPipelines) -> None:
    """Would catch a node that goes on writing for somebody who is gone."""
    for node in routed_pipelines.nodes:
        node.enqueue(Answer(WORDS, pause=0.05))
    answer = routed_pipelines.ask()
    next(answer.iter_lines())
    asked = routed_pipelines.chats()[-1]
    answer.close()
    assert asked.left.wait(LEAVING_SECONDS)


def test_every_client_who_leaves_is_noticed(routed_pipelines: RoutedPipelines) -> None:
    """Would catch those that leave between two lines, whose streams the server forgets unclosed."""
    for node in routed_pipelines.nodes:
        node.enqueue(*[Answer(["word "] * 20_000, pause=0.002)] * 40)
    before = {id(request) for request in routed_pipelines.chats()}
    answers = [routed_pipelines.ask(text=f"chat {number}") for number in range(40)]
    for number, answer in enumerate(answers):
        lines = answer.iter_lines()
        for _ in range(1 + number):
            next(lines)
        answer.close()
    asked = [request for request in routed_pipelines.chats() if id(request) not in before]
    assert len(asked) == 40
    assert all(request.left.wait(LEAVING_SECONDS) for request in asked)


def test_silent_streams_keep_nobody_waiting(routed_pipelines: RoutedPipelines) -> None:
    """Would catch streams that take all 40 threads of the server, and leaving clients that nobody notices."""
    for node in routed_pipelines.nodes:
        node.enqueue(*[FOREVER] * 48)
    before = {id(request) for request in routed_pipelines.chats()}
    answers = [routed_pipelines.send(text=f"chat {number}") for number in range(48)]
    until(lambda: len(routed_pipelines.chats()) == len(before) + 48)
    assert routed_pipelines.condition()["pool"] == 40 + 48
    silent = [request for request in routed_pipelines.chats() if id(request) not in before]
    for answer in answers:
        answer.close()
    assert all(request.left.wait(LEAVING_SECONDS) for request in silent)
    until(lambda: routed_pipelines.condition()["pool"] == 40)


def test_32_streams_at_once(routed_pipelines: RoutedPipelines) -> None:
    """Would catch lines of one answer in another, or lost ones, under load."""
    answers = [routed_pipelines.ask(text=f"chat {number}") for number in range(32)]
    assert [said(chunks_of(answer)) for answer in answers] == [f"You said: chat {n}" for n in range(32)]


@pytest.mark.parametrize("how", ["reload", "upload"])
def test_loading_anew_loses_no_stream(routed_pipelines: RoutedPipelines, how: str) -> None:
    """Would catch answers that are cut off when an admin uploads, on this pipeline or on another one."""
    for node in routed_pipelines.nodes:
        node.enqueue(Answer(WORDS, pause=0.02))
    api = routed_pipelines.server.api()
    with dictation(routed_pipelines) as other:
        assert other.say("before") == "before"
        ours = routed_pipelines.ask()
        lines = ours.iter_lines()
        next(lines)
        if how == "upload":
            api.send_file("/pipelines/upload", ROUTER_FILE.name, ROUTER_FILE.read_bytes())
        else:
            api.post("/pipelines/reload")
        assert said(chunks_of(routed_pipelines.ask(text="new"))) in {"You said: new", "".join(WORDS)}
        assert other.say("after") == "after"
        assert other.end() == b"data: [DONE]"
        rest = [json.loads(line.removeprefix(b"data: ")) for line in lines if line and b"[DONE]" not in line]
    api.close()
    assert said(rest).endswith("word198 word199 ")
    assert rest[-1]["choices"][0]["finish_reason"] == "stop"
    until(lambda: routed_pipelines.condition()["threads"].count("ollama-pack") == 1)


def test_valves_are_saved_and_take_effect(routed_pipelines: RoutedPipelines) -> None:
    """Would catch valves that are lost on reload, or whose models are offered a request too late."""
    api = routed_pipelines.server.api()
    before = api.valves("gpu_router")
    assert before["aliases"] == ALIASES
    assert before["probe_seconds"] == 0.5
    with OllamaNode([Model("phi3:mini")]) as third:
        try:
            saved = api.post("/gpu_router/valves/update", before | {"nodes": f"gpu2 {third.url}"})
            offered = [model["id"] for model in api.get("/models")["data"]]
            assert "gpu_router.phi3:mini" in offered
            assert "gpu_router.llama3:8b" not in offered
            assert (
                json.loads((routed_pipelines.server.folder / "gpu_router/valves.json").read_text()) == saved
            )
            api.post("/pipelines/reload")
            assert api.valves("gpu_router") == saved
            assert said(chunks_of(routed_pipelines.ask("gpu_router.phi3:mini"))) == "You said: hello"
        finally:
            api.post("/gpu_router/valves/update", before)
            api.close()


@pytest.mark.parametrize(
    ("valve", "value", "reason"),
    [
        ("nodes", "gpu0 http://a:1; gpu0 http://b:1", "row 2"),
        ("aliases", "gpt-4 = llama3:8b [group=staff]", "use the gpu_router function"),
        ("strategy", "best", "predicted_ttft"),
    ],
)
def test_bad_valves_are_refused(
    routed_pipelines: RoutedPipelines, valve: str, value: str, reason: str
) -> None:
    """Would catch a table that is stored although no chat could use it, or is refused without a reason."""
    api = routed_pipelines.server.api()
    before = api.valves("gpu_router")
    with pytest.raises(ServerError, match=reason):
        api.post("/gpu_router/valves/update", before | {valve: value})
    assert api.valves("gpu_router") == before
    api.close()
