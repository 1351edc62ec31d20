"""The cache in one SQLite file, for the processes of one host: what is used where there is no Redis."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from ollama_pack.base.messages import message
from ollama_pack.cache.errors import StoreDownError, StoreFullError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.sqlite_cache import SqliteCache
from ollama_pack.cache.store import (
    AcquireMode,
    CommitResult,
    Kept,
    Lease,
    Quota,
    Running,
    ScopeUse,
    StoreTimes,
    Tail,
)

_POLL_SECONDS = 0.01  # between two looks for records of another process
_BUSY_SECONDS = 0.002  # between two tries to get the lock that another process has
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")


def host_milliseconds() -> int:
    """Time that all processes of this host share, that nobody sets, and that goes on while it sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # of Linux
    return (time.monotonic_ns() if clock is None else time.clock_gettime_ns(clock)) // 1_000_000


def boot_name() -> str:
    """Which run of that clock this is: it begins anew when the host does."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return "unknown"


class SqliteStore:
    """See `CacheStore`. One connection, in one thread, made with the first call.

    A file that is damaged, or that somebody deletes, is replaced by one with the next number in its name:
    `cache.sqlite3`, `cache.1.sqlite3` … No name is used twice, as closing the old file removes, by name, what
    SQLite keeps next to it. Before each step the folder is looked at, so all processes go over to the newest.
    """

    def __init__(
        self,
        path: Path,
        times: StoreTimes | None = None,
        *,
        clock: Callable[[], int] = host_milliseconds,
        clock_name: Callable[[], str] = boot_name,
    ) -> None:
        """Take what is needed later; nothing is opened.

        Args:
            path: of the file, in a folder that exists.
            times: when left out, the defaults.
            clock: milliseconds; not the time of day, which may be set back.
            clock_name: which run of the clock this is.
        """
        self._path = path
        self._closed = False
        self._number = 0  # of the file
        self._inode = 0
        self._times = times or StoreTimes()
        self._clock = clock
        self._clock_name = clock_name
        self._cache: SqliteCache | None = None
        self._thread = ThreadPoolExecutor(1, "ollama-pack-cache")

    async def ping(self) -> None:
        await self._do(SqliteCache.changes)

    async def acquire(self, slot: Slot, token: str, mode: AcquireMode) -> Kept | Lease | Running:
        return await self._do(lambda cache: cache.acquire(slot, token, mode))

    async def find(self, slot: Slot) -> Kept | None:
        return await self._do(lambda cache: cache.find(slot))

    async def append(self, lease: Lease, first: int, records: Sequence[bytes]) -> bool:
        return await self._do(lambda cache: cache.append(lease, first, records))

    async def renew(self, lease: Lease) -> int | None:
        return await self._do(lambda cache: cache.renew(lease))

    async def leave(self, lease: Lease) -> int:
        return await self._do(lambda cache: cache.leave(lease))

    async def commit(
        self, lease: Lease, sealed: bytes, ttl: int, quota: Quota, last: tuple[int, bytes]
    ) -> CommitResult:
        return await self._do(lambda cache: cache.commit(lease, sealed, ttl, quota, last))

    async def release(self, lease: Lease, last: tuple[int, bytes]) -> None:
        await self._do(lambda cache: cache.release(lease, last))

    async def tail(self, running: Running, follower: str, after: int, wait: int) -> Tail:
        alive = await self._do(lambda cache: cache.follow(running.token, follower))
        until = time.monotonic() + (wait / 1000 if alive else 0)
        seen: tuple[int, int] | None = None
        while True:
            changed, records = await self._do(partial(_news, token=running.token, after=after, seen=seen))
            if records or time.monotonic() >= until:
                return Tail(records, alive)
            seen = changed
            await asyncio.sleep(_POLL_SECONDS)

    async def discard(self, slot: Slot, fence: int | None = None) -> bool:
        return await self._do(lambda cache: cache.discard(slot, fence))

    async def flush(self, scope: str | None = None) -> None:
        await self._do(lambda cache: cache.flush(scope))

    async def label(self, label: str, slot: Slot, ttl: int) -> None:
        await self._do(lambda cache: cache.label(label, slot, ttl))

    async def discard_labelled(self, label: str) -> int:
        return await self._do(lambda cache: cache.discard_labelled(label))

    async def use_of(self, scope: str) -> ScopeUse:
        return await self._do(lambda cache: cache.use_of(scope))

    async def add_counts(self, counts: Mapping[str, float]) -> None:
        await self._do(lambda cache: cache.add_counts(counts))

    async def counts(self) -> dict[str, float]:
        return await self._do(SqliteCache.counts)

    async def close(self) -> None:
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _do(self, step: Callable[[SqliteCache], T]) -> T:
        """One step in the thread; as often as another process has the file's lock, until it has been free.

        A process that is held up with the lock, or makes the file on a slow disk, may have it for longer than
        any limit that could be set here. The caller has one.
        """
        while True:
            if self._closed:  # while a request was on its way here
                raise StoreDownError(message("this cache is closed, as its valves or its code have changed"))
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._step, step)
            except _LockedError:
                await asyncio.sleep(_BUSY_SECONDS)

    def _step(self, step: Callable[[SqliteCache], T]) -> T:
        """In the thread: one step, or what went wrong in the store's own terms."""
        try:
            return step(self._current())
        except sqlite3.OperationalError as error:
            if _kind_of(error) == sqlite3.SQLITE_BUSY:
                raise _LockedError from error
            if _kind_of(error) == sqlite3.SQLITE_FULL:
                raise StoreFullError(message("the disk of {file} is full", file=self._file)) from error
            raise StoreDownError(
                message("SQLite failed at {file}: {error}", file=self._file, error=error)
            ) from error
        except sqlite3.DatabaseError as error:
            if _kind_of(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                self._start_over()  # it is a cache: an empty one next time
            raise StoreDownError(message("SQLite failed: {error}", error=error)) from error
        except OSError as error:
            raise StoreDownError(
                message("{file} cannot be used: {error}", file=self._file, error=error)
            ) from error

    def _current(self) -> SqliteCache:
        """The cache in the newest file, which another process may have begun."""
        newest = self._newest()
        if self._cache is not None:
            if newest is None:
                self._number += 1  # somebody has deleted it
            elif newest == self._number and self._file.stat().st_ino == self._inode:
                return self._cache
            self._close()
        self._number = self._number if newest is None else newest
        self._cache = SqliteCache(self._file, self._times, self._clock, self._clock_name())
        self._inode = self._file.stat().st_ino
        return self._cache

    @property
    def _file(self) -> Path:
        return self._numbered(self._number)

    def _numbered(self, number: int) -> Path:
        return self._path.with_suffix(f".{number}{self._path.suffix}") if number else self._path

    def _newest(self) -> int | None:
        """The highest number of a file that is there; None: there is no file."""
        stem, suffix = f"{self._path.stem}.", self._path.suffix
        found = [0] if self._path.exists() else []
        for file in self._path.parent.glob(f"{stem}*{suffix}"):
            number = file.name[len(stem) : -len(suffix)]
            found += [int(number)] if number.isdecimal() else []
        return max(found, default=None)

    def _start_over(self) -> None:
        """Leave a damaged file, in favour of the next one."""
        self._close()
        damaged, self._number = self._file, max(self._newest() or 0, self._number + 1)
        with suppress(OSError, sqlite3.Error):
            SqliteCache(self._file, self._times, self._clock, self._clock_name()).close()  # others see it
            for suffix in ("", "-wal", "-shm"):
                damaged.with_name(damaged.name + suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None


class _LockedError(Exception):
    """Another process writes."""


def _kind_of(error: sqlite3.Error) -> int:
    """Its code without the part that tells where it was met, such as in an index."""
    return error.sqlite_errorcode & 0xFF


def _news(
    cache: SqliteCache, token: str, after: int, seen: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[bytes, ...]]:
    """The numbers of changes, and the records after a place if they are others than were seen."""
    changed = cache.changes()
    return changed, (() if changed == seen else cache.records_after(token, after))
