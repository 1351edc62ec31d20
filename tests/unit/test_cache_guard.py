"""The limit and the breaker around a store that does what the test says, on a clock that the test moves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ollama_pack.cache.counters import CacheCounters
from ollama_pack.cache.errors import StoreDownError, StoreFullError
from ollama_pack.cache.guard import GuardRule, StoreGuard, StoreTrouble
from ollama_pack.cache.live import LiveAnswer
from ollama_pack.cache.store import CacheStore
from ollama_pack.cache.store_redis import RedisStore

RULE = GuardRule(limit=0.01, threshold=3, shortest=1.0, longest=4.0, probe_limit=0.01)


class Scripted(RedisStore):
    """A store of which only `ping` is asked.

    Attributes:
        up: whether it answers.
        pings: how often it was tried.
    """

    def __init__(self) -> None:
        self.up = True
        self.pings = 0

    async def ping(self) -> None:
        """Answer, or fail."""
        self.pings += 1
        if not self.up:
            raise StoreDownError("down")


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now


async def fine(_store: CacheStore) -> str:
    return "fine"


async def down(_store: CacheStore) -> str:
    raise StoreDownError("down")


async def full(_store: CacheStore) -> str:
    raise StoreFullError("full")


async def slow(_store: CacheStore) -> str:
    await asyncio.Event().wait()
    return "never"


def run(test: Callable[[StoreGuard, Scripted, Clock], Awaitable[None]]) -> None:
    async def within() -> None:
        store, clock = Scripted(), Clock()
        guard = StoreGuard(store, RULE, clock)
        await test(guard, store, clock)
        await guard.close()

    asyncio.run(within())


def test_trouble_is_a_value() -> None:
    """Would catch an error of the store that reaches a chat, or a store that is waited for without end."""

    async def test(guard: StoreGuard, _store: Scripted, _clock: Clock) -> None:
        assert await guard.ask(fine) == "fine"
        assert await guard.ask(down) == StoreTrouble("down")
        assert await guard.ask(slow) == StoreTrouble("slow")
        assert await guard.ask(full) == StoreTrouble("full")
        assert await guard.ask(fine) == "fine"

    run(test)


def test_success_in_between_forgives() -> None:
    """Would catch a breaker that adds failures up over days."""

    async def test(guard: StoreGuard, _store: Scripted, _clock: Clock) -> None:
        for _ in range(5):
            await guard.ask(down)
            await guard.ask(slow)
            await guard.ask(fine)
        assert not guard.is_open

    run(test)


def test_full_store_is_asked_on() -> None:
    """Would catch a full store whose entries are not read any more."""

    async def test(guard: StoreGuard, _store: Scripted, _clock: Clock) -> None:
        for _ in range(10):
            assert await guard.ask(full) == StoreTrouble("full")

    run(test)


def test_dead_store_is_left_alone_and_found_again() -> None:
    """Would catch a dead store that costs each chat a limit, or one that is never used again."""

    async def test(guard: StoreGuard, store: Scripted, clock: Clock) -> None:
        store.up = False
        for _ in range(3):
            assert await guard.ask(down) == StoreTrouble("down")
        assert await guard.ask(fine) == StoreTrouble("open")
        await asyncio.sleep(0)
        assert store.pings == 0
        for wait, pings in (
            (1.0, 1),
            (2.0, 2),
            (4.0, 3),
            (4.0, 4),
        ):  # twice as long each time, up to the longest
            clock.now += wait - 0.01
            assert await guard.ask(fine) == StoreTrouble("open")
            await asyncio.sleep(0)
            assert store.pings == pings - 1
            clock.now += 0.02
            for _ in range(5):  # many chats, one try
                assert await guard.ask(fine) == StoreTrouble("open")
            await asyncio.sleep(0)
            assert store.pings == pings
        store.up = True
        clock.now += 5
        assert await guard.ask(fine) == StoreTrouble("open")
        await asyncio.sleep(0)
        assert await guard.ask(fine) == "fine"
        for _ in range(3):
            await guard.ask(down)
        clock.now += 1.0
        await guard.ask(fine)
        await asyncio.sleep(0)
        assert not guard.is_open  # the wait is the shortest again

    run(test)


def test_late_listener_hears_everything() -> None:
    """Would catch a listener that misses what was said before it came, or waits after the end."""

    async def test() -> None:
        live = LiveAnswer()
        live.push({"n": 1})
        first = live.listen()
        assert await anext(first) == {"n": 1}
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        live.push({"n": 2})
        assert await waiting == {"n": 2}
        live.close("complete")
        live.close("lost", RuntimeError("too late"))
        assert [chunk async for chunk in live.listen()] == [{"n": 1}, {"n": 2}]
        assert (live.end, live.error) == ("complete", None)
        assert not live.alone.is_set()
        await first.aclose()
        assert live.alone.is_set()

    asyncio.run(test())


def test_lookup_times_fall_into_their_classes() -> None:
    """Would catch a histogram whose bounds are off by one class, or that loses the slowest."""
    counters = CacheCounters()
    for milliseconds in (0.05, 0.3, 0.31, 100, 101):
        counters.looked_up(milliseconds / 1000)
    names = {name for name in counters.snapshot() if name.startswith("lookups_ms/")}
    assert names == {
        "lookups_ms/0.1",
        "lookups_ms/0.3",
        "lookups_ms/0.5",
        "lookups_ms/100",
        "lookups_ms/more",
    }


def test_figures_that_could_not_be_brought_are_kept() -> None:
    """Would catch figures that a short trouble of the store loses or doubles."""
    counters = CacheCounters()
    counters.add("hits")
    new = counters.take_new()
    counters.add("hits", 2)
    counters.give_back(new)
    assert counters.take_new() == {"hits": 3}
    assert counters.take_new() == {}
    assert counters.snapshot() == {"hits": 3}


def test_log_says_once_that_the_store_is_in_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a dead store that nobody hears of, a line for each chat, or no word that it is back."""

    async def test(guard: StoreGuard, store: Scripted, clock: Clock) -> None:
        store.up = False
        for _ in range(6):
            await guard.ask(down)
            clock.now += 1
            await asyncio.sleep(0.02)
        assert guard.fault == "down"
        store.up = True
        while guard.is_open:
            clock.now += 1
            await guard.ask(fine)
            await asyncio.sleep(0.001)
        assert guard.fault == ""
        for _ in range(3):
            await guard.ask(full)

    with caplog.at_level("WARNING"):
        run(test)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "The response cache cannot use its store",
        "The response cache can use its store again",
        "The response cache keeps no new answers",
    ]
