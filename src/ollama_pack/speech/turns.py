"""One recording at a time on this machine's own processors, in turns between users, each with its place.

A recording works until it is done, or until it is another user's turn: then it gives way after the piece that
it is at, so that a word into the microphone does not wait for somebody's four hours. The next is the one with
the fewest of the same user's before it; among those, the one whose user has worked the least (start-time fair
queueing, as the router's queue has it). In a full line the last recording of the user who has the most makes
room for a user who has fewer.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from ollama_pack.base.single_flight import process_wide
from ollama_pack.speech.errors import SpeechQueueFullError, SpeechShareFullError
from ollama_pack.speech.values import WaitCallback

MAX_WAITING = 16
RESERVED_SHARE = 0.25  # of the places, for users who have none
OWN_SHARE = 0.5  # of the places, that one user may have
MAX_AWAY = 48  # recordings whose pieces a server is listening to
SLICE_SECONDS = 1.0  # that a recording works at least, once it is its turn

# Gets how many are before it; or, when it has lost its place, minus the number of its user's recordings.
_Tell = Callable[[int], None]
# A recording in the line: user, tell, number, state, since, place, and whether it may lose its place while it
# waits. A dictionary, for it outlives a plugin's update.
_Entry = dict[str, Any]
_WAITS, _WORKS, _AWAY = "waits", "works", "away"


class Turn:
    """A recording's turn, while it has it."""

    def __init__(
        self, line: "TurnLine", tell: _Tell, places: "asyncio.Queue[int]", on_wait: WaitCallback
    ) -> None:
        self._line = line
        self._tell = tell
        self._places = places
        self._on_wait = on_wait

    async def reached(self, place: int) -> None:
        """Wait from a place on, until it is the first.

        Raises:
            SpeechShareFullError: somebody who has fewer recordings here needs the place.
        """
        while place:
            await self._on_wait(place)
            place = await self._places.get()
            while not self._places.empty():
                place = self._places.get_nowait()
            if place < 0:
                raise SpeechShareFullError(self._line.own_limit, -place)

    async def give_way(self) -> None:
        """Let others work, if it is their turn; come back when it is this one's again."""
        await self.reached(self._line.give_way(self._tell))

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Leave the processors to others within the block."""
        self._line.step_out(self._tell)
        try:
            yield
        finally:
            place = self._line.step_in(self._tell)
        await self.reached(place)


class TurnLine:
    """A line of recordings. They may come of different event loops and threads."""

    def __init__(
        self,
        line: list[_Entry],
        lock: threading.Lock,
        limit: int = MAX_WAITING,
        worked: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Share a line.

        Args:
            line: those who are in it.
            lock: held while the line changes.
            limit: how many may wait.
            worked: user → seconds of work, as far as it is more than others have had.
            clock: monotonic seconds.
        """
        self._line = line
        self._lock = lock
        self._limit = limit
        self._worked = {} if worked is None else worked
        self._clock = clock

    @property
    def own_limit(self) -> int:
        """How many recordings of one user may wait."""
        return int(self._limit * OWN_SHARE)

    @asynccontextmanager
    async def turn(
        self, on_wait: WaitCallback, user: str = "", *, is_shared: bool = False
    ) -> AsyncIterator[Turn]:
        """Wait for one's turn, and have it within the block.

        Args:
            on_wait: called with the number of those before, at the beginning and whenever it changes.
            user: whose recording it is.
            is_shared: whether many people stand behind this user.

        Raises:
            SpeechShareFullError: too many of this user's wait, at once or when others come.
            SpeechQueueFullError: too many wait.
        """
        loop = asyncio.get_running_loop()
        places: asyncio.Queue[int] = asyncio.Queue()

        def tell(place: int) -> None:
            loop.call_soon_threadsafe(places.put_nowait, place)

        place = self._join(tell, user, is_shared=is_shared)
        try:
            turn = Turn(self, tell, places, on_wait)
            await turn.reached(place)
            yield turn
        finally:
            self._leave(tell)

    def give_way(self, tell: _Tell) -> int:
        """End the turn of one who works, if it is another's turn; how many are before it then."""
        with self._lock:
            entry = self._entry(tell)
            if self._clock() - entry["since"] < SLICE_SECONDS:
                return 0
            self._rest(entry, _WAITS)
            self._move_up(besides=entry)
            return self._place(entry)

    def step_out(self, tell: _Tell) -> None:
        """End the turn of one who works."""
        with self._lock:
            self._rest(self._entry(tell), _AWAY)
            self._move_up()

    def step_in(self, tell: _Tell) -> int:
        """Wait again; how many are before it."""
        with self._lock:
            entry = self._entry(tell)
            entry["state"] = _WAITS
            self._move_up(besides=entry)
            return self._place(entry)

    def _join(self, tell: _Tell, user: str = "", *, is_shared: bool = False) -> int:
        with self._lock:
            waiting = [entry for entry in self._line if entry["state"] == _WAITS]
            own = sum(entry["user"] == user for entry in self._line)
            reserved = RESERVED_SHARE if own else 0.0
            displaced = None
            if self._line and len(waiting) >= self._limit - int(self._limit * reserved):
                displaced = self._one_to_displace(0 if is_shared else own)
                if displaced is None:
                    raise SpeechQueueFullError(self._limit, len(waiting))
            if not is_shared and own > max(1, self._limit * OWN_SHARE):
                raise SpeechShareFullError(self.own_limit, own - 1)
            if (served := len(self._line) - len(waiting)) >= MAX_AWAY - int(MAX_AWAY * reserved):
                raise SpeechQueueFullError(MAX_AWAY, served)
            if not own:
                least = min((self._worked.get(entry["user"], 0.0) for entry in self._line), default=0.0)
                self._worked[user] = max(self._worked.get(user, 0.0), least)
            number = max((entry["number"] for entry in self._line), default=0) + 1
            entry = {"user": user, "tell": tell, "number": number, "state": _WAITS, "since": 0.0, "place": 0}
            entry["may_lose_place"] = not is_shared  # many people stand behind a shared one
            self._line.append(entry)
            if displaced:
                self._displace(displaced)
            self._move_up(besides=entry)
            return self._place(entry)

    def _one_to_displace(self, own: int) -> _Entry | None:
        """The last recording of the user who has the most, if that is more than a newcomer has then."""
        counts = Counter(entry["user"] for entry in self._line)
        having = [
            entry
            for entry in self._line
            if entry["state"] == _WAITS
            and not entry["since"]
            and entry.get("may_lose_place")
            and counts[entry["user"]] > own + 1
        ]
        return max(having, key=lambda entry: (counts[entry["user"]], entry["number"]), default=None)

    def _displace(self, entry: _Entry) -> None:
        own = sum(other["user"] == entry["user"] for other in self._line)
        self._line.remove(entry)
        with suppress(RuntimeError):  # its event loop has ended
            entry["tell"](-own)

    def _leave(self, tell: _Tell) -> None:
        with self._lock:
            entry = next((entry for entry in self._line if entry["tell"] is tell), None)
            if entry is None:
                return  # it has lost its place
            self._rest(entry, _AWAY)
            self._line.remove(entry)
            users = {other["user"] for other in self._line}
            least = min((self._worked[user] for user in users), default=float("inf"))
            for user in [user for user in self._worked if user not in users]:
                if self._worked[user] <= least:  # whoever comes begins with that
                    del self._worked[user]
            self._move_up()

    def _entry(self, tell: _Tell) -> _Entry:
        return next(entry for entry in self._line if entry["tell"] is tell)

    def _rest(self, entry: _Entry, state: str) -> None:
        """End the turn of one who may have it."""
        if entry["state"] == _WORKS:
            self._worked[entry["user"]] += self._clock() - entry["since"]
        entry["state"] = state

    def _order(self) -> list[_Entry]:
        """Those who wait, the next one first."""
        seen: dict[str, int] = {}
        ranks: list[tuple[int, float, int, _Entry]] = []
        for entry in sorted(self._line, key=lambda entry: entry["number"]):
            if entry["state"] == _AWAY:
                continue
            rank = seen.get(entry["user"], 0)
            seen[entry["user"]] = rank + 1
            if entry["state"] == _WAITS:
                ranks.append((rank, self._worked[entry["user"]], entry["number"], entry))
        return [entry for *_, entry in sorted(ranks, key=lambda found: found[:3])]

    def _place(self, entry: _Entry) -> int:
        return int(entry["place"])

    def _move_up(self, besides: _Entry | None = None) -> None:
        """Give the turn to the next, where nobody has it, and say the places that have changed.

        Who can no longer be told, because its event loop has ended, leaves.

        Args:
            besides: who is asking, and gets its place as the answer.
        """
        while True:
            order = self._order()
            works = any(entry["state"] == _WORKS for entry in self._line)
            if order and not works:
                order[0].update(state=_WORKS, since=self._clock())
            dead = []
            for place, entry in enumerate(order, 1 if works else 0):
                changed, entry["place"] = entry["place"] != place or place == 0, place
                if entry is besides or not changed:
                    continue
                try:
                    entry["tell"](place)
                except RuntimeError:
                    dead.append(entry)
            for entry in dead:
                self._line.remove(entry)
            if not dead:
                return


def local_line() -> TurnLine:
    """The line of this process."""
    return TurnLine(
        process_wide("turns", list),
        process_wide("turns lock", threading.Lock),
        worked=process_wide("turns worked", dict),
    )


def line_states() -> dict[str, int]:
    """How many recordings of this process wait, work, and are with a speech server (away)."""
    line: list[_Entry] = process_wide("turns", list)
    counts = Counter(entry["state"] for entry in list(line))
    return {state: counts[state] for state in (_WAITS, _WORKS, _AWAY)}
