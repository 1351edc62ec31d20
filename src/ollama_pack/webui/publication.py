"""Which rows of Open WebUI's models table to write, so that users see what is offered to them. Decides only.

A row belongs to whoever made it. The pack's mark in its `meta` says so: `{"kind", "id"}` is the uploader's,
and with `"by": "ollama_pack_events"` it is the events function's, which also notes the grants and the switch
that it gave, so that a change by an admin is seen and kept. The id is in the mark because an admin's clone of
a row copies `meta`. Rows without the mark are an admin's: they are never changed, removed or adopted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal

from ollama_pack.base.messages import message
from ollama_pack.engines.routed_names import ROUTER
from ollama_pack.webui.audience import NOBODY, Grants, grant_forms
from ollama_pack.webui.model_rows import MAKER, MARK, ExistingRow

BY_HAND = message("an admin made a model with this id by hand, and it is left as it is")
BY_UPLOAD = message("upload.py published it, and keeps it")
TAKEN = message("a connection offers a model of this name itself")
ADMINS_GRANTS = message("an admin changed who may use it, and that is kept")
ADMINS_SWITCH = message("an admin switched it on or off, and that is kept")
SHOWN_MODELS = 4  # of those that answer for an alias, under its name in the picker
_ANSWERED_BY = "→ "  # in every language
ADMINS_ROW = message("it is offered no more, and is kept because an admin changed something in it")


@dataclass(frozen=True, slots=True)
class WantedRow:
    """A model that is to be published.

    Attributes:
        id: what clients ask for.
        name: what the picker shows.
        base: the model that answers for it; None: `id` is a model itself, and the row only grants it.
        grants: who may use it.
        alias: the alias that it serves; empty: none.
        description: what the picker tells of it; empty: nothing.
        hidden: keep it out of the picker, where the alias stands already. Said once: then an admin decides.
        active: it is switched on.
        opened: an admin has stated the audience: it opens the models behind it that have no row.
        tags: that the picker shows. Said once.
        maker: who makes the row.
        opens: the models without a row that its audience reaches through it alone.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    alias: str = ""
    description: str = ""
    hidden: bool = False
    active: bool = True
    opened: bool = False
    tags: tuple[str, ...] = ()
    maker: Literal["events", "upload"] = "events"
    opens: tuple[str, ...] = ()

    @property
    def mark(self) -> dict[str, Any]:
        """What tells whose row it is, as `meta` holds it."""
        if self.maker == "upload":
            kind = (
                "alias" if self.alias and not self.hidden else "base"
            )  # one without a base only grants its model
            said = {"kind": kind, "id": self.id, "grants": grant_forms(self.grants)}
            return {MARK: said | ({"opens": list(self.opens)} if self.opens else {})}
        kind = "alias" if self.base else "base"
        said = {"kind": kind, "id": self.id, "by": MAKER, "name": self.name, "alias": self.alias}
        given = {"grants": grant_forms(self.grants), "active": self.active, "opened": self.opened}
        return {MARK: said | given | ({"tags": list(self.tags)} if self.tags else {})}


def alias_row(alias: str, base: str, grants: Grants, models: Sequence[str]) -> WantedRow:
    """The row by which an alias is a model that people see.

    Args:
        alias: its name.
        base: the model under it: the router's of that name, or one that the alias filter's table names.
        grants: who may use it.
        models: those that the table names for it, the preferred one first.
    """
    shown = ", ".join(models[:SHOWN_MODELS]) + (", …" if models[SHOWN_MODELS:] else "")
    return WantedRow(alias, alias, base, grants, alias, f"{_ANSWERED_BY}{shown}")


def routed_model(alias: WantedRow) -> WantedRow:
    """The row of the router's model under an alias: for the same people, and not in the picker."""
    return replace(alias, id=ROUTER + alias.id, base=None, description="", hidden=True)


def opened_model(model: str, grants: Grants, maker: Literal["events", "upload"] = "events") -> WantedRow:
    """The row by which a model behind an alias is open to the alias's audience."""
    return WantedRow(model, model, None, grants, opened=True, maker=maker)


def is_our_description(alias: str, text: object) -> bool:
    """Whether the pack, in this version or in 0.1, wrote what the picker says under an alias."""
    return str(text).startswith((_ANSWERED_BY, f"{alias} is answered by "))


@dataclass(frozen=True, slots=True)
class CreateRow:
    """Make a row."""

    row: WantedRow


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """Bring a row of ours to what is wanted.

    Attributes:
        row: what is wanted, with the grants that it shall have.
        regrant: give it these grants; else they are left as they are.
        switch: switch it on or off as is wanted; else it is left as it is.
    """

    row: WantedRow
    regrant: bool
    switch: bool = False


@dataclass(frozen=True, slots=True)
class DeleteRow:
    """Take a row of ours away."""

    id: str


@dataclass(frozen=True, slots=True)
class CloseRow:
    """Leave a row of ours, in which an admin put something, to admins."""

    id: str


