"""What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.

Ollama leaves figures of zero and empty texts out of its JSON, so absent is a common value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.engines.body import object_at

NANOSECONDS = 1_000_000_000
_FINISH_REASONS = {"length": "length"}  # all others, "load" and "unload" among them, are a plain end
_DURATIONS = ("total_duration", "load_duration")
_FIGURES = ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")
_OPTIONAL_FIGURES = ("prompt_eval_cached_count",)  # since Ollama 0.33.3


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What all parts of one answer have in common.

    Attributes:
        id: of the answer, such as chatcmpl-….
        created: Unix time, in seconds.
        model: the name that the client knows the model by.
    """

    id: str
    created: int
    model: str

    def tagged(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of this answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def openai_message(line: Mapping[str, Any], head: ReplyHead, calls_before: int = 0) -> dict[str, Any]:
    """What a line says, without the role and without what is empty: a message, or the delta of a chunk.

    Args:
        line: a line of `/api/chat`.
        head: of the answer, for the ids of tool calls that have none.
        calls_before: number of tool calls in earlier lines.
    """
    message = line.get("message")
    if not isinstance(message, Mapping):
        return {}
    said: dict[str, Any] = {}
    if content := _text_or_none(message.get("content")):
        said["content"] = content
    if thinking := _text_or_none(message.get("thinking")):
        said["reasoning_content"] = thinking
    if calls := openai_calls(message.get("tool_calls"), head, calls_before):
        said["tool_calls"] = calls
    return said


def openai_calls(calls: object, head: ReplyHead, before: int = 0) -> list[dict[str, Any]]:
    """Tool calls with arguments as text, numbered on from those before: Ollama's own index may start anew."""
    if not isinstance(calls, list):
        return []
    given = (call for call in calls if isinstance(call, Mapping))
    return [_openai_call(call, number, head) for number, call in enumerate(given, start=before)]


def _openai_call(call: Mapping[str, Any], number: int, head: ReplyHead) -> dict[str, Any]:
    given = object_at(call, "function")
    arguments = given.get("arguments") or {}
    compact = (",", ":")
    text = (
        arguments
        if isinstance(arguments, str)
        else json.dumps(arguments, ensure_ascii=False, separators=compact)
    )
    return {
        "index": number,
        "id": _text_or_none(call.get("id")) or f"call_{head.id}_{number}",  # Ollama has ids since 0.12
        "type": "function",
        "function": {"name": _text_or_none(given.get("name")) or "", "arguments": text},
    }


def openai_logprobs(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ollama's list of tokens with their probabilities, as OpenAI's clients read it."""
    found = line.get("logprobs")
    tokens = [token for token in found if isinstance(token, Mapping)] if isinstance(found, list) else []
    if not tokens:
        return None
    return {"content": [{"top_logprobs": [], **token} for token in tokens], "refusal": None}


def finish_reason(line: Mapping[str, Any], *, called: bool) -> str:
    """Why the answer ends; `called` tells whether tools are to be called, of which Ollama says "stop"."""
    reason = line.get("done_reason")
    return "tool_calls" if called else _FINISH_REASONS.get(reason if isinstance(reason, str) else "", "stop")


def openai_usage(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the last line, in every form that Open WebUI shows: tokens, rates, nanoseconds."""
    prompt, answer = _figure(line, "prompt_eval_count"), _figure(line, "eval_count")
    seconds = _figure(line, "total_duration") // NANOSECONDS
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "input_tokens": prompt,
        "output_tokens": answer,
        "response_token/s": _rate(answer, _figure(line, "eval_duration")),
        "prompt_token/s": _rate(prompt, _figure(line, "prompt_eval_duration")),
        **{name: _figure(line, name) for name in (*_DURATIONS, *_FIGURES)},
        **{name: _figure(line, name) for name in _OPTIONAL_FIGURES if name in line},
        "approximate_total": f"{seconds // 3600}h{seconds % 3600 // 60}m{seconds % 60}s",
        "completion_tokens_details": dict.fromkeys(
            ("reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"), 0
        ),
    }


def working_seconds(line: Mapping[str, Any]) -> float:
    """How long a node worked on an answer, without loading the model; 0 where it does not tell."""
    return max(0, _figure(line, "total_duration") - _figure(line, "load_duration")) / NANOSECONDS


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _figure(line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _rate(tokens: int, nanoseconds: int) -> float | str:
    """Tokens a second; "N/A" is what Open WebUI shows where there is none."""
    return round(tokens * NANOSECONDS / nanoseconds, 2) if nanoseconds else "N/A"
