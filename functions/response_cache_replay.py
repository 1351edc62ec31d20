"""
title: Response cache replay
author: Open WebUI Ollama Pack
description: Gives the answers that response_cache_filter has found. It is no model to chat with.
license: MIT
required_open_webui_version: 0.11.2
version: 0.1.0
"""

# GENERATED from src/ollama_pack/plugins/functions/response_cache_replay.py by scripts/package.py: change that, not this.

import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import orjson

# --- ollama_pack.engines.event_text ---
# A server-sent event as text.

LAST_EVENT = "data: [DONE]\n\n"  # OpenAI's

# Ends of lines to Python's `splitlines`, with which some clients take events apart.
_SEPARATORS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def event_text(value: Mapping[str, Any]) -> str:
    """An object as one event."""
    text = orjson.dumps(value).decode()
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return f"data: {text}\n\n"


# --- ollama_pack.errors ---
# Every error that the pack raises on purpose, and the base of them all.
#
# Each part defines its own in `<part>/errors.py`, so that a plugin carries only those that it can raise.
#
# PackError
# ├── AliasTableError             a row of an alias table cannot be used
# ├── AliasUnavailableError       an alias matched, but none of its models can answer this user
# ├── CacheConfigError            the cache cannot be used as it is configured
# ├── StoreError                  a store of the cache did not do what it was asked
# │   ├── StoreDownError              it cannot be reached, or failed
# │   └── StoreFullError              it takes no more, and still answers
# ├── EntryUnreadableError        what a store of the cache holds was changed
# ├── LeaderLostError             a generation that was shared was lost half-way
# ├── AudienceError               an audience cannot be read
# ├── ChatBodyError               a chat body holds what cannot be put into Ollama's form
# ├── NodeTableError              a row of the `nodes` valve cannot be used
# ├── RouterUnavailableError      gpu_router cannot be asked
# ├── ModelRefusedError          a model asked through Open WebUI gave an error
# ├── ModelClosedError            a user may not use the model that would answer
# ├── StoredFileError             no such file, or none that this user may read
# ├── UploadError                 a request has no file in it that can be taken
# │   └── UploadTooLargeError         too many bytes
# ├── RoutingError                a request cannot be given to a node
# │   ├── NoNodeError                 none has the model
# │   ├── NodesDownError              those that have it do not answer
# │   ├── QueueFullError              too many wait already
# │   ├── WaitedTooLongError          none became free in time
# │   ├── NoAnswerError               all that were tried failed before the first token
# │   │   └── RequestFailsError           several did in the same way: the request is the likely reason
# │   └── AnswerBrokenError           one failed after it
# ├── SpeechError                 a recording was not transcribed
# │   ├── AudioError                  the recording is at fault
# │   │   ├── EmptyAudioError             no byte in it
# │   │   ├── NotAudioError               neither audio nor video
# │   │   ├── NoAudioTrackError           a video without sound
# │   │   ├── ZeroLengthError             a track without a sample
# │   │   ├── NoSpeechError               nobody says anything
# │   │   ├── AudioTooLargeError          too many bytes
# │   │   └── AudioTooLongError           it lasts too long
# │   ├── LanguageTagError            no language that can be used
# │   ├── NoAttachmentError           nothing to transcribe
# │   ├── TranscriptFormatError       no format of transcripts
# │   ├── SpeechQueueFullError        too many recordings wait already
# │   └── SpeechEngineError           the engine does not do its work
# │       ├── SpeechDependencyError       a package is missing
# │       ├── SpeechModelMissingError     the model is nowhere
# │       ├── SpeechModelUnusableError    the model cannot be loaded
# │       ├── SpeechLanguageError         the engine does not know the language
# │       ├── CloudNotAllowedError        recordings would leave this machine
# │       ├── SpeechEngineFaultError      it failed while it worked
# │       └── SpeechServerError           a transcription server
# │           ├── SpeechServerUnreachableError  no connection
# │           ├── SpeechServerTimeoutError      a limit ran out
# │           ├── SpeechServerBusyError         it asks for patience
# │           ├── SpeechServerKeyError          it wants another key
# │           ├── SpeechServerTooLargeError     a piece is too large for it
# │           ├── SpeechServerRefusedError      it will not take the request
# │           └── SpeechServerFaultError        it failed, talked garbage or hung up
# └── NodeError                   a node did not do what it was asked
#     ├── RetryableNodeError          another node may do it
#     │   ├── NodeUnreachableError        no connection
#     │   │   └── NodeCertificateError        no TLS
#     │   ├── NodeTimeoutError            a limit ran out
#     │   ├── NodeBusyError               its queue is full
#     │   ├── NodeFaultError              it failed, talked garbage or hung up
#     │   ├── NodeGoneError               it has stopped answering
#     │   ├── WrongModelError             it answers with another model
#     │   └── ModelNotFoundError          it does not have the model
#     └── RequestRefusedError         it will not take this request, and no other node would


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


