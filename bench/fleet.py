"""Routing in virtual time: the same chats over four simulated Ollamas, for each policy.

    .venv/bin/python bench/fleet.py [--quick]      writes bench/results/fleet.json unless it is quick
    .venv/bin/python bench/fleet.py --decisions    how long decisions take, up to 1,024 nodes

Ours is the scheduler that the router runs, told of events as a router would tell it, with nothing known of
the nodes beforehand but what their rows say. The peers: random (Open WebUI's own), round robin, least busy,
sticky by chat. Figures are of people's requests; title calls run beside them.
"""

import argparse
import gc
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.routing.simple_policies import Picking
from harness.virtual_chats import Chat, Driver, Measured, Turn, trace
from harness.virtual_share import Bus, SharingWorker
from harness.virtual_workers import Worker, Workers
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel, ModelRates, PromptBlock
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.plan.virtual_fleet import NodeShape, SimNode, Timeline
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.scheduler import Scheduler

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/fleet.json"
SEEDS = (1, 2, 3)
OURS = "late binding"
POLICIES = ("random", "round robin", "least busy", "sticky", OURS)
SHARED = ("0.35 chats/s", "0.35, one model", "0.35, four prefixes kept")  # played by several workers, too
SAME_DECISIONS = 5
MANY = 10  # waiting requests, from where on a decision counts
SMALL = 16  # nodes, up to which the same decisions are made several times
FLEETS = ((16, 200, 3, 60.0), (64, 800, 8, 40.0), (256, 3200, 12, 20.0), (1024, 3200, 12, 10.0))


@dataclass(frozen=True)
class Setting:
    """A situation: who asks for what, of which nodes.

    Attributes:
        rate: new chats a second.
        shares: of the models among the chats, and
        later: in as many seconds each after that, as demand moves from one model to another.
        shape: the nodes.
        seconds: for so long chats begin.
        declared: the slots that the nodes' rows say; None: they say nothing.
        priors: what ours believes of the nodes before it has measured.
        sized: ours is told how much fits into a node's memory, as `gpu_agent` would.
        nodes: how many there are.
        until: when the run is cut off, in seconds.
    """

    name: str
    rate: float
    shares: tuple[float, ...] = (0.55, 0.30, 0.15)
    later: tuple[tuple[float, ...], ...] = ()
    shape: NodeShape = field(default_factory=NodeShape)
    seconds: float = 300.0
    declared: int | None = 2
    priors: ModelRates = field(default_factory=ModelRates)
    sized: bool = False
    nodes: int = 4
    until: float = math.inf


def settings() -> Iterator[Setting]:
    thirds = (1 / 3,) * 3
    slow = NodeShape(load=8.0, prompt_rate=350.0, decode_rate=25.0)
    yield Setting("0.2 chats/s", 0.2)
    yield Setting("0.35 chats/s", 0.35)
    yield Setting("0.5 chats/s", 0.5)
    yield Setting("0.35, a third each", 0.35, thirds)
    yield Setting("0.35, one model", 0.35, (1.0,))
    yield Setting("0.2, one slot", 0.2, shape=NodeShape(slots=1), declared=1)
    yield Setting(
        "0.2, twice as slow as believed", 0.2, shape=slow, priors=ModelRates(prompt=700.0, token=0.02)
    )
    fast = NodeShape(load=1.0, prompt_rate=3500.0, decode_rate=120.0)
    yield Setting("0.35, five times as fast as believed", 0.35, shape=fast)
    yield Setting("0.1, one model, one slot, fast", 0.1, (1.0,), shape=replace(fast, slots=1), declared=1)
    yield Setting("0.35, all models fit", 0.35, shape=NodeShape(room=3), sized=True)
    yield Setting("0.35, slots not declared", 0.35, declared=None)
    yield Setting("0.35, four prefixes kept", 0.35, shape=NodeShape(prefixes=4))
    yield Setting("0.35, an hour", 0.35, seconds=3600.0)
    moves = (0.15, 0.30, 0.55), (0.1, 0.8, 0.1)
    yield Setting("0.35, demand moves", 0.35, later=moves)
    yield Setting("0.35, demand moves, loads of 40 s", 0.35, later=moves, shape=NodeShape(load=40.0))
    five = (0.1, 0.1, 0.1, 0.2, 0.5), (0.05, 0.05, 0.7, 0.1, 0.1)
    yield Setting("1.4, demand moves, 16 nodes", 1.4, five[0][::-1], five, nodes=16)


@dataclass(frozen=True)
class Run:
    """What came of playing chats against a policy; `ours` where it was ours."""

    measured: Measured
    loads: int
    ours: Worker | None


