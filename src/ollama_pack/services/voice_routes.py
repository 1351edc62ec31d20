"""The routes of voice transcription: one of its own, and OpenAI's, for Open WebUI's microphone."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import ValidationError

from ollama_pack.errors import PackError
from ollama_pack.services.transcribing import VoiceWish, error_code, is_engine_fault, told_to, transcript_of
from ollama_pack.services.voice_settings import VOICE_TOOL, VoiceSettings
from ollama_pack.speech.errors import (
    AudioTooLargeError,
    AudioTooLongError,
    LanguageTagError,
    NoSpeechError,
    SpeechEngineError,
    SpeechLanguageError,
    SpeechQueueFullError,
)
from ollama_pack.speech.formats import (
    MEDIA_TYPES,
    TranscriptFormat,
    parse_format,
    render_transcript,
    verbose_form,
    warnings_in_header,
)
from ollama_pack.speech.languages import UNKNOWN_LANGUAGE
from ollama_pack.speech.pcm import pcm_container
from ollama_pack.speech.values import SAMPLE_RATE, PcmFormat, Transcript
from ollama_pack.webui.errors import UploadError, UploadTooLargeError
from ollama_pack.webui.routes import RouteSpec, json_answer, text_answer
from ollama_pack.webui.uploads import ReceivedRecording, received_recording
from ollama_pack.webui.voice_store import tool_valves

log_voice = logging.getLogger(__name__)

TRANSCRIBE_PATH = "/api/voice/transcribe"
OPENAI_PATH = "/api/voice/v1/audio/transcriptions"
LOOK_AROUND_SECONDS = 1.0  # so often it is seen whether who asked is still there
RAW_PCM = frozenset({"audio/l16", "audio/pcm", "audio/x-pcm"})
LITTLE_ENDIAN = "little-endian"
RETRY_SECONDS = "60"
MIN_KEY = 16  # characters
GRANULARITIES = "timestamp_granularities[]"
_BEARER = "bearer "


def check_microphone_key(text: str) -> str:
    """The key as it is; empty: there is none.

    Raises:
        ValueError: it is so short that it could be guessed.
    """
    if 0 < len(text.strip()) < MIN_KEY:
        raise ValueError(f"it has {len(text.strip())} characters, and opens a route: take {MIN_KEY} or more")
    return text.strip()


class VoiceRoutes:
    """Answers both routes by the valves of the tool, or by their defaults where it is not installed."""

    def __init__(self, key: Callable[[], str]) -> None:
        """Answer nothing yet; `key` gives the key with which Open WebUI's microphone is let in."""
        self._key = key

    @property
    def specs(self) -> tuple[RouteSpec, ...]:
        """The routes."""
        return (
            RouteSpec("POST", TRANSCRIBE_PATH, "user", self._transcribe),
            RouteSpec("POST", OPENAI_PATH, "user", self._openai, lets_in=self._is_microphone),
        )

    def _is_microphone(self, request: Any) -> bool:
        """Whether a request shows the microphone's key, which opens this one route and nothing else."""
        shown, key = str(request.headers.get("authorization", "")), self._key()
        if not key or not shown.lower().startswith(_BEARER):
            return False
        return hmac.compare_digest(shown[len(_BEARER) :].strip().encode(), key.encode())

    async def _transcribe(self, request: Any, user: Any) -> Any:
        try:
            async with _recording(request) as (recording, settings):
                form = parse_format(recording.value("format"))
                found = await unless_gone(request, _transcript(recording, settings))
        except PackError as error:
            return _failure(error, user)
        return _rendered(found, form)

    async def _openai(self, request: Any, user: Any) -> Any:
        try:
            async with _recording(request) as (recording, settings):
                form = parse_format(recording.value("response_format"))
                try:
                    found = await unless_gone(request, _transcript(recording, settings))
                except NoSpeechError as silence:
                    found = _silent(silence, recording.value("language"))
        except PackError as error:
            return _failure(error, user)
        return _openai_answer(found, form, recording.fields.get(GRANULARITIES, []))


@asynccontextmanager
async def _recording(request: Any) -> AsyncIterator[tuple[ReceivedRecording, VoiceSettings]]:
    settings = await _current_settings()
    try:
        async with received_recording(request, settings.max_bytes) as recording:
            yield recording, settings
    except UploadTooLargeError as error:
        raise AudioTooLargeError(error.limit, error.actual) from error


