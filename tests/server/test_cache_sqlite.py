"""What only a store in a file can suffer."""

import asyncio
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from harness.cache_processes import ask, caches, run_on
from harness.cache_upstream import ScriptedUpstream, question, said
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.errors import StoreDownError, StoreFullError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.outcome import Hit, Lead, Miss
from ollama_pack.cache.sqlite_cache import SqliteCache
from ollama_pack.cache.store import CacheStore, Kept, Lease, Quota, StoreTimes
from ollama_pack.cache.store_sqlite import SqliteStore

TTL = 60_000


def test_file_that_is_no_database_is_replaced(tmp_path: Path) -> None:
    """Would catch a damaged file that switches the cache off for good, or ends chats with an error."""
    path = tmp_path / "cache.sqlite3"
    path.write_bytes(b"this is not a database, but it is long enough to look like one" * 100)

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        assert said(await ask(one, ScriptedUpstream())) == "Hello"
        assert one.counters.snapshot()["misses/store down"] == 1
        assert said(await ask(one, ScriptedUpstream())) == "Hello"
        assert isinstance(await one.lookup(question()), Hit)

    run_on(str(path), test)


@pytest.mark.parametrize("how", ["overwritten", "cut off", "deleted"])
def test_workers_stay_together_after_the_file_was_damaged(tmp_path: Path, how: str) -> None:
    """Would catch two workers with a store each: a flush reaches one, the other gives old answers."""
    path = tmp_path / "cache.sqlite3"

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert isinstance(await two.lookup(question()), Hit)
        spoil(path, how)
        for cache in (one, two, one, two):
            await ask(cache, ScriptedUpstream(), question("after the damage"))
        assert isinstance(await one.lookup(question("after the damage")), Hit)
        assert isinstance(await two.lookup(question("after the damage")), Hit)
        assert await one.flush() is None
        assert isinstance(await two.lookup(question("after the damage")), Lead)

    run_on(str(path), test)
    run_on(str(path), lambda one, _two: seen_by_new_worker(one))


async def seen_by_new_worker(cache: ResponseCache) -> None:
    """Whether a worker that begins later works with what is there."""
    await ask(cache, ScriptedUpstream(), question("later"))
    assert isinstance(await cache.lookup(question("later")), Hit)


