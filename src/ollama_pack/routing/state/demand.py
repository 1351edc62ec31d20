"""How often each set of weights is asked for, over the last minutes."""

import math

DEMAND_SECONDS = 120.0  # the past is forgotten by a factor of e in this time
MAX_BLOBS = 1024


class DemandMeter:
    """Requests a second by blob, exponentially forgotten. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}  # blob → count, and when it was right
        self._began: float | None = None

    def add(self, blob: str, now: float, share: float = 1.0) -> None:
        """A request asks for it, or, with this likelihood, for it among others of the same name."""
        if self._began is None:
            self._began = now
        if blob not in self._counts and len(self._counts) >= MAX_BLOBS:
            del self._counts[min(self._counts, key=lambda known: self._counts[known][1])]
        self._counts[blob] = (self._faded(blob, now) + share, now)

    def rates(self, now: float) -> dict[str, float]:
        """Requests a second by blob. A meter that has not run long yet divides by the time that it has."""
        ran = now - self._began if self._began is not None else 0.0
        span = DEMAND_SECONDS * (1 - math.exp(-max(ran, 30.0) / DEMAND_SECONDS))
        return {blob: self._faded(blob, now) / span for blob in self._counts}

    def _faded(self, blob: str, now: float) -> float:
        count, then = self._counts.get(blob, (0.0, now))
        return count * math.exp(-(now - then) / DEMAND_SECONDS)
