"""What an alias table may ask about a request, read off an OpenAI chat body."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.engines.body import object_at
from ollama_pack.engines.content import IMAGE_PARTS

# English runs at about four bytes a token; Chinese at three bytes a character and a little under one token.
BYTES_PER_TOKEN = 4
# What a vision model spends on one image of common size (LLaVA 1.5: 24 x 24 patches).
TOKENS_PER_IMAGE = 576


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """The facts of one request that decide between rows.

    Attributes:
        model: the name that the client asked for.
        images: whether a message carries an image.
        tools: whether the model may call tools.
        tokens: estimated length of the prompt, in tokens.
        groups: names of the groups that the user belongs to.
    """

    model: str
    images: bool = False
    tools: bool = False
    tokens: int = 0
    groups: frozenset[str] = frozenset()


def request_facts(body: Mapping[str, Any], model: str, groups: Iterable[str] = ()) -> RequestFacts:
    """Read the facts of a chat body. What is not of the expected form counts as absent, never as an error."""
    messages = _mappings(body.get("messages"))
    images = sum(map(_count_images, messages))
    tools = _items(body.get("tools"))
    text = sum(map(_text_bytes, messages)) + sum(map(_bytes_of, tools))
    return RequestFacts(
        model=model,
        images=images > 0,
        tools=bool(tools or _items(body.get("tool_ids"))),
        tokens=math.ceil(text / BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE,
        groups=frozenset(groups),
    )


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _items(value) if isinstance(item, Mapping)]


def _count_images(message: Mapping[str, Any]) -> int:
    inline = sum(1 for part in _mappings(message.get("content")) if part.get("type") in IMAGE_PARTS)
    return inline + len(_items(message.get("images")))


def _text_bytes(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    texts = [content, *(part.get("text") for part in _mappings(content))]
    # What an agent writes stands in its calls.
    calls = [object_at(call, "function").get("arguments") or "" for call in _items(message.get("tool_calls"))]
    return sum(_bytes_of(text) for text in texts if isinstance(text, str)) + sum(map(_bytes_of, calls))


def _bytes_of(value: object) -> int:
    """The bytes of a text; of something else, about those that it is written with."""
    return len(str(value).encode(errors="replace"))
