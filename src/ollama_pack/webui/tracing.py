"""Spans for Open WebUI's own OpenTelemetry provider. None where tracing is off or not installed.

They show names, times and counts: never what was asked or answered.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext
from typing import Any, Protocol

TRACER = "ollama_pack"


class Span(Protocol):
    """What is used of an OpenTelemetry span."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Set or replace an attribute."""

    def add_event(self, name: str) -> None:
        """Note that something happened now."""


class _NoSpan:
    def set_attribute(self, key: str, value: str | float) -> None:
        pass

    def add_event(self, name: str) -> None:
        pass


@contextmanager
def current_span(name: str) -> Iterator[Span]:
    """A span around some work. Spans made inside, such as those of HTTP clients, become its children."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - Open WebUI brings it, a scratch environment may not
    except ImportError:
        yield _NoSpan()
        return
    with trace.get_tracer(TRACER).start_as_current_span(name, record_exception=False) as span:
        yield span


class ChatSpan:
    """The span of one routed chat, from the question to the last chunk.

    Its attributes are those of OpenTelemetry's conventions for generative AI, and `ollama_pack.node`.
    Its events are the status lines, such as the place in the queue, and the first token.
    """

    def __init__(self, asked: str, *, background: bool) -> None:
        """Start it.

        Args:
            asked: the model or alias that was asked for.
            background: nobody looks at the answer as it is written.
        """
        self._span: Any = None
        try:
            from opentelemetry import trace  # noqa: PLC0415 - see `current_span`
        except ImportError:
            return
        self._use_span, self._error = trace.use_span, trace.StatusCode.ERROR
        self._span = trace.get_tracer(TRACER).start_span(f"chat {asked}", kind=trace.SpanKind.CLIENT)
        self._span.set_attribute("gen_ai.operation.name", "chat")
        self._span.set_attribute("gen_ai.request.model", asked)
        self._span.set_attribute("ollama_pack.background", background)

    def add_event(self, name: str) -> None:
        """Note that something happened now."""
        if self._span is not None:
            self._span.add_event(name)

    async def around(
        self, chunks: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the answer. Ends the span with them, whoever ends first."""
        first = True
        try:
            async with aclosing(chunks):
                while True:
                    with self._current():
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    if first:
                        self.add_event("first token")
                        first = False
                    self._note(chunk)
                    yield chunk
        except GeneratorExit:
            self.add_event("the client left")
            raise
        except Exception as error:
            if self._span is not None:
                self._span.set_status(self._error, type(error).__name__)
            raise
        finally:
            if self._span is not None:
                self._span.end()

    def _current(self) -> Any:
        # Not for the whole answer: between two chunks the same task does other things.
        if self._span is None:
            return nullcontext()
        return self._use_span(self._span, record_exception=False, set_status_on_exception=False)

    def _note(self, chunk: Mapping[str, Any]) -> None:
        answered, usage = chunk.get("ollama_pack"), chunk.get("usage")
        if self._span is None or not answered:
            return
        self._span.set_attribute("gen_ai.response.model", answered["model"])
        self._span.set_attribute("ollama_pack.node", answered["node"])
        for key, name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if isinstance(usage, Mapping) and isinstance(usage.get(key), int):
                self._span.set_attribute(f"gen_ai.usage.{name}", usage[key])
