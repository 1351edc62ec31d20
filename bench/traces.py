"""Routing of public traces in virtual time: the same requests over simulated nodes, for each policy.

    .venv/bin/python bench/traces.py --page          all rows, and the table of docs/routing-measured.md
    .venv/bin/python bench/traces.py --trace mooncake --scale 0.6 --nodes 8 --slots 8 --prefixes 64
    .venv/bin/python bench/traces.py --traces DIR    where the traces are (../shared/data/traces)
    .venv/bin/python bench/traces.py --http --trace azure --nodes 4 --prefixes 4 --first 500

`--http`: over real HTTP to simulated engines with OpenAI's protocol, in the trace's own time, next to the
real routers of SGLang and vLLM (`routing/replay.py`).

Ours is the scheduler that the router runs; nothing is known of the nodes beforehand except the slots that
their rows declare (`--undeclared`: not even those). The peers pick a node at once: random (Open WebUI's own),
round robin, least busy, sticky by session, cache-aware as SGLang's router has it, and LMetric (new prefill
tokens x batch size, arXiv 2603.15202). Next to them are two limits. No policy can beat the first: every block
that any earlier request had is held everywhere, and nobody waits. The second is one node with the slots and
the memory of all: what placing can come to, unless one knew which prefixes are asked for again. Times are
simulated seconds to the first token.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from bench.routing.replay import REPLAYED, replay, table_of
from bench.routing.simple_policies import Picking
from bench.routing.trace_page import write_page
from bench.routing.traces import (
    DEFAULT_FOLDER,
    TRACES,
    TraceMissingError,
    TraceRequest,
    least_waits,
    read_trace,
)
from harness.virtual_chats import Call, Measured, Router
from harness.virtual_workers import Worker
from ollama_pack.routing.plan.virtual_fleet import NodeShape, SimNode, Spent, Timeline, Work

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/traces.json"
PAGE = ROOT / "docs/routing-measured.md"
OURS = "late binding"
SIMPLE = ("random", "round robin", "least busy", "sticky", "cache-aware", "LMetric")
POLICIES = (*SIMPLE, OURS)
BLOCK_POLICIES = ("cache-aware", "LMetric", OURS)


@dataclass(frozen=True)
class Row:
    """A situation: which requests come, to which nodes.

    Attributes:
        trace: one of `TRACES`, or a file.
        scale: what the trace's times are multiplied with.
        slots: requests that a node answers at once.
        prefixes: that a node keeps.
        first: requests that are played.
        declared: the nodes' rows say how many slots there are.
        exact: the nodes report how many tokens of a prompt they have reused.
        models: the requests ask for so many models in turn.
        room: models that fit into a node's memory.
        seed: of the dice.
    """

    trace: str = "mooncake"
    scale: float = 1.0
    nodes: int = 8
    slots: int = 8
    prefixes: int = 64
    first: int = 4000
    declared: bool = True
    exact: bool = False
    models: int = 1
    room: int = 1
    prompt_rate: float = 0.0
    decode_rate: float = 40.0
    load: float = 4.0
    seed: int = 1

    @property
    def name(self) -> str:
        """As the tables have it."""
        trace = self.trace if self.trace in TRACES else Path(self.trace).name.split(".")[0]
        more = ["slots not declared"] * (not self.declared) + ["exact counts"] * self.exact
        more += [f"{self.models} models of which {self.room} fit"] * (self.models > 1)
        return ", ".join(
            [f"{trace} x {self.scale:g}, {self.nodes} x {self.slots}, {self.prefixes} kept", *more]
        )


def rows() -> Iterator[Row]:
    """The rows of the table."""
    for scale, nodes, slots, kept in (
        (1.0, 8, 8, 64),
        (0.6, 8, 8, 64),
        (1.0, 8, 8, 16),
        (0.4, 8, 16, 64),
        (2.0, 8, 8, 64),
        (1.0, 8, 8, 4),
        (1.0, 8, 8, 1),
        (0.5, 8, 32, 64),
        (1.0, 4, 16, 64),
        (0.3, 16, 8, 64),
    ):
        yield Row("mooncake", scale, nodes, slots, kept)
    yield Row("mooncake", declared=False)
    yield Row("mooncake", prefixes=16, models=3)
    for scale, nodes, slots in ((1.0, 4, 16), (1.0, 8, 8), (1.0, 4, 8), (2.0, 4, 8), (0.5, 8, 16)):
        yield Row("azure", scale, nodes, slots, 4, 3000)


@dataclass(frozen=True)
class Outcome:
    """What came of one row with one policy: times in simulated seconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    reused: float
    loads: int = 0
    decision_p99_ms: float = 0.0
    decision_worst_ms: float = 0.0

    @classmethod
    def of(cls, waits: Sequence[float], reused: float) -> Self:
        """The figures of some times to first token."""
        p50, p95, p99 = (round(percentile(waits, share), 4) for share in (0.5, 0.95, 0.99))
        return cls(round(statistics.mean(waits), 4), p50, p95, p99, round(reused, 4))


