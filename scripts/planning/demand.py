"""What people ask for: chats from the router's record, from a file, or as pack.yaml has its models."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.shown import message

MAX_RECORDS = 10_000
MAX_LINE = 2**20
MAX_TOKENS = 10**7
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One chat of the record.

    Attributes:
        at: when it came, in seconds.
        model: that answered.
        user: who asked, as the record names people.
        prompt: tokens, and `held` of these that were in a node's cache.
        written: tokens of the answer.
        seconds: that it held a slot.
        background: nobody waited for it.
    """

    at: float
    model: str
    user: str
    prompt: int
    held: int
    written: int
    seconds: float
    background: bool


@dataclass(frozen=True, slots=True)
class Speeds:
    """What the record says of the nodes: tokens a second, and bytes a second of a load."""

    prompt: float = 700.0
    decode: float = 40.0
    load: float = 1.0e9


def asked_in(records: Iterable[Mapping[str, Any]]) -> list[Asked]:
    """The chats of a record that a node has answered, the oldest first; odd ones are passed over."""
    found = [one for record in records if (one := _asked(record))]
    return sorted(found, key=lambda one: one.at)[-MAX_RECORDS:]


def _asked(record: Mapping[str, Any]) -> Asked | None:
    model, at = record.get("model"), _number(record.get("at"), 1e12)
    if not isinstance(model, str) or not model or not at:
        return None
    took = _number(record.get("took"), 1e6)
    waited = min(took, _number(record.get("waited"), 1e6))
    prompt = int(_number(record.get("prompt"), MAX_TOKENS))
    return Asked(
        at=at - took,
        model=model,
        user=str(record.get("user") or ""),
        prompt=max(1, prompt),
        held=min(prompt, int(_number(record.get("held"), MAX_TOKENS))),
        written=max(1, int(_number(record.get("written"), MAX_TOKENS))),
        seconds=took - waited,
        background=record.get("background") is True,
    )


def _number(value: object, most: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    return float(value) if good else 0.0  # type: ignore[arg-type] # a number, as `good` says


def read_record(path: Path) -> list[Asked]:
    """The chats in a file: a JSON object on each line, as the dashboard exports them.

    Raises:
        DeployError: it cannot be read.
    """
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > MAX_LINE:
                    raise DeployError(
                        message(
                            "{path}, line {number}: it is longer than {limit} characters",
                            path=path,
                            number=number,
                            limit=MAX_LINE,
                        )
                    )
                if line.strip():
                    found.append(_object(line, message("{path}, line {number}", path=path, number=number)))
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(message("{path} cannot be read: {error}", path=path, error=error)) from None
    return asked_in(found)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DeployError(
            message("{where}: it is no JSON. Write a JSON object on each line.", where=where)
        ) from None
    if not isinstance(value, dict):
        raise DeployError(message("{where}: it is no JSON object. Write one on each line.", where=where))
    return value


def busiest_hour(asked: Sequence[Asked]) -> dict[str, float]:
    """Model → requests of it that run at once, on average, in the hour in which most do."""
    hours: dict[int, dict[str, float]] = {}
    for one in asked:
        hour = hours.setdefault(int(one.at // HOUR), {})
        hour[one.model] = hour.get(one.model, 0.0) + one.seconds / HOUR
    return max(hours.values(), key=lambda hour: sum(hour.values()), default={})


def speeds_of(asked: Sequence[Asked]) -> Speeds:
    """How fast the nodes were, as far as the record shows it."""
    usual = Speeds()
    rates = [one.written / one.seconds for one in asked if one.seconds > 1 and one.written > 20]  # noqa: PLR2004 - enough to tell
    return Speeds(decode=statistics.median(rates)) if rates else usual
