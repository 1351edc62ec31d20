"""What a router does besides chats: models kept in memory at certain hours, nodes drained, models pulled."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import NodeError
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.naming import fold_name
from ollama_pack.routing.peers.messages import PullState, UpkeepMessage, pull_state
from ollama_pack.routing.probe.node_watch import NodeWatch
from ollama_pack.routing.state.peer_requests import node_key
from ollama_pack.routing.state.scheduler import Scheduler
from ollama_pack.routing.warm import WarmRow

log = logging.getLogger(__name__)

WARM_LOOK_SECONDS = 5.0  # between two looks at what has to be in memory
STAY_SECONDS = 300.0  # models that are kept are asked for again before their time in memory falls below this
IDLE_LOOK_SECONDS = 0.5
DRAIN_SECONDS = 900.0  # for a node's chats to end before a pull; then it is pulled beside them
MAX_PULLS = 64  # that are remembered, and told
ENDED_SHOWN = 5  # of those before the one that pulls now


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

    @property
    def peers(self) -> int:
        """How many other workers are heard."""

    def in_flight(self, node: str) -> int:
        """Requests at a node."""

    def is_healthy(self, node: str) -> bool:
        """Whether requests are given to it."""

    def load_now(self, binding: Assignment, keep_alive: str | float | None) -> None:
        """Let a node load a model that nobody waits for."""

    def prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        """Let a model stay in a node's memory, with the options that it has there."""


class Peers(Protocol):
    """The way to the other workers."""

    def tell_upkeep(self) -> None:
        """Let them know what this worker pulls."""

    def stop_pull(self) -> None:
        """Ask the one that pulls to stop."""


