"""Who comes next: users with the least in service, then start-time fair queueing; background behind people.

Behind all of them come the requests of users who have used up a budget. They never step between the others.

A request's turn is how many of its user's requests are in service or wait before it: a user who holds several
slots gets no further one while somebody waits who holds fewer. Among equal turns the order is that of start
tags, in seconds of service: the later of the queue's virtual time and the end of the user's request before
(Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996). When an answer ends, its real seconds take the place
of the expected ones. What a user has had lately fades as time passes while nobody waits.

Among many users who ask for about as much, that would only shuffle the order of arrival, and some would wait
for much longer. So in a crowd a user's turns and seconds count from where they are more than what most have.

In a full queue the last request of the user with the most places makes room for a user who has fewer.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, nlargest
from itertools import chain, islice
from operator import attrgetter

from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.errors import QueueFullError
from ollama_pack.routing.naming import fold_name

# The last places are for users who have nothing in the queue: one user's flood must not lock out the others.
RESERVED_SHARE = 0.25
LEEWAY = 4  # times what half of a crowd has: who has no more than that waits in turn
CROWD = 4  # other people, from where on what half of them have is a measure
MOST_OTHERS = 256  # that are looked at
MAX_TAGS = 64  # of users who do not wait, before those that have passed are thrown away
MAX_TURN = 16  # turns further away are equal
MAX_DEBT = 120.0  # seconds of service by which a user comes after others at most

# Whose requests: the user, and whether they are background calls, which do not stand in their user's own way.
Owner = tuple[str, bool]
Place = tuple[int, int, float, int]
_fair_place = attrgetter("place")


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
        turn: how many of its user's requests are in service or wait before it.
        overtaken: how often a request behind it was bound before it.
        tried: nodes that have failed it.
        kind: equal for requests that any node would treat alike, except for their prompts.
        behind: a background call that has not waited behind people for long enough.
        pushed: the queue's virtual time when it came.
        spare_turns, grace: of its turn and its start tag, what is no more than a crowd of others has as well.
        displaced: the request that lost its place to this one; None: there was room.
        peer: it waits at another worker.
        shared: other workers know that it waits.
        place: what fair order goes by, as it was when it got into line.
    """

    request: FleetRequest
    models: tuple[str, ...]
    start: float
    cost: float
    number: int
    came: float
    turn: int = 0
    overtaken: int = 0
    tried: frozenset[str] = field(default_factory=frozenset)
    kind: str = ""
    behind: bool = False
    displaced: FleetRequest | None = None
    pushed: float = 0.0
    spare_turns: int = 0
    grace: float = 0.0
    peer: bool = False
    shared: bool = False
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.get_into_line()

    def get_into_line(self) -> None:
        """Take the place that it has a right to now."""
        rank = 2 if self.request.last else int(self.behind)
        self.place = rank, max(0, self.turn - self.spare_turns), self.tag, self.number

    @property
    def tag(self) -> float:
        """Its start tag, as far as its user is ahead of a crowd."""
        return max(self.pushed, self.start - self.grace)

    @property
    def owner(self) -> Owner:
        return self.request.user, self.request.background


