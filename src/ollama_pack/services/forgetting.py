"""Which answers of the cache to discard when something happens in Open WebUI."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.webui.chats import rated_down

# Event → what the label of the answers begins with; the rest is the id of the event's subject.
_DELETIONS = {"chat.deleted": "chat", "chat.deleted_all": "user", "user.deleted": "user"}
_RATINGS = frozenset({"feedback.created", "feedback.updated"})


async def label_to_discard(event_name: str, event: Mapping[str, Any]) -> str | None:
    """The label of the answers to discard: of a chat, of a user, or of a message that got a thumbs-down."""
    subject = str((event.get("subject") or {}).get("id") or "")
    if subject and event_name in _DELETIONS:
        return f"{_DELETIONS[event_name]}:{subject}"
    if subject and event_name in _RATINGS and (message := await rated_down(subject)):
        return f"message:{message}"
    return None
