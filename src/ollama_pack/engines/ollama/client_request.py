"""Requests of clients that speak Ollama's API, as OpenAI chat bodies: `from_openai` says their answers.

Ollama's own settings stay under `options`, where Open WebUI and `request_to_ollama` look for them.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import list_in, object_in, objects_in, switch_in, text_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.to_ollama import ollama_settings

# How the base64 of an image begins; Ollama's clients do not say which kind it is.
_IMAGE_STARTS = {"/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
_BESIDE_OPTIONS = ("keep_alive", "think")  # of a request; Open WebUI wants them among the options
_SAME_IN_OPENAI = ("logprobs", "top_logprobs")
# Ollama's names of settings that any engine has → OpenAI's.
_COMMON_SETTINGS = {
    **{name: name for name in ("temperature", "top_p", "seed", "stop", "frequency_penalty")},
    "presence_penalty": "presence_penalty",
    "num_predict": "max_tokens",
}
# What is put elsewhere for Open WebUI's own connection to an Ollama, and would be misread at the top.
_MOVED = frozenset({"max_tokens", "max_completion_tokens", "stop", "response_format", "tools"})


def chat_from_ollama(body: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAI chat body of a `POST /api/chat`.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    messages = objects_in(body.get("messages"), "messages")
    calls: dict[str, list[str]] = {}
    numbers = count()
    converted = [_message(message, f"messages[{at}]", calls, numbers) for at, message in enumerate(messages)]
    tools = list_in(body.get("tools"), "tools")
    return {**_common(body), "messages": converted, **({"tools": tools} if tools else {})}


def chat_from_generate(body: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAI chat body of a `POST /api/generate`: its prompt is the one message of a user.

    Raises:
        ChatBodyError: something in it is not of its form, or needs a model without its template.
    """
    for field in ("suffix", "raw", "template", "context"):
        if body.get(field):
            raise ChatBodyError(
                field, message("cannot be used here: send the prompt alone, or use /api/chat")
            )
    asked = {"role": "user", "content": body.get("prompt") or "", "images": body.get("images")}
    system = body.get("system")
    before = [{"role": "system", "content": text_in(system, "system")}] if system else []
    return {**_common(body), "messages": [*before, _message(asked, "prompt", {}, count())]}


def asks_nothing(body: Mapping[str, Any]) -> bool:
    """Whether a client only wants its model in memory, or out of it."""
    return not body.get("messages") and not body.get("prompt") and not body.get("images")


def fitted_settings(body: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The body with its settings where Open WebUI looks for them, for one of its own connections.

    Args:
        body: an OpenAI chat body, with `options` where the client speaks Ollama's API.
        owner: `ollama` or `openai`: what the connection leads to.

    Raises:
        ChatBodyError: a setting has a form that Ollama cannot use.
    """
    if owner == "ollama":
        return _fitted_to_ollama(body)
    options = object_in(body.get("options"), "options")
    common = {name: options[own] for own, name in _COMMON_SETTINGS.items() if own in options}
    return {**common, **{name: value for name, value in body.items() if name != "options"}}


def _fitted_to_ollama(body: Mapping[str, Any]) -> dict[str, Any]:
    """All settings as `options`: Open WebUI itself puts `format`, `keep_alive` and `think` beside them."""
    settings = ollama_settings(body, "levels")
    tools = settings.pop("tools", None)
    options = settings | settings.pop("options", {})
    if "num_predict" in options:
        # By the name that Open WebUI's own settings have, or a model's row would count more than the client.
        options["max_tokens"] = options.pop("num_predict")
    kept = {name: value for name, value in body.items() if value is not None and name not in _MOVED}
    return kept | ({"tools": tools} if tools else {}) | ({"options": options} if options else {})


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(object_in(body.get("options"), "options"))
    options |= {name: body[name] for name in _BESIDE_OPTIONS if body.get(name) is not None}
    streams = body.get("stream")
    return {
        "model": body.get("model"),
        "stream": True if streams is None else switch_in(streams, "stream"),
        **({"options": options} if options else {}),
        **{name: body[name] for name in _SAME_IN_OPENAI if body.get(name) is not None},
        **_format(body.get("format")),
    }


def _format(value: object) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, Mapping):
        schema = {"name": "answer", "schema": dict(value)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise ChatBodyError("format", message('must be "json" or a JSON schema'))


def _message(
    message: Mapping[str, Any], field: str, calls: dict[str, list[str]], numbers: Iterator[int]
) -> dict[str, Any]:
    """A message in OpenAI's form. `calls` has the ids of each tool's calls that have no result yet."""
    role = text_in(message.get("role"), f"{field}.role")
    content = message.get("content") or ""
    text = text_in(content, field if field == "prompt" else f"{field}.content")
    made: dict[str, Any] = {"role": role, "content": text}
    if images := list_in(message.get("images"), f"{field}.images"):
        parts = [_image_part(image, f"{field}.images[{at}]") for at, image in enumerate(images)]
        made["content"] = [*([{"type": "text", "text": text}] if text else []), *parts]
    if message.get("thinking"):
        made["reasoning_content"] = text_in(message["thinking"], f"{field}.thinking")
    if called := objects_in(message.get("tool_calls"), f"{field}.tool_calls"):
        made["tool_calls"] = [
            _call(call, f"{field}.tool_calls[{at}]", calls, numbers) for at, call in enumerate(called)
        ]
    if role == "tool":
        name = str(message.get("tool_name") or message.get("name") or "")
        waiting = calls.get(name) or [f"call_{name}"]
        identity = str(message.get("tool_call_id") or waiting[0])
        if identity in waiting:
            waiting.remove(identity)
        made["tool_call_id"] = identity
    return made


def _image_part(image: object, field: str) -> dict[str, Any]:
    data = text_in(image, field)
    if not data.startswith("data:"):
        kind = next((kind for start, kind in _IMAGE_STARTS.items() if data.startswith(start)), "png")
        data = f"data:image/{kind};base64,{data}"
    return {"type": "image_url", "image_url": {"url": data}}


def _call(
    call: Mapping[str, Any], field: str, calls: dict[str, list[str]], numbers: Iterator[int]
) -> dict[str, Any]:
    function = object_in(call.get("function"), f"{field}.function")
    name = text_in(function.get("name"), f"{field}.function.name")
    arguments = function.get("arguments")
    identity = str(call.get("id") or f"call_{name}_{next(numbers)}")
    calls.setdefault(name, []).append(identity)
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}
