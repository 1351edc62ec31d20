"""A scripted OpenAI-compatible engine: a real HTTP server that speaks as vLLM, SGLang or llama.cpp does.

    with OpenAIEngine("vllm") as engine:
        engine.enqueue(EngineAnswer(["Hel", "lo"]))
        requests.post(f"{engine.url}/v1/chat/completions", json=...)
        assert engine.requests[-1].body["model"] == MODEL

With nothing enqueued it echoes: "You said: ...". It runs in a thread with a loop of its own.
"""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from harness.openai_wire import JSON, MODEL, EngineKind, engine_wire

__all__ = ["JSON", "MODEL", "EngineAnswer", "EngineKind", "EngineRequest", "OpenAIEngine"]

START_SECONDS = 10.0


@dataclass(frozen=True)
class EngineAnswer:
    """What one chat gets.

    Attributes:
        words: pieces of text, a chunk each.
        thinking: pieces of thought before them.
        calls: what stands in `tool_calls` of the chunks after them, a list for each chunk.
        finish: the reason for the end; None: the stream ends without one.
        is_done: `[DONE]` comes last.
        refusal: status and body instead of an answer.
        failure: an event in place of the end.
        delay: seconds before the first byte.
        pause: seconds before each chunk but the first.
        hangs_up: cuts the connection in place of the end.
        raw: the bytes of the body, instead of all that.
    """

    words: Sequence[str] = ()
    thinking: Sequence[str] = ()
    calls: Sequence[list[JSON]] = ()
    finish: str | None = "stop"
    is_done: bool = True
    refusal: tuple[int, JSON] | None = None
    failure: JSON | None = None
    delay: float = 0.0
    pause: float = 0.0
    hangs_up: bool = False
    raw: bytes | None = None


@dataclass(frozen=True)
class EngineRequest:
    """A chat that the engine got.

    Attributes:
        body: as sent.
        headers: as sent.
        left: set when the client closed the connection before the answer was complete.
    """

    body: JSON
    headers: dict[str, str]
    left: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


class OpenAIEngine:
    """An engine that serves one model.

    Attributes:
        requests: the chats that it got, in order.
        asked: the paths of the other requests, in order.
        metrics: what `/metrics` answers; None: it has none.
        models: what `/v1/models` answers.
        base: where its API begins.
        refuses: top-level fields that a chat must not have.
    """

    def __init__(self, kind: EngineKind = "vllm") -> None:
        self._wire = engine_wire(kind)
        self.requests: list[EngineRequest] = []
        self.asked: list[str] = []
        self.metrics: str | None = self._wire.metrics
        self.models: Any = self._wire.models
        self.base = "/v1"
        self.refuses: set[str] = set()
        self._answers: list[EngineAnswer] = []
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)

    @property
    def url(self) -> str:
        """Its address, without `/v1`."""
        return f"http://127.0.0.1:{self._port}"

    def enqueue(self, *answers: EngineAnswer) -> None:
        """Set what the next chats get, one answer each."""
        self._answers.extend(answers)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Cut all connections and stop."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        # handler_cancellation: a client that leaves ends its generation, as in the real ones
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_post("/{base:.*}/chat/completions", self._chat)
        application.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]

    async def _get(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path == "/metrics" and self.metrics is not None:
            return web.Response(text=self.metrics)
        if request.path == f"{self.base}/models":
            return web.json_response(self.models)
        if request.path in self._wire.pages:
            return web.json_response(self._wire.pages[request.path])
        return web.json_response(self._wire.not_found, status=404)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if request.path != f"{self.base}/chat/completions":
            return web.json_response(self._wire.not_found, status=404)
        body = await request.json()
        record = EngineRequest(body, dict(request.headers))
        self.requests.append(record)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            record.left.set()
            raise

    async def _answer(self, request: web.Request, body: JSON) -> web.StreamResponse:
        if refused := sorted(self.refuses & body.keys()):
            detail = [{"loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in refused]
            return web.json_response({"detail": detail}, status=422)
        if self._wire.checks_names and body["model"] not in {MODEL, *self._listed()}:
            return web.json_response(self._wire.no_model(body["model"]), status=404)
        answer = self._answers.pop(0) if self._answers else self._echo(body)
        if answer.refusal:
            return web.json_response(answer.refusal[1], status=answer.refusal[0])
        await asyncio.sleep(answer.delay)
        return await self._stream(request, body, answer)

    def _listed(self) -> set[str]:
        entries = self.models.get("data") if isinstance(self.models, dict) else self.models
        return {str(entry.get("id")) for entry in entries or () if isinstance(entry, dict)}

    @staticmethod
    def _echo(body: JSON) -> EngineAnswer:
        said = str(body["messages"][-1]["content"])
        words = ["You", " said:", *(f" {word}" for word in said.split())]
        most = body.get("max_tokens", len(words))
        return EngineAnswer(words[:most], finish="length" if most < len(words) else "stop")

    async def _stream(self, request: web.Request, body: JSON, answer: EngineAnswer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, data in enumerate(self._events(body, answer)):
            if number:
                await asyncio.sleep(answer.pause)
            if body["model"] in self._listed():
                data = data.replace(f'"{MODEL}"'.encode(), json.dumps(body["model"]).encode())  # noqa: PLW2901
            await response.write(data)
        if answer.hangs_up and request.transport:
            request.transport.abort()
        return response

    def _events(self, body: JSON, answer: EngineAnswer) -> Iterator[bytes]:
        if answer.raw is not None:
            yield answer.raw
            return
        for delta in self._wire.deltas(answer.thinking, answer.words, answer.calls):
            yield self._wire.event(delta)
        if answer.failure is not None:
            yield self._wire.data(answer.failure)
        elif answer.finish and not answer.hangs_up:
            yield self._wire.event({}, finish=answer.finish)
            yield from self._wire.figures(body, len(answer.thinking) + len(answer.words))
        if answer.is_done and not answer.hangs_up:
            yield b"data: [DONE]\n\n"
