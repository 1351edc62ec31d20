"""Decoding real recordings in every format, whole and damaged, with the libraries that Open WebUI brings."""

import asyncio
import io
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.odd_recordings import BOMBS, LAYOUTS, Layout, with_cover, written
from harness.speech_engines import CountingEngine
from harness.speech_recordings import ENCODINGS, RATE, encoded, librivox, silent_video, similarity
from ollama_pack.speech.decode import DecodedAudio, open_audio
from ollama_pack.speech.errors import (
    AudioError,
    AudioTooLargeError,
    AudioTooLongError,
    EmptyAudioError,
    LanguageTagError,
    NoAudioTrackError,
    NoSpeechError,
    NotAudioError,
    SpeechError,
    ZeroLengthError,
)
from ollama_pack.speech.source import AudioSource
from ollama_pack.speech.transcribe import transcribe
from ollama_pack.speech.vad import speech_probabilities
from ollama_pack.speech.values import PcmFormat, SpeechOptions, SpeechProgress, SpeechWindow, Transcript
from ollama_pack.speech.windows import windows_and_pauses

ROOT = Path(__file__).resolve().parents[2]
PLAIN = SpeechOptions()
OPEN_FILES = Path("/proc/self/fd")
FRAGMENTS = {
    "movflags": "frag_every_frame+empty_moov"
}  # an MP4 as browsers record it, with no index at its end


@pytest.fixture(scope="module")
def speech() -> Any:
    """Three seconds of somebody who reads."""
    return librivox()[1].samples


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No ffmpeg to be found, and nothing left behind: no temporary file, no open file."""
    monkeypatch.setenv("PATH", "")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = len(list(OPEN_FILES.iterdir()))
    yield
    assert list(place.iterdir()) == []
    assert len(list(OPEN_FILES.iterdir())) <= before


def decoded(source: AudioSource, options: SpeechOptions = PLAIN) -> tuple[Any, DecodedAudio]:
    with open_audio(source, options) as audio:
        return np.concatenate(list(audio.blocks())), audio


def kinds(audio: DecodedAudio | Transcript) -> list[str]:
    return [note.kind for note in audio.notes]


def windows(samples: Any) -> list[SpeechWindow]:
    blocks = (samples[start : start + 256_000] for start in range(0, len(samples), 256_000))
    return [window for window in windows_and_pauses(speech_probabilities(blocks)) if window]


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_format(name: str, speech: Any) -> None:
    """Would catch a format refused without ffmpeg, at another speed, or with a warning for nothing."""
    data = encoded(speech, ENCODINGS[name], video=name in {"mp4", "mov"})
    samples, audio = decoded(data)
    assert samples.dtype == np.float32
    assert audio.seconds == pytest.approx(len(speech) / RATE, abs=0.06)
    assert audio.total == pytest.approx(audio.seconds, abs=0.1)
    assert similarity(samples, speech) > 0.95
    assert kinds(audio) == []


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_that_is_cut_off(name: str, speech: Any) -> None:
    """Would catch half a text that looks like all of it, and a file of which nothing is used."""
    muxer = FRAGMENTS if name in {"mp4", "m4a", "mov"} else {}
    data = encoded(speech, ENCODINGS[name], muxer=muxer)
    samples, audio = decoded(data[: len(data) * 7 // 10])
    assert "truncated" in kinds(audio)
    assert 0.8 < audio.seconds < 2.6
    assert similarity(samples, speech[: len(samples)]) > 0.9


def test_a_wav_of_a_careless_recorder_is_whole(speech: Any) -> None:
    """Would catch a warning at each recording of a device that counts the header into its size."""
    data = bytearray(encoded(speech, ENCODINGS["wav"]))
    struct.pack_into("<I", data, 4, len(data))
    assert kinds(decoded(bytes(data))[1]) == []


def test_an_mp4_without_its_index_says_so(speech: Any) -> None:
    """Would catch `invalid data` for an upload that was interrupted."""
    data = encoded(speech, ENCODINGS["m4a"])
    with pytest.raises(NotAudioError, match="its end is missing"):
        decoded(data[: len(data) * 7 // 10])


def test_damaged_packets_are_left_out(speech: Any) -> None:
    """Would catch a recording that is lost for one bad packet."""
    data = bytearray(encoded(speech, ENCODINGS["aac"]))
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(1).bytes(300)
    _, audio = decoded(bytes(data))
    assert "damaged" in kinds(audio)
    assert audio.seconds > 2.5


def test_a_hole_in_the_times_is_silence(speech: Any) -> None:
    """Would catch subtitles that run ahead of the picture after a piece that was lost."""
    data = encoded(speech, ENCODINGS["flac"])
    lost = encoded(np.concatenate((speech, speech)), ENCODINGS["webm"], muxer={"cluster_time_limit": "200"})
    cut = lost[: len(lost) // 3] + lost[lost.index(b"\x1f\x43\xb6\x75", len(lost) * 2 // 3) :]
    samples, audio = decoded(cut)
    assert audio.seconds == pytest.approx(2 * len(speech) / RATE, abs=0.6)
    assert (samples == 0).sum() > RATE
    assert decoded(data)[1].seconds < 3.1


@pytest.mark.parametrize(
    ("pcm", "scale", "kind"),
    [
        (PcmFormat(), 32767, "<i2"),
        (PcmFormat(rate=16_000, channels=2), 32767, "<i2"),
        (PcmFormat(width=4), 2**31 - 1, "<i4"),
    ],
)
def test_raw_samples(pcm: PcmFormat, scale: int, kind: str, speech: Any) -> None:
    """Would catch samples without a header that are refused, or read in the wrong format."""
    numbers: Any = np.repeat((speech.astype("float64") * scale).astype(kind), pcm.channels)
    samples, _ = decoded(numbers.tobytes(), SpeechOptions(pcm=pcm))
    assert samples == pytest.approx(speech, abs=1e-3)


def test_a_wav_that_only_pydub_reads(speech: Any) -> None:
    """Would catch a recorder's WAV, cut off before the first bytes were written, thrown away."""
    data = bytearray(encoded(speech, ENCODINGS["wav"]))
    data[:4] = bytes(4)
    samples, _ = decoded(bytes(data))
    assert similarity(samples, speech) > 0.95


