"""Chats as clients of OpenAI's API send them, and what comes of them."""

import base64
from collections.abc import Iterable
from typing import Any

import requests

from deploy.client import OpenWebUI
from harness.ollama_node import OllamaNode

Json = dict[str, Any]

HELLO = [{"role": "user", "content": "hello"}]
PIXEL = base64.b64encode(b"not really a picture").decode()
IMAGE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "the time",
        "parameters": {"type": "object", "properties": {}},
    },
}


def ask(api: OpenWebUI, model: str, messages: list[Json] = HELLO, **more: Any) -> Json:
    answer: Json = api.post("/api/chat/completions", {"model": model, "messages": messages, **more})
    return answer


def ask_streaming(api: OpenWebUI, model: str, **more: Any) -> requests.Response:
    """An answer as it comes. Whoever closes it early leaves."""
    return requests.post(
        f"{api.url}/api/chat/completions",
        json={"model": model, "messages": HELLO, "stream": True, **more},
        headers={"Authorization": f"Bearer {api.key}"},
        stream=True,
        timeout=60,
    )


def asked_for(node: OllamaNode) -> str:
    """The model that the node was last asked for."""
    body = node.requests[-1].body
    assert body is not None
    return str(body["model"])


def said(chunks: Iterable[Json]) -> str:
    """The text in the chunks of a streamed answer."""
    return "".join(
        chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk.get("choices")
    )
