"""Cutting a recording into windows with speech in them, at silence. Positions are frames of 32 ms."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from ollama_pack.speech.vad import FRAME_SAMPLES
from ollama_pack.speech.values import SAMPLE_RATE, WINDOW_SECONDS, Samples, SpeechWindow

_FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES
SPEECH_BEGINS, SPEECH_ENDS = (
    0.5,
    0.35,
)  # probability of speech: two limits, so that one between changes nothing
MIN_SPEECH = 4  # frames (128 ms): what is shorter is a click
PAD = 10  # frames (0.3 s) kept around speech, where soft sounds are
MAX_SILENCE = round(4 * _FRAMES_PER_SECOND)  # within a window; a longer one ends it
GOOD_SILENCE = 10  # frames (0.3 s): a pause between sentences, where a window may well be cut


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """Frames from `start` to before `end`."""

    start: int
    end: int


class SpanCutter:
    """Gathers speech into spans of bounded length. It sees probabilities one by one, and no samples."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest span, in frames."""
        self._limit = limit
        self._now = 0
        self._cut = 0  # nothing before it is wanted any more
        self._began: int | None = None  # where the speech began that goes on
        self._is_rest = False  # of speech that was cut, which is no click however short it is
        self._runs: list[FrameSpan] = []  # speech that has ended, and is in no span yet
        self._quiet: dict[int, float] = {}  # probabilities of the speech that goes on

    @property
    def needed_from(self) -> int:
        """The first frame that a later span may contain."""
        starts = [run.start for run in self._runs[:1]] or ([] if self._began is None else [self._began])
        return max(self._cut, (starts or [self._now])[0] - PAD)

    def feed(self, probability: float) -> FrameSpan | None:
        """Take the next frame's probability of speech; sometimes a span is complete."""
        if self._began is None and probability >= SPEECH_BEGINS:
            self._began = self._now
        elif self._began is not None and probability < SPEECH_ENDS:
            self._end_run()
        if self._began is not None:
            self._quiet[self._now] = probability
        self._now += 1
        return self._complete()

    @property
    def is_idle(self) -> bool:
        """Whether nobody speaks, and no speech is kept for a span."""
        return self._began is None and not self._runs

    def skip(self, frames: int) -> None:
        """Pass over frames without speech, while it is idle."""
        self._now += frames

    def end(self) -> FrameSpan | None:
        """The last span, when the recording has ended."""
        self._end_run()
        return self._span() if self._runs else None

    def _end_run(self) -> None:
        if self._began is None:
            return
        if self._is_rest or self._now - self._began >= MIN_SPEECH:
            self._runs.append(FrameSpan(self._began, self._now))
        self._began = None
        self._is_rest = False
        self._quiet.clear()

    def _complete(self) -> FrameSpan | None:
        if self._runs and self._began is None and self._now - self._runs[-1].end >= MAX_SILENCE:
            return self._span()
        if self._now - self.needed_from < self._limit - PAD or (self._began is None and not self._runs):
            return None
        if self._began is None:
            return self._span()
        return self._cut_speech(self._began)

    def _span(self) -> FrameSpan:
        """All that has ended, padded."""
        start = self.needed_from
        self._cut = min(self._runs[-1].end + PAD, self._now, start + self._limit)
        self._runs.clear()
        return FrameSpan(start, self._cut)

    def _cut_speech(self, began: int) -> FrameSpan:
        """Somebody speaks on and on: cut in the best pause of the second half, else where it is quietest."""
        start = self.needed_from
        middle = start + self._limit // 2
        speech = [*self._runs, FrameSpan(began, self._now)]
        pauses = [
            FrameSpan(before.end, after.start) for before, after in pairwise(speech) if before.end > middle
        ]
        if pauses:
            good = [pause for pause in pauses if pause.end - pause.start >= GOOD_SILENCE]
            best = (good or [max(pauses, key=lambda pause: pause.end - pause.start)])[-1]
            self._runs = [run for run in self._runs if run.start >= best.end]
            self._cut = min((best.start + best.end + 1) // 2, best.start + PAD)
            return FrameSpan(start, self._cut)
        late = {frame: heard for frame, heard in self._quiet.items() if frame > middle}
        self._cut = min(late, key=lambda frame: (late[frame], -frame))
        self._began, self._is_rest = self._cut, True
        self._runs.clear()
        self._quiet = {frame: heard for frame, heard in self._quiet.items() if frame >= self._cut}
        return FrameSpan(start, self._cut)


def windows_and_pauses(
    heard: Iterable[tuple[Samples, Samples]], limit_seconds: float = WINDOW_SECONDS
) -> Iterator[SpeechWindow | None]:
    """The windows of a recording, in order, with a None after each block, where whoever reads may pause.

    Args:
        heard: blocks of samples, each with the probabilities of speech of its frames.
        limit_seconds: the longest window.
    """
    from numpy import concatenate, zeros  # noqa: PLC0415 - see `Samples`

    cutter = SpanCutter(int(limit_seconds * _FRAMES_PER_SECOND))
    kept: Samples = zeros(0, "float32")  # samples that may be wanted
    first = 0  # the frame at which they begin

    def window(span: FrameSpan) -> SpeechWindow:
        samples = kept[(span.start - first) * FRAME_SAMPLES : (span.end - first) * FRAME_SAMPLES]
        return SpeechWindow(span.start * FRAME_SAMPLES / SAMPLE_RATE, samples.copy())

    for block, probabilities in heard:
        kept = concatenate((kept, block))
        is_quiet = not probabilities.any()
        for number, probability in enumerate(probabilities):
            if is_quiet and cutter.is_idle:
                cutter.skip(len(probabilities) - number)
                break
            if span := cutter.feed(float(probability)):
                yield window(span)
        kept, first = kept[(cutter.needed_from - first) * FRAME_SAMPLES :], cutter.needed_from
        yield None
    if span := cutter.end():
        yield window(span)
