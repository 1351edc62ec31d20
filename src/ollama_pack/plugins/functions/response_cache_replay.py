"""
title: Response cache replay
author: Open WebUI Ollama Pack
author_url: {repository}
description: Gives the answers that response_cache_filter finds. Not a model to chat with.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from ollama_pack.base.messages import message
from ollama_pack.engines.ollama.stream import usage_place
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.refusals import Refusal
from ollama_pack.services.answers import answer_events, passed_refusal
from ollama_pack.services.cacheable import STATE
from ollama_pack.webui.calling import ModelCall
from ollama_pack.webui.early_errors import note_refusal, refused_answer, show_early_errors
from ollama_pack.webui.errors import ModelRefusedError
from ollama_pack.webui.server import event_stream
from ollama_pack.webui.users import reader_language

NOT_A_MODEL = Refusal(
    400,
    message(
        "response_cache_replay is not a chat model: response_cache_filter sends chats "
        "through it, to give cached answers. Choose another model."
    ),
    param="model",
)

Body = dict[str, Any]


class Pipe:
    """Gives a chat the answer that the filter has found for it, or has its model generate and shares that."""

    def __init__(self) -> None:
        show_early_errors()

    async def pipe(
        self, body: Body, __user__: dict[str, Any], __metadata__: dict[str, Any], __request__: Any
    ) -> Any:
        """Answer a chat that the filter has sent. An error here becomes the answer's error."""

        def refused(error: Exception) -> Refusal:
            language = reader_language(__metadata__, __request__)
            for_admin = __user__.get("role") == "admin"
            refusal = passed_refusal(error, for_admin=for_admin).translated(language)
            note_refusal(__request__, refusal, __metadata__)
            return refusal

        state = __metadata__.get(STATE) or {}
        call = ModelCall(
            __request__,
            {**body, "model": state.get("model"), "metadata": __metadata__},
            {name: value for name, value in __user__.items() if name != "valves"},
            has_system=state.get("rounds", 0) > 1,
        )
        pending = _claimed(state, __request__)
        if body.get("stream"):
            return event_stream(answer_events(_chunks(pending, call), refused))
        try:
            return await _completion(pending, call)
        except Exception as error:  # noqa: BLE001 - the boundary to the server, which would show its words
            return refused_answer(refused(error))


def _claimed(state: Mapping[str, Any], request: Any) -> Any:
    """What the filter has found; None where it was replaced or switched off since: the model answers then."""
    found = request.app.state.FUNCTIONS.get(state.get("filter"))
    claim = getattr(found, "claim", None)
    return claim(str(state.get("ticket") or "")) if claim else None


async def _chunks(pending: Any, call: ModelCall) -> AsyncGenerator[Body, None]:
    """The answer as a stream.

    Raises:
        ModelRefusedError: nobody has sent the chat here, or its model gave an error.
    """
    if call.body["model"] is None:
        raise ModelRefusedError(NOT_A_MODEL)
    answer = (
        call.chunks()
        if pending is None
        else pending.chunks(_head(pending.named), call.chunks, usage_place(call.body))
    )
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            yield chunk


async def _completion(pending: Any, call: ModelCall) -> Body:
    """The answer as one body. As `_chunks` otherwise."""
    if call.body["model"] is None:
        raise ModelRefusedError(NOT_A_MODEL)
    if pending is None:
        return await call.completion()
    whole: Body = await pending.completion(_head(pending.named), call.completion, call.streamed)
    return whole


def _head(model: str) -> ReplyHead:
    return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), model)
