"""What engines and GPUs tell of other clients, and what the router makes of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from harness.node_clients import HEAD
from harness.ollama_node import Model, OllamaNode
from harness.openai_engine import MODEL as SERVED
from harness.openai_engine import OpenAIEngine
from harness.routing import JSON, Chat, router_over, run, until
from local import engine
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.probe.gpus import LOAD_PATH, Gpu, GpuReport, agent_load

LLAMA = Model("llama3:8b")
METRICS = "vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"


def others_at(router: Router, node: str) -> int:
    """How many requests of other clients a node is believed to have."""
    return max(
        (runner.external.count for runner in router.scheduler.cluster.nodes[node].runners.values()), default=0
    )


def test_an_engine_that_others_keep_busy_gets_nothing() -> None:
    """Would catch chats that are sent into the queue of an engine while another one has nothing to do."""

    async def scenario() -> set[str]:
        with OpenAIEngine() as busy, OpenAIEngine() as idle:
            busy.metrics, idle.metrics = (METRICS.format(running=n, waiting=n) for n in (2, 0))
            rows = (f"{name} {one.url} kind=openai slots=2" for name, one in (("busy", busy), ("idle", idle)))
            async with router_over(*rows) as router:
                await until(lambda: others_at(router, "busy") == 4)
                chats = [await Chat(router, f"chat {number}", (SERVED,)).run() for number in range(4)]
                busy.metrics = METRICS.format(running=0, waiting=0)
                await until(lambda: others_at(router, "busy") == 0)
                return {chat.routed["node"] for chat in chats}

    assert run(scenario) == {"idle"}


def test_metrics_that_hang_do_not_hide_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a node that counts as gone because its metrics are slow."""
    monkeypatch.setattr("ollama_pack.routing.probe.node_watch.METRICS_SECONDS", 0.1)

    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> bool:
        with OpenAIEngine() as real:
            application = web.Application()
            application.router.add_get("/metrics", never)

            async def forward(request: web.Request) -> web.Response:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(real.url + request.path) as answer,
                ):
                    return web.json_response(await answer.json(), status=answer.status)

            application.router.add_get("/{path:.*}", forward)
            async with serving(application) as url, router_over(f"one {url} kind=openai") as router:
                watch = router.nodes["one"]
                for _ in range(3):
                    watch.looked.clear()
                    watch.hurry.set()
                    await watch.looked.wait()
                return router.is_healthy("one")

    assert run(scenario)


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    """Serve on a free port."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("shared", [False, True], ids=["own agent", "one agent for both"])
def test_a_gpu_that_others_use_is_left_to_them(shared: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Would catch a busy GPU that gets chats, and nodes of one machine that take each other for strangers."""
    percent = {"busy": 97.0, "idle": 1.0}
    asked: list[str] = []

    async def tell(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        asked.append(name)
        return web.json_response(agent_load(name, GpuReport((Gpu(0, "a GPU", percent[name], 2**30, 2**34),))))

    async def scenario() -> list[int]:
        application = web.Application()
        application.router.add_get("/{name}" + LOAD_PATH, tell)
        with OllamaNode([LLAMA]) as first, OllamaNode([LLAMA]) as second:
            async with serving(application) as agents:
                names = ("busy", "busy" if shared else "idle")
                rows = (
                    f"gpu{number} {node.url} slots=1 agent={agents}/{name}"
                    for number, (node, name) in enumerate(zip((first, second), names, strict=True))
                )
                async with router_over(*rows) as router:
                    for node in (first, second):
                        await warm(node)
                    await until(
                        lambda: all(state.runners for state in router.scheduler.cluster.nodes.values())
                    )
                    asked.clear()
                    await until(
                        lambda: all(asked.count(name) >= 4 for name in names)
                    )  # what came first is told
                    return [state.gpu.count for state in router.scheduler.cluster.nodes.values()]

    assert run(scenario) == ([0, 0] if shared else [1, 0])


async def warm(node: OllamaNode) -> None:
    """Another client has the model loaded."""
    async with aiohttp.ClientSession() as session:
        body: JSON = {"model": LLAMA.name, "messages": [], "stream": False}
        async with session.post(f"{node.url}/api/chat", json=body) as answer:
            assert answer.status == 200


def test_a_real_engine_tells_what_others_do(real_engine: str) -> None:
    """Would catch metrics of llama.cpp that are not asked for, or not understood."""

    async def scenario() -> None:
        body: JSON = {
            "model": engine.MODEL,
            "messages": [{"role": "user", "content": "Count to a thousand."}],
            "stream": True,
            "max_tokens": 2000,
        }
        async with (
            router_over(f"llm {real_engine} kind=openai") as router,
            aiohttp.ClientSession() as session,
        ):
            chunks = router.answer({**body, "max_tokens": 2}, [engine.MODEL], HEAD, user="user")
            assert [chunk async for chunk in chunks]
            assert others_at(router, "llm") == 0
            async with session.post(f"{real_engine}/chat/completions", json=body) as other:
                await other.content.readany()
                await until(lambda: others_at(router, "llm") == 1)
            await until(lambda: others_at(router, "llm") == 0)

    run(scenario)
