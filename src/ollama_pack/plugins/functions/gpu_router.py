"""
title: GPU router
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers each chat on the node that will begin soonest, and on another when that one fails.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

from pydantic import Field, field_validator

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.facts import request_facts
from ollama_pack.aliases.published import models_behind
from ollama_pack.base.messages import Message, in_language, message, said_by
from ollama_pack.base.redis import check_redis_url
from ollama_pack.base.single_flight import Remembered, SingleFlight
from ollama_pack.engines.body import object_at, object_in
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.ollama.options import with_machine_options
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.openai.request import CACHE_KEY
from ollama_pack.engines.refusals import Refusal
from ollama_pack.errors import error_code
from ollama_pack.routing.dispatch.embedding import Embedding
from ollama_pack.routing.dispatch.pending_chat import NodeHeaders, RouterSettings, Served, Tell, WhyModel
from ollama_pack.routing.dispatch.report import dashboard_report, load_report, nodes_to_plan
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.dispatch.upkeep import Upkeep
from ollama_pack.routing.naming import auto_parts
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.plan.demand import Demand, asked_in
from ollama_pack.routing.plan.report import plan_report
from ollama_pack.routing.probe.catalogue import Catalogue
from ollama_pack.services.answers import answer_events, refusal_of, whole_answer
from ollama_pack.services.budget_chats import BUDGET_STATE
from ollama_pack.services.connected import OfferedIds, connected_nodes
from ollama_pack.services.discovery import NodeDiscovery
from ollama_pack.services.routed import (
    DirectChat,
    catalogue_for,
    models_for,
    offered_meanwhile,
    passed_over,
    routed_aliases,
    wanted_models,
    weights_behind,
    why_absent,
)
from ollama_pack.services.router_host import RouterHost
from ollama_pack.services.router_metrics import router_metrics
from ollama_pack.services.router_valves import RouterValves
from ollama_pack.services.sharing import redis_sharing
from ollama_pack.services.valves import tell_refused
from ollama_pack.services.webui_tasks import is_asked_for, is_background_task
from ollama_pack.webui.access import usable_models
from ollama_pack.webui.budget_contact import BudgetContact
from ollama_pack.webui.connections import (
    ConnectionModels,
    model_lists,
    node_headers,
    ollama_connections,
    trusted_certificates,
    ways_in,
)
from ollama_pack.webui.early_errors import note_refusal, refused_answer, show_early_errors
from ollama_pack.webui.errors import ModelClosedError, ModelRefusedError
from ollama_pack.webui.models import model_row, remove_builtin_tools
from ollama_pack.webui.presets import default_params
from ollama_pack.webui.server import event_stream, server_secret, take_over
from ollama_pack.webui.tracing import ChatSpan
from ollama_pack.webui.users import accepted_language, group_names, reader_language

log = logging.getLogger(__name__)

ACCESS_SECONDS = 5.0  # that the gateway remembers what a user may use, unless an event says otherwise
PLAN_SECONDS = 20.0  # of simulation, for a plan on the dashboard
CONNECTION_SECONDS = 15.0  # between two looks at Open WebUI's own connections
MOST_KEY = 128  # characters of what a client names its conversation

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Pipe:
    """A model for each model of the nodes, and for each routed alias."""

    class Valves(RouterValves):
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Address of a Redis or Valkey server, such as `redis://:password@host:6379/0`. With it, all "
                "workers and replicas of Open WebUI share what they know about the nodes, and no slot is "
                "used twice. If it does not answer, chats go on without it. Default: empty, so each worker "
                "works alone."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        several_workers: bool = Field(
            default=False,
            title="Several workers without Redis",
            description=(
                "Switch this on when several workers or replicas use the same nodes without Redis. They then "
                "agree by hashing on the node for each chat. Default: off."
            ),
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description=(
                "Show above each answer which model and node gave it, and the place in the queue while the "
                "chat waits. Default: on."
            ),
        )
        show_figures: bool = Field(
            default=True,
            title="Show figures to admins",
            description=(
                "Show admins, in the details of the status line, how much of the prompt the node had cached "
                "and the expected time. Default: on."
            ),
        )

        @field_validator("redis_url")
        @classmethod
        def _redis_usable(cls, url: str) -> str:
            return check_redis_url(url)

        @property
        def settings(self) -> RouterSettings:
            alone = super().settings
            return replace(alone, several_workers=self.several_workers and not self.redis_url)

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._host = RouterHost(redis_sharing, lambda: server_secret("routing"), trusted_certificates)
        self._discovery = NodeDiscovery()
        self._budgets = BudgetContact()
        self._connections: tuple[NodeRow, ...] = ()
        self._lists: tuple[ConnectionModels, ...] = ()
        self._ids = OfferedIds((), (), are_connections=False)
        self._ids_for: tuple[tuple[NodeRow, ...], tuple[ConnectionModels, ...]] | None = None
        self._look_up_at = 0.0
        self._embedding = Embedding()
        self._usable: Remembered[Any, frozenset[str]] = Remembered(ACCESS_SECONDS)
        self._groups: Remembered[str, frozenset[str]] = Remembered(ACCESS_SECONDS)
        self._defaults = SingleFlight(default_params, ACCESS_SECONDS)
        show_early_errors()

    async def pipes(self) -> list[dict[str, str]]:
        """The models that Open WebUI offers. At most two seconds, and only until the nodes are known."""
        try:
            models = await self.routed_models()
        except Exception:
            log.exception("The models could not be listed: those from before are offered")
            models = offered_meanwhile(None, [])
        return [{"id": model["id"], "name": model["name"]} for model in models]

    async def pipe(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __request__: Any,
        __chat_id__: str | None = None,
        __task__: str | None = None,
        __event_emitter__: Emitter | None = None,
    ) -> Any:
        """Answer a chat. An error here becomes the answer's error, in one sentence."""
        self._take_over(__request__.app)
        headers = partial(node_headers, request=__request__, user=__user__, metadata=__metadata__)
        language = reader_language(__metadata__, __request__)
        chat, emitter = str(__chat_id__ or ""), __event_emitter__
        chunks = self._counted(
            __request__.app,
            *(body, __user__, __metadata__, chat, __task__, emitter, headers, language),
        )

        def refused(error: Exception) -> Refusal:
            if isinstance(error, ModelRefusedError):
                refusal = error.refusal
            else:
                refusal = refusal_of(error, for_admin=__user__.get("role") == "admin")
            refusal = refusal.translated(language)
            note_refusal(__request__, refusal, __metadata__)
            if self._host.current is not None:
                self._host.current.counts.refuse(error_code(error))
            return refusal

        if body.get("stream"):
            return event_stream(answer_events(chunks, refused))
        try:
            async with aclosing(chunks):
                return whole_answer([chunk async for chunk in chunks])
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            return refused_answer(refused(error))

    async def _counted(
        self, app: Any, body: Body, user: dict[str, Any], metadata: dict[str, Any], *about: Any
    ) -> AsyncGenerator[Body, None]:
        """The answer, as far as the budgets of its user allow it: see `usage_budgets`."""
        name, task = str(body["model"]).removeprefix(ROUTER), metadata.get("task")
        belongs = bool(task) and not is_asked_for(task)  # to a chat that has begun
        counting = self._budgets.counting(app, user, metadata, name, always=belongs)
        async with counting as (served, last):
            chunks = self._chunks(body, user, metadata, *about, last=last, served=served)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def _chunks(
        self,
        body: Body,
        user: dict[str, Any],
        metadata: dict[str, Any],
        chat: str,
        task: str | None,
        emitter: Emitter | None,
        headers: NodeHeaders,
        language: str,
        *,
        last: bool,
        served: Served | None,
    ) -> AsyncGenerator[Body, None]:
        """The answer, which begins when it is gone through."""
        name = str(body["model"]).removeprefix(ROUTER)
        router = await self._ready()
        with self._host.holding(router):
            await tell_refused(emitter if task is None else None, user, language)
            models, why_model = await self._models_and_why(router, body, name, user)
            background = is_background_task(task)
            span = ChatSpan(name, background=background)
            chunks = router.answer(
                await _asked(body, models[0], router, metadata, user),
                models,
                ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), _asked_name(body, metadata)),
                user=str(user.get("id") or ""),
                chat=chat,
                background=background,
                figures=self.valves.show_figures and user.get("role") == "admin",
                tell=_teller(emitter if self.valves.show_status and task is None else None, language, span),
                language=language,
                headers=headers,
                last=last,
                served=served,
                why_model=why_model,
            )
            async with aclosing(span.around(chunks)) as traced:
                async for chunk in traced:
                    yield chunk

    async def direct_chat(self, body: Body, user: Body, request: Any, metadata: Body) -> DirectChat:
        """A chat for the gateway, without Open WebUI's filters: what answers, and the answer.

        Args:
            body: OpenAI's.
            user: who asks.
            request: FastAPI's.
            metadata: of the chat, with the parameters that an admin has given the name.

        Raises:
            ModelRefusedError: nothing answers; the same goes for the answer's chunks.
        """
        self._take_over(request.app)
        admin = user.get("role") == "admin"
        name = str(body["model"]).removeprefix(ROUTER)
        with self._refusing(for_admin=admin):
            router = await self._ready()
            models, why_model = await self._models_and_why(router, body, name, user, remembers=True)
            asked = await _asked(body, models[0], router, metadata, user, self._defaults.get)
        last, served = False, None
        if BUDGET_STATE in metadata:  # else no budget holds
            budgets, begun = await self._budgets.begin(request.app, user, metadata, name, always=False)
            served = partial(budgets.budget_note, begun["ticket"]) if begun["ticket"] else None
            last = begun["last"]
        model = router.answering(models)
        chunks = partial(
            Router.answer,
            body=asked,
            models=models,
            user=str(user.get("id") or ""),
            chat=str(body.get(CACHE_KEY) or "")[:MOST_KEY],
            figures=admin,
            language=accepted_language(request),
            headers=partial(node_headers, request=request, user=user, metadata=metadata),
            last=last,
            served=served,
            why_model=why_model,
        )

        async def answered(head: ReplyHead) -> AsyncGenerator[Body, None]:
            with self._refusing(for_admin=admin):
                now = router if router is self._host.current else await self._ready()
                span = ChatSpan(name, background=False)
                with self._host.holding(now):
                    async with aclosing(span.around(chunks(now, head=head))) as traced:
                        async for chunk in traced:
                            yield chunk

        return DirectChat(model, weights_behind(model, router.catalogue()), asked, answered)

    async def embed(self, body: Body, user: Body) -> Body:
        """Vectors for the gateway: `model`, `node`, `tokens`, `seconds` of GPU time and `vectors`.

        Args:
            body: `model`, `dimensions` and the texts in `input`.
            user: who asks.

        Raises:
            ModelRefusedError: there are none.
        """
        name = str(body["model"]).removeprefix(ROUTER)
        with self._refusing(for_admin=user.get("role") == "admin"):
            router = await self._ready()
            with self._host.holding(router):
                there = self._embedding.catalogue(router)
                model = auto_parts((await self._models(router, body, name, user, there=there))[0])[0][0]
                made, node = await self._embedding.embed(
                    router, model, body["input"], int(body.get("dimensions") or 0)
                )
        about = {"model": model, "node": node, "tokens": made.tokens, "seconds": made.seconds}
        return {**about, "vectors": made.vectors}

    async def shown(self, name: str, user: Body) -> Body:
        """What a node knows of the model that answers for a name, as `/api/show` has it.

        Raises:
            ModelRefusedError: no node does, or the user may not know.
        """
        with self._refusing(for_admin=user.get("role") == "admin"):
            router = await self._ready()
            with self._host.holding(router):
                there = self._embedding.catalogue(router)
                model = auto_parts((await self._models(router, {}, name, user, there=there))[0])[0][0]
                found = there.find(model)
                if found is None:
                    raise router.no_node([model])
                told = await router.nodes[found.nodes[0]].client.show(found.name)
        return told.model_dump(mode="json", exclude={"modelfile", "projector_info", "tensors"})

    def forget_access(self) -> None:
        """Somebody may use more or less than before."""
        self._usable.forget()
        self._groups.forget()
        self._defaults.forget()

    @contextmanager
    def _refusing(self, *, for_admin: bool) -> Iterator[None]:
        """Turn an error into what another plugin can tell its client."""
        try:
            yield
        except Exception as error:
            if self._host.current is not None:
                self._host.current.counts.refuse(error_code(error))
            raise ModelRefusedError(refusal_of(error, for_admin=for_admin)) from error

    def retire(self) -> None:
        """Other code takes over: leave the nodes alone once the chats that are under way have ended."""
        self._host.leave()

    def _take_over(self, app: Any) -> None:
        take_over(app, ROUTER.rstrip("."), self)
        self._host.is_left = False

    async def system_load(self) -> dict[str, Any]:
        """The load of all nodes, addresses included: whoever shows it hides them from plain users."""
        return load_report(await self._ready())

    async def dashboard(self) -> dict[str, Any]:
        """All that an admin may want to see."""
        return dashboard_report(await self._ready())

    async def pull(self, model: str, nodes: list[str]) -> dict[str, Any]:
        """Begin to pull a model at nodes (none: all Ollamas), one after another.

        Returns:
            What upkeep does, or a `fault`.
        """
        return await self._looked_after(lambda upkeep: upkeep.pull(model, nodes))

    async def stop_pull(self) -> dict[str, Any]:
        """Stop the pull that is under way; the same as `pull` returns."""
        return await self._looked_after(lambda upkeep: upkeep.stop())

    async def _looked_after(self, do: Callable[[Upkeep], None]) -> dict[str, Any]:
        router = await self._ready()
        try:
            do(router.upkeep)
        except ValueError as error:
            return {"fault": said_by(error)}
        return {"fault": "", **router.upkeep.report}

    async def plan(self, context: int, users: int, chats: list[dict[str, Any]]) -> dict[str, Any]:
        """What fits where, what to pull, and what one more GPU would bring: see `PlanReport.as_json`.

        Args:
            context: tokens of each chat.
            users: people who use chats; 0: as many as the record has.
            chats: the record. It is simulated in a thread.
        """
        router = await self._ready()
        table, nodes = self.valves.table, nodes_to_plan(router)

        def made() -> dict[str, Any]:
            asked = asked_in(chats)
            source = (
                message("{count} chats of the router's record", count=len(asked))
                if asked
                else message("the same for each model, as there is no record of chats yet")
            )
            report = plan_report(
                nodes,
                wanted_models(table),
                Demand(asked, source),
                context=context,
                users=users or None,
                seconds=PLAN_SECONDS,
            )
            return report.as_json

        return await asyncio.to_thread(made)

    async def metrics(self) -> str:
        """What it did, as Prometheus reads it: its part of `GET /ollama-pack/metrics`."""
        return router_metrics(await self._ready())

    async def answering_weights(self, body: Body, user: dict[str, Any]) -> dict[str, str]:
        """The `model` that would answer a chat now, and its `weights`, for the response cache."""
        name = str(body["model"]).removeprefix(ROUTER)
        router = await self._ready()
        model = router.answering(await self._models(router, body, name, user))
        return {"model": model, "weights": weights_behind(model, router.catalogue())}

    async def routed_models(self) -> list[dict[str, Any]]:
        """What is offered now: each alias and each model, once, as `Offer.routed` describes it."""
        router = await self._ready()
        catalogue = router.catalogue()
        table = self.valves.table
        aliases = routed_aliases(table, catalogue)
        named = [
            {"id": name, "name": name, "alias": True, "models": models_behind(table, name, catalogue.levels)}
            for name in aliases
        ]
        models = [
            {"id": name, "name": name, "alias": False, "tags": self._ids.tags(model)}
            | {"ids": self._ids.named(name, model).ids}
            for name, model in catalogue.models.items()
            if name not in aliases
        ]
        return offered_meanwhile(router, named + models)

    async def _models(
        self, router: Router, body: Body, name: str, user: dict[str, Any], **choice: Any
    ) -> tuple[str, ...]:
        """The models that may answer this user, the preferred first: as `_models_and_why`."""
        return (await self._models_and_why(router, body, name, user, **choice))[0]

    async def _models_and_why(
        self,
        router: Router,
        body: Body,
        name: str,
        user: dict[str, Any],
        *,
        remembers: bool = False,
        there: Catalogue | None = None,
    ) -> tuple[tuple[str, ...], WhyModel]:
        """The models that may answer this user, the preferred first; and why others do not.

        Args:
            router: whose nodes answer.
            body: what is asked.
            name: what it is asked of.
            user: who asks.
            remembers: what the user may use is looked up once in a few seconds.
            there: the models to choose among; None: those that chat.

        Raises:
            AliasUnavailableError: none of an alias's is there, or the user may use none of them.
            NoNodeError: none of an alias's is there, but nodes that do not answer may have one.
            ModelClosedError: the user may not use the model.
        """
        table = self.valves.table
        catalogue = there or await catalogue_for(router, table, name)
        facts = request_facts(body, name, await self._groups_of(user, remembers) if table.uses_groups else ())
        denied: set[str] = set()
        while True:
            try:
                models = models_for(table, facts, catalogue, denied)
            except AliasUnavailableError as error:
                raise why_absent(error, router) from error
            variants = [name for model in models for name in auto_parts(model)[0]]
            named = {model: self._ids.named(model, catalogue.find(model)) for model in variants}
            checked = list(named.values())
            ask = partial(usable_models, ROUTER + name, checked, user)
            key = user.get("id"), user.get("role"), name, tuple((one.name, one.ids) for one in checked)
            usable = await (self._usable.get(key, ask) if remembers else ask())
            closed = {model for model, one in named.items() if one.name not in usable}
            if not closed:
                return models, partial(passed_over, table, facts, catalogue, frozenset(denied))
            if models == (name,):  # no alias: nothing else may answer
                raise ModelClosedError(name)
            denied |= closed

    async def _groups_of(self, user: dict[str, Any], remembers: bool) -> frozenset[str]:  # noqa: FBT001
        ask = partial(group_names, user)
        return await (self._groups.get(str(user.get("id")), ask) if remembers else ask())

    async def _ready(self) -> Router:
        """The router for the valves as they are; another one once nodes or settings change."""
        valves = self.valves
        await self._look_at_connections()
        written = await self._discovery.rows(valves.rows, valves.probe_seconds)
        rows = written if valves.rows else self._connections
        if self._ids_for != (rows, self._lists):
            self._ids_for = rows, self._lists
            self._ids = OfferedIds(rows, self._lists, are_connections=not valves.rows)
        router = await self._host.router(rows, valves.settings, valves.redis_url)
        valves.look_after(router)
        return router

    async def _look_at_connections(self) -> None:
        """Look Open WebUI's own connections up, once in a while."""
        now = time.monotonic()
        if now >= self._look_up_at:
            self._look_up_at = now + CONNECTION_SECONDS
            self._lists = tuple(await model_lists())
            ways = await ways_in()
            rows = connected_nodes(await ollama_connections(), self._lists)
            self._connections = tuple(row.entered_by(ways.get(row.url, row.way_in)) for row in rows)


