"""An answer as clients of OpenAI's API take it, and the one place that says which error they get."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.base.messages import Message, message, said_by
from ollama_pack.cache.errors import LeaderLostError
from ollama_pack.engines.errors import (
    ChatBodyError,
    ModelNotFoundError,
    NodeBusyError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
)
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.engines.refusals import Refusal
from ollama_pack.engines.sse import LAST_EVENT, event_text
from ollama_pack.errors import PackError
from ollama_pack.routing.errors import (
    AnswerBrokenError,
    NoAnswerError,
    NoNodeError,
    QueueFullError,
    RequestFailsError,
    RoutingError,
    WaitedTooLongError,
)
from ollama_pack.webui.errors import ModelClosedError

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 10  # after which a node may be up or free again; clients wait for that long

_NODES_SILENT = message(
    "The computers that run this model do not answer at the moment. Try again in a minute, or choose another "
    "model."
)
_NOT_HERE = message(
    "This model is not installed on any computer here. Choose another model, or ask an admin."
)
_NO_ALIAS = message("No model behind this name can be used. Choose another model, or ask an admin.")
_TOO_BUSY = message("This model has too much to do. Try again in a minute, or choose another model.")
_TOO_SLOW = message(
    "This model did not begin to answer in time. Try again in a minute, or choose another model."
)
_FAILED = message("This model failed to answer. Try again in a minute, or choose another model.")
_UNANSWERABLE = message("The model fails at this request every time. Change it, or choose another model.")
_REFUSED = message("The model cannot answer this request. Change it, or choose another model.")
_CUT_OFF = message("The answer broke off and is incomplete. Generate it again.")
_UNFORESEEN = message("The answer failed unexpectedly. Try again. Admins find the cause in the server's log.")

_Meaning = tuple[int, str | None, Message]  # status, code, sentence for people who cannot change the nodes
_NO_CANDIDATE: _Meaning = (HTTPStatus.NOT_FOUND, "model_not_found", _NO_ALIAS)


async def answer_events(
    chunks: AsyncGenerator[dict[str, Any], None], refused: Callable[[Exception], Refusal]
) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them.

    Args:
        chunks: the answer.
        refused: what an error means to this client; called before the error is sent.
    """
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            yield event_text(refused(error).body())
    yield LAST_EVENT


def refusal_of(error: Exception, *, for_admin: bool) -> Refusal:
    """The status, the code and the sentence for an error. What is not the pack's own goes to the log.

    Args:
        error: one of the pack's, or any other.
        for_admin: the sentence says which node did what, and how to put it right.
    """
    if not isinstance(error, PackError):
        log.error("A chat was not answered", exc_info=error)
        return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, _UNFORESEEN, "internal_error")
    status, code, sentence = _meaning(error)
    waiting_helps = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    return Refusal(
        status=status,
        message=said_by(error) if for_admin else sentence,
        code=code,
        param=_param(error),
        retry_after=RETRY_AFTER_SECONDS if waiting_helps else None,
    )


def passed_refusal(error: Exception, *, for_admin: bool) -> Refusal:
    """As `refusal_of`, for errors of other plugins too, which have classes of their own."""
    if (found := getattr(error, "refusal", None)) is not None:
        return Refusal(**{field.name: getattr(found, field.name) for field in fields(Refusal)})
    if type(error).__name__ == LeaderLostError.__name__:
        error = LeaderLostError(0)
    return refusal_of(error, for_admin=for_admin)


def alias_refusal(error: AliasUnavailableError, *, for_admin: bool) -> Refusal:
    """As `refusal_of`, for a plugin that raises no other error and should not ship the router's."""
    status, code, sentence = _NO_CANDIDATE
    said = said_by(error) if for_admin else sentence
    return Refusal(status=status, message=said, code=code, param="model")


def _param(error: PackError) -> str | None:
    if isinstance(error, ChatBodyError):
        return None if isinstance(error.field, Message) else error.field  # a sentence names no field
    is_model = isinstance(error, NoNodeError | AliasUnavailableError | ModelNotFoundError | ModelClosedError)
    return "model" if is_model else None


def _meaning(error: PackError) -> _Meaning:  # noqa: PLR0911 - a line for each kind
    match error:
        case ChatBodyError():
            return HTTPStatus.BAD_REQUEST, None, said_by(error)
        case RequestRefusedError() if said := error.said.replace("`", "'"):
            why = message("The model cannot answer this request: {reason}", reason=said)
            return _client_status(error), None, why
        case RequestRefusedError():
            return _client_status(error), None, _REFUSED
        case ModelClosedError():
            return HTTPStatus.NOT_FOUND, "model_not_found", said_by(error)
        case AliasUnavailableError() | ModelNotFoundError():
            return _NO_CANDIDATE
        case AnswerBrokenError() | LeaderLostError():
            return HTTPStatus.BAD_GATEWAY, "answer_broken", _CUT_OFF
        case RequestFailsError():
            return HTTPStatus.BAD_REQUEST, "request_failed", _UNANSWERABLE
        case NoAnswerError():
            return _meaning_of_failures(error)
        case RoutingError():
            return _meaning_of_waiting(error)
    return HTTPStatus.BAD_GATEWAY, None, _FAILED


def _meaning_of_waiting(error: RoutingError) -> _Meaning:
    """Of what goes wrong before any node is asked."""
    match error:
        case NoNodeError() if error.nodes and not error.silent:
            return HTTPStatus.NOT_FOUND, "model_not_found", _NOT_HERE
        case QueueFullError():
            status = HTTPStatus.TOO_MANY_REQUESTS if error.own else HTTPStatus.SERVICE_UNAVAILABLE
            sentence = message("Too many questions are waiting. Try again in a minute.")
            if error.own:
                sentence = message(
                    "Too many questions are waiting, {own} of them yours. Try again in a minute.",
                    own=error.own,
                )
            return status, "queue_full", sentence
        case WaitedTooLongError():
            sentence = message(
                "No computer was free for this model within {seconds:g} seconds. Try again in a minute, or "
                "choose another model.",
                seconds=error.seconds,
            )
            return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_busy", sentence
    return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_down", _NODES_SILENT


def _meaning_of_failures(error: NoAnswerError) -> _Meaning:
    """Of what went wrong at several nodes: what matters is whether waiting helps."""
    failures = list(error.failures.values())
    if all(isinstance(failure, ModelNotFoundError) for failure in failures):
        return HTTPStatus.NOT_FOUND, "model_not_found", _NOT_HERE
    if any(isinstance(failure, NodeBusyError) for failure in failures):
        return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_busy", _TOO_BUSY
    if any(isinstance(failure, NodeUnreachableError) for failure in failures):
        return HTTPStatus.SERVICE_UNAVAILABLE, "nodes_down", _NODES_SILENT
    if all(isinstance(failure, NodeTimeoutError) for failure in failures):
        return HTTPStatus.GATEWAY_TIMEOUT, "timeout", _TOO_SLOW
    return HTTPStatus.BAD_GATEWAY, "nodes_failed", _FAILED


def _client_status(error: RequestRefusedError) -> int:
    """The node's own where it is one of the client's errors: 413 or 422 say more than 400."""
    status = error.status or HTTPStatus.BAD_REQUEST
    client_errors = range(HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
    return status if status in client_errors else HTTPStatus.BAD_REQUEST


def whole_answer(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion that all chunks make up, with what they say of the node that answered."""
    made = completion_of(chunks)
    routed = next((chunk["ollama_pack"] for chunk in reversed(chunks) if "ollama_pack" in chunk), None)
    return made | ({"ollama_pack": routed} if routed else {})
