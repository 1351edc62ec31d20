"""Real gateways in front of OpenAI-compatible engines: the routers of SGLang and vLLM."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deploy.shown import message
from local.processes import free_port, running, wait_until_http

Gateway = Literal["sglang-router", "vllm-router"]
MODULES: dict[Gateway, str] = {
    "sglang-router": "sglang_router.launch_router",
    "vllm-router": "vllm_router.launch_router",
}
START_SECONDS = 60.0


class GatewayMissingError(RuntimeError):
    """Its package is not installed."""


@contextmanager
def gateway(
    name: Gateway, engines: Sequence[str], folder: Path, policy: str = "cache_aware"
) -> Iterator[str]:
    """Run a gateway in front of engines; yields its address.

    Args:
        name: which one.
        engines: their addresses, without `/v1`.
        folder: for its log.
        policy: how it chooses among them.

    Raises:
        GatewayMissingError: its package is not installed.
        ServerStartError: it did not start; the message has the end of its log.
    """
    module = MODULES[name]
    if find_spec(module.partition(".")[0]) is None:
        raise GatewayMissingError(
            message("{name} is not installed: run `uv sync --group gateways`", name=name)
        )
    port, log = free_port(), folder / f"{name}.log"
    url = f"http://127.0.0.1:{port}"
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    argv = [sys.executable, "-m", module, "--policy", policy, "--worker-urls", *engines, *where]
    with running(argv, env=os.environ, cwd=folder, log=log) as process:
        wait_until_http(f"{url}/health", process, START_SECONDS, log)
        yield url
