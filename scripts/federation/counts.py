"""What a site gives in a round: counts of judged pairs with noise. Needs nothing but Python.

Privacy is that of one judged pair: with it or without it, each set of numbers that leaves is as likely, up to
the factor e^ε. A pair changes one count by one, and is given in one round only, so rounds do not add up.

The noise of a count, added up over the sites, is a two-sided geometric one (a discrete Laplace). Each site
adds a part of it: the difference of two negative binomial draws. The parts are large enough that those of
half of the sites make a whole.
"""

import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_pack.base.messages import message

FEWEST_SITES = 3  # of two, each would know the other's counts
CLASSES = 6  # of similarity: `THRESHOLDS` of the pack
MOST_PAIRS = 200  # of a count that a site gives in a round; the rest goes in the next one
EPSILONS = (0.5, 10.0)
AGREEMENT = "agreement.toml"
_VERDICTS = ("right", "wrong")
_KEY_PARTS = 4

Table = dict[str, dict[str, list[int]]]  # by key, then `right` and `wrong`: a count for each class


class AgreementError(Exception):
    """The agreement cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the sites have agreed on. Each has the same file.

    Attributes:
        name: of the federation.
        sites: how many there are; all must take part in a round.
        epsilon: of each judged pair, over all rounds.
        labels: what is counted: `model|embedding|scope|language`, as the pack's calibration has it.
    """

    name: str
    sites: int
    epsilon: float
    labels: tuple[str, ...]

    @property
    def share(self) -> float:
        """The part of a whole noise that each site adds: those of half of the sites suffice."""
        return 1 / math.ceil(self.sites / 2)

    @property
    def cells(self) -> list[tuple[str, str, int]]:
        """The key, the verdict and the class of each number that is given, in order."""
        return [
            (key, verdict, place) for key in self.labels for verdict in _VERDICTS for place in range(CLASSES)
        ]


def read_agreement(folder: Path) -> Agreement:
    """The agreement in a folder.

    Raises:
        AgreementError: it is not there, or cannot be used.
    """
    path = folder / AGREEMENT
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AgreementError(
            message("{path} cannot be read: {error}", path=path, error=error.strerror)
        ) from error
    except ValueError as error:
        raise AgreementError(message("{path} is no TOML: {error}", path=path, error=error)) from error
    name, sites, epsilon = given.get("name"), given.get("sites"), given.get("epsilon")
    labels = given.get("labels")
    if not isinstance(name, str) or not name:
        raise AgreementError(message("{path}: `name` is missing", path=path))
    if not isinstance(sites, int) or sites < FEWEST_SITES:
        raise AgreementError(
            message(
                "{path}: `sites` must be {fewest} or more, not {sites!r}",
                path=path,
                fewest=FEWEST_SITES,
                sites=sites,
            )
        )
    if not isinstance(epsilon, int | float) or not EPSILONS[0] <= epsilon <= EPSILONS[1]:
        raise AgreementError(
            message(
                "{path}: `epsilon` must be from {least:g} to {most:g}, not {epsilon!r}",
                path=path,
                least=EPSILONS[0],
                most=EPSILONS[1],
                epsilon=epsilon,
            )
        )
    if not isinstance(labels, list) or not labels or len(set(map(str, labels))) != len(labels):
        raise AgreementError(message("{path}: `labels` must be a list of different keys", path=path))
    if wrong := [key for key in labels if not isinstance(key, str) or len(key.split("|")) < _KEY_PARTS]:
        raise AgreementError(
            message("{path}: {key!r} is no key: `model|embedding|scope|language`", path=path, key=wrong[0])
        )
    return Agreement(name, sites, float(epsilon), tuple(labels))


def not_given_yet(labels: Mapping[str, Any], given: Mapping[str, Any], agreed: Agreement) -> list[int]:
    """The true counts that a site gives now: at most `MOST_PAIRS` of each that it has not given before.

    Wrong ones are far fewer than right ones, so they go first, and what is held back speaks for no threshold.
    """
    return [
        max(0, min(MOST_PAIRS, _count(labels, key, verdict, place) - _count(given, key, verdict, place)))
        for key, verdict, place in agreed.cells
    ]


def with_given(given: Mapping[str, Any], counts: Sequence[int], agreed: Agreement) -> Table:
    """What a site has given, with what it gives now."""
    found = {key: {name: list(row[name]) for name in _VERDICTS} for key, row in given.items()}
    for (key, verdict, place), count in zip(agreed.cells, counts, strict=True):
        found.setdefault(key, {name: [0] * CLASSES for name in _VERDICTS})[verdict][place] += count
    return found


def with_noise(counts: Sequence[int], agreed: Agreement, dice: random.Random | None = None) -> list[int]:
    """The counts with this site's part of the noise; without `dice`, of the system's own random numbers."""
    drawn = dice or random.SystemRandom()
    return [
        count + _part(agreed.share, agreed.epsilon, drawn) - _part(agreed.share, agreed.epsilon, drawn)
        for count in counts
    ]


def round_for(others: Sequence[int], number: int, agreed: Agreement) -> dict[str, Any]:
    """What a site is handed: the sum of the others' counts, and how much noise is in it."""
    shares = (agreed.sites - 1) * agreed.share
    labels = with_given({}, others, agreed)
    return {"round": number, "epsilon": agreed.epsilon, "shares": shares, "labels": labels}


def _count(table: Mapping[str, Any], key: str, verdict: str, place: int) -> int:
    row = table.get(key)
    return int(row[verdict][place]) if row else 0


def _part(share: float, epsilon: float, dice: random.Random) -> int:
    """A negative binomial draw: a Poisson one at a rate that is drawn, too."""
    rate = dice.gammavariate(share, 1 / math.expm1(epsilon))
    count, left = 0, dice.expovariate(1)
    while left < rate:
        count += 1
        left += dice.expovariate(1)
    return count
