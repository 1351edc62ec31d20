"""A streamed answer on its way from an event loop to a server that goes through it in threads.

anyio is imported where it is used: upload.py loads a pipeline where the server's packages are not.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from queue import Empty, SimpleQueue

LOOK_SECONDS = 0.2  # between two looks at whether the client is still there, while there is nothing to send
LINES_AHEAD = 512  # that are kept for a client who is slow to take them
SLOW_CLIENT_SECONDS = 0.05  # between two looks at whether he has taken some
FORGOTTEN_SECONDS = 2.0  # that lines lie there before somebody looks whether their stream is rubbish

log = logging.getLogger(__name__)

Lines = Callable[[], AsyncGenerator[str, None]]


class LineStream(Iterator[str]):
    """A streamed answer as the server takes it: an iterator that is gone through in its threads.

    No generator: behind one the server would put an end of its own, whatever the answer's really was.
    Closing it, or forgetting it, ends the generation. So does a client that leaves while it waits.
    """

    def __init__(
        self, lines: SimpleQueue[str | None], pump: Future[None], on_end: Callable[[], None]
    ) -> None:
        """Take what `Bridge.stream` has made.

        Args:
            lines: what comes, None at the end.
            pump: what brings it.
            on_end: called once.
        """
        self._lines = lines
        self._pump = pump
        self._on_end = on_end
        self._ended = False

    def __next__(self) -> str:
        """Everything that has come, as soon as there is something."""
        while not self._ended:
            try:
                text = self._joined(self._lines.get(timeout=LOOK_SECONDS))
            except Empty:
                text = ""
            if _client_has_left():
                self.close()
            elif text:
                return text
        raise StopIteration

    def _joined(self, line: str | None) -> str:
        """The line and what lies ready behind it: the way through the server's threads is the dear part."""
        taken = []
        while line is not None:
            taken.append(line)
            try:
                line = self._lines.get_nowait()
            except Empty:
                return "".join(taken)
        self._end()
        return "".join(taken)

    def close(self) -> None:
        """End the generation if it has not ended. Waits for nothing, and may be called again."""
        if not self._ended:
            self._pump.cancel()
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._on_end()

    def __del__(self) -> None:
        """A server that loses its client between two lines forgets the iterator without closing it."""
        self.close()


async def pump_lines(lines: Lines, kept: SimpleQueue[str | None]) -> None:
    """Bring the lines of an answer. Knows nothing of the stream: who forgets that must be noticed."""
    reader = _Reader(kept)
    try:
        async with aclosing(lines()) as coming:
            async for line in coming:
                await reader.look()
                kept.put(line)
                await asyncio.sleep(0)  # so that another thread can run, and takes it now
                while kept.qsize() > LINES_AHEAD:
                    await asyncio.sleep(SLOW_CLIENT_SECONDS)
                    await reader.look()
    except Exception:
        log.exception("A stream broke off")
    finally:
        kept.put(None)


class _Reader:
    """Who takes the lines of an answer, as the pump sees him: quick, slow, or gone without a word.

    A server whose client leaves between two lines holds the stream in a cycle of objects, and only collecting
    such rubbish tells that apart from a client who is slow.
    """

    def __init__(self, kept: SimpleQueue[str | None]) -> None:
        self._kept = kept
        self._clock = asyncio.get_running_loop().time
        self._taken_at = self._clock()
        self._patience = FORGOTTEN_SECONDS

    async def look(self) -> None:
        """Have rubbish collected where nothing was taken for a while; of a slow client ever more rarely."""
        now = self._clock()
        if self._kept.empty():
            self._taken_at = now
        elif now - self._taken_at > self._patience:
            self._patience *= 2
            await asyncio.to_thread(gc.collect)


def _client_has_left() -> bool:
    """Whether the server has given up the request that this thread works for."""
    from anyio.from_thread import check_cancelled  # noqa: PLC0415 - see the top

    try:
        check_cancelled()
    except asyncio.CancelledError:
        return True
    except RuntimeError:  # no thread of a server
        return False
    return False
