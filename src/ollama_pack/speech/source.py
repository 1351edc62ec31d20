"""Where a recording comes from: bytes, a path or an open file; and how large it may be."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from ollama_pack.speech.errors import AudioTooLargeError, EmptyAudioError

AudioSource = bytes | bytearray | memoryview | str | PathLike[str] | BinaryIO

STALL_SECONDS = 3.0  # of processor time that a decoder may spend on a file between two packets


@contextmanager
def opened_source(source: AudioSource, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """The recording as a file that can be read from any place, and its size in bytes.

    Nothing is copied to the disk. A file that was given open is read from its beginning and stays open.

    Args:
        source: the recording itself, the path of a file, or a binary file that can be sought in.
        max_bytes: the largest that is taken.

    Raises:
        EmptyAudioError: there is nothing in it.
        AudioTooLargeError: there is too much in it.
        OSError: the path cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, str | PathLike):
        with Path(source).open("rb") as file, opened_source(file, max_bytes) as found:
            yield found
        return
    else:
        file = source
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size == 0:
        raise EmptyAudioError
    if size > max_bytes:
        raise AudioTooLargeError(max_bytes, size)
    yield file, size


class WatchedFile:
    """A file as the decoder reads it. It ends early when the decoder gets nowhere, or is to stop.

    A decoder cannot be interrupted, but it asks for 32 KB at a time: 40 MB of empty MP4 boxes keep it busy
    for 15 s, and end here after `STALL_SECONDS`.
    """

    def __init__(self, file: BinaryIO, start: int = 0, seconds: float = STALL_SECONDS) -> None:
        """Begin at `start`, which is place 0 for the decoder.

        Args:
            file: the recording.
            start: bytes of it that are left out.
            seconds: of processor time of this thread, between two calls of `advanced`.
        """
        self._file = file
        self._start = start
        self._seconds = seconds
        self._since = time.thread_time()
        self.stopped = False
        self.stalled = False
        file.seek(start)

    def advanced(self) -> None:
        """Something came of what was read: the time begins again."""
        self._since = time.thread_time()
        self.stalled = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end."""
        if time.thread_time() - self._since > self._seconds:
            self.stalled = True
        return b"" if self.stopped or self.stalled else self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        moved = self._start if whence == io.SEEK_SET else 0
        return self._file.seek(offset + moved, whence) - self._start

    def tell(self) -> int:
        """The place."""
        return self._file.tell() - self._start
