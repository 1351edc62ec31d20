"""Nodes that come and go under chats: a scaled service, with a real DNS server and real connections."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from harness.dns_server import ServiceDns
from harness.ollama_node import Answer, Model, OllamaNode
from harness.routing import QUICK, Chat, run, until
from ollama_pack.routing.dispatch.report import dashboard_report
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.services.discovery import NodeDiscovery
from ollama_pack.services.router_host import RouterHost

LLAMA = Model("llama3:8b")
HERE, THERE = "pool-localhost", "pool-127.0.0.1"  # two names of one machine
SLOW = Answer([f"word{number} " for number in range(60)], pause=0.02)


@pytest.fixture
def nodes() -> Iterator[list[OllamaNode]]:
    with OllamaNode([LLAMA]) as first, OllamaNode([LLAMA]) as second:
        yield [first, second]


def port_of(node: OllamaNode) -> int:
    return urlsplit(node.url).port or 0


class ScaledService:
    """A router over the nodes that a name stands for, asked for at each chat as the plugins do."""

    def __init__(self, dns: ServiceDns, nodes: Sequence[OllamaNode]) -> None:
        self.dns = dns
        self.hosts = dict(zip(nodes, ("localhost", "127.0.0.1"), strict=True))
        self.host = RouterHost()
        self._rows = parse_nodes(f"pool {dns.address} slots=2")
        self._discovery = NodeDiscovery()

    def serves(self, *nodes: OllamaNode) -> None:
        self.dns.servers = [(self.hosts[node], port_of(node)) for node in nodes]

    async def router(self) -> Router:
        rows = await self._discovery.rows(self._rows, QUICK.probe_seconds)
        return await self.host.router(rows, replace(QUICK, max_queue=400))

    async def chat(self, user: str = "user") -> Chat:
        return await Chat(await self.router(), user=user).run()


@asynccontextmanager
async def scaled_service(nodes: Sequence[OllamaNode], *serving: OllamaNode) -> AsyncIterator[ScaledService]:
    with ServiceDns() as dns:
        service = ScaledService(dns, nodes)
        service.serves(*serving)
        try:
            yield service
        finally:
            await service.host.close()


def chats(node: OllamaNode) -> int:
    return sum(request.path == "/api/chat" for request in node.requests)


def test_a_scaled_service_loses_no_chat(nodes: list[OllamaNode]) -> None:
    """Would catch a new server that gets no chat, chats that end with a removed one, or are sent to it."""
    first, second = nodes

    async def scenario() -> None:
        async with scaled_service(nodes, first) as service:
            ended = asyncio.Event()
            answered: list[Chat] = []

            async def keep_asking(user: str) -> None:
                while not ended.is_set():
                    answered.append(await service.chat(user))

            users = [asyncio.create_task(keep_asking(f"u{number}")) for number in range(6)]
            await until(lambda: chats(first) > 10)
            router = await service.router()
            service.serves(first, second)
            await until(lambda: chats(second) > 10)
            second.enqueue(SLOW)
            before = chats(second)
            await until(lambda: chats(second) > before)
            service.serves(first)  # while the long answer is being given
            await until(lambda: len(router.nodes) == 1)
            there = chats(second)
            asked = chats(first)
            await until(lambda: chats(first) > asked + 10)
            ended.set()
            await asyncio.gather(*users)
            assert chats(second) == there
            assert all(chat.answer for chat in answered)
            assert any(chat.said.endswith("word59 ") for chat in answered)
            assert await service.router() is router

    run(scenario)


def test_a_node_that_goes_is_forgotten_when_it_has_answered(nodes: list[OllamaNode]) -> None:
    """Would catch a node that is cut off, stays on the dashboard for ever, or whose models stay offered."""
    first, second = nodes

    async def scenario() -> None:
        async with scaled_service(nodes, second) as service:
            second.enqueue(SLOW)
            long = asyncio.create_task(service.chat())
            await until(lambda: chats(second) == 1)
            router = await service.router()
            service.serves(first)
            deadline = asyncio.get_running_loop().time() + 10
            while router.catalogue().models["llama3:8b"].nodes != (HERE,):
                assert asyncio.get_running_loop().time() < deadline
                await service.router()
            assert {node["name"] for node in dashboard_report(router)["nodes"]} == {HERE, THERE}
            assert (await long).said.endswith("word59 ")
            assert [node["name"] for node in dashboard_report(router)["nodes"]] == [HERE]

    run(scenario)


def test_a_chat_that_comes_while_its_router_is_replaced_is_answered(nodes: list[OllamaNode]) -> None:
    """Would catch "Session is closed": a chat that has its router, and asks it once it was replaced."""

    async def scenario() -> None:
        host, rows = RouterHost(), parse_nodes(f"gpu0 {nodes[0].url}")
        before = await host.router(rows, QUICK)
        with host.holding(before):
            assert await host.router(rows, replace(QUICK, max_queue=7)) is not before
            _, closing = await asyncio.wait(host.closing, timeout=0.2)
            assert len(closing) == 1
            assert (await Chat(before).run()).said
        await asyncio.gather(*closing)
        await host.close()

    run(scenario)


def test_a_late_chat_of_replaced_code_leaves_no_router(nodes: list[OllamaNode]) -> None:
    """Would catch a router that nobody closes, and that looks at the nodes for ever."""

    async def scenario() -> None:
        host, rows = RouterHost(), parse_nodes(f"gpu0 {nodes[0].url}")
        await host.router(rows, QUICK)
        host.leave()
        late = await host.router(rows, QUICK)
        with host.holding(late):
            assert (await Chat(late).run()).said
        assert host.current is None
        await asyncio.gather(*host.closing)
        with pytest.raises(RuntimeError, match="closed"):
            await Chat(late).run()

    run(scenario)
