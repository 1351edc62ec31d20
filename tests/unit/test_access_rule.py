"""Who may use a model, by its rows; and under which ids Open WebUI's connections offer it."""

from collections.abc import Mapping

import pytest

from ollama_pack.aliases.published import groups_behind
from ollama_pack.aliases.table import parse_table
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.nodes import Listing, NodeRow
from ollama_pack.routing.probe.catalogue import FleetModel, NodeModel
from ollama_pack.services.connected import OfferedIds, connected_nodes, same_server
from ollama_pack.webui.access import (
    Access,
    CheckedModel,
    alias_access,
    covers,
    kept_closed,
    model_access,
    narrowed,
    opened_models,
)
from ollama_pack.webui.audience import EVERYBODY, NOBODY, grant_forms
from ollama_pack.webui.connections import ConnectionModels
from ollama_pack.webui.model_rows import MAKER, MARK, ExistingRow

STAFF = frozenset({("group", "g1", "read")})
MODEL = CheckedModel("a", ("a",))


def rows(*found: ExistingRow) -> Mapping[str, ExistingRow]:
    return {row.id: row for row in found}


def test_the_models_own_row_decides() -> None:
    """Would catch a model that is wider than its row, or one without a row that is open."""
    assert model_access(MODEL, {}) == Access(NOBODY, has_row=False)
    assert model_access(MODEL, rows(ExistingRow("a", "a", None, STAFF))) == Access(STAFF, has_row=True)
    writers = frozenset({("user", "u", "write")})
    assert model_access(MODEL, rows(ExistingRow("a", "a", None, writers | STAFF))).grants == STAFF
    off = ExistingRow("a", "a", None, EVERYBODY, active=False)
    assert model_access(MODEL, rows(off)) == Access(NOBODY, has_row=True, is_on=False)


def test_rows_that_are_not_the_models_own() -> None:
    """Would catch access by a preset of this id, which a plain user can make, or by the row of an alias."""
    preset = ExistingRow("a", "a", "other", EVERYBODY, owner="u")
    alias = ExistingRow("a", "a", None, EVERYBODY, meta={MARK: {"kind": "alias", "id": "a"}})
    assert model_access(MODEL, rows(preset)) == model_access(MODEL, rows(alias)) == Access()


def test_ids_of_several_connections() -> None:
    """Would catch a model that is closed because one of its ids is off, or open by none of them."""
    model = CheckedModel("a", ("x.a", "a"))
    off = ExistingRow("x.a", "a", None, EVERYBODY, active=False)
    assert model_access(model, rows(off, ExistingRow("a", "a", None, STAFF))) == Access(STAFF, has_row=True)
    assert model_access(CheckedModel("a", ()), rows(off)) == Access()


def test_aliases() -> None:
    """Would catch an alias wider than its models where nobody has stated for whom it is."""
    staff, closed = Access(STAFF, has_row=True), Access(NOBODY, has_row=True, is_on=False)
    assert alias_access(None, [staff, closed]) == Access(STAFF)
    assert not alias_access(None, [closed]).is_on
    assert alias_access(EVERYBODY, [staff]).grants == EVERYBODY
    there = rows(
        ExistingRow("staff", "staff", None, STAFF), ExistingRow("off", "off", None, STAFF, active=False)
    )
    models = [CheckedModel(name, (name,)) for name in ("staff", "off", "new")]
    assert opened_models(EVERYBODY, models, there) == ("new",)
    assert opened_models(None, models, there) == opened_models(NOBODY, models, there) == ()
    assert set(kept_closed(EVERYBODY, models, there)) == {"staff", "off"}
    assert set(kept_closed(STAFF, models, there)) == {"off"}
    assert covers(EVERYBODY, STAFF)
    assert not covers(STAFF, EVERYBODY)


