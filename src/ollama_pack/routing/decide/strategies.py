"""The plain ways to choose a node, for those who want no prediction: least busy, and random.

They see the same nodes as late binding does, and wait in the same queue; failover, breakers, admission and
draining are the scheduler's, and hold for all.
"""

from collections.abc import Sequence

from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.node_timeline import Quote
from ollama_pack.routing.decide.planner import Bid, BindingPass, Placement


class LeastBusyPass(BindingPass):
    """To the node with the fewest running requests for its slots, of those that have a slot free.

    A runner that is being loaded has its slots, too. Among equals the lower tier comes first, then a node
    that has the model in memory, then chance.
    """

    holds_back = False

    def bind(self, waiting: Sequence[WaitingRequest]) -> list[Placement]:
        """Place what can begin now, in fair order; the rest waits."""
        placed: list[Placement] = []
        stuck: set[str] = set()  # kinds that no node has a slot for
        for entry in waiting:
            if entry.kind in stuck:
                continue
            bids = [bid for bid in self._all_bids(entry) if _has_slot(bid[4])]
            if bids:
                placed.append(self._give(entry, self._idlest(bids), bids))
            else:
                stuck.add(entry.kind)
        return placed

    def _idlest(self, bids: Sequence[Bid]) -> Bid:
        ranks = [self._rank(bid) for bid in bids]
        best = min(ranks)
        return self._among([bid for bid, rank in zip(bids, ranks, strict=True) if rank == best])

    @staticmethod
    def _rank(bid: Bid) -> tuple[float, int, bool]:
        node, quote = bid[3], bid[4]
        return node.running / quote.rates.slots, node.view.tier, quote.reused is None


def _has_slot(quote: Quote) -> bool:
    runner = quote.reused
    return quote.starts_now or (runner is not None and runner.free_at[0] <= runner.ready_at)


class RandomPass(BindingPass):
    """To any node that has the model, at once and by chance alone, as Open WebUI itself does."""

    holds_back = False

    def bind(self, waiting: Sequence[WaitingRequest]) -> list[Placement]:
        """Place everything that any node may answer."""
        return [
            self._give(entry, self._dice.choice(bids), bids)
            for entry in waiting
            if (bids := self._all_bids(entry))
        ]
