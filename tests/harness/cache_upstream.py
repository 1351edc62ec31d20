"""A generation for the cache's tests that goes on when it is told to, and real processes that run one."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from ollama_pack.base.redis import redis_client
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.guard import GuardRule
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.store import CacheStore, StoreTimes
from ollama_pack.cache.store_redis import RedisStore
from ollama_pack.cache.store_sqlite import SqliteStore
from ollama_pack.engines.ollama.to_openai import ReplyHead

SECRET = "a secret of the tests, long enough"
HEAD = ReplyHead("chatcmpl-own", 1_700_000_000, "the name I asked for")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
Chunk = dict[str, Any]


def content_chunk(text: str) -> Chunk:
    return _chunk({"content": text})


def last_chunk(finish_reason: str = "stop") -> Chunk:
    return _chunk({}, finish_reason) | {"usage": USAGE}


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-leader", "object": "chat.completion.chunk", "created": 1, "model": "llama3:8b"}
    return {**head, "choices": [choice]}


ROLE = _chunk({"role": "assistant"})
THOUGHT = _chunk({"reasoning_content": "Hm."})
SOURCES: Chunk = {"choices": [], "sources": [{"source": {"name": "a page"}, "document": ["text"]}]}
ANSWER = (SOURCES, ROLE, THOUGHT, content_chunk("Hel"), content_chunk("lo"), last_chunk())


class ScriptedUpstream:
    """Yields the given chunks; a `Pause` among them waits until it is let go.

    Attributes:
        begun: how often a generation was begun.
        stopped: set when one was closed before its end.
    """

    def __init__(self, *script: "Chunk | Pause | Exception") -> None:
        self.begun = 0
        self.stopped = asyncio.Event()
        self._script = script or ANSWER

    async def __call__(self) -> AsyncGenerator[Chunk, None]:
        """A generation."""
        self.begun += 1
        complete = False
        try:
            for part in self._script:
                if isinstance(part, Pause):
                    part.reached.set()
                    await part.over.wait()
                elif isinstance(part, Exception):
                    raise part
                else:
                    yield part
            complete = True
        finally:
            if not complete:
                self.stopped.set()


class Pause:
    """Where a generation stands still.

    Attributes:
        reached: it has come here.
        over: set by the test to let it go on.
    """

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.over = asyncio.Event()


def question(
    text: str = "Hello?",
    *,
    scope: str = "user:1",
    refresh: bool = False,
    secret: str = SECRET,
    similar: bool = False,
) -> Question:
    """A request, by what the user said."""
    body = {"model": "llama3:8b", "messages": [{"role": "user", "content": text}]}
    basis = AnswerBasis(scope, body, "sha256:1")
    slot = slot_of(basis, Keyring(secret))
    assert isinstance(slot, Slot)
    return Question(slot, scope, ("chat:1", "user:1"), refresh, basis=basis if similar else None)


def open_store(place: str, times: StoreTimes | None = None) -> CacheStore:
    """A store by its URL, or by the path of an SQLite file."""
    if "://" in place:
        return RedisStore(redis_client(place), redis_client(place), times)
    return SqliteStore(Path(place), times)


def said(chunks: Sequence[Chunk]) -> str:
    """The text of an answer."""
    deltas = (choice["delta"] for chunk in chunks for choice in chunk.get("choices", ()))
    return "".join(delta.get("content") or "" for delta in deltas)


async def lead_and_hang(place: str, words: Sequence[str]) -> None:
    """Lead, say some words and no more; a line is printed when they are in the store."""
    store = open_store(place, StoreTimes(lease=1000, follower=1000))
    cache = ResponseCache(store, Keyring(SECRET), guard_rule=GuardRule(limit=5.0))
    upstream = ScriptedUpstream(ROLE, *map(content_chunk, words), Pause())
    outcome = await cache.lookup(question())
    async for _ in cache.chunks(outcome, HEAD, upstream):
        print(type(outcome).__name__, flush=True)  # noqa: T201 - how the test is told


if __name__ == "__main__":
    asyncio.run(lead_and_hang(sys.argv[1], sys.argv[2:]))
