"""What the cache does when its Redis is killed, frozen or full, in every phase: a real Valkey suffers it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.cache_processes import ask, beginning, collected, follows, run_on, until
from harness.cache_upstream import HEAD, Pause, ScriptedUpstream, content_chunk, last_chunk, question, said
from harness.valkey import Valkey
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.errors import LeaderLostError
from ollama_pack.cache.guard import GuardRule
from ollama_pack.cache.outcome import Hit, Lead, Miss

# The limit is the real one times five, for busy machines; the rest is quick.
RULE = GuardRule(limit=0.5, shortest=0.05, longest=0.1)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path) as valkey:
        yield valkey


def halves() -> tuple[Pause, ScriptedUpstream]:
    """A generation that stands still in the middle."""
    pause = Pause()
    return pause, ScriptedUpstream(content_chunk("Hel"), pause, content_chunk("lo"), last_chunk())


async def usable(cache: ResponseCache) -> None:
    """Wait until the breaker has found out that the store answers again."""

    async def leads() -> bool:
        return isinstance(await cache.lookup(question("are you there?", refresh=True)), Lead)

    await until(leads)


def test_dead_before_the_lookup(valkey: Valkey) -> None:
    """Would catch an error in the chat, or a dead Redis that is asked again and again, or never again."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        valkey.kill()
        reasons = []
        for _ in range(6):
            outcome = await one.lookup(question())
            assert isinstance(outcome, Miss)
            reasons.append(outcome.reason)
            assert said(await collected(one.chunks(outcome, HEAD, ScriptedUpstream()))) == "Hello"
        assert reasons == ["store down"] * 3 + ["store open"] * 3
        valkey.start()
        await usable(one)
        assert said(await ask(one, ScriptedUpstream())) == "Hello"
        assert isinstance(await one.lookup(question()), Hit)

    run_on(valkey.url, test, RULE)


def test_restarted_between_two_lookups(valkey: Valkey) -> None:
    """Would catch idle connections and unknown scripts that make a restarted Redis look dead."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        await asyncio.gather(*(ask(one, ScriptedUpstream(), question(f"{n}")) for n in range(5)))
        valkey.kill()
        valkey.start()
        outcomes = [await one.lookup(question(f"{n}")) for n in range(5)]
        assert [type(outcome) for outcome in outcomes] == [Lead] * 5

    run_on(valkey.url, test, RULE)


@pytest.mark.parametrize("restarts", [True, False])
def test_killed_while_an_answer_is_generated(valkey: Valkey, *, restarts: bool) -> None:
    """Would catch a leader that fails with its Redis, or half an answer that is taken for a whole one."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause, upstream = halves()
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        here = one.chunks(await one.lookup(question()), HEAD, upstream)
        elsewhere = two.chunks(await two.lookup(question()), HEAD, upstream)
        assert [await beginning(answer, "Hel") for answer in (here, elsewhere)] == ["Hel", "Hel"]
        valkey.kill()
        if restarts:
            valkey.start()
        with pytest.raises(LeaderLostError, match="regenerate"):
            await collected(elsewhere)
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert said(await collected(here)) == "lo"  # in the leader's process no store is needed
        assert "stored" not in one.counters.snapshot()

    run_on(valkey.url, test, RULE)


@pytest.mark.parametrize("fault", [Valkey.kill, Valkey.pause], ids=["killed", "frozen"])
def test_lost_before_the_first_word(valkey: Valkey, fault: Callable[[Valkey], None]) -> None:
    """Would catch a follower that waits for a stream that never comes, though it could generate by itself."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        leader = asyncio.create_task(ask(one, ScriptedUpstream(pause, content_chunk("Hello"), last_chunk())))
        await pause.reached.wait()
        own = ScriptedUpstream(content_chunk("My own"), last_chunk())
        follower = asyncio.create_task(ask(two, own))
        await until(lambda: follows(two) == 1)
        fault(valkey)
        assert said(await follower) == "My own"
        pause.over.set()
        assert said(await leader) == "Hello"

    run_on(valkey.url, test, RULE)


def test_killed_before_the_commit(valkey: Valkey) -> None:
    """Would catch an answer whose end does not come because it cannot be kept."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        pause = Pause()
        leader = one.chunks(
            await one.lookup(question()), HEAD, ScriptedUpstream(content_chunk("Hello"), last_chunk(), pause)
        )
        await beginning(leader, "Hello")
        await pause.reached.wait()
        valkey.kill()
        pause.over.set()
        assert (await collected(leader))[-1]["choices"][0]["finish_reason"] == "stop"
        assert "stored" not in one.counters.snapshot()

    run_on(valkey.url, test, RULE)


