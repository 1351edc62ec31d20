"""Segments of about a sentence, made from words with times."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ollama_pack.speech.values import SpeechSegment, SpokenWord

PAUSE_SECONDS = 0.8  # between words: a segment ends although no sentence does
SHORT_PAUSE_SECONDS = 0.3  # enough, after what may be an abbreviation
_SENTENCE_END = re.compile(r"[.?!…。？！]+[\"'”’」』)\]]*$")  # noqa: RUF001 - the full-width ones are meant
_ABBREVIATION = re.compile(r"[A-Z][a-z]{0,3}\.$")  # Mr., Prof., and `No.`, which a pause tells apart


def sentences(whole: SpeechSegment) -> Iterator[SpeechSegment]:
    """A long segment in pieces that end where a sentence does, or a pause begins.

    Args:
        whole: with its words; without them it stays as it is.
    """
    words = [word for word in whole.words if word.text]
    if not words:
        yield whole
        return
    piece: list[SpokenWord] = []
    for number, word in enumerate(words):
        piece.append(word)
        after = words[number + 1] if number + 1 < len(words) else None
        if after is None or _ends(word, after):
            yield _sentence(whole, piece)
            piece = []


def _ends(word: SpokenWord, after: SpokenWord) -> bool:
    pause, text = after.start - word.end, word.text.strip()
    if not _SENTENCE_END.search(text):
        return pause >= PAUSE_SECONDS
    return pause >= SHORT_PAUSE_SECONDS or not _ABBREVIATION.fullmatch(text)


def _sentence(whole: SpeechSegment, words: Sequence[SpokenWord]) -> SpeechSegment:
    return replace(
        whole,
        start=words[0].start,
        end=max(words[-1].end, words[0].start),
        text="".join(word.text for word in words).strip(),
        words=tuple(words),
        probability=_mean(word.probability for word in words) or whole.probability,
        tokens=(),
    )


def _mean(probabilities: Iterable[float | None]) -> float | None:
    """The geometric mean; None where one is not known."""
    logs = [math.log(max(found, 1e-9)) if found is not None else math.nan for found in probabilities]
    mean = math.exp(sum(logs) / len(logs))
    return None if math.isnan(mean) else mean
