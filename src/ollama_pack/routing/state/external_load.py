"""Requests of clients that do not come through us, at one runner or on one node's GPU.

They are not seen, only their traces: a runner that is busy without us, an engine's own count, a GPU at work.
Each is believed to last a usual service. They never hold back ours for ever: when they have had a node to
themselves for long enough, one of ours is sent to stand in the engine's own line.
"""

from dataclasses import dataclass

YIELD_SERVICES = 2.0  # usual services that others may have a runner to themselves while ours wait
STALE_SERVICES = 6.0  # usual services after which what nobody repeats is forgotten
MAX_EXTERNAL = 1024


@dataclass(slots=True)
class ExternalLoad:
    """What others do at one place. Times are seconds on the caller's clock.

    Attributes:
        count: requests of others.
        ends_at: when they are predicted to end.
        since: when they were first seen without one of ours there; None: they are not.
        yields_at: when one of ours goes to stand behind them.
        stale_at: when what was seen is forgotten.
        sure: the engine itself has told; if not, it counts for nothing after `yields_at`.
    """

    count: int = 0
    ends_at: float = 0.0
    since: float | None = None
    yields_at: float = 0.0
    stale_at: float = 0.0
    sure: bool = True

    def seen(self, count: int, now: float, service: float) -> None:
        """So many requests are there now, each of which usually takes so many seconds."""
        self.count = min(count, MAX_EXTERNAL)
        if not self.count:
            self.since = None
            return
        if self.since is None:
            self.since = now
        self.yields_at = self.since + YIELD_SERVICES * service
        self.stale_at = now + STALE_SERVICES * service
        self.ends_at = now + service

    def ours_ended(self, now: float) -> None:
        """One of ours was there: now it is the others' turn again."""
        if self.since is not None:
            self.yields_at += now - self.since
            self.since = now

    def ends(self, now: float, slots: int) -> tuple[float, ...]:
        """When each slot that others hold is free; later for those that wait for one."""
        if not self.count or now >= self.stale_at:
            return ()
        held = self.count
        if now >= self.yields_at:
            held = min(held, slots - 1) if self.sure else 0
        later = max(0, min(held - slots, slots))
        service = max(0.0, self.ends_at - now)
        return (self.ends_at,) * (min(held, slots) - later) + (self.ends_at + service,) * later

    def changes_at(self) -> tuple[float, ...]:
        """When `ends` changes though nothing is told."""
        return (self.yields_at, self.stale_at) if self.count else ()
