"""What is learned of one node with one set of weights: rates, slots, and how many prefixes are kept."""

from dataclasses import dataclass

from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.prefix import MatchDepth, RetentionLearner
from ollama_pack.routing.decide.view import ModelRates
from ollama_pack.routing.state.estimates import Durations, RatesLearner, SlotLearner


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one answered request teaches.

    Attributes:
        spent: what the engine reports.
        match: where in the mirror of the runner's prefixes its longest match lay.
        beside: requests that ran there when it was sent.
        background: it was a background call.
        loaded: it made the node load the model.
    """

    spent: Durations
    match: MatchDepth
    beside: int
    background: bool
    loaded: bool


class ModelStats:
    """What was learned of one node with one set of weights."""

    def __init__(self, declared_slots: int | None, policy: RoutingPolicy) -> None:
        self.rates = RatesLearner()
        self.slots = SlotLearner(declared_slots, policy.probe_requests)
        self.retention = RetentionLearner()

    def known(self, priors: ModelRates) -> ModelRates:
        return self.rates.rates(priors, self.slots.offered, self.retention.retention.prompts)

    def learn(self, lesson: Lesson) -> None:
        """Take in one answered request."""
        if lesson.spent.hit is not None or self.rates.prompt.count > 0:
            self.retention.observe(lesson.match, self.rates.hit(lesson.spent))
        unsure = not lesson.match.held  # it may still be there
        self.rates.observe(
            lesson.spent,
            None if unsure else lesson.match.tokens,
            background=lesson.background,
            loaded=lesson.loaded,
        )
        if not lesson.loaded:
            self.slots.observe(lesson.beside, lesson.spent.wait)
