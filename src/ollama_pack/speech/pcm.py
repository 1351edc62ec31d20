"""Samples without a usable header: raw PCM, and WAV files that PyAV refuses, for which pydub is optional."""

import io
import warnings
from struct import error as StructError  # noqa: N812 - it is a class
from typing import BinaryIO

from ollama_pack.speech.values import PcmFormat

_CODECS = {1: "u8", 2: "s16le", 3: "s24le", 4: "s32le"}
MAX_PCM_RATE, MAX_PCM_CHANNELS = 384_000, 64


def pcm_container(pcm: PcmFormat) -> tuple[str, dict[str, str]]:
    """The name of PyAV's format for raw samples, and its options.

    Raises:
        ValueError: there are no such samples.
    """
    if pcm.width not in _CODECS:
        raise ValueError(f"{pcm.width} bytes a sample: PCM has 1, 2, 3 or 4")
    if not (0 < pcm.rate <= MAX_PCM_RATE and 0 < pcm.channels <= MAX_PCM_CHANNELS):
        raise ValueError(
            f"{pcm.rate} Hz, {pcm.channels} channels: it is 1 to {MAX_PCM_RATE} Hz, "
            f"1 to {MAX_PCM_CHANNELS} channels"
        )
    layout = {1: "mono", 2: "stereo"}.get(pcm.channels, f"{pcm.channels}c")
    return _CODECS[pcm.width], {"sample_rate": str(pcm.rate), "ch_layout": layout}


def wav_by_pydub(file: BinaryIO) -> tuple[BinaryIO, PcmFormat] | None:
    """The samples of a WAV file whose header PyAV does not accept; None where that fails too.

    Needs no ffmpeg binary: of pydub only what reads WAV by itself is used. Holds the whole file in memory.

    Args:
        file: at any position; it is moved.
    """
    file.seek(0)
    head = file.read(16)
    if b"WAVE" not in head[8:12] and head[12:16] != b"fmt ":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wants an ffmpeg, and the standard library's audioop
            from pydub.audio_segment import read_wav_audio  # noqa: PLC0415 - optional
            from pydub.exceptions import CouldntDecodeError  # noqa: PLC0415
    except ImportError:
        return None
    try:
        file.seek(0)
        wav = read_wav_audio(file.read())
        pcm = PcmFormat(wav.sample_rate, wav.channels, wav.bits_per_sample // 8)
        pcm_container(pcm)
    except (CouldntDecodeError, StructError, ValueError):
        return None
    return io.BytesIO(wav.raw_data), pcm