RowChange = CreateRow | UpdateRow | DeleteRow | CloseRow


@dataclass(frozen=True, slots=True)
class LeftRow:
    """A row that is not as it would be, and why it is left so."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What to do, and what is left alone."""

    changes: tuple[RowChange, ...]
    left: tuple[LeftRow, ...]


def plan_rows(
    wanted: Mapping[str, WantedRow],
    rows: Mapping[str, ExistingRow],
    taken: AbstractSet[str] = frozenset(),
    spared: AbstractSet[str] = frozenset(),
) -> RowPlan:
    """Compare what is wanted with what is there.

    Carrying the plan out and planning again gives no change, from any replica. A row of ours is withdrawn
    when a connection begins to offer a model of its name: its grants would hold for that model.

    Args:
        wanted: the rows that there shall be, by id.
        rows: all rows that there are, by id.
        taken: ids of models that connections offer themselves: no alias may stand in their way.
        spared: ids of ours that stay for now though they are not wanted.
    """
    changes: list[RowChange] = []
    left: list[LeftRow] = []
    for row in wanted.values():
        current = rows.get(row.id)
        if reason := _not_ours(row, current, taken):
            left.append(LeftRow(row.id, reason))
            changes += _withdrawals(current) if reason == TAKEN and current else ()
        elif current is None:
            changes.append(CreateRow(row))
        else:
            changes += _updates(row, current)
            left += (LeftRow(row.id, reason) for reason in _kept(row, current))
    for current in rows.values():
        if current.maker == "events" and current.id not in wanted and current.id not in spared:
            changes += _withdrawals(current)
            left += (LeftRow(current.id, ADMINS_ROW) for _ in range(current.has_additions))
    return RowPlan(tuple(changes), tuple(left))


def _not_ours(row: WantedRow, current: ExistingRow | None, taken: AbstractSet[str]) -> str:
    if current is not None and current.maker != "events":
        return BY_HAND if current.maker == "hand" else BY_UPLOAD
    return TAKEN if row.base and row.id in taken else ""


def _has_admins_grants(row: WantedRow, current: ExistingRow) -> bool:
    """Whether somebody else set the grants. What we want is ours, even where noting it failed."""
    return current.grants not in (current.given, row.grants)


def _has_admins_switch(row: WantedRow, current: ExistingRow) -> bool:
    return not current.has_given_switch and current.active != row.active


def _kept(row: WantedRow, current: ExistingRow) -> Iterator[str]:
    if _has_admins_grants(row, current):
        yield ADMINS_GRANTS
    if _has_admins_switch(row, current):
        yield ADMINS_SWITCH


def _updates(row: WantedRow, current: ExistingRow) -> Iterator[UpdateRow]:
    is_admins = _has_admins_grants(row, current)
    regrant = not is_admins and current.grants != row.grants
    switch = current.active != row.active and not _has_admins_switch(row, current)
    is_noted = is_admins or current.given == row.grants
    is_opened = bool(current.mark.get("opened"))
    differs = (current.base, current.alias, is_opened) != (row.base, row.alias, row.opened)
    written = current.meta.get("description")
    differs |= is_our_description(row.alias, written) and written != row.description
    if differs or regrant or switch or not is_noted:
        yield UpdateRow(row, regrant, switch)


def _withdrawals(current: ExistingRow) -> Iterator[DeleteRow | CloseRow]:
    if not current.has_additions:
        yield DeleteRow(current.id)
    elif current.grants and current.grants == current.given:
        yield CloseRow(current.id)


def closed_mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a row that is left to admins: that nobody else may use it is our doing."""
    return {MARK: {**mark, "grants": grant_forms(NOBODY)}}


class Absences:
    """Rows whose model is not there, and since when: a node that restarts must not empty the picker.

    A row that was withdrawn and is back while its model still is not was brought back by a replica that
    sees the model. It is then left to that replica, or the two would undo each other's work for ever.
    """

    def __init__(self, grace: float, clock: Callable[[], float]) -> None:
        """Begin with nothing missing; `grace` in the clock's seconds."""
        self._grace = grace
        self._clock = clock
        self._since: dict[str, float] = {}
        self._withdrawn: set[str] = set()

    def spared(self, missing: Iterable[str], present: AbstractSet[str]) -> frozenset[str]:
        """Those of the missing ids that stay for now."""
        now = self._clock()
        self._since = {model: self._since.get(model, now) for model in missing}
        self._withdrawn -= present
        return frozenset(
            model
            for model, since in self._since.items()
            if now - since < self._grace or model in self._withdrawn
        )

    def seconds(self, model: str) -> float | None:
        """How long a model is missing; None when it is not."""
        since = self._since.get(model)
        return None if since is None else self._clock() - since

    def withdrawn(self, model: str) -> None:
        """Note that a row was taken away."""
        self._withdrawn.add(model)
