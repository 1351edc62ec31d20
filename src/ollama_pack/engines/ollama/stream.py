"""A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from ollama_pack.engines.body import object_in, switch_in
from ollama_pack.engines.ollama.to_openai import (
    ReplyHead,
    finish_reason,
    openai_logprobs,
    openai_message,
    openai_usage,
)

# Where the figures go: a chunk of their own without choices, or the last chunk as Open WebUI has it.
UsagePlace = Literal["apart", "last"]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What of the lines before matters for the next.

    Attributes:
        started: a chunk was sent, so the role is known.
        calls: number of tool calls so far.
    """

    started: bool = False
    calls: int = 0


def usage_place(body: Mapping[str, Any]) -> UsagePlace:
    """Where the client that sent this OpenAI chat body wants the figures.

    Raises:
        ChatBodyError: `stream_options` is not of its form.
    """
    asked = object_in(body.get("stream_options"), "stream_options").get("include_usage")
    return "apart" if asked and switch_in(asked, "stream_options.include_usage") else "last"


def line_to_chunks(
    line: Mapping[str, Any], head: ReplyHead, state: StreamState, place: UsagePlace = "last"
) -> tuple[StreamState, list[dict[str, Any]]]:
    """One line of `/api/chat` as chunks, and the state for the next line.

    A line that says nothing gives no chunk. The last line may carry text and calls too: they are in the chunk
    that has the finish reason.
    """
    delta = openai_message(line, head, state.calls)
    logprobs = openai_logprobs(line)  # may come without text, which Ollama looks through for tool calls
    done = line.get("done") is True
    if not delta and not logprobs and not done:
        return state, []
    calls = state.calls + len(delta["tool_calls"]) if "tool_calls" in delta else state.calls
    if not state.started:
        delta = {"role": "assistant", **delta}
    if not state.started or calls != state.calls:
        state = StreamState(started=True, calls=calls)
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason(line, called=calls > 0) if done else None,
    }
    chunk = {**head.tagged("chat.completion.chunk"), "choices": [choice]}
    return state, [chunk, *_usage_chunks(line, head, chunk, place)] if done else [chunk]


def _usage_chunks(
    line: Mapping[str, Any], head: ReplyHead, last: dict[str, Any], place: UsagePlace
) -> list[dict[str, Any]]:
    usage = {"usage": openai_usage(line)}
    if place == "last":
        last |= usage
        return []
    return [{**head.tagged("chat.completion.chunk"), "choices": []} | usage]


def completion_of(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The `chat.completion` that all chunks of an answer make up, for a client that wants no stream."""
    taken = list(chunks)
    choices = [chunk["choices"][0] for chunk in taken if chunk["choices"]]
    logprobs = [token for choice in choices for token in (choice["logprobs"] or {}).get("content", ())]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "", **_joined(choice["delta"] for choice in choices)},
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": choices[-1]["finish_reason"],
    }
    head = {name: taken[0][name] for name in ("id", "created", "model")}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": taken[-1].get("usage")}


def _joined(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        if "tool_calls" in delta:
            message["tool_calls"] = message.get("tool_calls", []) + delta["tool_calls"]
    return message


async def stream_to_openai(
    lines: AsyncGenerator[dict[str, Any], None], head: ReplyHead, place: UsagePlace = "last"
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a whole stream. Closing it closes the lines; an error in the lines passes through."""
    state = StreamState()
    async with aclosing(lines):
        async for line in lines:
            state, chunks = line_to_chunks(line, head, state, place)
            for chunk in chunks:
                yield chunk
