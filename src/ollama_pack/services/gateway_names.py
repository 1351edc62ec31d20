"""The names that people and clients of the gateway may ask for, and the model that each stands for.

A name with a row of its own, or that a connection offers, is Open WebUI's: its grants hold. Every other name
of the alias tables, wildcards among them, is for those who may use a model that answers for it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ollama_pack.aliases.facts import request_facts
from ollama_pack.aliases.published import concrete_names, models_behind
from ollama_pack.aliases.resolve import Resolution, resolve
from ollama_pack.aliases.table import AliasTable
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.ollama.names import find_model
from ollama_pack.services.offer import ALIAS_FILTER, AliasTables, alias_tables
from ollama_pack.webui.contact import ROUTER_ID
from ollama_pack.webui.embedding import shown_by_connection
from ollama_pack.webui.errors import ModelClosedError
from ollama_pack.webui.functions import function_state
from ollama_pack.webui.models import (
    ModelCatalogue,
    catalogue,
    may_use,
    model_row,
    offered_models,
    visible_models,
)
from ollama_pack.webui.presets import default_params
from ollama_pack.webui.users import group_names

Body = dict[str, Any]


# What a row may add to a chat that only Open WebUI's own path brings.
_MORE_THAN_A_NAME = ("knowledge", "toolIds", "filterIds", "skillIds", "defaultFeatureIds", "terminalId")


@dataclass(frozen=True, slots=True)
class DirectName:
    """A name that the router alone can answer.

    Attributes:
        id: the router's.
        params: the settings of its row.
    """

    id: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfferedName:
    """A name in the list of models.

    Attributes:
        name: what clients ask for.
        stands_for: models that may answer, the preferred first; empty: the name is a model itself.
        about: what Open WebUI has of it; empty for a name that is only in a table.
    """

    name: str
    stands_for: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


async def stored_tables() -> AliasTables:
    """The alias tables that admins have stored."""
    return alias_tables(await function_state(ROUTER_ID), await function_state(ALIAS_FILTER))


async def choose_model(
    table: AliasTable, body: Mapping[str, Any], alias: str, user: Mapping[str, Any], request: Any
) -> tuple[Resolution, str] | None:
    """The model that answers for an alias: the first that is there and that Open WebUI lets this user use.

    Returns:
        The resolution and the id of its model: where `gpu_router` offers it, too, it answers over all nodes.
    """
    if next(table.matching(alias), None) is None:
        return None  # most requests: no alias, so nothing to find out
    facts = request_facts(body, alias, await group_names(user) if table.uses_groups else ())
    models = catalogue(request)
    denied: set[str] = set()
    while chosen := resolve(table, facts, models, denied):
        for model_id in models.ids_of(chosen.model):
            if await may_use(user, model_id, request):
                return chosen, model_id
        denied.add(chosen.model)
    return None


async def model_for(
    request: Any, tables: tuple[AliasTable, ...], body: Mapping[str, Any], user: Mapping[str, Any]
) -> str:
    """The id of the model that answers a request in Open WebUI.

    Raises:
        ModelClosedError: there is none of this name, or the user may not use it.
        AliasUnavailableError: the name is an alias, and none of its models can be used.
    """
    name = str(body["model"])
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered:
            if await may_use(user, model_id, request):
                return model_id
            if model_id == name or await model_row(model_id) is not None:
                raise ModelClosedError(name)
        elif model_id == name and await model_row(name) is not None:
            raise ModelClosedError(name)  # an admin has switched it off
    for table in tables:
        chosen = await choose_model(table, body, name, user, request)
        if chosen is not None:
            return chosen[1]
    # As Ollama does, whose clients ask for `llama3` where it is `llama3:latest`.
    known = find_model(name, ModelCatalogue(offered))
    if known is not None and known != name:
        with suppress(ModelClosedError):  # which would tell the name of a model that the user may not know
            return await model_for(request, tables, {**body, "model": known}, user)
    raise ModelClosedError(name)


async def offered_names(request: Any, tables: tuple[AliasTable, ...], user: Any) -> list[OfferedName]:
    """The names that a user may ask for, each once, in order. Wildcards are not among them."""
    models = ModelCatalogue(await offered_models(request, user))
    shown = await visible_models(request, user)
    found: dict[str, OfferedName] = {}
    for model in shown:
        name = str(model["id"])
        base = str((model.get("info") or {}).get("base_model_id") or "")
        aliased = _behind(tables, name.removeprefix(ROUTER), models)
        found[name] = OfferedName(name, aliased or ((base,) if base else ()), model)
    usable = {str(model["id"]) for model in shown} | {
        str(model["id"]).removeprefix(ROUTER) for model in shown
    }
    for table in tables:
        for name in concrete_names(table):
            behind = [model for model in _behind((table,), name, models) if model in usable]
            is_open = name not in found and name not in models and await model_row(name) is None
            if behind and is_open:
                found[name] = OfferedName(name, tuple(behind))
    return sorted(found.values(), key=lambda offered: offered.name)


async def direct_name(
    request: Any, table: AliasTable | None, name: str, user: Mapping[str, Any]
) -> DirectName | None:
    """The router's name for a name, where the router alone can answer it; None: Open WebUI has to.

    A row with a system prompt, knowledge, tools or filters of its own is more than a name.

    Args:
        request: FastAPI's.
        table: the router's aliases; None: it has none.
        name: what the client asks for.
        user: who asks.

    Raises:
        ModelClosedError: the user may not use it.
    """
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered:
            if await may_use(user, model_id, request):
                return _direct(model_id, await model_row(model_id) or {}, await default_params())
            if model_id == name or await model_row(model_id) is not None:
                raise ModelClosedError(name)
        elif model_id == name and await model_row(name) is not None:
            raise ModelClosedError(name)
    is_routed = table is not None and next(table.matching(name), None) is not None
    return _direct(ROUTER + name, {}, await default_params()) if is_routed else None


async def is_unknown(request: Any, name: str, user: Mapping[str, Any]) -> bool:
    """Whether Open WebUI has never heard of a name: no admin can have said who may use it."""
    offered = await offered_models(request, user)
    for model_id in (name, ROUTER + name):
        if model_id in offered or await model_row(model_id) is not None:
            return False
    return True


def _direct(model_id: str, row: Mapping[str, Any], defaults: Mapping[str, Any]) -> DirectName | None:
    """A row's name and parameters, over those for all models, as Open WebUI puts them together."""
    target = str(row.get("base_model_id") or model_id)
    own = {key: value for key, value in (row.get("params") or {}).items() if value is not None}
    params = {**defaults, **own}
    if custom := {**(defaults.get("custom_params") or {}), **(own.get("custom_params") or {})}:
        params["custom_params"] = custom
    meta = row.get("meta") or {}
    has_more = params.get("system") or any(meta.get(part) for part in _MORE_THAN_A_NAME)
    if not target.startswith(ROUTER) or has_more:
        return None
    return DirectName(target, {key: value for key, value in params.items() if key != "model_controls"})


