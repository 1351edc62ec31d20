"""The state that decisions are made on, and the events that change it. No input, no output.

Tell it what happens, then ask `decide` what begins::

    scheduler.submit(request)            # or cancel, first_token, finished, failed, probed, unreachable
    for binding in scheduler.decide():   # send each to its node
        ...

Call `decide` after every event, and at `wake_at`. All is bounded: by the queue's limit, by the slots, and by
the models that the nodes have.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random

from ollama_pack.fleet.binding import BindingPass, Placement
from ollama_pack.fleet.cost import CostTerms, predict_output
from ollama_pack.fleet.demand import DemandMeter
from ollama_pack.fleet.errors import NoNodeError
from ollama_pack.fleet.events import (
    BegunEvent,
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    Listener,
    tell_nobody,
)
from ollama_pack.fleet.naming import fold_name
from ollama_pack.fleet.nodes import NodeRow
from ollama_pack.fleet.pairs import Lesson
from ollama_pack.fleet.policy import RoutingPolicy
from ollama_pack.fleet.queue import FairQueue, WaitingRequest
from ollama_pack.fleet.rates import Durations
from ollama_pack.fleet.remote import RemoteRequests, node_key
from ollama_pack.fleet.runners import NodeState, ResidentModel, RunnerState
from ollama_pack.fleet.strategies import LeastBusyPass, RandomPass
from ollama_pack.fleet.timeline import VirtualNode
from ollama_pack.fleet.view import FleetRequest, FleetView, InstalledModel, KeptPrefix, PairRates

MAX_FAILOVERS = 2
DECISIONS_KEPT = 256
BACKGROUND_LOOK = 1.0  # seconds: a call that waits behind people may cost others a little more after each
_PRIORS = PairRates()
STRATEGIES: Mapping[str, type[BindingPass]] = {
    "predicted_ttft": BindingPass,
    "least_busy": LeastBusyPass,
    "random": RandomPass,
}


@dataclass(frozen=True, slots=True)
class Considered:
    """One node that has the model, and what it would have cost.

    Attributes:
        node: its name.
        model: the name by which it knows the model.
        terms: the cost; of a node that was not looked at, the load alone.
        looked_at: False: loading the model there takes longer than all that was chosen.
    """

    node: str
    model: str
    terms: CostTerms
    looked_at: bool = True


@dataclass(frozen=True, slots=True)
class Binding:
    """A request begins at a node: send it there now.

    Attributes:
        request: the request.
        node: the name of the node.
        model: the name to ask for, as the node lists it.
        context: `num_ctx` to send, so that a runner that fits is not loaded anew; 0: send none.
        loads: the node has to load the model first.
        hit: tokens of the prompt that the node holds already.
        terms: what the choice cost.
        waited: seconds in the queue.
        placement: the choice, and what it was made from.
        policy: what the terms are computed with.
    """

    request: FleetRequest
    node: str
    model: str
    context: int
    loads: bool
    hit: int
    terms: CostTerms
    waited: float
    placement: Placement = field(repr=False, compare=False)
    policy: RoutingPolicy = field(repr=False, compare=False)

    @property
    def considered(self) -> tuple[Considered, ...]:
        """All nodes that have the model, and the terms of each."""
        looked_at = [
            Considered(offer.node.view.name, offer.model, offer.terms(self.policy))
            for offer in self.placement.offers
        ]
        return (*looked_at, *(self._unasked(node) for node in self.placement.unasked))

    def _unasked(self, node: VirtualNode) -> Considered:
        installed = node.view.models[self.placement.model]
        terms = CostTerms(load=node.view.rates[installed.blob].load)
        return Considered(node.view.name, installed.name, terms, looked_at=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long a request took to its first token once it was at a node, in seconds."""

    request_id: str
    node: str
    model: str
    predicted: float
    actual: float


@dataclass(frozen=True, slots=True)
class Undo:
    """What a request has changed by being bound, as it was before."""

    evicted: Mapping[str, RunnerState]
    loading_until: float
    prefixes: tuple[KeptPrefix, ...]


@dataclass(slots=True)
class RunningRequest:
    """A request at a node."""

    entry: WaitingRequest
    binding: Binding
    node: NodeState
    runner: RunnerState
    bound_at: float
    beside: int
    depth: int
    matched: int
    undo: Undo
    answering: bool = False

    def event(self, now: float) -> BoundEvent:
        """As other workers are told of it."""
        binding, runner = self.binding, self.runner
        loading = binding.loads and not self.answering
        return BoundEvent(
            request_id=binding.request.id,
            node=node_key(self.node.row),
            model=binding.model,
            blob=runner.blob,
            loads=binding.loads,
            victims=binding.placement.chosen.quote.victims,
            context=runner.context,
            options=runner.options or (),
            ready=max(0.0, runner.ready_at - now) if loading else 0.0,
            left=max(0.0, runner.ends.get(binding.request.id, now) - now),
            blocks=binding.request.blocks,
        )

    def lesson(self, spent: Durations) -> Lesson:
        """What it teaches, now that it is answered."""
        return Lesson(
            spent=spent,
            depth=self.depth,
            matched=self.matched,
            beside=self.beside,
            background=self.binding.request.background,
            loaded=self.binding.loads,
        )


