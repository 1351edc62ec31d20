"""Other routers for several Ollamas in front of the same nodes, with their defaults but where it is said.

They live on the wall's clock, so runs with them take their whole time (speed 1). Each is installed into an
environment of its own, whose folder of commands is given to the benchmark:

    uv venv herd    && uv pip install -p herd    ollama-herd
    uv venv litellm && uv pip install -p litellm "litellm[proxy]"
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import requests

from local.processes import ServerStartError, free_port, running, wait_until_http

START_SECONDS = 90.0

# The folder of its commands, the nodes' URLs by name, the models → the URL of its OpenAI-compatible API. That
# lists the models by their whole names, with `:latest`.
Peer = Callable[[Path, Mapping[str, str], tuple[str, ...]], AbstractContextManager[str]]


@contextmanager
def ollama_herd(commands: Path, nodes: Mapping[str, str], models: tuple[str, ...]) -> Iterator[str]:
    """Its router, and its agent beside each node, with their defaults.

    Raises:
        ServerStartError: the router did not start, or did not hear of all nodes and their models.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        home, log = Path(scratch), Path(scratch) / "router.log"
        env = os.environ | {"HOME": scratch}
        router = [str(commands / "herd"), *_listening(port)]
        process = stack.enter_context(running(router, env=env, cwd=home, log=log))
        wait_until_http(f"{url}/fleet/status", process, START_SECONDS, log)
        for name, node in nodes.items():
            options = ["--node-id", name, "--ollama-host", node, "--router-url", url]
            agent = [str(commands / "herd-node"), *options]
            stack.enter_context(running(agent, env=env, cwd=home, log=home / f"{name}.log"))
        _await_herd(url, len(nodes) * len(models), log)
        yield url


def _listening(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def _await_herd(url: str, models: int, log: Path) -> None:
    """Until its router knows so many models, each counted once a node."""
    until = time.monotonic() + START_SECONDS
    while True:
        nodes = requests.get(f"{url}/fleet/status", timeout=10).json()["nodes"]
        if sum(len(node["ollama"]["models_available"]) for node in nodes) >= models:
            return
        if time.monotonic() > until:
            raise ServerStartError(f"{url} did not hear of {models} models", url, log)
        time.sleep(0.5)


@contextmanager
def litellm(
    commands: Path, nodes: Mapping[str, str], models: tuple[str, ...], key: str = ""
) -> Iterator[str]:
    """Its proxy with every model at every node, and the strategy that fits chats best: `least-busy`.

    With a key it checks that clients show it; several keys would need a database.

    Raises:
        ServerStartError: it did not start.
    """
    deployments = [
        {
            "model_name": f"{model}:latest",
            "litellm_params": {"model": f"ollama_chat/{model}", "api_base": node},
        }
        for model in models
        for node in nodes.values()
    ]
    config = {
        "model_list": deployments,
        "router_settings": {"routing_strategy": "least-busy"},
        "general_settings": {"master_key": key}
        if key
        else {"dangerously_permit_weak_or_unset_master_key": True},  # on loopback, for minutes
    }
    url = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch), Path(scratch) / "proxy.log"
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        proxy = [str(commands / "litellm"), "--config", "config.yaml", *_listening(port)]
        env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it is fetched
        with running(proxy, env=env, cwd=folder, log=log) as process:
            wait_until_http(f"{url}/health/liveliness", process, START_SECONDS, log)
            yield url


PEERS: Mapping[str, Peer] = {"ollama-herd": ollama_herd, "litellm": litellm}