class Upkeep:
    """Looks after one router's nodes. Lives on its event loop."""

    def __init__(self, fleet: Fleet, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Begin nothing yet; `now` tells the time of day, with a time zone."""
        self._fleet = fleet
        self._now = now
        self._rows: tuple[WarmRow, ...] = ()
        self._drained: frozenset[str] = frozenset()
        self._pulling: dict[str, frozenset[str]] = {}  # nodes that are drained for a pull, and their models
        self._warming: asyncio.Task[None] | None = None
        self._pull: asyncio.Task[None] | None = None
        self._asked_at: dict[tuple[str, str], float] = {}
        self._others: dict[str, UpkeepMessage] = {}  # what other workers pull
        self._lost: list[PullState] = []  # pulls whose worker has gone
        self.peers: Peers | None = None
        self.pulls: list[PullState] = []

    def close(self) -> None:
        """Stop all of it."""
        for task in (self._warming, self._pull):
            if task is not None:
                task.cancel()

    # --- nodes that get nothing new ---

    @property
    def drained(self) -> frozenset[str]:
        """The nodes that get nothing new, by an admin's wish or for a pull of any worker."""
        keys = {key for news in self._others.values() for key in news.drained}
        others = {name for name, watch in self._fleet.nodes.items() if node_key(watch.row) in keys}
        return self._drained | frozenset(self._pulling) | others

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
        due = [(row, left) for row in self._rows if (left := row.seconds_left(self._now()))]
        kept = [row.model for row, _ in due]
        for row, left in due:
            for binding in self._fleet.scheduler.warm(row.model, row.copies, kept):
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
                self._fleet.prolong(node.row.name, runner.model, left, runner.loaded_with)

    # --- pulls, one node after another ---

    def pull(self, model: str, nodes: Sequence[str] = ()) -> None:
        """Pull a model at nodes (none: all Ollamas), one after another, each without chats meanwhile.

        Raises:
            ValueError: a pull is under way, here or elsewhere, a node is unknown, or no node can pull.
        """
        if any(one.is_under_way for one in self.all_pulls):
            raise ValueError(message("A pull is under way. Wait until it is done, or stop it."))
        watches = self._fleet.nodes
        wanted = list(nodes) or [name for name, watch in watches.items() if watch.row.kind == "ollama"]
        if not wanted:
            raise ValueError(message("No node is an Ollama: nothing else can pull models."))
        for name in wanted:
            if name not in watches:
                known = ", ".join(watches)
                raise ValueError(
                    message("There is no node {node}. The nodes are: {nodes}.", node=name, nodes=known)
                )
        self._begin([PullState(name, model) for name in wanted])

    def go_on(self, told: Iterable[Mapping[str, Any]], after: asyncio.Task[None] | None = None) -> None:
        """Take over the pulls of the router before.

        Args:
            told: as `hand_over` gave them.
            after: ends once that router's chats have ended; None: it has none.
        """
        try:
            self._begin([pull_state(one) for one in told], after)
        except (KeyError, TypeError, ValueError):  # of a router of another version
            log.exception("A pull could not be continued: pull the model again")

    def hand_over(self) -> list[dict[str, Any]]:
        """What this router has pulled and has still to pull, for the one that follows. It pulls no more."""
        pulls = [replace(one, state="waiting") if one.is_under_way else one for one in self.pulls]
        self.stop_own()
        self.pulls = []
        self._changed()
        return [asdict(one) for one in pulls]

    def stop(self) -> None:
        """Stop the pull that is under way, in whichever worker.

        Raises:
            ValueError: there is none.
        """
        if self.stop_own():
            return
        if self.peers is None or not any(one.is_under_way for one in self.all_pulls):
            raise ValueError(message("No pull is under way."))
        self.peers.stop_pull()

    def stop_own(self) -> bool:
        """Stop what this worker pulls; false: it pulls nothing. What has come so far stays at the node."""
        if self._pull is None or self._pull.done():
            return False
        self._pull.cancel()
        for one in self.pulls:
            if one.is_under_way:
                one.state = "stopped"
        self._changed()
        return True

    def _begin(self, states: list[PullState], after: asyncio.Task[None] | None = None) -> None:
        self.pulls = [*self.pulls, *states][-max(MAX_PULLS, len(states)) :]
        if left := [one for one in states if one.is_under_way]:
            self._lost.clear()
            self._pull = asyncio.get_running_loop().create_task(self._pull_all(left, after), name="pull")
        self._changed()

    def _changed(self) -> None:
        if self.peers:
            self.peers.tell_upkeep()

    async def _pull_all(self, states: Sequence[PullState], after: asyncio.Task[None] | None) -> None:
        await self._fleet.ready()
        if after and after.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([after], timeout=DRAIN_SECONDS)
        for state in states:
            watch = self._fleet.nodes.get(state.node)  # nodes may go while others pull
            ask = getattr(watch.client, "pull", None) if watch else None
            if watch is None or ask is None:
                state.state = "failed"
                state.fault = (
                    message("Only an Ollama can pull models.")
                    if watch
                    else message("It is not a node any more.")
                )
                continue
            try:
                async with self._without_chats(state):
                    await self._pull_at(state, ask)
            except Exception as error:
                state.state, state.fault = "failed", type(error).__name__
                log.exception("%s could not pull %s", state.node, state.model)
            watch.hurry.set()
            self._changed()

    async def _pull_at(self, state: PullState, ask: Callable[[str], AsyncIterator[tuple[int, int]]]) -> None:
        state.state = "pulling"
        try:
            async for done, total in ask(state.model):
                state.percent = round(100 * done / total, 1) if total else state.percent
                self._take_back_if_needed(state.node)
        except NodeError as error:
            state.state, state.fault = "failed", error.plain
            log.warning("%s could not pull %s: %s", state.node, state.model, error)
        else:
            state.state, state.percent = "done", 100.0

    @asynccontextmanager
    async def _without_chats(self, state: PullState) -> AsyncIterator[None]:
        """Give the node nothing new, where the others have all its models, and wait until it is idle."""
        node = state.node
        models = frozenset(fold_name(model.name) for model in self._fleet.nodes[node].models)
        if not self._can_spare(node, models):
            yield
            return
        state.state = "draining"
        self._pulling[node] = models
        self.apply()
        self._changed()
        try:
            loop = asyncio.get_running_loop()
            ends = loop.time() + DRAIN_SECONDS
            if self._fleet.peers:  # they may have given it a chat at this very moment
                await asyncio.sleep(IDLE_LOOK_SECONDS)
            while node in self._pulling and self._fleet.in_flight(node) and loop.time() < ends:
                await asyncio.sleep(IDLE_LOOK_SECONDS)
                self._take_back_if_needed(node)
            yield
        finally:
            self._take_back(node)

    def _take_back_if_needed(self, node: str) -> None:
        """Give a node chats while it is pulled, where another has gone that had its models."""
        models = self._pulling.get(node)
        if models is not None and not self._can_spare(node, models):
            log.warning("%s gets chats while it is pulled: no other node has all of its models", node)
            self._take_back(node)

    def _take_back(self, node: str) -> None:
        self._pulling.pop(node, None)
        self.apply()
        self._changed()

    def _can_spare(self, node: str, models: Collection[str]) -> bool:
        """Whether the other nodes that get chats have all of its models."""
        others: set[str] = set()
        for name, watch in self._fleet.nodes.items():
            gets_chats = name not in self.drained and watch.row.weight > 0
            if name != node and gets_chats and self._fleet.is_healthy(name):
                others |= {fold_name(model.name) for model in watch.models}
        return others.issuperset(models)

    # --- what other workers pull ---

    @property
    def all_pulls(self) -> list[PullState]:
        """Pulls of all workers that are heard, the newest last."""
        others = [one for news in self._others.values() for one in news.pulls]
        return [*self._lost, *others, *self.pulls]

    def own(self, worker: str) -> UpkeepMessage:
        """What this worker pulls, for the others."""
        watches = self._fleet.nodes
        keys = tuple(node_key(watches[name].row) for name in sorted(self._pulling) if name in watches)
        return UpkeepMessage(worker, keys, tuple(_those_of_now(self.pulls)))

    def heard(self, news: UpkeepMessage) -> None:
        """Another worker pulls, or has ended to."""
        self._others[news.worker] = news
        if any(one.is_under_way for one in news.pulls):
            self._lost.clear()
        self.apply()

    def lost(self, worker: str) -> None:
        """Another worker has gone: its nodes take part again, and what it had not pulled is not pulled."""
        news = self._others.pop(worker, None)
        if news is None:
            return
        fault = message("The server that pulled it has stopped. Pull again: Ollama continues where it was.")
        self._lost += [replace(one, state="failed", fault=fault) for one in news.pulls if one.is_under_way]
        self.apply()

    @property
    def report(self) -> dict[str, Any]:
        """For the dashboard."""
        kept = [
            {"model": row.model, "seconds_left": round(left)}
            for row in self._rows
            if (left := row.seconds_left(self._now()))
        ]
        pulls = [asdict(one) for one in _those_of_now(self.all_pulls)]
        return {"drained": sorted(self.drained), "warm": kept, "pulls": pulls}


def _those_of_now(pulls: Sequence[PullState]) -> Sequence[PullState]:
    """As many as are told: the last ones; of more nodes those around the one that pulls now."""
    now = next((at for at, one in enumerate(pulls) if one.is_under_way), len(pulls))
    begin = max(0, min(now - ENDED_SHOWN, len(pulls) - MAX_PULLS))
    return pulls[begin : begin + MAX_PULLS]
