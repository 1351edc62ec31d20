"""The nodes of a fleet as they are known, and the events that tell of them."""

import math
from collections.abc import Callable, Iterable, Mapping

from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import FleetView, InstalledModel, PairRates
from ollama_pack.routing.naming import fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.demand import DemandMeter
from ollama_pack.routing.state.node_state import NodeState, ResidentModel
from ollama_pack.routing.state.peer_requests import RemoteRequests


class KnownNodes:
    """What decisions see. Names are those of the rows; times are seconds on the caller's clock.

    Attributes:
        policy: weights and bounds.
        nodes: by name.
        remote: requests of other workers at these nodes.
    """

    def __init__(
        self, rows: Iterable[NodeRow], clock: Callable[[], float], policy: RoutingPolicy, priors: PairRates
    ) -> None:
        self.policy = policy
        self.nodes = {row.name: NodeState(row, policy, priors) for row in rows}
        self._clock = clock
        self._demand = DemandMeter()
        self.remote = RemoteRequests(self.nodes, clock, self._demand)

    def probed(
        self, name: str, models: Mapping[str, InstalledModel], residents: Iterable[ResidentModel] | None
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

    def view(self) -> FleetView:
        """All that a decision goes by, as of now."""
        now = self._clock()
        return FleetView(now, tuple(node.view(now) for node in self.nodes.values()), self._demand.rates(now))

    def can_answer(self, models: Iterable[str]) -> bool:
        """Whether any node may be asked for one of these now, by whatever name it lists it."""
        names = set(map(fold_name, models))
        return any(not names.isdisjoint(node.models) for node in self.view().nodes)