# --- ollama_pack.engines.errors ---
# What goes wrong with a node: see the tree in `ollama_pack.errors`.


class ChatBodyError(PackError, ValueError):
    """A chat body holds what cannot be put into the node's form.

    Attributes:
        field: where it stands, such as `messages[2].content[0].image_url`.
        reason: what is wrong with it and what to do. Never text of the conversation.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class NodeError(PackError):
    """A node did not do what it was asked.

    Attributes:
        node: its address, without user name, password and query.
        reason: what it did not do.
        status: the HTTP status of its answer; None where there was none, or where the answer had begun.
        said: the node's own message, shortened; empty where it gave none.
    """

    def __init__(self, node: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        super().__init__(f"node {node} {reason}" + (f": {said}" if said else ""))
        self.node = node
        self.reason = reason
        self.status = status
        self.said = said

    @property
    def plain(self) -> str:
        """What went wrong, for people who are not to see addresses."""
        return self.reason + (f": {self.said}" if self.said else "")


class RetryableNodeError(NodeError):
    """Another node may do what this one did not: nothing is wrong with the request."""


class NodeUnreachableError(RetryableNodeError):
    """No connection came about, so the node has not seen the request."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, "cannot be reached (does it run, is the address right?)", said=said)

    @property
    def plain(self) -> str:
        """What went wrong; the system's own message has the address in it."""
        return self.reason


class NodeCertificateError(NodeUnreachableError):
    """The node is there, but no TLS came about: its certificate is not trusted, or it speaks no TLS."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, said)
        self.reason = (
            "has a certificate that is not trusted, or speaks no TLS (for one that you have signed yourself "
            "set AIOHTTP_CLIENT_SSL_CERT_FILE, or SSL_CERT_FILE, to your CA where this runs)"
        )
        self.args = (f"node {node} {self.reason}: {said}",)


class NodeTimeoutError(RetryableNodeError):
    """A limit ran out.

    Attributes:
        stage: what was waited for.
        seconds: the limit.
    """

    def __init__(
        self,
        node: str,
        stage: Literal["connect", "load", "first byte", "next line", "answer"],
        seconds: float,
    ) -> None:
        waited = {"connect": "connected", "load": "loaded the model"}.get(stage, f"sent its {stage}")
        super().__init__(node, f"has not {waited} within {seconds:g} s")
        self.stage = stage
        self.seconds = seconds


class NodeBusyError(RetryableNodeError):
    """The node takes no more requests at the moment."""

    def __init__(self, node: str, status: int, said: str) -> None:
        super().__init__(node, f"is busy (status {status})", status=status, said=said)


class NodeFaultError(RetryableNodeError):
    """The node failed, sent what is no answer, or hung up."""


class NodeGoneError(RetryableNodeError):
    """The node has stopped answering at all while a request was there."""

    def __init__(self, node: str) -> None:
        super().__init__(node, "has stopped answering")


class WrongModelError(RetryableNodeError):
    """The node answers with another model than it was asked for.

    Attributes:
        answered: the name in its answer.
    """

    def __init__(self, node: str, asked: str, answered: str) -> None:
        super().__init__(node, f"answers with {answered!r} though it was asked for {asked!r}")
        self.answered = answered


class ModelNotFoundError(RetryableNodeError):
    """The node does not have the model.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, node: str, model: str, said: str, remedy: str = "") -> None:
        remedy = remedy or f"`ollama pull {model}` there"
        super().__init__(node, f"has no {model!r} ({remedy})", status=404, said=said)
        self.model = model


