"""A recorded day again, in virtual time: the router's own scheduler over simulated nodes."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel, PromptBlock
from ollama_pack.routing.errors import RoutingError
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.plan.demand import Asked, Speeds
from ollama_pack.routing.plan.virtual_fleet import Job, NodeShape, SimNode, Spent, Timeline, Work
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.node_state import ResidentModel
from ollama_pack.routing.state.scheduler import Scheduler

PROBE_SECONDS = 5.0
QUEUE = 1000


@dataclass(frozen=True, slots=True)
class ReplayNode:
    """A node to replay on.

    Attributes:
        name: of it.
        room: bytes that models can have.
        slots: requests that a model answers at once.
        sizes: model → bytes, of those that it has.
        warm: models that are loaded before the day begins, and kept.
    """

    name: str
    room: int
    slots: int
    sizes: Mapping[str, int]
    warm: tuple[str, ...] = ()


@dataclass(slots=True)
class Replayed:
    """What came of it: seconds to the first token of people's chats, loads, and chats that got no answer."""

    waits: list[float] = field(default_factory=list)
    loads: int = 0
    refused: int = 0

    @property
    def figures(self) -> dict[str, float]:
        ordered = sorted(self.waits) or [0.0]
        return {
            "chats": len(self.waits),
            "mean_seconds": round(statistics.mean(ordered), 2),
            "p95_seconds": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
            "loads": self.loads,
            "refused": self.refused,
        }


def replay(nodes: Sequence[ReplayNode], asked: Sequence[Asked], speeds: Speeds) -> Replayed:
    """Play chats on nodes. Equal arguments give equal figures."""
    day = _Day(nodes, speeds)
    begins = min((one.at for one in asked), default=0.0)
    for number, one in enumerate(asked):
        day.clock.at(1.0 + one.at - begins, lambda number=number, one=one: day.ask(number, one))  # type: ignore[misc] # mypy cannot see a lambda's defaults
    day.clock.run()
    day.result.loads = sum(node.loads for node in day.nodes.values())
    return day.result


class _Day:
    """The scheduler, told of what happens as the router would tell it."""

    def __init__(self, nodes: Sequence[ReplayNode], speeds: Speeds) -> None:
        self.clock = Timeline()
        self.result = Replayed()
        kept = {model for node in nodes for model in node.warm}
        self.nodes = {
            node.name: SimNode(
                node.name,
                self.clock,
                NodeShape(
                    slots=node.slots,
                    room=node.room,
                    load_rate=speeds.load,
                    prompt_rate=speeds.prompt,
                    decode_rate=speeds.decode,
                    prefixes=node.slots,
                    unloads=True,
                ),
                node.sizes,
                kept,
            )
            for node in nodes
        }
        rows = [NodeRow(node.name, f"http://{node.name}", slots=node.slots) for node in nodes]
        self.scheduler = Scheduler(rows, lambda: self.clock.now, Random(1), max_queue=QUEUE)  # noqa: S311 - breaks ties
        self._installed = {
            node.name: {name: InstalledModel(name, size) for name, size in node.sizes.items()}
            for node in nodes
        }
        self._calls: dict[str, tuple[Asked, Work]] = {}
        self._probing = False
        self._wakes_at = 0.0  # the next decision that is due without news
        for node in nodes:
            self.scheduler.cluster.sized(node.name, node.room)
            for model in node.warm:
                self.nodes[node.name].preload(model)
        self._probe()

    def ask(self, number: int, one: Asked) -> None:
        """A chat comes."""
        identity = f"r{number}"
        blocks = _blocks(number, one)
        answer = PromptBlock(_chain("answer", number), one.prompt + one.written, answer=True)
        work = Work(identity, one.model, blocks, one.written, answer)
        request = FleetRequest(identity, one.user, (one.model,), one.user, blocks, background=one.background)
        try:
            displaced = self.scheduler.submit(request)
        except RoutingError:  # no room in the queue, or a model of the record that no node has now
            self.result.refused += 1
            return
        if displaced:
            del self._calls[displaced.id]
            self.result.refused += 1
        self._calls[identity] = one, work
        if not self._probing:
            self._probe()
        self._decide()
        if not self._probing:
            self._probing = True
            self.clock.after(PROBE_SECONDS, self._probe_again)

    def _probe_again(self) -> None:
        self._probe()
        self._decide()
        self._probing = bool(self._calls)
        if self._probing:
            self.clock.after(PROBE_SECONDS, self._probe_again)

    def _probe(self) -> None:
        for name, node in self.nodes.items():
            there = [one for one in node.runners.values() if one.ready]
            sizes = self._installed[name]
            residents = [
                ResidentModel(one.model, sizes[one.model].size, one.context, one.expires_at) for one in there
            ]
            self.scheduler.cluster.probed(name, sizes, residents)

    def _decide(self) -> None:
        for binding in [*self.scheduler.decide(), *self.scheduler.load_ahead()]:
            self._start(binding)
        wake = self.scheduler.wake_at
        if wake is not None and not self.clock.now < self._wakes_at <= wake:
            self._wakes_at = wake
            self.clock.at(wake, self._decide)

    def _start(self, binding: Assignment) -> None:
        identity = binding.request.id
        if binding.request.load_only:
            work = Work(identity, binding.model, (), 0, load_only=True)
            self._send(binding, work, lambda: None)
            return
        one, work = self._calls[identity]

        def began() -> None:
            self.scheduler.first_token(identity)
            if not one.background:
                self.result.waits.append(self.clock.now - came)
            self._decide()

        came = self.clock.now - binding.waited
        self._send(binding, work, began)

    def _send(self, binding: Assignment, work: Work, began: Callable[[], None]) -> None:
        identity = binding.request.id

        def ended(spent: Spent) -> None:
            self._calls.pop(identity, None)
            self.scheduler.finished(identity, _durations(spent))
            self._decide()

        self.nodes[binding.node].submit(Job(work, self.clock.now, began, ended))


def _durations(spent: Spent) -> Durations:
    counts = spent.prompt_count, spent.decode, spent.decode_count
    return Durations(spent.total, spent.load, spent.prompt, *counts, spent.hit)


def _blocks(number: int, one: Asked) -> tuple[PromptBlock, ...]:
    """What a node held of the prompt, which is its user's, and the rest, which is new."""
    held = (PromptBlock(_chain(one.model, one.user), one.held),) if one.held else ()
    return (*held, PromptBlock(_chain("new", number), max(one.prompt, one.held + 1)))


def _chain(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=7).digest())
