"""The way from the events function to the running `response_cache_filter`, which may not be there."""

import logging
from collections.abc import Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.webui.functions import function_state, live_function

log = logging.getLogger(__name__)

CACHE_ID = "response_cache_filter"
NO_CACHE = message(
    "response_cache_filter is not installed, or switched off: install it (upload.py, or Admin Panel → "
    "Functions), and what the cache does shows here"
)


class CacheContact:
    """Asks the cache of this process, which speaks for the store that all processes share."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._app = app

    async def report(self) -> dict[str, Any]:
        """What the cache did; only `fault`, where it cannot be asked."""
        told = await self._ask("cache_report")
        return told if isinstance(told, dict) else {"fault": told}

    async def flush(self) -> str:
        """Make all answers unusable; empty, or why it was not done."""
        return await self._said("flush_cache")

    async def discard(self, label: str) -> None:
        """Discard what is known under a label. Where there is no cache, there is nothing to discard."""
        await self._ask("discard_answers", label)

    async def calibration(self) -> dict[str, Any]:
        """The labels of similar answers; only `fault`, where the cache cannot be asked."""
        told = await self._ask("calibration_counts")
        return told if isinstance(told, dict) else {"fault": told}

    async def take_round(self, given: Mapping[str, Any]) -> str:
        """Count what other sites gave; empty, or why it was not done."""
        return await self._said("take_round", given)

    async def forget_rounds(self) -> str:
        """Forget what other sites gave; empty, or why it was not done."""
        return await self._said("forget_rounds")

    async def _said(self, method: str, *values: Any) -> str:
        """A sentence, which its plugin can say in other languages, too."""
        said = await self._ask(method, *values)
        return said if isinstance(said, str) else ""

    async def _ask(self, method: str, *values: Any) -> Any:
        """What a method of the cache says, or in a sentence why it cannot be asked."""
        try:
            state = await function_state(CACHE_ID)
            if not state.active:
                return NO_CACHE
            cache = await live_function(self._app, CACHE_ID, state)
            return await getattr(cache, method)(*values)
        except Exception as error:
            log.exception("%s could not be asked: %s", CACHE_ID, method)
            failed = message("{kind}: {error}", kind=type(error).__name__, error=error)
            return message("{plugin} failed ({error}): see its valves", plugin=CACHE_ID, error=failed)
