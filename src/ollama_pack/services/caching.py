"""The cache of a plugin: made of its valves, made anew when they change, given back when nobody uses it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from uuid import uuid4

from ollama_pack.base.redis import redis_client
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.generation import CacheRules, Upstream
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import CacheOutcome, Follow, Hit
from ollama_pack.cache.replay import completion_chunks, completion_from
from ollama_pack.cache.store import CacheStore
from ollama_pack.cache.store_redis import RedisStore
from ollama_pack.cache.store_sqlite import SqliteStore
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.ollama.stream import UsagePlace
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.services.activity import note_chat
from ollama_pack.services.answers import whole_answer

CLAIM_SECONDS = 10.0  # after which an answer that nobody came for is forgotten
_CONNECT_SECONDS = 0.1  # that a chat waits for the first connection

Ask = Callable[[], Awaitable[dict[str, Any]]]  # gives a whole body


def note_from_cache(outcome: CacheOutcome, asked: str, user: str) -> None:
    """Write into the history that a chat got an answer that was there, or is being generated for another.

    Args:
        outcome: of the lookup; others than these two are not written.
        asked: the name of the model that was asked for.
        user: the id of the user.
    """
    record = {
        "id": uuid4().hex,
        "at": round(time.time(), 3),
        "asked": asked.removeprefix(ROUTER),
        "user": user,
    }
    if isinstance(outcome, Hit):
        entry = outcome.entry
        note_chat(
            record
            | {
                "outcome": "cached",
                "model": entry.model.removeprefix(ROUTER),
                "saved": round(entry.seconds, 3),
            }
            | {"written": entry.completion_tokens, "age": round(outcome.age_seconds)}
        )
    elif isinstance(outcome, Follow):
        note_chat(record | {"outcome": "shared", "model": outcome.question.answerer})


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What a cache is made of.

    Attributes:
        url: of Redis; empty: the file at `path`.
        path: of SQLite's file.
        secret: from which the keys are derived.
        ttl_seconds: that an answer is kept.
        max_entry_octets: bytes of an entry.
    """

    url: str = field(repr=False)
    path: Path
    secret: str = field(repr=False)
    ttl_seconds: int
    max_entry_octets: int


def make_cache(settings: CacheSettings) -> ResponseCache:
    """The cache; nothing is connected yet.

    Raises:
        SettingError: the URL or the secret cannot be used.
    """
    rules = CacheRules(ttl_seconds=settings.ttl_seconds, max_entry_octets=settings.max_entry_octets)
    return ResponseCache(_store_of(settings), Keyring(settings.secret), rules)


def _store_of(settings: CacheSettings) -> CacheStore:
    if settings.url:
        return RedisStore(redis_client(settings.url), redis_client(settings.url))
    return SqliteStore(settings.path)


class CacheKeeper:
    """Has the cache that the valves ask for."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._cache: ResponseCache | None = None
        self._made_of: CacheSettings | None = None
        self._warming: asyncio.Task[bool] | None = None

    async def cache(self, settings: CacheSettings) -> ResponseCache:
        """The cache for these settings, connected if that takes no time.

        Raises:
            SettingError: there is none for them.
        """
        if self._cache is None or self._made_of != settings:
            cache = make_cache(settings)
            self.retire()
            self._cache, self._made_of = cache, settings
            self._warming = asyncio.get_running_loop().create_task(cache.warm())
        cache = self._cache
        if self._warming is not None:
            await asyncio.wait({self._warming}, timeout=_CONNECT_SECONDS)
            self._warming = None
        return cache

    @property
    def current(self) -> ResponseCache | None:
        """The cache that was used last; None: none was yet."""
        return self._cache

    def retire(self) -> None:
        """Give the cache back once the answers under way have ended."""
        if self._cache is not None:
            self._cache.retire()
        self._cache, self._made_of = None, None


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """An answer that is looked up, and not yet given.

    Attributes:
        cache: that it comes from.
        outcome: of the lookup; it can be used once.
        body: of the chat, in which the model's name stands again once the answer is being given. Open WebUI
            books the tokens under it, and uses it in further rounds of tools.
        model: that the request is for.
        routed: gpu_router answers. What it streams makes up exactly what it would have given whole, which
            nobody can say of other models.
    """

    cache: ResponseCache
    outcome: CacheOutcome
    body: dict[str, Any]
    model: str
    routed: bool = False

    @property
    def named(self) -> str:
        """The model's name in the answer: of a kept one, what it was then."""
        return (isinstance(self.outcome, Hit) and self.outcome.entry.model) or self.model

    def chunks(
        self, head: ReplyHead, upstream: Upstream, place: UsagePlace
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as a stream; whole bodies that the upstream gives are taken apart."""
        return self.cache.chunks(self.outcome, head, lambda: _in_chunks(upstream()), place)

    async def completion(self, head: ReplyHead, ask: Ask, upstream: Upstream) -> dict[str, Any]:
        """The answer as one body: the model's own where it was asked for this request.

        Args:
            head: of an answer that comes from the cache.
            ask: asks the model for a whole body.
            upstream: asks it for a stream, along which others can read; an error in it is raised.
        """
        made: list[dict[str, Any]] = []

        async def whole() -> AsyncGenerator[dict[str, Any], None]:
            made.append(await ask())
            yield made[0]

        async def streamed() -> AsyncGenerator[dict[str, Any], None]:
            parts = []
            async with aclosing(upstream()) as chunks:
                async for chunk in chunks:
                    parts.append(chunk)
                    yield chunk
            made.append(whole_answer(parts))

        async with aclosing(self.chunks(head, streamed if self.routed else whole, "last")) as chunks:
            put_together = await completion_from(chunks, head)
        return made[0] if made else put_together


async def _in_chunks(answer: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(answer):
        async for part in answer:
            for chunk in completion_chunks(part) if _is_whole(part) else (part,):
                yield chunk


def _is_whole(part: dict[str, Any]) -> bool:
    return any("message" in choice for choice in part.get("choices") or ())


class PendingAnswers:
    """Answers by their tickets, for who comes for them within seconds."""

    def __init__(self) -> None:
        self._pending: dict[str, PendingAnswer] = {}

    def hold(self, answer: PendingAnswer) -> str:
        """Keep an answer; its ticket."""
        ticket = token_urlsafe(16)
        self._pending[ticket] = answer
        asyncio.get_running_loop().call_later(CLAIM_SECONDS, self._pending.pop, ticket, None)
        return ticket

    def claim(self, ticket: str) -> PendingAnswer | None:
        """The answer, once."""
        answer = self._pending.pop(ticket, None)
        if answer is not None:
            answer.body["model"] = answer.model
        return answer
