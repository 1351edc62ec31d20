"""The parts of a message, in the one form that this pack works with, whatever a client calls them.

OpenAI's chat and Responses APIs, Anthropic's API and LangChain each have their own names for text and images.
Clients also send back what another model thought, or marks for a provider's cache: no model reads those.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_pack.engines.body import list_in, object_in, text_in

# Type of a part → the field with its text.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # engines' three names for one thing
# `redacted_thinking`, `reasoning.encrypted`, `thought_signature`: any type with one of these words in it.
_THOUGHT_WORDS = ("thinking", "reasoning", "thought")
_MARKS = frozenset(
    {"summary_text", "cache_point", "cachepoint", "step-start", "step-finish", "item_reference"}
)
# A call of a tool, which OpenAI has in `tool_calls`; some clients send it there and in the content too.
_CALL_PARTS = frozenset({"tool_use", "tool_call", "function_call"})


def message_parts(message: Mapping[str, Any], field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each part of a message's content that is meant for a model, with its place for error messages.

    Text becomes `{"type": "text", "text": …}` and an image `{"type": "image_url", "image_url": {"url": …}}`.
    Other types are passed on as they are.

    Args:
        message: of an OpenAI chat body.
        field: where it stands, such as `messages[2]`.

    Raises:
        ChatBodyError: the content is not of its form.
    """
    content, field = message.get("content"), f"{field}.content"
    if content is None:
        return
    if isinstance(content, str):
        yield field, {"type": "text", "text": content}
        return
    for number, given in enumerate(list_in(content, field)):
        place = f"{field}[{number}]"
        part = {"type": "text", "text": given} if isinstance(given, str) else object_in(given, place)
        kind = "text" if "type" not in part and "text" in part else text_in(part.get("type"), f"{place}.type")
        if not _is_for_no_model(kind) and not (kind in _CALL_PARTS and message.get("tool_calls")):
            yield place, _plain_part(part, kind, place)


def _is_for_no_model(kind: str) -> bool:
    lowered = kind.lower()
    return lowered in _MARKS or any(word in lowered for word in _THOUGHT_WORDS)


def _plain_part(part: Mapping[str, Any], kind: str, field: str) -> Mapping[str, Any]:
    if kind in _TEXT_PARTS:
        text = text_in(part.get(_TEXT_PARTS[kind]), f"{field}.{_TEXT_PARTS[kind]}")
        return part if kind == part.get("type") == "text" else {"type": "text", "text": text}
    if kind not in IMAGE_PARTS:
        return part
    given = part.get("image_url")
    if isinstance(given, Mapping):
        text_in(given.get("url"), f"{field}.image_url")
        return part if kind == "image_url" else {"type": "image_url", "image_url": given}
    address = _image_address(part) if kind == "image" and given is None else given
    return {"type": "image_url", "image_url": {"url": text_in(address, f"{field}.image_url")}}


def _image_address(part: Mapping[str, Any]) -> object:
    """The address in an `image` part: Anthropic's has it in `source`, LangChain's has it itself."""
    source = part.get("source")
    source = source if isinstance(source, Mapping) else part
    data = next((source[name] for name in ("data", "base64") if isinstance(source.get(name), str)), None)
    if data is None:
        return source.get("url", part.get("image"))
    kind = source.get("media_type") or source.get("mime_type") or "image/png"
    return f"data:{kind};base64,{data}"
