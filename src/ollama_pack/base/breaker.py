"""A breaker: after failures nothing is sent for a while, then one request tries."""

import math
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens, and for how long.

    Attributes:
        threshold: failures in a row that open it.
        shortest: seconds that it stays open the first time; each time after, twice as long,
        longest: but not longer than this.
    """

    threshold: int = 1
    shortest: float = 5.0
    longest: float = 120.0


class Breaker:
    """Closed: all may pass. Open: none. Half-open: one, whose end decides. Times on the caller's clock.

    Only what tells of the node's health is to be reported: a 4xx answer or the user's own cancel is neither
    a failure nor a success.
    """

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._failures = 0
        self._backoff = rule.shortest
        self._retry_at: float | None = None
        self._trying = False
        self.failed_at = -math.inf  # the last time

    def state(self, now: float) -> BreakerState:
        if self._retry_at is None:
            return "closed"
        return "half-open" if now >= self._retry_at else "open"

    def allows(self, now: float) -> bool:
        """Whether a request may pass now. One that does is to be reported with `passed`."""
        state = self.state(now)
        return state == "closed" or (state == "half-open" and not self._trying)

    @property
    def retry_at(self) -> float | None:
        """When it lets one try; None while it is closed or one is trying."""
        return None if self._trying else self._retry_at

    def passed(self) -> None:
        """A request was let through."""
        self._trying = self._retry_at is not None

    def succeeded(self) -> None:
        """A request was answered: all is well."""
        self._failures, self._backoff, self._retry_at, self._trying = 0, self._rule.shortest, None, False

    def gave_up(self) -> None:
        """A request ended and tells nothing, being cancelled or refused with 4xx: let another one try."""
        self._trying = False

    def failed(
        self, now: float, *, at_once: bool = False, grows: bool = True, pause: float | None = None
    ) -> None:
        """A request failed. Those that were on their way when it opened tell nothing new.

        Args:
            now: the moment.
            at_once: open now, whatever the threshold: such failures cost too much to wait for another.
            grows: the next time is twice as long. Not where it is only busy: it may be free any moment.
            pause: open now, for so many seconds.
        """
        self.failed_at = now
        if self.state(now) == "open" and not self._trying:
            return
        was_open = self._retry_at is not None
        self._trying = False
        self._failures += 1
        if was_open and grows:
            self._backoff = min(2 * self._backoff, self._rule.longest)
        if was_open or at_once or pause is not None or self._failures >= self._rule.threshold:
            self._retry_at = now + (self._backoff if pause is None else pause)
