"""Which weights a model's name stands for on some Ollama nodes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

LOOK_LIMIT_SECONDS = 2.0  # for all nodes together


@dataclass(frozen=True, slots=True)
class TagSite:
    """A node whose models are asked for.

    Attributes:
        url: its address.
        key: that it wants; empty: none.
        prefix: that its models' names have where they are offered; empty: none.
        headers: that are sent, too.
    """

    url: str
    key: str = field(default="", repr=False)
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class DigestTimes:
    """How old an answer may be, in seconds.

    Attributes:
        fresh: and be used as it is.
        usable: and be used where the nodes do not answer at once.
        patience: that one who asks waits for a look.
    """

    fresh: float = 5.0
    usable: float = 60.0
    patience: float = 0.1


class ModelDigests:
    """Digests by `GET /api/tags` of all nodes. One event loop at a time.

    One who asks while what is known is older than `fresh` waits for a look, but never longer than `patience`.
    """

    def __init__(
        self,
        sites: Callable[[], Awaitable[Sequence[TagSite]]],
        times: DigestTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            sites: tells the nodes as they are now.
            times: when left out, the defaults.
            clock: monotonic seconds.
        """
        self._sites = sites
        self._times = times or DigestTimes()
        self._clock = clock
        self._digests: Mapping[str, str] = {}
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None

    async def digest_of(self, name: str) -> str | None:
        """The digests that a name has on the nodes that answer; None: it is not known, or too old."""
        if self._age > self._times.fresh:
            self._look = self._look or asyncio.get_running_loop().create_task(self._renew())
            await asyncio.wait({self._look}, timeout=self._times.patience)
        return self._digests.get(name) if self._age <= self._times.usable else None

    @property
    def _age(self) -> float:
        return self._clock() - self._looked_at

    async def _renew(self) -> None:
        try:
            began = self._clock()
            answers = await _ask_all(await self._sites())
            if any(answer is not None for answer in answers):
                self._digests = _put_together(answer for answer in answers if answer)
                self._looked_at = began
        finally:
            self._look = None


async def _ask_all(sites: Sequence[TagSite]) -> list[dict[str, str] | None]:
    timeout = aiohttp.ClientTimeout(total=LOOK_LIMIT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
        return list(await asyncio.gather(*(_site_digests(session, site) for site in sites)))


def _put_together(answers: Any) -> dict[str, str]:
    """Name → its digests, in order: the same name may stand for several."""
    found: dict[str, set[str]] = {}
    for answer in answers:
        for name, digest in answer.items():
            found.setdefault(name, set()).add(digest)
    return {name: "+".join(sorted(digests)) for name, digests in found.items()}


async def _site_digests(session: aiohttp.ClientSession, site: TagSite) -> dict[str, str] | None:
    """Offered name → digest on one node; None when it does not answer as Ollama does."""
    headers = {**({"Authorization": f"Bearer {site.key}"} if site.key else {}), **site.headers}
    url = f"{site.url.rstrip('/')}/api/tags"
    try:
        async with session.get(url, headers=headers, raise_for_status=True) as response:
            listed = [entry for entry in (await response.json())["models"] if isinstance(entry, dict)]
            named = ((entry.get("model") or entry.get("name"), entry.get("digest")) for entry in listed)
            return {
                f"{site.prefix}.{name}" if site.prefix else str(name): str(digest)
                for name, digest in named
                if name and digest
            }
    except (aiohttp.ClientError, TimeoutError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError):  # an answer, but not of Ollama's form
        return None
