"""A kept or shared answer in the form that the asking client wants: chunks of a stream, or one body."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ollama_pack.cache.collect import AnswerCollector
from ollama_pack.cache.entry import Entry
from ollama_pack.engines.body import object_at
from ollama_pack.engines.calls import PendingCalls
from ollama_pack.engines.ollama.stream import UsagePlace
from ollama_pack.engines.ollama.to_openai import ReplyHead

MARKER = "ollama_pack"


@dataclass(frozen=True, slots=True)
class CacheMark:
    """What a client is told of where its answer came from.

    Attributes:
        cache: `hit` for a kept answer, `follow` for one that was being generated for somebody else,
            `similar` for a kept answer to the same question in other words.
        age_seconds: since it was kept; 0 for `follow`. Never negative.
        similarity: of the questions, from 0 to 1, for `similar` alone.
    """

    cache: Literal["hit", "follow", "similar"]
    age_seconds: float = 0.0
    similarity: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        similarity = {} if self.similarity is None else {"similarity": round(self.similarity, 4)}
        age = max(0, round(self.age_seconds))
        return {MARKER: {"cache": self.cache, "age_seconds": age, **similarity}}


def entry_chunks(
    entry: Entry, head: ReplyHead, mark: CacheMark, place: UsagePlace = "last"
) -> Iterator[dict[str, Any]]:
    """A kept answer as a stream: its sources, its thoughts, its text, its end."""
    if entry.sources:
        yield {**_chunk_head(head), "choices": [], "sources": entry.sources}
    role = {"role": "assistant"}
    if entry.reasoning:
        yield _chunk(head, {**role, "reasoning_content": entry.reasoning})
        role = {}
    yield _chunk(head, {**role, "content": entry.content})
    yield from end_chunks(head, _chunk(head, {}, "stop"), entry.usage, mark, place)


def completion_chunks(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An unstreamed answer as chunks, so that one whose client wants no stream can be shared and kept."""
    head: dict[str, Any] = {name: body[name] for name in ("id", "created", "model") if name in body}
    head["object"] = "chat.completion.chunk"
    extra = {name: value for name, value in body.items() if name not in {*head, "choices"}}
    choices = [choice for choice in body.get("choices") or () if isinstance(choice, Mapping)]
    ends = []
    for choice in choices:
        common = {name: value for name, value in choice.items() if name not in ("message", "logprobs")}
        said = {"delta": _delta_of(choice.get("message") or {}), "logprobs": choice.get("logprobs")}
        yield {**head, "choices": [{**common, **said, "finish_reason": None}]}
        ends.append({**common, "delta": {}, "logprobs": None})
    yield {**head, "choices": ends, **extra}


def _delta_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a delta: its tool calls get the number that tells pieces of a stream apart."""
    calls = message.get("tool_calls")
    numbered = [{"index": place, **call} for place, call in enumerate(calls)] if calls else calls
    return {**message, **({"tool_calls": numbered} if calls else {})}


async def completion_from(chunks: AsyncIterable[Mapping[str, Any]], head: ReplyHead) -> dict[str, Any]:
    """One body from a stream, for a client that wants none. An error in the stream becomes the body."""
    collector = AnswerCollector()
    mark: dict[str, Any] = {}
    async for chunk in chunks:
        if chunk.get("error"):
            return {"error": chunk["error"]}
        collector.add(chunk)
        mark = {MARKER: chunk[MARKER]} if MARKER in chunk else mark
    reasoning = {"reasoning_content": collector.reasoning} if collector.reasoning else {}
    pending = PendingCalls()
    for piece in collector.tool_calls:
        pending.take(object_at(piece))
    calls = {"tool_calls": pending.whole(head.id)} if pending.calls else {}
    message = {"role": "assistant", "content": collector.content, **reasoning, **calls}
    return _completion(head, message, collector.finish_reason, collector.usage, collector.sources) | mark


async def shared_chunks(
    chunks: AsyncGenerator[dict[str, Any], None], head: ReplyHead, mark: CacheMark, place: UsagePlace = "last"
) -> AsyncGenerator[dict[str, Any], None]:
    """Another request's chunks as this one's own: its id, its name of the model, its place for the figures.

    The chunk with the finish reason is held back until the end, so that the mark is in the last one.
    """
    end: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    async for chunk in chunks:
        usage = chunk.get("usage") or usage
        choices = chunk.get("choices") or []
        own = {**chunk, **_chunk_head(head)} if "choices" in chunk else dict(chunk)
        own.pop("usage", None)
        own.pop(MARKER, None)
        if choices and choices[0].get("finish_reason"):
            end = own
        elif choices or chunk.keys() - {"usage", *_chunk_head(head), "choices", MARKER}:
            yield own
    for last in end_chunks(head, end or _chunk(head, {}), usage, mark, place):
        yield last


def end_chunks(
    head: ReplyHead, end: dict[str, Any], usage: dict[str, Any] | None, mark: CacheMark, place: UsagePlace
) -> Iterator[dict[str, Any]]:
    """The last chunk, or the last two where the client wants the figures apart."""
    if usage is None or place == "last":
        yield end | ({"usage": usage} if usage is not None else {}) | mark.fields
        return
    yield end
    yield {**_chunk_head(head), "choices": [], "usage": usage} | mark.fields


def _chunk_head(head: ReplyHead) -> dict[str, Any]:
    return head.tagged("chat.completion.chunk")


def _chunk(head: ReplyHead, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_chunk_head(head), "choices": [choice]}


def _completion(
    head: ReplyHead,
    message: dict[str, Any],
    finish_reason: str,
    usage: dict[str, Any] | None,
    sources: list[Any],
) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason or None}
    cited = {"sources": sources} if sources else {}
    return {**head.tagged("chat.completion"), "choices": [choice], "usage": usage, **cited}
