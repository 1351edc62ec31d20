"""How often answers to similar questions are wrong, at most: the bound that a threshold must pass.

Labels are counted by similarity. A threshold's answers are all those at or above it. Its evidence against a
rate p is a likelihood ratio: that of what was seen under a mixture of lower rates, over that under p. If p,
or any higher rate, is the true one, each label multiplies it by something whose mean is at most 1. So the
chance that it ever exceeds 1/a, at whichever of all looks, is at most a (Ville's inequality). Whenever it
does, Clopper and Pearson's bound for one look is below p as well.

Six thresholds are looked at, and their answers overlap. They share the chance a by a closed test: a
threshold is proven when, in each group of thresholds that it is in, the mean evidence of the group exceeds
1/a. Of the group of all thresholds that are truly above the rate, the mean is such a ratio again, so the
chance that any of these is ever proven is at most a. Where their labels are the same, six cost no more than
one; where the others have only wrong ones, it is as if each had a sixth of the chance.

The chance a is 5 %. So the chance that any threshold is ever used whose true rate is above the allowed
error is at most 5 %, as long as the rate does not change. A change is what `has_drifted` looks for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

THRESHOLDS = (0.98, 0.96, 0.94, 0.92, 0.89, 0.85)
CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
# Rates that the mixture has, as shares of the allowed error, and their weights: most of it is far below the
# error, as that is what is hoped for.
MIXTURE = ((0.02, 0.6), (0.15, 0.2), (0.3, 0.12), (0.5, 0.08))
_STEPS = 20  # of halving an interval
_MOST = 600.0  # of the logarithm of evidence that is told apart


@dataclass(frozen=True, slots=True)
class Judged:
    """Labels by the class of their similarity: from each threshold up to the one before.

    Attributes:
        right: how many were right, for each of `THRESHOLDS`.
        wrong: how many were wrong.
    """

    right: tuple[int, ...] = (0,) * len(THRESHOLDS)
    wrong: tuple[int, ...] = (0,) * len(THRESHOLDS)

    def above(self, place: int) -> tuple[int, int]:
        """Wrong ones and all at or above a threshold."""
        wrong = sum(self.wrong[: place + 1])
        return wrong, wrong + sum(self.right[: place + 1])

    def plus(self, *others: "Judged", times: int = 1) -> "Judged":
        """With other labels, or with `times=-1` without them."""
        rows = [(self.right, self.wrong), *((each.right, each.wrong) for each in others)]
        right, wrong = (
            tuple(first + times * sum(more) for first, *more in zip(*row, strict=True))
            for row in zip(*rows, strict=True)
        )
        return Judged(right, wrong)


def class_of(similarity: float) -> int | None:
    """The place of the first threshold that a similarity reaches; None: it is below all of them."""
    return next((place for place, least in enumerate(THRESHOLDS) if similarity >= least), None)


def usable_threshold(judged: Judged, error: float) -> int | None:
    """The place of the lowest threshold whose bound is below the error; None: there is none yet."""
    return max(usable_thresholds(judged, error), default=None)


@lru_cache(maxsize=4096)
def usable_thresholds(judged: Judged, error: float) -> frozenset[int]:
    """The places of all whose bound is below the error."""
    return proven(_evidence_of(judged, error)(error))


def upper_bound(judged: Judged, place: int, error: float) -> float:
    """The rate of wrong ones at or above a threshold is below it, at whichever look."""
    return bound_by(_evidence_of(judged, error), place)


def proven(evidence: Sequence[float], alpha: float = ALPHA) -> frozenset[int]:
    """The places of the thresholds that are proven, by the logarithm of each one's evidence."""
    ratios = [math.exp(min(each, _MOST)) for each in evidence]
    return frozenset(place for place in range(len(ratios)) if _least_mean(ratios, place) >= 1 / alpha)


def bound_by(evidence: Callable[[float], Sequence[float]], place: int, alpha: float = ALPHA) -> float:
    """The lowest rate against which a threshold is proven.

    Args:
        evidence: against a rate, the logarithm for each threshold.
        place: of the threshold.
        alpha: the chance of an error.
    """
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if place in proven(evidence(middle), alpha) else (middle, high)
    return high


def mixed_log(parts: Sequence[tuple[float, float]]) -> float:
    """The logarithm of a sum of weights, each times the exponential of something."""
    most = max(log for _weight, log in parts)
    if most == -math.inf:
        return most
    return most + math.log(sum(weight * math.exp(log - most) for weight, log in parts))


def log_likelihood(wrong: int, judged: int, rate: float) -> float:
    right = judged - wrong
    if rate >= 1:
        return -math.inf if right else 0.0
    return wrong * math.log(rate) + right * math.log1p(-rate)


def has_drifted(wrong: int, judged: int, error: float) -> bool:
    """Whether the newest labels are more often wrong than is allowed: the chance of so many is below 5 %.

    One wrong label is no change, whatever its place.
    """
    return wrong > 1 and 1 - _binomial(wrong - 1, judged, error) < 1 - CONFIDENCE


def _evidence_of(judged: Judged, error: float) -> Callable[[float], list[float]]:
    seen = [judged.above(place) for place in range(len(THRESHOLDS))]
    return lambda rate: [log_evidence(*each, error, rate) for each in seen]


@lru_cache(maxsize=65536)
def log_evidence(wrong: int, judged: int, error: float, against: float) -> float:
    """The logarithm of the likelihood ratio of labels against a rate."""
    mixed = mixed_log([(weight, log_likelihood(wrong, judged, share * error)) for share, weight in MIXTURE])
    likeliest = max(against, wrong / judged if judged else 0.0)  # of all rates from this one on
    return mixed - log_likelihood(wrong, judged, likeliest)


def _least_mean(ratios: Sequence[float], place: int) -> float:
    """The lowest mean of all groups with this place: of it and the lowest others, however many."""
    total = least = ratios[place]
    for count, other in enumerate(sorted([*ratios[:place], *ratios[place + 1 :]]), 2):
        total += other
        least = min(least, total / count)
    return least


def _binomial(most: int, tries: int, rate: float) -> float:
    """The chance of at most so many."""
    if not 0 < rate < 1:
        return 1.0 if rate <= 0 or most >= tries else 0.0
    ways = math.lgamma(tries + 1)
    terms: Sequence[float] = [
        math.exp(
            ways
            - math.lgamma(count + 1)
            - math.lgamma(tries - count + 1)
            + count * math.log(rate)
            + (tries - count) * math.log1p(-rate)
        )
        for count in range(most + 1)
    ]
    return min(1.0, sum(terms))
