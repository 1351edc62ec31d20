"""An answer as clients of OpenAI's API take it: server-sent events, errors included."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.engines.errors import ChatBodyError, ModelNotFoundError, RequestRefusedError
from ollama_pack.engines.event_text import LAST_EVENT, event_text
from ollama_pack.engines.ollama.to_openai import openai_error
from ollama_pack.errors import PackError
from ollama_pack.routing.errors import NoNodeError, RequestFailsError
from ollama_pack.webui.errors import ModelClosedError


async def answer_events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them, as the client has the status 200 already."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except PackError as error:
            yield event_text(failure_body(error))
    yield LAST_EVENT


def failure_body(error: PackError) -> dict[str, Any]:
    """An error as OpenAI has it, and under the name by which Open WebUI looks for its sentence."""
    body = openai_error(error)
    return {"error": {**body["error"], "detail": str(error)}}


def failure_status(error: PackError) -> int:
    """The HTTP status of an answer that has failed before it began."""
    match error:
        case ChatBodyError() | RequestFailsError():
            return HTTPStatus.BAD_REQUEST
        case RequestRefusedError():
            return error.status or HTTPStatus.BAD_REQUEST
        case NoNodeError() | AliasUnavailableError() | ModelNotFoundError() | ModelClosedError():
            return HTTPStatus.NOT_FOUND
    return HTTPStatus.SERVICE_UNAVAILABLE
