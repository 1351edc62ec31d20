"""Nodes whose gateway or engine answers oddly, as Open WebUI itself copes with them."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from harness.ollama_node import Model, OllamaNode
from harness.openai_engine import OpenAIEngine
from harness.recording_proxy import RecordingProxy
from harness.routing import QUICK, Chat, run
from ollama_pack.engines.errors import NodeError
from ollama_pack.engines.ollama.client import OllamaClient
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import parse_nodes

LLAMA = Model("llama3:8b")
OK: dict[str, str] = {}
BLUE = "blue %C3%A9"


@pytest.fixture
def gateway() -> Iterator[RecordingProxy]:
    """A gateway before a node, whose answers a test replaces."""
    with OllamaNode([LLAMA]) as node, RecordingProxy(node.url) as proxy:
        yield proxy


@asynccontextmanager
async def router_over(row: str) -> AsyncIterator[Router]:
    router = Router(parse_nodes(row), aiohttp.ClientSession(trust_env=True), QUICK)
    await router.ready()
    try:
        yield router
    finally:
        await router.close()


def chat(url: str, model: str = "llama3:8b", settings: str = "") -> str:
    """What a router over this one node answers."""

    async def scenario() -> str:
        async with router_over(f"gpu0 {url} {settings}") as router:
            return (await Chat(router, models=(model,)).run()).answer

    return run(scenario)


def test_a_model_is_loaded_by_the_node_s_own_name() -> None:
    """Would catch a model of an odd name that chats can use, but that is never loaded ahead of them."""

    async def scenario(url: str) -> str:
        async with aiohttp.ClientSession() as session:
            client = OllamaClient(url, session)
            (model,) = await client.tags()
            with pytest.raises(NodeError):
                await client.load(model.name, seconds=5)  # the node behind the gateway has another one
            return model.name

    with OllamaNode([LLAMA]) as node, RecordingProxy(node.url) as proxy:
        proxy.instead["/api/tags"] = (200, {"models": [{"name": "lab/llama 3 (test)"}]}, OK)
        assert run(lambda: scenario(proxy.url)) == "lab/llama-3-test"
        assert (node.requests[-1].body or {})["model"] == "lab/llama 3 (test)"


def offered(url: str, settings: str = "") -> list[str]:
    async def scenario() -> list[str]:
        async with router_over(f"gpu0 {url} {settings}") as router:
            return list(router.catalogue().models)

    return run(scenario)


PS = "/api/ps"
ENTRY: dict[str, Any] = {"name": "llama3:8b", "model": "llama3:8b", "size": 5, "context_length": 4096}


@pytest.mark.parametrize(
    "instead",
    [
        (404, {"error": "no such path"}),
        (403, {}),
        (500, {"error": "oops"}),
        (200, None),
        (200, []),
        (200, "ok"),
        (200, {"models": None}),
        (200, {"models": [ENTRY | {"expires_at": ""}]}),
        (200, {"models": [ENTRY | {"expires_at": "2026-01-01T00:00:00"}]}),
        (200, {"models": [ENTRY | {"expires_at": None, "size": -1, "context_length": "x"}]}),
        (200, {"models": [None, {}, 5, ENTRY]}),
    ],
    ids=str,
)
def test_an_odd_ps_does_not_take_the_node_down(gateway: RecordingProxy, instead: tuple[int, Any]) -> None:
    """Would catch a node without chats for what its gateway says of its memory."""
    gateway.instead[PS] = (*instead, OK)
    assert chat(gateway.url) == "You said: hello"


def test_a_node_without_ps_keeps_its_runner(gateway: RecordingProxy) -> None:
    """Would catch a node without /api/ps that seems to load its model again for each chat."""
    gateway.instead[PS] = (404, {}, OK)

    async def scenario() -> str:
        async with router_over(f"gpu0 {gateway.url}") as router:
            await Chat(router).run()
            router.nodes["gpu0"].looked.clear()
            router.nodes["gpu0"].hurry.set()
            await router.nodes["gpu0"].looked.wait()
            return str((await Chat(router).run()).routed["reason"])

    assert run(scenario).startswith("gpu0 has llama3:8b in memory · ")


def test_hundreds_of_models_are_no_reason_to_have_none(gateway: RecordingProxy) -> None:
    """Would catch "no node has it" after a start, for as long as a node is asked about each of its models."""
    many = [{"name": f"tuned{number}:1b", "model": f"tuned{number}:1b"} for number in range(1500)]
    gateway.instead["/api/tags"] = (200, {"models": [*many, ENTRY]}, OK)

    assert chat(gateway.url) == "You said: hello"


def test_what_is_passed_over_is_logged_once(
    gateway: RecordingProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch one odd model that hides all others, or a log that fills up with it."""
    good = {"model": "llama3:8b", "size": "big", "details": 5, "digest": None}
    gateway.instead["/api/tags"] = (200, {"models": [None, {"size": 5}, good, good, {"name": ""}]}, OK)

    async def scenario() -> list[str]:
        async with router_over(f"gpu0 {gateway.url}") as router:
            for _ in range(3):
                router.nodes["gpu0"].looked.clear()
                router.nodes["gpu0"].hurry.set()
                await router.nodes["gpu0"].looked.wait()
            return list(router.catalogue().models)

    with caplog.at_level(logging.WARNING):
        assert run(scenario) == ["llama3:8b"]
    said = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(said) == 1
    assert "3 of its models" in said[0]


