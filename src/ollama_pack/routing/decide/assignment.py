"""The choice of a node for one request: what each node would cost it, and which one it goes to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ollama_pack.routing.decide.cost import CostTerms
from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.node_timeline import Quote, VirtualNode
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import FleetRequest

ConsideredNode = tuple[str, str, CostTerms]  # the node, the model's name there, its cost


@dataclass(slots=True)
class NodeCost:
    """What one node would cost one request.

    Attributes:
        total: what the choice goes by.
        wait: seconds until it can begin.
        hit: tokens of the prompt that need no evaluation.
        own: they are this chat's own, not only a system prompt that chats share.
        node: the node.
        quote: what the node offers to any request.
    """

    total: float
    wait: float
    hit: int
    own: bool
    node: VirtualNode
    quote: Quote

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.node.view.name

    @property
    def harm(self) -> float:
        """Seconds that others lose. A chat that goes on overwrites nothing but its own prefix."""
        return 0.0 if self.own else self.quote.evict

    def prompt(self, tokens: int) -> float:
        """Seconds to evaluate what is not held of a prompt."""
        return max(0, tokens - self.hit) * self.quote.pace + self.quote.head

    def terms(self, tokens: int, policy: RoutingPolicy) -> CostTerms:
        """C, term by term, for a prompt of so many tokens."""
        quote, tier = self.quote, policy.tier_seconds * self.node.view.tier
        return CostTerms(self.wait, quote.load, self.prompt(tokens), quote.decode, self.harm, tier)


@dataclass(slots=True)
class Assignment:
    """Where a request goes: now, when `starts`, else as things stand.

    Attributes:
        entry: the request that waits.
        asked_for: which of its models answers, as `fold_name` makes it.
        chosen: the node, and what it costs.
        costs: of all nodes that were asked, the chosen one included.
        unasked: nodes whose load alone takes longer than what was chosen.
        starts: the request begins now.
        policy: what the terms are computed with.
        waited: seconds in the queue.
    """

    entry: WaitingRequest
    asked_for: str
    chosen: NodeCost
    costs: Sequence[NodeCost] = field(repr=False)
    unasked: Sequence[VirtualNode] = field(repr=False)
    starts: bool
    policy: RoutingPolicy = field(repr=False)
    waited: float = 0.0

    @property
    def request(self) -> FleetRequest:
        """The request."""
        return self.entry.request

    @property
    def node(self) -> str:
        """The name of the node."""
        return self.chosen.name

    @property
    def model(self) -> str:
        """The name to ask for, as the node lists it."""
        return self.chosen.quote.model

    @property
    def loads(self) -> bool:
        """The node has to load the model first."""
        return self.chosen.quote.reused is None

    @property
    def victims(self) -> tuple[str, ...]:
        """The weights that are unloaded first."""
        return self.chosen.quote.victims

    @property
    def size(self) -> int:
        """Bytes of the model at the node; 0: unknown."""
        return self.chosen.node.view.models[self.model].size

    @property
    def hit(self) -> int:
        """Tokens of the prompt that the node holds already."""
        return self.chosen.hit

    @property
    def terms(self) -> CostTerms:
        """What the choice cost."""
        return self.chosen.terms(self.request.tokens, self.policy)

    def considered(self) -> list[ConsideredNode]:
        """The nodes that were thought of, each with the model's name there and its terms.

        Of a node that was not asked the load is the only term.
        """
        tokens = self.request.tokens
        asked = [(cost.name, cost.quote.model, cost.terms(tokens, self.policy)) for cost in self.costs]
        for node in self.unasked:
            installed = node.view.models[self.asked_for]
            load = CostTerms(load=node.view.rates[installed.blob].load)
            asked.append((node.view.name, installed.name, load))
        return asked
