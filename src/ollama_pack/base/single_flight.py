"""What is asked, made or kept once: for all who ask at the same time, or for all plugins of a process."""

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any, Generic, TypeVar

_Key = TypeVar("_Key")
_Shared = TypeVar("_Shared")

_PLACE = "_ollama_pack_speech_state"  # never a module that can be imported


class SingleFlight(Generic[_Shared]):
    """Asks a source at most once at a time, and keeps its answer for a while. One event loop at a time."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[_Shared]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        ahead: bool = False,
    ) -> None:
        """Nothing is asked before `get` or `renew`.

        Args:
            ask: gives the answer; what it raises reaches those who wait, and is not kept.
            seconds: how old an answer may be when `get` returns it, counted from when it was asked for.
            clock: monotonic seconds.
            ahead: `get` asks anew at half of that age, so that hardly anybody waits.
        """
        self._ask = ask
        self._seconds = seconds
        self._ahead = seconds / 2 if ahead else seconds
        self._clock = clock
        self._kept: _Shared | None = None
        self._asked_at = -math.inf
        self._task: asyncio.Task[_Shared] | None = None

    @property
    def kept(self) -> _Shared | None:
        """The newest answer, however old it is; None: there is none yet."""
        return self._kept

    @property
    def age(self) -> float:
        """Seconds since the kept answer was asked for."""
        return self._clock() - self._asked_at

    async def get(self) -> _Shared:
        """The kept answer, or a new one when it is too old."""
        age = self.age
        if age <= self._seconds:
            if age > self._ahead:
                self.renew()
            kept: Any = self._kept
            return kept  # type: ignore[no-any-return] # None may be an answer, too
        return await asyncio.shield(self.renew())  # one who gives up takes nothing from the others

    def renew(self) -> asyncio.Task[_Shared]:
        """The question that is under way, or a new one."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew())
            self._task.add_done_callback(_retrieve)
        return self._task

    def keep(self, answer: _Shared) -> None:
        """Keep an answer that is known from elsewhere."""
        self._kept, self._asked_at = answer, self._clock()

    def forget(self) -> None:
        """Keep nothing, nor what is being asked for now: something has changed."""
        self._kept, self._asked_at, self._task = None, -math.inf, None

    async def _renew(self) -> _Shared:
        began, task = self._clock(), asyncio.current_task()
        try:
            answer = await self._ask()
            if self._task is task:
                self._kept, self._asked_at = answer, began
            return answer
        finally:
            if self._task is task:
                self._task = None


class Remembered(Generic[_Key, _Shared]):
    """Answers by key, each kept for a while; of more than the limit the oldest go first. One event loop."""

    def __init__(
        self, seconds: float, limit: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Remember nothing yet.

        Args:
            seconds: how old an answer may be, counted from when it was asked for.
            limit: answers at the most.
            clock: monotonic seconds.
        """
        self._seconds, self._limit, self._clock = seconds, limit, clock
        self._kept: dict[_Key, tuple[float, _Shared]] = {}
        self._renewing: dict[_Key, asyncio.Task[_Shared]] = {}

    def find(self, key: _Key) -> _Shared | None:
        """The answer that is kept; None: there is none, or it is too old."""
        found = self._kept.get(key)
        return found[1] if found is not None and self._clock() - found[0] <= self._seconds else None

    def keep(self, key: _Key, answer: _Shared) -> None:
        """Keep an answer."""
        self._keep(key, answer, self._clock())

    async def get(self, key: _Key, ask: Callable[[], Awaitable[_Shared]]) -> _Shared:
        """The kept answer, or a new one. What `ask` raises is not kept.

        At half of the age that it may have an answer is asked for anew, so that hardly anybody waits.
        """
        kept = self._kept.get(key)
        age = math.inf if kept is None else self._clock() - kept[0]
        if kept is None or age > self._seconds:
            return await self._ask(key, ask)
        if age > self._seconds / 2 and key not in self._renewing:
            task = asyncio.get_running_loop().create_task(self._ask(key, ask))
            self._renewing[key] = task
            task.add_done_callback(partial(self._renewed, key))
        return kept[1]

    async def _ask(self, key: _Key, ask: Callable[[], Awaitable[_Shared]]) -> _Shared:
        before, began = self._kept, self._clock()
        answer = await ask()
        if before is self._kept:  # else something has changed meanwhile, and the answer may be of before
            self._keep(key, answer, began)
        return answer

    def forget(self) -> None:
        """Keep nothing, nor what is being asked for now: something has changed."""
        self._kept = {}

    def _renewed(self, key: _Key, task: asyncio.Task[_Shared]) -> None:
        del self._renewing[key]
        if task.cancelled() or task.exception() is not None:
            self._kept.pop(key, None)  # the next to ask gets the error himself

    def _keep(self, key: _Key, answer: _Shared, at: float) -> None:
        self._kept.pop(key, None)
        while len(self._kept) >= self._limit:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = at, answer


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the error even when all who waited have left, or asyncio complains of it."""
    if not task.cancelled():
        task.exception()


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


def process_wide(name: str, make: Callable[[], _Shared]) -> _Shared:
    """The one object of that name in this process, for all plugins, which are files that share no code.

    Only objects of the standard library and of faster_whisper may be kept, because a plugin that is updated
    while the server runs leaves objects of its older classes behind.

    Args:
        name: of the object.
        make: makes it; may be called once too often, when two threads are the first together.
    """
    state = sys.modules.setdefault(_PLACE, ModuleType(_PLACE))
    kept: _Shared = vars(state).setdefault(name, make())
    return kept