@pytest.mark.parametrize(
    ("mark", "grants", "opens"),
    [
        ({}, EVERYBODY, True),  # an admin's
        ({"kind": "base", "id": "a"}, EVERYBODY, True),  # the uploader's
        ({"by": MAKER, "id": "a", "grants": grant_forms(STAFF)}, STAFF, False),
        ({"by": MAKER, "id": "a", "grants": grant_forms(STAFF), "opened": True}, STAFF, True),
        ({"by": MAKER, "id": "a", "grants": grant_forms(STAFF)}, EVERYBODY, True),  # changed by an admin
    ],
)
def test_whether_an_audience_is_stated(
    mark: dict[str, object],
    grants: frozenset[tuple[str, str, str]],
    opens: bool,  # noqa: FBT001 - a case
) -> None:
    """Would catch a row of ours that opens models though nobody has said so, or an admin's that does not."""
    assert ExistingRow("a", "a", None, grants, meta={MARK: mark} if mark else {}).opens is opens


def test_groups_of_conditions() -> None:
    """Would catch a model for a group alone, granted to everybody so that its alias can be asked."""
    table = parse_table(
        "x = a [group=staff]\nx = b\nx = inner [vision]\ninner = c [group=boss]\nx = d [group=staff|boss]"
    )
    found = groups_behind(table, "x", dict.fromkeys("abcd", ""))
    assert found == {"b": None, "a": {"staff"}, "c": {"boss"}, "d": {"staff", "boss"}}
    both = parse_table("x = inner [group=staff]\ninner = c [group=boss]\nx = b")
    assert groups_behind(both, "x", dict.fromkeys("bc", "")) == {"b": None, "c": frozenset()}
    ids = {"staff": "g1", "boss": "g2"}
    assert narrowed(EVERYBODY, frozenset({"staff", "missing"}), ids) == STAFF
    assert narrowed(STAFF, frozenset({"boss"}), ids) == narrowed(NOBODY, frozenset({"staff"}), ids) == NOBODY
    assert narrowed(STAFF, None, ids) == STAFF


def fleet_model(name: str, *nodes: str) -> FleetModel:
    return FleetModel(name, nodes, NodeModel(name, InstalledModel(name, 1)))


def test_one_server_in_several_connections() -> None:
    """Would catch a server that counts twice, or a connection's list or prefix that is left out."""
    url = "http://Gpu0:11434"
    lists = [
        ConnectionModels(url, only=frozenset({"a"})),
        ConnectionModels(f"{url}/", prefix="b", tags=("fast",)),
        ConnectionModels("http://gpu1"),
        ConnectionModels("http://off:1", is_on=False),
    ]
    nodes = connected_nodes([(url, "k"), (f"{url}/", ""), ("http://gpu1", "")], lists)
    assert [(node.name, node.url, node.key) for node in nodes] == [
        ("ollama0", url, "k"),
        ("ollama1", "http://gpu1", ""),
    ]
    assert nodes[0].listings == (Listing("", frozenset({"a"})), Listing("b"))
    assert nodes[1].listings == ()
    offered = OfferedIds(nodes, lists, are_connections=True)
    assert offered.named("b.x", fleet_model("b.x", "ollama0")) == CheckedModel("b.x", ("b.x",))
    assert offered.tags(fleet_model("b.x", "ollama0")) == ["fast"]
    assert offered.tags(fleet_model("a", "ollama0")) == []


def test_ids_of_nodes_of_their_own() -> None:
    """Would catch a model whose row is found under its plain name only, or one that a list leaves out."""
    rows = [
        NodeRow("n0", "http://gpu0:11434"),
        NodeRow("n1", "http://gpu1:11434"),
        NodeRow("n2", "https://e/v1"),
    ]
    lists = [
        ConnectionModels("http://gpu0:11434/", prefix="x", only=frozenset({"a"})),
        ConnectionModels("https://e/v1/", prefix="y", is_on=False),
    ]
    offered = OfferedIds(rows, lists, are_connections=False)
    assert offered.named("a", fleet_model("a", "n0")).ids == ("x.a",)
    assert offered.named("a", fleet_model("a", "n0", "n1")).ids == ("x.a", "a")
    assert offered.named("b", fleet_model("b", "n0")).ids == ()  # its connection does not offer it
    assert offered.named("c", fleet_model("c", "n2")).ids == ()  # its connection is off
    assert offered.named("d", None).ids == ("d",)


def test_addresses_of_one_server() -> None:
    """Would catch one server taken for two, or two on one host taken for one."""
    assert same_server("http://Host:80/") == same_server("http://host") == same_server("http://host/v1/")
    assert same_server("http://host/a") != same_server("http://host/b")
    assert same_server("https://host") != same_server("http://host")
