"""An answer while it is being generated: any number of listeners get it from the start."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Literal

from ollama_pack.cache.errors import LeaderLostError

# `complete`: its end has come. `lost`: it will not.
LiveEnd = Literal["complete", "lost"]

MOST_AHEAD = 4096  # chunks that a generation which is too large to be kept is ahead of those who read it


class LiveAnswer:
    """The chunks so far, and whoever waits for more. Used from one event loop.

    All are kept for those who come later. Once there are too many, `forget` ends that: nobody can begin to
    listen any more, and what the listeners have had is dropped.

    Attributes:
        end: how it ended; None while it has not.
        error: why the generation failed, where it runs in this process.
        listeners: how many listen.
        alone: set while nobody listens any more.
    """

    def __init__(self) -> None:
        self.end: LiveEnd | None = None
        self.error: Exception | None = None
        self.listeners = 0
        self.alone = asyncio.Event()
        self._chunks: list[dict[str, Any]] = []
        self._dropped = 0  # chunks, from the first
        self._forgetting = False
        self._places: dict[object, int] = {}  # how many chunks each listener has had
        self._read = asyncio.Event()
        self._changed = asyncio.Event()

    def push(self, chunk: dict[str, Any]) -> None:
        self._chunks.append(chunk)
        self._wake()

    @property
    def is_ahead(self) -> bool:
        """Whether so much waits for every listener that the generation should."""
        newest = self._dropped + len(self._chunks)
        return bool(self._places) and newest - max(self._places.values()) > MOST_AHEAD

    def forget(self) -> None:
        """Keep only what is still to be read, and of that only so much for a listener that falls behind."""
        self._forgetting = True
        newest = self._dropped + len(self._chunks)
        for listener, place in list(self._places.items()):
            if newest - place > 2 * MOST_AHEAD:
                del self._places[listener]
        done = min(self._places.values(), default=newest) - self._dropped
        if done > MOST_AHEAD // 8 or not self._places:
            del self._chunks[:done]
            self._dropped += done

    async def catch_up(self) -> None:
        """Wait until a listener has read something, or left."""
        self._read.clear()
        await self._read.wait()

    def close(self, end: LiveEnd, error: Exception | None = None) -> None:
        """End it; the first end counts."""
        if self.end is None:
            self.end, self.error = end, error
            self._wake()

    async def listen(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks, from the first. When it is over, `end` says how it ended.

        Raises:
            LeaderLostError: they are not kept for newcomers any more, or this listener has fallen behind.
        """
        listener = object()
        self.listeners += 1
        self.alone.clear()
        if not self._forgetting:
            self._places[listener] = 0
        try:
            had = 0
            while True:
                place = self._places.get(listener)
                if place is None:
                    raise LeaderLostError(had)
                if place < self._dropped + len(self._chunks):
                    self._places[listener] = had = place + 1
                    self._read.set()
                    yield self._chunks[place - self._dropped]
                elif self.end is not None:
                    return
                else:
                    await self._changed.wait()
        finally:
            self._places.pop(listener, None)
            self._read.set()
            self.listeners -= 1
            if not self.listeners:
                self.alone.set()

    def _wake(self) -> None:
        self._changed.set()  # whoever waits goes on,
        self._changed.clear()  # and whoever comes waits for the next
