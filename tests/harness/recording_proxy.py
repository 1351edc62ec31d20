"""A reverse proxy in front of a server: it keeps what was asked, and fails or holds requests when told to."""

import asyncio
import threading
from typing import Any, Self

from aiohttp import ClientSession, web

START_SECONDS = 10.0
_NOT_PASSED_ON = {"content-encoding", "content-length", "transfer-encoding", "connection", "host"}

ONLY_ASKS = "/ollama/api/show"  # a POST that changes nothing


class RecordingProxy:
    """Passes everything on to `target`, with the exceptions that a test sets while it runs.

    Attributes:
        requests: `(method, path)` of what came, in order.
        headers: `(path, headers)` of the same.
        failing_post: the number of the POST, from 1, that is answered 500 and goes no further.
        held_post: the number of the POST that is never answered, and goes no further.
        holding: set when that POST has come.
        instead: answers by path that stand in for the server's: `(status, JSON, headers)`.
    """

    def __init__(self, target: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.failing_post = self.held_post = 0
        self.holding = threading.Event()
        self.instead: dict[str, tuple[int, Any, dict[str, str]]] = {}
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recording-proxy", daemon=True)

    @property
    def posts(self) -> list[str]:
        """The paths of the requests that may have changed something."""
        return [path for method, path in self.requests if method != "GET" and path != ONLY_ASKS]

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and drop what is held."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._client = ClientSession(auto_decompress=True)
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        self.headers.append((request.path, dict(request.headers)))
        if request.path in self.instead:
            status, answer, headers = self.instead[request.path]
            return web.json_response(answer, status=status, headers=headers)
        if request.path == ONLY_ASKS:
            return await self._ask(request)
        if request.method == "POST" and len(self.posts) == self.failing_post:
            return web.json_response({"detail": "the disk is full"}, status=500)
        if request.method == "POST" and len(self.posts) == self.held_post:
            self.holding.set()
            await asyncio.Event().wait()
        return await self._ask(request)

    async def _ask(self, request: web.Request) -> web.Response:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _NOT_PASSED_ON}
        url = f"{self._target}{request.path_qs}"
        body = await request.read()
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _NOT_PASSED_ON}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
