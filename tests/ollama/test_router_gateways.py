"""Rows with `placement=own`: a real gateway places requests; the pack keeps names, fairness and failover."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.ollama_node import Model, OllamaNode
from harness.openai_engine import MODEL as SERVED
from harness.openai_engine import EngineAnswer, OpenAIEngine
from harness.routing import Chat, router_over, run
from local import engine
from local.gateways import Gateway, GatewayMissingError, gateway
from ollama_pack.engines.openai.client import SESSION_HEADERS
from ollama_pack.engines.openai.request import CACHE_KEY

BURST = 24
SHORT = {"max_tokens": 3}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two real engines, without `/v1`."""
    with ExitStack() as stack:
        try:
            urls = [
                stack.enter_context(engine.engine(tmp_path_factory.mktemp("engine"), slots=4))
                for _ in range(2)
            ]
        except engine.EngineMissingError as error:
            pytest.skip(str(error))
        yield [url.removesuffix("/v1") for url in urls]


@pytest.mark.parametrize("name", ["sglang-router", "vllm-router"])
def test_a_real_gateway_gets_a_burst_at_once(name: Gateway, engines: list[str], tmp_path: Path) -> None:
    """Would catch a gateway whose list of models hides them, or a burst that waits for slots."""

    async def scenario(url: str) -> tuple[list[Chat], int]:
        row = f"cluster {url} kind=openai placement=own models={engine.MODEL}"
        async with router_over(row) as router:
            burst = asyncio.gather(
                *(
                    Chat(router, f"chat {number}", (engine.MODEL,), body=SHORT).run()
                    for number in range(BURST)
                )
            )
            most = 0
            while not burst.done():
                most = max(most, router.in_flight("cluster"))
                await asyncio.sleep(0.01)
            return await burst, most

    try:
        with gateway(name, engines, tmp_path) as url:
            chats, most = run(lambda: scenario(url))
    except GatewayMissingError as error:
        pytest.skip(str(error))
    assert most == BURST
    assert {chat.routed["node"] for chat in chats} == {"cluster"}


def test_a_gateway_is_given_the_conversation() -> None:
    """Would catch turns of a chat that a gateway cannot tell from other chats, and ids that reach it."""

    async def scenario(first: OpenAIEngine) -> None:
        async with router_over(f"cluster {first.url} kind=openai placement=own models={SERVED}") as router:
            for chat in ("one", "one", "two", ""):
                await Chat(router, models=(SERVED,), chat=chat).run()

    with OpenAIEngine() as first:
        first.models = {"object": "list", "data": [{"id": "unknown", "object": "model"}]}
        run(lambda: scenario(first))
    keys = [sent.body.get(CACHE_KEY) for sent in first.requests]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] is None
    for sent, key in zip(first.requests, keys, strict=True):
        assert [sent.headers.get(header) for header in SESSION_HEADERS] == [key, key]
        assert "one" not in str(sent.headers.values())


def test_an_engine_of_our_own_is_not_given_it() -> None:
    """Would catch a field that strict engines refuse, where nobody needs it."""

    async def scenario(first: OpenAIEngine) -> None:
        async with router_over(f"one {first.url} kind=openai slots=2") as router:
            await Chat(router, models=(SERVED,), chat="one").run()

    with OpenAIEngine() as first:
        run(lambda: scenario(first))
    assert CACHE_KEY not in first.requests[0].body


def test_another_node_answers_when_the_gateway_fails() -> None:
    """Would catch a gateway without failover, though another node has the model."""

    async def scenario(broken: OpenAIEngine, node: OllamaNode) -> Chat:
        rows = (
            f"cluster {broken.url} kind=openai placement=own models=llama3:8b",
            f"gpu0 {node.url} tier=1",
        )
        async with router_over(*rows) as router:
            return await Chat(router, "one", ("llama3:8b",)).run()

    with OpenAIEngine() as broken, OllamaNode([Model("llama3:8b")]) as node:
        broken.enqueue(EngineAnswer(refusal=(503, {"error": {"message": "no worker is ready"}})))
        chat = run(lambda: scenario(broken, node))
    assert chat.routed["node"] == "gpu0"
