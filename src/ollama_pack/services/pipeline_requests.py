"""What a pipeline can know of a request, how it tells the next one, and the others of its server.

Open WebUI sends a pipeline the user and no more. What else it knows stands in the `metadata` that an inlet
is shown; OpenAI has fields for two things of it, so they travel on under those names, and any other client
may set them as well: `prompt_cache_key` for the conversation, `service_tier: flex` for what nobody waits for.
What the response cache has to know travels in a field of ours, and so does the user's language.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.base.messages import ENGLISH
from ollama_pack.engines.body import object_at
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.services.webui_tasks import is_background_prompt, is_background_task

CHAT_FIELD, URGENCY_FIELD, BACKGROUND = "prompt_cache_key", "service_tier", "flex"
NOTE_FIELD, LANGUAGE_FIELD = "ollama_pack", "ollama_pack_language"

MOST_LANGUAGE = 200  # characters

# What decides on whether an answer may be kept, and for whom. Nothing of the conversation.
_NOTED = (
    *("assistant_message_id", "automation_id", "chat_id", "direct", "features", "files", "folder_id"),
    *("folder_knowledge", "internal", "message_id", "regeneration_message_id", "sources", "task", "tool_ids"),
    "user_message_id",
)


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and what for.

    Attributes:
        user: whom fairness counts it for; empty: unknown.
        chat: the conversation; empty: unknown.
        background: nobody looks at the answer as it is written.
        from_webui: Open WebUI sent it, and put its own tools into it.
        note: as `noted` has made it; None where no filter has seen the request.
        is_admin: Open WebUI says so of the user.
        language: that the user reads.
    """

    user: str = ""
    chat: str = ""
    background: bool = False
    from_webui: bool = False
    note: Mapping[str, Any] | None = None
    is_admin: bool = False
    language: str = ENGLISH


def asking(body: Mapping[str, Any]) -> Asking:
    """Read a request. What is not of the expected form counts as absent."""
    user, chat, note = body.get("user"), body.get(CHAT_FIELD), body.get(NOTE_FIELD)
    from_webui = isinstance(user, Mapping)
    name = user.get("id") if isinstance(user, Mapping) else user
    return Asking(
        name if isinstance(name, str) else "",
        chat if isinstance(chat, str) else "",
        body.get(URGENCY_FIELD) == BACKGROUND or (from_webui and is_background_prompt(body)),
        from_webui,
        note if isinstance(note, Mapping) else None,
        isinstance(user, Mapping) and user.get("role") == "admin",
        str(body.get(LANGUAGE_FIELD) or ENGLISH)[:MOST_LANGUAGE],
    )


def without_asking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without what is nobody's business further on."""
    ours = {"user", CHAT_FIELD, URGENCY_FIELD, NOTE_FIELD, LANGUAGE_FIELD}
    return {name: value for name, value in body.items() if name not in ours}


def with_hints(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an inlet, with what Open WebUI will not send to the pipeline itself."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        return body
    hints: dict[str, Any] = {}
    if isinstance(chat := metadata.get("chat_id"), str) and chat:
        hints[CHAT_FIELD] = chat
    if is_background_task(metadata.get("task")):
        hints[URGENCY_FIELD] = BACKGROUND
    if language := object_at(metadata, "variables").get("{{USER_LANGUAGE}}"):
        hints[LANGUAGE_FIELD] = str(language)
    return {**body, **hints}


def goes_to_router(body: Mapping[str, Any]) -> bool:
    """Whether `gpu_router` will answer: the model is one of its own, or a row of Open WebUI's on one."""
    model = str(body.get("model") or "")
    row = object_at(body, "metadata", "model", "info")
    base = str(row.get("base_model_id") or "") if row.get("id") == model else ""
    return model.startswith(ROUTER) or base.startswith(ROUTER)


def noted(body: dict[str, Any]) -> dict[str, Any]:
    """The body of an inlet, with a note of what Open WebUI will add to the chat after it, or says of it."""
    metadata = object_at(body, "metadata")
    note = {name: value for name in _NOTED if (value := metadata.get(name))}
    note |= {name: True for name in ("files", "sources", "folder_knowledge") if note.get(name)}
    about = object_at(metadata, "model", "info", "meta")
    if about.get("knowledge"):
        note["model"] = {"info": {"meta": {"knowledge": True}}}
    return {**with_hints(body), NOTE_FIELD: note}


SERVER_MODULE = "main"  # as `uvicorn main:app` calls the server's own


def sibling(name: str) -> Any:
    """A pipeline as it is loaded now; None where there is none of this name."""
    loaded: dict[str, Any] = getattr(sys.modules.get(SERVER_MODULE), "PIPELINE_MODULES", {})
    return loaded.get(name)
