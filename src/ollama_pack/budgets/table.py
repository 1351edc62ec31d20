"""The budget table: a row a line, read once and then only looked up.

For example::

    everyone         200 requests/day                                # each user for themselves
    role=user        120 gpu-minutes/day  burst=10  then=queue-last
    group=students   500000 tokens/week   then=llama3:8b             # a smaller model answers
    group="grade 7"  40 gpu-minutes/day   shared                     # all members together
    user=ann@example.org  600 gpu-minutes/day
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from ollama_pack.base.messages import message, said_by
from ollama_pack.base.tables import table_rows
from ollama_pack.budgets.errors import BudgetTableError
from ollama_pack.budgets.period import PERIODS, PeriodName

Measure = Literal["gpu", "tokens", "requests"]
SubjectKind = Literal["user", "group", "role", "everyone"]

MAX_BUDGET_ROWS = 500
MAX_AMOUNT = 10**12
REFUSE, QUEUE_LAST = "refuse", "queue-last"

# Unit → what is counted, and in which steps: GPU time is counted in milliseconds.
_UNITS: dict[str, tuple[Measure, int]] = {
    "gpu-seconds": ("gpu", 1_000),
    "gpu-minutes": ("gpu", 60_000),
    "tokens": ("tokens", 1),
    "requests": ("requests", 1),
}
_CLOSEST_FIRST: tuple[SubjectKind, ...] = ("user", "group", "role", "everyone")
_ROLES = ("user", "admin")
_BUDGET_WORD = re.compile(r'[\w-]+="[^"]*"|\S+')
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,3})?")
_MAIL = re.compile(r"[^@\s]+@[^@\s]+")
_FORM = message("write it as `group=students 120 gpu-minutes/day burst=10 then=queue-last`")


@dataclass(frozen=True, slots=True)
class BudgetSubject:
    """Whom a row is about.

    Attributes:
        kind: how it names them.
        name: a group's name, a role or an e-mail address; empty: everyone.
    """

    kind: SubjectKind
    name: str = ""

    @property
    def text(self) -> str:
        """As it stands in a row."""
        return f"{self.kind}={_quoted(self.name)}" if self.name else self.kind


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _unquoted(value: str) -> str:
    return value.strip('"').strip()


@dataclass(frozen=True, slots=True)
class BudgetUser:
    """A user, as the table knows people.

    Attributes:
        id: Open WebUI's.
        email: the address, in any case of letters.
        role: user or admin.
        groups: names of the groups that the user is a member of.
    """

    id: str
    email: str = ""
    role: str = "user"
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One row.

    Attributes:
        subject: whom it is about.
        amount: what may be used in a period: milliseconds of GPU time, tokens or requests.
        unit: as it is written, such as `gpu-minutes`.
        period: how long the amount lasts.
        shared: all of the subject share one amount; else each user has it.
        burst: how much more may be used once; the next period begins with what went beyond the amount.
        then: what happens to a chat once the budget is used up: `refuse`, `queue-last`, or the name of the
            model that answers instead.
        line: its number in the text, from 1.
    """

    subject: BudgetSubject
    amount: int
    unit: str
    period: PeriodName
    shared: bool = False
    burst: int = 0
    then: str = REFUSE
    line: int = field(default=0, compare=False)

    @property
    def measure(self) -> Measure:
        return _UNITS[self.unit][0]

    @property
    def scale(self) -> int:
        """How many counted steps make one of the unit."""
        return _UNITS[self.unit][1]

    def in_unit(self, steps: float) -> float:
        """Counted steps in the row's unit, such as 1.5 minutes."""
        return round(max(0.0, steps) / self.scale, 3)

    @property
    def text(self) -> str:
        """The row in the table's own notation; parsing it gives the row back."""
        words = [self.subject.text, f"{self.in_unit(self.amount):.15g} {self.unit}/{self.period}"]
        words += ["shared"] if self.shared else []
        words += [f"burst={self.in_unit(self.burst):.15g}"] if self.burst else []
        return " ".join([*words, f"then={_quoted(self.then)}"])

    def names(self, user: BudgetUser) -> bool:
        """Whether the row is about a user."""
        name = self.subject.name
        match self.subject.kind:
            case "user":
                return name == user.email.casefold()
            case "group":
                return name in user.groups
            case "role":
                return name == user.role
        return True

    def counter(self, user: BudgetUser) -> str:
        """The name of the counter that a user's chats count on.

        It holds no amount and, for a budget that each user has, no subject: what a user has used stays when
        an admin changes the table.
        """
        whose = f"all {self.subject.text}" if self.shared else f"user {user.id}"
        return f"{self.measure} {self.period} {whose}"


@dataclass(frozen=True, slots=True)
class BudgetTable:
    """The rows, as `parse_budgets` reads them."""

    rows: tuple[BudgetRow, ...] = ()

    @property
    def uses_groups(self) -> bool:
        """Whether a row asks for the user's groups, which cost a look into the database."""
        return any(row.subject.kind == "group" for row in self.rows)

    @property
    def groups(self) -> frozenset[str]:
        """The names of all groups that have a row."""
        return frozenset(row.subject.name for row in self.rows if row.subject.kind == "group")

    def rows_for(self, user: BudgetUser) -> tuple[BudgetRow, ...]:
        """The rows that hold for a user.

        Shared budgets all do. Of the others the one that names the user most closely holds, for each measure
        and period: `user=`, then `group=` (of several groups the largest amount), `role=`, `everyone`.
        """
        held: dict[tuple[Measure, PeriodName], BudgetRow] = {}
        shared = []
        for row in self.rows:
            if not row.names(user):
                continue
            if row.shared:
                shared.append(row)
                continue
            place = row.measure, row.period
            if place not in held or _closeness(row) < _closeness(held[place]):
                held[place] = row
        return (*held.values(), *shared)


