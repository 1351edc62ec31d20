"""What the running `gpu_router` says of the weights behind a name. Imports `open_webui` when called."""

import logging
from collections.abc import Mapping
from typing import Any

from ollama_pack.webui.contact import ROUTER_ID
from ollama_pack.webui.functions import live_function

log = logging.getLogger(__name__)


async def routed_weights(
    app: Any, model: str, body: Mapping[str, Any], user: Mapping[str, Any]
) -> tuple[str | None, str]:
    """The weights of the model that would answer a chat now, and its name; None: it is not known.

    Args:
        app: Open WebUI's.
        model: the router's id for it.
        body: the chat, as conditions of aliases look at it.
        user: who asks.
    """
    router = app.state.FUNCTIONS.get(ROUTER_ID) or await live_function(app, ROUTER_ID)
    ask = getattr(router, "answering_weights", None)  # an older router has it not
    try:
        found = await ask({**body, "model": model}, dict(user)) if ask else None
    except Exception as error:  # noqa: BLE001 - another plugin: when it answers the chat, it says this itself
        log.debug("gpu_router does not know what answers %r: %s", model, error)
        return None, ""
    found = found or {}
    return found.get("weights") or None, str(found.get("model") or "")
