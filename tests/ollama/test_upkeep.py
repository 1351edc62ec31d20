"""Upkeep over two real Ollama processes, each with a store of its own, while chats go on."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import aiohttp
import pytest
import requests

from harness.fixtures_ollama import RealServer
from harness.ollama_registry import registry
from harness.routing import HEAD, run, until
from local import ollama
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.dispatch.upkeep import Upkeep
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.routing.warm import parse_warm

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)


@pytest.fixture
def two(real_server: RealServer, tmp_path: Path) -> Iterator[list[str]]:
    """The addresses of two Ollamas whose models are apart."""
    folder = ollama.built()
    if folder is None or not real_server.ours:
        pytest.skip("no built Ollama to run twice: see `scripts/local/real-ollama`")
    with ExitStack() as stack:
        urls = []
        for number in range(2):
            store = tmp_path / f"models{number}"
            shutil.copytree(folder / "models", store)
            settings = {"OLLAMA_MODELS": str(store), "HOME": str(tmp_path), "OLLAMA_NOPRUNE": "1"}
            urls.append(stack.enter_context(ollama.serving(folder / "bin" / "ollama", settings=settings)))
        yield urls


def router_over(urls: list[str], session: aiohttp.ClientSession) -> Router:
    rows = parse_nodes("\n".join(f"gpu{number} {url}" for number, url in enumerate(urls)))
    return Router(rows, session, RouterSettings(probe_seconds=0.5), Random(1))  # noqa: S311 - breaks ties


def loaded(url: str) -> dict[str, datetime]:
    """What is in memory, and until when."""
    entries = requests.get(f"{url}/api/ps", timeout=10).json()["models"]
    return {entry["name"]: datetime.fromisoformat(entry["expires_at"]) for entry in entries}


def test_a_rolling_pull_loses_no_chat(two: list[str], real_server: RealServer) -> None:
    """Would catch a node that is pulled while it answers, or chats that wait for a node that is drained."""
    pulled: list[str] = []

    async def chats(router: Router, ended: asyncio.Event, number: int) -> list[tuple[str, str]]:
        found = []
        while not ended.is_set():
            body = {
                "messages": [{"role": "user", "content": f"Count to {number}"}],
                "options": {"num_predict": 8},
            }
            chunks = [
                chunk async for chunk in router.answer(body, [real_server.model], HEAD, user=f"u{number}")
            ]
            assert completion_of(chunks)["choices"][0]["message"]["content"]
            pulling = [one.node for one in router.upkeep.pulls if one.state == "pulling"]
            found.append((chunks[-1]["ollama_pack"]["node"], "".join(pulling)))
        return found

    async def play(name: str) -> list[tuple[str, str]]:
        router, ended = router_over(two, aiohttp.ClientSession()), asyncio.Event()
        await router.ready(10)
        talking = [asyncio.create_task(chats(router, ended, number)) for number in range(3)]
        await asyncio.sleep(0)
        router.upkeep.pull(name)
        with pytest.raises(ValueError, match="under way"):
            router.upkeep.pull(name)
        await until(lambda: all(one.state in {"done", "failed"} for one in router.upkeep.pulls))
        ended.set()
        found = [one for each in await asyncio.gather(*talking) for one in each]
        assert [(one.node, one.state, one.fault) for one in router.upkeep.pulls] == [
            ("gpu0", "done", ""),
            ("gpu1", "done", ""),
        ]
        assert router.upkeep.drained == frozenset()
        await router.close()
        return found

    with registry((ollama.cache_dir()) / "models", real_server.model, pulled) as name:
        found = run(lambda: play(name))
        shown = name.removeprefix("http://")
        for url in two:
            listed = requests.get(f"{url}/api/tags", timeout=10).json()["models"]
            assert shown in {model["name"].removeprefix("http://") for model in listed}
    assert len(found) >= 3
    assert all(node != pulling for node, pulling in found)


def test_models_are_kept_at_their_hours(two: list[str], real_server: RealServer) -> None:
    """Would catch a model that is loaded by the first chat of the day, or unloaded five minutes after one."""
    model = real_server.model

    async def play() -> None:
        router = router_over(two, aiohttp.ClientSession())
        moment = datetime.now(UTC)
        hours = f"{moment - timedelta(minutes=5):%H:%M}-{moment + timedelta(hours=2):%H:%M}"
        router.upkeep.keep(parse_warm(f"{model} = {hours} copies=2 zone=UTC"))
        await until(lambda: all(model in loaded(url) for url in two))
        body = {"messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 2}}
        async for _ in router.answer(body, [model], HEAD, user="u"):
            pass
        for url in two:
            assert loaded(url)[model] > moment + timedelta(hours=1.5)
        await router.close()

    run(play)


def test_outside_their_hours_nothing_is_kept(two: list[str], real_server: RealServer) -> None:
    async def play() -> None:
        router = router_over(two, aiohttp.ClientSession())
        await router.ready(10)
        upkeep = Upkeep(router, lambda: NOW)
        upkeep.keep(parse_warm(f"{real_server.model} = Sat 07:00-08:00 zone=UTC"))
        upkeep.warm_now()
        assert upkeep.stays(real_server.model) == 0
        assert upkeep.report["warm"] == []
        upkeep.close()
        await router.close()

    run(play)
    assert [loaded(url) for url in two] == [{}, {}]
