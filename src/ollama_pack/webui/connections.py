"""Open WebUI's own connections, as its admin has set them. Imports `open_webui` when called, not before."""

from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

OLLAMA_KEYS = ("ollama.enable", "ollama.base_urls", "ollama.api_configs")
OPENAI_KEYS = ("openai.enable", "openai.api_base_urls", "openai.api_configs")


@dataclass(frozen=True, slots=True)
class ConnectionModels:
    """Which models a connection offers, and under which ids.

    Attributes:
        url: the server's address.
        prefix: begins the ids of its models; empty: none.
        only: the server's names of the models that are offered; empty: all.
        tags: that the picker shows at its models.
        is_on: it is switched on, and so is its kind.
    """

    url: str
    prefix: str = ""
    only: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()
    is_on: bool = True

    def id_of(self, model: str) -> str | None:
        """The id under which Open WebUI offers a model of the server; None: it does not."""
        if not self.is_on or (self.only and model not in self.only):
            return None
        return f"{self.prefix}.{model}" if self.prefix else model


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


async def model_lists() -> list[ConnectionModels]:
    """What each connection offers, of both kinds, those that are switched off included."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    found = await Config.get_many(*OLLAMA_KEYS, *OPENAI_KEYS)
    return [
        _model_list(str(url), number, found.get(configs) or {}, is_on=bool(found.get(enable, True)))
        for enable, urls, configs in (OLLAMA_KEYS, OPENAI_KEYS)
        for number, url in enumerate(found.get(urls) or [])
        if url
    ]


def _model_list(url: str, number: int, settings: Mapping[str, Any], *, is_on: bool) -> ConnectionModels:
    own = settings.get(str(number)) or settings.get(url) or {}
    tags = (tag.get("name") if isinstance(tag, Mapping) else tag for tag in own.get("tags") or ())
    return ConnectionModels(
        url,
        str(own.get("prefix_id") or ""),
        frozenset(map(str, own.get("model_ids") or ())),
        tuple(str(tag) for tag in tags if tag),
        is_on and bool(own.get("enable", True)),
    )
