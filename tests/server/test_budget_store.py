"""The counters of budgets, in Valkey and in SQLite: what is reserved, settled, lost in a crash and shared."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from harness import budget_worker
from harness.budget_worker import AT_ONCE, MOST_TOKENS, open_budget_store
from harness.valkey import Valkey
from ollama_pack.budgets.period import period_at
from ollama_pack.budgets.store import BudgetStore, Count, Limit

UTC = ZoneInfo("UTC")
DAY = 86_400
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BUDGET_KILLS", "4"))
REQUESTS = int(os.environ.get("BUDGET_REQUESTS", "2000"))


def limit(now: float, amount: int = 10, burst: int = 0, name: str = "tokens day user 1") -> Limit:
    return Limit(name, amount, burst, period_at(now, "day", UTC), strict=True)


def run(place: str, test: Callable[[BudgetStore, BudgetStore], Coroutine[Any, Any, None]]) -> None:
    """Run a test on the stores of two processes."""

    async def within() -> None:
        async with asyncio.timeout(60), both(place) as (one, two):
            await test(one, two)

    asyncio.run(within())


@asynccontextmanager
async def both(place: str) -> AsyncIterator[list[BudgetStore]]:
    stores = [open_budget_store(place) for _ in range(2)]
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


def test_what_one_reserves_the_other_sees(place: str) -> None:
    """Would catch two workers that each give the whole budget away, and a settlement that counts twice."""

    async def test(one: BudgetStore, two: BudgetStore) -> None:
        now = time.time()
        limits = [limit(now)]
        assert await one.reserve("a", limits, [7], now, always=False) == (True, (Count(0, 0),))
        assert await two.reserve("b", limits, [7], now, always=False) == (True, (Count(0, 7),))
        assert await one.reserve("c", limits, [7], now, always=False) == (False, (Count(0, 14),))
        assert await one.reserve("d", limits, [1], now, always=True) == (True, (Count(0, 14),))
        assert await two.settle("a", limits, [3], now)
        assert not await one.settle("a", limits, [3], now)
        assert await one.counts(limits, now) == (Count(3, 8),)
        assert [each.used for each in await two.all_counts(now)] == [3]

    run(place, test)


def test_a_new_day_begins_at_the_burst(place: str) -> None:
    """Would catch a counter that never begins anew, and a burst that nobody pays back."""

    async def test(one: BudgetStore, two: BudgetStore) -> None:
        now = time.time()
        for token, spent in (("a", 9), ("b", 4)):
            assert (await one.reserve(token, [limit(now, burst=5)], [1], now, always=False))[0]
            assert await one.settle(token, [limit(now, burst=5)], [spent], now)
        tomorrow = now + DAY
        assert await two.counts([limit(tomorrow, burst=5)], tomorrow) == (Count(3, 0),)
        assert await two.reserve("c", [limit(tomorrow, burst=5)], [1], tomorrow, always=False) == (
            True,
            (Count(3, 0),),
        )
        assert await two.settle("c", [limit(tomorrow, burst=5)], [2], tomorrow)
        assert await one.counts([limit(tomorrow, burst=5)], tomorrow) == (Count(5, 0),)
        assert await one.counts([limit(now, burst=5)], now) == (Count(5, 0),)  # the clock was set back

    run(place, test)


def test_a_reservation_of_a_dead_worker_expires(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a budget that is used up for ever by chats which nobody will settle."""
    for module in ("ollama_pack.budgets.store_redis", "ollama_pack.budgets.store_sqlite"):
        monkeypatch.setattr(f"{module}.RESERVATION_SECONDS", 0.3)

    async def test(one: BudgetStore, two: BudgetStore) -> None:
        limits = [limit(time.time())]
        assert (await one.reserve("dead", limits, [10], time.time(), always=False))[0]
        assert (await two.reserve("alive", limits, [4], time.time(), always=True))[0]
        while (await two.counts(limits, time.time()))[0].reserved == 14:
            await two.renew(["alive"], time.time())
            await asyncio.sleep(0.02)
        assert await two.counts(limits, time.time()) == (Count(0, 4),)
        assert await one.settle("dead", limits, [2], time.time())  # it was only slow: it counts once
        assert not await one.settle("dead", limits, [2], time.time())
        assert await two.counts(limits, time.time()) == (Count(2, 4),)

    run(place, test)


