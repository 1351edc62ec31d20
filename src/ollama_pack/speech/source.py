"""Where a recording comes from: bytes, a path or an open file; and how large it may be."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from ollama_pack.speech.errors import AudioTooLargeError, EmptyAudioError

AudioSource = bytes | bytearray | memoryview | str | PathLike[str] | BinaryIO


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
