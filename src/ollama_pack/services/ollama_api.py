"""Open WebUI's Ollama API for names that `gpu_router` answers.

Open WebUI's own `/ollama/api/chat` knows the models of its Ollama connections, and rows on top of them. What
is based on the router is answered here, through the router, with Open WebUI's check of access. Everything
else goes on to Open WebUI's own code.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ollama_pack.base.messages import message, said_by
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.client_request import chat_from_ollama
from ollama_pack.engines.ollama.from_openai import OllamaReply
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.engines.sse import LAST_EVENT, event_text
from ollama_pack.webui.calling import BAD_GATEWAY, BAD_REQUEST, ModelCall, refusal_in
from ollama_pack.webui.errors import ModelRefusedError
from ollama_pack.webui.ollama_models import (
    answer_of_open_webui,
    routed_body,
    routed_entries,
    tags_of_open_webui,
)
from ollama_pack.webui.routes import RouteSpec, json_answer
from ollama_pack.webui.server import event_stream, line_stream

FORBIDDEN = 403
NOT_FOUND = "Model not found"  # Open WebUI's words for a model that is not granted; 403 on its own route

Chunks = AsyncGenerator[dict[str, Any], None]


def ollama_routes() -> tuple[RouteSpec, ...]:
    """Placed before Open WebUI's own routes of the same paths."""
    return (
        RouteSpec("POST", "/ollama/api/chat", "user", _chat, without=_own_chat, is_chat=True),
        RouteSpec(
            "POST",
            "/ollama/v1/chat/completions",
            "user",
            _completions,
            without=_own_completions,
            is_chat=True,
        ),
        RouteSpec("GET", "/ollama/api/tags", "user", _tags, without=tags_of_open_webui),
    )


async def _tags(request: Any, user: Any) -> dict[str, Any]:
    """Open WebUI's list, and the router's names that this user may ask for."""
    listed = await tags_of_open_webui(request, user)
    models = list(listed.get("models") or ())
    names = {entry.get("model") for entry in models}
    routed = [entry for entry in await routed_entries(request, user) if entry["model"] not in names]
    return {**listed, "models": [*models, *routed]}


async def _chat(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    settings = await routed_body({"model": form.get("model")})
    if settings is None:
        return await _own_chat(request, user)
    reply = OllamaReply(str(form["model"]))
    try:
        body = {**chat_from_ollama(form), **settings}  # OpenAI's: not every node speaks Ollama's API
        call = ModelCall(request, body, user.model_dump(), has_system=False)
        if not body["stream"]:
            return await reply.whole(_one(await call.completion()))
        lines = reply.lines(await _begun(call))
    except ChatBodyError as error:
        return _refused(Refusal(BAD_REQUEST, said_by(error)), user, "ollama")
    except ModelRefusedError as error:
        return _refused(error.refusal, user, "ollama")
    return line_stream(_written(lines, lambda line: json.dumps(line, ensure_ascii=False) + "\n"))


async def _completions(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    body = await routed_body(form)
    if body is None:
        return await _own_completions(request, user)
    call = ModelCall(request, body, user.model_dump(), has_system=False)
    try:
        if not form.get("stream"):
            return await call.completion()
        chunks = await _begun(call)
    except ModelRefusedError as error:
        return _refused(error.refusal, user, "openai")
    return event_stream(_written(chunks, event_text, LAST_EVENT))


async def _own_chat(request: Any, user: Any) -> Any:
    return await answer_of_open_webui("generate_chat_completion", request, await _form_of(request), user)


async def _own_completions(request: Any, user: Any) -> Any:
    form = await _form_of(request)
    return await answer_of_open_webui("generate_openai_chat_completion", request, form, user)


async def _form_of(request: Any) -> dict[str, Any]:
    try:
        form = await request.json()
    except ValueError:
        form = None
    return form if isinstance(form, dict) else {}


async def _begun(call: ModelCall) -> Chunks:
    """The chunks of a streamed answer that has begun: an error before the first still has a status.

    Raises:
        ModelRefusedError: there is none.
    """
    chunks = call.chunks()
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        raise ModelRefusedError(Refusal(BAD_GATEWAY, message("The model said nothing."))) from None
    if first.get("error"):
        await chunks.aclose()
        raise ModelRefusedError(refusal_in(first, BAD_GATEWAY))

    async def whole() -> Chunks:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return whole()


async def _written(
    chunks: Chunks, text: Callable[[dict[str, Any]], str], last: str = ""
) -> AsyncGenerator[str, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield text(chunk)
    if last:
        yield last


async def _one(completion: dict[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
    yield completion


def _refused(refusal: Refusal, user: Any, form: ApiForm) -> Any:
    if refusal.message == NOT_FOUND and user.role != "admin":
        refusal = replace(refusal, status=FORBIDDEN)
    return json_answer({**refusal.body(form), "detail": refusal.message}, refusal.status, refusal.headers)
