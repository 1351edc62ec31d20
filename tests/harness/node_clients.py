"""Using the client of a node in a test: one event loop and one session for each use."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import pytest

from ollama_pack.engines.errors import NodeError
from ollama_pack.engines.ollama.client import NodeClient, OllamaClient
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.transport import NodeLimits

__all__ = ["HEAD", "JSON", "PATIENCE", "USER", "chunks_of", "fail", "run"]

T = TypeVar("T")
JSON = dict[str, Any]
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "asked-for")
USER = {"role": "user", "content": "Tell me a story"}
STEADY: JSON = {"temperature": 0, "seed": 1}  # a real model must not make a test pass by luck
PATIENCE = 60.0  # seconds, for a real model to load


def run(
    url: str, use: Callable[[OllamaClient], Awaitable[T]], limits: NodeLimits | None = None, **headers: str
) -> T:
    """Use a client of a node in an event loop and a session of its own."""

    async def inside() -> T:
        async with aiohttp.ClientSession() as session:
            return await use(OllamaClient(url, session, limits=limits, headers=headers))

    return asyncio.run(inside())


async def chunks_of(client: NodeClient, model: str, first_byte: float = PATIENCE, **body: Any) -> list[JSON]:
    asked = {"model": model, "messages": [USER], **body}
    asked["options"] = STEADY | asked.get("options", {"num_predict": 3})
    return [chunk async for chunk in client.complete(asked, HEAD, first_byte=first_byte)]


def fail(
    url: str,
    kind: type[NodeError],
    limits: NodeLimits | None = None,
    first_byte: float = PATIENCE,
    lines_before: int = 0,
) -> Any:
    """Chat with a node that must fail in this way, after this many lines."""
    got: list[JSON] = []

    async def chat(client: OllamaClient) -> None:
        request = {"model": "smollm2:135m", "messages": [USER]}
        async for line in client.chat(request, first_byte=first_byte):
            got.append(line)  # noqa: PERF401 - what came before the error matters

    with pytest.raises(kind) as caught:
        run(url, chat, limits)
    assert type(caught.value) is kind
    assert len(got) == lines_before
    return caught.value
