"""A router over scripted nodes, and a chat through it, for tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import aiohttp

from harness.ollama_node import OllamaNode
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import NodeRow, parse_nodes

JSON = dict[str, Any]
HEAD = ReplyHead("chatcmpl-1", 1, "llama3:8b")
QUICK = RouterSettings(probe_seconds=0.2, first_token_seconds=30.0)
TEST_SECONDS = 60.0

_T = TypeVar("_T")


def rows_of(nodes: Sequence[OllamaNode], settings: str = "") -> tuple[NodeRow, ...]:
    return parse_nodes("\n".join(f"gpu{number} {node.url} {settings}" for number, node in enumerate(nodes)))


@asynccontextmanager
async def routing(
    nodes: Sequence[OllamaNode], settings: RouterSettings = QUICK, row_settings: str = ""
) -> AsyncIterator[Router]:
    """A router over gpu0, gpu1 and so on."""
    router = Router(rows_of(nodes, row_settings), aiohttp.ClientSession(), settings, Random(1))  # noqa: S311 - breaks ties
    await router.ready()
    try:
        yield router
    finally:
        await router.close()


@asynccontextmanager
async def router_over(*rows: str) -> AsyncIterator[Router]:
    router = Router(parse_nodes("\n".join(rows)), aiohttp.ClientSession(), QUICK, Random(1))  # noqa: S311 - breaks ties
    await router.ready()
    try:
        yield router
    finally:
        await router.close()


@dataclass
class Chat:
    """One chat through a router: what came, and what was told meanwhile."""

    router: Router
    text: str = "hello"
    models: tuple[str, ...] = ("llama3:8b",)
    background: bool = False
    user: str = "user"
    chat: str = ""
    body: JSON = field(default_factory=dict)
    chunks: list[JSON] = field(default_factory=list)
    told: list[tuple[str, bool]] = field(default_factory=list)
    on_chunk: Callable[[JSON], Awaitable[None]] | None = None

    async def tell(self, line: str, *, done: bool) -> None:
        self.told.append((line, done))

    async def run(self) -> "Chat":
        body = {"messages": [{"role": "user", "content": self.text}], "stream": True, **self.body}
        async for chunk in self.router.answer(
            body,
            self.models,
            HEAD,
            user=self.user,
            chat=self.chat,
            background=self.background,
            tell=self.tell,
        ):
            self.chunks.append(chunk)
            if self.on_chunk:
                await self.on_chunk(chunk)
        return self

    @property
    def said(self) -> str:
        return "".join(
            chunk["choices"][0]["delta"].get("content", "") for chunk in self.chunks if chunk["choices"]
        )

    @property
    def answer(self) -> str:
        return str(completion_of(self.chunks)["choices"][0]["message"]["content"])

    @property
    def routed(self) -> JSON:
        """Which node answered, and why: what the last chunk says."""
        routed: JSON = self.chunks[-1]["ollama_pack"]
        return routed


def run(scenario: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a scenario on a loop of its own; one that hangs fails."""

    async def bounded() -> _T:
        async with asyncio.timeout(TEST_SECONDS):
            return await scenario()

    return asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again: for what a node's thread does without telling."""
    while not condition():  # noqa: ASYNC110 - the node lives in another thread
        await asyncio.sleep(0.01)
