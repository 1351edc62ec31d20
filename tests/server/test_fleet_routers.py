"""Two routers, as two workers have them, over the same nodes and a real Valkey."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import aiohttp
import pytest

from harness.ollama_node import Answer, Model, OllamaNode
from harness.routing import QUICK, Chat, rows_of, run, until
from harness.valkey import Valkey
from ollama_pack.routing.dispatch.report import dashboard_report
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.peers import redis as share_redis
from ollama_pack.services.sharing import redis_sharing

LLAMA = Model("llama3:8b")
SLOW = Answer([f"word{number} " for number in range(100)], pause=0.02)
SECRET = "a secret of the site"


@pytest.fixture
def nodes() -> Iterator[list[OllamaNode]]:
    with OllamaNode([LLAMA]) as gpu0, OllamaNode([LLAMA]) as gpu1:
        yield [gpu0, gpu1]


def chats(node: OllamaNode) -> int:
    """How many chats a node was asked for."""
    return sum(request.path == "/api/chat" for request in node.requests)


@asynccontextmanager
async def two_routers(
    nodes: list[OllamaNode], url: str, *, secret: str = SECRET, meet: bool = True
) -> AsyncIterator[tuple[Router, Router]]:
    """Two workers of one site, which have met; each node has one slot."""
    made = [
        Router(
            rows_of(nodes, "slots=1"),
            aiohttp.ClientSession(),
            QUICK,
            Random(number),  # noqa: S311 - breaks ties
            connect=redis_sharing(url),
            secret=secret,
        )
        for number in range(2)
    ]
    one, two = made
    for router in made:
        await router.ready()
    if meet:
        await until(lambda: all(router.peers == 1 for router in made))
    try:
        yield one, two
    finally:
        for router in made:
            await router.close()


async def crowd(routers: tuple[Router, Router], count: int) -> list[Chat]:
    """So many chats at once, in turns through both."""
    asked = [Chat(routers[number % 2], f"chat {number}", user=f"u{number}") for number in range(count)]
    return await asyncio.gather(*(chat.run() for chat in asked))


def most_at_once(nodes: list[OllamaNode]) -> list[int]:
    """How many chats each node has had at the same moment at most."""
    chats = [[record for record in node.records if record.path == "/api/chat"] for node in nodes]
    spans = [[(record.came, record.ended or record.came) for record in each] for each in chats]
    return [max(sum(came <= at < ended for came, ended in each) for at, _ in each) for each in spans]


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_no_slot_is_used_twice(
    nodes: list[OllamaNode], kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch two workers that send to the same slot at the same moment: one user waits inside a node."""
    monkeypatch.setattr(
        share_redis, "CLAIM_SECONDS", 30.0
    )  # a machine that is busy must not look like no Redis
    valkey: Valkey = request.getfixturevalue(kind)
    url = valkey.url if kind == "server" else f"redis+cluster://127.0.0.1:{valkey.port}"

    async def scenario() -> list[Chat]:
        async with two_routers(nodes, url) as routers:
            for node in nodes:
                node.enqueue(*[Answer(["a ", "b"], pause=0.1)] * 12)
            return await crowd(routers, 12)

    answered = run(scenario)
    assert [chat.answer for chat in answered] == ["a b"] * 12
    assert max(most_at_once(nodes)) == 1


def test_a_chat_that_comes_to_another_worker_finds_its_prefix(
    nodes: list[OllamaNode], server: Valkey
) -> None:
    """Would catch a turn that goes to a node which must evaluate all of the chat, as its worker changed."""
    body = {"messages": [{"role": "user", "content": "Tell me about the river. " * 40}]}

    async def scenario() -> list[str]:
        async with two_routers(nodes, server.url) as (one, two):
            found = []
            for _ in range(4):
                first = await Chat(one, body=body).run()
                await until(lambda: not two.in_flight("gpu0") and not two.in_flight("gpu1"))
                again = await Chat(two, body=body).run()
                await until(lambda: not one.in_flight("gpu0") and not one.in_flight("gpu1"))
                assert first.routed["node"] == again.routed["node"]
                found.append(again.routed["reason"])
            return found

    assert all("of the prompt is cached there" in reason for reason in run(scenario))


