"""Anthropic's Messages API, by Open WebUI's own code for it. Imports `open_webui` when called, not before."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at, objects_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.sse import event_text

Body = dict[str, Any]
_RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result"})  # of a tool's result
_BLOCKS = _RESULT_BLOCKS | {"thinking", "redacted_thinking", "tool_use", "tool_result"}
_IMAGE_SOURCES = frozenset({"base64", "url"})  # a `file` is at Anthropic


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
    # As `chat_from_ollama` says it: a model that can think does so unless told otherwise.
    silent = object_at(body, "thinking").get("type") == "disabled"
    return {**made, "stream": bool(body.get("stream")), **({"options": {"think": False}} if silent else {})}


def _readable(turn: Mapping[str, Any], field: str, known: frozenset[str] = _BLOCKS) -> Body:
    """A message, or a tool's result, without blocks that the conversion would leave out.

    Documents of text and results of a search are made text.
    """
    content = turn.get("content")
    if isinstance(content, str):
        return {**turn}
    blocks = enumerate(objects_in(content, field))
    made = [_readable_block(block, f"{field}[{number}]", known) for number, block in blocks]
    return {**turn, "content": made}


def _readable_block(block: Mapping[str, Any], field: str, known: frozenset[str]) -> Mapping[str, Any]:
    kind, source = str(block.get("type"))[:40], object_at(block, "source")
    told: tuple[object, ...] = ()
    match kind if kind in known else "":
        case "document" if source.get("type") == "text":
            told = (block.get("title"), block.get("context"), source.get("data"))
        case "search_result":
            parts = objects_in(block.get("content"), f"{field}.content")
            told = (block.get("title"), block.get("source"), *(part.get("text") for part in parts))
        case "tool_result":
            return _readable(block, f"{field}.content", _RESULT_BLOCKS)
        case "text" | "thinking" | "redacted_thinking" | "tool_use":
            return block
        case "image" if source.get("type") in _IMAGE_SOURCES:
            return block
        case "image":
            kind, field = str(source.get("type"))[:40], f"{field}.source"
    if not told:
        reason = message("is of the type {kind!r}: Ollama takes text and images only", kind=kind)
        raise ChatBodyError(field, reason)
    return {"type": "text", "text": "\n".join(str(part) for part in told if part)}


def anthropic_answer(completion: Body, name: str) -> Body:
    """A completion as a message, under the name that was asked for."""
    from open_webui.utils.anthropic import convert_openai_to_anthropic_response  # noqa: PLC0415

    made: Body = convert_openai_to_anthropic_response(_with_openai_figures(completion), model=name)
    return made | ({"ollama_pack": routed} if (routed := completion.get("ollama_pack")) else {})


def _with_openai_figures(answer: Body) -> Body:
    """An answer, or a chunk, whose figures have OpenAI's names alone.

    `input_tokens`, which Open WebUI's page shows, are all of the prompt. Anthropic's are those that were not
    cached: clients add the cached ones, and would take a context for twice as full as it is.
    """
    usage = object_at(answer, "usage")
    if "prompt_tokens" not in usage:
        return answer
    return answer | {"usage": {name: value for name, value in usage.items() if name != "input_tokens"}}


async def anthropic_events(chunks: AsyncGenerator[Body, None], name: str) -> AsyncGenerator[str, None]:
    """The events of a streamed message. An error in the chunks is raised, in place of the message's end."""
    from open_webui.utils.anthropic import openai_stream_to_anthropic_stream  # noqa: PLC0415

    broken: list[Exception] = []

    async def texts() -> AsyncGenerator[str, None]:
        try:
            async for chunk in chunks:
                yield event_text(_with_openai_figures(chunk))
        except Exception as error:  # noqa: BLE001 - raised below: Open WebUI's code would swallow it
            broken.append(error)

    async with aclosing(openai_stream_to_anthropic_stream(texts(), model=name)) as events:
        async for event in events:
            if broken:
                raise broken[0]
            yield event.decode() if isinstance(event, bytes) else event
    if broken:
        raise broken[0]
