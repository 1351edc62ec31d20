"""A client's request at the gateway: its body, its id, and whether its client is still there."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.webui.calling import refusal_in
from ollama_pack.webui.errors import ClientLeftError, ModelRefusedError
from ollama_pack.webui.routes import json_answer
from ollama_pack.webui.users import accepted_language

MAX_BODY = 64 * 2**20  # bytes: a conversation with many pictures
MAX_NAME = 512  # characters
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ID_HEADERS: dict[ApiForm, str] = {"anthropic": "request-id"}
_TOO_LARGE = Refusal(
    413,
    message(
        "The request has more than {limit} MiB: send fewer or smaller pictures.",
        limit=MAX_BODY // 2**20,
    ),
    "too_large",
)


async def body_of(request: Any) -> dict[str, Any]:
    """The JSON object that a client has sent.

    Raises:
        ChatBodyError: it is none, or names a model by a name that can be none.
        ModelRefusedError: it is too large.
        ClientLeftError: the client has left before all of it had come.
    """
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - it comes with Open WebUI

    read = bytearray()
    try:
        async for part in request.stream():
            read += part
            if len(read) > MAX_BODY:
                raise ModelRefusedError(_TOO_LARGE)
    except ClientDisconnect:
        raise ClientLeftError from None
    try:
        found = orjson.loads(read)
    except orjson.JSONDecodeError as error:
        raise ChatBodyError(
            message("The body"), message("is no JSON ({error}): send a JSON object", error=error)
        ) from error
    if not isinstance(found, dict):
        raise ChatBodyError(message("The body"), message("must be a JSON object"))
    for field in ("model", "name"):  # names are remembered for a while
        if isinstance(name := found.get(field), str) and len(name) > MAX_NAME:
            raise ChatBodyError(
                field,
                message(
                    "has {count} characters: a name has at most {limit}", count=len(name), limit=MAX_NAME
                ),
            )
    return found


def answer_headers(request: Any, api: ApiForm) -> dict[str, str]:
    """The headers that every answer has: the client's id for the request, or a new one."""
    given = str(request.headers.get("x-request-id") or "")
    identity = given if _ID.fullmatch(given) else f"req_{uuid4().hex}"
    own = {_ID_HEADERS[api]: identity} if api in _ID_HEADERS else {}
    return {"x-request-id": identity, "cache-control": "no-store", **own}


def refused_response(request: Any, api: ApiForm, refusal: Refusal) -> Any:
    """An error as the client's API has it, in the language that the request accepts."""
    refusal = refusal.translated(accepted_language(request))
    headers = answer_headers(request, api) | {name.lower(): text for name, text in refusal.headers.items()}
    return json_answer(refusal.body(api), refusal.status, headers)


def refused_by_server(request: Any, api: ApiForm, error: Any) -> Any:
    """The same, for what Open WebUI raises before the gateway is asked, such as 401 without a key."""
    refusal = refusal_in(error.detail, error.status_code, error.headers)
    return refused_response(request, api, refusal)


@asynccontextmanager
async def while_connected(request: Any) -> AsyncIterator[None]:
    """Stop what is done inside once the client has left: then nobody wants the answer.

    All of it stays in the request's own task, by whose end other plugins know that a chat is over.

    Raises:
        ClientLeftError: the client has left.
    """
    task = asyncio.current_task()
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if task is not None:
            task.cancel()

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone.is_set() and task is not None and not task.uncancel():
            raise ClientLeftError from None
        raise
    finally:
        watching.cancel()
