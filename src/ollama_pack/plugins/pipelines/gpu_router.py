"""
title: GPU router
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers each chat on the node that will begin soonest, and on another when that one fails.
license: MIT
version: {version}
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from secrets import token_urlsafe
from typing import Any, ClassVar
from uuid import uuid4

from pydantic import Field, field_validator

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.facts import request_facts
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.refusals import Refusal
from ollama_pack.errors import SettingError
from ollama_pack.routing.dispatch.report import dashboard_report
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.probe.catalogue import Catalogue
from ollama_pack.services.answers import answer_events, refusal_of, whole_answer
from ollama_pack.services.bridge import Bridge, ThreadPool
from ollama_pack.services.discovery import NodeDiscovery
from ollama_pack.services.history import HistoryKeeper, process_status
from ollama_pack.services.line_stream import LineStream
from ollama_pack.services.pipeline_answers import gives_status, put_route, take_route
from ollama_pack.services.pipeline_requests import asking, sibling, with_hints, without_asking
from ollama_pack.services.pipeline_valves import (
    CODE_DIGEST,
    CODE_DIGEST_NOTE,
    PipelineValves,
    one_a_line,
    starting_valves,
)
from ollama_pack.services.routed import (
    catalogue_for,
    models_for,
    offered_meanwhile,
    passed_over,
    routed_aliases,
    weights_behind,
    why_absent,
)
from ollama_pack.services.router_host import RouterHost
from ollama_pack.services.router_valves import NODES_NOTE, RouterValves
from ollama_pack.services.sharing import redis_sharing, usable_redis_url

log = logging.getLogger(__name__)

CACHE = "response_cache_replay"
VARIABLE = "GPU_ROUTER_"  # begins the names of the variables that the valves start from
REDIS_VARIABLE = f"{VARIABLE}REDIS_URL"  # becomes no valve: those are shown to whoever asks
KEY_VARIABLE, KNOWN_KEY = "PIPELINES_API_KEY", "0p3n-w3bu!"  # the server's own, which everybody knows
USE_SECONDS = 1.0  # between two times that the nodes are told to be of interest
SLASH = "--"  # in ids: the server finds no model with a slash in its id when Open WebUI asks for its inlet

Body = dict[str, Any]


class Pipeline:
    """A model for each model of the nodes, and for each routed alias.

    Valves begin with what GPU_ROUTER_NODES, GPU_ROUTER_ALIASES and so on say, nodes and aliases also with
    OLLAMA_BASE_URLS and MODEL_ALIASES. Once they are saved, by an admin or by upload.py, valves.json holds
    every one of them, and the environment is not asked again.
    """

    class Valves(PipelineValves, RouterValves):
        knows_groups: ClassVar[bool] = False

        nodes: str = Field(
            default="",
            title="Nodes",
            description=f"{NODES_NOTE} All may be on one line with `;` between them. Default: empty.",
        )
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Address of a Redis or Valkey server, such as `redis://:password@host:6379/0`. With it, "
                "Pipelines servers and routers of Open WebUI share what they know about the nodes, and no "
                "slot is used twice. If it does not answer, chats go on without it. Needs the package redis, "
                "which the server's minimal image lacks. Default: empty, which means the variable "
                "`GPU_ROUTER_REDIS_URL`."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        code_digest: str = Field(default=CODE_DIGEST, title="Code digest", description=CODE_DIGEST_NOTE)

        @classmethod
        def lines(cls, text: str) -> str:
            """The rows of a valve, each on a line of its own."""
            return one_a_line(text)

        @field_validator("redis_url")
        @classmethod
        def _redis_usable(cls, url: str) -> str:
            return usable_redis_url(url)

    def __init__(self) -> None:
        self.type = "manifold"
        self.name = ""  # begins the names of all models
        self.valves = self._first_valves()
        self._given_url = _given_redis_url()
        self._discovery = NodeDiscovery()
        self._host = RouterHost(redis_sharing, shared_secret)
        self._history = HistoryKeeper(self._shared_url, None, self._status)
        self._writing: asyncio.Task[None] | None = None
        self._is_closing = False
        self._bridge = Bridge(self._close)
        self._cache: Any = None
        self._names: dict[str, str] = {}
        self._offered: tuple[Catalogue | None, str, list[dict[str, str]]] = (None, "", [])
        self._used_at = 0.0
        self._look: asyncio.Future[None] | None = None

    def _first_valves(self) -> Valves:
        urls = os.getenv("OLLAMA_BASE_URLS", "").replace(",", ";").split(";")
        nodes = [f"ollama{number} {url.strip()}" for number, url in enumerate(urls) if url.strip()]
        given = {"nodes": "; ".join(nodes), "aliases": os.getenv("MODEL_ALIASES", "")}
        valves = {valve: f"{VARIABLE}{valve.upper()}" for valve in self.Valves.model_fields}
        del valves["redis_url"]
        return starting_valves(self.Valves, valves, given)

    async def on_startup(self) -> None:
        self._bridge.use_pool(ThreadPool())
        put_route()
        await self._look_at_nodes()

    async def on_valves_updated(self) -> None:
        await self._look_at_nodes()

    async def _look_at_nodes(self) -> None:
        """So that the next who asks for the models gets them. An error here would end the server's start."""
        try:
            await self._bridge.run(self._router)
        except Exception:
            log.exception("The nodes could not be looked at; the first chat looks again")

    async def on_shutdown(self) -> None:
        """The server ends, or loads all pipelines anew: chats under way are answered to their end."""
        take_route()
        await self._bridge.retire()

    def pipelines(self) -> list[dict[str, str]]:
        """The models that are offered. The server asks at every request, whatever it is for."""
        try:
            return self._models()
        except Exception:
            log.exception("The models could not be listed: those from before are offered")
            return self._offered[2]

    def _models(self) -> list[dict[str, str]]:
        """What the nodes have now. Any thread may look: catalogues are replaced as a whole."""
        router = self._host.current
        if router is None:
            return []
        if time.monotonic() - self._used_at > USE_SECONDS:
            self._used_at = time.monotonic()
            self._bridge.soon(lambda: self._keep_looking(router))
        catalogue, aliases = router.catalogue(), self.valves.aliases
        if (catalogue, aliases) != self._offered[:2]:
            names = dict.fromkeys([*routed_aliases(self.valves.table, catalogue), *catalogue.models])
            own = [{"id": name.replace("/", SLASH), "name": name} for name in names]
            offered = offered_meanwhile(router, own)
            self._names = {model["id"]: model["name"] for model in offered}
            # What is from before goes once all nodes have been looked at.
            self._offered = catalogue if router.has_seen_all else None, aliases, offered
        return self._offered[2]

    def _keep_looking(self, router: Router) -> None:
        self._look = asyncio.ensure_future(router.ready())

    async def inlet(self, body: Body, user: Body | None = None) -> Body:  # noqa: ARG002 - the server passes it
        """Keep what Open WebUI tells an inlet and not a pipe: the conversation, and that it is a title."""
        return with_hints(body)

    def pipe(self, user_message: str, model_id: str, messages: list[Body], body: Body) -> LineStream | Body:  # noqa: ARG002
        """Answer a chat. An error becomes the answer's error, in one sentence."""
        name = self._names.get(model_id, model_id)
        if body.get("stream"):
            refused = partial(_refused, asking(body).language)
            return self._bridge.stream(lambda: answer_events(self._chunks(name, body), refused))
        try:
            return self._bridge.call(lambda: self._completion(name, body))
        except Exception as error:
            refusal = _refused(asking(body).language, error)
            if gives_status():
                return refusal.body()
            raise _http_error(refusal) from error

    async def _completion(self, name: str, body: Body) -> Body:
        async with aclosing(self._chunks(name, body)) as chunks:
            return UnloggedAnswer(whole_answer([chunk async for chunk in chunks]))

    async def _chunks(self, name: str, body: Body) -> AsyncGenerator[Body, None]:
        """The answer: of the response cache, where that is on this server and has it, else of a node."""
        router = await self._router()
        with self._host.holding(router):
            async with aclosing(self._answer(router, name, body)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _answer(self, router: Router, name: str, body: Body) -> AsyncGenerator[Body, None]:
        who, table = asking(body), self.valves.table
        catalogue = await catalogue_for(router, table, name)
        facts = request_facts(body, name)
        try:
            models = models_for(table, facts, catalogue)
        except AliasUnavailableError as error:
            raise why_absent(error, router) from error
        asked = without_asking(body)
        known = catalogue.find(models[0])
        if who.from_webui and known is not None and not known.can("tools"):
            asked.pop("tools", None)  # Open WebUI offers its own to every model, unmarked
        # Open WebUI asks for the model under a published alias: people asked for the alias.
        is_published = who.from_webui and next(table.matching(name), None) is not None
        head = ReplyHead(
            f"chatcmpl-{uuid4().hex}", int(time.time()), name if is_published else str(body["model"])
        )

        def generated() -> AsyncGenerator[Body, None]:
            return router.answer(
                asked,
                models,
                head,
                user=who.user,
                chat=who.chat,
                background=who.background,
                figures=who.is_admin,
                language=who.language,
                why_model=partial(passed_over, table, facts, catalogue, frozenset()),
            )

        self._cache = sibling(CACHE)
        model = router.answering(models)
        digest, cache = weights_behind(model, catalogue), self._cache
        answer = cache.chunks(asked, who, digest, head, generated, model) if cache else generated()
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _close(self) -> None:
        """Nobody uses it any more."""
        await self._host.close()
        self._is_closing = True
        if self._writing:
            await self._writing
        if self._cache:
            await self._cache.close()

    async def _router(self) -> Router:
        valves = self.valves
        rows = await self._discovery.rows(valves.rows, valves.probe_seconds)
        if self._writing is None or self._writing.done():
            self._is_closing = False
            self._writing = asyncio.create_task(self._history.run(lambda: not self._is_closing))
        router = await self._host.router(rows, valves.settings, await self._shared_url())
        valves.look_after(router)
        return router

    async def _shared_url(self) -> str:
        return self.valves.redis_url or self._given_url

    async def _status(self) -> Body:
        """How this server is, for the dashboards of Open WebUI that share the Redis."""
        router = self._host.current
        return process_status("Pipelines", dashboard_report(router) if router else {})


def _given_redis_url() -> str:
    """What the variable says; empty where it cannot be used, which is logged as it is for valves."""
    try:
        return usable_redis_url(os.getenv(REDIS_VARIABLE, ""))
    except SettingError as error:
        log.error("%s is left out: %s", REDIS_VARIABLE, error)  # noqa: TRY400 - its trace tells nothing more
        return ""


def shared_secret() -> str:
    """What only servers with one key of their own know, and otherwise nobody."""
    key = os.getenv(KEY_VARIABLE, "")
    return token_urlsafe() if key in {"", KNOWN_KEY} else key


class UnloggedAnswer(dict[str, Any]):
    """An answer that the server's log, which gets every unstreamed one, does not tell."""

    def __repr__(self) -> str:
        return "<an answer>"


def _refused(language: str, error: Exception) -> Refusal:
    """The server does not say whether an admin asks."""
    return refusal_of(error, for_admin=False).translated(language)


def _http_error(refusal: Refusal) -> Exception:
    """What the server makes a refusal of. It is imported here as only the server has its web framework."""
    from fastapi import HTTPException  # noqa: PLC0415

    made: Exception = HTTPException(refusal.status, refusal.message, refusal.headers)
    return made
