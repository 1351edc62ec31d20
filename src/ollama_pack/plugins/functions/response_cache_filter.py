"""
title: Response cache
author: Open WebUI Ollama Pack
author_url: {repository}
description: Gives an answer that was generated before again, and one answer to all who ask at the same time.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import Field

from ollama_pack.base.messages import Message, in_language, joined, message, said_by
from ollama_pack.base.single_flight import Remembered
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.guard import StoreTrouble
from ollama_pack.cache.key import NotCacheable
from ollama_pack.cache.outcome import Follow, Hit, Miss
from ollama_pack.cache.pool import read_rounds
from ollama_pack.cache.semantic import Lent, as_forgotten, as_set, calibration_report, label_key
from ollama_pack.cache.similar import Near, last_asked
from ollama_pack.engines.body import object_at
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.ollama.installed import ModelDigests, TagSite
from ollama_pack.errors import SettingError
from ollama_pack.services.cache_valves import CacheValves
from ollama_pack.services.cacheable import STATE, CacheRequest, question_of, why_bypassed
from ollama_pack.services.caching import (
    CacheKeeper,
    CacheSettings,
    PendingAnswer,
    PendingAnswers,
    note_from_cache,
)
from ollama_pack.services.valves import PackValves
from ollama_pack.webui.chats import other_answers
from ollama_pack.webui.connections import asks_as_user, prefixed_connections, trusted_certificates
from ollama_pack.webui.functions import user_valves
from ollama_pack.webui.meaning import NodeEmbeddings, embedder_of, embedding, judging, somebody_chats
from ollama_pack.webui.model_rows import REPLAY
from ollama_pack.webui.models import may_use
from ollama_pack.webui.presets import AnsweringModel, answering_model
from ollama_pack.webui.replay_model import ReplayModel, drawn_instead
from ollama_pack.webui.router_digest import routed_weights
from ollama_pack.webui.server import data_folder, server_secret, take_over
from ollama_pack.webui.tracing import current_span
from ollama_pack.webui.users import group_ids_of, reader_language

log = logging.getLogger(__name__)

USER_SECONDS = 5.0  # that a user's own valves are kept for the gateway
SHOWN_CHARACTERS = 80  # of another question, in a status
DATABASE = "ollama_pack_cache.sqlite3"  # in Open WebUI's folder of data

Json = dict[str, Any]
Body = Json
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Filter:
    """Looks a request up just before its model gets it, and sends it to `response_cache_replay` instead."""

    class Valves(CacheValves):
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description="Show above a cached answer that it is cached, and how old it is. Default: on.",
        )
        similar_embedder: str = Field(
            default="",
            title="Embedding model of similar answers",
            description=(
                "For `semantic`: the model that makes the embeddings, by its name or an alias. The nodes of "
                "`gpu_router` are asked (`/api/embed`), or without it Open WebUI's connections. Every user "
                "whose questions are to be compared must be allowed to use it. Default: empty, which means "
                "Open WebUI's own embeddings (Admin Panel → Settings → Documents)."
            ),
        )

    class UserValves(PackValves):
        use_cache: bool = Field(
            default=True,
            title="Use the cache",
            description="Off: your questions always get a new answer, and nothing is kept. Default: on.",
        )

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._keeper = CacheKeeper()
        self._pending = PendingAnswers()
        self._replay = ReplayModel()
        self._digests = ModelDigests(_tag_sites, trusted=trusted_certificates)
        self._wanted: Remembered[str, bool] = Remembered(USER_SECONDS)
        self._embeddings = NodeEmbeddings()
        self._said = ""  # what was logged last of settings that cannot be used

    async def request(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __model__: dict[str, Any],
        __request__: Any,
        __id__: str,
        __event_emitter__: Emitter | None = None,
    ) -> Body:
        """Look the request up. Anything unexpected is logged, and the chat goes to its model."""
        take_over(__request__.app, __id__, self)
        state = __metadata__.setdefault(STATE, {"rounds": 0})
        state["rounds"] += 1
        if body.get("model") == REPLAY and "model" in state:
            body["model"] = state["model"]  # an earlier round's, where nobody gave the model its name back
        elif body.get("model") == REPLAY and (
            other := drawn_instead(__metadata__, __request__.app.state.MODELS)
        ):
            body["model"] = __metadata__["selected_model_id"] = other
        if self._keeper.current is not None:
            self._keeper.current.saw_chat()
        try:
            if not self.valves.enabled or not _wants_cache(__user__):
                return body
            pending = await self._look_up(body, __user__, __metadata__, __model__, __request__)
            if pending is None:
                return body
            if self.valves.show_status and __event_emitter__ and (line := _status(pending)):
                text = in_language(line, reader_language(__metadata__, __request__))
                await __event_emitter__({"type": "status", "data": {"description": text, "done": True}})
        except SettingError as error:
            self._warn_once(error)
            return body
        except Exception:
            log.exception("A request was not looked up in the response cache, and its model answers")
            return body
        state |= {"model": body["model"], "ticket": self._pending.hold(pending), "filter": __id__}
        state["cached"] = isinstance(pending.outcome, Hit | Follow)
        if isinstance(body.get("metadata"), dict):
            body["metadata"][STATE] = state  # a copy of it, where the Pipelines server has seen the request
        body["model"] = REPLAY
        return body

    async def direct_lookup(
        self, body: Body, user: Json, request: Any, function_id: str, answers: tuple[str, str]
    ) -> PendingAnswer | None:
        """What to answer a chat of the gateway with that passes no filter; None: its model answers.

        Args:
            body: the final chat.
            user: who asks.
            request: FastAPI's.
            function_id: under which the admin has saved this filter.
            answers: the model that would answer now, and its weights.
        """
        take_over(request.app, function_id, self)
        try:
            wanted = await self._wanted.get(user["id"], partial(_uses_cache, function_id, user["id"]))
            if not self.valves.enabled or not wanted:
                return None
            cache = await self._keeper.cache(self._settings())
            reason = "client's wish" if "no-store" in _wishes(request) else ""
            if reason := reason or why_bypassed(body, {}, self.valves.cache_when):
                cache.bypass(reason)
                return None
            model, weights = answers
            asked = CacheRequest(
                body=body,
                metadata={},
                user_id=str(user["id"]),
                group_ids=await group_ids_of(user) if self.valves.scope == "group" else (),
                digest=weights or None,
                answerer=model,
                preset={"base": body["model"], "params": {}, "system": ""},
                refresh="no-cache" in _wishes(request),
                as_user=self.valves.scope != "user" and await asks_as_user(),
            )
            return await self._pending_answer(cache, asked, body)
        except SettingError as error:
            self._warn_once(error)
        except Exception:
            log.exception("A request was not looked up in the response cache, and its model answers")
        return None

    def _warn_once(self, error: SettingError) -> None:
        if self._said != str(error):
            self._said = str(error)
            log.warning("The response cache does nothing: %s", error)

    def retire(self) -> None:
        """Other code takes over: give the cache back once its answers have ended."""
        self._keeper.retire()

    def claim(self, ticket: str) -> PendingAnswer | None:
        """The answer that a ticket stands for, once: for the replay function."""
        return self._pending.claim(ticket)

    async def cache_report(self) -> dict[str, Any]:
        """What the cache did, in this worker and in all of them, for the dashboard."""
        cache = await self._keeper.cache(self._settings())
        shared = await cache.shared_counts()
        fault = _fault(shared, cache.fault) if isinstance(shared, StoreTrouble) else ""
        if not isinstance(shared, StoreTrouble):
            cache.calibration.learn(shared)  # a worker that nobody has asked anything yet knows no labels
        return {
            "enabled": self.valves.enabled,
            "store": "Redis" if self.valves.redis_url else "SQLite",
            "fault": fault,
            "scope": self.valves.scope,
            "ttl_seconds": self.valves.ttl_seconds,
            "similar": self.valves.similar,
            "similar_tiers": cache.calibration.report(self.valves.similar_error),
            "worker": cache.counters.snapshot(),
            "all": {} if fault else shared,
        }

    async def calibration_counts(self) -> dict[str, Any]:
        """The labels of similar answers, for `scripts/federate.py`: counts, and nothing of a conversation."""
        cache = await self._keeper.cache(self._settings())
        shared = await cache.shared_counts()
        if isinstance(shared, StoreTrouble):
            return {"fault": _fault(shared, cache.fault)}
        return {"fault": "", "error": self.valves.similar_error} | calibration_report(shared)

    async def take_round(self, given: Mapping[str, Any]) -> str:
        """Count what other sites gave in a round; empty, or why it was not done."""
        try:
            rounds = read_rounds(given)
        except ValueError as error:
            return said_by(error)
        return await self._change_counts(partial(as_set, rounds))

    async def forget_rounds(self) -> str:
        """Forget all that other sites gave; empty, or why it was not done."""
        return await self._change_counts(as_forgotten)

    async def _change_counts(self, change: Callable[[Mapping[str, float]], Mapping[str, float]]) -> str:
        cache = await self._keeper.cache(self._settings())
        trouble = await cache.change_counts(change)
        return _fault(trouble, cache.fault) if trouble else ""

    async def flush_cache(self) -> str:
        """Make all answers unusable, in every worker; empty, or why it was not done."""
        cache = await self._keeper.cache(self._settings())
        trouble = await cache.flush()
        return _fault(trouble, cache.fault) if trouble else ""

    async def discard_answers(self, label: str) -> None:
        """Discard what belongs to a chat, a user or a message that nobody liked, such as `chat:<id>`."""
        cache = await self._keeper.cache(self._settings())
        if label.startswith("message:"):
            await cache.reject(label)
        await cache.discard(label)

    async def _look_up(
        self, body: Body, user: Json, metadata: Json, model: Json, request: Any
    ) -> PendingAnswer | None:
        """What to answer with; None: the model answers, and the cache is not in it."""
        cache = await self._keeper.cache(self._settings())
        reason = "client's wish" if "no-store" in _wishes(request) else ""
        if reason := reason or why_bypassed(body, metadata, self.valves.cache_when):
            cache.bypass(reason)
            return None
        if not await self._replay.serves(user, request):
            cache.bypass("no replay")
            return None
        if not await _has_access(body, user, metadata, request):
            cache.bypass("no access")  # Open WebUI says so
            return None
        others = await other_answers(metadata, str(model["id"]))
        for each in others:  # it is regenerated
            cache.reject_later(f"message:{each}")
        asked = await self._asked(body, user, metadata, model, request, is_another=bool(others))
        return await self._pending_answer(cache, asked, body)

    async def _pending_answer(
        self, cache: ResponseCache, asked: CacheRequest, body: Body
    ) -> PendingAnswer | None:
        """As `_look_up`, for a request that the cache is for."""
        question = await question_of(asked, self.valves.scope, cache.keyring)
        if isinstance(question, NotCacheable):
            cache.bypass(question.reason)
            return None
        with current_span("response cache lookup") as span:
            outcome = await cache.lookup(question)
            span.set_attribute("ollama_pack.cache", type(outcome).__name__.lower())
        if isinstance(outcome, Hit | Follow) and (message := asked.metadata.get("message_id")):
            near = outcome.near if isinstance(outcome, Hit) else None
            given = replace(question, slot=near.slot) if near else question
            cache.later(cache.note(given, f"message:{message}"))  # a thumbs-down there discards it, too
            if near:
                cache.later(cache.note_similar(question, near, f"message:{message}"))
        if isinstance(outcome, Miss):
            return None
        asked_for = object_at(asked.metadata, "model").get("id") or body["model"]
        note_from_cache(outcome, str(asked_for), asked.user_id)
        routed = str(asked.preset["base"]).startswith(ROUTER)
        return PendingAnswer(cache, outcome, body, str(body["model"]), routed)

    async def _asked(
        self, body: Body, user: Json, metadata: Json, model: Json, request: Any, *, is_another: bool
    ) -> CacheRequest:
        answering = await answering_model(str(body["model"]), metadata, user, request)
        digest, answerer = await self._weights(answering, body, user, request)
        embedder, embed = await self._vectors(user, request)

        def lend(scope: str) -> Lent:
            return Lent(
                key=label_key(answering.id, embedder, scope, last_asked(body), digest or ""),
                error=self.valves.similar_error,
                embed=embed,
                judge=judging(request, user, str(body["model"])),
                embedder=embedder,
                queues=str(answering.preset["base"]).startswith(ROUTER),
                is_busy=partial(somebody_chats, request),
                user=str(user.get("id") or ""),
            )

        return CacheRequest(
            body=body,
            metadata={**metadata, "model": model},  # of several side by side, it names the first
            user_id=str(user.get("id") or ""),
            group_ids=await group_ids_of(user) if self.valves.scope == "group" else (),
            digest=digest,
            answerer=answerer,
            preset=answering.preset,
            refresh="no-cache" in _wishes(request) or is_another,
            needs_usage=answering.origin == "ollama",
            usage_when_asked=answering.origin == "openai",
            similar=self.valves.similar != "off" and "no-similar" not in _wishes(request),
            lend=lend if embedder else None,
            as_user=self.valves.scope != "user" and await _asks_as_user(answering, request),
        )

    async def _vectors(self, user: Json, request: Any) -> tuple[str, Callable[[str], Awaitable[Any]]]:
        """What makes vectors, by name, and how to ask it; without a name, nothing does."""
        if name := self.valves.similar_embedder.strip():
            is_on = self.valves.similar == "semantic"
            embedder = self._embeddings.embedder(name, request, user) if is_on else ""
            return embedder, self._embeddings.embedding(name, request, user)
        embedder = await embedder_of(request) if self.valves.similar == "semantic" else ""
        return embedder, embedding(request, user)

    async def _weights(
        self, answering: AnsweringModel, body: Body, user: dict[str, Any], request: Any
    ) -> tuple[str | None, str]:
        """The digest of the weights, see `AnswerBasis`, and the model that has to answer, see `Question`."""
        match answering.origin:
            case "ollama":
                return await self._digests.digest_of(answering.id), ""
            case "router":
                return await routed_weights(request.app, answering.id, body, user)
            case "openai":
                return "", ""  # it tells none: its name, and the time that answers are kept, must do
        return None, ""

    def _settings(self) -> CacheSettings:
        valves = self.valves
        return CacheSettings(
            url=valves.redis_url,
            path=data_folder() / DATABASE,
            secret=valves.secret or server_secret("response cache"),
            ttl_seconds=valves.ttl_seconds,
            max_entry_octets=valves.max_entry_kb * 1024,
        )


async def _has_access(body: Body, user: dict[str, Any], metadata: dict[str, Any], request: Any) -> bool:
    """Whether the user may use the model. Open WebUI has looked at the one that the request came for.

    Another filter may have chosen another, at which it looks when it is called; for a kept answer none is.
    """
    model = body["model"]
    if model == (metadata.get("model") or {}).get("id"):
        return True
    return model in request.app.state.MODELS and await may_use(user, model, request)


async def _asks_as_user(answering: AnsweringModel, request: Any) -> bool:
    """Whether what answers is asked as the user, and may give another one another answer, or none."""
    about = request.app.state.MODELS.get(answering.id) or {}
    return await asks_as_user(about.get("urlIdx") if answering.origin == "openai" else None)


_STATES: dict[str, str] = {
    "down": message("the store is down"),
    "slow": message("the store is slow"),
    "full": message("the store is full"),
    "open": message("the store is left alone for a while"),
}


def _fault(trouble: StoreTrouble, why: str) -> str:
    """For an admin: `the store is down: Redis failed: ConnectionError: …`."""
    return joined([_STATES.get(trouble.reason, trouble.reason), why], message(": "))


def _wants_cache(user: dict[str, Any]) -> bool:
    return bool(getattr(user.get("valves"), "use_cache", True))


async def _uses_cache(function_id: str, user_id: str) -> bool:
    return bool((await user_valves(function_id, user_id)).get("use_cache", True))


def _wishes(request: Any) -> str:
    """What a client says of caches: `no-cache` for a new answer and `no-store`, as HTTP has it (RFC 9111).

    `no-similar` is ours: the answer to exactly this question, or a new one.
    """
    return str(request.headers.get("cache-control") or "").lower()


async def _tag_sites() -> list[TagSite]:
    return [TagSite(way.url, prefix, way.fixed_headers) for way, prefix in await prefixed_connections()]


def _status(pending: PendingAnswer) -> Message | None:
    """What a user is told of an answer that is not generated for this question; None: it is."""
    match pending.outcome:
        case Hit(question=question, near=Near()) if not question.scope.startswith("user:"):
            # It may be somebody else's, and so may be its words.
            return message("answered from a similar question · regenerate for a new answer")
        case Hit(near=Near(asked=asked)):
            return message(
                "answered from a similar question: *{question}* · regenerate for a new answer",
                question=_shown(asked),
            )
        case Hit(age_seconds=age):
            return message("cached · {age} ago · regenerate for a new answer", age=age_in_words(age))
        case Follow():
            return message("shared · being generated for the same question · regenerate for a new answer")
    return None


def _shown(asked: str) -> str:
    """A question in one line of a status, where Markdown means something."""
    line = " ".join(asked.replace("*", "").replace("`", "'").split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…"


def age_in_words(seconds: float) -> Message:
    """Such as `12 min`; one unit is enough."""
    if seconds >= 86_400:  # noqa: PLR2004 - of a day
        return message("{days} d", days=int(seconds // 86_400))
    if seconds >= 3_600:  # noqa: PLR2004 - of an hour
        return message("{hours} h", hours=int(seconds // 3_600))
    if seconds >= 60:  # noqa: PLR2004 - of a minute
        return message("{minutes} min", minutes=int(seconds // 60))
    return message("{seconds} s", seconds=int(seconds))
