"""Faults on command: what goes wrong at a node, where, and how often."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter

from harness.ollama_wire import full_name

__all__ = ["BEFORE", "INSTEAD", "WITHIN", "Fault", "FaultBook", "FaultKind", "fault_of"]

FaultKind = Literal[
    "refuse",
    "hang",
    "slow",
    "error",
    "reset",
    "html",
    "crash",
    "stall",
    "garbage",
    "truncated",
    "no_done",
]
WITHIN = frozenset({"crash", "stall", "garbage", "truncated", "no_done"})
BEFORE = frozenset(get_args(FaultKind)) - WITHIN
INSTEAD = frozenset({"reset", "html"})  # no answer comes, and the client sees so at once


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. Seconds are those of the wall.

    Attributes:
        kind: before the answer: "refuse" (nobody listens; what runs goes on), "hang" (nothing is ever said),
            "slow" (the first byte comes ``seconds`` later), "error" (``status`` and ``message`` instead of an
            answer), "reset" (the connection is cut), "html" (a page with status 200, as of a proxy). In the
            answer, after ``after`` tokens, or in half of an answer in one piece: "crash" (the connection is
            cut), "stall" (nothing follows), "garbage" (a line that is no JSON), "truncated" (half a line,
            then the end), "no_done" (a line without `done`, then the end).
        times: how many requests it hits; None: all until it is cleared. "refuse" cannot count.
        path: such as /api/chat; None: each but those of the control.
        model: in any spelling; None: each, and requests that name none.
        status: of "error".
        message: of "error".
        seconds: of "slow"; with "refuse", after how long the node listens again, 0 for when it is cleared.
        after: tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: FaultKind
    times: int | None = None
    path: str | None = None
    model: str | None = None
    status: int = 500
    message: str = "simulated fault"
    seconds: float = 0.0
    after: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names the field and its value.
        """
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(FaultKind))}, not {self.kind!r}")
        if self.times is not None and self.times < 1:
            raise ValueError(f"times must be at least 1, not {self.times!r}")
        if self.kind == "refuse" and (self.times, self.path, self.model) != (None, None, None):
            raise ValueError(
                '"refuse" concerns the whole node: use "reset" for some requests or a number of them'
            )
        if self.seconds < 0 or self.after < 0:
            raise ValueError(f"seconds and after must not be negative: {self.seconds!r}, {self.after!r}")

    def concerns(self, path: str, model: str | None) -> bool:
        if self.path not in (None, path):
            return False
        return self.model is None or (model is not None and _same(self.model, model))


_READER = TypeAdapter(Fault)


def fault_of(value: Any) -> Fault:
    """Read a fault from JSON.

    Raises:
        ValueError: an unknown field, or a value that cannot be.
    """
    return _READER.validate_python(value)


class FaultBook:
    """The faults that are in force. The first one that concerns a request hits it. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[Fault, int | None]] = []  # with how often it still hits
        self.hits = 0

    @property
    def active(self) -> list[Fault]:
        with self._lock:
            return [fault for fault, _ in self._left]

    def add(self, faults: Iterable[Fault]) -> None:
        with self._lock:
            self._left.extend((fault, fault.times) for fault in faults)

    def remove(self, fault: Fault) -> None:
        with self._lock:
            self._left = [entry for entry in self._left if entry[0] is not fault]

    def clear(self) -> None:
        with self._lock:
            self._left.clear()

    def take(self, path: str, model: str | None) -> Fault | None:
        """Return what hits this request, and count it."""
        with self._lock:
            for place, (fault, left) in enumerate(self._left):
                if fault.concerns(path, model):
                    self.hits += 1
                    if left is not None:
                        self._left[place : place + 1] = [(fault, left - 1)] if left > 1 else []
                    return fault
        return None


def _same(name: str, other: str) -> bool:
    try:
        return full_name(name) == full_name(other)
    except ValueError:
        return name == other