class RequestRefusedError(NodeError):
    """The node will not take this request, and no other node would: the request has to change."""

    def __init__(self, node: str, status: int | None, said: str) -> None:
        super().__init__(node, "refuses the request", status=status, said=said)


# --- ollama_pack.engines.body ---
# Reading fields of a body that nobody has checked: a value of the right type, or a refusal by name.

SHOWN_CHARACTERS = 40


def object_in(value: object, field: str) -> Mapping[str, Any]:
    """The value as an object; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise _unfit(value, field, "an object")


def objects_in(value: object, field: str) -> list[Mapping[str, Any]]:
    """The value as a list of objects; absent counts as empty.

    Raises:
        ChatBodyError: it is something else, or one of its items is.
    """
    items = list_in(value, field)
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise _unfit(item, f"{field}[{number}]", "an object")
    return items


def list_in(value: object, field: str) -> list[Any]:
    """The value as a list; absent counts as empty.

    Raises:
        ChatBodyError: it is something else.
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    raise _unfit(value, field, "a list")


def text_in(value: object, field: str) -> str:
    """The value, which must be text.

    Raises:
        ChatBodyError: it is something else.
    """
    if isinstance(value, str):
        return value
    raise _unfit(value, field, "text")


def decimal_in(value: object, field: str) -> float:
    """The value as a finite number. Open WebUI's custom parameters may be numbers in text.

    Raises:
        ChatBodyError: it is something else.
    """
    return _finite(value, field, "a number")


def whole_in(value: object, field: str) -> int:
    """The value as a whole number, cut off at the point as Ollama does it.

    Raises:
        ChatBodyError: it is something else.
    """
    number = _finite(value, field, "a whole number")
    return value if isinstance(value, int) else int(number)


def switch_in(value: object, field: str) -> bool:
    """The value as true or false, which may be written out.

    Raises:
        ChatBodyError: it is something else.
    """
    words = {"true": True, "false": False}
    meant = words.get(value.strip().lower()) if isinstance(value, str) else value
    if isinstance(meant, bool):
        return meant
    raise _unfit(value, field, "true or false")


def json_in(text: str | bytes) -> Any:
    """What the text says as JSON.

    Raises:
        ValueError: it is none, or too deep. NaN and the infinities, which JSON has not, count as none.
    """
    return orjson.loads(text)  # a JSONDecodeError is a ValueError


def _finite(value: object, field: str, kind: str) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):  # text that is no number, or an integer beyond every float
        pass
    raise _unfit(value, field, kind)


def _unfit(value: object, field: str, wanted: str) -> ChatBodyError:
    return ChatBodyError(field, f"must be {wanted}, not {_outline(value)}")


def _outline(value: object) -> str:
    """A value for a message: only scalars are shown, the rest may be somebody's conversation."""
    if isinstance(value, str | bool | float) or value is None:
        return repr(value if not isinstance(value, str) else value[:SHOWN_CHARACTERS])
    return {"dict": "an object", "list": "a list", "int": "a number"}.get(type(value).__name__, "that")


# --- ollama_pack.engines.ollama.to_openai ---
# What an Ollama says, as OpenAI's chat API says it. Nothing here raises: what has a wrong type is absent.
#
# Ollama leaves figures of zero and empty texts out of its JSON, so absent is a common value.

