"""Open WebUI's own connections, as its admin has set them. Imports `open_webui` when called, not before."""

from collections.abc import Mapping
from ssl import SSLContext
from typing import Any


def trusted_certificates() -> SSLContext | bool:
    """What Open WebUI itself trusts where it connects to Ollama, as `aiohttp.TCPConnector` takes it."""
    from open_webui.env import AIOHTTP_CLIENT_SESSION_SSL  # noqa: PLC0415 - see the top of this module

    trusted: SSLContext | bool = AIOHTTP_CLIENT_SESSION_SSL
    return trusted


async def ollama_connections() -> list[tuple[str, str]]:
    """Address and key (empty: none) of each Ollama connection that is switched on."""
    return [(url, key) for url, key, _ in await prefixed_connections()]


async def prefixed_connections() -> list[tuple[str, str, str]]:
    """Address, key and the prefix of its models' names (empty: none) of each that is switched on."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    found = await Config.get_many("ollama.enable", "ollama.base_urls", "ollama.api_configs")
    if not found.get("ollama.enable", True):
        return []
    settings: Mapping[str, Any] = found.get("ollama.api_configs") or {}
    connections = []
    for number, url in enumerate(found.get("ollama.base_urls") or []):
        own = settings.get(str(number)) or settings.get(url) or {}  # by address in older Open WebUIs
        if url and own.get("enable", True):
            connections.append((str(url), str(own.get("key") or ""), str(own.get("prefix_id") or "")))
    return connections
