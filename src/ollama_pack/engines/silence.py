"""A limit on the silence between two pieces of a stream, with one timer for all of them."""

import asyncio
from typing import Self

import aiohttp


class SilenceWatch:
    """Ends a read of a stream that has waited longer than a limit.

    A timer for each read, as `asyncio.timeout` has one, costs as much as all else that is done for a token.

    Attributes:
        is_over: it was too long; the read has ended with an error.
    """

    def __init__(self, stream: aiohttp.StreamReader, seconds: float) -> None:
        """Watch nothing yet.

        Args:
            stream: what is read.
            seconds: the limit.
        """
        self.is_over = False
        self._stream = stream
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """A read begins."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        """It has ended."""
        self._since = None

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """End the read, or come again when it will have lasted too long."""
        self._timer = None
        if self._since is None:  # the next read sets a new timer
            return
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self.is_over = True
        self._stream.set_exception(TimeoutError("silent for too long"))
