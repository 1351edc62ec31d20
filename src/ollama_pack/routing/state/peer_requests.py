"""Requests of other workers at the same nodes: they take slots, load models and teach, as our own do."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b

from ollama_pack.routing.decide.view import PromptBlock
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.demand import DemandMeter
from ollama_pack.routing.state.events import (
    BegunEvent,
    BlamedEvent,
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    FleetEvent,
)
from ollama_pack.routing.state.model_stats import Lesson
from ollama_pack.routing.state.node_state import NodeState, RunnerState

MAX_REMOTE = 4096
UNKNOWN_WORKER = ""  # of a request that is known only because it keeps one of ours out


def node_key(row: NodeRow) -> str:
    """What workers call a node among themselves: the same whatever its name, and not its address."""
    return blake2b(row.url.encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class RemoteRequest:
    """A request of another worker.

    Attributes:
        forgotten_at: when it is forgotten unless its worker tells of it; None: with its worker.
    """

    worker: str
    node: NodeState
    runner: RunnerState
    model: str
    loads: bool
    blocks: tuple[PromptBlock, ...] = ()
    answering: bool = False
    forgotten_at: float | None = None


class RemoteRequests:
    """Applies what other workers tell to the nodes as this one knows them. Bounded.

    Attributes:
        nodes: by their keys.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        demand: DemandMeter,
        prompt_sent: Callable[[str, str, tuple[PromptBlock, ...]], tuple[int, int]],
        learn: Callable[[NodeState, str, Lesson], None],
    ) -> None:
        """Begin without any.

        Args:
            clock: the scheduler's own.
            demand: counts what is asked for.
            prompt_sent: hears of each prompt that goes to a node, and says how it is kept.
            learn: hears what answers teach.
        """
        self._prompt_sent = prompt_sent
        self._learn = learn
        self.nodes: dict[str, NodeState] = {}
        self._clock = clock
        self._demand = demand
        self._there: dict[str, RemoteRequest] = {}

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._there

    def at(self, node: str) -> int:
        """How many of them are at the node of this name."""
        return sum(remote.node.row.name == node for remote in self._there.values())

    def apply(self, worker: str, event: FleetEvent) -> None:
        """Take in what a worker tells. What concerns a node or a request that is not known is passed over."""
        match event:
            case BoundEvent():
                self._bound(worker, event)
            case BegunEvent():
                self._begun(event)
            case FinishedEvent():
                self._finished(event)
            case EndedEvent():
                if remote := self._leave(event.request_id):
                    remote.node.gave_up(remote.model)
            case BlamedEvent():
                if node := self.nodes.get(event.node):
                    node.failed(event.model, self._clock(), node_down=False, hung=event.hung)
            case FailedEvent():
                if remote := self._leave(event.request_id):
                    remote.node.failed(
                        remote.model, self._clock(), node_down=event.node_down, hung=event.hung
                    )
                    remote.runner.mirror.clear()

    def _bound(self, worker: str, event: BoundEvent) -> None:
        node, now = self.nodes.get(event.node), self._clock()
        known = self._there.get(event.request_id)
        if known and known.worker != UNKNOWN_WORKER:
            known.runner.ends[event.request_id] = now + event.left
            known.node.changed()
            return
        if known:
            self._leave(event.request_id)
        if node is None or event.model not in node.models or len(self._there) >= MAX_REMOTE:
            return
        node.passed(event.model)
        self._demand.add(event.blob, now)
        runner = node.runners.get(event.blob)
        if event.loads and event.ready > 0:
            runner = node.load(event.model, (event.context, event.options), event.victims, now)
            node.loading_until = runner.ready_at = now + event.ready
        elif runner is None:
            runner = node.adopt(event.model, (event.context, event.options), now)
        self._there[event.request_id] = RemoteRequest(
            worker, node, runner, event.model, event.loads, event.blocks, event.ready <= 0
        )
        runner.ends[event.request_id] = now + event.left
        shared, kind = self._prompt_sent(node.row.name, event.blob, event.blocks)
        runner.mirror.started(event.blocks, now, shared=shared, kind=kind)
        runner.touched = True
        node.changed()

    def _begun(self, event: BegunEvent) -> None:
        if remote := self._there.get(event.request_id):
            now = self._clock()
            remote.answering = True
            remote.node.loaded(remote.runner, now)
            remote.runner.ends[event.request_id] = now + event.left
            remote.node.changed()

    def _finished(self, event: FinishedEvent) -> None:
        now = self._clock()
        if remote := self._leave(event.request_id):
            remote.node.succeeded(remote.model)
            remote.runner.mirror.finished(remote.blocks, event.lesson.spent.decode_count, now)
        node = self.nodes.get(event.node)
        if node and any(model.blob == event.blob for model in node.models.values()):
            self._learn(node, event.blob, event.lesson)

    def _leave(self, request_id: str) -> RemoteRequest | None:
        remote = self._there.pop(request_id, None)
        if remote:
            now = self._clock()
            remote.node.changed()
            remote.node.left(remote.runner, request_id, now)
            if remote.loads and not remote.answering:
                remote.node.loaded(remote.runner, now)
        return remote

    def hold(self, node: NodeState, blob: str, request_id: str, until: float) -> bool:
        """Believe for a moment that a request is at a runner, of which nothing else is known.

        Returns:
            Whether that is new.
        """
        runner = node.runners.get(blob)
        if runner is None or request_id in self._there or len(self._there) >= MAX_REMOTE:
            return False
        self._there[request_id] = RemoteRequest(
            UNKNOWN_WORKER, node, runner, runner.model, loads=False, forgotten_at=until
        )
        runner.ends[request_id] = max(until, self._clock() + node.known(blob).service)
        node.changed()
        return True

    def forget(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these are still there."""
        gone = [key for key, one in self._there.items() if one.worker == worker and key not in but]
        for request_id in gone:
            if remote := self._leave(request_id):
                remote.node.gave_up(remote.model)

    def forget_all(self) -> None:
        """Nobody tells any more."""
        for worker in {remote.worker for remote in self._there.values()}:
            self.forget(worker)

    def expire(self, now: float) -> None:
        """Forget what was believed for a moment only."""
        for request_id, remote in list(self._there.items()):
            if remote.forgotten_at is not None and remote.forgotten_at <= now:
                self._leave(request_id)

    def expires_at(self) -> float | None:
        """When the next is forgotten."""
        due = [remote.forgotten_at for remote in self._there.values() if remote.forgotten_at is not None]
        return min(due, default=None)