def _closeness(row: BudgetRow) -> tuple[int, int]:
    return _CLOSEST_FIRST.index(row.subject.kind), -row.amount


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_budgets(text: str) -> BudgetTable:
    """Read a table: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        BudgetTableError: naming the row, the value that is wrong and what to do.
    """
    rows: list[BudgetRow] = []
    for line, written in table_rows(text):
        try:
            row = _parse_row(line, written)
            _refuse_repeated_row(row, rows)
        except ValueError as fault:
            raise BudgetTableError(line, written, said_by(fault)) from None
        rows.append(row)
    return BudgetTable(tuple(rows))


def _parse_row(line: int, written: str) -> BudgetRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    words = _BUDGET_WORD.findall(written)
    if len(words) < 3:  # noqa: PLR2004 - a subject, a number, a unit
        raise ValueError(message("it is not complete: {form}", form=_FORM))
    subject = _subject(words[0])
    unit, period = _unit_and_period(words[2])
    scale = _UNITS[unit][1]
    amount = _amount(words[1], unit, scale)
    settings = _settings_of(words[3:])
    burst = _amount(settings["burst"], unit, scale, "burst=") if "burst" in settings else 0
    if burst > amount:
        raise ValueError(
            message(
                "burst={burst} is more than the amount {amount}: raise the amount",
                burst=settings["burst"],
                amount=words[1],
            )
        )
    shared = "shared" in settings
    if shared and subject.kind == "user":
        raise ValueError(message("user= names one person: leave shared out"))
    return BudgetRow(subject, amount, unit, period, shared, burst, settings.get("then", REFUSE), line)


def _subject(word: str) -> BudgetSubject:
    kind, equals, value = word.partition("=")
    name = _unquoted(value)
    if word == "everyone":
        return BudgetSubject("everyone")
    if not equals or kind not in ("group", "role", "user"):
        raise ValueError(
            message(
                "{word!r} does not say whose budget it is: begin with everyone, role=user, "
                "group=NAME or user=ADDRESS",
                word=word,
            )
        )
    if not name:
        raise ValueError(message("{kind}= has no name: write it after the =", kind=kind))
    if kind == "role":
        if name not in _ROLES:
            raise ValueError(
                message(
                    "role={name} is not a known role: the roles are {roles}",
                    name=name,
                    roles=message(" and ").join(_ROLES),
                )
            )
        return BudgetSubject("role", name)
    if kind == "group":
        return BudgetSubject("group", name)
    if not _MAIL.fullmatch(name):
        raise ValueError(
            message(
                "user={name} is not an e-mail address: write the one that the user signs in with", name=name
            )
        )
    return BudgetSubject("user", name.casefold())


def _unit_and_period(word: str) -> tuple[str, PeriodName]:
    unit, _, name = word.partition("/")
    if unit not in _UNITS:
        raise ValueError(
            message(
                "{word!r} is not a known unit: use {units}, as in gpu-minutes/day",
                word=word,
                units=", ".join(_UNITS),
            )
        )
    for period in PERIODS:
        if name == period:
            return unit, period
    raise ValueError(
        message(
            "{word!r} names no known period: write {unit}/day, {unit}/week or {unit}/month",
            word=word,
            unit=unit,
        )
    )


def _amount(word: str, unit: str, scale: int, named: str = "") -> int:
    number = float(word) if _NUMBER.fullmatch(word) else math.nan
    steps = number * scale
    if not 1 <= steps <= MAX_AMOUNT or (scale == 1 and not number.is_integer()):
        kind = message("a whole number") if scale == 1 else message("a number")
        raise ValueError(
            message(
                "{named}{word} cannot be used: {unit} need {kind} above 0, such as 100",
                named=named,
                word=word,
                unit=unit,
                kind=kind,
            )
        )
    return round(steps)


def _settings_of(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        value = _unquoted(value)
        if word != "shared" and not (equals and name in ("burst", "then")):
            raise ValueError(
                message(
                    "{word!r} is not known: after the unit come shared, burst=NUMBER and then=ACTION",
                    word=word,
                )
            )
        if name in found:
            raise ValueError(message("{name} is set twice: keep one of them", name=name))
        if equals and not value:
            raise ValueError(message("{name}= is empty: write its value, or leave it out", name=name))
        found[name] = value
    return found


def _refuse_repeated_row(row: BudgetRow, before: Sequence[BudgetRow]) -> None:
    place = row.subject, row.measure, row.period, row.shared
    for other in before:
        if place == (other.subject, other.measure, other.period, other.shared):
            raise ValueError(
                message(
                    "row {line} has a budget of {subject} for the same thing and the same period "
                    "already: keep one of them",
                    line=other.line,
                    subject=row.subject.text,
                )
            )
    if len(before) >= MAX_BUDGET_ROWS:
        raise ValueError(
            message(
                "at most {limit} rows can be used: name groups instead of users",
                limit=MAX_BUDGET_ROWS,
            )
        )
