"""The last chats and the last day, for the dashboard: in Redis where one joins the replicas, else in SQLite.

Both are bounded: 10,000 chats, and figures of each minute for a little more than a day. Without an answer
from either chats go on, and nothing is lost that fits into `activity.MAX_NOTES`.
"""

import asyncio
import json
import logging
import math
import os
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ollama_pack.base.redis import redis_client, redis_fault
from ollama_pack.services.activity import give_notes_back, minutes_of, take_notes

log = logging.getLogger(__name__)

MAX_CHATS = 10_000
KEPT_MINUTES = 25 * 60
CHUNK = 500  # chats that are read at once: a few milliseconds of the event loop
ANSWER_SECONDS = 2.0
WRITE_SECONDS, REPORT_SECONDS, LOOK_SECONDS = 1.0, 5.0, 30.0
PROCESS_SECONDS = 20.0  # after which a process that says nothing is gone
HISTORY_PREFIX = "ollama_pack:{history}:1:"
HISTORY_FILE = "ollama_pack_history.sqlite3"

T = TypeVar("T")
Chat = dict[str, Any]  # as `chat_record`, and its `key` in the history
MinuteFigures = dict[int, dict[str, float]]


class HistoryStore(Protocol):
    """Where the history is."""

    kind: str

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        """Write chats, the oldest first, and add to the figures of minutes."""

    async def older(self, before: str, count: int) -> list[Chat]:
        """Chats before a key, the newest first; before none: the last ones."""

    async def newer(self, after: str, count: int) -> list[Chat]:
        """Chats after a key, the oldest first."""

    async def minutes(self, since: int) -> MinuteFigures:
        """The figures from a minute on."""

    async def forget(self, keys: Iterable[str]) -> None:
        """Remove chats."""

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        """Say how a process is, for the others' dashboards."""

    async def processes(self) -> dict[str, dict[str, Any]]:
        """What processes have said of themselves a short while ago."""

    async def close(self) -> None:
        """Give everything back."""


