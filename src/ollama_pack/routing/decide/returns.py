"""How likely it is that a prompt is gone on with, and when: what a kept prefix is worth to its chat.

A curve is a life table: for each span of ages, of those prompts that were as old and had not been gone on
with, the share that was, each counted by the share of its own tokens that came again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

SPANS = 13  # of ages: 0 to 1 s, 1 to 3 s, 3 to 7 s, …, to more than an hour


def span_of(age: float) -> int:
    """The span of ages, each twice as long as the one before."""
    return min(SPANS - 1, int(math.log2(max(0.0, age) + 1)))


def begins_at(span: int) -> float:
    """The age at which a span begins, in seconds."""
    return float(2**span - 1)


@dataclass(frozen=True, slots=True)
class ReturnCurve:
    """Of each span, the share that comes again in it of what has not come again before."""

    shares: tuple[float, ...] = ()

    def remaining(self, age: float) -> float:
        """The share of a prompt's own tokens that is still to be asked for again, at this age."""
        if not self.shares:
            return 0.0
        span = span_of(age)
        left = 1.0 - (age - begins_at(span)) / (begins_at(span + 1) - begins_at(span))
        after = self._after(span + 1)
        now = self.shares[span] * min(1.0, max(0.0, left))
        return now + (1 - now) * after

    def _after(self, span: int) -> float:
        return _returning(self.shares)[span]


@lru_cache(maxsize=1024)
def _returning(shares: Sequence[float]) -> tuple[float, ...]:
    """For each span, the share that comes again in it or later."""
    found = [0.0]
    for share in reversed(shares):
        found.append(share + (1 - share) * found[-1])
    return tuple(reversed(found))
