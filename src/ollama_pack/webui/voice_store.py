"""Where Open WebUI keeps what transcription needs: models, the tool's valves. Imported when called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_folders() -> tuple[Path, Path]:
    """The folder of Open WebUI's own Whisper, and one where the pack may put models."""
    from open_webui.config import CACHE_DIR, WHISPER_MODEL_DIR  # noqa: PLC0415 - see the top of this module

    return Path(WHISPER_MODEL_DIR), Path(CACHE_DIR, "ollama_pack", "models")


async def tool_valves(tool_id: str) -> Mapping[str, Any]:
    """The valves of a tool that an admin has set; none where it is not installed."""
    from open_webui.models.tools import Tools  # noqa: PLC0415

    return await Tools.get_tool_valves_by_id(tool_id) or {}