@pytest.mark.parametrize("form", ["path", "text", "file", "view"])
def test_sources(form: str, speech: Any, tmp_path: Path) -> None:
    """Would catch a source that is not taken, and somebody's open file closed."""
    data = encoded(speech, ENCODINGS["wav"])
    path = tmp_path / "recording.bin"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.seek(100)  # it was read before
    forms: dict[str, AudioSource] = {
        "path": path,
        "text": str(path),
        "file": file,
        "view": memoryview(data),
    }
    source = forms[form]
    assert decoded(source)[1].seconds == pytest.approx(2.99, abs=0.01)
    assert not file.closed


def test_a_file_that_was_written_a_moment_ago(speech: Any) -> None:
    """Would catch an upload's temporary file, whose mode says `w`, taken for one to write to."""
    with tempfile.SpooledTemporaryFile() as file:
        file.write(encoded(speech, ENCODINGS["webm"]))
        assert decoded(file)[1].seconds == pytest.approx(2.99, abs=0.05)  # type: ignore[arg-type] # all but the name


def failure(source: AudioSource, options: SpeechOptions = PLAIN) -> SpeechError:
    with pytest.raises(SpeechError) as caught:
        asyncio.run(transcribe(source, options, CountingEngine()))
    return caught.value


def wav(samples: int) -> bytes:
    data = bytes(2 * samples)
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, RATE, 32000, 2, 16
    )
    return head + struct.pack("<4sI", b"data", len(data)) + data


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", EmptyAudioError),
        (b"Good morning. " * 300, NotAudioError),
        (bytes(5000), NotAudioError),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), NotAudioError),
        (wav(0), ZeroLengthError),
        (wav(5 * RATE), NoSpeechError),
    ],
    ids=["empty", "text", "zeros", "picture", "zero length", "silence"],
)
def test_what_is_no_speech_is_a_typed_error(data: bytes, kind: type[SpeechError]) -> None:
    """Would catch an untyped error, or a guess."""
    assert type(failure(data)) is kind


