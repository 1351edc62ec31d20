"""A node of which only some models are offered, or under other names: as a connection's settings have it."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ollama_pack.engines.ollama.client import NodeClient, OllamaClient
from ollama_pack.engines.ollama.to_ollama import Thinking
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel
from ollama_pack.engines.transport import NO_HEADERS
from ollama_pack.engines.vectors import Vectors
from ollama_pack.routing.nodes import Listing


class ListedClient:
    """Asks a node by its own names, and lists its models by the offered ones."""

    def __init__(self, client: NodeClient, listings: Sequence[Listing]) -> None:
        """Ask nothing yet.

        Args:
            client: the node's.
            listings: a model is offered once by each listing that has it.
        """
        self._client = client
        self._listings = listings
        self._own: dict[str, str] = {}  # offered name → the node's, as of the last list

    @property
    def name(self) -> str:
        """The node's address, as it may be shown."""
        return self._client.name

    async def tags(self) -> tuple[ListedModel, ...]:
        """The models that are offered."""
        offered = {name: model for model in await self._client.tags() for name in self._names(model.name)}
        self._own = {name: model.name for name, model in offered.items()}
        return tuple(model.model_copy(update={"name": name}) for name, model in offered.items())

    async def ps(self) -> tuple[LoadedModel, ...] | None:
        """What is in the node's memory. A model that is not offered is there, too, by its own name."""
        loaded = await self._client.ps()
        if loaded is None:
            return None
        return tuple(
            model.model_copy(update={"name": name})
            for model in loaded
            for name in self._names(model.name) or [model.name]
        )

    async def pull(self, model: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have the node pull a model, by the node's own name; nothing, where it is no Ollama."""
        if isinstance(self._client, OllamaClient):
            async with aclosing(self._client.pull(model)) as pieces:
                async for piece in pieces:
                    yield piece

    async def show(self, model: str) -> ShownModel:
        """What the node knows of an offered model."""
        return await self._client.show(self._own.get(model, model))

    async def load(
        self,
        model: str,
        *,
        seconds: float,
        keep_alive: str | float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load an offered model into memory."""
        own = self._own.get(model, model)
        await self._client.load(own, seconds=seconds, keep_alive=keep_alive, options=options)

    async def embed(
        self, model: str, texts: Sequence[str], *, seconds: float, dimensions: int = 0
    ) -> Vectors:
        """A vector for each text, of an offered model."""
        own = self._own.get(model, model)
        return await self._client.embed(own, texts, seconds=seconds, dimensions=dimensions)

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
        """The chunks of an answer of an offered model."""
        model = str(body.get("model"))
        asked = {**body, "model": self._own.get(model, model)}
        own = frozenset(self._own.get(name, name) for name in names)
        return self._client.complete(
            asked, head, first_byte=first_byte, thinking=thinking, names=own, headers=headers
        )

    def _names(self, model: str) -> list[str]:
        names = (listing.offered(model) for listing in self._listings)
        return list(dict.fromkeys(name for name in names if name is not None))
