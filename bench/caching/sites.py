"""Simulated sites that use the bound of the semantic tier: how many are ever above it."""

from collections.abc import Callable
from random import Random

from ollama_pack.cache.bound import THRESHOLDS, Judged, log_evidence, usable_threshold

CLASSES = len(THRESHOLDS)
LABELS = 1200
_TWENTY = 2.99  # the logarithm of evidence without which no threshold is used

Usable = Callable[[Judged, float], int | None]


def fewest_labels(wrong: int, error: float) -> int:
    """With which a threshold is used, when so many of them are wrong; all are of the highest similarity."""
    low, high = wrong + 1, 20_000
    while low < high:
        middle = (low + high) // 2
        judged = Judged((middle - wrong, *[0] * (CLASSES - 1)), (wrong, *[0] * (CLASSES - 1)))
        low, high = (middle + 1, high) if usable_threshold(judged, error) is None else (low, middle)
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