class SqliteHistory:
    """A file next to Open WebUI's data, which the workers of one host share."""

    kind = "SQLite"

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._lock = asyncio.Lock()

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        rows = [(json.dumps(chat, separators=(",", ":")),) for chat in chats]
        figures = [
            (minute, name, value) for minute, named in minutes.items() for name, value in named.items()
        ]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("INSERT INTO chats (record) VALUES (?)", rows)
            database.executemany(
                "INSERT INTO minutes VALUES (?, ?, ?) "
                "ON CONFLICT (minute, name) DO UPDATE SET value = value + excluded.value",
                figures,
            )
            database.execute("DELETE FROM chats WHERE key <= (SELECT max(key) FROM chats) - ?", (MAX_CHATS,))
            database.execute("DELETE FROM minutes WHERE minute < ?", (_oldest_minute(),))

        await self._with(write)

    async def older(self, before: str, count: int) -> list[Chat]:
        bound = int(before) if before else 2**62
        wanted = "SELECT key, record FROM chats WHERE key < ? ORDER BY key DESC LIMIT ?"
        return await self._with(lambda database: _chats(database.execute(wanted, (bound, count))))

    async def newer(self, after: str, count: int) -> list[Chat]:
        wanted = "SELECT key, record FROM chats WHERE key > ? ORDER BY key LIMIT ?"
        return await self._with(lambda database: _chats(database.execute(wanted, (int(after or 0), count))))

    async def minutes(self, since: int) -> MinuteFigures:
        wanted = "SELECT minute, name, value FROM minutes WHERE minute >= ?"
        rows = await self._with(lambda database: database.execute(wanted, (since,)).fetchall())
        found: MinuteFigures = {}
        for minute, name, value in rows:
            found.setdefault(minute, {})[name] = value
        return found

    async def forget(self, keys: Iterable[str]) -> None:
        wanted = [(int(key),) for key in keys]
        await self._with(lambda database: database.executemany("DELETE FROM chats WHERE key = ?", wanted))

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        now = time.time()

        def write(database: sqlite3.Connection) -> None:
            row = (name, now, json.dumps(status))
            database.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?)", row)
            database.execute("DELETE FROM processes WHERE at < ?", (now - 86_400,))

        await self._with(write)

    async def processes(self) -> dict[str, dict[str, Any]]:
        wanted, seen = "SELECT name, status FROM processes WHERE at >= ?", (time.time() - PROCESS_SECONDS,)
        rows = await self._with(lambda database: database.execute(wanted, seen).fetchall())
        return {name: json.loads(status) for name, status in rows}

    async def close(self) -> None:
        """Nothing is held between two calls."""

    async def _with(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work in a thread, in one transaction. A file that is damaged is begun anew."""
        async with self._lock:
            return await asyncio.to_thread(self._work, work)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._work_once(work)
        except sqlite3.DatabaseError as error:
            if "no such table" not in str(error):
                if not any(word in str(error) for word in ("not a database", "malformed")):
                    raise
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._work_once(_make_tables)
            return self._work_once(work)

    def _work_once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self._path, timeout=ANSWER_SECONDS)) as database, database:
            return work(database)


def _make_tables(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        "CREATE TABLE IF NOT EXISTS chats (key INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL);"
        "CREATE TABLE IF NOT EXISTS minutes "
        "(minute INTEGER, name TEXT, value REAL, PRIMARY KEY (minute, name)) WITHOUT ROWID;"
        "CREATE TABLE IF NOT EXISTS processes (name TEXT PRIMARY KEY, at REAL, status TEXT);"
    )


def _chats(rows: Iterable[tuple[int, str]]) -> list[Chat]:
    return [{**json.loads(record), "key": str(key)} for key, record in rows]


class RedisHistory:
    """A stream of chats and a hash for each hour, all with one hash tag, so that a cluster takes them."""

    kind = "Redis"

    def __init__(self, client: Any, prefix: str = HISTORY_PREFIX) -> None:
        """Connect nothing yet; `client` is redis-py's, with bytes for strings."""
        self._client = client
        self._stream, self._hours, self._processes = (
            f"{prefix}{name}" for name in ("chats", "hour:", "processes")
        )

    async def add(
        self, chats: Iterable[Mapping[str, Any]], minutes: Mapping[int, Mapping[str, float]]
    ) -> None:
        for chat in chats:
            record = json.dumps(chat, separators=(",", ":"))
            await self._do("XADD", self._stream, "MAXLEN", "~", MAX_CHATS, "*", "r", record)
        for minute, figures in minutes.items():
            hour = f"{self._hours}{minute // 60}"
            for name, value in figures.items():
                await self._do("HINCRBYFLOAT", hour, f"{minute}/{name}", value)
            await self._do("EXPIRE", hour, (KEPT_MINUTES + 60) * 60)

    async def older(self, before: str, count: int) -> list[Chat]:
        found = await self._do(
            "XREVRANGE", self._stream, f"({before}" if before else "+", "-", "COUNT", count
        )
        return _stream_chats(found)

    async def newer(self, after: str, count: int) -> list[Chat]:
        found = await self._do("XRANGE", self._stream, f"({after}" if after else "-", "+", "COUNT", count)
        return _stream_chats(found)

    async def minutes(self, since: int) -> MinuteFigures:
        found: MinuteFigures = {}
        for hour in range(since // 60, int(time.time() // 3600) + 1):
            fields = await self._do("HGETALL", f"{self._hours}{hour}")
            for name, value in _pairs(fields):
                minute, _, figure = name.decode().partition("/")
                if int(minute) >= since:
                    found.setdefault(int(minute), {})[figure] = float(value)
        return found

    async def forget(self, keys: Iterable[str]) -> None:
        if wanted := list(keys):
            await self._do("XDEL", self._stream, *wanted)

    async def report(self, name: str, status: Mapping[str, Any]) -> None:
        said = json.dumps({"at": time.time(), "status": status})
        await self._do("HSET", self._processes, name, said)
        await self._do("EXPIRE", self._processes, 86_400)

    async def processes(self) -> dict[str, dict[str, Any]]:
        found, gone = {}, []
        for name, said in _pairs(await self._do("HGETALL", self._processes)):
            told = json.loads(said)
            if time.time() - told["at"] < PROCESS_SECONDS:
                found[name.decode()] = told["status"]
            else:
                gone.append(name)
        if gone:
            await self._do("HDEL", self._processes, *gone)
        return found

    async def close(self) -> None:
        await self._client.aclose()

    async def _do(self, *command: Any) -> Any:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._client.execute_command(*command)


def _stream_chats(found: Any) -> list[Chat]:
    entries = [(key.decode(), dict(_pairs(fields))) for key, fields in found or () if fields]
    return [{**json.loads(fields[b"r"]), "key": key} for key, fields in entries if b"r" in fields]


def _pairs(found: Any) -> Iterable[tuple[bytes, bytes]]:
    """Fields and values, whether redis-py gives them as a dictionary or in a row."""
    if isinstance(found, Mapping):
        return found.items()
    return zip(found[::2], found[1::2], strict=True) if found else ()


def _oldest_minute() -> int:
    return int(time.time() // 60) - KEPT_MINUTES


Select = Callable[[list[Chat]], Awaitable[list[Chat]]]


async def found_chats(store: HistoryStore, before: str, count: int, select: Select) -> tuple[list[Chat], str]:
    """Chats before a key that are wanted, the newest first; and the key to go on from, empty at the end.

    Args:
        store: where they are.
        before: the key; empty: from the last one on.
        count: how many.
        select: leaves out those that are not wanted, in pieces between which others have their turn.
    """
    found: list[Chat] = []
    while chats := await store.older(before, CHUNK):
        before = chats[-1]["key"]
        found += await select(chats)
        if len(found) >= count:
            return found[:count], found[count - 1]["key"]
    return found, ""


class HistoryKeeper:
    """Writes down what chats of this process did, and says how it is. Lives on one event loop."""

    def __init__(
        self,
        redis_url: Callable[[], Awaitable[str]],
        path: Path | None,
        status: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        """Open nothing yet.

        Args:
            redis_url: of the Redis that joins the replicas; empty: none does.
            path: of the file that is used without; None: nothing is kept then.
            status: how this process is, for the dashboards of the others.
        """
        self._redis_url, self._path, self._status = redis_url, path, status
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._store: HistoryStore | None = None
        self._made_of = ""
        self._looked_at = -math.inf
        self._reported_at = -math.inf
        self.fault = ""

    @property
    def name(self) -> str:
        """The name of this process among the others."""
        return self._name

    async def store(self) -> HistoryStore | None:
        """Where the history is now."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            url = await self._redis_url()
            if self._store is None or url != self._made_of:
                await self.close()
                self._store, self._made_of = self._opened(url), url
        return self._store

    def _opened(self, url: str) -> HistoryStore | None:
        if url:
            try:
                return RedisHistory(redis_client(url))
            except ModuleNotFoundError:  # the minimal image of the Pipelines server lacks redis-py
                return None
        return SqliteHistory(self._path) if self._path else None

    async def run(self, is_wanted: Callable[[], bool]) -> None:
        """Write every second, until it is not wanted any more. A fault is kept for the dashboard."""
        while is_wanted():
            await self.write()
            await asyncio.sleep(WRITE_SECONDS)
        await self.write()
        await self.close()

    async def write(self) -> None:
        """Write what was noted, and now and then how this process is."""
        taken: list[Chat] = []
        try:
            store = await self.store()
            if store is None:
                return
            if taken := take_notes():
                await store.add(taken, minutes_of(taken))
                taken = []
            if self._is_joined and time.monotonic() - self._reported_at >= REPORT_SECONDS:
                self._reported_at = time.monotonic()
                await store.report(self._name, await self._status())
        except Exception as error:  # noqa: BLE001 - chats go on whatever the history does
            give_notes_back(taken)
            fault = redis_fault(error)
            if fault != self.fault:
                log.warning(
                    "The history of chats cannot be written (%s): it is written once it can be", fault
                )
            self.fault = fault
        else:
            self.fault = ""

    @property
    def _is_joined(self) -> bool:
        """Whether other processes may write into the same history."""
        return bool(self._made_of) or os.environ.get("UVICORN_WORKERS", "1") not in {"", "1"}

    async def close(self) -> None:
        """Give back what is open; the next use opens it again."""
        store, self._store = self._store, None
        if store is not None:
            with suppress(Exception):
                await store.close()


def process_status(kind: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """How a process is, for the dashboards of all.

    Args:
        kind: the server that it belongs to.
        told: its router's report; empty where it has none.
    """
    nodes = [node for node in told.get("nodes") or () if isinstance(node, Mapping)]
    return {
        "kind": kind,
        "waiting": told.get("waiting") or 0,
        "in_flight": sum(node.get("own") or 0 for node in nodes),
        "nodes": len(nodes),
        "nodes_up": sum(bool(node.get("healthy")) for node in nodes),
        "fault": told.get("sharing_fault") or "",
    }
