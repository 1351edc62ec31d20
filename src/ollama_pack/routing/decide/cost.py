"""What sending a request to a node costs, term by term.

    C = wait + load + (P - hit) / pp * (1 + price) + crowd * (b + 1) / slots + evict

The first three terms are the predicted time to first token, which the user sees; the others are what the
choice costs later, and costs others. What overwriting a prefix costs others counts for background calls, and
among equals. Every term is in seconds and never negative.
"""

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
