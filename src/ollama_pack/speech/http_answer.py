"""What servers answer to `/v1/audio/transcriptions`: `verbose_json`, and `json`, which has no times."""

import math

from pydantic import BaseModel, ConfigDict, ValidationError

from ollama_pack.speech.languages import language_code
from ollama_pack.speech.values import Heard, SpeechSegment, SpokenWord


class _AnswerPart(BaseModel):
    """Numbers may be NaN in no place, and servers add fields of their own."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore")


class AnsweredWord(_AnswerPart):
    """A word; some servers call its text `text`, some tell how sure they are."""

    start: float
    end: float
    word: str = ""
    text: str = ""
    probability: float | None = None


class AnsweredSegment(_AnswerPart):
    """A segment; some servers have its words in it."""

    start: float
    end: float
    text: str
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    temperature: float | None = None
    tokens: list[int] | None = None
    words: list[AnsweredWord] | None = None


class ServerAnswer(_AnswerPart):
    """All of it. OpenAI has the words here, beside the segments."""

    text: str
    language: str | None = None
    segments: list[AnsweredSegment] | None = None
    words: list[AnsweredWord] | None = None


def heard_in(answer: bytes, seconds: float) -> Heard:
    """What an answer says.

    Args:
        answer: its body.
        seconds: length of the window that was sent; times beyond it are cut to it.

    Raises:
        ValueError: it is no transcription.
    """
    try:
        found = ServerAnswer.model_validate_json(answer)
    except ValidationError as error:
        raise ValueError("no transcription") from error
    language = language_code(found.language) if found.language else None
    segments = found.segments or []
    if not segments and found.text.strip():
        segments = [AnsweredSegment(start=0.0, end=seconds, text=found.text)]
    ends = [*(segment.start for segment in segments[1:]), math.inf]
    words = found.words or []
    made = []
    for segment, end in zip(segments, ends, strict=False):  # of no segments there is no end
        inside = [word for word in words if (word.start + word.end) / 2 < end]
        words = words[len(inside) :]
        made.append(_answered_segment(segment, segment.words or inside, seconds))
    return Heard(tuple(made), language, 1.0 if language else 0.0)


def _answered_segment(segment: AnsweredSegment, words: list[AnsweredWord], seconds: float) -> SpeechSegment:
    return SpeechSegment(
        start=_within(segment.start, seconds),
        end=_within(segment.end, seconds),
        text=segment.text.strip(),
        words=tuple(
            SpokenWord(
                _within(word.start, seconds),
                _within(word.end, seconds),
                word.word or word.text,
                word.probability,
            )
            for word in words
        ),
        probability=None if segment.avg_logprob is None else min(1.0, math.exp(segment.avg_logprob)),
        no_speech=segment.no_speech_prob,
        compression=segment.compression_ratio,
        temperature=segment.temperature or 0.0,
        tokens=tuple(segment.tokens or ()),
    )


def _within(time: float, seconds: float) -> float:
    return min(max(0.0, time), seconds)
