"""Reading a request as Ollama's Go code does: the same refusals, in the same order and words."""

import base64
import binascii
import json
from typing import Any

from harness.ollama_wire import JSON, Model, RefusalError, keep_alive_of

_GO_KINDS = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
_CHAT_FIELDS: dict[str, tuple[type, str]] = {
    "model": (str, "string"),
    "messages": (list, "[]api.Message"),
    "stream": (bool, "bool"),
    "tools": (list, "api.Tools"),
    "options": (dict, "map[string]interface {}"),
}
_GENERATE_FIELDS: dict[str, tuple[type, str]] = {
    "model": (str, "string"),
    "prompt": (str, "string"),
    "system": (str, "string"),
    "stream": (bool, "bool"),
    "images": (list, "[]api.ImageData"),
    "options": (dict, "map[string]interface {}"),
}
_NAME_FIELDS: dict[str, tuple[type, str]] = {"model": (str, "string")}
_MESSAGE_FIELDS: dict[str, tuple[type, str]] = {
    "role": (str, "string"),
    "content": (str, "string"),
    "images": (list, "[]api.ImageData"),
}
_STRUCTS: dict[str, dict[str, tuple[type, str]]] = {
    "ChatRequest": _CHAT_FIELDS,
    "GenerateRequest": _GENERATE_FIELDS,
}
_THINK_LEVELS = ("high", "medium", "low")


def parse(raw: bytes, struct: str) -> JSON:
    """Decode a body into the fields of Ollama's ``api.<struct>``.

    Raises:
        RefusalError: 400, with Go's words: no body, no JSON, or a field of the wrong type.
    """
    value = _decode(raw.decode(errors="replace").strip())
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = _GO_KINDS[type(value)]
        raise RefusalError(400, f"json: cannot unmarshal {kind} into Go value of type api.{struct}")
    _check(value, _STRUCTS.get(struct, _NAME_FIELDS), f"{struct}.")
    for message in value.get("messages") or []:
        _check_message(message, struct)
    _check_images(value)
    _check_think(value.get("think"))
    keep_alive_of(value.get("keep_alive"))
    return value


def _decode(text: str) -> Any:
    if not text:
        raise RefusalError(400, "missing request body")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)  # Go ignores what follows the value, too
    except json.JSONDecodeError as error:
        raise RefusalError(400, _go_syntax_error(text, error)) from None
    return value


def _go_syntax_error(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or "Unterminated" in error.msg:
        return "unexpected EOF"
    place = "beginning of object key string" if "property name" in error.msg else "beginning of value"
    return f"invalid character '{text[error.pos]}' looking for {place}"


def _check(value: JSON, fields: dict[str, tuple[type, str]], path: str) -> None:
    for field, (kind, go_type) in fields.items():
        given = value.get(field)
        if given is not None and not isinstance(given, kind):
            raise RefusalError(400, _mismatch(given, path + field, go_type))


def _check_message(message: object, struct: str) -> None:
    if not isinstance(message, dict):
        raise RefusalError(400, _mismatch(message, f"{struct}.messages", "api.Alias"))
    _check(message, _MESSAGE_FIELDS, f"{struct}.messages.")
    _check_images(message)


def _mismatch(given: object, field: str, go_type: str) -> str:
    return f"json: cannot unmarshal {_GO_KINDS[type(given)]} into Go struct field {field} of type {go_type}"


def _check_images(holder: JSON) -> None:
    for image in holder.get("images") or []:
        try:
            base64.b64decode(image, validate=True)
        except binascii.Error:
            raise RefusalError(400, "illegal base64 data at input byte 0") from None


def _check_think(think: object) -> None:
    if isinstance(think, str) and think not in _THINK_LEVELS:
        allowed = 'must be "high", "medium", "low", true, or false'
        raise RefusalError(400, f"invalid think value: {json.dumps(think)} ({allowed})")


def check_capabilities(model: Model, body: JSON, verb: str) -> None:
    """Refuse what the model cannot do; images on a model without vision pass, as in Ollama.

    Args:
        model: the model asked for.
        body: a parsed chat or generate request.
        verb: "chat" or "generate", for the message.
    """
    asked = json.dumps(body["model"])
    if body.get("think") and "thinking" not in model.capabilities:
        raise RefusalError(400, f"{asked} does not support thinking")
    if "completion" not in model.capabilities:
        raise RefusalError(400, f"{asked} does not support {verb}")
    for field, capability in (("tools", "tools"), ("suffix", "insert")):
        if body.get(field) and capability not in model.capabilities:
            raise RefusalError(400, f"{model.full_name} does not support {capability}")


def check_think_level(body: JSON) -> None:
    """Refuse a level such as "high": only gpt-oss has levels."""
    if isinstance(body.get("think"), str):
        raise RefusalError(400, f"think value {json.dumps(body['think'])} is not supported for this model")


def embed_input(body: JSON) -> list[str]:
    """Return the texts to embed.

    Raises:
        RefusalError: 400, ``input`` is neither text nor a list of texts.
    """
    given = body.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RefusalError(400, "invalid input type")
    return texts
