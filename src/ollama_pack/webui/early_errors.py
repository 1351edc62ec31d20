"""The status of an error that comes before an answer, which Open WebUI leaves no room for.

Open WebUI sends the status 200 of a stream before it asks a pipe, makes 400 of whatever a filter raises, and
an empty message of a pipe's error where the client speaks Anthropic's API. So a route stands in front of its
own: it holds the first bytes of an answer back until they are the answer's, and sends the error in their
place where a plugin has noted one on the request. Open WebUI does the same with its own connections: it waits
for the engine's status before it sends one.

Notes are plain values, as each plugin has a copy of this code. Imports Open WebUI when called, not before.
"""

import re
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import orjson

from ollama_pack.engines.body import object_at
from ollama_pack.engines.front_route import (
    AsgiMessage,
    AsgiReceive,
    AsgiScope,
    AsgiSend,
    path_of,
    put_in_front,
    refusal_messages,
    send_start,
)
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.webui.leaving import Leaving

ROUTE_NAME = "ollama_pack:early errors"
REFUSAL_NOTE = "ollama_pack_refusal"  # key in the state of a request
OUTCOME_NOTE = "ollama_pack_outcome"  # likewise
_REFUSAL_FIELDS = ("status", "message", "code", "param", "retry_after")
_CHAT_FORMS: dict[str, ApiForm] = {
    "/api/chat/completions": "openai",
    "/api/v1/chat/completions": "openai",
    "/api/message": "anthropic",
    "/api/v1/messages": "anthropic",
}
_FIRST_ERROR = 400
_ANSWER_FIELDS = ("choices", "output", "content", "usage")  # of which each API's answers have one
# What Open WebUI 0.11.2 sends first in Anthropic's form where its pipe gave an error, which it drops.
_EMPTY_ENDS = frozenset({"message_delta", "message_stop"})

_WHOLE_END = re.compile(rb'"type": ?"message_(?:delta|stop)"')


def note_refusal(request: Any, refusal: Refusal, metadata: Mapping[str, Any]) -> None:
    """Note why a request is not answered, or no further.

    Titles and the like are no request of the client's, and a page gets its answer another way.
    """
    is_page = bool(metadata.get("session_id") and metadata.get("chat_id"))
    if not metadata.get("task") and not is_page:
        setattr(request.state, REFUSAL_NOTE, {name: getattr(refusal, name) for name in _REFUSAL_FIELDS})


def noted_refusal(state: Mapping[str, Any]) -> Refusal | None:
    """What a plugin has noted on a request, by the state in its scope; None: nothing."""
    noted = state.get(REFUSAL_NOTE)
    return Refusal(**noted) if noted else None


def awaited_outcome(request: Any) -> dict[str, Any]:
    """How a request ends, which is noted here before its task is over.

    Returns:
        `usage`: a whole answer went to the client, with these figures. `left`: the client left before that.
    """
    outcome: dict[str, Any] = {}
    setattr(request.state, OUTCOME_NOTE, outcome)
    return outcome


def note_answer(state: Mapping[str, Any], answer: object) -> None:
    """Note a whole answer, which Open WebUI shows to no filter where it has no text."""
    found, outcome = object_at(answer), state.get(OUTCOME_NOTE)
    if outcome is not None and any(found.get(name) for name in _ANSWER_FIELDS):
        outcome["usage"] = {**object_at(found.get("usage")), **object_at(found.get("timings"))}


def note_left(state: Mapping[str, Any]) -> None:
    """Note that the client has left before it had all of its answer."""
    if (outcome := state.get(OUTCOME_NOTE)) is not None:
        outcome["left"] = True


def refused_answer(refusal: Refusal) -> Any:
    """What a pipe returns where no stream is wanted: the one form in which Open WebUI passes a status on.

    Of an exception that a pipe raises, and of a body with an error in it, it makes 200.
    """
    from fastapi import HTTPException  # noqa: PLC0415 - it comes with Open WebUI

    async def parts() -> AsyncGenerator[str, None]:
        raise HTTPException(refusal.status, refusal.message, refusal.headers)
        yield ""  # makes it a generator, which Open WebUI goes through where it catches nothing

    return parts()


