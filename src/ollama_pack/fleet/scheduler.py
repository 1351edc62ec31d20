"""The state that decisions are made on, and the events that change it. No input, no output.

Tell it what happens, then ask `decide` what begins::

    scheduler.submit(request)            # or cancel, first_token, finished, failed, probed, unreachable
    for binding in scheduler.decide():   # send each to its node
        ...

Call `decide` after every event, and at `wake_at`. All is bounded: by the queue's limit, by the slots, and by
the models that the nodes have.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from ollama_pack.fleet.binding import BindingPass, Offer, Placement
from ollama_pack.fleet.cost import CostTerms, predict_output
from ollama_pack.fleet.demand import DemandMeter
from ollama_pack.fleet.errors import NoNodeError
from ollama_pack.fleet.nodes import NodeRow
from ollama_pack.fleet.policy import RoutingPolicy
from ollama_pack.fleet.queue import FairQueue, WaitingRequest
from ollama_pack.fleet.rates import Durations
from ollama_pack.fleet.runners import NodeState, ResidentModel, RunnerState
from ollama_pack.fleet.view import FleetRequest, FleetView, InstalledModel, PairRates

MAX_FAILOVERS = 2
DECISIONS_KEPT = 256
BACKGROUND_LOOK = 1.0  # seconds: a call that waits behind people may cost others a little more after each
_PRIORS = PairRates()


@dataclass(frozen=True, slots=True)
class Considered:
    """One node that a decision looked at, and what it would have cost."""

    node: str
    model: str
    terms: CostTerms


@dataclass(frozen=True, slots=True)
class Binding:
    """A request begins at a node: send it there now.

    Attributes:
        request: the request.
        node: the name of the node.
        model: the name to ask for.
        context: `num_ctx` to send, so that a runner that fits is not loaded anew; 0: send none.
        loads: the node has to load the model first.
        hit: tokens of the prompt that the node holds already.
        terms: what the choice cost.
        waited: seconds in the queue.
        offers: of all nodes that were looked at, the chosen one among them.
        policy: what their terms are computed with.
    """

    request: FleetRequest
    node: str
    model: str
    context: int
    loads: bool
    hit: int
    terms: CostTerms
    waited: float
    offers: tuple[Offer, ...] = field(repr=False, compare=False)
    policy: RoutingPolicy = field(repr=False, compare=False)

    @property
    def considered(self) -> tuple[Considered, ...]:
        """All nodes that were looked at, and the terms of each."""
        return tuple(
            Considered(offer.node.view.name, offer.model, offer.terms(self.policy)) for offer in self.offers
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long a request took to its first token once it was at a node, in seconds."""

    request_id: str
    node: str
    model: str
    predicted: float
    actual: float


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
    answering: bool = False


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
    ) -> None:
        """Start without knowing anything of the nodes: no request is bound before `probed`.

        Args:
            rows: the nodes.
            clock: seconds, monotonic.
            dice: breaks ties; seed it, and all decisions can be repeated.
            max_queue: how many requests may wait.
            policy: weights and bounds.
            priors: what to believe of a node and a model before anything is measured.
        """
        self.policy = policy or RoutingPolicy()
        self.nodes = {row.name: NodeState(row, self.policy, priors) for row in rows}
        self.outcomes: deque[Outcome] = deque(maxlen=DECISIONS_KEPT)
        self.wake_at: float | None = None
        self._clock = clock
        self._dice = dice
        self._queue = FairQueue(max_queue, self.policy.background_patience)
        self._running: dict[str, RunningRequest] = {}
        self._demand = DemandMeter()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

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
        blob, cost = self._expect(request)
        self._queue.push(request, now, cost)
        self._demand.add(blob, now)

    def _expect(self, request: FleetRequest) -> tuple[str, float]:
        """The weights that it asks for, and the seconds of service that it is expected to take."""
        for model in request.models:
            having = [node for node in self.nodes.values() if model in node.models]
            if having:
                blob = having[0].models[model].blob
                rates = having[0].known(blob)
                output = predict_output(rates, background=request.background, limit=request.max_output)
                return blob, request.tokens / rates.prompt + output * rates.token
        raise NoNodeError(request.models, tuple(self.nodes))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the answer any more. An id that is not known is ignored."""
        if request_id in self._queue:
            self._queue.cancel(request_id)
        elif running := self._running.pop(request_id, None):
            self._leave(running)
            running.node.gave_up(running.binding.model)

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

    def finished(self, request_id: str, spent: Durations) -> None:
        """The node has answered, and reports how long it took."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._leave(running)
        running.node.succeeded(running.binding.model)
        running.runner.mirror.finished(running.binding.request.blocks, spent.decode_count, self._clock())
        self._learn(running, spent)

    def _learn(self, running: RunningRequest, spent: Durations) -> None:
        pair = running.node.pair(running.runner.blob)
        known = pair.rates.prompt.count > 0
        hit = pair.rates.hit(spent) if known else 0.0
        if known:
            pair.keeps.observe(running.depth, running.matched, hit)
        unsure = running.depth >= pair.keeps.keeps  # it may be held, and may have been overwritten
        loaded = running.binding.loads
        pair.rates.observe(
            spent,
            None if unsure else running.matched,
            background=running.binding.request.background,
            loaded=loaded,
        )
        if not loaded:
            pair.slots.observe(running.beside, spent.wait)

    def failed(self, request_id: str, *, node_down: bool) -> bool:
        """The node has failed before the first token, or in the middle of an answer.

        Args:
            request_id: the request.
            node_down: it is the node (no connection, no answer to a probe), not one model on it.

        Returns:
            Whether it waits for another node now. If not, tell the user.
        """
        running = self._running.pop(request_id, None)
        if running is None:
            return False
        self._leave(running)
        running.node.failed(running.binding.model, self._clock(), node_down=node_down)
        running.runner.mirror.clear()
        again = (
            not running.answering and len(running.entry.tried) < MAX_FAILOVERS and self._elsewhere(running)
        )
        if again:
            self._queue.put_back(running.entry, running.node.row.name)
        return again

    def _elsewhere(self, running: RunningRequest) -> bool:
        tried = running.entry.tried | {running.node.row.name}
        others = [node for name, node in self.nodes.items() if name not in tried]
        return any(model in node.models for node in others for model in running.entry.request.models)

    def refused(self, request_id: str) -> None:
        """The node answered with 4xx: the request is at fault, and tells nothing of the node."""
        self.cancel(request_id)

    def _leave(self, running: RunningRequest) -> None:
        running.node.changed()
        running.runner.ends.pop(running.binding.request.id, None)
        running.runner.touched = True
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
        if not len(self._queue):
            self.wake_at = None
            return []
        view = self.view()
        bindings: list[Binding] = []
        if any(node.can_begin(view.now) for node in view.nodes):
            walk = BindingPass(view, self.policy, self._dice)
            waiting = self._queue.order(view.now)
            placed = walk.bind(waiting, lambda entry: self._queue.is_ripe(entry, view.now))
            bindings = [self._bind(placement, view.now) for placement in placed if placement.binds]
        self.wake_at = self._next_wake(view.now)
        return bindings

    def _bind(self, placement: Placement, now: float) -> Binding:
        entry, offer = placement.entry, placement.chosen
        self._queue.bound(entry.request.id, now)
        node = self.nodes[offer.node.view.name]
        node.changed()
        node.passed(offer.model)
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
            offers=placement.offers,
            policy=self.policy,
        )
        depth, matched = runner.mirror.depth(entry.request.blocks)
        beside = len(runner.ends)
        self._running[entry.request.id] = RunningRequest(
            entry, binding, node, runner, now, beside, depth, matched
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
        return node.load(placement.chosen.model, request, quote.victims, now)

    def _next_wake(self, now: float) -> float | None:
        """When to decide again though nothing happens: a load ends, a breaker lets one try, patience ends."""
        if not len(self._queue):
            return None
        due: list[float] = []
        for node in self.nodes.values():
            due.append(node.loading_until)
            due.extend(node.retry_at())
        due += [min(until, now + BACKGROUND_LOOK)] if (until := self._queue.ripens_at()) is not None else []
        return min((when for when in due if when > now), default=None)
