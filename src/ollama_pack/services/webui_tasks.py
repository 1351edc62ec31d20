"""Which of Open WebUI's own calls nobody waits for: titles and the like come behind people.

It has others that somebody waits for, and these count as a person's: search and retrieval queries, image
prompts, autocompletion, *Merge responses*, the choice of tools, the summary of a long conversation.
"""

from collections.abc import Mapping
from typing import Any

# Values of `metadata.task`; what is not among them is waited for.
_NOBODY_WAITS = frozenset(
    {"title_generation", "tags_generation", "follow_up_generation", "emoji_generation", "memory_review"}
)
# How the prompts of these begin, in 0.11.2 and since, where an admin has not changed them.
_PROMPT_BEGINNINGS = (
    "### Task:\nGenerate a concise",
    "### Task:\nGenerate 1-3 broad tags",
    "### Task:\nSuggest 3-5 relevant follow-up",
    "### Task:\nPredict 3-5 useful messages",
    "Your task is to reflect the speaker's likely facial expression",
)


def is_asked_for(task: object) -> bool:
    """Whether a call with this `metadata.task` is a chat of its own: *Merge responses* is."""
    return task == "moa_response_generation"


def is_background_task(task: object) -> bool:
    """Whether nobody waits for a call with this `metadata.task`."""
    return isinstance(task, str) and task in _NOBODY_WAITS


def is_background_prompt(body: Mapping[str, Any]) -> bool:
    """Whether an OpenAI chat body is a title and the like, by its last message: the task is not in it."""
    messages = body.get("messages")
    if body.get("stream") or not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    content = last.get("content") if isinstance(last, Mapping) else None
    return isinstance(content, str) and content.startswith(_PROMPT_BEGINNINGS)
