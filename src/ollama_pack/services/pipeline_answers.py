"""What the Pipelines server leaves out of OpenAI's API: errors have a status, and "no stream" is the default.

The server sends the status 200 of a stream before it asks a pipeline, makes `{"detail": …}` of what one
raises, and streams where a client says nothing of it. A route in front of its own holds back the beginning of
what `gpu_router` answers, and sends an error that comes before the answer as OpenAI's API does. Chats with
other pipelines go through as they are.
"""

import sys
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import orjson

from ollama_pack.engines.front_route import (
    AsgiMessage,
    AsgiReceive,
    AsgiScope,
    AsgiSend,
    put_in_front,
    refusal_messages,
    send_start,
    take_from_front,
)
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.refusals import Refusal
from ollama_pack.services.pipeline_requests import SERVER_MODULE

ROUTE = "ollama_pack:answers"
_CHAT_PATHS = ("/chat/completions", "/v1/chat/completions")
_REFUSAL_KEYS = frozenset({"message", "code", "param", "status", "retry_after"})
_STATUSES = range(HTTPStatus.BAD_REQUEST, 600)


def put_route() -> None:
    """Put the route in front of the server's own; nothing where another server runs the pipeline."""
    if (app := _server()) is not None:
        put_in_front(app, ROUTE, _CHAT_PATHS, _held_back)


def take_route() -> None:
    """Take the route away."""
    if (app := _server()) is not None:
        take_from_front(app, ROUTE)


def gives_status() -> bool:
    """Whether a refusal that is the whole body of this request's answer gets its status. It will, then."""
    if held := _this_request.get():
        held.is_ours = True
    return held is not None


def _server() -> Any:
    return getattr(sys.modules.get(SERVER_MODULE), "app", None)


class _HeldBack:
    """The way of one request and its answer.

    Attributes:
        is_ours: the start of the answer waits for its first bytes.
    """

    def __init__(self, receive: AsgiReceive, send: AsgiSend) -> None:
        self._receive = receive
        self._send = send
        self.is_ours = False
        self._asked: list[bytes] | None = []  # the request's body until it is whole
        self._start: AsgiMessage | None = None
        self._is_refused = False

    async def receive(self) -> AsgiMessage:
        """The body in one piece, as the server wants it anyway; after it what comes."""
        while (message := await self._receive())["type"] == "http.request" and self._asked is not None:
            self._asked.append(message.get("body") or b"")
            if not message.get("more_body"):
                body, self._asked = b"".join(self._asked), None
                return {"type": "http.request", "body": self._understood(body), "more_body": False}
        return message

    def _understood(self, body: bytes) -> bytes:
        """The body as the pipeline is to get it."""
        try:
            chat = orjson.loads(body)
        except orjson.JSONDecodeError:
            return body  # the server says what is wrong
        self.is_ours = isinstance(chat, dict) and str(chat.get("model")).startswith(ROUTER)
        if not self.is_ours or chat.get("stream") is not None:
            return body
        return orjson.dumps({**chat, "stream": False})

    async def send(self, message: AsgiMessage) -> None:
        if self._is_refused:
            return
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK and self.is_ours:
            self._start = message
            return
        if self._start is not None:
            if refusal := early_refusal(bytes(message.get("body") or b"")):
                self._is_refused = True
                for part in refusal_messages(refusal, "openai"):
                    await self._send(part)
                return
            await self.end()
        await self._send(message)

    async def end(self) -> None:
        """The server sends no more. It waits for a start even where its client has left before an answer."""
        if self._start is not None and not self._is_refused:
            await send_start(self._send, self._start)
            self._start = None


# Also in the server's threads, which a request's context goes along with.
_this_request: ContextVar[_HeldBack | None] = ContextVar("this_request", default=None)


async def _held_back(_scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    held = _HeldBack(receive, send)
    _this_request.set(held)
    await behind(held.receive, held.send)
    await held.end()


def early_refusal(beginning: bytes) -> Refusal | None:
    """The error that a body begins with; None: it begins with something else, or with another's error."""
    first = beginning.split(b"\n", 1)[0].removeprefix(b"data:")
    try:
        found = orjson.loads(first)
    except orjson.JSONDecodeError:
        return None
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict) or not error.keys() >= _REFUSAL_KEYS or error["status"] not in _STATUSES:
        return None
    return Refusal(**{name: error[name] for name in _REFUSAL_KEYS})
