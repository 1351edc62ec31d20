"""From chunks to an entry and back: what is told again is what was said."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.cache.collect import AnswerCollector, says_something
from ollama_pack.cache.entry import Entry
from ollama_pack.cache.replay import (
    CacheMark,
    completion_chunks,
    completion_from,
    entry_chunks,
    shared_chunks,
)
from ollama_pack.engines.ollama.to_openai import ReplyHead

HEAD = ReplyHead("chatcmpl-own", 1_700_000_000, "gpt-4")
THEIRS = ReplyHead("chatcmpl-theirs", 1, "llama3:8b")
HIT = CacheMark("hit", 12.6)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
Chunk = dict[str, Any]


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> Chunk:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**THEIRS.tagged("chat.completion.chunk"), "choices": [choice], **more}


def collect(chunks: Iterable[Chunk]) -> Entry | str:
    collector = AnswerCollector()
    for each in chunks:
        collector.add(each)
    return collector.verdict(created=1.0, seconds=2.0)


async def streamed(chunks: Iterable[Chunk]) -> AsyncGenerator[Chunk, None]:
    for each in chunks:
        yield each


def shared(chunks: Iterable[Chunk], *, apart: bool = False) -> list[Chunk]:
    async def run() -> list[Chunk]:
        place: Any = "apart" if apart else "last"
        return [each async for each in shared_chunks(streamed(chunks), HEAD, CacheMark("follow"), place)]

    return asyncio.run(run())


def completed(chunks: Iterable[Chunk]) -> dict[str, Any]:
    return asyncio.run(completion_from(streamed(chunks), HEAD))


ANSWER = (
    {"choices": [], "sources": [{"source": {"name": "a page"}}]},
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hm"}),
    chunk({"reasoning": "."}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop", usage=USAGE, ollama_pack={"node": "gpu0"}),
)
ENTRY = Entry("Hello", "Hm.", "llama3:8b", USAGE, [{"source": {"name": "a page"}}], 1.0, 2.0)


def test_chunks_become_an_entry() -> None:
    """Would catch words, thoughts, figures or sources that are lost on the way into the cache."""
    assert collect(ANSWER) == ENTRY


entries = st.builds(
    Entry,
    st.text(min_size=1).filter(str.strip),
    st.text(),
    st.just("gpt-4"),
    st.none() | st.just(USAGE),
    st.lists(st.just({"source": {"name": "a page"}}), max_size=2),
    st.just(1.0),
    st.just(2.0),
)


@given(entries, st.sampled_from(["last", "apart"]))
def test_entry_survives_being_told_and_kept_again(entry: Entry, place: Any) -> None:
    """Would catch an answer that changes each time it goes through a cache, streamed or not."""
    chunks = list(entry_chunks(entry, HEAD, HIT, place))
    assert collect(chunks) == entry
    assert collect(completion_chunks(completed(chunks))) == entry


def test_mark_is_in_the_last_chunk_and_in_the_body() -> None:
    """Would catch a mark that clients do not find, an age with decimals or one below zero."""
    chunks = list(entry_chunks(ENTRY, HEAD, HIT))
    assert [each.get("ollama_pack") for each in chunks] == [None] * 3 + [{"cache": "hit", "age_seconds": 13}]
    assert completed(chunks)["ollama_pack"] == {"cache": "hit", "age_seconds": 13}
    assert CacheMark("hit", -5).fields == {"ollama_pack": {"cache": "hit", "age_seconds": 0}}


def test_shared_chunks_are_the_clients_own() -> None:
    """Would catch another request's id, its name of the model, its node or its figures in a wrong place."""
    chunks = shared(ANSWER)
    assert {(each["id"], each["created"], each["model"]) for each in chunks} == {
        ("chatcmpl-own", 1_700_000_000, "gpt-4")
    }
    assert chunks[-1]["usage"] == USAGE
    assert chunks[-1]["ollama_pack"] == {"cache": "follow", "age_seconds": 0}
    assert collect(chunks) == Entry("Hello", "Hm.", "gpt-4", USAGE, ENTRY.sources, 1.0, 2.0)