@pytest.mark.parametrize(
    "instead",
    [
        (404, {}),
        (200, {}),
        (200, {"capabilities": "all", "details": [], "model_info": 5, "parameters": {}, "modelfile": 1}),
        (200, {"capabilities": [None, "completion"]}),
    ],
    ids=str,
)
def test_an_odd_show_does_not_hide_the_model(gateway: RecordingProxy, instead: tuple[int, Any]) -> None:
    """Would catch a model that is not offered for a field that nobody needs."""
    gateway.instead["/api/show"] = (*instead, OK)
    assert offered(gateway.url) == ["llama3:8b"]
    assert chat(gateway.url) == "You said: hello"


def test_what_cannot_chat_is_not_offered() -> None:
    """Would catch Ollama's embedders, image and decision models in everybody's picker."""
    models = [
        LLAMA,
        Model("embed:1b", capabilities=("embedding",)),
        Model("flux:1b", capabilities=("image", "vision")),
        Model("judge:1b", capabilities=("decision",)),
    ]
    with OllamaNode(models) as node:
        assert offered(node.url) == ["llama3:8b"]


def served(engine: OpenAIEngine, *entries: object) -> None:
    engine.models = {"object": "list", "data": list(entries)}


@pytest.fixture
def engine() -> Iterator[OpenAIEngine]:
    with OpenAIEngine("vllm") as engine:
        yield engine


def test_engines_list_what_is_not_for_chats(engine: OpenAIEngine) -> None:
    """Would catch an embedder offered for chats, or one odd entry that hides the others."""
    odd: tuple[object, ...] = (None, {}, {"id": 5}, {"id": ""})
    embedders = ({"id": "bge-m3"}, {"id": "m", "type": "embeddings"}, {"id": "r", "capabilities": ["rerank"]})
    served(engine, *odd, *embedders, {"id": "good", "meta": 5, "status": []}, {"id": "good"})
    assert offered(engine.url, "kind=openai") == ["good"]


def test_ids_with_spaces_are_asked_by_their_name(engine: OpenAIEngine) -> None:
    """Would catch an id that no alias can name, or an engine that is asked for one which it does not know."""
    served(engine, {"id": "My Model, v1"})
    assert offered(engine.url, "kind=openai") == ["My-Model-v1"]
    assert chat(engine.url, "My-Model-v1", "kind=openai")
    assert engine.requests[-1].body["model"] == "My Model, v1"


@pytest.mark.parametrize("base", ["/v1beta/openai", "/openai", "/api/v3", "/inference", "/v1", ""])
def test_base_addresses(engine: OpenAIEngine, base: str) -> None:
    """Would catch an engine whose API does not begin with /v1, as Gemini's, Azure's and many gateways'."""
    engine.base = base or "/v1"
    assert chat(engine.url + base, str(engine.models["data"][0]["id"]), "kind=openai")


