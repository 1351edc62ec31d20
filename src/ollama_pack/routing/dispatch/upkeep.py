"""What a router does besides chats: models kept in memory at certain hours, nodes drained, models pulled."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import NodeError
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.naming import fold_name
from ollama_pack.routing.probe.node_watch import NodeWatch
from ollama_pack.routing.state.scheduler import Scheduler
from ollama_pack.routing.warm import WarmRow

log = logging.getLogger(__name__)

WARM_LOOK_SECONDS = 20.0  # between two looks at what has to be in memory
STAY_SECONDS = 300.0  # models that are kept are asked for again before their time in memory falls below this
IDLE_LOOK_SECONDS = 0.5
DRAIN_SECONDS = 900.0  # for a node's chats to end before a pull; then it is pulled beside them
MAX_PULLS = 64  # that are remembered


@dataclass(slots=True)
class PullState:
    """The pull of a model at one node: `waiting`, `draining`, `pulling`, `done` or `failed`."""

    node: str
    model: str
    state: str = "waiting"
    percent: float = 0.0
    fault: str = ""


class Fleet(Protocol):
    """What upkeep needs of the router."""

    @property
    def nodes(self) -> Mapping[str, NodeWatch]:
        """By name."""

    @property
    def scheduler(self) -> Scheduler:
        """Its scheduler."""

    async def ready(self) -> None:
        """Have the nodes looked at."""

    def in_flight(self, node: str) -> int:
        """Requests at a node."""

    def is_healthy(self, node: str) -> bool:
        """Whether requests are given to it."""

    def load_now(self, binding: Assignment, keep_alive: str | float | None) -> None:
        """Let a node load a model that nobody waits for."""

    def prolong(self, node: str, model: str, seconds: float) -> None:
        """Let a model stay in a node's memory."""


