"""JSON values as bytes: the same value gives the same bytes, and no two values share them.

They are written as JSON by orjson, with names in order and no spaces, but for these:

| value | bytes | why |
|---|---|---|
| number without a fraction, below 2^53 | its digits | JSON has one kind of number: 1, 1.0 and 1e0 are one |
| whole number of more than 64 bits | `i` and its digits in hex | JSON has no limit |
| text with half a character | `s` and its bytes in hex | browsers cut emojis in half; UTF-8 has no halves |
| a stand-in | `x` and its text | for what is named by its content or its order, such as an image |

What begins with one of these letters is no JSON, so it equals nothing else.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import orjson

DEEPEST = 200  # levels of objects and lists that are covered in any case; orjson refuses more than 254
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS
_OPTIONS |= orjson.OPT_PASSTHROUGH_DATETIME
_EXACT = 2**53  # below it every whole number is a double


@dataclass(frozen=True, slots=True)
class StandIn:
    """A value that is known by something other than its own text."""

    text: str


class NotCoveredError(ValueError):
    """A value cannot be put into a key. Used inside the package: callers get a `NotCacheable`.

    Attributes:
        reason: a few words, without any text of the conversation.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def canonical_bytes(value: Any) -> bytes:
    """The bytes of a JSON value, in which `StandIn` may stand for any part.

    Raises:
        NotCoveredError: a number that is not finite, a type that JSON does not have, or too many levels.
    """
    try:
        written = _written(value)
    except orjson.JSONEncodeError:
        return _written(_settled(value, DEEPEST))
    return _written(_settled(value, DEEPEST)) if _may_be_unsettled(written) else written


def _may_be_unsettled(written: bytes) -> bool:
    """Whether there may be a number in it with a fraction of 0, or one that is not finite; or such a text."""
    return (b".0" in written and (b".0," in written or b".0}" in written or b".0]" in written)) or (
        b"null" in written and (b":null" in written or b",null" in written or b"[null" in written)
    )


def _written(value: Any) -> bytes:
    return orjson.dumps([value], _stand_in, _OPTIONS)


def _stand_in(value: Any) -> orjson.Fragment:
    if type(value) is not StandIn:
        raise TypeError
    return orjson.Fragment(b"x" + orjson.dumps(value.text))


def _settled(value: Any, levels: int) -> Any:
    """The value in the one form that orjson writes as the table says."""
    kind = type(value)
    if kind is dict:
        if any(type(name) is not str or not is_unicode(name) for name in value):
            raise NotCoveredError("a name that is not text")
        return {name: _settled(each, _less(levels)) for name, each in value.items()}
    if kind is list or kind is tuple:
        return [_settled(each, _less(levels)) for each in value]
    if kind is str:
        return value if is_unicode(value) else _marked("s", value.encode("utf-8", "surrogatepass").hex())
    if kind is int or kind is float:
        return _settled_number(value)
    if kind is bool or kind is StandIn or value is None:
        return value
    raise NotCoveredError(f"a value of type {kind.__name__}")


def _settled_number(number: float) -> Any:
    if isinstance(number, int):
        return number if -(2**63) <= number < 2**64 else _marked("i", f"{number:x}")
    if not isfinite(number):
        raise NotCoveredError("a number that is not finite")
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


def _marked(letter: str, text: str) -> orjson.Fragment:
    return orjson.Fragment(f"{letter}{text}".encode())


def is_unicode(text: str) -> bool:
    """Whether a text has no halves of characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _less(levels: int) -> int:
    if not levels:
        raise NotCoveredError(f"more than {DEEPEST} levels")
    return levels - 1
