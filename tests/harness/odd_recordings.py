"""Recordings that are right and unusual, and files that claim or stand for far more than they are."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np

from harness.speech_recordings import RATE

_FLAC_SYNC = b"\xff\xf8"
_BOX = struct.Struct(">I4s")


@dataclass(frozen=True)
class Layout:
    """How tracks are written.

    Attributes:
        container: of the file.
        codec: of all tracks.
        rate: Hz.
        channels: `mono` or `stereo`.
        video: seconds of a black video before the tracks; 0: none.
        default: number of the track that is marked so; None: as the container does it.
        languages: of the tracks, as far as they are said.
        muxer: options of the container.
    """

    container: str
    codec: str
    rate: int = 44_100
    channels: str = "mono"
    video: float = 0.0
    default: int | None = None
    languages: tuple[str, ...] = ()
    muxer: Mapping[str, str] = field(default_factory=dict)


LAYOUTS = {
    "webm": Layout("webm", "libopus", 48_000),
    "mkv": Layout("matroska", "aac"),
    "mkv flac": Layout("matroska", "flac", 16_000),
    "mkv mp3": Layout("matroska", "libmp3lame"),
    "mp4": Layout("mp4", "aac"),
    "mp4 fragments": Layout("mp4", "aac", muxer={"movflags": "frag_every_frame+empty_moov"}),
    "mov": Layout("mov", "aac", 48_000),
    "ogg": Layout("ogg", "libopus", 48_000),
    "mpegts": Layout("mpegts", "aac"),
    "mpegts mp2": Layout("mpegts", "mp2"),
    "flv": Layout("flv", "aac"),
    "asf": Layout("asf", "wmav2"),
}

# A track: pieces of sound, each with the second at which it begins; mono at 16 kHz, or a column a channel.
Track = Sequence[tuple[float, Any]]


def written(tracks: Sequence[Track], layout: Layout) -> bytes:
    """A file with these tracks, holes and late beginnings included."""
    file = io.BytesIO()
    with av.open(file, "w", format=layout.container, options=dict(layout.muxer)) as out:
        packets = _video_packets(out, layout.video) if layout.video else []
        streams = [_audio_stream(out, layout, number) for number in range(len(tracks))]
        for stream, track in zip(streams, tracks, strict=True):
            packets += _audio_packets(stream, track, layout)
        for packet in sorted(packets, key=lambda found: found.dts * found.time_base):
            out.mux(packet)
    return file.getvalue()


def _audio_stream(out: Any, layout: Layout, number: int) -> Any:
    stream = out.add_stream(layout.codec, rate=layout.rate)
    stream.layout = layout.channels
    if layout.default is not None:
        stream.disposition = int(number == layout.default)
    if number < len(layout.languages):
        stream.metadata["language"] = layout.languages[number]
    if not layout.codec.startswith(("pcm", "flac")):
        stream.bit_rate = 96_000
    stream.codec_context.open()
    return stream


def _audio_packets(stream: Any, track: Track, layout: Layout) -> list[Any]:
    context = stream.codec_context
    resampler = av.AudioResampler(
        context.format, layout.channels, layout.rate, frame_size=context.frame_size or None
    )
    packets = []
    for start, samples in track:
        given = "mono" if samples.ndim == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.reshape(1, -1)), format="flt", layout=given
        )
        frame.sample_rate, frame.pts = RATE, None
        position = round(start * layout.rate)
        for piece in resampler.resample(frame):
            piece.pts, piece.time_base = position, Fraction(1, layout.rate)
            position += piece.samples
            packets += stream.encode(piece)
    return [packet for packet in [*packets, *stream.encode(None)] if packet.dts is not None]


def _video_packets(out: Any, seconds: float) -> list[Any]:
    video = out.add_stream("mpeg4", rate=10)
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    video.codec_context.open()
    packets = []
    for number in range(round(seconds * 10)):
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.time_base, frame.pts = Fraction(1, 10), number
        packets += video.encode(frame)
    return [*packets, *video.encode(None)]


def flac(  # noqa: PLR0913 - as a header has them
    rate: int, block: int, channels: int, frames: int, *, value: int = 0, claimed: int = 0
) -> bytes:
    """A FLAC of constant frames: some bytes for each block of up to 65,535 samples."""
    head = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | claimed
    info = struct.pack(">HH", block, block) + bytes(6) + head.to_bytes(8, "big") + bytes(16)
    return (
        b"fLaC\x80\0\0\x22" + info + b"".join(_flac_frame(n, block, channels, value) for n in range(frames))
    )


def _flac_frame(number: int, block: int, channels: int, value: int) -> bytes:
    coded = chr(number).encode("utf-8", "surrogatepass")
    head = _FLAC_SYNC + bytes([0x70, (channels - 1) << 4 | 8]) + coded + (block - 1).to_bytes(2, "big")
    head += bytes([_crc(head, 0x07, 8)])
    body = head + (b"\0" + value.to_bytes(2, "big", signed=True)) * channels
    return body + _crc(body, 0x8005, 16).to_bytes(2, "big")


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    crc, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial) & mask if crc & top else crc << 1 & mask
    return crc


def wav(  # noqa: PLR0913 - as a header has them
    rate: int, channels: int, data: bytes, *, claimed: int = 0, bits: int = 16, kind: int = 1
) -> bytes:
    """A WAV file that claims what it is told to."""
    size, each = claimed or len(data), channels * bits // 8
    head = struct.pack(
        "<4sI4s4sIHHIIHH",
        b"RIFF",
        min(size + 36, 2**32 - 1),
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels & 0xFFFF,
        rate,
        rate * each & 0xFFFFFFFF,
        each & 0xFFFF,
        bits,
    )
    return head + struct.pack("<4sI", b"data", size) + data


def far_apart(seconds: float, count: int, container: str = "webm") -> bytes:
    """Silent Opus packets of 20 ms, so many seconds apart: 20 bytes or so for each."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libopus", rate=48_000)
        stream.layout = "mono"
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), "float32"), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        data = bytes(next(iter([*stream.encode(frame), *stream.encode(None)])))
        for number in range(count):
            _mux(out, stream, data, round(number * seconds * 1000))
    return file.getvalue()


