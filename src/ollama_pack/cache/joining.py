"""Many who ask the same at the same time ask once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

_Key = TypeVar("_Key")
_Shared = TypeVar("_Shared")


class _Turn:
    """A call, or one that will be made when the call before it is over."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.answered = False
        self.answer: Any = None
        self.following: _Turn | None = None


class JoinedCalls(Generic[_Key, _Shared]):
    """For each key one call at a time. Those who come while it is under way share the next one.

    So everybody gets the answer to a call that began after he came: what was changed before is seen.
    """

    def __init__(self) -> None:
        self._turns: dict[_Key, _Turn] = {}

    async def call(self, key: _Key, make: Callable[[], Awaitable[_Shared]]) -> tuple[_Shared, bool]:
        """The answer, and whether it is this caller's own call that was made."""
        while True:
            current = self._turns.get(key)
            if current is None:
                turn = self._turns[key] = _Turn()
                return await self._make(key, turn, make), True
            if current.following is None:
                turn = current.following = _Turn()
                await self._wait_for(key, current, turn)
                return await self._make(key, turn, make), True
            turn = current.following
            await turn.over.wait()
            if turn.answered:
                return turn.answer, False

    async def _make(self, key: _Key, turn: _Turn, make: Callable[[], Awaitable[_Shared]]) -> _Shared:
        try:
            turn.answer = await make()
            turn.answered = True
        finally:
            turn.over.set()
            if turn.following is None:
                del self._turns[key]
        answer: _Shared = turn.answer
        return answer

    async def _wait_for(self, key: _Key, current: _Turn, turn: _Turn) -> None:
        """Wait for the call before; who is cancelled meanwhile leaves the turn to another."""
        try:
            await current.over.wait()
        except asyncio.CancelledError:
            turn.over.set()
            current.following = None
            if current.over.is_set():
                del self._turns[key]
            raise
        self._turns[key] = turn
