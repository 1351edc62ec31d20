"""Where a recording is cut, as a function of the probabilities of speech alone."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_pack.speech.vad import FRAME_SAMPLES
from ollama_pack.speech.windows import (
    MAX_SILENCE,
    MIN_SPEECH,
    PAD,
    SPEECH_BEGINS,
    SPEECH_ENDS,
    FrameSpan,
    SpanCutter,
    windows_and_pauses,
)

LIMIT = 300


def spans(probabilities: list[float], limit: int = LIMIT) -> list[FrameSpan]:
    cutter = SpanCutter(limit)
    found = []
    for frame, probability in enumerate(probabilities):
        if span := cutter.feed(probability):
            found.append(span)
        assert frame - cutter.needed_from <= limit, "more is kept than a window may hold"
    return found + [span for span in [cutter.end()] if span]


def talk(*runs: int) -> list[float]:
    """Frames of silence, speech, silence and so on."""
    return [float(n % 2) for n, frames in enumerate(runs) for _ in range(frames)]


def speech_frames(probabilities: list[float]) -> set[int]:
    """The frames of speech that is no click, found in the plainest way."""
    found: set[int] = set()
    run: list[int] = []
    for frame, probability in enumerate([*probabilities, 0.0]):
        if probability >= (SPEECH_ENDS if run else SPEECH_BEGINS):
            run.append(frame)
        else:
            found |= set(run) if len(run) >= MIN_SPEECH else set()
            run = []
    return found


runs = st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.45, 0.6, 1.0]), st.integers(1, 90)), max_size=25)


@given(runs, st.integers(60, 400))
def test_windows_hold_all_speech_and_not_more_than_they_may(
    parts: list[tuple[float, int]], limit: int
) -> None:
    """Would catch lost or doubled speech, windows that are too long, in no order or overlapping."""
    probabilities = [probability for probability, frames in parts for _ in range(frames)]
    found = spans(probabilities, limit)
    covered = [frame for span in found for frame in range(span.start, span.end)]
    assert len(covered) == len(set(covered))
    assert covered == sorted(covered)
    assert speech_frames(probabilities) <= set(covered)
    assert all(0 <= span.start < span.end <= len(probabilities) for span in found)
    assert all(span.end - span.start <= limit for span in found)


def test_silence_and_clicks_give_no_window() -> None:
    """Would catch silence that reaches the model, which then says `You`."""
    assert spans(talk(1000)) == []
    assert spans(talk(50, MIN_SPEECH - 1, 50, MIN_SPEECH - 1, 50)) == []


def test_speech_is_padded() -> None:
    """Would catch soft first and last sounds cut off."""
    assert spans(talk(50, 40, 200)) == [FrameSpan(50 - PAD, 90 + PAD)]
    assert spans(talk(0, 40)) == [FrameSpan(0, 40)]


def test_a_long_silence_ends_a_window() -> None:
    """Would catch minutes of silence within a window, and sentences split at each breath."""
    assert len(spans(talk(0, 40, MAX_SILENCE + 1, 40))) == 2
    assert len(spans(talk(0, 40, MAX_SILENCE - 1, 40))) == 1


def test_a_full_window_is_cut_in_its_last_good_pause() -> None:
    """Would catch a cut in the middle of a word although there was a pause, and needlessly short windows."""
    found = spans(talk(0, 100, 12, 100, 12, 40, 3, 200))
    assert found[0] == FrameSpan(0, 212 + 6)
    assert found[1].start <= 224 - 6


def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    """Would catch an endless window, and a cut in the loudest place."""
    speech = [0.9] * 1000
    speech[250] = 0.4
    found = spans(speech)
    assert found[0] == FrameSpan(0, 250)
    assert found[1].start == 250


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0.0, 0.0, 0.9])), max_size=8))
def test_silence_that_is_skipped_changes_no_window(runs: list[tuple[int, float]]) -> None:
    """Would catch times or samples that are wrong after hours of silence, which are not looked at."""
    probabilities: Any = np.array([value for frames, value in runs for _ in range(frames)], "float32")
    samples: Any = np.arange(len(probabilities) * FRAME_SAMPLES, dtype="float32")

    def cut(least: float) -> list[tuple[float, int, float, float]]:
        blocks = [
            (
                samples[start * FRAME_SAMPLES : (start + 50) * FRAME_SAMPLES],
                np.maximum(probabilities[start : start + 50], least),
            )
            for start in range(0, len(probabilities), 50)
        ]
        found = [(window.start, window.samples) for window in windows_and_pauses(blocks) if window]
        return [(start, len(sound), float(sound[0]), float(sound[-1])) for start, sound in found]

    assert cut(0.0) == cut(0.01)  # silence that is no silence is not skipped
