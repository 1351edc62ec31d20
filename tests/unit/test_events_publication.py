"""Which rows are written: never anybody else's, and after one round there is nothing left to do."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.webui.audience import EVERYBODY, NOBODY, audience_grants, parse_audience
from ollama_pack.webui.errors import AudienceError
from ollama_pack.webui.model_rows import MARK, ExistingRow
from ollama_pack.webui.publication import (
    ADMINS_GRANTS,
    NARROWER,
    TAKEN,
    Absences,
    CloseRow,
    CreateRow,
    DeleteRow,
    Maker,
    RowPlan,
    UpdateRow,
    WantedRow,
    alias_row,
    closed_mark,
    hidden_twin,
    left_when_removed,
    opened_model,
    plan_rows,
    routed_model,
)

STAFF = frozenset({("group", "g1", "read")})
IDS = st.sampled_from(["gpt-4", "gpt-5", "gpu_router.a", "gpu_router.b"])
GRANTS = st.sampled_from([EVERYBODY, NOBODY, STAFF])
MAKERS: st.SearchStrategy[Maker] = st.sampled_from(["events", "upload"])


def wanted_row(model: str, base: str | None, grants: frozenset[tuple[str, str, str]]) -> WantedRow:
    return WantedRow(model, model, base, grants, alias=model if base else "")


WANTED = st.dictionaries(
    IDS, st.tuples(st.sampled_from([None, "gpu_router.a", "gpu_router.b"]), GRANTS), max_size=4
).map(lambda found: {model: wanted_row(model, base, grants) for model, (base, grants) in found.items()})


def made(row: WantedRow) -> ExistingRow:
    """The row as it is once it was created."""
    return ExistingRow(row.id, row.name, row.base, row.grants, row.active, meta=row.meta_over(None))


def by(maker: Maker, wanted: Mapping[str, WantedRow]) -> dict[str, WantedRow]:
    return {model: replace(row, maker=maker) for model, row in wanted.items()}


@st.composite
def existing_rows(draw: st.DrawFn) -> dict[str, ExistingRow]:
    """Rows of ours, the uploader's and admins', some with admins' changes in them."""
    rows = {}
    for model, row in draw(WANTED).items():
        found = made(row)
        match draw(st.sampled_from(["ours", "upload", "hand", "clone"])):
            case "upload":
                found = replace(found, meta={MARK: {"kind": "alias", "id": model}})
            case "hand":
                found = replace(found, meta={})
            case "clone":
                found = replace(found, meta={MARK: {**found.meta[MARK], "id": "another"}})
        changes: dict[str, Any] = draw(
            st.fixed_dictionaries(
                {}, optional={"grants": GRANTS, "active": st.booleans(), "has_params": st.booleans()}
            )
        )
        rows[model] = replace(found, **changes)
    return rows


def carry_out(plan: RowPlan, rows: Mapping[str, ExistingRow]) -> dict[str, ExistingRow]:
    """What the rows are after the plan: the same as `webui.rows` does to the database."""
    after = dict(rows)
    for change in plan.changes:
        match change:
            case CreateRow(row):
                assert row.id not in after
                after[row.id] = made(row)
            case UpdateRow(row, regrant, switch):
                old = after[row.id]
                grants = row.grants if regrant else old.grants
                active = row.active if switch else old.active
                meta = row.meta_over(old.meta)
                after[row.id] = replace(old, base=row.base, grants=grants, active=active, meta=meta)
            case CloseRow(model):
                old = after[model]
                after[model] = replace(old, grants=NOBODY, meta={**old.meta, **closed_mark(old.mark)})
            case DeleteRow(model):
                del after[model]
    return after


