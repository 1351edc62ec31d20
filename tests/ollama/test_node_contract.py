"""What `NodeClient` promises, held by each of its kinds: the same tests over Ollama and over other engines.

The real engine is llama.cpp's server with SmolLM2; the scripted ones are for what cannot be asked of it.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import pytest
import requests

from harness.node_clients import HEAD, JSON, PATIENCE, USER, chunks_of
from harness.node_contract import STEADY, wait_until
from harness.ollama_node import Answer, Model, OllamaNode
from harness.openai_engine import MODEL as SERVED
from harness.openai_engine import EngineAnswer, OpenAIEngine
from local import engine
from local.processes import free_port
from ollama_pack.engines.errors import (
    ChatBodyError,
    ModelNotFoundError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
    RetryableNodeError,
)
from ollama_pack.engines.ollama.client import NodeClient, OllamaClient
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.transport import NodeLimits
from ollama_pack.routing.dispatch.durations import Elapsed, spent_on

T = TypeVar("T")
CLIENTS: dict[str, type[OllamaClient | OpenAIClient]] = {
    "ollama": OllamaClient,
    "vllm": OpenAIClient,
    "sglang": OpenAIClient,
    "llamacpp": OpenAIClient,
    "real": OpenAIClient,
}
SCRIPTED = ["ollama", "vllm", "sglang", "llamacpp"]


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """What is left behind, such as a connection, warns when it is collected, and a warning fails a test."""
    yield
    gc.collect()


@dataclass(frozen=True)
class AnyNode:
    """A node of some kind, and the client for it."""

    url: str
    model: str
    client: type[OllamaClient | OpenAIClient]
    scripted: OllamaNode | OpenAIEngine | None = None

    def run(
        self, use: Callable[[NodeClient], Awaitable[T]], limits: NodeLimits | None = None, **headers: str
    ) -> T:
        """Use a client in an event loop and a session of its own."""

        async def inside() -> T:
            async with aiohttp.ClientSession() as session:
                return await use(self.client(self.url, session, limits=limits, headers=headers))

        return asyncio.run(inside())

    def chunks(self, limits: NodeLimits | None = None, **body: Any) -> list[JSON]:
        model = body.pop("model", self.model)
        return self.run(lambda client: chunks_of(client, model, **body), limits)

    def script(self, words: list[str], **how: Any) -> None:
        """Set the next answer, when this node is scripted."""
        match self.scripted:
            case OllamaNode():
                self.scripted.enqueue(Answer(words, **how))
            case OpenAIEngine():
                self.scripted.enqueue(EngineAnswer(words, **how))

    def wait_until_it_stopped(self) -> None:
        """Until it works for nobody any more."""
        if self.scripted is not None:
            assert self.scripted.requests[-1].left.wait(5)
            return
        with requests.Session() as http:
            http.trust_env = False
            slots = f"{self.url.removesuffix('/v1')}/slots"
            wait_until(lambda: not any(slot["is_processing"] for slot in http.get(slots, timeout=5).json()))


@pytest.fixture(params=list(CLIENTS))
def any_node(request: pytest.FixtureRequest) -> Iterator[AnyNode]:
    """Yield a node of each kind."""
    client = CLIENTS[request.param]
    match request.param:
        case "real":
            yield AnyNode(request.getfixturevalue("real_engine"), engine.MODEL, client)
        case "ollama":
            with OllamaNode([Model("smollm2:135m")], gpu=False) as node:
                yield AnyNode(node.url, "smollm2:135m", client, node)
        case kind:
            with OpenAIEngine(kind) as node:
                yield AnyNode(node.url, SERVED, client, node)


scripted_only = pytest.mark.parametrize("any_node", SCRIPTED, indirect=True)


def test_chunks_of_an_answer(any_node: AnyNode) -> None:
    """Would catch a kind of node whose stream OpenAI's clients, or ours, cannot read."""
    chunks = any_node.chunks()
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", HEAD.created, "asked-for")
    }
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks) == 4
    assert all(choice.keys() == {"index", "delta", "logprobs", "finish_reason"} for choice in choices)
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, None, None]
    assert [bool(choice["delta"].get("content")) for choice in choices] == [True, True, True, False]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert ["usage" in chunk for chunk in chunks] == [False, False, False, True]


