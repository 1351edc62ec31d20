"""Virtual time for asyncio: hours of waiting pass at once, in order, without sleeping."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["StuckError", "run_virtually"]

T = TypeVar("T")


class StuckError(RuntimeError):
    """Everything waits, and nothing is due: time would stand still for ever."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it moves the time there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise StuckError("everything waits, and nothing is due")
        if not ready and timeout:
            self.now = max(
                self.now + timeout, math.nextafter(self.now, math.inf)
            )  # a large time must move too
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._times = _Selector()
        super().__init__(self._times)

    def time(self) -> float:
        return self._times.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop whose ``time()`` begins at 0 and jumps. It must not wait for the outside."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)
