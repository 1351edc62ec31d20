"""Time limits around many short waits, as `asyncio.timeout` sets them, for less.

`asyncio.timeout` makes a timer for each wait, and two coroutines to enter and leave it: a sixteenth of what a
cache costs a request. Nearly all waits are over long before their limit, so here they share a timer.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class _Wait:
    """A task that waits, until when it may by the loop's clock, and whether it was cancelled for that."""

    __slots__ = ("end", "late", "task")

    def __init__(self, task: asyncio.Task[Any], end: float) -> None:
        self.task = task
        self.end = end
        self.late = False


class TimeLimits:
    """Limits of any length. Used from one event loop."""

    def __init__(self) -> None:
        self._waits: set[_Wait] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, seconds: float, step: Awaitable[T]) -> T:
        """What a step gives, if it does so in time; otherwise the step is cancelled.

        Raises:
            TimeoutError: the time ran out. Whoever cancels the task meanwhile is heard all the same.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit is for a task")
        wait = _Wait(task, loop.time() + seconds)
        self._waits.add(wait)
        if self._timer is None or wait.end < self._timer.when():
            self._wake_at(wait.end, loop)
        before = task.cancelling()
        try:
            return await step
        except asyncio.CancelledError as error:
            if not wait.late:
                raise
            wait.late = False
            if task.uncancel() > before:  # somebody else cancelled it too
                raise
            raise TimeoutError from error
        finally:
            self._waits.discard(wait)
            if wait.late:  # the step ended in another way
                task.uncancel()

    def _wake_at(self, end: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(end, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now, ends = loop.time(), []
        for wait in self._waits:
            if wait.end > now:
                ends.append(wait.end)
            elif not wait.late:
                wait.late = True
                wait.task.cancel()
        if ends:
            self._wake_at(min(ends), loop)
