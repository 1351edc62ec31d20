"""Which rows a deployment should have.

The events function wants those that the router and the alias tables offer, upload.py those that pack.yaml
states. `ollama_pack.webui.publication` then compares them with the rows that are there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.published import candidates_of, concrete_names, groups_behind, models_behind
from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.base.messages import message, said_by
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.access import (
    Access,
    CheckedModel,
    alias_access,
    kept_closed,
    model_access,
    narrowed,
    opened_models,
)
from ollama_pack.webui.audience import EVERYBODY, NOBODY, Grants
from ollama_pack.webui.contact import ROUTER_ID, RouterContact
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import FunctionState, function_state
from ollama_pack.webui.model_rows import MAKER, ExistingRow, existing_row
from ollama_pack.webui.models import ModelCatalogue
from ollama_pack.webui.publication import WantedRow, alias_row, hidden_twin, opened_model, routed_model

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

    @property
    def in_use(self) -> tuple[AliasTable, ...]:
        """Those of functions that are on: the router's, then the alias filter's."""
        return tuple(table for table in (self.router, self.filtered) if table is not None)


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be published now.

    Attributes:
        tables: the alias tables.
        routed: what the router offers, as it reports it: `id`, `name`, `alias`; of an alias the `models` that
            may answer; of a model the `ids` that it has in Open WebUI, and the `tags` of its connections.
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
        return Offer(tables, fault=said_by(error))


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


def behind_alias(offer: Offer, name: str) -> list[CheckedModel]:
    """The models of nodes that may answer for an alias of the router."""
    told = next((model for model in offer.routed if model["id"] == name), {})
    plain = {str(model["id"]): model for model in offer.routed if not model.get("alias")}
    names = told.get("models")  # a router of an older version tells none
    if not isinstance(names, list | tuple):
        names = models_behind(offer.tables.router or AliasTable(()), name, dict.fromkeys(plain, ""))
    return [named_model(str(model), plain.get(str(model), {})) for model in names]


def answers_of(offer: Offer) -> dict[str, list[str]]:
    """Alias of the router → the models that answer for it now, the preferred one first."""
    names = (str(model["id"]) for model in offer.routed if model.get("alias"))
    return {name: [model.name for model in behind_alias(offer, name)] for name in names}


def named_model(name: str, told: Mapping[str, Any]) -> CheckedModel:
    """A model of the router, with the ids that it has in Open WebUI: its own name, or those reported."""
    ids = told.get("ids")
    return CheckedModel(name, tuple(map(str, ids)) if isinstance(ids, list | tuple) else (name,))


def routed_rows(offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]) -> Iterator[WantedRow]:
    """The router's models, for those who may use them; and each of its aliases under its own name.

    Args:
        offer: what there is.
        stated: the audience of aliases; None: those who may use one of the models behind.
        rows: all that there are.
    """
    for model in offer.routed:
        name = str(model["id"])
        if model.get("alias"):
            behind = behind_alias(offer, name)
            access = alias_access(stated, (model_access(one, rows) for one in behind))
            named = candidates_of(offer.tables.router, name) if offer.tables.router else ()
            row = alias_row(name, ROUTER + name, access.grants, named or [model.name for model in behind])
            alias = replace(row, active=access.is_on, opened=stated is not None)
            yield alias
            yield routed_model(alias)
        else:
            access = model_access(named_model(name, model), rows)
            tags = tuple(str(tag) for tag in model.get("tags") or ())
            shown = str(model.get("name") or name)
            yield WantedRow(ROUTER + name, shown, None, access.grants, active=access.is_on, tags=tags)


def closed_to_audience(offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]) -> list[str]:
    """What to tell of models that an alias does not open, because an admin has set who may use them."""
    names = (str(model["id"]) for model in offer.routed if model.get("alias"))
    return [
        message(
            "{name}: {model} stays closed to a part of its audience: {reason} (Admin Panel → "
            "Settings → Models)",
            name=name,
            model=model,
            reason=reason,
        )
        for name in names
        for model, reason in kept_closed(stated, behind_alias(offer, name), rows).items()
    ]


def opened_by_aliases(
    offer: Offer, stated: Grants | None, rows: Mapping[str, ExistingRow]
) -> dict[str, tuple[str, ...]]:
    """Alias of the router → the models that its audience reaches through it alone."""
    names = [str(model["id"]) for model in offer.routed if model.get("alias")]
    return {name: opened_models(stated, behind_alias(offer, name), rows) for name in names}


def filtered_rows(
    offer: Offer,
    stated: Grants | None,
    models: ModelCatalogue,
    rows: Mapping[str, ExistingRow],
    groups: Mapping[str, str],
) -> tuple[list[WantedRow], list[str]]:
    """The alias filter's names that the router has not, with the models that they open; what lacks a model.

    Open WebUI lets a user ask an alias only where the user may ask the model under it, too: a stated audience
    is given to these models, but never past a condition on groups.

    Args:
        offer: the tables.
        stated: the audience of aliases; None: those who may use one of the models behind.
        models: what Open WebUI offers by itself, the router's models too; no rows.
        rows: all that there are.
        groups: name → id of every group.
    """
    aliases: list[WantedRow] = []
    opened: dict[str, Grants] = {}
    problems: list[str] = []
    table = offer.tables.filtered or AliasTable(())
    of_router = concrete_names(offer.tables.router or AliasTable(()))
    for name in concrete_names(table):
        if name in of_router:
            continue
        found = {models.ids_of(model)[0]: who for model, who in groups_behind(table, name, models).items()}
        if not found:
            problems.append(
                message("{name}: no connection has any of its models (`ollama pull` one)", name=name)
            )
            continue
        accesses = {model: model_access(_under(model), rows) for model in found}
        access = alias_access(stated, accesses.values())
        base = next(iter(found)) if stated is not None else _for_most(accesses)
        row = alias_row(name, base, access.grants, candidates_of(table, name))
        aliases.append(replace(row, active=access.is_on, opened=stated is not None))
        for model, who in found.items() if stated is not None else ():
            if not (model.startswith(ROUTER) and accesses[model].has_row):
                opened[model] = opened.get(model, NOBODY) | narrowed(stated or NOBODY, who, groups)
    bases = (opened_model(model, grants) for model, grants in opened.items())
    return [*aliases, *bases], problems


def _under(model: str) -> CheckedModel:
    return CheckedModel(model, (model.removeprefix(ROUTER),))


def _for_most(accesses: Mapping[str, Access]) -> str:
    """The model that an alias without a stated audience is based on: Open WebUI asks for access to it."""
    usable = [model for model, access in accesses.items() if access.is_on] or list(accesses)
    known = [model for model in usable if accesses[model].grants]
    return next((model for model in known if accesses[model].grants & EVERYBODY), (known or usable)[0])


@dataclass(frozen=True, slots=True)
class StatedAliases:
    """The aliases that pack.yaml publishes.

    Attributes:
        table: all of them.
        audiences: name → who may use it; a wildcard is not published.
        routed: the router answers them; else a connection's model.
        router_sees_rows: it runs in Open WebUI, where it can look at the rows of models at each chat.
        hides_twins: the connections' models that the router offers as well stay out of the picker.
    """

    table: AliasTable
    audiences: Mapping[str, Grants]
    routed: bool = False
    router_sees_rows: bool = True
    hides_twins: bool = False


@dataclass(slots=True)
class StatedRows:
    """The rows that pack.yaml asks for, and what stands in the way of more.

    Attributes:
        rows: by id.
        spared: ids of rows of the pack that stay as they are, though they are not wanted.
        lacking: names that none of the installed models can answer.
        unmet: name, model and the groups that it is for, where nobody of the audience is in them.
        closed: model, the reason why a part of the audience cannot use it, and the name.
    """

    rows: dict[str, WantedRow] = field(default_factory=dict)
    spared: set[str] = field(default_factory=set)
    lacking: list[str] = field(default_factory=list)
    unmet: list[tuple[str, str, frozenset[str]]] = field(default_factory=list)
    closed: list[tuple[str, str, str]] = field(default_factory=list)


def stated_rows(
    stated: StatedAliases,
    models: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, ExistingRow],
    groups: Mapping[str, str],
    takes_tools: Callable[[str], bool],
) -> StatedRows:
    """The row of each alias, and of each model behind it, which a plain user needs a grant for as well.

    Args:
        stated: what pack.yaml says.
        models: what Open WebUI offers, by id.
        rows: all that there are.
        groups: name → id of every group.
        takes_tools: whether a model can be offered tools. Asked only where it matters.
    """
    found = StatedRows()
    opened: dict[str, Grants] = defaultdict(frozenset)
    connected = _of_connections(models)
    for name in stated.audiences:
        audience, opens = stated.audiences[name], tuple[str, ...]()
        behind: Mapping[str, frozenset[str] | None] = {ROUTER + name: None}
        if stated.routed:
            audience, opens = _through_router(stated, name, connected, rows, found)
        else:
            behind = groups_behind(stated.table, name, connected)
        if behind:
            is_taken = name in models and not models[name].get("preset")
            base = None if is_taken else next(iter(behind))
            row = alias_row(name, base, audience, candidates_of(stated.table, name))
            found.rows[name] = replace(row, maker="upload", opens=opens)
        else:
            found.lacking.append(name)
            found.spared.add(name)
        for model, members in behind.items():
            grants = narrowed(audience, members, groups)
            if audience and not grants:
                found.unmet.append((name, model, members or frozenset()))
            for hop in _hops(model, rows):
                is_needed = stated.routed or audience or not takes_tools(hop)
                if hop not in stated.audiences and is_needed:
                    opened[hop] |= grants
    for model, grants in opened.items():
        _open(model, grants, models, rows, takes_tools, found)
    if stated.hides_twins:
        found.rows |= {
            model: row for model, row in twin_rows(models, rows).items() if model not in found.rows
        }
    found.spared |= {row.id for row in rows.values() if _may_be_away(row, models)}
    found.spared |= {model for model in rows if stated.hides_twins and f"{ROUTER}{model}" in models}
    return found


def _of_connections(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The models that may answer an alias without the router, with their levels; admins' presets too."""
    levels = ModelCatalogue(models)
    return {
        model: levels[model]
        for model, about in models.items()
        if not model.startswith(ROUTER) and not (about.get("preset") and _stored_row(about).is_alias)
    }


