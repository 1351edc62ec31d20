"""What an event function keeps up in a process: its routes, and a task that looks again from time to time.

Open WebUI tells events in one process only, and a function that is deleted is told nothing. So whoever
answers a request first makes sure that the function is still on, and the task does so too. It also notices
code and valves that were changed through another replica.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.webui.functions import FunctionState, function_state, live_function
from ollama_pack.webui.routes import RouteSpec, not_found, place_routes

log = logging.getLogger(__name__)

SERVICES = "OLLAMA_PACK_SERVICES"  # on `app.state`: function id → the service that runs, also older code's
LOOK_SECONDS = 30.0  # between two looks; spread, so that replicas do not all look at once
SETTLE_SECONDS = 5.0  # Open WebUI tells of switching on before it has done so
ALIVE_SECONDS = 2.0  # a route of a function that was switched off elsewhere may answer so long
HAND_OVER = "system.startup.completed"
_OFF = frozenset({"function.disable_started", "system.shutdown.started"})


def ends(event: Mapping[str, Any], name: str, function_id: str) -> bool:
    """Whether an event says that a function is being switched off, or the whole server."""
    about_us = (event.get("subject") or {}).get("id") == function_id
    return name in _OFF and (about_us or name.startswith("system."))


class ServedPlugin(Protocol):
    """The event function that is kept up."""

    valves: Any

    async def event(
        self, event: dict[str, Any], __event_name__: str, __app__: Any, __id__: str
    ) -> None:  # pragma: no cover - a form only
        """Take an event."""


class EventService:
    """Runs once per process and function, however often it is started."""

    def __init__(
        self,
        app: Any,
        function_id: str,
        plugin: ServedPlugin,
        look: Callable[[FunctionState], Awaitable[None]],
    ) -> None:
        """Start nothing yet.

        Args:
            app: Open WebUI's.
            function_id: the function's id, as the admin saved it.
            plugin: its instance.
            look: is called at every look, and after `wake`.
        """
        self._app = app
        self._id = function_id
        self._plugin = plugin
        self._look = look
        self._specs: tuple[RouteSpec, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._alive = SingleFlight(self._is_on, ALIVE_SECONDS)

    def start(self, specs: tuple[RouteSpec, ...]) -> None:
        """Place the routes and begin to look, in place of older code of the same function."""
        services = _services(self._app)
        previous = services.get(self._id)
        if previous is not None and previous is not self:
            previous.stop()
        services[self._id] = self
        if self._specs != specs or previous is not self:
            self._specs = specs
            place_routes(self._app, self._id, tuple(map(self._guarded, specs)))
            self._alive.keep(True)  # noqa: FBT003 - the answer that is kept: it is just being switched on
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Take the routes away and look no more."""
        services = _services(self._app)
        if services.get(self._id) is self:
            del services[self._id]
            place_routes(self._app, self._id, ())
        self._specs = None
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither stopped nor replaced."""
        return _services(self._app).get(self._id) is self

    async def _run(self) -> None:
        await self._rest(SETTLE_SECONDS)
        while True:
            try:
                await self._look_once()
            except Exception:
                log.exception("%s could not look after its routes and models, and tries again", self._id)
            if not self.runs:
                return
            await self._rest(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _look_once(self) -> None:
        state = await function_state(self._id)
        if not state.active:
            self.stop()
            return
        current = await live_function(self._app, self._id, state)
        if current is not self._plugin:  # its code was changed, through another replica perhaps
            await current.event(event={}, __event_name__=HAND_OVER, __app__=self._app, __id__=self._id)
            return
        self._alive.keep(True)  # noqa: FBT003 - the answer that is kept
        await self._look(state)

    async def _is_on(self) -> bool:
        return (await function_state(self._id)).active

    def _guarded(self, spec: RouteSpec) -> RouteSpec:
        async def answer(request: Any, user: Any) -> Any:
            # Deleting takes it out of this process's functions; the rest is known from the database.
            if self._id not in self._app.state.FUNCTIONS or not await self._alive.get():
                self.stop()
                if spec.without is not None:
                    return await spec.without(request, user)
                raise not_found()
            return await spec.answer(request, user)

        return replace(spec, answer=answer)


def _services(app: Any) -> dict[str, Any]:
    if not hasattr(app.state, SERVICES):
        setattr(app.state, SERVICES, {})
    services: dict[str, Any] = getattr(app.state, SERVICES)
    return services
