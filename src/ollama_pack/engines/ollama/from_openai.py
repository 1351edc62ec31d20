"""An OpenAI chat's answer as Ollama's `POST /api/chat` says it: lines of JSON, or one object."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ollama_pack.engines.body import object_at
from ollama_pack.engines.calls import PendingCalls
from ollama_pack.engines.content import THOUGHT_FIELDS

_REPORTED = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)
_COUNTS = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}

Said = dict[str, Any]


class OllamaReply:
    """One answer. Calls of tools come in pieces, and Ollama says each whole: they are kept until the end."""

    def __init__(self, model: str) -> None:
        """Begin; `model` is the name that the client asked for."""
        self._model = model
        self._calls = PendingCalls()
        self._usage: Mapping[str, Any] = {}
        self._reason = "stop"

    async def lines(self, chunks: AsyncIterable[Mapping[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of a streamed answer."""
        async for chunk in chunks:
            if chunk.get("error"):
                yield {"error": error_text(chunk)}
                return
            said, tokens = self._take(chunk)
            if said or tokens:
                yield self._line(said, tokens)
        if self._calls.calls:
            yield self._line({"tool_calls": self._whole_calls()})
        yield {**self._line({}), **self._end()}

    async def whole(self, chunks: AsyncIterable[Mapping[str, Any]]) -> dict[str, Any]:
        """An answer in one piece."""
        content, thinking, tokens = [], [], []
        async for chunk in chunks:
            said, some = self._take(chunk)
            content.append(said.get("content", ""))
            thinking.append(said.get("thinking", ""))
            tokens += some
        message: Said = {"content": "".join(content)}
        if any(thinking):
            message["thinking"] = "".join(thinking)
        if self._calls.calls:
            message["tool_calls"] = self._whole_calls()
        return {**self._line(message, tokens), **self._end()}

    def _take(self, chunk: Mapping[str, Any]) -> tuple[Said, list[Any]]:
        """What a chunk, or a whole completion, says in words, and the probabilities of its tokens."""
        if isinstance(usage := chunk.get("usage"), Mapping):
            self._usage = usage
        choice: Mapping[str, Any] = next(iter(chunk.get("choices") or ()), {})
        if reason := choice.get("finish_reason"):
            self._reason = "length" if reason == "length" else "stop"
        message = choice.get("delta") or choice.get("message") or {}
        for call in message.get("tool_calls") or ():
            self._calls.take(object_at(call))
        tokens = object_at(choice, "logprobs").get("content")
        content = message.get("content") or ""
        thinking = next((message[name] for name in THOUGHT_FIELDS if message.get(name)), "")
        said = {"content": content, "thinking": thinking}
        return {name: text for name, text in said.items() if text}, tokens or []

    def _whole_calls(self) -> list[dict[str, Any]]:
        return [
            {"function": {"index": number, "name": call.name, "arguments": _arguments(call.arguments)}}
            for number, call in enumerate(self._calls.calls)
        ]

    def _line(self, said: Said, tokens: list[Any] | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        message = {"role": "assistant", "content": "", **said}
        line = {"model": self._model, "created_at": now, "message": message, "done": False}
        return line | ({"logprobs": tokens} if tokens else {})

    def _end(self) -> dict[str, Any]:
        counted = {own: self._usage[name] for own, name in _COUNTS.items() if name in self._usage}
        reported = {name: self._usage[name] for name in _REPORTED if self._usage.get(name)}
        return {"done": True, "done_reason": self._reason, **counted, **reported}


def error_text(body: Mapping[str, Any]) -> str:
    """The sentence of an error in OpenAI's form."""
    error = body.get("error")
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("detail") or error)
    return str(error or body)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}
