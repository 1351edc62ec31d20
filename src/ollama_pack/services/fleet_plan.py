"""The dashboard's plan of what to have where: this plugin has the record of chats, the router the nodes."""

import asyncio
from collections.abc import Mapping
from typing import Any

from ollama_pack.base.messages import message, said_by
from ollama_pack.base.single_flight import Remembered
from ollama_pack.routing.plan.report import LEAST_CONTEXT, MOST_CONTEXT, MOST_USERS, USUAL_CONTEXT
from ollama_pack.services.dashboard import translated
from ollama_pack.services.history import Chat, HistoryKeeper, found_chats
from ollama_pack.webui.contact import RouterContact
from ollama_pack.webui.dashboard import page_language
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.routes import RouteSpec

MAX_CHATS = 5000  # of the record that a plan is made for
KEPT_SECONDS = 60.0
MAX_KEPT = 8
MAX_DIGITS = 9
_WANTED = ("at", "model", "user", "prompt", "held", "written", "took", "waited", "background")


class FleetPlans:
    """Makes plans, one at a time, and keeps each for a while. Lives on one event loop."""

    def __init__(self, router: RouterContact, history: HistoryKeeper) -> None:
        """Make none yet."""
        self._router = router
        self._history = history
        self._kept: Remembered[tuple[int, int], Mapping[str, Any]] = Remembered(KEPT_SECONDS, MAX_KEPT)
        self._turn = asyncio.Lock()

    @property
    def route(self) -> RouteSpec:
        """`GET /ollama-pack/plan?context=8192&users=40`: see `PlanReport.as_json`, and a `fault`."""
        return RouteSpec("GET", "/ollama-pack/plan", "admin", self._answer)

    async def _answer(self, request: Any, _user: Any) -> Any:
        asked, language = request.query_params, page_language(request)
        context = _number(asked.get("context"), USUAL_CONTEXT, LEAST_CONTEXT, MOST_CONTEXT)
        users = _number(asked.get("users"), 0, 1, MOST_USERS)
        if context is None or users is None:
            fault = message(
                "Tokens must be a whole number from {least} to {most}, and people one up to {people}.",
                least=LEAST_CONTEXT,
                most=MOST_CONTEXT,
                people=MOST_USERS,
            )
            return translated({"fault": fault}, language)
        try:
            plan = await self._plan(context, users)
        except RouterUnavailableError as error:
            plan = {"fault": said_by(error)}
        return translated(plan, language)

    async def _plan(self, context: int, users: int) -> Mapping[str, Any]:
        async with self._turn:
            plan = self._kept.find((context, users))
            if plan is None:
                plan = {"fault": "", **await self._router.plan(context, users, await self._chats())}
                self._kept.keep((context, users), plan)
            return plan

    async def _chats(self) -> list[Chat]:
        """The newest chats of the record; none where it cannot be read, which the dashboard shows."""
        store = await self._history.store()
        if store is None:
            return []
        found, _ = await found_chats(store, "", MAX_CHATS, _slim)
        return found


async def _slim(chats: list[Chat]) -> list[Chat]:
    """Of chats that a model answered what a plan needs. Who asked stays a hash or an id."""
    kept = ("key", *_WANTED)
    return [{name: chat.get(name) for name in kept} for chat in chats if chat.get("outcome") == "answered"]


def _number(written: object, usual: int, least: int, most: int) -> int | None:
    """A number of a query; None: it is none that can be used."""
    text = str(written or "").strip()
    if not text:
        return usual
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS and least <= int(text) <= most else None
