"""Transcripts of a while ago: the same recording with the same options is not listened to twice.

They are in the memory of the process, bounded, and shared by all plugins in it: as text, see `process`.
Each is its user's alone.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ollama_pack.base.single_flight import process_wide
from ollama_pack.speech.source import AudioSource, opened_source
from ollama_pack.speech.values import SpeechNote, SpeechSegment, SpokenWord, Transcript

KEPT_BYTES = 32 * 2**20  # an hour of speech is a megabyte
KEPT_COUNT = 1000
KEPT_SECONDS = 24 * 3600.0
_KEPT_FORM = 1  # of what is kept: an older plugin in the same process may have another
_PIECE = 2**20


class KeptTranscripts:
    """The least recently used are forgotten first."""

    def __init__(
        self,
        kept: OrderedDict[str, tuple[float, str]],
        lock: threading.Lock,
        max_bytes: int = KEPT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Share what is kept.

        Args:
            kept: key → when it ends, and the transcript as JSON.
            lock: held while that changes.
            max_bytes: of all of it, about.
            clock: monotonic seconds.
        """
        self._kept = kept
        self._lock = lock
        self._max_bytes = max_bytes
        self._clock = clock

    def find(self, key: str) -> Transcript | None:
        """What was kept under a key."""
        with self._lock:
            until, text = self._kept.get(key, (0.0, ""))
            if self._clock() >= until:
                self._kept.pop(key, None)
                return None
            self._kept.move_to_end(key)
        return _transcript_in(json.loads(text))

    def keep(self, key: str, transcript: Transcript) -> None:
        """Keep a transcript for a day."""
        text = json.dumps(asdict(transcript))  # ASCII: a character is a byte
        with self._lock:
            self._kept[key] = (self._clock() + KEPT_SECONDS, text)
            self._kept.move_to_end(key)
            while (
                len(self._kept) > KEPT_COUNT
                or sum(len(text) for _, text in self._kept.values()) > self._max_bytes
            ):
                self._kept.popitem(last=False)


def kept_transcripts() -> KeptTranscripts:
    """Those of this process."""
    return KeptTranscripts(process_wide("kept", OrderedDict), process_wide("kept lock", threading.Lock))


def recording_key(source: AudioSource, max_bytes: int, *options: object) -> str:
    """What a transcript is kept under: the recording, its user, and all that decides on the text. Blocks.

    Raises:
        EmptyAudioError: there is not a byte in it.
        AudioTooLargeError: it has more bytes than it may.
    """
    digest = hashlib.sha256(json.dumps([_KEPT_FORM, max_bytes, *map(repr, options)]).encode())
    with opened_source(source, max_bytes) as (file, _):
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _transcript_in(plain: Mapping[str, Any]) -> Transcript:
    segments = tuple(map(_segment_in, plain["segments"]))
    notes = tuple(SpeechNote(**note) for note in plain["notes"])
    return Transcript(**{**plain, "segments": segments, "notes": notes})


def _segment_in(plain: Mapping[str, Any]) -> SpeechSegment:
    words = tuple(SpokenWord(**word) for word in plain["words"])
    return SpeechSegment(**{**plain, "words": words, "tokens": tuple(plain["tokens"])})
