"""Who comes next: start-time fair queueing between users, background calls behind people.

Each request gets a start tag, the later of the queue's virtual time and the end of its user's request before;
the order is that of the tags (Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996). A user who sends many
requests at once gets tags further and further away, and another user's first request goes before them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.errors import QueueFullError
from ollama_pack.routing.naming import fold_name

# The last places are for users who have nothing in the queue: one user's flood must not lock out the others.
RESERVED_SHARE = 0.25
MAX_TAGS = 64  # of users who do not wait, before those that have passed are thrown away


@dataclass(slots=True, eq=False)  # each is itself: they are looked up in lists
class WaitingRequest:
    """A request that waits.

    Attributes:
        request: what waits.
        models: names of its models, as `fold_name` makes them.
        start: its start tag, in seconds of service on the queue's virtual clock.
        cost: the seconds of service that it is expected to take.
        number: counts the requests; breaks ties.
        came: when it came, on the caller's clock.
        overtaken: how often a request behind it was bound before it.
        tried: nodes that have failed it.
        kind: equal for requests that any node would treat alike, but for their prompts. A string, because
            decisions count them, and a string computes its hash once.
    """

    request: FleetRequest
    models: tuple[str, ...]
    start: float
    cost: float
    number: int
    came: float
    overtaken: int = 0
    tried: frozenset[str] = field(default_factory=frozenset)
    kind: str = ""

    @property
    def place(self) -> tuple[float, int]:
        return self.start, self.number


class FairQueue:
    """The requests that wait, in fair order. Bounded by `limit`, and by as many users as wait."""

    def __init__(self, limit: int, patience: float) -> None:
        self.limit = limit
        self._patience = patience
        self._people: list[WaitingRequest] = []
        self._background: list[WaitingRequest] = []
        self._by_id: dict[str, WaitingRequest] = {}
        self._ends: dict[str, float] = {}  # user → the end of the tag of the user's last request
        self._waiting_of: dict[str, int] = {}
        self._virtual = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[WaitingRequest]:
        return iter(self._by_id.values())

    def push(self, request: FleetRequest, now: float, cost: float) -> WaitingRequest:
        """Take a request in.

        Raises:
            QueueFullError: there is no place, or none for this user or for a background call.
        """
        own = self._waiting_of.get(request.user, 0)
        reserved = int(self.limit * RESERVED_SHARE) if own or request.background else 0
        if len(self) >= self.limit - reserved:
            raise QueueFullError(self.limit, len(self), own)
        self._count += 1
        start = max(self._virtual, self._ends.get(request.user, 0.0))
        self._ends[request.user] = start + cost
        models = tuple(map(fold_name, request.models))
        kind = repr((models, request.background, request.context, request.options))
        entry = WaitingRequest(request, models, start, cost, self._count, now, kind=kind)
        self._insert(entry)
        return entry

    def put_back(self, entry: WaitingRequest, failed_node: str = "") -> None:
        """Take a request in again, at the place that it had: a node has failed it, or it was never sent."""
        if failed_node:
            entry.tried |= {failed_node}
            entry.kind += f" {failed_node}"
        self._insert(entry)

    def _insert(self, entry: WaitingRequest) -> None:
        self._by_id[entry.request.id] = entry
        user = entry.request.user
        self._waiting_of[user] = self._waiting_of.get(user, 0) + 1
        insort(self._list_of(entry), entry, key=_fair_place)

    def _list_of(self, entry: WaitingRequest) -> list[WaitingRequest]:
        return self._background if entry.request.background else self._people

    def order(self, now: float) -> list[WaitingRequest]:
        """All that wait, in fair order; background calls that have waited long enough among the people."""
        since = now - self._patience
        ripe = [entry for entry in self._background if entry.came <= since]
        if not ripe:
            return self._people + self._background
        behind = [entry for entry in self._background if entry.came > since]
        return sorted(self._people + ripe, key=_fair_place) + behind

    def is_ripe(self, entry: WaitingRequest, now: float) -> bool:
        """Whether it is a person's, or has waited behind people for long enough."""
        return not entry.request.background or entry.came <= now - self._patience

    def ripens_at(self) -> float | None:
        """When the next background call has waited long enough; None when none waits."""
        return min((entry.came + self._patience for entry in self._background), default=None)

    def bound(self, request_id: str, now: float) -> WaitingRequest:
        """Take out a request that has a node. Those before it in fair order have been overtaken."""
        entry = self._by_id[request_id]
        if self.is_ripe(entry, now):
            for other in self._people[: bisect_left(self._people, entry.place, key=_fair_place)]:
                other.overtaken += 1
        self._virtual = max(self._virtual, entry.start)
        self._remove(entry)
        return entry

    def cancel(self, request_id: str) -> None:
        """Take out a request that nobody wants any more. Its user gets the time back."""
        entry = self._by_id[request_id]
        self._remove(entry)
        if entry.request.user in self._ends:
            self._ends[entry.request.user] -= entry.cost

    def _remove(self, entry: WaitingRequest) -> None:
        user = entry.request.user
        del self._by_id[entry.request.id]
        self._list_of(entry).remove(entry)
        self._waiting_of[user] -= 1
        if not self._waiting_of[user]:
            del self._waiting_of[user]
        if not self._by_id:  # nobody waits, so nobody has had more than a fair share: all begin anew
            self._virtual = max(self._virtual, *self._ends.values()) if self._ends else self._virtual
            self._ends.clear()
        elif len(self._ends) > 2 * len(self._waiting_of) + MAX_TAGS:  # tags of the past mean nothing
            self._ends = {name: end for name, end in self._ends.items() if end > self._virtual}


def _fair_place(entry: WaitingRequest) -> tuple[float, int]:
    return entry.place
