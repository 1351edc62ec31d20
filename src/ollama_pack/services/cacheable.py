"""Which requests the cache is for, whose answers they share, and what it is asked.

It is read from a chat's body and the metadata that Open WebUI has with it, and sends to Pipelines too.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_pack.cache.key import AnswerBasis, NotCacheable, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.scope import CacheWhen, ScopeFacts, ScopeRule, is_deterministic, scope_for, uses_tools
from ollama_pack.cache.semantic import Lent
from ollama_pack.engines.body import object_at

LARGE_CHARACTERS = 200_000  # from here on the key is made in a thread
# What `response_cache_filter` leaves for `response_cache_replay`, as neither file can import the other. It is
# a key in Open WebUI's `__metadata__`, which lives as long as the request. Its value has the `rounds` so far,
# and of the last one that the cache is for: the `model` that was asked, the id of the `filter`, and the
# `ticket` that it gives the answer for. `cached`: nothing is generated for it, which usage_budgets looks at.
STATE = "ollama_pack_cache"
_TEMPORARY = ("temporary:", "local:")  # so the id of a chat begins that is kept nowhere; the second is older


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """A chat request, with what decides on its place in the cache.

    Attributes:
        body: the final OpenAI chat body.
        metadata: Open WebUI's.
        user_id: of the asking user.
        group_ids: that the user is in; wanted for the scope `group` alone.
        digest: of the model: see `AnswerBasis`.
        answerer: see `Question`.
        preset: what is applied to the body after this.
        refresh: generate anew and overwrite.
        needs_usage: see `Question`.
        usage_when_asked: the engine gives figures of a stream only where `stream_options` asks for them.
        similar: an answer to the same question in other words will do.
        lend: for a scope, what the semantic tier needs of the request; None: it is off.
        as_user: see `ScopeFacts`.
    """

    body: Mapping[str, Any]
    metadata: Mapping[str, Any]
    user_id: str
    group_ids: tuple[str, ...] = ()
    digest: str | None = None
    answerer: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    refresh: bool = False
    needs_usage: bool = False
    usage_when_asked: bool = False
    similar: bool = False
    lend: Callable[[str], Lent | None] | None = None
    as_user: bool = False


def why_bypassed(body: Mapping[str, Any], metadata: Mapping[str, Any], when: CacheWhen) -> str:
    """Why the cache is not for a request; empty when it is.

    Titles, tags and the like are hardly asked twice. A temporary chat promises to be kept nowhere. Who
    continues an answer wants another part of it, and a scheduled run its own. What goes to a connection of
    the user's own browser is nothing of this server's.
    """
    checks = {
        "background task": metadata.get("task"),
        "temporary chat": str(metadata.get("chat_id") or "").startswith(_TEMPORARY),
        "continued answer": metadata.get("assistant_message_id"),
        "scheduled run": metadata.get("automation_id") or metadata.get("internal"),
        "direct connection": metadata.get("direct"),
        "not deterministic": when == "deterministic" and not is_deterministic(body),
    }
    return next((reason for reason, holds in checks.items() if holds), "")


async def question_of(asked: CacheRequest, rule: ScopeRule, keyring: Keyring) -> Question | NotCacheable:
    """What to ask the cache for a request."""
    facts = scope_facts(asked)
    scope = scope_for(rule, facts)
    basis = AnswerBasis(scope, asked.body, asked.digest, asked.preset, usage=_asks_for_usage(asked))
    is_large = sum(_text_sizes(asked.body.get("messages"))) > LARGE_CHARACTERS
    slot = await asyncio.to_thread(slot_of, basis, keyring) if is_large else slot_of(basis, keyring)
    if isinstance(slot, NotCacheable):
        return slot
    # What was looked up stands in the last message, where an embedding would compare it. It has to be equal.
    compares = asked.similar and not (facts.files or facts.knowledge)
    return Question(
        slot=slot,
        scope=scope,
        labels=tuple(_labels(asked)),
        refresh=asked.refresh,
        needs_usage=asked.needs_usage,
        answerer=asked.answerer,
        basis=basis if asked.similar else None,
        lent=asked.lend(scope) if asked.lend and compares else None,
    )


def _asks_for_usage(asked: CacheRequest) -> bool:
    """Whether an answer that was streamed to a client without figures will not do: a whole one has them."""
    wanted = object_at(asked.body, "stream_options").get("include_usage")
    return asked.usage_when_asked and bool(wanted or not asked.body.get("stream"))


def scope_facts(asked: CacheRequest) -> ScopeFacts:
    """What a request draws on that others may not see."""
    metadata, body = asked.metadata, asked.body
    features = object_at(metadata, "features")
    about = object_at(metadata, "model", "info", "meta")
    looked_up = ("sources", "folder_knowledge", "folder_id")
    return ScopeFacts(
        user_id=asked.user_id,
        group_ids=asked.group_ids,
        files=bool(metadata.get("files") or body.get("files")),
        knowledge=any(metadata.get(name) for name in looked_up)
        or bool(features.get("web_search") or about.get("knowledge")),
        memory=bool(features.get("memory")),
        tools=uses_tools(body) or bool(metadata.get("tools") or metadata.get("tool_ids")),
        as_user=asked.as_user,
    )


def _labels(asked: CacheRequest) -> Iterator[str]:
    """What an answer is discarded with: its chat, its user, the message that shows it."""
    if asked.user_id:
        yield f"user:{asked.user_id}"
    for name in ("chat", "message"):
        if isinstance(known := asked.metadata.get(f"{name}_id"), str) and known:
            yield f"{name}:{known}"


def _text_sizes(messages: object) -> Iterator[int]:
    """Characters of each text in a conversation, wherever it stands."""
    if isinstance(messages, str):
        yield len(messages)
    elif isinstance(messages, Mapping):
        for value in messages.values():
            yield from _text_sizes(value)
    elif isinstance(messages, list):
        for value in messages:
            yield from _text_sizes(value)
