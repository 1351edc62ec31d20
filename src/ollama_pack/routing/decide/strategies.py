"""The plain ways to choose a node, for those who want no prediction: least busy, and random.

They see the same nodes as late binding does, and wait in the same queue; failover, breakers, admission and
draining are the scheduler's, and hold for all.
"""

from collections.abc import Mapping, Sequence
from heapq import merge
from operator import attrgetter

from ollama_pack.routing.decide.assignment import Assignment, NodeCost
from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.planner import Planner
from ollama_pack.routing.decide.view import FleetView


class PlainPlanner(Planner):
    """To one of the nodes that `pick` leaves, whatever it costs."""

    holds_back = False

    def plan(
        self,
        view: FleetView,
        waiting: Mapping[str, Sequence[WaitingRequest]],
    ) -> list[Assignment]:
        """Assign what can begin now, in fair order; the rest waits."""
        self._begin(view)
        found: list[Assignment] = []
        kinds = {name: kind for name, entries in waiting.items() if (kind := self._kind_of(name, entries))}
        for entry in merge(*waiting.values(), key=attrgetter("place")):
            kind = kinds.get(entry.kind)
            if kind is None:
                continue
            nodes = [self._timelines.nodes[name] for name in kind.having.nodes if name not in kind.tried]
            key = (kind.model, entry.kind, entry.request.max_output)
            costs = self._ask(nodes, key, entry.request, 0.0, pressing=False)
            if chosen := self.pick(costs):
                self._take(chosen, entry.request)
                waited = view.now - entry.came
                found.append(Assignment(entry, kind.model, chosen, costs, (), True, self.policy, waited))  # noqa: FBT003 - `starts`
            else:
                del kinds[entry.kind]  # no node has a slot for it
        self._end()
        return found

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """One of the nodes; None: none will do."""
        raise NotImplementedError


class LeastBusyPlanner(PlainPlanner):
    """To the node with the fewest running requests for its slots, of those that have a slot free.

    A runner that is being loaded has its slots, too. Among equals the lower tier comes first, then a node
    that has the model in memory, then chance.
    """

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """The idlest."""
        free = [cost for cost in costs if _has_slot(cost)]
        if not free:
            return None
        best = min(map(_rank, free))
        return self._among([cost for cost in free if _rank(cost) == best])


def _rank(cost: NodeCost) -> tuple[float, int, bool]:
    node, quote = cost.node, cost.quote
    return node.running / quote.rates.slots, node.view.tier, quote.reused is None


def _has_slot(cost: NodeCost) -> bool:
    runner = cost.quote.reused
    return cost.quote.now_open or (runner is not None and runner.has_slot)


class RandomPlanner(PlainPlanner):
    """To any node that has the model, at once and by chance alone, as Open WebUI itself does."""

    def pick(self, costs: Sequence[NodeCost]) -> NodeCost | None:
        """Any."""
        return self.dice.choice(costs) if costs else None
