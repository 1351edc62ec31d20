"""The routes of voice transcription: one of its own, and OpenAI's, for Open WebUI's microphone."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import Field, ValidationError, field_validator

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError, error_code
from ollama_pack.services.transcribing import VoiceWish, is_engine_fault, told_to, transcript_of
from ollama_pack.services.valves import PackValves
from ollama_pack.services.voice_settings import VOICE_TOOL, VoiceSettings
from ollama_pack.speech.errors import (
    AudioTooLargeError,
    AudioTooLongError,
    LanguageTagError,
    NoSpeechError,
    SpeechEngineError,
    SpeechLanguageError,
    SpeechQueueFullError,
    SpeechShareFullError,
    UnknownSpeechModelError,
)
from ollama_pack.speech.formats import (
    MEDIA_TYPES,
    TranscriptFormat,
    parse_format,
    render_transcript,
    verbose_form,
    warnings_in_header,
)
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.languages import UNKNOWN_LANGUAGE
from ollama_pack.speech.pcm import pcm_container
from ollama_pack.speech.transcribe import SpeechUser
from ollama_pack.speech.values import SAMPLE_RATE, PcmFormat, Transcript
from ollama_pack.webui.errors import NoRoomError, UploadError, UploadTooLargeError
from ollama_pack.webui.routes import RouteSpec, check_route_key, json_answer, shows_key, text_answer
from ollama_pack.webui.uploads import ReceivedRecording, drop_body, received_recording
from ollama_pack.webui.users import accepted_language
from ollama_pack.webui.voice_files import forwarded_user, tool_valves

log = logging.getLogger(__name__)

TRANSCRIBE_PATH = "/api/voice/transcribe"
OPENAI_PATH = "/api/voice/v1/audio/transcriptions"
MODELS_PATH = "/api/voice/v1/models"
OPENAI_MODEL = "whisper-1"  # what clients of OpenAI's API ask for unless they are set up otherwise
LOOK_AROUND_SECONDS = 1.0  # so often it is seen whether who asked is still there
RAW_PCM = frozenset({"audio/l16", "audio/pcm", "audio/x-pcm"})
LITTLE_ENDIAN = "little-endian"
RETRY_SECONDS = "60"
GRANULARITIES = "timestamp_granularities[]"
MAX_PROMPT = 2000  # characters: Whisper looks at the last 224 tokens
MAX_OF_USER, MAX_OF_SHARED = 8, 64  # requests at the same time: each has its recording on the disk


class MicrophoneValves(PackValves):
    """The valves of a function that has the routes."""

    microphone_key: str = Field(
        default="",
        title="Microphone key",
        description=(
            "Key with which Open WebUI's microphone sends recordings for all users. It opens only `POST "
            "/api/voice/v1/audio/transcriptions`. 16 characters or more; `upload.py` sets it. Default: "
            "empty."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    microphone_before: str = Field(
        default="",
        title="Earlier microphone settings",
        description=(
            "Open WebUI's speech-to-text settings from before `upload.py` changed them. `upload.py "
            "--remove` and `voice: {microphone: false}` restore them. Do not edit."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    @field_validator("microphone_key", "metrics_token", check_fields=False)
    @classmethod
    def _long_key(cls, text: str) -> str:
        return check_route_key(text)


class VoiceRoutes:
    """Answers both routes by the valves of the tool, or by their defaults where it is not installed."""

    def __init__(self, key: Callable[[], str]) -> None:
        """Answer nothing yet; `key` gives the key with which Open WebUI's microphone is let in."""
        self._key = key
        self._open: Counter[str] = Counter()  # user → requests that are being answered

    @property
    def specs(self) -> tuple[RouteSpec, ...]:
        """The routes."""
        return (
            RouteSpec("POST", TRANSCRIBE_PATH, "user", self._transcribe),
            RouteSpec("POST", OPENAI_PATH, "user", self._openai, lets_in=self._is_microphone),
            RouteSpec("GET", MODELS_PATH, "user", self._models, lets_in=self._is_microphone),
            RouteSpec(
                "GET", MODELS_PATH + "/{model:path}", "user", self._models, lets_in=self._is_microphone
            ),
        )

    def _is_microphone(self, request: Any) -> bool:
        """Whether a request shows the microphone's key, which opens this one route and nothing else."""
        return shows_key(request, self._key())

    async def _transcribe(self, request: Any, user: Any) -> Any:
        try:
            async with self._recording(request, user) as (recording, settings, speaker):
                form = parse_format(recording.value("format"))
                found = await unless_gone(request, _transcript(recording, settings, speaker, request))
        except PackError as error:
            return _failure(error, user, request)
        return await _rendered(found, form)

    async def _openai(self, request: Any, user: Any) -> Any:
        try:
            async with self._recording(request, user) as (recording, settings, speaker):
                form = parse_format(recording.value("response_format"))
                try:
                    found = await unless_gone(request, _transcript(recording, settings, speaker, request))
                except NoSpeechError as silence:
                    found = _silent(silence, recording.value("language"))
        except PackError as error:
            return _failure(error, user, request)
        return await _openai_answer(found, form, recording.fields.get(GRANULARITIES, []))

    async def _models(self, request: Any, user: Any) -> Any:
        """The models as OpenAI's API lists them: the admin's, and the one that clients ask for by default."""
        try:
            settings = await _current_settings()
        except PackError as error:
            return _failure(error, user, request)
        names = dict.fromkeys((settings.shown_model, OPENAI_MODEL))
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": settings.engine} for name in names
        ]
        if (wanted := request.path_params.get("model")) is None:
            return {"object": "list", "data": models}
        found = next((model for model in models if model["id"] == wanted), None)
        return found or _failure(UnknownSpeechModelError(wanted, names), user, request)

    @asynccontextmanager
    async def _recording(
        self, request: Any, user: Any
    ) -> AsyncIterator[tuple[ReceivedRecording, VoiceSettings, SpeechUser]]:
        """What came with a request, how it is to be transcribed, and for whom.

        Raises:
            SpeechShareFullError: the user has `MAX_OF_USER` requests already.
        """
        settings = await _current_settings()
        speaker = SpeechUser(str(user.id)) if user else _of_microphone(request)
        limit = MAX_OF_SHARED if speaker.is_shared else MAX_OF_USER
        if (busy := self._open[speaker.id]) >= limit:
            await drop_body(request, settings.max_bytes)
            raise SpeechShareFullError(limit, busy)
        self._open[speaker.id] += 1
        try:
            async with received_recording(request, settings.max_bytes) as recording:
                yield recording, settings, speaker
        except UploadTooLargeError as error:
            raise AudioTooLargeError(error.limit, error.actual) from error
        finally:
            self._open[speaker.id] -= 1
            self._open = +self._open  # those who have none are forgotten


