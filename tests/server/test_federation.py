"""Three sites learn together: real caches, Flower's real processes, secure aggregation between them."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from harness.cache_upstream import SECRET, open_store
from local.processes import free_port, log_tail, running
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.pool import read_rounds
from ollama_pack.cache.semantic import as_set, calibration_report, label_key
from ollama_pack.services.calibration_routes import CALIBRATION

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-federation/bin/python"
KEY = label_key("llama3:8b", "e", "user:1", "hello")
ERROR = 0.01
EACH = 120  # labels of a site: a bit more than a third of the 328 that one needs alone
ROUND_SECONDS = 240.0
AGREEMENT = f'name = "schools"\nsites = 3\nepsilon = 5\nlabels = ["{KEY}"]\n'
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no Flower here: scripts/prepare .venv-federation federation"
)


@asynccontextmanager
async def site_with(cache: ResponseCache, key: str) -> AsyncIterator[str]:
    """The address of a site whose admin's key is known: the pack's routes on a real cache."""

    async def calibration(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {key}":
            raise web.HTTPUnauthorized
        if request.method == "POST":
            trouble = await cache.change_counts(partial(as_set, read_rounds(await request.json())))
            return web.json_response({"fault": str(trouble or "")})
        counts = await cache.shared_counts()
        assert isinstance(counts, dict)
        return web.json_response({"fault": "", **calibration_report(counts)})

    app = web.Application()
    app.router.add_route("*", CALIBRATION, calibration)
    runner = web.AppRunner(app)
    await runner.setup()
    place = web.TCPSite(runner, "127.0.0.1", 0)
    await place.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def label(cache: ResponseCache, times: int) -> None:
    for _ in range(times):
        await cache.label(KEY, 0.99, right=True, error=ERROR)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def a_round(folder: Path, server: str, environment: dict[str, str]) -> None:
    """Have the server make a round."""
    argv = [PYTHON, ROOT / "scripts/federate.py", "round", "--folder", folder, "--server", server]
    done = await asyncio.to_thread(
        partial(
            subprocess.run,
            argv,
            env=environment,
            timeout=ROUND_SECONDS,
            capture_output=True,
            check=False,
            text=True,
        )
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log_tail(folder / 'log', 60)}"


def told(folder: Path) -> list[int]:
    """What a site has sent in the last round."""
    sent: list[int] = json.loads((folder / "site.json").read_text())["sent"]
    return sent


def each_has_the_sum_of_the_others(folder: Path, caches: dict[str, ResponseCache]) -> None:
    sent = {name: told(folder / name) for name in caches}
    number = len(list((folder / "server").glob("round-*.json")))
    result = json.loads((folder / f"server/round-{number}.json").read_text())
    assert result["sum"] == [sum(column) for column in zip(*sent.values(), strict=True)]
    for name, cache in caches.items():
        (*_before, found) = cache.calibration.pooled(KEY)
        others = [sent[other] for other in caches if other != name]
        assert [*found.judged.right, *found.judged.wrong] == [
            sum(column) for column in zip(*others, strict=True)
        ]


def test_three_sites_reach_together_what_none_reaches_alone(tmp_path: Path) -> None:
    """Would catch a site that gets anything but the sum of the others, or evidence that is unused."""
    environment = os.environ | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
    port = free_port()
    server = f"127.0.0.1:{port}"
    (tmp_path / "key").write_text("sk-admin\n")
    names = ("one", "two", "three")
    for name in ("server", *names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agreement.toml").write_text(AGREEMENT)

    def begin(role: str, name: str, *options: object) -> list[str | Path]:
        return [PYTHON, ROOT / "scripts/federate.py", role, "--folder", tmp_path / name, *map(str, options)]

    async def test(begun: ExitStack, sites: AsyncExitStack) -> None:
        start = partial(running, env=environment, cwd=tmp_path)
        begun.enter_context(start(begin("server", "server", "--port", port), log=tmp_path / "server/log"))
        caches: dict[str, ResponseCache] = {}
        for name in names:
            cache = ResponseCache(open_store(str(tmp_path / name / "cache.sqlite3")), Keyring(SECRET))
            sites.push_async_callback(cache.close)
            caches[name] = cache
            url = await sites.enter_async_context(site_with(cache, "sk-admin"))
            options = (
                "--server",
                server,
                "--url",
                url,
                "--key-file",
                tmp_path / "key",
                "--port",
                free_port(),
            )
            begun.enter_context(start(begin("site", name, *options), log=tmp_path / name / "log"))
            await label(cache, EACH)
            assert cache.calibration.threshold(KEY, ERROR) is None
        async with asyncio.timeout(ROUND_SECONDS):
            while not listens(port):  # noqa: ASYNC110 - Flower takes its time to begin on a busy machine
                await asyncio.sleep(0.1)
        for _more in range(4):
            await a_round(tmp_path / "server", server, environment)
            each_has_the_sum_of_the_others(tmp_path, caches)
            if all(cache.calibration.threshold(KEY, ERROR) for cache in caches.values()):
                return
            for cache in caches.values():  # the noise spoke against it: a few labels more
                await label(cache, EACH // 2)
        pytest.fail("the sites have labels enough, and reach no bound")

    async def all_of_it() -> None:
        with ExitStack() as begun:
            async with AsyncExitStack() as sites:
                await test(begun, sites)

    asyncio.run(all_of_it())
