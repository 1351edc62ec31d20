"""`OllamaClient` against a node that fails on command, and against servers that are no Ollama."""

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, nullcontext, suppress
from typing import Any

import aiohttp
import pytest

from harness.node_clients import HEAD, JSON, PATIENCE, USER, chunks_of, fail, run
from harness.node_contract import MODELS, wait_until
from harness.ollama_node import Answer, OllamaNode, Request, ToolCall
from local.processes import free_port
from ollama_pack.engines.errors import (
    NodeBusyError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
    RetryableNodeError,
)
from ollama_pack.engines.ollama.client import OllamaClient
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.engines.transport import NodeLimits, node_session


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """What is left behind, such as a connection, warns when it is collected, and a warning fails a test."""
    yield
    gc.collect()


@pytest.fixture
def scripted() -> Iterator[OllamaNode]:
    with OllamaNode(MODELS, gpu=False) as node:
        yield node


def test_chats_side_by_side(scripted: OllamaNode) -> None:
    """Would catch answers that get mixed up when many chats share a session."""

    async def chat(client: OllamaClient, text: str) -> str:
        asked = {"model": MODELS[0].name, "messages": [{"role": "user", "content": text}]}
        chunks = [chunk async for chunk in client.complete(asked, HEAD, first_byte=PATIENCE)]
        return str(completion_of(chunks)["choices"][0]["message"]["content"])

    async def all_at_once(client: OllamaClient) -> list[str]:
        return await asyncio.gather(*(chat(client, f"number {number}") for number in range(50)))

    assert run(scripted.url, all_at_once) == [f"You said: number {number}" for number in range(50)]


def test_the_node_is_always_asked_to_stream(scripted: OllamaNode) -> None:
    """Would catch an answer in one piece: it cannot be stopped, and its first byte comes last."""
    run(scripted.url, lambda client: chunks_of(client, MODELS[0].name, stream=False))
    assert (scripted.requests[-1].body or {})["stream"] is True


def test_headers_are_sent(scripted: OllamaNode) -> None:
    """Would catch a node behind a proxy that never gets its key."""
    run(scripted.url, lambda client: chunks_of(client, MODELS[0].name), Authorization="Bearer key")
    assert scripted.requests[-1].headers["Authorization"] == "Bearer key"
    assert scripted.requests[-1].headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (503, "server busy, please try again.  maximum pending requests exceeded", NodeBusyError),
        (429, "too many requests", NodeBusyError),
        (500, "llama runner process has terminated: signal: killed", NodeFaultError),
        (502, "bad gateway", NodeFaultError),
        (401, "unauthorized", NodeFaultError),
        (403, "forbidden", NodeFaultError),
        (404, "404 page not found", NodeFaultError),
        (405, "405 method not allowed", NodeFaultError),
        (400, "invalid options", RequestRefusedError),
        (413, "too large", RequestRefusedError),
        (422, "unprocessable", RequestRefusedError),
    ],
)
def test_a_refusal_before_the_stream(
    scripted: OllamaNode, status: int, said: str, kind: type[NodeError]
) -> None:
    """Would catch a full queue that breaks a node's circuit, or a fault that is not tried elsewhere."""
    scripted.enqueue(Answer(refusal=(status, said)))
    error = fail(scripted.url, kind)
    assert (error.node, error.status, error.said) == (scripted.url, status, " ".join(said.split()))
    assert error.said in str(error)


def test_a_failure_in_the_stream(scripted: OllamaNode) -> None:
    """Would catch a crashed runner whose half answer looks whole."""
    scripted.enqueue(Answer(["a", "b"], failure="unexpected EOF"))
    error = fail(scripted.url, NodeFaultError, lines_before=2)
    assert (error.status, error.said) == (None, "unexpected EOF")


def test_hanging_up_in_the_stream(scripted: OllamaNode) -> None:
    """Would catch a cut connection that reads as the end of the answer."""
    scripted.enqueue(Answer(["a"], pause=0.05, hangs_up=True))
    fail(scripted.url, NodeFaultError, lines_before=1)


