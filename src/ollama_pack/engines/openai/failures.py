"""Which typed error a refusal of an OpenAI-compatible engine is: the words differ from one to the next."""

import json
import re
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import ModelNotFoundError, NodeError, RequestRefusedError
from ollama_pack.engines.failures import said_in, shortened, status_error

SERVE_IT = message("start the engine there with it, or name a model that it serves")

# vLLM and OpenAI say that "The model `x` does not exist", llama.cpp "model 'x' not found" or "model is not
# loaded", LiteLLM "Invalid model name passed in". Only a sentence that begins so is about the model.
_NO_MODEL = re.compile(
    r"\W*(?:the )?model\b.*\b(?:not found|does not exist|not loaded)|.*\binvalid model name",
    re.IGNORECASE | re.DOTALL,
)
# llama.cpp says with 500 that a model cannot see or hear.
_CANNOT_TAKE = re.compile(r"\b(?:image|audio|video|multimodal)\b.*\bnot supported", re.IGNORECASE | re.DOTALL)
_BAD_REQUEST, _NOT_FOUND, _SERVER_ERROR = 400, 404, 500
_CLIENT_ERRORS = range(400, 500)


def engine_status_error(node: str, status: int, answer: bytes, model: str) -> NodeError:
    """The error that an answer with a status other than 200 stands for. As `status_error` has it."""
    said = engine_said_in(answer)
    if status in {_BAD_REQUEST, _NOT_FOUND} and _NO_MODEL.match(said):
        return ModelNotFoundError(node, model, said, SERVE_IT)
    if status == _SERVER_ERROR and _CANNOT_TAKE.search(said):
        return RequestRefusedError(node, status, said)
    return status_error(node, status, json.dumps({"error": said}).encode(), model)


def event_status(event: dict[str, Any]) -> int | None:
    """The status that an error in a stream would have had before it, where it is the request's fault."""
    error = event.get("error", event)
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code in _CLIENT_ERRORS else None


def engine_said_in(answer: bytes) -> str:
    """The message in an answer: in `error` as OpenAI has it, in `message` or in FastAPI's `detail`."""
    try:
        value = json.loads(answer.decode(errors="replace"))
    except (ValueError, RecursionError):
        return said_in(answer)
    found = message_in(value)
    return shortened(found) if found else said_in(answer)


def message_in(value: object, depth: int = 0) -> str:
    """The first text under one of the names that engines have for it; empty where there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # FastAPI's list of what is wrong
        places = [" ".join(map(str, item.get("loc", ()))) for item in value if isinstance(item, dict)]
        texts = [str(item.get("msg", "")) for item in value if isinstance(item, dict)]
        return "; ".join(f"{place}: {text}" for place, text in zip(places, texts, strict=True))
    if not isinstance(value, dict) or depth > 1:
        return ""
    found = (message_in(value[name], depth + 1) for name in ("error", "message", "detail") if name in value)
    return next((text for text in found if text), "")
