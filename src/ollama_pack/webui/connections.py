"""Open WebUI's own connections, as its admin has set them. Imports `open_webui` when called, not before."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from types import SimpleNamespace
from typing import Any

from ollama_pack.engines.way_in import WayIn, split_login

_ENTRA = frozenset({"azure_ad", "microsoft_entra_id"})
_OF_USERS = frozenset({"session", "system_oauth"})
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
    ways = [(url, _way_in(url, own)) for url, own in await _connections_on()]
    return [(url, "" if way.auth == "none" or way.needs_user else way.key) for url, way in ways]


async def prefixed_connections() -> list[tuple[WayIn, str]]:
    """How each connection that is switched on is entered, and the prefix of its models' names, if any."""
    return [(_way_in(url, own), str(own.get("prefix_id") or "")) for url, own in await _connections_on()]


async def ways_in() -> dict[str, WayIn]:
    """How each connection that is switched on is entered, by its address without a slash at the end."""
    return {url.rstrip("/"): _way_in(url, own) for url, own in reversed(await _connections_on())}


async def asks_as_user(number: int | None = None) -> bool:
    """Whether a connection is entered as the user who asks, or is told in its headers who that is.

    Args:
        number: of an OpenAI connection; None: any of the Ollama connections may be asked.
    """
    if number is None:
        return any(_asks_as_user(own) for _, own in await _connections_on())

    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    _, urls, configs = OPENAI_KEYS
    found = await Config.get_many(urls, configs)
    url = dict(enumerate(found.get(urls) or [])).get(number)
    settings: Mapping[str, Any] = found.get(configs) or {}
    return _asks_as_user(settings.get(str(number)) or settings.get(str(url)) or {})


def _asks_as_user(own: Mapping[str, Any]) -> bool:
    given = own.get("headers")
    headers = given.values() if isinstance(given, Mapping) else ()
    return (
        own.get("auth_type") in _OF_USERS
        or bool(own.get("forward_cookies"))
        or any("{{USER_" in str(value) for value in headers)
    )


def _way_in(url: str, own: Mapping[str, Any]) -> WayIn:
    try:
        address, login = split_login(url.rstrip("/"))
    except ValueError:  # it is none, which the router says when it asks there
        address, login = url, ""
    given = own.get("headers")
    headers = given.items() if isinstance(given, Mapping) else ()
    return WayIn(
        address,
        str(own.get("key") or ""),
        login,
        tuple((str(name), str(value)) for name, value in headers),
        str(own.get("auth_type") or "") if _knows_auth() else "",
        bool(own.get("forward_cookies")),
    )


def _knows_auth() -> bool:
    """Whether connections to Ollama have a kind of authentication, as since Open WebUI 0.12."""
    from open_webui.utils import headers  # noqa: PLC0415 - see the top of this module

    return hasattr(headers, "get_headers_and_cookies")


async def node_headers(
    way: WayIn, request: Any, user: Mapping[str, Any], metadata: dict[str, Any]
) -> Mapping[str, str]:
    """What Open WebUI itself would send to a node with a chat: who asks, and what signs in there.

    Args:
        way: how the node lets the router in.
        request: the browser's; None: there is none, as in the background.
        user: as a function gets it.
        metadata: of the chat.
    """
    asker = SimpleNamespace(**user) if user.get("id") else None
    if not _knows_auth():
        return await _older_headers(way, request, asker, metadata)
    from open_webui.utils import headers as theirs  # noqa: PLC0415 - see the top of this module

    key, auth = way.key, way.auth
    if auth in _ENTRA:  # theirs would hold up the event loop
        key, auth = await asyncio.to_thread(theirs.get_microsoft_entra_id_access_token) or "", "bearer"
    elif auth == "session" and getattr(getattr(request, "state", None), "token", None) is None:
        auth = "none"
    config = {"auth_type": auth or None, "headers": dict(way.headers), "forward_cookies": way.cookies}
    made, cookies = await theirs.get_headers_and_cookies(request, way.url, key, config, metadata, user=asker)
    sent = {name: str(value) for name, value in made.items()}
    if cookies:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return sent


async def _older_headers(
    way: WayIn, request: Any, asker: SimpleNamespace | None, metadata: dict[str, Any]
) -> Mapping[str, str]:
    """As Open WebUI 0.11 makes them for a connection to Ollama."""
    from open_webui import env  # noqa: PLC0415 - see the top of this module
    from open_webui.utils.headers import get_custom_headers, include_user_info_headers  # noqa: PLC0415

    sent = {"Authorization": f"Bearer {way.key}"} if way.key else {}
    if env.ENABLE_FORWARD_USER_INFO_HEADERS and asker:
        sent = include_user_info_headers(sent, asker)
        if chat := metadata.get("chat_id"):
            sent[env.FORWARD_SESSION_INFO_HEADER_CHAT_ID] = chat
    if way.headers:
        sent |= await get_custom_headers(dict(way.headers), asker, metadata, request=request)
    return sent


async def _connections_on() -> list[tuple[str, Mapping[str, Any]]]:
    """Address and settings of each Ollama connection that is switched on."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    found = await Config.get_many("ollama.enable", "ollama.base_urls", "ollama.api_configs")
    if not found.get("ollama.enable", True):
        return []
    settings: Mapping[str, Any] = found.get("ollama.api_configs") or {}
    connections = []
    for number, url in enumerate(found.get("ollama.base_urls") or []):
        own = settings.get(str(number)) or settings.get(url) or {}  # by address in older Open WebUIs
        if url and own.get("enable", True):
            connections.append((str(url), own))
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
