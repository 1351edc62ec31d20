"""Evidence of other sites: counts that were added up over several deployments, with noise.

What arrives is, for each similarity, how many pairs the other sites judged right and wrong, plus noise of a
known size (see `scripts/federation`). The bound takes the noise as it is: the likelihood of a noisy count
is that of all true counts that it may stand for, each by the chance of the noise that it takes.

A threshold's evidence is the likelihood ratio of everything seen, own and others', as in `bound`, and the
same closed test says which thresholds are proven, at whichever look and after whichever round. It holds as
far as the other sites' pairs are wrong as often as this site's: the assumption.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.cache.bound import (
    ALPHA,
    MIXTURE,
    THRESHOLDS,
    Judged,
    bound_by,
    has_drifted,
    log_likelihood,
    mixed_log,
    proven,
)

MOST_ROUNDS = 100  # that are kept
EPSILONS = (0.5, 10.0)  # from the least to the most
MOST_SHARES = 2  # whatever the number of sites: each adds one part of half as many
MOST_PAIRS = 1_000_000  # in a count
_FOR_COUNTS = 0.05 * ALPHA  # the part of the chance that is for noise in how many pairs there were
_FOR_WRONG = ALPHA - _FOR_COUNTS
_CUT = 1e-12  # chances of noise below it are left out, and counted against the threshold


POOL = "pool/"  # begins the names of the counts of what other sites gave
EPSILON_OF_NOISE = "noise/epsilon"
APART = "apart/"  # of keys that count on their own evidence alone, as it contradicted the others'


@dataclass(frozen=True, slots=True)
class PooledRound:
    """What the other sites gave in a round.

    Attributes:
        judged: their pairs, added up; with noise, so that a count may be below 0.
        epsilon: of the noise.
        shares: how many whole draws of noise are in each count: two thirds of a draw from each of three
            sites are two.
        number: of the round, from 1 on.
    """

    judged: Judged
    epsilon: float
    shares: float
    number: int = 1


@lru_cache(maxsize=4096)
def pooled_thresholds(own: Judged, rounds: tuple[PooledRound, ...], error: float) -> frozenset[int]:
    """The places of all that they allow."""
    return frozenset(
        place
        for place in proven(_evidence(own, rounds, error, error), _FOR_WRONG)
        if not has_drifted(*own.above(place), error)  # what happened here counts more than elsewhere
    )


@lru_cache(maxsize=256)
def pooled_bound(own: Judged, rounds: tuple[PooledRound, ...], place: int, error: float) -> float:
    """The rate of wrong ones is below it, with the confidence of a threshold, if sites are alike."""
    return bound_by(lambda rate: _evidence(own, rounds, error, rate), place, _FOR_WRONG)


def _evidence(own: Judged, rounds: tuple[PooledRound, ...], error: float, against: float) -> list[float]:
    """The logarithm of each threshold's likelihood ratio against a rate."""

    def seen(place: int, rate: float, more: float = 0.0) -> float:
        found = [_likelihood(each, place, rate) + more for each in rounds]
        if min(found, default=1.0) <= 0:
            return -math.inf
        return log_likelihood(*own.above(place), rate) + sum(map(math.log, found))

    return [
        mixed_log([(weight, seen(place, share * error)) for share, weight in MIXTURE])
        - seen(place, against, 2 * _CUT)
        for place in range(len(THRESHOLDS))
    ]


@lru_cache(maxsize=65536)
def _likelihood(one: PooledRound, place: int, rate: float) -> float:
    """The chance of the noisy count of wrong ones at or above a threshold, when each is wrong at a rate.

    As for how many pairs there were, the fewest are taken that the noisy count may stand for: fewer pairs
    never speak for a threshold.
    """
    wrong, every = one.judged.above(place)
    draws = one.shares * (place + 1)
    chance = _FOR_COUNTS / len(THRESHOLDS) / (one.number * (one.number + 1))
    fewest = max(0, every - wrong - _most_noise(draws, one.epsilon, chance))
    found = 0.0
    for noise, part in _noise(draws, one.epsilon).items():
        if 0 <= wrong - noise <= fewest:
            found += part * math.exp(
                _log_ways(wrong - noise, fewest) + log_likelihood(wrong - noise, fewest, rate)
            )
    return found


def _log_ways(some: int, every: int) -> float:
    return math.lgamma(every + 1) - math.lgamma(some + 1) - math.lgamma(every - some + 1)