def worker(
    setting: Setting,
    nodes: Sequence[SimNode],
    clock: Timeline,
    dice: Random,
    policy: RoutingPolicy | None = None,
) -> SharingWorker:
    """The router's own scheduler, with what its admin would know of the nodes."""
    options: dict[str, Any] = {"priors": setting.priors, "policy": policy}
    made = SharingWorker(nodes, clock, len(setting.shares), dice, setting.declared, **options)
    if setting.sized:
        for node in nodes:
            made.scheduler.cluster.sized(node.name, node.shape.room)
    return made


def route(setting: Setting, policy: str, seed: int, chats: Sequence[Chat] | None = None) -> Run:
    """Play the chats of a setting against a policy."""
    clock = Timeline()
    nodes = [SimNode(f"n{number}", clock, setting.shape) for number in range(setting.nodes)]
    ours = worker(setting, nodes, clock, Random(seed)) if policy == OURS else None
    driver = Driver(clock, ours or Picking(policy, nodes, clock, seed))
    driver.play(chats if chats is not None else chats_of(setting, seed))
    clock.run(setting.until)
    return Run(driver.measured, sum(node.loads for node in nodes), ours)


def chats_of(setting: Setting, seed: int) -> list[Chat]:
    """The chats of a setting, those of each later part after those of the ones before."""
    found: list[Chat] = []
    for part, shares in enumerate((setting.shares, *setting.later)):
        began, more = part * setting.seconds, len(found)
        found += [
            replace(chat, number=chat.number + more, begins=chat.begins + began)
            for chat in trace(setting.rate, shares, setting.seconds, seed + 1000 * part)
        ]
    return found


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """What is told of a policy: means over the seeds; times in seconds."""

    def mean(figure: Callable[[Run], float]) -> float:
        return round(statistics.mean(map(figure, runs)), 3)

    def share(part: float) -> float:
        return mean(lambda run: percentile(run.measured.waits, part))

    return {
        "ttft_mean": mean(lambda run: statistics.mean(run.measured.waits)),
        "ttft_p50": share(0.5),
        "ttft_p95": share(0.95),
        "ttft_p99": share(0.99),
        "reused": mean(lambda run: run.measured.reused / run.measured.tokens),
        "loads_per_1000": mean(lambda run: 1000 * run.loads / run.measured.requests),
        "title_mean": mean(lambda run: statistics.mean(run.measured.title_waits or [0.0])),
        "requests": mean(lambda run: run.measured.requests),
    }


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(seeds: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        setting.name: {
            policy: figures([route(setting, policy, seed) for seed in seeds]) for policy in POLICIES
        }
        for setting in settings()
    }


