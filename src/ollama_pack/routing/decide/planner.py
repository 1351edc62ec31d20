"""Late binding on a virtual timeline: which of the waiting requests begin now, and where.

Go through them in fair order. For each, predict what every node would cost it, given that those ahead are
already placed. If the best node can begin now, bind; if not, place the request there virtually and go on, so
that those behind see the true queue. A request that is not bound may think otherwise the next time.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Self

from ollama_pack.routing.decide.cost import CostTerms, predict_output
from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.node_timeline import Quote, QuoteKey, VirtualNode
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.prefix import prefix_hit
from ollama_pack.routing.decide.rendezvous import may_take, rendezvous_score
from ollama_pack.routing.decide.view import FleetRequest, FleetView

# What a node would cost a request: total, hit, own, node and quote of the offer that it stands for. A tuple,
# because a decision looks at many and makes an `Offer` of one.
Bid = tuple[float, int, bool, VirtualNode, Quote]


@dataclass(slots=True)
class Offer:
    """What one node would cost one request.

    Attributes:
        total: C, which the choice goes by.
        node: the node.
        quote: what the node offers to any request.
        hit: tokens of the prompt that need no evaluation.
        own: they are this chat's own, not only a system prompt that chats share.
        prompt: seconds to evaluate the rest.
    """

    total: float
    node: VirtualNode
    quote: Quote
    hit: int
    own: bool
    prompt: float

    @property
    def model(self) -> str:
        """The name by which the node knows the model."""
        return self.quote.model

    @property
    def harm(self) -> float:
        """Seconds that others lose. A chat that goes on overwrites nothing but its own prefix."""
        return 0.0 if self.own else self.quote.evict

    def terms(self, policy: RoutingPolicy) -> CostTerms:
        """C, term by term."""
        quote = self.quote
        tier = policy.tier_seconds * self.node.view.tier
        return CostTerms(quote.wait, quote.load, self.prompt, quote.decode, self.harm, tier)


@dataclass(slots=True)
class Placement:
    """Where a request goes: now, when `binds`, else as things stand.

    Attributes:
        entry: the request that waits.
        model: which of its models answers, as `fold_name` makes it.
        chosen: the offer that was taken.
        bids: of all nodes that were asked.
        unasked: nodes whose load alone takes longer than what was chosen.
        binds: it begins now.
    """

    entry: WaitingRequest
    model: str
    chosen: Offer
    bids: Sequence[Bid]
    unasked: Sequence[VirtualNode]
    binds: bool

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Those of all nodes that were asked, the chosen one among them."""
        return tuple(_offer(bid, self.entry.request) for bid in self.bids)


@dataclass(slots=True)
class Able:
    """The nodes that have a model: in memory, and only on disk; and the seconds of the shortest load."""

    warm: list[VirtualNode]
    cold: list[VirtualNode]
    shortest_load: float

    def without(self, names: Collection[str]) -> Self:
        """All but the nodes of these names."""
        warm = [node for node in self.warm if node.view.name not in names]
        cold = [node for node in self.cold if node.view.name not in names]
        return replace(self, warm=warm, cold=cold)


