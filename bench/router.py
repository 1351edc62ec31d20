"""Routing over real HTTP: the same chats over four simulated Ollamas, through each policy.

    uv run bench/router.py                     everything, three seeds: writes bench/results/router.json, .png
    uv run bench/router.py --quick             one seed and one setting
    uv run bench/router.py --faults --flood    only these parts; the others stay in the file as they are
    uv run bench/router.py --routing --quick --peer ollama-herd=herd/bin --peer litellm=litellm/bin

Multi-turn chats with title calls, as `bench/fleet.py` plays them in virtual time. Ours is the router as the
plugin has it, with its defaults; the peers send straight to the node that they choose: random (Open WebUI's
own), round robin, least busy, sticky by chat. Nodes and clients live on fast clocks (`routing/clock.py`),
each run with nodes of its own; all times are simulated seconds. Lateness and CPU say how far to trust a run:
on a busy machine use a lower `--speed`, or fewer `--jobs`.

`--bursts`: 120 requests at once, twice, on engines that batch, in real seconds (`routing/bursts.py`).
`--faults`: nodes fail in turn while chats run. `--flood`: one user sends 200 requests at once. `--real`: two
chats that alternate over two real Ollama processes, where one is built. `--peer`: another router, installed
in an environment of its own (`routing/peers.py` says how); all runs then take their whole time, as its clock
is the wall's.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.routing.bursts import STRAIGHT, measure_bursts
from bench.routing.comparison import SETTINGS, Run, Setting, run
from bench.routing.figures import (
    GOALS,
    failures,
    medians_beside_flood,
    policy_figures,
    ratios,
)
from bench.routing.peers import PEERS
from bench.routing.plots import draw
from bench.routing.real import measure_real
from bench.routing.trouble import (
    FLOOD_AT,
    FLOODER,
    run_flood,
    run_with_faults,
)
from bench.routing.ways import OURS, POLICIES, RANDOM

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/router.json"
PLOT = RESULTS.with_suffix(".png")
SEEDS = (1, 2, 3)
PARTS = ("routing", "faults", "flood", "real", "bursts")
BY_DEFAULT = ("0.2 chats/s", "0.5 chats/s")
QUEUES = {"as it ships": 64, "room for all": 400}

JSON = dict[str, Any]
Started = Callable[[], JSON]  # waits for what was started, and tells of it


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    parts = [part for part in PARTS if getattr(asked, part)] or list(PARTS)
    seeds = asked.seed or (SEEDS[:1] if asked.quick else SEEDS)
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")  # a forked process would share the parent's state
    with ProcessPoolExecutor(asked.jobs, mp_context=context) as pool:
        start: dict[str, Callable[[], Started]] = {
            "routing": lambda: start_routing(pool, asked, seeds),
            "faults": lambda: start_faults(pool, seeds, asked.speed),
            "flood": lambda: start_flood(pool, seeds[0], asked.speed),
        }
        started = {part: start[part]() for part in parts if part in start}
        result = {part: told() for part, told in started.items()}
    if "real" in parts:  # alone, because it computes
        result["real"] = measure_real(seeds)
    if "bursts" in parts:  # in real seconds, so alone as well
        result["bursts"] = measure_bursts(seeds[0])
    keep(result)
    show(result)
    print(f"{time.monotonic() - began:.0f} s")


def keep(result: JSON) -> None:
    """Write what was measured beside what an earlier run has measured of other parts and settings."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "routing" in result:
        result = {**result, "routing": {**before.get("routing", {}), **result["routing"]}}
    RESULTS.write_text(json.dumps({**before, **result}, indent=2) + "\n")
    if "routing" in result:
        draw({name: told["policies"] for name, told in result["routing"].items()}, PLOT)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help=f"one seed, only {BY_DEFAULT[0]}")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="may be given again")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="may be given again")
    parser.add_argument(
        "--peer",
        action="append",
        type=peer_in,
        default=[],
        metavar="NAME=FOLDER",
        help=f"{' or '.join(PEERS)}, and the folder of its commands; may be given again",
    )
    parser.add_argument("--seed", action="append", type=int, help="may be given again")
    parser.add_argument("--speed", type=float, default=5.0, help="simulated seconds in one (5)")
    parser.add_argument("--jobs", type=int, default=5, help="runs at the same time (5)")
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true", help="only this part, and others named")
    asked = parser.parse_args(argv)
    asked.peer = dict(asked.peer)
    if asked.peer:
        asked.speed = 1.0
    return asked


def peer_in(text: str) -> tuple[str, Path]:
    """A peer's name and the folder of its commands."""
    name, _, folder = text.partition("=")
    if name not in PEERS or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(PEERS)}, '=' and a folder")
    return name, Path(folder).absolute()


# --- the parts: each is started in the pool, and told of when it is done ---


