"""`OpenAIClient` against engines of several makes that fail on command, and servers that are no engine."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import pytest

from harness.node_clients import HEAD, JSON, USER, chunks_of
from harness.openai_engine import MODEL, EngineAnswer, EngineKind, OpenAIEngine
from harness.openai_wire import engine_wire
from local.processes import free_port
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
)
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.engines.transport import NodeLimits

T = TypeVar("T")
KINDS: list[EngineKind] = ["vllm", "sglang", "llamacpp"]


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """What is left behind, such as a connection, warns when it is collected, and a warning fails a test."""
    yield
    gc.collect()


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest) -> Iterator[OpenAIEngine]:
    """Yield an engine of each make."""
    with OpenAIEngine(request.param) as scripted:
        yield scripted


@pytest.fixture
def vllm() -> Iterator[OpenAIEngine]:
    with OpenAIEngine("vllm") as scripted:
        yield scripted


def run(url: str, use: Callable[[OpenAIClient], Awaitable[T]], limits: NodeLimits | None = None) -> T:
    """Use a client in an event loop and a session of its own."""

    async def inside() -> T:
        async with aiohttp.ClientSession() as session:
            return await use(OpenAIClient(url, session, limits=limits))

    return asyncio.run(inside())


def chunks(engine: OpenAIEngine, limits: NodeLimits | None = None, **body: Any) -> list[JSON]:
    return run(engine.url, lambda client: chunks_of(client, MODEL, first_byte=5, **body), limits)


def message(engine: OpenAIEngine, **body: Any) -> JSON:
    made: JSON = completion_of(chunks(engine, **body))["choices"][0]["message"]
    return made


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_addresses_with_and_without_v1(vllm: OpenAIEngine, tail: str) -> None:
    """Would catch an address that every other program takes, and we ask for /v1/v1/models."""

    async def ask(client: OpenAIClient) -> tuple[str, int]:
        return client.name, len([*await client.tags(), *await chunks_of(client, MODEL)])

    assert run(vllm.url + tail, ask) == (vllm.url, 5)


def test_an_older_llamacpp_tells_its_context_elsewhere() -> None:
    """Would catch a context that is not known, so that a prompt too long is sent there."""
    with OpenAIEngine("llamacpp") as engine:
        entry = {"id": MODEL, "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072}}
        engine.models = {"data": [entry]}
        (loaded,) = run(engine.url, lambda client: client.ps())
        assert loaded.context_length == 4096


def test_activity(vllm: OpenAIEngine) -> None:
    """Would catch metrics that are there and are not read."""
    assert run(vllm.url, lambda client: client.activity()) == EngineActivity(3, 2)


@pytest.mark.parametrize("text", [None, "<html>a page</html>", "go_goroutines 7"])
def test_an_engine_without_metrics_is_not_asked_again(vllm: OpenAIEngine, text: str | None) -> None:
    """Would catch a request in vain at each look at a node."""
    vllm.metrics = text

    async def ask(client: OpenAIClient) -> list[EngineActivity | None]:
        return [await client.activity() for _ in range(3)]

    assert run(vllm.url, ask) == [None] * 3
    assert vllm.asked.count("/metrics") == 1


def test_metrics_of_an_engine_that_is_down() -> None:
    """Would catch a dead engine that passes for one without metrics."""
    with pytest.raises(NodeUnreachableError):
        run(f"http://127.0.0.1:{free_port()}", lambda client: client.activity())


def test_models_are_asked_for_once(vllm: OpenAIEngine) -> None:
    """Would catch a list of models fetched before each chat."""

    async def chat_twice(client: OpenAIClient) -> None:
        for _ in range(2):
            await chunks_of(client, MODEL)

    run(vllm.url, chat_twice)
    assert vllm.asked == ["/v1/models"]


def test_a_model_that_comes_later(vllm: OpenAIEngine) -> None:
    """Would catch an adapter loaded at run time that the client does not know of."""
    served = vllm.models
    vllm.models = {"data": []}

    async def ask(client: OpenAIClient) -> int:
        with pytest.raises(ModelNotFoundError, match="serves nothing"):
            await chunks_of(client, MODEL)
        vllm.models = served
        return len(await chunks_of(client, MODEL))

    assert run(vllm.url, ask) == 4


def test_another_name_of_a_model() -> None:
    """Would catch a llama.cpp whose second name for a model counts as unknown."""
    with OpenAIEngine("llamacpp") as engine:
        assert len(run(engine.url, lambda client: chunks_of(client, "its-other-name"))) == 4


def test_what_is_asked(engine: OpenAIEngine) -> None:
    """Would catch a chat that is not streamed, or without figures, or with Open WebUI's own fields."""
    chunks(
        engine,
        stream=False,
        metadata={"user_id": "1"},
        keep_alive="5m",
        chat_id="c",
        options={"num_ctx": 512},
    )
    sent = engine.requests[-1].body
    assert sent == {
        "model": MODEL,
        "messages": [USER],
        "temperature": 0,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_engine_that_refuses_stream_options(vllm: OpenAIEngine) -> None:
    """Would catch an older engine that can never be used, or one that refuses every chat first."""
    vllm.refuses = {"stream_options"}

    async def chat_twice(client: OpenAIClient) -> list[list[JSON]]:
        return [await chunks_of(client, MODEL) for _ in range(2)]

    for answer in run(vllm.url, chat_twice):
        assert len(answer) == 4
        assert answer[-1]["usage"] is None
    assert ["stream_options" in request.body for request in vllm.requests] == [True, False, False]


def test_a_refusal_for_something_else(vllm: OpenAIEngine) -> None:
    """Would catch a refused chat that is sent again and again."""
    vllm.refuses = {"seed"}
    with pytest.raises(RequestRefusedError, match="body seed: Extra inputs"):
        chunks(vllm)
    assert len(vllm.requests) == 1


def test_an_engine_that_refuses_whatever_is_asked(vllm: OpenAIEngine) -> None:
    """Would catch a client that asks without end."""
    refusal = EngineAnswer(refusal=(400, {"error": "unknown field stream_options"}))
    vllm.enqueue(refusal, refusal, refusal)
    with pytest.raises(RequestRefusedError):
        chunks(vllm)
    assert len(vllm.requests) == 2


def test_thoughts(engine: OpenAIEngine) -> None:
    """Would catch thoughts that get lost, under whichever name they come."""
    engine.enqueue(EngineAnswer(["Yes"], thinking=["I", " wonder"]))
    assert message(engine) == {"role": "assistant", "content": "Yes", "reasoning_content": "I wonder"}


def test_tool_calls(engine: OpenAIEngine) -> None:
    """Would catch calls in pieces that are not put together."""
    parts: list[list[JSON]] = [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city": '}}],
        [{"index": 0, "function": {"arguments": '"Paris"}'}}],
    ]
    engine.enqueue(EngineAnswer(["I look."], calls=parts, finish="tool_calls"))
    answer = completion_of(chunks(engine))
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {
                "index": 0,
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }


def test_an_end_without_done(engine: OpenAIEngine) -> None:
    """Would catch an engine that ends its stream in a plainer way, whose every answer counts as broken."""
    engine.enqueue(EngineAnswer(["a"], is_done=False))
    assert message(engine)["content"] == "a"


# --- failures


def fail(engine: OpenAIEngine, kind: type[NodeError], said: int, limits: NodeLimits | None = None) -> Any:
    """Chat with an engine that must fail in this way, after so many chunks."""
    got: list[JSON] = []

    async def chat(client: OpenAIClient) -> None:
        async for chunk in client.complete({"model": MODEL, "messages": [USER]}, HEAD, first_byte=1):
            got.append(chunk)  # noqa: PERF401 - what came before the error matters

    with pytest.raises(kind) as caught:
        run(engine.url, chat, limits)
    assert type(caught.value) is kind
    assert len(got) == said
    return caught.value


OVERFLOW = "This model's maximum context length is 4096 tokens"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (EngineAnswer(["a"], finish=None), NodeFaultError, 1),
        (EngineAnswer(["a"], finish=None, is_done=False), NodeFaultError, 1),
        (EngineAnswer([], finish=None), NodeFaultError, 0),
        (EngineAnswer(["a"], finish="abort"), NodeFaultError, 1),
        (EngineAnswer(["a"], failure={"error": "out of memory"}), NodeFaultError, 1),
        (EngineAnswer(["a"], failure={"object": "error", "message": "died", "code": 400}), NodeFaultError, 1),
        (EngineAnswer([], failure={"object": "error", "message": "died", "code": 500}), NodeFaultError, 0),
        (EngineAnswer([], failure={"error": {"message": OVERFLOW, "code": 400}}), RequestRefusedError, 0),
        (
            EngineAnswer([], failure={"object": "error", "message": OVERFLOW, "code": 400}),
            RequestRefusedError,
            0,
        ),
        (EngineAnswer(raw=b'error: {"code":500,"message":"died"}\n\n'), NodeFaultError, 0),
        (EngineAnswer(raw=b'event: error\ndata: {"message":"died"}\n\n'), NodeFaultError, 0),
        (EngineAnswer(refusal=(404, {"detail": "Not Found"})), NodeFaultError, 0),
        (EngineAnswer(refusal=(503, {"error": {"message": "Loading model"}})), NodeError, 0),
    ],
)
def test_ends_that_are_none(
    vllm: OpenAIEngine, answer: EngineAnswer, kind: type[NodeError], said: int
) -> None:
    """Would catch half an answer that looks whole, or a request at fault that breaks a circuit."""
    vllm.enqueue(answer)
    if kind is NodeError:
        with pytest.raises(NodeError, match="is busy"):
            chunks(vllm)
        return
    error = fail(vllm, kind, said)
    assert error.node == vllm.url


