"""Days, weeks and months in the site's time zone."""

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from ollama_pack.base.messages import message

PeriodName = Literal["day", "week", "month"]
PERIODS: tuple[PeriodName, ...] = get_args(PeriodName)
_MOST_DAYS = {"day": 1, "week": 7, "month": 31}


@dataclass(frozen=True, slots=True)
class Period:
    """One day, week or month, in seconds since the epoch.

    Attributes:
        before: when the period before it began.
        start: when it began.
        end: when the next one begins.
    """

    before: int
    start: int
    end: int


@lru_cache(maxsize=64)
def site_zone(name: str) -> tzinfo | None:
    """The time zone of a name such as `Europe/Berlin`; None, the server's own, where the name is empty.

    Raises:
        ValueError: there is no such time zone.
    """
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(
            message(
                "time_zone: {name!r} is not a known time zone: write one such as Europe/Berlin, or "
                "leave it empty for the server's own",
                name=name,
            )
        ) from None


def local_time(moment: float, zone: tzinfo | None) -> datetime:
    """A moment as the clocks of the site show it."""
    return datetime.fromtimestamp(moment, zone) if zone else datetime.fromtimestamp(moment).astimezone()


def period_at(moment: float, name: PeriodName, zone: tzinfo | None) -> Period:
    """The period that a moment is in: days and weeks begin at midnight, weeks on Monday."""
    local = local_time(moment, zone)
    # A midnight that comes twice counts as the first one.
    today = local.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
    start = _first_day(today, name)
    before = _first_day(start - timedelta(days=1), name)
    after = _first_day(start + timedelta(days=_MOST_DAYS[name]), name)
    return Period(*(_timestamp(day, zone) for day in (before, start, after)))


def _first_day(day: datetime, name: PeriodName) -> datetime:
    if name == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if name == "month" else day


def _timestamp(midnight: datetime, zone: tzinfo | None) -> int:
    """The moment of a local midnight; where a change of the clock skips it, the moment of the change."""
    return int((midnight.replace(tzinfo=zone) if zone else midnight).timestamp())
