"""Traces of the real Open WebUI with its OpenTelemetry on: where the pack's spans are, and what they show."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.client import OpenWebUI
from harness.events_target import eventually
from harness.fixtures_routing import LLAMA, NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.ollama_node import Answer, OllamaNode
from harness.trace_collector import TakenSpan, TraceCollector, trace_collector
from local.webui import connections, open_webui

PACK_YAML = """\
plugins: [response_cache_filter, response_cache_replay, gpu_router]
model_provider:
  endpoints:
    - {{name: gpu0, url: "{node}"}}
  models:
    - {{name: gpt-4, local_name: "llama3:8b"}}
"""
TRACED = {
    "ENABLE_OTEL": "true",
    "ENABLE_OTEL_TRACES": "true",
    "OTEL_OTLP_SPAN_EXPORTER": "http",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}
SECRET = "what is the secret of the pyramids"


@dataclass(frozen=True)
class TracedWebUI:
    """Open WebUI with a node, and where its spans go."""

    api: OpenWebUI
    node: OllamaNode
    collector: TraceCollector

    def ask(self, text: str) -> None:
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}]}
        self.api.answer("POST", "/api/chat/completions", json=body)

    def new_spans(self, before: int, name: str) -> list[TakenSpan]:
        """Those of a name that have come since, once there is one."""

        def found() -> list[TakenSpan]:
            return [span for span in self.collector.of("ollama_pack")[before:] if span.name == name]

        eventually(lambda: bool(found()))
        return found()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedWebUI]:
    folder = tmp_path_factory.mktemp("traced")
    with OllamaNode([LLAMA]) as node, trace_collector() as collector:
        environment = connections() | NO_BACKGROUND | TRACED | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with open_webui(folder, environment=environment) as webui:
            config = folder / "pack.yaml"
            config.write_text(PACK_YAML.format(node=node.url))
            done = upload(webui, str(config))
            assert done.returncode == 0, done.stdout + done.stderr
            api = webui.as_admin()
            yield TracedWebUI(api, node, collector)
            api.close()


def test_a_chat_is_a_span_of_its_request(traced: TracedWebUI) -> None:
    """Would catch spans outside the request's trace, and node requests that are not under the chat."""
    before = len(traced.collector.of("ollama_pack"))
    traced.ask(SECRET)
    (chat,) = traced.new_spans(before, "chat gpt-4")
    assert not chat.failed
    assert chat.attributes["gen_ai.request.model"] == "gpt-4"
    assert chat.attributes["gen_ai.response.model"] == "llama3:8b"
    assert chat.attributes["ollama_pack.node"] == "gpu0"
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert "first token" in chat.events
    (lookup,) = traced.new_spans(before, "response cache lookup")
    assert lookup.trace == chat.trace

    def request() -> list[TakenSpan]:
        return [one for one in traced.collector.spans if one.trace == chat.trace and not one.parent]

    eventually(lambda: bool(request()))
    assert "/api/chat/completions" in request()[0].name
    to_node = [one for one in traced.collector.spans if one.parent == chat.id]
    assert any("/api/chat" in str(one.attributes) for one in to_node), [one.name for one in to_node]
    assert SECRET not in str(traced.collector.of("ollama_pack"))


def test_a_kept_answer_is_a_lookup_and_no_chat(traced: TracedWebUI) -> None:
    before = len(traced.collector.of("ollama_pack"))
    traced.ask("an answer that is kept")
    traced.new_spans(before, "chat gpt-4")
    chats = len([one for one in traced.collector.of("ollama_pack") if one.name == "chat gpt-4"])
    before = len(traced.collector.of("ollama_pack"))
    traced.ask("an answer that is kept")
    (lookup,) = traced.new_spans(before, "response cache lookup")
    assert lookup.attributes["ollama_pack.cache"] == "hit"
    assert len([one for one in traced.collector.of("ollama_pack") if one.name == "chat gpt-4"]) == chats


def test_a_failed_chat_is_a_failed_span(traced: TracedWebUI) -> None:
    before = len(traced.collector.of("ollama_pack"))
    traced.node.enqueue(Answer(refusal=(400, "this cannot be answered")))
    traced.ask("a chat that fails")
    (chat,) = traced.new_spans(before, "chat gpt-4")
    assert chat.failed
