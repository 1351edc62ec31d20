"""What transcription servers answer, in the forms that are about."""

import json
import math
from typing import Any

import pytest

from ollama_pack.speech.http_answer import heard_in
from ollama_pack.speech.openai_http import SpeechServer


def answer(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_openai_has_words_beside_the_segments() -> None:
    """Would catch words that are lost, or given to the wrong segment."""
    segments = [
        {"id": 0, "start": 0.0, "end": 2.0, "text": " One two.", "avg_logprob": -0.5, "tokens": [5]},
        {"id": 1, "start": 2.0, "end": 4.0, "text": " Three."},
    ]
    words = [
        {"word": "One", "start": 0.1, "end": 0.9},
        {"word": "two", "start": 1.0, "end": 2.1},
        {"word": "Three", "start": 2.2, "end": 9.0},
    ]
    heard = heard_in(answer(text="One two. Three.", language="english", segments=segments, words=words), 4.0)
    assert heard.language == "en"
    assert [segment.text for segment in heard.segments] == ["One two.", "Three."]
    assert [[word.text for word in segment.words] for segment in heard.segments] == [
        ["One", "two"],
        ["Three"],
    ]
    assert heard.segments[0].probability == pytest.approx(math.exp(-0.5))
    assert heard.segments[0].tokens == (5,)


def test_others_have_words_in_the_segments() -> None:
    """Would catch words of speaches and whisper.cpp not found, and times beyond what was sent."""
    words = [{"text": "好", "start": 0.0, "end": 31.0, "probability": 0.5}]
    segments = [{"start": 0, "end": 31, "text": "好", "words": words}]
    heard = heard_in(answer(text="好", language="zh", segments=segments), 30.0)
    assert heard.language == "zh"
    assert heard.segments[0].end == 30.0
    assert [(word.text, word.end, word.probability) for word in heard.segments[0].words] == [
        ("好", 30.0, 0.5)
    ]


def test_plain_json_is_one_segment() -> None:
    """Would catch text without times thrown away, and an empty segment for silence."""
    heard = heard_in(answer(text=" Hello. "), 7.5)
    assert [(found.start, found.end, found.text) for found in heard.segments] == [(0.0, 7.5, "Hello.")]
    assert heard.language is None
    assert heard_in(answer(text=" "), 7.5).segments == ()


@pytest.mark.parametrize(
    "text",
    [b"", b"Hello.", b"<html>", b"[]", b'{"error": 1}', b'{"text": 5}', b'{"text": "x", "segments": [1]}'],
)
def test_what_is_no_transcription_is_refused(text: bytes) -> None:
    """Would catch a web page that becomes a transcript."""
    with pytest.raises(ValueError, match="no transcription"):
        heard_in(text, 1.0)


def test_infinite_times_are_refused() -> None:
    """Would catch a NaN that makes every later comparison false."""
    segments = b'[{"start": NaN, "end": 1, "text": "x"}]'
    with pytest.raises(ValueError, match="no transcription"):
        heard_in(b'{"text": "x", "segments": %s}' % segments, 1.0)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://a:1",
        "http://a:1/",
        "http://a:1/v1",
        " http://a:1/v1/ ",
        "http://a:1/v1/audio/transcriptions",
    ],
)
def test_addresses(base_url: str) -> None:
    """Would catch /v1/v1, and an address that works only in one of the forms people write."""
    assert SpeechServer(base_url).url == "http://a:1/v1/audio/transcriptions"


def test_the_key_is_in_no_text() -> None:
    """Would catch the key in a log of the settings."""
    assert "sk-secret" not in repr(SpeechServer("http://a", api_key="sk-secret"))
