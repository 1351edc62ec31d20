"""Samples without a usable header: raw PCM, and WAV files that PyAV refuses. And samples as WAV files."""

import io
import wave
from typing import BinaryIO

from ollama_pack.base.messages import message
from ollama_pack.speech.values import SAMPLE_RATE, PcmFormat, Samples

_CODECS = {1: "u8", 2: "s16le", 3: "s24le", 4: "s32le"}
MIN_RATE, MAX_RATE = 2_000, 768_000  # Hz: with less, speech cannot be understood; nothing records with more
MAX_CHANNELS = 64
_WAVE_FORMATS = frozenset({1, 0xFFFE})  # PCM, and "extensible", which is nearly always PCM too
_CHUNK_HEAD = 8  # bytes: four of name, four of size
_MAX_CHUNKS = 1000  # of a WAV file, before its samples


def pcm_container(pcm: PcmFormat) -> tuple[str, dict[str, str]]:
    """The name of PyAV's format for raw samples, and its options.

    Raises:
        ValueError: there are no such samples.
    """
    if pcm.width not in _CODECS:
        raise ValueError(message("{width} bytes a sample: PCM has 1, 2, 3 or 4", width=pcm.width))
    if not (MIN_RATE <= pcm.rate <= MAX_RATE and 0 < pcm.channels <= MAX_CHANNELS):
        raise ValueError(
            message(
                "{rate} Hz, {channels} channels: it is {lowest} to {highest} Hz, 1 to {most} channels",
                rate=pcm.rate,
                channels=pcm.channels,
                lowest=MIN_RATE,
                highest=MAX_RATE,
                most=MAX_CHANNELS,
            )
        )
    # `9C` is nine channels in no particular order; `9c` would ask for FFmpeg's default order of nine.
    layout = {1: "mono", 2: "stereo"}.get(pcm.channels, f"{pcm.channels}C")
    return _CODECS[pcm.width], {"sample_rate": str(pcm.rate), "ch_layout": layout}


def wav_samples(file: BinaryIO) -> tuple[int, PcmFormat] | None:
    """Where the samples of a WAV file begin whose header PyAV does not accept; None: it is none.

    Args:
        file: at any position; it is moved.
    """
    file.seek(0)
    head = file.read(16)
    if b"WAVE" not in head[8:12] and head[12:16] != b"fmt ":
        return None
    place, pcm = 12, None
    for _ in range(_MAX_CHUNKS):
        file.seek(place)
        chunk = file.read(24)
        name, size = chunk[:4], int.from_bytes(chunk[4:8], "little")
        if name == b"data":
            return (place + _CHUNK_HEAD, pcm) if pcm else None
        if name == b"fmt ":
            pcm = _pcm_in(chunk[8:])
        if len(chunk) < _CHUNK_HEAD or (name == b"fmt " and pcm is None):
            return None
        place += _CHUNK_HEAD + size + size % 2
    return None


def _pcm_in(fmt: bytes) -> PcmFormat | None:
    """The format in a `fmt ` chunk; None where it is not PCM that can be read."""
    codec, channels = int.from_bytes(fmt[:2], "little"), int.from_bytes(fmt[2:4], "little")
    pcm = PcmFormat(int.from_bytes(fmt[4:8], "little"), channels, int.from_bytes(fmt[14:16], "little") // 8)
    try:
        pcm_container(pcm)
    except ValueError:
        return None
    return pcm if codec in _WAVE_FORMATS else None


def int16_bytes(samples: Samples) -> bytes:
    """Samples as little-endian 16-bit integers."""
    scaled = (samples.clip(-1.0, 1.0) * 32767).round()
    return bytes(scaled.astype("<i2").tobytes())


def wav_bytes(samples: Samples) -> bytes:
    """Samples as a WAV file: mono, 16 kHz, 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(int16_bytes(samples))
    return file.getvalue()
