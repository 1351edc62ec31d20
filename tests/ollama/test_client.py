"""`OllamaClient` at work, against the scripted node and a real Ollama alike."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from harness.node_clients import HEAD, JSON, PATIENCE, USER, chunks_of, run
from harness.node_contract import STEADY, WEATHER, WEATHER_CALL, Node, wait_until
from harness.ollama_node import Answer
from ollama_pack.engines.errors import ModelNotFoundError, RequestRefusedError, RetryableNodeError
from ollama_pack.engines.ollama.client import OllamaClient
from ollama_pack.engines.ollama.stream import completion_of

PIXEL = "data:image/png;base64,aGVsbG8="


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """What is left behind, such as a connection, warns when it is collected, and a warning fails a test."""
    yield
    gc.collect()


def ask(node: Node, **body: Any) -> JSON:
    """The completion that the chunks of an answer make up."""
    model = body.pop("model", node.model)
    return completion_of(run(node.url, lambda client: chunks_of(client, model, **body)))


def test_models_of_a_node(node: Node) -> None:
    """Would catch a model whose name, digest, size or make is lost."""
    models = {model.name: model for model in run(node.url, lambda client: client.tags())}
    model = models[node.model]
    assert (len(model.digest), model.size > 1_000_000) == (64, True)
    assert model.details.family
    assert model.details.quantization_level


def test_models_in_memory(node: Node) -> None:
    """Would catch a warm-up that loads nothing, with another context, or that does not end."""

    async def load(client: OllamaClient) -> Any:
        await client.load(node.model, seconds=PATIENCE, keep_alive="10m", options={"num_ctx": 2048})
        return await client.ps()

    models = {model.name: model for model in run(node.url, load)}
    model = models[node.model]
    assert (model.context_length, len(model.digest)) == (2048, 64)
    assert 0 <= model.size_vram <= model.size
    assert model.expires_at
    run(node.url, lambda client: client.load(node.model, seconds=PATIENCE, keep_alive=0))
    wait_until(lambda: node.model not in node.loaded())


def test_what_a_node_knows_of_a_model(node: Node) -> None:
    """Would catch a router that does not know a model's weights, context or abilities."""
    shown = run(node.url, lambda client: client.show(node.model))
    assert "completion" in shown.capabilities
    assert (len(shown.blob), shown.context_length > 1000, shown.thinking) == (64, True, "never")
    assert shown.num_ctx is None or shown.num_ctx > 1000


def test_lines_of_a_chat(node: Node) -> None:
    """Would catch lines that are lost, or an end without the figures that rates are learned from."""

    async def chat(client: OllamaClient) -> list[JSON]:
        request = {"model": node.model, "messages": [USER], "options": STEADY | {"num_predict": 3}}
        return [line async for line in client.chat(request, first_byte=PATIENCE)]

    *lines, last = run(node.url, chat)
    assert [line["done"] for line in lines] == [False] * 3
    assert last["done"] is True
    assert last["eval_count"] >= 3
    assert last["total_duration"] > 0


def test_chunks_of_a_chat(node: Node) -> None:
    """Would catch a stream that OpenAI's clients cannot read."""
    chunks = run(node.url, lambda client: chunks_of(client, node.model))
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", "asked-for")
    }
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "length"]
    assert chunks[-1]["usage"]["completion_tokens"] >= 3


def test_an_unstreamed_chat(node: Node) -> None:
    """Would catch an answer in one piece, without an end of its line, that is taken for cut off."""

    async def chat(client: OllamaClient) -> list[JSON]:
        request = {"model": node.model, "messages": [USER], "stream": False, "options": {"num_predict": 3}}
        return [line async for line in client.chat(request, first_byte=PATIENCE)]

    (line,) = run(node.url, chat)
    assert line["done"] is True
    assert line["message"]["content"]


