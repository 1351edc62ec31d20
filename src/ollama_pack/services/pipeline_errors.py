"""The status of an error on the Pipelines server, which leaves no room for it.

The server sends the status 200 of a stream before it asks a pipeline, and makes `{"detail": …}` of what one
raises. A route in front of its own sends an error that comes before the answer as OpenAI's API does.
"""

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import orjson

from ollama_pack.engines.front_route import (
    AsgiMessage,
    AsgiSend,
    path_of,
    put_in_front,
    refusal_messages,
    take_from_front,
)
from ollama_pack.engines.refusals import Refusal
from ollama_pack.services.pipeline_siblings import SERVER_MODULE

ERROR_ROUTE = "ollama_pack:errors of pipelines"
_CHAT_PATHS = frozenset({"/chat/completions", "/v1/chat/completions"})
_EVENT = b"data:"
_REFUSAL_KEYS = frozenset({"message", "code", "param", "status", "retry_after"})
_STATUSES = range(HTTPStatus.BAD_REQUEST, 600)

_by_the_route: ContextVar[bool] = ContextVar(
    "by_the_route", default=False
)  # the server's threads have it, too


def show_statuses() -> None:
    """Put the route in front of the server's own; nothing where another server runs the pipeline."""
    if (app := _server()) is not None:
        put_in_front(app, ERROR_ROUTE, lambda scope: path_of(scope) in _CHAT_PATHS, _HeldBack)


def hide_statuses() -> None:
    """Take the route away."""
    if (app := _server()) is not None:
        take_from_front(app, ERROR_ROUTE)


def gives_statuses() -> bool:
    """Whether an error that is the body of this request's answer gets its status: it came by the route."""
    return _by_the_route.get()


def _server() -> Any:
    return getattr(sys.modules.get(SERVER_MODULE), "app", None)


class _HeldBack:
    """The way of one answer to its client; its start waits for the first bytes."""

    def __init__(self, _scope: Mapping[str, Any], send: AsgiSend) -> None:
        _by_the_route.set(True)
        self._send = send
        self._start: AsgiMessage | None = None
        self._is_refused = False

    async def send(self, message: AsgiMessage) -> None:
        if self._is_refused:
            return
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            self._start = message
            return
        if self._start is not None:
            if refusal := early_refusal(bytes(message.get("body") or b"")):
                self._is_refused = True
                for part in refusal_messages(refusal, "openai"):
                    await self._send(part)
                return
            await self._send(self._start)
            self._start = None
        await self._send(message)


def early_refusal(beginning: bytes) -> Refusal | None:
    """The error that a body begins with; None: it begins with something else, or with another's error."""
    first = beginning.split(b"\n", 1)[0].removeprefix(_EVENT)
    try:
        found = orjson.loads(first)
    except orjson.JSONDecodeError:
        return None
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict) or not error.keys() >= _REFUSAL_KEYS or error["status"] not in _STATUSES:
        return None
    return Refusal(**{name: error[name] for name in _REFUSAL_KEYS})
