"""What the bytes of a file tell that the decoder does not: whether the file ends before it should.

FLAC and Matroska tell their duration, so that a missing end shows. The others need a closer look.
"""

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from ollama_pack.base.messages import message

# What may be opened. Not among them: playlists (HLS, concat, DASH), which make a decoder fetch other files;
# and Monkey's Audio, where a packet of a few bytes may stand for hours, which the decoder gives all at once.
CONTAINERS = "mp3,mov,aac,ogg,matroska,flac,asf,aiff,wav,w64,caf,amr,au,ac3,eac3,mpeg,mpegts,avi,flv,wv,tta"
# Their times count from the beginning of the recording. Elsewhere the first time is any number.
FROM_ZERO = frozenset({"mov", "matroska", "avi", "asf"})

_ID3_HEADER = 10  # bytes: "ID3", two of version, one of flags, four of size
_MP3_HEAD = 512  # bytes after the ID3 tag in which the first frame says how many follow
_OGG_TAIL = 2 * 65_307  # bytes: the largest page, and what of it may be missing
_OGG_CHECKSUM = slice(22, 26)  # of a page
_OGG_SEGMENTS = 26  # where a page says how many segments it has
_ASF_HEAD = 16 * 2**10  # bytes in which the properties are looked for
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BOX_HEADER = 8  # bytes: four of size, four of type
_MAX_BOXES = 100_000  # that are looked at: a fragment a second for a day has twice as many
_LEAST_BOX = 32  # bytes on average: the smallest fragment and its sound have more
_RIFF_SLACK = 8  # bytes: recorders count the head of the file, which is 8, or an even size, into the size
_RIFF_UNKNOWN = 0x7FFF_0000  # bytes: a recorder that could not go back to fill in the size left this or more


def is_cut_off(file: BinaryIO, size: int, container: str) -> bool:
    """Whether a file is shorter than it says, as far as this can be told without decoding.

    Args:
        file: at any position; it is moved.
        size: of the file in bytes.
        container: name of the decoder's format.
    """
    if container == "wav":
        return size + _RIFF_SLACK < _riff_end(file)
    if container == "asf":
        return size < _asf_end(file)
    if container == "ogg":
        return _ogg_page_is_cut(file, size)
    return container == "mov" and _boxes_end(file, size) != size


def tells_duration(file: BinaryIO, container: str) -> bool:
    """Whether the file says how long it is; otherwise the decoder has only guessed it by the bit rate.

    Args:
        file: at any position; it is moved.
        container: name of the decoder's format.
    """
    if container == "mp3":
        return _mp3_counts_frames(file)
    return container not in {"aac", "ac3", "eac3", "amr", "mpeg", "mpegts", "wav"}


def why_unreadable(file: BinaryIO, said: str) -> str:
    """What to tell of a file that the decoder does not open.

    Args:
        file: at any position; it is moved.
        said: the decoder's own words, for files of which there is nothing better to tell.
    """
    file.seek(4)
    if file.read(4) == b"ftyp":  # its index usually stands at the end, and nothing is found without it
        return message("an MP4, M4A or MOV without an index: its end is missing")
    return said


def _riff_end(file: BinaryIO) -> int:
    """Where a WAV file should end; 0 when it does not say."""
    file.seek(0)
    head = file.read(8)
    said = int.from_bytes(head[4:8], "little")
    return said + 8 if head[:4] == b"RIFF" and said < _RIFF_UNKNOWN else 0


def _asf_end(file: BinaryIO) -> int:
    """Where a WMA file should end; 0 when it does not say (ASF specification, section 3.2)."""
    file.seek(0)
    head = file.read(_ASF_HEAD)
    found = head.find(_ASF_PROPERTIES)
    return int.from_bytes(head[found + 40 : found + 48], "little") if found >= 0 else 0


def has_empty_boxes(file: BinaryIO, size: int) -> bool:
    """Whether it is an MP4 of mostly empty boxes: each takes many times its bytes of the decoder's memory.

    Args:
        file: at any position; it is moved to its beginning.
        size: of the file in bytes.
    """
    ends = list(islice(_box_ends(file, size), _MAX_BOXES))  # any other file has a few at most
    file.seek(0)
    return len(ends) == _MAX_BOXES and ends[-1] < _LEAST_BOX * _MAX_BOXES


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the boxes of an MP4 end; -1 when they go astray.

    Where there are too many to look at, the end is taken for right.
    """
    ends = list(islice(_box_ends(file, size), _MAX_BOXES))
    return size if len(ends) == _MAX_BOXES else ends[-1] if ends else 0


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each box of an MP4 ends (ISO 14496-12, 4.2); at last -1 when they go astray."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 0:  # to the end of the file
            length = size - place
        elif length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < _BOX_HEADER or not kind.isascii():
            yield -1
            return
        place += length
        yield place


def _ogg_page_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether the last page is incomplete or damaged (RFC 3533, section 6)."""
    start = max(0, size - _OGG_TAIL)
    file.seek(start)
    tail = file.read(_OGG_TAIL)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    count = page[_OGG_SEGMENTS] if len(page) > _OGG_SEGMENTS else 0
    lacing = page[_OGG_SEGMENTS + 1 : _OGG_SEGMENTS + 1 + count]
    length = _OGG_SEGMENTS + 1 + count + sum(lacing)
    if len(page) < length:
        return True
    said = int.from_bytes(page[_OGG_CHECKSUM], "little")
    return said != _ogg_checksum(page[: _OGG_CHECKSUM.start] + bytes(4) + page[_OGG_CHECKSUM.stop : length])


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, the highest bit first, beginning with 0."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if value >> 31 else 0)
        table.append(value)
    checksum = 0
    for byte in page:
        checksum = ((checksum << 8) & 0xFFFFFFFF) ^ table[(checksum >> 24) ^ byte]
    return checksum


def _mp3_counts_frames(file: BinaryIO) -> bool:
    """Whether the first frame is a header that tells the number of frames (Xing, LAME's Info, VBRI)."""
    file.seek(0)
    head = file.read(_ID3_HEADER)
    start = 0
    if head[:3] == b"ID3":  # four bytes of seven bits
        start = _ID3_HEADER + sum(
            (byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False)
        )
    file.seek(start)
    head = file.read(_MP3_HEAD)
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))
