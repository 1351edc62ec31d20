"""Late binding on a virtual timeline: which of the waiting requests begin now, and where.

Go through them in fair order. For each, predict what every node would cost it, given that those ahead are
already placed. If the best node can begin now, it goes there; if not, place the request there virtually and
go on, so that those behind see the true queue. A request that does not start may choose otherwise the next
time.

Work conserving: while a node that has the model in memory has a free slot, a request waits only if it starts
sooner elsewhere. The prefix that it overwrites there is spared by background calls, and among equal nodes:
holding people back for it has cost more than it saved on every trace.

Bounded: requests that no open node could serve are passed over, few of each kind are looked at, and of many
nodes a sample is asked. Timelines are kept from one decision to the next until their nodes change.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Self

from ollama_pack.routing.decide.assignment import Assignment, NodeCost
from ollama_pack.routing.decide.cost import predict_output
from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.node_timeline import Quote, QuoteKey, TimelineContext, VirtualNode
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.rendezvous import may_take, rendezvous_score
from ollama_pack.routing.decide.view import FleetRequest, FleetView


@dataclass(slots=True)
class Candidates:
    """The nodes that have a model: in memory, and only on disk; and the seconds of the shortest load."""

    warm: list[VirtualNode]
    cold: list[VirtualNode]
    shortest_load: float = math.inf

    def __bool__(self) -> bool:
        return bool(self.warm or self.cold)

    def move(self, node: VirtualNode, *, warm: bool) -> None:
        """A node has loaded the model, or has unloaded it."""
        old, new = (self.cold, self.warm) if warm else (self.warm, self.cold)
        if node in old:
            old.remove(node)
            new.append(node)

    def without(self, names: Collection[str]) -> Self:
        """All except the nodes of these names."""
        warm = [node for node in self.warm if node.view.name not in names]
        cold = [node for node in self.cold if node.view.name not in names]
        return replace(self, warm=warm, cold=cold)


@dataclass(slots=True)
class Kind:
    """The waiting requests of one kind, in one decision.

    Attributes:
        model: which of their models answers.
        candidates: the nodes.
        waiting: how many there are, and
        stride: one in so many is looked at, of those behind the first few.
        seen: how many of them the walk has passed.
        next_look: which of them is looked at next.
        known_at: the count of changes for which these hold:
        able: some open node has the model, and
        free: one has it in memory, and a slot free.
    """

    model: str
    candidates: Candidates
    waiting: int = 0
    stride: int = 1
    seen: int = 0
    next_look: int = 1
    known_at: int = -1
    able: bool = False
    free: bool = False


class Timelines:
    """The nodes' futures, kept from one decision to the next until their nodes change."""

    def __init__(self, policy: RoutingPolicy) -> None:
        self.moment = TimelineContext(policy)
        self.nodes: dict[str, VirtualNode] = {}
        self.open: set[str] = set()
        self.roomy: set[str] = set()
        self._having: dict[str, list[str]] = {}
        self._opening: dict[str, float] = {}

    def follow(self, view: FleetView) -> None:
        """Take in how the fleet looks now."""
        moment = self.moment
        moment.now, moment.demand, moment.returns = view.now, view.demand, view.returns
        names = {node.name for node in view.nodes} if view.changed is None else view.changed
        if view.changed is None:
            for name in [name for name in self.nodes if name not in names]:
                self._drop(name)
        for node in view.nodes if view.changed is None else [view.by_name[name] for name in names]:
            known = self.nodes.get(node.name)
            if known is None or known.view is not node or known.changed:
                self._renew(node.name, view)
        for name in [name for name, known in self._opening.items() if known <= view.now]:
            self._look(name)

    def _renew(self, name: str, view: FleetView) -> None:
        before, node = self.nodes.get(name), view.by_name[name]
        if before is not None:
            self.moment.held.subtract([runner.blob for runner in before.view.runners])
        if node.weight <= 0:
            self.nodes.pop(name, None)
            self._having.clear()
            self.open.discard(name)
            self.roomy.discard(name)
            self._opening.pop(name, None)
            return
        if before is None or before.view.models is not node.models:
            self._having.clear()
        self.moment.held.update([runner.blob for runner in node.runners])
        self.nodes[name] = VirtualNode(node, self.moment)
        self._look(name)

    def _drop(self, name: str) -> None:
        gone = self.nodes.pop(name)
        self.moment.held.subtract([runner.blob for runner in gone.view.runners])
        self._having.clear()
        self.open.discard(name)
        self.roomy.discard(name)
        self._opening.pop(name, None)

    def _look(self, name: str) -> None:
        """See whether a node can begin anything, and when it may look otherwise."""
        node = self.nodes[name]
        self.note_open(node)
        opens_at = node.opens_at()
        if opens_at < math.inf:
            self._opening[name] = opens_at
        else:
            self._opening.pop(name, None)

    def note_open(self, node: VirtualNode) -> None:
        """See whether a node can begin anything, and whether it has room for a model more."""
        name = node.view.name
        if node.is_open():
            self.open.add(name)
        else:
            self.open.discard(name)
        if node.has_room():
            self.roomy.add(name)
        else:
            self.roomy.discard(name)

    def restore(self, view: FleetView, touched: Iterable[VirtualNode], held: Counter[str]) -> None:
        """What was placed on the timelines was a thought: forget it."""
        self.moment.held = held
        for node in touched:
            self._renew(node.view.name, view)

    def having(self, model: str) -> list[str]:
        """The names of the nodes that have a model."""
        found = self._having.get(model)
        if found is None:
            if len(self._having) > MAX_MODELS:
                self._having.clear()
            found = [name for name, node in self.nodes.items() if model in node.view.models]
            self._having[model] = found
        return found