def test_figures_go_where_the_follower_wants_them() -> None:
    """Would catch a follower that gets the leader's form: figures apart, in the last chunk, or not at all."""
    leader_apart = (*ANSWER[:-1], chunk({}, "stop"), {**THEIRS.tagged("x"), "choices": [], "usage": USAGE})
    for leader in (ANSWER, leader_apart):
        assert shared(leader)[-1]["choices"][0]["finish_reason"] == "stop"
        assert shared(leader)[-1]["usage"] == USAGE
        *_, end, figures = shared(leader, apart=True)
        assert (end["choices"][0]["finish_reason"], "usage" in end) == ("stop", False)
        assert (figures["choices"], figures["usage"], "ollama_pack" in figures) == ([], USAGE, True)


def test_status_lines_in_between_pass() -> None:
    """Would catch a pipe's status lines that followers lose."""
    event = {"event": {"type": "status", "data": {"description": "thinking"}}}
    assert event in shared((event, *ANSWER))


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
REST = {"index": 0, "function": {"arguments": '": 1}'}}
OTHER = {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}


def test_tool_calls_are_put_together() -> None:
    """Would catch arguments that are cut off for a client without a stream."""
    chunks = (chunk({"tool_calls": [CALL, OTHER]}), chunk({"tool_calls": [REST]}), chunk({}, "tool_calls"))
    body = completed(chunks)
    calls = body["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]) for call in calls] == [
        ("call_1", {"name": "f", "arguments": '{"a": 1}'}),
        ("call_2", {"name": "g", "arguments": "{}"}),
    ]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert next(completion_chunks(body))["choices"][0]["delta"]["tool_calls"][1]["index"] == 1
    assert collect(chunks) == "tool calls"


def test_error_becomes_the_body() -> None:
    """Would catch an error that looks like an empty answer to a client without a stream."""
    assert completed((chunk({"content": "Hel"}), {"error": {"message": "gone"}})) == {
        "error": {"message": "gone"}
    }


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ((chunk({"content": "x"}), chunk({}, "length")), "finish reason length"),
        ((chunk({"content": "x"}),), "no finish reason"),
        ((chunk({"content": " \n"}), chunk({}, "stop")), "empty"),
        ((chunk({"reasoning_content": "x"}), chunk({}, "stop")), "empty"),
        ((chunk({"content": "x"}), chunk({}, "stop"), {"error": "late"}), "error"),
        ((chunk({"content": "x", "annotations": [{}]}), chunk({}, "stop")), "unknown field"),
        ((chunk({"content": "x"}), chunk({}, "stop", future=1)), "unknown field"),
        ((chunk({"content": [{"type": "image"}]}), chunk({}, "stop")), "an answer that is not text"),
        ((chunk({"content": "x", "refusal": "no"}), chunk({}, "stop")), "refusal"),
        (({"choices": [{"index": 1, "delta": {"content": "x"}}]}, chunk({}, "stop")), "several choices"),
        (({"choices": ["x"]}, chunk({}, "stop")), "several choices"),
        (
            ({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [1]}}]},),
            "log probabilities",
        ),
    ],
)
def test_what_is_not_whole_or_not_understood_is_not_kept(chunks: tuple[Chunk, ...], reason: str) -> None:
    """Would catch an answer that cannot be told again as it was."""
    assert collect(chunks) == reason


def test_field_that_holds_nothing_is_no_hindrance() -> None:
    """Would catch a vLLM behind Open WebUI's own connection whose answers are never kept."""
    streamed = (
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=None),
        chunk({"content": "Hello"}),
    )
    assert isinstance(collect((*streamed, chunk({}, "stop"))), Entry)
    message: Chunk = {"role": "assistant", "content": "Hello", "annotations": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": None}
    whole = {
        "choices": [choice],
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }
    assert isinstance(collect(tuple(completion_chunks(whole))), Entry)


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (chunk({"role": "assistant"}), False),
        (chunk({"role": "assistant", "content": ""}), False),
        ({"choices": []}, False),
        ({"choices": "x"}, False),
        ({"choices": ["x"]}, False),
        ({"event": {}}, False),
        (chunk({"content": "x"}), True),
        (chunk({"reasoning_content": "x"}), True),
        (chunk({"tool_calls": [CALL]}), True),
        (chunk({}, "stop"), True),
        ({"error": "gone"}, True),
    ],
)
def test_what_shows_something_is_told_apart(each: Chunk, *, expected: bool) -> None:
    """Would catch a follower that cannot take over after a role, or that does after a word."""
    assert says_something(each) is expected
