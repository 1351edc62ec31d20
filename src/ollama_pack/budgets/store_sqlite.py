"""Budgets in one SQLite file, for the workers of one machine."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ollama_pack.base.messages import message
from ollama_pack.budgets.errors import BudgetStoreError
from ollama_pack.budgets.store import (
    RESERVATION_SECONDS,
    SETTLED_SECONDS,
    Count,
    Limit,
    StoredCount,
    rolled,
)

T = TypeVar("T")

_LOCK_SECONDS = 2.0  # that a step waits for another process
_TIDY_SECONDS = 60.0
_KEPT_SECONDS = 70 * 86_400  # a counter that nobody uses: two months, so that a burst is still known

_BUDGET_TABLES = """
CREATE TABLE IF NOT EXISTS counters (
  counter TEXT PRIMARY KEY, start INTEGER, used INTEGER, at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservations (
  token TEXT, counter TEXT, amount INTEGER, ends REAL, PRIMARY KEY (token, counter)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reserved_on ON reservations (counter, ends, amount);
CREATE TABLE IF NOT EXISTS settled (token TEXT PRIMARY KEY, ends REAL) WITHOUT ROWID;
"""


class SqliteBudgetStore:
    """See `BudgetStore`. One connection, in one thread, made with the first step."""

    def __init__(self, path: Path) -> None:
        """Open nothing yet.

        Args:
            path: of the file, in a folder that exists.
        """
        self._path = path
        self._link: sqlite3.Connection | None = None
        self._tidy_at = 0.0
        self._thread = ThreadPoolExecutor(1, "ollama-pack-budgets")

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        def step(link: sqlite3.Connection) -> tuple[bool, tuple[Count, ...]]:
            counts = tuple(_count(link, limit, now) for limit in limits)
            full = any(
                limit.strict and limit.is_used_up(count) for limit, count in zip(limits, counts, strict=True)
            )
            if full and not always:
                return False, counts
            ends = now + RESERVATION_SECONDS
            for limit, amount in zip(limits, amounts, strict=True):
                row = (token, limit.counter, amount, ends)
                link.execute("INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?)", row)
            self._tidy(link, now)
            return True, counts

        return await self._do(step)

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        def step(link: sqlite3.Connection) -> bool:
            mark = link.execute("INSERT OR IGNORE INTO settled VALUES (?, ?)", (token, now + SETTLED_SECONDS))
            if not mark.rowcount:
                return False
            link.execute("DELETE FROM reservations WHERE token = ?", (token,))
            for limit, amount in zip(limits, spent, strict=True):
                start, used = _stored(link, limit, now)
                row = (limit.counter, start, used + amount, now)
                link.execute("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?)", row)
            return True

        return await self._do(step)

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        rows = [(now + RESERVATION_SECONDS, token) for token in tokens]
        await self._do(
            lambda link: link.executemany("UPDATE reservations SET ends = ? WHERE token = ?", rows)
        )

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        return await self._do(lambda link: tuple(_count(link, limit, now) for limit in limits), writes=False)

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        def step(link: sqlite3.Connection) -> tuple[StoredCount, ...]:
            rows = link.execute(
                "SELECT counter, start, used, (SELECT coalesce(sum(amount), 0) FROM reservations"
                " WHERE reservations.counter = counters.counter AND ends > ?) FROM counters ORDER BY counter",
                (now,),
            )
            return tuple(StoredCount(*row) for row in rows)

        return await self._do(step, writes=False)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def _do(self, step: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._step, step, writes)

    def _step(self, step: Callable[[sqlite3.Connection], T], writes: bool) -> T:  # noqa: FBT001 - run_in_executor
        """In the thread: one step, or what went wrong in the store's own terms."""
        try:
            link = self._link or self._connect()
            if not writes:
                return step(link)
            with _one_step(link):
                return step(link)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._disconnect()
            raise BudgetStoreError(
                message("SQLite failed at {path}: {error}", path=self._path, error=error)
            ) from error

    def _connect(self) -> sqlite3.Connection:
        link = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            link.execute("PRAGMA journal_mode = WAL")
            link.execute("PRAGMA synchronous = NORMAL")
            link.executescript(_BUDGET_TABLES)
            self._path.chmod(0o600)
        except BaseException:
            link.close()
            raise
        self._link = link
        return link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _tidy(self, link: sqlite3.Connection, now: float) -> None:
        """Delete now and then what has ended; a clock that was set back counts as a reason, too."""
        if abs(now - self._tidy_at) < _TIDY_SECONDS:
            return
        self._tidy_at = now
        for table in ("reservations", "settled"):
            link.execute(f"DELETE FROM {table} WHERE ends <= ?", (now,))  # noqa: S608 - a literal
        link.execute("DELETE FROM counters WHERE at <= ?", (now - _KEPT_SECONDS,))


@contextmanager
def _one_step(link: sqlite3.Connection) -> Iterator[None]:
    link.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        link.rollback()
        raise
    link.commit()


def _stored(link: sqlite3.Connection, limit: Limit, now: float) -> tuple[int, int]:
    found = link.execute("SELECT start, used FROM counters WHERE counter = ?", (limit.counter,)).fetchone()
    start, used = found or (None, 0)
    return rolled(start, used, limit, now)


def _count(link: sqlite3.Connection, limit: Limit, now: float) -> Count:
    reserved = link.execute(
        "SELECT coalesce(sum(amount), 0) FROM reservations WHERE counter = ? AND ends > ?",
        (limit.counter, now),
    ).fetchone()[0]
    return Count(_stored(link, limit, now)[1], reserved)
