"""Ollama's routes on a node, in its words, with the faults that are in force."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from harness.ollama_embedding import embed, embeddings
from harness.ollama_generation import Generation, json_response
from harness.ollama_request import parse
from harness.ollama_state import NodeState
from harness.ollama_wire import JSON, RefusalError
from harness.sim_faults import BEFORE, INSTEAD, WITHIN, Fault, FaultBook
from harness.sim_openai import CHAT, OpenAIGeneration, ollama_body, openai_refusal, openai_routes
from harness.sim_records import Record
from harness.sim_shape import EngineWords
from harness.sim_spoil import cut, spoil_before, spoil_whole

CONTROL = "/sim/"  # what is under it is no part of Ollama
_MEASURED = (CHAT, "/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
_STRUCTS = {
    "/api/chat": "ChatRequest",
    "/api/generate": "GenerateRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
    "/api/copy": "CopyRequest",
    "/api/delete": "DeleteRequest",
}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Request:
    """A request with a body that the node got.

    Attributes:
        path: such as /api/chat.
        body: None when it could not be read.
        headers: as sent.
        came: when, in seconds of a clock that all nodes of this process share.
        left: set when the client closed the connection before the answer was complete.
    """

    path: str
    body: JSON | None
    headers: dict[str, str]
    came: float = field(default_factory=time.monotonic, compare=False, repr=False)
    left: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


class NodeRoutes:
    """The handlers of one node.

    Args:
        state: models, answers and records.
        faults: in force.
        version: of Ollama.
        refusing: tells whether requests on connections that are still open must be cut.
        keep: is told of each request with a body.
        engine: whose protocol it speaks.
    """

    def __init__(  # noqa: PLR0913 - each is a fact of its own
        self,
        state: NodeState,
        faults: FaultBook,
        version: str,
        *,
        refusing: Callable[[], bool],
        keep: Callable[[Request], None],
        engine: EngineWords = "ollama",
    ) -> None:
        self._engine = engine
        self._state = state
        self._faults = faults
        self._version = version
        self._refusing = refusing
        self._keep = keep

    def application(self) -> web.Application:
        application = web.Application(
            middlewares=[_in_ollamas_words, self._with_faults], client_max_size=64 * 2**20
        )
        if self._engine != "ollama":
            metrics = self._engine == "vllm"
            application.add_routes(openai_routes(self._state, self._openai_chat, metrics=metrics))
            return application
        posts = [web.post(path, self._post) for path in _STRUCTS if path != "/api/delete"]
        application.add_routes(
            [
                web.get("/", self._root),
                web.get("/api/version", self._get_version),
                web.get("/api/tags", self._get_tags),
                web.get("/api/ps", self._get_ps),
                web.delete("/api/delete", self._post),
                *posts,
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
            self._keep(Request(request.path, None, headers))
            raise
        noted = Request(request.path, body, headers)
        self._keep(noted)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            noted.left.set()
            raise

    async def _openai_chat(self, request: web.Request) -> web.StreamResponse:
        sent = json.loads(await request.read())
        noted = Request(request.path, sent, dict(request.headers))
        self._keep(noted)
        try:
            return await self._measured(request, ollama_body(sent))
        except RefusalError as error:
            return openai_refusal(error)
        except (asyncio.CancelledError, ConnectionResetError):
            noted.left.set()
            raise

    async def _answer(self, request: web.Request, body: JSON) -> web.StreamResponse:
        match request.path:
            case "/api/show":
                return json_response(self._state.show(body))
            case "/api/copy":
                self._state.copy(body)
                return web.Response()
            case "/api/delete":
                self._state.delete(body)
                return web.Response()
            case _:
                return await self._measured(request, body)

    async def _measured(self, request: web.Request, body: JSON) -> web.StreamResponse:
        """Answer a request that takes a model's time, and note how it went."""
        fault = self._faults.take(request.path, body.get("model"))
        record = self._state.stats.begin(request.path, str(body.get("model")), time.time())
        record.fault = fault.kind if fault else None
        within = None if fault is None or fault.kind in BEFORE else fault
        try:
            if fault and fault.kind in INSTEAD:
                record.end("failed")  # before the client knows: it may ask for the record at once
            if fault and (instead := await spoil_before(fault, request)):
                return instead
            response = await self._work(request, body, record, within)
        except RefusalError:
            record.end("refused")
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            record.end("left")
            raise
        if record.ended is None:
            record.end("done")
        return response

    async def _work(
        self, request: web.Request, body: JSON, record: Record, fault: Fault | None
    ) -> web.StreamResponse:
        match request.path:
            case "/api/embed":
                answer = await embed(self._state, body, record)
            case "/api/embeddings":
                answer = await embeddings(self._state, body, record)
            case openai if openai == CHAT:
                return await OpenAIGeneration(self._state, request, body, record, fault).run()
            case _:
                return await Generation(self._state, request, body, record, fault).run()
        if fault is None:
            return json_response(answer)
        record.end("failed")
        return await spoil_whole(fault, request, answer)

    @web.middleware
    async def _with_faults(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._refusing():
            return cut(request)
        if request.path.startswith(CONTROL) or request.path in _MEASURED:
            return await handler(request)
        fault = self._faults.take(request.path, await self._model_asked(request))
        return await (_with_fault(fault, request, handler) if fault else handler(request))

    async def _model_asked(self, request: web.Request) -> str | None:
        """Return the model that a request names, if a fault wants to know."""
        if request.method == "GET" or all(fault.model is None for fault in self._faults.active):
            return None
        try:
            body = json.loads(await request.read())
            return str(body["model"])
        except (ValueError, KeyError, TypeError):
            return None


async def _with_fault(fault: Fault, request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer a request that no model works on."""
    if instead := await spoil_before(fault, request):
        return instead
    response = await handler(request)
    if fault.kind not in WITHIN or not isinstance(response, web.Response):
        return response
    return await spoil_whole(fault, request, json.loads(response.text or "null"))


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
