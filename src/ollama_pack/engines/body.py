"""Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name."""

import math
from collections.abc import Mapping
from typing import Any

import orjson

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import ChatBodyError

SHOWN_CHARACTERS = 40


def object_in(value: object, field: str) -> Mapping[str, Any]:
    """The value as an object; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise _unfit(value, field, message("an object"))


def object_at(value: object, *path: str) -> Mapping[str, Any]:
    """The object that a path of fields leads to; an empty one where there is something else."""
    for field in path:
        value = value.get(field) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def text_or_empty(value: object) -> str:
    """The text; an empty one where there is something else."""
    return value if isinstance(value, str) else ""


def objects_in(value: object, field: str) -> list[Mapping[str, Any]]:
    """The value as a list of objects; absent counts as empty.

    Raises:
        ChatBodyError: it is something else, or one of its items is.
    """
    items = list_in(value, field)
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise _unfit(item, f"{field}[{number}]", message("an object"))
    return items


def list_in(value: object, field: str) -> list[Any]:
    """The value as a list; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    raise _unfit(value, field, "a list")


def text_in(value: object, field: str) -> str:
    """The value, which must be text.

    Raises:
        ChatBodyError: it is something else.
    """
    if isinstance(value, str):
        return value
    raise _unfit(value, field, "text")


def decimal_in(value: object, field: str) -> float:
    """The value as a finite number. Open WebUI's custom parameters may be numbers in text.

    Raises:
        ChatBodyError: it is something else.
    """
    return _finite(value, field, "a number")


def whole_in(value: object, field: str) -> int:
    """The value as a whole number, cut off at the point as Ollama does it.

    Raises:
        ChatBodyError: it is something else.
    """
    number = _finite(value, field, message("a whole number"))
    return value if isinstance(value, int) else int(number)


def switch_in(value: object, field: str) -> bool:
    """The value as true or false, which may be written out.

    Raises:
        ChatBodyError: it is something else.
    """
    words = {"true": True, "false": False}
    meant = words.get(value.strip().lower()) if isinstance(value, str) else value
    if isinstance(meant, bool):
        return meant
    raise _unfit(value, field, message("true or false"))


def json_in(text: str | bytes) -> Any:
    """What the text says as JSON.

    Raises:
        ValueError: it is none, or too deep. NaN and the infinities, which JSON has not, count as none.
    """
    return orjson.loads(text)  # a JSONDecodeError is a ValueError


def _finite(value: object, field: str, kind: str) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):  # text that is no number, or an integer beyond every float
        pass
    raise _unfit(value, field, kind)


def _unfit(value: object, field: str, wanted: str) -> ChatBodyError:
    return ChatBodyError(
        field, message("must be {wanted}, not {value}", wanted=wanted, value=_outline(value))
    )


def _outline(value: object) -> str:
    """A value for a message: only scalars are shown, the rest may be somebody's conversation."""
    if isinstance(value, str | bool | float) or value is None:
        return repr(value if not isinstance(value, str) else value[:SHOWN_CHARACTERS])
    return {"dict": message("an object"), "list": message("a list"), "int": message("a number")}.get(
        type(value).__name__, "that"
    )