async def _current_settings() -> VoiceSettings:
    """What the admin has set, as it is now.

    Raises:
        SpeechEngineError: the valves that are stored cannot be used.
    """
    stored = await tool_valves(VOICE_TOOL)
    try:
        return VoiceSettings(**stored)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, one["loc"])) or one["msg"] for one in error.errors())
        raise SpeechEngineError(
            str(stored.get("engine", "")),
            f"the valves of {VOICE_TOOL} cannot be used ({wrong}): correct them",
        ) from error


async def _transcript(recording: ReceivedRecording, settings: VoiceSettings) -> Transcript:
    wish = VoiceWish(recording.value("language"), recording.value("prompt"), _pcm_format(recording))
    return await transcript_of(recording.file, wish, settings)


def _pcm_format(recording: ReceivedRecording) -> PcmFormat | None:
    """What `audio/L16; rate=16000; channels=1` says. The samples are little-endian, as sound cards give them.

    Raises:
        UploadError: it says something else.
    """
    if recording.media not in RAW_PCM:
        return None
    told = recording.parameters
    if told.get("endianness", LITTLE_ENDIAN).lower() != LITTLE_ENDIAN:
        raise UploadError("only little-endian samples can be read: convert them, or send a WAV file")
    try:
        pcm = PcmFormat(int(told.get("rate", SAMPLE_RATE)), int(told.get("channels", 1)))
        pcm_container(pcm)
    except ValueError as error:
        raise UploadError(f"raw samples cannot be read so: {error}") from error
    return pcm


async def unless_gone(request: Any, work: Awaitable[Transcript]) -> Transcript:
    """The result of work, which ends when whoever asked has left: others wait for their turn.

    Raises:
        UploadError: they have left; nobody reads it.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_AROUND_SECONDS)
            if not task.done() and await request.is_disconnected():
                raise UploadError("the client has left before its transcript was ready")
        return task.result()
    finally:
        if task.cancel():  # it is not done yet
            with suppress(asyncio.CancelledError, PackError):
                await task


def _silent(silence: NoSpeechError, asked: str) -> Transcript:
    """Nothing said, as a transcript: to press the microphone and say nothing is no error."""
    return Transcript("", asked or UNKNOWN_LANGUAGE, silence.seconds, (), "", "")


def _openai_answer(found: Transcript, form: TranscriptFormat, granularities: list[str]) -> Any:
    """As OpenAI's API answers: `json` has the text alone, `verbose_json` what was asked for of times."""
    if form == "json":
        return json_answer({"text": found.text}, headers=warnings_in_header(found))
    if form == "verbose_json":
        left_out = {"word": "words", "segment": "segments"}
        for kind in granularities or ["segment"]:
            left_out.pop(kind, None)
        wanted = {key: value for key, value in verbose_form(found).items() if key not in left_out.values()}
        return json_answer(wanted, headers=warnings_in_header(found))
    return _rendered(found, form)


def _rendered(found: Transcript, form: TranscriptFormat) -> Any:
    return text_answer(render_transcript(found, form), MEDIA_TYPES[form], warnings_in_header(found))


def _failure(error: PackError, user: Any) -> Any:
    """An error as the article's page and OpenAI's clients read it; faults of the engine are logged."""
    status = _status(error)
    if is_fault := is_engine_fault(error):
        log_voice.error("a recording was not transcribed: %s", error)
    message = told_to(error, is_admin=getattr(user, "role", "") == "admin")
    kind = "server_error" if is_fault else "invalid_request_error"
    body = {"detail": message, "error": {"message": message, "type": kind, "code": error_code(error)}}
    is_busy = isinstance(error, SpeechQueueFullError)
    return json_answer(body, status, {"Retry-After": RETRY_SECONDS} if is_busy else {})


def _status(error: PackError) -> int:
    statuses: dict[type[PackError] | tuple[type[PackError], ...], int] = {
        (LanguageTagError, SpeechLanguageError): 422,
        (AudioTooLargeError, AudioTooLongError): 413,
        (SpeechQueueFullError, SpeechEngineError): 503,
    }
    return next((status for kinds, status in statuses.items() if isinstance(error, kinds)), 400)