def test_hanging_up_before_the_answer(scripted: OllamaNode) -> None:
    """Would catch a crash of aiohttp's that nobody up there knows."""
    scripted.enqueue(Answer(hangs_up=True))
    fail(scripted.url, NodeFaultError)


@pytest.mark.parametrize("lives", [1, 0])
def test_a_used_connection_that_ends_as_it_is_used(lives: int) -> None:
    """Would catch a chat that fails as its node has just closed a connection, and one that is sent twice.

    Over a new connection, the node may have died of the request.
    """
    came: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(lives + 1):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
                await reader.readexactly(int(length))
                came.append(f"{number} {head.partition(' HTTP')[0]}")
                if number < lives:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with node_session(aiohttp.TCPConnector()) as session:
                client = OllamaClient(url, session)
                for _ in range(2):
                    with nullcontext() if lives else pytest.raises(NodeFaultError, match="hung up before"):
                        await client.load("m", seconds=PATIENCE)

    asyncio.run(scenario())
    load = "POST /api/generate"
    assert came == ([f"0 {load}", f"1 {load}", f"0 {load}"] if lives else [f"0 {load}"] * 2)


def test_a_slow_first_byte(scripted: OllamaNode) -> None:
    """Would catch a hung node that is waited for without end, or that keeps the request afterwards."""
    scripted.enqueue(Answer(["late"], delay=30))
    error = fail(scripted.url, NodeTimeoutError, first_byte=0.2)
    assert (error.stage, error.seconds) == ("first byte", 0.2)
    assert scripted.requests[0].left.wait(5)


def test_a_slow_next_line(scripted: OllamaNode) -> None:
    """Would catch a node that hangs in the middle and is waited for without end."""
    scripted.enqueue(Answer(["a", "b"], pause=30))
    error = fail(scripted.url, NodeTimeoutError, NodeLimits(next_line=0.2), lines_before=1)
    assert (error.stage, error.seconds) == ("next line", 0.2)
    assert scripted.requests[0].left.wait(5)


def test_time_that_the_reader_takes_is_not_the_nodes(scripted: OllamaNode) -> None:
    """Would catch a slow browser that makes a node look hung."""
    scripted.enqueue(Answer(["a", "b", "c"], pause=0.01))

    async def chat(client: OllamaClient) -> int:
        request = {"model": MODELS[0].name, "messages": [USER]}
        lines = client.chat(request, first_byte=0.4)
        assert (await anext(lines))["message"]["content"] == "a"
        with pytest.raises(TimeoutError):  # the reader is busy, for longer than both limits
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)
        return len([line async for line in lines])

    assert run(scripted.url, chat, NodeLimits(next_line=0.4)) == 3