def test_a_video_without_sound() -> None:
    """Would catch an error that does not tell what is missing."""
    assert type(failure(silent_video())) is NoAudioTrackError


def test_noise_is_no_speech() -> None:
    """Would catch `You` for hiss and hum, loud or soft."""
    noise = np.random.default_rng(1).normal(0, 1, 20 * RATE).astype("float32")
    hum = np.sin(np.arange(20 * RATE, dtype="float32") * 2 * np.pi * 50 / RATE)
    for sound in (noise * 0.1, noise * 0.0005, hum * 0.3, noise * 0.0005 + hum * 0.001):
        assert windows(sound.astype("float32")) == []


def test_quiet_speech_is_speech(speech: Any) -> None:
    """Would catch a soft voice taken for silence: here a peak of 0.003."""
    (loud,), (soft,) = windows(speech), windows(speech * 0.01)
    assert soft.start == pytest.approx(loud.start, abs=0.3)
    assert soft.seconds == pytest.approx(loud.seconds, abs=0.5)


def test_playlists_open_no_other_file(tmp_path: Path, speech: Any) -> None:
    """Would catch an upload that makes the server read its own files, or somebody else's site."""
    other = tmp_path / "other.wav"
    other.write_bytes(encoded(speech, ENCODINGS["wav"]))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
    ):
        assert isinstance(failure(text.encode()), NotAudioError)


def test_limits_say_the_limit_and_the_actual_value(speech: Any) -> None:
    """Would catch a limit that does not hold, or an error that does not tell it."""
    data = encoded(speech, ENCODINGS["wav"])
    large = failure(data, SpeechOptions(max_bytes=1000))
    assert isinstance(large, AudioTooLargeError)
    assert (large.limit, large.actual) == (1000, len(data))
    told = failure(data, SpeechOptions(max_seconds=2.0))
    assert isinstance(told, AudioTooLongError)
    assert told.limit == 2.0
    assert told.actual == pytest.approx(2.99, abs=0.01)


def test_the_length_is_limited_although_the_file_does_not_tell_it(speech: Any) -> None:
    """Would catch a live recording without a length that goes on for ever."""
    data = encoded(speech, ENCODINGS["webm"], muxer={"live": "1"})
    _, audio = decoded(data)
    assert audio.total is None
    error = failure(data, SpeechOptions(max_seconds=2.0))
    assert isinstance(error, AudioTooLongError)
    assert 2.0 < error.actual <= 2.99


def test_a_length_that_is_only_guessed_is_no_reason_to_refuse(speech: Any) -> None:
    """Would catch raw AAC that begins with silence, which FFmpeg takes for many times as long."""
    sound = np.concatenate((np.zeros(20 * RATE, "float32"), speech))
    data = encoded(sound, ENCODINGS["aac"])
    samples, audio = decoded(data, SpeechOptions(max_seconds=30))
    assert audio.total
    assert audio.total > 60
    assert similarity(samples, sound) > 0.95
    error = failure(data, SpeechOptions(max_seconds=10))
    assert isinstance(error, AudioTooLongError)


