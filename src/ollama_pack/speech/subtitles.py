"""Subtitles: lines that fit on a screen, each shown while it is spoken."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from ollama_pack.speech.joining import columns, letters, tokens_of
from ollama_pack.speech.values import SpeechSegment, SpokenWord

# As broadcasters have it (BBC and Netflix style guides): two lines of 42, for seven seconds at most.
LINE_COLUMNS = 42
MAX_LINES = 2
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0
PUNCTUATION_SHARE = 0.2  # of a cue's width: so much further away may the place be where it ends


@dataclass(frozen=True, slots=True)
class Cue:
    """What is on the screen from `start` to `end`, in milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A piece of text that is not broken, and when it is spoken, in seconds."""

    text: str
    start: float
    end: float


def cues(segments: Iterable[SpeechSegment], seconds: float) -> list[Cue]:
    """The subtitles of a recording: in order, without overlaps, none shorter than a millisecond.

    Args:
        segments: its text.
        seconds: its length; no cue is made longer than that for its own sake.
    """
    found: list[Cue] = []
    for cue in (cue for segment in segments for cue in _segment_cues(segment)):
        start = max(cue.start, found[-1].end if found else 0)
        found.append(replace(cue, start=start, end=max(cue.end, start + 1)))
    limits = [*(cue.start for cue in found[1:]), round(seconds * 1000)]
    return [_readable(cue, limit) for cue, limit in zip(found, limits, strict=False)]


def timestamp(milliseconds: int, mark: str) -> str:
    """Hours, minutes, seconds and milliseconds, such as 01:02:03,456.

    Args:
        milliseconds: at least 0.
        mark: before the milliseconds: a comma in SRT, a full stop in WebVTT.
    """
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"


def wrapped(texts: Sequence[str]) -> tuple[str, ...]:
    """Pieces as lines of at most `LINE_COLUMNS`; a piece that is longer by itself has a line of its own."""
    lines: list[str] = []
    for text in texts:
        if lines and columns(lines[-1] + text) <= LINE_COLUMNS:
            lines[-1] += text
        else:
            lines.append(text.lstrip())
    return tuple(filter(None, lines))


def _readable(cue: Cue, limit: int) -> Cue:
    """A cue that is shown long enough to be read, if what follows leaves the time."""
    wanted = cue.start + round(MIN_CUE_SECONDS * 1000)
    return replace(cue, end=max(cue.end, min(wanted, limit)))


def _segment_cues(segment: SpeechSegment) -> list[Cue]:
    """As few cues as fit, of about the same length, so that no single word is left over at the end."""
    pieces = list(_timed(segment))
    for count in range(1, len(pieces)):
        parts = _split(pieces, count)
        if all(map(_fits, parts)):
            return [_cue(part) for part in parts]
    return [_cue([piece]) for piece in pieces]


def _split(pieces: Sequence[_Timed], count: int) -> list[Sequence[_Timed]]:
    """So many parts, each ending where its share of the width ends, or at punctuation nearby."""
    widths = list(accumulate(columns(piece.text) for piece in pieces))
    share = widths[-1] / count
    cuts = [0]
    for number in range(1, count):
        wanted = number * share

        def distance(index: int, wanted: float = wanted) -> float:
            at_mark = not pieces[index].text[-1].isalnum()
            return abs(widths[index] - wanted) - (PUNCTUATION_SHARE * share if at_mark else 0.0)

        later = range(cuts[-1], len(pieces) - count + number)
        cuts.append(min(later, key=distance) + 1)
    return [pieces[start:end] for start, end in pairwise([*cuts, len(pieces)])]


def _fits(pieces: Sequence[_Timed]) -> bool:
    short = pieces[-1].end - pieces[0].start <= MAX_CUE_SECONDS
    return short and len(wrapped([piece.text for piece in pieces])) <= MAX_LINES


def _cue(pieces: Sequence[_Timed]) -> Cue:
    lines = wrapped([piece.text for piece in pieces])
    return Cue(max(0, round(pieces[0].start * 1000)), max(0, round(pieces[-1].end * 1000)), lines)


def _timed(segment: SpeechSegment) -> Iterator[_Timed]:
    """The tokens of a segment with the times of the words that they are in.

    Servers leave punctuation out of words, and engines cut words differently: so letters are counted.
    """
    tokens = tokens_of(segment.text)
    all_letters = max(1, letters(segment.text))
    words = segment.words or (SpokenWord(segment.start, segment.end, "x"),)
    done = 0
    for token in tokens:
        count = letters(token)
        start, end = done / all_letters, (done + count) / all_letters
        yield _Timed(token, _time_at(words, start, is_end=False), _time_at(words, end, is_end=True))
        done += count


def _time_at(words: Sequence[SpokenWord], share: float, *, is_end: bool) -> float:
    """When so large a share of the letters of the words has been spoken, in seconds."""
    counts = [max(1, letters(word.text)) for word in words]
    wanted = share * sum(counts)
    for word, count in zip(words, counts, strict=True):
        if wanted < count or (is_end and wanted <= count + 1e-6):
            return word.start + (word.end - word.start) * max(0.0, wanted) / count
        wanted -= count
    return words[-1].end
