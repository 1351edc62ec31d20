"""An event loop whose seconds are shorter than those of the wall: minutes of chats pass in seconds.

Client and nodes each run on one, so everything that either of them measures, waits for or gives up after is
in simulated seconds, and the router runs with the constants that it ships with. Only computing takes its real
time, which therefore counts `speed` times as much: keep the machine less than busy.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _FastSelector(selectors.DefaultSelector):
    """Waits for a part of the time that it is asked to wait."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout / self._speed if timeout else timeout)


class FastLoop(asyncio.SelectorEventLoop):
    """A loop on which `speed` seconds pass in one."""

    def __init__(self, speed: float) -> None:
        """Take the speed, which must be above 0."""
        self._speed = speed
        super().__init__(_FastSelector(speed))

    def time(self) -> float:
        """Simulated seconds since some moment."""
        return super().time() * self._speed


def run_fast(main: Coroutine[Any, Any, T], speed: float) -> T:
    """Run a coroutine on such a loop.

    Raises:
        ValueError: the speed is not above 0.
    """
    if not speed > 0:
        raise ValueError(f"speed must be above 0, not {speed!r}")
    with asyncio.Runner(loop_factory=lambda: FastLoop(speed)) as runner:
        return runner.run(main)
