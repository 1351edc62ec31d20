"""One chat or generate request at a node, from its checks to its last line."""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any

from aiohttp import web

from harness.ollama_request import check_capabilities, check_think_level
from harness.ollama_state import NodeState
from harness.ollama_wire import (
    JSON,
    Answer,
    Model,
    RefusalError,
    Usage,
    dumps,
    full_name,
    keep_alive_of,
    timestamp,
)
from harness.sim_faults import Fault
from harness.sim_pace import TokenTimes
from harness.sim_prompt import rendered
from harness.sim_records import Record
from harness.sim_runner import Turn
from harness.sim_scheduler import Lease
from harness.sim_spoil import cut, spoil_line, spoil_whole

_TIME, _CONTENT = "<time>", "<content>"  # no model has such a name


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=dumps)


class Generation:
    """A request that makes text. Ollama's handlers differ in one check and in where the text goes."""

    content_type = "application/x-ndjson"

    def __init__(
        self,
        state: NodeState,
        request: web.Request,
        body: JSON,
        record: Record,
        fault: Fault | None = None,
    ) -> None:
        self._state = state
        self._request = request
        self._body = body
        self._verb = self._verb_of(request.path)
        self._record = record
        self._fault = fault
        self._loop = asyncio.get_running_loop()
        self._came = self._loop.time()
        self._named = ""
        self._sent: web.StreamResponse | None = None

    def _verb_of(self, path: str) -> str:
        return path.rpartition("/")[2]

    async def run(self) -> web.StreamResponse:
        model = self._model()
        keep_alive = self._body.get("keep_alive")
        if not self._asks() and keep_alive is not None and keep_alive_of(keep_alive) == timedelta():
            await self._state.scheduler.expire(model)
            return json_response(self._line({"content": ""}, done_reason="unload"))
        if self._verb == "generate":  # the one check whose place differs
            check_think_level(self._body)
        check_capabilities(model, self._body, self._verb)
        async with self._state.scheduler.lease(model, self._body) as lease:
            self._record.load = self._loop.time() - self._came
            self._record.loaded = lease.loaded
            if not self._asks():
                return json_response(self._line({"content": ""}, done_reason="load"))
            check_think_level(self._body)
            return await self._generate(model, lease)

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
        system = {"role": "system", "content": self._body.get("system")}
        asked = {"role": "user", "content": self._body["prompt"], "images": self._body.get("images")}
        return [system, asked] if system["content"] else [asked]

    async def _generate(self, model: Model, lease: Lease) -> web.StreamResponse:
        messages, vision = self._messages(), "vision" in model.capabilities
        prompt = rendered(messages, self._body.get("tools"), context=lease.runner.context, vision=vision)
        question = next((m.get("content") or "" for m in reversed(messages) if m.get("role") == "user"), "")
        images = sum(len(m.get("images") or ()) for m in messages) if vision else 0
        answer = self._state.next_answer(model, self._body, prompt, question, images)
        self._named = answer.model
        await asyncio.sleep(answer.delay)
        if answer.refusal:
            raise RefusalError(*answer.refusal)
        asked = self._loop.time()
        async with lease.runner.slot(prompt) as turn:
            self._record.wait = self._loop.time() - asked
            return await self._answer(model, answer, turn)

    async def _answer(self, model: Model, answer: Answer, turn: Turn) -> web.StreamResponse:
        """Evaluate the prompt and say the answer, as fast as the node does."""
        self._record.prompt_tokens, self._record.hit_tokens = turn.prompt_tokens, turn.hit_tokens
        began = self._loop.time()
        await asyncio.sleep(self._state.shape.prompt_seconds(model, turn.prompt_tokens - turn.hit_tokens))
        first = self._loop.time()
        self._record.first_token = time.time()
        pieces = list(answer.pieces())
        limit = (self._body.get("options") or {}).get("num_predict") or 0
        reason = "length" if 0 < limit <= len(pieces) else "stop"
        pieces = pieces[:limit] if limit > 0 else pieces
        rate = self._state.shape.token_seconds(model, self._state.scheduler.working - 1)
        pause = rate if answer.pause is None else answer.pause

        def last() -> JSON:
            now, load = self._loop.time(), self._record.load
            usage = Usage(turn.prompt_tokens, len(pieces), now - self._came, load, first - began, now - first)
            return self._line({"content": ""}, done_reason=reason) | self._context() | usage.metrics()

        shown = pieces[: self._fault.after] if self._fault else pieces
        if self._body.get("stream") is False:
            return await self._whole(shown, TokenTimes(len(shown), pause, math.inf), turn, last, answer)
        steps = TokenTimes(len(shown), pause, self._state.shape.write_seconds)
        return await self._stream(shown, steps, turn, last, answer)

    async def _stream(
        self, pieces: list[JSON], steps: TokenTimes, turn: Turn, last: Callable[[], JSON], answer: Answer
    ) -> web.StreamResponse:
        sent = 0
        async for due in steps:
            self._say(turn, pieces[sent:due])
            await self._send(self._lines(pieces[sent:due]))
            sent = due
        if answer.hangs_up:
            return self._hang_up()
        if answer.failure is not None and self._sent is None:
            raise RefusalError(500, answer.failure)
        if self._fault:
            self._record.end("failed")
            return await spoil_line(
                self._fault, self._request, await self._send(b""), self._line({"content": "a"})
            )
        # before the client knows: it may ask for the record at once
        self._record.end("done" if answer.failure is None else "failed")
        ending = {"error": answer.failure} if answer.failure is not None else last()
        response = await self._send(self._ending(turn, ending))
        await response.write_eof()
        return response

    async def _whole(
        self, pieces: list[JSON], steps: TokenTimes, turn: Turn, last: Callable[[], JSON], answer: Answer
    ) -> web.StreamResponse:
        async for _ in steps:
            pass
        if answer.hangs_up:
            return self._hang_up()
        if answer.failure is not None:
            raise RefusalError(500, answer.failure)
        self._say(turn, pieces)
        merged: JSON = {"content": "".join(piece["content"] for piece in pieces)}
        if thinking := "".join(piece.get("thinking", "") for piece in pieces):
            merged["thinking"] = thinking
        if calls := [call for piece in pieces for call in piece.get("tool_calls", ())]:
            merged["tool_calls"] = calls
        whole = self._whole_answer(turn, last(), merged)
        if self._fault is None:
            return json_response(whole)
        self._record.end("failed")
        return await spoil_whole(self._fault, self._request, whole)

    def _say(self, turn: Turn, pieces: list[JSON]) -> None:
        turn.said += "".join(piece["content"] for piece in pieces)
        self._record.output_tokens += len(pieces)

    async def _send(self, lines: bytes) -> web.StreamResponse:
        if self._sent is None:
            self._sent = web.StreamResponse(headers={"Content-Type": self.content_type})
            await self._sent.prepare(self._request)
        if lines:
            await self._sent.write(lines)
        return self._sent

    def _ending(self, turn: Turn, last: JSON) -> bytes:  # noqa: ARG002 - OpenAI's form shows what was reused
        return dumps(last).encode() + b"\n"

    def _whole_answer(self, turn: Turn, last: JSON, merged: JSON) -> JSON:  # noqa: ARG002 - see above
        return last | self._content(merged)

    def _hang_up(self) -> web.StreamResponse:
        self._record.end("failed")
        return cut(self._request, self._sent)

    def _lines(self, pieces: list[JSON]) -> bytes:
        """Return the lines for these pieces. Text is fitted into a line made once: there is much of it."""
        now = timestamp()
        before, between, after = self._form
        texts = (
            f"{before}{now}{between}{dumps(piece['content'])}{after}\n"
            if len(piece) == 1
            else dumps(self._line(piece)) + "\n"
            for piece in pieces
        )
        return "".join(texts).encode()

    @cached_property
    def _form(self) -> tuple[str, str, str]:
        """The text of a line around its time and around its content."""
        line = self._line({"content": _CONTENT}) | {"created_at": _TIME}
        before, _, rest = dumps(line).partition(_TIME)
        between, _, after = rest.partition(dumps(_CONTENT))
        return before, between, after

    def _line(self, piece: JSON, done_reason: str | None = None) -> JSON:
        line = {
            "model": self._named or self._body["model"],
            "created_at": timestamp(),
            **self._content(piece),
        }
        return line | ({"done": True, "done_reason": done_reason} if done_reason else {"done": False})

    def _content(self, piece: JSON) -> JSON:
        if self._verb == "chat":
            return {"message": {"role": "assistant", **piece}}
        return {"response": piece["content"], **{k: v for k, v in piece.items() if k != "content"}}

    def _context(self) -> JSON:
        asks_for_it = self._verb == "generate" and not self._body.get("raw")
        return {"context": [1, 2, 3]} if asks_for_it else {}
