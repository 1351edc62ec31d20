"""One recording at a time on this machine's own processors, first come, first served, each told its place."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ollama_pack.speech.errors import SpeechQueueFullError
from ollama_pack.speech.process import process_wide
from ollama_pack.speech.values import WaitCallback

MAX_WAITING = 16

_Tell = Callable[[int], None]  # gets how many are before it


class TurnLine:
    """A line of recordings. They may come of different event loops and threads."""

    def __init__(self, line: list[_Tell], lock: threading.Lock, limit: int = MAX_WAITING) -> None:
        """Share a line.

        Args:
            line: those who are in it, the first of whom works.
            lock: held while the line changes.
            limit: how many may wait.
        """
        self._line = line
        self._lock = lock
        self._limit = limit

    @asynccontextmanager
    async def turn(self, on_wait: WaitCallback) -> AsyncIterator[None]:
        """Wait for one's turn, and have it within the block.

        Args:
            on_wait: called with the number of those before, at the beginning and whenever it changes.

        Raises:
            SpeechQueueFullError: too many wait.
        """
        loop = asyncio.get_running_loop()
        places: asyncio.Queue[int] = asyncio.Queue()

        def tell(place: int) -> None:
            loop.call_soon_threadsafe(places.put_nowait, place)

        place = self._join(tell)
        try:
            while place:
                await on_wait(place)
                place = await places.get()
                while not places.empty():
                    place = places.get_nowait()
            yield
        finally:
            self._leave(tell)

    def _join(self, tell: _Tell) -> int:
        with self._lock:
            waiting = max(0, len(self._line) - 1)
            if self._line and waiting >= self._limit:
                raise SpeechQueueFullError(self._limit, waiting)
            self._line.append(tell)
            return len(self._line) - 1

    def _leave(self, tell: _Tell) -> None:
        """Those behind move up; who can no longer be told, because its event loop has ended, leaves too."""
        with self._lock:
            self._line.remove(tell)
            for other in tuple(self._line):
                try:
                    other(self._line.index(other))
                except RuntimeError:
                    self._line.remove(other)


def local_line() -> TurnLine:
    """The line of this process."""
    return TurnLine(process_wide("line", list), process_wide("line lock", threading.Lock))
