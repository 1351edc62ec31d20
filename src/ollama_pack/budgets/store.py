"""What a store of budgets does, and the values that it takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ollama_pack.budgets.period import Period

RESERVATION_SECONDS = 90.0  # after which a reservation that nobody renews is gone: its worker has died
SETTLED_SECONDS = 900.0  # that a settled reservation is remembered, so that it is not settled twice
SKEW_SECONDS = 3600  # by which the clocks of two replicas may differ


@dataclass(frozen=True, slots=True)
class Limit:
    """A counter, and how far it may go.

    Attributes:
        counter: its name.
        amount: what may be used in the period.
        burst: how much more may be used once.
        period: the one that is now.
        strict: a chat is not begun once it is used up.
    """

    counter: str
    amount: int
    burst: int
    period: Period
    strict: bool = False

    def is_used_up(self, count: "Count") -> bool:
        return count.used + count.reserved >= self.amount + self.burst


@dataclass(frozen=True, slots=True)
class Count:
    """What a counter says.

    Attributes:
        used: in this period.
        reserved: for chats that are under way.
    """

    used: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class StoredCount:
    """A counter as the store has it, for lists.

    Attributes:
        counter: its name.
        start: when the period began that it counts.
        used: in that period.
        reserved: for chats that are under way.
    """

    counter: str
    start: int
    used: int
    reserved: int


class BudgetStore(Protocol):
    """Counters that several processes share. Each method is one step; a `BudgetStoreError` is its failure."""

    async def reserve(
        self, token: str, limits: Sequence[Limit], amounts: Sequence[int], now: float, *, always: bool
    ) -> tuple[bool, tuple[Count, ...]]:
        """Reserve an amount on each counter, unless a strict one is used up.

        Args:
            token: names the reservation.
            limits: the counters.
            amounts: what to reserve on each.
            now: seconds since the epoch.
            always: reserve also where a strict counter is used up.

        Returns:
            Whether it was reserved, and each counter as it was before.
        """

    async def settle(self, token: str, limits: Sequence[Limit], spent: Sequence[int], now: float) -> bool:
        """Put what was used in the place of what was reserved; False: that was done before."""

    async def renew(self, tokens: Sequence[str], now: float) -> None:
        """Keep reservations, whose chats are still under way, for another while."""

    async def counts(self, limits: Sequence[Limit], now: float) -> tuple[Count, ...]:
        """What the counters say."""

    async def all_counts(self, now: float) -> tuple[StoredCount, ...]:
        """Every counter that was used lately."""

    async def close(self) -> None:
        """Give back what it holds."""


def rolled(start: int | None, used: int, limit: Limit, now: float) -> tuple[int, int]:
    """A counter as it is in the period that is now: when that began, and what is used in it.

    Args:
        start: when the period began that the counter counts; None: there is no counter yet.
        used: in that period.
        limit: of the counter.
        now: seconds since the epoch.
    """
    ours = limit.period.start
    if start is None:
        return ours, 0
    if start < ours:
        over = min(max(0, used - limit.amount), limit.burst)
        return ours, over if start == limit.period.before else 0
    # Later than ours: another replica's clock is a little ahead, or the clock was wrong and is set right.
    return (start if start <= now + SKEW_SECONDS else ours), used
