"""Anthropic's Messages API, by Open WebUI's own code for it. Imports `open_webui` when called, not before."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at, objects_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.sse import event_text

Body = dict[str, Any]
_BLOCKS = frozenset({"text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result"})


def chat_from_anthropic(body: Mapping[str, Any]) -> Body:
    """The OpenAI chat body of a `POST /v1/messages`.

    Raises:
        ChatBodyError: something in it is not of its form.
    """
    from open_webui.utils.anthropic import convert_anthropic_to_openai_payload  # noqa: PLC0415

    if not objects_in(body.get("messages"), "messages"):
        raise ChatBodyError("messages", message("is missing: send a list of messages"))
    turns = [_readable(turn, f"messages[{number}].content") for number, turn in enumerate(body["messages"])]
    for number, tool in enumerate(objects_in(body.get("tools"), "tools")):
        if not isinstance(tool.get("input_schema"), Mapping):
            reason = message("is missing: only tools that the client runs can be used here")
            raise ChatBodyError(f"tools[{number}].input_schema", reason)
    try:
        made: Body = convert_anthropic_to_openai_payload({**body, "messages": turns})
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # it takes the form for granted
        raise ChatBodyError(
            message("The body"), message("is not of the form of Anthropic's Messages API")
        ) from error
    made.pop("metadata", None)
    made.pop("service_tier", None)  # Anthropic's tiers mean nothing to a node
    if not made.get("tools") or object_at(body, "tool_choice").get("type") == "none":
        made.pop("tools", None)
        made.pop("tool_choice", None)
    return {**made, "stream": bool(body.get("stream"))}


def _readable(turn: Mapping[str, Any], field: str) -> Body:
    """A message without blocks that the conversion would leave out: documents of text are made text."""
    content = turn.get("content")
    if isinstance(content, str):
        return {**turn}
    blocks = enumerate(objects_in(content, field))
    return {**turn, "content": [_readable_block(block, f"{field}[{number}]") for number, block in blocks]}


def _readable_block(block: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    kind, source = str(block.get("type"))[:40], object_at(block, "source")
    if kind in _BLOCKS:
        return block
    if kind == "document" and source.get("type") == "text":
        told = (block.get("title"), block.get("context"), source.get("data"))
        return {"type": "text", "text": "\n".join(str(part) for part in told if part)}
    raise ChatBodyError(
        field, message("is of the type {kind!r}: Ollama takes text and images only", kind=kind)
    )


def anthropic_answer(completion: Body, name: str) -> Body:
    """A completion as a message, under the name that was asked for."""
    from open_webui.utils.anthropic import convert_openai_to_anthropic_response  # noqa: PLC0415

    made: Body = convert_openai_to_anthropic_response(completion, model=name)
    return made | ({"ollama_pack": routed} if (routed := completion.get("ollama_pack")) else {})


async def anthropic_events(chunks: AsyncGenerator[Body, None], name: str) -> AsyncGenerator[str, None]:
    """The events of a streamed message. An error in the chunks is raised, in place of the message's end."""
    from open_webui.utils.anthropic import openai_stream_to_anthropic_stream  # noqa: PLC0415

    broken: list[Exception] = []

    async def texts() -> AsyncGenerator[str, None]:
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except Exception as error:  # noqa: BLE001 - raised below: Open WebUI's code would swallow it
            broken.append(error)

    async with aclosing(openai_stream_to_anthropic_stream(texts(), model=name)) as events:
        async for event in events:
            if broken:
                raise broken[0]
            yield event.decode() if isinstance(event, bytes) else event
    if broken:
        raise broken[0]
