"""An answer while it is being generated: any number of listeners get it from the start."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Literal

# `complete`: its end has come. `lost`: it will not.
LiveEnd = Literal["complete", "lost"]


class LiveAnswer:
    """The chunks so far, and whoever waits for more. Used from one event loop.

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
        self._changed = asyncio.Event()

    def push(self, chunk: dict[str, Any]) -> None:
        self._chunks.append(chunk)
        self._wake()

    def close(self, end: LiveEnd, error: Exception | None = None) -> None:
        """End it; the first end counts."""
        if self.end is None:
            self.end, self.error = end, error
            self._wake()

    async def listen(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks, from the first. When it is over, `end` says how it ended."""
        self.listeners += 1
        self.alone.clear()
        place = 0
        try:
            while True:
                while place < len(self._chunks):
                    place += 1
                    yield self._chunks[place - 1]
                if self.end is not None:
                    return
                await self._changed.wait()
        finally:
            self.listeners -= 1
            if not self.listeners:
                self.alone.set()

    def _wake(self) -> None:
        self._changed.set()  # whoever waits goes on,
        self._changed.clear()  # and whoever comes waits for the next
