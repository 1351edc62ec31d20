"""An OpenAI chat request as Ollama's `POST /api/chat` wants it."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from ollama_pack.base.messages import message
from ollama_pack.engines.body import decimal_in, json_in, object_in, switch_in, text_in, whole_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.messages import ollama_messages
from ollama_pack.engines.ollama.options import flat_settings, ollama_options
from ollama_pack.engines.ollama.schema import check_schema
from ollama_pack.engines.tools import offered_tools

# What `think` a model takes: none, true and false, or also how much.
Thinking = Literal["never", "switch", "levels"]

MAX_TOP_LOGPROBS = 20
# Of any length, as a client has written it: each digit is looked at once.
_GO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d++(?:\.\d*+)?+|\.\d++)(?:ns|us|µs|ms|s|m|h))++)")
_KEEP_ALIVE_FORMS = message('must be seconds or a duration such as "5m"')
# Of all models only gpt-oss has levels; with others Ollama refuses them. `details.family` tells.
_FAMILIES_WITH_LEVELS = frozenset({"gptoss", "gpt-oss"})
# OpenAI's efforts → Ollama's levels.
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def thinking_of(capabilities: Collection[str], family: str) -> Thinking:
    """What `think` a model takes, by what `/api/show` says of it."""
    if "thinking" not in capabilities:
        return "never"
    return "levels" if family in _FAMILIES_WITH_LEVELS else "switch"


def request_to_ollama(body: Mapping[str, Any], thinking: Thinking | None = None) -> dict[str, Any]:
    """The body for `/api/chat` that asks what an OpenAI chat body asks.

    Fields that Ollama has no word for (`metadata`, `user`, `n`, `logit_bias`, `parallel_tool_calls`, …) are
    left out. `stream` is always there, because Ollama streams unless told otherwise.

    Args:
        body: an OpenAI chat body; Ollama's own fields in it are taken too, as Open WebUI mixes both.
        thinking: what `think` the model takes. None: not known; then `reasoning_effort` is left out, unless
            it is "none", because a wrong `think` is refused and a model that can think does so unasked.

    Raises:
        ChatBodyError: something in the body cannot be put into Ollama's form.
    """
    return {
        "model": text_in(body.get("model"), "model"),
        "messages": ollama_messages(body.get("messages")),
        "stream": bool(body.get("stream")),
        **ollama_settings(body, thinking),
        **_logprobs(body),
    }


def ollama_settings(body: Mapping[str, Any], thinking: Thinking | None = None) -> dict[str, Any]:
    """What an OpenAI chat body sets, in Ollama's form: `tools`, `format`, `think`, `keep_alive`, `options`.

    What it does not set is left out. Arguments and errors are those of `request_to_ollama`.
    """
    settings = flat_settings(body)
    found = {
        "tools": _tools(body),
        "format": _format(settings),
        "think": _think(settings, thinking),
        "keep_alive": _keep_alive(settings.get("keep_alive")),
        "options": ollama_options(body) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _tools(body: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The tools that the model may call. Ollama cannot be made to call one, only which there are."""
    offered = offered_tools(body)
    # A client that knows only `functions` awaits the answer's `function_call`, too.
    if body.get("functions") and not offered.tools and body.get("function_call") != "none":
        raise ChatBodyError(
            "functions", message("is OpenAI's old form, which Ollama does not have: send `tools` instead")
        )
    return None if offered.mode == "none" else offered.tools or None


def _format(settings: Mapping[str, Any]) -> str | Mapping[str, Any] | None:
    """Ollama's `format`: "json", or a JSON schema."""
    wanted = object_in(settings.get("response_format"), "response_format")
    match wanted.get("type"):
        case "json_schema":
            given = object_in(wanted.get("json_schema"), "response_format.json_schema")
            schema = object_in(given.get("schema"), "response_format.json_schema.schema")
            check_schema(schema, "response_format.json_schema.schema")
            return schema or "json"
        case "json_object":
            return "json"
        case "text":
            return None
        case None:
            return _own_format(settings.get("format"))
    raise ChatBodyError("response_format.type", message("must be text, json_object or json_schema"))


def _own_format(value: object) -> str | Mapping[str, Any] | None:
    """`format` as Ollama itself names it. Open WebUI's settings have a schema as text."""
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        try:
            value = json_in(value)
        except ValueError as error:
            raise ChatBodyError("format", message("is neither json nor a JSON schema")) from error
    if isinstance(value, str):
        if value not in {"", "json"}:
            raise ChatBodyError("format", message('must be "json" or a JSON schema'))
        return value or None
    schema = object_in(value, "format")
    check_schema(schema, "format")
    return schema or None


def _think(settings: Mapping[str, Any], thinking: Thinking | None) -> bool | str | None:
    """`think` as asked for, true for a level where the model has none; an effort only where it is safe."""
    explicit = "think" in settings
    asked = _level_in(settings["think"]) if explicit else _effort(settings.get("reasoning_effort"))
    if isinstance(asked, str) and thinking == "switch":
        return True
    if isinstance(asked, str) and thinking != "levels" and not explicit:
        return None
    return asked


def _level_in(value: object) -> str | bool:
    level = _LEVELS.get(value.lower()) if isinstance(value, str) else None
    return level or switch_in(value, "think")


def _effort(value: object) -> str | bool | None:
    if value is None:
        return None
    effort = text_in(value, "reasoning_effort").lower()
    if effort != "none" and effort not in _LEVELS:
        raise ChatBodyError(
            "reasoning_effort", message("must be one of none, {levels}", levels=", ".join(_LEVELS))
        )
    return _LEVELS.get(effort, False)


def _keep_alive(value: object) -> str | float | None:
    """Seconds, or Go's "5m30s". Open WebUI's settings have seconds as text, which Ollama would refuse."""
    if isinstance(value, str):
        try:
            value = json_in(value)
        except ValueError:
            if not isinstance(value, str) or not value.strip():
                return None
            if not _GO_DURATION.fullmatch(value):
                raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS) from None
            return value
    if value is None or isinstance(value, str):
        if value and not _GO_DURATION.fullmatch(value):
            raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS)
        return value or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        decimal_in(value, "keep_alive")  # refuses what is beyond every number
        return value
    raise ChatBodyError("keep_alive", _KEEP_ALIVE_FORMS)


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    given = {"logprobs": switch_in, "top_logprobs": whole_in}
    found = {name: read(body[name], name) for name, read in given.items() if body.get(name) is not None}
    if not 0 <= found.get("top_logprobs", 0) <= MAX_TOP_LOGPROBS:
        raise ChatBodyError("top_logprobs", message("must be from 0 to {limit}", limit=MAX_TOP_LOGPROBS))
    return found