def test_a_list_with_nothing_around_it(engine: OpenAIEngine) -> None:
    """Would catch Together's list of models refused."""
    engine.models = [{"id": "good", "type": "chat"}, {"id": "e", "type": "embedding"}]
    assert offered(engine.url, "kind=openai") == ["good"]


@pytest.mark.parametrize(
    ("address", "settings", "wanted"),
    [
        ("http://me:p%40ss@{host}", "", {"Authorization": "Basic bWU6cEBzcw=="}),
        ("http://{host}", 'key=k header="X-Team: blue é"', {"Authorization": "Bearer k", "X-Team": BLUE}),
        ("http://{host}", "header=Authorization:mine", {"Authorization": "mine"}),
    ],
)
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_ways_in(kind: str, address: str, settings: str, wanted: dict[str, str]) -> None:
    """Would catch a row whose login or header does not reach the node."""
    with OllamaNode([LLAMA]) as ollama, OpenAIEngine("vllm") as vllm:
        node: Any = ollama if kind == "ollama" else vllm
        model = "llama3:8b" if kind == "ollama" else str(vllm.models["data"][0]["id"])
        host = node.url.removeprefix("http://")
        assert chat(address.format(host=host), model, f"kind={kind} {settings}")
        headers = node.requests[-1].headers
    assert {name: headers.get(name) for name in wanted} == wanted


def test_a_proxy_from_the_environment(gateway: RecordingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a router that looks for nodes where only a proxy can reach them."""
    monkeypatch.setenv("http_proxy", gateway.url)
    monkeypatch.setenv("no_proxy", "")
    assert chat("http://gpu0.example:11434") == "You said: hello"
    assert ("POST", "/api/chat") in gateway.requests


def test_an_agent_behind_the_nodes_gateway(gateway: RecordingProxy) -> None:
    """Would catch an agent that is asked without the key of the gateway that it shares with its node."""
    load = {"nodes": [{"gpus": [{"index": 0, "utilization": 7.0}]}]}
    gateway.instead["/agent/api/system/load"] = (200, load, OK)

    async def scenario() -> Any:
        row = f"gpu0 {gateway.url} header=X-Team:blue agent={gateway.url}/agent"
        async with router_over(row) as router:
            watch = router.nodes["gpu0"]
            await watch.look_at_gpus(None, router._session)  # type: ignore[arg-type] # noqa: SLF001
            return watch.gpus.gpus[0].utilization

    assert run(scenario) == 7.0
    asked = [headers for path, headers in gateway.headers if path == "/agent/api/system/load"]
    assert asked[-1]["X-Team"] == "blue"


def test_cloud_models_wait_for_no_gpu(gateway: RecordingProxy) -> None:
    """Would catch a cloud model that queues for a slot, is loaded, or makes room for itself."""
    cloud = {"remote_model": "kimi-k2:1t", "remote_host": "https://ollama.com:443", "size": 380}
    tags = [{"name": "llama3:8b", "size": 5_000_000_000}, {"name": "kimi-k2:1t-cloud", **cloud}]
    gateway.instead["/api/tags"] = (200, {"models": tags}, OK)
    gateway.instead["/api/show"] = (200, {"capabilities": ["completion"]}, OK)

    async def scenario() -> tuple[int, list[str]]:
        async with router_over(f"gpu0 {gateway.url} slots=1") as router:
            router.scheduler.submit(FleetRequest("local", "somebody", ("llama3:8b",)))
            (local,) = router.scheduler.decide()
            assert local.loads
            for number in range(40):
                router.scheduler.submit(FleetRequest(str(number), "somebody", ("kimi-k2:1t-cloud",)))
            bound = router.scheduler.decide()
            for identity in ("local", *map(str, range(40))):
                router.scheduler.cancel(identity)
            return len(bound), sorted({"loads" if binding.loads else "there" for binding in bound})

    assert run(scenario) == (40, ["there"])
