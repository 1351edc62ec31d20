"""The `warm` valve: models that are kept in memory at certain hours, a row a line.

For example::

    llama3:8b    = Mon-Fri 07:30-17:00
    qwen3:14b    = Mon-Fri 08:00-12:00, Sat 09:00-11:00  copies=2
    mixtral:8x7b = 22:00-02:00  zone=Asia/Shanghai
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ollama_pack.base.messages import message, said_by
from ollama_pack.base.tables import table_rows
from ollama_pack.routing.errors import WarmTableError

MAX_WARM_ROWS = 200
MAX_COPIES = 64
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:-[a-z]{3})?)\s+)?(?P<begins>[0-9]{1,2}:[0-9]{2})-(?P<ends>[0-9]{1,2}:[0-9]{2})"
)
_MINUTES_A_DAY = 24 * 60
_WARM_SETTINGS = "copies=N, zone=Europe/Berlin"


@dataclass(frozen=True, slots=True)
class Span:
    """Hours on some days of the week. One that ends before it begins ends on the next day.

    Attributes:
        days: 0 is Monday.
        begins, ends: minutes after midnight.
    """

    days: frozenset[int]
    begins: int
    ends: int

    def seconds_left(self, now: datetime) -> float:
        """How long it still lasts; 0: it does not last now."""
        length = (self.ends - self.begins) % _MINUTES_A_DAY or _MINUTES_A_DAY
        for back in (0, 1):
            day = now - timedelta(days=back)
            began = day.replace(hour=self.begins // 60, minute=self.begins % 60, second=0, microsecond=0)
            passed = (now - began).total_seconds()
            if day.weekday() in self.days and 0 <= passed < length * 60:
                return length * 60 - passed
        return 0.0


@dataclass(frozen=True, slots=True)
class WarmRow:
    """A model that is kept in memory at certain hours.

    Attributes:
        model: its name; an alias is none.
        spans: the hours.
        copies: on so many nodes.
        zone: the time zone that the hours are in; empty: the server's.
        line: its number in the text, from 1.
    """

    model: str
    spans: tuple[Span, ...]
    copies: int = 1
    zone: str = ""
    line: int = 0

    def seconds_left(self, now: datetime) -> float:
        """How long the model is to stay in memory from now on; 0: it is not.

        Args:
            now: with a time zone.
        """
        local = now.astimezone(ZoneInfo(self.zone)) if self.zone else now.astimezone()
        return max((span.seconds_left(local) for span in self.spans), default=0.0)


@lru_cache(maxsize=16)  # valves are read again at every request, and nearly always hold the same text
def parse_warm(text: str) -> tuple[WarmRow, ...]:
    """Read the rows: `#` starts a comment, empty lines are skipped.

    Raises:
        WarmTableError: naming the row and what is wrong with it.
    """
    rows: list[WarmRow] = []
    for line, written in table_rows(text):
        try:
            rows.append(_warm_row(line, written))
            _refuse_more(rows)
        except ValueError as fault:
            raise WarmTableError(line, written, said_by(fault)) from None
    return tuple(rows)


def _refuse_more(rows: list[WarmRow]) -> None:
    *before, row = rows
    if any(row.model == other.model for other in before):
        raise ValueError(
            message(
                "{model} has a row already: put all its hours into that one, with commas", model=row.model
            )
        )
    if len(rows) > MAX_WARM_ROWS:
        raise ValueError(message("at most {count} models can be kept in memory", count=MAX_WARM_ROWS))


def _warm_row(line: int, written: str) -> WarmRow:
    model, equals, rest = map(str.strip, written.partition("="))
    if not equals or not model or re.search(r"[\s,]", model):
        raise ValueError(
            message("write it as `llama3:8b = Mon-Fri 07:30-17:00`: a model, an equals sign, hours")
        )
    hours, copies, zone = [], 1, ""
    for word in rest.split():
        name, has_value, value = word.partition("=")
        if not has_value:
            hours.append(word)
        elif name == "copies" and value.isdecimal() and 1 <= int(value[:6]) <= MAX_COPIES:
            copies = int(value)
        elif name == "zone":
            zone = _zone(value)
        else:
            raise ValueError(
                message(
                    "unknown setting {name!r}: the known ones are {known}", name=word, known=_WARM_SETTINGS
                )
            )
    spans = tuple(_span(part.strip()) for part in " ".join(hours).split(",") if part.strip())
    if not spans:
        raise ValueError(message("hours are missing: write them as Mon-Fri 07:30-17:00, several with commas"))
    return WarmRow(model, spans, copies, zone, line)


def _span(written: str) -> Span:
    found = _SPAN.fullmatch(written.lower())
    if found is None:
        raise ValueError(
            message(
                "{written!r} cannot be read: write hours as Mon-Fri 07:30-17:00, or 07:30-17:00",
                written=written,
            )
        )
    days, begins, ends = (
        _days(found["days"] or "mon-sun"),
        _minutes(found["begins"]),
        _minutes(found["ends"]),
    )
    if begins == _MINUTES_A_DAY:  # the end of a day is the next day's beginning
        days = frozenset((day + 1) % 7 for day in days)
    return Span(days, begins % _MINUTES_A_DAY, ends % _MINUTES_A_DAY)


def _days(written: str) -> frozenset[int]:
    first, _, last = written.partition("-")
    for day in (first, last or first):
        if day not in _DAYS:
            raise ValueError(
                message(
                    "{day!r} is not a day: write Mon, Tue, Wed, Thu, Fri, Sat, Sun or two with a dash",
                    day=day,
                )
            )
    begin, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset((begin + offset) % 7 for offset in range((end - begin) % 7 + 1))


def _minutes(written: str) -> int:
    hour, minute = map(int, written.split(":"))
    if hour > 24 or minute > 59 or (hour == 24 and minute):  # noqa: PLR2004 - a clock's
        raise ValueError(
            message("{written!r} is not a time: write it as 07:30, at most 24:00", written=written)
        )
    return 60 * hour + minute


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            message("zone={name} is unknown: write it as Europe/Berlin or Asia/Shanghai", name=name)
        ) from None
    return name
