"""Transcripts that are kept for a while, so that no recording is listened to twice."""

import threading
from collections import OrderedDict

import pytest

from ollama_pack.speech.errors import AudioTooLargeError, EmptyAudioError
from ollama_pack.speech.kept import KEPT_COUNT, KEPT_SECONDS, KeptTranscripts, recording_key
from ollama_pack.speech.values import SpeechNote, SpeechSegment, SpokenWord, Transcript

WORD = SpokenWord(0.1, 0.4, "书", 0.9)
SEGMENT = SpeechSegment(0.0, 1.0, "书", (WORD,), 0.8, 0.1, 1.2, 0.0, (7, 8))
FOUND = Transcript("书", "zh-CN", 1.0, (SEGMENT,), "e", "m", None, (SpeechNote("damaged", "a piece"),))


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(max_bytes: int = 10_000, clock: Clock | None = None) -> KeptTranscripts:
    return KeptTranscripts(OrderedDict(), threading.Lock(), max_bytes, clock or Clock())


def test_what_was_kept_is_found_as_it_was() -> None:
    """Would catch a part of a transcript that is lost or of another type the second time."""
    transcripts = kept()
    transcripts.keep("key", FOUND)
    assert transcripts.find("key") == FOUND
    assert transcripts.find("other") is None


def test_it_ends() -> None:
    """Would catch transcripts that stay in memory for as long as the server runs."""
    clock = Clock()
    transcripts = kept(clock=clock)
    transcripts.keep("key", FOUND)
    clock.now = KEPT_SECONDS - 1
    assert transcripts.find("key") == FOUND
    clock.now = KEPT_SECONDS
    assert transcripts.find("key") is None


def test_the_least_recently_used_goes_first() -> None:
    """Would catch memory without bound, or a transcript in use that is forgotten."""
    transcripts = kept(max_bytes=1000)
    transcripts.keep("first", FOUND)
    transcripts.keep("second", FOUND)
    transcripts.find("first")
    transcripts.keep("third", FOUND)
    assert [transcripts.find(key) is not None for key in ("first", "second", "third")] == [True, False, True]


def test_keys_tell_recordings_and_options_apart() -> None:
    """Would catch one recording's transcript given for another, or for other options."""
    keys = {
        recording_key(data, 100, *options)
        for data in (b"one", b"two")
        for options in (("en", "base"), ("en", "small"), ("enb", "ase"))
    }
    assert len(keys) == 6
    assert recording_key(b"one", 100, "en") == recording_key(bytearray(b"one"), 100, "en")


def test_many_small_ones_are_bounded() -> None:
    """Would catch thousands of entries of some bytes, which are looked through each time."""
    transcripts = kept(max_bytes=10**9)
    for number in range(KEPT_COUNT + 10):
        transcripts.keep(str(number), FOUND)
    assert transcripts.find("9") is None
    assert transcripts.find("10") == FOUND


def test_no_key_for_what_is_not_taken() -> None:
    """Would catch gigabytes read only to be refused."""
    with pytest.raises(EmptyAudioError):
        recording_key(b"", 100)
    with pytest.raises(AudioTooLargeError):
        recording_key(bytes(101), 100)
