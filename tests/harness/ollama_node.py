"""A scripted Ollama: a real HTTP server on this machine that answers what a test tells it to.

    with OllamaNode([Model("smollm2:135m")]) as node:
        node.enqueue(Answer(["Hel", "lo"]))
        requests.post(f"{node.url}/api/chat", json=...)
        assert node.requests[-1].body["model"] == "smollm2:135m"

With nothing enqueued it echoes: "You said: ...". It runs in a thread with a loop of its own.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from harness.ollama_generation import Generation, json_response
from harness.ollama_request import embed_input, parse
from harness.ollama_state import NodeState
from harness.ollama_wire import JSON, Answer, Model, RefusalError, ToolCall, Usage, embedding, normalized

__all__ = ["Answer", "Model", "OllamaNode", "Request", "ToolCall"]

START_SECONDS = 10.0
_STRUCTS = {
    "/api/chat": "ChatRequest",
    "/api/generate": "GenerateRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Request:
    """A POST that the node got.

    Attributes:
        path: such as /api/chat.
        body: None when it could not be read.
        headers: as sent.
        left: set when the client closed the connection before the answer was complete.
    """

    path: str
    body: JSON | None
    headers: dict[str, str]
    left: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


class OllamaNode:
    """A node with the given models installed; ``gpu`` tells whether loaded models are in its memory.

    Attributes:
        requests: the POSTs that it got, in order.
        models: what is installed, by full name; a test may change it while the node runs.
    """

    def __init__(self, models: Iterable[Model], *, gpu: bool = True, version: str = "0.17.4") -> None:
        self.requests: list[Request] = []
        self._state = NodeState(models, gpu=gpu)
        self._version = version
        self._port = 0
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def models(self) -> dict[str, Model]:
        return self._state.models

    def enqueue(self, *answers: Answer) -> None:
        """Set what the next chat or generate requests get, one answer each."""
        self._state.answers.extend(answers)

    def __enter__(self) -> Self:
        """Start the node."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the node."""
        self.stop()

    def start(self) -> None:
        """Serve; after ``stop`` on the same port as before, with nothing loaded.

        Raises:
            OSError: the port was taken in between.
        """
        self._state.loaded.clear()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ollama-node", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """Cut all connections and stop listening, as a node that is switched off; again: nothing to do."""
        if self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(START_SECONDS)
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread:
            self._thread.join()
        self._thread = None
        self._loop.close()

    async def _listen(self) -> None:
        # handler_cancellation: a client that leaves ends its generation, as in Ollama
        self._runner = web.AppRunner(
            self._application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_in_ollamas_words], client_max_size=64 * 2**20)
        application.add_routes(
            [
                web.get("/", self._root),
                web.get("/api/version", self._get_version),
                web.get("/api/tags", self._get_tags),
                web.get("/api/ps", self._get_ps),
                *(web.post(path, self._post) for path in _STRUCTS),
            ]
        )
        return application

    async def _root(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _get_version(self, _request: web.Request) -> web.Response:
        return json_response({"version": self._version})

    async def _get_tags(self, _request: web.Request) -> web.Response:
        return json_response(self._state.tags())

    async def _get_ps(self, _request: web.Request) -> web.Response:
        return json_response(self._state.ps())

    async def _post(self, request: web.Request) -> web.StreamResponse:
        """Record a request, then answer it; the record is there before the answer is."""
        raw = await request.read()
        headers = dict(request.headers)
        try:
            body = parse(raw, _STRUCTS[request.path])
        except RefusalError:
            self.requests.append(Request(request.path, None, headers))
            raise
        record = Request(request.path, body, headers)
        self.requests.append(record)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            record.left.set()
            raise

    async def _answer(self, request: web.Request, body: JSON) -> web.StreamResponse:
        match request.path:
            case "/api/show":
                return json_response(self._state.show(body))
            case "/api/embed":
                return json_response(self._embed(body))
            case "/api/embeddings":
                return json_response(self._embeddings(body))
            case "/api/chat":
                return await Generation(self._state, request, body, "chat").run()
            case _:
                return await Generation(self._state, request, body, "generate").run()

    def _embed(self, body: JSON) -> JSON:
        texts = embed_input(body)
        model = self._state.model_to_embed(body)
        loaded_now = self._state.load(model, body)
        answer: JSON = {"model": body["model"], "embeddings": []}
        if not texts:
            return answer
        length = min(body.get("dimensions") or model.embedding_length, model.embedding_length)
        answer["embeddings"] = [
            normalized(embedding(text, model.embedding_length)[:length]) for text in texts
        ]
        metrics = Usage(sum(len(text.split()) for text in texts), 0, loaded_now).metrics()
        return answer | {k: metrics[k] for k in ("total_duration", "load_duration", "prompt_eval_count")}

    def _embeddings(self, body: JSON) -> JSON:
        if not body.get("model"):
            raise RefusalError(400, "model is required")
        model = self._state.model_to_embed(body)
        self._state.load(model, body)
        prompt = body.get("prompt")
        return {"embedding": embedding(prompt, model.embedding_length) if prompt else []}


@web.middleware
async def _in_ollamas_words(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn refusals and the router's errors into what Ollama sends for them."""
    try:
        return await handler(request)
    except RefusalError as error:
        return json_response({"error": error.message}, error.status)
    except web.HTTPMethodNotAllowed as error:
        allow = {"Allow": ", ".join(sorted(error.allowed_methods, reverse=True))}
        return web.Response(status=405, text="405 method not allowed", headers=allow)
    except web.HTTPNotFound:
        return web.Response(status=404, text="404 page not found")