NANOSECONDS = 1_000_000_000
_FINISH_REASONS = {"length": "length"}  # all others, "load" and "unload" among them, are a plain end
_DURATIONS = ("total_duration", "load_duration")
_FIGURES = ("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What all parts of one answer have in common.

    Attributes:
        id: of the answer, such as chatcmpl-….
        created: Unix time, in seconds.
        model: the name that the client knows the model by.
    """

    id: str
    created: int
    model: str

    def tagged(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of this answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def answer_to_openai(answer: Mapping[str, Any], head: ReplyHead) -> dict[str, Any]:
    """An unstreamed answer of `/api/chat` as a `chat.completion`."""
    message = openai_message(answer, head)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "", **message},
        "logprobs": openai_logprobs(answer),
        "finish_reason": finish_reason(answer, called="tool_calls" in message),
    }
    return {**head.tagged("chat.completion"), "choices": [choice], "usage": openai_usage(answer)}


def openai_message(line: Mapping[str, Any], head: ReplyHead, calls_before: int = 0) -> dict[str, Any]:
    """What a line says, without the role and without what is empty: a message, or the delta of a chunk.

    Args:
        line: a line of `/api/chat`.
        head: of the answer, for the ids of tool calls that have none.
        calls_before: number of tool calls in earlier lines.
    """
    message = line.get("message")
    if not isinstance(message, Mapping):
        return {}
    said: dict[str, Any] = {}
    if content := _text_or_none(message.get("content")):
        said["content"] = content
    if thinking := _text_or_none(message.get("thinking")):
        said["reasoning_content"] = thinking
    if calls := openai_calls(message.get("tool_calls"), head, calls_before):
        said["tool_calls"] = calls
    return said


def openai_calls(calls: object, head: ReplyHead, before: int = 0) -> list[dict[str, Any]]:
    """Tool calls with arguments as text, numbered on from those before: Ollama's own index may start anew."""
    if not isinstance(calls, list):
        return []
    given = (call for call in calls if isinstance(call, Mapping))
    return [_openai_call(call, number, head) for number, call in enumerate(given, start=before)]


def _openai_call(call: Mapping[str, Any], number: int, head: ReplyHead) -> dict[str, Any]:
    function = call.get("function")
    given = function if isinstance(function, Mapping) else {}
    arguments = given.get("arguments") or {}
    compact = (",", ":")
    text = (
        arguments
        if isinstance(arguments, str)
        else json.dumps(arguments, ensure_ascii=False, separators=compact)
    )
    return {
        "index": number,
        "id": _text_or_none(call.get("id")) or f"call_{head.id}_{number}",  # Ollama has ids since 0.12
        "type": "function",
        "function": {"name": _text_or_none(given.get("name")) or "", "arguments": text},
    }


def openai_logprobs(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ollama's list of tokens with their probabilities, under OpenAI's name."""
    tokens = line.get("logprobs")
    return {"content": tokens, "refusal": None} if isinstance(tokens, list) and tokens else None


def finish_reason(line: Mapping[str, Any], *, called: bool) -> str:
    """Why the answer ends; `called` tells whether tools are to be called, of which Ollama says "stop"."""
    reason = line.get("done_reason")
    return "tool_calls" if called else _FINISH_REASONS.get(reason if isinstance(reason, str) else "", "stop")


def openai_usage(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the last line, in every form that Open WebUI shows: tokens, rates, nanoseconds."""
    prompt, answer = _figure(line, "prompt_eval_count"), _figure(line, "eval_count")
    seconds = _figure(line, "total_duration") // NANOSECONDS
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "input_tokens": prompt,
        "output_tokens": answer,
        "response_token/s": _rate(answer, _figure(line, "eval_duration")),
        "prompt_token/s": _rate(prompt, _figure(line, "prompt_eval_duration")),
        **{name: _figure(line, name) for name in (*_DURATIONS, *_FIGURES)},
        "approximate_total": f"{seconds // 3600}h{seconds % 3600 // 60}m{seconds % 60}s",
        "completion_tokens_details": dict.fromkeys(
            ("reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"), 0
        ),
    }


def openai_error(error: PackError) -> dict[str, Any]:
    """An error as the body of a refusal, or as the chunk that ends a stream."""
    details: dict[str, Any] = {"message": str(error), "type": "server_error", "param": None, "code": None}
    match error:
        case ChatBodyError():
            details |= {"type": "invalid_request_error", "param": error.field}
        case RequestRefusedError():
            details |= {"type": "invalid_request_error"}
        case ModelNotFoundError():
            details |= {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        case NodeBusyError():
            details |= {"code": "server_busy"}
    return {"error": details}


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _figure(line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _rate(tokens: int, nanoseconds: int) -> float | str:
    """Tokens a second; "N/A" is what Open WebUI shows where there is none."""
    return round(tokens * NANOSECONDS / nanoseconds, 2) if nanoseconds else "N/A"


# --- ollama_pack.engines.ollama.stream ---
# A streamed answer of Ollama as OpenAI's chunks: one step for each line, remembering but a small state.

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
    done = line.get("done") is True
    if not delta and not done:
        return state, []
    calls = state.calls + len(delta["tool_calls"]) if "tool_calls" in delta else state.calls
    if not state.started:
        delta = {"role": "assistant", **delta}
    if not state.started or calls != state.calls:
        state = StreamState(started=True, calls=calls)
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": openai_logprobs(line),
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


# --- ollama_pack.services.cache_state ---
# What `response_cache_filter` leaves for `response_cache_replay`: neither file can import the other.

# Key in Open WebUI's `__metadata__`, which lives as long as the request. There stand: the `rounds` of it so
# far, and of the last one that the cache is for the `model` that was asked, the id of the `filter`, and the
# `ticket` that it gives the answer for.
STATE = "ollama_pack_cache"


# --- ollama_pack.engines.lines ---
# Cutting a stream of bytes into lines of bounded length.


class LineTooLongError(Exception):
    """A line is longer than it may be. Never leaves `engines/`."""


class LineBuffer:
    """Takes bytes as they come and gives whole lines; never holds more than one line and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line, in bytes."""
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out.

        Raises:
            LineTooLongError: one of them is, or what has come of the next.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise LineTooLongError
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """What came after the last end of a line, as a line of its own."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []


# --- ollama_pack.engines.sse ---
# Server-sent events, as the HTML standard has them ("Interpreting an event stream"), of bounded length.
#
# Lenient where engines are: an event without an empty line after it counts when the stream ends.

DONE = b"[DONE]"  # OpenAI's last event
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        data: its lines, joined by line feeds.
        is_error: it is called so: `event: error`, or `error:` instead of `data:` as older llama.cpp has it.
    """

    data: bytes
    is_error: bool = False

    @property
    def is_last(self) -> bool:
        """Whether nothing that matters comes after it."""
        return self.data.strip() == DONE


class SseBuffer:
    """Takes bytes as they come and gives whole events; never holds more than one event and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line and the longest event, in bytes."""
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0  # of the lines in `_data`, their ends included
        self._is_error = False
        self._begun = False
        self._after_return = False  # a line feed that comes now belongs to the end of the line before

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that are complete now. Comments, such as pings, give none.

        Raises:
            LineTooLongError: a line or an event is.
        """
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        self._after_return = data.endswith(b"\r")
        whole = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = whole.split(b"\n")
        events = [event for line in lines if (event := self._take(line))]
        if len(self._rest) > self._limit:
            raise LineTooLongError
        return events

    def end(self) -> list[ServerEvent]:
        """What came after the last end of an event, as an event of its own."""
        rest, self._rest = self._rest, b""
        ended = [self._take(rest), self._take(b"")]
        return [event for event in ended if event]

    def _take(self, line: bytes) -> ServerEvent | None:
        """Take in a line; an empty one ends the event."""
        if not self._begun:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._begun = True
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._is_error = value == b"error"
        elif field in {b"data", b"error"}:
            self._is_error = self._is_error or field == b"error"
            self._data.append(value)
            self._size += len(value) + 1
        if len(line) > self._limit or self._size > self._limit:
            raise LineTooLongError
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(b"\n".join(self._data), self._is_error) if self._data else None
        self._data, self._size, self._is_error = [], 0, False
        return event


# --- ollama_pack.webui.errors ---
# What goes wrong between the pack and Open WebUI: see the tree in `ollama_pack.errors`.


class AudienceError(PackError, ValueError):
    """An audience cannot be read.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        part: the part of the text that is wrong.
    """

    def __init__(self, part: str) -> None:
        super().__init__(
            f"audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, "
            "with commas between several"
        )
        self.part = part


class RouterUnavailableError(PackError):
    """The `gpu_router` function cannot be asked. The message says why and what an admin can do."""


class ModelRefusedError(PackError):
    """A model that was asked through Open WebUI gave an error instead of an answer.

    Attributes:
        status: of HTTP.
        body: what the client gets.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"the model was asked through Open WebUI and gave the error {status}")
        self.status = status
        self.body = body


class ModelClosedError(PackError):
    """A user may not use the model that would answer. Open WebUI's own words: whether it exists is not said.

    Attributes:
        model: its id.
    """

    def __init__(self, model: str) -> None:
        super().__init__("Model not found")
        self.model = model


class StoredFileError(PackError):
    """No such file, or none that this user may read: which of the two is not told.

    Attributes:
        wanted: id or name of the file.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"the file {wanted!r} was not found: attach it to the chat")
        self.wanted = wanted


class UploadError(PackError):
    """A request has no file in it that can be taken. The message says how to send one."""


class UploadTooLargeError(UploadError):
    """The file has too many bytes.

    Attributes:
        limit: bytes.
        actual: bytes: as many as were announced or read.
    """

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(f"the file has {actual} bytes or more, the limit is {limit}")
        self.limit = limit
        self.actual = actual


class NoRoomError(PackError):
    """The server has no place for an upload, such as on a full disk: an admin can help."""

    def __init__(self) -> None:
        super().__init__("the server has no room for the recording now: try again later, or ask an admin")


# --- ollama_pack.webui.calling ---
# Asking a model through Open WebUI itself, with its access check. Imports `open_webui` when called.

EVENT_OCTETS = 64 * 2**20  # of the longest event: an answer may hold pictures
BAD_REQUEST, ERROR_STATUS = 400, 400


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A chat request as Open WebUI would have sent it.

    Attributes:
        request: FastAPI's, which the chat came with.
        body: OpenAI's chat body, with Open WebUI's metadata.
        user: who asks.
        has_system: the system prompt of the model's row is in it already.
    """

    request: Any
    body: Mapping[str, Any]
    user: Mapping[str, Any]
    has_system: bool

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer, as it comes. Where the model does not stream, it is one whole body.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        if isinstance(answer, dict):
            yield answer
            return
        buffer = SseBuffer(EVENT_OCTETS)
        try:
            async for data in answer.body_iterator:
                for event in buffer.feed(data.encode() if isinstance(data, str) else bytes(data)):
                    if (chunk := _chunk_of(event)) is not None:
                        yield chunk
            for event in buffer.end():
                if (chunk := _chunk_of(event)) is not None:
                    yield chunk
        finally:
            if answer.background is not None:
                await answer.background()  # gives Open WebUI's connection to the model back

    async def streamed(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none, or it broke off.
        """
        streaming = replace(self, body={**self.body, "stream": True})
        async with aclosing(streaming.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.get("error"):
                    raise ModelRefusedError(BAD_REQUEST, chunk)
                yield chunk

    async def completion(self) -> dict[str, Any]:
        """The answer to a request that wants no stream.

        Raises:
            ModelRefusedError: there is none.
        """
        answer = await self._answer()
        if not isinstance(answer, dict):
            raise ModelRefusedError(502, _error_body("the model streams, though nobody asked it to"))
        return answer

    async def _answer(self) -> Any:
        """A whole body, or a response that streams."""
        from fastapi import HTTPException  # noqa: PLC0415 - see the top of this module
        from open_webui.models.users import UserModel  # noqa: PLC0415
        from open_webui.utils.chat import generate_chat_completion  # noqa: PLC0415

        user = UserModel.model_validate(self.user)
        try:
            answer = await generate_chat_completion(
                self.request, dict(self.body), user, bypass_system_prompt=self.has_system
            )
        except HTTPException as error:
            raise ModelRefusedError(error.status_code, _error_body(error.detail)) from error
        except Exception as error:  # Open WebUI's own way to say that it will not
            raise ModelRefusedError(BAD_REQUEST, _error_body(str(error))) from error
        if isinstance(answer, dict):
            if answer.get("error"):
                raise ModelRefusedError(BAD_REQUEST, answer)
            return answer
        if answer.status_code >= ERROR_STATUS or not hasattr(answer, "body_iterator"):
            raise ModelRefusedError(answer.status_code, _body_of(answer))
        return answer


def _chunk_of(event: ServerEvent) -> dict[str, Any] | None:
    """The object in an event; None for the mark of the end, and for what is none."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(event.data)
        return found if isinstance(found, dict) else None
    return None


def _body_of(answer: Any) -> dict[str, Any]:
    with suppress(AttributeError, orjson.JSONDecodeError):
        found = orjson.loads(answer.body)
        if isinstance(found, dict):
            return found if "error" in found else _error_body(found.get("detail") or found)
    return _error_body(f"the model answered with the error {answer.status_code}")


def _error_body(detail: object) -> dict[str, Any]:
    """An error as OpenAI has it, and under the name by which Open WebUI looks for its sentence."""
    said = {"message": str(detail), "type": "server_error", "param": None, "code": None}
    return {"error": {**said, "detail": detail}}


# --- ollama_pack.webui.streams ---
# Answers that Open WebUI passes on as they come. Imports its web framework when called, not before.


def event_stream(events: AsyncIterator[str]) -> Any:
    """A streamed answer made of server-sent events, which Open WebUI hands on unchanged.

    Of a plain iterator it would put a finish reason of its own, "stop", behind ours.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415 - see the top of this module

    return StreamingResponse(events, media_type="text/event-stream")


def line_stream(lines: AsyncIterator[str]) -> Any:
    """A streamed answer made of lines of JSON, as Ollama streams."""
    from starlette.responses import StreamingResponse  # noqa: PLC0415

    return StreamingResponse(lines, media_type="application/x-ndjson")


def json_response(value: dict[str, Any], status: int) -> Any:
    """A JSON answer with a status, in the one form that Open WebUI takes from a function as it is."""
    from starlette.responses import StreamingResponse  # noqa: PLC0415

    content = orjson.dumps(value)

    async def parts() -> AsyncIterator[bytes]:
        yield content

    response = StreamingResponse(parts(), status, media_type="application/json")
    response.body = content  # where Open WebUI looks for the reason of a failure
    return response


# --- ollama_pack.plugins.functions.response_cache_replay ---

log = logging.getLogger(__name__)

REFUSAL = (
    "response_cache_replay is no model to chat with: response_cache_filter sends chats through it, to give "
    "answers of the cache. Choose another model."
)
LOST = "The answer that the response cache was to give is not there any more: regenerate it."

Body = dict[str, Any]


class Pipe:
    """Gives a chat the answer that the filter has found for it, or has its model generate and shares that."""

    async def pipe(
        self, body: Body, __user__: dict[str, Any], __metadata__: dict[str, Any], __request__: Any
    ) -> Any:
        """Answer a chat that the filter has sent. An error here becomes the answer's error."""
        state = __metadata__.get(STATE) or {}
        if "model" not in state:
            return _refused(body, 400, _failure(REFUSAL))
        call = ModelCall(
            __request__,
            {**body, "model": state["model"], "metadata": __metadata__},
            {name: value for name, value in __user__.items() if name != "valves"},
            has_system=state["rounds"] > 1,
        )
        pending = _claimed(state, __request__)
        if body.get("stream"):
            return event_stream(_events(_chunks(pending, call)))
        try:
            if pending is None:
                return await call.completion()
            return await pending.completion(_head(pending.named), call.completion, call.streamed)
        except ModelRefusedError as error:
            return _refused(body, error.status, error.body)
        except Exception as error:
            log.exception("An answer of the response cache could not be given")
            return _refused(body, 502, _failure(str(error) or LOST))


def _claimed(state: Mapping[str, Any], request: Any) -> Any:
    """What the filter has found; None where it was replaced or switched off since: the model answers then."""
    found = request.app.state.FUNCTIONS.get(state.get("filter"))
    claim = getattr(found, "claim", None)
    return claim(str(state.get("ticket") or "")) if claim else None


def _chunks(pending: Any, call: ModelCall) -> AsyncGenerator[Body, None]:
    if pending is None:
        return call.chunks()
    chunks: AsyncGenerator[Body, None] = pending.chunks(
        _head(pending.named), call.chunks, usage_place(call.body)
    )
    return chunks


def _head(model: str) -> ReplyHead:
    return ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), model)


async def _events(chunks: AsyncGenerator[Body, None]) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is the last of them, as the client has the status 200 already."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event_text(chunk)
        except ModelRefusedError as error:
            yield event_text(error.body)
        except Exception as error:
            log.exception("An answer of the response cache ended half-way")
            yield event_text(_failure(str(error) or LOST))
    yield LAST_EVENT


def _refused(body: Body, status: int, failure: Body) -> Body | Any:
    """An error, with its status where the client has none yet."""
    return failure if body.get("stream") else json_response(failure, status)


def _failure(sentence: str) -> Body:
    return {"error": {"message": sentence, "detail": sentence, "type": "invalid_request_error"}}
