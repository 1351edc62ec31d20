"""A leader's generation, on a store that only notes what it is told."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

import pytest

from harness.cache_upstream import HEAD, SECRET, Chunk, ScriptedUpstream, content_chunk, last_chunk, question
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.errors import LeaderLostError
from ollama_pack.cache.generation import CacheRules, Upstream
from ollama_pack.cache.key import Slot
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.live import MOST_AHEAD, LiveAnswer
from ollama_pack.cache.outcome import Lead
from ollama_pack.cache.store import CacheStore, CommitResult, Lease, Quota

WORDS = [content_chunk(f"word {number} ") for number in range(5)]


class NotingStore:
    """Notes what stands in each place of the stream.

    Attributes:
        places: each place, counted from 1, and all that was ever put there.
    """

    def __init__(self) -> None:
        self.places: defaultdict[int, set[bytes]] = defaultdict(set)

    async def append(self, _lease: Lease, first: int, records: Sequence[bytes]) -> bool:
        await asyncio.sleep(0)
        for place, record in enumerate(records, first):
            self.places[place].add(record)
        return True

    async def release(self, _lease: Lease, last: tuple[int, bytes]) -> None:
        self.places[last[0]].add(last[1])

    async def commit(
        self, _lease: Lease, _sealed: bytes, _ttl: int, _quota: Quota, last: tuple[int, bytes]
    ) -> CommitResult:
        self.places[last[0]].add(last[1])
        return "stored"

    async def label(self, _label: str, _slot: Slot, _ttl: int) -> None:
        """Nothing is discarded."""

    async def renew(self, _lease: Lease) -> int:
        return 0

    async def leave(self, _lease: Lease) -> int:
        return 0

    async def add_counts(self, _counts: dict[str, float]) -> None:
        """Nobody looks at them."""

    async def close(self) -> None:
        """Nothing is open."""


def leading(
    store: NotingStore, upstream: ScriptedUpstream
) -> tuple[ResponseCache, AsyncGenerator[Chunk, None]]:
    """A cache, and an answer that it generates."""
    cache, asked = ResponseCache(cast("CacheStore", store), Keyring(SECRET)), question()
    lead = Lead(asked, Lease(asked.slot, "token", 1, 1), "absent")
    return cache, cache.chunks(lead, HEAD, upstream)


async def led(upstream: ScriptedUpstream, most: int = 100) -> NotingStore:
    """What a store was told of an answer whose client leaves after so many chunks."""
    store = NotingStore()
    cache, answer = leading(store, upstream)
    try:
        async with aclosing(answer):
            async for _ in answer:
                most -= 1
                if not most:
                    break
    except RuntimeError:
        assert most
    await cache.close()
    return store


@pytest.mark.parametrize("words", range(5))
def test_no_place_of_a_stream_holds_two_texts(words: int) -> None:
    """Would catch a nonce that seals two texts: a place is one, however suddenly the generation ends."""

    async def test() -> None:
        whole = await led(ScriptedUpstream(*WORDS[:words], last_chunk()))
        failed = await led(ScriptedUpstream(*WORDS[:words], RuntimeError("the GPU is on fire")))
        left = await led(ScriptedUpstream(*WORDS, last_chunk()), words + 1)
        assert sorted(whole.places) == list(range(1, words + 3))
        assert max(failed.places) == words + 1
        for store in (whole, failed, left):
            assert {len(texts) for texts in store.places.values()} == {1}

    asyncio.run(test())


def test_the_client_has_a_chunk_before_it_is_sealed_for_others() -> None:
    """Would catch work for the store that the first word waits for."""

    async def test() -> None:
        store = NotingStore()
        cache, answer = leading(store, ScriptedUpstream(*WORDS, last_chunk()))
        await anext(answer)
        assert not store.places
        async for _ in answer:
            pass
        assert sorted(store.places) == list(range(1, len(WORDS) + 3))
        await cache.close()

    asyncio.run(test())


def endless(pulled: list[int]) -> Upstream:
    """A model that has lost its way, and repeats itself for ever."""

    async def upstream() -> AsyncGenerator[Chunk, None]:
        while True:
            pulled.append(1)
            yield content_chunk("again and again ")
            await asyncio.sleep(0)

    return upstream


def test_answer_without_an_end_is_held_back_by_those_who_read_it() -> None:
    """Would catch memory that grows for as long as a model repeats itself and its client does not read."""

    async def test() -> None:
        cache = ResponseCache(
            cast("CacheStore", NotingStore()), Keyring(SECRET), CacheRules(max_live_octets=10_000)
        )
        pulled: list[int] = []
        answer = cache.chunks(
            Lead(question(), Lease(question().slot, "token", 1, 1), "absent"), HEAD, endless(pulled)
        )
        async with aclosing(answer) as chunks:
            await anext(chunks)
            before = -1
            while before != len(pulled):  # until it waits
                before = len(pulled)
                for _ in range(3 * MOST_AHEAD):
                    await asyncio.sleep(0)
            assert len(pulled) < 2 * MOST_AHEAD
            for _ in range(3 * MOST_AHEAD):
                await anext(chunks)
        await cache.close()

    asyncio.run(test())


def test_one_slow_reader_holds_up_nobody() -> None:
    """Would catch a reader who stands still, and others who get no more of an answer that never ends."""

    async def test() -> None:
        live = LiveAnswer()
        live.push(content_chunk("first"))
        slow, quick = live.listen(), live.listen()
        await anext(slow)
        await anext(quick)
        for _ in range(3 * MOST_AHEAD):
            live.push(content_chunk("more"))
            live.forget()
            await anext(quick)
            assert not live.is_ahead
        with pytest.raises(LeaderLostError):
            await anext(slow)
        with pytest.raises(LeaderLostError):
            await anext(live.listen())
        live.close("complete")
        assert [chunk async for chunk in quick] == []

    asyncio.run(test())
