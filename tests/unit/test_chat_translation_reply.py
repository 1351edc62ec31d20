"""What Ollama says as OpenAI says it: whole, in chunks, and there and back again."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.engines.errors import (
    ChatBodyError,
    NodeFaultError,
)
from ollama_pack.engines.ollama.messages import ollama_messages
from ollama_pack.engines.ollama.stream import (
    StreamState,
    UsagePlace,
    completion_of,
    line_to_chunks,
    stream_to_openai,
    usage_place,
)
from ollama_pack.engines.ollama.to_openai import ReplyHead, openai_usage

HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "gpt-4")
FIGURES = {
    "total_duration": 3_723_000_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 10,
    "prompt_eval_duration": 2_000_000_000,
    "eval_count": 3,
    "eval_duration": 500_000_000,
}
LAST = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **FIGURES}


def says(content: str = "", **fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **fields}, "done": False}


def call(name: str, arguments: object, **fields: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments, **fields}}


def chunks_of(lines: Iterable[Mapping[str, Any]], place: UsagePlace = "last") -> list[dict[str, Any]]:
    state, sent = StreamState(), []
    for line in lines:
        state, chunks = line_to_chunks(line, HEAD, state, place)
        sent += chunks
    return sent


def whole_answer(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a client gets that wants no stream."""
    return completion_of(chunks_of([line]))


def deltas(chunks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_a_whole_answer() -> None:
    """Would catch an answer whose form OpenAI's clients cannot read."""
    answer = LAST | {"message": {"role": "assistant", "content": "4", "thinking": "2 + 2"}}
    completion = whole_answer(answer)
    assert completion.pop("usage")["total_tokens"] == 13
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    assert completion == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
    }


