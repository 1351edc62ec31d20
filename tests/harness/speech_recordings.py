"""Real recordings for tests, in every format, and how well a transcript fits what is said in them."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
MANDARIN = Path(__file__).resolve().parents[3] / "shared/data/speech/zh-CN.wav"
MANDARIN_TEXT = "近几年不但我用书给女儿压岁也劝说亲朋不要给女儿压岁钱而改送压岁书"
RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """A recording and what is said in it."""

    path: Path
    text: str

    @property
    def samples(self) -> Any:
        """Its audio at 16 kHz, float32."""
        return samples_of(self.path)


@dataclass(frozen=True)
class Encoding:
    """How a format is written: container, codec, sampling rate, channels, and what else the codec wants."""

    container: str
    codec: str
    rate: int = 44_100
    layout: str = "mono"
    bit_rate: int = 64_000
    options: tuple[tuple[str, str], ...] = ()


ENCODINGS = {
    "mp3": Encoding("mp3", "libmp3lame", layout="stereo"),
    "m4a": Encoding("ipod", "aac"),
    "aac": Encoding("adts", "aac"),
    "ogg": Encoding("ogg", "vorbis", layout="stereo", options=(("strict", "experimental"),)),
    "opus": Encoding("opus", "libopus", 48_000),
    "webm": Encoding("webm", "libopus", 48_000),
    "mp4": Encoding("mp4", "aac", 48_000, "stereo"),
    "mov": Encoding("mov", "aac", layout="stereo"),
    "flac": Encoding("flac", "flac", 22_050),
    "wma": Encoding("asf", "wmav2"),
    "aiff": Encoding("aiff", "pcm_s16be", 22_050, "stereo"),
    "wav": Encoding("wav", "pcm_s24le", 48_000, "stereo"),
}


def librivox() -> list[Recording]:
    """The five recordings of Debian's pocketsphinx-testdata; skips the test where they are not installed."""
    if not LIBRIVOX.is_dir():
        pytest.skip("no LibriVox recordings: apt-get install pocketsphinx-testdata")
    rows = re.findall(r"<s> (.+) </s> \((.+)\)", (LIBRIVOX / "transcription").read_text())
    return [Recording(LIBRIVOX / f"{name}.wav", text) for text, name in rows]


def mandarin() -> Recording:
    """The Mandarin recording; skips the test where the checkout has no folder `shared` beside it."""
    if not MANDARIN.is_file():
        pytest.skip("no Mandarin recording: it is not part of the repository")
    return Recording(MANDARIN, MANDARIN_TEXT)


@cache
def samples_of(path: Path) -> Any:
    """A recording at 16 kHz, as float32, decoded in the plainest way."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])


def encoded(
    samples: Any, encoding: Encoding, *, video: bool = False, muxer: Mapping[str, str] | None = None
) -> bytes:
    """Audio as a file of another format.

    Args:
        samples: mono at 16 kHz, float32.
        encoding: the format.
        video: with a black video track before it.
        muxer: options of the container.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=encoding.container, options=dict(muxer or {})) as out:
        picture = _video_stream(out) if video else None
        stream = out.add_stream(encoding.codec, rate=encoding.rate, options=dict(encoding.options))
        stream.layout = encoding.layout
        if not encoding.codec.startswith(("pcm", "flac")):
            stream.bit_rate = encoding.bit_rate
        stream.codec_context.open()
        if picture:
            _mux_black(out, picture, len(samples) / RATE)
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(
            stream.codec_context.format, encoding.layout, encoding.rate, frame_size=size
        )
        for piece in resampler.resample(_frame(samples)):
            out.mux(stream.encode(piece))
        for piece in resampler.resample(None):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


def silent_video() -> bytes:
    """An MP4 without an audio track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        _mux_black(out, _video_stream(out), 1.0)
    return file.getvalue()


def similarity(found: Any, expected: Any) -> float:
    """The largest correlation of two recordings over shifts of up to 0.1 s: 1 for the same."""
    size = min(len(found), len(expected)) - 3200
    middle = expected[1600 : 1600 + size]
    spectrum = np.fft.rfft(found, 2 * len(found)) * np.conj(np.fft.rfft(middle, 2 * len(found)))
    shifts = np.fft.irfft(spectrum)[:3200]
    best = int(shifts.argmax())
    return float(np.corrcoef(found[best : best + size], middle)[0, 1])


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """(Substitutions + deletions + insertions) / words of the references, over (reference, transcript) pairs.

    Both are put into lower case, hyphens become spaces, other punctuation is left out, and `mr` is `mister`.
    """
    split = [(normal_english(expected).split(), normal_english(found).split()) for expected, found in pairs]
    errors = sum(edit_distance(expected, found) for expected, found in split)
    return errors / sum(len(expected) for expected, _ in split)


def character_error_rate(expected: str, found: str) -> float:
    """The same for characters; punctuation and spaces are left out."""
    kept = "".join(filter(str.isalnum, found))
    return edit_distance(expected, kept) / len(expected)


def normal_english(text: str) -> str:
    """As transcripts are compared: see `word_error_rate`."""
    plain = re.sub(r"[^\w\s']", "", text.lower().replace("-", " "))
    return re.sub(r"\bmr\b", "mister", plain)


def edit_distance(expected: Sequence[str], found: Sequence[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(found) + 1))
    for number, wanted in enumerate(expected, start=1):
        before, row[0] = row[0], number
        for column, got in enumerate(found, start=1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (wanted != got)),
            )
    return row[-1]


def _frame(samples: Any) -> Any:
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
    return frame


def _video_stream(out: Any) -> Any:
    video = out.add_stream("mpeg4", rate=10)
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    video.codec_context.open()
    return video


def _mux_black(out: Any, video: Any, seconds: float) -> None:
    for number in range(round(seconds * 10)):
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.time_base, frame.pts = Fraction(1, 10), number
        out.mux(video.encode(frame))
    out.mux(video.encode(None))
