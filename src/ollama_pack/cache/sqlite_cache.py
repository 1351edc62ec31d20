"""The cache's tables in SQLite, and what happens in them in one step. Blocking: for a thread of its own."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ollama_pack.cache.key import Slot
from ollama_pack.cache.store import (
    AcquireMode,
    CommitResult,
    Kept,
    Lease,
    Quota,
    Running,
    ScopeUse,
    StoreTimes,
)

SQLITE_FORMAT = 1  # of the tables; another one starts anew, it is a cache
# For the lock of another process. Whoever calls asks again as long as it has time: other steps, for which no
# lock is needed, do not wait that long for the thread.
_BUSY_MILLISECONDS = 20

_TABLES = """
CREATE TABLE meta (scope TEXT PRIMARY KEY, epoch INTEGER, fence INTEGER) WITHOUT ROWID;
CREATE TABLE entries (
  scope TEXT, slot TEXT, epoch INTEGER, fence INTEGER, made INTEGER, ends INTEGER, octets INTEGER,
  sealed BLOB, PRIMARY KEY (scope, slot)
);
CREATE INDEX entries_ends ON entries (ends);
CREATE TABLE leases (
  scope TEXT, slot TEXT, epoch INTEGER, fence INTEGER, token TEXT, ends INTEGER, PRIMARY KEY (scope, slot)
) WITHOUT ROWID;
CREATE TABLE generations (token TEXT PRIMARY KEY, ends INTEGER) WITHOUT ROWID;
CREATE TABLE followers (token TEXT, follower TEXT, ends INTEGER, PRIMARY KEY (token, follower)) WITHOUT ROWID;
CREATE TABLE streams (token TEXT PRIMARY KEY, ends INTEGER) WITHOUT ROWID;
CREATE TABLE records (token TEXT, place INTEGER, record BLOB, PRIMARY KEY (token, place)) WITHOUT ROWID;
CREATE TABLE labels (
  label TEXT, scope TEXT, slot TEXT, ends INTEGER, PRIMARY KEY (label, scope, slot)
) WITHOUT ROWID;
CREATE TABLE counts (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID;
CREATE TABLE origin (format INTEGER, clock TEXT);
"""
# With these, no step goes through all answers of a scope, or all labels. Files of older versions lack them.
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS entries_use ON entries (scope, made, fence, octets)",
    "CREATE INDEX IF NOT EXISTS labels_ends ON labels (ends)",
    "DROP INDEX IF EXISTS entries_made",
)
_TIDIED_AT_ONCE = 200  # rows of a table: after a weekend, all that was asked on Friday has ended
_KEYS = {
    "entries": "scope, slot",
    "leases": "scope, slot",
    "generations": "token",
    "followers": "token, follower",
    "labels": "label, scope, slot",
}


class SqliteCache:
    """See `CacheStore` for what each method does. Used from one thread."""

    def __init__(self, path: Path, times: StoreTimes, clock: Callable[[], int], clock_name: str) -> None:
        """Open the file, or make it; one of another format or clock is emptied.

        Args:
            path: in a folder that exists.
            times: how long things stay.
            clock: milliseconds, the same in all processes that use the file, and never set back.
            clock_name: tells one run of the clock from another, such as the id of the boot.

        Raises:
            sqlite3.Error: the file cannot be used.
        """
        self._times = times
        self._clock = clock
        self._link = sqlite3.connect(path, timeout=_BUSY_MILLISECONDS / 1000, isolation_level=None)
        try:
            self._begin(clock_name)
            path.chmod(0o600)
        except BaseException:
            self._link.close()
            raise

    def close(self) -> None:
        self._link.close()

    def changes(self) -> tuple[int, int]:
        """Numbers of which one changes when somebody has written, another connection or this one."""
        return int(self._one("PRAGMA data_version")[0]), self._link.total_changes

    def acquire(self, slot: Slot, token: str, mode: AcquireMode) -> Kept | Lease | Running:
        if mode == "read" and (found := self.find(slot)):
            return found
        with self._writing() as now:
            if mode == "read":
                if found := self.find(slot):
                    return found
                if running := self._running(slot, token, now):
                    return running
            return self._lease(slot, token, now, shared=mode == "read")

    def find(self, slot: Slot) -> Kept | None:
        now = self._clock()
        row = self._one(
            "SELECT sealed, entries.fence, made FROM entries JOIN meta USING (scope, epoch)"
            " WHERE scope = ? AND slot = ? AND ends > ?",
            *_columns(slot),
            now,
        )
        return Kept(row[0], row[1], max(0, now - row[2]) / 1000) if row else None

    def append(self, lease: Lease, first: int, records: Sequence[bytes]) -> bool:
        with self._writing() as now:
            if not self._prolong(lease, now):
                return False
            rows = ((lease.token, place, record) for place, record in enumerate(records, first))
            self._link.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?)", rows)
            self._keep_stream(lease.token, now)
            return True

    def renew(self, lease: Lease) -> int | None:
        with self._writing() as now:
            if not self._prolong(lease, now):
                return None
            return self._followers(lease.token, now)

    def leave(self, lease: Lease) -> int:
        with self._writing() as now:
            followers = self._followers(lease.token, now)
            if not followers:
                self._give_back(lease)
                self._link.execute("DELETE FROM generations WHERE token = ?", (lease.token,))
            return followers

    def commit(
        self, lease: Lease, sealed: bytes, ttl: int, quota: Quota, last: tuple[int, bytes]
    ) -> CommitResult:
        with self._writing() as now:
            result = self._may_commit(lease, now)
            if result == "stored" and self._fence_of(lease.slot) != lease.fence:
                self._tidy(now)
                row = (*_columns(lease.slot), lease.epoch, lease.fence, now, now + ttl, len(sealed), sealed)
                self._link.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                self._evict(lease.slot.scope, quota)
            self._finish(lease, now, last)
            return result

    def release(self, lease: Lease, last: tuple[int, bytes]) -> None:
        with self._writing() as now:
            self._tidy(now)  # where all answers call tools, none is ever committed
            self._finish(lease, now, last)

    def records_after(self, token: str, after: int) -> tuple[bytes, ...]:
        rows = self._all(
            "SELECT place, record FROM records WHERE token = ? AND place > ? ORDER BY place", token, after
        )
        # as long as none is left out
        return tuple(record for place, (found, record) in enumerate(rows, after + 1) if place == found)

    def follow(self, token: str, follower: str) -> bool:
        """Count as a follower; whether the leader is alive."""
        with self._writing() as now:
            if not self._one("SELECT count(*) FROM generations WHERE token = ? AND ends > ?", token, now)[0]:
                return False
            self._add_follower(token, follower, now)
            return True

    def discard(self, slot: Slot, fence: int | None) -> bool:
        with self._writing():
            if fence is None:
                self._link.execute("DELETE FROM leases WHERE scope = ? AND slot = ?", _columns(slot))
            return self._delete_entry(slot, fence)

    def flush(self, scope: str | None) -> None:
        where, which = ("", ()) if scope is None else (" WHERE scope = ?", (scope,))
        with self._writing():
            self._link.execute(f"UPDATE meta SET epoch = epoch + 1{where}", which)  # noqa: S608 - a literal
            self._link.execute(f"DELETE FROM entries{where}", which)  # noqa: S608 - a literal

    def label(self, label: str, slot: Slot, ttl: int) -> None:
        with self._writing() as now:
            self._link.execute(
                "INSERT INTO labels VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET ends = max(ends, excluded.ends)",
                (label, *_columns(slot), now + ttl),
            )

    def discard_labelled(self, label: str) -> int:
        with self._writing():
            rows = self._all("DELETE FROM labels WHERE label = ? RETURNING scope, slot", label)
            for place in rows:
                self._link.execute("DELETE FROM leases WHERE scope = ? AND slot = ?", place)
            return sum(self._delete_entry(Slot(*place), None) for place in rows)

    def use_of(self, scope: str) -> ScopeUse:
        return ScopeUse(
            *self._one("SELECT count(*), coalesce(sum(octets), 0) FROM entries WHERE scope = ?", scope)
        )

    def add_counts(self, counts: Mapping[str, float]) -> None:
        with self._writing():
            self._link.executemany(
                "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                counts.items(),
            )

    def counts(self) -> dict[str, float]:
        return {str(name): float(value) for name, value in self._all("SELECT name, value FROM counts")}

    def _begin(self, clock_name: str) -> None:
        self._link.execute("PRAGMA journal_mode = WAL")
        self._link.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose entries, no more
        with self._writing():
            names = [name for (name,) in self._all("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            if "origin" not in names or not self._is_ours(clock_name):
                for name in names:
                    self._link.execute(f'DROP TABLE "{name}"')
                for statement in _TABLES.split(";\n"):
                    self._link.execute(statement)
                self._link.execute("INSERT INTO origin VALUES (?, ?)", (SQLITE_FORMAT, clock_name))
            for statement in _INDEXES:
                self._link.execute(statement)

    def _is_ours(self, clock_name: str) -> bool:
        """Whether the times in the file are on this run of the clock, and the tables of this format."""
        if self._one("SELECT * FROM origin") != (SQLITE_FORMAT, clock_name):
            return False
        latest = self._one("SELECT max(made) FROM entries")[0]
        return latest is None or latest <= self._clock()

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """A transaction that no other process writes in; gives the time."""
        self._link.execute("BEGIN IMMEDIATE")
        try:
            yield self._clock()
            self._link.execute("COMMIT")
        except BaseException:
            if self._link.in_transaction:  # a full or failing disk has ended it already
                self._link.execute("ROLLBACK")
            raise

    def _running(self, slot: Slot, token: str, now: int) -> Running | Lease | None:
        row = self._one(
            "SELECT token, leases.fence, epoch FROM leases JOIN meta USING (scope, epoch)"
            " WHERE scope = ? AND slot = ? AND ends > ?",
            *_columns(slot),
            now,
        )
        if not row:
            return None
        if row[0] == token:
            return Lease(slot, token, row[1], row[2])
        self._add_follower(row[0], token, now)
        return Running(slot, row[0])

    def _lease(self, slot: Slot, token: str, now: int, *, shared: bool) -> Lease:
        self._link.execute("INSERT OR IGNORE INTO meta VALUES (?, 1, 0)", (slot.scope,))
        fence, epoch = self._one(
            "UPDATE meta SET fence = fence + 1 WHERE scope = ? RETURNING fence, epoch", slot.scope
        )
        if shared:
            ends = now + self._times.lease
            row = (*_columns(slot), epoch, fence, token, ends)
            self._link.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)", row)
            self._link.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", (token, ends))
        return Lease(slot, token, fence, epoch, shared)

    def _prolong(self, lease: Lease, now: int) -> bool:
        ends = now + self._times.lease
        alive = self._link.execute(
            "UPDATE generations SET ends = ? WHERE token = ? AND ends > ?", (ends, lease.token, now)
        )
        self._link.execute(
            "UPDATE leases SET ends = ? WHERE scope = ? AND slot = ? AND token = ? AND ends > ?",
            (ends, *_columns(lease.slot), lease.token, now),
        )
        return alive.rowcount > 0

    def _may_commit(self, lease: Lease, now: int) -> CommitResult:
        entry = self._fence_of(lease.slot)
        if entry == lease.fence:
            return "stored"  # the answer to the first attempt was lost
        if self._one("SELECT epoch FROM meta WHERE scope = ?", lease.slot.scope) != (lease.epoch,):
            return "flushed"
        leads = self._one(
            "SELECT count(*) FROM leases WHERE scope = ? AND slot = ? AND token = ? AND ends > ?",
            *_columns(lease.slot),
            lease.token,
            now,
        )[0]
        return "fenced" if entry > lease.fence or (lease.shared and not leads) else "stored"

    def _fence_of(self, slot: Slot) -> int:
        """Of the entry that is there, in the scope's epoch; -1 where there is none."""
        row = self._one(
            "SELECT entries.fence FROM entries JOIN meta USING (scope, epoch) WHERE scope = ? AND slot = ?",
            *_columns(slot),
        )
        return int(row[0]) if row else -1

    def _followers(self, token: str, now: int) -> int:
        return int(self._one("SELECT count(*) FROM followers WHERE token = ? AND ends > ?", token, now)[0])

    def _give_back(self, lease: Lease) -> None:
        which = "DELETE FROM leases WHERE scope = ? AND slot = ? AND token = ?"
        self._link.execute(which, (*_columns(lease.slot), lease.token))

    def _finish(self, lease: Lease, now: int, last: tuple[int, bytes]) -> None:
        self._give_back(lease)
        ended = self._link.execute("DELETE FROM generations WHERE token = ? AND ends > ?", (lease.token, now))
        if ended.rowcount:
            self._link.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?)", (lease.token, *last))
            self._keep_stream(lease.token, now)

    def _keep_stream(self, token: str, now: int) -> None:
        self._link.execute("INSERT OR REPLACE INTO streams VALUES (?, ?)", (token, now + self._times.stream))

    def _add_follower(self, token: str, follower: str, now: int) -> None:
        row = (token, follower, now + self._times.follower)
        self._link.execute("INSERT OR REPLACE INTO followers VALUES (?, ?, ?)", row)

    def _delete_entry(self, slot: Slot, fence: int | None) -> bool:
        which = "DELETE FROM entries WHERE scope = ? AND slot = ? AND fence = coalesce(?, fence)"
        return self._link.execute(which, (*_columns(slot), fence)).rowcount > 0

    def _evict(self, scope: str, quota: Quota) -> None:
        use = self.use_of(scope)
        entries, octets = use.entries, use.octets
        while entries and (entries > quota.entries or octets > quota.octets):
            slot, size = self._one(
                "SELECT slot, octets FROM entries WHERE scope = ? ORDER BY made, fence LIMIT 1", scope
            )
            self._delete_entry(Slot(scope, slot), None)
            entries, octets = entries - 1, octets - size

    def _tidy(self, now: int) -> None:
        """Remove what has ended, in every scope: SQLite has no clock. Of much, a part each time."""
        for table, key in _KEYS.items():
            ended = f"SELECT {key} FROM {table} WHERE ends <= ? LIMIT {_TIDIED_AT_ONCE}"  # noqa: S608 - literals
            self._link.execute(f"DELETE FROM {table} WHERE ({key}) IN ({ended})", (now,))  # noqa: S608 - the same
        for (token,) in self._all("DELETE FROM streams WHERE ends <= ? RETURNING token", now):
            self._link.execute("DELETE FROM records WHERE token = ?", (token,))

    def _one(self, statement: str, *values: object) -> tuple[Any, ...]:
        """The first row, or an empty one."""
        with closing(self._link.execute(statement, values)) as rows:
            return rows.fetchone() or ()

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(self._link.execute(statement, values)) as rows:
            return rows.fetchall()


def _columns(slot: Slot) -> tuple[str, str]:
    return slot.scope, slot.name
