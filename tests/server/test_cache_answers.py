"""The cache as a whole on real stores: what is kept, told again, and thrown away."""

import asyncio

import pytest

from harness.cache_processes import (
    ask,
    beginning,
    collected,
    open_cache,
    read_entry,
    run_on,
    until,
    write_entry,
)
from harness.cache_upstream import (
    ANSWER,
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
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.outcome import Hit, Lead
from ollama_pack.cache.replay import completion_from


def test_kept_answer_is_told_again_as_it_was(place: str) -> None:
    """Would catch a hit that loses thoughts, figures or sources, or that shows another's id or name."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        upstream = ScriptedUpstream()
        assert await ask(one, upstream) == list(ANSWER)  # the leader's own are left as they are
        outcome = await two.lookup(question())
        assert isinstance(outcome, Hit)
        chunks = await collected(two.chunks(outcome, HEAD, upstream))
        assert upstream.begun == 1
        assert said(chunks) == "Hello"
        assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {(HEAD.id, HEAD.model)}
        assert chunks[0]["sources"] == [{"source": {"name": "a page"}, "document": ["text"]}]
        assert chunks[1]["choices"][0]["delta"] == {"role": "assistant", "reasoning_content": "Hm."}
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"] == USAGE
        assert chunks[-1]["ollama_pack"] == {"cache": "hit", "age_seconds": 0}
        assert not any("ollama_pack" in chunk for chunk in chunks[:-1])

    run_on(place, test)


def test_kept_answer_in_one_body_and_figures_apart(place: str) -> None:
    """Would catch a kept stream that does not serve a client without one, and figures in a wrong place."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        outcome = await two.lookup(question())
        body = await completion_from(two.chunks(outcome, HEAD, ScriptedUpstream()), HEAD)
        assert body["object"] == "chat.completion"
        message = {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
        assert body["choices"][0]["message"] == message
        assert body["choices"][0]["finish_reason"] == "stop"
        assert (body["usage"], body["ollama_pack"]["cache"]) == (USAGE, "hit")
        assert body["sources"]
        outcome = await two.lookup(question())
        apart = await collected(two.chunks(outcome, HEAD, ScriptedUpstream(), "apart"))
        assert (apart[-1]["choices"], apart[-1]["usage"]) == ([], USAGE)
        assert "ollama_pack" in apart[-1]
        assert "usage" not in apart[-2]

    run_on(place, test)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ((content_chunk("Hel"), last_chunk("length")), "finish reason length"),
        ((content_chunk("Hel"),), "no finish reason"),
        ((ROLE, last_chunk()), "empty"),
        ((content_chunk("x" * 600_000), last_chunk()), "too large"),
        ((content_chunk("Hel"), {"error": "gone"}, last_chunk()), "error"),
    ],
)
def test_only_whole_answers_are_kept(place: str, script: tuple[Chunk, ...], reason: str) -> None:
    """Would catch half an answer that is told again for an hour."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        assert await ask(one, ScriptedUpstream(*script)) == list(script)
        assert one.counters.snapshot()[f"not_stored/{reason}"] == 1
        assert isinstance(await two.lookup(question()), Lead)

    run_on(place, test)


def test_regenerate_generates_and_overwrites(place: str) -> None:
    """Would catch a regenerated answer that comes from the cache, or that others do not get afterwards."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        better = ScriptedUpstream(content_chunk("Better"), last_chunk())
        assert said(await ask(two, better, question(refresh=True))) == "Better"
        assert better.begun == 1
        assert said(await ask(one, better)) == "Better"
        assert better.begun == 1

    run_on(place, test)


def test_scope_and_secret_keep_answers_apart(place: str) -> None:
    """Would catch another user's answer, or one of before the secret was changed."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert isinstance(await two.lookup(question(scope="user:2")), Lead)
        rotated = open_cache(place, "another secret of the tests")
        assert isinstance(await rotated.lookup(question(secret="another secret of the tests")), Lead)
        await rotated.close()

    run_on(place, test)


def test_changed_entry_is_a_miss_and_is_deleted(place: str) -> None:
    """Would catch a flipped byte in the store that reaches a chat, or that stays there."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        sealed = bytearray(read_entry(place, question()))
        sealed[-1] ^= 1
        write_entry(place, question(), bytes(sealed))
        assert isinstance(outcome := await two.lookup(question()), Lead)
        assert outcome.reason == "unreadable"
        assert two.counters.snapshot()["unreadable"] == 1
        assert said(await collected(two.chunks(outcome, HEAD, ScriptedUpstream()))) == "Hello"
        assert isinstance(await one.lookup(question()), Hit)

    run_on(place, test)


