"""Reading server-sent events, however a network cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.engines.sse import LineTooLongError, ServerEvent, SseBuffer

LIMIT = 1000


def events(*parts: bytes, limit: int = LIMIT) -> list[ServerEvent]:
    """All events of a stream that comes in these parts."""
    buffer = SseBuffer(limit)
    fed = [event for part in parts for event in buffer.feed(part)]
    return fed + buffer.end()


def data(*parts: bytes) -> list[bytes]:
    return [event.data for event in events(*parts)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_events_with_each_end_of_line(end: bytes) -> None:
    """Would catch an engine behind a proxy that ends lines in another way, and never seems to answer."""
    stream = end.join([b'data: {"a":1}', b"", b"data: [DONE]", b"", b""])
    assert data(stream) == [b'{"a":1}', b"[DONE]"]
    assert [event.is_last for event in events(stream)] == [False, True]


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data\n\n", [b""]),
        (b": ping\n\n: ping\n\n", []),
        (b"\n\n\n", []),
        (b"id: 7\nretry: 10\nevent: message\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),
        (b"data: a\n\ndata: b\n", [b"a", b"b"]),
        (b"data: a\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        (b'{"object":"chat.completion"}', []),
    ],
)
def test_fields_and_comments(stream: bytes, wanted: list[bytes]) -> None:
    """Would catch a ping that counts as an answer, a value that loses a space, or an end that is lost."""
    assert data(stream) == wanted


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (b"event: error\ndata: {}\n\n", [True]),
        (b"error: {}\n\n", [True]),
        (b"event: error\n\ndata: {}\n\n", [False]),
        (b"event: error\ndata: {}\n\ndata: {}\n\n", [True, False]),
    ],
)
def test_errors_by_name(stream: bytes, wanted: list[bool]) -> None:
    """Would catch an older llama.cpp's error that is passed over, or one that spreads to the next event."""
    assert [event.is_error for event in events(stream)] == wanted


def test_what_is_too_long() -> None:
    """Would catch an engine that fills the memory with a line, or with an event of many lines."""
    assert data(b"data: " + b"x" * (LIMIT - 6) + b"\n\n") == [b"x" * (LIMIT - 6)]
    many = b"data: " + b"x" * 400 + b"\n"
    for parts in (
        [b"data: " + b"x" * LIMIT + b"\n\n"],
        [b"x" * 600, b"x" * 600],
        [many, many, many],
        [b"data\n" * (LIMIT + 1)],
    ):
        with pytest.raises(LineTooLongError):
            events(*parts)


def test_short_events_are_not_added_up() -> None:
    """Would catch a long answer that is refused for its length."""
    assert len(data(*[b"data: " + b"x" * 500 + b"\n\n"] * 10)) == 10


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.lists(
    st.tuples(st.sampled_from([b"data: a", b"data: bc", b"", b": x", b"event: error", b"id: 1"]), ENDS),
    max_size=12,
)


@given(LINES, st.lists(st.integers(min_value=1, max_value=9), max_size=40))
def test_cuts_do_not_matter(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """Would catch a reader that depends on how a network cuts a stream, between CR and LF above all."""
    stream = b"".join(line + end for line, end in lines)
    parts: list[bytes] = []
    rest = stream
    for cut in cuts:
        parts, rest = [*parts, rest[:cut]], rest[cut:]
    assert events(*[part for part in (*parts, rest) if part]) == events(stream)