def test_a_cancelled_task_frees_the_node(scripted: OllamaNode) -> None:
    """Would catch a request that goes on at the node when its task is cancelled before the first byte."""
    scripted.enqueue(Answer(["late"], delay=30))

    async def cancel(client: OllamaClient) -> None:
        task = asyncio.create_task(chunks_of(client, MODELS[0].name))
        request = await asyncio.to_thread(first_request, scripted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(request.left.wait, 5)

    run(scripted.url, cancel)


def first_request(node: OllamaNode) -> Request:
    wait_until(lambda: bool(node.requests))
    return node.requests[0]


def test_a_stopped_node(scripted: OllamaNode) -> None:
    """Would catch a dead node whose error does not tell where it should be."""
    scripted.stop()
    error = fail(scripted.url, NodeUnreachableError)
    assert (error.node, error.status) == (scripted.url, None)
    with pytest.raises(NodeUnreachableError):
        run(scripted.url, lambda client: client.tags())


def test_a_restarted_node(scripted: OllamaNode) -> None:
    """Would catch a client that does not come back when its node does."""

    async def use(client: OllamaClient) -> None:
        await client.tags()
        await asyncio.to_thread(scripted.stop)
        with pytest.raises(RetryableNodeError):
            await client.tags()
        await asyncio.to_thread(scripted.start)
        await client.tags()

    run(scripted.url, use)


def test_parallel_calls(scripted: OllamaNode) -> None:
    """Would catch two calls in one answer that run together."""
    scripted.enqueue(Answer(["I look."], tool_calls=[ToolCall("a", {"x": 1}), ToolCall("b", {})]))
    chunks = run(scripted.url, lambda client: chunks_of(client, "contract-tools", options={}))
    message = completion_of(chunks)["choices"][0]["message"]
    assert message["content"] == "I look."
    calls = [(call["index"], call["function"]["name"]) for call in message["tool_calls"]]
    assert calls == [(0, "a"), (1, "b")]


# --- servers that are no Ollama


@asynccontextmanager
async def server_sending(*parts: bytes) -> AsyncIterator[str]:
    """Run a server that sends these bytes for every request, a moment between them, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Held:
    """What a test and a server that waits for it share."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.connections = 0


@asynccontextmanager
async def held_server(now: bytes, later: bytes = b"") -> AsyncIterator[tuple[str, Held]]:
    """Run a server that answers each request in two parts, the second when it is told to go on."""
    held = Held()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                writer.write(now)
                await held.go_on.wait()
                held.go_on.clear()
                writer.write(later)
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", held


def chat_with(*parts: bytes, limits: NodeLimits | None = None) -> list[JSON]:
    """The lines of a chat with a server that sends these bytes."""

    async def chat() -> list[JSON]:
        async with server_sending(*parts) as url, aiohttp.ClientSession() as session:
            client = OllamaClient(url, session, limits=limits)
            return [line async for line in client.chat({"model": "m", "messages": []}, first_byte=5)]

    return asyncio.run(chat())


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b'{"done":true}\n'
GARBAGE = {
    "no HTTP": [b"hello there\r\n\r\n"],
    "nothing": [],
    "half a head": [b"HTTP/1.1 200"],
    "an empty body": [OK],
    "a page": [OK, b"<html>\n</html>\n"],
    "not JSON": [OK, b'{"done":fal\n'],
    "half a line": [OK, b'{"done":false}'[:5]],
    "not UTF-8": [OK, b'{"message":"\xff"}\n'],
    "a list": [OK, b"[]\n"],
    "text": [OK, b'"done"\n'],
    "NaN": [OK, b'{"done":NaN}\n'],
    "too deep": [OK, b'{"a":' + b"[" * 100_000 + b"\n"],
    "no last line": [OK, b'{"done":false}\n'],
    "done is no true": [OK, b'{"done":"yes"}\n'],
    "a chunk cut off": [CHUNKED, b"ff\r\n", b'{"done":false}\n'],
    "a chunk of nonsense": [CHUNKED, b"zz\r\n", b"x"],
    "a redirect": [b"HTTP/1.1 302 Found\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n"],
    "no content": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "an error that is no text": [b'HTTP/1.1 500 X\r\nConnection: close\r\n\r\n{"error": 5}'],
    "an error page without end": [b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\n", b"x" * 100_000],
}


@pytest.mark.parametrize("parts", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_fault(parts: list[bytes]) -> None:
    """Would catch a server of another kind that crashes the router, or whose nonsense counts as an answer."""
    with pytest.raises(NodeFaultError) as caught:
        chat_with(*parts)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("head", "body", "shown"),
    [
        (
            "502 Bad Gateway",
            b"<html><h1>502 Bad Gateway</h1></html>",
            "answers with status 502 and a web page",
        ),
        ("503 Busy", b"\n<!DOCTYPE html><p>back soon</p>", "is busy (status 503)"),
        ("413 Too Large", b"<html>nginx</html>", "refuses the request (status 413)"),
        (
            "301 Moved\r\nLocation: https://u:pw@gpu.example/api/chat?k=v",
            b"",
            "redirects to https://gpu.example (",
        ),
        ("302 Found\r\nLocation: /login?next=/api/chat", b"", "/login (set that address instead)"),
    ],
    ids=["page", "busy page", "refusing page", "redirect", "login page"],
)
def test_what_stands_before_a_node_is_named(head: str, body: bytes, shown: str) -> None:
    """Would catch a proxy's page as the reason, a redirect to nowhere, or a password in it."""
    start = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(NodeError) as caught:
        chat_with(start, body)
    assert shown in str(caught.value)
    assert not [part for part in ("<", "pw", "k=v") if part in str(caught.value)]


def test_garbage_is_not_shown() -> None:
    """Would catch a piece of somebody's conversation in a log."""
    with pytest.raises(NodeFaultError) as caught:
        chat_with(OK, b'{"message":{"content":"my secret"\n')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        [b'{"n":1}\n{"done":true}\n'],
        [b'{"n"', b":", b'1}\n{"do', b'ne":true}', b"\n"],
        [b'{"n":1}\r\n\r\n\n{"done":true}'],
        [b'{"n":1}\n', END, b"nonsense after the end\n"],
    ],
)
def test_lines_however_they_come(parts: list[bytes]) -> None:
    """Would catch a reader that depends on how a network cuts a stream."""
    assert chat_with(OK, *parts) == [{"n": 1}, {"done": True}]