def show_early_errors() -> None:
    """Put the route in front of Open WebUI's own, in place of one that another plugin has put there."""
    app = getattr(sys.modules.get("open_webui.main"), "app", None)
    if app is not None:
        put_in_front(app, ROUTE_NAME, _CHAT_FORMS, _held_back)


async def _held_back(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    held = HeldBack(scope, send)
    await tell_leaving(scope, receive, held.send, behind)
    await held.end()


async def tell_leaving(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, behind: Any) -> None:
    """Have a request answered that stops once its client has left, and note that it did."""
    leaving = Leaving()
    try:
        await behind(partial(leaving.receive, receive), partial(leaving.send, send))
    finally:
        if leaving.before_the_end:
            note_left(scope.get("state") or {})
        leaving.end()


def _form_of(scope: Mapping[str, Any]) -> ApiForm | None:
    return _CHAT_FORMS.get(path_of(scope))


class HeldBack:
    """The way of one answer to its client, whose beginning waits until it is known to be an answer."""

    def __init__(self, scope: Mapping[str, Any], send: Any) -> None:
        self._scope = scope
        self._send = send
        self._held: list[AsgiMessage] = []
        self._way: Literal["held", "open", "refused"] = "held"

    async def send(self, message: AsgiMessage) -> None:
        """Take a message of the server's."""
        if self._way == "refused":
            return
        if self._way == "held":
            self._held.append(message)
            if message["type"] == "http.response.start":
                return
            kind = self._kind(message)
            if kind == "error" and self._noted:
                self._way = "refused"
                await self._refuse(self._noted)
                return
            if kind == "prelude" and message.get("more_body"):
                return
            if kind == "answer" and not message.get("more_body") and self._noted is None:
                self._note_answer(bytes(message.get("body") or b""))
            await self._let_pass()
            return
        await self._send(message if self._noted is None else self._with_error(message, self._noted))

    async def end(self) -> None:
        """The server sends no more. It waits for a start even where its client has left before an answer."""
        if self._held and self._way == "held":
            await self._let_pass()

    async def _let_pass(self) -> None:
        self._way = "open"
        start, *others = self._held
        await send_start(self._send, start)
        for held in others:
            await self._send(held)
        self._held.clear()

    def _note_answer(self, body: bytes) -> None:
        state = self._scope.get("state") or {}
        if OUTCOME_NOTE in state:
            with suppress(orjson.JSONDecodeError):
                note_answer(state, orjson.loads(body))

    @property
    def _noted(self) -> Refusal | None:
        return noted_refusal(self._scope.get("state") or {})

    def _with_error(self, message: AsgiMessage, refusal: Refusal) -> AsgiMessage:
        """The end of an answer that broke off, with its error.

        In Anthropic's form Open WebUI 0.11.2 drops the error, and ends the answer as if it was whole.
        """
        body = bytes(message.get("body") or b"")
        if _form_of(self._scope) != "anthropic" or not _WHOLE_END.search(body):
            return message
        event = b"event: error\ndata: " + orjson.dumps(refusal.body("anthropic")) + b"\n\n"
        return {**message, "body": event}

    def _kind(self, message: AsgiMessage) -> Literal["prelude", "answer", "error"]:
        if self._held[0].get("status", 0) >= _FIRST_ERROR:
            return "error"
        return kind_of(bytes(message.get("body") or b""))

    async def _refuse(self, refusal: Refusal) -> None:
        for message in refusal_messages(refusal, _form_of(self._scope) or "openai"):
            await self._send(message)


def kind_of(body: bytes) -> Literal["prelude", "answer", "error"]:
    """What the beginning of a body is: an error, a part of an answer, or what comes before both.

    Before an answer Open WebUI sends sources and the like, and Anthropic's `message_start`.
    """
    events = [line.removeprefix(b"data:") for line in body.splitlines() if line.startswith(b"data:")]
    for event in events or [body]:
        found: Any = None
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(event)
        if not isinstance(found, dict):
            return "answer"
        if found.get("error"):
            return "error"
        if found.get("type") in _EMPTY_ENDS:
            return "error"
        if not events or found.get("choices") or found.get("type") not in {None, "message_start", "ping"}:
            return "answer"
    return "prelude"
