"""What makes two requests the same: the key of a cached answer.

Everything in the final chat body is part of the key unless it is on one of the short lists below, so that a
field that nobody has thought of leads to a miss and never to another request's answer.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from ollama_pack.cache.canonical import NotCoveredError, StandIn, canonical_bytes
from ollama_pack.cache.keyring import Keyring, digest_of

KEY_VERSION = 2  # to be raised with any change of what follows; the golden vectors hold it

# Who asks, in which chat, and how the answer is to be sent: none of it reaches the model.
IGNORED_FIELDS = frozenset(
    {
        "stream",
        "stream_options",
        "keep_alive",  # for how long the model stays loaded afterwards
        "metadata",  # Open WebUI's own state, and in OpenAI's API the client's own tags
        "user",
        "id",
        "chat_id",
        "session_id",
        "message_id",
        "message_ids",
        "parent_id",
        "user_message_id",
        "assistant_message_id",
        "regeneration_message_id",
        "background_tasks",  # which of title, tags and follow-ups to make afterwards
    }
)
IGNORED_IN_OPTIONS = frozenset({"keep_alive"})  # Open WebUI puts a row's parameter there
IGNORED_IN_MESSAGES = frozenset({"id"})
_PLAIN = frozenset({"role", "content"})  # a message with no more than these, and a text, is taken as it is

_MEDIA = ("image_url", "video_url", "audio_url")  # parts of a message whose content is behind a URL


class Slot(NamedTuple):
    """Where an answer is kept.

    Attributes:
        scope: the tag of the scope; all of one scope is on one node of a cluster.
        name: version and HMAC of the request, in hex.
    """

    scope: str
    name: str


@dataclass(frozen=True, slots=True)
class NotCacheable:
    """A request whose answer must not be kept, or could not be told from another's.

    Attributes:
        reason: a few words for a counter or a status line; no text of the conversation.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class AnswerBasis:
    """All that an answer depends on.

    Attributes:
        scope: as `scope_for` gives it.
        body: the final OpenAI chat body, after every filter.
        digest: of the model's manifest, so that a re-pulled model has other keys; empty for an engine that
            has no digests, None where it should have one that is not known.
        preset: what is applied to the body after this: parameters and system prompt of the model's row, and
            the model under it.
        knowledge: ids and versions of what was looked up for it, if that is not in the body.
        contents: SHA-256 by reference, for images and files that the body only refers to.
        usage: the client wants figures, of an engine that gives them only to those who ask.
    """

    scope: str
    body: Mapping[str, Any]
    digest: str | None
    preset: Mapping[str, Any] = field(default_factory=dict)
    knowledge: tuple[str, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    usage: bool = False


def slot_of(basis: AnswerBasis, keyring: Keyring) -> Slot | NotCacheable:
    """The slot of a request's answer. Pure, and nothing of the request can be read from it.

    A body with megabytes of images takes milliseconds for each: call it in a thread then.
    """
    try:
        fields = canonical_bytes(_fields_of(basis))
    except NotCoveredError as error:
        return NotCacheable(error.reason)
    return Slot(keyring.scope_tag(basis.scope), keyring.slot_name(KEY_VERSION, fields))


def _fields_of(basis: AnswerBasis) -> dict[str, Any]:
    if reason := _why_not(basis):
        raise NotCoveredError(reason)
    body = {name: value for name, value in basis.body.items() if name not in IGNORED_FIELDS}
    body["messages"] = _messages_of(basis)
    if isinstance(options := body.get("options"), dict):
        body["options"] = {name: value for name, value in options.items() if name not in IGNORED_IN_OPTIONS}
    return {
        "scope": basis.scope,
        "digest": basis.digest,
        "preset": basis.preset,
        "knowledge": basis.knowledge,
        "body": body,
        **({"usage": True} if basis.usage else {}),
    }


def _why_not(basis: AnswerBasis) -> str:
    """Why an answer must not be kept, whatever else the body holds; empty when nothing speaks against it."""
    model, messages = basis.body.get("model"), basis.body.get("messages")
    if not basis.scope:
        return "no scope"
    if basis.digest is None:
        return "model digest unknown"
    if not isinstance(model, str) or not model:
        return "no model"
    if not isinstance(messages, list) or not messages:
        return "no messages"
    for name, (reason, holds) in _AGAINST.items():
        if name in basis.body and holds(basis.body[name]):
            return reason
    return ""


def _engine_tools(tools: object) -> Iterator[bool]:
    """For each tool, whether the engine itself runs it, with results that nobody here knows."""
    for tool in tools if isinstance(tools, list) else ():
        yield not isinstance(tool, dict) or tool.get("type", "function") != "function"


def _texts(values: object) -> Iterator[str]:
    yield from (str(value) for value in (values if isinstance(values, list) else ()))


# Of each field that may speak against keeping an answer: why, and whether its value does.
_AGAINST: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "n": ("several choices", lambda value: value not in (None, 1)),
    "logprobs": ("log probabilities", bool),
    "top_logprobs": ("log probabilities", bool),
    "audio": ("an answer that is not text", bool),
    "modalities": ("an answer that is not text", lambda value: bool(set(_texts(value)) - {"text"})),
    "previous_response_id": ("a conversation kept by the engine", bool),
    "conversation": ("a conversation kept by the engine", bool),
    "web_search_options": ("a search of the engine", lambda _: True),
    "tools": ("a search of the engine", lambda value: any(_engine_tools(value))),
}