def test_entry_moved_to_another_place_is_not_read(place: str) -> None:
    """Would catch somebody with access to the store who gives one user's answer to another."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        theirs = question(scope="user:2")
        await ask(one, ScriptedUpstream())
        await ask(one, ScriptedUpstream(content_chunk("theirs"), last_chunk()), theirs)
        write_entry(place, question(), read_entry(place, theirs))
        assert isinstance(await two.lookup(question()), Lead)

    run_on(place, test)


def test_deleted_chat_takes_its_answers_along(place: str) -> None:
    """Would catch an answer that outlives its chat, kept before or while the chat is deleted."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert await two.discard("chat:1") == 1
        pause = Pause()
        upstream = ScriptedUpstream(content_chunk("Hel"), pause, content_chunk("lo"), last_chunk())
        leader = one.chunks(await one.lookup(question()), HEAD, upstream)
        await beginning(leader, "Hel")
        await pause.reached.wait()

        async def discarded() -> bool:  # as soon as the generation is known under its labels
            await two.discard("chat:1")
            return isinstance(await two.lookup(question()), Lead)

        await until(discarded)
        pause.over.set()
        assert said(await collected(leader)) == "lo"
        assert one.counters.snapshot()["not_stored/fenced"] == 1
        assert not isinstance(await two.lookup(question()), Hit)

    run_on(place, test)


def test_answer_can_be_noted_under_a_message_and_flushed(place: str) -> None:
    """Would catch a thumbs-down that does not reach the answer, or a flush that others do not see."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert await two.note(question(), "message:9")
        assert await one.discard("message:9") == 1
        await ask(one, ScriptedUpstream())
        assert await two.flush("user:2") is None
        assert isinstance(await one.lookup(question()), Hit)
        assert await two.flush("user:1") is None
        assert isinstance(await one.lookup(question()), Lead)

    run_on(place, test)


def test_figures_are_those_of_all_processes(place: str) -> None:
    """Would catch a dashboard that shows one worker's figures, or counts twice."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        for cache in (one, two, two):
            await cache.lookup(question())
        two.bypass("temporary chat")
        await one.shared_counts()
        await two.shared_counts()
        counts = await one.shared_counts()
        assert isinstance(counts, dict)
        assert (counts["hits"], counts["misses/absent"], counts["stored"]) == (3, 1, 1)
        assert counts["bypasses/temporary chat"] == 1
        assert counts["tokens_saved"] == 6
        assert sum(value for name, value in counts.items() if name.startswith("lookups_ms/")) == 4

    run_on(place, test)


ASKED, AGAIN = "What is the capital of France?", "Hi, can you tell me what the capital of France is?"


async def entered(cache: ResponseCache) -> None:
    """Wait until the answer can be found by other words: it is entered once it has ended."""
    marks = ""

    async def found() -> bool:
        nonlocal marks
        marks += "?"  # each look is another question, as one that finds nothing has the lease
        return isinstance(await cache.lookup(question(f"{ASKED}{marks}", similar=True)), Hit)

    await until(found)


def test_other_words_get_the_answer_and_its_end(place: str) -> None:
    """Would catch a second key that finds nothing, outlives its answer, or hides that the words differ."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        upstream = ScriptedUpstream()
        await ask(one, upstream, question(ASKED, similar=True))

        await entered(two)
        outcome = await two.lookup(question(AGAIN, similar=True))
        assert isinstance(outcome, Hit)
        assert outcome.near is not None
        assert outcome.near.asked == ASKED
        chunks = await collected(two.chunks(outcome, HEAD, upstream))
        assert said(chunks) == "Hello"
        assert chunks[-1]["ollama_pack"] == {"cache": "similar", "age_seconds": 0, "similarity": 1.0}
        assert upstream.begun == 1
        assert two.counters.snapshot()["similar/normalised"] >= 1
        assert isinstance(await two.lookup(question(AGAIN)), Lead)  # the tier is off

    run_on(place, test)


@pytest.mark.parametrize("gone", ["chat", "flush", "scope"])
def test_other_words_get_no_answer_that_is_gone(place: str, gone: str) -> None:
    """Would catch a second key that leads to a deleted, flushed or somebody else's answer."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream(), question(ASKED, similar=True))

        await entered(two)
        scope = "user:2" if gone == "scope" else "user:1"
        if gone == "chat":
            await two.discard("chat:1")
        elif gone == "flush":
            await two.flush()
        assert isinstance(await two.lookup(question(AGAIN, similar=True, scope=scope)), Lead)

    run_on(place, test)


def test_regenerate_goes_past_other_words(place: str) -> None:
    """Would catch a button that gives the similar answer again and again."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream(), question(ASKED, similar=True))
        better = ScriptedUpstream(content_chunk("Better"), last_chunk())
        assert said(await ask(two, better, question(AGAIN, similar=True, refresh=True))) == "Better"
        assert said(await ask(one, ScriptedUpstream(), question(AGAIN, similar=True))) == "Better"

    run_on(place, test)


def test_who_follows_a_similar_question_is_answered(place: str) -> None:
    """Would catch askers at one moment who wait for a generation that never begins."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        upstream = ScriptedUpstream()
        await ask(one, upstream, question(ASKED, similar=True))

        await entered(two)
        answers = await asyncio.gather(
            *(ask(cache, upstream, question(AGAIN, similar=True)) for cache in (one, two) for _ in range(5))
        )
        assert {said(answer) for answer in answers} == {"Hello"}

    run_on(place, test)
