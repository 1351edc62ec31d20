"""Where the demo's answers come from: an Ollama that is there, else a small engine that comes along."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from deploy.shown import message
from local import ollama
from local.engine import MODEL, engine
from local.webui import connections
from walk.steps import Walk


@dataclass(frozen=True)
class Models:
    """Where the answers come from.

    Attributes:
        source: the sentence that says so.
        environment: Open WebUI's connections.
        names: models that can chat, by their ids in Open WebUI.
        node: the entry of pack.yaml's `endpoints` for it.
    """

    source: str
    environment: dict[str, str]
    names: tuple[str, ...]
    node: str


@contextmanager
def find_models(walk: Walk, folder: Path) -> Iterator[Models]:
    """A running Ollama with a model that can chat, else the embedded engine."""
    url = ollama.found_url()
    names = _chat_models(url) if url else ()
    if url and names:
        listed = ", ".join(names[:3])
        source = message("Answers come from the Ollama at {url} ({listed}).", url=url, listed=listed)
        node = f'{{name: ollama, url: "{url}"}}'
        yield Models(source, connections(ollama=(url,)), names, node)
        return
    if url:
        walk.say(
            message(
                "The Ollama at {url} has no model that can chat (`ollama pull llama3.2` gets one).", url=url
            )
        )
    with engine(folder) as address:
        source = message(
            "No Ollama with a model was found, so answers come from llama.cpp with {model}, "
            "which runs inside this demo. It is a real model, and so small that it is often "
            "wrong.",
            model=MODEL,
        )
        node = f'{{name: engine, url: "{address}", kind: openai}}'
        yield Models(source, connections(openai=((address, "unused"),)), (MODEL,), node)


def _chat_models(url: str) -> tuple[str, ...]:
    """Models that can chat, the smallest first."""
    listed = requests.get(f"{url}/api/tags", timeout=10).json()["models"]

    def can_chat(name: str) -> bool:
        shown = requests.post(f"{url}/api/show", json={"model": name}, timeout=10).json()
        return "completion" in shown.get("capabilities", ["completion"])

    by_size = sorted(listed, key=lambda model: int(model["size"]))
    return tuple(model["name"] for model in by_size if can_chat(model["name"]))
