"""Several workers on the same nodes, each with a scheduler of its own: what they tell and ask each other.

They tell what happens to their requests, and each applies what it hears to its own picture of the nodes. A
picture may be a moment old, so a slot is claimed before it is used; whoever is refused has learnt something,
and its request waits again. No input, no output: `share_redis` carries it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.peers.messages import (
    AliveMessage,
    ByeMessage,
    EventMessage,
    FleetMessage,
    HelloMessage,
    StopPullMessage,
    UpkeepMessage,
    decode_message,
    encode_message,
)
from ollama_pack.routing.state.events import BegunEvent, BoundEvent, FleetEvent, WaitingEvent
from ollama_pack.routing.state.peer_requests import node_key
from ollama_pack.routing.state.scheduler import Scheduler

BEAT_SECONDS = 2.0  # between two signs of life
SILENT_SECONDS = 7.0  # after which a worker is taken to be gone
HOLD_SECONDS = 2.0  # for which a request that kept ours out is believed in, unless its worker tells of it
RETRY_SECONDS = 0.25  # after a refusal that taught nothing
MAX_OUTBOX = 4096
_CHAIN_KEY = b"ollama-pack-fleet"


@dataclass(frozen=True, slots=True)
class SlotClaim:
    """A slot of a runner that a request wants to take, or takes.

    Attributes:
        request_id: the request.
        node: key of the node.
        blob: the weights.
        slots: how many the runner is believed to have; 0: it is taken already.
        loads: the weights are loaded first.
        victims: weights that are unloaded for it.
    """

    request_id: str
    node: str
    blob: str
    slots: int
    loads: bool
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimRefusal:
    """Why a claim was refused.

    Attributes:
        blob: the weights whose slots are taken; empty: the node loads something else.
        holders: the requests that have them.
    """

    blob: str
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShareStep:
    """One thing to be done at the shared place, at once there.

    Attributes:
        kind: `claim` a slot; `renew` a claim, which also takes it where it has been forgotten; `release` it;
            its node has `loaded`; or `tell` all workers, which the others do as well.
        claim: what it is about; None for `tell`.
        payload: the message that all workers get; empty: none.
    """

    kind: Literal["claim", "renew", "release", "loaded", "tell"]
    claim: SlotClaim | None = None
    payload: bytes = b""


def chain_key(secret: str) -> bytes:
    """The key for `prompt_blocks`: only who knows the secret can test what was asked. Empty without one."""
    return blake2b(_CHAIN_KEY, key=secret.encode()[:64], digest_size=32).digest() if secret else b""


class SharedUpkeep(Protocol):
    """What this worker does to nodes besides chats, which the others must know of."""

    def own(self, worker: str) -> UpkeepMessage:
        """What it does now."""

    def heard(self, news: UpkeepMessage) -> None:
        """What another worker does."""

    def lost(self, worker: str) -> None:
        """Another worker has gone."""

    def stop_own(self) -> bool:
        """Stop what this worker pulls; false: it pulls nothing."""


class FleetShare:
    """One worker among others. Everything here is done on the scheduler's thread.

    Attributes:
        outbox: steps to be done, in order. Nothing is put there while nobody is connected.
        connected: whether somebody empties it.
        wake: called when something was put there.
        upkeep: what this worker does besides chats; None: nothing.
    """

    def __init__(self, scheduler: Scheduler, worker: str, clock: Callable[[], float]) -> None:
        """Listen to the scheduler.

        Args:
            scheduler: this worker's.
            worker: its name, unique among all.
            clock: the scheduler's.
        """
        self.outbox: deque[ShareStep] = deque(maxlen=MAX_OUTBOX)
        self.connected = False
        self.wake: Callable[[], None] = _nobody_to_wake
        self._scheduler = scheduler
        self._worker = worker
        self._clock = clock
        self._heard_at: dict[str, float] = {}
        self._claims: dict[str, SlotClaim] = {}
        self.upkeep: SharedUpkeep | None = None
        scheduler.listener = self._told

    @property
    def peers(self) -> int:
        """How many other workers there are."""
        return len(self._heard_at)

    @property
    def is_busy(self) -> bool:
        """Whether a request of this worker is at a node."""
        return any(True for _ in self._scheduler.running())

    # --- being there ---

    def join(self) -> None:
        """Connected, for the first time or again: what was heard before may be wrong by now."""
        self.leave()
        self.connected = True
        self._claims = {event.request_id: _claim_of(event) for event in self._scheduler.running()}
        self._renew()
        self._send(HelloMessage(self._worker))
        self._announce()

    def leave(self) -> None:
        """No longer connected: what others do shows in the probes alone."""
        self.connected = False
        self.outbox.clear()
        for worker in list(self._heard_at):
            self._lose(worker)
        self._scheduler.forget_peers()

    def say_bye(self) -> None:
        """This worker ends; what it held is free."""
        for claim in self._claims.values():
            self._put(ShareStep("release", claim))
        self._claims.clear()
        self._send(ByeMessage(self._worker))

    def beat(self) -> None:
        """A sign of life, each `BEAT_SECONDS`. Who is silent for long is forgotten."""
        now = self._clock()
        for worker, heard in list(self._heard_at.items()):
            if now - heard > SILENT_SECONDS:
                self._lose(worker)
        self._send(AliveMessage(self._worker, self._scheduler.request_ids))
        self._renew()
        if self.upkeep and any(one.is_under_way for one in self.upkeep.own(self._worker).pulls):
            self.tell_upkeep()  # how far it is

    def _renew(self) -> None:
        for claim in self._claims.values():
            self._put(ShareStep("renew", claim))

    def _announce(self) -> None:
        there: list[FleetEvent] = [*self._scheduler.running(), *self._scheduler.waiting_events()]
        for event in there:
            self._send(EventMessage(self._worker, event))
        if self.upkeep and self.upkeep.own(self._worker).pulls:
            self.tell_upkeep()

    # --- nodes that are pulled ---

    def tell_upkeep(self) -> None:
        """Let the others know what this worker pulls, and which nodes get nothing new meanwhile."""
        if self.upkeep:
            self._send(self.upkeep.own(self._worker))

    def stop_pull(self) -> None:
        """Ask the worker that pulls to stop."""
        self._send(StopPullMessage(self._worker))

    # --- claiming ---

    def claim(self, binding: Assignment) -> ShareStep:
        """Ask for a slot before a request is sent; all are told when it is granted."""
        quote = binding.chosen.quote
        claim = SlotClaim(
            request_id=binding.request.id,
            node=node_key(self._scheduler.cluster.nodes[binding.node].row),
            blob=quote.blob,
            slots=quote.reused.slots if quote.reused is not None else quote.rates.slots,
            loads=binding.loads,
            victims=quote.victims,
        )
        event = self._scheduler.bound_event(binding.request.id)
        step = ShareStep("claim", claim, encode_message(EventMessage(self._worker, event)))
        self._put(step)
        return step

    def assume(self, binding: Assignment) -> None:
        """Send a request without asking: nobody answers at the moment, and is told later."""
        event = self._scheduler.bound_event(binding.request.id)
        self._claims[event.request_id] = _claim_of(event)
        self._send(EventMessage(self._worker, event))

    def granted(self, claim: SlotClaim) -> None:
        """The slot is ours. Where the request has ended meanwhile it is given back."""
        if self._scheduler.is_running(claim.request_id):
            self._claims[claim.request_id] = claim
        else:
            self._put(ShareStep("release", claim))

    def refused(self, binding: Assignment, refusal: ClaimRefusal) -> None:
        """Somebody else was first: the request waits again, and what kept it out is believed for a while."""
        scheduler, now = self._scheduler, self._clock()
        scheduler.give_back(binding.request.id)
        node, remote = scheduler.cluster.nodes[binding.node], scheduler.cluster.remote
        others = [holder for holder in refusal.holders if not scheduler.is_running(holder)]
        learnt = [remote.hold(node, refusal.blob, holder, now + HOLD_SECONDS) for holder in others]
        if not any(learnt):
            node.pause(now + RETRY_SECONDS)

    # --- telling and hearing ---

    def _told(self, event: FleetEvent) -> None:
        """The scheduler says what happens to a request of ours."""
        claim = self._claims.get(event.request_id)
        payload = encode_message(EventMessage(self._worker, event)) if self.connected else b""
        if claim is None:
            self._put(ShareStep("tell", None, payload))
        elif isinstance(event, BegunEvent):
            self._put(ShareStep("loaded", claim, payload))
        else:
            del self._claims[event.request_id]
            self._put(ShareStep("release", claim, payload))

    def hear(self, payload: bytes) -> bool:
        """Take in a message of any worker. Returns whether to decide anew."""
        message = decode_message(payload)
        if message is None or message.worker == self._worker:
            return False
        if not isinstance(message, ByeMessage):
            self._heard_at[message.worker] = self._clock()
        match message:
            case HelloMessage():
                self._announce()
            case AliveMessage(worker, requests):
                self._scheduler.forget_peer(worker, requests)
            case ByeMessage(worker):
                self._lose(worker)
            case EventMessage(worker, event):
                self._scheduler.hear(worker, event)
            case UpkeepMessage() if self.upkeep:
                self.upkeep.heard(message)
            case StopPullMessage() if self.upkeep:
                self.upkeep.stop_own()
        is_waiting = isinstance(message, EventMessage) and isinstance(message.event, WaitingEvent)
        return not (is_waiting or isinstance(message, HelloMessage))

    def _lose(self, worker: str) -> None:
        self._heard_at.pop(worker, None)
        self._scheduler.forget_peer(worker)
        if self.upkeep:
            self.upkeep.lost(worker)

    def _send(self, message: FleetMessage) -> None:
        self._put(ShareStep("tell", None, encode_message(message)))

    def _put(self, step: ShareStep) -> None:
        if self.connected:
            self.outbox.append(step)
            self.wake()


class Sharing(Protocol):
    """What tells other workers, and hears them.

    Attributes:
        fault: why they cannot be reached, in words; empty: they can, as far as is known.
    """

    fault: str

    def start(self) -> None:
        """Join the others, now or as soon as it is possible. Called whenever the router is used."""

    async def claim(self, binding: Assignment) -> bool:
        """Whether a request may be sent; if not, it waits in the scheduler again."""

    async def close(self) -> None:
        """Leave the others, without waiting long for it."""


# Takes this worker's share and what is to be called when something was heard.
Connect = Callable[[FleetShare, Callable[[], None]], Sharing]


def _claim_of(event: BoundEvent) -> SlotClaim:
    loads = event.loads and event.ready > 0
    return SlotClaim(event.request_id, event.node, event.blob, 0, loads, event.victims)


def _nobody_to_wake() -> None:
    pass