def workers(seeds: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """One worker, and four behind a load balancer: alone, agreeing by hashing, sharing what they know."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for setting in settings():
        if setting.name not in SHARED:
            continue
        told = found[setting.name] = {}
        for name, count in (("one", 1), ("four, alone", 4), ("four, agreeing", 4), ("four, sharing", 4)):
            told[name] = figures([route_workers(setting, name, count, seed) for seed in seeds])
    return found


def route_workers(setting: Setting, name: str, count: int, seed: int) -> Run:
    """Play the chats of a setting against several workers."""
    clock = Timeline()
    nodes = [SimNode(f"n{number}", clock, setting.shape) for number in range(setting.nodes)]
    policy = RoutingPolicy(unsynced_peers=name.endswith("agreeing"))
    dice = [Random(100 * seed + number) for number in range(count)]
    made = [worker(setting, nodes, clock, each, policy) for each in dice]
    if name.endswith("sharing"):
        Bus(made, clock)
    driver = Driver(clock, Workers(made, Random(seed)))
    driver.play(chats_of(setting, seed))
    clock.run(setting.until)
    return Run(driver.measured, sum(node.loads for node in nodes), None)


def decisions(nodes: int = 16, chats: int = 200, models: int = 3, until: float = 100.0) -> dict[str, float]:
    """How long a decision takes while requests wait. Of this thread, in ms.

    The same decisions are made several times, and of each the median counts: what else the machine does
    meanwhile slows some of them, but each time others.
    """
    dice = Random(5)
    shares = tuple(1 / (number + 1) for number in range(models))
    setting = Setting("decisions", 1.0, shares, nodes=nodes, until=until)
    played = [
        Chat(
            number,
            dice.uniform(0, 5),
            f"m{dice.choices(range(models), shares)[0]}",
            tuple(Turn(10, 60, dice.expovariate(1 / 5)) for _ in range(60)),
            f"u{number % 40}",
        )
        for number in range(chats)
    ]
    gc.disable()
    runs = [
        decided_in(route(setting, OURS, 1, played)) for _ in range(SAME_DECISIONS if nodes <= SMALL else 1)
    ]
    gc.enable()
    taken = [
        statistics.median(times) for times in zip(*([time for time, _ in run] for run in runs), strict=True)
    ]
    return {
        "nodes": nodes,
        "chats": chats,
        "models": models,
        "decisions": len(taken),
        "waiting_mean": round(statistics.mean(waiting for _, waiting in runs[0]), 1),
        "p50_ms": round(percentile(taken, 0.5) / 1e6, 3),
        "p99_ms": round(percentile(taken, 0.99) / 1e6, 3),
        "worst_ms": round(max(taken) / 1e6, 3),
    }


def decided_in(run: Run) -> list[tuple[int, int]]:
    """The nanoseconds of each decision among many, and how many waited."""
    assert run.ours  # noqa: S101 - for mypy: ours was asked for
    return [(taken, waiting) for taken, waiting in run.ours.times if waiting >= MANY]


def fairness() -> dict[str, float]:
    """Ten users who ask something each five seconds, and one who asks 300 at once, on one model.

    Told are the medians of the ten: the largest as a multiple of the smallest, and of what it is without the
    flood.
    """
    setting = Setting("flood", 1.0, (1.0,), until=300.0)
    dice = Random(3)
    users = [
        Chat(number, number / 2, "m0", (Turn(60, 80, 1.0),), f"u{dice.randrange(10)}")
        for number in range(360)
    ]
    flood = [Chat(1000 + number, 60.0, "m0", (Turn(150, 80, 1.0),), "flood") for number in range(300)]

    def medians(chats: Sequence[Chat]) -> list[float]:
        waits = route(setting, OURS, 1, chats).measured.by_user
        return [statistics.median(waits[f"u{number}"]) for number in range(10)]

    calm, flooded = medians(users), medians([*users, *flood])
    return {
        "worst_to_best_median": round(max(flooded) / min(flooded), 2),
        "median_calm": round(statistics.median(calm), 3),
        "median_flooded": round(statistics.median(flooded), 3),
    }


def memory(requests: int = 100_000) -> dict[str, float]:
    """Memory of this process after a tenth of the requests and after all; each is of a new chat and user."""
    now = [0.0]
    scheduler = Scheduler(
        [NodeRow(f"n{n}", f"http://n{n}", slots=2) for n in range(4)], lambda: now[0], Random(1)
    )
    installed = {f"m{n}": InstalledModel(f"m{n}", 1) for n in range(3)}
    seen: dict[int, tuple[float, int]] = {}
    for number in range(requests):
        if number % 100 == 0:
            for name in scheduler.cluster.nodes:
                scheduler.cluster.probed(name, installed, [])
        now[0] += 0.5
        blocks = (PromptBlock(number % 3, 200), PromptBlock(1000 + number, 400))
        scheduler.submit(FleetRequest(str(number), f"u{number}", (f"m{number % 3}",), str(number), blocks))
        for binding in scheduler.decide():
            scheduler.first_token(binding.request.id)
            scheduler.finished(binding.request.id, Durations(2.5, 0.0, 0.5, 400, 2.0, 100))
        if number + 1 in {requests // 10, requests}:
            gc.collect()
            seen[number + 1] = (resident_megabytes(), len(gc.get_objects()))
    (early, objects), (late, objects_late) = seen.values()
    return {
        "requests": requests,
        "growth_mb": round(late - early, 2),
        "objects_early": objects,
        "objects_late": objects_late,
    }


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def show(result: dict[str, Any]) -> None:
    columns = ("mean", "p50", "p95", "p99", "reused", "loads", "titles")
    table = Table("setting", "policy", *columns, title="Time to first token of people's requests, s")
    for setting, by_policy in result["routing"].items():
        for policy, told in by_policy.items():
            times = [f"{told[name]:.2f}" for name in ("ttft_mean", "ttft_p50", "ttft_p95", "ttft_p99")]
            others = [f"{told['reused']:.0%}", f"{told['loads_per_1000']:.0f}", f"{told['title_mean']:.1f}"]
            table.add_row(setting, policy, *times, *others)
        table.add_section()
    Console(width=120).print(table)
    for name in ("ratios", "workers", "decisions", "fairness", "memory"):
        print(name, result[name])


def ratios(routing: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Ours as a share of random, which the goals are about."""
    names = ("ttft_mean", "ttft_p95", "loads_per_1000")
    return {
        setting: {name: round(told[OURS][name] / told["random"][name], 3) for name in names}
        for setting, told in routing.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one seed, and a tenth of the requests")
    parser.add_argument("--decisions", action="store_true", help="only how long decisions take")
    asked = parser.parse_args()
    if asked.decisions:
        for fleet in FLEETS:
            print(decisions(*fleet), flush=True)
        return
    quick = asked.quick
    seeds = SEEDS[:1] if quick else SEEDS
    routing = compare(seeds)
    result = {
        "seeds": list(seeds),
        "settings": {setting.name: asdict(setting) for setting in settings()},
        "routing": routing,
        "ratios": ratios(routing),
        "workers": workers(seeds),
        "decisions": [decisions(*fleet) for fleet in FLEETS],
        "fairness": fairness(),
        "memory": memory(10_000 if quick else 100_000),
    }
    if not quick:  # what is kept is what can be compared
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2, default=str) + "\n")
    show(result)


if __name__ == "__main__":
    main()
