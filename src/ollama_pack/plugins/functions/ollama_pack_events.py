"""
title: Ollama Pack events
author: Open WebUI Ollama Pack
author_url: {repository}
description: Publishes the router's models and aliases, answers load and voice requests, shows a dashboard.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from ollama_pack.base.messages import in_language, message, said_by
from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.engines.body import object_at
from ollama_pack.services.calibration_routes import calibration_routes
from ollama_pack.services.dashboard import Dashboard, DashboardHistory, translated
from ollama_pack.services.fleet_plan import FleetPlans
from ollama_pack.services.history import HISTORY_FILE, HistoryKeeper, process_status
from ollama_pack.services.metrics_text import METRICS_TYPE, PLUGIN_UP, cache_metrics, family, voice_metrics
from ollama_pack.services.node_upkeep import upkeep_routes
from ollama_pack.services.ollama_api import ollama_routes
from ollama_pack.services.publishing import Publisher
from ollama_pack.services.transcribing import voice_counts, voice_report
from ollama_pack.services.valves import refused_report, refused_valves
from ollama_pack.services.voice_routes import MicrophoneValves, VoiceRoutes
from ollama_pack.webui.access import readable_names
from ollama_pack.webui.audience import stated_audience
from ollama_pack.webui.budget_contact import BudgetContact, usage_table
from ollama_pack.webui.cache_contact import CacheContact
from ollama_pack.webui.chats import label_to_discard
from ollama_pack.webui.contact import RouterContact
from ollama_pack.webui.dashboard import admins_only_page, dashboard_page, page_language, sign_in_page
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import FunctionState, function_state, shared_redis_url
from ollama_pack.webui.load import EMPTY_LOAD, models_in, system_load, without_models
from ollama_pack.webui.routes import RouteSpec, json_answer, shows_key, text_answer
from ollama_pack.webui.rows import share_replay
from ollama_pack.webui.server import data_folder, event_stream
from ollama_pack.webui.service import EventService, ends
from ollama_pack.webui.users import user_names

log = logging.getLogger(__name__)

NO_STORE = {"Cache-Control": "no-store"}
BUDGET_SECONDS = 5.0  # between two looks at what everybody has used, while a dashboard is open
MAX_SEARCH = 200  # characters
LOAD_SECONDS = 1.0  # so long an answer is good for all who ask
# Events that may change which models there are, or for whom; the rest is found twice a minute.
TELLING = ("config.", "function.", "group.", "model.", "system.startup.")
ON = "function.enable_started"
VOICE_FUNCTION = "voice_routes"  # where it is on, it has the routes of voice


class Event:
    """Routes and published models, kept up in every process of Open WebUI."""

    class Valves(MicrophoneValves):
        publish_aliases: bool = Field(
            default=True,
            title="Publish models and aliases",
            description=(
                "Publish the router's models and aliases and the alias filter's names, so that users and API "
                "clients can use them. When this is switched off, everything that was published is removed. "
                "Default: on."
            ),
        )
        audience: str = Field(
            default="",
            title="Audience",
            description=(
                "Who may use the published aliases: `public` (every signed-in user), `admin`, or "
                "`group:NAME`; separate several with commas. An alias also opens the models behind it, "
                "unless an admin has set who may use them. Default: empty, which means everybody who may use "
                "one of the models behind the alias."
            ),
        )
        routes: bool = Field(
            default=True,
            title="Routes",
            description=(
                "Serve `GET /api/system/load`, `/api/voice/…`, the router's names at `/ollama/api/chat` and "
                "`/ollama/api/tags`, the dashboard at `/ollama-pack` for admins, and metrics for Prometheus. "
                "Default: on."
            ),
        )
        metrics_token: str = Field(
            default="",
            title="Metrics token",
            description=(
                "Bearer token for Prometheus. It opens only `GET /ollama-pack/metrics`. 16 characters or "
                "more. Default: empty, which means only admins can read the metrics."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )

        @field_validator("audience")
        @classmethod
        def _known_audience(cls, text: str) -> str:
            stated_audience(text)  # an AudienceError reaches the admin as the valve's error
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None
        self._writing: asyncio.Task[None] | None = None
        self._voice_has_its_own = False

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at whichever event comes first, look again after a change, end when told."""
        try:
            if ends(event, __event_name__, __id__):
                if self._service is not None:
                    self._service.stop()
                return
            self._service = self._service or self._served(__app__, __id__)
            self._service.start(self._specs)
            self._keep_history(self._service)
            await self._forget(__event_name__, event)
            if __event_name__ != ON and __event_name__.startswith(TELLING):
                self._service.wake()
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    def _served(self, app: Any, function_id: str) -> EventService:
        """What is kept up: made once the app is known."""
        self._router = RouterContact(app)
        self._publisher = Publisher(app, self._router)
        self._cache = CacheContact(app)
        self._budgets = BudgetContact()
        self._load = SingleFlight(self._ask_load, LOAD_SECONDS)
        self._details = SingleFlight(self._ask_details, LOAD_SECONDS)
        self._cached = SingleFlight(self._cache.report, LOAD_SECONDS)
        self._history = HistoryKeeper(shared_redis_url, data_folder() / HISTORY_FILE, self._status)
        others = {"cache": self._cached.get, "publishing": self._publishing, "voice": voice_report}
        others["refused"] = refused_report
        others["budgets"] = SingleFlight(lambda: self._budgets.report(app), BUDGET_SECONDS).get
        history = DashboardHistory(self._history, user_names)
        self._dashboard = Dashboard(self._details.get, others, history)
        self._router_metrics = SingleFlight(self._ask_metrics, LOAD_SECONDS)
        self._all_routes = (
            RouteSpec("GET", "/api/system/load", "user", self._system_load),
            RouteSpec("GET", "/ollama-pack", "user", self._page, refused=sign_in_page),
            RouteSpec("GET", "/ollama-pack/data", "admin", self._data),
            RouteSpec("GET", "/ollama-pack/stream", "admin", self._stream),
            RouteSpec("GET", "/ollama-pack/chats", "admin", self._chats),
            RouteSpec("POST", "/ollama-pack/cache/flush", "admin", self._flush_cache),
            RouteSpec("GET", "/ollama-pack/metrics", "admin", self._metrics, lets_in=self._is_prometheus),
            *upkeep_routes(self._router),
            FleetPlans(self._router, self._history).route,
            *calibration_routes(self._cache),
            RouteSpec("GET", "/ollama-pack/v1/usage", "user", self._usage),
            RouteSpec("GET", "/ollama-pack/usage.csv", "admin", self._usage_csv),
            *ollama_routes(),
        )
        self._voice_routes = VoiceRoutes(lambda: self.valves.microphone_key).specs
        return EventService(app, function_id, self, self._look)

    def _keep_history(self, service: EventService) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._history.run(lambda: service.runs))

    @property
    def _specs(self) -> tuple[RouteSpec, ...]:
        if not self.valves.routes:
            return ()
        return self._all_routes if self._voice_has_its_own else (*self._all_routes, *self._voice_routes)

    async def _look(self, state: FunctionState) -> None:
        """Look after everything: the valves may have been changed through another replica."""
        self._voice_has_its_own = (await function_state(VOICE_FUNCTION)).active
        if self._service is not None:
            self._service.start(self._specs)
        await share_replay()
        publish = self.valves.publish_aliases
        await self._publisher.reconcile(self.valves.audience, state.owner, publish=publish)

    async def _system_load(self, _request: Any, user: Any) -> dict[str, Any]:
        load = system_load(await self._load.get(), for_admin=user.role == "admin")
        if user.role == "admin":
            return load
        readable = await readable_names(models_in(load), {"id": user.id, "role": user.role})
        return without_models(load, readable)

    async def _page(self, request: Any, user: Any) -> Any:
        return dashboard_page(request) if user.role == "admin" else admins_only_page(request)

    async def _data(self, request: Any, _user: Any) -> Any:
        told, language = await self._details.get(), page_language(request)
        parts = {"cache": await self._cached.get(), "publishing": await self._publishing()}
        return translated({**told, **parts, "refused_valves": refused_valves(language)}, language)

    async def _publishing(self) -> dict[str, Any]:
        valves = {"publish_aliases": self.valves.publish_aliases, "audience": self.valves.audience}
        return self._publisher.last.as_dict() | valves

    async def _stream(self, request: Any, _user: Any) -> Any:
        last = request.headers.get("last-event-id") or request.query_params.get("after") or ""
        service = self._service
        return event_stream(
            self._dashboard.stream(
                str(last), page_language(request), lambda: service is not None and service.runs
            )
        )

    async def _chats(self, request: Any, _user: Any) -> dict[str, Any]:
        asked = request.query_params
        text, outcome = str(asked.get("text") or "")[:MAX_SEARCH], str(asked.get("outcome") or "")
        return await self._dashboard.history.search(text, outcome, str(asked.get("before") or ""))

    async def _status(self) -> dict[str, Any]:
        """How this process is, for the dashboards of the others."""
        return process_status("Open WebUI", object_at((await self._details.get()).get("router")))

    def _is_prometheus(self, request: Any) -> bool:
        return shows_key(request, self.valves.metrics_token)

    async def _metrics(self, _request: Any, _user: Any) -> Any:
        router, cache = await self._router_metrics.get(), cache_metrics(await self._cached.get())
        answers = [(("gpu_router",), int(bool(router))), (("response_cache_filter",), int(bool(cache)))]
        text = family(PLUGIN_UP, answers) + router + cache + voice_metrics(voice_counts())
        return text_answer(text, METRICS_TYPE, NO_STORE)

    async def _usage(self, request: Any, user: Any) -> Any:
        usage = await self._budgets.usage(request.app, user.model_dump())
        return json_answer(translated(usage, page_language(request)), headers=NO_STORE)

    async def _usage_csv(self, request: Any, user: Any) -> Any:
        usage = await self._budgets.usage(request.app, user.model_dump())
        if usage["fault"]:
            why = message("Budgets are not counted: {fault}. Chats go on without.", fault=usage["fault"])
            return text_answer(in_language(why, page_language(request)), "text/plain", NO_STORE, 503)
        return text_answer(usage_table(usage.get("all") or ()), "text/csv; charset=utf-8", NO_STORE)

    async def _flush_cache(self, request: Any, _user: Any) -> Any:
        return translated({"fault": await self._cache.flush()}, page_language(request))

    async def _forget(self, event_name: str, event: Mapping[str, Any]) -> None:
        """Have the cache discard what was deleted, or liked by nobody, and the history whoever is gone."""
        if label := await label_to_discard(event_name, event):
            await self._cache.discard(label)
        if event_name == "user.deleted" and (user := str((event.get("subject") or {}).get("id") or "")):
            await self._dashboard.history.forget(user)

    async def _ask_load(self) -> Mapping[str, Any]:
        try:
            return await self._router.load()
        except RouterUnavailableError:
            return EMPTY_LOAD

    async def _ask_metrics(self) -> str:
        try:
            return await self._router.metrics()
        except RouterUnavailableError:
            return ""

    async def _ask_details(self) -> Mapping[str, Any]:
        """What the dashboard shows of the router; of an older one, its load."""
        try:
            return {"fault": "", "router": await self._router.dashboard()}
        except RouterUnavailableError as error:
            return {"fault": said_by(error), "router": await self._load.get()}
