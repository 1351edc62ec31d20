"""Joining, subtitles and formats."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.audio import TranscriptionVerbose

from ollama_pack.speech.formats import (
    TRANSCRIPT_FORMATS,
    WARNING_HEADER,
    render_transcript,
    warnings_in_header,
)
from ollama_pack.speech.joining import columns, joined_text, tokens_of
from ollama_pack.speech.subtitles import LINE_COLUMNS, MAX_LINES, cues, timestamp
from ollama_pack.speech.values import SpeechNote, SpeechSegment, SpokenWord, Transcript

EXAMPLE = Transcript(
    text="Tom & Jerry <3 --> end. 再见。",
    language="en",
    duration=3725.5,
    segments=(
        SpeechSegment(
            0.0004,
            2.5,
            "Tom & Jerry <3 --> end.",
            (SpokenWord(0.0004, 0.4, " Tom", 0.9), SpokenWord(0.4, 2.5, " & Jerry <3 --> end.", 0.8)),
            probability=0.75,
            no_speech=0.01,
            compression=1.2,
            tokens=(1, 2),
        ),
        SpeechSegment(3723.9996, 3725.5, "再见。"),
    ),
    engine="faster_whisper",
    model="base",
    notes=(SpeechNote("truncated", "The recording is not whole."),),
)


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        ([" And", "then. ", ""], "And then."),
        (["今天", "很好。", "再见"], "今天很好。再见"),
        (["几年,", "不但"], "几年,不但"),
        (["我用", "GPT", "写信。", "OK"], "我用 GPT 写信。OK"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["これは", "テスト"], "これはテスト"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_their_script_wants(texts: list[str], whole: str) -> None:
    """Would catch spaces in the middle of Chinese, and none between English words."""
    assert joined_text(texts) == whole


@given(st.text(alphabet="ab 书再。,!(《》)-.\u0301", max_size=60))
def test_tokens_are_the_text(text: str) -> None:
    """Would catch a subtitle that loses or doubles characters."""
    assert "".join(tokens_of(text)) == " ".join(text.split())


def test_punctuation_does_not_begin_a_line() -> None:
    """Would catch lines that begin with a full stop, or end with an opening bracket."""
    assert tokens_of("书。《再见》(ok) yes!") == ["书。", "《再", "见》", "(ok)", " yes!"]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "00:00:00,000"), (999, "00:00:00,999"), (3_723_004, "01:02:03,004"), (360_000_000, "100:00:00,000")],
)
def test_timestamps(milliseconds: int, text: str) -> None:
    """Would catch 1,4 for 1,004, and hours that are cut to two digits."""
    assert timestamp(milliseconds, ",") == text


words = st.lists(
    st.tuples(st.text(alphabet="abcdefg", min_size=1, max_size=12), st.floats(0, 3), st.booleans()),
    min_size=1,
    max_size=60,
)


@given(words, st.booleans())
def test_subtitles_fit_and_keep_all_words(spoken: list[tuple[str, float, bool]], has_times: bool) -> None:  # noqa: FBT001 - given by Hypothesis
    """Would catch lines that are too wide, overlapping or empty cues, and lost words."""
    now, found = 0.0, []
    for text, seconds, is_end in spoken:
        found.append(SpokenWord(now, now + seconds, f" {text}{'.' if is_end else ''}"))
        now += seconds
    text = "".join(word.text for word in found).strip()
    segment = SpeechSegment(0.0, now, text, tuple(found) if has_times else ())
    made = cues([segment, SpeechSegment(now, now + 1, "Bye.")], now + 1)
    assert " ".join(line for cue in made for line in cue.lines) == f"{text} Bye."
    assert all(0 < len(cue.lines) <= MAX_LINES for cue in made)
    assert all(columns(line) <= LINE_COLUMNS for cue in made for line in cue.lines)
    assert all(cue.start < cue.end for cue in made)
    assert all(cue.end <= after.start for cue, after in pairwise(made))


def test_words_of_servers_without_punctuation_give_the_times() -> None:
    """Would catch cues that lose their times with OpenAI's words, which have no punctuation."""
    spoken = [SpokenWord(float(n), n + 1.0, word) for n, word in enumerate("abcdefghijkl")]
    segment = SpeechSegment(0.0, 12.0, "A, b; c. D e f! G h i? J k l.", tuple(spoken))
    made = cues([segment], 12.0)
    assert [(cue.start, cue.end, cue.lines) for cue in made] == [
        (0, 6000, ("A, b; c. D e f!",)),
        (6000, 12000, ("G h i? J k l.",)),
    ]


