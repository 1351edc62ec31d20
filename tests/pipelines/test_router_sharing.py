"""Two real Pipelines servers whose routers share their nodes over a real Valkey."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from harness.crowds import all_who_tell, crowd, use_slots_once, wait_until_met
from harness.events_target import eventually
from harness.fixtures_pipelines import skip_unless_installed
from harness.fixtures_pipelines_router import LLAMA, ROUTER_FILE
from harness.ollama_node import OllamaNode
from harness.valkey import Valkey
from local.pipelines import RunningPipelines, pipelines_server
from ollama_pack.base.redis import redis_client
from ollama_pack.services.history import RedisHistory

SLOTS = 2  # of each node, as its row says

# What Python runs first in a server whose image lacks the package.
WITHOUT_REDIS = """\
import sys
sys.modules["redis"] = None
"""


@dataclass(frozen=True)
class SharingPipelines:
    """Two servers, the nodes behind both, and where they meet."""

    servers: tuple[RunningPipelines, RunningPipelines]
    nodes: tuple[OllamaNode, OllamaNode]
    valkey: Valkey

    @property
    def asks(self) -> list[partial[str]]:
        """A way to ask each server."""
        return [partial(ask, server) for server in self.servers]


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[OllamaNode, OllamaNode]]:
    skip_unless_installed()
    with OllamaNode([LLAMA]) as gpu0, OllamaNode([LLAMA]) as gpu1:
        yield gpu0, gpu1


@pytest.fixture(scope="module")
def sharing(
    nodes: tuple[OllamaNode, OllamaNode], valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharingPipelines]:
    """The servers, whose routers have met."""
    folders = [tmp_path_factory.mktemp("sharing") for _ in range(2)]
    with routing(folders[0], nodes, valkey.url) as one, routing(folders[1], nodes, valkey.url) as two:
        wait_until_met(valkey, 2)
        yield SharingPipelines((one, two), nodes, valkey)


@contextmanager
def routing(
    folder: Path, nodes: tuple[OllamaNode, OllamaNode], redis_url: str, **environment: str
) -> Iterator[RunningPipelines]:
    """A server with the router, its settings from the environment."""
    (folder / "pipelines").mkdir()
    shutil.copy(ROUTER_FILE, folder / "pipelines")
    rows = "; ".join(f"gpu{number} {node.url} slots={SLOTS}" for number, node in enumerate(nodes))
    own = {"GPU_ROUTER_NODES": rows, "GPU_ROUTER_REDIS_URL": redis_url}
    with pipelines_server(folder, environment=own | environment) as server:
        yield server


def ask(server: RunningPipelines) -> str:
    """The text of an answer."""
    body = {
        "model": "gpu_router.llama3:8b",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
    }
    answer = requests.post(f"{server.url}/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def test_two_servers_use_no_slot_twice(sharing: SharingPipelines) -> None:
    """Would catch servers that do not hear each other: each would fill all slots of both nodes."""
    assert use_slots_once(sharing.nodes, sharing.asks, SLOTS)


def test_chats_of_both_go_on_without_redis(sharing: SharingPipelines) -> None:
    """Would catch a Redis that takes the chats with it, or servers that stay apart when it is back."""
    sharing.valkey.kill()
    crowd(sharing.nodes, sharing.asks)
    sharing.valkey.start()
    wait_until_met(sharing.valkey, len(sharing.servers))
    assert use_slots_once(sharing.nodes, sharing.asks, SLOTS)
    for server in sharing.servers:
        assert server.log.read_text().count("(redis_url) does not answer") <= 1
        assert "Traceback" not in server.log.read_text()


def test_a_reload_leaves_nobody_behind(sharing: SharingPipelines) -> None:
    """Would catch a router that tells on after its server has loaded the files anew, or a silent new one."""
    api = sharing.servers[0].api()
    api.post("/pipelines/reload")
    api.close()
    wait_until_met(sharing.valkey, 3)  # one of them is gone
    assert len(all_who_tell(sharing.valkey)) == len(sharing.servers)
    assert use_slots_once(sharing.nodes, sharing.asks, SLOTS)


def test_both_write_into_one_history(sharing: SharingPipelines) -> None:
    """Would catch a Pipelines server whose chats and figures no dashboard shows."""
    for asks in sharing.asks:
        asks()

    async def read() -> tuple[int, dict[str, dict[str, Any]]]:
        store = RedisHistory(redis_client(sharing.valkey.url))
        try:
            chats = await store.older("", 10)
            return sum(chat["model"] == "llama3:8b" for chat in chats), await store.processes()
        finally:
            await store.close()

    def is_written() -> bool:
        chats, processes = asyncio.run(read())
        kinds = [status["kind"] for status in processes.values()]
        return chats >= len(sharing.servers) and kinds == ["Pipelines"] * len(sharing.servers)

    eventually(is_written)


def test_the_address_of_redis_is_no_valve(sharing: SharingPipelines) -> None:
    """Would catch a password that the server tells everybody who asks for valves, as it asks for no key."""
    valves = requests.get(f"{sharing.servers[0].url}/gpu_router/valves", timeout=60).json()
    assert valves["redis_url"] == ""


def test_without_the_package_the_router_is_alone_and_says_so(
    nodes: tuple[OllamaNode, OllamaNode], tmp_path: Path
) -> None:
    """Would catch a minimal image that moves the file to failed/, or sharing that is silently off."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_REDIS)
    with routing(tmp_path, nodes, "redis://redis:6379/0", PYTHONPATH=str(tmp_path)) as server:
        assert ask(server) == "You said: hello"
        api = server.api()
        saved = api.post("/gpu_router/valves/update", api.valves("gpu_router") | {"redis_url": "redis://a"})
        api.close()
        assert saved["redis_url"] == "redis://a"
        assert ask(server) == "You said: hello"
        log = server.log.read_text()
    assert log.count("redis_url has no effect: the package redis is not installed") == 2  # for each router
    assert "Traceback" not in log


def test_an_address_that_cannot_be_used_is_left_out(
    nodes: tuple[OllamaNode, OllamaNode], tmp_path: Path
) -> None:
    """Would catch a mistyped variable that takes all chats with it, or whose password is logged."""
    with routing(tmp_path, nodes, "redis://:hush/hush@redis:6379/0") as server:
        assert ask(server) == "You said: hello"
        log = server.log.read_text()
    assert "GPU_ROUTER_REDIS_URL is left out: the redis:// URL of Redis cannot be used" in log
    assert "hush" not in log
