"""
title: GPU router
author: Open WebUI Ollama Pack
description: Answers each chat on the node that will begin soonest, and on another when that one fails.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

import aiohttp
from pydantic import BaseModel, Field, field_validator

from ollama_pack.aliases.facts import request_facts
from ollama_pack.aliases.table import parse_table
from ollama_pack.errors import PackError
from ollama_pack.fleet.journey import RouterSettings, Tell
from ollama_pack.fleet.nodes import NodeRow, parse_nodes
from ollama_pack.fleet.report import dashboard_report, load_report
from ollama_pack.fleet.router import Router
from ollama_pack.ollama.event_text import event_text
from ollama_pack.ollama.stream import completion_of
from ollama_pack.ollama.to_openai import ReplyHead, openai_error
from ollama_pack.plugins.routed import models_for, routed_aliases
from ollama_pack.webui.connections import ollama_connections
from ollama_pack.webui.models import ROUTER, group_names, remove_builtin_tools
from ollama_pack.webui.streams import event_stream

log = logging.getLogger(__name__)

CONNECTION_SECONDS = 15.0  # between two looks at Open WebUI's own connections

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Pipe:
    """A model for each model of the nodes, and for each routed alias."""

    class Valves(BaseModel):
        nodes: str = Field(
            default="",
            description=(
                "A row a line: name address settings, such as: gpu0 http://gpu0:11434 slots=2. Settings: "
                "kind=openai (vLLM and the like), key=…, slots=…, weight=…, tier=…, "
                "agent=http://gpu0:9400. A # starts a comment. Empty: Open WebUI's own Ollama connections."
            ),
        )
        aliases: str = Field(
            default="",
            description=(
                "A row a line: alias = model, model [condition, …], as in the alias filter. Each alias is "
                "offered as a model; the first of its models that a node has answers, then the next."
            ),
        )
        strategy: Literal["predicted_ttft", "least_busy", "random"] = Field(
            default="predicted_ttft",
            description="predicted_ttft is the one to use; the others are there to compare with.",
        )
        probe_seconds: float = Field(default=5.0, ge=0.5, le=300, description="Between two looks at a node.")
        first_token_timeout_seconds: float = Field(
            default=120.0,
            ge=1,
            le=3600,
            description=(
                "How long a chat waits for a free node, and then for the first token beside what loading "
                "the model is predicted to take."
            ),
        )
        max_queue: int = Field(
            default=64, ge=1, le=10_000, description="Chats that may wait; the next one is told so."
        )
        redis_url: str = Field(
            default="",
            description="Has no effect yet: each worker of Open WebUI learns for itself.",
            json_schema_extra={"input": {"type": "password"}},
        )
        keep_alive: str = Field(
            default="",
            description="How long models stay in memory: 30m, or -1 for ever. Empty: as the nodes have it.",
        )
        show_status: bool = Field(
            default=True, description="Show above the answer which node gave it, and the place in the queue."
        )

        @field_validator("nodes")
        @classmethod
        def _nodes_readable(cls, text: str) -> str:
            parse_nodes(text)  # a NodeTableError reaches the admin as the valve's error, row and reason
            return text

        @field_validator("aliases")
        @classmethod
        def _aliases_readable(cls, text: str) -> str:
            parse_table(text)
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._router: Router | None = None
        self._made_of: tuple[tuple[NodeRow, ...], RouterSettings] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._connections: tuple[NodeRow, ...] = ()
        self._look_up_at = 0.0

    async def pipes(self) -> list[dict[str, str]]:
        """The models that Open WebUI offers. At most two seconds, and only until the nodes are known."""
        return [{"id": model["id"], "name": model["name"]} for model in await self.routed_models()]

    async def pipe(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __chat_id__: str | None = None,
        __task__: str | None = None,
        __event_emitter__: Emitter | None = None,
    ) -> Any:
        """Answer a chat. An error here becomes the answer's error, in one sentence."""
        try:
            chunks = await self._chunks(
                body, __user__, __metadata__, str(__chat_id__ or ""), __task__ is not None, __event_emitter__
            )
            if body.get("stream"):
                return event_stream(_events(chunks))
            async with aclosing(chunks):
                return _completion([chunk async for chunk in chunks])
        except PackError as error:
            return _failure(error)

    async def _chunks(
        self,
        body: Body,
        user: dict[str, Any],
        metadata: dict[str, Any],
        chat: str,
        background: bool,  # noqa: FBT001
        emitter: Emitter | None,
    ) -> AsyncGenerator[Body, None]:
        """The answer, which begins when it is gone through."""
        name = str(body["model"]).removeprefix(ROUTER)
        router = await self._ready()
        table = parse_table(self.valves.aliases)
        facts = request_facts(body, name, await group_names(user) if table.uses_groups else ())
        models = models_for(table, facts, router.catalogue())
        return router.answer(
            _asked(body, models[0], router, metadata),
            models,
            ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), str(body["model"])),
            user=str(user.get("id") or ""),
            chat=chat,
            background=background,
            tell=_teller(emitter if self.valves.show_status else None),
        )

    async def system_load(self) -> dict[str, Any]:
        """The load of all nodes, addresses included: whoever shows it hides them from plain users."""
        return load_report(await self._ready())

    async def dashboard(self) -> dict[str, Any]:
        """All that an admin may want to see."""
        return dashboard_report(await self._ready())

    async def model_digest(self, body: Body, user: dict[str, Any]) -> str:
        """What tells the weights that may answer a chat from others of their names: for the response cache."""
        name = str(body["model"]).removeprefix(ROUTER)
        catalogue = (await self._ready()).catalogue()
        table = parse_table(self.valves.aliases)
        facts = request_facts(body, name, await group_names(user) if table.uses_groups else ())
        found = [
            catalogue.models[model]
            for model in models_for(table, facts, catalogue)
            if model in catalogue.models
        ]
        return " ".join("+".join((model.name, *model.digests)) for model in found)

    async def routed_models(self) -> list[dict[str, Any]]:
        """What is offered now: each alias and each model, once."""
        catalogue = (await self._ready()).catalogue()
        aliases = routed_aliases(parse_table(self.valves.aliases), catalogue)
        names = dict.fromkeys([*aliases, *catalogue.models])
        return [{"id": name, "name": name, "alias": name in aliases} for name in names]

    async def _ready(self) -> Router:
        """The router for the valves as they are; another one once nodes or settings change."""
        valves = self.valves
        rows = parse_nodes(valves.nodes) or await self._connected()
        settings = RouterSettings(
            valves.strategy,
            valves.probe_seconds,
            valves.first_token_timeout_seconds,
            valves.max_queue,
            valves.keep_alive,
        )
        if self._router is None or self._made_of != (rows, settings):
            self._retire(self._router)
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            self._router, self._made_of = Router(rows, session, settings), (rows, settings)
        router = self._router
        await router.ready()
        return router

    async def _connected(self) -> tuple[NodeRow, ...]:
        """Open WebUI's own connections, looked up once in a while."""
        now = time.monotonic()
        if now >= self._look_up_at:
            self._look_up_at = now + CONNECTION_SECONDS
            connections = enumerate(await ollama_connections())
            self._connections = tuple(
                NodeRow(f"ollama{number}", url.rstrip("/"), key=key) for number, (url, key) in connections
            )
        return self._connections

    def _retire(self, router: Router | None) -> None:
        """Let the old router finish what it has begun."""
        if router is not None:
            task = asyncio.get_running_loop().create_task(router.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _asked(body: Body, model: str, router: Router, metadata: dict[str, Any]) -> Body:
    """The body for the nodes: with the row's settings, and without tools that the model cannot use."""
    row = ((metadata.get("model") or {}).get("info") or {}).get("params") or {}
    asked = {
        **body,
        "params": {**row, **(body.get("params") or {})},
    }  # Open WebUI passes only OpenAI's to pipes
    known = router.catalogue().models.get(model)
    if known is not None and not known.can("tools"):
        remove_builtin_tools(asked, metadata)
    return asked


def _teller(emitter: Emitter | None) -> Tell:
    async def tell(line: str, *, done: bool) -> None:
        if emitter:
            try:
                await emitter({"type": "status", "data": {"description": line, "done": done}})
            except Exception:
                log.exception("A status line could not be shown")

    return tell


async def _events(chunks: AsyncGenerator[Body, None]) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them, as the client has the status 200 already."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except PackError as error:
            yield event_text(_failure(error))
    yield "data: [DONE]\n\n"


def _failure(error: PackError) -> Body:
    """An error as OpenAI has it, and under the name by which Open WebUI looks for its sentence."""
    body = openai_error(error)
    return {"error": {**body["error"], "detail": str(error)}}


def _completion(chunks: list[Body]) -> Body:
    made = completion_of(chunks)
    routed = next((chunk["ollama_pack"] for chunk in reversed(chunks) if "ollama_pack" in chunk), None)
    return made | ({"ollama_pack": routed} if routed else {})
