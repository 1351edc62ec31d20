"""A client's request at the gateway: its body, its id, and whether its client is still there."""

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.webui.calling import refusal_in
from ollama_pack.webui.errors import ClientLeftError, ModelRefusedError
from ollama_pack.webui.routes import json_answer

MAX_BODY = 64 * 2**20  # bytes: a conversation with many pictures
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ID_HEADERS: dict[ApiForm, str] = {"anthropic": "request-id"}
_TOO_LARGE = Refusal(
    413, f"The request has more than {MAX_BODY // 2**20} MiB: send fewer or smaller pictures.", "too_large"
)

T = TypeVar("T")


async def body_of(request: Any) -> dict[str, Any]:
    """The JSON object that a client has sent.

    Raises:
        ChatBodyError: it is none.
        ModelRefusedError: it is too large.
    """
    read = bytearray()
    async for part in request.stream():
        read += part
        if len(read) > MAX_BODY:
            raise ModelRefusedError(_TOO_LARGE)
    try:
        found = orjson.loads(read)
    except orjson.JSONDecodeError as error:
        raise ChatBodyError("The body", f"is no JSON ({error}): send a JSON object") from error
    if not isinstance(found, dict):
        raise ChatBodyError("The body", "must be a JSON object")
    return found


def answer_headers(request: Any, api: ApiForm) -> dict[str, str]:
    """The headers that every answer has: the client's id for the request, or a new one."""
    given = str(request.headers.get("x-request-id") or "")
    identity = given if _ID.fullmatch(given) else f"req_{uuid4().hex}"
    own = {_ID_HEADERS[api]: identity} if api in _ID_HEADERS else {}
    return {"x-request-id": identity, "cache-control": "no-store", **own}


def refused_response(request: Any, api: ApiForm, refusal: Refusal) -> Any:
    """An error as the client's API has it."""
    headers = answer_headers(request, api) | {name.lower(): text for name, text in refusal.headers.items()}
    return json_answer(refusal.body(api), refusal.status, headers)


def refused_by_server(request: Any, api: ApiForm, error: Any) -> Any:
    """The same, for what Open WebUI raises before the gateway is asked, such as 401 without a key."""
    refusal = refusal_in(error.detail, error.status_code, error.headers)
    return refused_response(request, api, refusal)


async def while_connected(request: Any, work: Awaitable[T]) -> T:
    """Do some work, and stop it once the client has left: then nobody wants the answer.

    Raises:
        ClientLeftError: the client has left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return await task
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _until_gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
