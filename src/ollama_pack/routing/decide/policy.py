"""The numbers that routing goes by and that nobody has to set."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Weights and bounds of the decision. Times are in seconds.

    Attributes:
        decode_weight: what a second of decoding counts beside a second until the first token, and
        decode_seconds: how many of them count at most.
        demand_horizon: how far ahead the demand for an evicted model is looked at.
        hysteresis_seconds: a chat leaves the node that holds its prefix to save more than this, and
        hysteresis_share: more than this share of what it costs to stay.
        tie_share: costs that differ by less are equal.
        tier_seconds: what a tier further away counts.
        background_wait: how long background calls wait behind people.
        background_cost_rate: what it may cost others meanwhile, for each second that it has waited.
        prewarm_share: of a model's slots that are busy before a node with room loads it, too.
        exchange_gain: how many fewer requests have to wait, on average, before a model is loaded in place of
            one that other nodes have, too.
        overtake_limit: how often a request may be overtaken by ones behind it.
        overdue_share: what is left of a request that runs longer than predicted, in usual services.
        most_costs: of a node for a request that are computed in one decision.
        candidates: nodes that are asked for one request at most, besides those that hold its prefix.
        probe_requests: requests between two tries whether a runner has one more slot.
        unsynced_peers: other workers use the same nodes and are not heard of: they agree by hashing on where
            a chat goes, which costs a little where chats have one turn only.
        busy_percent: a GPU that is this busy, without a request of ours, works for somebody else.
    """

    decode_weight: float = 0.3
    decode_seconds: float = 2.0
    demand_horizon: float = 60.0
    hysteresis_seconds: float = 0.5
    hysteresis_share: float = 0.15
    tie_share: float = 0.05
    tier_seconds: float = 10.0
    background_wait: float = 10.0
    background_cost_rate: float = 0.1
    prewarm_share: float = 0.5
    exchange_gain: float = 1.0
    overtake_limit: int = 16
    overdue_share: float = 0.25
    most_costs: int = 40
    candidates: int = 8
    probe_requests: int = 64
    unsynced_peers: bool = False
    busy_percent: float = 50.0
