"""Functions of the running Open WebUI. Imports `open_webui` when called, not before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function as the database has it.

    Attributes:
        installed: there is one.
        active: it is switched on.
        owner: id of the user who installed it.
        valves: what an admin set; defaults are not in it.
    """

    installed: bool = False
    active: bool = False
    owner: str = ""
    valves: Mapping[str, Any] = field(default_factory=dict)


async def function_state(function_id: str) -> FunctionState:
    """Look a function up.

    By a query of its own: Open WebUI's answers a database that cannot be reached as if there were no such
    function, or no valves, and what is published would be taken away. Here the database's error is raised.
    """
    from open_webui.internal.db import get_async_db_context  # noqa: PLC0415 - see the top of this module
    from open_webui.models.functions import Function, decrypt_valves  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415 - it comes with Open WebUI

    wanted = select(Function.is_active, Function.user_id, Function.valves).filter_by(id=function_id)
    async with get_async_db_context() as session:
        found = (await session.execute(wanted)).one_or_none()
    if found is None:
        return FunctionState()
    is_active, owner, stored = found
    valves = decrypt_valves(stored) or {}
    return FunctionState(installed=True, active=bool(is_active), owner=str(owner or ""), valves=valves)


async def user_valves(function_id: str, user_id: str) -> dict[str, Any]:
    """What a user has set for a function."""
    from open_webui.models.functions import Functions  # noqa: PLC0415

    return await Functions.get_user_valves_by_id_and_user_id(function_id, user_id) or {}


async def global_filters() -> dict[str, str]:
    """The filters that apply to all models and are switched on: id → name."""
    from open_webui.models.functions import Functions  # noqa: PLC0415

    found = await Functions.get_global_filter_functions()
    return {str(function.id): str(function.name) for function in found if function.is_active}


async def set_valve(function_id: str, name: str, value: Any) -> None:
    """Set one of an installed function's valves, as an admin would, and leave the others as they are."""
    from open_webui.models.functions import Functions  # noqa: PLC0415 - see the top of this module

    state = await function_state(function_id)
    await Functions.update_function_valves_by_id(function_id, {**state.valves, name: value})


async def live_function(app: Any, function_id: str) -> Any:
    """The instance that this process runs, of the code and with the valves that are stored.

    Open WebUI's own way to it: it is loaded where it is not yet, or where its code has changed.
    """
    from open_webui.functions import get_function_module_by_id  # noqa: PLC0415

    return await get_function_module_by_id(SimpleNamespace(app=app), function_id)


async def shared_redis_url() -> str:
    """The Redis that joins the replicas: the router's, else the response cache's; empty: there is none."""
    for function_id in ("gpu_router", "response_cache_filter"):
        state = await function_state(function_id)
        if state.active and (url := str(state.valves.get("redis_url") or "")):
            return url
    return ""
