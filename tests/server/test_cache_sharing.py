"""The cache as a whole on real stores: one generation for many askers."""

import asyncio
import signal
from functools import partial

import pytest

from harness.cache_processes import (
    add_record,
    ask,
    beginning,
    collected,
    follows,
    hanging_leader,
    run_on,
    until,
)
from harness.cache_upstream import (
    HEAD,
    ROLE,
    USAGE,
    Chunk,
    Pause,
    ScriptedUpstream,
    content_chunk,
    last_chunk,
    question,
    said,
)
from ollama_pack.cache.bound import Judged
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.errors import LeaderLostError
from ollama_pack.cache.outcome import CacheOutcome, Follow, Hit, Lead
from ollama_pack.cache.pool import PooledRound, rounds_in
from ollama_pack.cache.replay import completion_from
from ollama_pack.cache.semantic import as_set
from ollama_pack.engines.ollama.to_openai import ReplyHead


def test_followers_get_every_word_as_it_comes(place: str) -> None:
    """Would catch followers that wait for the whole answer, generate by themselves, or miss the beginning."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        upstream = ScriptedUpstream(ROLE, content_chunk("Hel"), pause, content_chunk("lo"), last_chunk())
        leader = asyncio.create_task(ask(one, upstream))
        await pause.reached.wait()
        outcomes = [await cache.lookup(question()) for cache in (one, two, two)]
        assert [type(outcome) for outcome in outcomes] == [Follow, Follow, Follow]
        heads = [ReplyHead(f"id{number}", 7, "mine") for number in range(3)]
        answers = [
            cache.chunks(outcome, head, upstream)
            for cache, outcome, head in zip((one, two, two), outcomes, heads, strict=True)
        ]
        assert [await beginning(answer, "Hel") for answer in answers] == ["Hel"] * 3
        pause.over.set()
        rests = [await collected(answer) for answer in answers]
        assert [said(rest) for rest in rests] == ["lo"] * 3
        assert [rest[-1]["ollama_pack"]["cache"] for rest in rests] == ["follow"] * 3
        assert [rest[-1]["usage"] for rest in rests] == [USAGE] * 3
        assert [rest[-1]["id"] for rest in rests] == ["id0", "id1", "id2"]
        await leader
        assert upstream.begun == 1
        assert isinstance(await two.lookup(question()), Hit)

    run_on(place, test)


def test_follower_that_begins_before_its_leader(place: str) -> None:
    """Would catch a follower of the same process that misses a leader which takes its time to begin."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        upstream = ScriptedUpstream()
        leading = await one.lookup(question())
        followers = [asyncio.create_task(ask(cache, upstream)) for cache in (one, one, two)]
        await until(lambda: follows(one, two) == 3)
        await asyncio.sleep(0.3)  # looks at the empty stream pass
        assert said(await collected(one.chunks(leading, HEAD, upstream))) == "Hello"
        assert [said(await follower) for follower in followers] == ["Hello"] * 3
        assert upstream.begun == 1

    run_on(place, test)


def test_leader_that_stops_does_not_cut_off_its_followers(place: str) -> None:
    """Would catch a stop button that ends the answers of all who wait for the same."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        upstream = ScriptedUpstream(content_chunk("Hel"), pause, content_chunk("lo"), last_chunk())
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        follower = two.chunks(await two.lookup(question()), HEAD, upstream)
        await beginning(follower, "Hel")
        await leader.aclose()
        await asyncio.sleep(0.3)  # heartbeats pass, each of which could stop it
        pause.over.set()
        assert said(await collected(follower)) == "lo"
        assert upstream.begun == 1
        assert one.counters.snapshot()["detached"] == 1
        assert isinstance(await two.lookup(question()), Hit)

    run_on(place, test)


def test_generation_that_nobody_wants_is_stopped(place: str) -> None:
    """Would catch a GPU that works on for nobody, or a lease that stays taken."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        upstream = ScriptedUpstream(content_chunk("Hel"), Pause())
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        follower = two.chunks(await two.lookup(question()), HEAD, upstream)
        await beginning(follower, "Hel")
        await leader.aclose()
        await follower.aclose()
        await upstream.stopped.wait()
        again = ScriptedUpstream()
        assert said(await ask(two, again)) == "Hello"
        assert again.begun == 1

    run_on(place, test)