def test_the_completion_that_they_make_up(any_node: AnyNode) -> None:
    """Would catch chunks of which an unstreamed answer cannot be made."""
    completion = completion_of(any_node.chunks(stream=False))
    (choice,) = completion["choices"]
    assert choice["message"].keys() == {"role", "content"}
    assert choice["message"]["content"]
    assert completion["usage"]["completion_tokens"] == 3
    assert completion["usage"]["prompt_tokens"] > 0
    assert completion["usage"]["input_tokens"] == completion["usage"]["prompt_tokens"]


def test_figures_in_a_chunk_of_their_own(any_node: AnyNode) -> None:
    """Would catch a client that asked for OpenAI's form of the figures, and gets none or two."""
    *chunks, last = any_node.chunks(stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_what_the_fleet_learns(any_node: AnyNode) -> None:
    """Would catch a kind of node of whose speed nothing, or nonsense, is learned."""

    async def chat(client: NodeClient) -> tuple[JSON, Elapsed]:
        clock = asyncio.get_running_loop()
        began, first, got = clock.time(), 0.0, []
        asked = {"model": any_node.model, "messages": [USER], "max_tokens": 5, "options": STEADY}
        async with aclosing(client.complete(asked, HEAD, first_byte=PATIENCE)) as chunks:
            async for chunk in chunks:
                first = first or clock.time() - began
                got.append(chunk)
        return got[-1], Elapsed(first, clock.time() - began)

    last, elapsed = any_node.run(chat)
    spent = spent_on(last["usage"], last.get("timings"), elapsed)
    assert (spent.prompt_count > 0, spent.decode_count) == (True, 5)
    assert 0 <= spent.prompt + spent.decode <= spent.total + 1e-9
    assert spent.total > 0


@pytest.mark.parametrize("any_node", ["real"], indirect=True)
def test_hits_of_a_real_engine(any_node: AnyNode) -> None:
    """Would catch a prompt that is held, and counts as evaluated at an incredible rate."""
    text = "Once upon a time there was a fox. " * 20
    *_, last = any_node.chunks(messages=[{"role": "user", "content": text}])
    cold = spent_on(last["usage"], last["timings"], Elapsed(9.0, 9.0))
    *_, last = any_node.chunks(messages=[{"role": "user", "content": text}])
    warm = spent_on(last["usage"], last["timings"], Elapsed(9.0, 9.0))
    assert cold.prompt_count == warm.prompt_count > 150
    assert cold.hit is not None
    assert cold.hit < 40  # the template's first tokens are held already
    assert warm.hit == warm.prompt_count - 1
    assert warm.prompt < cold.prompt


@pytest.mark.parametrize("any_node", ["real"], indirect=True)
def test_a_picture_for_a_real_text_model(any_node: AnyNode) -> None:
    """Would catch a picture that breaks a node's circuit: llama.cpp refuses it with status 500."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    with pytest.raises(RequestRefusedError, match="not supported"):
        any_node.chunks(messages=[{"role": "user", "content": [picture]}])


@pytest.mark.parametrize("any_node", ["real"], indirect=True)
def test_thoughts_and_schemas_at_a_real_engine(any_node: AnyNode) -> None:
    """Would catch words for Ollama's settings that a real engine refuses, or that have no effect there."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    chunks = any_node.chunks(format=schema, think=False, keep_alive="5m", options={"num_predict": 50})
    text = completion_of(chunks)["choices"][0]["message"]["content"]
    assert json.loads(text) == {"city": "Paris"}


def test_models(any_node: AnyNode) -> None:
    """Would catch a node that seems to have no model, or one of which nothing else is known."""

    async def ask(client: NodeClient) -> Any:
        await chunks_of(client, any_node.model)  # an Ollama has nothing in memory before
        return (
            await client.tags(),
            await client.ps(),
            await client.show(any_node.model),
        )

    (listed,), (loaded,), shown = any_node.run(ask)
    assert (listed.name, loaded.name) == (any_node.model, any_node.model)
    assert loaded.context_length > 1000
    assert loaded.size == listed.size or any_node.client is OllamaClient
    assert shown.context_length > 1000
    assert "completion" in (shown.capabilities or ["completion"])


def test_an_unknown_model(any_node: AnyNode) -> None:
    """Would catch a missing model that counts as a fault, or that another model answers for, unasked."""
    with pytest.raises(ModelNotFoundError) as caught:
        any_node.chunks(model="nope")
    assert (caught.value.model, caught.value.status) == ("nope", 404)
    with pytest.raises(ModelNotFoundError):
        any_node.run(lambda client: client.show("nope"))


def test_a_request_that_is_refused(any_node: AnyNode) -> None:
    """Would catch a prompt that is too long and that is tried on every node."""
    refusal = "This model's maximum context length is 4096 tokens"
    is_ollama = isinstance(any_node.scripted, OllamaNode)
    any_node.script([], refusal=(400, refusal if is_ollama else {"error": {"message": refusal, "code": 400}}))
    with pytest.raises(RequestRefusedError) as caught:
        any_node.chunks(messages=[{"role": "user", "content": "word " * 6000}])
    assert not isinstance(caught.value, RetryableNodeError)
    assert caught.value.status == 400
    assert "context" in caught.value.said


def test_a_body_of_another_form(any_node: AnyNode) -> None:
    """Would catch a body at fault that one kind of node refuses by itself, and another crashes on."""
    for body in ({"messages": "hello"}, {"options": {"temperature": "warm"}}, {"stream_options": 5}):
        with pytest.raises(ChatBodyError):
            any_node.chunks(**body)


def test_settings_have_an_effect(any_node: AnyNode) -> None:
    """Would catch a setting that is lost on the way to a kind of node."""
    ways: list[JSON] = [{"max_tokens": 2}, {"max_completion_tokens": 2}, {"options": {"num_predict": 2}}]
    for body in ways:
        asked: JSON = {"options": {}, **body}
        chunks = any_node.chunks(**asked)
        assert completion_of(chunks)["usage"]["completion_tokens"] == 2


def test_closing_the_stream_frees_the_node(any_node: AnyNode) -> None:
    """Would catch a stopped chat for which the node goes on."""
    any_node.script(["a"] * 3000, pause=0.01)
    asked = {"model": any_node.model, "messages": [USER], "max_tokens": 2000, "options": STEADY}

    async def stop(client: NodeClient) -> None:
        async with aclosing(client.complete(asked, HEAD, first_byte=PATIENCE)) as chunks:
            assert (await anext(chunks))["choices"][0]["delta"]["content"]
        await asyncio.to_thread(any_node.wait_until_it_stopped)

    any_node.run(stop)


def test_a_cancelled_task_frees_the_node(any_node: AnyNode) -> None:
    """Would catch a request that goes on at the node when its task is cancelled."""
    any_node.script(["a"] * 3000, pause=0.01)
    begun = asyncio.Event()

    async def read(client: NodeClient) -> None:
        asked = {"model": any_node.model, "messages": [USER], "max_tokens": 2000, "options": STEADY}
        async with aclosing(client.complete(asked, HEAD, first_byte=PATIENCE)) as chunks:
            async for _ in chunks:
                begun.set()

    async def cancel(client: NodeClient) -> None:
        task = asyncio.create_task(read(client))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(any_node.wait_until_it_stopped)

    any_node.run(cancel)


def test_chats_side_by_side(any_node: AnyNode) -> None:
    """Would catch answers that get mixed up when many chats share a session."""
    texts = [f"number {number}" for number in range(8)]

    async def chat(client: NodeClient, text: str) -> str:
        asked = {"model": any_node.model, "messages": [{"role": "user", "content": text}], "max_tokens": 6}
        made = client.complete(asked | {"options": STEADY}, HEAD, first_byte=PATIENCE)
        return str(completion_of([chunk async for chunk in made])["choices"][0]["message"]["content"])

    async def all_at_once(client: NodeClient) -> list[str]:
        return await asyncio.gather(*(chat(client, text) for text in texts))

    answers = any_node.run(all_at_once)
    assert all(answers)
    if any_node.scripted:
        assert answers == [f"You said: {text}" for text in texts]


def test_one_chat_after_another(any_node: AnyNode) -> None:
    """Would catch a request sent where the engine has hung up: llama.cpp does after each stream, unsaid."""

    async def chat_again_and_again(client: NodeClient) -> int:
        return sum([len(await chunks_of(client, any_node.model)) > 1 for _ in range(10)])

    assert any_node.run(chat_again_and_again) == 10


def test_a_node_that_is_not_there(any_node: AnyNode) -> None:
    """Would catch a dead node whose error is not one that another node can make good."""
    gone = AnyNode(f"http://127.0.0.1:{free_port()}", any_node.model, any_node.client)
    uses: list[Callable[[NodeClient], Awaitable[Any]]] = [
        lambda client: client.tags(),
        lambda client: client.ps(),
        lambda client: client.show("m"),
        lambda client: chunks_of(client, "m"),
    ]
    for use in uses:
        with pytest.raises(NodeUnreachableError) as caught:
            gone.run(use)
        assert caught.value.node == gone.url


# --- what cannot be asked of a real engine


def fail(
    node: AnyNode, kind: type[NodeError], limits: NodeLimits | None = None, first_byte: float = 5
) -> Any:
    """Chat with a node that must fail in this way; the chunks before it, and the error."""
    got: list[JSON] = []

    async def chat(client: NodeClient) -> None:
        asked = {"model": node.model, "messages": [USER]}
        async for chunk in client.complete(asked, HEAD, first_byte=first_byte):
            got.append(chunk)  # noqa: PERF401 - what came before the error matters

    with pytest.raises(kind) as caught:
        node.run(chat, limits)
    assert type(caught.value) is kind
    return got, caught.value


@scripted_only
def test_a_failure_in_the_stream(any_node: AnyNode) -> None:
    """Would catch a crashed engine whose half answer looks whole."""
    said = "unexpected EOF"
    failure = said if any_node.client is OllamaClient else {"error": {"message": said, "code": 500}}
    any_node.script(["a", "b"], failure=failure)
    got, error = fail(any_node, NodeFaultError)
    assert (len(got), error.status, error.said) == (2, None, said)


@scripted_only
def test_hanging_up_in_the_stream(any_node: AnyNode) -> None:
    """Would catch a cut connection that reads as the end of the answer."""
    any_node.script(["a"], pause=0.05, hangs_up=True)
    got, _ = fail(any_node, NodeFaultError)
    assert len(got) == 1


@scripted_only
def test_a_slow_first_byte(any_node: AnyNode) -> None:
    """Would catch a hung node that is waited for without end, or that keeps the request afterwards."""
    any_node.script(["late"], delay=30)
    _, error = fail(any_node, NodeTimeoutError, first_byte=0.3)
    assert (error.stage, error.seconds) == ("first byte", 0.3)
    any_node.wait_until_it_stopped()


@scripted_only
def test_a_slow_next_chunk(any_node: AnyNode) -> None:
    """Would catch a node that hangs in the middle and is waited for without end."""
    any_node.script(["a", "b"], pause=30)
    _, error = fail(any_node, NodeTimeoutError, NodeLimits(next_line=0.3))
    assert (error.stage, error.seconds) == ("next line", 0.3)
    any_node.wait_until_it_stopped()


@scripted_only
def test_headers_are_sent(any_node: AnyNode) -> None:
    """Would catch a node that never gets its key."""
    any_node.run(lambda client: chunks_of(client, any_node.model), Authorization="Bearer key")
    assert any_node.scripted is not None
    assert any_node.scripted.requests[-1].headers["Authorization"] == "Bearer key"
