"""Decoding with PyAV: any usual format to mono at 16 kHz, block by block, without an ffmpeg binary.

No claim of a file costs memory or time. What counts is what comes out of it: samples up to the limit, a
bounded number of them at a time, and a bounded time of the processor in which nothing comes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from math import isfinite
from typing import Any, BinaryIO

from ollama_pack.base.messages import joined, message
from ollama_pack.speech.containers import (
    CONTAINERS,
    FROM_ZERO,
    has_empty_boxes,
    is_cut_off,
    tells_duration,
    why_unreadable,
)
from ollama_pack.speech.errors import (
    AudioTooLongError,
    NoAudioTrackError,
    NotAudioError,
    SampleRateError,
    SpeechDependencyError,
    ZeroLengthError,
)
from ollama_pack.speech.pcm import MAX_CHANNELS, MAX_RATE, MIN_RATE, pcm_container, wav_samples
from ollama_pack.speech.source import AudioSource, WatchedFile, opened_source
from ollama_pack.speech.values import SAMPLE_RATE, PcmFormat, Samples, SpeechNote, SpeechOptions, is_silence

BLOCK_SAMPLES = 512 * 500  # 16 s; 512 is what the voice activity detector looks at together
MIN_GAP_SECONDS = 0.5  # a hole in the times of a file, as a call leaves it where nothing was sent
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.02  # a file that lacks more than that of its length is not whole
MAX_READ_ERRORS = 100  # until the rest of a file is given up
MAX_RATE_CHANGES = 100  # of the sampling rate; each costs a new resampler
MAX_TRACKS = 16  # with sound, of which one is chosen
MAX_STREAMS = 256  # of any kind in a file
MAX_NAMED = 8  # tracks, in a message
SAME_SECONDS = 0.002  # between two lengths that are the same
MIN_BYTES_A_SECOND = 32  # a file that claims to be longer than these allow is not believed

PIECE_SAMPLES = 2**16  # of a frame, that are worked on at a time
MAX_FRAME_VALUES = 2**22  # samples by channels in a frame: 16 MB, most codecs have some thousand
VALUES_A_SECOND = 400_000  # samples by channels, on average: 8 channels at 48 kHz, stereo at 192 kHz
# A packet may hold many frames, which the decoder gives all at once: so much of it may be compressed.
MAX_PACKET_BYTES = 2**17
_LARGER_PACKETS = {"flac": 2**21, "wavpack": 2**22, "tta": 2**22, "alac": 2**20}
_SMALLER_PACKETS = {"aac": 2**14, "aac_latm": 2**14}
_RAW_CODECS = ("pcm_", "adpcm_", "dsd_")  # hold what their packets hold
_FLAC_MARKS = (b"\xff\xf8", b"\xff\xf9")  # a frame begins with one; by chance every 32 KB another is there
_FLAC_FRAMES, _FLAC_CHANCE = 8, 2**12
TAKES_ODD_TITLES = 19  # PyAV's first version that does by itself
_QUIET_PACKETS = 1000  # after so many without a sound `blocks` gives its caller a chance to stop
_ENDLESS = message("its structure is without end")
_LFE = frozenset({"LFE", "LFE2"})  # for effects, nobody speaks there
_CANCELLED = 0.1  # of a channel's energy: where the sum of all has less, they cancel each other


class DecodedAudio:
    """A recording that is being decoded: its default audio track, or the first one with sound.

    Attributes:
        total: its length in seconds as the file tells it, or as its bit rate lets guess; None: unknown.
        damaged: packets that could not be decoded.
    """

    def __init__(
        self,
        open_file: Callable[[], tuple[Any, WatchedFile]],
        size: int,
        limit: float,
        *,
        told: bool,
        cut_off: bool,
    ) -> None:
        """Look at the header.

        Args:
            open_file: opens the file, once for each track that is tried.
            size: of the file in bytes.
            limit: the longest recording, in seconds.
            told: whether the header tells the duration, so that it can be relied on.
            cut_off: whether it is known already that the file ends too early.

        Raises:
            NoAudioTrackError: there is no sound in it.
            SampleRateError: it claims a sampling rate that no recording of speech has.
            AudioTooLongError: it says that it is longer than the limit.
        """
        self._open_file = open_file
        self._container, self._file = open_file()
        self._limit = limit
        self._most_values = limit * VALUES_A_SECOND
        self._told = told
        self._ends_early = cut_off
        self._tracks = _usable_tracks(self._container)
        self._stopped = False
        self._begin(self._tracks[0])
        claimed = self.total or 0.0
        if limit < claimed <= size / MIN_BYTES_A_SECOND and (told or self._counts_more_than(limit)):
            raise AudioTooLongError(limit, claimed)

    def _counts_more_than(self, limit: float) -> bool:
        """Whether its packets last longer, which takes seconds. If not, it begins once more.

        A length that is guessed by the bit rate of the beginning is many times too long where that is silent.
        """
        counted = 0.0
        for packet in self._packets():
            counted += float((packet.duration or 0) * (packet.time_base or 0))
            if counted > limit:
                return True
        self._reopen(self._track)
        return False

    def _begin(self, track: int) -> None:
        """Start with a track, from its beginning."""
        self._track = track
        stream = self._container.streams[track]
        name = self._container.format.name.partition(",")[0]
        start = (self._container.start_time or 0) / 1_000_000
        self._origin = min(0.0, start) if name in FROM_ZERO else start
        self.total = _header_seconds(self._container, stream, self._origin)
        self.damaged = 0
        self._cut_off = self._ends_early
        self._samples = 0
        self._values = 0
        self._heard = False

    @property
    def seconds(self) -> float:
        """How much has been decoded."""
        return self._samples / SAMPLE_RATE

    @property
    def notes(self) -> tuple[SpeechNote, ...]:
        """What was wrong with the file; complete when all blocks have been read."""
        found = []
        if self._is_short():
            text = message(
                "The recording is not whole: {seconds:.1f} seconds of it could be read.", seconds=self.seconds
            )
            if self._told and self.total:
                text = message(
                    "The recording is not whole: {seconds:.1f} of {total:.1f} seconds of it could be read.",
                    seconds=self.seconds,
                    total=self.total,
                )
            found.append(SpeechNote("truncated", text))
        if self.damaged:
            damage = message("{damaged} damaged pieces of the recording were left out.", damaged=self.damaged)
            found.append(SpeechNote("damaged", damage))
        if tracks := self.other_tracks:
            found.append(SpeechNote("tracks", tracks))
        return tuple(found)

    @property
    def other_tracks(self) -> str:
        """A sentence that names the audio tracks that were not listened to; empty: there is only one."""
        streams = self._container.streams
        tracks = [stream.index for stream in streams.audio]
        if not tracks[1:]:
            return ""
        names = [
            _track_name(streams[track], at) for at, track in enumerate(tracks, 1) if track != self._track
        ]
        if names[MAX_NAMED:]:
            names[MAX_NAMED:] = [message("{count} more", count=len(names) - MAX_NAMED)]
        used = _track_name(streams[self._track], tracks.index(self._track) + 1)
        return message(
            "The recording has {count} audio tracks: this is {used}, not {names}.",
            count=len(tracks),
            used=used,
            names=joined(names, message(", ")),
        )

    def stop(self) -> None:
        """Let `blocks` end soon; may be called while another thread reads them."""
        self._stopped = True
        self._file.stopped = True

    def close(self) -> None:
        """Close the file for the decoder."""
        self._container.close()

    def blocks(self) -> Iterator[Samples]:
        """Its samples in blocks of `BLOCK_SAMPLES`; the last one may be shorter.

        An empty block says only that time has passed.

        Raises:
            AudioTooLongError: it lasts longer than it may.
            SampleRateError: it has a sampling rate that no recording of speech has.
            ZeroLengthError: not a single sample could be decoded.
        """
        from numpy import zeros  # noqa: PLC0415 - see `Samples`

        nothing: Samples = zeros(0, "float32")
        last = self._tracks[-1]
        first: tuple[int, int] | None = None  # the first track that has samples, all silent, and how many
        for track in self._tracks:
            if track != self._track:
                self._reopen(track)
            silent = 0  # samples at the beginning, while there is another track that may be better
            for block in self._track_blocks():
                if self._stopped:
                    return
                if not self._heard and track != last:
                    silent += len(block)
                    yield nothing
                    continue
                yield from _silent_blocks(silent)
                silent = 0
                yield block
            yield nothing
            if self._heard or (track == last and first is None):
                return self._ended()
            first = first or ((track, silent) if silent else None)
        if first is not None and not self._heard:  # all are silent: then it is the first of them
            self._track, self._samples = first[0], first[1] or self._samples
            yield from _silent_blocks(first[1])
        return self._ended()

    def _ended(self) -> None:
        if not self._samples and not self._stopped:
            raise ZeroLengthError(self.damaged)

    def _reopen(self, track: int) -> None:
        self._container.close()
        self._container, self._file = self._open_file()
        self._begin(track)

    def _track_blocks(self) -> Iterator[Samples]:
        """The blocks of one track; an empty one now and then, where nothing comes."""
        from numpy import concatenate  # noqa: PLC0415 - see `Samples`

        kept: list[Samples] = []
        have = 0
        for piece in self._pieces():
            if self._stopped:
                return
            if not len(piece):
                yield piece
                continue
            kept.append(piece)
            have += len(piece)
            self._samples += len(piece)
            self._heard = self._heard or not is_silence(piece)
            if self._samples > self._limit * SAMPLE_RATE:
                raise AudioTooLongError(self._limit, max(self.seconds, self.total or 0.0))
            if have >= BLOCK_SAMPLES:
                whole = concatenate(kept)
                for start in range(0, have - BLOCK_SAMPLES + 1, BLOCK_SAMPLES):
                    yield whole[start : start + BLOCK_SAMPLES]
                kept = [whole[have - have % BLOCK_SAMPLES :].copy()]
                have %= BLOCK_SAMPLES
        if have:
            yield concatenate(kept)

    def _pieces(self) -> Iterator[Samples]:
        """Resampled audio, with silence where the file's own times have a hole."""
        clock, resampler = _FrameClock(self._origin, self._last_time()), _Resampler()
        try:
            for frame in self._frames():
                if frame is None:
                    yield from _silent_blocks(0, heartbeat=True)
                    continue
                self._check(frame)
                if (gap := clock.gap_before(frame)) > 0:
                    yield from _silent_blocks(round(gap * SAMPLE_RATE))
                try:
                    for samples in _mono_pieces(frame):
                        yield from resampler.feed(samples, frame.sample_rate)
                except _decoder_errors():
                    self.damaged += 1
                if self._values > self._most_values or resampler.changes > MAX_RATE_CHANGES:
                    self._cut_off = True
                    break
            yield from resampler.end()
        except _decoder_errors():
            self.damaged += 1

    def _check(self, frame: Any) -> None:
        """Count a frame, and refuse one by which a few bytes would become hours."""
        self._values += frame.samples * frame.layout.nb_channels
        if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
            raise SampleRateError(frame.sample_rate, MIN_RATE, MAX_RATE)

    def _frames(self) -> Iterator[Any]:
        """Frames of the track; None after many packets without one."""
        last_failed, quiet = False, 0
        # Asked now: to name a codec that could not be opened ends the whole process in PyAV 19.
        codec = str(self._container.streams[self._track].codec_context.name)
        for packet in self._packets():
            is_flush = packet.size == 0  # at the end, for what the decoder still holds
            quiet += 1
            try:
                frames = packet.decode() if _may_decode(packet, codec) else None
            except _decoder_errors():
                frames = None
            if frames is None:
                self.damaged += 1
                last_failed = True
            else:
                last_failed = last_failed and is_flush
                quiet = 0 if frames else quiet
                yield from frames
            if quiet >= _QUIET_PACKETS:
                quiet = 0
                yield None
        if last_failed:  # the last packet is not whole
            self._cut_off = True
            self.damaged -= 1

    def _packets(self) -> Iterator[Any]:
        stream = self._container.streams[self._track]
        channels = max(1, stream.layout.nb_channels if stream.layout else 1)
        with suppress(
            *_decoder_errors()
        ):  # a codec that no decoder is there for fails below, packet by packet
            stream.codec_context.options = {"max_samples": str(MAX_FRAME_VALUES // channels)}
        for _ in range(MAX_READ_ERRORS):
            try:
                for packet in self._container.demux(stream):
                    self._file.advanced()
                    yield packet
            except _decoder_errors():
                self.damaged += 1
            else:
                break
        self._cut_off = self._cut_off or self._file.stalled

    def _last_time(self) -> float:
        """Seconds from the origin after which no hole may end: a later time is a wrong one."""
        ends = [self.total or 0.0]
        if self._container.duration:
            start = (self._container.start_time or 0) / 1_000_000
            ends.append(max(start, 0.0) - self._origin + self._container.duration / 1_000_000)
        end = max(ends)
        return end + max(SHORT_SECONDS, SHORT_SHARE * end) if self._told and end else self._limit

    def _is_short(self) -> bool:
        if self._cut_off or not self._told or self.total is None:
            return self._cut_off
        return self.total - self.seconds > max(SHORT_SECONDS, SHORT_SHARE * self.total)


class _FrameClock:
    """Finds holes in the times of the frames."""

    def __init__(self, origin: float, last: float) -> None:
        """Begin.

        Args:
            origin: the time of the recording's beginning, in seconds.
            last: seconds from it after which no hole may end.
        """
        self._origin = origin
        self._last = last
        self._position = 0.0

    def gap_before(self, frame: Any) -> float:
        """Seconds that are missing between the frame before and this one; 0 where its time makes no sense."""
        gap = 0.0
        if frame.time is not None:
            off = frame.time - self._origin - self._position
            if off >= MIN_GAP_SECONDS and self._position + off <= self._last:
                gap = off
            elif abs(off) >= MIN_GAP_SECONDS:
                self._origin += off
        self._position += gap + frame.samples / frame.sample_rate
        return float(gap)


class _Resampler:
    """Mono samples to 16 kHz; the rate may change on the way.

    Attributes:
        changes: how often it has.
    """

    def __init__(self) -> None:
        self._resampler: Any = None
        self._rate = 0
        self.changes = 0

    def feed(self, samples: Samples, rate: int) -> Iterator[Samples]:
        """Take samples of a rate in Hz, and give what has become of those so far."""
        from av import AudioFrame, AudioResampler  # noqa: PLC0415 - see `_opened`

        if rate != self._rate:
            yield from self.end()
            self._resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            self._rate = rate
            self.changes += 1
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = rate
        yield from map(_plain, self._resampler.resample(frame))

    def end(self) -> Iterator[Samples]:
        """What it still holds."""
        if self._resampler is not None:
            yield from map(_plain, self._resampler.resample(None))


def _plain(frame: Any) -> Samples:
    return frame.to_ndarray().reshape(-1)


def _mono_pieces(frame: Any) -> Iterator[Samples]:
    """A frame as one channel, float32 within ±1, a bounded number of samples at a time.

    It is the mean of all channels; where they cancel each other (one was wired the wrong way round, or a
    single one of many is in use), the loudest of them.
    """
    from numpy import nan_to_num  # noqa: PLC0415 - see `Samples`

    data, layout = frame.to_ndarray(), frame.layout
    if not frame.format.is_planar:
        data = data.reshape(-1, layout.nb_channels).T
    names = [channel.name for channel in layout.channels]
    if heard := [at for at, name in enumerate(names) if name not in _LFE]:
        data = data[heard]
    for start in range(0, data.shape[1], PIECE_SAMPLES):
        piece = _as_float(data[:, start : start + PIECE_SAMPLES])
        if data.dtype.kind == "f":
            piece = nan_to_num(piece, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1.0, 1.0)
        mixed = piece.mean(axis=0)
        if len(piece) > 1:
            energies = _energies(piece)
            if _energies(mixed[None])[0] < _CANCELLED * energies.max():
                mixed = piece[energies.argmax()]
        yield mixed.astype("float32").copy()


def _as_float(data: Samples) -> Samples:
    """Integers of any width as float32 within ±1."""
    floats: Samples = data.astype(
        "float32", order="C"
    )  # a channel's samples beside each other, which is twice as fast
    if data.dtype.kind != "f":
        bits = 8 * data.dtype.itemsize - 1
        floats -= 2.0**bits if data.dtype.kind == "u" else 0.0
        floats /= 2.0**bits
    return floats


def _energies(channels: Samples) -> Samples:
    """The variance of each channel: `numpy.var` in one pass, for hours of eight channels."""
    from numpy import einsum  # noqa: PLC0415 - see `Samples`

    energies: Samples = (
        einsum("ij,ij->i", channels, channels) / channels.shape[1] - channels.mean(axis=1) ** 2
    )
    return energies


def _silent_blocks(samples: int, *, heartbeat: bool = False) -> Iterator[Samples]:
    """Silence in pieces of at most a block; with a heartbeat a piece of no length."""
    from numpy import zeros  # noqa: PLC0415 - see `Samples`

    if samples or heartbeat:
        silence: Samples = zeros(min(samples, BLOCK_SAMPLES), "float32")
        yield silence
        for left in range(samples - BLOCK_SAMPLES, 0, -BLOCK_SAMPLES):
            yield silence[:left]


def _may_decode(packet: Any, codec: str) -> bool:
    """Whether a packet is of a size that its codec has: one packet of many tiny frames fills the memory."""
    if codec.startswith(_RAW_CODECS):
        return True
    limit = _SMALLER_PACKETS.get(codec) or _LARGER_PACKETS.get(codec) or MAX_PACKET_BYTES
    size: int = packet.size
    if size > limit:
        return False
    if codec != "flac" or size < _FLAC_CHANCE:
        return True
    data = bytes(packet)
    return sum(data.count(mark) for mark in _FLAC_MARKS) <= _FLAC_FRAMES + size / _FLAC_CHANCE


@contextmanager
def open_audio(source: AudioSource, options: SpeechOptions) -> Iterator[DecodedAudio]:
    """Open a recording.

    Raises:
        EmptyAudioError: there is not a byte in it.
        AudioTooLargeError: it has more bytes than it may.
        AudioTooLongError: it says that it is longer than it may be.
        NotAudioError: it is neither audio nor video.
        NoAudioTrackError: it has no sound.
        SampleRateError: it claims a sampling rate that no recording of speech has.
        SpeechDependencyError: PyAV is not installed.
    """
    with ExitStack() as stack:
        file, size = stack.enter_context(opened_source(source, options.max_bytes))
        if has_empty_boxes(file, size):
            raise NotAudioError(message("an MP4 of empty boxes"))
        container, watched = _opened(file, options.pcm)
        first = [(container, watched)]  # for the first track; each other one gets a decoder of its own
        name = container.format.name.partition(",")[0]
        position = file.tell()
        told, cut_off = tells_duration(file, name), is_cut_off(file, size, name)
        file.seek(position)  # where the decoder believes to be
        try:
            audio = DecodedAudio(
                lambda: first.pop() if first else _opened(file, options.pcm),
                size,
                options.max_seconds,
                told=told,
                cut_off=cut_off,
            )
        except BaseException:
            container.close()
            raise
        stack.callback(audio.close)
        yield audio


def _opened(file: BinaryIO, pcm: PcmFormat | None, start: int = 0) -> tuple[Any, WatchedFile]:
    """PyAV's container, and the file that it reads.

    Args:
        file: the recording.
        pcm: of a recording without a header.
        start: where its samples begin.
    """
    try:
        from av import __version__ as av_version  # noqa: PLC0415 - Open WebUI has it, the uploader's machine need not
        from av import open as av_open  # noqa: PLC0415
    except ImportError as error:
        raise SpeechDependencyError("decoding", "av") from error
    watched = WatchedFile(file, start)
    try:
        if pcm is not None:
            name, settings = pcm_container(pcm)
            return av_open(watched, "r", format=name, options=settings), watched
        # Only these formats: others, such as playlists, would make it open further files. Only decoders of
        # audio: to look at a file is no reason to decode its pictures.
        allowed = {
            "format_whitelist": CONTAINERS,
            "protocol_whitelist": "",
            "codec_whitelist": _audio_decoders(),
            "max_streams": str(MAX_STREAMS),
            "max_samples": str(MAX_FRAME_VALUES // MAX_CHANNELS),
        }
        # PyAV 19 takes titles of any bytes, and refuses the argument that says so to those before it.
        odd_titles = (
            {} if int(av_version.split(".")[0]) >= TAKES_ODD_TITLES else {"metadata_errors": "ignore"}
        )
        container = av_open(watched, "r", options=allowed, **odd_titles)
    except _decoder_errors() as error:
        if pcm is None and (found := wav_samples(file)):
            return _opened(file, found[1], found[0])
        if watched.stalled:
            raise NotAudioError(_ENDLESS) from error
        raise NotAudioError(why_unreadable(file, str(getattr(error, "strerror", "") or error))) from error
    if watched.stalled:
        container.close()
        raise NotAudioError(_ENDLESS)
    watched.advanced()
    return container, watched


@cache
def _audio_decoders() -> str:
    """The names of all decoders of audio, with commas between them."""
    from av import Codec, codecs_available  # noqa: PLC0415 - see `_opened`

    names = []
    for name in sorted(codecs_available):
        with suppress(ValueError):  # it only encodes
            if Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def _decoder_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for damaged data: its own errors, and others for values that make no sense."""
    from av.error import FFmpegError  # noqa: PLC0415 - see `_opened`

    return FFmpegError, ValueError, OverflowError, LookupError, AttributeError, RuntimeError, TypeError


def _usable_tracks(container: Any) -> list[int]:
    """The audio tracks in the order in which they are tried: the default one first.

    Raises:
        NoAudioTrackError: there is none.
        NotAudioError: no decoder is there for any of them.
        SampleRateError: all have a sampling rate that no recording of speech has.
    """
    from av.stream import Disposition  # noqa: PLC0415 - see `_opened`

    streams = list(container.streams.audio)[:MAX_TRACKS]
    if not streams:
        raise NoAudioTrackError(container.format.name)
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise NotAudioError(message("no decoder is there for its sound"))
    # A rate of 0 is not known yet: the first frame has it.
    usable = [stream for stream in known if not stream.rate or MIN_RATE <= stream.rate <= MAX_RATE]
    if not usable:
        raise SampleRateError(known[0].rate, MIN_RATE, MAX_RATE)
    usable.sort(key=lambda stream: not stream.disposition & Disposition.default)  # others stay in order
    return [stream.index for stream in usable]


def _track_name(stream: Any, number: int) -> str:
    """A track for people: its number from 1, title and language."""
    told = [
        str(stream.metadata.get(key, "")).encode(errors="replace").decode() for key in ("title", "language")
    ]
    found = ", ".join(" ".join(text.split())[:40] for text in told if text and text != "und")
    return message("track {number}", number=number) + (f" ({found})" if found else "")


def _header_seconds(container: Any, stream: Any, origin: float) -> float | None:
    """When a track ends, in seconds from the recording's beginning; None where the file does not say it.

    FFmpeg gives a track that does not say it the length of the whole file, which may have longer ones.
    """
    from av.stream import Disposition  # noqa: PLC0415 - see `_opened`

    whole = container.duration / 1_000_000 if container.duration else 0.0
    lasting = [found for found in container.streams if not found.disposition & Disposition.attached_pic]
    name, is_alone = container.format.name.partition(",")[0], len(lasting) == 1  # a cover has no length
    own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
    if said := _clock_seconds(str(stream.metadata.get("DURATION", ""))):
        return said
    if name == "ogg":  # it has the time of the last sample
        own -= max(0.0, start)
    elif own and name != "asf" and (is_alone or name == "mov" or abs(own - whole) > SAME_SECONDS):
        own += max(0.0, start - origin)
    else:
        own = whole if is_alone else 0.0
    return own if own > 0 else None


def _clock_seconds(text: str) -> float | None:
    """What Matroska has as `01:02:03.500000000`; None: it is something else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    found = hours * 3600 + minutes * 60 + seconds
    return found if isfinite(found) else None