def _stored_row(about: Mapping[str, Any]) -> ExistingRow:
    info = about.get("info") or {}
    return existing_row({"id": "", "name": "", **info})


def _through_router(
    stated: StatedAliases,
    name: str,
    connected: Mapping[str, str],
    rows: Mapping[str, ExistingRow],
    found: StatedRows,
) -> tuple[Grants, tuple[str, ...]]:
    """Who gets an alias that the router answers, and the models that it opens to them.

    The router looks at the rows of models at each chat. On the Pipelines server it cannot: there the alias is
    for admins when an admin has closed one of its models to a part of the audience.
    """
    known = {row.id: "" for row in rows.values() if row.base is None and not row.is_alias}
    names = models_behind(stated.table, name, {**known, **connected}) or candidates_of(stated.table, name)
    behind = [CheckedModel(model, (model,)) for model in names]
    audience = stated.audiences[name]
    closed = kept_closed(audience, behind, rows)
    found.closed += ((model, reason, name) for model, reason in closed.items())
    if closed and not stated.router_sees_rows:
        return NOBODY, ()
    return audience, opened_models(audience, behind, rows)


def _hops(model: str, rows: Mapping[str, ExistingRow]) -> list[str]:
    """A model and what its row is based on, which Open WebUI checks one after the other."""
    hops: list[str] = []
    step: str | None = model
    while step and step not in hops:
        hops.append(step)
        step = rows[step].base if step in rows else None
    return hops


