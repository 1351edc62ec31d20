"""Which models a set of Ollama nodes has, remembered for a while."""

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp

TIMEOUT_SECONDS = 2.0


class InstalledModels:
    """The models of some Ollama nodes, by `GET /api/tags`, at most `max_age` seconds old.

    A node that does not answer keeps what it had when it last did: a node that restarts must not make
    its models vanish. Not for more than one event loop at a time.
    """

    def __init__(
        self, urls: Sequence[str], max_age: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._max_age = max_age
        self._clock = clock
        self._models: dict[str, dict[str, str]] = {}
        self._looked_at: float | None = None
        self._looking = asyncio.Lock()

    async def get(self) -> dict[str, str] | None:
        """Name → quantization level of every model; None while no node has ever answered."""
        async with self._looking:
            if self._looked_at is None or self._clock() - self._looked_at > self._max_age:
                await self._look()
                self._looked_at = self._clock()
        if not self._models:
            return None
        return {name: level for models in self._models.values() for name, level in models.items()}

    async def _look(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            answers = await asyncio.gather(*(_tags(session, url) for url in self.urls))
        found = zip(self.urls, answers, strict=True)
        self._models.update({url: tags for url, tags in found if tags is not None})


async def _tags(session: aiohttp.ClientSession, url: str) -> dict[str, str] | None:
    """Name → quantization level on one node; None when it does not answer as Ollama does."""
    try:
        async with session.get(f"{url}/api/tags", raise_for_status=True) as response:
            models = (await response.json())["models"]
            listed = [entry for entry in models if isinstance(entry, dict)]
            named = ((entry.get("name") or entry.get("model"), entry.get("details")) for entry in listed)
            found = {
                str(name): str((details if isinstance(details, dict) else {}).get("quantization_level") or "")
                for name, details in named
                if name
            }
            return found if found or not models else None  # a list without one model is not Ollama's
    except (aiohttp.ClientError, TimeoutError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError):  # an answer, but not of Ollama's form
        return None
