"""A server-sent event as text."""

from collections.abc import Mapping
from typing import Any

import orjson

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