def play(row: Row, policy: str, folder: Path = DEFAULT_FOLDER) -> Outcome:
    """Play the requests of a row against a policy."""
    requests = read_trace(row.trace, folder, row.scale, row.first)
    clock = Timeline()
    shape = NodeShape(row.slots, row.room, row.load, rate_of(row), row.decode_rate, row.prefixes)
    nodes = [SimNode(f"n{number}", clock, shape) for number in range(row.nodes)]
    ours = None
    router: Router
    if policy == OURS:
        declared = row.slots if row.declared else None
        router = ours = Worker(nodes, clock, row.models, Random(row.seed), declared, exact=row.exact)
    else:
        router = Picking(policy, nodes, clock, row.seed)
    measured = Measured()
    for request in requests:
        clock.at(request.at, lambda request=request: send(request, row, clock, router, measured))  # type: ignore[misc] # mypy cannot see a lambda's defaults
    clock.run()
    times = sorted(taken for taken, _ in ours.times) if ours else [0]
    return replace(
        Outcome.of(measured.waits, measured.reused / measured.tokens),
        loads=sum(node.loads for node in nodes),
        decision_p99_ms=round(percentile(times, 0.99) / 1e6, 3),
        decision_worst_ms=round(times[-1] / 1e6, 3),
    )


def rate_of(row: Row) -> float:
    """Prompt tokens a second of a node: the trace's own, unless the row says something else."""
    if row.prompt_rate:
        return row.prompt_rate
    if row.trace in TRACES:
        return TRACES[row.trace].prompt_rate
    return TRACES["mooncake" if ".jsonl" in row.trace else "azure"].prompt_rate


def send(request: TraceRequest, row: Row, clock: Timeline, router: Router, measured: Measured) -> None:
    """Send one request, and measure what comes of it."""
    came = clock.now
    model = f"m{request.number % row.models}"
    work = Work(str(request.number), model, request.blocks, request.output)

    def first_token() -> None:
        measured.waits.append(clock.now - came)

    def done(spent: Spent) -> None:
        measured.tokens += spent.prompt_count
        measured.reused += spent.hit

    router.send(Call(work, request.user, request.session, background=False), first_token, done)


def bound(row: Row, folder: Path = DEFAULT_FOLDER) -> Outcome:
    """What no policy can beat."""
    requests = read_trace(row.trace, folder, row.scale, row.first)
    return Outcome.of(*least_waits(requests, rate_of(row)))


