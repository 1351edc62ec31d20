"""The gateway's pure parts: requests of Ollama's clients, settings for connections, what is remembered."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.client_request import (
    asks_nothing,
    chat_from_generate,
    chat_from_ollama,
    fitted_settings,
)
from ollama_pack.engines.ollama.to_ollama import request_to_ollama
from ollama_pack.engines.openai.request import request_to_engine
from ollama_pack.services.client_forms import OLLAMA_CHAT, OPENAI_PROMPT, loaded_answer
from ollama_pack.services.gateway import _answer_alone, _whole
from ollama_pack.services.gateway_limits import limit_headers
from ollama_pack.services.gateway_vectors import (
    Embedded,
    TextsAsked,
    ollama_vector,
    openai_vectors,
    text_asked,
    texts_asked,
)
from ollama_pack.webui.calling import ModelCall, refusal_in
from ollama_pack.webui.errors import ModelRefusedError
from ollama_pack.webui.routes import json_answer

CALL = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}


def test_a_request_of_ollamas_comes_back_as_it_was() -> None:
    """There and back: what a client of Ollama's asks is what a node is asked."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    asked = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look", "images": ["iVBORw0KGgo="]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "noon", "tool_name": "clock"},
        ],
        "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
        "format": schema,
        "options": {"temperature": 0.5, "num_predict": 7},
        "keep_alive": "5m",
        "think": False,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 2,
    }
    sent = request_to_ollama(chat_from_ollama(asked), "switch")
    same = ("format", "options", "keep_alive", "think", "stream", "logprobs", "top_logprobs")
    assert {name: sent[name] for name in same} == {name: asked[name] for name in same}
    assert sent["messages"][1]["images"] == ["iVBORw0KGgo="]
    assert sent["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}
    assert sent["messages"][3]["tool_name"] == "clock"


def test_a_request_of_ollamas_reaches_other_engines_whole() -> None:
    """Would catch pictures that a model is not shown, or calls without the ids that engines demand."""
    asked = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "look", "images": ["iVBORw0KGgo="]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "noon", "tool_name": "clock"},
        ],
    }
    user, turn, result = request_to_engine(chat_from_ollama(asked))["messages"]
    assert user["content"][1]["image_url"] == {"url": "data:image/png;base64,iVBORw0KGgo="}
    assert turn["tool_calls"][0]["id"] == result["tool_call_id"]
    assert turn["tool_calls"][0]["function"]["arguments"] == '{"zone": "UTC"}'


def test_each_result_of_a_tool_belongs_to_its_own_call() -> None:
    """Would catch two calls of one tool whose results go to the same call, and ids that are not unique."""

    def result(text: str, **more: str) -> dict[str, str]:
        return {"role": "tool", "content": text, "tool_name": "clock", **more}

    turn = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL, {**CALL, "id": "mine"}, CALL]}
    results = [result("1"), result("mine", tool_call_id="mine"), result("2"), result("3")]
    chat = chat_from_ollama({"model": "m", "messages": [turn, *results, turn, result("4")]})
    first, *answered, second, last = chat["messages"]
    one, two, mine, three = (call["id"] for call in first["tool_calls"])
    assert [message["tool_call_id"] for message in answered] == [one, mine, two, three]
    assert last["tool_call_id"] == second["tool_calls"][0]["id"]
    made = [call["id"] for message in (first, second) for call in message["tool_calls"]]
    assert len({*made}) == len(made) - 1  # the client's own comes twice


def test_ollama_streams_unless_told_otherwise() -> None:
    assert chat_from_ollama({"model": "m", "messages": []})["stream"] is True
    assert chat_from_ollama({"model": "m", "messages": [], "stream": False})["stream"] is False


def test_generate_is_a_chat_of_one_message() -> None:
    chat = chat_from_generate({"model": "m", "prompt": "hello", "system": "be brief"})
    assert chat["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    assert asks_nothing({"model": "m"})
    assert not asks_nothing({"model": "m", "prompt": "hello"})


@pytest.mark.parametrize("field", ["suffix", "raw", "template", "context"])
def test_what_needs_the_model_without_its_template_is_refused(field: str) -> None:
    with pytest.raises(ChatBodyError, match=field):
        chat_from_generate({"model": "m", "prompt": "hello", field: "x"})


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        ["hello"],
        [{"content": "hello"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "images": [1]}],
        [{"role": "assistant", "tool_calls": [{"function": {}}]}],
    ],
)
def test_messages_out_of_form_are_refused_by_name(messages: Any) -> None:
    with pytest.raises(ChatBodyError, match="messages"):
        chat_from_ollama({"model": "m", "messages": messages})


def test_settings_are_where_a_connection_looks_for_them() -> None:
    """Would catch a temperature that Open WebUI drops on its way to an Ollama, or options sent to OpenAI."""
    openai = {"model": "m", "temperature": 0.5, "max_tokens": 7}
    assert fitted_settings(openai, "ollama")["options"] == {"temperature": 0.5, "max_tokens": 7}
    ollama = {"model": "m", "options": {"temperature": 0.5, "num_predict": 7, "num_ctx": 2048}}
    assert fitted_settings(ollama, "openai") == {"model": "m", "temperature": 0.5, "max_tokens": 7}


