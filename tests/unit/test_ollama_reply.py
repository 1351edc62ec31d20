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