def test_srt() -> None:
    """Would catch wrong numbers, commas, rounding, and an arrow that a player takes for times."""
    assert render_transcript(EXAMPLE, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\nTom & Jerry <3 → end.\n"
        "\n"
        "2\n01:02:04,000 --> 01:02:05,500\n再见。\n"
    )


def test_vtt() -> None:
    """Would catch a missing header, a lost warning, and text that a browser takes for tags."""
    assert render_transcript(EXAMPLE, "vtt") == (
        "WEBVTT\n\n"
        "NOTE Warning: The recording is not whole.\n\n"
        "00:00:00.000 --> 00:00:02.500\nTom &amp; Jerry &lt;3 --&gt; end.\n"
        "\n"
        "01:02:04.000 --> 01:02:05.500\n再见。\n"
    )


@pytest.mark.parametrize("text", ["a --> b", "two\n\nparagraphs", 'a "quoted" \\ é', ""])
def test_a_warning_breaks_no_format(text: str) -> None:
    """Would catch a comment that ends early, so that its rest is shown, or a header that cannot be sent."""
    warned = replace(EXAMPLE, notes=(SpeechNote("language", text), SpeechNote("truncated", "Short.")))
    comments = render_transcript(warned, "vtt").split("\n\n")[1:3]
    assert [comment.startswith("NOTE Warning: ") for comment in comments] == [True, True]
    assert "-->" not in "".join(comments)
    header = warnings_in_header(warned)[WARNING_HEADER]
    assert header.isascii()
    assert header.isprintable()
    if not text.isascii():  # a display string of RFC 9651
        assert header == 'language=%"a %22quoted%22 \\ %c3%a9", truncated="Short."'
        return
    (first, second) = re.fullmatch(r'language="((?:[^"\\]|\\["\\])*)", truncated="(.*)"', header).groups()  # type: ignore[union-attr] # it matches
    assert re.sub(r"\\(.)", r"\1", first) == " ".join(text.split()).replace("é", "?")
    assert second == "Short."


def test_text_and_json() -> None:
    """Would catch escapes instead of Chinese, and a lost word, probability or warning."""
    assert render_transcript(EXAMPLE, "text") == EXAMPLE.text + "\n"
    text = render_transcript(EXAMPLE, "json")
    found = json.loads(text)
    assert "再见" in text
    assert (found["text"], found["language"], found["duration"]) == (EXAMPLE.text, "en", 3725.5)
    assert found["segments"][0]["words"][0] == {"word": "Tom", "start": 0.0, "end": 0.4, "probability": 0.9}
    assert found["segments"][1]["probability"] is None
    assert found["warnings"] == [{"kind": "truncated", "text": "The recording is not whole."}]


@pytest.mark.parametrize("language", ["en", "zh-TW", "und", "jv"])
def test_verbose_json_is_what_openai_answers(language: str) -> None:
    """Would catch a field that OpenAI's own client misses, or of another type."""
    transcript = Transcript(EXAMPLE.text, language, 3.0, EXAMPLE.segments, "e", "m")
    answer = json.loads(render_transcript(transcript, "verbose_json"))
    parsed = TranscriptionVerbose.model_validate(answer, strict=True)
    assert parsed.segments is not None
    assert parsed.words is not None
    assert parsed.language == {"en": "english", "zh-TW": "chinese", "jv": "javanese"}.get(language, "")
    assert parsed.segments[0].avg_logprob == pytest.approx(-0.2877)
    assert [word.word for word in parsed.words] == ["Tom", "& Jerry <3 --> end."]


def test_every_format_ends_its_last_line() -> None:
    """Would catch a format without a writer."""
    for form in TRANSCRIPT_FORMATS:
        assert re.search(r"[^\n]\n\Z", render_transcript(EXAMPLE, form))
