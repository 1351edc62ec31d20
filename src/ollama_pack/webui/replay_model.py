"""Whether chats can be sent through `response_cache_replay`. Imports `open_webui` when called, not before."""

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.webui.model_rows import REPLAY
from ollama_pack.webui.models import may_use
from ollama_pack.webui.rows import refresh_models, share_replay

log = logging.getLogger(__name__)

REPLAY_SECONDS = 2.0  # between two looks

NO_REPLAY = message(
    "The response cache does nothing: the function {model} is not installed, or "
    "switched off. Install it next to response_cache_filter and switch it on (Admin Panel "
    "→ Functions).",
    model=REPLAY,
)
NO_ACCESS = message(
    "The response cache does nothing for some users: an admin has taken the access to "
    "the model {model} from them. Share it with everybody (Admin Panel → Settings → "
    "Models): it shows nothing of others.",
    model=REPLAY,
)


def drawn_instead(metadata: Mapping[str, Any], models: Mapping[str, Any]) -> str | None:
    """Another model of an arena that has drawn the replay model, as it draws from all that there are.

    Args:
        metadata: of the chat, as Open WebUI has it after the draw.
        models: all that Open WebUI knows.

    Returns:
        Its id; None: no arena has drawn the replay model, or it has no other.
    """
    if metadata.get("selected_model_id") != REPLAY:
        return None
    meta = object_at(metadata, "model", "info", "meta")
    listed = frozenset(meta.get("model_ids") or ())
    left_out = not listed or meta.get("filter_mode") == "exclude"
    others = [
        str(model["id"])
        for model in models.values()
        if model.get("owned_by") != "arena" and model["id"] != REPLAY and (model["id"] in listed) != left_out
    ]
    return random.choice(others) if others else None  # noqa: S311 - no secret


class ReplayModel:
    """The model that is `response_cache_replay`.

    Open WebUI asks whether a plain user may use it, so it has a row: hidden from the picker, and shared with
    everybody. It refuses who asks for it directly, and Open WebUI asks again for the model behind it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at nothing yet; `clock` gives seconds."""
        self._clock = clock
        self._look_at = float("-inf")
        self._is_there = False
        self._said: set[str] = set()

    async def serves(self, user: Mapping[str, Any], request: Any) -> bool:
        """Whether it can answer this user; if not, the log says once why."""
        if self._clock() >= self._look_at:
            self._is_there = await self._prepare(request)
            self._look_at = self._clock() + REPLAY_SECONDS
        if not self._is_there:
            return self._tell(NO_REPLAY)
        return await may_use(user, REPLAY, request) or self._tell(NO_ACCESS)

    async def _prepare(self, request: Any) -> bool:
        """See that it is there and has a row, and have Open WebUI know of it."""
        if not await share_replay():
            return False
        if REPLAY not in request.app.state.MODELS:
            await refresh_models(request.app)
        return REPLAY in request.app.state.MODELS

    def _tell(self, what: str) -> bool:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", what)
        return False