async def shown(request: Any, user: Any, name: str, tables: AliasTables, router: Any) -> Body:
    """What is known of the model that answers for a name, as `/api/show` has it.

    Raises:
        ModelClosedError: the user may not use the name, or there is none.
        Exception: the router's own: no node knows the model.
    """
    who = user.model_dump()
    found = await direct_name(request, tables.router, name, who)
    if found is not None and router is not None:
        told: Body = await router.shown(found.id.removeprefix(ROUTER), who)
        return told
    model = await model_for(request, tables.in_use, {"model": name}, who)
    row = await model_row(model) or {}
    base = str(row.get("base_model_id") or model)
    if base.startswith(ROUTER) and router is not None:
        told = await router.shown(base.removeprefix(ROUTER), who)
    else:
        told = await shown_by_connection(request, base, user)
    return told


async def wildcards(request: Any, tables: tuple[AliasTable, ...], user: Any) -> dict[str, list[str]]:
    """Names with a star, each with the models behind it that a user may use; those that have one."""
    who, models = user.model_dump(), ModelCatalogue(await offered_models(request, user))
    usable: dict[str, bool] = {}
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.alias for table in tables for row in table.rows if row.is_wildcard):
        behind = _behind(tables, name, models)
        for model in behind:
            if model not in usable:
                ids = models.ids_of(model)
                usable[model] = any([await may_use(who, model_id, request) for model_id in ids])
        if open_ones := [model for model in behind if usable[model]]:
            found[name] = open_ones
    return found


def _behind(tables: tuple[AliasTable, ...], name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    levels = models if tables else {}
    found = (models_behind(table, name, levels) for table in tables)
    return next((behind for behind in found if behind), ())
