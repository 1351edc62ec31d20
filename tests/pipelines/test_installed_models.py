"""What the filter knows of the models on its nodes, as they come, go and misbehave."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from harness.ollama_node import Model, OllamaNode
from ollama_pack.engines.ollama.installed import InstalledModels

FULL_NAMES = {"llama3:8b": "Q4_1"}


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_node_that_goes_down_keeps_its_models() -> None:
    """Would catch models that vanish while a node restarts, or news that are never noticed."""

    async def run() -> None:
        clock = Clock()
        node = OllamaNode([Model("llama3:8b")])
        node.start()
        installed = InstalledModels([node.url], max_age=30, clock=clock)
        assert await installed.get() == FULL_NAMES
        node.stop()
        clock.now += 31
        assert await installed.get() == FULL_NAMES
        node.start()
        node.models.clear()
        assert await installed.get() == FULL_NAMES
        clock.now += 31
        try:
            assert await installed.get() == {}
        finally:
            node.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"not JSON"),
        (200, b"\xff\xfe"),
        (200, b"null"),
        (200, b"[]"),
        (200, b'{"models": null}'),
        (200, b'{"models": [1]}'),
        (500, json.dumps({"models": []}).encode()),
    ],
    ids=lambda answer: answer[1].decode(errors="replace"),
)
def test_answer_that_is_not_ollamas_counts_as_none(answer: tuple[int, bytes]) -> None:
    """Would catch a list that is taken for empty, or an error that comes out in a chat."""

    async def run(url: str) -> None:
        with OllamaNode([Model("llama3:8b")]) as node:
            assert await InstalledModels([url]).get() is None
            assert await InstalledModels([url, node.url]).get() == FULL_NAMES

    with answering(*answer) as url:
        asyncio.run(run(url))


def test_one_odd_entry_hides_no_model() -> None:
    """Would catch a node whose models vanish because a gateway lists one of them in its own way."""
    models = [1, {"details": {}}, {"name": "llama3:8b", "details": ["Q4_1"]}]

    async def run(url: str) -> None:
        assert await InstalledModels([url]).get() == {"llama3:8b": ""}

    with answering(200, json.dumps({"models": models}).encode()) as url:
        asyncio.run(run(url))
