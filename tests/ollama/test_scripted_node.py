"""What the scripted node adds to a real one: answers and faults on command, and a record of what it got."""

import json
from collections.abc import Iterator

import pytest
import requests

from harness.node_contract import lines
from harness.ollama_node import Answer, Model, OllamaNode, ToolCall

CHAT = {"model": "seer", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture
def node() -> Iterator[OllamaNode]:
    with OllamaNode([Model("seer", capabilities=("completion", "tools", "thinking", "vision"))]) as scripted:
        yield scripted


def ask(node: OllamaNode, http: requests.Session, **change: object) -> requests.Response:
    return http.post(f"{node.url}/api/chat", json=CHAT | change, timeout=10)


def text(response: requests.Response) -> str:
    return "".join(line["message"]["content"] for line in lines(response))


def test_echo(node: OllamaNode, http: requests.Session) -> None:
    """Would catch an unscripted answer that tests cannot foresee."""
    assert text(ask(node, http)) == "You said: hello there"
    assert lines(ask(node, http))[-1]["done_reason"] == "stop"


def test_a_model_with_vision_counts_the_images(node: OllamaNode, http: requests.Session) -> None:
    """Would catch pictures that are lost on the way to a node."""
    message = {"role": "user", "content": "look", "images": ["aGVsbG8=", "aGVsbG8="]}
    assert text(ask(node, http, messages=[message])) == "You said: look (2 images)"


def test_answers_are_given_in_order(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a script that is mixed up, or that does not fall back to the echo."""
    node.enqueue(Answer(["one"]), Answer(["two"]))
    assert [text(ask(node, http)) for _ in range(3)] == ["one", "two", "You said: hello there"]


def test_thinking_text_and_calls_come_in_this_order(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a scripted answer in another order than a model's."""
    node.enqueue(Answer(["b"], thinking=["a"], tool_calls=[ToolCall("f", {"x": 1}), ToolCall("g", {})]))
    messages = [line["message"] for line in lines(ask(node, http))]
    assert [message.get("thinking") for message in messages] == ["a", None, None, None, None]
    assert [message["content"] for message in messages] == ["", "b", "", "", ""]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    assert [(call["index"], call["name"]) for call in calls] == [(0, "f"), (1, "g")]


def test_requests_are_recorded(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a test that checks what was sent and sees another thing."""
    ask(node, http, options={"seed": 1})
    http.post(f"{node.url}/api/show", json={"model": "seer"}, timeout=10)
    http.post(f"{node.url}/api/chat", data="{", timeout=10)
    assert [(got.path, got.body) for got in node.requests] == [
        ("/api/chat", CHAT | {"options": {"seed": 1}}),
        ("/api/show", {"model": "seer"}),
        ("/api/chat", None),
    ]
    assert not any(got.left.is_set() for got in node.requests)


def test_refusal(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a fault before the answer that does not look like Ollama's."""
    node.enqueue(Answer(refusal=(503, "server busy")))
    answer = ask(node, http)
    assert (answer.status_code, answer.json()) == (503, {"error": "server busy"})


def test_failure_in_the_stream(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a fault in the stream that is not the error line which a crashed runner causes."""
    node.enqueue(Answer(["a"], failure="unexpected EOF"))
    answer = ask(node, http)
    first, second = lines(answer)
    assert (answer.status_code, first["message"]["content"]) == (200, "a")
    assert second == {"error": "unexpected EOF"}


@pytest.mark.parametrize("stream", [True, False])
def test_failure_before_any_text_is_a_status(
    node: OllamaNode, http: requests.Session, *, stream: bool
) -> None:
    """Would catch a 200 for an answer of which nothing was sent."""
    node.enqueue(Answer(failure="no memory"))
    answer = ask(node, http, stream=stream)
    assert (answer.status_code, answer.json()) == (500, {"error": "no memory"})


def test_hanging_up_in_the_stream(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a cut connection that reads as the end of the answer."""
    node.enqueue(Answer(["a", "b"], pause=0.05, hangs_up=True))
    with http.post(f"{node.url}/api/chat", json=CHAT, stream=True, timeout=10) as answer:
        received = answer.iter_lines()
        assert json.loads(next(received))["message"]["content"] == "a"
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(received)


def test_hanging_up_before_the_answer(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a cut connection that reads as an empty answer."""
    node.enqueue(Answer(hangs_up=True))
    with pytest.raises(requests.ConnectionError):
        ask(node, http)


def test_a_delay_holds_the_headers_back(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a slow node whose status line comes at once, unlike a loading Ollama's."""
    node.enqueue(Answer(["late"], delay=5))
    with pytest.raises(requests.ReadTimeout):
        http.post(f"{node.url}/api/chat", json=CHAT, timeout=0.2)
    assert node.requests[0].left.wait(5)


def test_a_client_that_leaves_is_noticed(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a stop button that does not reach the node."""
    node.enqueue(Answer(["a"] * 500, pause=0.02))
    with http.post(f"{node.url}/api/chat", json=CHAT, stream=True, timeout=10) as answer:
        received = answer.iter_lines()
        assert next(received)
        assert not node.requests[0].left.is_set()
    assert node.requests[0].left.wait(5)


def test_a_stopped_node_refuses_and_comes_back(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a node that is switched off and still answers, or comes back at another address."""
    url = node.url
    ask(node, http)
    node.stop()
    node.stop()
    with pytest.raises(requests.ConnectionError):
        ask(node, http)
    node.start()
    assert node.url == url
    assert http.get(f"{url}/api/ps", timeout=10).json() == {"models": []}


def test_names_on_one_blob_share_a_runner(http: requests.Session) -> None:
    """Would catch a copy of a model that is taken for a second model in memory."""
    models = [Model("a", blob="0" * 64), Model("b", blob="0" * 64)]
    with OllamaNode(models) as node:
        for name in ("a", "b"):
            http.post(f"{node.url}/api/chat", json={"model": name}, timeout=10)
        (entry,) = http.get(f"{node.url}/api/ps", timeout=10).json()["models"]
    assert (entry["name"], entry["size_vram"]) == ("a:latest", entry["size"])


def test_models_come_and_go(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a catalogue that a test cannot change while the node runs."""
    node.models.clear()
    assert http.get(f"{node.url}/api/tags", timeout=10).json() == {"models": []}
    assert ask(node, http).status_code == 404