def test_chunks_of_a_stream() -> None:
    """Would catch a role that is missing or repeated, an empty chunk that ends the answer, or no end."""
    chunks = chunks_of([says(), says("Hel"), says(), says("lo"), LAST])
    assert deltas(chunks) == [{"role": "assistant", "content": "Hel"}, {"content": "lo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert ["usage" in chunk for chunk in chunks] == [False, False, True]
    for chunk in chunks:
        assert {name: chunk[name] for name in ("id", "object", "created", "model")} == {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "gpt-4",
        }
        assert chunk["choices"][0]["index"] == 0


def test_the_last_line_can_say_something() -> None:
    """Would catch the last words, or a call, of a node that sends them with `done`."""
    message = {"role": "assistant", "content": "lo", "tool_calls": [call("f", {})]}
    (chunk,) = chunks_of([LAST | {"message": message}])
    (choice,) = chunk["choices"]
    assert (choice["delta"]["role"], choice["delta"]["content"]) == ("assistant", "lo")
    assert choice["delta"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == "tool_calls"


def test_an_answer_of_nothing() -> None:
    """Would catch an answer without any text that has neither role nor end."""
    (chunk,) = chunks_of([LAST])
    assert chunk["choices"][0]["delta"] == {"role": "assistant"}
    assert chunk["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"done_reason": "stop"}, "stop"),
        ({"done_reason": "length"}, "length"),
        ({"done_reason": "load"}, "stop"),
        ({"done_reason": None}, "stop"),
        ({"done_reason": ["x"]}, "stop"),
    ],
)
def test_finish_reasons(line: dict[str, Any], reason: str) -> None:
    """Would catch an answer that was cut off and looks complete, or a reason that OpenAI does not know."""
    assert whole_answer(LAST | line)["choices"][0]["finish_reason"] == reason
    assert chunks_of([LAST | line])[-1]["choices"][0]["finish_reason"] == reason


def test_parallel_calls_have_numbers_and_ids() -> None:
    """Would catch calls that run together: some nodes number every call 0, and older ones give no ids."""
    lines = [
        says(tool_calls=[call("f", {"a": "é"}, index=0) | {"id": "call_x"}]),
        says(tool_calls=[call("g", {}, index=0), call("h", {"b": [1]})]),
        LAST,
    ]
    sent = [entry for delta in deltas(chunks_of(lines)) for entry in delta.get("tool_calls", ())]
    assert [(entry["index"], entry["type"], entry["function"]["name"]) for entry in sent] == [
        (0, "function", "f"),
        (1, "function", "g"),
        (2, "function", "h"),
    ]
    assert [entry["function"]["arguments"] for entry in sent] == ['{"a":"é"}', "{}", '{"b":[1]}']
    assert [entry["id"] for entry in sent] == ["call_x", "call_chatcmpl-1_1", "call_chatcmpl-1_2"]
    assert chunks_of(lines)[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_probabilities() -> None:
    """Would catch probabilities that are lost, or under a name that clients do not know."""
    token = {"token": "4", "logprob": -0.1, "bytes": [52], "top_logprobs": []}
    chunks = chunks_of([says("4") | {"logprobs": [token]}, LAST])
    expected = {"content": [token], "refusal": None}
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [expected, None]
    assert whole_answer(LAST | {"logprobs": [token]})["choices"][0]["logprobs"] == expected
    assert completion_of(chunks)["choices"][0]["logprobs"] == expected


def test_probabilities_without_text() -> None:
    """Would catch tokens that are lost because Ollama is still looking through them for tool calls."""
    token = {"token": "4", "logprob": -0.1, "bytes": [52]}  # without `top_logprobs` where none are asked for
    chunks = chunks_of([says("") | {"logprobs": [token]}, says("4"), LAST])
    expected = {"content": [token | {"top_logprobs": []}], "refusal": None}
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [expected, None, None]
    assert completion_of(chunks)["choices"][0]["logprobs"] == expected


def test_usage() -> None:
    """Would catch figures that Open WebUI shows under an answer in a wrong unit, or under another name."""
    assert openai_usage(LAST) == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "input_tokens": 10,
        "output_tokens": 3,
        "response_token/s": 6.0,
        "prompt_token/s": 5.0,
        "approximate_total": "1h2m3s",
        **FIGURES,
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_usage_of_nothing() -> None:
    """Would catch a division by a duration that Ollama leaves out because it is zero."""
    usage = openai_usage({"done": True})
    assert (usage["total_tokens"], usage["response_token/s"], usage["eval_duration"]) == (0, "N/A", 0)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "last"),
        ({"stream_options": None}, "last"),
        ({"stream_options": {"include_usage": False}}, "last"),
        ({"stream_options": {"include_usage": True}}, "apart"),
    ],
)
def test_where_the_usage_is(body: dict[str, Any], place: UsagePlace) -> None:
    """Would catch figures in a place where a client that asks for them by OpenAI's rules does not look."""
    assert usage_place(body) == place
    chunks = chunks_of([says("a"), LAST], place)
    assert ["usage" in chunk for chunk in chunks] == [False, *([False, True] if place == "apart" else [True])]
    assert [len(chunk["choices"]) for chunk in chunks][2:] == ([0] if place == "apart" else [])
    assert chunks[-1]["usage"] == openai_usage(LAST)


def test_a_wrong_wish_for_usage_is_refused() -> None:
    """Would catch a crash on a client's mistake."""
    for wrong in ("yes", {"include_usage": "maybe"}):
        with pytest.raises(ChatBodyError, match="stream_options"):
            usage_place({"stream_options": wrong})