def test_an_engine_that_gives_up(vllm: OpenAIEngine) -> None:
    """Would catch an engine that is shut down in an answer, and whose log is searched for garbage instead."""
    vllm.enqueue(EngineAnswer(["a"], finish="abort"))
    assert "gave up" in str(fail(vllm, NodeFaultError, 1))


def test_what_the_engine_says_of_a_failure(vllm: OpenAIEngine) -> None:
    """Would catch a failure whose cause nobody is told."""
    for failure in (
        {"error": "died"},
        {"object": "error", "message": "died"},
        {"error": {"message": "died"}},
    ):
        vllm.enqueue(EngineAnswer(["a"], failure=failure))
        assert fail(vllm, NodeFaultError, 1).said == "died"


def test_pings_are_no_answer() -> None:
    """Would catch an engine that hangs and sends comments meanwhile, and is waited for without end."""

    async def chat() -> None:
        models = engine_wire("vllm").models
        async with pinging(models) as url, aiohttp.ClientSession() as session:
            await chunks_of(OpenAIClient(url, session), MODEL, first_byte=0.3)

    with pytest.raises(NodeTimeoutError) as caught:
        asyncio.run(asyncio.wait_for(chat(), 10))
    assert (caught.value.stage, caught.value.seconds) == ("first byte", 0.3)


