"""Late binding on a virtual timeline: which of the waiting requests begin now, and where.

Go through them in fair order. For each, predict what every node would cost it, given that those ahead are
already placed. If the best node can begin now, it goes there; if not, those behind wait as much longer as it
will hold a slot, so that they see the true queue. A request that does not start may choose otherwise the next
time.

Work conserving: while a node that has the model in memory has a free slot, a request waits only if it starts
sooner elsewhere. The prefix that it overwrites there is spared by background calls, and among equal nodes:
holding people back for it has cost more than it saved on every trace.

A decision costs what the event before it touched, not what the fleet and the queue hold. Nodes are found by
model: those with a free slot, those that have one next, those that hold the prompt, those that can load.
Requests are found by kind: of a kind that cannot begin, as many are passed over as would not change that, and
the whole kind until something changes for it. (In a small fleet, where looking costs little, every request is
looked at.) What is left has a bound: then the next decision goes on.
"""

import math
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from random import Random
from typing import Self

from ollama_pack.routing.decide.assignment import Assignment, NodeCost
from ollama_pack.routing.decide.cost import mean_queue, predict_output
from ollama_pack.routing.decide.fair_queue import Place, WaitingRequest
from ollama_pack.routing.decide.node_timeline import (
    FRESH_SECONDS,
    Quote,
    QuoteKey,
    TimelineContext,
    VirtualNode,
)
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.rendezvous import may_take, rendezvous_score
from ollama_pack.routing.decide.view import FleetRequest, FleetView, NodeView


@dataclass(slots=True)
class WarmNodes:
    """The nodes that have some weights in memory.

    Attributes:
        ready: those with a slot free now, by name.
        busy: when each of the others is free, and its name; sorted.
        slots: of all of them.
        pace: usual requests a second that all of them can answer.
        gains: counts how often a slot became free.
    """

    ready: dict[str, VirtualNode] = field(default_factory=dict)
    busy: list[tuple[float, str]] = field(default_factory=list)
    slots: int = 0
    pace: float = 0.0
    gains: int = 0


@dataclass(slots=True)
class Listed:
    """Where a node is found in the indexes.

    Attributes:
        load_at: whether it has to wait before it can load, until when, and its name.
        runners: of each the weights, when it has a slot free (None: now), its slots and its pace.
    """

    load_at: tuple[bool, float, str]
    runners: list[tuple[str, float | None, int, float]]

    def offers_more(self, before: Self | None, now: float) -> bool:
        """Whether a request that could not begin may look otherwise now, apart from free slots."""
        later, at, _ = self.load_at
        blobs = {blob for blob, *_ in self.runners}
        return before is None or (not later and at <= now) or blobs != {blob for blob, *_ in before.runners}


@dataclass(slots=True)
class Having:
    """The nodes that have a model, by name, and the weights that they call by that name."""

    nodes: list[str]
    blobs: list[str]


@dataclass(slots=True)
class Kind:
    """The waiting requests of one kind, in one decision.

    Attributes:
        waiting: all of them, in fair order.
        tried: nodes that have failed them.
        model: which of their models answers, and
        having: the nodes that have it.
        seen: how many of them the walk has passed.
        misses: how many of those that were looked at in a row cannot begin now.
        cold: nodes that could load the model, the cheapest of those that were asked.
        hopeless: none has begun, and no node is kept for one: nobody needs to look until something changes.
    """

    name: str
    waiting: Sequence[WaitingRequest]
    tried: Collection[str]
    model: str
    having: Having
    seen: int = 0
    misses: int = 0
    cold: list[VirtualNode] = field(default_factory=list)
    hopeless: bool = True


