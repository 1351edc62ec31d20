"""What a plugin may take from the Open WebUI that it is on. Imports `open_webui` when called."""

from hashlib import sha256
from pathlib import Path

_PURPOSE = b"open-webui-ollama-pack response cache\0"


def server_secret() -> str:
    """A secret of this Open WebUI for the cache alone, from its WEBUI_SECRET_KEY; empty where it has none."""
    from open_webui.env import WEBUI_SECRET_KEY  # noqa: PLC0415 - see the top of this module

    return sha256(_PURPOSE + WEBUI_SECRET_KEY.encode()).hexdigest() if WEBUI_SECRET_KEY else ""


def data_folder() -> Path:
    """Where Open WebUI keeps its data."""
    from open_webui.env import DATA_DIR  # noqa: PLC0415

    return Path(DATA_DIR)
