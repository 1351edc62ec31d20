"""Every name that a client of the gateway may ask for, and the model of Open WebUI that each stands for.

A name with a row of its own, or that a connection offers, is Open WebUI's: its grants hold. Every other name
of the alias tables, wildcards among them, is for those who may use a model that answers for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_pack.aliases.published import concrete_names, models_behind
from ollama_pack.aliases.table import AliasTable
from ollama_pack.engines.routed_names import ROUTER
from ollama_pack.services.alias_choice import choose_model
from ollama_pack.services.offer import ALIAS_FILTER, alias_tables
from ollama_pack.webui.contact import ROUTER_ID
from ollama_pack.webui.errors import ModelClosedError
from ollama_pack.webui.functions import function_state
from ollama_pack.webui.models import ModelCatalogue, has_row, may_use, offered_models, visible_models

Body = dict[str, Any]


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


async def stored_tables() -> tuple[AliasTable, ...]:
    """The alias tables that are in use: the router's, then the alias filter's."""
    tables = alias_tables(await function_state(ROUTER_ID), await function_state(ALIAS_FILTER))
    return tuple(table for table in (tables.router, tables.filtered) if table is not None)


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
            if model_id == name or await has_row(model_id):
                raise ModelClosedError(name)
        elif model_id == name and await has_row(name):
            raise ModelClosedError(name)  # an admin has switched it off
    for table in tables:
        chosen = await choose_model(table, body, name, user, request)
        if chosen is not None:
            return chosen[1]
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
            is_open = name not in found and name not in models and not await has_row(name)
            if behind and is_open:
                found[name] = OfferedName(name, tuple(behind))
    return sorted(found.values(), key=lambda offered: offered.name)


def wildcards(tables: tuple[AliasTable, ...]) -> dict[str, list[str]]:
    """Names with a star, each with what it stands for."""
    rows = [row for table in tables for row in table.rows if row.is_wildcard]
    return {row.alias: list(row.candidates) for row in reversed(rows)}


def _behind(tables: tuple[AliasTable, ...], name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    levels = models if tables else {}
    found = (models_behind(table, name, levels) for table in tables)
    return next((behind for behind in found if behind), ())
