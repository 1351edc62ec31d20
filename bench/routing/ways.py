"""Ways to nodes: ours, and those of the peers, which choose a node at once and send straight to it."""

import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any

import aiohttp

from bench.routing.chats import Call, Way
from ollama_pack.engines.ollama.client import OllamaClient
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.transport import NodeLimits
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import NodeKind, NodeRow

OURS, RANDOM = "ours", "random"
POLICIES = (RANDOM, "round robin", "least busy", "sticky", OURS)
PATIENCE = 300.0  # seconds until the first byte: Open WebUI's own limit, AIOHTTP_CLIENT_TIMEOUT


class Picking:
    """A peer: it picks a node for each request and has no queue of its own, as Open WebUI.

    Least busy counts what it has sent itself and what has not ended; sticky keeps a chat where it began.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a fact of its own
        self,
        policy: str,
        urls: Mapping[str, str],
        session: aiohttp.ClientSession,
        dice: Random,
        kind: NodeKind = "ollama",
        serves: Collection[str] = (),
    ) -> None:
        limits = NodeLimits(connect=PATIENCE)  # Open WebUI sets none of its own
        self._clients = {
            name: OpenAIClient(url, session, limits=limits, serves=serves)
            if kind == "openai"
            else OllamaClient(url, session, limits=limits)
            for name, url in urls.items()
        }
        self._busy: Counter[str] = Counter()
        names, homes = list(urls), dict[str, str]()
        turn = itertools.cycle(names)
        self._pick: Callable[[Call], str] = {
            RANDOM: lambda _: dice.choice(names),
            "round robin": lambda _: next(turn),
            "least busy": lambda _: min(names, key=lambda name: (self._busy[name], dice.random())),
            "sticky": lambda call: homes.setdefault(call.chat, dice.choice(names)),
        }[policy]

    async def ask(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the answer, from the node that the policy picks."""
        node = self._pick(call)
        self._busy[node] += 1
        try:
            chunks = self._clients[node].complete(call.body(), _head(call), first_byte=PATIENCE)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._busy[node] -= 1


class Proxied:
    """A peer that is a server of its own: what it makes of the nodes is behind its OpenAI API."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, model: str = "{}:latest", key: str = ""
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = OpenAIClient(url, session, limits=NodeLimits(connect=PATIENCE), headers=headers)
        self._model = model

    async def ask(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the answer, as the peer hands them on."""
        body = call.body() | {"model": self._model.format(call.model), "user": call.user}
        async with aclosing(self._client.complete(body, _head(call), first_byte=PATIENCE)) as chunks:
            async for chunk in chunks:
                yield chunk


class Ours:
    """The router, as the plugin has it.

    Attributes:
        router: at work.
        decisions: of each, the nanoseconds of this thread that it took, and how many requests waited.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.decisions: list[tuple[int, int]] = []
        self._decide = router.scheduler.decide
        router.scheduler.decide = self._timed_decide  # type: ignore[method-assign] # measured where it happens

    def _timed_decide(self) -> list[Assignment]:
        waiting = self.router.scheduler.waiting
        began = time.thread_time_ns()
        bindings = self._decide()
        self.decisions.append((time.thread_time_ns() - began, waiting))
        return bindings

    async def ask(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the answer, from the node that the router chooses."""
        chunks = self.router.answer(
            call.body(),
            [call.model],
            _head(call),
            user=call.user,
            chat=call.chat,
            background=call.background,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk


def _head(call: Call) -> ReplyHead:
    return ReplyHead("chatcmpl-bench", 0, call.model)


@asynccontextmanager
async def way_of(  # noqa: PLR0913 - each is a fact of its own
    policy: str,
    urls: Mapping[str, str],
    seed: int,
    settings: RouterSettings | None = None,
    slots: int | None = None,
    *,
    kind: NodeKind = "ollama",
    serves: Collection[str] = (),
) -> AsyncIterator[Way]:
    """Open a way to these nodes.

    Args:
        policy: one of `POLICIES`.
        urls: of the nodes, by name.
        seed: of its dice.
        settings: of ours; the defaults when left out.
        slots: that the rows of ours declare; None: to be learned.
        kind: what the nodes speak.
        serves: the models of nodes that do not list them, as SGLang's router.
    """
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    if policy != OURS:
        async with session:
            yield Picking(policy, urls, session, Random(seed), kind, serves)
        return
    rows = [NodeRow(name, url, kind, slots=slots) for name, url in urls.items()]
    router = Router(rows, session, settings, Random(seed))
    try:
        yield Ours(router)
    finally:
        await router.close()


@asynccontextmanager
async def way_through(url: str, model: str = "{}:latest", key: str = "") -> AsyncIterator[Way]:
    """Open a way to the nodes that are behind a server.

    Args:
        url: of its OpenAI API.
        model: what it calls a model of that name.
        key: that it asks for; empty: none.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Proxied(url, session, model, key)
