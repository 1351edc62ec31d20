"""A transcript as text, SubRip (SRT), WebVTT, JSON, or the JSON that OpenAI's API answers with."""

import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from ollama_pack.speech.errors import TranscriptFormatError
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.languages import LANGUAGES, UNKNOWN_LANGUAGE
from ollama_pack.speech.subtitles import cues, timestamp
from ollama_pack.speech.values import SpeechNote, SpeechSegment, SpokenWord, Transcript

TranscriptFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]
TRANSCRIPT_FORMATS: tuple[TranscriptFormat, ...] = get_args(TranscriptFormat)

MEDIA_TYPES: dict[TranscriptFormat, str] = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "verbose_json": "application/json",
}

WARNING_HEADER = "X-Ollama-Pack-Warning"

_SEEK_PER_SECOND = 100  # of `seek` in OpenAI's segments


def render_transcript(transcript: Transcript, form: TranscriptFormat) -> str:
    """The whole transcript in one of the formats; lines end with a line feed."""
    writers: dict[TranscriptFormat, Callable[[Transcript], str]] = {
        "json": lambda found: _dumped(json_form(found)),
        "text": lambda found: found.text + "\n",
        "srt": _srt,
        "vtt": _vtt,
        "verbose_json": lambda found: _dumped(verbose_form(found)),
    }
    return writers[form](transcript)


def parse_format(text: str) -> TranscriptFormat:
    """A format by its name; nothing at all is `json`.

    Raises:
        TranscriptFormatError: there is none of that name.
    """
    plain = text.strip().lower() or "json"
    for form in TRANSCRIPT_FORMATS:
        if form == plain:
            return form
    raise TranscriptFormatError(text, TRANSCRIPT_FORMATS)


def json_form(transcript: Transcript) -> dict[str, Any]:
    """What `format=json` answers: text, language, duration in seconds, segments with words, notes."""
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": _rounded(transcript.language_probability),
        "duration": round(transcript.duration, 3),
        "segments": [_json_segment(segment) for segment in transcript.segments],
        "engine": transcript.engine,
        "model": transcript.model,
        "warnings": [{"kind": note.kind, "text": note.text} for note in transcript.notes],
    }


def verbose_form(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `TranscriptionVerbose`; what an engine does not tell has OpenAI's neutral value."""
    unknown = transcript.language == UNKNOWN_LANGUAGE
    tag = None if unknown else parse_language(transcript.language)
    words = [word for segment in transcript.segments for word in segment.words]
    return {
        "task": "transcribe",
        "language": LANGUAGES[tag.code] if tag else "",
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [{**_times(word), "word": word.text.strip()} for word in words],
        "segments": [_verbose_segment(number, segment) for number, segment in enumerate(transcript.segments)],
    }


def warnings_in_header(transcript: Transcript) -> dict[str, str]:
    """The notes as a header, for formats that have no place for them; nothing where there are none.

    It is a dictionary of strings (RFC 9651): `truncated="The recording is not whole: …", language="…"`.
    """
    notes = (f"{note.kind}={_header_text(note.text)}" for note in transcript.notes)
    return {WARNING_HEADER: ", ".join(notes)} if transcript.notes else {}


def _header_text(text: str) -> str:
    """One line as a string of the RFC, or its display string (UTF-8 in percent signs) if not ASCII."""
    line = " ".join(text.split())
    if not line.isascii():
        encoded = re.sub(rb'[^ -~]|[%"]', _percent, line.encode())
        return f'%"{encoded.decode()}"'
    escaped = line.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02x" % found[0][0]


def _json_segment(segment: SpeechSegment) -> dict[str, Any]:
    return {
        **_times(segment),
        "text": segment.text,
        "probability": _rounded(segment.probability),
        "words": [
            {**_times(word), "word": word.text.strip(), "probability": _rounded(word.probability)}
            for word in segment.words
        ],
    }


def _verbose_segment(number: int, segment: SpeechSegment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": round(segment.start * _SEEK_PER_SECOND),
        **_times(segment),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": round(math.log(segment.probability), 4) if segment.probability else 0.0,
        "compression_ratio": round(segment.compression or 1.0, 4),
        "no_speech_prob": round(segment.no_speech or 0.0, 4),
    }


def _times(timed: SpeechSegment | SpokenWord) -> dict[str, float]:
    return {"start": round(timed.start, 3), "end": round(timed.end, 3)}


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 4)


def _dumped(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _srt(transcript: Transcript) -> str:
    blocks = (
        f"{number}\n{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}\n"
        + "\n".join(cue.lines).replace("-->", "→")  # as it stands it would be taken for times
        + "\n"
        for number, cue in enumerate(cues(transcript.segments, transcript.duration), start=1)
    )
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    blocks = (
        f"{timestamp(cue.start, '.')} --> {timestamp(cue.end, '.')}\n{_vtt_text(cue.lines)}\n"
        for cue in cues(transcript.segments, transcript.duration)
    )
    return "\n".join(["WEBVTT\n", *map(_vtt_comment, transcript.notes), *blocks])


def _vtt_comment(note: SpeechNote) -> str:
    """Players do not show it; who opens the file reads it (WebVTT, section 4.1)."""
    return f"NOTE Warning: {' '.join(note.text.split())}\n".replace("-->", "→")


def _vtt_text(lines: tuple[str, ...]) -> str:
    """Cue text as the standard wants it (WebVTT, section 6.4): three characters mean something."""
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