def test_an_engine_that_holds_its_connection() -> None:
    """Would catch an answer that never ends, because the engine does not hang up after it."""

    async def chat() -> JSON:
        async with holding(engine_wire("vllm").models) as url, aiohttp.ClientSession() as session:
            return completion_of(await chunks_of(OpenAIClient(url, session), MODEL, first_byte=5))

    assert asyncio.run(asyncio.wait_for(chat(), 10))["choices"][0]["finish_reason"] == "stop"


def test_a_connection_serves_one_chat() -> None:
    """Would catch a chat sent where an engine is about to hang up, without having said so."""
    chats: list[int] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        chats.append(id(writer))
        wire = engine_wire("vllm")
        for data in (wire.event({"content": "a"}), wire.event({}, finish="stop"), DONE, b""):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0)  # the head and the end of an answer do not come together

    async def chat_twice() -> None:
        pages = {"/v1/models": dumped(engine_wire("vllm").models)}
        async with (
            serving(pages, answer, "Transfer-Encoding: chunked") as url,
            aiohttp.ClientSession() as session,
        ):
            client = OpenAIClient(url, session)
            for _ in range(3):
                await chunks_of(client, MODEL, first_byte=5)

    asyncio.run(asyncio.wait_for(chat_twice(), 10))
    assert (len(chats), len(set(chats))) == (3, 3)


