"""Bodies as clients of other APIs send them, through a real Open WebUI to the router and its nodes."""

from typing import Any

import pytest
import requests

from harness.chat_bodies import TOOL
from harness.fixtures_routing import RoutedWebUI

Json = dict[str, Any]

CHAT, MESSAGES = "/api/chat/completions", "/api/v1/messages"
FORCED = {"type": "function", "function": {"name": "clock"}}


def said(routed: RoutedWebUI, path: str, body: Json) -> tuple[str, Json]:
    """The answer as it came, a stream as a whole; and what the node was asked."""
    for node in routed.nodes:
        node.requests.clear()
    answer = requests.post(
        f"{routed.webui.url}{path}",
        json={"max_tokens": 20, **body},
        headers={"Authorization": f"Bearer {routed.student.key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (asked,) = routed.chats()
    return answer.text, asked


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["thinking", "redacted_thinking", "reasoning"])
def test_thoughts_are_dropped(routed: RoutedWebUI, path: str, kind: str, *, stream: bool) -> None:
    """Would catch a conversation with a thinking model that cannot go on."""
    thought = {"type": kind, "thinking": "hm", "signature": "x", "data": "x"}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    answer, sent = said(routed, path, {"model": "gpt-4", "stream": stream, "messages": messages})
    assert "You" in answer
    assert "error" not in answer
    assert [message["content"] for message in sent["messages"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("path", "choice", "offered"),
    [
        (CHAT, {"type": "auto"}, True),
        (CHAT, {"type": "any"}, True),
        (CHAT, {"type": "tool", "name": "clock"}, True),
        (CHAT, {"type": "none"}, False),
        (CHAT, {"type": "function", "name": "clock"}, True),
        (CHAT, FORCED, True),
        (CHAT, {"type": "allowed_tools", "mode": "auto", "tools": [FORCED]}, True),
        (CHAT, "any", True),
        (CHAT, "none", False),
        (MESSAGES, {"type": "auto"}, True),
        (MESSAGES, {"type": "any"}, True),
        (MESSAGES, {"type": "tool", "name": "clock"}, True),
    ],
)
def test_choices_of_tools(routed: RoutedWebUI, path: str, choice: object, *, offered: bool) -> None:
    """Would catch a client whose way to choose tools is refused, or has no effect."""
    function = TOOL["function"]
    anthropic = {"name": "clock", "input_schema": function["parameters"]}  # type: ignore[index]
    tool = TOOL if path == CHAT else anthropic
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "gpt-4-tools", "messages": messages, "tools": [tool], "tool_choice": choice}
    answer, sent = said(routed, path, body)
    assert "You said" in answer
    assert [entry["function"]["name"] for entry in sent.get("tools", [])] == (["clock"] if offered else [])


@pytest.mark.parametrize("tools", ["x", 5, [None], ["x"]])
@pytest.mark.parametrize("path", [CHAT, "/ollama-pack/v1/chat/completions"])
def test_tools_of_the_wrong_type_are_named(routed: RoutedWebUI, path: str, tools: object) -> None:
    """Would catch a client's mistake that is reported as a fault of the server."""
    answer = requests.post(
        f"{routed.webui.url}{path}",
        json={"model": "gpt-4", "messages": [{"role": "user", "content": "a"}], "tools": tools},
        headers={"Authorization": f"Bearer {routed.student.key}"},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text
    assert "tools" in answer.json()["error"]["message"]