@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_a_cover_does_not_hide_the_length(name: str, speech: Any) -> None:
    """Would catch a podcast that is cut off without a warning, as it has a picture in it."""
    data = with_cover(encoded(speech, ENCODINGS[name]), 16)
    _, audio = decoded(data)
    assert audio.total == pytest.approx(len(speech) / RATE, abs=0.01)
    assert kinds(audio) == []
    _, audio = decoded(data[: len(data) * 6 // 10])
    assert kinds(audio) == ["truncated"]


def test_a_wrong_language_is_refused_before_anything_else() -> None:
    """Would catch an upload that is decoded first and refused then."""
    assert isinstance(failure(b"", SpeechOptions(language="xx")), LanguageTagError)


@cache
def valid_files() -> dict[str, bytes]:
    samples = librivox()[1].samples
    files = {name: encoded(samples, encoding) for name, encoding in ENCODINGS.items()}
    return files | {"mp4 fragments": encoded(samples, ENCODINGS["mp4"], video=True, muxer=FRAGMENTS)}


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A file cut off, overwritten, with a hole, with a piece too much, or with a damaged header."""
    changed = bytearray(data)
    place, length = dice.randrange(len(data)), dice.randrange(1, len(data) // 2)
    match dice.randrange(6):
        case 0:
            del changed[place:]
        case 1:
            for _ in range(dice.randrange(1, 400)):
                changed[dice.randrange(len(data))] = dice.randrange(256)
        case 2:
            del changed[place : place + length]
        case 3:
            changed[place : place + length] = bytes(min(length, len(data) - place))
        case 4:
            for _ in range(dice.randrange(1, 30)):
                changed[dice.randrange(min(300, len(data)))] = dice.randrange(256)
        case _:
            changed[place:place] = dice.randbytes(length)
    return bytes(changed)


def test_200_malformed_files() -> None:
    """Would catch an untyped error, a crash, a file left behind, or speech that is missing without a word."""
    outcomes: Counter[str] = Counter()
    threads_before = threading.active_count()  # other tests' servers
    for seed in range(200):
        dice = random.Random(seed)  # noqa: S311 - the same files each time
        name, data = dice.choice(sorted(valid_files().items()))
        try:
            found = asyncio.run(transcribe(mutated(data, dice), PLAIN, CountingEngine()))
        except AudioError as error:
            outcomes[type(error).__name__] += 1
        else:
            is_whole = abs(found.duration - 2.99) < 0.6
            outcomes["warned" if found.notes else "harmless" if is_whole else f"silent, {name}"] += 1
    assert sum(outcomes.values()) == 200
    assert outcomes["warned"] > 50, outcomes
    # What is cut out of formats whose pieces stand alone cannot be told from a shorter recording.
    assert sum(count for name, count in outcomes.items() if name.startswith("silent")) <= 10, outcomes
    assert threading.active_count() - threads_before < 10


def test_progress_and_order(speech: Any) -> None:
    """Would catch windows out of order, times from each window's beginning, and text told twice."""
    told: list[SpeechProgress] = []

    async def tell(progress: SpeechProgress) -> None:
        told.append(progress)

    pause: Any = np.zeros(6 * RATE, "float32")
    sound = np.concatenate([part for _ in range(4) for part in (speech, pause)])
    data = encoded(sound, ENCODINGS["mp3"])
    engine = CountingEngine()
    found = asyncio.run(transcribe(data, SpeechOptions(language="zh-CN"), engine, tell))
    starts = [segment.start for segment in found.segments]
    assert starts == pytest.approx([n * (len(speech) + len(pause)) / RATE for n in range(4)], abs=0.5)
    assert " ".join(progress.text for progress in told) == found.text
    assert [progress.stage for progress in told] == ["transcribing"] * 4
    assert all(progress.total == pytest.approx(len(sound) / RATE, abs=0.1) for progress in told)
    assert [request.language for request in engine.requests] == [engine.requests[0].language] * 4


def test_the_detected_language_holds_for_the_rest(speech: Any) -> None:
    """Would catch a language that is guessed anew for each window, and one that a few words decide on."""
    pause: Any = np.zeros(6 * RATE, "float32")
    engine = CountingEngine()
    long = np.tile(speech, 6)
    data = encoded(np.concatenate((speech, pause, long, pause, speech, pause, speech)), ENCODINGS["wav"])
    found = asyncio.run(transcribe(data, PLAIN, engine))
    asked = [request.language.code if request.language else None for request in engine.requests]
    assert asked == [None, None, "en", "en"]
    assert (found.language, found.language_probability) == ("en", 0.9)


def cues_of(data: bytes) -> tuple[list[tuple[float, float]], list[str]]:
    """When something is said, and the notes."""
    found = asyncio.run(transcribe(data, SpeechOptions(language="en"), CountingEngine()))
    return [(segment.start, segment.end) for segment in found.segments], [note.text for note in found.notes]


@pytest.mark.parametrize("seconds", [70.0, 200.0])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_long_hole_keeps_the_times(name: str, seconds: float, speech: Any) -> None:
    """Would catch subtitles that are minutes too early after a hole, and a warning that is not true."""
    later = len(speech) / RATE + seconds
    (first, second), notes = cues_of(written([[(0.0, speech), (later, speech)]], LAYOUTS[name]))
    assert first == pytest.approx((0.0, 3.0), abs=0.3)
    assert second == pytest.approx((later, later + 3.0), abs=0.3)
    assert notes == []


@pytest.mark.parametrize(
    ("name", "video"),
    [
        *(
            (name, 75.0)
            for name in ("mkv", "mkv flac", "mkv mp3", "mp4", "mov", "mpegts", "mpegts mp2", "asf")
        ),
        # Alone, a transport stream or an Ogg file begins at any time.
        *((name, 0.0) for name in ("webm", "mkv", "mkv flac", "mkv mp3", "mp4", "mov", "asf")),
    ],
)
def test_sound_that_begins_late_keeps_the_times(name: str, video: float, speech: Any) -> None:
    """Would catch subtitles that begin with the sound, not with the picture."""
    (only,), notes = cues_of(written([[(70.0, speech)]], replace(LAYOUTS[name], video=video)))
    assert only == pytest.approx((70.0, 73.0), abs=0.3)
    assert notes == []


@pytest.mark.parametrize("name", ["mkv", "mkv flac", "mkv mp3", "mp4", "mov", "mpegts", "asf"])
def test_a_track_shorter_than_its_film_is_whole(name: str, speech: Any) -> None:
    """Would catch `not whole` for a film that ends without words."""
    (only,), notes = cues_of(written([[(0.0, speech)]], replace(LAYOUTS[name], video=60.0)))
    assert only == pytest.approx((0.0, 3.0), abs=0.3)
    assert notes == []


@pytest.mark.parametrize("name", ["mkv", "mkv flac", "mp4", "mp4 fragments", "mov", "mpegts", "asf"])
def test_the_first_track_with_sound_is_taken_and_the_others_named(name: str, speech: Any) -> None:
    """Would catch silence for a recording with an unused first track, and a track that nobody hears of."""
    silent: Any = np.zeros_like(speech)
    layout = replace(LAYOUTS[name], languages=("eng", "eng", "eng"))
    (only,), notes = cues_of(written([[(0.0, silent)], [(0.0, speech)], [(0.0, speech)]], layout))
    assert only == pytest.approx((0.0, 3.0), abs=0.3)
    (note,) = notes
    assert "3 audio tracks: this is track 2" in note
    assert "track 1" in note
    assert "track 3" in note
    error = failure(written([[(0.0, silent)], [(0.0, silent)]], layout))
    assert isinstance(error, NoSpeechError)
    assert error.seconds == pytest.approx(3.0, abs=0.1)
    assert "2 audio tracks" in str(error)


def test_the_default_track_goes_first(speech: Any) -> None:
    """Would catch the first track of a film taken for the one that players play."""
    layout = Layout("matroska", "flac", 16_000, default=1, languages=("deu", "eng"))
    (only,), (note,) = cues_of(written([[(0.0, speech)], [(2.0, speech)]], layout))
    assert only[0] == pytest.approx(2.0, abs=0.3)
    assert note.endswith("this is track 2 (eng), not track 1 (deu).")


@pytest.mark.parametrize("name", ["webm", "mkv flac", "mp4", "ogg", "mpegts mp2", "asf"])
def test_channels_that_cancel_each_other_are_not_silence(name: str, speech: Any) -> None:
    """Would catch `no speech` for a microphone that is wired the wrong way round."""
    both: Any = np.stack((speech, -speech), axis=1)
    (only,), notes = cues_of(written([[(0.0, both)]], replace(LAYOUTS[name], channels="stereo")))
    assert only == pytest.approx((0.0, 3.0), abs=0.3)
    assert notes == []


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 9, 16, 64])
def test_one_channel_of_many_is_heard(channels: int, speech: Any) -> None:
    """Would catch samples of nine channels that nothing can mix, and a voice lost among silent ones."""
    numbers: Any = np.zeros((len(speech), channels), "<i2")
    numbers[:, -1] = (speech * 32767).astype("<i2")
    samples, _ = decoded(numbers.tobytes(), SpeechOptions(pcm=PcmFormat(channels=channels)))
    assert similarity(samples, speech) > 0.95


