"""Thousands of chats through the pack on a real Open WebUI, and what is left in the server afterwards.

    uv run bench/soak.py [CHATS] [--minutes M]      writes bench/results/soak.json, and the server's log

Some users chat at once, streamed and not, with questions that come again and with new ones. Some hang up, at
any moment. Meanwhile functions are updated and valves are changed. The nodes are simulated, and fast.

Printed are, of the server's process, memory, threads and file descriptors; of the router its chats at nodes
and those that wait; of the cache its leases. Each is to be as it was half-way at the end, or nothing: exit
status 1 where it is not. After M minutes it ends with as many chats as there were.
"""

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from harness.fixtures_cache import share
from harness.fixtures_routing import NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.server_process import server_at
from harness.sim_process import SimulatedNodes, simulated_nodes
from local.webui import RunningWebUI, connections, open_webui
from ollama_pack.cache.store_sqlite import host_milliseconds

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/soak.json"
CHATS, AT_ONCE, USERS, SAMPLES = 20_000, 12, 4, 20
NODES = (
    "gpu0 models=llama3:8b;size=4.7GB slots=3 speed=50",
    "gpu1 models=llama3:8b;size=4.7GB,qwen3:4b;size=2.6GB slots=3 speed=50",
)
PACK = """\
model_provider:
  endpoints:
    - {{name: gpu0, url: "{gpu0}", slots: 3}}
    - {{name: gpu1, url: "{gpu1}", slots: 3}}
  models:
    - {{name: gpt-4, local_name: ["llama3:8b", "qwen3:4b"]}}
cache: {{ttl: 120}}
router: {{probe_seconds: 1}}
plugins: [gpu_router, model_alias_filter, response_cache_filter, response_cache_replay, ollama_pack_events]
"""
HANG_UP, REPEATED, STREAMED = 0.25, 0.4, 0.6  # shares of the chats
CHANGE_EVERY = 100  # chats between two changes of a function or its valves
SETTLE_SECONDS = 60.0
REFUSED = 0.01  # share of the chats: the last of a flood, and some while a function is updated
GROWTH, GROWTH_MB = 1.1, 40.0  # of memory since half-way, as Python's allocator comes and goes by so much
FEW = 6  # threads and file descriptors: a pool that grows a little later


@dataclass
class Sample:
    """What the server holds.

    Attributes:
        chats: that were begun by then.
        seconds: since the first.
        memory_mb: that its process has.
        threads: of the process.
        files: descriptors that are open.
        at_nodes: chats for which the router holds a slot.
        waiting: chats in its queue.
        leases: of the cache that have not run out.
    """

    chats: int
    seconds: float
    memory_mb: float
    threads: int
    files: int
    at_nodes: int
    waiting: int
    leases: int