class FairQueue:
    """The requests that wait, in fair order. Bounded by `limit`, and by as many users as wait.

    Requests that wait at other workers (`push_peer`) are in the order, and take no place.
    """

    def __init__(self, limit: int, background_wait: float) -> None:
        self.limit = limit
        self._background_wait = background_wait
        self._order: list[WaitingRequest] = []  # fair
        self._kinds: dict[str, list[WaitingRequest]] = {}  # each in fair order
        self._behind: list[tuple[float, int, WaitingRequest]] = []  # a heap: by when they came
        self._by_id: dict[str, WaitingRequest] = {}
        self._ends: dict[str, float] = {}  # user → the end of the tag of the user's last request
        self._waiting_of: dict[str, int] = {}
        self._own: dict[Owner, list[WaitingRequest]] = {}  # by their start tags
        self._serving: dict[Owner, int] = {}
        self._virtual = 0.0
        self._empty_since = 0.0
        self._count = 0
        self._places = 0  # that are taken

    def __len__(self) -> int:
        return self._places

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[WaitingRequest]:
        return iter(self._by_id.values())

    def get(self, request_id: str) -> WaitingRequest | None:
        """A request that waits."""
        return self._by_id.get(request_id)

    def push(self, request: FleetRequest, now: float, cost: float) -> WaitingRequest:
        """Take a request in, if need be in the place of another: see `displaced` of what is returned.

        Raises:
            QueueFullError: there is no place, or none for this user or for a background call.
        """
        own = self.places_of(request.user)
        yields = request.background or request.last
        reserved = int(self.limit * RESERVED_SHARE) if own or yields else 0
        displaced = None
        if len(self) >= self.limit - reserved:
            displaced = self._one_to_displace(request, own)
            if displaced is None:
                raise QueueFullError(self.limit, len(self), own)
            self.cancel(displaced.id)
        entry = self._enter(request, now, now, cost)
        entry.displaced = displaced
        self._insert(entry)
        return entry

    def push_peer(self, request: FleetRequest, came: float, now: float, cost: float) -> WaitingRequest:
        """Take in a request that waits at another worker, since `came`."""
        entry = self._enter(request, came, now, cost)
        entry.peer = True
        self._insert(entry)
        return entry

    def _enter(self, request: FleetRequest, came: float, now: float, cost: float) -> WaitingRequest:
        if not self._by_id:  # meanwhile everybody could have had what they wanted
            self._virtual += max(0.0, now - self._empty_since)
        self._count += 1
        start = max(self._virtual, self._ends.get(request.user, 0.0))
        self._ends[request.user] = start + cost
        models = tuple(map(fold_name, request.models))
        kind = repr((models, request.background, request.last, request.context, request.options))
        entry = WaitingRequest(request, models, start, cost, self._count, came, kind=kind)
        entry.pushed = self._virtual
        entry.spare_turns, entry.grace = self._leeway(entry.owner)
        return entry

    def _leeway(self, owner: Owner) -> tuple[int, float]:
        """The turns, and the seconds of service, by which an owner may be ahead of a crowd and come in turn.

        It goes by what half of the others have in service and waiting. Of few, one could have most of it.
        """
        others = self._others(owner)
        if len(others) < CROWD:
            return 0, 0.0
        middle = len(others) // 2
        turns = sorted([len(self._own.get(one, ())) + self._serving.get(one, 0) for one in others])
        ends = sorted([self._ends.get(user, 0.0) for user, _ in others])
        return LEEWAY * turns[middle], LEEWAY * max(0.0, ends[middle] - self._virtual)

    def _others(self, owner: Owner) -> list[Owner]:
        """Other people who wait or are served, of many the first."""
        if owner[1]:
            return []
        there = dict.fromkeys(islice(chain(self._serving, self._own), MOST_OTHERS))
        return [one for one in there if one != owner and not one[1]]

    def places_of(self, user: str) -> int:
        """How many requests of a user wait."""
        return self._waiting_of.get(user, 0)

    def _one_to_displace(self, request: FleetRequest, own: int) -> FleetRequest | None:
        """The request that makes room for another one, whose user has `own` places; None: there is none.

        It is the last one of the user with the most places, if that user still has as many as the newcomer
        then. Where nobody has that many, a background call makes room for a person who has no place yet.
        A background call displaces no person. A request that comes behind all others displaces none, and is
        the first to make room for them.
        """
        if request.last:
            return None
        if self._order and self._order[-1].request.last:
            return self._order[-1].request
        places = self._waiting_of
        if request.background:
            places = {user: len(_at_home(held)) for (user, behind), held in self._own.items() if behind}
            own = places.get(request.user, 0)
        user = max(places, key=places.__getitem__, default="")
        if places.get(user, 0) > own + 1:  # of one user, what nobody looks at goes first
            found = _at_home(self._own.get((user, True), ())) or _at_home(self._own.get((user, False), ()))
        else:
            held = () if own or request.background else self._order
            found = [entry for entry in _at_home(held) if entry.request.background]
            if not found:
                return None
        return found[-1].request

    def step_aside(self, entry: WaitingRequest) -> None:
        """Take a request out of the order until it is put back."""
        self._remove(entry)

    def put_back(self, entry: WaitingRequest, failed_node: str = "") -> None:
        """Take a request in again, at the place that it had: a node has failed it, or it was never sent."""
        if failed_node:
            entry.tried |= {failed_node}
            entry.kind += f" {failed_node}"
        self._insert(entry)

    def _insert(self, entry: WaitingRequest) -> None:
        self._by_id[entry.request.id] = entry
        if not entry.peer:
            user = entry.request.user
            self._waiting_of[user] = self._waiting_of.get(user, 0) + 1
            self._places += 1
        own = self._own.setdefault(entry.owner, [])
        before = bisect_left(own, _start_place(entry), key=_start_place)
        entry.turn = min(MAX_TURN, self._serving.get(entry.owner, 0) + before)
        own.insert(before, entry)
        entry.behind = entry.request.background
        if entry.behind:
            heappush(self._behind, (entry.came, entry.number, entry))
        self._line_up(entry)
        self._renew_turns(entry.owner)

    def _line_up(self, entry: WaitingRequest) -> None:
        entry.get_into_line()
        insort(self._order, entry, key=_fair_place)
        insort(self._kinds.setdefault(entry.kind, []), entry, key=_fair_place)

    def _step_out(self, entry: WaitingRequest) -> None:
        alike = self._kinds[entry.kind]
        for entries in (self._order, alike):
            del entries[bisect_left(entries, entry.place, key=_fair_place)]
        if not alike:
            del self._kinds[entry.kind]

    def _renew_turns(self, owner: Owner, later: float = 0.0) -> None:
        """Give an owner's requests the turns that they have now, and start tags that are so much later."""
        serving = self._serving.get(owner, 0)
        for before, entry in enumerate(self._own.get(owner, ())):
            turn = min(MAX_TURN, serving + before)
            if turn == entry.turn and not later:
                if turn == MAX_TURN:
                    return  # and so are those behind
                continue
            self._step_out(entry)
            entry.turn, entry.start = turn, entry.start + later
            self._line_up(entry)

    def order(self, now: float) -> Sequence[WaitingRequest]:
        """All that wait, in fair order; background calls that have waited long enough among the people."""
        self._ripen(now)
        return self._order

    def kinds(self, now: float) -> Mapping[str, Sequence[WaitingRequest]]:
        """The same by kind, each in fair order."""
        self._ripen(now)
        return self._kinds

    def _ripen(self, now: float) -> None:
        """Background calls that have waited behind people for long enough step between them."""
        while (until := self.ripens_at()) is not None and until <= now:
            _, _, entry = heappop(self._behind)
            self._step_out(entry)
            entry.behind = False
            self._line_up(entry)

    def ripens_at(self) -> float | None:
        """When the next background call has waited behind people for long enough; None: none does."""
        behind = self._behind
        while behind and not (behind[0][2].behind and self.get(behind[0][2].request.id) is behind[0][2]):
            heappop(behind)  # it has a node, or nobody wants it any more
        return behind[0][0] + self._background_wait if behind else None

    def bound(self, request_id: str, now: float) -> WaitingRequest:
        """Take out a request that has a node. Those before it in fair order have been overtaken."""
        entry = self._by_id[request_id]
        if not entry.behind:
            for other in self._order[: bisect_left(self._order, entry.place, key=_fair_place)]:
                other.overtaken += 1
        self._virtual = max(self._virtual, entry.tag)
        self._serving[entry.owner] = self._serving.get(entry.owner, 0) + 1
        self._remove(entry)
        self._empty_since = now
        return entry

    def ended(self, entry: WaitingRequest, seconds: float | None = None) -> None:
        """A request that was bound is in service no more.

        Args:
            entry: the request.
            seconds: of service that it took; None: they do not count against its user.
        """
        owner, user = entry.owner, entry.request.user
        self._serving[owner] -= 1
        if not self._serving[owner]:
            del self._serving[owner]
        later = 0.0
        if seconds is not None:
            before = max(self._virtual, self._ends.get(user, 0.0))
            self._ends[user] = min(before + seconds - entry.cost, max(before, self._virtual + MAX_DEBT))
            later = self._ends[user] - before
            if len(others := self._others(owner)) >= CROWD:  # each could have had as much in this time
                self._virtual += seconds / (len(others) + 1)
            self._forget_past()
        self._renew_turns(owner, later)

    def cancel(self, request_id: str) -> None:
        """Take out a request that nobody wants any more. Its user gets the time back."""
        entry = self._by_id[request_id]
        self._remove(entry)
        if entry.request.user in self._ends:
            self._ends[entry.request.user] -= entry.cost

    def _remove(self, entry: WaitingRequest) -> None:
        del self._by_id[entry.request.id]
        self._step_out(entry)
        own = self._own[entry.owner]
        own.remove(entry)
        if not own:
            del self._own[entry.owner]
        self._renew_turns(entry.owner)
        if not entry.peer:
            user = entry.request.user
            self._waiting_of[user] -= 1
            if not self._waiting_of[user]:
                del self._waiting_of[user]
            self._places -= 1
        self._forget_past()

    def _forget_past(self) -> None:
        """Tags of the past mean nothing; of too many others the least is lost."""
        most = 2 * len(self._own) + MAX_TAGS
        if len(self._ends) > most:
            ahead = [(end, name) for name, end in self._ends.items() if end > self._virtual]
            self._ends = {name: end for end, name in nlargest(most, ahead)}


def _at_home(entries: Sequence[WaitingRequest]) -> list[WaitingRequest]:
    """Those that wait at this worker."""
    return [entry for entry in entries if not entry.peer]


def _start_place(entry: WaitingRequest) -> tuple[float, int]:
    return entry.start, entry.number