def test_vectors_are_packed_as_openais_client_wants_them() -> None:
    made = openai_vectors(TextsAsked("m", ("a",), is_base64=True), Embedded([[1.0, -2.0]], 3, {}))
    assert made["data"][0]["embedding"] == "AACAPwAAAMA="
    assert made["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize("given", [None, [], 5, [5], [[5]], ["a", 5], ["a"] * 2049])
def test_texts_out_of_form_are_refused(given: Any) -> None:
    with pytest.raises(ChatBodyError, match="input"):
        texts_asked({"model": "m", "input": given})


def test_the_older_way_to_embed_takes_one_text() -> None:
    """Would catch `ollama.embeddings()` and what is built on it, which other routes do not serve."""
    asked = text_asked({"model": "m", "prompt": "one"})
    assert asked.texts == ("one",)
    assert ollama_vector(asked, Embedded([[1.0, -2.0]], 3, {})) == {"embedding": [1.0, -2.0]}
    with pytest.raises(ChatBodyError, match="prompt"):
        text_asked({"model": "m", "prompt": ["one", "two"]})


def test_many_vectors_do_not_hold_up_the_server() -> None:
    """Would catch an answer that is written number by number, while everybody else's chats wait."""
    pytest.importorskip("starlette")
    vectors = {"embeddings": [[number / 7 for number in range(1024)] for _ in range(64)]}

    def work(write: Callable[[Any], Any]) -> float:
        began = time.process_time()
        write(vectors)
        return time.process_time() - began

    plain = min(work(json.dumps) for _ in range(3))
    assert min(work(json_answer) for _ in range(3)) < plain / 3
    assert json.loads(json_answer(vectors).body) == vectors


def test_budgets_are_told_as_rate_limits() -> None:
    def budget(unit: str, amount: float, left: float) -> dict[str, Any]:
        return {"unit": unit, "amount": amount, "left": left, "ends": "2026-01-02T00:00:00+00:00"}

    now = datetime(2026, 1, 1, 23, 0, tzinfo=UTC)
    budgets = [budget("tokens", 1000, 900), budget("tokens", 5000, 40.5), budget("gpu-minutes", 9, 1)]
    assert limit_headers(budgets, "openai", now) == {
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "40",
        "x-ratelimit-reset-tokens": "3600s",
    }
    assert "anthropic-ratelimit-tokens-reset" in limit_headers(budgets, "anthropic", now)
    assert limit_headers(budgets, "ollama", now) == {}


def test_a_whole_answer_to_who_wants_a_stream_is_streamed() -> None:
    """Would catch an empty answer of a model whose row says that it does not stream."""

    async def whole() -> AsyncGenerator[dict[str, Any], None]:
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
        yield {"id": "a", "object": "chat.completion", "choices": [choice]}

    async def said() -> list[str]:
        return [text async for text in OPENAI_PROMPT.streamed(_answer_alone(whole()), "m")]

    texts = asyncio.run(said())
    assert '"text":"Hi"' in texts[0]
    assert '"finish_reason":"stop"' in texts[-2]


@pytest.mark.parametrize(
    "answer",
    [
        {"object": "error", "message": {"detail": [{"loc": ["body", "n"], "msg": "Extra inputs"}]}},
        {"detail": [{"type": "missing", "loc": ["body", "n"], "msg": "Extra inputs", "input": {}}]},
    ],
    ids=["mistral", "fastapi"],
)
def test_a_connection_s_reason_is_passed_on(answer: dict[str, Any]) -> None:
    """Would catch "The model gave the error 422.", by which nobody knows what to change."""
    assert refusal_in(answer, 422).message == "body n: Extra inputs"
    assert refusal_in({"detail": []}, 422).message == "The model gave the error 422."


class Streaming(ModelCall):
    """A call that Open WebUI answers with a stream, whatever was asked for."""

    async def _answer(self) -> Any:
        return self.request


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_to_who_wants_none_is_read_and_closed(*, fails: bool) -> None:
    """Would catch an unasked stream that is refused, or a connection to a model that stays open."""
    closed = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            for text in ("Hel", "lo"):
                yield f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{text}"}}}}]}}\n\n'
            yield 'data: {"error": {"message": "out of memory"}}\n\n' if fails else "data: [DONE]\n\n"
        finally:
            closed.append("body")

    async def background() -> None:
        closed.append("background")

    async def whole(*, collects: bool) -> Any:
        call = Streaming(SimpleNamespace(body_iterator=events(), background=background), {}, {}, is_new=True)
        return await (_whole(call, "m") if collects else call.completion())

    if fails:
        with pytest.raises(ModelRefusedError) as refused:
            asyncio.run(whole(collects=True))
        assert refused.value.refusal.message == "out of memory"
    else:
        made = asyncio.run(whole(collects=True))
        assert (made["object"], made["choices"][0]["message"]["content"]) == ("chat.completion", "Hello")
    assert sorted(closed) == ["background", "body"]
    with pytest.raises(ModelRefusedError):
        asyncio.run(whole(collects=False))
    assert sorted(closed) == ["background", "background", "body", "body"]


@pytest.mark.parametrize("keep_alive", [[], {}, "5m", None])
def test_whatever_a_client_sends_to_load_a_model_is_taken(keep_alive: Any) -> None:
    body = {"model": "m", "keep_alive": keep_alive}
    assert loaded_answer(OLLAMA_CHAT, body)["done_reason"] == "load"
    assert loaded_answer(OLLAMA_CHAT, body | {"keep_alive": 0})["done_reason"] == "unload"