def test_both_stores_count_alike(valkey: Valkey, tmp_path: Path) -> None:
    """Would catch the script and the SQL that disagree on what a period, a burst or a reservation is."""
    with valkey.client() as client:
        client.flushall()
    dice = random.Random(7)  # noqa: S311 - the same steps each time

    async def compare() -> None:
        stores = [open_budget_store(valkey.url), open_budget_store(str(tmp_path / "b.sqlite3"))]
        now, under_way = time.time(), list[tuple[str, list[int]]]()
        for number in range(400):
            users = dice.sample(range(3), 2)
            limits = [limit(now, 60, 7, f"tokens day user {user}") for user in users]
            amounts = [dice.randrange(20) for _ in limits]
            step = dice.choice(("reserve", "always", "settle", "settle", "later"))
            if step == "later":  # Redis has a clock of its own, by which reservations end
                now += dice.choice((10, 3600, DAY, 3 * DAY, -60)) if not under_way else 0
                found: list[Any] = [await store.counts(limits, now) for store in stores]
            elif step == "settle":
                token, users = under_way.pop() if under_way else (f"t{number}", users)
                limits = [limit(now, 60, 7, f"tokens day user {user}") for user in users]
                found = [await store.settle(token, limits, amounts, now) for store in stores]
            else:
                token, always = f"t{number}", step == "always"
                found = [await store.reserve(token, limits, amounts, now, always=always) for store in stores]
                under_way += [(token, users)] if found[0][0] else []
            assert found[0] == found[1], (number, step)
        for store in stores:
            await store.close()

    asyncio.run(compare())


def test_a_cluster_takes_the_script(cluster: Valkey) -> None:
    """Would catch keys of several slots in one script."""

    async def test(one: BudgetStore, _two: BudgetStore) -> None:
        now = time.time()
        limits = [limit(now), limit(now, name="requests day all everyone")]
        assert (await one.reserve("a", limits, [7, 1], now, always=False))[0]
        assert await one.settle("a", limits, [3, 1], now)
        assert await one.counts(limits, now) == (Count(3, 0), Count(1, 0))

    run(cluster.url.replace("redis://", "redis+cluster://"), test)


def test_killed_workers_lose_what_was_under_way_and_no_more(place: str) -> None:
    """Would catch a request that is counted twice or not at all, though its worker had settled it.

    BUDGET_REQUESTS=100000 BUDGET_KILLS=20 is the full run.
    """
    begun: list[int] = []
    settled: list[int] = []
    share = REQUESTS // (KILLS + 1)
    for kill in range(KILLS + 1):
        wanted = len(settled) + share if kill < KILLS else REQUESTS
        last = kill == KILLS
        process = start_worker(place, REQUESTS if not last else max(0, wanted - len(settled)))
        assert process.stdout is not None
        for line in process.stdout:
            word, tokens = line.split()
            (begun if word == b"begin" else settled).append(int(tokens))
            if not last and len(settled) >= wanted:
                process.send_signal(signal.SIGKILL)
                for rest in process.stdout:  # what it had said before
                    word, _, tokens = rest.partition(b" ")
                    if tokens.endswith(b"\n"):
                        (begun if word == b"begin" else settled).append(int(tokens))
        assert process.wait() == (0 if last else -signal.SIGKILL)
        process.stdout.close()
    tokens_used, requests_used = asyncio.run(totals(place))
    under_way = KILLS * AT_ONCE
    assert len(begun) - len(settled) <= under_way
    assert len(settled) >= REQUESTS
    assert len(settled) <= requests_used <= len(begun)
    assert sum(settled) <= tokens_used <= sum(settled) + under_way * MOST_TOKENS


def start_worker(place: str, requests: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    argv = [sys.executable, budget_worker.__file__, place, str(requests)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": path})


async def totals(place: str) -> tuple[int, int]:
    """All tokens, and all requests."""
    store = open_budget_store(place)
    counts = await store.all_counts(time.time())
    await store.close()
    found = {
        name: sum(one.used for one in counts if one.counter.startswith(name))
        for name in ("tokens", "requests")
    }
    return found["tokens"], found["requests"]
