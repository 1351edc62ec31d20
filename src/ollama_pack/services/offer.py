"""What there is to publish: the models and aliases of the router, and the aliases of the alias filter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.published import concrete_names, models_behind
from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.engines.routed_names import ROUTER
from ollama_pack.webui.audience import Grants
from ollama_pack.webui.contact import ROUTER_ID, RouterContact
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import FunctionState, function_state
from ollama_pack.webui.models import ModelCatalogue
from ollama_pack.webui.publication import MAKER, ExistingRow, WantedRow

ALIAS_FILTER = "model_alias_filter"


@dataclass(frozen=True, slots=True)
class AliasTables:
    """The alias tables that admins have stored.

    Attributes:
        router: the router's; None: it is not there, off, or its table cannot be read.
        filtered: the alias filter's, likewise.
        names: every name in a table, also of a function that is off.
        are_known: there is a table and all can be read, so that a name which is in none is no alias.
    """

    router: AliasTable | None
    filtered: AliasTable | None
    names: frozenset[str]
    are_known: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be published now.

    Attributes:
        tables: the alias tables.
        routed: what the router offers, as it tells it: `id`, `name`, `alias`.
        fault: why the router could not be asked though it is on; empty: it was, or there is none.
    """

    tables: AliasTables
    routed: tuple[Mapping[str, Any], ...] = ()
    fault: str = ""

    @property
    def router_ids(self) -> frozenset[str]:
        """The ids that the router's models have in Open WebUI."""
        return frozenset(f"{ROUTER}{model['id']}" for model in self.routed)


async def gather_offer(router: RouterContact) -> Offer:
    """Ask the router, and read the tables."""
    state = await function_state(ROUTER_ID)
    tables = alias_tables(state, await function_state(ALIAS_FILTER))
    if not state.active:
        return Offer(tables)
    try:
        return Offer(tables, tuple(await router.models()))
    except RouterUnavailableError as error:
        return Offer(tables, fault=str(error))


def alias_tables(router: FunctionState, alias_filter: FunctionState) -> AliasTables:
    """The tables as two functions have them stored."""
    stored = [(state, _stored_table(state)) for state in (router, alias_filter) if state.installed]
    of_router, of_filter = (
        _stored_table(state) if state.active else None for state in (router, alias_filter)
    )
    names = frozenset(name for _, table in stored if table for name in concrete_names(table))
    are_known = bool(stored) and all(table is not None for _, table in stored)
    return AliasTables(of_router, of_filter, names, are_known)


def _stored_table(state: FunctionState) -> AliasTable | None:
    try:
        return parse_table(str(state.valves.get("aliases") or ""))
    except AliasTableError:
        return None


def routed_rows(offer: Offer, grants: Grants) -> Iterator[WantedRow]:
    """The router's models, for people who are no admins; and each of its aliases under its own name."""
    for model in offer.routed:
        name = str(model["id"])
        routed_id = f"{ROUTER}{name}"
        if model.get("alias"):
            told = f"{name} is answered by the model that the router's alias table names."
            yield WantedRow(name, name, routed_id, grants, alias=name, description=told)
            yield WantedRow(routed_id, name, None, grants, alias=name, hidden=True)
        else:
            yield WantedRow(routed_id, str(model.get("name") or name), None, grants)


def filtered_rows(offer: Offer, grants: Grants, models: ModelCatalogue) -> tuple[list[WantedRow], list[str]]:
    """The alias filter's names that the router has not, with the models behind them; and what lacks a model.

    Args:
        offer: the tables.
        grants: who may use them.
        models: what Open WebUI offers by itself, the router's models too; no rows.
    """
    rows: list[WantedRow] = []
    problems = []
    table = offer.tables.filtered or AliasTable(())
    of_router = concrete_names(offer.tables.router or AliasTable(()))
    for name in concrete_names(table):
        if name in of_router:
            continue
        ids = [models.ids_of(model)[0] for model in models_behind(table, name, models)]
        if behind := list(dict.fromkeys(ids)):
            told = f"{name} is answered by {behind[0]} or what the alias table prefers."
            rows.append(WantedRow(name, name, behind[0], grants, alias=name, description=told))
            rows += (WantedRow(model, model, None, grants) for model in behind)
        else:
            problems.append(f"{name}: no connection has any of its models (`ollama pull` one)")
    return rows, problems


def absent_routed(offer: Offer) -> list[str]:
    """What to tell of the router's aliases that no node can answer now."""
    if offer.tables.router is None or offer.fault:
        return []
    offered = {model["id"] for model in offer.routed if model.get("alias")}
    missing = (name for name in concrete_names(offer.tables.router) if name not in offered)
    return [f"{name}: no node has any of its models (`ollama pull` one there)" for name in missing]


def withdrawable(
    offer: Offer, wanted: Mapping[str, WantedRow], rows: Mapping[str, ExistingRow]
) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of ours that are not wanted: those that may only be away for a while, and those that are gone.

    Gone is an alias that somebody took out of its table. What goes through a router that does not answer is
    in neither: nothing is known of it.
    """
    ours = [row for row in rows.values() if row.maker == "events" and row.id not in wanted]
    known = offer.tables.are_known
    gone = frozenset(row.id for row in ours if known and row.alias and row.alias not in offer.tables.names)
    unheard = frozenset(row.id for row in ours if offer.fault and _is_routed(row))
    return frozenset(row.id for row in ours) - gone - unheard, gone


def _is_routed(row: ExistingRow) -> bool:
    return row.id.startswith(ROUTER) or str(row.base or "").startswith(ROUTER)


def shown_though_gone(
    known: Mapping[str, Mapping[str, Any]], rows: Mapping[str, ExistingRow], offer: Offer
) -> frozenset[str]:
    """Ids on which Open WebUI's list of models differs from what there is, so that it should look again."""
    ours = {row.id for row in rows.values() if row.maker == "events" and row.base and row.active}
    there = ours | offer.router_ids
    listed = {
        model
        for model, about in known.items()
        if (about.get("preset") and _has_our_mark(about)) or model.startswith(ROUTER)
    }
    unheard = {model for model in listed if offer.fault and model.startswith(ROUTER)}
    return frozenset((there - known.keys()) | (listed - there - unheard))


def _has_our_mark(about: Mapping[str, Any]) -> bool:
    meta = (about.get("info") or {}).get("meta") or {}
    mark = meta.get("ollama_pack") or {}
    return bool(mark.get("by") == MAKER)
