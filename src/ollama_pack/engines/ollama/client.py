"""What a node is asked. `NodeClient` is what the fleet needs of any engine; `OllamaClient` is Ollama's."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import (
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    WrongModelError,
)
from ollama_pack.engines.model_ids import ModelIds
from ollama_pack.engines.ollama.names import is_same_model
from ollama_pack.engines.ollama.stream import stream_to_openai, usage_place
from ollama_pack.engines.ollama.to_ollama import Thinking, request_to_ollama
from ollama_pack.engines.ollama.to_openai import ReplyHead, working_seconds
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel, entries_in
from ollama_pack.engines.transport import NO_HEADERS, NodeLimits, NodeTransport
from ollama_pack.engines.vectors import VECTOR_BYTES, Vectors, vectors_in

PULL_SECONDS = 3600.0  # without a word, while a node checks a large file


class NodeClient(Protocol):
    """What is asked of a node, whichever engine serves there. Chats are OpenAI's, in both directions.

    Every method raises `NodeError`; where it is a `RetryableNodeError`, another node may do it.
    """

    @property
    def name(self) -> str:
        """The node's address, as it may be shown."""

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the node has."""

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """The models in the node's memory; None where it does not tell."""

    async def show(self, model: str) -> ShownModel:
        """What the node knows of a model."""

    def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body; closing the iterator ends the generation."""

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text."""

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model into memory, and wait until it is there; nothing, where all are there."""


class OllamaClient:
    """A node that runs Ollama."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        limits: NodeLimits | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            url: such as http://gpu1:11434, with or without a path.
            session: holds the connections. Its timeouts do not apply; a limit on connections does.
            limits: when left out, the defaults.
            headers: sent with every request, such as `Authorization`.
        """
        limits = limits or NodeLimits()
        self._node = NodeTransport(url, session, limits, headers or {})
        slow = replace(limits, next_line=PULL_SECONDS)
        self._puller = NodeTransport(url, session, slow, headers or {})
        self._ids = ModelIds()

    @property
    def name(self) -> str:
        """The node's address, as it may be shown: without user name, password and query."""
        return self._node.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that the node has. Entries that cannot be read are passed over, which is logged once.

        Raises:
            NodeError: the node does not answer as it should.
        """
        try:
            models, unread = entries_in(await self._node.ask("/api/tags"), ListedModel)
        except ValueError as error:
            raise NodeFaultError(self.name, message("answers in a form that is not Ollama's")) from error
        if unread and not models:
            raise NodeFaultError(self.name, message("answers in a form that is not Ollama's"))
        if unread:
            self._node.note(f"{unread} of its models are passed over: /api/tags gives them no name")
        self._ids.learn(model.name for model in models)
        return tuple(model.model_copy(update={"name": self._ids.offered(model.name)}) for model in models)

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """The models in the node's memory; None where it does not tell, as behind some gateways.

        Raises:
            NodeError: the node does not answer at all.
        """
        try:
            models, unread = entries_in(await self._node.ask("/api/ps"), LoadedModel)
        except (NodeUnreachableError, NodeTimeoutError):
            raise
        except (NodeError, ValueError) as error:
            reason = error.plain if isinstance(error, NodeError) else "answers in a form that is not Ollama's"
            self._node.note(f"it is not known which models are in its memory: /api/ps {reason}")
            return None
        if unread:
            self._node.note(f"{unread} of the models in its memory are passed over: /api/ps names none")
        return tuple(model.model_copy(update={"name": self._ids.offered(model.name)}) for model in models)

    async def show(self, model: str) -> ShownModel:
        """What the node knows of a model.

        Raises:
            ModelNotFoundError: it does not have it.
            NodeError: the node does not answer as it should.
        """
        return ShownModel.model_validate(await self._node.ask("/api/show", {"model": self._ids.real(model)}))

    def chat(
        self, request: Mapping[str, Any], *, first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of the answer to a request in Ollama's form, parsed; the last has `done` and the figures.

        Whoever stops before the last line closes the iterator (`contextlib.aclosing`): that closes the
        connection, and the node stops generating.

        Args:
            request: as `request_to_ollama` gives it.
            first_byte: seconds until the first line; with `stream` false that is the whole answer.
            headers: of this request, besides those of all.

        Raises:
            ModelNotFoundError: the node does not have the model.
            RequestRefusedError: the request has to change.
            RetryableNodeError: the node failed, before or in the stream.
        """
        return self._node.lines("/api/chat", request, first_byte, headers)

    async def complete(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        head: ReplyHead,
        *,
        first_byte: float,
        thinking: Thinking | None = None,
        names: Collection[str] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. The node always streams, so that it can be stopped.

        Args:
            body: OpenAI's, whether or not it asks for a stream; its `model` is the node's name of the model.
            head: what the chunks have in common.
            first_byte: seconds until the first line.
            thinking: what `think` the model takes, from `show`; None where it is not known.
            names: others that the node has for this model.
            headers: of this request, besides those of all.

        Raises:
            ChatBodyError: the body cannot be put into Ollama's form.
            WrongModelError: the node answers with another model.
            NodeError: as `chat`.
        """
        place = usage_place(body)
        request = request_to_ollama(body, thinking)
        request |= {"model": self._ids.real(request["model"]), "stream": True}
        real_names = [self._ids.real(name) for name in names]
        lines = self._of_model(
            self.chat(request, first_byte=first_byte, headers=headers), request["model"], real_names
        )
        async with aclosing(stream_to_openai(lines, head, place)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _of_model(
        self, lines: AsyncGenerator[dict[str, Any], None], asked: str, names: Collection[str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines, if the first names the model that was asked for, or none."""
        believed = False
        async with aclosing(lines):
            async for line in lines:
                answered = line.get("model")
                believed = believed or "remote_model" in line  # a cloud model may have another name there
                if not believed and isinstance(answered, str) and answered:
                    if not any(is_same_model(name, answered) for name in (asked, *names)):
                        raise WrongModelError(self.name, asked, answered)
                    believed = True
                yield line

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model into memory, and wait until it is there.

        Args:
            model: the node's name of it.
            seconds: for all of it.
            keep_alive: how long it stays: seconds or "5m"; the node's own time when left out.
            options: runner options, such as `num_ctx`. They must be those of the chats to come.

        Raises:
            ModelNotFoundError: the node does not have it.
            NodeError: it could not be loaded.
        """
        found = {"keep_alive": keep_alive, "options": options}
        given = {name: value for name, value in found.items() if value is not None}
        body = {"model": self._ids.real(model), "stream": False, **given}
        await self._node.ask("/api/generate", body, seconds)

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text.

        Args:
            model: the node's name of it.
            texts: what to embed.
            seconds: for all of it, a load included.
            dimensions: of the vectors; 0: as many as the model has.

        Raises:
            ModelNotFoundError: the node does not have it.
            NodeError: the node does not answer as it should.
        """
        wanted = {"dimensions": dimensions} if dimensions else {}
        body = {"model": self._ids.real(model), "input": list(texts), **wanted}
        answer = await self._node.ask("/api/embed", body, seconds, len(texts) * VECTOR_BYTES)
        tokens = answer.get("prompt_eval_count")
        return vectors_in(self.name, answer.get("embeddings"), tokens, len(texts), working_seconds(answer))

    async def pull(self, model: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have the node pull a model: bytes that are there of the current layer, and its bytes (0: unknown).

        It ends when the model is whole. Closing the iterator stops the pull, which goes on where it was when
        it is asked for again.

        Raises:
            NodeError: it could not be pulled.
        """
        asked = {"model": model, "insecure": model.startswith("http://")}  # as the name itself asks for
        async with aclosing(self._puller.lines("/api/pull", asked, PULL_SECONDS)) as lines:
            async for line in lines:
                if line.get("status") == "success":
                    return
                done, total = line.get("completed"), line.get("total")
                yield done if isinstance(done, int) else 0, total if isinstance(total, int) else 0