DONE = b"data: [DONE]\n\n"
GARBAGE = {
    "nothing": b"",
    "no end": b"data: ",
    "a page": b"<html>\n</html>\n",
    "an unstreamed answer": b'{"choices": [{"message": {"content": "a"}}]}',
    "the end alone": DONE,
    "not JSON": b'data: {"choices":\n\n' + DONE,
    "not UTF-8": b'data: {"choices":"\xff"}\n\n',
    "a list": b"data: []\n\n" + DONE,
    "text": b'data: "a"\n\n' + DONE,
    "NaN": b'data: {"choices":NaN}\n\n' + DONE,
    "too deep": b'data: {"a":' + b"[" * 100_000 + b"\n\n",
    "choices of another form": b'data: {"choices":{"0":5}}\n\n' + DONE,
    "a delta of another form": b'data: {"choices":[{"delta":[1],"finish_reason":7}]}\n\n' + DONE,
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_fault(vllm: OpenAIEngine, body: bytes) -> None:
    """Would catch a server of another kind that crashes the router, or whose nonsense counts as an answer."""
    vllm.enqueue(EngineAnswer(raw=body))
    assert len(str(fail(vllm, NodeFaultError, 0))) < 500


def test_garbage_is_not_shown(vllm: OpenAIEngine) -> None:
    """Would catch a piece of somebody's conversation in a log."""
    vllm.enqueue(EngineAnswer(raw=b'data: {"choices":[{"delta":{"content":"my secret"\n\n'))
    assert "secret" not in str(fail(vllm, NodeFaultError, 0))


def test_an_event_has_a_longest_length(vllm: OpenAIEngine) -> None:
    """Would catch an engine that fills the memory with one event."""
    vllm.enqueue(EngineAnswer(raw=b"data: " + b"x" * 5000))
    error = fail(vllm, NodeFaultError, 0, NodeLimits(line_bytes=2000))
    assert "a line of more than 2000 bytes" in str(error)


@pytest.mark.parametrize("models", [[], {}, {"data": None}, {"data": [5]}, {"models": []}, "x"])
def test_lists_of_another_form_are_faults(vllm: OpenAIEngine, models: Any) -> None:
    """Would catch a server of another kind, such as an Ollama, that is taken for an engine without models."""
    vllm.models = models
    uses: list[Callable[[OpenAIClient], Awaitable[Any]]] = [
        lambda client: client.tags(),
        lambda client: client.ps(),
        lambda client: client.show(MODEL),
        lambda client: chunks_of(client, MODEL),
    ]
    for use in uses:
        with pytest.raises(NodeFaultError):
            run(vllm.url, use)


def test_errors_do_not_show_passwords() -> None:
    """Would catch a log, or an error in a chat, with the password of a node."""
    port = free_port()
    with pytest.raises(NodeUnreachableError) as caught:
        run(f"http://admin:geheim@127.0.0.1:{port}/v1", lambda client: client.tags())
    assert caught.value.node == f"http://127.0.0.1:{port}"
    assert "geheim" not in str(caught.value)


# --- servers that a test writes out byte by byte


@asynccontextmanager
async def serving(
    pages: dict[str, bytes],
    chat: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None,
    header: str = "Connection: close",
) -> AsyncIterator[str]:
    """Run a server that answers these paths, 404 for the others, and chats in its own way."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                if chat and path.endswith("/chat/completions"):
                    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                    writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % header.encode())
                    await chat(writer)
                    continue
                status, body = (b"200 OK", pages[path]) if path in pages else (b"404 Not Found", b"{}")
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()  # the client has left, or the test is over

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def pinging(models: JSON) -> Any:
    """Run an engine that sends comments, and never an answer."""

    async def ping(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b": ping\n\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    return serving({"/v1/models": dumped(models)}, ping)


def holding(models: JSON) -> Any:
    """Run an engine that answers, and does not hang up."""

    async def hold(writer: asyncio.StreamWriter) -> None:
        wire = engine_wire("vllm")
        writer.write(wire.event({"content": "a"}) + wire.event({}, finish="stop") + DONE)
        await asyncio.Event().wait()

    return serving({"/v1/models": dumped(models)}, hold)


def dumped(value: JSON) -> bytes:
    return json.dumps(value).encode()