class BindingPass:
    """One walk through the waiting requests, over a view that does not change meanwhile.

    Attributes:
        holds_back: nothing is bound while no node can begin anything.
    """

    holds_back = True

    def __init__(
        self,
        view: FleetView,
        policy: RoutingPolicy,
        dice: Random,
        is_ripe: Callable[[WaitingRequest], bool],
    ) -> None:
        self._view = view
        self._policy = policy
        self._dice = dice
        self._is_ripe = is_ripe
        self._held = Counter(runner.blob for node in view.nodes for runner in node.runners)
        self._nodes = [VirtualNode(node, view, self._held, policy) for node in view.nodes if node.weight > 0]
        self._open = {node.view.name for node in self._nodes if node.is_open()}
        self._having: dict[str, Able] = {}

    def bind(self, waiting: Sequence[WaitingRequest]) -> list[Placement]:
        """Place requests until nothing more can begin now; those that begin are the ones that bind."""
        placed = []
        for entry, crowd in self._looked_at(waiting):
            if not self._open:
                break
            placement = self.place(entry, ripe=self._is_ripe(entry), crowd=crowd)
            if placement:
                placed.append(placement)
        return placed

    def _looked_at(self, waiting: Sequence[WaitingRequest]) -> Iterator[tuple[WaitingRequest, int]]:
        """The requests to place, each with how many it stands for, so that a long queue takes no longer.

        The first `window` stand for themselves; of those behind, one in `crowd` of each kind stands for all.
        """
        window, most = self._policy.window, self._policy.crowd
        yield from ((entry, 1) for entry in waiting[:window])
        kinds = [entry.kind for entry in waiting[window:]]
        behind = Counter(kinds)
        passed = dict.fromkeys(behind, 0)
        for place, kind in enumerate(kinds, start=window):
            before = passed[kind]
            passed[kind] = before + 1
            if before % most == 0:
                yield waiting[place], min(most, behind[kind] - before)

    def place(self, entry: WaitingRequest, *, ripe: bool, crowd: int = 1) -> Placement | None:
        """Place one request on the timeline, for `crowd` of its kind; None when no node may answer it."""
        request = entry.request
        model, able = self._able(entry)
        if not able.warm and not able.cold:
            return None
        key = (model, entry.kind, request.max_output)
        pressing = entry.overtaken >= self._policy.overtake_limit
        bids = self._bids(able, key, request, pressing=pressing)
        chosen = _offer(self._choose(bids, request), request)
        may_harm = self._policy.background_harm * (self._view.now - entry.came)
        binds = chosen.quote.starts_now and (ripe or chosen.harm <= may_harm)
        if ripe or binds:
            self._take(chosen, request, 1 if binds else crowd)
        if pressing and not binds:
            chosen.node.reserve()
            self._open.discard(chosen.node.view.name)
        unasked = able.cold if len(bids) == len(able.warm) else []
        return Placement(entry, model, chosen, bids, unasked, binds)

    def _able(self, entry: WaitingRequest) -> tuple[str, Able]:
        """The first model that any node has, and the nodes."""
        for model in entry.models:
            able = self._nodes_with(model)
            if entry.tried:
                able = able.without(entry.tried)
            if able.warm or able.cold:
                return model, able
        return "", Able([], [], math.inf)

    def _nodes_with(self, model: str) -> Able:
        """The nodes that have a model, remembered until something is loaded on the timeline."""
        found = self._having.get(model)
        if found is None:
            found = self._having[model] = Able([], [], math.inf)
            for node in self._nodes:
                installed = node.view.models.get(model)
                if installed is None:
                    continue
                if installed.blob in node.runners:
                    found.warm.append(node)
                else:
                    found.cold.append(node)
                    found.shortest_load = min(found.shortest_load, node.view.rates[installed.blob].load)
        return found

    def _bids(self, able: Able, key: QuoteKey, request: FleetRequest, *, pressing: bool) -> list[Bid]:
        """The bids that may be the best: nodes that load are asked when waiting takes as long."""
        bids = self._ask(able.warm, key, request, pressing=pressing)
        best = min([bid[0] for bid in bids], default=math.inf)
        if request.background or best * (1 + self._policy.tie_share) >= able.shortest_load:
            bids += self._ask(able.cold, key, request, pressing=pressing)
        return bids

    def _ask(
        self, nodes: Sequence[VirtualNode], key: QuoteKey, request: FleetRequest, *, pressing: bool
    ) -> list[Bid]:
        """What each of some nodes would cost a request. Most of a decision's time is spent here."""
        bids: list[Bid] = []
        blocks, tokens, background = request.blocks, request.tokens, request.background
        for node in nodes:
            quote = node.quotes.get(key) or node.quote(key, request)
            hit, own = 0, False
            for prefix in quote.prefixes:
                covered = prefix_hit(prefix, blocks)
                if covered > hit:
                    hit, own = covered, covered >= prefix.tokens
            total = quote.base + (tokens - hit) * quote.pace + quote.head
            if not own and not pressing:
                total += quote.evict
            if background and quote.load and not quote.victims and self._is_short_of(quote):
                total -= quote.load  # nobody waits for it, and the next person finds one more node ready
            bids.append((total, hit, own, node, quote))
        return bids

    def _is_short_of(self, quote: Quote) -> bool:
        """Whether the nodes that have the model in memory are busy with it for most of the time."""
        rates = quote.rates
        busy = self._view.demand.get(quote.blob, 0.0) * rates.service
        return busy > self._policy.prewarm_share * rates.slots * self._held[quote.blob]

    def _choose(self, bids: Sequence[Bid], request: FleetRequest) -> Bid:
        """The cheapest bid, but a chat stays at home unless leaving saves enough; equals by chance."""
        best = min([bid[0] for bid in bids])
        if home := [bid for bid in bids if bid[2]]:
            nearest = max(home, key=_hit)
            if nearest[0] - best <= self._slack(nearest[0]):
                return nearest
        elif self._policy.unheard_peers and (agreed := self._agreed(bids, best, request)):
            return agreed
        limit = best * (1 + self._policy.tie_share)
        equal = [bid for bid in bids if bid[0] <= limit]
        if len(equal) > 1:
            equal = [bid for bid in equal if bid[4].starts_now] or equal
        return self._among(equal)

    def _slack(self, cost: float) -> float:
        """What leaving a place of this cost has to save."""
        return max(self._policy.hysteresis_seconds, self._policy.hysteresis_share * cost)

    def _agreed(self, bids: Sequence[Bid], best: float, request: FleetRequest) -> Bid | None:
        """Where any worker would put a chat that this one does not remember; None when there is no choice."""
        chat = request.chat
        if not chat or request.background:  # titles would overwrite the prefix that they are agreed for
            return None
        limit = best + self._slack(best)
        close = [bid for bid in bids if bid[0] <= limit and bid[4].reused and bid[4].starts_now]
        if len(close) < 2:  # noqa: PLR2004 - it takes two to choose
            return None
        total = sum([bid[3].running for bid in bids])
        weights = sum([bid[3].view.weight for bid in bids])
        free = [bid for bid in close if may_take(bid[3].running, total, bid[3].view.weight / weights)]
        return max(
            free, key=lambda bid: rendezvous_score(chat, bid[3].view.name, bid[3].view.weight), default=None
        )

    def _among(self, equal: Sequence[Bid]) -> Bid:
        """One of them by chance, as often as their nodes' weights say."""
        if len(equal) == 1:
            return equal[0]
        return self._dice.choices(equal, [bid[3].view.weight for bid in equal])[0]

    def _all_bids(self, entry: WaitingRequest) -> list[Bid]:
        """Those of all nodes, for the strategies that do not go by cost."""
        model, able = self._able(entry)
        key = (model, entry.kind, entry.request.max_output)
        return self._ask([*able.warm, *able.cold], key, entry.request, pressing=False)

    def _give(self, entry: WaitingRequest, bid: Bid, bids: Sequence[Bid]) -> Placement:
        """Let a request begin where a strategy has decided."""
        chosen = _offer(bid, entry.request)
        self._take(chosen, entry.request, 1)
        return Placement(entry, self._able(entry)[0], chosen, bids, (), binds=True)

    def _take(self, offer: Offer, request: FleetRequest, crowd: int) -> None:
        quote, name = offer.quote, offer.node.view.name
        output = predict_output(quote.rates, background=request.background, limit=request.max_output)
        offer.node.place(quote, request, crowd * (offer.prompt + output * quote.rates.token))
        if quote.reused is None:
            self._having.clear()
            self._held.update([quote.blob])
            self._held.subtract(quote.victims)
            for node in self._nodes:  # evicting the same model elsewhere now costs more
                if not node.runners.keys().isdisjoint(quote.victims):
                    node.forget_quotes()
        if name in self._open and not offer.node.is_open():
            self._open.discard(name)


def _hit(bid: Bid) -> int:
    return bid[1]


def _offer(bid: Bid, request: FleetRequest) -> Offer:
    total, hit, own, node, quote = bid
    return Offer(total, node, quote, hit, own, (request.tokens - hit) * quote.pace + quote.head)


def plan_bindings(
    view: FleetView,
    waiting: Sequence[WaitingRequest],
    policy: RoutingPolicy,
    dice: Random,
    is_ripe: Callable[[WaitingRequest], bool] = lambda _: True,
) -> list[Placement]:
    """Decide which waiting requests begin now: a pure function but for the dice.

    Args:
        view: the fleet at this moment.
        waiting: the requests in fair order.
        policy: weights and bounds.
        dice: breaks ties.
        is_ripe: whether a request need not wait behind people (any more).
    """
    return BindingPass(view, policy, dice, is_ripe).bind(waiting)
