"""Decoding with PyAV: any usual format to mono at 16 kHz, block by block, without an ffmpeg binary."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from ollama_pack.speech.containers import CONTAINERS, is_cut_off, tells_duration, why_unreadable
from ollama_pack.speech.errors import (
    AudioTooLongError,
    NoAudioTrackError,
    NotAudioError,
    SpeechDependencyError,
    ZeroLengthError,
)
from ollama_pack.speech.pcm import pcm_container, wav_by_pydub
from ollama_pack.speech.source import AudioSource, opened_source
from ollama_pack.speech.values import SAMPLE_RATE, PcmFormat, Samples, SpeechNote, SpeechOptions

BLOCK_SAMPLES = 512 * 500  # 16 s; 512 is what the voice activity detector looks at together
MIN_GAP_SECONDS = 0.5  # a hole in the times of a file, as a call leaves it where nothing was sent
MAX_GAP_SECONDS = 60.0  # a longer one is a wrong time in a damaged file
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.02  # a file that lacks more than that of its length is not whole
MAX_READ_ERRORS = 100  # until the rest of a file is given up


class DecodedAudio:
    """A recording that is being decoded.

    Attributes:
        total: its length in seconds as the file tells it, or as its bit rate lets guess; None: unknown.
        damaged: packets that could not be decoded.
    """

    def __init__(self, container: Any, limit: float, *, told: bool, cut_off: bool) -> None:
        """Look at the header.

        Args:
            container: PyAV's, open.
            limit: the longest recording, in seconds.
            told: whether the header tells the duration, so that it can be relied on.
            cut_off: whether it is known already that the file ends too early.

        Raises:
            NoAudioTrackError: there is no sound in it.
            AudioTooLongError: it says that it is longer than the limit.
        """
        if not container.streams.audio:
            raise NoAudioTrackError(container.format.name)
        self.total = _header_seconds(container)
        self.damaged = 0
        self._container = container
        self._limit = limit
        self._told = told
        self._cut_off = cut_off
        self._samples = 0
        self._stopped = False
        if self.total is not None and self.total > limit:
            raise AudioTooLongError(limit, self.total)

    @property
    def seconds(self) -> float:
        """How much has been decoded."""
        return self._samples / SAMPLE_RATE

    @property
    def notes(self) -> tuple[SpeechNote, ...]:
        """What was wrong with the file; complete when all blocks have been read."""
        found = []
        if self._is_short():
            of = f" of {self.total:.1f}" if self._told and self.total else ""
            text = f"The recording is not whole: {self.seconds:.1f}{of} seconds of it could be read."
            found.append(SpeechNote("truncated", text))
        if self.damaged:
            text = f"{self.damaged} damaged pieces of the recording were left out."
            found.append(SpeechNote("damaged", text))
        return tuple(found)

    def stop(self) -> None:
        """Let `blocks` end soon; may be called while another thread reads them."""
        self._stopped = True

    def blocks(self) -> Iterator[Samples]:
        """Its samples in blocks of `BLOCK_SAMPLES`; the last one may be shorter.

        Raises:
            AudioTooLongError: it lasts longer than it may.
            ZeroLengthError: not a single sample could be decoded.
        """
        from numpy import concatenate  # noqa: PLC0415 - see `Samples`

        kept: list[Samples] = []
        have = 0
        for piece in self._pieces():
            if self._stopped:
                return
            kept.append(piece)
            have += len(piece)
            self._samples += len(piece)
            if self._samples > self._limit * SAMPLE_RATE:
                raise AudioTooLongError(self._limit, max(self.seconds, self.total or 0.0))
            if have >= BLOCK_SAMPLES:
                whole = concatenate(kept)
                for start in range(0, have - BLOCK_SAMPLES + 1, BLOCK_SAMPLES):
                    yield whole[start : start + BLOCK_SAMPLES]
                kept = [whole[have - have % BLOCK_SAMPLES :].copy()]
                have %= BLOCK_SAMPLES
        if not self._samples:
            raise ZeroLengthError(self.damaged)
        if have:
            yield concatenate(kept)

    def _pieces(self) -> Iterator[Samples]:
        """Resampled audio, with silence where the file's own times have a hole."""
        from numpy import zeros  # noqa: PLC0415 - see `Samples`

        clock, resampler = _FrameClock(self._container.start_time), _Resampler()
        for frame in self._frames():
            if (gap := clock.gap_before(frame)) > 0:
                yield zeros(round(gap * SAMPLE_RATE), "float32")
            try:
                yield from resampler.feed(frame)
            except _decoder_errors():
                self.damaged += 1
        try:
            yield from resampler.end()
        except _decoder_errors():
            self.damaged += 1

    def _frames(self) -> Iterator[Any]:
        last_failed = False
        for packet in self._packets():
            is_flush = packet.size == 0  # at the end, for what the decoder still holds
            try:
                yield from packet.decode()
            except _decoder_errors():
                self.damaged += 1
                last_failed = True
            else:
                last_failed = last_failed and is_flush
        if last_failed:  # the last packet is not whole
            self._cut_off = True
            self.damaged -= 1

    def _packets(self) -> Iterator[Any]:
        stream = self._container.streams.audio[0]
        for _ in range(MAX_READ_ERRORS):
            try:
                yield from self._container.demux(stream)
            except _decoder_errors():
                self.damaged += 1
            else:
                return

    def _is_short(self) -> bool:
        if self._cut_off or not self._told or self.total is None:
            return self._cut_off
        return self.total - self.seconds > max(SHORT_SECONDS, SHORT_SHARE * self.total)