async def _asked(
    body: Body,
    model: str,
    router: Router,
    metadata: dict[str, Any],
    user: dict[str, Any],
    defaults: Callable[[], Awaitable[dict[str, Any]]] = default_params,
) -> Body:
    """The body for the nodes: with the row's settings, and without tools that the model cannot use."""
    # Open WebUI passes only OpenAI's parameters of a row to pipes.
    row = ((metadata.get("model") or {}).get("info") or {}).get("params") or {}
    if metadata.get("direct"):  # a client has sent the row, as if a connection of its browser's own answered
        row = {}
    if user.get("role") != "admin":
        body = with_machine_options(body, await defaults(), await _admins_params(body, metadata))
    asked = {**body, "params": {**row, **object_in(body.get("params") or {}, "params")}}
    known = router.catalogue().find(model)
    if known is not None and not known.can("tools"):
        remove_builtin_tools(asked, metadata)
    return asked


async def _admins_params(body: Body, metadata: dict[str, Any]) -> Mapping[str, Any]:
    """The parameters that an admin has set for the name that was asked for.

    Open WebUI puts them into the body, among the user's own, and takes them out of the row that plugins see.
    """
    asked = object_at(metadata, "model")
    if metadata.get("direct"):
        return {}
    if "id" not in asked:  # no chat of Open WebUI's: the gateway and Ollama's routes have looked them up
        return object_at(asked, "info", "params")
    row = await model_row(str(asked["id"])) or {}
    # Titles and the like come with the row of their chat, and may be for another model.
    is_other = metadata.get("task") and body["model"] not in (row.get("id"), row.get("base_model_id"))
    return {} if is_other else object_at(row, "params")


def _asked_name(body: Body, metadata: dict[str, Any]) -> str:
    """The name that the client has asked for: of a published alias, not the router's own id for it."""
    row = metadata.get("model") or {}
    base = (row.get("info") or {}).get("base_model_id")
    asked = str(row["id"]) if base == body["model"] and row.get("id") else str(body["model"])
    return asked.removeprefix(ROUTER)


def _teller(emitter: Emitter | None, language: str, span: ChatSpan) -> Tell:
    async def tell(line: Message, *, done: bool) -> None:
        span.add_event(str(line))
        if emitter:
            try:
                text = in_language(line, language)
                await emitter({"type": "status", "data": {"description": text, "done": done}})
            except Exception:
                log.exception("A status line could not be shown")

    return tell
