"""OpenAI's chunks as Ollama's lines."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ollama_pack.engines.ollama.from_openai import OllamaReply

Json = dict[str, Any]


async def chunks_of(*deltas: Json, **last: Any) -> AsyncIterator[Json]:
    for delta in deltas:
        yield {"choices": [{"delta": delta, "finish_reason": None}]}
    yield {"choices": [{"delta": {}, "finish_reason": last.pop("reason", "stop")}], **last}


def lines_of(chunks: AsyncIterator[Json]) -> list[Json]:
    async def collect() -> list[Json]:
        return [line async for line in OllamaReply("gpt-4").lines(chunks)]

    return asyncio.run(collect())


def test_text_and_figures() -> None:
    """Would catch words, thoughts, figures or the reason of the end that are lost."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_duration": 7}
    chunks = chunks_of(
        {"reasoning_content": "hm"}, {"content": "Hel"}, {"content": "lo"}, usage=usage, reason="length"
    )
    *said, last = lines_of(chunks)
    assert [line["message"] for line in said] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert {line["model"] for line in (*said, last)} == {"gpt-4"}
    assert not any(line["done"] for line in said)
    assert (last["done"], last["done_reason"]) == (True, "length")
    assert (last["prompt_eval_count"], last["eval_count"], last["total_duration"]) == (3, 2, 7)


def test_calls_in_pieces() -> None:
    """Would catch a call of a tool whose pieces are said one by one: Ollama says each call whole."""
    first = {"index": 0, "function": {"name": "weather", "arguments": '{"city":'}}
    rest = {"index": 0, "function": {"arguments": ' "Rome"}'}}
    call, last = lines_of(chunks_of({"tool_calls": [first]}, {"tool_calls": [rest]}, reason="tool_calls"))
    function = {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}
    assert call["message"]["tool_calls"] == [{"function": function}]
    assert last["done_reason"] == "stop"


def test_calls_of_one_index() -> None:
    """Would catch two calls that become one without arguments: Gemini's API numbers all of them 0."""
    pieces = [
        {"index": 0, "id": zone, "function": {"name": "clock", "arguments": f'{{"zone": "{zone}"}}'}}
        for zone in ("UTC", "CET")
    ]
    call, _ = lines_of(chunks_of({"tool_calls": pieces}))
    assert [one["function"]["arguments"] for one in call["message"]["tool_calls"]] == [
        {"zone": "UTC"},
        {"zone": "CET"},
    ]


def test_probabilities_and_thoughts_of_other_engines() -> None:
    """Would catch probabilities that a client has asked for in vain, and vLLM's thoughts that are lost."""
    tokens = [{"token": word, "logprob": -0.1, "bytes": [1], "top_logprobs": []} for word in "ab"]

    async def chunks() -> AsyncIterator[Json]:
        for delta, token in (({"reasoning": "hm"}, tokens[0]), ({}, tokens[1])):
            yield {"choices": [{"delta": delta, "logprobs": {"content": [token]}, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "logprobs": None, "finish_reason": "stop"}]}

    *said, _ = lines_of(chunks())
    assert [line["logprobs"] for line in said] == [[token] for token in tokens]
    assert said[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    whole = asyncio.run(OllamaReply("gpt-4").whole(chunks()))
    assert (whole["logprobs"], whole["message"]["thinking"]) == (tokens, "hm")


def test_an_error_in_the_middle() -> None:
    """Would catch an answer that ends as if it were whole."""

    async def broken() -> AsyncIterator[Json]:
        yield {"choices": [{"delta": {"content": "Hel"}}]}
        yield {"error": {"message": "the node failed"}}

    assert lines_of(broken())[1:] == [{"error": "the node failed"}]


def test_a_whole_answer() -> None:
    """Would catch an unstreamed answer without its words."""

    async def completion() -> AsyncIterator[Json]:
        message = {"role": "assistant", "content": "Hello"}
        yield {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}

    whole = asyncio.run(OllamaReply("gpt-4").whole(completion()))
    assert (whole["message"]["content"], whole["done"], whole["prompt_eval_count"]) == ("Hello", True, 1)