class Upkeep:
    """Looks after one router's nodes. Lives on its event loop."""

    def __init__(self, fleet: Fleet, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Begin nothing yet; `now` tells the time of day, with a time zone."""
        self._fleet = fleet
        self._now = now
        self._rows: tuple[WarmRow, ...] = ()
        self._drained: frozenset[str] = frozenset()
        self._pulling: set[str] = set()  # nodes that are drained for a pull
        self._warming: asyncio.Task[None] | None = None
        self._pull: asyncio.Task[None] | None = None
        self._asked_at: dict[tuple[str, str], float] = {}
        self.pulls: list[PullState] = []

    def close(self) -> None:
        """Stop all of it."""
        for task in (self._warming, self._pull):
            if task is not None:
                task.cancel()

    # --- nodes that get nothing new ---

    @property
    def drained(self) -> frozenset[str]:
        """The nodes that get nothing new, by an admin's wish or for a pull."""
        return self._drained | self._pulling

    def drain(self, names: Collection[str]) -> None:
        """Let these nodes finish what they have and give them nothing new; all others take part."""
        self._drained = frozenset(names)
        self.apply()

    def apply(self) -> None:
        """Tell the scheduler which nodes get nothing new: those drained, and those that have left."""
        cluster, watches, drained = self._fleet.scheduler.cluster, self._fleet.nodes, self.drained
        for name, node in cluster.nodes.items():
            draining = name in drained or watches[name].leaving
            if node.draining != draining:
                cluster.drain(name, draining=draining)

    # --- models that are kept in memory ---

    def keep(self, rows: tuple[WarmRow, ...]) -> None:
        """Keep these models in memory at their hours, from now on."""
        self._rows = rows
        if rows and (self._warming is None or self._warming.done()):
            self._warming = asyncio.get_running_loop().create_task(self._keep_warm(), name="keep models warm")

    def stays(self, model: str) -> float:
        """Seconds for which a model is to stay in memory; 0: as long as usual."""
        name = fold_name(model)
        row = next((row for row in self._rows if fold_name(row.model) == name), None)
        return row.seconds_left(self._now()) if row else 0.0

    async def _keep_warm(self) -> None:
        while self._rows:
            try:
                if any(row.seconds_left(self._now()) for row in self._rows):
                    await self._fleet.ready()
                    self.warm_now()
            except Exception:
                log.exception("Models could not be kept in memory; another try follows")
            await asyncio.sleep(WARM_LOOK_SECONDS)

    def warm_now(self) -> None:
        """Load what should be in memory and is not, and ask again for what would leave it."""
        for row in self._rows:
            left = row.seconds_left(self._now())
            if left:
                for binding in self._fleet.scheduler.warm(row.model, row.copies):
                    self._fleet.load_now(binding, left)
                self._prolong(row, left)

    def _prolong(self, row: WarmRow, left: float) -> None:
        """Have it stay where it would soon be unloaded: its last chat ended a while ago."""
        now, name = asyncio.get_running_loop().time(), fold_name(row.model)
        for node in self._fleet.scheduler.cluster.nodes.values():
            model = node.listed.get(name)
            runner = node.runners.get(model.blob) if model else None
            if runner is None or runner.loading or runner.remote or not runner.expires_at:
                continue
            soon = runner.expires_at - self._now().timestamp() < min(left, STAY_SECONDS)
            key = node.row.name, name
            if soon and now - self._asked_at.get(key, -math.inf) > STAY_SECONDS / 2:
                self._asked_at[key] = now
                self._fleet.prolong(node.row.name, runner.model, left)

    # --- pulls, one node after another ---

    def pull(self, model: str, nodes: Sequence[str] = ()) -> None:
        """Pull a model at nodes (none: all Ollamas), one after another, each without chats meanwhile.

        Raises:
            ValueError: a pull is under way, or a node is unknown.
        """
        if self._pull is not None and not self._pull.done():
            raise ValueError(message("a pull is under way: wait until it is done"))
        watches = self._fleet.nodes
        wanted = list(nodes) or [name for name, watch in watches.items() if watch.row.kind == "ollama"]
        for name in wanted:
            if name not in watches:
                raise ValueError(
                    message(
                        "there is no node {name!r}: the nodes are {known}",
                        name=name,
                        known=", ".join(watches),
                    )
                )
        states = [PullState(name, model) for name in wanted]
        self.pulls = [*self.pulls, *states][-MAX_PULLS:]
        self._pull = asyncio.get_running_loop().create_task(self._pull_all(states), name=f"pull {model}")

    async def _pull_all(self, states: Sequence[PullState]) -> None:
        for state in states:
            watch = self._fleet.nodes.get(state.node)  # nodes may go while others pull
            ask = getattr(watch.client, "pull", None) if watch else None
            if watch is None or ask is None:
                fault = (
                    message("only an Ollama can pull models") if watch else message("it is no node any more")
                )
                state.state, state.fault = "failed", fault
                continue
            try:
                async with self._without_chats(state):
                    await self._pull_at(state, ask)
            except Exception as error:
                state.state, state.fault = "failed", type(error).__name__
                log.exception("%s could not pull %s", state.node, state.model)
            watch.hurry.set()

    async def _pull_at(self, state: PullState, ask: Callable[[str], AsyncIterator[tuple[int, int]]]) -> None:
        state.state = "pulling"
        try:
            async for done, total in ask(state.model):
                state.percent = round(100 * done / total, 1) if total else state.percent
        except NodeError as error:
            state.state, state.fault = "failed", error.plain
            log.warning("%s could not pull %s: %s", state.node, state.model, error)
        else:
            state.state, state.percent = "done", 100.0

    @asynccontextmanager
    async def _without_chats(self, state: PullState) -> AsyncIterator[None]:
        """Give the node nothing new, where the others have all its models, and wait until it is idle."""
        node = state.node
        if not self._can_spare(node):
            yield
            return
        state.state = "draining"
        self._pulling.add(node)
        self.apply()
        try:
            loop = asyncio.get_running_loop()
            ends = loop.time() + DRAIN_SECONDS
            while self._fleet.in_flight(node) and loop.time() < ends:  # noqa: ASYNC110 - of other workers, too
                await asyncio.sleep(IDLE_LOOK_SECONDS)
            yield
        finally:
            self._pulling.discard(node)
            self.apply()

    def _can_spare(self, node: str) -> bool:
        """Whether the other nodes that get chats have all of its models."""
        others: set[str] = set()
        for name, watch in self._fleet.nodes.items():
            if name != node and name not in self.drained and self._fleet.is_healthy(name):
                others |= {fold_name(model.name) for model in watch.known.models}
        return {fold_name(model.name) for model in self._fleet.nodes[node].known.models} <= others

    @property
    def report(self) -> dict[str, Any]:
        """For the dashboard."""
        kept = [
            {"model": row.model, "seconds_left": round(left)}
            for row in self._rows
            if (left := row.seconds_left(self._now()))
        ]
        return {"drained": sorted(self.drained), "warm": kept, "pulls": [asdict(one) for one in self.pulls]}
