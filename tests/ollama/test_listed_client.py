"""A node whose connection has a list of models or a prefix: what is offered, and what the node is asked."""

import asyncio

import aiohttp

from harness.ollama_node import Model, OllamaNode
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import Listing, NodeRow
from ollama_pack.routing.probe.node_watch import node_client

LISTINGS = (Listing("", frozenset({"a:1b"})), Listing("x"))


def test_names_of_a_connection() -> None:
    """Would catch a model that its list leaves out, or a node asked for a name that it has not."""

    async def look(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            client = node_client(NodeRow("n", url, listings=LISTINGS), session)
            assert {model.name for model in await client.tags()} == {"a:1b", "x.a:1b", "x.b:1b"}
            assert (await client.show("x.b:1b")).capabilities
            body = {"model": "x.b:1b", "messages": [{"role": "user", "content": "hello"}]}
            chunks = [
                chunk async for chunk in client.complete(body, ReplyHead("1", 0, "x.b:1b"), first_byte=5)
            ]
            assert chunks[0]["model"] == "x.b:1b"
            loaded = await client.ps()
            assert loaded is not None
            assert {model.name for model in loaded} <= {"a:1b", "x.a:1b", "x.b:1b"}

    with OllamaNode(models=[Model("a:1b"), Model("b:1b")]) as node:
        asyncio.run(look(node.url))
        assert [request.body["model"] for request in node.requests if request.path == "/api/chat"] == ["b:1b"]  # type: ignore[index]


def test_a_router_answers_by_the_offered_name() -> None:
    """Would catch a chat that fails because the router knows the model by another name than the node."""

    async def ask(url: str, model: str) -> str:
        router = Router([NodeRow("n", url, listings=LISTINGS)], aiohttp.ClientSession())
        try:
            await router.ready()
            assert set(router.catalogue().models) == {"a:1b", "x.a:1b", "x.b:1b"}
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            chunks = [
                chunk async for chunk in router.answer(body, [model], ReplyHead("1", 0, model), user="u")
            ]
            return "".join(
                chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]
            )
        finally:
            await router.close()

    with OllamaNode(models=[Model("a:1b"), Model("b:1b")]) as node:
        for model in ("a:1b", "x.a:1b", "x.b:1b"):
            assert asyncio.run(ask(node.url, model)) == "You said: hello"
