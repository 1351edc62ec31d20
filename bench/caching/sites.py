"""Simulated sites that use the bound of the semantic tier: how many are ever above it."""

from collections.abc import Callable
from random import Random

from ollama_pack.cache.bound import THRESHOLDS, upper_bound

CLASSES = len(THRESHOLDS)
MOST_WRONG = 12  # with more, no threshold is used within the labels of a site
LABELS = 1200


def fewest_labels(error: float, bound: Callable[[int, int, float], float] = upper_bound) -> list[int]:
    """With which a threshold is used, by how many of them are wrong."""
    need = []
    for wrong in range(MOST_WRONG):
        low, high = wrong + 1, 20_000
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if bound(wrong, middle, error) <= error else (middle + 1, high)
        need.append(low)
    return need


def sites_above(sites: int, need: list[int], error: float, seed: int = 7) -> int:
    """How many sites ever use a threshold whose true share of wrong answers is above the error."""
    dice = Random(seed)
    return sum(_is_above(dice, need, error) for _ in range(sites))


def _is_above(dice: Random, need: list[int], error: float) -> bool:
    base = error * 10 ** dice.uniform(-1, 1)
    rates = [min(0.9, base * 1.5**place) for place in range(CLASSES)]
    share = [0.05 + dice.random() for _ in rates]
    true = [
        sum(part * rate for part, rate in zip(share[: place + 1], rates, strict=False))
        / sum(share[: place + 1])
        for place in range(CLASSES)
    ]
    if max(true) <= error:
        return False
    wrong, judged = [0] * CLASSES, [0] * CLASSES
    for first in dice.choices(range(CLASSES), share, k=LABELS):
        bad = dice.random() < rates[first]
        for place in range(first, CLASSES):  # a look after each label
            judged[place] += 1
            wrong[place] += bad
            if true[place] > error and wrong[place] < len(need) and judged[place] >= need[wrong[place]]:
                return True
    return False