def _open(
    model: str,
    grants: Grants,
    models: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, ExistingRow],
    takes_tools: Callable[[str], bool],
    found: StatedRows,
) -> None:
    """Let an audience reach a model behind an alias."""
    row = opened_model(model, grants, "upload")
    current = rows.get(model)
    if model.startswith(ROUTER):  # not there yet, perhaps; hidden: the alias is in the picker already
        found.rows[model] = replace(row, hidden=True)
    elif current is not None and current.maker == "hand":
        found.rows[model] = row
    elif model in models:
        is_said = current is not None and current.meta.get("capabilities") is not None
        found.rows[model] = replace(row, without_tools=not (is_said or takes_tools(model)))
    else:
        found.spared.add(model)


def _may_be_away(row: ExistingRow, models: Mapping[str, Any]) -> bool:
    """Whether a row of upload.py is of a model that is not there now: its connection may only be down."""
    return row.maker == "upload" and not row.is_alias and row.id not in models


def twin_rows(
    models: Mapping[str, Mapping[str, Any]], rows: Mapping[str, ExistingRow]
) -> dict[str, WantedRow]:
    """The rows that keep the connections' models out of the picker which the router offers, too.

    Where there is a row already it is left as it is.
    """
    twins = [model for model in models if f"{ROUTER}{model}" in models and model not in rows]
    return {model: hidden_twin(model) for model in twins}


