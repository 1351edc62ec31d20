"""A node that runs an OpenAI-compatible engine: vLLM, SGLang, llama.cpp's server, and what else speaks so."""

import asyncio
import re
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeBusyError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
    WrongModelError,
)
from ollama_pack.engines.model_ids import ModelIds
from ollama_pack.engines.ollama.stream import usage_place
from ollama_pack.engines.ollama.to_ollama import Thinking
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, NamedModel, ShownModel
from ollama_pack.engines.openai.failures import SERVE_IT, engine_said_in, engine_status_error, event_status
from ollama_pack.engines.openai.metrics import EngineActivity, engine_activity
from ollama_pack.engines.openai.models import (
    EngineModel,
    ServedName,
    engine_models,
    nameless_models,
    served_context,
)
from ollama_pack.engines.openai.request import CACHE_KEY, request_to_engine, without_usage
from ollama_pack.engines.openai.stream import EngineReply
from ollama_pack.engines.sse import ServerEvent
from ollama_pack.engines.transport import NO_HEADERS, Dialect, NodeLimits, NodeTransport
from ollama_pack.engines.vectors import VECTOR_BYTES, Vectors, vectors_in

METRICS_RETRY_SECONDS = 600.0  # until an engine without metrics is asked again: it may have been restarted
OPENAI_DIALECT = Dialect(message("an OpenAI-compatible engine"), engine_status_error)
LLAMACPP = "llamacpp"  # what it calls itself in `owned_by`

_V1 = "/v1"
# A path with a version in it, or with OpenAI's name at its end, is all of the base address: nothing is added.
_WHOLE_BASE = re.compile(r"https?://[^/]+(?:/.*)?/(?:v\d+\w*(?:/.*)?|openai)", re.IGNORECASE)
# Where an engine tells its version, and under which name: vLLM, llama.cpp, SGLang, and SGLang before 0.5.
# By which the routers of vLLM (`consistent_hash`, and its production stack with this `--session-key`) and of
# SGLang keep a session at one engine.
SESSION_HEADERS = ("X-Session-Id", "X-SMG-Routing-Key")
_SESSION_KEY = re.compile(r"[\w.:-]{1,256}", re.ASCII)
# What an engine answers where it does not have what was asked for.
_ABSENT = frozenset({400, 404, 405, 422, 501})

_Named = TypeVar("_Named", bound=NamedModel)


