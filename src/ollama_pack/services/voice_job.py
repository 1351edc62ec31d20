"""One call of the tool: which recordings, how far it is, what the model gets, and the file for the user."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from ollama_pack.base.messages import ENGLISH, Message, in_language, joined, message
from ollama_pack.errors import PackError
from ollama_pack.services.transcribing import VoiceWish, is_engine_fault, told_to, transcript_of
from ollama_pack.services.voice_settings import VoiceSettings
from ollama_pack.speech.errors import NoAttachmentError
from ollama_pack.speech.formats import MEDIA_TYPES, TranscriptFormat, parse_format, render_transcript
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.transcribe import SpeechUser
from ollama_pack.speech.values import SpeechProgress, Transcript
from ollama_pack.webui.voice_files import StoredRecording, local_copy, readable_recording, store_text

log = logging.getLogger(__name__)

MODEL_CHARACTERS = 16_000  # of all transcripts of a call for the model: about 4,000 tokens of English
SHOWN_CHARACTERS = 80  # of the text that was heard last, in a status line
_SUFFIXES: Mapping[TranscriptFormat, str] = {"text": "txt", "srt": "srt", "vtt": "vtt"}
# What names of recordings end with. Python's own table depends on the system that it runs on.
_RECORDINGS = frozenset(
    {
        *("3gp", "aac", "aif", "aiff", "amr", "avi", "caf", "flac", "flv", "m4a", "m4b", "m4v", "mka"),
        *("mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "oga", "ogg", "ogv", "opus", "wav", "weba"),
        *("webm", "wma", "wmv"),
    }
)
_ATTACH = message("attach an audio or video file to the chat")
_BROKEN = message(
    "Nothing could be transcribed because of a fault in the tool: an admin finds it in the log."
)

EmitEvent = Callable[[dict[str, Any]], Awaitable[None]]


class VoiceJob:
    """Transcribes for one user in one chat."""

    def __init__(
        self,
        settings: VoiceSettings,
        user: Mapping[str, Any],
        request: Any,
        emit: EmitEvent | None,
        language: str = ENGLISH,
    ) -> None:
        """Begin nothing yet.

        Args:
            settings: the admin's.
            user: as Open WebUI describes them: `id`, `role`.
            request: Starlette's.
            emit: takes events for the chat's page; None: nobody looks.
            language: in which the user reads.
        """
        self._settings = settings
        self._user_id = str(user.get("id", ""))
        self._is_admin = user.get("role") == "admin"
        self._request = request
        self._emit = emit
        self._reader = language

    async def run(self, wanted: str, attached: Sequence[Mapping[str, Any]], language: str, form: str) -> str:
        """Transcribe, and give what the model reads.

        Args:
            wanted: names or ids of recordings; empty: all that are attached.
            attached: files of the chat, as Open WebUI lists them.
            language: tag; empty: as the admin has it.
            form: of the file that is attached.

        Raises:
            PackError: nothing can be transcribed. What is wrong with one of several is in the answer.
        """
        parsed = parse_format(form)
        parse_language(language)
        chosen = chosen_recordings(wanted, attached)
        parts: list[str] = []
        failures: list[PackError] = []
        for file_id in chosen:
            try:
                recording = await readable_recording(file_id, self._user_id)
                found = await self._transcript(recording, language)
                file = await self._attach(recording, found, parsed)
                bound = MODEL_CHARACTERS // len(chosen)
                parts.append(for_model(recording.name, found, parsed, file, bound, self._reader))
            except PackError as error:
                if len(chosen) == 1:
                    raise
                failures.append(error)
                parts.append(f"{_name(file_id, attached)}: {self._told(error)}")
        done = len(chosen) - len(failures)
        await self._status(
            message("Transcribed {done} of {count} recordings", done=done, count=len(chosen))
            if failures
            else message("Transcribed"),
            done=True,
        )
        return "\n\n".join(parts)

    async def failed(self, error: PackError) -> str:
        """Say on the page that it did not work, and give what the model reads."""
        told = self._told(error)
        await self._status(told, done=True)
        return self._said(message("Error: {reason}", reason=told))

    async def broken(self) -> str:
        """The same for a fault of the tool itself."""
        await self._status(_BROKEN, done=True)
        return self._said(message("Error: {reason}", reason=_BROKEN))

    def _told(self, error: PackError) -> str:
        if is_engine_fault(error):
            log.error("a recording was not transcribed: %s", error)
        return told_to(error, self._reader, is_admin=self._is_admin)

    def _said(self, sentence: str) -> str:
        return in_language(sentence, self._reader)

    async def _transcript(self, recording: StoredRecording, language: str) -> Transcript:
        await self._status(message("Transcribing {name}", name=recording.name))

        async def tell(progress: SpeechProgress) -> None:
            line = message("{name}: {progress}", name=recording.name, progress=progress_line(progress))
            await self._status(line)

        async with local_copy(recording) as path:
            user = SpeechUser(self._user_id)
            return await transcript_of(
                path, VoiceWish(language, reader=self._reader), self._settings, tell, user
            )

    async def _attach(self, recording: StoredRecording, found: Transcript, form: TranscriptFormat) -> str:
        """The name of the file that the chat has now."""
        name = f"{recording.name.rpartition('.')[0] or recording.name}.{_SUFFIXES.get(form, 'json')}"
        text = await asyncio.to_thread(render_transcript, found, form)
        file = await store_text(self._request, self._user_id, name, text, MEDIA_TYPES[form])
        if self._emit:
            await self._emit({"type": "files", "data": {"files": [file]}})
        return name

    async def _status(self, text: str, *, done: bool = False) -> None:
        if self._emit:
            await self._emit({"type": "status", "data": {"description": self._said(text), "done": done}})


def chosen_recordings(wanted: str, attached: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of the files to transcribe, each once. A name that is not attached is taken for an id.

    Args:
        wanted: names or ids, with commas between them; empty: all recordings.
        attached: files of the chat, as Open WebUI lists them.

    Raises:
        NoAttachmentError: none is named, and none of them is audio or video.
    """
    files = {
        str(file["id"]): file for file in attached if file.get("type", "file") == "file" and file.get("id")
    }
    if not wanted.strip():
        found = [file_id for file_id, file in files.items() if _is_recording(file)]
        if not found:
            raise NoAttachmentError(_ATTACH, map(_file_name, files.values()))
        return found
    by_name = {_file_name(file).casefold(): file_id for file_id, file in files.items()}
    names = [wanted] if wanted.strip().casefold() in by_name else wanted.split(",")
    plain = [name.strip() for name in names if name.strip()]
    return list(dict.fromkeys(by_name.get(name.casefold(), name) for name in plain))


