"""One answer for many askers: asked for once, given to all who wait, and kept for a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """However many ask, the source is asked at most once at a time and once in so many seconds."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[T]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            ask: gives the answer; what it raises reaches those who wait, and is not kept.
            seconds: how long an answer is kept, on the clock.
            clock: monotonic seconds.
        """
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._kept: tuple[float, T] | None = None
        self._task: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """The answer, at most so many seconds old."""
        if self._kept is not None and self._clock() < self._kept[0]:
            return self._kept[1]
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew())
            self._task.add_done_callback(_retrieve)
        return await asyncio.shield(self._task)  # one who gives up takes nothing from the others

    def keep(self, answer: T) -> None:
        """Keep an answer that is known from elsewhere."""
        self._kept = (self._clock() + self._seconds, answer)

    def forget(self) -> None:
        """Keep nothing, not even what is being asked for."""
        self._kept, self._task = None, None

    async def _renew(self) -> T:
        task = asyncio.current_task()
        try:
            answer = await self._ask()
            if self._task is task:
                self.keep(answer)
            return answer
        finally:
            if self._task is task:
                self._task = None


def _retrieve(task: asyncio.Task[T]) -> None:
    """Look at the error even when all who waited have left, or asyncio complains of it."""
    if not task.cancelled():
        task.exception()
