"""Simulated sites that use the bound of the semantic tier: how many are ever above it, and what it takes."""

from collections.abc import Callable
from random import Random

from federation.counts import Agreement
from ollama_pack.cache.bound import THRESHOLDS, Judged, log_evidence, usable_threshold, usable_thresholds
from ollama_pack.cache.pool import PooledRound, pooled_thresholds
from ollama_pack.cache.semantic import Evidence

CLASSES = len(THRESHOLDS)
LABELS = 1200
_TWENTY = 2.99  # the logarithm of evidence without which no threshold is used

Usable = Callable[[Judged, float], int | None]


def fewest_labels(wrong: int, error: float) -> int:
    """With which a threshold is used, when so many of them are wrong; all are of the highest similarity."""
    return _fewest(
        lambda labels: usable_threshold(_similar(labels - wrong, wrong), error) is not None, wrong + 1
    )


def fewest_labels_of_users(users: int, error: float, epsilon: float | None = None, sites: int = 3) -> int:
    """With which a threshold is used at a site, when all are right and each user has as many.

    Args:
        users: how many people the labels are of; what is proven must hold without any one of them.
        error: that is allowed.
        epsilon: of the noise in the labels of the other sites, which have as many each. In the wrong ones its
            draw is 0. None: the site is alone.
        sites: that learn together.
    """

    def is_enough(labels: int) -> bool:
        base, more = divmod(labels, users)
        pairs = {str(user): _similar(base + (user < more)) for user in range(users)}
        looks = Evidence(pairs, {}).looks()
        if epsilon is None:
            return all(usable_thresholds(look, error) for look in looks)
        agreed = Agreement("", sites, epsilon, ())
        others = (PooledRound(_similar(labels * (sites - 1)), epsilon, (sites - 1) * agreed.share),)
        return all(pooled_thresholds(look, others, error) for look in looks)

    return _fewest(is_enough)


def _similar(right: int, wrong: int = 0) -> Judged:
    rest = [0] * (CLASSES - 1)
    return Judged((right, *rest), (wrong, *rest))


def _fewest(is_enough: Callable[[int], bool], low: int = 1) -> int:
    high = 20_000
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def sites_above(
    sites: int, error: float, seed: int = 7, usable: Usable = usable_threshold, *, just: bool = False
) -> int:
    """How many sites ever use a threshold whose true share of wrong answers is above the error.

    Args:
        sites: how many there are.
        error: that is allowed.
        seed: of what is drawn.
        usable: says which threshold labels allow.
        just: at all of them the share is just above the error, at each similarity: the hardest to see.
    """
    dice = Random(seed)
    return sum(_is_above(dice, error, usable, just=just) for _ in range(sites))


def _is_above(dice: Random, error: float, usable: Usable, *, just: bool) -> bool:
    base = error * 10 ** dice.uniform(-1, 1)
    rates = [min(0.9, base * 1.5**place) for place in range(CLASSES)]
    if just:
        rates = [error * 1.0001] * CLASSES
    share = [0.05 + dice.random() for _ in rates]
    true = [
        sum(part * rate for part, rate in zip(share[: place + 1], rates, strict=False))
        / sum(share[: place + 1])
        for place in range(CLASSES)
    ]
    if max(true) <= error:
        return False
    right, wrong = [0] * CLASSES, [0] * CLASSES
    for place in dice.choices(range(CLASSES), share, k=LABELS):  # a look after each label
        (wrong if dice.random() < rates[place] else right)[place] += 1
        if usable is usable_threshold and not _may_be_used(wrong, right, true, error):
            continue
        used = usable(Judged(tuple(right), tuple(wrong)), error)
        if used is not None and true[used] > error:
            return True
    return False


def _may_be_used(wrong: list[int], right: list[int], true: list[float], error: float) -> bool:
    """Whether a threshold that is above the error has evidence at all: the test itself takes longer."""
    bad = every = 0
    for place in range(CLASSES):
        bad, every = bad + wrong[place], every + wrong[place] + right[place]
        if true[place] > error and log_evidence(bad, every, error, error) >= _TWENTY:
            return True
    return False
