"""What the contract tests of nodes share: models, requests, one way to look at a scripted or a real node."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from harness.ollama_node import Answer, Model, OllamaNode

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

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# Constrains even a model of 135M parameters to call the tool.
WEATHER_CALL = {
    "type": "object",
    "properties": {
        "name": {"enum": ["get_weather"]},
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris"]}},
            "required": ["city"],
        },
    },
    "required": ["name", "parameters"],
}


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


def instant(text: str) -> datetime:
    """Read a timestamp; Go writes nanoseconds, Python reads microseconds."""
    head, dot, tail = text.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    zone = tail[len(digits) :]
    return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}{zone}" if dot else text)


def expires_in(node: Node) -> float:
    """Return seconds. A real server moves `expires_at` shortly after its answer, so ask until it is right."""
    return (instant(node.loaded()[node.model]["expires_at"]) - datetime.now(UTC)).total_seconds()
