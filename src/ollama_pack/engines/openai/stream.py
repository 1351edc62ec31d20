"""A streamed answer of an OpenAI-compatible engine, in the one form that this pack gives all answers.

Engines differ in what they call thoughts, in where the figures are, and in how they cut up tool calls. Here a
chunk says something new, a tool call comes whole, and the last chunk that has a choice ends the answer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ollama_pack.engines.body import object_at, text_or_empty
from ollama_pack.engines.calls import PendingCalls
from ollama_pack.engines.content import THOUGHT_FIELDS
from ollama_pack.engines.ollama.stream import UsagePlace
from ollama_pack.engines.ollama.to_openai import ReplyHead

_KEPT_DELTAS = ("annotations", "images", "reasoning_details")  # that Open WebUI reads
_FINISHES = frozenset({"stop", "length", "content_filter"})
_ABORTS = frozenset({"abort", "error"})
_RATES = {"response_token/s": "predicted_per_second", "prompt_token/s": "prompt_per_second"}


class EngineReply:
    """Takes the chunks of one answer and gives those that it is made up of. Nothing here raises."""

    def __init__(self, head: ReplyHead, place: UsagePlace) -> None:
        """Start an answer.

        Args:
            head: what its chunks have in common.
            place: where the figures go.
        """
        self._head = head
        self._place = place
        self._started = False
        self._reason = ""
        self._calls = PendingCalls()
        self._usage: Mapping[str, Any] | None = None
        self._timings: Mapping[str, Any] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it has said something."""
        return self._started

    @property
    def is_whole(self) -> bool:
        """Whether the engine has said why it ends, and it is not that it gave up."""
        return bool(self._reason) and not self.is_aborted

    @property
    def is_aborted(self) -> bool:
        """Whether the engine gave up: vLLM and SGLang do when they are shut down, for instance."""
        return self._reason in _ABORTS

    def take(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a chunk says; nothing where it says nothing, or only a part of a tool call.

        The first part of a tool call gives a chunk with the role alone: it shows when the answer began.
        """
        self._usage = _object_or_none(chunk.get("usage")) or self._usage
        self._timings = _object_or_none(chunk.get("timings")) or self._timings
        choice = _first_choice(chunk)
        reason = choice.get("finish_reason")
        self._reason = reason if isinstance(reason, str) and reason else self._reason
        given = object_at(choice, "delta")
        calls = given.get("tool_calls")
        for fragment in calls if isinstance(calls, list) else ():
            self._calls.take(object_at(fragment))
        delta, logprobs = _engine_delta(given), _object_or_none(choice.get("logprobs"))
        if not delta and not logprobs and (self._started or not self._calls.calls):
            return []
        return [self._chunk(delta, logprobs=logprobs)]

    def end(self) -> list[dict[str, Any]]:
        """The tool calls, the reason for the end and the figures, once nothing more comes."""
        calls = self._calls.whole(self._head.id)
        made = [self._chunk({"tool_calls": calls})] if calls else []
        reason = self._reason if self._reason in _FINISHES else "stop"
        reason = "tool_calls" if calls and reason == "stop" else reason
        figures: dict[str, Any] = {"usage": engine_usage(self._usage, self._timings)}
        figures |= {"timings": dict(self._timings)} if self._timings else {}
        last = self._chunk({}, finish=reason)
        if self._place == "last":
            return [*made, last | figures]
        return [*made, last, {**self._head.tagged("chat.completion.chunk"), "choices": []} | figures]

    def _chunk(
        self, delta: dict[str, Any], *, logprobs: Mapping[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        role = {} if self._started else {"role": "assistant"}
        self._started = True
        choice = {"index": 0, "delta": role | delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head.tagged("chat.completion.chunk"), "choices": [choice]}


def engine_usage(usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The engine's figures, with those that Open WebUI shows beside them; None where there are none.

    Args:
        usage: as OpenAI has it.
        timings: as llama.cpp has it, with tokens per second.
    """
    if not usage:
        return None
    kept = {str(name): value for name, value in usage.items() if value is not None}
    made = {"input_tokens": kept.get("prompt_tokens", 0), "output_tokens": kept.get("completion_tokens", 0)}
    rates = {name: (timings or {}).get(source) for name, source in _RATES.items()}
    made |= {name: round(rate, 2) for name, rate in rates.items() if isinstance(rate, int | float)}
    return made | kept


def _engine_delta(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a delta says, without what is empty: text, thoughts, and what else Open WebUI reads."""
    content, thought = _said_in(given.get("content"))
    thoughts = (text_or_empty(given.get(name)) for name in THOUGHT_FIELDS)
    found = {
        "content": content,
        "reasoning_content": next((other for other in thoughts if other), thought),
        **{name: given.get(name) for name in _KEPT_DELTAS},
    }
    return {name: value for name, value in found.items() if value}


def _said_in(content: object) -> tuple[str, str]:
    """Text and thoughts. Mistral's API sends parts while a model thinks, and text afterwards."""
    if not isinstance(content, list):
        return text_or_empty(content), ""
    parts = [object_at(part) for part in content]
    thoughts = [part["thinking"] for part in parts if isinstance(part.get("thinking"), list)]
    return _texts_of(parts), "".join(_texts_of(map(object_at, inner)) for inner in thoughts)


def _texts_of(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(text_or_empty(part.get("text")) for part in parts)


def _first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """The choice numbered 0, or without a number; empty where there is none."""
    choices = chunk.get("choices")
    given = [object_at(choice) for choice in choices] if isinstance(choices, list) else []
    return next((choice for choice in given if not choice.get("index")), {})


def _object_or_none(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) and value else None
