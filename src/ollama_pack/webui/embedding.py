"""Vectors and model facts over Open WebUI's own connections. Imports `open_webui` when called, not before."""

from collections.abc import Sequence
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.engines.refusals import Refusal
from ollama_pack.webui.calling import BAD_GATEWAY, BAD_REQUEST, refusal_in
from ollama_pack.webui.errors import ModelRefusedError

UNKNOWN_MODEL: dict[str, Any] = {"details": {}, "model_info": {}, "capabilities": ["completion"]}


async def embedded(
    request: Any, model: str, texts: Sequence[str], dimensions: int, user: Any
) -> tuple[list[list[float]], int]:
    """A vector for each text, and the tokens of all: Open WebUI checks access and asks its connection.

    Raises:
        ModelRefusedError: there are none.
    """
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI
    from open_webui.utils.embeddings import generate_embeddings  # noqa: PLC0415 - see the top of this module

    wanted = {"dimensions": dimensions} if dimensions else {}
    body = {"model": model, "input": list(texts), **wanted}
    try:
        answer = await generate_embeddings(request, body, user)
    except HTTPException as error:
        raise ModelRefusedError(refusal_in(error.detail, error.status_code, error.headers)) from error
    except Exception as error:  # Open WebUI's own way to say that it will not
        raise ModelRefusedError(Refusal(BAD_REQUEST, str(error))) from error
    entries = object_at(answer).get("data")
    vectors = [object_at(entry).get("embedding") for entry in entries or ()]
    if len(vectors) != len(texts) or not all(isinstance(vector, list) for vector in vectors):
        raise ModelRefusedError(
            Refusal(BAD_GATEWAY, message("The model gave no vector for some of the texts."))
        )
    tokens = object_at(answer, "usage").get("prompt_tokens")
    return vectors, tokens if isinstance(tokens, int) else 0  # type: ignore[return-value] # checked above


async def shown_by_connection(request: Any, model: str, user: Any) -> dict[str, Any]:
    """What Open WebUI's Ollama connection knows of a model; of others only that they chat."""
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI
    from open_webui.routers import ollama  # noqa: PLC0415

    try:
        told = await ollama.show_model_info(request, ollama.ModelNameForm(model=model), user)
    except HTTPException:
        return UNKNOWN_MODEL
    return {name: value for name, value in object_at(told).items() if name not in {"modelfile", "tensors"}}