def start_routing(pool: Executor, asked: argparse.Namespace, seeds: Sequence[int]) -> Started:
    names = asked.setting or BY_DEFAULT[: 1 if asked.quick else None]
    settings = {name: SETTINGS[name] for name in names}
    policies = [policy for policy in POLICIES if policy in (asked.policy or POLICIES)] + list(asked.peer)
    runs = {
        (name, policy): started
        for name, setting in settings.items()
        for policy, started in started_runs(pool, setting, policies, seeds, asked).items()
    }

    how = {"seeds": list(seeds), "speed": asked.speed, "jobs": asked.jobs}

    def told(setting: Setting) -> JSON:
        policies_told = {
            policy: policy_figures([one.result() for one in runs[setting.name, policy]])
            for policy in policies
        }
        return {
            **how,
            "setting": asdict(setting),
            "policies": policies_told,
            "ratios": ratios(policies_told),
            "goals": GOALS if len(setting.shares) > 1 else {},
        }

    return lambda: {name: told(setting) for name, setting in settings.items()}


def started_runs(
    pool: Executor,
    setting: Setting,
    policies: Sequence[str],
    seeds: Sequence[int],
    asked: argparse.Namespace,
) -> dict[str, list[Future[Run]]]:
    """The runs of a setting, those of one seed next to each other: they meet the same other load."""
    started: dict[str, list[Future[Run]]] = {policy: [] for policy in policies}
    for seed in seeds:
        chats = setting.chats(seed)
        for policy in policies:
            peer = asked.peer.get(policy)
            played = pool.submit(run, policy, chats, seed, asked.speed, setting.shape, peer=peer)
            started[policy].append(played)
    return started


def start_faults(pool: Executor, seeds: Sequence[int], speed: float) -> Started:
    runs = {
        policy: [pool.submit(run_with_faults, policy, seed, speed) for seed in seeds]
        for policy in (RANDOM, OURS)
    }
    return lambda: {
        policy: policy_figures([one.result() for one in started]) for policy, started in runs.items()
    }


def start_flood(pool: Executor, seed: int, speed: float) -> Started:
    runs = {RANDOM: pool.submit(run_flood, RANDOM, seed, speed, 0)}
    for queue, room in QUEUES.items():
        runs[f"{OURS}, queue {room} ({queue})"] = pool.submit(run_flood, OURS, seed, speed, room)

    def told(played: Run) -> JSON:
        beside = medians_beside_flood(played.played, FLOODER, FLOOD_AT)
        return beside | {"others": failures([one for one in played.played.asked if one.user != FLOODER])}

    return lambda: {policy: told(started.result()) for policy, started in runs.items()}


# --- on the screen ---


def show(result: JSON) -> None:
    console = Console(width=130)
    if routing := result.get("routing"):
        console.print(routing_table(routing))
        for name, told in routing.items():
            print(f"{name}: ours to random {told['ratios']}, goals {told['goals'] or 'none'}")
    for policy, told in result.get("faults", {}).items():
        failed = told["failures"]
        print(
            f"faults, {policy}: {failed['before_first_token']} of {failed['requests']} requests failed"
            f" before their first token, {failed['after_first_token']} after; p99 {told['ttft_p99']:.1f} s"
        )
    for policy, told in result.get("flood", {}).items():
        print(
            f"flood, {policy}: others' median {told['others_median']} s, the worst user's"
            f" {told['worst_to_others']} x the others', {told['worst_to_best']} x the best's;"
            f" the flooder's own {told['flooder_median']} s;"
            f" refused to the flooder {told['refused']}, failures of others {told['others']['errors']}"
        )
    for name, told in result.get("bursts", {}).items():
        ours, straight = told[OURS], told[STRAIGHT]
        print(
            f"bursts on {name}, mean to the first token: first {ours['first']['mean']} s"
            f" (straight {straight['first']['mean']}), second {ours['second']['mean']} s"
            f" (straight {straight['second']['mean']})"
        )
    if real := result.get("real"):
        print("real Ollamas:", real)


def routing_table(routing: dict[str, JSON]) -> Table:
    columns = ("mean", "p50", "p95", "p99", "reused", "loads", "titles", "failed", "late p99")
    table = Table(
        "setting", "policy", *columns, title="Time to first token of people's requests, simulated s"
    )
    for setting, about in routing.items():
        for policy, told in about["policies"].items():
            times = [f"{told[name]:.2f}" for name in ("ttft_mean", "ttft_p50", "ttft_p95", "ttft_p99")]
            failed = told["failures"]["before_first_token"] + told["failures"]["after_first_token"]
            table.add_row(
                setting,
                policy,
                *times,
                f"{told['reused']:.0%}",
                f"{told['loads_per_1000']:.0f}",
                f"{told['title_mean']:.1f}",
                str(failed),
                f"{told['late_p99']:.2f}",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()