class Scheduler:
    """Gives requests to nodes. Not thread-safe: one event loop, or one lock, around it."""

    def __init__(  # noqa: PLR0913 - what differs from one deployment or test to the next
        self,
        rows: Iterable[NodeRow],
        clock: Callable[[], float],
        dice: Random,
        *,
        max_queue: int = 64,
        policy: RoutingPolicy | None = None,
        priors: PairRates = _PRIORS,
        strategy: str = "predicted_ttft",
    ) -> None:
        """Start without knowing anything of the nodes: no request is bound before `probed`.

        Args:
            rows: the nodes.
            clock: seconds, monotonic.
            dice: breaks ties; seed it, and all decisions can be repeated.
            max_queue: how many requests may wait.
            policy: weights and bounds.
            priors: what to believe of a node and a model before anything is measured.
            strategy: how nodes are chosen, one of `STRATEGIES`.

        Raises:
            ValueError: the strategy is unknown.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy {strategy!r} is unknown: the known ones are {', '.join(STRATEGIES)}")
        self._strategy = STRATEGIES[strategy]
        self.policy = policy or RoutingPolicy()
        self.nodes = {row.name: NodeState(row, self.policy, priors) for row in rows}
        self.outcomes: deque[Outcome] = deque(maxlen=DECISIONS_KEPT)
        self.wake_at: float | None = None
        self._clock = clock
        self._dice = dice
        self._queue = FairQueue(max_queue, self.policy.background_patience)
        self._running: dict[str, RunningRequest] = {}
        self._demand = DemandMeter()
        self.listener: Listener = tell_nobody
        self.remote = RemoteRequests(self.nodes, clock, self._demand)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def ahead(self, request_id: str) -> int | None:
        """How many requests come before one that waits; None when it does not wait (any more)."""
        if request_id not in self._queue:
            return None
        return next(
            place
            for place, entry in enumerate(self._queue.order(self._clock()))
            if entry.request.id == request_id
        )

    def can_answer(self, models: Iterable[str]) -> bool:
        """Whether any node may be asked for one of these now, by whatever name it lists it."""
        names = set(map(fold_name, models))
        return any(not names.isdisjoint(node.models) for node in self.view().nodes)

    # --- requests ---

    def submit(self, request: FleetRequest) -> None:
        """Take a request in.

        Raises:
            NoNodeError: no node has any of its models.
            QueueFullError: too many wait already.
            ValueError: a request of this id is waiting or running.
        """
        if request.id in self._queue or request.id in self._running:
            raise ValueError(f"request {request.id!r} is already here")
        now = self._clock()
        blobs, cost = self._expect(request)
        self._queue.push(request, now, cost)
        for blob, share in blobs.items():
            self._demand.add(blob, now, share)

    def _expect(self, request: FleetRequest) -> tuple[Mapping[str, float], float]:
        """The weights that it asks for, by their share, and the seconds of service that it may take."""
        for model in map(fold_name, request.models):
            having = [node for node in self.nodes.values() if model in node.listed]
            if having:
                counts = Counter(node.listed[model].blob for node in having)
                rates = having[0].known(having[0].listed[model].blob)
                output = predict_output(rates, background=request.background, limit=request.max_output)
                blobs = {blob: count / len(having) for blob, count in counts.items()}
                return blobs, request.tokens / rates.prompt + output * rates.token
        raise NoNodeError(request.models, tuple(self.nodes))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the answer any more. An id that is not known is ignored."""
        if request_id in self._queue:
            self._queue.cancel(request_id)
        elif running := self._running.pop(request_id, None):
            self._leave(running)
            running.node.gave_up(running.binding.model)
            self.listener(EndedEvent(request_id))

    def give_back(self, request_id: str) -> None:
        """A request that was bound is not sent: it waits again, at its old place. Unknown ids are ignored."""
        running = self._running.get(request_id)
        if running is None or running.answering:
            return
        del self._running[request_id]
        node, runner = running.node, running.runner
        node.changed()
        node.gave_up(running.binding.model)
        runner.ends.pop(request_id, None)
        runner.mirror.restore(running.undo.prefixes)
        if running.binding.loads and not runner.ends:
            node.take_back(runner, running.undo.evicted, running.undo.loading_until)
        self._queue.put_back(running.entry)
        self.listener(EndedEvent(request_id))

    def running(self) -> Iterable[BoundEvent]:
        """What is at nodes now, to be told to a worker that has just come."""
        now = self._clock()
        return [running.event(now) for running in self._running.values()]

    def is_running(self, request_id: str) -> bool:
        """Whether it is at a node, as far as is known."""
        return request_id in self._running

    def bound_event(self, request_id: str) -> BoundEvent:
        """One of them."""
        return self._running[request_id].event(self._clock())

    def first_token(self, request_id: str) -> None:
        """The node has begun to answer."""
        running = self._running.get(request_id)
        if running is None or running.answering:
            return
        now = self._clock()
        running.answering = True
        running.node.changed()
        running.node.loaded(running.runner, now)
        rates = running.node.known(running.runner.blob)
        request = running.binding.request
        output = predict_output(rates, background=request.background, limit=request.max_output)
        running.runner.ends[request_id] = now + output * rates.token
        predicted, actual = running.binding.terms.predict_ttft, now - running.bound_at
        self.outcomes.append(
            Outcome(request_id, running.node.row.name, running.binding.model, predicted, actual)
        )
        self.listener(BegunEvent(request_id, output * rates.token))

    def finished(self, request_id: str, spent: Durations) -> None:
        """The node has answered, and reports how long it took."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._leave(running)
        running.node.succeeded(running.binding.model)
        running.runner.mirror.finished(running.binding.request.blocks, spent.decode_count, self._clock())
        lesson = running.lesson(spent)
        blob = running.runner.blob
        running.node.pair(blob).learn(lesson)
        running.node.learned(blob)
        self.listener(FinishedEvent(request_id, node_key(running.node.row), blob, lesson))

    def failed(self, request_id: str, *, node_down: bool, hung: bool = False) -> bool:
        """The node has failed before the first token, or in the middle of an answer.

        Args:
            request_id: the request.
            node_down: it is the node (no connection, no answer to a probe), not one model on it.
            hung: the model said nothing for as long as it could: nobody else is to wait for it.

        Returns:
            Whether it waits for another node now. If not, tell the user.
        """
        running = self._running.pop(request_id, None)
        if running is None:
            return False
        self._leave(running)
        running.node.failed(running.binding.model, self._clock(), node_down=node_down, hung=hung)
        running.runner.mirror.clear()
        self.listener(FailedEvent(request_id, node_down, hung))
        again = (
            not running.answering and len(running.entry.tried) < MAX_FAILOVERS and self._elsewhere(running)
        )
        if again:
            self._queue.put_back(running.entry, running.node.row.name)
        return again

    def _elsewhere(self, running: RunningRequest) -> bool:
        tried = running.entry.tried | {running.node.row.name}
        others = [node for name, node in self.nodes.items() if name not in tried]
        return any(model in node.listed for node in others for model in running.entry.models)

    def has_another(self, request_id: str) -> bool:
        """Whether a request that is at a node could go to another one, and be answered by the same model."""
        running = self._running.get(request_id)
        if running is None or len(running.entry.tried) >= MAX_FAILOVERS:
            return False
        model, passed_over = fold_name(running.binding.model), {running.node.row.name, *running.entry.tried}
        others = (node for node in self.view().nodes if node.name not in passed_over and node.weight > 0)
        return any(model in node.models for node in others)

    def refused(self, request_id: str) -> None:
        """The node answered with 4xx: the request is at fault, and tells nothing of the node."""
        self.cancel(request_id)

    def _leave(self, running: RunningRequest) -> None:
        running.node.changed()
        running.node.left(running.runner, running.binding.request.id, self._clock())
        if running.binding.loads and not running.answering:  # whether it was loaded, the next probe tells
            running.node.loaded(running.runner, self._clock())

    # --- nodes ---

    def probed(
        self, name: str, models: Mapping[str, InstalledModel], residents: Iterable[ResidentModel]
    ) -> None:
        """A node has answered a probe: what it has (`/api/tags`, `/api/show`), and in memory (`/api/ps`)."""
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.probed(models, residents, now)
        if node.breaker.state(now) == "half-open":
            node.breaker.succeeded()

    def sized(self, name: str, room: int) -> None:
        """Somebody, such as `gpu_agent`, knows how many bytes of models fit into a node's memory."""
        self.nodes[name].room = max(self.nodes[name].room, room)
        self.nodes[name].changed()

    def activity(self, name: str, running: int, waiting: int, asked_at: float = math.inf) -> None:
        """A node's engine tells how many requests it answers and holds in its queue, over all clients.

        Args:
            name: the node.
            running: those that it answers.
            waiting: those in its queue.
            asked_at: when it was asked, which may have been before one of ours ended: then nobody knows
                whether that one counts.
        """
        node = self.nodes[name]
        if node.left_at < asked_at:
            node.changed()
            node.counts(running, waiting, self._clock())

    def gpu_busy(self, name: str, utilization: float) -> None:
        """Somebody, such as `gpu_agent`, knows how busy a node's busiest GPU is, in percent."""
        node = self.nodes[name]
        node.changed()
        node.gpu_busy(utilization, self._clock())

    def unreachable(self, name: str) -> None:
        """A node has not answered a probe."""
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.breaker.failed(now)

    def drain(self, name: str, *, draining: bool = True) -> None:
        """Let a node finish what it has and give it nothing new, or take it back."""
        self.nodes[name].draining = draining
        self.nodes[name].changed()

    # --- decisions ---

    def view(self) -> FleetView:
        """All that a decision goes by, as of now."""
        now = self._clock()
        return FleetView(now, tuple(node.view(now) for node in self.nodes.values()), self._demand.rates(now))

    def decide(self) -> list[Binding]:
        """Which waiting requests begin now. They count as running from here on."""
        self.remote.expire(self._clock())
        bindings: list[Binding] = []
        while len(self._queue):
            bound = self._walk_through()
            bindings += bound
            if len(bound) < self.policy.window:
                break  # else those who were behind it, and seen in samples only, may begin as well
        self.wake_at = self._next_wake(self._clock())
        return bindings

    def _walk_through(self) -> list[Binding]:
        """Go through the waiting requests once."""
        view = self.view()
        if self._strategy.holds_back and not any(node.can_begin(view.now) for node in view.nodes):
            return []
        is_ripe = partial(self._queue.is_ripe, now=view.now)
        walk = self._strategy(view, self.policy, self._dice, is_ripe)
        return [
            self._bind(placement, view.now)
            for placement in walk.bind(self._queue.order(view.now))
            if placement.binds and self._lets_pass(placement, view.now)
        ]

    def _lets_pass(self, placement: Placement, now: float) -> bool:
        """Whether the breakers do: of several that go to a node that comes back, one tries."""
        return self.nodes[placement.chosen.node.view.name].lets_pass(placement.chosen.model, now)

    def _bind(self, placement: Placement, now: float) -> Binding:
        entry, offer = placement.entry, placement.chosen
        self._queue.bound(entry.request.id, now)
        node = self.nodes[offer.node.view.name]
        node.changed()
        node.passed(offer.model)
        evicted = {blob: node.runners[blob] for blob in offer.quote.victims if blob in node.runners}
        loading_until = node.loading_until
        runner = self._occupy(node, placement, now)
        binding = Binding(
            request=entry.request,
            node=node.row.name,
            model=offer.model,
            context=runner.context,
            loads=offer.quote.reused is None,
            hit=offer.hit,
            terms=offer.terms(self.policy),
            waited=now - entry.came,
            placement=placement,
            policy=self.policy,
        )
        depth, matched = runner.mirror.depth(entry.request.blocks)
        beside = len(runner.ends)
        undo = Undo(evicted, loading_until, runner.mirror.state())
        self._running[entry.request.id] = RunningRequest(
            entry, binding, node, runner, now, beside, depth, matched, undo
        )
        rates = offer.quote.rates
        output = predict_output(rates, background=entry.request.background, limit=entry.request.max_output)
        runner.ends[entry.request.id] = now + binding.terms.predict_ttft + output * rates.token
        runner.mirror.started(entry.request.blocks, now)
        runner.touched = True
        return binding

    def _occupy(self, node: NodeState, placement: Placement, now: float) -> RunnerState:
        """The runner that answers: the one that is there, or a new one in place of others."""
        quote, request = placement.chosen.quote, placement.entry.request
        if quote.reused is not None:
            return node.runners[quote.blob]
        return node.load(placement.chosen.model, request.context, request.options, quote.victims, now)

    def _next_wake(self, now: float) -> float | None:
        """When to decide again though nothing happens: a load ends, a breaker lets one try, patience ends."""
        if not len(self._queue):
            return None
        due: list[float] = []
        for node in self.nodes.values():
            due.append(node.loading_until)
            due.extend(node.changes_at())
        if (until := self.remote.expires_at()) is not None:
            due.append(until)
        due += [min(until, now + BACKGROUND_LOOK)] if (until := self._queue.ripens_at()) is not None else []
        return min((when for when in due if when > now), default=None)
