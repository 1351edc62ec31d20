"""The conversation of an OpenAI chat body, as Ollama wants it."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import json_in, object_in, objects_in, text_in
from ollama_pack.engines.content import message_parts
from ollama_pack.engines.errors import ChatBodyError

_ROLES = {"developer": "system", "function": "tool"}
_THINKING_FIELDS = ("thinking", "reasoning_content", "reasoning")


def ollama_messages(value: object) -> list[dict[str, Any]]:
    """Ollama's messages for OpenAI's.

    Every message has `content`, as text. Texts of several parts are put end to end. Images are base64 without
    a head, arguments of tool calls are objects, and a tool's result tells by name which tool it is from.

    Raises:
        ChatBodyError: something in them has no place in Ollama's form.
    """
    tools: dict[str, str] = {}  # id of a call → name of the tool; an id that comes again means the later call
    converted = []
    for number, one in enumerate(objects_in(value, "messages")):
        converted.append(_ollama_message(one, f"messages[{number}]", tools))
        for call in converted[-1].get("tool_calls", ()):
            tools[call.get("id", "")] = call["function"]["name"]
    return converted


def _ollama_message(turn: Mapping[str, Any], field: str, tools: Mapping[str, str]) -> dict[str, Any]:
    role = text_in(turn.get("role"), f"{field}.role")
    parts = [_content_part(part, place) for place, part in message_parts(turn, field)]
    parts += [("image", image) for image in _own_images(turn, field)]
    texts, images = ([value for kind, value in parts if kind == wanted] for wanted in ("text", "image"))
    return {
        "role": _ROLES.get(role, role),
        "content": "".join(texts),
        **_thinking(turn),
        **({"images": images} if images else {}),
        **_tool_calls(turn, field),
        **(_tool_result(turn, field, tools) if _ROLES.get(role, role) == "tool" else {}),
    }


def _content_part(part: Mapping[str, Any], field: str) -> tuple[str, str]:
    """A part of a content as ("text", text) or ("image", base64)."""
    if "text" in part and part.get("type", "text") == "text":
        return "text", part["text"]
    if part["type"] == "image_url":
        return "image", _image(part["image_url"]["url"], f"{field}.image_url")
    raise ChatBodyError(
        field, message("is of the type {kind!r}: Ollama takes text and images only", kind=part["type"][:40])
    )


def _own_images(turn: Mapping[str, Any], field: str) -> Iterator[str]:
    """The images of a message that already has Ollama's own field for them."""
    images = turn.get("images")
    if images is not None and not isinstance(images, list):
        raise ChatBodyError(f"{field}.images", message("must be a list of images in base64"))
    for number, image in enumerate(images or ()):
        yield _image(text_in(image, f"{field}.images[{number}]"), f"{field}.images[{number}]")


def _image(address: str, field: str) -> str:
    """The base64 of a data URL, or of what is base64 already."""
    scheme = address[:8].lower()
    if scheme.startswith(("http://", "https://")):
        raise ChatBodyError(
            field, message("is a link: Ollama fetches none, so send the image itself as a data URL")
        )
    head, comma, data = address.partition(",") if scheme.startswith("data:") else ("", "", address)
    if comma and not head.lower().endswith(";base64"):
        raise ChatBodyError(
            field, message("is a data URL without base64: encode it as data:image/…;base64,…")
        )
    data = "".join(data.split())
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError:  # binascii.Error, and characters that are not ASCII
        raise ChatBodyError(field, message("is not base64: send the image as a data URL")) from None
    if not decoded:
        raise ChatBodyError(field, message("is empty"))
    return data


def _thinking(turn: Mapping[str, Any]) -> dict[str, str]:
    given = (turn.get(name) for name in _THINKING_FIELDS)
    thought = next((text for text in given if isinstance(text, str) and text), "")
    return {"thinking": thought} if thought else {}


def _tool_calls(turn: Mapping[str, Any], field: str) -> dict[str, list[dict[str, Any]]]:
    calls = objects_in(turn.get("tool_calls"), f"{field}.tool_calls")
    converted = [
        _ollama_call(call, number, f"{field}.tool_calls[{number}]") for number, call in enumerate(calls)
    ]
    if not calls and turn.get("function_call"):  # OpenAI's old form, in a conversation that is older
        converted = [{"function": _ollama_function(turn["function_call"], 0, f"{field}.function_call")}]
    return {"tool_calls": converted} if converted else {}


def _ollama_call(call: Mapping[str, Any], number: int, field: str) -> dict[str, Any]:
    identity = call.get("id")
    function = object_in(call.get("function"), f"{field}.function")
    index = call.get("index", function.get("index"))
    place = index if isinstance(index, int) and not isinstance(index, bool) else number
    return {
        **({} if identity is None else {"id": text_in(identity, f"{field}.id")}),
        "function": _ollama_function(function, place, f"{field}.function"),
    }


def _ollama_function(given: object, place: int, field: str) -> dict[str, Any]:
    function = object_in(given, field)
    return {
        "index": place,
        "name": text_in(function.get("name"), f"{field}.name"),
        "arguments": _arguments(function.get("arguments"), f"{field}.arguments"),
    }


def _arguments(given: object, field: str) -> Mapping[str, Any]:
    """Arguments as an object; OpenAI writes that object out as text, and models leave it empty for none."""
    if isinstance(given, str):
        try:
            given = json_in(given) if given.strip() else {}
        except ValueError as error:
            raise ChatBodyError(
                field, message("is not JSON: an earlier answer was cut off or made up")
            ) from error
    return object_in(given, field)


def _tool_result(turn: Mapping[str, Any], field: str, tools: Mapping[str, str]) -> dict[str, str]:
    identity = turn.get("tool_call_id")
    named = turn.get("tool_name") or (tools.get(identity) if isinstance(identity, str) else None)
    found = {"tool_name": named or turn.get("name"), "tool_call_id": identity}
    return {name: text_in(value, f"{field}.{name}") for name, value in found.items() if value}
