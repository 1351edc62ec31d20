"""Transcribing on behalf of somebody: by the admin's settings, and not twice."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from ollama_pack.base.messages import ENGLISH, in_language, known_language, message
from ollama_pack.base.single_flight import process_wide
from ollama_pack.errors import PackError, error_code
from ollama_pack.services.voice_settings import VoiceSettings
from ollama_pack.speech.errors import SpeechEngineError, SpeechLanguageError
from ollama_pack.speech.kept import kept_transcripts, recording_key
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.source import AudioSource
from ollama_pack.speech.transcribe import ANY_SPEAKER, SpeechUser, transcribe
from ollama_pack.speech.turns import line_states
from ollama_pack.speech.values import PcmFormat, ProgressCallback, SpeechOptions, Transcript
from ollama_pack.speech.whisper_model import ModelPlaces
from ollama_pack.webui.tracing import current_span
from ollama_pack.webui.voice_files import model_folders


@dataclass(frozen=True, slots=True)
class VoiceWish:
    """What somebody wants of a transcription.

    Attributes:
        language: tag of the language that is spoken; empty: as the admin has it.
        prompt: names and words that occur.
        pcm: the format of a recording without a header.
        reader: language in which the notes are to be.
    """

    language: str = ""
    prompt: str = ""
    pcm: PcmFormat | None = None
    reader: str = ENGLISH


async def transcript_of(
    source: AudioSource,
    wish: VoiceWish,
    settings: VoiceSettings,
    on_progress: ProgressCallback | None = None,
    user: SpeechUser = ANY_SPEAKER,
) -> Transcript:
    """The transcript of a recording; at once where the same user wanted the same a while ago.

    Args:
        source: the recording.
        wish: what is wanted.
        settings: the admin's.
        on_progress: see `transcribe`.
        user: whose recording it is. Of one whom nobody knows nothing is kept: by the time that an answer
            takes, others could find out who has had a recording.

    Raises:
        SpeechError: see `transcribe`.
        OSError: the file cannot be read.
    """
    began = time.monotonic()
    try:
        with current_span("transcribe a recording") as span:
            transcript, was_kept = await _kept_or_made(source, wish, settings, on_progress, user)
            span.set_attribute("ollama_pack.audio_seconds", transcript.duration)
    except PackError as error:
        _count(f"outcome/{error_code(error)}")
        raise
    _count("outcome/kept" if was_kept else "outcome/ok")
    if not was_kept:
        _count("audio_seconds", transcript.duration)
        _count("work_seconds", time.monotonic() - began)
    return transcript


def voice_counts() -> dict[str, float]:
    """What all plugins of this process have transcribed, in figures without any text.

    | name | what |
    |---|---|
    | `outcome/ok`, `outcome/kept`, `outcome/<code>` | recordings: listened to, known already, failed |
    | `audio_seconds`, `work_seconds` | length of those listened to, and the time that it took |
    """
    return process_wide("counts", dict)


async def voice_report() -> dict[str, Any]:
    """What this process has transcribed, and who waits, for the dashboard."""
    return {"counts": dict(voice_counts()), "queue": line_states()}


def _count(name: str, value: float = 1) -> None:
    counts = voice_counts()
    counts[name] = counts.get(name, 0) + value


async def _kept_or_made(
    source: AudioSource,
    wish: VoiceWish,
    settings: VoiceSettings,
    on_progress: ProgressCallback | None,
    user: SpeechUser,
) -> tuple[Transcript, bool]:
    """The transcript, and whether it was known already."""
    language = wish.language or settings.language
    parse_language(language)  # before a large file is read
    options = SpeechOptions(
        language=language,
        prompt=wish.prompt,
        max_bytes=settings.max_bytes,
        max_seconds=settings.max_minutes * 60.0,
        pcm=wish.pcm,
    )
    kept = kept_transcripts()
    key = ""
    if user.id:
        identity = (user.id, options, *settings.identity, known_language(wish.reader))
        key = await asyncio.to_thread(recording_key, source, settings.max_bytes, *identity)
        if found := await asyncio.to_thread(kept.find, key):
            return found, True
    whispers, ours = model_folders()
    async with settings.running_engine(ModelPlaces((whispers,), ours)) as engine:
        transcript = await transcribe(source, options, engine, on_progress, user)
    notes = tuple(replace(note, text=in_language(note.text, wish.reader)) for note in transcript.notes)
    transcript = replace(transcript, notes=notes)
    if key:
        await asyncio.to_thread(kept.keep, key, transcript)
    return transcript, False


def told_to(error: PackError, language: str = ENGLISH, *, is_admin: bool) -> str:
    """What somebody is told of an error: places and addresses of the server are for admins."""
    if is_admin or not is_engine_fault(error):
        return in_language(error, language)
    said = message("the speech engine cannot work now: ask an admin, the log has the reason")
    return in_language(said, language)


def is_engine_fault(error: PackError) -> bool:
    """Whether an admin can help, not the user: the reason belongs into the log."""
    return isinstance(error, SpeechEngineError) and not isinstance(error, SpeechLanguageError)
