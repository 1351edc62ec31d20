"""Which typed error an answer or a failure of a node is. Nothing here shows a password."""

import json
import math
import re
from collections.abc import Iterator, Mapping

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeBusyError,
    NodeError,
    NodeFaultError,
    RequestRefusedError,
)

SAID_CHARACTERS = 300
QUOTE, FOREIGN_QUOTE = 12, 6  # characters in a row that are no accident: of English, and of other scripts
SEARCHED_CHARACTERS = 200_000  # of a conversation; a longer one is compared less closely

_CREDENTIALS = re.compile(r"(?<=//)[^/?#]*@")
_BUSY = frozenset({429, 503})
# What says something about the node or the way to it, not about the request.
_FAULTS = frozenset({401, 403, 405, 407, 408})
_FIRST_CLIENT_ERROR, _FIRST_SERVER_ERROR = 400, 500
_STATUS_NOT_FOUND = 404


def node_name(url: str) -> str:
    """A node's address as it may be shown: without user name, password, query and fragment."""
    return re.split(r"[?#]", _CREDENTIALS.sub("", url), maxsplit=1)[0].rstrip("/")


def retry_seconds(header: str) -> float | None:
    """What `Retry-After` says in seconds; None where it says nothing, or a date."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def status_error(node: str, status: int, answer: bytes, model: str) -> NodeError:
    """The error that an answer with a status other than 200 stands for.

    Args:
        node: as `node_name` gives it.
        status: HTTP status of the answer.
        answer: its body, or the beginning of it.
        model: the model that was asked for.
    """
    said = said_in(answer)
    if status in _BUSY:
        return NodeBusyError(node, status, said)
    if status == _STATUS_NOT_FOUND and "not found" in said and "model" in said:
        return ModelNotFoundError(node, model, said)
    is_request = _FIRST_CLIENT_ERROR <= status < _FIRST_SERVER_ERROR
    if is_request and status not in _FAULTS and status != _STATUS_NOT_FOUND:
        return RequestRefusedError(node, status, said)
    reason = message("answers with status {status}", status=status)
    if _is_page(answer):
        reason = message(
            "answers with status {status} and a web page: something in front of it answers", status=status
        )
    return NodeFaultError(node, reason, status=status, said=said)


def said_in(answer: bytes) -> str:
    """The message in an answer: its `error`, else its text, shortened; empty for a web page."""
    if _is_page(answer):
        return ""
    text = answer.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError, RecursionError):
        said = text
    return shortened(said if isinstance(said, str) else text)


def _is_page(answer: bytes) -> bool:
    return answer.lstrip()[:1] == b"<"


def without_quotes(said: str, messages: object) -> str:
    """A node's message up to where it repeats the conversation, as llama.cpp's and pydantic's do.

    Args:
        said: the message, as `shortened` gives it.
        messages: of the request.
    """
    if not said:
        return said
    texts = [" ".join(text.split()) for text in _texts_in(messages)]
    spoken = "\0".join([*texts, *(json.dumps(text) for text in texts if not text.isascii())])
    step = min(max(1, len(spoken) // SEARCHED_CHARACTERS), QUOTE)
    for start in range(0, len(said), step):
        size = QUOTE if said[start : start + FOREIGN_QUOTE].isascii() else FOREIGN_QUOTE
        part = said[start : start + size]
        if len(part) == size and part in spoken:
            return f"{said[: max(0, start - step + 1)].rstrip()}…"
    return said


def _texts_in(value: object) -> Iterator[str]:
    """Each text in a conversation, without pictures and sound."""
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in {"role", "type"}:
                yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def shortened(text: str) -> str:
    """A message on one line and of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SAID_CHARACTERS else line[: SAID_CHARACTERS - 1] + "…"
