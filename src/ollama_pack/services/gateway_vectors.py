"""Embeddings at the gateway, in OpenAI's and Ollama's forms, for every name of the alias tables.

Open WebUI's filters see no embeddings, so both modes go the same way: to the router where its nodes have the
model, else over Open WebUI's own connections.
"""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import text_in, whole_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.services.gateway_names import direct_name, is_unknown, model_for
from ollama_pack.services.offer import AliasTables
from ollama_pack.webui.embedding import embedded
from ollama_pack.webui.errors import ModelClosedError

MOST_TEXTS = 2048  # as OpenAI has it

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextsAsked:
    """A request for vectors.

    Attributes:
        name: what the client asks for.
        texts: what to embed.
        dimensions: of the vectors; 0: as many as the model has.
        is_base64: OpenAI's own client wants the numbers packed.
    """

    name: str
    texts: tuple[str, ...]
    dimensions: int = 0
    is_base64: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to one.

    Attributes:
        vectors: one for each text.
        tokens: of all texts.
        routed: model and node, where the router chose them.
        seconds: of GPU time; 0 where nobody tells.
    """

    vectors: list[list[float]]
    tokens: int
    routed: Mapping[str, str]
    seconds: float = 0.0


def text_asked(body: Mapping[str, Any]) -> TextsAsked:
    """Read a request of Ollama's older `/api/embeddings`, which is for one text.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    return texts_asked({**body, "input": text_in(body.get("prompt"), "prompt")})


def texts_asked(body: Mapping[str, Any]) -> TextsAsked:
    """Read a request.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        reason = message("must be text or a list of texts (LangChain: check_embedding_ctx_length=False)")
        raise ChatBodyError("input", reason)
    if len(texts) > MOST_TEXTS:
        raise ChatBodyError(
            "input",
            message(
                "has {count} texts: send at most {limit} at once",
                count=len(texts),
                limit=MOST_TEXTS,
            ),
        )
    dimensions = body.get("dimensions")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/v1/models"))
    return TextsAsked(
        name=body["model"],
        texts=tuple(texts),
        dimensions=0 if dimensions is None else max(0, whole_in(dimensions, "dimensions")),
        is_base64=body.get("encoding_format") == "base64",
    )


async def vectors_for(
    request: Any, user: Any, asked: TextsAsked, tables: AliasTables, router: Any
) -> Embedded:
    """The vectors.

    Args:
        request: FastAPI's.
        user: Open WebUI's.
        asked: the request.
        tables: the alias tables.
        router: the live router; None: there is none.

    Raises:
        ModelClosedError: the user may not use the name, or there is none.
        Exception: another of the pack's, or of the router's: there are none.
    """
    who = user.model_dump()
    routed = await _routed_name(request, asked.name, tables, router, who)
    if routed is not None:
        body = {"model": routed, "input": list(asked.texts), "dimensions": asked.dimensions}
        made = await router.embed(body, who)
        told = {"model": str(made["model"]), "node": str(made["node"])}
        vectors = [list(vector) for vector in made["vectors"]]
        return Embedded(vectors, int(made["tokens"]), told, float(made.get("seconds") or 0))
    model = await model_for(request, tables.in_use, {"model": asked.name}, who)
    vectors, tokens = await embedded(request, model, asked.texts, asked.dimensions, user)
    return Embedded(vectors, tokens, {})


async def _routed_name(
    request: Any, name: str, tables: AliasTables, router: Any, user: Mapping[str, Any]
) -> str | None:
    """The router's name, where its nodes are to be asked; None: they are not."""
    if router is None:
        return None
    found = await direct_name(request, tables.router, name, user)
    if found is not None:
        return found.id
    if not await is_unknown(request, name, user):
        return None
    try:
        model = await model_for(request, tables.in_use, {"model": name}, user)
    except ModelClosedError:
        return ROUTER + name  # a node may have it: Open WebUI lists only models that chat
    return model if model.startswith(ROUTER) else None


def openai_vectors(asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/v1/embeddings`."""
    data = [
        {"object": "embedding", "index": at, "embedding": _packed(vector) if asked.is_base64 else vector}
        for at, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    routed = {"ollama_pack": dict(made.routed)} if made.routed else {}
    return {"object": "list", "data": data, "model": asked.name, "usage": usage, **routed}


def ollama_vectors(asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/api/embed`."""
    return {"model": asked.name, "embeddings": made.vectors, "prompt_eval_count": made.tokens}


def ollama_vector(_asked: TextsAsked, made: Embedded) -> Body:
    """The answer of `/api/embeddings`."""
    return {"embedding": made.vectors[0]}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
