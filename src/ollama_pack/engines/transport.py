"""Requests to one node over aiohttp: limits of time and size; whatever goes wrong is a typed error."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urljoin

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.body import json_in
from ollama_pack.engines.errors import (
    NodeBusyError,
    NodeCertificateError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
)
from ollama_pack.engines.failures import node_name, retry_seconds, said_in, shortened, status_error
from ollama_pack.engines.sse import LineBuffer, LineTooLongError, ServerEvent, SseBuffer

HTTP_OK = 200
REFUSAL_BYTES = 16 * 2**10  # read of an answer that is an error; its message is shorter
MAX_NOTES = 32  # sentences about one node in the log
UNREAD_SECONDS = 1.0  # in which it shows that a used connection had ended
END_SECONDS = 1.0  # for the end of the body after the last line: then the connection can serve again

log = logging.getLogger(__name__)

LEAST_PAUSE, MOST_PAUSE = 0.5, 120.0  # seconds for which a node is believed to be busy

NO_HEADERS: Mapping[str, str] = {}

_Stage = Literal["first byte", "next line", "answer"]
T = TypeVar("T")


def node_session(connector: aiohttp.BaseConnector, *, trust_env: bool = False) -> aiohttp.ClientSession:
    """A session for nodes, that notes in the context of a request when it goes over a used connection.

    It keeps no cookies: what a gateway sets for one user is not to be sent with another's request.
    """

    async def reused(_session: Any, context: Any, _params: Any) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx["reused"] = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=connector, trust_env=trust_env, cookie_jar=jar, trace_configs=[trace]
    )


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """How long and how much a node may take.

    Attributes:
        connect: seconds until there is a connection.
        answer: seconds for a whole answer about the node and its models.
        next_line: seconds between two lines of a stream. Long, because Ollama says nothing while a model
            writes the arguments of a tool call.
        line_bytes: the longest line.
        answer_bytes: the longest answer about the node and its models.
    """

    connect: float = 3.0
    answer: float = 5.0
    next_line: float = 300.0
    line_bytes: int = 4 * 2**20
    answer_bytes: int = 16 * 2**20


class StreamBuffer(Protocol[T]):
    """Cuts a stream of bytes into the pieces that a kind of engine sends."""

    def feed(self, data: bytes) -> list[T]:
        """The pieces that are complete now; LineTooLongError where one is too long."""

    def end(self) -> list[T]:
        """What came last, when nothing more does."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a kind of engine is called, and what its refusals mean.

    Attributes:
        engine: what should run at the node, for messages.
        refusal: the error for a node's name, an HTTP status, a body and the model that was asked for.
    """

    engine: str
    refusal: Callable[[str, int, bytes, str], NodeError]


OLLAMA_DIALECT = Dialect(message("an Ollama"), status_error)


class NodeTransport:
    """The way to one node. The session is the caller's, with its pool of connections."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        limits: NodeLimits,
        headers: Mapping[str, str],
        dialect: Dialect = OLLAMA_DIALECT,
    ) -> None:
        """Take what is needed later; nothing is connected."""
        self.name = node_name(url)
        self.dialect = dialect
        self.limits = limits
        self._url = url.rstrip("/")
        self._session = session
        self._headers = {**headers, "Content-Type": "application/json"}
        self._noted: set[str] = set()

    def note(self, sentence: str) -> None:
        """Log something odd about the node, each thing once."""
        if sentence not in self._noted and len(self._noted) < MAX_NOTES:
            self._noted.add(sentence)
            log.warning("Node %s: %s", self.name, sentence)

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        limit: int = 0,
    ) -> dict[str, Any]:
        """The answer to a GET, or to a POST of the body, as a whole.

        Args:
            path: such as /api/tags.
            body: of a POST.
            seconds: for all of it, instead of the limit for answers.
            limit: bytes that the answer may have, where that is more than the limit for answers.

        Raises:
            NodeError: there is none, or not in time, or it is an error or no JSON object.
        """
        return self.parsed(await self.fetch(path, body, seconds, limit))

    async def fetch(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        limit: int = 0,
    ) -> bytes:
        """As `ask`, for an answer that need not be JSON."""
        async with self._within("answer", self.limits.answer if seconds is None else seconds):
            response = await self._open(path, body)
            try:
                return await self._read(response, max(limit, self.limits.answer_bytes))
            finally:
                response.close()  # after its end, this leaves the connection in the pool

    async def lines(
        self, path: str, body: Mapping[str, Any], first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of the answer to a POST, each a JSON object, to the one that says it is the last.

        Closing the iterator closes the connection.

        Args:
            path: such as /api/chat.
            body: what is sent.
            first_byte: seconds until the first line; Ollama sends nothing before it, not even a status.
            headers: of this request, besides those of all.

        Raises:
            NodeError: before the first line, or at any point afterwards.
        """
        async with aclosing(
            self._pieces(path, body, first_byte, LineBuffer(self.limits.line_bytes), headers)
        ) as pieces:
            async for text in pieces:
                line = self._line(text)
                yield line
                if line.get("done") is True:
                    await _read_to_end(pieces)
                    return
        raise NodeFaultError(self.name, message("ended its answer before the last line"))

    async def events(
        self, path: str, body: Mapping[str, Any], first_byte: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of the answer to a POST, to the one that says it is the last, or to the end of the body.

        The connection serves no other request: llama.cpp cuts it after the last event without having said so,
        and whoever sent a request there would find nobody. As for `lines` otherwise.
        """
        async with aclosing(
            self._pieces(
                path, body, first_byte, SseBuffer(self.limits.line_bytes), headers, last_request=True
            )
        ) as pieces:
            async for event in pieces:
                yield event
                if event.is_last:
                    return

    async def _pieces(  # noqa: PLR0913 - each is a fact of its own
        self,
        path: str,
        body: Mapping[str, Any],
        first_byte: float,
        buffer: "StreamBuffer[T]",
        headers: Mapping[str, str],
        *,
        last_request: bool = False,
    ) -> AsyncGenerator[T, None]:
        """The pieces of the answer to a POST, to the end of its body."""
        until = asyncio.get_running_loop().time() + first_byte
        async with self._within("first byte", first_byte):
            last = {"Connection": "close"} if last_request else {}
            response = await self._open(path, body, {**headers, **last})
        try:
            if last_request and response.connection and response.connection.protocol is not None:
                response.connection.protocol.force_close()  # also where the node does not repeat `close`
            async with self._within("first byte", first_byte, until):
                pieces = await self._next_pieces(response, buffer)
            while pieces:
                for piece in pieces:
                    yield piece
                async with self._within("next line", self.limits.next_line):
                    pieces = await self._next_pieces(response, buffer)
        finally:
            response.close()

    async def _open(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> aiohttp.ClientResponse:
        """Send a request and get an answer that is no error, its body unread."""
        response = await self._send(path, body, headers)
        if response.status == HTTP_OK:
            return response
        if location := response.headers.get("Location"):
            response.close()
            raise self._redirected(path, response.status, location)
        try:
            said = await self._read(response, REFUSAL_BYTES, whole=False)
        finally:
            response.close()
        error = self.dialect.refusal(self.name, response.status, said, str((body or {}).get("model", "")))
        if isinstance(error, NodeBusyError):
            pause = retry_seconds(response.headers.get("Retry-After", ""))
            error.retry_after = None if pause is None else min(max(pause, LEAST_PAUSE), MOST_PAUSE)
        raise error

    def _redirected(self, path: str, status: int, location: str) -> NodeFaultError:
        """Not followed: it would make a GET of a POST, and carry the node's key to another server."""
        target = shortened(node_name(urljoin(self._url + path, location)).removesuffix(path))
        reason = message("redirects to {target} (set that address instead)", target=target)
        return NodeFaultError(self.name, reason, status=status)

    async def _send(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        if not self._url.startswith(("http://", "https://")):
            raise NodeUnreachableError(
                self.name, message("its address does not begin with http:// or https://")
            )
        method, data = ("GET", None) if body is None else ("POST", self._encoded(body))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect)
        try:
            return await self._over_living_connection(
                method,
                self._url + path,
                data=data,
                headers=self._merged(headers),
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ServerTimeoutError as error:
            raise NodeTimeoutError(self.name, "connect", self.limits.connect) from error
        except aiohttp.ClientSSLError as error:
            raise NodeCertificateError(self.name, shortened(str(error))) from error
        except aiohttp.ClientConnectorError as error:
            raise NodeUnreachableError(self.name, shortened(str(error))) from error
        except ValueError:  # aiohttp shows the address as it is, with its password
            raise NodeUnreachableError(self.name, message("its address or a header cannot be used")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NodeFaultError(
                self.name, message("hung up before it answered, or spoke no HTTP")
            ) from error

    async def _over_living_connection(self, method: str, url: str, **sent: Any) -> aiohttp.ClientResponse:
        """The answer to a request, which is sent again where a used connection has ended at that moment.

        Servers close connections that nobody uses: uvicorn and llama.cpp after five seconds. What is sent
        just then is never read. aiohttp itself sends a GET again, but no POST. A server that hangs up later
        may have died of the request.
        """
        loop = asyncio.get_running_loop()
        while True:
            context: dict[str, bool] = {}
            began = loop.time()
            try:
                return await self._session.request(method, url, trace_request_ctx=context, **sent)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not context or loop.time() - began > UNREAD_SECONDS:
                    raise

    def _merged(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of all requests and of this one, whose own count more, in any spelling."""
        own = {name.lower() for name in headers}
        return {name: value for name, value in self._headers.items() if name.lower() not in own} | {**headers}

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestRefusedError(
                self.name, None, message("the request cannot be written as JSON")
            ) from error

    async def _read(self, response: aiohttp.ClientResponse, limit: int, *, whole: bool = True) -> bytes:
        """The body, or its beginning where it is not needed as a whole."""
        body = bytearray()
        while len(body) <= limit and (data := await self._some(response)):
            body += data
        if whole and len(body) > limit:
            raise NodeFaultError(self.name, message("answers with more than {limit} bytes", limit=limit))
        return bytes(body[:limit])

    async def _next_pieces(self, response: aiohttp.ClientResponse, buffer: "StreamBuffer[T]") -> list[T]:
        """One piece or more; none when the answer has ended."""
        try:
            while data := await self._some(response):
                if pieces := buffer.feed(data):
                    return pieces
        except LineTooLongError as error:
            reason = message("sends a line of more than {limit} bytes", limit=self.limits.line_bytes)
            raise NodeFaultError(self.name, reason) from error
        return buffer.end()

    async def _some(self, response: aiohttp.ClientResponse) -> bytes:
        """What has come, at least a byte; empty at the end."""
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise NodeFaultError(self.name, message("hung up in the middle of its answer")) from error

    def _line(self, text: bytes) -> dict[str, Any]:
        line = self.parsed(text)
        if "error" in line:
            raise NodeFaultError(self.name, message("failed while it answered"), said=said_in(text))
        return line

    def parsed(self, text: bytes) -> dict[str, Any]:
        """A JSON object. What is none is not shown: it may be a piece of somebody's conversation.

        Raises:
            NodeFaultError: it is none.
        """
        try:
            value = json_in(text.decode())
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        reason = message(
            "sends {count} bytes that are no JSON object: is it {engine}?",
            count=len(text),
            engine=self.dialect.engine,
        )
        raise NodeFaultError(self.name, reason)

    @asynccontextmanager
    async def _within(self, stage: _Stage, seconds: float, until: float | None = None) -> AsyncIterator[None]:
        """Bound what is done inside, by the event loop's clock."""
        end = asyncio.get_running_loop().time() + seconds if until is None else until
        try:
            async with asyncio.timeout_at(end):
                yield
        except TimeoutError as error:
            raise NodeTimeoutError(self.name, stage, seconds) from error


async def _read_to_end(pieces: AsyncGenerator[Any, None]) -> None:
    """Skip what comes after the last piece: an error there does no harm to an answer that is complete."""
    with suppress(NodeError, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in pieces:
                pass
