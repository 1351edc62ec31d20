"""Which rows of Open WebUI's models table to write, so that users see what is offered to them. Decides only.

The events function and upload.py both publish. A row belongs to whoever made it, as the pack's mark in its
`meta` says: `{"kind", "id", "grants"}` is upload.py's; with `"by": "ollama_pack_events"` it is the events
function's, which also notes the switch that it gave. So an admin's change is seen and kept. The id is in the
mark because an admin's clone of a row copies `meta`. Rows without the mark are an admin's: they are never
changed, removed or adopted. upload.py takes over those rows of the events function that pack.yaml names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal

from ollama_pack.base.messages import message
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.access import covers
from ollama_pack.webui.audience import EVERYBODY, NOBODY, Grants, grant_forms
from ollama_pack.webui.model_rows import (
    ANSWERED_BY,
    MAKER,
    MARK,
    REPLAY,
    REPLAY_META,
    REPLAY_NAME,
    WITHOUT_TOOLS,
    ExistingRow,
    is_our_description,
)

BY_HAND = message("an admin made a model with this id by hand, and it is left as it is")
BY_UPLOAD = message("upload.py published it, and keeps it")
TAKEN = message("a connection offers a model of this name itself")
ADMINS_GRANTS = message("an admin changed who may use it, and that is kept")
NARROWER = message("an admin has set who may use it, and not all who may use its aliases are among them")
ADMINS_SWITCH = message("an admin switched it on or off, and that is kept")
SHOWN_MODELS = 4  # of those that answer for an alias, under its name in the picker
ADMINS_ROW = message("it is offered no more, and is kept because an admin changed something in it")

Maker = Literal["events", "upload"]


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
        hidden: keep it out of the picker, where the model stands already.
        active: it is switched on.
        opened: an admin has stated the audience: it opens the models behind it that have no row.
        tags: that the picker shows. Said once.
        maker: who makes the row.
        opens: the models without a row that its audience reaches through it alone.
        without_tools: the model cannot be offered tools. Said once: then an admin decides.
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
    maker: Maker = "events"
    opens: tuple[str, ...] = ()
    without_tools: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """What tells whose row it is, as `meta` holds it."""
        if self.maker == "upload":
            only_hides = self.hidden and not self.opened
            kind = "hidden" if only_hides else "alias" if self.alias else "base"
            said = {"kind": kind, "id": self.id, "grants": grant_forms(self.grants)}
            more: dict[str, Any] = {"opened": False} if only_hides else {}
            return {MARK: said | more | ({"opens": list(self.opens)} if self.opens else {})}
        kind = "alias" if self.base else "base"
        said = {"kind": kind, "id": self.id, "by": MAKER, "name": self.name, "alias": self.alias}
        given = {"grants": grant_forms(self.grants), "active": self.active, "opened": self.opened}
        return {MARK: said | given | ({"tags": list(self.tags)} if self.tags else {})}

    def meta_over(self, meta: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the row's `meta` becomes.

        Args:
            meta: as it is, with what an admin has put into it; None: there is no row yet.
        """
        if meta is None:
            about: dict[str, Any] = {
                "description": self.description,
                "hidden": self.hidden,
                "tags": [{"name": tag} for tag in self.tags],
                "capabilities": WITHOUT_TOOLS if self.without_tools else {},
            }
            return {key: value for key, value in about.items() if value} | self.mark
        new = dict(meta)
        written = new.get("description")
        if is_our_description(self.alias, written) or (self.description and self._restates and not written):
            new["description"] = self.description
        if self.hidden and self._restates:
            new["hidden"] = True
        if self.without_tools and new.get("capabilities") is None:
            new["capabilities"] = WITHOUT_TOOLS
        return new | self.mark

    @property
    def _restates(self) -> bool:
        """Whether it is said again each time. The events function says it once, then an admin decides."""
        return self.maker == "upload"


def alias_row(alias: str, base: str | None, grants: Grants, models: Sequence[str]) -> WantedRow:
    """The row by which an alias is a model that people see.

    Args:
        alias: its name.
        base: the model under it: the router's of that name, or one that the table names. None: a connection
            offers a model of this name, and the row only grants it.
        grants: who may use it.
        models: those that the table names for it, the preferred one first.
    """
    shown = ", ".join(models[:SHOWN_MODELS]) + (", …" if models[SHOWN_MODELS:] else "")
    return WantedRow(alias, alias, base, grants, alias, f"{ANSWERED_BY}{shown}")


def routed_model(alias: WantedRow) -> WantedRow:
    """The row of the router's model under an alias: for the same people, and not in the picker."""
    return replace(alias, id=ROUTER + alias.id, base=None, description="", hidden=True)


def opened_model(model: str, grants: Grants, maker: Maker = "events") -> WantedRow:
    """The row by which a model behind an alias is open to the alias's audience."""
    return WantedRow(model, model, None, grants, opened=True, maker=maker)