class Timelines:
    """The nodes' futures, kept from one decision to the next until their nodes change, and found by model.

    Attributes:
        moment: what all of them go by.
        nodes: by name.
        open: the names of those that can begin something now.
        roomy: the names of those that can load a small model now and unload nothing for it.
        warm: the nodes that have some weights in memory, by these.
        gains: counts the changes after which a request may begin that could not before.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self.moment = TimelineContext(policy)
        self.nodes: dict[str, VirtualNode] = {}
        self.open: set[str] = set()
        self.roomy: set[str] = set()
        self.warm: dict[str, WarmNodes] = {}
        self._loading: list[tuple[bool, float, str]] = []  # sorted: who can load first
        self._listed: dict[str, Listed] = {}
        self._having: dict[str, Having] = {}
        self.gains = 0

    def follow(self, view: FleetView) -> None:
        """Take in how the fleet looks now."""
        moment = self.moment
        moment.now, moment.demand, moment.returns = view.now, view.demand, view.returns
        names = view.by_name.keys() if view.changed is None else view.changed
        if view.changed is None:
            for name in [name for name in self.nodes if name not in names]:
                self._drop(name)
        for name in names:
            known = self.nodes.get(name)
            if known is None or known.view is not view.by_name[name] or known.changed:
                before = self._listed.get(name)
                self.renew(view.by_name[name])
                after = self._listed.get(name)
                self.gains += after is None or after.offers_more(before, view.now)
                for blob, free_at, *_ in after.runners if after else ():
                    self.warm[blob].gains += free_at is None

    def renew(self, view: NodeView) -> None:
        """Begin a node's future again, from how it looks now."""
        before = self.nodes.get(view.name)
        if before is not None:
            self.moment.held.subtract([runner.blob for runner in before.view.runners])
        if before is None or before.view.models is not view.models:
            self._having.clear()
            self.gains += 1
        if view.weight <= 0:
            if before is not None:
                self._forget(view.name)
            return
        self.moment.held.update([runner.blob for runner in view.runners])
        node = self.nodes[view.name] = VirtualNode(view, self.moment, before)
        self.list_again(node)

    def _drop(self, name: str) -> None:
        self.moment.held.subtract([runner.blob for runner in self.nodes[name].view.runners])
        self._having.clear()
        self.gains += 1
        self._forget(name)

    def _forget(self, name: str) -> None:
        del self.nodes[name]
        self._unlist(name)
        self.open.discard(name)
        self.roomy.discard(name)

    def list_again(self, node: VirtualNode) -> None:
        """Note what a node can begin, and when."""
        name = node.view.name
        self._unlist(name)
        loads_now, loads_at = node.can_load()
        listed = self._listed[name] = Listed((not loads_now, loads_at, name), [])
        insort(self._loading, listed.load_at)
        for blob, runner in node.runners.items():
            if blob not in node.served:
                continue
            warm = self.warm.get(blob)
            if warm is None:
                warm = self.warm[blob] = WarmNodes()
            free_at = None if node.serves_now(blob) else node.free_at(runner)
            if free_at is None:
                warm.ready[name] = node
            else:
                insort(warm.busy, (free_at, name))
            pace = node.pace(blob, runner.slots)
            warm.slots += runner.slots
            warm.pace += pace
            listed.runners.append((blob, free_at, runner.slots, pace))
        if node.is_open():
            self.open.add(name)
        else:
            self.open.discard(name)
        if node.has_room():
            self.roomy.add(name)
        else:
            self.roomy.discard(name)

    def _unlist(self, name: str) -> None:
        listed = self._listed.pop(name, None)
        if listed is None:
            return
        del self._loading[bisect_left(self._loading, listed.load_at)]
        for blob, free_at, slots, pace in listed.runners:
            warm = self.warm[blob]
            warm.slots -= slots
            warm.pace -= pace
            if free_at is None:
                del warm.ready[name]
            else:
                del warm.busy[bisect_left(warm.busy, (free_at, name))]
            if len(self.warm) > MAX_MODELS and not warm.ready and not warm.busy:
                del self.warm[blob]
                self.gains += 1

    def having(self, model: str) -> Having:
        """The nodes that have a model."""
        found = self._having.get(model)
        if found is None:
            if len(self._having) > MAX_MODELS:
                self._having.clear()
            nodes = [name for name, node in self.nodes.items() if model in node.view.models]
            blobs = {self.nodes[name].view.models[model].blob: None for name in nodes}
            found = self._having[model] = Having(nodes, list(blobs))
        return found

    def can_load(self) -> bool:
        """Whether any node can load something now."""
        return bool(self._loading) and not self._loading[0][0] and self._loading[0][1] <= self.moment.now

    def loading_first(self) -> Iterator[tuple[bool, str]]:
        """The nodes' names, those first that can load something first, and whether they can do so now."""
        now = self.moment.now
        return ((not later and at <= now, name) for later, at, name in self._loading)


