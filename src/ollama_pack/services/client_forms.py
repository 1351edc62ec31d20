"""The APIs that clients of the gateway speak: each request becomes an OpenAI chat body, each answer its form.

Nothing is translated twice: Anthropic's form is Open WebUI's own code, Ollama's is the engines'.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from ollama_pack.base.messages import message
from ollama_pack.engines.body import switch_in
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.client_request import chat_from_generate, chat_from_ollama
from ollama_pack.engines.ollama.from_openai import OllamaReply
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.engines.sse import LAST_EVENT, event_text
from ollama_pack.webui.anthropic import anthropic_answer, anthropic_events, chat_from_anthropic
from ollama_pack.webui.server import EVENTS_TYPE, LINES_TYPE

Body = dict[str, Any]
Chunks = AsyncGenerator[Body, None]
Texts = AsyncGenerator[str, None]


@dataclass(frozen=True, slots=True)
class ClientForm:
    """One way to ask for a chat.

    Attributes:
        api: whose errors the client understands.
        asked: gives the OpenAI chat body of a request; raises ChatBodyError.
        whole: gives the answer of a completion, for the name that was asked for.
        streamed: gives the text of a stream, for the same.
        last: ends a stream that broke off, after its error.
        media_type: of a stream.
    """

    api: ApiForm
    asked: Callable[[Mapping[str, Any]], Body]
    whole: Callable[[Body, str], Awaitable[Body]]
    streamed: Callable[[Chunks, str], Texts]
    last: str = ""
    media_type: str = EVENTS_TYPE

    def broken(self, refusal: Refusal) -> str:
        """What a stream says of an error."""
        if self.api == "ollama":
            return _line(refusal.body("ollama"))
        if self.api == "anthropic":
            return f"event: error\ndata: {orjson.dumps(refusal.body('anthropic')).decode()}\n\n"
        return event_text(refusal.body()) + self.last


def _openai_body(body: Mapping[str, Any]) -> Body:
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ChatBodyError(
            "messages", message("is missing: send a list of messages, such as [{{role, content}}]")
        )
    return {**body, "stream": _streams(body)}


def _streams(body: Mapping[str, Any]) -> bool:
    return body.get("stream") is not None and switch_in(body["stream"], "stream")


async def _openai_whole(completion: Body, name: str) -> Body:
    return completion | {"model": name}


async def _openai_stream(chunks: Chunks, name: str) -> Texts:
    async for chunk in chunks:
        chunk["model"] = name
        yield event_text(chunk)
    yield LAST_EVENT


def _prompt_body(body: Mapping[str, Any]) -> Body:
    """A chat of one message for the older API that takes a prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ChatBodyError("prompt", message("must be one text: send one request for each prompt"))
    if body.get("suffix"):
        raise ChatBodyError("suffix", message("cannot be used here: send the prompt alone"))
    left_out = {"prompt", "suffix", "echo", "best_of", "logprobs"}  # `logprobs` is a switch in chats
    kept = {name: value for name, value in body.items() if name not in left_out}
    return {**kept, "messages": [{"role": "user", "content": prompt}], "stream": _streams(body)}


def _text_choice(said: object, finish: object) -> list[Body]:
    return [{"index": 0, "text": said or "", "logprobs": None, "finish_reason": finish}]


async def _prompt_whole(completion: Body, name: str) -> Body:
    choice = completion["choices"][0]
    choices = _text_choice(choice["message"].get("content"), choice.get("finish_reason"))
    return completion | {"object": "text_completion", "model": name, "choices": choices}


async def _prompt_stream(chunks: Chunks, name: str) -> Texts:
    async for chunk in chunks:
        choices = [
            one
            for choice in chunk.get("choices") or ()
            for one in _text_choice((choice.get("delta") or {}).get("content"), choice.get("finish_reason"))
        ]
        yield event_text({**chunk, "object": "text_completion", "model": name, "choices": choices})
    yield LAST_EVENT


async def _anthropic_whole(completion: Body, name: str) -> Body:
    return anthropic_answer(completion, name)


async def _ollama_whole(completion: Body, name: str) -> Body:
    return await OllamaReply(name).whole(_one(completion))


async def _ollama_stream(chunks: Chunks, name: str) -> Texts:
    async with aclosing(OllamaReply(name).lines(chunks)) as lines:
        async for line in lines:
            yield _line(line)


async def _generate_whole(completion: Body, name: str) -> Body:
    return _generated(await OllamaReply(name).whole(_one(completion)))


async def _generate_stream(chunks: Chunks, name: str) -> Texts:
    async with aclosing(OllamaReply(name).lines(chunks)) as lines:
        async for line in lines:
            yield _line(_generated(line))


def _generated(line: Body) -> Body:
    """A line of `/api/generate`, which has its words at the top."""
    message = line.pop("message", {})
    thinking = {"thinking": message["thinking"]} if message.get("thinking") else {}
    return {**line, "response": message.get("content", ""), **thinking}


def loaded_answer(form: ClientForm, body: Mapping[str, Any]) -> Body:
    """What a client gets that sent no prompt: nothing is generated. The router decides what is in memory."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    is_chat = form is OLLAMA_CHAT
    said: Body = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    return {"model": body["model"], "created_at": now, **said, "done": True, "done_reason": reason}


async def _one(completion: Body) -> AsyncIterator[Body]:
    yield completion


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


OPENAI_CHAT = ClientForm("openai", _openai_body, _openai_whole, _openai_stream, LAST_EVENT)
OPENAI_PROMPT = ClientForm("openai", _prompt_body, _prompt_whole, _prompt_stream, LAST_EVENT)
ANTHROPIC = ClientForm("anthropic", chat_from_anthropic, _anthropic_whole, anthropic_events)
OLLAMA_CHAT = ClientForm("ollama", chat_from_ollama, _ollama_whole, _ollama_stream, media_type=LINES_TYPE)
OLLAMA_GENERATE = ClientForm(
    "ollama", chat_from_generate, _generate_whole, _generate_stream, media_type=LINES_TYPE
)
