"""What servers answer to `/v1/audio/transcriptions`: `verbose_json`, and `json`, which has no times.

Lists are read entry by entry, and only a text is demanded: an entry without a time gets one between its
neighbours, what cannot be read is counted, and nothing of it loses the rest.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ollama_pack.speech.languages import language_code
from ollama_pack.speech.values import WINDOW_SECONDS, Heard, SpeechSegment, SpokenWord

# Milliseconds, microseconds and nanoseconds: some servers count in them, although the API is in seconds.
_UNITS = (1e-3, 1e-6, 1e-9)
_LATE = 2.0  # windows: when half of the times are later than that, they are no seconds


@dataclass(slots=True)
class _AnsweredEntry:
    """An entry of a list: its text, and its times in seconds as far as it has some."""

    text: str
    start: float | None
    end: float | None
    said: Mapping[str, Any]


def heard_in(answer: bytes, seconds: float) -> Heard:
    """What an answer says.

    Args:
        answer: its body.
        seconds: length of the window that was sent; times beyond it are cut to it.

    Raises:
        ValueError: it is no transcription.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ValueError("no transcription") from error
    if not isinstance(found, dict) or not isinstance(found.get("text") or "", str):
        raise ValueError("no transcription")  # noqa: TRY004 - of what came, not of how it was called
    segments, odd = _timed_entries(found.get("segments"), ("text",), seconds)
    text = found.get("text") or ""
    if "text" not in found and not segments:
        raise ValueError("no transcription")
    if not segments and text.strip():
        segments = [_AnsweredEntry(text, 0.0, seconds, {})]
    words, odd_words = _timed_entries(found.get("words"), ("word", "text"), seconds)
    odd += odd_words
    made = []
    ends = [*(segment.start or 0.0 for segment in segments[1:]), math.inf]
    for segment, end in zip(segments, ends, strict=False):  # of no segments there is no end
        own, odd_words = _timed_entries(segment.said.get("words"), ("word", "text"), seconds)
        odd += odd_words
        inside = 0
        while inside < len(words) and _middle(words[inside]) < end:
            inside += 1
        made.append(_answered_segment(segment, own or words[:inside]))
        words = words[inside:]
    said = found.get("language")
    language = language_code(said) if isinstance(said, str) and said else None
    return Heard(tuple(made), language, 1.0 if language else 0.0, odd)


def _timed_entries(entries: Any, names: Sequence[str], seconds: float) -> tuple[list[_AnsweredEntry], int]:
    """The entries of a list that have a text, each with times within the window; and how many were odd.

    Args:
        entries: as they came.
        names: of the field with the text, the first that is there counts.
        seconds: length of the window.
    """
    if not isinstance(entries, list):
        return [], int(entries is not None)
    kept = []
    for entry in entries:
        text = next((entry[name] for name in names if entry.get(name)), "") if isinstance(entry, dict) else 0
        if isinstance(text, str):
            kept.append(
                _AnsweredEntry(text, _json_number(entry.get("start")), _json_number(entry.get("end")), entry)
            )
    odd = len(entries) - len(kept) + sum(entry.start is None or entry.end is None for entry in kept)
    unit = _unit([entry.end for entry in kept if entry.end is not None], seconds)
    for entry in kept:
        entry.start = None if entry.start is None else _within(entry.start * unit, seconds)
        entry.end = None if entry.end is None else _within(entry.end * unit, seconds)
    _fill_in(kept, seconds)
    return kept, odd


def _unit(ends: Sequence[float], seconds: float) -> float:
    """Seconds of one unit in which times are counted: the largest with which they are within the window."""
    middle = median(ends) if ends else 0.0
    if middle <= _LATE * max(seconds, WINDOW_SECONDS):
        return 1.0
    return next((unit for unit in _UNITS if middle * unit <= seconds + 1.0), 1.0)


def _fill_in(entries: Sequence[_AnsweredEntry], seconds: float) -> None:
    """Give those without a time one: from the end of the entry before to the beginning of the one after."""
    before = 0.0
    for entry in entries:
        if entry.start is None:
            entry.start = min(before, seconds if entry.end is None else entry.end)
        before = max(before, entry.start if entry.end is None else entry.end)
    after = seconds
    for entry in reversed(entries):
        if entry.end is None:
            entry.end = max(after, entry.start or 0.0)
        entry.end = max(entry.end, entry.start or 0.0)
        after = entry.start or 0.0


def _middle(entry: _AnsweredEntry) -> float:
    return ((entry.start or 0.0) + (entry.end or 0.0)) / 2


def _answered_segment(segment: _AnsweredEntry, words: Sequence[_AnsweredEntry]) -> SpeechSegment:
    said = segment.said
    sure, tokens = _json_number(said.get("avg_logprob")), said.get("tokens")
    return SpeechSegment(
        start=segment.start or 0.0,
        end=segment.end or 0.0,
        text=segment.text.strip(),
        words=tuple(
            SpokenWord(
                word.start or 0.0, word.end or 0.0, word.text, _json_number(word.said.get("probability"))
            )
            for word in words
            if word.text
        ),
        probability=None if sure is None else math.exp(min(0.0, sure)),
        no_speech=_json_number(said.get("no_speech_prob")),
        compression=_json_number(said.get("compression_ratio")),
        temperature=_json_number(said.get("temperature")) or 0.0,
        tokens=tuple(token for token in tokens if isinstance(token, int)) if isinstance(tokens, list) else (),
    )


def _json_number(value: Any) -> float | None:
    """A number, also one that is written as text; None: it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(time: float, seconds: float) -> float:
    return min(max(0.0, time), seconds)
