"""The place that workers share, in virtual time: what the scripts in Redis do, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.virtual_workers import Worker
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.peers.share import BEAT_SECONDS, ClaimRefusal, FleetShare, ShareStep, SlotClaim
from ollama_pack.routing.plan.virtual_fleet import Timeline


@dataclass
class SharedPlace:
    """Who holds which slot, and who may load where. Nothing expires here."""

    slots: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    loads: dict[str, SlotClaim] = field(default_factory=dict)

    def claim(self, claim: SlotClaim) -> ClaimRefusal | None:
        """Take a slot; None when it is granted."""
        loading = self.loads.get(claim.node)
        others = loading and loading.request_id != claim.request_id
        if loading and others and (claim.loads or claim.blob in loading.victims):
            return ClaimRefusal("", (loading.request_id,))
        for victim in claim.victims if claim.loads else ():
            if there := self.slots.get((claim.node, victim)):
                return ClaimRefusal(victim, tuple(there))
        here = self.slots.setdefault((claim.node, claim.blob), [])
        if len(here) >= claim.slots and claim.request_id not in here:
            return ClaimRefusal(claim.blob, tuple(here))
        self.renew(claim)
        if claim.loads:
            self.loads[claim.node] = claim
        return None

    def renew(self, claim: SlotClaim) -> None:
        here = self.slots.setdefault((claim.node, claim.blob), [])
        if claim.request_id not in here:
            here.append(claim.request_id)

    def release(self, claim: SlotClaim) -> None:
        here = self.slots.get((claim.node, claim.blob), [])
        if claim.request_id in here:
            here.remove(claim.request_id)
        self.loaded(claim)

    def loaded(self, claim: SlotClaim) -> None:
        loading = self.loads.get(claim.node)
        if loading and loading.request_id == claim.request_id:
            del self.loads[claim.node]


class SharingWorker(Worker):
    """A worker that may be on a bus: then it asks before it sends, and is heard by the others."""

    share: FleetShare
    bus: "Bus | None" = None
    refusals = 0

    def start(self, binding: Assignment) -> None:
        refusal = self.bus.ask(self, binding) if self.bus and self.share.connected else None
        if refusal is None:
            super().start(binding)
        else:
            self.refusals += 1
            self.share.refused(binding, refusal)
            self._clock.after(0.0, self.decide)


class Bus:
    """Brings messages from each to all, with a delay."""

    def __init__(self, workers: Sequence[SharingWorker], clock: Timeline, delay: float = 0.001) -> None:
        self.place = SharedPlace()
        self.messages = 0
        self._workers = workers
        self._clock = clock
        self._delay = delay
        self._beating = False
        for number, worker in enumerate(workers):
            worker.bus = self
            worker.share = FleetShare(worker.scheduler, f"w{number}", lambda: clock.now)
            worker.share.wake = self._flush
        for worker in workers:
            worker.share.join()

    def ask(self, worker: SharingWorker, binding: Assignment) -> ClaimRefusal | None:
        step = worker.share.claim(binding)
        return self._claimed(worker, step)

    def _claimed(self, worker: SharingWorker, step: ShareStep) -> ClaimRefusal | None:
        assert step.claim
        refusal = self.place.claim(step.claim)
        if refusal is None:
            worker.share.granted(step.claim)
            self._tell(step.payload)
        return refusal

    def _flush(self) -> None:
        self._beat_soon()
        for worker in self._workers:
            while worker.share.outbox:
                step = worker.share.outbox.popleft()
                if step.kind == "claim":
                    continue  # asked for by `ask`
                if step.claim and step.kind in ("renew", "release", "loaded"):
                    getattr(self.place, step.kind)(step.claim)
                if step.payload:
                    self._tell(step.payload)

    def _tell(self, payload: bytes) -> None:
        self.messages += 1

        def arrive() -> None:
            for worker in self._workers:
                if worker.share.hear(payload) and worker.scheduler.waiting:
                    worker.decide()

        self._clock.after(self._delay, arrive)

    def _beat_soon(self) -> None:
        if not self._beating and any(worker.busy for worker in self._workers):
            self._beating = True
            self._clock.after(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        self._beating = False
        for worker in self._workers:
            worker.share.beat()
