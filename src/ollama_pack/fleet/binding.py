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

from ollama_pack.fleet.cost import CostTerms, predict_output
from ollama_pack.fleet.policy import RoutingPolicy
from ollama_pack.fleet.prefix import prefix_hit
from ollama_pack.fleet.queue import WaitingRequest
from ollama_pack.fleet.timeline import Quote, VirtualNode
from ollama_pack.fleet.view import FleetRequest, FleetView


@dataclass(slots=True)
class Offer:
    """What one node would cost one request.

    Attributes:
        total: C, which the choice goes by.
        node: the node.
        model: the name by which the node knows the model.
        quote: what the node offers to any request.
        hit: tokens of the prompt that need no evaluation.
        own: they are this chat's own, not only a system prompt that chats share.
        prompt: seconds to evaluate the rest.
    """

    total: float
    node: VirtualNode
    model: str
    quote: Quote
    hit: int
    own: bool
    prompt: float

    @property
    def harm(self) -> float:
        """Seconds that others lose. A chat that goes on overwrites nothing but its own prefix."""
        return 0.0 if self.own else self.quote.evict

    def terms(self, policy: RoutingPolicy) -> CostTerms:
        """C, term by term."""
        quote = self.quote
        tier = policy.tier_seconds * self.node.view.tier
        return CostTerms(quote.wait, quote.load, self.prompt, quote.decode, self.harm, tier)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes: now, when `binds`, else as things stand.

    Attributes:
        entry: the request that waits.
        chosen: the offer that was taken.
        offers: all that were considered.
        binds: it begins now.
    """

    entry: WaitingRequest
    chosen: Offer
    offers: tuple[Offer, ...]
    binds: bool


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
    """One walk through the waiting requests, over a view that does not change meanwhile."""

    def __init__(self, view: FleetView, policy: RoutingPolicy, dice: Random) -> None:
        self._view = view
        self._policy = policy
        self._dice = dice
        self._held = Counter(runner.blob for node in view.nodes for runner in node.runners)
        self._nodes = [VirtualNode(node, view, self._held, policy) for node in view.nodes if node.weight > 0]
        self._open = {node.view.name for node in self._nodes if node.is_open()}
        self._having: dict[str, Able] = {}

    def bind(
        self, waiting: Sequence[WaitingRequest], is_ripe: Callable[[WaitingRequest], bool]
    ) -> list[Placement]:
        """Place requests until nothing more can begin now; those that begin are the ones that bind."""
        placed = []
        for entry, crowd in self._looked_at(waiting):
            if not self._open:
                break
            placement = self.place(entry, ripe=is_ripe(entry), crowd=crowd)
            if placement:
                placed.append(placement)
        return placed

    def _looked_at(self, waiting: Sequence[WaitingRequest]) -> Iterator[tuple[WaitingRequest, int]]:
        """The requests to place, each with how many it stands for, so that a long queue takes no longer.

        The first `window` stand for themselves; of those behind, one in `crowd` of each kind stands for all.
        """
        window, most = self._policy.window, self._policy.crowd
        yield from ((entry, 1) for entry in waiting[:window])
        behind = Counter(entry.kind for entry in waiting[window:])
        passed: Counter[tuple[object, ...]] = Counter()
        for entry in waiting[window:]:
            if passed[entry.kind] % most == 0:
                yield entry, min(most, behind[entry.kind] - passed[entry.kind])
            passed[entry.kind] += 1

    def place(self, entry: WaitingRequest, *, ripe: bool, crowd: int = 1) -> Placement | None:
        """Place one request on the timeline, for `crowd` of its kind; None when no node may answer it."""
        request = entry.request
        model, able = self._able(entry)
        if not able.warm and not able.cold:
            return None
        pressing = entry.overtaken >= self._policy.overtake_limit
        offers = self._offers(able, model, request, pressing=pressing)
        chosen = self._choose(offers)
        may_harm = self._policy.background_harm * (self._view.now - entry.came)
        binds = chosen.quote.starts_now and (ripe or chosen.harm <= may_harm)
        if binds:  # the explanation names every node
            known = {offer.node: offer for offer in offers}
            offers = [
                known.get(node) or self._offer(node, model, request, pressing=pressing)
                for node in (*able.warm, *able.cold)
            ]
        if ripe or binds:
            self._take(chosen, request, 1 if binds else crowd)
        if pressing and not binds:
            chosen.node.reserve()
            self._open.discard(chosen.node.view.name)
        return Placement(entry, chosen, tuple(offers), binds)

    def _able(self, entry: WaitingRequest) -> tuple[str, Able]:
        """The first model that any node has, and the nodes."""
        for model in entry.request.models:
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
            nodes = [node for node in self._nodes if model in node.view.models]
            warm = [node for node in nodes if node.view.models[model].blob in node.runners]
            cold = [node for node in nodes if node.view.models[model].blob not in node.runners]
            loads = [node.view.rates[node.view.models[model].blob].load for node in cold]
            found = self._having[model] = Able(warm, cold, min(loads, default=math.inf))
        return found

    def _offers(self, able: Able, model: str, request: FleetRequest, *, pressing: bool) -> list[Offer]:
        """The offers that may be the best: those that load are looked at when waiting takes as long."""
        offers = [self._offer(node, model, request, pressing=pressing) for node in able.warm]
        best = min([offer.total for offer in offers], default=math.inf)
        if request.background or best * (1 + self._policy.tie_share) >= able.shortest_load:
            offers += [self._offer(node, model, request, pressing=pressing) for node in able.cold]
        return offers

    def _offer(self, node: VirtualNode, model: str, request: FleetRequest, *, pressing: bool) -> Offer:
        quote = node.quote(model, request)
        hit, own = _best_hit(quote, request) if quote.reused and quote.reused.prefixes else (0, False)
        prompt = max(0, request.tokens - hit) * quote.pace + quote.head
        total = quote.base + prompt
        if not own and not pressing:
            total += quote.evict
        if request.background and quote.load and not quote.victims and self._is_short_of(quote):
            total -= quote.load  # nobody waits for it, and the next person finds one more node ready
        return Offer(total, node, model, quote, hit, own, prompt)

    def _is_short_of(self, quote: Quote) -> bool:
        """Whether the nodes that have the model in memory are busy with it for most of the time."""
        rates = quote.rates
        busy = self._view.demand.get(quote.blob, 0.0) * rates.service
        return busy > self._policy.prewarm_share * rates.slots * self._held[quote.blob]

    def _choose(self, offers: Sequence[Offer]) -> Offer:
        """The cheapest offer, but a chat stays at home unless leaving saves enough; equals by chance."""
        best = min([offer.total for offer in offers])
        home = max([offer for offer in offers if offer.own], key=_hit, default=None)
        if home:
            slack = max(self._policy.hysteresis_seconds, self._policy.hysteresis_share * home.total)
            if home.total - best <= slack:
                return home
        equal = [offer for offer in offers if offer.total <= best * (1 + self._policy.tie_share)]
        equal = [offer for offer in equal if offer.quote.starts_now] or equal
        if len(equal) == 1:
            return equal[0]
        return self._dice.choices(equal, [offer.node.view.weight for offer in equal])[0]

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


def _best_hit(quote: Quote, request: FleetRequest) -> tuple[int, bool]:
    """Tokens of the prompt that the runner holds, and whether it is the chat's own prefix."""
    best, own = 0, False
    for prefix in quote.reused.prefixes if quote.reused else ():
        hit = prefix_hit(prefix, request.blocks)
        if hit > best:
            best, own = hit, hit >= prefix.tokens
    return best, own


def _hit(offer: Offer) -> int:
    return offer.hit


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
    return BindingPass(view, policy, dice).bind(waiting, is_ripe)
