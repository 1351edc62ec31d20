"""Where Open WebUI keeps what transcription needs: models, the tool's valves. Imported when called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_USER_ID = 64  # characters; Open WebUI's have 36


def model_folders() -> tuple[Path, Path]:
    """The folder of Open WebUI's own Whisper, and one where the pack may put models."""
    from open_webui.config import CACHE_DIR, WHISPER_MODEL_DIR  # noqa: PLC0415 - see the top of this module

    return Path(WHISPER_MODEL_DIR), Path(CACHE_DIR, "ollama_pack", "models")


async def tool_valves(tool_id: str) -> Mapping[str, Any]:
    """The valves of a tool that an admin has set; none where it is not installed."""
    from open_webui.models.tools import Tools  # noqa: PLC0415

    return await Tools.get_tool_valves_by_id(tool_id) or {}


def forwarded_user(headers: Mapping[str, str]) -> str:
    """The user for whom Open WebUI's own microphone asks; empty: the admin does not have it forwarded."""
    from open_webui import env  # noqa: PLC0415

    if not getattr(env, "ENABLE_FORWARD_USER_INFO_HEADERS", False):
        return ""
    name = getattr(env, "FORWARD_USER_INFO_HEADER_USER_ID", "X-OpenWebUI-User-Id")
    return headers.get(name, "")[:MAX_USER_ID]
