"""Any server with OpenAI's `/v1/audio/transcriptions`: speaches, LocalAI, whisper.cpp, Groq, OpenAI, vLLM."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.failures import node_name, retry_seconds, said_in, shortened
from ollama_pack.speech.errors import (
    SpeechServerBusyError,
    SpeechServerError,
    SpeechServerFaultError,
    SpeechServerKeyError,
    SpeechServerRefusedError,
    SpeechServerTimeoutError,
    SpeechServerTooLargeError,
    SpeechServerUnreachableError,
)
from ollama_pack.speech.http_answer import heard_in
from ollama_pack.speech.language import LanguageTag
from ollama_pack.speech.pcm import wav_bytes
from ollama_pack.speech.values import WINDOW_SECONDS, EngineRequest, Heard, SpeechWindow

OPENAI_HTTP = "openai_http"
SPEECH_PATH = "/v1/audio/transcriptions"
ANSWER_BYTES = 4 * 2**20  # of the longest answer to a window
_OK = 200
_REFUSED = frozenset(
    {400, 404, 405, 406, 415, 422}
)  # of them, 400, 415 and 422 may be for the response format
_FORMAT_REFUSED = frozenset({400, 415, 422})
_KEY_REFUSED = frozenset({401, 403})
_BUSY_STATUS = frozenset({429, 503})
_TOO_LARGE = 413
_FAULTS = 500  # and above: the server's own


@dataclass(frozen=True, slots=True)
class SpeechServer:
    """A transcription server, and how patient we are with it.

    Attributes:
        base_url: such as http://localhost:8000/v1; with or without /v1, or the whole address.
        model: as the server calls it.
        api_key: sent in the `Authorization` header; empty: none is sent.
        connect_seconds: until there is a connection.
        answer_seconds: for the text of one window.
        tries: of a window, when the server is busy; twice as many once it has answered.
        max_wait_seconds: between two tries, whatever the server asks for.
        parallel: windows at the same time.
        window_seconds: the longest window.
    """

    base_url: str
    model: str = "whisper-1"
    api_key: str = field(default="", repr=False)
    connect_seconds: float = 5.0
    answer_seconds: float = 300.0
    tries: int = 4
    max_wait_seconds: float = 30.0
    parallel: int = 2
    window_seconds: float = WINDOW_SECONDS

    @property
    def url(self) -> str:
        """Where recordings are sent."""
        base = self.base_url.strip().rstrip("/")
        if base.endswith("/audio/transcriptions"):
            return base
        return base.removesuffix("/v1") + SPEECH_PATH


class OpenAIHTTPEngine:
    """Sends each window to a server. The session is the caller's."""

    name = OPENAI_HTTP
    is_here = False

    def __init__(self, server: SpeechServer, session: aiohttp.ClientSession) -> None:
        """Take what is needed later; nothing is connected."""
        self.model = server.model
        self.parallel = server.parallel
        self.window_seconds = server.window_seconds
        self._server = server
        self._session = session
        self._where = node_name(server.url)
        self._verbose = True  # until the server refuses it
        self._has_answered = False

    async def be_ready(self, language: LanguageTag | None) -> None:
        """See `SpeechEngine`. The server knows its languages, and says so."""

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """See `SpeechEngine`."""
        audio = wav_bytes(window.samples)
        fields = {"model": self._server.model, "temperature": "0"}
        if request.language:
            fields["language"] = request.language.code
        if request.prompt:
            fields["prompt"] = request.prompt
        answer = await self._ask(audio, fields, words=request.words)
        try:
            return await asyncio.to_thread(heard_in, answer, window.seconds)
        except ValueError as error:
            reason = message(
                "answers {count} bytes that are no transcription: is `base_url` right?", count=len(answer)
            )
            raise SpeechServerFaultError(self._where, reason) from error

    async def _ask(self, audio: bytes, fields: Mapping[str, str], *, words: bool) -> bytes:
        """With times if the server has them. Once it has refused `verbose_json`, it is asked for `json`."""
        if self._verbose:
            wanted = [("response_format", "verbose_json"), ("timestamp_granularities[]", "segment")]
            if words:
                wanted.append(("timestamp_granularities[]", "word"))
            try:
                return await self._ask_patiently(audio, [*fields.items(), *wanted])
            except SpeechServerRefusedError as error:
                if error.status not in _FORMAT_REFUSED:
                    raise
        answer = await self._ask_patiently(audio, [*fields.items(), ("response_format", "json")])
        self._verbose = False
        return answer

    async def _ask_patiently(self, audio: bytes, fields: list[tuple[str, str]]) -> bytes:
        """Ask a busy server again, and one that has answered when it fails: a hiccup loses no hours."""
        tried = 0
        while True:
            try:
                answer = await self._post(audio, fields)
            except SpeechServerError as error:
                tried += 1
                if tried >= self._server.tries * (2 if self._has_answered else 1) or not self._may_pass(
                    error
                ):
                    raise
                asked = error.retry_seconds if isinstance(error, SpeechServerBusyError) else None
                wait = 2.0 ** (tried - 1) if asked is None else asked
                await asyncio.sleep(min(wait, self._server.max_wait_seconds))
            else:
                self._has_answered = True
                return answer

    def _may_pass(self, error: SpeechServerError) -> bool:
        """Whether the same may go well in a moment. A server that has never answered is set up wrong."""
        if isinstance(error, SpeechServerBusyError):
            return True
        is_fault = isinstance(error, SpeechServerFaultError) and (error.status or _FAULTS) >= _FAULTS
        return self._has_answered and (is_fault or isinstance(error, SpeechServerUnreachableError))

    async def _post(self, audio: bytes, fields: list[tuple[str, str]]) -> bytes:
        form = aiohttp.FormData(fields)
        form.add_field("file", audio, filename="audio.wav", content_type="audio/wav")
        try:
            async with (
                asyncio.timeout(self._server.answer_seconds),
                self._session.post(
                    self._server.url,
                    data=form,
                    headers=self._headers(),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._server.connect_seconds),
                    allow_redirects=False,  # the key is for this server
                ) as response,
            ):
                answer = await self._read(response)
                if response.status == _OK:
                    return answer
                raise self._status_error(response, answer, len(audio))
        except aiohttp.ServerTimeoutError as error:
            raise SpeechServerTimeoutError(self._where, self._server.connect_seconds) from error
        except TimeoutError as error:
            raise SpeechServerTimeoutError(self._where, self._server.answer_seconds) from error
        except aiohttp.ClientConnectorError as error:
            raise SpeechServerUnreachableError(self._where, shortened(str(error))) from error
        except ValueError:  # aiohttp shows the address as it is, with its password
            raise SpeechServerUnreachableError(
                self._where, message("the address or the key cannot be used in a request")
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise SpeechServerFaultError(
                self._where, message("hung up before it answered, or spoke no HTTP")
            ) from error

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._server.api_key}"} if self._server.api_key else {}

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        answer = await response.content.read(ANSWER_BYTES)
        while len(answer) < ANSWER_BYTES and (
            more := await response.content.read(ANSWER_BYTES - len(answer))
        ):
            answer += more
        if not response.content.at_eof():
            reason = message("answers with more than {limit} MB", limit=ANSWER_BYTES // 2**20)
            raise SpeechServerFaultError(self._where, reason, status=response.status)
        return answer

    def _status_error(self, response: aiohttp.ClientResponse, answer: bytes, sent: int) -> SpeechServerError:
        status, said = response.status, said_in(answer)
        if key := self._server.api_key:
            said = said.replace(key, "…")  # some servers repeat it
        if status in _KEY_REFUSED:
            return SpeechServerKeyError(self._where, status, said)
        if status == _TOO_LARGE:
            return SpeechServerTooLargeError(self._where, sent)
        if status in _BUSY_STATUS:
            wait = retry_seconds(response.headers.get("Retry-After", ""))
            return SpeechServerBusyError(self._where, status, said, wait)
        if status in _REFUSED:
            return SpeechServerRefusedError(self._where, status, said)
        return SpeechServerFaultError(
            self._where, message("answers with status {status}", status=status), status=status, said=said
        )
