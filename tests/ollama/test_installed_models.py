"""`InstalledModels` against nodes that answer, fail, come back and talk nonsense; its clock is the test's."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from harness.ollama_node import Model, OllamaNode
from ollama_pack.engines.ollama.installed import InstalledModels

MAX_AGE = 30.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node() -> Iterator[OllamaNode]:
    with OllamaNode([Model("llama3:8b", quantization_level="Q4_0"), Model("mistral")]) as node:
        yield node


@contextmanager
def server_saying(
    body: bytes, status: int = 200, kind: str = "application/json", asked: list[str] | None = None
) -> Iterator[str]:
    """Run something that is no Ollama; yield its address. Paths it is asked for are added to ``asked``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def look(installed: InstalledModels) -> dict[str, str] | None:
    return asyncio.run(installed.get())


def test_models_with_their_levels(node: OllamaNode, clock: Clock) -> None:
    """Would catch a name or a level that is not as the node lists it."""
    models = look(InstalledModels([f"{node.url}/"], clock=clock))
    assert models == {"llama3:8b": "Q4_0", "mistral:latest": "Q4_1"}


def test_models_of_all_nodes(node: OllamaNode, clock: Clock) -> None:
    """Would catch a node whose models are forgotten over another's."""
    with OllamaNode([Model("llava:13b")]) as other:
        models = look(InstalledModels([node.url, other.url], clock=clock))
    assert models is not None
    assert sorted(models) == ["llama3:8b", "llava:13b", "mistral:latest"]


def test_answer_is_remembered_for_its_time(node: OllamaNode, clock: Clock) -> None:
    """Would catch a look at every node for every chat, or one that is never taken again."""
    installed = InstalledModels([node.url], MAX_AGE, clock)
    before = look(installed)
    node.models.clear()
    clock.now += MAX_AGE
    assert look(installed) == before
    clock.now += 0.001
    assert look(installed) == {}


def test_nothing_is_known_before_a_node_has_answered(clock: Clock) -> None:
    """Would catch "no models" in the place of "not known", by which every alias would be refused."""
    assert look(InstalledModels([], clock=clock)) is None
    with OllamaNode([]) as node:
        address = node.url
    assert look(InstalledModels([address], clock=clock)) is None


def test_node_without_models_is_known_to_have_none(clock: Clock) -> None:
    """Would catch an empty Ollama that counts as one that does not answer."""
    with OllamaNode([]) as node:
        assert look(InstalledModels([node.url], clock=clock)) == {}


def test_node_that_restarts_keeps_its_models(node: OllamaNode, clock: Clock) -> None:
    """Would catch aliases that fail while a node restarts, or that do not see what it has afterwards."""
    installed = InstalledModels([node.url], MAX_AGE, clock)
    before = look(installed)
    node.stop()
    clock.now += MAX_AGE + 1
    assert look(installed) == before
    node.models.clear()
    node.start()
    assert look(installed) == before  # it was asked a moment ago
    clock.now += MAX_AGE + 1
    assert look(installed) == {}


LISTED = {"name": "x:1", "details": {"quantization_level": "F16"}}
NONSENSE = {
    "an error": (b"{}", 500, "application/json"),
    "a page": (b"<html>", 200, "text/html"),
    "not JSON": (b"{", 200, "application/json"),
    "not UTF-8": (b'"\xff"', 200, "application/json"),
    "no list": (b"{}", 200, "application/json"),
    "null": (b'{"models": null}', 200, "application/json"),
    "a list of lists": (b'{"models": [[]]}', 200, "application/json"),
    "a list at the top": (b"[]", 200, "application/json"),
    "models without names": (b'{"models": [{}]}', 200, "application/json"),
}


def test_many_askers_look_once(clock: Clock) -> None:
    """Would catch a hundred chats at a time that each ask the nodes, or one that gets no answer."""

    async def ask_together(installed: InstalledModels) -> list[dict[str, str] | None]:
        return await asyncio.gather(*(installed.get() for _ in range(100)))

    asked: list[str] = []
    with server_saying(json.dumps({"models": [LISTED]}).encode(), asked=asked) as address:
        answers = asyncio.run(ask_together(InstalledModels([address], MAX_AGE, clock)))
    assert asked == ["/api/tags"]
    assert answers == [{"x:1": "F16"}] * 100


@pytest.mark.parametrize(("body", "status", "kind"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_answer(node: OllamaNode, clock: Clock, body: bytes, status: int, kind: str) -> None:
    """Would catch one server of another kind among the addresses that costs the models of all others."""
    with server_saying(body, status, kind) as address:
        models = look(InstalledModels([address, node.url], clock=clock))
    assert models == {"llama3:8b": "Q4_0", "mistral:latest": "Q4_1"}


@pytest.mark.parametrize(
    "details", [{}, {"details": None}, {"details": {"quantization_level": None}}, {"details": "b"}]
)
def test_level_may_be_missing(clock: Clock, details: dict[str, object]) -> None:
    """Would catch a model without details that hides the node's other models, or has the level "None"."""
    body = json.dumps({"models": [{"name": "a:1"} | details, LISTED]}).encode()
    with server_saying(body) as address:
        assert look(InstalledModels([address], clock=clock)) == {"a:1": "", "x:1": "F16"}


def test_addresses_that_are_none_are_no_answer(node: OllamaNode, clock: Clock) -> None:
    """Would catch a mistyped address that costs the models of all other nodes."""
    addresses = ["localhost", "ftp://127.0.0.1", "http://", "http://[", node.url]
    assert look(InstalledModels(addresses, clock=clock)) is not None