def _of_microphone(request: Any) -> SpeechUser:
    """The user of Open WebUI's microphone, where Open WebUI says who that is; else all of them together."""
    user = forwarded_user(request.headers)
    return SpeechUser(user, is_shared=not user)


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
            message(
                "the valves of {tool} cannot be used ({wrong}): correct them", tool=VOICE_TOOL, wrong=wrong
            ),
        ) from error


async def _transcript(
    recording: ReceivedRecording, settings: VoiceSettings, speaker: SpeechUser, request: Any
) -> Transcript:
    prompt = recording.value("prompt")[-MAX_PROMPT:]
    reader = accepted_language(request)
    wish = VoiceWish(recording.value("language"), prompt, _pcm_format(recording), reader)
    return await transcript_of(recording.file, wish, settings, user=speaker)


def _pcm_format(recording: ReceivedRecording) -> PcmFormat | None:
    """What `audio/L16; rate=16000; channels=1` says. The samples are little-endian, as sound cards give them.

    Raises:
        UploadError: it says something else.
    """
    if recording.media not in RAW_PCM:
        return None
    told = recording.parameters
    if told.get("endianness", LITTLE_ENDIAN).lower() != LITTLE_ENDIAN:
        raise UploadError(message("only little-endian samples can be read: convert them, or send a WAV file"))
    try:
        pcm = PcmFormat(int(told.get("rate", SAMPLE_RATE)), int(told.get("channels", 1)))
        pcm_container(pcm)
    except ValueError as error:
        raise UploadError(message("raw samples cannot be read so: {error}", error=error)) from error
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
                raise UploadError(message("the client has left before its transcript was ready"))
        return task.result()
    finally:
        if task.cancel():  # it is not done yet
            with suppress(asyncio.CancelledError, PackError):
                await task


def _silent(silence: NoSpeechError, asked: str) -> Transcript:
    """Nothing said, as a transcript: to press the microphone and say nothing is no error."""
    tag = parse_language(asked)
    return Transcript("", tag.text if tag else UNKNOWN_LANGUAGE, silence.seconds, (), "", "")


async def _openai_answer(found: Transcript, form: TranscriptFormat, granularities: list[str]) -> Any:
    """As OpenAI's API answers: `json` has the text alone, `verbose_json` what was asked for of times."""
    if form == "json":
        return json_answer({"text": found.text}, headers=warnings_in_header(found))
    if form != "verbose_json":
        return await _rendered(found, form)
    left_out = {"word": "words", "segment": "segments"}
    for kind in granularities or ["segment"]:
        left_out.pop(kind, None)

    def written() -> str:
        kept = {key: value for key, value in verbose_form(found).items() if key not in left_out.values()}
        return json.dumps(kept, ensure_ascii=False, allow_nan=False)

    text = await asyncio.to_thread(written)
    return text_answer(text, MEDIA_TYPES[form], warnings_in_header(found))


async def _rendered(found: Transcript, form: TranscriptFormat) -> Any:
    """Not on the event loop: hours of speech take a second."""
    text = await asyncio.to_thread(render_transcript, found, form)
    return text_answer(text, MEDIA_TYPES[form], warnings_in_header(found))


def _failure(error: PackError, user: Any, request: Any) -> Any:
    """An error as the article's page and OpenAI's clients read it; faults of the engine are logged."""
    status = _status(error)
    if is_fault := is_engine_fault(error):
        log.error("a recording was not transcribed: %s", error)
    is_admin = getattr(user, "role", "") == "admin"
    said = told_to(error, accepted_language(request), is_admin=is_admin)
    kind = "server_error" if is_fault else "invalid_request_error"
    body = {"detail": said, "error": {"message": said, "type": kind, "code": error_code(error)}}
    is_busy = isinstance(error, SpeechQueueFullError | NoRoomError)
    return json_answer(body, status, {"Retry-After": RETRY_SECONDS} if is_busy else {})


def _status(error: PackError) -> int:
    statuses: dict[type[PackError] | tuple[type[PackError], ...], int] = {
        (LanguageTagError, SpeechLanguageError): 422,
        (AudioTooLargeError, AudioTooLongError): 413,
        UnknownSpeechModelError: 404,
        SpeechShareFullError: 429,
        (SpeechQueueFullError, SpeechEngineError, NoRoomError): 503,
    }
    return next((status for kinds, status in statuses.items() if isinstance(error, kinds)), 400)