def test_tools(node: Node, tools_model: str) -> None:
    """Would catch calls that do not arrive, and a history with calls and results that the node refuses."""
    if node.scripted:
        node.script(Answer(["sunny"]))
    asked: JSON = {"tools": [WEATHER], "options": {"num_predict": 100}}
    schema = {"type": "json_schema", "json_schema": {"schema": WEATHER_CALL}}
    completion = ask(node, model=tools_model, response_format=schema, **asked)
    message = completion["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert (call["index"], call["type"], bool(call["id"])) == (0, "function", True)
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    again = ask(node, model=tools_model, messages=[USER, message, result], options={"num_predict": 3})
    assert again["choices"][0]["message"]["content"]
    if node.scripted:
        sent = (node.scripted.requests[-1].body or {})["messages"]
        assert sent[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
        assert sent[2]["tool_name"] == "get_weather"


def test_thinking(node: Node, thinking_model: str) -> None:
    """Would catch thoughts that are shown as the answer, or an effort that the node refuses."""

    async def think(client: OllamaClient) -> list[JSON]:
        thinking = (await client.show(thinking_model)).thinking
        assert thinking == "switch"
        asked = {"model": thinking_model, "messages": [USER], "reasoning_effort": "high", "max_tokens": 6}
        lines = client.complete(asked, HEAD, first_byte=PATIENCE, thinking=thinking)
        return [chunk async for chunk in lines]

    message = completion_of(run(node.url, think))["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"] == ""
    if node.scripted:
        assert (node.scripted.requests[-1].body or {})["think"] is True


def test_images_on_a_text_model_are_ignored(node: Node) -> None:
    """Would catch a picture in a form that the node refuses."""
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    completion = ask(node, messages=[{"role": "user", "content": parts}])
    assert completion["choices"][0]["message"]["content"]


def test_an_answer_in_a_form(node: Node) -> None:
    """Would catch a schema that has no effect."""
    node.script(Answer(['{"city"', ': "Paris"}']))
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    completion = ask(node, response_format=wanted, options={"num_predict": 100})
    assert json.loads(completion["choices"][0]["message"]["content"]) == {"city": "Paris"}
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_an_answer_that_stops_at_a_word(node: Node) -> None:
    """Would catch a stop word as text, which Ollama refuses, or one that has no effect."""
    node.script(Answer(["Once", " upon", " a", " time"]), Answer(["Once"]))
    options = {"num_predict": 12}
    text = ask(node, options=options)["choices"][0]["message"]["content"]
    word = text.split()[1]
    completion = ask(node, options=options, stop=word)
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["choices"][0]["message"]["content"] == text[: text.index(word)].rstrip(
        " " if node.scripted else ""
    )
    if node.scripted:
        assert (node.scripted.requests[-1].body or {})["options"]["stop"] == [word]


def test_an_answer_that_is_cut_off(node: Node) -> None:
    """Would catch a limit under a name that Ollama does not know, or an answer cut off that looks whole."""
    completion = ask(node, options={}, max_completion_tokens=2)
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["completion_tokens"] in {2, 3}


def test_an_unknown_model(node: Node) -> None:
    """Would catch a missing model that counts as a fault of the node, or as one of the request."""
    with pytest.raises(ModelNotFoundError, match="ollama pull nope") as caught:
        run(node.url, lambda client: chunks_of(client, "nope"))
    assert (caught.value.model, caught.value.status, caught.value.node) == ("nope", 404, node.url)
    assert caught.value.said == "model 'nope' not found"
    with pytest.raises(ModelNotFoundError):
        run(node.url, lambda client: client.show("nope"))


def test_a_request_that_is_refused(node: Node) -> None:
    """Would catch a request at fault that is tried on every node."""
    with pytest.raises(RequestRefusedError) as caught:
        run(node.url, lambda client: chunks_of(client, node.model, think=True))
    assert not isinstance(caught.value, RetryableNodeError)
    assert (caught.value.status, "does not support thinking" in caught.value.said) == (400, True)


def test_closing_the_stream_frees_the_node(node: Node) -> None:
    """Would catch a stopped chat that still generates: the next would wait for its end."""
    node.script(Answer(["a"] * 3000, pause=0.01))
    many = {"type": "array", "items": {"type": "integer"}, "minItems": 300}
    asked = {"model": node.model, "messages": [USER], "format": many, "options": STEADY}

    async def stop_and_ask(client: OllamaClient) -> float:
        async with aclosing(client.complete(asked, HEAD, first_byte=PATIENCE)) as chunks:
            assert (await anext(chunks))["choices"][0]["delta"]["content"]
        started = time.monotonic()
        await chunks_of(client, node.model, options={"num_predict": 1})
        return time.monotonic() - started

    assert run(node.url, stop_and_ask) < 5
    if node.scripted:
        assert node.scripted.requests[0].left.wait(5)


@asynccontextmanager
async def counted_session() -> AsyncIterator[tuple[aiohttp.ClientSession, list[str]]]:
    """A session, and what it does about connections."""
    seen: list[str] = []
    traces = aiohttp.TraceConfig()

    async def created(*_: object) -> None:
        seen.append("created")

    async def reused(*_: object) -> None:
        seen.append("reused")

    traces.on_connection_create_end.append(created)
    traces.on_connection_reuseconn.append(reused)
    async with aiohttp.ClientSession(trace_configs=[traces]) as session:
        yield session, seen


def test_connections_are_reused(node: Node) -> None:
    """Would catch a new connection for every request, after answers of every kind."""

    async def ask_much() -> list[str]:
        async with counted_session() as (session, seen):
            client = OllamaClient(node.url, session)
            await client.tags()
            await chunks_of(client, node.model)
            await client.tags()
            with pytest.raises(ModelNotFoundError):
                await chunks_of(client, "nope")
            await chunks_of(client, node.model)
            return seen

    assert asyncio.run(ask_much()) == ["created", *["reused"] * 4]


def test_a_closed_stream_gives_its_connection_up(node: Node) -> None:
    """Would catch the rest of a stopped answer that is read as the next one."""

    async def stop_and_ask() -> list[str]:
        async with counted_session() as (session, seen):
            client = OllamaClient(node.url, session)
            request = {"model": node.model, "messages": [USER], "options": {"num_predict": 50}}
            async with aclosing(client.chat(request, first_byte=PATIENCE)) as lines:
                await anext(lines)
            await client.tags()
            return seen

    node.script(Answer(["a"] * 100, pause=0.01))
    assert asyncio.run(stop_and_ask()) == ["created", "created"]
