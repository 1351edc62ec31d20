"""The pace of a simulated answer."""

import asyncio
from collections.abc import AsyncIterator


class TokenTimes:
    """When the tokens of an answer are there: yields how many are by now, and ends one pause after the last.

    Args:
        count: tokens in all. The first is there at once.
        pause: seconds between two.
        least: seconds between two yields, but the last token is never held back.
    """

    def __init__(self, count: int, pause: float, least: float) -> None:
        self._count = count
        self._pause = pause
        self._least = least

    async def __aiter__(self) -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        began, due = loop.time(), 0
        while due < self._count:
            now = loop.time()
            before, due = due, self._due(now - began)
            if due > before:
                yield due
            if due < self._count:
                latest = began + (self._count - 1) * self._pause
                at = max(began + due * self._pause, min(now + self._least, latest))
                await asyncio.sleep(max(0.0, at - loop.time()))
        await asyncio.sleep(max(0.0, began + self._count * self._pause - loop.time()))

    def _due(self, elapsed: float) -> int:
        if not self._pause:
            return self._count
        return min(self._count, 1 + int(elapsed / self._pause + 1e-6))
