"""What the pack relies on in an Ollama, held against the scripted node and a real server alike.

The running server is right: where a test fails for the scripted node alone, the node follows.
"""

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from harness.node_contract import STEADY, WEATHER, WEATHER_CALL, Node, expires_in, instant, lines, wait_until
from harness.ollama_node import Answer

DETAILS = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
METRICS = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}
ANY_MAP = "map[string]interface {}"  # Go's words


def test_root_tells_that_ollama_runs(node: Node) -> None:
    """Would catch a node that health checks such as a container's, by GET or HEAD, take for dead."""
    assert node.get("/").text == "Ollama is running"
    head = node.http.head(node.url + "/", timeout=10)
    assert (head.status_code, head.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")


def test_version(node: Node) -> None:
    """Would catch a version that Open WebUI's connection check cannot read."""
    answer = node.get("/api/version").json()
    assert set(answer) == {"version"}
    assert answer["version"].count(".") == 2


def test_unknown_paths_and_methods_are_plain_text(node: Node) -> None:
    """Would catch a client that expects JSON in every error."""
    missing, wrong = node.get("/api/nothing"), node.post("/api/tags", {})
    assert (missing.status_code, missing.text) == (404, "404 page not found")
    assert (wrong.status_code, wrong.text) == (405, "405 method not allowed")
    assert set(wrong.headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_tags_have_the_fields_that_are_read(node: Node) -> None:
    """Would catch a catalogue entry with a field too many or too few."""
    entries = {entry["name"]: entry for entry in node.get("/api/tags").json()["models"]}
    entry = entries[node.model]
    assert set(entry) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert set(entry["details"]) == DETAILS
    assert (entry["model"], len(entry["digest"])) == (node.model, 64)
    assert instant(entry["modified_at"]) <= datetime.now(UTC)
    assert entry["size"] > 1_000_000


def test_a_listed_name_always_has_its_tag(node: Node) -> None:
    """Would catch a comparison of names that forgets ":latest"."""
    names = [entry["name"] for entry in node.get("/api/tags").json()["models"]]
    assert all(":" in name for name in names)
    assert (node.other if ":" in node.other else f"{node.other}:latest") in names


def test_a_chat_streams_by_default(node: Node) -> None:
    """Would catch a reader that takes an answer without `stream` for one JSON document."""
    answer = node.chat()
    *pieces, last = lines(answer)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert len(pieces) == 3
    for piece in pieces:
        assert set(piece) == {"model", "created_at", "message", "done"}
        assert set(piece["message"]) == {"role", "content"}
        assert (piece["model"], piece["done"], piece["message"]["role"]) == (node.model, False, "assistant")
    assert set(last) == {"model", "created_at", "message", "done", "done_reason"} | METRICS
    assert last["done"] is True
    assert last["message"] == {"role": "assistant", "content": ""}


def test_a_chat_in_one_piece(node: Node) -> None:
    """Would catch an unstreamed answer whose form differs from the last line of a streamed one."""
    answer = node.chat(stream=False)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert set(answer.json()) == {"model", "created_at", "message", "done", "done_reason"} | METRICS
    assert answer.json()["message"]["content"]


def test_durations_are_in_nanoseconds_and_add_up(node: Node) -> None:
    """Would catch rates learned in a wrong unit, and a wait (total minus the rest) below zero."""
    last = node.chat(stream=False).json()
    parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
    assert 100_000 < parts <= last["total_duration"]
    assert all(isinstance(last[key], int) for key in METRICS)


def test_num_predict_ends_with_length(node: Node) -> None:
    """Would catch an answer that was cut and is taken for complete, as the cache must never do."""
    last = node.chat(stream=False, options={"num_predict": 2}).json()
    assert (last["done_reason"], last["eval_count"]) == ("length", 2)


def test_a_complete_answer_ends_with_stop(node: Node) -> None:
    """Would catch a done reason that the cache waits for in vain."""
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
    answer = node.chat(stream=False, format=schema, options={"num_predict": 200}).json()
    assert answer["done_reason"] == "stop"


def test_model_is_echoed_as_it_was_asked_for(node: Node) -> None:
    """Would catch a comparison of the answer's model with the listed name."""
    spelled = node.other.upper()
    assert node.chat(model=spelled, stream=False).json()["model"] == spelled


def test_spellings_of_one_model(node: Node) -> None:
    """Would catch a name that is refused though Ollama finds it: case, namespace, host and default tag."""
    for name in (f"library/{node.model}", f"registry.ollama.ai/library/{node.model}", node.model.upper()):
        assert node.post("/api/show", {"model": name}).ok, name
        assert node.post("/api/chat", {"model": name}).json()["done_reason"] == "load", name
    assert node.post("/api/show", {"model": node.model.partition(":")[0] + ":no-such-tag"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("chat", {"model": "nope"}, 404, "model 'nope' not found"),
        ("chat", {"model": "a b"}, 400, "model is required"),
        ("chat", {}, 400, "model is required"),
        ("chat", "null", 400, "model is required"),
        ("chat", "", 400, "missing request body"),
        ("chat", "{bad", 400, "invalid character 'b' looking for beginning of object key string"),
        ("chat", '{"model":', 400, "unexpected EOF"),
        ("chat", "[]", 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        ("generate", {"model": "nope", "prompt": "a"}, 404, "model 'nope' not found"),
        ("generate", {"prompt": "a"}, 404, "model '' not found"),
        ("generate", "", 400, "missing request body"),
        ("show", {"model": "nope"}, 404, "model 'nope' not found"),
        ("show", {}, 400, "model is required"),
        ("show", "", 400, "missing request body"),
        ("embed", {"model": "nope", "input": "a"}, 404, 'model "nope" not found, try pulling it first'),
        ("embed", {"input": "a"}, 500, "unqualified name: registry.ollama.ai/library/!MISSING!:latest"),
        ("embeddings", {"model": "nope", "prompt": "a"}, 404, 'model "nope" not found, try pulling it first'),
        ("embeddings", {"prompt": "a"}, 400, "model is required"),
    ],
)
def test_refusals(node: Node, path: str, body: dict[str, Any] | str, status: int, error: str) -> None:
    """Would catch a refusal whose status or words differ, which decide whether to fail over."""
    answer = node.post(f"/api/{path}", body)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": 5}, "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
        (
            {"stream": "yes"},
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
        ),
        (
            {"messages": "x"},
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            {"messages": ["x"]},
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Alias",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "images": ["!!"]}]},
            "illegal base64 data at input byte 0",
        ),
        (
            {"options": [1]},
            f"json: cannot unmarshal array into Go struct field ChatRequest.options of type {ANY_MAP}",
        ),
        (
            {"tools": "x"},
            "json: cannot unmarshal string into Go struct field ChatRequest.tools of type api.Tools",
        ),
        ({"keep_alive": "soon"}, 'time: invalid duration "soon"'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        (
            {"think": "a lot"},
            'invalid think value: "a lot" (must be "high", "medium", "low", true, or false)',
        ),
    ],
)
def test_chats_of_a_wrong_type_are_refused(node: Node, change: dict[str, Any], error: str) -> None:
    """Would catch a translation that passes on what OpenAI allows and Ollama refuses."""
    answer = node.chat(**change)
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_tools_on_a_model_without_tools_are_refused(node: Node) -> None:
    """Would catch an alias that sends tools to a model that answers 400, with the full name in its words."""
    if "tools" in node.post("/api/show", {"model": node.model}).json()["capabilities"]:
        pytest.skip(f"{node.model} of this Ollama has tools")
    answer = node.chat(tools=[WEATHER])
    full = f"registry.ollama.ai/library/{node.model}"
    assert (answer.status_code, answer.json()) == (400, {"error": f"{full} does not support tools"})


def test_thinking_on_a_model_without_it_is_refused(node: Node) -> None:
    """Would catch `think` sent to every model; only false is safe."""
    answer = node.chat(think=True)
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": f'"{node.model}" does not support thinking'},
    )
    assert node.chat(think=False).ok


def test_images_on_a_text_model_are_ignored(node: Node) -> None:
    """Would catch trust in Ollama to refuse a picture that its model cannot see."""
    message = {"role": "user", "content": "What is this?", "images": ["aGVsbG8="]}
    assert node.chat(stream=False, messages=[message]).json()["message"]["content"]


def test_no_messages_loads_the_model(node: Node) -> None:
    """Would catch a warm-up that generates text, or whose answer has another form."""
    node.unload()
    answer = node.post("/api/chat", {"model": node.model}).json()
    assert set(answer) == {"model", "created_at", "message", "done", "done_reason"}
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    entry = node.loaded()[node.model]
    assert set(entry) == {
        "name",
        "model",
        "size",
        "digest",
        "details",
        "expires_at",
        "size_vram",
        "context_length",
    }
    assert set(entry["details"]) == DETAILS
    digests = {listed["name"]: listed["digest"] for listed in node.get("/api/tags").json()["models"]}
    assert entry["digest"] == digests[node.model]
    assert 0 <= entry["size_vram"] <= entry["size"]


def test_ps_tells_the_context_that_was_asked_for(node: Node) -> None:
    """Would catch a router that believes a model to have more context than it was loaded with."""
    node.post("/api/chat", {"model": node.model, "options": {"num_ctx": 2048}})
    assert node.loaded()[node.model]["context_length"] == 2048


@pytest.mark.parametrize(
    ("keep_alive", "seconds"), [(None, 300), (60, 60), ("1h30m", 5400), ("90s", 90), (0.5e3, 500)]
)
def test_keep_alive_sets_when_a_model_expires(node: Node, keep_alive: object, seconds: int) -> None:
    """Would catch a keep_alive read in a wrong unit."""
    body = {"model": node.model} | ({"keep_alive": keep_alive} if keep_alive else {})
    node.post("/api/chat", body)
    wait_until(lambda: seconds - 10 < expires_in(node) <= seconds)


def test_a_negative_keep_alive_is_for_ever(node: Node) -> None:
    """Would catch a pinned model that is taken for expired."""
    node.post("/api/chat", {"model": node.model, "keep_alive": -1})
    wait_until(lambda: expires_in(node) > 200 * 365 * 86_400)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_keep_alive_zero_unloads(node: Node, path: str) -> None:
    """Would catch a node drained of work that keeps its memory."""
    assert node.post(path, {"model": node.model}).json()["done_reason"] == "load"
    answer = node.post(path, {"model": node.model, "keep_alive": 0}).json()
    assert (answer["done"], answer["done_reason"]) == (True, "unload")
    wait_until(lambda: node.model not in node.loaded())
    again = node.post(path, {"model": node.model, "keep_alive": "0s"}).json()
    assert again["done_reason"] == "unload"


def test_keep_alive_zero_with_messages_answers_first(node: Node) -> None:
    """Would catch a question that is lost because it asks to unload afterwards."""
    assert node.chat(stream=False, keep_alive=0).json()["message"]["content"]
    wait_until(lambda: node.model not in node.loaded())


def test_generate(node: Node) -> None:
    """Would catch a client that looks for a chat's `message` in a completion."""
    body = {"model": node.model, "prompt": "Once upon", "options": STEADY | {"num_predict": 2}}
    *pieces, last = lines(node.post("/api/generate", body))
    assert len(pieces) == 2
    assert all(set(piece) == {"model", "created_at", "response", "done"} for piece in pieces)
    keys = {"model", "created_at", "response", "done", "done_reason", "context"} | METRICS
    assert set(last) == keys
    assert all(isinstance(token, int) for token in last["context"])
    whole = node.post("/api/generate", body | {"stream": False}).json()
    assert set(whole) == keys
    assert whole["response"]


def test_generate_without_a_prompt_loads(node: Node) -> None:
    """Would catch a warm-up through the other path that fails."""
    answer = node.post("/api/generate", {"model": node.model}).json()
    assert set(answer) == {"model", "created_at", "response", "done", "done_reason"}
    assert answer["done_reason"] == "load"


def test_show_tells_what_a_router_reads(node: Node) -> None:
    """Would catch lost fields: capabilities, context, and which weights a name stands for."""
    shown = node.post("/api/show", {"model": node.model}).json()
    needed = {"modelfile", "template", "details", "model_info", "tensors", "capabilities", "modified_at"}
    assert (
        needed | {"parameters"} >= set(shown) - {"license", "system", "projector_info", "messages"} >= needed
    )
    assert set(shown["details"]) == DETAILS
    assert "completion" in shown["capabilities"]
    architecture = shown["model_info"]["general.architecture"]
    for fact in ("context_length", "block_count", "attention.head_count_kv", "embedding_length"):
        assert shown["model_info"][f"{architecture}.{fact}"] > 0
    (source,) = [line for line in shown["modelfile"].splitlines() if line.startswith("FROM ")]
    assert len(source.rpartition("/blobs/sha256-")[2]) == 64


def test_show_takes_the_old_field_name(node: Node) -> None:
    """Would catch Open WebUI's older calls, which send `name`."""
    assert node.post("/api/show", {"name": node.model}).ok


def test_embed(node: Node) -> None:
    """Would catch vectors that are not normalised, or one vector for a list of texts."""
    body = {"model": node.model, "input": ["hello", "world"]}
    answer = node.post("/api/embed", body).json()
    keys = {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert set(answer) == keys
    first, second = answer["embeddings"]
    assert len(first) == len(second) > 100
    assert math.isclose(sum(number * number for number in first), 1.0, abs_tol=1e-3)
    assert first != second
    assert len(node.post("/api/embed", body | {"input": "hello"}).json()["embeddings"]) == 1
    short = node.post("/api/embed", body | {"dimensions": 3}).json()["embeddings"][0]
    assert len(short) == 3


def test_embed_of_nothing_loads(node: Node) -> None:
    """Would catch a warm-up of an embedding model that fails."""
    empty = {"model": node.model, "embeddings": []}
    assert node.post("/api/embed", {"model": node.model}).json() == empty
    assert node.post("/api/embed", {"model": node.model, "input": []}).json() == empty
    assert node.model in node.loaded()


@pytest.mark.parametrize("given", [5, [5], {"a": 1}])
def test_embed_refuses_what_is_not_text(node: Node, given: object) -> None:
    """Would catch token lists, which OpenAI allows, sent to Ollama."""
    answer = node.post("/api/embed", {"model": node.model, "input": given})
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid input type"})


def test_the_old_embeddings_path(node: Node) -> None:
    """Would catch a client of the old path that finds no `embedding`."""
    answer = node.post("/api/embeddings", {"model": node.model, "prompt": "hello"}).json()
    assert set(answer) == {"embedding"}
    assert len(answer["embedding"]) > 100
    assert node.post("/api/embeddings", {"model": node.model}).json() == {"embedding": []}


def test_tool_calls_streamed(node: Node, tools_model: str) -> None:
    """Would catch arguments taken for text, as OpenAI's are, and a done reason other than "stop"."""
    options = {"num_predict": 100}
    *pieces, last = lines(node.chat(model=tools_model, tools=[WEATHER], format=WEATHER_CALL, options=options))
    (call,) = [call for piece in pieces for call in piece["message"].get("tool_calls", ())]
    assert call["id"].startswith("call_")
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert set(call) == {"id", "function"}
    assert (last["done_reason"], "tool_calls" in last["message"]) == ("stop", False)


def test_tool_calls_in_one_piece(node: Node, tools_model: str) -> None:
    """Would catch calls that are lost when the answer is not streamed."""
    asked = {"tools": [WEATHER], "format": WEATHER_CALL, "options": {"num_predict": 100}}
    answer = node.chat(model=tools_model, stream=False, **asked).json()
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["arguments"] == {"city": "Paris"}
    assert (answer["done_reason"], answer["message"]["content"]) == ("stop", "")


def test_thinking_streamed(node: Node, thinking_model: str) -> None:
    """Would catch thinking that is shown as the answer."""
    *pieces, last = lines(node.chat(model=thinking_model, think=True, options={"num_predict": 6}))
    assert any(piece["message"].get("thinking") for piece in pieces)
    assert all(piece["message"]["content"] == "" for piece in pieces)
    assert last["done_reason"] == "length"


def test_a_model_that_can_think_does_so_unasked(node: Node, thinking_model: str) -> None:
    """Would catch a reader that expects thinking only where `think` was sent."""
    answer = node.chat(model=thinking_model, stream=False, options={"num_predict": 6}).json()
    assert answer["message"]["thinking"]
    assert answer["message"]["content"] == ""


def test_a_level_of_thinking_is_refused(node: Node, thinking_model: str) -> None:
    """Would catch `reasoning_effort` passed on as `think`: only gpt-oss knows levels."""
    answer = node.chat(model=thinking_model, think="high")
    expected = {"error": 'think value "high" is not supported for this model'}
    assert (answer.status_code, answer.json()) == (400, expected)


def test_a_closed_connection_ends_generation(node: Node) -> None:
    """Would catch a stopped chat that still generates: the next would wait for its end."""
    node.script(Answer(["a"] * 3000, pause=0.01))
    # More than a minute of work for the small model. A real runner crashes when it is asked for 1,000 items.
    many = {"type": "array", "items": {"type": "integer"}, "minItems": 300}
    question = {"role": "user", "content": "Count"}
    body = {"model": node.model, "messages": [question], "format": many, "options": STEADY}
    with requests.Session() as session:
        session.trust_env = False
        with session.post(f"{node.url}/api/chat", json=body, stream=True, timeout=30) as answer:
            received = answer.iter_lines()
            assert "message" in json.loads(next(received))
    started = time.monotonic()
    assert node.chat(stream=False, options={"num_predict": 1}).ok
    assert time.monotonic() - started < 5
    if node.scripted:
        assert node.scripted.requests[0].left.wait(5)
