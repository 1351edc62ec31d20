"""What transcription servers answer, in the forms that are about."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.speech.http_answer import heard_in
from ollama_pack.speech.openai_http import SpeechServer
from ollama_pack.speech.values import Heard, SpeechSegment, SpokenWord


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
    [b"", b"Hello.", b"<html>", b"[]", b'{"error": 1}', b'{"text": 5}', b"[" * 100_000, b"9" * 5000],
)
def test_what_is_no_transcription_is_refused(text: bytes) -> None:
    """Would catch a web page that becomes a transcript."""
    with pytest.raises(ValueError, match="no transcription"):
        heard_in(text, 1.0)


WORDS = [
    {"word": "One", "start": 0.0, "end": 1.0},
    {"word": "two", "start": 1.0, "end": 2.0},
    {"word": "three", "start": 2.0, "end": 3.0},
]


def changed(number: int, **fields: Any) -> list[Any]:
    """The words, one of them with other fields."""
    return [word | fields if at == number else word for at, word in enumerate(WORDS)]


def timed(words: Any, **more: Any) -> Heard:
    body = {"text": "One two three", "words": words}
    return heard_in(json.dumps(body | more).encode(), 3.0)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, "soon", [], {}, True, "1e999"])
@pytest.mark.parametrize("field", ["start", "end"])
def test_one_odd_time_loses_nothing(odd: Any, field: str) -> None:
    """Would catch a transcript refused, a word lost or times out of order for one field of one word."""
    heard = timed(changed(1, **{field: odd}))
    (segment,) = heard.segments
    assert segment.text == "One two three"
    assert [(word.text, word.start, word.end) for word in segment.words] == [
        ("One", 0.0, 1.0),
        ("two", 1.0, 2.0),
        ("three", 2.0, 3.0),
    ]
    assert heard.odd == 1


@pytest.mark.parametrize("entry", [1, None, "two", [], {"word": 5}, {"word": "two"}])
def test_one_odd_entry_loses_no_other(entry: Any) -> None:
    """Would catch a list that is refused for one of its entries, and an entry passed over in silence."""
    heard = timed([WORDS[0], entry, WORDS[2]])
    words = {word.text: (word.start, word.end) for word in heard.segments[0].words}
    assert (words["One"], words["three"]) == ((0.0, 1.0), (2.0, 3.0))
    assert words.get("two", (1.0, 2.0)) == (1.0, 2.0)
    assert heard.odd == 1


@pytest.mark.parametrize("segments", [[1], "none", [{"start": None, "end": None, "text": "One two three"}]])
def test_the_text_counts_when_the_segments_cannot_be_read(segments: Any) -> None:
    """Would catch a text that is thrown away with its segments."""
    heard = timed(None, segments=segments)
    assert [(found.text, found.start, found.end) for found in heard.segments] == [("One two three", 0.0, 3.0)]
    assert heard.odd == 1


@pytest.mark.parametrize("unit", [1, 1000, 1_000_000, 1_000_000_000])
def test_other_units_of_time(unit: int) -> None:
    """Would catch subtitles that are all at the end, for a server that counts in nanoseconds."""
    words = [word | {"start": word["start"] * unit, "end": word["end"] * unit} for word in WORDS]  # type: ignore[operator]
    segment = {"text": "One two three", "start": 0, "end": 3 * unit}
    for body in ({"segments": [segment], "words": words}, {"segments": [segment | {"words": words}]}):
        heard = heard_in(json.dumps({"text": "One two three"} | body).encode(), 3.0)
        (found,) = heard.segments
        assert (found.start, found.end) == pytest.approx((0.0, 3.0))
        assert [word.end for word in found.words] == pytest.approx([1.0, 2.0, 3.0])
        assert heard.odd == 0


def test_a_wild_time_does_not_change_the_unit() -> None:
    """Would catch all other words put at the beginning for one that is far off, or for padding to 30 s."""
    for wild in (30.0, 1e9):
        words = timed(changed(2, end=wild)).segments[0].words
        assert [word.end for word in words] == [1.0, 2.0, 3.0]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["text", "start", "end", "word", "words", "segments", "language", "tokens", "avg_logprob"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_a_server_answers(found: Any) -> None:
    """Would catch an untyped error, a time outside the window, or one before the other."""
    refused, heard = "", Heard(())
    try:
        heard = heard_in(json.dumps(found).encode(), 5.0)
    except ValueError as error:
        refused = str(error)
    assert refused in {"", "no transcription"}
    parts: list[SpeechSegment | SpokenWord] = [*heard.segments]
    parts += [word for segment in heard.segments for word in segment.words]
    for timed_part in parts:
        assert 0.0 <= timed_part.start <= timed_part.end <= 5.0


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
