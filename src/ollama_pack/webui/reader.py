"""Who reads what the pack says, and in which language."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.base.messages import ENGLISH


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH
