"""Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ollama_pack.engines.sse import ServerEvent, SseBuffer
from ollama_pack.webui.errors import ModelRefusedError

EVENT_OCTETS = 64 * 2**20  # of the longest event: an answer may hold pictures
BAD_REQUEST, ERROR_STATUS = 400, 400


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A chat request as Open WebUI would have sent it.

    Attributes:
        request: FastAPI's, which the chat came with.
        body: OpenAI's chat body, with Open WebUI's metadata.
        user: who asks.
        has_system: the system prompt of the model's row is in it already.
    """

    request: Any
    body: Mapping[str, Any]
    user: Mapping[str, Any]
    has_system: bool

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer, as it comes. Where the model does not stream, it is one whole body.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        if isinstance(answer, dict):
            yield answer
            return
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

    async def streamed(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none, or it broke off.
        """
        streaming = replace(self, body={**self.body, "stream": True})
        async with aclosing(streaming.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.get("error"):
                    raise ModelRefusedError(BAD_REQUEST, chunk)
                yield chunk

    async def completion(self) -> dict[str, Any]:
        """The answer to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        if not isinstance(answer, dict):
            raise ModelRefusedError(502, _error_body("the model streams, though nobody asked it to"))
        return answer

    async def _answer(self) -> Any:
        """A whole body, or a response that streams."""
        from fastapi import HTTPException  # noqa: PLC0415 - see the top of this module
        from open_webui.models.users import UserModel  # noqa: PLC0415
        from open_webui.utils.chat import generate_chat_completion  # noqa: PLC0415

        user = UserModel.model_validate(self.user)
        try:
            answer = await generate_chat_completion(
                self.request, dict(self.body), user, bypass_system_prompt=self.has_system
            )
        except HTTPException as error:
            raise ModelRefusedError(error.status_code, _error_body(error.detail)) from error
        except Exception as error:  # Open WebUI's own way to say that it will not
            raise ModelRefusedError(BAD_REQUEST, _error_body(str(error))) from error
        if isinstance(answer, dict):
            if answer.get("error"):
                raise ModelRefusedError(BAD_REQUEST, answer)
            return answer
        if answer.status_code >= ERROR_STATUS or not hasattr(answer, "body_iterator"):
            raise ModelRefusedError(answer.status_code, _body_of(answer))
        return answer


def _chunk_of(event: ServerEvent) -> dict[str, Any] | None:
    """The object in an event; None for the mark of the end, and for what is none."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(event.data)
        return found if isinstance(found, dict) else None
    return None


def _body_of(answer: Any) -> dict[str, Any]:
    with suppress(AttributeError, orjson.JSONDecodeError):
        found = orjson.loads(answer.body)
        if isinstance(found, dict):
            return found if "error" in found else _error_body(found.get("detail") or found)
    return _error_body(f"the model answered with the error {answer.status_code}")


def _error_body(detail: object) -> dict[str, Any]:
    """An error as OpenAI has it, and under the name by which Open WebUI looks for its sentence."""
    said = {"message": str(detail), "type": "server_error", "param": None, "code": None}
    return {"error": {**said, "detail": detail}}