class OpenAIClient:
    """A node that runs an OpenAI-compatible engine. It answers as `OllamaClient` does, chunk for chunk."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        limits: NodeLimits | None = None,
        headers: Mapping[str, str] | None = None,
        serves: Collection[str] = (),
    ) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            url: such as http://gpu1:8000 or http://gpu1:8000/v1, or another base address of such an API,
                such as https://gateway/v1beta/openai.
            session: holds the connections. Its timeouts do not apply; a limit on connections does.
            limits: when left out, the defaults.
            headers: sent with every request, such as `Authorization`.
            serves: the names of its models, where `/v1/models` does not list them; empty: it does.
        """
        base = url.rstrip("/")
        root = base.removesuffix(_V1)
        # What comes between the address and `/models`; the first that answers is kept.
        self._bases = (_V1,) if root != base else ("", _V1) if _WHOLE_BASE.fullmatch(base) else (_V1, "")
        self._ids = ModelIds()
        self._node = NodeTransport(root, session, limits or NodeLimits(), headers or {}, OPENAI_DIALECT)
        self._declared = tuple(EngineModel(name) for name in serves)
        self._served: Mapping[str, frozenset[str]] = _names_of(self._declared)  # name → all of that model
        self._takes_usage = True
        self._metrics_at = 0.0

    @property
    def name(self) -> str:
        """The node's address, as it may be shown: without `/v1`, user name, password and query."""
        return self._node.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the engine serves, or can load.

        Raises:
            NodeError: the node does not answer as it should.
        """
        return tuple(self._offered(model.listed()) for model in await self._models())

    async def ps(self) -> tuple[LoadedModel, ...]:
        """The models in memory: all that are served, but for those that llama.cpp says are not loaded.

        Raises:
            NodeError: the node does not answer as it should.
        """
        models = [model for model in await self._models() if model.loaded]
        if any(model.engine == LLAMACPP and not model.context for model in models):  # an older one
            context = served_context(await self._told("/props"))
            return tuple(
                self._offered(model.resident()).model_copy(
                    update={"context_length": model.context or context}
                )
                for model in models
            )
        return tuple(self._offered(model.resident()) for model in models)

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing: the engine has its models in memory, or loads them itself."""

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text: see `OllamaClient.embed`.

        Raises:
            NodeError: the engine does not answer as it should.
        """
        wanted = {"dimensions": dimensions} if dimensions else {}
        body = {"model": self._ids.real(model), "input": list(texts), **wanted}
        answer = await self._node.ask(
            f"{self._bases[0]}/embeddings", body, seconds, len(texts) * VECTOR_BYTES
        )
        entries = [entry for entry in answer.get("data") or () if isinstance(entry, Mapping)]
        ordered = sorted(entries, key=lambda entry: entry.get("index") or 0)
        tokens = object_at(answer, "usage").get("prompt_tokens")
        return vectors_in(self.name, [entry.get("embedding") for entry in ordered], tokens, len(texts))

    async def show(self, model: str) -> ShownModel:
        """What the engine knows of a model. `capabilities` is empty where it does not tell them.

        Raises:
            ModelNotFoundError: it does not have it.
            NodeError: the node does not answer as it should.
        """
        models = await self._models()
        name = self._ids.real(model)
        found = next((each for each in models if name in {each.name, *each.others}), None)
        if found is None:
            raise self._not_served(model)
        return found.shown(await self._told("/props") if found.engine == LLAMACPP else {})

    async def activity(self) -> EngineActivity | None:
        """How busy the engine is, by its metrics; None where it has none: then it is not asked for a while.

        Raises:
            NodeError: the node does not answer as it should.
        """
        now = asyncio.get_running_loop().time()
        if now < self._metrics_at:
            return None
        try:
            text = (await self._node.fetch("/metrics")).decode(errors="replace")
        except NodeError as error:
            if error.status not in _ABSENT:
                raise
            text = ""
        found = engine_activity(text)
        if found is None:
            self._metrics_at = now + METRICS_RETRY_SECONDS
        return found

    async def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,  # noqa: ARG002 - of `NodeClient`; engines ignore an effort they lack
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. The engine always streams: then it can be stopped.

        The last chunk has `usage`, null where the engine does not tell, and llama.cpp's `timings`.

        Args:
            body: OpenAI's, whether or not it asks for a stream; its `model` is the id that `tags` gives it.
            head: what the chunks have in common.
            first_byte: seconds until the first event.
            thinking: not used.
            names: others that the engine lists for this model.
            headers: of this request, besides those of all.

        Raises:
            ChatBodyError: the body is not of its form.
            ModelNotFoundError: the engine does not list the model. It is not asked then: llama.cpp
                would answer with the model that it has.
            RequestRefusedError: the request has to change.
            WrongModelError: the engine answers with another model.
            RetryableNodeError: the engine failed, before or in the stream.
        """
        place = usage_place(body)
        request = request_to_engine(body)
        if self._ids.real(request["model"]) not in self._served:
            await self._models()
        request["model"] = self._ids.real(request["model"])
        if request["model"] not in self._served:
            raise self._not_served(request["model"])
        served = ServedName(request["model"], [self._ids.real(name) for name in names])
        async with (
            aclosing(self._events(request, first_byte, headers)) as events,
            aclosing(self._chunks(events, EngineReply(head, place), served)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def _events(
        self, request: dict[str, Any], first_byte: float, headers: Mapping[str, str]
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of an answer. One that refuses `stream_options` is asked without, now and later."""
        path, asks_usage = f"{self._bases[0]}/chat/completions", self._takes_usage
        sent = request if asks_usage else without_usage(request)
        try:
            async with aclosing(
                self._node.events(path, sent, first_byte, {**_session_headers(sent), **headers})
            ) as events:
                async for event in events:
                    yield event
        except RequestRefusedError as error:  # comes before the first event or never
            if not asks_usage or "stream_options" not in error.said:
                raise
            self._takes_usage = False
        else:
            return
        async with aclosing(self._events(request, first_byte, headers)) as events:
            async for event in events:
                yield event

    async def _chunks(
        self, events: AsyncGenerator[ServerEvent, None], reply: EngineReply, model: ServedName
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks that the events make up."""
        ended = False
        async for event in events:
            ended = event.is_last
            made = self._end(reply) if ended else reply.take(self._chunk_in(event, reply, model))
            for chunk in made:
                yield chunk
        if not ended:
            for chunk in self._end(reply):
                yield chunk

    def _chunk_in(self, event: ServerEvent, reply: EngineReply, model: ServedName) -> dict[str, Any]:
        """The chunk in an event; an error is raised. SGLang refuses requests so, after status 200."""
        chunk = self._node.parsed(event.data)
        if not event.is_error and not chunk.get("error") and chunk.get("object") != "error":
            answered = chunk.get("model")
            known = self._declared or model.may_be(answered, self._served)
            if not reply.is_begun and not known:
                raise WrongModelError(self.name, model.asked, str(answered))
            return chunk
        status = None if reply.is_begun else event_status(chunk)
        if status is not None:
            raise engine_status_error(self.name, status, event.data, model.asked)
        raise NodeFaultError(self.name, message("failed while it answered"), said=engine_said_in(event.data))

    def _end(self, reply: EngineReply) -> list[dict[str, Any]]:
        """The last chunks, where the answer has come to its end. Some engines do without `[DONE]`."""
        if reply.is_aborted:
            raise NodeFaultError(self.name, message("gave up in the middle of its answer"))
        if not reply.is_whole:
            raise NodeFaultError(self.name, message("ended its answer before the last chunk"))
        return reply.end()

    async def _models(self) -> tuple[EngineModel, ...]:
        """The models, which are remembered as those that it answers for."""
        models = await self._listed()
        self._ids.learn(model.name for model in models)
        self._served = _names_of(models)
        return models

    async def _listed(self) -> tuple[EngineModel, ...]:
        """The list under the first base that has one; what was declared, where the server is there."""
        if self._declared:
            try:
                await self._node.fetch(f"{self._bases[0]}/models")
            except NodeError as error:
                if error.status is None:  # else it is there, whatever it lists: SGLang's router answers 503
                    raise
            return self._declared
        base, *others = self._bases
        try:
            return await self._list_at(base)
        except NodeError as error:
            if isinstance(error, NodeUnreachableError | NodeTimeoutError | NodeBusyError):
                raise
            for other in others:
                with suppress(NodeError):
                    models = await self._list_at(other)
                    self._bases = (other,)
                    return models
            raise

    async def _list_at(self, base: str) -> tuple[EngineModel, ...]:
        text = await self._node.fetch(f"{base}/models")
        bare = text.lstrip()[:1] == b"["  # Together's list has nothing around it
        answer = self._node.parsed(b'{"data":' + text + b"}" if bare else text)
        try:
            models = engine_models(answer)
        except ValueError as error:
            raise NodeFaultError(
                self.name, message("lists models in a form that is not OpenAI's: {error}", error=error)
            ) from error
        if bare and not models:
            raise NodeFaultError(
                self.name, message("lists models in a form that is not OpenAI's: there are none")
            )
        if unread := nameless_models(answer):
            self._node.note(
                message(
                    "{count} of its models are passed over: {base}/models gives them no id",
                    count=unread,
                    base=base,
                )
            )
        self._bases = (base,)
        return models

    def _offered(self, model: _Named) -> _Named:
        """The model under the id that clients know."""
        return model.model_copy(update={"name": self._ids.offered(model.name)})

    async def _told(self, path: str) -> dict[str, Any]:
        """What the engine tells there; empty where it has no such thing."""
        try:
            return await self._node.ask(path)
        except NodeError as error:
            if error.status not in _ABSENT:
                raise
            return {}

    def _not_served(self, model: str) -> ModelNotFoundError:
        listed = ", ".join(sorted(self._served)[:5])
        said = message("it serves {listed}", listed=listed) if listed else message("it serves nothing")
        return ModelNotFoundError(self.name, model, said, SERVE_IT)


def _session_headers(request: Mapping[str, Any]) -> dict[str, str]:
    """The headers by which gateways keep a conversation at one engine, where the request names its own."""
    key = request.get(CACHE_KEY)
    return dict.fromkeys(SESSION_HEADERS, key) if isinstance(key, str) and _SESSION_KEY.fullmatch(key) else {}


def _names_of(models: Iterable[EngineModel]) -> dict[str, frozenset[str]]:
    """Each name that is served → all names of that model."""
    return {
        name: frozenset((model.name, *model.others))
        for model in models
        for name in (model.name, *model.others)
    }