def test_frozen_at_the_lookup(valkey: Valkey) -> None:
    """Would catch a chat that hangs because the link to Redis does."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        valkey.pause()
        outcome = await one.lookup(question())
        assert isinstance(outcome, Miss)
        assert outcome.reason == "store slow"
        assert said(await collected(one.chunks(outcome, HEAD, ScriptedUpstream()))) == "Hello"
        valkey.resume()
        await usable(one)
        assert isinstance(await one.lookup(question()), Hit)  # nothing was lost

    run_on(valkey.url, test, RULE)


def test_frozen_for_a_moment_while_others_follow(valkey: Valkey) -> None:
    """Would catch words that are lost or repeated over a slow link."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause, upstream = halves()
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        follower = two.chunks(await two.lookup(question()), HEAD, upstream)
        await beginning(follower, "Hel")
        valkey.pause()
        await asyncio.sleep(0.2)  # a slow link; shorter than a limit or a lease
        valkey.resume()
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert said(await collected(follower)) == "lo"
        assert isinstance(await two.lookup(question()), Hit)

    run_on(valkey.url, test, RULE)


def test_frozen_for_longer_than_a_lease(valkey: Valkey) -> None:
    """Would catch a leader that keeps its answer over that of whoever took its place."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause, upstream = halves()
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        valkey.pause()
        await asyncio.sleep(1.2)  # a lease lasts 1 s
        valkey.resume()
        await usable(two)
        newer = ScriptedUpstream(content_chunk("Newer"), last_chunk())
        assert said(await ask(two, newer)) == "Newer"
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert said(await ask(two, newer)) == "Newer"
        assert newer.begun == 1

    run_on(valkey.url, test, RULE)


def test_full_memory(valkey: Valkey) -> None:
    """Would catch a full Redis that is taken for a dead one: what is kept can still be read."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        valkey.config(maxmemory="1mb", maxmemory_policy="noeviction")
        for number in range(5):
            outcome = await two.lookup(question(f"new {number}"))
            assert isinstance(outcome, Miss)
            assert outcome.reason == "store full"
            assert said(await collected(two.chunks(outcome, HEAD, ScriptedUpstream()))) == "Hello"
        assert isinstance(await two.lookup(question()), Hit)
        valkey.config(maxmemory="0")
        assert isinstance(await two.lookup(question("new")), Lead)

    run_on(valkey.url, test, RULE)


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
    ids=["too few replicas", "a replica"],
)
def test_writes_that_are_refused(valkey: Valkey, refuse: str, allow: str) -> None:
    """Would catch a Redis that can only be read, and is taken for a dead one."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        with valkey.client() as client:
            client.execute_command(refuse)
            for number in range(5):
                outcome = await two.lookup(question(f"new {number}"))
                assert isinstance(outcome, Miss)
                assert outcome.reason == "store full"
            assert isinstance(await two.lookup(question()), Hit)
            client.execute_command(allow)
        assert isinstance(await two.lookup(question("new")), Lead)

    run_on(valkey.url, test, RULE)


def test_full_memory_while_an_answer_is_generated(valkey: Valkey) -> None:
    """Would catch a leader that fails because its words do not fit."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause, upstream = halves()
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        follower = two.chunks(await two.lookup(question()), HEAD, upstream)
        await beginning(follower, "Hel")
        valkey.config(maxmemory="1mb", maxmemory_policy="noeviction")
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert said(await collected(follower)) == "lo"
        assert one.counters.snapshot()["not_stored/store full"] == 1
        valkey.config(maxmemory="0")
        assert isinstance(await two.lookup(question("new")), Lead)

    run_on(valkey.url, test, RULE)


def test_flushed_by_somebody_else(valkey: Valkey) -> None:
    """Would catch state in a process that outlives what it describes, after FLUSHALL."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause, upstream = halves()
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        with valkey.client() as client:
            client.flushall()
        assert said(await ask(two, ScriptedUpstream())) == "Hello"
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert isinstance(await one.lookup(question()), Hit)
        assert await two.flush() is None
        assert isinstance(await one.lookup(question()), Lead)

    run_on(valkey.url, test, RULE)
