"""Chats of the running Open WebUI, and their ratings. Imports `open_webui` when called, not before."""

from collections.abc import Mapping
from typing import Any

# Event → what the label of the answers begins with; the rest is the id of the event's subject.
_DELETIONS = {"chat.deleted": "chat", "chat.deleted_all": "user", "user.deleted": "user"}
_RATINGS = frozenset({"feedback.created", "feedback.updated"})
_UNSAVED = ("temporary:", "local:", "channel:")  # so ids begin of chats that are not in the table


async def other_answers(metadata: Mapping[str, Any], model: str) -> frozenset[str]:
    """The messages of other answers of this model to the question, so that a user wants to see another one.

    So it is when somebody presses "regenerate": Open WebUI asks for one more child of the same message; and
    when somebody has the same model twice, side by side.

    Args:
        metadata: of the request.
        model: that was asked for, where the message that waits for the answer does not tell.
    """
    named = frozenset(
        {str(metadata["regeneration_message_id"])} if metadata.get("regeneration_message_id") else ()
    )
    chat, parent = str(metadata.get("chat_id") or ""), metadata.get("user_message_id")
    children = (metadata.get("user_message") or {}).get("childrenIds")
    is_first = isinstance(children, list) and set(children) <= {metadata.get("message_id")}
    if named or not chat or chat.startswith(_UNSAVED) or not parent or is_first:
        return named

    from open_webui.models.chats import Chats  # noqa: PLC0415 - see the top of this module

    messages = await Chats.get_messages_map_by_chat_id(chat) or {}
    asked = (messages.get(str(metadata.get("message_id"))) or {}).get("model") or model
    return frozenset(
        str(name)
        for name, message in messages.items()
        if name != metadata.get("message_id")
        and message.get("parentId") == parent
        and message.get("role") == "assistant"
        and message.get("model") == asked
    )


async def rated_down(feedback_id: str) -> str | None:
    """The message that a feedback is about, if its thumb points down."""
    from open_webui.models.feedbacks import Feedbacks  # noqa: PLC0415

    feedback = await Feedbacks.get_feedback_by_id(feedback_id)
    if feedback is None or (feedback.data or {}).get("rating") != -1:
        return None
    message = (feedback.meta or {}).get("message_id")
    return message if isinstance(message, str) else None


async def label_to_discard(event_name: str, event: Mapping[str, Any]) -> str | None:
    """The label of the answers to discard: of a chat, of a user, or of a message that got a thumbs-down.

    A folder may be deleted with its chats. Which they were no event says, so all answers of who did it go. Of
    an admin who deletes another user's folder the event does not say whose it was.
    """
    subject = str((event.get("subject") or {}).get("id") or "")
    if event_name == "folder.deleted" and (event.get("data") or {}).get("delete_contents"):
        return f"user:{owner}" if (owner := (event.get("actor") or {}).get("id")) else None
    if subject and event_name in _DELETIONS:
        return f"{_DELETIONS[event_name]}:{subject}"
    if subject and event_name in _RATINGS and (message := await rated_down(subject)):
        return f"message:{message}"
    return None
