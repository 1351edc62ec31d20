"""The same chats over HTTP through each policy, on fresh nodes each time."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.routing.chats import Driver, Played
from bench.routing.clock import run_fast
from bench.routing.nodes import Shape, fast_nodes
from bench.routing.peers import PEERS
from bench.routing.ways import Ours, way_of, way_through
from harness.sim_process import SimulatedNodes
from harness.virtual_chats import Chat, trace
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.probe.gpu_nvml import load_nvml

Beside = Callable[[SimulatedNodes], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Setting:
    """A situation: who asks for what, of which nodes.

    Attributes:
        rate: new chats a second.
        shares: of the models among the chats.
        seconds: for so long chats begin.
        shape: the nodes.
    """

    name: str
    rate: float
    shares: tuple[float, ...] = (0.55, 0.30, 0.15)
    seconds: float = 300.0
    shape: Shape = field(default_factory=Shape)

    def chats(self, seed: int) -> list[Chat]:
        """Equal for equal seeds, and equal to those of `bench/fleet.py`."""
        return trace(self.rate, self.shares, self.seconds, seed)


THIRDS = (1 / 3, 1 / 3, 1 / 3)
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("0.2 chats/s", 0.2),
        Setting("0.5 chats/s", 0.5),
        Setting("0.35, a third each", 0.35, THIRDS),
        Setting("0.35, one model", 0.35, (1.0,)),
    )
}


@dataclass(frozen=True)
class Run:
    """What came of one policy with one seed.

    Attributes:
        played: the requests.
        totals: the nodes' own sums: requests, cold loads, prompt tokens evaluated and reused.
        decisions: of ours: nanoseconds, and how many waited.
        cpu: shares of one core that the client and the nodes used.
    """

    played: Played
    totals: dict[str, int]
    decisions: list[tuple[int, int]]
    cpu: tuple[float, float]


async def _stay_idle(_nodes: SimulatedNodes) -> None:
    pass


def run(  # noqa: PLR0913 - each is a fact of its own
    policy: str,
    chats: Sequence[Chat],
    seed: int,
    speed: float,
    shape: Shape,
    *,
    settings: RouterSettings | None = None,
    beside: Beside = _stay_idle,
    titles: bool = True,
    peer: Path | None = None,
) -> Run:
    """Play chats through a policy on fresh nodes.

    Args:
        policy: one of `POLICIES`, or of `PEERS`.
        chats: to play.
        seed: of the policy's dice.
        speed: simulated seconds in one.
        shape: the nodes.
        settings: of ours.
        beside: what happens to the nodes meanwhile.
        titles: Open WebUI asks for one after the first answer of each chat.
        peer: the folder of the commands of the peer that the policy names.

    Raises:
        SimulationError: the nodes could not be started.
        ServerStartError: the peer could not.
    """
    decisions: list[tuple[int, int]] = []

    async def play(nodes: SimulatedNodes, peer_url: str) -> Played:
        opened = (
            way_through(peer_url) if peer_url else way_of(policy, nodes.urls, seed, settings, shape.slots)
        )
        async with opened as way:
            played = await Driver(way, titles=titles).play(chats, lambda: beside(nodes))
            if isinstance(way, Ours):
                decisions.extend(way.decisions)
            return played

    with suppress(ImportError):
        load_nvml()  # takes a third of a second once in a process, which would count `speed` times as much
    with ExitStack() as stack:
        nodes = stack.enter_context(fast_nodes(shape, speed))
        peer_url = stack.enter_context(PEERS[policy](peer, nodes.urls, shape.names)) if peer else ""
        processes = [psutil.Process(), psutil.Process(nodes.pid)]
        before = [_cpu_seconds(process) for process in processes]
        played = run_fast(play(nodes, peer_url), speed)
        client, server = (
            (_cpu_seconds(process) - spent) * speed / played.seconds
            for process, spent in zip(processes, before, strict=True)
        )
        return Run(played, _totals(nodes), decisions, (client, server))


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _totals(nodes: SimulatedNodes) -> dict[str, int]:
    each = [nodes.stats(name)["totals"] for name in nodes.urls]
    return {key: sum(totals[key] for totals in each) for key in each[0]}


async def in_thread(call: Callable[[], None]) -> None:
    """Command nodes without keeping the chats waiting."""
    await asyncio.to_thread(call)
