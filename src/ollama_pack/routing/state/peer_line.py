"""Requests that wait at other workers stand in this worker's queue, too.

So a free slot goes to the request that is first, wherever it waits, and what a user has elsewhere counts.
A slot that comes free for another worker's request is left to that worker for a moment. If it is not taken
then, the request steps aside for a while: its worker may see things otherwise, or may be gone.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from ollama_pack.routing.decide.fair_queue import FairQueue, WaitingRequest
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.errors import NoNodeError
from ollama_pack.routing.state.events import (
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    FleetEvent,
    WaitingEvent,
)

MAX_PEER_ENTRIES = 4096
LEFT_SECONDS = 0.1  # for which a free slot is left to another worker's request
ASIDE_SECONDS = 1.0  # until a request whose worker did not take its slot is in line again


@dataclass(slots=True)
class PeerEntry:
    """A request of another worker.

    Attributes:
        worker: where it waits, or was sent from.
        entry: its place in our queue.
        serving: it is at a node.
        aside_until: it is out of line until then; None: it is not.
    """

    worker: str
    entry: WaitingRequest
    serving: bool = False
    aside_until: float | None = None


class PeerLine:
    """Applies what other workers tell of their requests to our queue. Bounded."""

    def __init__(self, queue: FairQueue, expect: Callable[[FleetRequest], float]) -> None:
        """Begin without any.

        Args:
            queue: the scheduler's own.
            expect: the seconds of service that a request may take. Raises NoNodeError: no node has its model.
        """
        self._queue = queue
        self._expect = expect
        self._there: dict[str, PeerEntry] = {}
        self._left: dict[str, float] = {}  # request → since when a free slot is left to it

    def __len__(self) -> int:
        return len(self._there)

    def apply(self, worker: str, event: FleetEvent, now: float) -> None:
        """Take in what a worker tells."""
        match event:
            case WaitingEvent():
                self._waits(worker, _waiting_request(event), now - event.waited, now)
            case BoundEvent() if event.user:
                self._waits(worker, _bound_request(event), now, now)
                self._bound(event.request_id, now)
            case FinishedEvent(request_id, lesson=lesson):
                self._leave(request_id, max(0.0, lesson.spent.total - lesson.spent.load))
            case EndedEvent(request_id) | FailedEvent(request_id):
                self._leave(request_id)

    def _waits(self, worker: str, request: FleetRequest, came: float, now: float) -> None:
        if request.id in self._there or request.id in self._queue or len(self._there) >= MAX_PEER_ENTRIES:
            return
        try:
            cost = self._expect(request)
        except NoNodeError:
            return
        self._there[request.id] = PeerEntry(worker, self._queue.push_peer(request, came, now, cost))

    def _bound(self, request_id: str, now: float) -> None:
        peer = self._there.get(request_id)
        if peer and not peer.serving:
            self._back_in_line(peer)
            peer.serving = True
            self._queue.bound(request_id, now)

    def _leave(self, request_id: str, seconds: float | None = None) -> None:
        peer = self._there.pop(request_id, None)
        if peer is None:
            return
        if peer.serving:
            self._queue.ended(peer.entry, seconds)
        else:
            self._back_in_line(peer)
            self._queue.cancel(request_id)

    def _back_in_line(self, peer: PeerEntry) -> None:
        if peer.aside_until is not None:
            peer.aside_until = None
            self._queue.put_back(peer.entry)

    def forget(self, worker: str, but: Collection[str] = ()) -> None:
        """A worker is gone, or tells that only these are still there."""
        gone = [key for key, peer in self._there.items() if peer.worker == worker and key not in but]
        for request_id in gone:
            self._leave(request_id)

    def forget_all(self) -> None:
        """Nobody tells any more."""
        for request_id in list(self._there):
            self._leave(request_id)

    # --- slots that are left to them ---

    def refresh(self, now: float) -> None:
        """Before a decision: requests that did not take their slot step aside, others step back in line."""
        for request_id, since in list(self._left.items()):
            peer = self._there.get(request_id)
            if peer and not peer.serving and peer.aside_until is None and since + LEFT_SECONDS <= now:
                self._queue.step_aside(peer.entry)
                peer.aside_until = now + ASIDE_SECONDS
        for peer in self._there.values():
            if peer.aside_until is not None and peer.aside_until <= now:
                self._back_in_line(peer)

    def leave_slots(self, request_ids: Iterable[str], now: float) -> float:
        """After a decision: these could begin now. Returns when to decide again if they have not."""
        self._left = {request_id: self._left.get(request_id, now) for request_id in request_ids}
        return min(self._left.values(), default=math.inf) + LEFT_SECONDS


def _waiting_request(event: WaitingEvent) -> FleetRequest:
    return FleetRequest(
        event.request_id,
        event.user,
        event.models,
        blocks=event.blocks,
        max_output=event.max_output,
        context=event.context,
        options=event.options,
        background=event.background,
    )


def _bound_request(event: BoundEvent) -> FleetRequest:
    return FleetRequest(
        event.request_id, event.user, (event.model,), blocks=event.blocks, background=event.background
    )
