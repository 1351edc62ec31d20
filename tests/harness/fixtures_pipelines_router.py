"""`gpu_router` on a real Pipelines server over two nodes, beside somebody else's pipeline."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from harness.fixtures_pipelines import skip_unless_installed
from harness.fixtures_webui import ROOT
from harness.ollama_node import Model, OllamaNode, Request
from local.pipelines import RunningPipelines, pipelines_server

JSON = dict[str, Any]

LLAMA, SLASHED = Model("llama3:8b"), Model("hf.co/maker/model:Q4")
ROUTER_FILE = ROOT / "pipelines" / "gpu_router.py"
OTHER_FILE = Path(__file__).with_name("other_pipeline.py")
ALIASES = "gpt-4 = mixtral:8x7b, llama3:8b"
CHAT = "gpu_router.gpt-4"
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class RoutedPipelines:
    """The server and the nodes behind it.

    Attributes:
        server: the server.
        nodes: gpu0 and gpu1.
    """

    server: RunningPipelines
    nodes: tuple[OllamaNode, OllamaNode]

    def client(self) -> openai.OpenAI:
        """OpenAI's own client, for this server."""
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=self.server.key, max_retries=0)

    def ask(self, model: str = CHAT, text: str = "hello", **more: Any) -> requests.Response:
        """Send a chat; a streamed answer comes back as soon as it has a status."""
        body = chat_body(model, text, **more)
        return requests.post(
            f"{self.server.url}/chat/completions", json=body, stream=body["stream"], timeout=60
        )

    def send(self, model: str = CHAT, text: str = "hello") -> HTTPConnection:
        """Send a chat without waiting for its answer to begin. Closing the connection leaves it."""
        connection = HTTPConnection(self.server.url.removeprefix("http://"), timeout=60)
        body = json.dumps(chat_body(model, text))
        connection.request("POST", "/chat/completions", body, {"Content-Type": "application/json"})
        return connection

    def condition(self) -> JSON:
        """How the server is, told by somebody else's pipeline."""
        answer = self.ask("other_pipeline", stream=False).json()
        told: JSON = json.loads(answer["choices"][0]["message"]["content"])
        return told

    def chats(self) -> list[Request]:
        """All chats that reached a node, in the order in which they came."""
        chats = [request for node in self.nodes for request in node.requests if request.path == "/api/chat"]
        return sorted(chats, key=lambda request: request.came)


@pytest.fixture(scope="module")
def routed_pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoutedPipelines]:
    """The server, its valves from the environment."""
    skip_unless_installed()
    folder = tmp_path_factory.mktemp("routed-pipelines")
    (folder / "pipelines").mkdir()
    shutil.copy(ROUTER_FILE, folder / "pipelines")
    shutil.copy(OTHER_FILE, folder / "pipelines")
    with OllamaNode([LLAMA, SLASHED]) as gpu0, OllamaNode([LLAMA]) as gpu1:
        environment = {
            "GPU_ROUTER_NODES": f"gpu0 {gpu0.url} slots=64; gpu1 {gpu1.url} slots=64",
            "GPU_ROUTER_ALIASES": ALIASES,
            "GPU_ROUTER_PROBE_SECONDS": "0.5",
        }
        with pipelines_server(folder, environment=environment) as server:
            yield RoutedPipelines(server, (gpu0, gpu1))


def chat_body(model: str, text: str, **more: Any) -> JSON:
    """A chat that wants a stream, unless `more` says otherwise."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **more}


def chunks_of(answer: requests.Response) -> list[JSON]:
    """The chunks of a streamed answer, without the mark of its end, which must be there once."""
    with answer:
        lines = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def until(condition: Callable[[], bool]) -> None:
    """Look again and again: for what other processes and threads do without telling."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.01)


class Dictation:
    """A stream of somebody else's pipeline, which says what the test tells it to."""

    def __init__(self, answer: requests.Response, speaker: socket.socket) -> None:
        self._lines = answer.iter_lines()
        self._speaker = speaker

    def say(self, word: str) -> str:
        """Let it say a word; the word that comes through the server."""
        self._speaker.sendall(f"{word}\n".encode())
        line = next(line for line in self._lines if line)
        chunk = json.loads(line.removeprefix(b"data: "))
        return str(chunk["choices"][0]["delta"]["content"])

    def end(self) -> bytes:
        """Let it end; the last line that comes."""
        self._speaker.close()
        lines: list[bytes] = [line for line in self._lines if line]
        return lines[-1]


@contextmanager
def dictation(routed: RoutedPipelines) -> Iterator[Dictation]:
    """Such a stream, under way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = routed.ask("other_pipeline", port=listener.getsockname()[1])
        speaker, _ = listener.accept()
        with answer, speaker:
            yield Dictation(answer, speaker)
