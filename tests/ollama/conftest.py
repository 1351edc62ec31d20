"""The contract tests see a node in the same way whether it is scripted or real."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from harness.fixtures_ollama import RealServer
from harness.ollama_node import Answer, Model, OllamaNode, ToolCall

JSON = dict[str, Any]

MODELS = (
    Model("smollm2:135m"),
    Model("small-2"),
    Model("contract-tools", capabilities=("completion", "tools")),
    Model("contract-thinking", capabilities=("completion", "thinking")),
)
STEADY: JSON = {"temperature": 0, "seed": 1}  # a real model must not make a test pass by luck
# Ollama reads a model's capabilities from its template.
TOOLS_TEMPLATE = (
    "{{- if .Tools }}{{ .Tools }}{{ end }}{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}"
    "{{- range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}'
    "{{ end }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
THINKING_TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n"
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ if .Think }}<think>{{ end }}"
)


@dataclass(frozen=True)
class Node:
    """An Ollama, scripted or real, and a session to talk to it.

    ``model`` is a name as the server lists it, ``other`` one without the default tag where it can be.
    """

    url: str
    model: str
    other: str
    http: requests.Session
    scripted: OllamaNode | None = None
    ours: bool = True

    def get(self, path: str) -> requests.Response:
        return self.http.get(self.url + path, timeout=30)

    def post(self, path: str, body: JSON | str) -> requests.Response:
        data = body if isinstance(body, str) else json.dumps(body)
        return self.http.post(self.url + path, data=data, timeout=60)

    def chat(self, options: object = None, **body: Any) -> requests.Response:
        """Ask for three tokens, or as many as the options say, always the same ones."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": "Tell me a story"}]}
        sure = STEADY | options if isinstance(options, dict) else options or STEADY | {"num_predict": 3}
        return self.post("/api/chat", asked | body | {"options": sure})

    def loaded(self) -> dict[str, JSON]:
        return {entry["name"]: entry for entry in self.get("/api/ps").json()["models"]}

    def script(self, *answers: Answer) -> None:
        """Line up answers when this node is scripted."""
        if self.scripted:
            self.scripted.enqueue(*answers)

    def unload(self) -> None:
        """Unload the model; a real server lists it until its runner has ended."""
        self.post("/api/generate", {"model": self.model, "keep_alive": 0})
        wait_until(lambda: self.model not in self.loaded())


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Ask until it is so; for what another process does without telling."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        pause.wait(0.05)


def lines(response: requests.Response) -> list[JSON]:
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(params=["scripted", "real"])
def node(request: pytest.FixtureRequest, http: requests.Session) -> Iterator[Node]:
    """Yield the scripted node, then the real one."""
    if request.param == "scripted":
        with OllamaNode(MODELS, gpu=False) as scripted:
            yield Node(scripted.url, MODELS[0].name, MODELS[1].name, http, scripted)
    else:
        real: RealServer = request.getfixturevalue("real_server")
        yield Node(real.url, real.model, real.other, http, ours=real.ours)


@contextmanager
def template_model(node: Node, name: str, template: str) -> Iterator[str]:
    """Yield the name of a model with this template: made on a real node and deleted again, else declared."""
    if node.scripted:
        yield name
        return
    if not node.ours:
        pytest.skip("would create a model on somebody's Ollama")
    made = node.post(
        "/api/create", {"model": name, "from": node.model, "template": template, "stream": False}
    )
    assert made.ok, made.text
    try:
        yield name
    finally:
        node.http.delete(f"{node.url}/api/delete", data=json.dumps({"model": name}), timeout=30)


@pytest.fixture
def tools_model(node: Node) -> Iterator[str]:
    """Yield a model that can call tools and, on the scripted node, will."""
    with template_model(node, "contract-tools", TOOLS_TEMPLATE) as name:
        node.script(Answer(tool_calls=[ToolCall("get_weather", {"city": "Paris"})]))
        yield name


@pytest.fixture
def thinking_model(node: Node) -> Iterator[str]:
    """Yield a model that thinks before it answers."""
    with template_model(node, "contract-thinking", THINKING_TEMPLATE) as name:
        node.script(Answer(["Yes"], thinking=["I", " wonder", " why", " it", " is", " so", " late"]))
        yield name