class Soak:
    """Chats on a server, and looks into it."""

    def __init__(
        self, webui: RunningWebUI, database: Path, tokens: list[str], session: aiohttp.ClientSession
    ) -> None:
        self.samples: list[Sample] = []
        self.outcomes: dict[str, int] = {}
        self._webui = webui
        self._database = database
        self._tokens = tokens
        self._session = session
        self._process = server_at(int(webui.url.rpartition(":")[2]))
        self._dice = random.Random(1)
        self._api = webui.as_admin()
        self._began = time.monotonic()
        self._begun = 0

    async def run(self, chats: int, seconds: float) -> None:
        """Chat, so many times or for so long."""
        workers = [asyncio.create_task(self._chat_on(chats, seconds)) for _ in range(AT_ONCE)]
        seen = 0
        while not all(worker.done() for worker in workers):
            await asyncio.sleep(0.5)
            if self._begun * SAMPLES // chats > seen or self._due(seconds):
                seen = self._begun * SAMPLES // chats
                await self._look()
        await asyncio.gather(*workers)
        await self._settle()

    def _due(self, seconds: float) -> bool:
        """Whether a look is due by the time, where it and not the chats will end the soak."""
        last = self.samples[-1].seconds if self.samples else 0.0
        return time.monotonic() - self._began - last >= seconds / SAMPLES

    async def _chat_on(self, chats: int, seconds: float) -> None:
        while self._begun < chats and time.monotonic() - self._began < seconds:
            self._begun += 1
            if self._begun % CHANGE_EVERY == 0:
                await asyncio.to_thread(self._change, self._begun // CHANGE_EVERY)
            outcome = await self._chat()
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    async def _chat(self) -> str:
        dice = self._dice
        asked = f"question {dice.randrange(5)}" if dice.random() < REPEATED else f"question {dice.random()}"
        model = dice.choice(("gpt-4", "gpu_router.llama3:8b", "gpu_router.qwen3:4b"))
        streamed, limit = dice.random() < STREAMED, dice.choice((4, 16, 64))
        body = {
            "model": model,
            "stream": streamed,
            "max_tokens": limit,
            "messages": [{"role": "user", "content": asked}],
        }
        patience = dice.expovariate(1 / 0.15) if dice.random() < HANG_UP else None
        headers = {"Authorization": f"Bearer {dice.choice(self._tokens)}"}
        url = f"{self._webui.url}/api/chat/completions"
        try:
            async with (
                asyncio.timeout(patience),
                self._session.post(url, json=body, headers=headers) as answer,
            ):
                text = await answer.text()
        except TimeoutError:
            return "hung up"
        except aiohttp.ClientError as error:
            return type(error).__name__
        if '"error"' in text or answer.status != 200:  # noqa: PLR2004 - HTTP's OK
            return f"refused: {text[max(0, text.find('error')) :][:160]}"
        return "from the cache" if '"cache"' in text else "answered"

    def _change(self, number: int) -> None:
        """Update a function, or change valves, as an admin does while others chat."""
        names = ("gpu_router", "response_cache_filter", "response_cache_replay", "ollama_pack_events")
        name = names[number // 2 % len(names)]
        place = f"/api/v1/functions/id/{name}"
        if number % 2:
            valves = {**self._api.get(f"{place}/valves"), "show_status": number % 4 == 1}
            valves |= {"ttl_seconds": 60 + number % 60} if name == "response_cache_filter" else {}
            valves |= {"max_queue": 64 + number % 60} if name == "gpu_router" else {}
            if name != "response_cache_replay":
                self._api.post(f"{place}/valves/update", valves)
            return
        function = self._api.get(place)
        text = function["content"].partition("\n# soak")[0]
        form = {key: function[key] for key in ("id", "name", "meta")}
        self._api.post(f"{place}/update", {**form, "content": f"{text}\n# soak {number}\n"})

    async def _settle(self) -> None:
        """Wait until nothing is under way, and look once more."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(2)
            last = await self._look()
            if not (last.at_nodes or last.waiting or last.leases):
                break
            self.samples.pop()
        if time.monotonic() >= until:
            await self._look()

    async def _look(self) -> Sample:
        told: dict[str, Any] = {}
        with suppress(Exception):  # the events function is being updated: the next look shows it
            told = await asyncio.to_thread(self._api.get, "/ollama-pack/data")
        router = told.get("router") or {}
        process = self._process
        sample = Sample(
            self._begun,
            round(time.monotonic() - self._began, 1),
            round(process.memory_info().rss / 2**20, 1),
            process.num_threads(),
            process.num_fds(),
            sum(node.get("in_flight") or 0 for node in router.get("nodes") or ()),
            router.get("waiting") or 0,
            self._leases(),
        )
        self.samples.append(sample)
        Console(width=140).print(sample, soft_wrap=True)
        return sample

    def _leases(self) -> int:
        try:
            with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as link:
                wanted = "SELECT count(*) FROM leases WHERE ends > ?"
                return int(link.execute(wanted, (host_milliseconds(),)).fetchone()[0])
        except sqlite3.Error:
            return 0


def findings(samples: list[Sample]) -> list[str]:
    """What is not flat."""
    last, half = samples[-1], samples[len(samples) // 2]
    wrong = [
        f"{name} are left: {getattr(last, name)}"
        for name in ("at_nodes", "waiting", "leases")
        if getattr(last, name)
    ]
    wrong += [
        f"{name} have grown since half-way: {getattr(half, name)} to {getattr(last, name)}"
        for name in ("threads", "files")
        if getattr(last, name) > getattr(half, name) + FEW
    ]
    if last.memory_mb > half.memory_mb * GROWTH + GROWTH_MB:
        wrong.append(f"memory has grown since half-way: {half.memory_mb} to {last.memory_mb} MB")
    return wrong


async def soak(webui: RunningWebUI, database: Path, chats: int, seconds: float) -> Soak:
    tokens = [webui.add_user(f"soaker{number}", "soaker-password").token for number in range(USERS)]
    limits = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        run = Soak(webui, database, [*tokens, webui.admin.token], session)
        await run.run(chats, seconds)
        return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chats", nargs="?", type=int, default=CHATS)
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, simulated_nodes(*NODES) as nodes:
        run = _on_a_server(Path(scratch), nodes, given.chats, given.minutes * 60)
    wrong = findings(run.samples)
    refused = sum(count for outcome, count in run.outcomes.items() if outcome.startswith("refused"))
    if refused > REFUSED * given.chats:
        wrong.append(f"{refused} chats were refused")
    told = {"outcomes": run.outcomes, "samples": [asdict(sample) for sample in run.samples], "wrong": wrong}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    show(run, wrong)
    sys.exit(bool(wrong))


def _on_a_server(folder: Path, nodes: SimulatedNodes, chats: int, seconds: float) -> Soak:
    environment = connections(ollama=tuple(nodes.urls.values())) | NO_BACKGROUND
    with open_webui(folder / "webui", environment=environment) as webui:
        config = folder / "pack.yaml"
        config.write_text(PACK.format(**nodes.urls))
        done = upload(webui, str(config))
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        for model in ("llama3:8b", "qwen3:4b"):  # without a row a model is for admins
            share(webui.as_admin(), model)
        database = folder / "webui/data/ollama_pack_cache.sqlite3"
        try:
            return asyncio.run(soak(webui, database, chats, seconds))
        finally:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(webui.log, RESULTS.with_suffix(".log"))


def show(run: Soak, wrong: list[str]) -> None:
    table = Table(*asdict(run.samples[0]))
    for sample in run.samples:
        table.add_row(*(f"{value:g}" for value in asdict(sample).values()))
    console = Console(width=140)
    console.print(table)
    for outcome, number in sorted(run.outcomes.items(), key=lambda each: -each[1]):
        console.print(f"{number:6} {outcome}", markup=False)
    console.print("\n".join(wrong) if wrong else "all is flat")


if __name__ == "__main__":
    psutil.Process().nice(5)
    main()