def test_client_that_is_cut_off_counts_as_stopped(place: str) -> None:
    """Would catch a generation that runs for ever because its task was cancelled and not closed."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        pause = Pause()
        upstream = ScriptedUpstream(content_chunk("Hel"), pause)
        task = asyncio.create_task(ask(one, upstream))
        await pause.reached.wait()
        task.cancel()
        await upstream.stopped.wait()

    run_on(place, test)


def test_failed_leader_is_replaced_before_anything_was_shown(place: str) -> None:
    """Would catch one failed generation that fails many requests, or followers that all generate."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        failing = ScriptedUpstream(ROLE, pause, RuntimeError("the GPU is on fire"))
        leader = asyncio.create_task(ask(one, failing))
        await pause.reached.wait()
        good = ScriptedUpstream()
        followers = [asyncio.create_task(ask(cache, good)) for cache in (one, two, two, one)]
        await until(lambda: follows(one, two) == 4)
        pause.over.set()
        with pytest.raises(RuntimeError, match="on fire"):
            await leader
        assert [said(await follower) for follower in followers] == ["Hello"] * 4
        assert good.begun == 1

    run_on(place, test)


def test_error_in_the_stream_is_the_leaders_alone(place: str) -> None:
    """Would catch an engine's error that is kept, or told to those who can still be served."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        error: Chunk = {"error": {"message": "out of memory"}}
        leader = asyncio.create_task(ask(one, ScriptedUpstream(ROLE, pause, error)))
        await pause.reached.wait()
        good = ScriptedUpstream()
        follower = asyncio.create_task(ask(two, good))
        await until(lambda: follows(two) == 1)
        pause.over.set()
        assert (await leader)[-1] == error
        assert said(await follower) == "Hello"
        assert good.begun == 1

    run_on(place, test)


def test_tool_calls_are_shared_and_not_kept(place: str) -> None:
    """Would catch calls of tools that are told again, or that a follower gets damaged."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    calling: Chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        upstream = ScriptedUpstream(ROLE, pause, calling, last_chunk("tool_calls"))
        leader = asyncio.create_task(ask(one, upstream))
        await pause.reached.wait()
        outcome = await two.lookup(question())
        follower = asyncio.create_task(completion_from(two.chunks(outcome, HEAD, upstream), HEAD))
        pause.over.set()
        await leader
        message = (await follower)["choices"][0]["message"]
        assert message["tool_calls"] == [call]
        assert isinstance(await two.lookup(question()), Lead)

    run_on(place, test)


def test_changed_stream_ends_the_following(place: str) -> None:
    """Would catch words that somebody with access to the store puts into an answer."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        pause = Pause()
        upstream = ScriptedUpstream(content_chunk("Hel"), pause, content_chunk("lo"), last_chunk())
        outcome = await one.lookup(question())
        assert isinstance(outcome, Lead)
        leader = asyncio.create_task(collected(one.chunks(outcome, HEAD, upstream)))
        await pause.reached.wait()
        follower = two.chunks(await two.lookup(question()), HEAD, upstream)
        await beginning(follower, "Hel")
        add_record(place, outcome.lease.slot.scope, outcome.lease.token, b"forged")
        with pytest.raises(LeaderLostError, match="regenerate"):
            await collected(follower)
        pause.over.set()
        assert said(await leader) == "Hello"
        assert two.counters.snapshot()["unreadable"] == 1

    run_on(place, test)


def test_killed_leader_is_replaced_by_exactly_one(place: str) -> None:
    """Would catch followers that wait for a killed process for ever, or that all begin to generate."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        good = ScriptedUpstream()
        async with hanging_leader(place) as process:
            followers = [asyncio.create_task(ask(cache, good)) for cache in (one, two) * 5]
            await until(lambda: follows(one, two) == 10)
            process.send_signal(signal.SIGKILL)
            assert [said(await follower) for follower in followers] == ["Hello"] * 10
        assert good.begun == 1

    run_on(place, test)


def test_leader_killed_half_way_is_a_clear_error(place: str) -> None:
    """Would catch half an answer that looks whole, or a beginning and an end of two generations."""

    async def test(one: ResponseCache, _two: ResponseCache) -> None:
        outcome: CacheOutcome
        async with hanging_leader(place, "Hel") as process:
            outcome = await one.lookup(question())
            assert isinstance(outcome, Follow)
            follower = one.chunks(outcome, HEAD, ScriptedUpstream())
            await beginning(follower, "Hel")
            process.send_signal(signal.SIGKILL)
            with pytest.raises(LeaderLostError, match="regenerate"):
                await collected(follower)
        assert said(await ask(one, ScriptedUpstream())) == "Hello"

    run_on(place, test)


def test_round_that_is_handed_over_twice_at_once_counts_once(place: str) -> None:
    """Would catch evidence of other sites that counts twice: two workers read it before either adds."""
    key = "llama3:8b|12345678|user|en"
    given = {key: PooledRound(Judged((90, *[0] * 5), (2, *[0] * 5)), 2.0, 1.0, 1)}

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        taken = partial(as_set, given)
        done = await asyncio.gather(*(each.change_counts(taken) for each in (one, two) * 3))
        assert done == [None] * 6
        counts = await one.shared_counts()
        assert isinstance(counts, dict)
        assert rounds_in(counts) == {name: (each,) for name, each in given.items()}

    run_on(place, test)
