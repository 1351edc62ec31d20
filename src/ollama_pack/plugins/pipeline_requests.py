"""What a pipeline can know of a request, and how it tells the next one.

Open WebUI sends a pipeline the user and no more. What else it knows stands in the `metadata` that an inlet
is shown; OpenAI has fields for two things of it, so they travel on under those names, and any other client
may set them as well: `prompt_cache_key` for the conversation, `service_tier: flex` for what nobody waits for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAT_FIELD, URGENCY_FIELD, BACKGROUND = "prompt_cache_key", "service_tier", "flex"

# How all of Open WebUI's templates for titles, tags and the like begin.
_TASK_BEGINS = "### Task:"


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and what for.

    Attributes:
        user: whom fairness counts it for; empty: unknown.
        chat: the conversation; empty: unknown.
        background: nobody looks at the answer as it is written.
        from_webui: Open WebUI sent it, and put its own tools into it.
    """

    user: str = ""
    chat: str = ""
    background: bool = False
    from_webui: bool = False


def asking(body: Mapping[str, Any]) -> Asking:
    """Read a request. What is not of the expected form counts as absent."""
    user, chat = body.get("user"), body.get(CHAT_FIELD)
    from_webui = isinstance(user, Mapping)
    name = user.get("id") if isinstance(user, Mapping) else user
    return Asking(
        name if isinstance(name, str) else "",
        chat if isinstance(chat, str) else "",
        body.get(URGENCY_FIELD) == BACKGROUND or (from_webui and _is_task(body)),
        from_webui,
    )


def without_asking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without what is nobody's business further on."""
    return {name: value for name, value in body.items() if name not in {"user", CHAT_FIELD, URGENCY_FIELD}}


def with_hints(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an inlet, with what Open WebUI will not send to the pipeline itself."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        return body
    hints: dict[str, Any] = {}
    if isinstance(chat := metadata.get("chat_id"), str) and chat:
        hints[CHAT_FIELD] = chat
    if metadata.get("task"):
        hints[URGENCY_FIELD] = BACKGROUND
    return {**body, **hints}


def _is_task(body: Mapping[str, Any]) -> bool:
    """A title and the like, asked for through a row of Open WebUI's: of those the inlet is told nothing."""
    messages = body.get("messages")
    if body.get("stream") or not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    content = last.get("content") if isinstance(last, Mapping) else None
    return isinstance(content, str) and content.startswith(_TASK_BEGINS)