BOMB = """
import asyncio, json, sys, time
from pathlib import Path
from harness.speech_engines import CountingEngine
from ollama_pack.speech.errors import AudioError
from ollama_pack.speech.transcribe import transcribe
from ollama_pack.speech.values import SpeechOptions

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

asyncio.run(transcribe(sys.argv[1], SpeechOptions(), CountingEngine()))
for line in sys.stdin:
    before, since = peak(), time.process_time()
    try:
        asyncio.run(transcribe(line.strip(), SpeechOptions(), CountingEngine()))
        kind = ""
    except AudioError as error:
        kind = type(error).__name__
    print(json.dumps([peak() - before, time.process_time() - since, kind]), flush=True)
"""
BOMB_MEGABYTES, BOMB_SECONDS = 120, 10.0


def test_what_a_file_claims_costs_nothing(speech: Any, tmp_path: Path) -> None:
    """Would catch gigabytes or minutes for some bytes of header, and an error without a type."""
    plain = tmp_path / "plain.wav"
    plain.write_bytes(encoded(np.tile(speech, 40), ENCODINGS["wav"]))
    paths = []
    for number, make in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"bomb{number}")
        paths[-1].write_bytes(make())
    environment = {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(plain)],
        env=environment,
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    found = dict(zip(BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))
    too_much = {
        name: (more / 2**20, seconds)
        for name, (more, seconds, _) in found.items()
        if more > BOMB_MEGABYTES * 2**20 or seconds > BOMB_SECONDS
    }
    assert too_much == {}
    assert [name for name, (_, _, kind) in found.items() if not kind] == []  # nobody says anything in them
    assert found["flac 1 Hz"][1] < 1.0
    assert found["flac 1 Hz"][0] < 50 * 2**20