def _messages_of(basis: AnswerBasis) -> list[dict[str, Any]]:
    calls: dict[str, StandIn] = {}
    return [_message_of(message, calls, basis.contents) for message in basis.body["messages"]]


def _message_of(message: object, calls: dict[str, StandIn], contents: Mapping[str, str]) -> dict[str, Any]:
    """A message without ids of its own; ids of tool calls become their number, images their content."""
    if not isinstance(message, dict):
        raise NotCoveredError("a message that is not an object")
    if type(message) is dict and message.keys() <= _PLAIN and isinstance(message.get("content"), str):
        return message
    found = dict(message)
    for name in IGNORED_IN_MESSAGES:
        found.pop(name, None)
    if isinstance(called := found.get("tool_calls"), list):
        found["tool_calls"] = [_call_of(call, calls) for call in called]
    if isinstance(answered := found.get("tool_call_id"), str):
        found["tool_call_id"] = _call_number(answered, calls)
    if isinstance(parts := found.get("content"), list):
        found["content"] = [_part_of(part, contents) for part in parts]
    if isinstance(images := found.get("images"), list):  # Ollama's form
        found["images"] = [_image_of(image, contents) for image in images]
    return found


def _call_of(call: object, calls: dict[str, StandIn]) -> object:
    if not isinstance(call, dict) or not isinstance(name := call.get("id"), str):
        return call
    return {**call, "id": _call_number(name, calls)}


def _call_number(name: str, calls: dict[str, StandIn]) -> StandIn:
    """A call's place among the calls: engines draw ids at random, and only what belongs together matters."""
    return calls.setdefault(name, StandIn(f"call {len(calls)}"))


def _part_of(part: object, contents: Mapping[str, str]) -> object:
    if not isinstance(part, dict):
        return part
    found = dict(part)
    for name in _MEDIA:
        if name in found:
            found[name] = _media_of(found[name], contents)
    if isinstance(file := found.get("file"), dict) and "file_id" in file:
        found["file"] = {**file, "file_id": _referred(file["file_id"], contents)}
    return found


def _media_of(media: object, contents: Mapping[str, str]) -> dict[str, Any]:
    """`{"url": …}` or the URL alone: the same."""
    given = media if isinstance(media, dict) else {"url": media}
    url = given.get("url")
    inline = isinstance(url, str) and url[:5].lower() == "data:"
    return {**given, "url": _content_of_data_url(str(url)) if inline else _referred(url, contents)}


def _image_of(image: object, contents: Mapping[str, str]) -> StandIn:
    if not isinstance(image, str):
        raise NotCoveredError("an image that cannot be read")
    if image in contents or "://" in image:
        return _referred(image, contents)
    return StandIn(digest_of(_from_base64(image.encode("utf-8", "surrogatepass"))))


def _content_of_data_url(url: str) -> StandIn:
    """What a `data:` URL (RFC 2397) holds. Its media type is left out: engines look at the content."""
    head, comma, payload = url.partition(",")
    if not comma:
        raise NotCoveredError("an image that cannot be read")
    content = unquote_to_bytes(payload)
    return StandIn(digest_of(_from_base64(content) if head.lower().endswith(";base64") else content))


def _from_base64(coded: bytes) -> bytes:
    try:  # spaces and line ends mean nothing; anything else that is strange, engines may read differently
        return base64.b64decode(b"".join(coded.split()), validate=True)
    except binascii.Error:
        raise NotCoveredError("an image that cannot be read") from None


def _referred(reference: object, contents: Mapping[str, str]) -> StandIn:
    """What is behind a reference may change; only who has read it can say what it was."""
    if not isinstance(reference, str) or reference not in contents:
        raise NotCoveredError("an image or file that is only referred to")
    return StandIn(contents[reference])
