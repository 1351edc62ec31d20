"""The requests that wait and run, and the decisions about them. No input, no output.

What happens to a request goes to the scheduler, what is seen of the nodes to its `cluster`. Then `decide`
returns what begins::

    scheduler.submit(request)            # or cancel, first_token, finished, failed
    scheduler.cluster.probed(name, …)    # or unreachable, activity, gpu_busy, drain
    for assignment in scheduler.decide():   # send each to its node
        ...

Call `decide` after every event, and at `wake_at`. All is bounded: by the queue's limit, by the slots, and by
the models that the nodes have.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from random import Random

from ollama_pack.base.messages import message
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.cost import predict_output, slot_wait
from ollama_pack.routing.decide.fair_queue import FairQueue, WaitingRequest
from ollama_pack.routing.decide.planner import Planner, warm_load
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.strategies import LeastBusyPlanner, RandomPlanner
from ollama_pack.routing.decide.view import FleetRequest, ModelRates, NodeView, RunnerOptions
from ollama_pack.routing.errors import NoNodeError
from ollama_pack.routing.naming import fold_name, is_auto
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.cluster import Cluster
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.events import (
    BegunEvent,
    BlamedEvent,
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    FleetEvent,
    Listener,
    WaitingEvent,
    tell_nobody,
)
from ollama_pack.routing.state.node_state import NodeState, RunnerState
from ollama_pack.routing.state.peer_line import PeerLine
from ollama_pack.routing.state.peer_requests import node_key
from ollama_pack.routing.state.running import RunningRequest, Undo

MAX_FAILOVERS = 2
SOON = 0.002  # seconds; meanwhile others have the event loop
PROMISE_SECONDS = 30.0  # for which models that are kept in memory are, until somebody asks for that again
BACKGROUND_LOOK = 1.0  # seconds: a call that waits behind people may cost others a little more after each
_PRIORS = ModelRates()
STRATEGIES: Mapping[str, type[Planner]] = {
    "predicted_ttft": Planner,
    "least_busy": LeastBusyPlanner,
    "random": RandomPlanner,
}


class Scheduler:
    """Gives requests to nodes. Not thread-safe: one event loop, or one lock, around it.

    Attributes:
        cluster: the nodes as they are known.
        wake_at: when to decide again though nothing happens; None: whenever something does.
        listener: hears what happens to requests, for other workers.
    """

    def __init__(  # noqa: PLR0913 - what differs from one deployment or test to the next
        self,
        rows: Iterable[NodeRow],
        clock: Callable[[], float],
        dice: Random,
        *,
        max_queue: int = 64,
        policy: RoutingPolicy | None = None,
        priors: ModelRates = _PRIORS,
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
            raise ValueError(
                message(
                    "strategy {strategy!r} is unknown: the known ones are {known}",
                    strategy=strategy,
                    known=", ".join(STRATEGIES),
                )
            )
        self.policy = policy = policy or RoutingPolicy()
        self.cluster = Cluster(rows, clock, policy, priors)
        self.wake_at: float | None = None
        self._clock = clock
        self._planner = STRATEGIES[strategy](policy, dice)
        self._queue = FairQueue(max_queue, policy.background_wait)
        self._running: dict[str, RunningRequest] = {}
        self.listener: Listener = tell_nobody
        self._line = PeerLine(self._queue, lambda request: self._expect(request)[1])
        self._unheard: list[WaitingRequest] = []  # that may wait, and other workers do not know it

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

    def expected_wait(self, request_id: str) -> float | None:
        """Seconds until one that waits has a slot, roughly; None: no node has its model in memory."""
        entry, ahead = self._queue.get(request_id), self.ahead(request_id)
        if entry is None or ahead is None:
            return None
        view = self.cluster.view()
        left: list[float] = []
        free = 0
        service = []
        for node in view.nodes:
            blobs = {node.models[model].blob for model in entry.models if model in node.models}
            for runner in node.runners:
                if runner.blob in blobs:
                    left += [max(0.0, end - view.now) for end in runner.ends]
                    free += max(0, runner.slots - len(runner.ends))
                    service.append(node.rates[runner.blob].service)
        return slot_wait(ahead, left, free, service)

    # --- requests ---

    def submit(self, request: FleetRequest) -> FleetRequest | None:
        """Take a request in.

        Returns:
            A request that lost its place to this one, and no longer waits; None: there was room.

        Raises:
            NoNodeError: no node has any of its models.
            QueueFullError: too many wait already.
            ValueError: a request of this id is waiting or running.
        """
        if request.id in self._queue or request.id in self._running:
            raise ValueError(message("request {request!r} is already here", request=request.id))
        now = self._clock()
        for name in filter(is_auto, request.models):
            self.cluster.offer_variants(name)
        blobs, cost = self._expect(request)
        entry = self._queue.push(request, now, cost)
        self._unheard.append(entry)
        displaced = entry.displaced
        if displaced:
            self.listener(EndedEvent(displaced.id))
        for blob, share in blobs.items():
            self.cluster.demand.add(blob, now, share)
        return displaced

    def places_of(self, user: str) -> int:
        """How many requests of a user wait."""
        return self._queue.places_of(user)

    def _expect(self, request: FleetRequest) -> tuple[Mapping[str, float], float]:
        """The weights that it asks for, by their share, and the seconds of service that it may take."""
        for model in map(fold_name, request.models):
            having = [node for node in self.cluster.nodes.values() if model in node.listed]
            if having:
                counts = Counter(node.listed[model].blob for node in having)
                rates = having[0].known(having[0].listed[model].blob)
                output = predict_output(rates, background=request.background, limit=request.max_output)
                blobs = {blob: count / len(having) for blob, count in counts.items()}
                return blobs, request.tokens / rates.prompt + output * rates.token
        raise NoNodeError(request.models, tuple(self.cluster.nodes))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the answer any more. An id that is not known is ignored."""
        if entry := self._queue.get(request_id):
            self._queue.cancel(request_id)
            if entry.shared:
                self.listener(EndedEvent(request_id))
        elif running := self._running.pop(request_id, None):
            self._leave(running)
            self._ended(running, self._clock() - running.since if running.answering else None)
            running.node.gave_up(running.assignment.model)
            self.listener(EndedEvent(request_id))

    def give_back(self, request_id: str) -> None:
        """A request that was bound is not sent: it waits again, at its old place. Unknown ids are ignored."""
        running = self._running.get(request_id)
        if running is None or running.answering:
            return
        del self._running[request_id]
        node, runner = running.node, running.runner
        node.changed()
        node.gave_up(running.assignment.model)
        runner.ends.pop(request_id, None)
        runner.mirror.restore(running.undo.prefixes)
        if running.assignment.loads and not runner.ends:
            node.take_back(runner, running.undo.evicted, running.undo.loading_until)
        self._ended(running)
        if not running.entry.request.load_only:
            self._queue.put_back(running.entry)
            self._unheard.append(running.entry)

    def running(self) -> Iterable[BoundEvent]:
        """What is at nodes now, to be told to a worker that has just come."""
        now = self._clock()
        return [running.event(now) for running in self._running.values()]

    def waiting_events(self) -> Iterator[WaitingEvent]:
        """What waits at this worker, for one that has just come."""
        return map(self._waiting_event, [entry for entry in self._queue if not entry.peer])

    @property
    def request_ids(self) -> tuple[str, ...]:
        """All requests of this worker, at nodes or waiting."""
        return (*self._running, *(entry.request.id for entry in self._queue if not entry.peer))

    def is_idle(self, node: str) -> bool:
        """Whether no request of this worker is at a node."""
        return not any(running.node.row.name == node for running in self._running.values())

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
        running.node.gave_up(running.assignment.model)  # it answers: another one need not wait for its end
        running.node.changed()
        running.node.loaded(running.runner, now)
        running.runner.serves(running.wanted)
        request, blob = running.assignment.request, running.runner.blob
        if not running.assignment.loads:
            new = max(0, request.tokens - running.assignment.hit)
            running.node.stats(blob).slots.began(running.beside, now - running.since, new)
            running.node.learned(blob)
        rates = running.node.known(blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        running.runner.ends[request_id] = now + output * rates.token
        self.listener(BegunEvent(request_id, output * rates.token))

    def finished(self, request_id: str, spent: Durations) -> None:
        """The node has answered, and reports how long it took."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._leave(running)
        self._ended(running, max(0.0, self._clock() - running.since - spent.load))
        running.node.succeeded(running.assignment.model)
        running.runner.mirror.finished(running.assignment.request.blocks, spent.decode_count, self._clock())
        lesson = running.lesson(spent)
        blob = running.runner.blob
        self.cluster.learn(running.node, blob, lesson)
        self.listener(FinishedEvent(request_id, node_key(running.node.row), blob, lesson))

    def was_busy(self, request_id: str, *, pause: float | None, waits: bool) -> bool:
        """The node took no further request of this model.

        Args:
            request_id: the request.
            pause: for so many seconds; None: it does not say.
            waits: the request waits for the same node if there is no other.

        Returns:
            Whether it waits. If not, tell the user.
        """
        if (running := self._running.pop(request_id, None)) is None:
            return False
        self._leave(running)
        self._ended(running)
        again = self._fails_over(running)
        alone = waits and not again
        running.node.busy(running.assignment.model, self._clock(), pause=pause)
        self.listener(EndedEvent(request_id))  # other workers learn by themselves for how long
        if again or alone:
            self._wait_again(running, "" if alone else running.node.row.name)
        return again or alone

    def failed(self, request_id: str, *, node_down: bool, hung: bool = False, blamed: bool = True) -> bool:
        """The node has failed before the first token, or in the middle of an answer.

        Args:
            request_id: the request.
            node_down: it is the node (no connection, no answer to a probe), not one model on it.
            hung: the model said nothing for as long as it could: nobody else is to wait for it.
            blamed: the fault is the node's. If not, it may be the request's: `blame` may be called later.

        Returns:
            Whether it waits for another node now. If not, tell the user.
        """
        running = self._running.pop(request_id, None)
        if running is None:
            return False
        self._leave(running)
        self._ended(running)
        node, model = running.node, running.assignment.model
        running.runner.mirror.clear()
        if blamed:
            node.failed(model, self._clock(), node_down=node_down, hung=hung)
            self.listener(FailedEvent(request_id, node_down, hung))
        else:
            if running.answering:
                node.broke_off(model, running.assignment.request.user, self._clock())
            else:
                node.gave_up(model)
            self.listener(EndedEvent(request_id))
        if again := self._fails_over(running):
            self._wait_again(running, node.row.name)
        return again

    def _fails_over(self, running: RunningRequest) -> bool:
        """Whether another node may answer it."""
        return not running.answering and len(running.entry.tried) < MAX_FAILOVERS and self._elsewhere(running)

    def _wait_again(self, running: RunningRequest, failed_node: str) -> None:
        self._queue.put_back(running.entry, failed_node)
        running.entry.shared = False
        self._unheard.append(running.entry)

    def blame(self, request_id: str, name: str, model: str, *, hung: bool) -> None:
        """A node failed a request that another one has begun to answer: so the fault was the node's."""
        node = self.cluster.nodes.get(name)
        if node is None:  # it has left the table meanwhile
            return
        node.failed(model, self._clock(), node_down=False, hung=hung)
        self.listener(BlamedEvent(request_id, node_key(node.row), model, hung))

    def _elsewhere(self, running: RunningRequest) -> bool:
        tried = running.entry.tried | {running.node.row.name}
        others = [one for name, one in self.cluster.nodes.items() if name not in tried and one.row.weight > 0]
        return any(model in node.listed for node in others for model in running.entry.models)

    def has_another(self, request_id: str) -> bool:
        """Whether a request that is at a node could go to another one, and be answered by the same model."""
        running = self._running.get(request_id)
        if running is None or len(running.entry.tried) >= MAX_FAILOVERS:
            return False
        model, passed_over = running.assignment.asked_for, {running.node.row.name, *running.entry.tried}
        others = (node for node in self.cluster.view().nodes if node.name not in passed_over)
        return any(node.weight > 0 and model in node.models for node in others)

    def loads(self, models: Iterable[str]) -> Iterator[tuple[str, str, float]]:
        """What nodes that have one of these models load now, as is believed: node, model, since when."""
        names = set(map(fold_name, models))
        for name, node in self.cluster.nodes.items():
            if not names.isdisjoint(node.listed):
                for runner in node.runners.values():
                    if runner.loading:
                        yield name, runner.model, runner.since

    def is_held_up(self, request_id: str) -> bool:
        """Whether one that waits does so because another user's long answers hold the slots.

        Some user has several more in service than this one at nodes that could answer it, or is alone there.
        """
        entry = self._queue.get(request_id)
        if entry is None:
            return False
        serving = Counter(
            running.assignment.request.user
            for running in self._running.values()
            if any(model in running.node.listed for model in entry.models)
            and not running.entry.request.load_only
        )
        own = serving.pop(entry.request.user, 0)
        return bool(serving) and (max(serving.values()) > own + 1 or (not own and len(serving) == 1))

    def refused(self, request_id: str) -> None:
        """The node answered with 4xx: the request is at fault, and tells nothing of the node."""
        self.cancel(request_id)

    def _ended(self, running: RunningRequest, seconds: float | None = None) -> None:
        """As `FairQueue.ended`. A load that nobody waits for is no user's."""
        if not running.entry.request.load_only:
            self._queue.ended(running.entry, seconds)

    def _leave(self, running: RunningRequest) -> None:
        running.node.changed()
        running.node.left(running.runner, running.assignment.request.id, self._clock())
        if running.assignment.loads and not running.answering:  # whether it was loaded, the next probe tells
            running.node.loaded(running.runner, self._clock())

    # --- other workers ---

    def hear(self, worker: str, event: FleetEvent) -> None:
        """Another worker tells what happens to a request of its own."""
        self.cluster.remote.apply(worker, event)
        self._line.apply(worker, event, self._clock())

    def forget_peer(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these requests are still there."""
        there = frozenset(but)
        self.cluster.remote.forget(worker, there)
        self._line.forget(worker, there)

    def forget_peers(self) -> None:
        """Nobody tells any more."""
        self.cluster.remote.forget_all()
        self._line.forget_all()

    def _share_waiting(self) -> None:
        """Tell other workers of the requests that no node could begin at once."""
        for entry in self._unheard:
            if not entry.shared and self._queue.get(entry.request.id) is entry:
                entry.shared = True
                self.listener(self._waiting_event(entry))
        self._unheard.clear()

    def _waiting_event(self, entry: WaitingRequest) -> WaitingEvent:
        request = entry.request
        return WaitingEvent(
            request_id=request.id,
            user=request.user,
            models=request.models,
            blocks=request.blocks,
            max_output=request.max_output,
            context=request.context,
            options=request.options,
            background=request.background,
            waited=max(0.0, self._clock() - entry.came),
        )

    # --- decisions ---

    def decide(self) -> list[Assignment]:
        """Which waiting requests begin now. They count as running from here on."""
        now = self._clock()
        self.cluster.remote.expire(now)
        self._line.refresh(now)
        if not len(self._queue):
            self._unheard.clear()
            self._line.leave_slots((), now)
            self.wake_at = None
            return []
        planned = self._planner.plan(self.cluster.view_at(now), self._queue.kinds(now))
        self.cluster.decided()
        starting = [one for one in planned if one.starts]
        started = [self._start(one, now) for one in starting if not one.entry.peer and self._allows(one, now)]
        left_until = self._line.leave_slots([one.request.id for one in starting if one.entry.peer], now)
        self._share_waiting()
        self.wake_at = now + SOON if self._planner.exhausted else self._next_wake(now, left_until)
        return started

    def load_ahead(self) -> list[Assignment]:
        """Loads that begin now though nobody waits for them: to be asked for after `decide`.

        Each counts as running until `finished`, `load_failed` or `cancel`.
        """
        now, loads = self._clock(), self._planner.ahead
        self._planner.ahead = []
        return [self._start(one, now) for one in loads if self._allows(one, now)]

    def warm(self, model: str, copies: int, others: Iterable[str] = ()) -> list[Assignment]:
        """Begin loads after which so many nodes have a model in memory, as far as that is possible now.

        Each counts as running until `finished`, `load_failed` or `cancel`. For `PROMISE_SECONDS` no such node
        is given to another model whose chats wait.

        Args:
            model: its name.
            copies: on so many nodes.
            others: models that are kept likewise, and are not unloaded for it.
        """
        now, name = self._clock(), fold_name(model)
        view = self.cluster.view()
        having = [node for node in view.nodes if name in node.models and node.weight > 0 and node.loads_ahead]
        blobs = {node.name: {runner.blob for runner in node.runners} for node in having}
        promised = self._planner.promised
        self._planner.promised = {blob: known for blob, known in promised.items() if known[1] > now}
        self._planner.promised |= {node.models[name].blob: (copies, now + PROMISE_SECONDS) for node in having}
        cold = [node for node in having if node.models[name].blob not in blobs[node.name]]
        missing = copies - (len(having) - len(cold))
        cold = [node for node in cold if node.may_load_ahead(name)]
        loads: list[Assignment] = []
        for node in sorted(cold, key=lambda node: (node.tier, -_free(node), node.name)):
            kept = {node.models[other].blob for other in map(fold_name, others) if other in node.models}
            if len(loads) >= missing:
                break
            request = self._warm_request(node, name, now)
            if load := warm_load(view, node, request, self.policy, kept):
                loads.append(self._start(load, now))
        return loads

    def _warm_request(self, node: NodeView, model: str, now: float) -> FleetRequest:
        """For a load as its chats want it: the first of them would have it loaded again for its `num_ctx`."""
        context, options = self.cluster.usual_options(node.models[model].blob)
        return FleetRequest(
            f"warm {model} {node.name} {now}",
            "",
            (model,),
            context=context,
            options=options,
            background=True,
            load_only=True,
        )

    def load_failed(self, request_id: str, *, lasts: bool = True) -> None:
        """A node has not done such a load. That shuts nothing: its options may be the reason.

        Args:
            request_id: the load.
            lasts: it will probably fail the next time, too. Not where the node is down or busy.
        """
        if running := self._running.get(request_id):
            self.cancel(request_id)
            running.node.did_not_load(running.runner, self._clock(), grows=lasts)

    def _allows(self, assignment: Assignment, now: float) -> bool:
        """Whether the breakers do: of several that go to a node that comes back, one tries."""
        return self.cluster.nodes[assignment.node].allows(assignment.model, now)

    def _start(self, assignment: Assignment, now: float) -> Assignment:
        """Let a request take the slot that it was assigned, and remember how to undo it."""
        entry, request = assignment.entry, assignment.request
        quote = assignment.chosen.quote
        if not request.load_only:
            self._queue.bound(request.id, now)
        node = self.cluster.nodes[assignment.node]
        node.changed()
        node.passed(assignment.model)
        evicted = {blob: node.runners[blob] for blob in assignment.victims if blob in node.runners}
        loading_until = node.loading_until
        wanted = node.models[assignment.model].wanted(request)
        if not request.load_only and not request.background:
            self.cluster.asked_for(quote.blob, request)
        runner = self._occupy(node, assignment, wanted, now)
        match, beside = runner.mirror.depth(request.blocks), len(runner.ends)
        undo = Undo(evicted, loading_until, runner.mirror.state())
        self._running[request.id] = RunningRequest(
            entry, assignment, node, runner, beside, match, undo, wanted, now
        )
        output = predict_output(quote.rates, background=request.background, limit=request.max_output)
        answers = 0.0 if request.load_only else output * quote.rates.token
        ends_at = now + assignment.terms.predict_ttft + answers
        shared, kind = self.cluster.prompt_sent(assignment.node, quote.blob, request, now)
        runner.begin(request, now, ends_at, shared, kind)
        return assignment

    def _occupy(
        self, node: NodeState, assignment: Assignment, wanted: tuple[int, RunnerOptions], now: float
    ) -> RunnerState:
        """The runner that answers: the one that is there, or a new one in place of others."""
        quote = assignment.chosen.quote
        if quote.reused is not None:
            return node.runners[quote.blob]
        return node.load(assignment.model, wanted, quote.victims, now)

    def _next_wake(self, now: float, left_until: float) -> float | None:
        """When to decide again though nothing happens: when a load ends, or a title has waited enough."""
        if not len(self._queue):
            return None
        self.cluster.refresh(now)
        due = [self.cluster.stale_at, self._planner.look_again, left_until]
        if (until := self.cluster.remote.expires_at()) is not None:
            due.append(until)
        if (until := self._queue.ripens_at()) is not None:
            due.append(min(until, now + BACKGROUND_LOOK))
        return min([when for when in due if now < when < math.inf], default=None)


def _free(node: NodeView) -> int:
    """Bytes of a node's memory that no model has."""
    return node.room - sum(runner.size for runner in node.runners)