def as_one(row: Row, folder: Path = DEFAULT_FOLDER) -> Outcome:
    """What comes of it with one node that has the slots and the memory of all."""
    slots, prefixes = row.nodes * row.slots, row.nodes * row.prefixes
    one = replace(row, nodes=1, slots=slots, prefixes=prefixes, room=row.models, load=0.0)
    return play(one, "least busy", folder)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(
    row: Row, policies: Sequence[str], jobs: Callable[..., Iterator[Outcome]], folder: Path
) -> dict[str, Any]:
    """All policies on one row, and the ratios that the goals are about."""
    outcomes = dict(
        zip(policies, jobs(play, [row] * len(policies), policies, [folder] * len(policies)), strict=True)
    )
    limit = bound(row, folder)
    found: dict[str, Any] = {
        "row": asdict(row),
        "bound": asdict(limit),
        "as_one": asdict(as_one(row, folder)),
        "policies": {policy: asdict(outcome) for policy, outcome in outcomes.items()},
    }
    simple = [outcomes[policy] for policy in policies if policy in SIMPLE]
    if OURS in outcomes:
        ours = outcomes[OURS]
        found["to_bound"] = round(ours.mean / limit.mean, 3)
        if simple:
            found["mean_to_best"] = round(ours.mean / min(one.mean for one in simple), 3)
            found["p95_to_best"] = round(ours.p95 / min(one.p95 for one in simple), 3)
        if "cache-aware" in outcomes:
            found["mean_to_cache_aware"] = round(ours.mean / outcomes["cache-aware"].mean, 3)
            found["reuse_to_cache_aware"] = round(ours.reused / max(1e-9, outcomes["cache-aware"].reused), 3)
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "row", "policy", "mean", "p50", "p95", "p99", "reused", "to bound", title="Time to first token, s"
    )
    for name, told in found.items():
        for place, (policy, one) in enumerate(
            {"no policy can beat": told["bound"], "all in one": told["as_one"], **told["policies"]}.items()
        ):
            times = [f"{one[key]:.2f}" for key in ("mean", "p50", "p95", "p99")]
            table.add_row(
                "" if place else name,
                policy,
                *times,
                f"{one['reused']:.0%}",
                f"{one['mean'] / told['bound']['mean']:.2f}",
            )
        table.add_section()
    Console(width=130).print(table)
    for name, told in found.items():
        ratios = {key: value for key, value in told.items() if "_to_" in key or key == "to_bound"}
        ours = told["policies"].get(OURS)
        if ratios and ours:
            took = f"decisions p99 {ours['decision_p99_ms']} ms, worst {ours['decision_worst_ms']} ms"
            print(f"{name}: {' '.join(f'{key} {value:.2f}' for key, value in ratios.items())}; {took}")


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    chosen = list(asked_rows(asked))
    if asked.http:
        for row in chosen:
            show_replay(row, asked)
        return
    policies = asked.policy or list(POLICIES)
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(asked.jobs) as pool:
        try:
            for row in chosen:
                found[row.name] = compare(row, policies, map if asked.jobs == 1 else pool.map, asked.traces)
        except TraceMissingError as error:
            sys.exit(str(error))
    if asked.page:
        write_page(found, PAGE)
    if not asked.trace:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
        print(f"{time.monotonic() - began:.0f} s")


def show_replay(row: Row, asked: argparse.Namespace) -> None:
    """Play a row over HTTP, and print a line for each policy."""
    found = {
        policy: replay(
            policy,
            row.trace,
            asked.traces,
            scale=row.scale,
            nodes=row.nodes,
            slots=row.slots,
            prefixes=row.prefixes,
            first=row.first,
            seed=row.seed,
        )
        for policy in asked.policy or REPLAYED
    }
    print(json.dumps({row.name: found}, indent=2) if asked.json else "\n".join([row.name, *table_of(found)]))


def asked_rows(asked: argparse.Namespace) -> list[Row]:
    """The row that the options describe, or those of the table."""
    changes = {
        key: value
        for key in ("scale", "nodes", "slots", "prefixes", "first", "models", "room", "prompt_rate", "seed")
        if (value := getattr(asked, key)) is not None
    }
    changes |= {"declared": False} if asked.undeclared else {}
    changes |= {"exact": True} if asked.exact else {}
    if asked.trace:
        return [replace(Row(trace), **changes) for trace in asked.trace]
    return [replace(row, **changes) for row in rows()]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--traces", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help=f"({DEFAULT_FOLDER.name})"
    )
    parser.add_argument(
        "--trace", action="append", help=f"{' or '.join(TRACES)}, or a file; may be given again"
    )
    parser.add_argument(
        "--policy", action="append", choices=dict.fromkeys((*POLICIES, *REPLAYED)), help="may be given again"
    )
    parser.add_argument("--scale", type=float, help="what times are multiplied with: 0.5 is twice as fast")
    parser.add_argument("--nodes", type=int, help="how many there are")
    parser.add_argument("--slots", type=int, help="requests that a node answers at once")
    parser.add_argument("--prefixes", type=int, help="prefixes that a node keeps")
    parser.add_argument("--first", type=int, help="requests that are played")
    parser.add_argument("--models", type=int, help="requests ask for so many in turn")
    parser.add_argument("--room", type=int, help="models that fit into a node's memory")
    parser.add_argument("--prompt-rate", type=float, help="prompt tokens a second of a node")
    parser.add_argument("--seed", type=int, help="of the dice")
    parser.add_argument("--undeclared", action="store_true", help="the nodes' rows say nothing of slots")
    parser.add_argument("--exact", action="store_true", help="the nodes report how much they have reused")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--http", action="store_true", help="over real HTTP, next to real routers")
    parser.add_argument("--page", action="store_true", help="put table and picture into docs/")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
