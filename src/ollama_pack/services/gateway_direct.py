"""The gateway's own chain: budgets, access, aliases, cache and router, without other filters and tools.

What a user may use is looked up once in a few seconds. The router, the cache and the budgets are other
plugins, which share no code with this one. Without the router Open WebUI's own path answers.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol
from uuid import uuid4

from ollama_pack.aliases.table import AliasTable
from ollama_pack.base.single_flight import Remembered, SingleFlight
from ollama_pack.engines.ollama.stream import usage_place
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.services.answers import whole_answer
from ollama_pack.services.gateway_names import DirectName, direct_name
from ollama_pack.webui.budget_contact import BUDGETS_ID, BudgetContact
from ollama_pack.webui.contact import ROUTER_ID
from ollama_pack.webui.functions import function_state, global_filters, live_function

log = logging.getLogger(__name__)

ACCESS_SECONDS = 5.0  # that access and keys are remembered, where no event says that they have changed
LIVE_SECONDS = 2.0  # after which a plugin is looked up again: its valves may have changed
CACHE_ID = "response_cache_filter"
MOST_REMEMBERED = 10_000

Body = dict[str, Any]
Chunks = AsyncGenerator[Body, None]


class Routed(Protocol):
    """`DirectChat` of the router."""

    model: str
    weights: str
    body: Mapping[str, Any]
    chunks: Callable[[ReplyHead], Chunks]


@dataclass(frozen=True, slots=True)
class Meter:
    """The filter of budgets for one chat, called as Open WebUI would.

    Attributes:
        budgets: the live filter.
        metadata: of the chat, where the filter keeps what it knows.
    """

    budgets: Any
    metadata: Body

    async def around(self, chunks: Chunks) -> Chunks:
        """The chunks, each shown to the filter. It counts a chat that breaks off when its request ends."""
        look = self.budgets.stream
        async with aclosing(chunks):
            async for chunk in chunks:
                yield await look(chunk, self.metadata) if look else chunk
        if (end := self.budgets.outlet) is not None:
            await end({"messages": []}, self.metadata)


@dataclass(frozen=True, slots=True)
class DirectCall:
    """One chat that the router answers.

    Attributes:
        name: that was asked for.
        routed: what the router will do.
        pending: what the cache has found; None: it is not in it.
        meter: counts it against budgets; None: there are none.
    """

    name: str
    routed: Routed
    pending: Any = None
    meter: Meter | None = None

    def chunks(self) -> Chunks:
        """The answer as it comes. Every direct chat goes through here."""
        return self._chunks() if self.meter is None else self.meter.around(self._chunks())

    def _chunks(self) -> Chunks:
        head = self._head
        if self.pending is None:
            return self.routed.chunks(head)
        chunks: Chunks = self.pending.chunks(
            head, partial(self.routed.chunks, head), usage_place(self.routed.body)
        )
        return chunks

    async def completion(self) -> Body:
        """The whole answer."""
        async with aclosing(self.chunks()) as chunks:
            return whole_answer([chunk async for chunk in chunks])

    @property
    def _head(self) -> ReplyHead:
        return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), self.name)


class DirectChain:
    """Answers what the router alone can answer. One for each process."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._router = SingleFlight(partial(_live_router, app), LIVE_SECONDS, ahead=True)
        self._cache = SingleFlight(partial(_live_cache, app), LIVE_SECONDS, ahead=True)
        self.budgets = BudgetContact()
        self._app = app
        self._names: Remembered[tuple[str, str, str], DirectName | None] = Remembered(
            ACCESS_SECONDS, MOST_REMEMBERED
        )
        self._users: Remembered[bytes, Any] = Remembered(ACCESS_SECONDS, MOST_REMEMBERED)

    def forget(self) -> None:
        """Somebody may use more or less than before."""
        router = self._router.kept
        for remembered in (self._names, self._users, self._router, self._cache, self.budgets):
            remembered.forget()
        if router is not None:
            router.forget_access()

    def user_of(self, request: Any) -> Any:
        """The user of an API key that was checked a moment ago for the same path; None: check it."""
        key = _key_of(request)
        return None if key is None else self._users.find(key)

    def remember(self, request: Any, user: Any) -> None:
        """Open WebUI has just checked the request's key."""
        key = _key_of(request)
        if key is not None and self._users.find(key) is None:  # what is remembered is not remembered longer
            self._users.keep(key, user)

    async def router(self) -> Any:
        """The live `gpu_router`; None: there is none."""
        return await self._router.get()

    async def budgets_of(self, user: Any) -> list[Mapping[str, Any]]:
        """The budgets that hold for a user, as their filter reports them; none where there is no table."""
        try:
            budgets = await self.budgets.live(self._app)
            told = await budgets.budget_usage(user.model_dump()) if budgets is not None else {}
        except Exception:
            log.exception("What is left of budgets cannot be told, and a chat goes on without")
            return []
        return list(told.get("budgets") or ())

    async def call(
        self, request: Any, user: Body, chat: Mapping[str, Any], table: AliasTable | None
    ) -> DirectCall | None:
        """The call that answers a chat; None: only Open WebUI's own path can.

        Args:
            request: FastAPI's.
            user: who asks.
            chat: OpenAI's body, with the name that the client asked for.
            table: the router's aliases; None: it has none.

        Raises:
            ModelClosedError: the user may not use the name.
            Exception: the router's own, with a `refusal`: nothing answers.
        """
        router = await self._router.get()
        if router is None:
            return None
        asked_for = str(chat["model"])
        found = await self._name(request, table, asked_for, user)
        if found is None:
            return None
        metadata: Body = {}
        budgets = await self.budgets.live(self._app)
        if budgets is not None:
            named = str((await budgets.inlet({**chat}, user, metadata, request, BUDGETS_ID))["model"])
            if named != asked_for:  # a budget that is used up may have another model answer
                found = await self._name(request, table, named, user)
                if found is None:
                    return None
        body = {**chat, "model": found.id}
        metadata["model"] = {"info": {"params": dict(found.params)}}
        routed: Routed = await router.direct_chat(body, user, request, metadata)
        cache = await self._cache.get()
        answers = routed.model, routed.weights
        pending = cache and await cache.direct_lookup(routed.body, user, request, CACHE_ID, answers)
        return DirectCall(asked_for, routed, pending, Meter(budgets, metadata) if budgets else None)

    async def _name(self, request: Any, table: AliasTable | None, name: str, user: Body) -> DirectName | None:
        ask = partial(direct_name, request, table, name, user)
        return await self._names.get((user["id"], user["role"], name), ask)


def _key_of(request: Any) -> bytes | None:
    """What an API key and the path that it was shown for are remembered by; None: it is a session."""
    token = getattr(getattr(request.state, "token", None), "credentials", None)
    if not isinstance(token, str) or not token.startswith("sk-"):
        return None
    return blake2b(f"{token}\0{request.scope['path']}".encode()).digest()


async def _live_router(app: Any) -> Any:
    """The router, where it is on and knows the gateway."""
    state = await function_state(ROUTER_ID)
    router = await live_function(app, ROUTER_ID, state) if state.active else None
    return router if hasattr(router, "direct_chat") else None


async def _live_cache(app: Any) -> Any:
    """The response cache, where it is on for all models and knows the gateway."""
    if CACHE_ID not in await global_filters():
        return None
    try:
        cache = await live_function(app, CACHE_ID, await function_state(CACHE_ID))
    except Exception:
        log.exception("%s cannot be asked, and chats go on without it", CACHE_ID)
        return None
    return cache if hasattr(cache, "direct_lookup") else None