def absent_routed(offer: Offer) -> list[str]:
    """What to tell of the router's aliases that no node can answer now."""
    if offer.tables.router is None or offer.fault:
        return []
    offered = {model["id"] for model in offer.routed if model.get("alias")}
    missing = (name for name in concrete_names(offer.tables.router) if name not in offered)
    return [
        message("{name}: no node has any of its models (`ollama pull` one there)", name=name)
        for name in missing
    ]


def withdrawable(
    offer: Offer,
    wanted: Mapping[str, WantedRow],
    rows: Mapping[str, ExistingRow],
    listed: AbstractSet[str] = frozenset(),
) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of ours that are not wanted: those that may only be away for a while, and those that are gone.

    Gone is an alias that somebody took out of its table, and a model that is there and that no alias opens
    now. What goes through a router that does not answer is in neither: nothing is known of it.

    Args:
        offer: what there is.
        wanted: the rows that there shall be, by id.
        rows: all that there are, by id.
        listed: ids of the models that Open WebUI offers by itself.
    """
    ours = [row for row in rows.values() if row.maker == "events" and row.id not in wanted]
    known = offer.tables.are_known
    gone = frozenset(row.id for row in ours if known and row.alias and row.alias not in offer.tables.names)
    if known and offer.tables.filtered is not None:
        gone |= {row.id for row in ours if not row.alias and row.id in listed and not _is_routed(row)}
    unheard = frozenset(row.id for row in ours if offer.fault and _is_routed(row))
    return frozenset(row.id for row in ours) - gone - unheard, gone


def _is_routed(row: ExistingRow) -> bool:
    return row.id.startswith(ROUTER) or str(row.base or "").startswith(ROUTER)


def shown_though_gone(
    known: Mapping[str, Mapping[str, Any]], rows: Mapping[str, ExistingRow], offer: Offer
) -> frozenset[str]:
    """Ids on which Open WebUI's list of models differs from what there is, so that it should look again."""
    ours = {row.id for row in rows.values() if row.maker == "events" and row.base and row.active}
    off = {row.id for row in rows.values() if not row.base and not row.active}
    there = ours | (offer.router_ids - off)
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
