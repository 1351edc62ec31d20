"""How often answers to similar questions are wrong, at most: the bound that a threshold must pass.

Labels are counted by similarity. A threshold's answers are all those at or above it. Its bound is an upper
confidence bound on the share of wrong ones, the larger of two:

- Clopper and Pearson's, which is exact for one look;
- one that holds at every look, however often it is looked at: for a rate p, the likelihood of what was seen
  under a mixture of rates, over its likelihood under p, ever exceeds 1/a with a chance of at most a
  (Ville's inequality).

The chance a is 5 %, shared among the thresholds. So the chance that any threshold is ever used whose true
rate is above the allowed error is at most 5 %, as long as the rate does not change. A change is what
`has_drifted` looks for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

THRESHOLDS = (0.98, 0.96, 0.94, 0.92, 0.89, 0.85)
CONFIDENCE = 0.95
_ALPHA = (1 - CONFIDENCE) / len(THRESHOLDS)
_STEPS = 50  # of halving an interval


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


def class_of(similarity: float) -> int | None:
    """The place of the first threshold that a similarity reaches; None: it is below all of them."""
    return next((place for place, least in enumerate(THRESHOLDS) if similarity >= least), None)


@lru_cache(maxsize=4096)
def upper_bound(wrong: int, judged: int, error: float) -> float:
    """The rate of wrong ones is below it, with the confidence of a threshold, at whichever look."""
    if not judged:
        return 1.0
    return max(_clopper_pearson(wrong, judged, _ALPHA), _at_any_look(wrong, judged, error))


def usable_threshold(judged: Judged, error: float) -> int | None:
    """The place of the lowest threshold whose bound is below the error; None: there is none yet."""
    usable = [place for place in range(len(THRESHOLDS)) if upper_bound(*judged.above(place), error) <= error]
    return max(usable, default=None)


def has_drifted(wrong: int, judged: int, error: float) -> bool:
    """Whether the newest labels are more often wrong than is allowed: the chance of so many is below 5 %."""
    return judged > 0 and wrong > 0 and 1 - _binomial(wrong - 1, judged, error) < 1 - CONFIDENCE


def _clopper_pearson(wrong: int, judged: int, alpha: float) -> float:
    if wrong >= judged:
        return 1.0
    low, high = wrong / judged, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial(wrong, judged, middle) > alpha else (low, middle)
    return high


def _at_any_look(wrong: int, judged: int, error: float) -> float:
    one, other = 1.0, 10 / error  # the mixture: most of it below the error, as that is what is hoped for
    mixed = _log_beta(one + wrong, other + judged - wrong) - _log_beta(one, other)
    low, high = max(wrong / judged, 1e-9), 1 - 1e-9
    for _ in range(_STEPS):
        middle = (low + high) / 2
        against = mixed - wrong * math.log(middle) - (judged - wrong) * math.log1p(-middle)
        low, high = (middle, high) if against < -math.log(_ALPHA) else (low, middle)
    return high


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


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)
