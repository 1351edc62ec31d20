"""The cache that the valves ask for, and the answers that wait for the replay function."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cache_upstream import ScriptedUpstream, question
from ollama_pack.cache.outcome import Lead
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.errors import SettingError
from ollama_pack.services.caching import CacheKeeper, CacheSettings, PendingAnswer, PendingAnswers

HEAD = ReplyHead("chatcmpl-1", 1, "m")


def settings(folder: Path, **more: Any) -> CacheSettings:
    made = CacheSettings("", folder / "cache.sqlite3", "a secret of tests alone", 60, 1024)
    return replace(made, **more)


async def pending_in(keeper: CacheKeeper, made_of: CacheSettings) -> PendingAnswer:
    cache = await keeper.cache(made_of)
    outcome = await cache.lookup(question())
    assert isinstance(outcome, Lead)
    return PendingAnswer(cache, outcome, {"model": "replay"}, "m")


def test_cache_stays_while_the_settings_do(tmp_path: Path) -> None:
    """Would catch a connection for each chat, or a changed valve without effect."""

    async def test() -> None:
        keeper = CacheKeeper()
        first = await keeper.cache(settings(tmp_path))
        assert await keeper.cache(settings(tmp_path)) is first
        assert await keeper.cache(settings(tmp_path, ttl_seconds=61)) is not first
        keeper.retire()

    asyncio.run(test())


def test_settings_that_cannot_be_leave_the_cache_as_it_was(tmp_path: Path) -> None:
    """Would catch a wrong URL that closes the cache under running answers."""

    async def test() -> None:
        keeper = CacheKeeper()
        first = await keeper.cache(settings(tmp_path))
        with pytest.raises(SettingError):
            await keeper.cache(settings(tmp_path, url="http://x"))
        assert await keeper.cache(settings(tmp_path)) is first
        keeper.retire()

    asyncio.run(test())


def test_answer_ends_though_the_valves_change_meanwhile(tmp_path: Path) -> None:
    """Would catch chats that are cut off when an admin saves a valve."""

    async def test() -> None:
        keeper = CacheKeeper()
        pending = await pending_in(keeper, settings(tmp_path))
        chunks = pending.chunks(HEAD, ScriptedUpstream(), "last")
        got = [await anext(chunks)]
        await keeper.cache(settings(tmp_path, secret="another secret of tests"))
        got += [chunk async for chunk in chunks]
        said = (chunk["choices"][0]["delta"].get("content") or "" for chunk in got if chunk["choices"])
        assert "".join(said) == "Hello"
        keeper.retire()

    asyncio.run(test())


def test_whole_answer_is_given_as_the_model_gave_it(tmp_path: Path) -> None:
    """Would catch fields of an unstreamed answer that are lost because it is kept."""
    body = {
        "id": "x",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "service_tier": "special",
    }

    async def answer() -> dict[str, Any]:
        return body

    async def test() -> None:
        keeper = CacheKeeper()
        pending = await pending_in(keeper, settings(tmp_path))
        assert await pending.completion(HEAD, answer, ScriptedUpstream()) == body
        keeper.retire()

    asyncio.run(test())


def test_ticket_is_good_once_and_gives_the_model_its_name_back(tmp_path: Path) -> None:
    """Would catch an answer that two requests take, or tokens that are booked for the replay function."""

    async def test() -> None:
        keeper, tickets = CacheKeeper(), PendingAnswers()
        pending = await pending_in(keeper, settings(tmp_path))
        ticket = tickets.hold(pending)
        assert tickets.claim("another") is None
        assert pending.body == {"model": "replay"}
        assert tickets.claim(ticket) is pending
        assert pending.body == {"model": "m"}
        assert tickets.claim(ticket) is None
        keeper.retire()

    asyncio.run(test())
