"""The response cache, measured: on a real Valkey on loopback, and on SQLite.

    .venv/bin/python bench/cache.py [--quick] [--peers PYTHON] [--pairs N] [--reads N]
                                                    writes bench/results/cache.json

- askers: 100 at once in 4 processes for one answer: how many generations, and how far each follower's
  first token is behind the leader's.
- hit, miss: what the cache adds to a request, from the body to the first chunk, the round trip to the store
  included. Our own time is what is left of each without the GET of as many bytes, asked in the same way, that
  comes right after it: both meet the machine as it is at that moment. Of a miss it is also without what the
  same upstream takes by itself. The CPU time of our thread is what a machine that is busy with other things
  does not change; all that the client of the store does is in it.
- pairs: generated requests that differ in one field that matters share no key; those that differ in ids,
  order and spaces of JSON do.
- reads: tries to get an answer of another scope: by asking, by opening what the store holds, by moving it.

`--peers` names an interpreter that has litellm, gptcache and redisvl; they run on the same Valkey
(`bench/peers/cache.py`).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.caching.times import (
    BODIES,
    HEAD,
    KEYRING,
    at_once,
    chunk,
    hits,
    misses,
    open_redis,
    quantiles,
    question_of,
)
from harness.cache_requests import alike, different, random_body
from harness.valkey import Valkey
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.entry import open_entry
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import AnswerBasis, slot_of
from ollama_pack.cache.outcome import Hit, Question
from ollama_pack.cache.store import CacheStore, Kept, Lease, Quota
from ollama_pack.cache.store_sqlite import SqliteStore

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/cache.json"
PROCESSES, ASKERS = 4, 100
TURNS = 5  # of our hits and the peers'
FIRST_TOKEN_SECONDS, TOKENS, TOKEN_SECONDS = 0.3, 40, 0.01
GOALS = {
    "generations_of_a_round": 1,
    "follower_lag_max_ms": 50,
    "hit_own_p50_ms": 0.3,  # without one GET, both
    "hit_own_p99_ms": 1,
    "miss_added_p50_ms": 0.3,
    "sqlite_hit_p50_ms": 1,
    "wrong_pairs": 0,
    "external_reads": 0,
}


# --- one generation for 100 askers


async def ask_once(cache: ResponseCache, number: int) -> tuple[bool, int]:
    """Whether this asker generated, and when its first token came, on the clock that all processes share."""
    generates = False

    async def upstream() -> AsyncGenerator[dict[str, Any], None]:
        nonlocal generates
        generates = True
        await asyncio.sleep(FIRST_TOKEN_SECONDS)
        for _ in range(TOKENS):
            yield chunk({"content": "word "})
            await asyncio.sleep(TOKEN_SECONDS)
        yield chunk({}, "stop")

    outcome = await cache.lookup(question_of(BODIES["short"] | {"seed": number}))
    first = words = 0
    async with aclosing(cache.chunks(outcome, HEAD, upstream)) as answer:
        async for each in answer:
            first = first or time.monotonic_ns()
            words += bool(each["choices"][0]["delta"].get("content"))
    if words != TOKENS:
        raise ValueError(f"an asker got {words} words of {TOKENS}")
    return generates, first


def askers_process(url: str, rounds: int, together: Any, results: Any) -> None:
    """What each of the processes does: in every round, all of its askers ask at the same moment."""

    async def run() -> None:
        cache = ResponseCache(open_redis(url), KEYRING)
        while not await cache.warm():
            pass
        for number in range(rounds + 1):  # the first is to warm up, as a server is
            await asyncio.to_thread(together.wait)
            asks = (ask_once(cache, number) for _ in range(ASKERS // PROCESSES))
            results.put((number, await asyncio.gather(*asks)))
        await cache.close()

    asyncio.run(run())


def askers(url: str, rounds: int) -> dict[str, Any]:
    """Rounds of 100 askers in 4 processes; lags are those of the followers behind their leader."""
    spawn = multiprocessing.get_context("spawn")
    together, results = spawn.Barrier(PROCESSES), spawn.Queue()
    arguments = (url, rounds, together, results)
    processes = [spawn.Process(target=askers_process, args=arguments, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found: dict[int, list[tuple[bool, int]]] = {}
    for _ in range((rounds + 1) * PROCESSES):
        number, asked = results.get(timeout=120)
        found.setdefault(number, []).extend(asked)
    del found[0]
    for process in processes:
        process.join()
    generations = [sum(generates for generates, _ in asked) for asked in found.values()]
    lags = [lag for asked in found.values() for lag in lags_of(asked)]
    return {
        "rounds": rounds,
        "askers": ASKERS,
        "processes": PROCESSES,
        "generations_of_a_round": max(generations),
        "generations": sum(generations),
        "follower_lag_p50_ms": round(statistics.median(lags), 3),
        "follower_lag_p99_ms": quantiles(lags)["p99_ms"],
        "follower_lag_max_ms": round(max(lags), 3),
    }


def lags_of(asked: Sequence[tuple[bool, int]]) -> list[float]:
    leader = min(first for generates, first in asked if generates)
    return [(first - leader) / 1e6 for generates, first in asked if not generates]


def beside_peers(python: str, url: str, calls: int) -> dict[str, Any]:
    """Our hits and the peers' in turns, as a busy machine changes from minute to minute: the medians."""
    own, others = [], []
    for _ in range(TURNS):
        own.append(asyncio.run(hits(open_redis(url), calls // TURNS, url)))
        others.append(peers(python, url, calls // TURNS))
    return {"redis_hit": medians(own), "peers_hit": medians(others)}


def medians(found: Sequence[Any]) -> Any:
    """Of figures that are alike, at each place the median of the numbers."""
    first = found[0]
    if isinstance(first, dict):
        return {name: medians([each[name] for each in found]) for name in first}
    return round(statistics.median(found), 4) if isinstance(first, int | float) else first


def peers(python: str, url: str, calls: int) -> Any:
    """The peers' hits on the same Valkey, by the interpreter that has them."""
    if not python:
        return "none: give --peers an interpreter that has litellm, redisvl and gptcache"
    argv = [python, str(ROOT / "bench/peers/cache.py"), url, str(calls)]
    body = {name: BODIES["short"][name] for name in ("model", "messages")}
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(  # noqa: S603 - what the caller named
        argv, input=json.dumps(body), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"failed: {done.stderr[-300:]}"
    return json.loads(done.stdout.splitlines()[-1])


# --- right and wrong


PAIRS_OF_A_SEED = 5


def pairs(seeds: range) -> tuple[int, int]:
    """How many pairs were compared, and how many were wrong.

    Of each seed: a request and the same from elsewhere, and each of these two with two that differ.
    """
    wrong = 0
    for seed in seeds:
        dice = Random(seed)
        body = random_body(dice)
        bodies = (body, alike(body, dice), different(body, dice), different(body, dice))
        own, same, *others = (slot_of(AnswerBasis("user:1", each, "d"), KEYRING) for each in bodies)
        wrong += (own != same) + sum(one == other for one in (own, same) for other in others)
    return PAIRS_OF_A_SEED * len(seeds), wrong


def all_pairs(count: int) -> dict[str, int]:
    step, seeds = 1000, -(-count // PAIRS_OF_A_SEED)
    ranges = [range(start, min(start + step, seeds)) for start in range(0, seeds, step)]
    with multiprocessing.get_context("spawn").Pool(initializer=os.nice, initargs=(10,)) as pool:
        found = list(pool.imap_unordered(pairs, ranges))
    return {"pairs": sum(each for each, _ in found), "wrong": sum(wrong for _, wrong in found)}


async def external_reads(url: str, count: int) -> dict[str, int]:
    """Tries to read an answer of another scope, and how many succeed."""
    dice, store = Random(7), open_redis(url)
    cache = ResponseCache(store, KEYRING)
    scopes = ["global", *(f"user:{n}" for n in range(20)), *(f"group:{n}" for n in range(4))]
    bodies = [BODIES["short"] | {"seed": -1 - number} for number in range(20)]  # nobody else has asked these
    owner = {number: dice.choice(scopes) for number in range(len(bodies))}
    kept: dict[int, bytes] = {}
    for number, body in enumerate(bodies):
        asked = question_of(body, owner[number])
        async for _ in cache.chunks(await cache.lookup(asked), HEAD, at_once):
            pass
        found = await store.acquire(asked.slot, "reader", "read")
        if not isinstance(found, Kept):
            raise TypeError(found)
        kept[number] = found.sealed
    tries = {"by asking": 0, "by opening": 0, "by moving": 0}
    read = 0
    for _ in range(count):
        number = dice.randrange(len(bodies))
        asked = question_of(
            bodies[number], dice.choice([scope for scope in scopes if scope != owner[number]])
        )
        way = dice.choices(list(tries), (60, 35, 5))[0]
        tries[way] += 1
        if way == "by opening":
            read += opens(kept[number], asked)
            continue
        if way == "by moving":
            await move(store, asked, kept[number])
        read += isinstance(await cache.lookup(asked), Hit)
    await cache.close()
    return {"tries": count, **tries, "succeeded": read}


def opens(sealed: bytes, asked: Question) -> bool:
    try:
        open_entry(sealed, asked.scope, asked.slot, KEYRING)
    except EntryUnreadableError:
        return False
    return True


async def move(store: CacheStore, asked: Question, sealed: bytes) -> None:
    """Put somebody else's entry in the place where this question will look."""
    lease = await store.acquire(asked.slot, f"mover {time.monotonic_ns()}", "refresh")
    if isinstance(lease, Lease):
        await store.commit(lease, sealed, 60_000, Quota(), (1, b"end"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    calls, rounds = (500, 3) if options.quick else (5000, 20)
    with tempfile.TemporaryDirectory() as name, Valkey(Path(name)) as valkey:
        folder = Path(name)
        with valkey.client() as client:
            info = client.info("server")
        result = {
            "machine": {
                "cpus": os.cpu_count(),
                "load_before": os.getloadavg()[0],
                "arch": platform.machine(),
            },
            "python": platform.python_version(),
            "store": {name: info[name] for name in ("redis_version", "valkey_version") if name in info},
            "goals": GOALS,
            "askers": askers(valkey.url, rounds),
            **beside_peers(options.peers, valkey.url, calls),
            "sqlite_hit": asyncio.run(hits(SqliteStore(folder / "hits.sqlite3"), calls)),
            "redis_miss": asyncio.run(misses(open_redis(valkey.url), calls, valkey.url)),
            "sqlite_miss": asyncio.run(misses(SqliteStore(folder / "misses.sqlite3"), calls)),
            "external_reads": asyncio.run(external_reads(valkey.url, options.reads)),
        }
    return result | {"pairs": all_pairs(options.pairs), "load_after": os.getloadavg()[0]}


def show(result: dict[str, Any]) -> None:
    columns = {"p50 ms": "p50_ms", "p99 ms": "p99_ms", "CPU p50": "cpu_p50_ms", "CPU p99": "cpu_p99_ms"}
    table = Table("what", *columns, title="time of a request that the cache takes")
    rows = {
        f"hit, {store[:-4]}, {name}": result[store][name]
        for store in ("redis_hit", "sqlite_hit")
        for name in BODIES
    }
    rows |= {f"hit, redis, {name}, without one GET": result["redis_hit"][name]["own"] for name in BODIES}
    rows["one GET"] = result["redis_hit"]["short"]["get"]
    if isinstance(result["peers_hit"], dict):
        rows |= {f"hit, {name}": each for name, each in result["peers_hit"].items()}
    rows |= {f"miss adds, {store[:-5]}": result[store]["added"] for store in ("redis_miss", "sqlite_miss")}
    rows["miss adds, redis, without one GET"] = result["redis_miss"]["own"]
    for name, each in rows.items():
        cells = [each.get(column, "") for column in columns.values()] if "p50_ms" in each else [each["error"]]
        table.add_row(name, *map(str, cells))
    Console().print(table)
    for name in ("askers", "pairs", "external_reads"):
        print(name, result[name])
    if not isinstance(result["peers_hit"], dict):
        print("peers:", result["peers_hit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls and rounds")
    parser.add_argument("--peers", default="", metavar="PYTHON", help="an interpreter that has the peers")
    parser.add_argument("--pairs", type=int, default=20_000, metavar="N", help="request pairs to compare")
    parser.add_argument("--reads", type=int, default=5_000, metavar="N", help="tries to read across scopes")
    options = parser.parse_args()
    result = run(options)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
