"""An OpenAI chat body as an OpenAI-compatible engine takes it, without Ollama's and Open WebUI's own fields.

vLLM, SGLang and llama.cpp ignore what they do not know, stricter servers refuse it. So what is known not to
be meant for an engine is left out, and the rest, such as `chat_template_kwargs`, goes along.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import decimal_in, json_in, object_in, objects_in, text_in
from ollama_pack.engines.content import message_parts
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.options import flat_settings, ollama_options
from ollama_pack.engines.tools import offered_tools

# What Open WebUI has in a body for itself, and what its settings hold that no engine is asked.
_OPEN_WEBUI_FIELDS = frozenset(
    {
        *("assistant_message_id", "automation_id", "background_tasks", "chat_id", "chat_variables"),
        *("compact_token_threshold", "features", "files", "filter_ids", "folder_id", "function_calling"),
        *("id", "message_id", "message_ids", "metadata", "model_controls", "model_item", "new_chat"),
        *("note_id", "params", "parent_id", "parent_message", "reasoning_tags"),
        *("regeneration_message_id", "regeneration_prompt", "session_id", "skill_ids"),
        *("stream_delta_chunk_size", "stream_response", "system", "task_id", "terminal_id"),
        *("tool_approval_mode", "tool_ids", "tool_servers", "user_message", "user_message_id"),
        "variables",
    }
)
# What a runner of Ollama is started with, and what else only Ollama knows.
_OLLAMA_FIELDS = frozenset(
    {
        *("f16_kv", "keep_alive", "logits_all", "low_vram", "main_gpu", "num_batch", "num_ctx"),
        *("num_gpu", "num_keep", "num_thread", "numa", "options", "penalize_newline", "shift"),
        *("truncate", "use_mlock", "use_mmap", "vocab_only"),
    }
)
# Set here, or read from elsewhere. `n`: one answer is what a chat shows.
_OWN_FIELDS = frozenset(
    {
        *("custom_params", "format", "logit_bias", "max_completion_tokens", "max_tokens", "messages"),
        *("model", "n", "num_predict", "stream", "stream_options", "think", "tool_choice", "tools"),
    }
)
_LEFT_OUT = _OPEN_WEBUI_FIELDS | _OLLAMA_FIELDS | _OWN_FIELDS
CACHE_KEY = "prompt_cache_key"  # OpenAI's: requests with the same one are likely to begin alike
_OF_TOOLS: Mapping[str, Any] = {"type": "text", "text": "Pictures from the tool results above:"}
_EFFORTS = frozenset({"low", "medium", "high"})


def request_to_engine(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/v1/chat/completions`: streamed, and with the figures at the end.

    What Ollama's fields say goes along under OpenAI's names: `num_predict` as `max_tokens`, `format` as
    `response_format`, `think` as the `enable_thinking` that chat templates know, or as `reasoning_effort`.

    Args:
        body: an OpenAI chat body; Ollama's own fields in it are taken too, as Open WebUI mixes both.

    Raises:
        ChatBodyError: something in the body is not of its form.
    """
    settings = flat_settings(body)
    options = ollama_options(body)
    passed = {
        str(name): value
        for name, value in {**settings, **options}.items()
        if name not in _LEFT_OUT and not (name == "user" and isinstance(value, Mapping))
    }
    return {
        **passed,
        **_engine_penalty(options),
        **_engine_length(options),
        **_engine_bias(settings.get("logit_bias")),
        **_engine_format(settings),
        **_engine_thinking(settings),
        **_engine_tools(body),
        "model": text_in(body.get("model"), "model"),
        "messages": list(_engine_messages(body.get("messages"))),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def without_usage(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for an engine that does not know `stream_options`."""
    return {name: value for name, value in request.items() if name != "stream_options"}


def _engine_penalty(options: Mapping[str, Any]) -> dict[str, float]:
    """llama.cpp has Ollama's name for it, vLLM and SGLang one of their own; each ignores the other's."""
    penalty = options.get("repeat_penalty")
    return {} if penalty is None else {"repetition_penalty": penalty}


def _engine_length(options: Mapping[str, Any]) -> dict[str, int]:
    """`max_tokens`: all engines know it, not all its newer name. Ollama's -1 is no limit."""
    length = options.get("num_predict", 0)
    return {"max_tokens": length} if length > 0 else {}


def _engine_bias(given: object) -> dict[str, dict[str, float]]:
    """`logit_bias`, which Open WebUI's settings have as text: `5432:100, 413:-100`."""
    if not isinstance(given, str):
        bias = object_in(given, "logit_bias")
        return {"logit_bias": dict(bias)} if bias else {}
    pairs = (pair.partition(":") for pair in given.strip().strip("{}").split(",") if pair.strip())
    bias = {token.strip().strip('"'): decimal_in(weight, "logit_bias") for token, _, weight in pairs}
    return {"logit_bias": bias} if bias else {}


def _engine_format(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`response_format` for Ollama's `format`, unless the body has it."""
    wanted = settings.get("format")
    if "response_format" in settings or not wanted:
        return {}
    if isinstance(wanted, str):
        if not wanted.strip().startswith(("{", "[")):
            return {"response_format": {"type": "json_object"}} if wanted == "json" else {}
        try:
            wanted = json_in(wanted)
        except ValueError as error:
            raise ChatBodyError("format", message("is neither json nor a JSON schema")) from error
    schema = {"name": "answer", "schema": object_in(wanted, "format")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _engine_thinking(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What Ollama's `think` asks for. A template that has no such switch ignores it."""
    asked = settings.get("think")
    word = asked.strip().lower() if isinstance(asked, str) else asked
    if isinstance(word, str) and word in _EFFORTS:
        return {"reasoning_effort": word}
    switch = {"true": True, "false": False}.get(word, word) if isinstance(word, str) else word
    if not isinstance(switch, bool):
        return {}
    given = object_in(settings.get("chat_template_kwargs"), "chat_template_kwargs")
    return {"chat_template_kwargs": {"enable_thinking": switch, **given}}


def _engine_tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, where there are any: an empty list, or a choice without tools, is refused by vLLM and OpenAI."""
    offered = offered_tools(body)
    if not offered.tools:
        return {}
    choice = {"type": "function", "function": {"name": offered.name}} if offered.name else offered.mode
    return {"tools": offered.tools, **({} if choice is None else {"tool_choice": choice})}


def _engine_messages(value: object) -> Iterator[dict[str, Any]]:
    """The conversation, in what all chat templates know.

    Pictures have no place in a tool's result there: they come after the results, as if the user showed them.
    """
    pictures: list[Mapping[str, Any]] = []
    for number, turn in enumerate(objects_in(value, "messages")):
        made, found = _engine_message(turn, f"messages[{number}]")
        if pictures and made["role"] == "user":
            said = made.get("content")
            own = said if isinstance(said, list) else [{"type": "text", "text": said or ""}]
            made["content"] = [_OF_TOOLS, *pictures, *own]
        elif pictures and made["role"] != "tool":
            yield {"role": "user", "content": [_OF_TOOLS, *pictures]}
        if made["role"] != "tool":
            pictures = []
        pictures += found
        yield made
    if pictures:
        yield {"role": "user", "content": [_OF_TOOLS, *pictures]}


def _engine_message(
    turn: Mapping[str, Any], field: str
) -> tuple[dict[str, Any], Iterable[Mapping[str, Any]]]:
    """A message, and the pictures in a tool's result."""
    role = text_in(turn.get("role"), f"{field}.role")
    made = {**turn, "role": "system" if role == "developer" else role}
    parts = []
    if role == "tool" or isinstance(turn.get("content"), list):
        parts = [part for _, part in message_parts(turn, field)]
        made["content"] = parts or ""
    if role == "tool":
        made["content"] = "".join(part["text"] for part in parts if part["type"] == "text")
    if "tool_calls" in turn:
        calls = objects_in(turn["tool_calls"], f"{field}.tool_calls")
        made["tool_calls"] = [
            _engine_call(call, f"{field}.tool_calls[{place}]") for place, call in enumerate(calls)
        ]
        if not calls:
            del made["tool_calls"]
    return made, [part for part in parts if role == "tool" and part["type"] == "image_url"]


def _engine_call(call: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A call of an earlier answer, its arguments as the text of an object: engines parse it."""
    function = object_in(call.get("function"), f"{field}.function")
    given = function.get("arguments")
    written = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    arguments = written if written.strip() else "{}"
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}
