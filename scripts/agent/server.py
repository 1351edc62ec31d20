"""The agent's HTTP server: three addresses to read, nothing to change, everything bounded.

A connection carries one request and ends after ten seconds, so that there is no other state to bound.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Protocol

from aiohttp import web
from aiohttp.http import HttpProcessingError

from agent.metrics import metrics_text
from deploy.shown import message
from ollama_pack.routing.probe.gpus import LOAD_PATH, GpuReport, agent_load
from ollama_pack.services.metrics_text import METRICS_TYPE

FRESH_SECONDS = 0.5  # one reading serves everybody who asks within
MAX_CONNECTIONS = 64
CONNECTION_SECONDS = 10.0  # for request and answer together
STOP_SECONDS = 1.0  # for answers under way when the agent is told to end

_METHODS = ("GET", "HEAD")
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
)


class ListenError(Exception):
    """The address cannot be listened on.

    Attributes:
        is_usage: it is no address of this machine; else somebody or something is in the way.
    """

    def __init__(self, message: str, *, is_usage: bool = False) -> None:
        super().__init__(message)
        self.is_usage = is_usage


class Reader(Protocol):
    """Where the figures come from."""

    async def read(self) -> GpuReport:
        """The GPUs now."""


class Agent:
    """Answers requests."""

    def __init__(self, reader: Reader, node: str, version: str, *, clock: Callable[[], float]) -> None:
        """Take what is needed later.

        Args:
            reader: of this machine's GPUs.
            node: what this machine is called.
            version: of the pack.
            clock: seconds, monotonic.
        """
        self._reader = reader
        self._node = node
        self._version = version
        self._clock = clock
        self._latest: tuple[float, GpuReport] | None = None

    async def report(self) -> GpuReport:
        """The GPUs, as they were at most half a second ago."""
        if self._latest and self._clock() - self._latest[0] < FRESH_SECONDS:
            return self._latest[1]
        report = await self._reader.read()
        self._latest = self._clock(), report
        return report

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one request, and let its connection end."""
        if request.path not in {"/", LOAD_PATH, "/metrics"}:
            response = _refusal(
                HTTPStatus.NOT_FOUND, message("there are /, {path} and /metrics", path=LOAD_PATH)
            )
        elif request.method not in _METHODS:
            response = _refusal(HTTPStatus.METHOD_NOT_ALLOWED, message("everything here can only be read"))
            response.headers["Allow"] = ", ".join(_METHODS)
        else:
            response = await self._found(request.path)
        response.headers.update({"Cache-Control": "no-store", "Server": "gpu_agent"})
        response.force_close()
        return response

    async def _found(self, path: str) -> web.Response:
        if path == LOAD_PATH:
            return web.json_response(agent_load(self._node, await self.report()))
        if path == "/metrics":
            text = metrics_text(await self.report(), self._version)
            return web.Response(body=text.encode(), headers={"Content-Type": METRICS_TYPE})
        what = f"gpu_agent {self._version}, Open WebUI Ollama Pack: {self._node}"
        figures, metrics = message("GPUs as JSON"), message("for Prometheus")
        return web.Response(text=f"{what}\n{figures}: {LOAD_PATH}\n{metrics}: /metrics\n")


def _refusal(status: HTTPStatus, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether something went wrong here: what speaks no HTTP is answered, and not worth a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class _BoundedServer(web.Server):
    """Lets in so many connections at once, each for so long."""

    def __init__(self, agent: Agent) -> None:
        log = logging.getLogger("gpu_agent")
        log.addFilter(_is_ours)
        super().__init__(agent.answer, access_log=None, logger=log, lingering_time=0)
        self._ends: dict[object, asyncio.TimerHandle] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        if len(self._ends) >= MAX_CONNECTIONS:
            transport.write(_BUSY)
            loop.call_soon(transport.close)  # not before aiohttp is ready for the end of the connection
        else:
            self._ends[handler] = loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if end := self._ends.pop(handler, None):
            end.cancel()


@asynccontextmanager
async def serving(agent: Agent, host: str, port: int) -> AsyncIterator[list[tuple[str, int]]]:
    """Answer at this address until the end of the block. Gives the addresses and ports that were taken.

    Raises:
        ListenError: the address cannot be had.
    """
    runner = web.ServerRunner(_BoundedServer(agent), shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        yield [(address[0], address[1]) for address in runner.addresses]
    finally:
        await runner.cleanup()


async def _listen(runner: web.ServerRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: what cannot be a host's name
        raise _listen_error(error, host, port) from error


def _listen_error(error: OSError | UnicodeError, host: str, port: int) -> ListenError:
    if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
        return ListenError(
            message("--host {host}: this machine has no such address", host=host), is_usage=True
        )
    remedy = {
        errno.EADDRINUSE: message("is taken: stop what uses it, or choose another with --port"),
        errno.EACCES: message("is not for this user: choose one from 1024 upwards with --port"),
    }
    what = remedy.get(
        error.errno or 0, message("cannot be listened on: {reason}", reason=error.strerror or error)
    )
    return ListenError(f"port {port} of {host} {what}")