def spoil(path: Path, how: str) -> None:
    """What happens to files of a full, failing or tidied disk, while they are in use."""
    for file in (path, path.with_name(f"{path.name}-wal")):
        size = file.stat().st_size
        if how == "deleted":
            file.unlink()
        elif how == "cut off":
            os.truncate(file, size // 2 + 7)
        else:
            with file.open("r+b") as opened:
                opened.write(b"nothing that SQLite knows " * (size // 26))


def test_folder_that_is_not_there_is_a_miss(tmp_path: Path) -> None:
    """Would catch a wrong path that ends chats with an error."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        outcome = await one.lookup(question())
        assert isinstance(outcome, Miss)
        assert said(await ask(one, ScriptedUpstream())) == "Hello"

    run_on(str(tmp_path / "nowhere" / "cache.sqlite3"), test)


def test_others_on_the_host_cannot_read_the_file(tmp_path: Path) -> None:
    """Would catch a file that every account of the machine can copy."""
    path = tmp_path / "cache.sqlite3"

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert path.stat().st_mode & 0o077 == 0

    run_on(str(path), test)
    assert b"Hello" not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


@pytest.mark.parametrize("made", [True, False], ids=["in use", "being made"])
def test_lock_of_a_process_that_is_held_up_is_waited_for(tmp_path: Path, made: bool) -> None:  # noqa: FBT001
    """Would catch a cache that fails because another worker of a busy machine keeps the lock for long."""
    path = tmp_path / "cache.sqlite3"

    async def test() -> None:
        store = SqliteStore(path)
        if made:
            await store.ping()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            asked = asyncio.create_task(store.acquire(question().slot, "t", "read"))
            await asyncio.wait({asked}, timeout=0.3)  # it gave up after 0.09 s once
            assert not asked.done()
        assert isinstance(await asked, Lease)
        await store.close()

    asyncio.run(test())


async def kept(store: CacheStore, sealed: bytes) -> bool:
    """Keep it, and tell whether it is found then."""
    slot = question().slot
    lease = await store.acquire(slot, "t1", "refresh")
    assert isinstance(lease, Lease)
    await store.commit(lease, sealed, 60_000, Quota(), (1, b"end"))
    return isinstance(await store.acquire(slot, "t2", "read"), Kept)


def test_restarted_host_begins_with_an_empty_cache(tmp_path: Path) -> None:
    """Would catch entries whose times are of another run of the clock, and that would stay for years."""
    path = tmp_path / "cache.sqlite3"
    boots = [("first", 9_000_000), ("second", 1_000), ("second", 500), ("second", 2_000)]

    async def test() -> None:
        found = []
        for name, now in boots:
            store = SqliteStore(path, clock=lambda now=now: now, clock_name=lambda name=name: name)  # type: ignore[misc] # mypy cannot infer a lambda with a default
            found.append(isinstance(await store.acquire(question().slot, "t", "refresh"), Lease))
            found.append((await store.use_of(question().slot.scope)).entries == 0)
            assert await kept(store, b"sealed")
            await store.close()
        # empty at first, after the boot, and where the clock runs behind what is there; kept at the last
        assert found == [True, True, True, True, True, True, True, False]

    asyncio.run(test())


def test_answer_outlives_the_process(tmp_path: Path) -> None:
    """Would catch a cache that is empty after each restart of Open WebUI."""
    place = str(tmp_path / "cache.sqlite3")

    async def test() -> None:
        async with caches(place) as (one, _two):
            await ask(one, ScriptedUpstream())
        async with caches(place) as (one, _two):
            assert isinstance(await one.lookup(question()), Hit)
            assert isinstance(await one.lookup(question("another")), Lead)

    asyncio.run(test())


def test_keeping_an_answer_goes_through_no_table(tmp_path: Path) -> None:
    """Would catch a step that takes longer the more is kept: 35 ms with 10,000 answers once."""
    path = tmp_path / "cache.sqlite3"
    slot, told = question().slot, list[str]()
    cache = SqliteCache(path, StoreTimes(), lambda: 1000, "boot")
    cache._link.execute("DROP INDEX IF EXISTS labels_ends")  # noqa: SLF001 - as a file of an older version lacks it
    cache.close()
    with closing(SqliteCache(path, StoreTimes(), lambda: 1000, "boot")) as cache:
        link = cache._link  # noqa: SLF001 - whose plans only it tells
        link.set_trace_callback(told.append)
        cache.label("l", slot, TTL)
        lease = cache.acquire(slot, "t", "read")
        assert isinstance(lease, Lease)
        assert cache.commit(lease, b"sealed", TTL, Quota(), (1, b"end")) == "stored"
        link.set_trace_callback(None)
        asked = [each for each in told if each.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))]
        plans = [
            str(row[3]) for each in asked for row in link.execute(f"EXPLAIN QUERY PLAN {each}").fetchall()
        ]
    large = [plan for plan in plans if re.match("(SCAN|SEARCH) (entries|labels)", plan)]
    assert len(large) > 3  # else none were looked at
    assert [plan for plan in large if plan.startswith("SCAN")] == []
    assert [plan for plan in large if "(scope=?)" in plan and "COVERING" not in plan] == []


def test_what_has_ended_goes_in_parts_and_without_a_commit(tmp_path: Path) -> None:
    """Would catch a first answer that waits until all of last week's are gone, and a file that only grows."""
    now = 1000
    slots = [Slot("a" * 32, f"{number:064x}") for number in range(500)]
    with closing(SqliteCache(tmp_path / "cache.sqlite3", StoreTimes(), lambda: now, "boot")) as cache:
        for slot in slots:
            cache.label("l", slot, 10)
            lease = cache.acquire(slot, slot.name, "refresh")
            assert isinstance(lease, Lease)
            cache.commit(lease, b"sealed", 10, Quota(), (1, b"end"))
        now = 2000
        left = []
        for number in range(3):
            lease = cache.acquire(slots[0], f"t{number}", "read")
            assert isinstance(lease, Lease)
            cache.release(lease, (1, b"end"))
            left.append(cache.use_of("a" * 32).entries)
    assert left == [300, 100, 0]


def test_full_disk_is_not_taken_for_a_failing_one(tmp_path: Path) -> None:
    """Would catch a full disk that switches the cache off: what is kept can still be read."""

    async def test() -> None:
        store = SqliteStore(tmp_path / "cache.sqlite3")
        assert await kept(store, b"sealed")
        step = store._thread.submit  # noqa: SLF001 - a disk of a few pages
        step(lambda: store._current()._link.execute("PRAGMA max_page_count = 40")).result()  # noqa: SLF001
        lease = await store.acquire(Slot("a" * 32, "1" * 64), "t", "read")
        assert isinstance(lease, Lease)
        with pytest.raises(StoreFullError):
            await store.commit(lease, bytes(200_000), TTL, Quota(), (1, b"end"))
        assert isinstance(await store.find(question().slot), Kept)
        await store.close()

    asyncio.run(test())


def test_file_with_a_damaged_index_is_replaced(tmp_path: Path) -> None:
    """Would catch a damaged file that is kept for ever, because SQLite says exactly where it is damaged."""
    path = tmp_path / "cache.sqlite3"

    async def test() -> None:
        store = SqliteStore(path)
        assert await kept(store, b"sealed")
        await store.close()
        with closing(sqlite3.connect(path, isolation_level=None)) as link:
            link.execute("PRAGMA writable_schema = 1")
            link.execute(
                "UPDATE sqlite_schema SET sql = replace(sql, '(ends)', '(made)') WHERE name = 'entries_ends'"
            )
        with closing(sqlite3.connect(path, isolation_level=None)) as link:
            link.execute("UPDATE entries SET ends = ends + 1")  # of which the index hears nothing
            link.execute("PRAGMA writable_schema = 1")
            link.execute(
                "UPDATE sqlite_schema SET sql = replace(sql, '(made)', '(ends)') WHERE name = 'entries_ends'"
            )
        store = SqliteStore(path)
        with pytest.raises(StoreDownError):
            await store.discard(question().slot)
        assert await kept(store, b"sealed")
        await store.close()

    asyncio.run(test())
    assert {each.name for each in tmp_path.glob("*.sqlite3")} == {"cache.1.sqlite3"}