def test_what_the_other_does_is_told(nodes: list[OllamaNode], server: Valkey) -> None:
    """Would catch a load report that depends on the worker which is asked."""

    async def scenario() -> None:
        async with two_routers(nodes, server.url) as (one, two):
            assert [dashboard_report(router)["peers"] for router in (one, two)] == [1, 1]
            for node in nodes:
                node.enqueue(SLOW)
            running = asyncio.create_task(Chat(one).run())
            await until(lambda: sum(map(two.in_flight, two.nodes)) == 1)
            await running
            await until(lambda: sum(map(two.in_flight, two.nodes)) == 0)

    run(scenario)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_chats_go_on_without_redis(
    nodes: list[OllamaNode], server: Valkey, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a chat that fails or waits for a Redis that is gone, a log full of it, no coming back."""

    async def scenario() -> list[Chat]:
        async with two_routers(nodes, server.url) as (one, two):
            for node in nodes:
                node.enqueue(*[SLOW] * 2)
            running = asyncio.create_task(crowd((one, two), 4))
            await until(lambda: sum(map(chats, nodes)) >= 2)
            server.kill() if how == "killed" else server.pause()
            try:
                during = await running
                await until(lambda: one.peers == two.peers == 0)
                during += await crowd((one, two), 6)
            finally:
                server.start() if how == "killed" else server.resume()
            await until(lambda: one.peers == two.peers == 1)
            return during + await crowd((one, two), 4)

    with caplog.at_level(logging.WARNING, logger="ollama_pack.routing.peers.redis"):
        answered = run(scenario)
    assert len(answered) == 14
    assert all(chat.answer for chat in answered)
    said = [record.getMessage() for record in caplog.records if "redis_url" in record.getMessage()]
    assert len(said) == 2  # one line of each worker
    assert "a secret" not in caplog.text


def test_a_redis_that_never_answered_costs_nothing(nodes: list[OllamaNode]) -> None:
    """Would catch a wrong redis_url that stops the chats."""

    async def scenario() -> list[Chat]:
        wrong = f"redis://127.0.0.1:{nodes[0].url.rpartition(':')[2]}/0"  # a node speaks no Redis
        async with two_routers(nodes, wrong, meet=False) as routers:
            return await crowd(routers, 4)

    assert all(chat.answer for chat in run(scenario))


def test_a_router_that_nobody_uses_leaves_and_comes_back(
    nodes: list[OllamaNode], server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a router that an update of the plugin has replaced, and that holds connections for ever."""
    monkeypatch.setattr(share_redis, "UNUSED_SECONDS", 3.0)

    async def scenario() -> None:
        async with two_routers(nodes, server.url) as (one, two):
            with server.client() as client:
                while one.peers:
                    await two.ready()
                    await asyncio.sleep(0.05)
                await until(lambda: connections(client) == 0)
                assert len(await crowd((one, two), 2)) == 2
                while not one.peers == two.peers == 1:
                    await asyncio.gather(one.ready(), two.ready())  # on a slow machine they would leave again
                    await asyncio.sleep(0.05)

    run(scenario)


def connections(client: Any) -> int:
    """How many there are, but for the test's own."""
    return len(client.client_list()) - 1


def test_who_leaves_while_a_slot_is_claimed_leaves_nothing(nodes: list[OllamaNode], server: Valkey) -> None:
    """Would catch a stop button at the wrong moment that takes a slot from everybody."""

    async def scenario() -> None:
        async with two_routers(nodes, server.url) as (one, two):
            for _ in range(20):
                chat = asyncio.create_task(Chat(one).run())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                chat.cancel()
                await asyncio.wait([chat])
            await crowd((one, two), 4)
            with server.client() as client:
                await until(lambda: not any(client.zcard(key) for key in client.keys("*slots*")))

    run(scenario)


def test_prompts_are_told_as_hashes_with_the_sites_key(nodes: list[OllamaNode], server: Valkey) -> None:
    """Would catch hashes by which anybody who can read Redis finds out whether a guess was asked."""

    async def told(secret: str) -> bytes:
        async with two_routers(nodes, server.url, secret=secret) as (one, _):
            await Chat(one, "a well known question").run()
            with server.client() as client:
                return b"".join(fields[b"m"] for _, fields in client.xrange("ollama_pack:{fleet}:1:events"))

    def blocks(written: bytes) -> bytes:
        return written.partition(b'"blocks":')[2].partition(b"]]")[0]

    def after(secret: str) -> bytes:
        with server.client() as client:
            client.flushall()
        return run(lambda: told(secret))

    first, same, other = after("one"), after("one"), after("two")
    assert b"well known" not in first
    assert blocks(first)
    assert blocks(first) == blocks(same) != blocks(other)