class Lines:
    """An iterator over lines that tells when it was closed."""

    def __init__(self, lines: Iterable[dict[str, Any]], error: Exception | None = None) -> None:
        self._lines = lines
        self._error = error
        self.closed = False

    async def read(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for line in self._lines:
                yield line
            if self._error:
                raise self._error
        finally:
            self.closed = True


def test_closing_the_chunks_closes_the_lines() -> None:
    """Would catch a stop button that ends the chunks and leaves the connection to the node open."""

    async def stop_after_one() -> None:
        reading = lines.read()  # held, so that only closing closes it
        chunks = stream_to_openai(reading, HEAD)
        assert (await anext(chunks))["choices"][0]["delta"]["content"] == "a"
        assert not lines.closed
        await chunks.aclose()
        assert lines.closed

    lines = Lines([says("a"), says("b"), LAST])
    asyncio.run(stop_after_one())


def test_an_error_in_the_lines_is_an_error_in_the_chunks() -> None:
    """Would catch an answer that breaks off and looks complete."""
    sent: list[dict[str, Any]] = []

    async def read() -> None:
        async for chunk in stream_to_openai(lines.read(), HEAD):
            sent.append(chunk)  # noqa: PERF401 - what came before the error matters

    lines = Lines([says("a")], NodeFaultError("http://n", "hung up"))
    with pytest.raises(NodeFaultError):
        asyncio.run(read())
    assert deltas(sent) == [{"role": "assistant", "content": "a"}]
    assert lines.closed


# --- what holds for every answer

words = st.text(max_size=6)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
calls_made = st.builds(
    lambda name, arguments: call(name, arguments) | {"id": f"call_{name}"},
    words,
    st.dictionaries(words, plain_json, max_size=2),
)
pieces = st.one_of(
    st.builds(lambda text: {"content": "", "thinking": text}, words),
    st.builds(lambda text: {"content": text}, words),
    st.builds(lambda made: {"content": "", "tool_calls": made}, st.lists(calls_made, min_size=1, max_size=2)),
)


def whole(pieces_of_it: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that Ollama gives when it is not asked to stream."""
    made = [entry for piece in pieces_of_it for entry in piece.get("tool_calls", ())]
    thinking = "".join(piece.get("thinking", "") for piece in pieces_of_it)
    return {
        "role": "assistant",
        "content": "".join(piece["content"] for piece in pieces_of_it),
        **({"thinking": thinking} if thinking else {}),
        **({"tool_calls": made} if made else {}),
    }


@given(st.lists(pieces, max_size=6), st.sampled_from(["stop", "length"]), st.sampled_from(["last", "apart"]))
def test_chunks_make_up_the_whole_answer(said: list[dict[str, Any]], reason: str, place: UsagePlace) -> None:
    """Would catch a difference between an answer in chunks and the same in one piece."""
    last = LAST | {"done_reason": reason}
    chunks = chunks_of([*({"message": piece, "done": False} for piece in said), last], place)
    assert completion_of(chunks) == whole_answer(last | {"message": whole(said)})


@given(st.lists(pieces, max_size=6))
def test_what_a_node_said_comes_back_to_it_unchanged(said: list[dict[str, Any]]) -> None:
    """Would catch a history that differs from what the node has in its cache: every turn would start anew."""
    completion = whole_answer(LAST | {"message": whole(said)})
    history = json.loads(json.dumps([completion["choices"][0]["message"]]))
    expected = whole(said)
    for index, made in enumerate(expected.get("tool_calls", ())):
        made["function"]["index"] = index
    assert ollama_messages(history) == [expected]


lines_of_anything = st.fixed_dictionaries(
    {},
    optional={
        "message": st.fixed_dictionaries(
            {},
            optional={
                "content": words | plain_json,
                "thinking": words | plain_json,
                "tool_calls": st.lists(calls_made | plain_json, max_size=2) | plain_json,
            },
        )
        | plain_json,
        "done": st.booleans() | plain_json,
        "done_reason": plain_json,
        "logprobs": plain_json,
        **{name: st.integers() | plain_json for name in FIGURES},
    },
)


@given(st.lists(lines_of_anything, max_size=4))
def test_no_line_breaks_the_translation(lines: list[dict[str, Any]]) -> None:
    """Would catch a node of another make that ends a chat with a crash."""
    for line in lines:
        json.dumps(whole_answer(line | {"done": True}))
    for chunk in chunks_of(lines):
        json.dumps(chunk)
        for choice in chunk["choices"]:
            assert choice["finish_reason"] in {None, "stop", "length", "tool_calls"}
            assert set(choice["delta"]) <= {"role", "content", "reasoning_content", "tool_calls"}