def test_a_line_has_a_longest_length() -> None:
    """Would catch a node that fills the memory with one line."""
    limits = NodeLimits(line_bytes=1000)
    assert chat_with(OK, b" " * 980 + END, limits=limits) == [{"done": True}]
    for parts in ([b" " * 1000 + END], [b"x" * 600, b"x" * 600]):
        with pytest.raises(NodeFaultError, match="a line of more than 1000 bytes"):
            chat_with(OK, *parts, limits=limits)


def test_an_answer_has_a_longest_length() -> None:
    """Would catch a node that fills the memory with a list of models."""

    async def tags() -> None:
        async with server_sending(OK, b"x" * 5000) as url, aiohttp.ClientSession() as session:
            await OllamaClient(url, session, limits=NodeLimits(answer_bytes=1000)).tags()

    with pytest.raises(NodeFaultError, match="more than 1000 bytes"):
        asyncio.run(tags())


def test_vectors_may_be_longer_than_a_list_of_models() -> None:
    """Would catch a thousand texts that every node computes, and whose vectors nobody gets."""
    vector = [0.0123456789] * 100
    answer = json.dumps({"embeddings": [vector] * 10}).encode()

    async def embed() -> None:
        async with server_sending(OK, answer) as url, aiohttp.ClientSession() as session:
            client = OllamaClient(url, session, limits=NodeLimits(answer_bytes=1000))
            made = await client.embed("m", ["text"] * 10, seconds=10)
            assert made.vectors == (vector,) * 10

    asyncio.run(embed())


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b"null", b'{"models": null}', b'{"models": [{}]}', b'{"models": [5]}', b"<html>"]
)
def test_lists_of_another_form_are_faults(answer: bytes) -> None:
    """Would catch a server of another kind that is taken for an Ollama without models."""

    async def tags() -> object:
        async with server_sending(OK, answer) as url, aiohttp.ClientSession() as session:
            return await OllamaClient(url, session).tags()

    with pytest.raises(NodeFaultError):
        asyncio.run(tags())


def test_fields_that_are_null_are_absent() -> None:
    """Would catch a node of an older version whose models vanish for a missing field."""

    async def tags() -> Any:
        answer = b'{"models": [{"name": "a:1", "size": null, "details": null}]}'
        async with server_sending(OK, answer) as url, aiohttp.ClientSession() as session:
            return await OllamaClient(url, session).tags()

    (model,) = asyncio.run(tags())
    assert (model.name, model.size, model.details.family) == ("a:1", 0, "")


