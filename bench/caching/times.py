"""What the cache adds to a request: its requests, and how long they take until their first chunk."""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import count
from os import urandom
from typing import Any, NamedTuple, Self

from harness.cache_requests import chat_body
from ollama_pack.base.redis import redis_client
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.store import CacheStore
from ollama_pack.cache.store_redis import RedisStore
from ollama_pack.engines.ollama.to_openai import ReplyHead

KEYRING = Keyring("a secret of the benchmark")
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "gpt-4")
ENTRY_OCTETS = 1300  # of an entry as it is kept here
# a chat's first message, and one with a history and tools
BODIES = {"short": chat_body(turns=1, tools=0), "long": chat_body(turns=10, tools=5)}


def open_redis(url: str) -> CacheStore:
    return RedisStore(redis_client(url), redis_client(url))


def question_of(body: dict[str, Any], scope: str = "user:1") -> Question:
    slot = slot_of(AnswerBasis(scope, body, "sha256:1"), KEYRING)
    if not isinstance(slot, Slot):
        raise TypeError(slot.reason)
    return Question(slot, scope)


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**HEAD.tagged("chat.completion.chunk"), "choices": [choice]}


async def at_once() -> AsyncGenerator[dict[str, Any], None]:
    """An upstream that takes no time, and lets others go on between its chunks as a connection does."""
    for _ in range(5):
        await asyncio.sleep(0)
        yield chunk({"content": "word " * 40})
    yield chunk({}, "stop")


class Spent(NamedTuple):
    """Milliseconds: that went by, and that this thread computed."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter_ns() / 1e6, time.thread_time_ns() / 1e6)

    def without(self, *others: "Spent") -> "Spent":
        return Spent(
            self.wall - sum(each.wall for each in others), self.cpu - sum(each.cpu for each in others)
        )


async def first_of(answer: AsyncGenerator[dict[str, Any], None], began: Spent) -> Spent:
    """What went by until the first chunk; the rest is read as well."""
    async with aclosing(answer):
        await anext(answer)
        spent = Spent.now().without(began)
        async for _ in answer:
            pass
    return spent


def quantiles(milliseconds: Iterable[float], prefix: str = "") -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {f"{prefix}p50_ms": round(cuts[49], 4), f"{prefix}p99_ms": round(cuts[98], 4)}


def figures(spent: Sequence[Spent]) -> dict[str, float]:
    return quantiles(each.wall for each in spent) | quantiles((each.cpu for each in spent), "cpu_")


Ask = Callable[[], Awaitable[Spent]]


async def in_turn(calls: int, *asks: Ask) -> list[list[Spent]]:
    """What each took, asked one after another again and again; the garbage is collected in between."""
    for ask in asks:
        await ask()
    taken: list[list[Spent]] = [[] for _ in asks]
    for number in range(calls):
        if number % 200 == 0:
            gc.collect()
        for ask, spent in zip(asks, taken, strict=True):
            spent.append(await ask())
    return taken


async def answered(cache: ResponseCache, body: dict[str, Any], scope: str) -> Spent:
    """A request from the body to its first chunk."""
    began = Spent.now()
    outcome = await cache.lookup(question_of(body, scope))
    return await first_of(cache.chunks(outcome, HEAD, at_once), began)


@asynccontextmanager
async def one_get(url: str) -> AsyncIterator[Ask]:
    """A GET of as many bytes as an entry has, asked as the store asks; of no server, nothing."""

    async def nothing() -> Spent:
        return Spent(0, 0)

    if not url:
        yield nothing
        return
    client = redis_client(url)
    await client.execute_command("SET", "bytes", urandom(ENTRY_OCTETS))

    async def get() -> Spent:
        began = Spent.now()
        await client.execute_command("GET", "bytes")
        return Spent.now().without(began)

    yield get
    await client.aclose()


async def hits(store: CacheStore, calls: int, url: str = "") -> dict[str, Any]:
    """From the body to the first chunk of a kept answer; and how often the store's limit ran out."""
    cache = ResponseCache(store, KEYRING)
    found: dict[str, Any] = {}
    async with one_get(url) as get:
        for name, body in BODIES.items():
            hit = partial(answered, cache, body, "user:1")
            taken, gets = await in_turn(calls, hit, get)
            found[name] = figures(taken) | {
                "get": figures(gets),
                "own": figures(list(map(Spent.without, taken, gets))),
            }
    counts = cache.counters.snapshot()
    found["asked"] = {"hits": counts["hits"], "given_up": counts.get("misses/store slow", 0)}
    await cache.close()
    return found


async def misses(store: CacheStore, calls: int, url: str = "") -> dict[str, Any]:
    """What a cache adds before the first chunk of an answer that it does not have."""
    cache, numbers = ResponseCache(store, KEYRING), count()

    async def alone() -> Spent:
        return await first_of(at_once(), Spent.now())

    async def missed() -> Spent:
        return await answered(cache, BODIES["short"] | {"seed": next(numbers)}, "user:2")

    async with one_get(url) as get:
        plain, through, gets = await in_turn(calls, alone, missed, get)
    counts = cache.counters.snapshot()
    await cache.close()
    return {
        "asked": {"led": counts["misses/absent"], "given_up": counts.get("misses/store slow", 0)},
        "without": figures(plain),
        "through": figures(through),
        "added": figures(list(map(Spent.without, through, plain))),
        "own": figures(list(map(Spent.without, through, plain, gets))),
    }