def hidden_twin(model: str) -> WantedRow:
    """The row that keeps a connection's model out of the picker. It lets nobody in and keeps nobody out."""
    return WantedRow(model, model, None, NOBODY, hidden=True, maker="upload")


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
    maker: Maker = "events",
) -> RowPlan:
    """Compare what is wanted with what is there.

    Carrying the plan out and planning again gives no change, from any replica. A row of ours is withdrawn
    when a connection begins to offer a model of its name: its grants would hold for that model.

    Args:
        wanted: the rows that there shall be, by id.
        rows: all rows that there are, by id.
        taken: ids of models that connections offer themselves: no alias may stand in their way.
        spared: ids of ours that stay for now though they are not wanted.
        maker: who publishes; the rows of the other one that are not wanted are the other one's.
    """
    changes: list[RowChange] = []
    left: list[LeftRow] = []
    for row in wanted.values():
        current = rows.get(row.id)
        if current is not None and _grants_already(row, current):
            continue
        if reason := _not_ours(row, current, taken):
            left.append(LeftRow(row.id, reason))
            changes += _withdrawals(current) if reason == TAKEN and current else ()
        elif current is None:
            changes.append(CreateRow(row))
        else:
            changes += _updates(row, current)
            left += (LeftRow(row.id, reason) for reason in _kept(row, current))
    for current in rows.values():
        if current.maker == maker and current.id not in wanted and current.id not in spared:
            changes += _withdrawals(current)
            left += (LeftRow(current.id, ADMINS_ROW) for _ in range(_is_admins_too(current)))
    return RowPlan(tuple(changes), tuple(left))


def _grants_already(row: WantedRow, current: ExistingRow) -> bool:
    """Whether an admin's own row lets in all for whom upload.py wants to open its model."""
    is_admins = row.maker == "upload" and current.maker == "hand"
    return is_admins and row.base is None and covers(current.grants, row.grants)


def _not_ours(row: WantedRow, current: ExistingRow | None, taken: AbstractSet[str]) -> str:
    if current is not None and current.maker == "hand":
        return NARROWER if row.maker == "upload" and row.base is None else BY_HAND
    if current is not None and current.maker == "upload" and row.maker == "events":
        return BY_UPLOAD
    return TAKEN if row.base and row.id in taken else ""


def _has_admins_grants(row: WantedRow, current: ExistingRow) -> bool:
    """Whether somebody else set the grants. What we want is ours, even where noting it failed."""
    return not current.has_given_grants and current.grants != row.grants


def _has_admins_switch(row: WantedRow, current: ExistingRow) -> bool:
    """Whether an admin's switch is kept: what pack.yaml names is on."""
    return row.maker == "events" and not current.has_given_switch and current.active != row.active


def _kept(row: WantedRow, current: ExistingRow) -> Iterator[str]:
    if _has_admins_grants(row, current):
        if row.maker == "events":
            yield ADMINS_GRANTS
        elif not covers(current.grants, row.grants):
            yield NARROWER
    if _has_admins_switch(row, current):
        yield ADMINS_SWITCH


def _updates(row: WantedRow, current: ExistingRow) -> Iterator[UpdateRow]:
    is_admins = _has_admins_grants(row, current)
    regrant = not is_admins and current.grants != row.grants
    switch = current.active != row.active and not _has_admins_switch(row, current)
    if _differs(row, current, is_noted=is_admins or current.given == row.grants) or regrant or switch:
        yield UpdateRow(row, regrant, switch)


def _differs(row: WantedRow, current: ExistingRow, *, is_noted: bool) -> bool:
    if row.maker == "upload":
        return current.base != row.base or row.meta_over(current.meta) != current.meta
    is_opened = bool(current.mark.get("opened"))
    differs = (current.base, current.alias, is_opened) != (row.base, row.alias, row.opened)
    written = current.meta.get("description")
    differs |= is_our_description(row.alias, written) and written != row.description
    return differs or not is_noted


def _is_admins_too(current: ExistingRow) -> bool:
    """Whether a row stays because of an admin. Grants do not hold what pack.yaml no longer names."""
    return current.has_settings if current.maker == "upload" else current.has_additions


def _withdrawals(current: ExistingRow) -> Iterator[DeleteRow | CloseRow]:
    if not _is_admins_too(current):
        yield DeleteRow(current.id)
    elif current.grants and (current.maker == "upload" or current.has_given_grants):
        yield CloseRow(current.id)


def closed_mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a row that is left to admins: that nobody else may use it is our doing."""
    return {MARK: {**mark, "grants": grant_forms(NOBODY)}}


def left_when_removed(row: ExistingRow) -> Grants | None:
    """Who may use a row once the pack is taken out. None: it goes, since all in it is the pack's.

    What an admin did to a row does not let in the people whom the pack let in.
    """
    if row.id == REPLAY and row.maker == "hand":
        said = {key: value for key, value in row.meta.items() if value}
        is_given = row.grants == EVERYBODY
        is_changed = (said, row.name, row.has_params, row.active) != (REPLAY_META, REPLAY_NAME, False, True)
    else:
        is_given = row.has_given_grants
        is_changed = row.has_settings or not row.has_given_switch
    if not is_given:
        return row.grants
    return NOBODY if is_changed else None


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
