"""What a store of the cache does, whichever it is. Values are opaque to it, and times are on its own clock.

A store raises `StoreError` alone, waits without a limit of its own (its caller sets one), and is used from
one event loop. The same tests run on every store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ollama_pack.cache.key import Slot

# `read`: the entry, else the lease, else follow. `refresh`: a generation of one's own, whatever there is.
AcquireMode = Literal["read", "refresh"]
# `stored`; `fenced`: somebody else leads now, or has stored something newer; `flushed`: since it was leased.
CommitResult = Literal["stored", "fenced", "flushed"]


@dataclass(frozen=True, slots=True)
class StoreTimes:
    """How long things stay, in milliseconds of the store's clock.

    Attributes:
        lease: without a sign of life from its leader.
        follower: without a sign of life from it.
        stream: of a generation, after its last record.
        scope: what is known of a scope that nobody uses; longer than any entry.
    """

    lease: int = 3_000
    follower: int = 3_000
    stream: int = 60_000
    scope: int = 7 * 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a scope may keep; beyond it the oldest entries go first.

    Attributes:
        entries: their number.
        octets: their bytes, as they are kept.
    """

    entries: int = 10_000
    octets: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to generate an answer.

    Attributes:
        slot: of the answer.
        token: drawn by the leader; names its stream.
        fence: grows with each lease of the scope.
        epoch: of the scope when it was taken.
        shared: others may follow; False for a refresh.
    """

    slot: Slot
    token: str
    fence: int
    epoch: int
    shared: bool = True


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry was found.

    Attributes:
        sealed: as it was committed.
        fence: of the lease that it was committed under.
        age: in seconds, not negative.
    """

    sealed: bytes
    fence: int
    age: float


@dataclass(frozen=True, slots=True)
class Running:
    """Somebody generates the answer at this moment.

    Attributes:
        slot: of the answer.
        token: of the leader.
    """

    slot: Slot
    token: str


@dataclass(frozen=True, slots=True)
class Tail:
    """A look at a live stream.

    Attributes:
        records: those that came next, in order, none left out.
        alive: the leader was there when the look began. When it was not and there are no records, none
            will come.
    """

    records: tuple[bytes, ...]
    alive: bool


@dataclass(frozen=True, slots=True)
class ScopeUse:
    """How much a scope keeps."""

    entries: int
    octets: int


class CacheStore(Protocol):
    """The operations. Each may be repeated after a lost answer, with the same outcome."""

    async def ping(self) -> None:
        """Connect, and see that it answers."""

    async def acquire(self, slot: Slot, token: str, mode: AcquireMode) -> Kept | Lease | Running:
        """Find the entry, or be its leader or a follower, in one step.

        Args:
            slot: of the answer.
            token: drawn at random for this request; that of the leader if it becomes one.
            mode: whether an entry or a running generation is wanted at all.
        """

    async def find(self, slot: Slot) -> Kept | None:
        """The entry, and no lease where there is none."""

    async def append(self, lease: Lease, first: int, records: Sequence[bytes]) -> bool:
        """Add to the live stream and prolong the lease; False when it is lost.

        Args:
            lease: of the stream.
            first: place of the first record, counted from 1.
            records: at least one.
        """

    async def renew(self, lease: Lease) -> int | None:
        """Prolong the lease; how many processes follow, or None when the lease is lost."""

    async def leave(self, lease: Lease) -> int:
        """Give the lease back unless somebody follows, in one step; how many processes do."""

    async def commit(
        self, lease: Lease, sealed: bytes, ttl: int, quota: Quota, last: tuple[int, bytes]
    ) -> CommitResult:
        """Keep an answer, end its live stream and give the lease back, in one step.

        Args:
            lease: under which it was generated.
            sealed: the entry.
            ttl: milliseconds that it stays.
            quota: of the scope.
            last: place and content of the stream's last record.
        """

    async def release(self, lease: Lease, last: tuple[int, bytes]) -> None:
        """End the live stream and give the lease back, with nothing kept."""

    async def tail(self, running: Running, follower: str, after: int, wait: int) -> Tail:
        """The records after a place; when there are none, wait for some.

        Args:
            running: the stream.
            follower: name of who asks, who counts as following for a while.
            after: place of the last record that is known, 0 for none.
            wait: milliseconds to wait at most.
        """

    async def discard(self, slot: Slot, fence: int | None = None) -> bool:
        """Remove an entry; whether there was one.

        Args:
            slot: of the entry.
            fence: only the entry of this fence. None: any, and what is generated now shall not be kept.
        """

    async def flush(self, scope: str | None = None) -> None:
        """Make all that was kept or leased before unusable: in a scope, by its tag, or everywhere."""

    async def label(self, label: str, slot: Slot, ttl: int) -> None:
        """Remember for `ttl` milliseconds that a label's tag leads to a slot."""

    async def discard_labelled(self, label: str) -> int:
        """Discard what a label's tag leads to; how many entries there were."""

    async def use_of(self, scope: str) -> ScopeUse:
        """How much a scope keeps, by its tag."""

    async def add_counts(self, counts: Mapping[str, float]) -> None:
        """Add to the figures that all processes share."""

    async def counts(self) -> dict[str, float]:
        """The figures of all processes."""

    async def close(self) -> None:
        """Give connections back. It is not used any more after."""