MEASURE = """
import asyncio, json, sys
from pathlib import Path
from harness.odd_recordings import BOMBS, LAYOUTS, Layout, with_cover, written
from harness.speech_engines import CountingEngine
from ollama_pack.speech.transcribe import transcribe
from ollama_pack.speech.values import SpeechOptions

def peak():
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory too
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

asyncio.run(transcribe(sys.argv[1], SpeechOptions(), CountingEngine()))
before = peak()
found = asyncio.run(transcribe(sys.argv[2], SpeechOptions(), CountingEngine()))
print(json.dumps([before, peak(), found.duration]))
"""


# glibc keeps what was freed, a heap for each thread: how much depends on how threads happen to be scheduled.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def test_memory_of_a_long_mp3(speech: Any, tmp_path: Path) -> None:
    """Would catch a decoder that holds the whole recording: the 12 minutes more are 46 MB of samples."""
    minute = encoded(np.tile(speech, 20), ENCODINGS["mp3"])
    short, long = tmp_path / "short.mp3", tmp_path / "long.mp3"
    short.write_bytes(minute * 4)  # the frames of an MP3 stand alone
    long.write_bytes(minute * 16)
    run = [sys.executable, "-c", MEASURE, str(short), str(long)]
    environment = {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))} | GIVE_BACK
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=300)
    before, peak, seconds = json.loads(done.stdout)
    assert seconds > 950
    assert peak - before < 15 * 2**20
    assert peak < 150 * 2**20  # the whole process: Python and the libraries are 110 MB of it
