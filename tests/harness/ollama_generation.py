"""One chat or generate request at a scripted node, from its checks to its last line."""

import asyncio
import json
from datetime import timedelta
from typing import Any

from aiohttp import web

from harness.ollama_request import check_capabilities, check_think_level
from harness.ollama_state import NodeState
from harness.ollama_wire import JSON, Answer, Model, RefusalError, Usage, full_name, keep_alive_of, timestamp


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=dumps)


class Generation:
    """A request that makes text. Ollama's handlers differ in one check and in where the text goes."""

    def __init__(self, state: NodeState, request: web.Request, body: JSON, verb: str) -> None:
        self._state = state
        self._request = request
        self._body = body
        self._verb = verb
        self._sent: web.StreamResponse | None = None

    async def run(self) -> web.StreamResponse:
        model = self._model()
        keep_alive = self._body.get("keep_alive")
        if not self._asks() and keep_alive is not None and keep_alive_of(keep_alive) == timedelta():
            self._state.unload(model)
            return json_response(self._line({"content": ""}, done_reason="unload"))
        if self._verb == "generate":  # the one check whose place differs
            check_think_level(self._body)
        check_capabilities(model, self._body, self._verb)
        loaded_now = self._state.load(model, self._body)
        if not self._asks():
            return json_response(self._line({"content": ""}, done_reason="load"))
        check_think_level(self._body)
        return await self._generate(model, loaded_now=loaded_now)

    def _model(self) -> Model:
        name = self._body.get("model") or ""
        try:
            full_name(name)
        except ValueError:
            if self._verb == "chat":
                raise RefusalError(400, "model is required") from None
        return self._state.model(name)

    def _asks(self) -> bool:
        return bool(self._body.get("messages" if self._verb == "chat" else "prompt"))

    def _messages(self) -> list[JSON]:
        if self._verb == "chat":
            messages: list[JSON] = self._body["messages"]
            return messages
        return [{"role": "user", "content": self._body["prompt"], "images": self._body.get("images")}]

    async def _generate(self, model: Model, *, loaded_now: bool) -> web.StreamResponse:
        messages = self._messages()
        prompt = next((m.get("content") or "" for m in reversed(messages) if m.get("role") == "user"), "")
        images = sum(len(m.get("images") or ()) for m in messages) if "vision" in model.capabilities else 0
        answer = self._state.next_answer(prompt, images)
        await asyncio.sleep(answer.delay)
        if answer.refusal:
            raise RefusalError(*answer.refusal)
        pieces = list(answer.pieces())
        limit = (self._body.get("options") or {}).get("num_predict") or 0
        cut = 0 < limit <= len(pieces)
        tokens = sum(len((m.get("content") or "").split()) + 4 for m in messages)
        kept = pieces[:limit] if cut else pieces
        usage = Usage(tokens, len(kept), loaded_now)
        last = self._line({"content": ""}, done_reason="length" if cut else "stop") | self._context()
        respond = self._whole if self._body.get("stream") is False else self._stream
        response = await respond(kept, last | usage.metrics(), answer)
        self._state.load(model, self._body)  # keep_alive counts from the end
        return response

    async def _stream(self, pieces: list[JSON], last: JSON, answer: Answer) -> web.StreamResponse:
        for piece in pieces:
            await self._send(self._line(piece))
            await asyncio.sleep(answer.pause)
        if answer.hangs_up:
            return self._hang_up()
        if answer.failure is not None and self._sent is None:
            raise RefusalError(500, answer.failure)
        response = await self._send(last if answer.failure is None else {"error": answer.failure})
        await response.write_eof()
        return response

    async def _whole(self, pieces: list[JSON], last: JSON, answer: Answer) -> web.StreamResponse:
        await asyncio.sleep(answer.pause * len(pieces))
        if answer.hangs_up:
            return self._hang_up()
        if answer.failure is not None:
            raise RefusalError(500, answer.failure)
        merged: JSON = {"content": "".join(piece["content"] for piece in pieces)}
        if thinking := "".join(piece.get("thinking", "") for piece in pieces):
            merged["thinking"] = thinking
        if calls := [call for piece in pieces for call in piece.get("tool_calls", ())]:
            merged["tool_calls"] = calls
        return json_response(last | self._content(merged))

    async def _send(self, line: JSON) -> web.StreamResponse:
        if self._sent is None:
            self._sent = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await self._sent.prepare(self._request)
        await self._sent.write(dumps(line).encode() + b"\n")
        return self._sent

    def _hang_up(self) -> web.StreamResponse:
        if self._request.transport:
            self._request.transport.abort()
        return self._sent or web.StreamResponse()

    def _line(self, piece: JSON, done_reason: str | None = None) -> JSON:
        line = {"model": self._body["model"], "created_at": timestamp(), **self._content(piece)}
        return line | ({"done": True, "done_reason": done_reason} if done_reason else {"done": False})

    def _content(self, piece: JSON) -> JSON:
        if self._verb == "chat":
            return {"message": {"role": "assistant", **piece}}
        return {"response": piece["content"], **{k: v for k, v in piece.items() if k != "content"}}

    def _context(self) -> JSON:
        asks_for_it = self._verb == "generate" and not self._body.get("raw")
        return {"context": [1, 2, 3]} if asks_for_it else {}
