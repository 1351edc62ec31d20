"""What sending a request to a node costs, term by term.

    C = wait + load + (P - hit) / pp * (1 + price) + crowd * (b + 1) / slots + evict

The first three terms are the predicted time to first token, which the user sees; the others are what the
choice costs later, and costs others. What overwriting a prefix costs others counts for background calls, and
among equals. Every term is in seconds and never negative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.returns import ReturnCurve
from ollama_pack.routing.decide.view import KeptPrefix, ModelRates


@dataclass(frozen=True, slots=True)
class CostTerms:
    """The terms of C for one request on one node, in seconds.

    Attributes:
        wait: until a slot is free, or until a load can begin.
        load: reading the weights into memory; 0 when they are there.
        prompt: evaluating what no kept prefix covers.
        decode: sharing the runner with those that decode on it: who comes back to it finds it full.
        evict: what others lose: a model that is unloaded, a chat's prefix that is overwritten.
        tier: the distance of the node's tier.
    """

    wait: float = 0.0
    load: float = 0.0
    prompt: float = 0.0
    decode: float = 0.0
    evict: float = 0.0
    tier: float = 0.0

    @property
    def predict_ttft(self) -> float:
        """The predicted time to first token: what the user sees."""
        return self.wait + self.load + self.prompt

    @property
    def total(self) -> float:
        """C: what the choice goes by."""
        return self.wait + self.load + self.prompt + self.decode + self.evict + self.tier

    def as_dict(self) -> dict[str, float]:
        """The terms by name, for an explanation or a log."""
        names = ("wait", "load", "prompt", "decode", "evict", "tier")
        return {name: getattr(self, name) for name in names}


def slot_wait(ahead: int, left: Sequence[float], free: int, service: Sequence[float]) -> float | None:
    """Seconds until a request has a slot, roughly; None: there is no slot yet.

    Args:
        ahead: requests that come before it.
        left: seconds until each slot that is used becomes free.
        free: slots that are not used.
        service: seconds for which a usual request holds a slot, one for each runner.
    """
    slots = [0.0] * free + sorted(left)
    if not slots:
        return None
    turns, slot = divmod(ahead, len(slots))
    return slots[slot] + turns * sum(service) / len(service)


def prompt_pace(busy: int, rates: ModelRates) -> float:
    """Seconds for each token of a prompt that is not held.

    Before the rates are learned, each request that is answered already makes it slower. With `prompt_head` a
    prompt takes (P - hit + 1) * (b + 1) / pp then.
    """
    return (1 if rates.learned else busy + 1) / rates.prompt


def prompt_head(busy: int, rates: ModelRates) -> float:
    """Seconds that a prompt takes of which all is held."""
    return 0.0 if rates.learned else (busy + 1) / rates.prompt


def predict_output(rates: ModelRates, *, background: bool, limit: int = 0) -> float:
    """Tokens that an answer is expected to have, never above the limit that the client set."""
    expected = rates.background_output if background else rates.output
    return min(expected, limit) if limit else expected


def decode_share(output: float, busy: int, slots: int, rates: ModelRates, policy: RoutingPolicy) -> float:
    """The term for decoding beside `busy` others; nothing is known of it before the rates are learned."""
    if not rates.learned:
        return 0.0
    decoding = min(output * rates.token, policy.decode_seconds)
    return policy.decode_weight * decoding * (busy + 1) / slots


def evict_model(rates: ModelRates, demand: float, other_holders: int, policy: RoutingPolicy) -> float:
    """What unloading a model costs those who will ask for it.

    Args:
        rates: of the model that is unloaded.
        demand: requests a second for it, over all nodes.
        other_holders: other nodes that have it in memory: they share the demand, and take it over.
        policy: its horizon.
    """
    here = demand / (other_holders + 1)
    return (rates.load + rates.service) * min(1.0, here * policy.demand_horizon) / (other_holders + 1)


def overwrite_prefix(
    prefix: KeptPrefix, now: float, rates: ModelRates, curves: Sequence[ReturnCurve]
) -> float:
    """What overwriting a prefix costs its chat, as likely as that still goes on: to evaluate it again."""
    if prefix.kind >= len(curves):
        return 0.0
    return curves[prefix.kind].remaining(now - prefix.used_at) * prefix.weight / rates.prompt


STEADY_SHARE = 0.9  # of the slots: where more are used, no queue becomes as long as the formula says


def mean_queue(demand: float, pace: float, slots: int, horizon: float) -> float:
    """How many requests wait for a slot, on average.

    Of an M/M/c queue, by Sakasegawa (1977): u ^ sqrt(2 (c + 1)) / (1 - u), where u is the used share of the
    slots. Above `STEADY_SHARE`, requests gather as long as the horizon says.

    Args:
        demand: requests a second.
        pace: requests a second that all slots together can answer.
        slots: c; without any, no end is seen.
        horizon: in seconds.
    """
    if slots <= 0:
        return math.inf
    steady = min(demand / pace, STEADY_SHARE)
    gathered = max(0.0, demand - STEADY_SHARE * pace) * horizon / 2
    return math.pow(steady, math.sqrt(2 * (slots + 1))) / (1 - steady) + gathered
