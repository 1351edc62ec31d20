"""What a plugin may take from the Open WebUI that it is on. Imports `open_webui` when called."""

from hashlib import sha256
from pathlib import Path


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
