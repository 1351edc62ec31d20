"""Caches on one store, as several processes have them, and somebody who changes what is in it."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from harness import cache_upstream
from harness.cache_upstream import HEAD, SECRET, Chunk, ScriptedUpstream, open_store, question, said
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.generation import CacheRules
from ollama_pack.cache.guard import GuardRule
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.store import StoreTimes

QUICK = StoreTimes(lease=1000, follower=1000)
RULES = CacheRules(heartbeat_seconds=0.1, first_tail_seconds=0.1, tail_seconds=0.2)
PATIENT = GuardRule(limit=5.0)  # a busy machine is no fault of the store

Test = Callable[[ResponseCache, ResponseCache], Awaitable[None]]


def open_cache(place: str, secret: str = SECRET, guard_rule: GuardRule = PATIENT) -> ResponseCache:
    """The cache of one more process."""
    return ResponseCache(open_store(place, QUICK), Keyring(secret), RULES, guard_rule=guard_rule)


@asynccontextmanager
async def caches(place: str, guard_rule: GuardRule = PATIENT) -> AsyncIterator[list[ResponseCache]]:
    """Those of two processes."""
    opened = [open_cache(place, guard_rule=guard_rule) for _ in range(2)]
    try:
        yield opened
    finally:
        for cache in opened:
            await cache.close()


def run_on(place: str, test: Test, guard_rule: GuardRule = PATIENT) -> None:
    """Run a test on the caches of two processes."""

    async def within() -> None:
        async with asyncio.timeout(30), caches(place, guard_rule) as (one, two):
            await test(one, two)

    asyncio.run(within())


async def until(holds: Callable[[], Awaitable[bool] | bool]) -> None:
    """Ask every 10 ms until it holds: for what does not tell of itself."""
    for _ in range(3000):
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never holds")


def follows(*caches: ResponseCache) -> float:
    """How many requests of these processes have followed."""
    return sum(cache.counters.snapshot().get("follows", 0) for cache in caches)


async def collected(answer: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """All that comes."""
    async with aclosing(answer):
        return [chunk async for chunk in answer]


async def ask(cache: ResponseCache, upstream: ScriptedUpstream, asked: Question | None = None) -> list[Chunk]:
    """The answer that a client gets."""
    return await collected(cache.chunks(await cache.lookup(asked or question()), HEAD, upstream))


async def beginning(answer: AsyncGenerator[Chunk, None], until: str) -> str:
    """What comes until this text has."""
    text = ""
    while until not in text:
        text += said([await anext(answer)])
    return text


@asynccontextmanager
async def hanging_leader(place: str, *words: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that leads, has said these words, and can be killed."""
    process = _start_leader(place, *words)
    assert process.stdout is not None
    try:
        for _ in range(1 + len(words)):
            assert await asyncio.to_thread(process.stdout.readline) == b"Lead\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _start_leader(place: str, *words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, cache_upstream.__file__, place, *words]
    root = Path(__file__).parents[2]
    path = ":".join(str(root / name) for name in ("src", "tests"))
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": path})


def read_entry(place: str, asked: Question) -> bytes:
    """An entry as the store has it."""
    if "://" in place:
        with redis.Redis.from_url(place) as client:
            return bytes(client.hget(_entry_key(asked), "sealed") or b"")
    rows = _in_sqlite(place, "SELECT sealed FROM entries WHERE scope = ?", asked.slot.scope)
    return bytes(rows[0][0])


def write_entry(place: str, asked: Question, sealed: bytes) -> None:
    """Put something else in an entry's place."""
    if "://" in place:
        with redis.Redis.from_url(place) as client:
            client.hset(_entry_key(asked), "sealed", sealed)
        return
    _in_sqlite(place, "UPDATE entries SET sealed = ? WHERE scope = ?", sealed, asked.slot.scope)


def add_record(place: str, scope: str, token: str, record: bytes) -> None:
    """Put a second record into a live stream."""
    if "://" in place:
        with redis.Redis.from_url(place) as client:
            client.execute_command("XADD", f"ollama_pack:cache:{{{scope}}}:s:{token}", "0-2", "r", record)
        return
    _in_sqlite(place, "INSERT INTO records VALUES (?, 2, ?)", token, record)


def _in_sqlite(place: str, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(place)) as link, link:
        return link.execute(statement, values).fetchall()


def _entry_key(asked: Question) -> str:
    return f"ollama_pack:cache:{{{asked.slot.scope}}}:e:{asked.slot.name}"
