"""What recordings turn into, and what an engine is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ollama_pack.speech.language import LanguageTag

SAMPLE_RATE = 16_000  # Hz: what Whisper and the voice activity detector are made for
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 4 * 3600.0
WINDOW_SECONDS = 30.0  # Whisper looks at 30 s at once

# A numpy array, float32, one dimension: mono at SAMPLE_RATE, within ±1. numpy is imported in functions, since
# uploading loads a plugin where there is none.
Samples = Any

SILENCE = (
    2e-4  # half of the distance between the highest and the lowest sample: nothing can be heard (-74 dB)
)

NoteKind = Literal["damaged", "truncated", "language", "script", "tracks", "answer"]


def is_silence(samples: Samples) -> bool:
    """Whether nothing can be heard in samples, of which there is at least one; a constant is silence, too."""
    return float(samples.max()) - float(samples.min()) < 2 * SILENCE


@dataclass(frozen=True, slots=True)
class SpeechNote:
    """Something that the reader of a transcript should know, although there is one.

    Attributes:
        kind: damaged packets were left out; the file ends too early; another language is spoken than was
            asked for; the text may be in the other Chinese script; there are other audio tracks; parts of
            the server's answer could not be read.
        text: a sentence for people.
    """

    kind: NoteKind
    text: str


@dataclass(frozen=True, slots=True)
class SpeechWindow:
    """A piece of the recording with speech in it, as an engine gets it.

    Attributes:
        start: seconds from the beginning of the recording.
        samples: its audio.
    """

    start: float
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word (in scripts without spaces, a character or a few).

    Attributes:
        start: seconds.
        end: seconds.
        text: as the engine writes it: with the space before it where there is one.
        probability: how sure the engine is, from 0 to 1; None: it does not tell.
    """

    start: float
    end: float
    text: str
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class SpeechSegment:
    """A sentence or so.

    Attributes:
        start: seconds.
        end: seconds.
        text: without spaces around it.
        words: its words; none where the engine does not tell.
        probability: how sure the engine is, 0 to 1: e to the mean log probability of tokens; None: unknown.
        no_speech: probability that nobody speaks; None: the engine does not tell.
        compression: bytes of the text by bytes of it compressed: above 2.4 it repeats itself.
        temperature: of the decoding.
        tokens: the model's.
    """

    start: float
    end: float
    text: str
    words: tuple[SpokenWord, ...] = ()
    probability: float | None = None
    no_speech: float | None = None
    compression: float | None = None
    temperature: float = 0.0
    tokens: tuple[int, ...] = ()

    def later(self, seconds: float) -> "SpeechSegment":
        """The same where its window begins so much later."""
        start, end = self.start + seconds, self.end + seconds
        words = tuple(
            replace(word, start=word.start + seconds, end=word.end + seconds) for word in self.words
        )
        return replace(self, start=start, end=max(start, end), words=words)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine is asked for with a window.

    Attributes:
        language: that is spoken; None: the engine finds out.
        prompt: text that tells the model names and style.
        words: whether times of words are wanted.
        check_language: whether to find out which language it is although one is given.
    """

    language: LanguageTag | None = None
    prompt: str = ""
    words: bool = True
    check_language: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What an engine makes of a window.

    Attributes:
        segments: their times count from the beginning of the window.
        language: that it heard, as `LANGUAGES` has it; None: it does not tell.
        language_probability: how sure it is.
        odd: parts of the engine's answer that could not be read as they should be.
    """

    segments: tuple[SpeechSegment, ...]
    language: str | None = None
    language_probability: float = 0.0
    odd: int = 0


WaitCallback = Callable[[int], Awaitable[None]]  # gets how many recordings are before this one


class SpeechEngine(Protocol):
    """Turns windows into text.

    Attributes:
        name: as the `engine` valve has it.
        model: for the transcript's reader.
        is_here: whether it works on this machine, one recording at a time.
        parallel: windows that may be given to it at the same time.
        window_seconds: the longest window that it takes.
    """

    name: str
    model: str
    is_here: bool
    parallel: int
    window_seconds: float

    async def be_ready(self, language: LanguageTag | None) -> None:
        """Make it ready for a recording.

        Args:
            language: that is spoken; None: the engine finds out.

        Raises:
            SpeechEngineError: it cannot work, or not in this language.
        """
        ...

    async def transcribe(self, window: SpeechWindow, request: EngineRequest) -> Heard:
        """The text of a window. When it is cancelled the work ends soon.

        Raises:
            SpeechEngineError: the engine failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """Samples without any header: little-endian integers, channels interleaved.

    Attributes:
        rate: Hz.
        channels: how many.
        width: bytes of a sample of one channel: 1 (unsigned), 2, 3 or 4.
    """

    rate: int = SAMPLE_RATE
    channels: int = 1
    width: int = 2


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What is wanted of a transcription.

    Attributes:
        language: BCP 47 tag such as zh-CN, or `auto`.
        prompt: names and words that occur, to help the engine spell them.
        words: whether times of words are wanted.
        max_bytes: largest file.
        max_seconds: longest recording.
        pcm: the format of a recording that has no header.
    """

    language: str = "auto"
    prompt: str = ""
    words: bool = True
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    pcm: PcmFormat | None = None


@dataclass(frozen=True, slots=True)
class SpeechProgress:
    """How far a transcription is.

    Attributes:
        stage: it waits for others, or works.
        ahead: recordings before it, while it waits.
        seconds: of the recording that are done.
        total: its length as the file tells it; None: the file does not.
        text: what has been added since the last call.
    """

    stage: Literal["waiting", "transcribing"]
    ahead: int = 0
    seconds: float = 0.0
    total: float | None = None
    text: str = ""


ProgressCallback = Callable[[SpeechProgress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole recording as text.

    Attributes:
        text: all of it.
        language: BCP 47 tag: the one that was asked for, or the one that was heard.
        duration: of the recording in seconds.
        segments: in order; their times count from the beginning of the recording.
        engine: what made it.
        model: with which model.
        language_probability: how sure the engine is of the language; None: it was given.
        notes: what its reader should know.
    """

    text: str
    language: str
    duration: float
    segments: tuple[SpeechSegment, ...]
    engine: str
    model: str
    language_probability: float | None = None
    notes: tuple[SpeechNote, ...] = field(default=())