def _is_recording(file: Mapping[str, Any]) -> bool:
    meta = (file.get("file") or {}).get("meta") or {}
    told = str(file.get("content_type") or meta.get("content_type") or "")
    ending = _file_name(file).rpartition(".")[2].lower()
    return told.startswith(("audio/", "video/")) or ending in _RECORDINGS


def _file_name(file: Mapping[str, Any]) -> str:
    return str(file.get("name") or (file.get("file") or {}).get("filename") or file.get("id"))


def _name(file_id: str, attached: Iterable[Mapping[str, Any]]) -> str:
    return next((_file_name(file) for file in attached if file.get("id") == file_id), file_id)


def progress_line(progress: SpeechProgress) -> Message:
    """How far a recording is, for a status line."""
    if progress.stage == "waiting":
        if progress.ahead == 1:
            return message("waiting, 1 recording before it")
        return message("waiting, {count} recordings before it", count=progress.ahead)
    seconds, total = _clock_time(progress.seconds), _clock_time(progress.total or 0)
    place: str = message("{seconds} of {total}", seconds=seconds, total=total) if progress.total else seconds
    text = progress.text[-SHOWN_CHARACTERS:]
    return joined([place, f"“{text}”" if text else ""], " ")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def for_model(
    name: str,
    found: Transcript,
    form: TranscriptFormat,
    file: str,
    bound: int,
    language: str = ENGLISH,
) -> str:
    """A transcript as the model gets it: with times where subtitles are wanted, cut where it is long."""
    text = render_transcript(found, form if form in {"srt", "vtt"} else "text").strip()
    lines: list[str] = [
        message(
            "Transcript of {name} ({language}, {duration}), attached as {file}:",
            name=name,
            language=found.language,
            duration=_clock_time(found.duration),
            file=file,
        ),
        text,
    ]
    if len(text) > bound:
        lines[1] = text[:bound]
        lines.append(
            message(
                "[The first {bound} of {count} characters; all of it is in the attached {file}.]",
                bound=bound,
                count=len(text),
                file=file,
            )
        )
    lines += [message("Warning: {text}", text=note.text) for note in found.notes]
    return "\n".join(line if line == text[:bound] else in_language(line, language) for line in lines)
