"""Other pipelines of the same server: they work together there, in one process."""

import sys
from typing import Any

SERVER_MODULE = "main"  # as `uvicorn main:app` calls the server's own


def sibling(name: str) -> Any:
    """A pipeline as it is loaded now; None where there is none of this name."""
    loaded: dict[str, Any] = getattr(sys.modules.get(SERVER_MODULE), "PIPELINE_MODULES", {})
    return loaded.get(name)
