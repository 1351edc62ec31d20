"""What a plugin takes from its Open WebUI: a secret, a folder, streamed answers, its place.

Imports Open WebUI and its web framework when called.
"""

from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

EVENTS_TYPE, LINES_TYPE = "text/event-stream", "application/x-ndjson"


def server_secret(purpose: str) -> str:
    """A secret of this Open WebUI for one purpose, from its WEBUI_SECRET_KEY; empty where it has none.

    It is the same in all workers and replicas of a site.
    """
    from open_webui.env import WEBUI_SECRET_KEY  # noqa: PLC0415 - see the top of this module

    named = f"open-webui-ollama-pack {purpose}\0{WEBUI_SECRET_KEY}"
    return sha256(named.encode()).hexdigest() if WEBUI_SECRET_KEY else ""


def data_folder() -> Path:
    """Where Open WebUI keeps its data."""
    from open_webui.env import DATA_DIR  # noqa: PLC0415

    return Path(DATA_DIR)


def event_stream(
    events: AsyncIterator[str], media_type: str = EVENTS_TYPE, headers: Mapping[str, str] | None = None
) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type=media_type, headers=headers)


def line_stream(lines: AsyncIterator[str]) -> Any:
    """A streamed answer made of lines of JSON, as Ollama streams."""
    return event_stream(lines, LINES_TYPE)


RUNNING = "OLLAMA_PACK_RUNNING"  # on `app.state`: function id → the instance, also of older code


class Retiring(Protocol):
    """A function that holds connections, threads or files."""

    def retire(self) -> None:
        """Give them back, once what is under way has ended."""


def take_over(app: Any, function_id: str, instance: Retiring) -> None:
    """Be the one that runs in this process, and have the one before give back what it holds.

    Args:
        app: Open WebUI's.
        function_id: the function's id, as the admin saved it.
        instance: is asked to retire in its turn.
    """
    if not hasattr(app.state, RUNNING):
        setattr(app.state, RUNNING, {})
    running: dict[str, Any] = getattr(app.state, RUNNING)
    before = running.get(function_id)
    if before is not instance:
        running[function_id] = instance
        if before is not None:
            before.retire()
