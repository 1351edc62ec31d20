"""
title: Response cache replay
author: Open WebUI Ollama Pack
author_url: {repository}
description: Repeats earlier answers of gpu_router. Not a model to chat with.
license: MIT
requirements: redis
version: {version}
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from pydantic import Field

from ollama_pack.base.messages import in_language, message
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.generation import Upstream
from ollama_pack.cache.key import NotCacheable
from ollama_pack.cache.keyring import digest_of
from ollama_pack.cache.outcome import CacheOutcome
from ollama_pack.engines.ollama.stream import usage_place
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.errors import SettingError
from ollama_pack.services.cacheable import CacheRequest, question_of, why_bypassed
from ollama_pack.services.caching import CacheKeeper, note_from_cache
from ollama_pack.services.pipeline_requests import Asking, asking, sibling, with_hints
from ollama_pack.services.pipeline_valves import CODE_DIGEST, CODE_DIGEST_NOTE, PipelineValves

log = logging.getLogger(__name__)

FILTER = "response_cache_filter"
# Begins the names of users whom a client names itself, so that they are none of Open WebUI's.
CLIENT = "client:"
QUESTIONS_KNOWN = 10_000  # the last ones, to tell that somebody wants another answer
FIGURES_SECONDS = 60.0  # between two lines of figures in the log

Body = dict[str, Any]


class Pipeline:
    """Has the cache, which `gpu_router` asks for every chat when nothing is added to it any more.

    The cache lives on the router's event loop.
    """

    class Valves(PipelineValves):
        code_digest: str = Field(default=CODE_DIGEST, title="Code digest", description=CODE_DIGEST_NOTE)

    def __init__(self) -> None:
        self.name = "Response cache"
        self.valves = self.Valves()
        self._keeper = CacheKeeper()
        self._said: set[str] = set()
        self._answers: dict[str, str] = {}
        self._telling: asyncio.TimerHandle | None = None

    async def on_startup(self) -> None:
        """Nothing is held before the first chat."""

    async def on_shutdown(self) -> None:
        """The router gives the cache back, after the last of its chats."""

    async def inlet(self, body: Body, user: Body | None = None) -> Body:  # noqa: ARG002 - the server passes it
        """Keep the language of whoever chooses it by mistake."""
        return with_hints(body)

    def pipe(self, user_message: str, model_id: str, messages: list[Body], body: Body) -> str:  # noqa: ARG002
        """Refuse, and tell the figures."""
        cache = self._keeper.current
        figures = _figures(cache.counters.snapshot()) if cache else message("nothing yet")
        sentence = message(
            "response_cache_replay is no model to chat with: gpu_router asks it for answers that were given "
            "before. Choose another model. So far: {figures}.",
            figures=figures,
        )
        return in_language(sentence, asking(body).language)

    async def chunks(
        self, body: Body, who: Asking, digest: str, head: ReplyHead, upstream: Upstream, answerer: str = ""
    ) -> AsyncGenerator[Body, None]:
        """The answer to a chat, kept or generated. Closing the iterator ends what nobody else waits for.

        Args:
            body: the final one.
            who: who asks.
            digest: of the weights that would answer now.
            head: of an answer from the cache.
            upstream: begins the generation.
            answerer: the model that would answer now.
        """
        found = await self._found(body, who, digest, answerer)
        if found is None:
            answer = upstream()
        else:
            cache, outcome = found
            answer = cache.chunks(outcome, head, upstream, usage_place(body))
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Give the cache back, on the loop that it was used on."""
        if self._telling:
            self._telling.cancel()
        if cache := self._keeper.current:
            await cache.close()
        self._keeper = CacheKeeper()

    async def _found(
        self, body: Body, who: Asking, digest: str, answerer: str
    ) -> tuple[ResponseCache, CacheOutcome] | None:
        """What the cache has; None where the model is to answer, whatever the reason."""
        try:
            rules = sibling(FILTER)
            if rules is None:
                self._tell_once(f"The response cache does nothing: {FILTER} is not installed here")
                return None
            if not rules.valves.enabled:
                return None
            cache = await self._keeper.cache(rules.settings())
            self._tell_figures(cache)
            return await self._looked_up(cache, rules.valves, body, who, digest, answerer)
        except (SettingError, OSError) as error:
            self._tell_once(f"The response cache does nothing: {error}")
            return None
        except Exception:
            log.exception("A request was not looked up in the response cache, and its model answers")
            return None

    async def _looked_up(
        self, cache: ResponseCache, valves: Any, body: Body, who: Asking, digest: str, answerer: str
    ) -> tuple[ResponseCache, CacheOutcome] | None:
        note = who.note or {}
        reason = why_bypassed(body, note, valves.cache_when)
        if who.from_webui and who.note is None:
            reason = "not seen by the filter"
        asked = CacheRequest(
            body=body,
            metadata=note,
            user_id=who.user if who.from_webui or not who.user else CLIENT + who.user,
            digest=digest,
            answerer=answerer,
            similar=valves.similar != "off",
            refresh=self._is_regenerated(note, str(body.get("model"))),
        )
        question = NotCacheable(reason) if reason else await question_of(asked, valves.scope, cache.keyring)
        if isinstance(question, NotCacheable):
            cache.bypass(question.reason)
            return None
        outcome = await cache.lookup(question)
        note_from_cache(outcome, str(body.get("model") or ""), who.user)
        return cache, outcome

    def _is_regenerated(self, note: Mapping[str, Any], model: str) -> bool:
        """Whether the question has an answer of this model already: another message is to be the answer."""
        if note.get("regeneration_message_id"):
            return True
        question = (str(note.get("chat_id") or ""), str(note.get("user_message_id") or ""), model)
        answer = str(note.get("message_id") or "")
        if not answer or not all(question):
            return False
        # a client chooses all of them, at any length
        named, answer = (
            digest_of("\0".join(ids).encode("utf-8", "replace")) for ids in (question, (answer,))
        )
        before = self._answers.pop(named, answer)
        self._answers[named] = answer
        if len(self._answers) > QUESTIONS_KNOWN:
            del self._answers[next(iter(self._answers))]  # the oldest
        return before != answer

    def _tell_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", what)

    def _tell_figures(self, cache: ResponseCache) -> None:
        """Log them a while after they have changed: an admin has no other place to look at."""
        if self._telling is None or self._telling.when() < asyncio.get_running_loop().time():
            self._telling = asyncio.get_running_loop().call_later(FIGURES_SECONDS, _log_figures, cache)


def _log_figures(cache: ResponseCache) -> None:
    log.info("The response cache so far: %s", _figures(cache.counters.snapshot()))


def _figures(counts: dict[str, float]) -> str:
    """The counters but those of times: `hits 3, bypasses/background task 2`."""
    shown = {name: value for name, value in sorted(counts.items()) if not name.startswith("lookups_ms")}
    return ", ".join(f"{name} {value:g}" for name, value in shown.items()) or message("nothing yet")