def packets_of(data: Sequence[bytes], codec: str, extradata: bytes = b"", tracks: int = 1) -> bytes:
    """A Matroska file of such packets, in each of the tracks."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        streams = [out.add_stream(codec, rate=16_000) for _ in range(tracks)]
        for stream in streams:
            stream.layout = "mono"
            if extradata:
                stream.codec_context.extradata = extradata
        for number, packet in enumerate(data):
            for stream in streams:
                _mux(out, stream, packet, number * 1000)
    return file.getvalue()


def _mux(out: Any, stream: Any, data: bytes, milliseconds: int) -> None:
    packet = av.Packet(data)
    packet.stream, packet.pts, packet.dts = stream, milliseconds, milliseconds
    packet.time_base = Fraction(1, 1000)
    out.mux(packet)


def boxes(kind: bytes, size: int, before: bytes = b"") -> bytes:
    """So many bytes of empty MP4 boxes."""
    head = before or _BOX.pack(20, b"ftyp") + b"isom\0\0\2\0isom"
    return head + _BOX.pack(8, kind) * (size // 8)


def with_cover(mp3: bytes, side: int) -> bytes:
    """An MP3 with a black picture of `side` by `side` as its cover."""
    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(3 * side + 1)) for _ in range(side)) + rows.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    picture = b"\0image/png\0\3\0" + png
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + mp3


# Each takes memory or time out of all proportion, where a decoder believes what it claims.
BOMBS: Mapping[str, Callable[[], bytes]] = {
    "flac 1 Hz": lambda: flac(1, 16_000, 1, 4),
    "flac 100 Hz": lambda: flac(100, 65_535, 1, 4),
    "flac 4 h of a constant, 8 channels": lambda: flac(8000, 65_535, 8, 1700, value=900),
    "flac of 655 kHz, 8 channels": lambda: flac(655_350, 65_535, 8, 1000),
    "flac claims months": lambda: flac(16_000, 4096, 1, 4, claimed=2**36 - 1),
    "wav 1 Hz": lambda: wav(1, 1, bytes(40_000)),
    "wav 2 GHz": lambda: wav(2**31 - 1, 1, bytes(40_000)),
    "wav 65535 channels": lambda: wav(16_000, 65_535, bytes(400_000)),
    "wav claims 4 GB": lambda: wav(16_000, 1, bytes(40_000), claimed=2**32 - 100),
    "wav of no number": lambda: wav(16_000, 1, np.full(16_000, np.nan, "<f4").tobytes(), bits=32, kind=3),
    "wav of infinities": lambda: wav(16_000, 2, np.full(32_000, np.inf, "<f4").tobytes(), bits=32, kind=3),
    "webm 4 h of silence": lambda: far_apart(59.0, 240),
    "webm 3 h in one hole": lambda: far_apart(10_800.0, 2),
    "mkv days of silence": lambda: far_apart(10_800.0, 20, "matroska"),
    "mp4 boxes": lambda: boxes(b"free", 40 * 2**20),
    "mp4 fragments": lambda: boxes(b"moof", 40 * 2**20),
    "mkv many frames in a packet": lambda: packets_of(
        [b"".join(_flac_frame(n, 65_535, 8, 0) for n in range(3000))], "flac", flac(48_000, 65_535, 8, 0)[8:]
    ),
    "mkv many aac frames in a packet": lambda: packets_of([b"\x01\x18\x20\x07" * 30_000], "aac", b"\x11\x88"),
    "mkv 20 MB in a packet": lambda: packets_of([bytes(20 * 2**20)], "pcm_s16le"),
    "mkv 200 tracks": lambda: packets_of([bytes(3200)], "pcm_s16le", tracks=200),
    "mp3 with a cover of 400 megapixels": lambda: with_cover(b"\xff\xfb\x90\xc4" + bytes(413), 20_000),
}
