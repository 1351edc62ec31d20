"""Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called."""

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.engines.openai.failures import message_in
from ollama_pack.engines.refusals import Refusal
from ollama_pack.engines.sse import ServerEvent, SseBuffer
from ollama_pack.webui.errors import ModelRefusedError

EVENT_OCTETS = 64 * 2**20  # of the longest event: an answer may hold pictures
BAD_REQUEST, BAD_GATEWAY, ERROR_STATUS = 400, 502, 400
UNCOUNTED = "ollama_pack_uncounted"  # in a request's metadata, which no client writes: it is the site's own


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A chat request as Open WebUI would have sent it.

    Attributes:
        request: FastAPI's, which the chat came with.
        body: OpenAI's chat body, with Open WebUI's metadata.
        user: who asks.
        has_system: the system prompt of the model's row is in it already.
        is_new: it is a client's, so filters, tools and knowledge are still to come: Open WebUI's own route
            takes it. Else it is on its way already, and goes to its model alone.
    """

    request: Any
    body: Mapping[str, Any]
    user: Mapping[str, Any]
    has_system: bool = False
    is_new: bool = False

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer, as it comes. Where the model does not stream, it is one whole body.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self.answer()
        if isinstance(answer, dict):
            yield answer
            return
        async with aclosing(answer):
            async for chunk in answer:
                yield chunk

    async def streamed(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none, or it broke off.
        """
        streaming = replace(self, body={**self.body, "stream": True})
        async with aclosing(streaming.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.get("error"):
                    raise ModelRefusedError(refusal_in(chunk, BAD_GATEWAY))
                yield chunk

    async def completion(self) -> dict[str, Any]:
        """The answer to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self.answer()
        if not isinstance(answer, dict):
            async with aclosing(answer):
                await anext(answer, None)  # what has not begun cannot be closed
            sentence = message("The model sends a stream, though none was asked for.")
            raise ModelRefusedError(Refusal(BAD_GATEWAY, sentence))
        return answer

    async def answer(self) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
        """The answer as Open WebUI gives it: one body, or the chunks of a stream.

        A new request may get either, whatever it asks for: the row of its model decides. The caller reads
        the stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        return answer if isinstance(answer, dict) else _chunks_of(answer)

    async def _answer(self) -> Any:
        """A whole body, or a response that streams."""
        from fastapi import HTTPException  # noqa: PLC0415 - see the top of this module
        from open_webui.models.users import UserModel  # noqa: PLC0415

        try:
            answer = await self._asked(UserModel.model_validate(self.user))
        except HTTPException as error:
            raise ModelRefusedError(refusal_in(error.detail, error.status_code, error.headers)) from error
        except Exception as error:  # Open WebUI's own way to say that it will not
            raise ModelRefusedError(Refusal(BAD_REQUEST, str(error))) from error
        if isinstance(answer, dict):
            if answer.get("error"):
                raise ModelRefusedError(refusal_in(answer, BAD_GATEWAY))
            return answer
        if answer.status_code >= ERROR_STATUS or not hasattr(answer, "body_iterator"):
            raise ModelRefusedError(refusal_in(_body_of(answer), answer.status_code, answer.headers))
        return answer

    async def _asked(self, user: Any) -> Any:
        from open_webui.utils.chat import generate_chat_completion  # noqa: PLC0415

        if self.is_new:
            return await sys.modules["open_webui.main"].chat_completion(self.request, dict(self.body), user)
        return await generate_chat_completion(
            self.request, dict(self.body), user, bypass_system_prompt=self.has_system
        )


async def _chunks_of(answer: Any) -> AsyncGenerator[dict[str, Any], None]:
    """What a response that streams says."""
    buffer = SseBuffer(EVENT_OCTETS)
    try:
        async for data in answer.body_iterator:
            for event in buffer.feed(data.encode() if isinstance(data, str) else bytes(data)):
                if (chunk := _chunk_of(event)) is not None:
                    yield chunk
        for event in buffer.end():
            if (chunk := _chunk_of(event)) is not None:
                yield chunk
    finally:
        if answer.background is not None:
            await answer.background()  # gives Open WebUI's connection to the model back


def _chunk_of(event: ServerEvent) -> dict[str, Any] | None:
    """The object in an event; None for the mark of the end, and for what is none."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(event.data)
        return found if isinstance(found, dict) else None
    return None


def _body_of(answer: Any) -> object:
    body = bytes(getattr(answer, "body", b""))
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    return body.decode(errors="replace")


def refusal_in(body: object, status: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """The error in an answer of Open WebUI's, whose forms are those of the engines behind it.

    Args:
        body: OpenAI's `{"error": {"message": …}}`, `{"detail": …}`, a text, or else.
        status: of HTTP, unless the error tells its own.
        headers: of the answer.
    """
    found = object_at(body)
    error = found.get("error") or found.get("detail") or body
    fields = object_at(error)
    sentence = fields.get("message") or fields.get("detail") or error
    said = sentence if isinstance(sentence, str) else message_in(body)
    own = fields.get("status")
    wait = str(fields.get("retry_after") or _header(headers, "retry-after"))
    return Refusal(
        status=own if isinstance(own, int) and own >= ERROR_STATUS else status,
        message=said or message("The model gave the error {status}.", status=status),
        code=str(fields["code"]) if fields.get("code") else None,
        param=fields["param"] if isinstance(fields.get("param"), str) else None,
        retry_after=int(wait) if wait.isdigit() else None,
    )


def _header(headers: Mapping[str, str] | None, name: str) -> str:
    return next((value for given, value in (headers or {}).items() if given.lower() == name), "")
