"""Workers that share many nodes over a real Redis: what the chats wait, and what sharing costs.

    .venv/bin/python bench/sharing.py                          8 and 32 workers, 64 nodes, 60 requests/s
    .venv/bin/python bench/sharing.py --workers 8 --cluster    over a Redis Cluster of three masters

Four workers share one process, as many as one core can bear. Each is the scheduler and the connection that a
router has; a node is a timer, and all of what happens at nodes comes through the shared place. Told are the
seconds to first token next to those of one worker, the messages a second, and the CPU: of one worker for all
that it does (decisions, what it hears), and of Redis.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import psutil
import redis

from bench.routing.figures import percentile
from harness.valkey import Valkey, redis_program
from local.processes import free_port
from ollama_pack.base.redis import redis_client
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel, PromptBlock
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.peers.redis import RedisShare
from ollama_pack.routing.peers.share import FleetShare
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.node_state import ResidentModel
from ollama_pack.routing.state.scheduler import Scheduler

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/sharing.json"
WORKERS_A_PROCESS = 4
MODELS = {f"m{number}": InstalledModel(f"m{number}", 1) for number in range(8)}
RESIDENT = ("m0", "m0", "m0", "m1", "m1", "m2", "m3", "m4", "m5", "m6", "m7")  # in the nodes' memory, in turn
PROMPT_RATE, TOKEN_SECONDS, LOAD_SECONDS = 700.0, 0.02, 4.0
MEET_SECONDS = 2.0  # after a worker has met the others; by then all have
STREAM = "ollama_pack:{fleet}:1:events"


@dataclass(frozen=True)
class Load:
    """What comes: to all workers together."""

    url: str
    workers: int
    nodes: int = 64
    slots: int = 4
    rate: float = 60.0
    seconds: float = 30.0


@dataclass
class BenchWorker:
    """A scheduler, its connection, and timers in place of nodes."""

    load: Load
    number: int
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    decisions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.dice = Random(self.number)
        rows = [NodeRow(f"n{n}", f"http://n{n}", slots=self.load.slots) for n in range(self.load.nodes)]
        resident = dict(zip([row.name for row in rows], cycle(RESIDENT), strict=False))
        self.scheduler = Scheduler(rows, self.loop.time, self.dice, max_queue=10_000)
        for row in rows:
            self.scheduler.cluster.probed(row.name, MODELS, [ResidentModel(resident[row.name], 1)])
        self.came: dict[str, float] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.share = share = FleetShare(self.scheduler, f"w{self.number}", self.loop.time)
        clients = redis_client(self.load.url), redis_client(self.load.url)
        self.redis = RedisShare(share, *clients, self.decide)
        self.redis.start()

    def decide(self) -> None:
        began = time.thread_time_ns()
        bindings = [*self.scheduler.decide(), *self.scheduler.load_ahead()]
        self.decisions.append(time.thread_time_ns() - began)
        for binding in bindings:
            task = self.loop.create_task(self.serve(binding))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        if self.timer:
            self.timer.cancel()
        due = self.scheduler.wake_at
        self.timer = self.loop.call_at(due, self.decide) if due is not None else None

    async def serve(self, binding: Assignment) -> None:
        request = binding.request
        if not await self.redis.claim(binding):
            self.refused += 1
            self.decide()
            return
        load = LOAD_SECONDS if binding.loads else 0.0
        prompt = max(0, request.tokens - binding.hit) / PROMPT_RATE
        output = 0 if request.load_only else self.dice.randint(50, 150)
        await asyncio.sleep(load + prompt)
        if not request.load_only:
            self.waits.append(self.loop.time() - self.came.pop(request.id))
            self.scheduler.first_token(request.id)
            self.decide()
            await asyncio.sleep(output * TOKEN_SECONDS)
        spent = Durations(
            load + prompt + output * TOKEN_SECONDS,
            load,
            prompt,
            request.tokens,
            output * TOKEN_SECONDS,
            output,
        )
        self.scheduler.finished(request.id, spent)
        self.decide()

    async def play(self) -> None:
        """Meet the others, then ask when it is time, until all is answered."""
        while self.share.peers < self.load.workers - 1 or not self.share.connected:  # noqa: ASYNC110 - many connections
            await asyncio.sleep(0.05)
        began = self.loop.time() + MEET_SECONDS
        for coming in coming_requests(self.load):
            if coming.worker == self.number:
                await asyncio.sleep(began + coming.at - self.loop.time())
                self.came[coming.request.id] = began + coming.at
                self.scheduler.submit(coming.request)
                self.decide()
        while self.tasks or self.scheduler.waiting:
            await asyncio.wait(set(self.tasks) or {self.loop.create_task(asyncio.sleep(0.05))}, timeout=0.05)
        await self.redis.close()


@dataclass(frozen=True)
class Coming:
    """A request, when it comes and to which worker."""

    at: float
    worker: int
    request: FleetRequest


def coming_requests(load: Load) -> Iterator[Coming]:
    """The same for any number of workers."""
    dice = Random(1)
    shares = [1 / (number + 1) for number in range(len(MODELS))]
    at, number = 0.0, 0
    while (at := at + dice.expovariate(load.rate)) < load.seconds:
        chat, number = dice.randrange(300), number + 1
        (model,) = dice.choices(list(MODELS), shares)
        blocks = (PromptBlock(-1, 100), PromptBlock(chat, 600))
        request = FleetRequest(f"r{number}", f"u{chat % 50}", (model,), f"c{chat}", blocks)
        yield Coming(at, Random(f"{load.workers} {number}").randrange(load.workers), request)


def run_workers(load: Load, numbers: Sequence[int]) -> dict[str, Any]:
    """Some of the workers, in a process of their own."""

    async def play() -> list[BenchWorker]:
        made = [BenchWorker(load, number) for number in numbers]
        await asyncio.gather(*(worker.play() for worker in made))
        return made

    began, cpu = time.monotonic(), time.process_time()
    made = asyncio.run(play())
    return {
        "waits": [wait for worker in made for wait in worker.waits],
        "refused": sum(worker.refused for worker in made),
        "decisions": [taken for worker in made for taken in worker.decisions],
        "cpu": (time.process_time() - cpu) / (time.monotonic() - began) / len(made),
    }


def measure(load: Load, servers: Sequence[int]) -> dict[str, Any]:
    """All workers, and what came of it."""
    groups = [
        range(first, min(load.workers, first + WORKERS_A_PROCESS))
        for first in range(0, load.workers, WORKERS_A_PROCESS)
    ]
    processes = [psutil.Process(pid) for pid in servers]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    client = redis.Redis.from_url(load.url.replace("+cluster", "")) if "+cluster" not in load.url else None
    began = time.monotonic()
    with ProcessPoolExecutor(len(groups), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run_workers, [load] * len(groups), groups))
    seconds = time.monotonic() - began
    written = client.xinfo_stream(STREAM)["entries-added"] if client and client.exists(STREAM) else None
    waits = [wait for one in found for wait in one["waits"]]
    taken = [nanoseconds / 1e6 for one in found for nanoseconds in one["decisions"]]
    return {
        "workers": load.workers,
        "requests": len(waits),
        "mean": round(statistics.mean(waits), 3),
        "p95": round(percentile(waits, 0.95), 3),
        "p99": round(percentile(waits, 0.99), 3),
        "refused": sum(one["refused"] for one in found),
        "messages_per_second": round(written / load.seconds) if written else None,
        "cpu_of_a_worker": round(statistics.mean(one["cpu"] for one in found), 3),
        "cpu_of_redis": [
            round((sum(process.cpu_times()[:2]) - spent) / seconds, 3)
            for process, spent in zip(processes, before, strict=True)
        ],
        "decision_p99_ms": round(percentile(taken, 0.99), 2),
    }


@contextmanager
def servers_of(*, cluster: bool) -> Iterator[tuple[str, list[int]]]:
    """A server, or a cluster of three masters: the URL, and the processes."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        made = []
        for number in range(3 if cluster else 1):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            options = {"cluster-enabled": "yes", "cluster-port": str(free_port())} if cluster else {}
            made.append(stack.enter_context(Valkey(folder, options, redis_program())))
        url = made[0].url
        if cluster:
            addresses = [f"127.0.0.1:{server.port}" for server in made]
            command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603 - see above
            url = f"redis+cluster://{addresses[0]}"
            while not all("cluster_state:ok" in _cluster_info(server) for server in made):
                time.sleep(0.1)
        yield url, [_pid(server) for server in made]


def _cluster_info(server: Valkey) -> str:
    with server.client() as client:
        return str(client.execute_command("CLUSTER", "INFO"))


def _pid(server: Valkey) -> int:
    with server.client() as client:
        return int(client.info("server")["process_id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, action="append", help="may be given again (1, 8, 32)")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second, over all workers")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--cluster", action="store_true", help="over a Redis Cluster of three masters")
    asked = parser.parse_args()
    found = []
    for workers in asked.workers or (1, 8, 32):
        with servers_of(cluster=asked.cluster) as (url, pids):
            load = Load(url, workers, asked.nodes, rate=asked.rate, seconds=asked.seconds)
            found.append(measure(load, pids))
        print(json.dumps(found[-1]), flush=True)
    if not asked.workers and not asked.cluster:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
