"""Answers that Open WebUI passes on as they come. Imports its web framework when called, not before."""

from collections.abc import AsyncIterator
from typing import Any


def event_stream(events: AsyncIterator[str]) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type="text/event-stream")


def line_stream(lines: AsyncIterator[str]) -> Any:
    """A streamed answer made of lines of JSON, as Ollama streams."""
    from starlette.responses import StreamingResponse  # noqa: PLC0415

    return StreamingResponse(lines, media_type="application/x-ndjson")