class _FrameClock:
    """Finds holes in the times of the frames."""

    def __init__(self, start_time: int | None) -> None:
        """`start_time`: of the container, in microseconds."""
        self._origin = (start_time or 0) / 1_000_000
        self._position = 0.0

    def gap_before(self, frame: Any) -> float:
        """Seconds that are missing between the frame before and this one; 0 where its time makes no sense."""
        gap = 0.0
        if frame.time is not None:
            off = frame.time - self._origin - self._position
            if MIN_GAP_SECONDS <= off <= MAX_GAP_SECONDS:
                gap = off
            elif abs(off) >= MIN_GAP_SECONDS:
                self._origin += off
        self._position += gap + (frame.samples / frame.sample_rate if frame.sample_rate else 0.0)
        return float(gap)


class _Resampler:
    """To mono at 16 kHz; the format of the frames may change on the way."""

    def __init__(self) -> None:
        self._resampler: Any = None
        self._takes: tuple[object, ...] = ()

    def feed(self, frame: Any) -> Iterator[Samples]:
        takes = (frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)
        if takes != self._takes:
            from av import AudioResampler  # noqa: PLC0415 - see `open_audio`

            yield from self.end()
            # Integers: only then are several channels mixed so that the sum is not louder than each.
            self._resampler = AudioResampler(format="s32", layout="mono", rate=SAMPLE_RATE)
            self._takes = takes
        frame.pts = None  # holes are taken care of already
        yield from map(_floats, self._resampler.resample(frame))

    def end(self) -> Iterator[Samples]:
        """What it still holds."""
        if self._resampler is not None:
            yield from map(_floats, self._resampler.resample(None))


def _floats(frame: Any) -> Samples:
    return frame.to_ndarray().reshape(-1).astype("float32") / 2**31


@contextmanager
def open_audio(source: AudioSource, options: SpeechOptions) -> Iterator[DecodedAudio]:
    """Open a recording; of a video, its first audio track.

    Raises:
        EmptyAudioError: there is not a byte in it.
        AudioTooLargeError: it has more bytes than it may.
        AudioTooLongError: it says that it is longer than it may be.
        NotAudioError: it is neither audio nor video.
        NoAudioTrackError: it has no sound.
        SpeechDependencyError: PyAV is not installed.
    """
    with ExitStack() as stack:
        file, size = stack.enter_context(opened_source(source, options.max_bytes))
        container = stack.enter_context(_opened(file, options.pcm))
        name = container.format.name.partition(",")[0]
        position = file.tell()
        told, cut_off = tells_duration(file, name), is_cut_off(file, size, name)
        file.seek(position)  # where the decoder believes to be
        yield DecodedAudio(container, options.max_seconds, told=told, cut_off=cut_off)


def _opened(file: BinaryIO, pcm: PcmFormat | None) -> Any:
    try:
        from av import open as av_open  # noqa: PLC0415 - Open WebUI has it, the uploader's machine need not
    except ImportError as error:
        raise SpeechDependencyError("decoding", "av") from error
    if pcm is not None:
        name, settings = pcm_container(pcm)
        return av_open(file, "r", format=name, options=settings)
    try:
        # Only these formats: others, such as playlists, would make it open further files.
        allowed = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
        return av_open(file, "r", options=allowed, metadata_errors="ignore")
    except _decoder_errors() as error:
        if found := wav_by_pydub(file):
            return _opened(*found)
        raise NotAudioError(why_unreadable(file, str(getattr(error, "strerror", "") or error))) from error


def _decoder_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for damaged data: its own errors, and others for values that make no sense."""
    from av.error import FFmpegError  # noqa: PLC0415 - see `_opened`

    return FFmpegError, ValueError, OverflowError


def _header_seconds(container: Any) -> float | None:
    """The length of the first audio track, else of the whole file where that has nothing else in it."""
    stream = container.streams.audio[0]
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        seconds = container.duration / 1_000_000
    else:
        return None
    return seconds if seconds > 0 else None