MOST_TAKEN_BY_WARMTH = 0.05  # seconds that others may lose when a model is loaded for the hours to come
MAX_MODELS = 256  # whose nodes are remembered
PATIENT_SECONDS = 0.25  # until requests that wait for a node beside a free slot are looked at again
SMALL_FLEET = 16  # nodes: in so few nobody is passed over while there is time
MAX_HOPELESS = 256  # kinds that are remembered
FEW_MISSES = 8  # in a row, beside a free slot, before others are passed over
FEW_BUSY = 2  # nodes that are thought of next to those that can begin now: the ones that can so next


@dataclass(slots=True)
class Planner:
    """Decides again and again, over views of one fleet. What it keeps between decisions only saves time.

    Attributes:
        policy: weights and bounds.
        dice: breaks ties.
        promised: blob → on how many nodes it is to stay in memory, and until when that holds.
        ahead: loads that nobody waits for, which had better begin now.
        exhausted: the last decision has reached its bound before it had seen all. Decide again soon.
        look_again: when requests that were passed over may look otherwise though nothing has happened.
    """

    policy: RoutingPolicy
    dice: Random
    holds_back = True
    _timelines: Timelines = field(init=False)
    _view: FleetView = field(init=False)
    _kinds: dict[str, Kind] = field(init=False, default_factory=dict)
    _touched: dict[str, VirtualNode] = field(init=False, default_factory=dict)
    _held: Counter[str] | None = field(init=False, default=None)
    _delays: defaultdict[str, float] = field(init=False, default_factory=lambda: defaultdict(float))
    _asked: int = field(init=False, default=0)
    promised: dict[str, tuple[int, float]] = field(init=False, default_factory=dict)
    ahead: list[Assignment] = field(init=False, default_factory=list)
    exhausted: bool = field(init=False, default=False)
    look_again: float = field(init=False, default=math.inf)
    _hopeless: dict[str, tuple[int, int, float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._timelines = Timelines(self.policy)

    def plan(self, view: FleetView, waiting: Mapping[str, Sequence[WaitingRequest]]) -> list[Assignment]:
        """Assign nodes to requests until nothing more can begin now.

        Args:
            view: the fleet at this moment.
            waiting: the requests by kind, each in fair order.

        Returns:
            The assignments of those that were looked at; those that `starts` begin now.
        """
        self._begin(view)
        found = self._walk(waiting)
        self.ahead = self._loads_ahead(found)
        self._end()
        return found

    def _begin(self, view: FleetView) -> None:
        self._view = view
        self._timelines.follow(view)
        self._kinds, self._touched, self._held = {}, {}, None
        self._delays.clear()
        self._asked, self.exhausted, self.look_again = 0, False, math.inf

    def _end(self) -> None:
        """What was placed on the timelines was a thought: forget it."""
        if self._held is not None:
            self._timelines.moment.held = self._held
        for name in self._touched:
            self._timelines.renew(self._view.by_name[name])

    def _walk(self, waiting: Mapping[str, Sequence[WaitingRequest]]) -> list[Assignment]:
        """Go through the requests in fair order, and pass over those that have nothing to begin."""
        if not self._timelines.open:
            return []
        found: list[Assignment] = []
        ahead: list[tuple[Place, Kind]] = []
        for name, entries in waiting.items():
            kind = self._kind_of(name, entries)
            if kind and not self._is_hopeless(kind):
                self._kinds[name] = kind
                heappush(ahead, (entries[0].place, kind))
        while ahead and self._timelines.open:
            _, kind = heappop(ahead)
            if self._puts_off(kind):
                continue
            if assignment := self._look(kind):
                found.append(assignment)
            if kind.seen < len(kind.waiting) and (self._has_ready(kind) or self._timelines.can_load()):
                heappush(ahead, (kind.waiting[kind.seen].place, kind))
            elif not self._is_small():
                self._give_up(kind)
        return found

    def _puts_off(self, kind: Kind) -> bool:
        """Leave a kind to the next decision where this one has cost too much, and see that there is one.

        The first of each kind is looked at in every decision: others must not use the bound up for it.
        """
        bound = self.policy.most_costs * (2 if self._has_ready(kind) else 1)
        if not kind.seen or self._asked < bound:
            return False
        if kind.misses and not kind.hopeless:  # a node is kept for it
            self.look_again = min(self.look_again, self._view.now + PATIENT_SECONDS)
            return True
        self.exhausted = True
        if kind.misses:
            self._give_up(kind)  # the next decision looks at others
        return True

    def _is_small(self) -> bool:
        """Whether the fleet is so small that looking at everybody costs little."""
        return len(self._timelines.nodes) <= SMALL_FLEET

    def _look(self, kind: Kind) -> Assignment | None:
        """Place the next request of a kind; None when no node may answer it."""
        entry = kind.waiting[kind.seen]
        kind.seen += 1
        assignment = self.assign(entry, kind)
        if assignment is None:
            return None
        if assignment.starts:
            kind.misses, kind.hopeless = 0, False
        else:
            kind.misses += 1
            self._pass_over(kind, assignment)
        return assignment

    def _give_up(self, kind: Kind) -> None:
        """Pass over a kind of which none could begin, until something changes."""
        if not kind.hopeless:
            return
        if len(self._hopeless) >= MAX_HOPELESS:
            self._hopeless.clear()
        until = self._view.now + (PATIENT_SECONDS if self._has_ready(kind) else FRESH_SECONDS)
        self._hopeless[kind.name] = self._gains(kind), len(kind.waiting), until
        self.look_again = min(self.look_again, until)

    def _gains(self, kind: Kind) -> int:
        """Counts the changes after which a request of this kind may begin that could not before."""
        warm = self._timelines.warm
        return self._timelines.gains + sum([warm[blob].gains for blob in kind.having.blobs if blob in warm])

    def _is_hopeless(self, kind: Kind) -> bool:
        """Whether none could begin a moment ago, and nothing has changed that matters to them."""
        gains, waiting, until = self._hopeless.get(kind.name, (-1, 0, 0.0))
        if gains != self._gains(kind) or len(kind.waiting) > waiting or until <= self._view.now:
            return False
        self.look_again = min(self.look_again, until)
        return True

    def _loads_ahead(self, found: Sequence[Assignment]) -> list[Assignment]:
        """Loads of models whose slots fill up, where nobody has to wait for that.

        A node with room unloads nothing for it. The last such node is left to models that no node has in
        memory; where it has no room for all models, which one needs it most is not known before a model is
        short. Where no node has room, a model whose requests wait may take the place of another.
        """
        asked = {one.entry.kind: one for one in found if not one.request.background and not one.entry.peer}
        roomy = self._timelines.roomy
        loads = [load for one in asked.values() for load in self._loads_for(one)] if roomy else []
        return loads or self._exchange([one for one in asked.values() if not one.starts])

    def _loads_for(self, assignment: Assignment) -> Iterator[Assignment]:
        """The loads of one model, given the choice for a request that asks for it."""
        kind, request = self._kinds[assignment.entry.kind], assignment.request
        nodes, roomy = self._timelines.nodes, self._timelines.roomy
        warm = [node for name in kind.having.nodes if (node := nodes[name]).has(kind.model)]
        slots = self._slots(kind)
        busy = len(kind.waiting) + sum([node.answers(kind.model) for node in warm])
        nearest = min([node.view.tier for node in warm], default=-1)
        left = len(roomy)
        lost = self._lost(assignment)
        for name in kind.having.nodes:
            node = nodes[name]
            fills_up = busy > max(1.0, self.policy.prewarm_share * slots)
            if not fills_up and not lost:
                return
            if name not in roomy or node.view.tier > nearest or node.has(kind.model):
                continue
            if not node.view.may_load_ahead(kind.model):
                continue
            if not fills_up and lost <= node.load_seconds(kind.model):
                continue
            if left == 1 and (self._leaves_models_out(node, kind.model) or self._is_early(node, busy, slots)):
                return
            quote = node.quote((kind.model, assignment.entry.kind, request.max_output), request)
            if quote.now_open and quote.load and not quote.victims:
                slots += quote.rates.slots
                left -= 1
                lost = 0.0  # what one more node helps is seen before another one loads
                yield self._load(node, quote, assignment)

    def _exchange(self, waiting: Sequence[Assignment]) -> list[Assignment]:
        """The load that shortens the queues most, in place of models that other nodes have in memory, too.

        The first chats settle how models are spread, and demand changes. A request gains nothing by a load
        that takes longer than its turn does, so without this nodes would stand idle beside a lasting queue.
        """
        best: tuple[float, list[Assignment]] = (0.0, [])
        for one in waiting:
            kind = self._kinds[one.entry.kind]
            for node in kind.cold:
                if node.changed or node.view.tier > one.chosen.node.view.tier:
                    continue
                if not node.view.may_load_ahead(kind.model):
                    continue
                offer = node.quote((kind.model, one.entry.kind, one.request.max_output), one.request)
                if offer.now_open and offer.victims:
                    gain = self._shortens(one, kind, node, offer)
                    least = max(self.policy.exchange_gain, offer.load / self.policy.demand_horizon)
                    if gain > max(least, best[0]):
                        best = gain, [self._load(node, offer, one)]
        return best[1]

    def _shortens(self, waiting: Assignment, kind: Kind, node: VirtualNode, offer: Quote) -> float:
        """How many fewer requests wait, on average, when a node loads a model in place of others.

        Those that wait see the pace of the node that they wait for. The others lose what this one adds to
        theirs: otherwise a fast node among slow ones would seem worth more to the model that it does not
        have, and would change for ever.
        """
        if not all(self._may_give(blob, node) for blob in offer.victims):
            return -math.inf
        slots, more, near = self._slots(kind), offer.rates.slots, waiting.chosen
        gain = self._queue(offer.blob, slots, near.node.pace(near.quote.blob, slots))
        gain -= self._queue(offer.blob, slots + more, near.node.pace(near.quote.blob, slots + more))
        for blob in offer.victims:
            warm, own = self._timelines.warm[blob], node.runners[blob].slots
            there, left = (0, own) if blob in node.served else (own, 0)
            gain -= self._queue(blob, warm.slots - left, warm.pace - node.pace(blob, left))
            gain += self._queue(blob, warm.slots + there, warm.pace + node.pace(blob, there))
        return gain

    def _may_give(self, blob: str, node: VirtualNode) -> bool:
        """Whether another node, not further away, has some weights in memory and may be asked for them."""
        copies, until = self.promised.get(blob, (0, 0.0))
        if until > self._view.now and self._timelines.moment.held[blob] <= copies:
            return False
        warm, nodes = self._timelines.warm.get(blob), self._timelines.nodes
        names = chain(warm.ready, [name for _, name in warm.busy]) if warm else ()
        return any(nodes[name].view.tier <= node.view.tier for name in names if name != node.view.name)

    def _queue(self, blob: str, slots: int, pace: float) -> float:
        demand = self._timelines.moment.demand.get(blob, 0.0)
        return mean_queue(demand, pace, slots, self.policy.demand_horizon)

    def _lost(self, assignment: Assignment) -> float:
        """Seconds that chats lose within the horizon, as each warm node has a prompt that one overwrites."""
        demand = self._timelines.moment.demand.get(assignment.chosen.quote.blob, 0.0)
        harm = min([cost.harm for cost in assignment.costs if cost.quote.reused], default=0.0)
        return harm * max(1.0, demand * self.policy.demand_horizon)

    def _leaves_models_out(self, node: VirtualNode, model: str) -> bool:
        """Whether a node has other models that no node has in memory."""
        held, own = self._timelines.moment.held, node.view.models[model].blob
        return any(not held[other.blob] for other in node.view.models.values() if other.blob != own)

    @staticmethod
    def _is_early(node: VirtualNode, busy: int, slots: int) -> bool:
        """Whether it is too early to choose a model for a node that has no room for all."""
        return busy <= slots and not node.has_room_for_all()

    def _load(self, node: VirtualNode, quote: Quote, assignment: Assignment) -> Assignment:
        """A load for those who will ask for the same as a request."""
        request, models = assignment.request, (assignment.asked_for,)
        load = FleetRequest(
            f"{request.id} {node.view.name}",
            "",
            models,
            context=request.context,
            options=request.options,
            background=True,
            load_only=True,
        )
        return _load_assignment(load, node, quote, self._view.now, self.policy)

    def _kind_of(self, name: str, entries: Sequence[WaitingRequest]) -> Kind | None:
        """The requests of a kind, with the first of their models that any node has; None: no node has any."""
        first = entries[0]
        for model in first.models:
            having = self._timelines.having(model)
            if any(name not in first.tried for name in having.nodes):
                return Kind(name, entries, first.tried, model, having)
        return None

    def _has_ready(self, kind: Kind) -> bool:
        """Whether a node has the model in memory, and a slot free."""
        warm = [self._timelines.warm.get(blob) for blob in kind.having.blobs]
        return any(one.ready.keys() - kind.tried if kind.tried else one.ready for one in warm if one)

    def assign(self, entry: WaitingRequest, kind: Kind) -> Assignment | None:
        """Place one request on the timelines; None when no node may answer it."""
        request, policy, now = entry.request, self.policy, self._view.now
        pressing, ripe = entry.overtaken >= policy.overtake_limit, not entry.behind
        costs = self._costs(entry, kind, pressing=pressing)
        if not costs:
            return None
        chosen = self._choose(costs, request)
        may_harm = policy.background_cost_rate * (now - entry.came)
        starts = chosen.quote.now_open and (ripe or chosen.harm <= may_harm)
        if starts:
            self._take(chosen, request)
        elif ripe and chosen.quote.reused is None:
            self._take(chosen, request)  # it waits for a load there: that node is kept for it
            kind.hopeless = False
        if pressing and not starts and chosen.quote.reused is None and chosen.name in self._timelines.open:
            chosen.node.reserve()  # one that waits for a slot of its own model gets the next one anyway
            self._touch(chosen.node)
            kind.hopeless = False
        asked = {cost.name for cost in costs}
        unasked = [node for node in kind.cold if node.view.name not in asked]
        return Assignment(entry, kind.model, chosen, costs, unasked, starts, policy, now - entry.came)

    def _pass_over(self, kind: Kind, missed: Assignment) -> None:
        """Go on with the first one behind that may begin now though this one cannot.

        Each that is passed over will use the slots that are free next, so those behind wait longer, until
        something that can begin now, such as a load, costs less. The more were looked at to no purpose, the
        more are passed over, so a long queue takes no longer.
        """
        chosen = missed.chosen
        each = self._seconds(chosen, missed.request) / max(1, self._slots(kind))
        if self._is_small():
            enough = 0.0
        elif self._has_ready(kind):  # it waits for its prefix, say, where those behind have none
            enough = 2.0 ** max(0, kind.misses - FEW_MISSES) - 1
        else:
            saves = [cost.total - chosen.total for cost in missed.costs if cost.quote.now_open]
            saves += [node.load_seconds(kind.model) - chosen.total for node in missed.unasked]
            enough = max(min(saves, default=math.inf) / each, 2 ** (kind.misses - 1) - 1)
        passed = int(min(enough, len(kind.waiting) - kind.seen))
        kind.seen += passed
        self._delays[kind.model] += (passed + (chosen.quote.reused is not None)) * each

    def _price(self, kind: Kind) -> float:
        """What a second of a slot costs those who wait behind, in seconds: each waits for its share of it."""
        behind = len(kind.waiting) - kind.seen
        slots = self._slots(kind) if behind else 0
        return behind / slots if slots else 0.0

    def _slots(self, kind: Kind) -> int:
        """The slots of all nodes that have the model in memory."""
        warm = self._timelines.warm
        return sum([warm[blob].slots for blob in kind.having.blobs if blob in warm])

    def _costs(self, entry: WaitingRequest, kind: Kind, *, pressing: bool) -> list[NodeCost]:
        """The costs that may be the least: nodes that load are asked when waiting takes as long."""
        key, price = (kind.model, entry.kind, entry.request.max_output), self._price(kind)
        warm = self._warm(kind, entry.request)
        costs = self._ask(warm, key, entry.request, price, pressing=pressing)
        kind.cold = [node for node in kind.cold if not node.changed] or self._cold(kind)
        if not kind.cold:
            return costs
        best = min([cost.total for cost in costs], default=math.inf)
        shortest_load = min([node.load_seconds(kind.model) for node in kind.cold])
        enough = best * (1 + self.policy.tie_share) < shortest_load
        if entry.request.background or not enough:
            cold = self._ask(kind.cold, key, entry.request, price, pressing=pressing)
            costs += cold
            kind.cold = [cost.node for cost in sorted(cold, key=_total)[:FEW_BUSY]]
        return costs

    def _warm(self, kind: Kind, request: FleetRequest) -> list[VirtualNode]:
        """Of the nodes that have the model in memory those that hold the prompt, and those free first."""
        most, nodes = self.policy.candidates, self._timelines.nodes
        found: dict[str, VirtualNode] = {}
        for name in self._view.holders_of(request.blocks):
            if name in nodes and nodes[name].has(kind.model):
                found[name] = nodes[name]
        for blob in kind.having.blobs:
            if warm := self._timelines.warm.get(blob):
                ready = warm.ready
                found |= ready if len(ready) <= most else dict(self.dice.sample(list(ready.items()), most))
                for _, name in warm.busy[:FEW_BUSY]:
                    found[name] = nodes[name]
        return [node for name, node in found.items() if name not in kind.tried and node.has(kind.model)]

    def _cold(self, kind: Kind) -> list[VirtualNode]:
        """Some nodes that could load the model now, and those that can do so next."""
        found: list[VirtualNode] = []
        next_ones = FEW_BUSY
        for loads_now, name in self._timelines.loading_first():
            node = self._timelines.nodes[name]
            if kind.model in node.view.models and name not in kind.tried and not node.has(kind.model):
                next_ones -= not loads_now
                if next_ones < 0 or len(found) == self.policy.candidates:
                    break
                found.append(node)
        return found

    def _ask(
        self,
        nodes: Sequence[VirtualNode],
        key: QuoteKey,
        request: FleetRequest,
        price: float,
        *,
        pressing: bool,
    ) -> list[NodeCost]:
        """What each of some nodes would cost a request. Most of a decision's time is spent here."""
        costs: list[NodeCost] = []
        self._asked += len(nodes)
        blocks, tokens, background = request.blocks, request.tokens, request.background
        now, delay = self._view.now, self._delays[key[0]]
        for node in nodes:
            quote = node.quote(key, request)
            hit, own, hoped = 0, False, 0
            runner = quote.reused
            if runner is not None and blocks and len(runner.prefixes):
                newest = runner.keeps - runner.placed if runner.placed else None
                match = runner.prefixes.match(blocks, newest)
                hit, own, hoped = match.hit, match.own, match.hoped
            wait = max(0.0, quote.starts_at - now)
            if wait and runner is not None:
                wait += delay
            total = wait + quote.fixed + ((tokens - hit - hoped) * quote.pace + quote.head) * (1 + price)
            if not own and not pressing and (background or runner is None):
                total += quote.evict
            costs.append(NodeCost(total, wait, hit, own, node, quote))
        return costs

    def _choose(self, costs: Sequence[NodeCost], request: FleetRequest) -> NodeCost:
        """The cheapest, but a chat stays at home unless leaving saves enough.

        Of equals that which takes least from others, then by chance.
        """
        best = min(costs, key=_total)
        home = max((cost for cost in costs if cost.own), key=_hit, default=None)
        if home is not None:
            keeps = home.quote.now_open or not best.quote.now_open  # no free slot stays empty for a habit
            if keeps and home.total - best.total <= self._slack(home.total):
                best = home
        elif self.policy.unsynced_peers and (agreed := self._agreed(costs, best.total, request)):
            return agreed
        if best is home or not best.quote.now_open:
            return best
        limit = best.total * (1 + self.policy.tie_share)
        equal = [cost for cost in costs if cost.total <= limit and cost.quote.now_open]
        least = min([cost.harm for cost in equal])
        return self._among([cost for cost in equal if cost.harm <= least])

    def _slack(self, cost: float) -> float:
        """What leaving a place of this cost has to save."""
        return max(self.policy.hysteresis_seconds, self.policy.hysteresis_share * cost)

    def _agreed(self, costs: Sequence[NodeCost], best: float, request: FleetRequest) -> NodeCost | None:
        """Where any worker would put a chat that this one does not remember; None when there is no choice."""
        chat = request.chat
        if not chat or request.background:  # titles would overwrite the prefix that they are agreed for
            return None
        limit = best + self._slack(best)
        close = [cost for cost in costs if cost.total <= limit and cost.quote.reused and cost.quote.now_open]
        if len(close) < 2:  # noqa: PLR2004 - it takes two to choose
            return None
        total = sum([cost.node.running for cost in costs])
        weights = sum([cost.node.view.weight for cost in costs])
        free = [cost for cost in close if may_take(cost.node.running, total, cost.node.view.weight / weights)]
        return max(
            free, key=lambda cost: rendezvous_score(chat, cost.name, cost.node.view.weight), default=None
        )

    def _among(self, equal: Sequence[NodeCost]) -> NodeCost:
        """One of them by chance, as often as their nodes' weights say."""
        if len(equal) == 1:
            return equal[0]
        return self.dice.choices(equal, [cost.node.view.weight for cost in equal])[0]

    @staticmethod
    def _seconds(chosen: NodeCost, request: FleetRequest) -> float:
        """How long a request holds a slot."""
        rates = chosen.quote.rates
        output = predict_output(rates, background=request.background, limit=request.max_output)
        return chosen.prompt(request.tokens) + output * rates.token

    def _take(self, chosen: NodeCost, request: FleetRequest) -> None:
        quote, node = chosen.quote, chosen.node
        node.place(quote, request, self._seconds(chosen, request))
        self._touch(node)
        if quote.reused is None:
            self._loaded(quote)

    def _touch(self, node: VirtualNode) -> None:
        self._touched[node.view.name] = node
        self._timelines.list_again(node)

    def _loaded(self, quote: Quote) -> None:
        """A model was loaded on a timeline: what evicting it elsewhere costs has changed."""
        held = self._timelines.moment.held
        if self._held is None:
            self._held = held.copy()
        held.update([quote.blob])
        held.subtract(quote.victims)
        for blob in quote.victims:
            warm = self._timelines.warm.get(blob)
            names = [*warm.ready, *[name for _, name in warm.busy]] if warm else []
            if len(names) <= self.policy.candidates:  # of more than that, one less changes little
                for name in names:
                    self._timelines.nodes[name].forget_quotes()


def warm_load(
    view: FleetView, node: NodeView, request: FleetRequest, policy: RoutingPolicy, kept: Collection[str]
) -> Assignment | None:
    """A load at a node that nobody waits for; None: not now.

    It begins only where the node is free to load, and unloads nothing that anybody has asked for lately, and
    none of the weights that are `kept` likewise: two that do not fit would evict each other for ever.
    """
    held = Counter(runner.blob for one in view.nodes for runner in one.runners)
    virtual = VirtualNode(node, TimelineContext(policy, view.now, view.demand, view.returns, held))
    quote = virtual.quote((request.models[0], "warm", 0), request)
    if not quote.now_open or not quote.load or quote.evict > MOST_TAKEN_BY_WARMTH:
        return None
    if any(blob in kept for blob in quote.victims):
        return None
    return _load_assignment(request, virtual, quote, view.now, policy)


def _load_assignment(
    request: FleetRequest, node: VirtualNode, quote: Quote, now: float, policy: RoutingPolicy
) -> Assignment:
    """The assignment of a load that nobody waits for."""
    entry = WaitingRequest(request, request.models, 0.0, 0.0, 0, now)
    cost = NodeCost(quote.fixed, 0.0, 0, False, node, quote)  # noqa: FBT003 - `own`
    return Assignment(entry, request.models[0], cost, (cost,), (), True, policy)  # noqa: FBT003 - `starts`


def _total(cost: NodeCost) -> float:
    return cost.total


def _hit(cost: NodeCost) -> int:
    return cost.hit