@lru_cache(maxsize=256)
def _noise(draws: float, epsilon: float) -> dict[int, float]:
    """How likely each sum of so many draws is: the difference of two negative binomial counts."""
    if draws <= 0:
        return {0: 1.0}
    half: list[float] = []
    while not half or 1 - sum(half) > _CUT / 2:
        count = len(half)
        ways = math.lgamma(count + draws) - math.lgamma(draws) - math.lgamma(count + 1)
        half.append(math.exp(ways + draws * math.log(-math.expm1(-epsilon)) - epsilon * count))
        if half[-1] < _CUT * _CUT:
            break
    found: dict[int, float] = {}
    for more, chance in enumerate(half):
        for less, other in enumerate(half):
            found[more - less] = found.get(more - less, 0.0) + chance * other
    return found


@lru_cache(maxsize=1024)
def _most_noise(draws: float, epsilon: float, chance: float) -> int:
    """The noise is above it with a chance of at most so much."""
    above = _CUT
    for noise, part in sorted(_noise(draws, epsilon).items(), reverse=True):
        above += part
        if above > chance:
            return noise
    return 0


def round_counts(key: str, one: PooledRound) -> dict[str, float]:
    """A round as counts by name, which all processes share.

    A store adds them one after the other, and may fail on the way. Without the last one there is no round.
    """
    begin = f"{POOL}{key}/{one.number}"
    found = {f"{begin}/noise/shares": one.shares}
    for place in range(len(THRESHOLDS)):
        found |= {f"{begin}/{place}/wrong": float(one.judged.wrong[place])}
        found |= {f"{begin}/{place}/right": float(one.judged.right[place])}
    return found | {f"{begin}/{EPSILON_OF_NOISE}": one.epsilon}


def rounds_in(counts: Mapping[str, float]) -> dict[str, tuple[PooledRound, ...]]:
    """The rounds of each key again."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in counts.items():
        if name.startswith(POOL):
            key, at, what, kind = name.removeprefix(POOL).rsplit("/", 3)
            found.setdefault((key, int(at)), {})[f"{what}/{kind}"] = value
    rounds: dict[str, list[PooledRound]] = {}
    for (key, number), values in sorted(found.items()):
        if values.get(EPSILON_OF_NOISE, 0) <= 0:
            continue  # it was forgotten, or has not come whole
        right, wrong = (
            tuple(round(values.get(f"{place}/{verdict}", 0)) for place in range(len(THRESHOLDS)))
            for verdict in ("right", "wrong")
        )
        one = PooledRound(Judged(right, wrong), values[EPSILON_OF_NOISE], values["noise/shares"], number)
        rounds.setdefault(key, []).append(one)
    return {key: tuple(each[-MOST_ROUNDS:]) for key, each in rounds.items()}


def read_rounds(given: Mapping[str, Any]) -> dict[str, PooledRound]:
    """A round as `scripts/federate.py` hands it over, by key.

    Raises:
        ValueError: it is none, and why.
    """
    number, epsilon, shares = given.get("round"), given.get("epsilon"), given.get("shares")
    if not isinstance(number, int) or not 1 <= number <= MOST_PAIRS:
        raise ValueError(message("`round` must be a number from 1 on, not {number!r}", number=number))
    if not isinstance(epsilon, int | float) or not EPSILONS[0] <= epsilon <= EPSILONS[1]:
        least, most = EPSILONS
        raise ValueError(
            message(
                "`epsilon` must be from {least:g} to {most:g}, not {epsilon!r}",
                least=least,
                most=most,
                epsilon=epsilon,
            )
        )
    if not isinstance(shares, int | float) or not 0 < shares <= MOST_SHARES:
        raise ValueError(
            message(
                "`shares` must be above 0 and at most {most}, not {shares!r}", most=MOST_SHARES, shares=shares
            )
        )
    labels = given.get("labels")
    if not isinstance(labels, Mapping):
        raise ValueError(message("`labels` must be an object: for each key `right` and `wrong`"))  # noqa: TRY004 - of JSON
    return {
        str(key): PooledRound(Judged(*_two_rows(key, row)), float(epsilon), float(shares), number)
        for key, row in labels.items()
    }


def _two_rows(key: str, row: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows: list[Any] = [row.get(verdict) for verdict in ("right", "wrong")] if isinstance(row, Mapping) else []
    for each in rows:
        if not isinstance(each, list) or len(each) != len(THRESHOLDS):
            break
        if not all(isinstance(count, int) and abs(count) <= MOST_PAIRS for count in each):
            break
    else:
        if rows and key.count("|") >= 3:  # noqa: PLR2004 - see `label_key`
            return tuple(rows[0]), tuple(rows[1])
    raise ValueError(
        message(
            "`labels` of {key!r} must be {count} whole numbers `right`, and as many `wrong`",
            key=key,
            count=len(THRESHOLDS),
        )
    )
