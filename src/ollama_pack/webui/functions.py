"""Functions of the running Open WebUI. Imports `open_webui` when called, not before."""

import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

_SETTLED_SECONDS = 2.0  # the database has whole seconds: what is newer may change without looking otherwise
_READ_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function as the database has it.

    Attributes:
        installed: there is one.
        active: it is switched on.
        owner: id of the user who installed it.
        valves: what an admin set; defaults are not in it.
        stamp: another one whenever its code or its valves have changed, at least from one second to the next.
    """

    installed: bool = False
    active: bool = False
    owner: str = ""
    valves: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class _Live:
    """What a function's state was when its instance was asked for, and until when that is believed."""

    stamp: tuple[Any, ...]
    instance: weakref.ref[Any]
    valves: Any
    until: float

    def is_still(self, running: Any, state: FunctionState) -> bool:
        """A stream that began before puts the valves back that it has seen: Open WebUI keeps them for it."""
        as_told = self.stamp == state.stamp and time.monotonic() < self.until
        return as_told and running is self.instance() and getattr(running, "valves", None) == self.valves


_live: dict[str, _Live] = {}


async def function_state(function_id: str) -> FunctionState:
    """Look a function up.

    By a query of its own: Open WebUI's answers a database that cannot be reached as if there were no such
    function, or no valves, and what is published would be taken away. Here the database's error is raised.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function, decrypt_valves  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    version = getattr(Function, "version_id", Function.updated_at)  # Open WebUI 0.11 has none
    fields = (Function.is_active, Function.user_id, Function.updated_at, version, Function.valves)
    async with get_async_db_context() as session:
        found = (await session.execute(select(*fields).filter_by(id=function_id))).one_or_none()
    if found is None:
        return FunctionState()
    is_active, owner, changed_at, code, stored = found
    return FunctionState(
        installed=True,
        active=bool(is_active),
        owner=str(owner or ""),
        valves=decrypt_valves(stored) or {},
        stamp=(changed_at or 0, code, stored),
    )


async def user_valves(function_id: str, user_id: str) -> dict[str, Any]:
    """What a user has set for a function."""
    from open_webui.models.functions import Functions  # noqa: PLC0415

    return await Functions.get_user_valves_by_id_and_user_id(function_id, user_id) or {}


async def global_filters() -> dict[str, str]:
    """The filters that apply to all models and are switched on: id → name.

    By a query of its own: Open WebUI's reads the code of all of them.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    wanted = select(Function.id, Function.name).filter_by(type="filter", is_active=True, is_global=True)
    async with get_async_db_context() as session:
        return {str(function_id): str(name) for function_id, name in await session.execute(wanted)}


async def set_valve(function_id: str, name: str, value: Any) -> None:
    """Set one of an installed function's valves, as an admin would, and leave the others as they are."""
    from open_webui.models.functions import Functions  # noqa: PLC0415 - see the top of this module

    state = await function_state(function_id)
    await Functions.update_function_valves_by_id(function_id, {**state.valves, name: value})


async def live_function(app: Any, function_id: str, state: FunctionState | None = None) -> Any:
    """The instance that this process runs, of the code and with the valves that are stored.

    Open WebUI's own way to it: it is loaded where it is not yet, or where its code has changed. That reads
    the whole code each time, a megabyte for some plugins, so it is not done while nothing has changed.

    Args:
        app: Open WebUI's.
        function_id: of an installed function.
        state: of it, as it was looked up just now; None: the code is read in any case.
    """
    from open_webui.functions import get_function_module_by_id  # noqa: PLC0415

    running, known = app.state.FUNCTIONS.get(function_id), _live.get(function_id)
    if running is not None and state and known and known.is_still(running, state):
        return running
    now = time.time()
    found = await get_function_module_by_id(SimpleNamespace(app=app), function_id)
    if state and state.stamp and now - state.stamp[0] > _SETTLED_SECONDS:
        until = time.monotonic() + _READ_AGAIN_SECONDS
        _live[function_id] = _Live(state.stamp, weakref.ref(found), getattr(found, "valves", None), until)
    return found


async def shared_redis_url() -> str:
    """The Redis that joins the replicas: the router's, else the response cache's; empty: there is none."""
    for function_id in ("gpu_router", "response_cache_filter"):
        state = await function_state(function_id)
        if state.active and (url := str(state.valves.get("redis_url") or "")):
            return url
    return ""
