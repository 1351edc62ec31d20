"""
title: Response cache replay
author: Open WebUI Ollama Pack
description: Gives the answers that response_cache_filter has found. It is no model to chat with.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from ollama_pack.engines.event_text import LAST_EVENT, event_text
from ollama_pack.engines.ollama.stream import usage_place
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.services.cache_state import STATE
from ollama_pack.webui.calling import ModelCall
from ollama_pack.webui.errors import ModelRefusedError
from ollama_pack.webui.streams import event_stream, json_response

log = logging.getLogger(__name__)

REFUSAL = (
    "response_cache_replay is no model to chat with: response_cache_filter sends chats through it, to give "
    "answers of the cache. Choose another model."
)
LOST = "The answer that the response cache was to give is not there any more: regenerate it."

Body = dict[str, Any]


class Pipe:
    """Gives a chat the answer that the filter has found for it, or has its model generate and shares that."""

    async def pipe(
        self, body: Body, __user__: dict[str, Any], __metadata__: dict[str, Any], __request__: Any
    ) -> Any:
        """Answer a chat that the filter has sent. An error here becomes the answer's error."""
        state = __metadata__.get(STATE) or {}
        if "model" not in state:
            return _refused(body, 400, _failure(REFUSAL))
        call = ModelCall(
            __request__,
            {**body, "model": state["model"], "metadata": __metadata__},
            {name: value for name, value in __user__.items() if name != "valves"},
            has_system=state["rounds"] > 1,
        )
        pending = _claimed(state, __request__)
        if body.get("stream"):
            return event_stream(_events(_chunks(pending, call)))
        try:
            if pending is None:
                return await call.completion()
            return await pending.completion(_head(pending.named), call.completion, call.streamed)
        except ModelRefusedError as error:
            return _refused(body, error.status, error.body)
        except Exception as error:
            log.exception("An answer of the response cache could not be given")
            return _refused(body, 502, _failure(str(error) or LOST))


def _claimed(state: Mapping[str, Any], request: Any) -> Any:
    """What the filter has found; None where it was replaced or switched off since: the model answers then."""
    found = request.app.state.FUNCTIONS.get(state.get("filter"))
    claim = getattr(found, "claim", None)
    return claim(str(state.get("ticket") or "")) if claim else None


def _chunks(pending: Any, call: ModelCall) -> AsyncGenerator[Body, None]:
    if pending is None:
        return call.chunks()
    chunks: AsyncGenerator[Body, None] = pending.chunks(
        _head(pending.named), call.chunks, usage_place(call.body)
    )
    return chunks


def _head(model: str) -> ReplyHead:
    return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), model)


async def _events(chunks: AsyncGenerator[Body, None]) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them, as the client has the status 200 already."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except ModelRefusedError as error:
            yield event_text(error.body)
        except Exception as error:
            log.exception("An answer of the response cache ended half-way")
            yield event_text(_failure(str(error) or LOST))
    yield LAST_EVENT


def _refused(body: Body, status: int, failure: Body) -> Body | Any:
    """An error, with its status where the client has none yet."""
    return failure if body.get("stream") else json_response(failure, status)


def _failure(sentence: str) -> Body:
    return {"error": {"message": sentence, "detail": sentence, "type": "invalid_request_error"}}
