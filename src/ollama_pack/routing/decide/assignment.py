"""A decision that was made: which node a request goes to, and what all nodes would have cost."""

from dataclasses import dataclass, field
from typing import Self

from ollama_pack.routing.decide.cost import CostTerms
from ollama_pack.routing.decide.node_timeline import VirtualNode
from ollama_pack.routing.decide.planner import Placement
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import FleetRequest


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
    loads: bool
    hit: int
    terms: CostTerms
    waited: float
    placement: Placement = field(repr=False, compare=False)
    policy: RoutingPolicy = field(repr=False, compare=False)

    @classmethod
    def made_by(cls, placement: Placement, waited: float, policy: RoutingPolicy) -> Self:
        """What follows from a placement that binds."""
        offer = placement.chosen
        return cls(
            request=placement.entry.request,
            node=offer.node.view.name,
            model=offer.model,
            loads=offer.quote.reused is None,
            hit=offer.hit,
            terms=offer.terms(policy),
            waited=waited,
            placement=placement,
            policy=policy,
        )

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
