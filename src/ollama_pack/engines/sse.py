"""Lines of a stream, and server-sent events as the HTML standard has them ("Interpreting an event stream").

Both are of bounded length. Lenient where engines are: an event without an empty line after it counts when the
stream ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson


class LineTooLongError(Exception):
    """A line is longer than it may be. Never leaves `engines/`."""


class LineBuffer:
    """Takes bytes as they come and gives whole lines; never holds more than one line and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line, in bytes."""
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out.

        Raises:
            LineTooLongError: one of them is, or what has come of the next.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise LineTooLongError
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """What came after the last end of a line, as a line of its own."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []


DONE = b"[DONE]"  # OpenAI's last event
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        data: its lines, joined by line feeds.
        is_error: it is called so: `event: error`, or `error:` instead of `data:` as older llama.cpp has it.
    """

    data: bytes
    is_error: bool = False

    @property
    def is_last(self) -> bool:
        """Whether nothing that matters comes after it."""
        return self.data.strip() == DONE


class SseBuffer:
    """Takes bytes as they come and gives whole events; never holds more than one event and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line and the longest event, in bytes."""
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0  # of the lines in `_data`, their ends included
        self._is_error = False
        self._begun = False
        self._after_return = False  # a line feed that comes now belongs to the end of the line before

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that are complete now. Comments, such as pings, give none.

        Raises:
            LineTooLongError: a line or an event is.
        """
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        self._after_return = data.endswith(b"\r")
        whole = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = whole.split(b"\n")
        events = [event for line in lines if (event := self._take(line))]
        if len(self._rest) > self._limit:
            raise LineTooLongError
        return events

    def end(self) -> list[ServerEvent]:
        """What came after the last end of an event, as an event of its own."""
        rest, self._rest = self._rest, b""
        ended = [self._take(rest), self._take(b"")]
        return [event for event in ended if event]

    def _take(self, line: bytes) -> ServerEvent | None:
        """Take in a line; an empty one ends the event."""
        if not self._begun:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._begun = True
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._is_error = value == b"error"
        elif field in {b"data", b"error"}:
            self._is_error = self._is_error or field == b"error"
            self._data.append(value)
            self._size += len(value) + 1
        if len(line) > self._limit or self._size > self._limit:
            raise LineTooLongError
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(b"\n".join(self._data), self._is_error) if self._data else None
        self._data, self._size, self._is_error = [], 0, False
        return event


LAST_EVENT = "data: [DONE]\n\n"  # OpenAI's

# Ends of lines to Python's `splitlines`, with which some clients take events apart.
_SEPARATORS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def event_text(value: Mapping[str, Any]) -> str:
    """An object as one event."""
    text = orjson.dumps(value).decode()
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return f"data: {text}\n\n"