MAX_MODELS = 256  # whose nodes are remembered


@dataclass(slots=True)
class Planner:
    """Decides again and again, over views of one fleet. What it keeps between decisions only saves time.

    Attributes:
        policy: weights and bounds.
        dice: breaks ties.
        ahead: loads that nobody waits for, which had better begin now.
        exhausted: the last decision has reached its bound before it had seen all: decide again soon.
    """

    policy: RoutingPolicy
    dice: Random
    holds_back = True
    _timelines: Timelines = field(init=False)
    _view: FleetView = field(init=False)
    _kinds: dict[str, Kind] = field(init=False, default_factory=dict)
    _touched: dict[str, VirtualNode] = field(init=False, default_factory=dict)
    _held: Counter[str] | None = field(init=False, default=None)
    _changes: int = field(init=False, default=0)
    _asked: int = field(init=False, default=0)
    ahead: list[Assignment] = field(init=False, default_factory=list)
    exhausted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._timelines = Timelines(self.policy)

    def plan(
        self,
        view: FleetView,
        waiting: Sequence[WaitingRequest],
        may_start: Callable[[WaitingRequest], bool] = lambda _: True,
    ) -> list[Assignment]:
        """Assign nodes to requests until nothing more can begin now.

        Args:
            view: the fleet at this moment.
            waiting: the requests in fair order.
            may_start: whether a request need not wait behind people (any more).

        Returns:
            The assignments of those that were looked at; those that `starts` begin now.
        """
        self._begin(view)
        found = self._walk(waiting, may_start)
        self.ahead = self._loads_ahead(found)
        self._end()
        return found

    def _begin(self, view: FleetView) -> None:
        self._view = view
        self._timelines.follow(view)
        self._kinds, self._touched, self._held = {}, {}, None
        self._asked, self.exhausted = 0, False

    def _end(self) -> None:
        if self._touched:
            held = self._timelines.moment.held if self._held is None else self._held
            self._timelines.restore(self._view, self._touched.values(), held)

    def _walk(
        self, waiting: Sequence[WaitingRequest], may_start: Callable[[WaitingRequest], bool]
    ) -> list[Assignment]:
        if not self._timelines.open:
            return []
        found: list[Assignment] = []
        counts, kinds, looks = Counter([entry.kind for entry in waiting]), self._kinds, 0
        for entry in waiting:
            kind = kinds.get(entry.kind) or self._kind_of(entry, counts[entry.kind])
            kind.seen += 1
            if kind.known_at != self._changes:
                self._see_what_is_open(kind, entry)
            if not kind.able or (kind.seen < kind.next_look and not kind.free):
                continue
            crowd = self._crowd(kind)
            if assignment := self.assign(entry, kind, ripe=may_start(entry), crowd=crowd):
                looks += 1
                found.append(assignment)
            if not self._timelines.open:
                break
            if self._asked >= self.policy.most_costs and looks >= self.policy.window:
                self.exhausted = True
                break
        return found

    def _loads_ahead(self, found: Sequence[Assignment]) -> list[Assignment]:
        """Loads of models whose slots fill up, where nothing is unloaded for them and nobody has to wait.

        They take nothing from anybody, except that the last node with room is left to models that no node has
        in memory.
        """
        if not self._timelines.roomy:
            return []
        asked = {one.entry.kind: one for one in found if not one.request.background}
        return [load for one in asked.values() for load in self._loads_for(one)]

    def _loads_for(self, assignment: Assignment) -> Iterator[Assignment]:
        """The loads of one model, given the choice for a request that asks for it."""
        kind, request = self._kinds[assignment.entry.kind], assignment.request
        warm, roomy = kind.candidates.warm, self._timelines.roomy
        slots = sum([self._slots_of(node, kind.model) for node in warm])
        busy = kind.waiting + sum([node.answers(kind.model) for node in warm])
        nearest = min([node.view.tier for node in warm], default=-1)
        left = len(roomy)
        for node in kind.candidates.cold:
            if busy <= max(1.0, self.policy.prewarm_share * slots):
                return
            if node.view.name not in roomy or node.view.tier > nearest:
                continue
            if left == 1 and self._leaves_models_out(node, kind.model):
                return
            quote = node.quote((kind.model, assignment.entry.kind, request.max_output), request)
            if quote.now_open and quote.load and not quote.victims:
                slots += quote.rates.slots
                left -= 1
                yield self._load(node, quote, assignment)

    def _leaves_models_out(self, node: VirtualNode, model: str) -> bool:
        """Whether a node has other models that no node has in memory."""
        held, own = self._timelines.moment.held, node.view.models[model].blob
        return any(not held[other.blob] for other in node.view.models.values() if other.blob != own)

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
        entry = WaitingRequest(load, models, 0.0, 0.0, 0, self._view.now)
        cost = NodeCost(quote.fixed, 0.0, 0, False, node, quote)  # noqa: FBT003 - `own`
        return Assignment(entry, assignment.asked_for, cost, (cost,), (), True, self.policy)  # noqa: FBT003 - `starts`

    def _kind_of(self, entry: WaitingRequest, waiting: int) -> Kind:
        behind = max(0, waiting - self.policy.window)
        stride = max(self.policy.crowd, math.ceil(behind / self.policy.samples))
        kind = self._kinds[entry.kind] = Kind(*self._able(entry), waiting, stride)
        return kind

    def _see_what_is_open(self, kind: Kind, entry: WaitingRequest) -> None:
        """Whether any open node has the model, and whether one has it in memory and a slot free."""
        kind.known_at, kind.able, kind.free = self._changes, False, False
        nodes = self._timelines.nodes
        for name in self._timelines.open:
            node = nodes[name]
            model = node.view.models.get(kind.model)
            if model is not None and name not in entry.tried:
                kind.able = True
                if node.serves_now(model.blob):
                    kind.free = True
                    return

    def _crowd(self, kind: Kind) -> int:
        """How many a request stands for, so that a long queue takes no longer.

        The first few of a kind stand for themselves; of those behind, one in a number of them stands for all.
        One that is looked at only because a slot is free stands for itself.
        """
        if kind.seen < kind.next_look or kind.seen <= self.policy.window:
            kind.next_look = max(kind.next_look, kind.seen + 1)
            return 1
        kind.next_look = kind.seen + kind.stride
        return min(kind.stride, kind.waiting - kind.seen + 1)

    def assign(self, entry: WaitingRequest, kind: Kind, *, ripe: bool, crowd: int = 1) -> Assignment | None:
        """Place one request on the timelines, for `crowd` of its kind; None when no node may answer it."""
        request, policy, now = entry.request, self.policy, self._view.now
        model, candidates = kind.model, kind.candidates
        if entry.tried:
            candidates = candidates.without(entry.tried)
        if not candidates:
            return None
        key = (model, entry.kind, request.max_output)
        pressing = entry.overtaken >= policy.overtake_limit
        price = self._price(kind)
        costs = self._costs(candidates, key, request, price, pressing=pressing)
        chosen = self._choose(costs, request)
        may_harm = policy.background_cost_rate * (now - entry.came)
        starts = chosen.quote.now_open and (ripe or chosen.harm <= may_harm)
        if ripe or starts:
            self._take(chosen, request)
            if not starts and crowd > 1:
                self._delay(kind, (crowd - 1) * self._seconds(chosen, request))
        if pressing and not starts:
            chosen.node.reserve()
            self._touch(chosen.node)
            self._timelines.open.discard(chosen.name)
        asked = {cost.name for cost in costs}
        unasked = [node for node in candidates.cold if node.view.name not in asked]
        return Assignment(entry, model, chosen, costs, unasked, starts, policy, now - entry.came)

    def _price(self, kind: Kind) -> float:
        """What a second of a slot costs those who wait behind, in seconds: each waits for its share of it."""
        behind = kind.waiting - kind.seen
        slots = sum([self._slots_of(node, kind.model) for node in kind.candidates.warm]) if behind else 0
        return behind / slots if slots else 0.0

    @staticmethod
    def _slots_of(node: VirtualNode, model: str) -> int:
        runner = node.runners.get(node.view.models[model].blob)
        return runner.slots if runner else 0

    def _able(self, entry: WaitingRequest) -> tuple[str, Candidates]:
        """The first model that any node has, and the nodes."""
        for model in entry.models:
            found = self._nodes_with(model)
            if found and (not entry.tried or found.without(entry.tried)):
                return model, found
        return "", Candidates([], [])

    def _nodes_with(self, model: str) -> Candidates:
        found = Candidates([], [])
        nodes = self._timelines.nodes
        for name in self._timelines.having(model):
            node = nodes[name]
            blob = node.view.models[model].blob
            if blob in node.runners:
                found.warm.append(node)
            else:
                found.cold.append(node)
                found.shortest_load = min(found.shortest_load, node.view.rates[blob].load)
        return found

    def _costs(
        self, candidates: Candidates, key: QuoteKey, request: FleetRequest, price: float, *, pressing: bool
    ) -> list[NodeCost]:
        """The costs that may be the least: nodes that load are asked when waiting takes as long."""
        warm = self._some(candidates.warm, request)
        costs = self._ask(warm, key, request, price, pressing=pressing)
        best = min([cost.total for cost in costs], default=math.inf)
        enough = best * (1 + self.policy.tie_share) < candidates.shortest_load
        if request.background or not enough:
            cold = self._some(candidates.cold, request)
            costs += self._ask(cold, key, request, price, pressing=pressing)
        return costs

    def _some(self, nodes: Sequence[VirtualNode], request: FleetRequest) -> Sequence[VirtualNode]:
        """Of many nodes those that hold the prompt, and a sample of the others, open ones first."""
        most = self.policy.candidates
        if len(nodes) <= most:
            return nodes
        is_open = self._timelines.open
        holders = self._view.holders_of(request.blocks)
        chosen = [node for node in nodes if node.view.name in holders] if holders else []
        free = [node for node in nodes if node.view.name in is_open]
        if len(free) > most:
            free = self.dice.sample(free, most)
        rest = most - len(free)
        others = self.dice.sample(nodes, rest) if rest > 0 else []
        return list({node.view.name: node for node in (*chosen, *free, *others)}.values())

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
        now = self._view.now
        for node in nodes:
            quote = node.quote(key, request)
            hit, own, hoped = 0, False, 0
            runner = quote.reused
            if runner is not None and blocks and len(runner.prefixes):
                newest = runner.keeps - runner.placed if runner.placed else None
                match = runner.prefixes.match(blocks, newest)
                hit, own, hoped = match.hit, match.own, match.hoped
            wait = max(0.0, quote.starts_at - now)
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

    def _delay(self, kind: Kind, seconds: float) -> None:
        """Those that a request stands for are spread over all nodes that have the model in memory."""
        slots = sum([self._slots_of(node, kind.model) for node in kind.candidates.warm])
        for node in kind.candidates.warm:
            self._touch(node)
            node.delay(node.view.models[kind.model].blob, seconds / slots)

    def _take(self, chosen: NodeCost, request: FleetRequest) -> None:
        quote, node = chosen.quote, chosen.node
        self._touch(node)
        node.place(quote, request, self._seconds(chosen, request))
        if quote.reused is None:
            self._loaded(chosen)
        self._timelines.note_open(node)

    def _touch(self, node: VirtualNode) -> None:
        self._touched[node.view.name] = node
        self._changes += 1

    def _loaded(self, chosen: NodeCost) -> None:
        """A model was loaded on a timeline: what evicting it elsewhere costs has changed."""
        held = self._timelines.moment.held
        if self._held is None:
            self._held = held.copy()
        quote = chosen.quote
        held.update([quote.blob])
        held.subtract(quote.victims)
        for kind in self._kinds.values():
            model = chosen.node.view.models.get(kind.model)
            if model is not None and model.blob == quote.blob:
                kind.candidates.move(chosen.node, warm=True)
            elif model is not None and model.blob in quote.victims:
                kind.candidates.move(chosen.node, warm=False)
        if quote.victims:
            for node in self._timelines.nodes.values():
                if not node.runners.keys().isdisjoint(quote.victims):
                    node.forget_quotes()


def _total(cost: NodeCost) -> float:
    return cost.total


def _hit(cost: NodeCost) -> int:
    return cost.hit
