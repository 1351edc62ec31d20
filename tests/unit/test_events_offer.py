"""What there is to publish, from what the router, the alias tables and pack.yaml say."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.aliases.table import parse_table
from ollama_pack.services.offer import (
    AliasTables,
    Offer,
    StatedAliases,
    StatedRows,
    absent_routed,
    alias_tables,
    filtered_rows,
    routed_rows,
    shown_though_gone,
    stated_rows,
    withdrawable,
)
from ollama_pack.webui.audience import EVERYBODY, NOBODY
from ollama_pack.webui.functions import FunctionState
from ollama_pack.webui.model_rows import ExistingRow
from ollama_pack.webui.models import ModelCatalogue
from ollama_pack.webui.publication import WantedRow

NOTHING = FunctionState()
TOLD = (
    {"id": "gpt-4", "name": "gpt-4", "alias": True},
    {"id": "llama3:8b", "name": "llama3:8b", "alias": False},
)


def function(aliases: str, *, active: bool = True) -> FunctionState:
    return FunctionState(installed=True, active=active, valves={"aliases": aliases})


def row(wanted: WantedRow) -> ExistingRow:
    return ExistingRow(wanted.id, wanted.name, wanted.base, wanted.grants, meta=wanted.mark)


def rows_of(offer: Offer) -> dict[str, ExistingRow]:
    return {wanted.id: row(wanted) for wanted in routed_rows(offer, EVERYBODY, {})}


def test_rows_of_the_router() -> None:
    """Would catch an alias that leads elsewhere, or that stands twice in the picker."""
    rows = {
        wanted.id: wanted
        for wanted in routed_rows(Offer(alias_tables(NOTHING, NOTHING), TOLD), EVERYBODY, {})
    }
    assert {model: (wanted.base, wanted.hidden) for model, wanted in rows.items()} == {
        "gpt-4": ("gpu_router.gpt-4", False),
        "gpu_router.gpt-4": (None, True),
        "gpu_router.llama3:8b": (None, False),
    }
    assert rows["gpt-4"].grants == rows["gpu_router.gpt-4"].grants == EVERYBODY  # its audience is stated
    assert rows["gpu_router.llama3:8b"].grants == NOBODY  # the model has no row: it is for admins


def test_the_routers_aliases_win() -> None:
    """Would catch an alias of both tables that goes round the router."""
    offer = Offer(alias_tables(function("gpt-4 = a"), function("gpt-4 = b\ngpt-5 = c, b\ngpt-6 = x")))
    rows, problems = filtered_rows(offer, EVERYBODY, ModelCatalogue({"a": {}, "b": {}, "c": {}}), {}, {})
    assert [(wanted.id, wanted.base) for wanted in rows] == [("gpt-5", "c"), ("c", None), ("b", None)]
    assert [problem.partition(":")[0] for problem in problems] == ["gpt-6"]


def test_a_function_that_is_off_publishes_nothing_but_its_names_are_known() -> None:
    """Would catch aliases withdrawn at once because a function is off for the length of an update."""
    tables = alias_tables(function("gpt-4 = a", active=False), function("gpt-5 = a\ngpt-* = a"))
    assert tables.router is None
    assert tables.names == {"gpt-4", "gpt-5"}
    assert tables.are_known


def test_a_table_that_cannot_be_read_is_not_an_empty_one() -> None:
    """Would catch all aliases withdrawn because of a table that this version cannot read."""
    tables = alias_tables(function("gpt-4"), function("gpt-5 = a"))
    assert not tables.are_known
    assert not alias_tables(NOTHING, NOTHING).are_known  # deleted, perhaps to be imported anew


def test_gone_or_away() -> None:
    """Would catch an alias that an admin took back treated as an outage, or an outage as that."""
    rows = rows_of(Offer(alias_tables(NOTHING, NOTHING), TOLD))
    there = Offer(alias_tables(function("gpt-4 = a"), NOTHING))
    assert withdrawable(there, {}, rows) == (frozenset(rows), frozenset())
    taken_out = Offer(alias_tables(function(""), NOTHING))
    away, gone = withdrawable(taken_out, {}, rows)
    assert away == {"gpu_router.llama3:8b"}
    assert gone == {"gpt-4", "gpu_router.gpt-4"}
    unreadable = Offer(alias_tables(function("not a table"), NOTHING))
    assert withdrawable(unreadable, {}, rows) == (frozenset(rows), frozenset())
    unheard = Offer(alias_tables(function("gpt-4 = a"), NOTHING), fault="it failed")
    assert withdrawable(unheard, {}, rows) == (frozenset(), frozenset())


def test_absent_aliases_are_told() -> None:
    """Would catch an alias that is not there, and no reason on the dashboard."""
    tables = alias_tables(function("gpt-4 = a\ngpt-5 = b\ngpt-* = c"), NOTHING)
    assert [problem.partition(":")[0] for problem in absent_routed(Offer(tables, TOLD))] == ["gpt-5"]
    assert absent_routed(Offer(tables, fault="it failed")) == []


def test_when_to_look_anew() -> None:
    """Would catch a published model that is not listed, a vanished one that is, or no end of looking."""
    offer = Offer(AliasTables(None, None, frozenset(), are_known=True), TOLD)
    rows = rows_of(offer)
    listed = {
        "gpt-4": {"preset": True, "info": {"meta": rows["gpt-4"].meta}},
        "gpu_router.gpt-4": {},
        "gpu_router.llama3:8b": {},
        "by-hand": {"preset": True, "info": {"meta": {}}},
        "llama3:8b": {},
    }
    assert shown_though_gone(listed, rows, offer) == frozenset()
    assert shown_though_gone({}, rows, offer) == {"gpt-4", "gpu_router.gpt-4", "gpu_router.llama3:8b"}
    nothing = Offer(offer.tables)
    assert shown_though_gone(listed, {}, nothing) == {"gpt-4", "gpu_router.gpt-4", "gpu_router.llama3:8b"}
    assert shown_though_gone(listed, rows, Offer(offer.tables, fault="it failed")) == frozenset()


OFFERED: dict[str, dict[str, Any]] = {"a": {}, "b": {}}


def stated(
    table: str,
    rows: Mapping[str, ExistingRow] | None = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    **more: bool,
) -> StatedRows:
    """What pack.yaml wants that publishes all names of a table to everybody; `a` cannot be offered tools."""
    parsed = parse_table(table)
    audiences = {row.alias: EVERYBODY for row in parsed.rows}
    said = StatedAliases(parsed, audiences, **more)
    return stated_rows(said, models or OFFERED, rows or {}, {}, lambda model: model != "a")


def test_pack_yaml_publishes_an_alias_and_what_is_behind_it() -> None:
    """Would catch an alias that plain users cannot ask for, or tools offered to a model without."""
    found = stated("gpt-4 = a\nb = a\nnone = c")
    assert {model: (row.base, row.without_tools) for model, row in found.rows.items()} == {
        "gpt-4": ("a", False),
        "b": (None, False),  # a connection has a model of this name: the row only grants it
        "a": (None, True),
    }
    assert (found.lacking, found.spared) == (["none"], {"none"})
    assert stated("gpt-4 = b [group=staff]").unmet == [("gpt-4", "b", frozenset({"staff"}))]


def test_pack_yaml_through_the_router() -> None:
    """Would catch an alias open to people from whom an admin withholds a model, where nothing checks."""
    rows = {"a": ExistingRow("a", "a", None, NOBODY)}
    found = stated("gpt-4 = a, b", rows, routed=True)
    assert {model: (row.base, row.hidden, row.opens) for model, row in found.rows.items()} == {
        "gpt-4": ("gpu_router.gpt-4", False, ("b",)),
        "gpu_router.gpt-4": (None, True, ()),
    }
    assert [(model, name) for model, _, name in found.closed] == [("a", "gpt-4")]
    blind = stated("gpt-4 = a, b", rows, routed=True, router_sees_rows=False)
    assert {row.grants for row in blind.rows.values()} == {NOBODY}


def test_pack_yaml_hides_what_the_router_offers_too() -> None:
    """Would catch a model shown twice, or a row written again that an admin has changed."""
    models = OFFERED | {"gpu_router.a": {}, "gpu_router.b": {}}
    rows = {"a": ExistingRow("a", "a", None, NOBODY)}
    found = stated("gpt-4 = a", rows, models, routed=True, hides_twins=True)
    assert (found.rows["b"].mark["ollama_pack"]["kind"], "a" in found.rows, found.spared) == (
        "hidden",
        False,
        {"a"},
    )


def test_rows_of_models_that_are_away_stay() -> None:
    """Would catch users locked out because a connection was down during an upload."""
    away = stated("gpt-4 = a").rows
    rows = {model: row(wanted) for model, wanted in away.items()}
    assert stated("gpt-4 = a", rows, {"b": {}}).spared == {"gpt-4", "a"}