@given(WANTED, existing_rows(), st.sets(IDS), st.sets(IDS), MAKERS)
def test_one_round_settles_it(
    wanted: dict[str, WantedRow],
    rows: dict[str, ExistingRow],
    taken: set[str],
    spared: set[str],
    maker: Maker,
) -> None:
    """Would catch rows written over and over: by one replica, by two in turn, or at each upload."""
    asked = by(maker, wanted)
    after = carry_out(plan_rows(asked, rows, taken, spared, maker), rows)
    assert plan_rows(asked, after, taken, spared, maker).changes == ()


@given(WANTED, existing_rows())
def test_an_upload_touches_what_is_not_an_admins(
    wanted: dict[str, WantedRow], rows: dict[str, ExistingRow]
) -> None:
    """Would catch an upload that undoes an admin's change, or withdraws rows of the events function."""
    asked = by("upload", wanted)
    after = carry_out(plan_rows(asked, rows, maker="upload"), rows)
    for model, row in rows.items():
        if row.maker == "hand" or (row.maker == "events" and model not in wanted):
            assert after[model] == row
        elif model in wanted:
            assert after[model].active
            assert after[model].has_params == row.has_params
            assert row.has_given_grants or after[model].grants in {row.grants, wanted[model].grants}
        elif row.has_params:
            assert after[model].grants == NOBODY
        else:
            assert model not in after


def test_what_an_admins_row_withholds_is_said() -> None:
    """Would catch an upload that does not say what an admin keeps closed, or complains of what is open."""
    row = opened_model("llama3:8b", EVERYBODY, "upload")
    by_hand = ExistingRow("llama3:8b", "llama3:8b", None, STAFF)
    ours = replace(made(row), grants=STAFF)
    for current in (by_hand, ours):
        plan = plan_rows({row.id: row}, {row.id: current}, maker="upload")
        assert (plan.changes, [left.reason for left in plan.left]) == ((), [NARROWER])
    for current in (replace(by_hand, grants=EVERYBODY), made(row)):
        assert plan_rows({row.id: row}, {row.id: current}, maker="upload") == RowPlan((), ())
    events = opened_model("llama3:8b", STAFF)
    changed = replace(made(events), grants=EVERYBODY)
    assert [left.reason for left in plan_rows({events.id: events}, {events.id: changed}).left] == [
        ADMINS_GRANTS
    ]


def test_an_alias_that_pack_yaml_names_again_is_open_again() -> None:
    """Would catch an upload that takes its own closing of a row for the work of an admin."""
    row = replace(wanted_row("gpt-4", "llama3:8b", EVERYBODY), maker="upload")
    rows = {row.id: replace(made(row), has_params=True)}
    closed = carry_out(plan_rows({}, rows, maker="upload"), rows)
    assert closed["gpt-4"].grants == NOBODY
    again = carry_out(plan_rows({row.id: row}, closed, maker="upload"), closed)
    assert again["gpt-4"].grants == EVERYBODY


def test_what_is_left_of_a_row_when_the_pack_goes() -> None:
    """Would catch a row kept for tags or a switch that the pack gave it, or an admin's that goes."""
    row = replace(wanted_row("gpu_router.a", None, EVERYBODY), tags=("fast",), active=False)
    assert left_when_removed(made(row)) is None
    assert left_when_removed(replace(made(row), active=True)) == NOBODY
    assert left_when_removed(replace(made(row), grants=STAFF)) == STAFF
    picture = {**made(row).meta, "profile_image_url": "https://example.org/a.png"}
    assert left_when_removed(replace(made(row), meta=picture)) == NOBODY
    described = {**made(row).meta, "description": "The fast one"}
    assert left_when_removed(replace(made(row), meta=described)) == NOBODY