def test_a_silent_server_has_a_limit() -> None:
    """Would catch a probe that hangs on a node that accepts connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NodeTimeoutError) as caught:
            run(url, lambda client: client.tags(), NodeLimits(answer=0.2))
    assert (caught.value.stage, caught.value.seconds) == ("answer", 0.2)


def test_a_head_is_no_first_byte() -> None:
    """Would catch a proxy that answers at once for a node that hangs, and is waited for without end."""

    async def chat() -> None:
        async with held_server(OK) as (url, _), aiohttp.ClientSession() as session:
            await anext(OllamaClient(url, session).chat({"model": "m", "messages": []}, first_byte=0.2))

    with pytest.raises(NodeTimeoutError) as caught:
        asyncio.run(asyncio.wait_for(chat(), 5))
    assert (caught.value.stage, caught.value.seconds) == ("first byte", 0.2)


def test_the_end_of_the_body_is_waited_for() -> None:
    """Would catch a new connection for every chat where the end comes a moment after the last line."""
    answer = CHUNKED + b"%x\r\n%b\r\n" % (len(END), END)

    async def chat_twice() -> int:
        async with held_server(answer, b"0\r\n\r\n") as (url, held), aiohttp.ClientSession() as session:
            for _ in range(2):
                async for line in OllamaClient(url, session).chat({"model": "m"}, first_byte=5):
                    assert line == {"done": True}
                    asyncio.get_running_loop().call_soon(held.go_on.set)
            return held.connections

    assert asyncio.run(chat_twice()) == 1


def test_a_machine_that_does_not_react_has_a_limit() -> None:
    """Would catch a switched-off machine that costs a request the whole time for its first byte."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # fill the queue: the kernel drops what comes after
        for each in waiting:
            each.settimeout(0)
            each.connect_ex(address)
        try:
            error = fail(f"http://127.0.0.1:{address[1]}", NodeTimeoutError, NodeLimits(connect=0.2))
        finally:
            for each in waiting:
                each.close()
    assert (error.stage, error.seconds) == ("connect", 0.2)


@pytest.mark.parametrize(
    "url", ["gpu1:11434", "ftp://gpu1", "http://", "http://[", "http://a b", "http://x:y"]
)
def test_addresses_that_are_none(url: str) -> None:
    """Would catch a mistyped address that crashes the router."""
    fail(url, NodeUnreachableError)


@pytest.mark.parametrize("tail", ["", "/", "/?key=geheim", "/#geheim"])
def test_errors_do_not_show_passwords(tail: str) -> None:
    """Would catch a log, or an error in a chat, with the password of a node."""
    port = free_port()
    error = fail(f"http://admin:geheim@127.0.0.1:{port}{tail}", NodeUnreachableError)
    assert error.node == f"http://127.0.0.1:{port}"
    assert "geheim" not in str(error)
    malformed = fail("http://admin:geheim@[", NodeUnreachableError)
    assert "geheim" not in str(malformed)
    assert malformed.__cause__ is None


def test_a_password_and_a_key_are_too_much(scripted: OllamaNode) -> None:
    """Would catch a crash where an admin gives both."""
    url = scripted.url.replace("http://", "http://admin:geheim@")
    with pytest.raises(NodeUnreachableError) as caught:
        run(url, lambda client: client.tags(), Authorization="Bearer key")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, object()])
def test_requests_that_are_no_json(scripted: OllamaNode, value: object) -> None:
    """Would catch a request that cannot be written down and crashes, or is sent as nonsense."""

    async def chat(client: OllamaClient) -> list[JSON]:
        request = {"model": "m", "messages": [], "options": {"x": value}}
        return [line async for line in client.chat(request, first_byte=5)]

    with pytest.raises(RequestRefusedError, match="cannot be written as JSON"):
        run(scripted.url, chat)
    assert scripted.requests == []
