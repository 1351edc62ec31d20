"""From the chunks of a generation to what may be kept of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_pack.cache.entry import Entry
from ollama_pack.engines.content import THOUGHT_FIELDS

# Of a chunk and its delta, what is understood. An answer with anything else cannot be told again faithfully,
# and so it is not kept.
_CHUNK_FIELDS = {
    *("error", "id", "object", "created", "model", "choices", "usage", "sources", "event", "ollama_pack"),
    *("system_fingerprint", "service_tier", "timings", "selected_model_id", "provider", "obfuscation"),
}
_FINISHES = ("length", "tool_calls", "function_call", "content_filter", "load", "unload", "error")
_DELTA_FIELDS = {"role", "content", "tool_calls", "refusal", *THOUGHT_FIELDS}


class AnswerCollector:
    """Takes the chunks of one generation as they pass, and says in the end what they were.

    Attributes:
        usage: the last figures that came; None before.
        finish_reason: why the model stopped; empty while it has not.
    """

    def __init__(self, *, needs_usage: bool = False, answerer: str = "") -> None:
        """Know of nothing yet; `needs_usage` and `answerer`: see `Question`."""
        self._needs_usage = needs_usage
        self._answerer = answerer
        self._answered = ""  # the model that the router says has answered
        self.usage: dict[str, Any] | None = None
        self.finish_reason = ""
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._sources: list[Any] = []
        self._calls: list[Any] = []
        self._model = ""
        self._against = ""  # the first thing that speaks against keeping it

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def sources(self) -> list[Any]:
        return list(self._sources)

    @property
    def tool_calls(self) -> list[Any]:
        """The calls as they came: of a streamed answer, pieces."""
        return list(self._calls)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take a chunk, OpenAI's `chat.completion.chunk` or a line that Open WebUI puts in between."""
        if chunk.get("error"):
            self._refuse("error")
        if any(chunk[name] for name in chunk.keys() - _CHUNK_FIELDS):  # vLLM's may be there, and hold nothing
            self._refuse("unknown field")
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        if isinstance(model := chunk.get("model"), str) and model:
            self._model = model
        if isinstance(routed := chunk.get("ollama_pack"), dict) and isinstance(routed.get("model"), str):
            self._answered = routed["model"]
        if isinstance(sources := chunk.get("sources"), list):
            self._sources += sources
        self._add_choices(chunk.get("choices"))

    def verdict(self, *, created: float, seconds: float) -> Entry | str:
        """What may be kept, or the reason why it may not.

        Args:
            created: Unix time in seconds.
            seconds: how long the generation took.
        """
        if self._against or self._calls:
            return self._against or "tool calls"
        if self.finish_reason != "stop":
            reason = self.finish_reason if self.finish_reason in _FINISHES else "other"
            return f"finish reason {reason}" if self.finish_reason else "no finish reason"
        if self._needs_usage and not self.usage:
            return "no usage"
        if not self.content.strip():
            return "empty"
        if self._answerer and _as_compared(self._answered) != _as_compared(self._answerer):
            return "another model"
        return Entry(
            content=self.content,
            reasoning=self.reasoning,
            model=self._model,
            usage=self.usage,
            sources=self.sources,
            created=created,
            seconds=seconds,
        )

    def _add_choices(self, choices: object) -> None:
        given = choices if isinstance(choices, list) else []
        for choice in given:
            if not isinstance(choice, dict) or choice.get("index") not in (None, 0):
                self._refuse("several choices")
                continue
            if choice.get("logprobs"):
                self._refuse("log probabilities")
            if isinstance(reason := choice.get("finish_reason"), str) and reason:
                self.finish_reason = reason
            delta = choice.get("delta") or choice.get("message")
            self._add_delta(delta if isinstance(delta, dict) else {})

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        if isinstance(content := delta.get("content"), str):
            self._content.append(content)
        elif content is not None:
            self._refuse("an answer that is not text")
        self._reasoning += reasoning_in(delta)
        if isinstance(calls := delta.get("tool_calls"), list):
            self._calls += calls
        if delta.get("refusal"):
            self._refuse("refusal")
        if any(delta[name] for name in delta.keys() - _DELTA_FIELDS):
            self._refuse("unknown field")

    def _refuse(self, reason: str) -> None:
        self._against = self._against or reason


def _as_compared(model: str) -> str:
    """A name in the form in which Ollama takes two names of one model to be equal."""
    return model.lower().removesuffix(":latest")


def says_something(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk shows anything of the answer, or ends it; others, such as the role, do not."""
    if chunk.get("error"):
        return True
    choices = chunk.get("choices")
    return any(_choice_says(choice) for choice in (choices if isinstance(choices, list) else ()))


def _choice_says(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else {}
    return bool(choice.get("finish_reason")) or any(said[name] for name in said.keys() - {"role"})


def reasoning_in(delta: Mapping[str, Any]) -> Iterator[str]:
    """What a delta has of the model's thoughts, under the first of the names that is there."""
    found = (delta[name] for name in THOUGHT_FIELDS if isinstance(delta.get(name), str))
    if text := next(found, ""):
        yield text