@pytest.mark.parametrize("maker", ["events", "upload"])
@pytest.mark.parametrize(
    "edit",
    [
        {"profile_image_url": "https://example.org/a.png"},
        {"description": "The fast one"},
        {"hidden": True},
        {"tags": [{"name": "fast"}]},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_what_an_admin_said_of_a_row_outlives_its_models_absence(edit: dict[str, Any], maker: Maker) -> None:
    """Would catch a row that comes back without its picture, and in the picker again."""
    row = replace(alias_row("gpt-4", "gpu_router.gpt-4", EVERYBODY, ["llama3:8b"]), maker=maker)
    edited = replace(made(row), meta={**made(row).meta, **edit})
    away = carry_out(plan_rows({}, {row.id: edited}, maker=maker), {row.id: edited})
    assert away[row.id].grants == NOBODY
    back = carry_out(plan_rows({row.id: row}, away, maker=maker), away)
    assert back[row.id].grants == EVERYBODY
    assert edit.items() <= back[row.id].meta.items()


@pytest.mark.parametrize("maker", ["events", "upload"])
def test_what_the_pack_said_of_a_row_goes_with_it(maker: Maker) -> None:
    """Would catch rows that stay because the pack itself has described or hidden them."""
    alias = alias_row("gpt-4", "gpu_router.gpt-4", EVERYBODY, ["llama3:8b"])
    twins = [hidden_twin("llama3:8b")] if maker == "upload" else []
    for row in (alias, routed_model(alias), *twins):
        ours = made(replace(row, maker=maker))
        ours = replace(ours, meta={**ours.meta, "profile_image_url": "/static/favicon.png"})
        assert plan_rows({}, {row.id: ours}, maker=maker).changes == (DeleteRow(row.id),)


@given(WANTED, existing_rows(), st.sets(IDS), st.sets(IDS))
def test_only_ours_is_touched(
    wanted: dict[str, WantedRow], rows: dict[str, ExistingRow], taken: set[str], spared: set[str]
) -> None:
    """Would catch a row of an admin or of the uploader that is changed, and an admin's change undone."""
    after = carry_out(plan_rows(wanted, rows, taken, spared), rows)
    for model, row in rows.items():
        if row.maker != "events":
            assert after[model] == row
        elif row.has_additions:
            assert (after[model].active, after[model].has_params) == (row.active, row.has_params)
            by_admin = row.grants not in (row.given, wanted[model].grants if model in wanted else row.given)
            assert not by_admin or after[model].grants == row.grants


@given(WANTED, existing_rows(), st.sets(IDS))
def test_nobody_is_let_in_who_should_not_be(
    wanted: dict[str, WantedRow], rows: dict[str, ExistingRow], taken: set[str]
) -> None:
    """Would catch our grants left behind on a row that is not wanted, or on another connection's model."""
    after = carry_out(plan_rows(wanted, rows, taken), rows)
    for model, row in after.items():
        if row.maker == "events" and row.grants == row.given and row.grants:
            assert model in wanted
            assert not (wanted[model].base and model in taken)


@given(WANTED, existing_rows(), st.sets(IDS))
def test_what_is_not_done_is_said(
    wanted: dict[str, WantedRow], rows: dict[str, ExistingRow], taken: set[str]
) -> None:
    """Would catch an alias that is missing without a word on the dashboard."""
    plan = plan_rows(wanted, rows, taken)
    after = carry_out(plan, rows)
    said = {row.id for row in plan.left}
    for model, row in wanted.items():
        current = after.get(model)
        as_wanted = current is not None and current.maker == "events" and current.active
        assert model in said or (as_wanted and current is not None and current.grants == row.grants)


def test_whose_row_it_is() -> None:
    """Would catch an admin's clone of our row, or the uploader's, taken for ours."""
    ours = made(wanted_row("gpt-4", "gpu_router.gpt-4", EVERYBODY))
    assert ours.maker == "events"
    assert replace(ours, id="my-clone").maker == "hand"
    assert replace(ours, meta={MARK: {"kind": "alias", "id": "gpt-4"}}).maker == "upload"
    assert replace(ours, meta={MARK: "what an admin wrote"}).maker == "hand"


def test_spared_rows_stay() -> None:
    """Would catch a grace that is counted and then has no effect."""
    row = made(wanted_row("gpt-4", "gpu_router.gpt-4", EVERYBODY))
    assert plan_rows({}, {row.id: row}, spared={"gpt-4"}).changes == ()
    assert plan_rows({}, {row.id: row}).changes == (DeleteRow("gpt-4"),)


def test_a_taken_name_is_given_back() -> None:
    """Would catch our grants opening a model that another connection begins to offer under the name."""
    row = wanted_row("gpt-4", "gpu_router.gpt-4", EVERYBODY)
    plan = plan_rows({row.id: row}, {row.id: made(row)}, taken={"gpt-4"})
    assert plan.changes == (DeleteRow("gpt-4"),)
    assert [left.reason for left in plan.left] == [TAKEN]


def test_a_crash_between_grants_and_mark_is_mended() -> None:
    """Would catch a row that is taken for an admin's for ever because noting our grants failed."""
    row = wanted_row("gpt-4", "gpu_router.gpt-4", STAFF)
    half_done = replace(made(replace(row, grants=EVERYBODY)), grants=STAFF)
    after = carry_out(plan_rows({row.id: row}, {row.id: half_done}), {row.id: half_done})
    assert after["gpt-4"].given == STAFF


def test_grace() -> None:
    """Would catch a row that goes before its time, or that never goes."""
    now = 0.0
    absences = Absences(900.0, lambda: now)
    assert absences.spared({"a"}, frozenset()) == {"a"}
    now = 899.0
    assert absences.spared({"a", "b"}, frozenset()) == {"a", "b"}
    assert absences.seconds("a") == 899.0
    now = 900.0
    assert absences.spared({"a", "b"}, frozenset()) == {"b"}
    assert absences.seconds("c") is None


def test_grace_begins_anew() -> None:
    """Would catch two short outages, hours apart, counted as one long one."""
    now = 0.0
    absences = Absences(900.0, lambda: now)
    absences.spared({"a"}, frozenset())
    now = 800.0
    absences.spared(set(), frozenset({"a"}))
    now = 1000.0
    assert absences.spared({"a"}, frozenset()) == {"a"}


def test_what_another_replica_brought_back_stays() -> None:
    """Would catch two replicas, of which one sees the node, that create and delete a row in turn for ever."""
    now = 0.0
    absences = Absences(900.0, lambda: now)
    absences.spared({"a"}, frozenset())
    now = 1000.0
    assert absences.spared({"a"}, frozenset()) == frozenset()
    absences.withdrawn("a")
    absences.spared(set(), frozenset())
    now = 5000.0
    assert absences.spared({"a"}, frozenset()) == {"a"}
    now = 9000.0
    assert absences.spared({"a"}, frozenset()) == {"a"}
    absences.spared(set(), frozenset({"a"}))  # seen here again: the next absence is an ordinary one
    now = 9001.0
    absences.spared({"a"}, frozenset())
    now = 9901.0
    assert absences.spared({"a"}, frozenset()) == frozenset()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("public", ("public",)),
        (" admin ", ("admin",)),
        ("group:staff, group: the  teachers", ("group:staff", "group: the teachers")),
    ],
)
def test_audience(text: str, parts: tuple[str, ...]) -> None:
    """Would catch an audience that is read as another."""
    assert parse_audience(text) == parts


@pytest.mark.parametrize("text", ["", "everyone", "public,", "group:", "group: ", "Public", "groups:a"])
def test_unknown_audience(text: str) -> None:
    """Would catch a misspelt audience that is taken for nobody, or for everybody."""
    with pytest.raises(AudienceError, match="write public"):
        parse_audience(text)


def test_audience_grants() -> None:
    """Would catch grants for another group, or a missing group that nobody hears of."""
    groups = {"staff": "g1", "the teachers": "g2"}
    assert audience_grants(("public", "group:staff"), groups) == (EVERYBODY, ())
    assert audience_grants(("admin",), groups) == (NOBODY, ())
    found = audience_grants(("group:staff", "group: the teachers", "group:x"), groups)
    assert found == (STAFF | {("group", "g2", "read")}, ("x",))
