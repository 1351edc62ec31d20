"""Which models some Ollama nodes have, and which weights, by `GET /api/tags`. One event loop at a time."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

import aiohttp

from ollama_pack.base.single_flight import SingleFlight

LOOK_SECONDS = 2.0  # for all nodes together
_LISTING_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class TagSite:
    """A node whose models are asked for.

    Attributes:
        url: its address.
        prefix: of its models' names where they are offered; empty: none.
        headers: that are sent, with the key that the node wants.
    """

    url: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class InstalledModels:
    """The models of some nodes.

    A node that does not answer keeps what it had when it last did: a node that restarts must not make its
    models vanish.
    """

    def __init__(
        self, urls: Sequence[str], max_age: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sites = tuple(TagSite(url.rstrip("/")) for url in urls)
        self._models: dict[str, dict[str, str]] = {}
        self._look = SingleFlight(self._look_at_all, max_age, clock)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(site.url for site in self._sites)

    async def get(self) -> dict[str, str] | None:
        """Name → quantization level of every model; None while no node has ever answered."""
        return await self._look.get()

    async def _look_at_all(self) -> dict[str, str] | None:
        for site, listed in await _listings(self._sites):
            named = {name: _quantization(model) for name, model in _named(listed, "name", "model")}
            if named or not listed:  # a list without one model is not Ollama's
                self._models[site.url] = named
        if not self._models:
            return None
        return {name: level for models in self._models.values() for name, level in models.items()}


@dataclass(frozen=True, slots=True)
class DigestTimes:
    """How old an answer may be, in seconds.

    Attributes:
        fresh: and be used as it is.
        usable: and be used where the nodes do not answer at once.
        wait: that a question waits for a look at the nodes.
    """

    fresh: float = 5.0
    usable: float = 60.0
    wait: float = 0.1


class ModelDigests:
    """Which weights a model's name stands for on some nodes."""

    def __init__(
        self,
        sites: Callable[[], Awaitable[Sequence[TagSite]]],
        times: DigestTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
        trusted: Callable[[], SSLContext | bool] = lambda: True,
    ) -> None:
        """Nothing is asked before `digest_of`.

        Args:
            sites: gives the nodes as they are now.
            times: when left out, the defaults.
            clock: monotonic seconds.
            trusted: the certificates of nodes, as `aiohttp.TCPConnector` takes them.
        """
        self._sites = sites
        self._times = times or DigestTimes()
        self._trusted = trusted
        self._look = SingleFlight(self._look_at_all, self._times.fresh, clock)

    async def digest_of(self, name: str) -> str | None:
        """The digests that a name has on the nodes that answer; None: it is not known, or too old."""
        if self._look.age > self._times.fresh:
            await asyncio.wait({self._look.renew()}, timeout=self._times.wait)
        return (self._look.kept or {}).get(name) if self._look.age <= self._times.usable else None

    async def _look_at_all(self) -> dict[str, str]:
        """Name → its digests, in order: the same name may stand for several.

        Raises:
            ConnectionError: no node answers.
        """
        listings = await _listings(await self._sites(), self._trusted)
        if not listings:
            raise ConnectionError
        found: dict[str, set[str]] = {}
        for site, listed in listings:
            for name, model in _named(listed, "model", "name"):
                if digest := model.get("digest"):
                    found.setdefault(f"{site.prefix}.{name}" if site.prefix else name, set()).add(str(digest))
        return {name: "+".join(sorted(digests)) for name, digests in found.items()}


_Models = list[Mapping[str, Any]]


async def _listings(
    sites: Iterable[TagSite], trusted: Callable[[], SSLContext | bool] = lambda: True
) -> list[tuple[TagSite, _Models]]:
    """The lists of the nodes that answer as Ollama does."""
    # as the router's: with proxies from HTTP_PROXY, HTTPS_PROXY and NO_PROXY
    connector = aiohttp.TCPConnector(ssl=trusted())
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
        return [found for found in await asyncio.gather(*(_listing(session, one) for one in sites)) if found]


async def _listing(session: aiohttp.ClientSession, site: TagSite) -> tuple[TagSite, _Models] | None:
    url = f"{site.url.rstrip('/')}/api/tags"
    try:
        # a redirect would carry the node's key to another server
        async with session.get(
            url, headers=site.headers, raise_for_status=True, allow_redirects=False
        ) as response:
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > _LISTING_BYTES:
                    return None
        models = json.loads(body)["models"]
        found: _Models = [model for model in models if isinstance(model, dict)]
    except (aiohttp.ClientError, TimeoutError):
        return None
    except (ValueError, LookupError, TypeError, RecursionError):  # an answer, but not of Ollama's form
        return None
    return (site, found) if found or not models else None


def _named(models: _Models, *keys: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The models that have a name, under the first of the keys that is there."""
    for model in models:
        if name := next(filter(None, map(model.get, keys)), None):
            yield str(name), model


def _quantization(model: Mapping[str, Any]) -> str:
    details = model.get("details")
    return str(details.get("quantization_level") or "") if isinstance(details, dict) else ""
