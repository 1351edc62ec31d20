"""JSON values as bytes: the same value gives the same bytes, and no two values share them.

Each value is a letter for its type, for what has a length that length, and the content:

| value | bytes | why |
|---|---|---|
| object | `d<n>:` and each name and value, ordered by name | order and spaces of JSON mean nothing |
| list | `l<n>:` and the values | order means something |
| text | `s<bytes>:` and UTF-8 | "é" in one and in two code points are different tokens |
| number | `n<bytes>:` and its shortest form | JSON knows one kind of number: 1, 1.0 and 1e0 are the same |
| true, false, null | `t`, `f`, `z` | true is not 1, and null is not absent |
| a stand-in | `x<bytes>:` and its text | for what is named by its content or its order, such as an image |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

_Put = Callable[[bytes], None]

DEEPEST = 64  # levels of objects and lists; what is deeper is refused
_MOST_NAMES = 32  # of an object whose shape is remembered


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
    out: list[bytes] = []
    _put_value(out.append, value, DEEPEST)
    return b"".join(out)


def _put_value(put: _Put, value: Any, levels: int) -> None:
    # by exact type first: this runs for every value of every request, and isinstance with ABCs is slow
    kind = type(value)
    if kind is str:
        content = value.encode("utf-8", "surrogatepass")
        put(b"s%d:" % len(content))
        put(content)
    elif kind is dict:
        _put_object(put, value, _less(levels))
    elif kind is list or kind is tuple:
        deeper = _less(levels)
        put(b"l%d:" % len(value))
        for item in value:
            _put_value(put, item, deeper)
    elif kind is bool or value is None:
        put(b"z" if value is None else b"t" if value else b"f")
    elif kind is int or kind is float:
        put(_sized_text("n", _shortest(value)))
    elif kind is StandIn:
        put(_sized_text("x", value.text))
    else:
        raise NotCoveredError(f"a value of type {kind.__name__}")


def _put_object(put: _Put, value: dict[Any, Any], levels: int) -> None:
    shape_of = _shape_of if len(value) <= _MOST_NAMES else _shape_of.__wrapped__
    head, names = shape_of(tuple(value))
    put(head)
    for name, coded in names:
        put(coded)
        _put_value(put, value[name], levels)


@lru_cache(maxsize=512)
def _shape_of(names: tuple[Any, ...]) -> tuple[bytes, list[tuple[str, bytes]]]:
    """What stands before an object's values: the same names come again and again."""
    try:
        ordered = sorted(names)
    except TypeError:
        raise NotCoveredError("names of different types") from None
    if any(type(name) is not str for name in ordered):
        raise NotCoveredError("a name that is not text")
    return b"d%d:" % len(ordered), [(name, _sized_text("s", name)) for name in ordered]


def _sized_text(kind: str, text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (kind.encode(), len(content), content)


def _shortest(number: float) -> str:
    if isinstance(number, int):
        return str(number)
    if not isfinite(number):
        raise NotCoveredError("a number that is not finite")
    whole = int(number)
    return str(whole) if whole == number else repr(number)  # repr is the shortest that reads back the same


def _less(levels: int) -> int:
    if not levels:
        raise NotCoveredError(f"more than {DEEPEST} levels")
    return levels - 1
