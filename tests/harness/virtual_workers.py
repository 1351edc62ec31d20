"""The router's own scheduler over simulated nodes: one, or several that do not see each other."""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from harness.virtual_chats import Call, Done
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.plan.virtual_fleet import Job, SimNode, Spent, Timeline, Work
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.node_state import ResidentModel
from ollama_pack.routing.state.scheduler import Scheduler

PROBE_SECONDS = 5.0


class Worker:
    """A scheduler, told of what happens as the router's shell would tell it."""

    def __init__(  # noqa: PLR0913 - what differs from one run to the next
        self,
        nodes: Sequence[SimNode],
        clock: Timeline,
        models: int,
        dice: Random,
        slots: int | None = None,
        *,
        exact: bool = False,
        **options: Any,
    ) -> None:
        """Look at the nodes once.

        Args:
            nodes: shared with other workers.
            clock: the same for all.
            models: `m0` to so many are installed everywhere.
            dice: of this worker.
            slots: what the rows say.
            exact: the nodes report how many tokens of a prompt they have reused.
            options: the scheduler's own.
        """
        rows = [NodeRow(node.name, f"http://{node.name}", slots=slots) for node in nodes]
        self.scheduler = Scheduler(rows, lambda: clock.now, dice, **{"max_queue": 100_000, **options})
        self.times: list[tuple[int, int]] = []  # of each decision: nanoseconds, and how many waited
        self._clock = clock
        self._exact = exact
        self._nodes = {node.name: node for node in nodes}
        self._calls: dict[str, tuple[Call, Callable[[], None], Done]] = {}
        self._installed = {f"m{n}": InstalledModel(f"m{n}", 1) for n in range(models)}
        self._probing = False
        self._woken = -1.0
        self._probe()

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._calls)

    def send(self, call: Call, first_token: Callable[[], None], done: Done) -> None:
        work = call.work
        self._calls[work.id] = (call, first_token, done)
        request = FleetRequest(
            work.id, call.user, (work.model,), call.chat, work.blocks, background=call.background
        )
        self.scheduler.submit(request)
        self.decide()
        if not self._probing:
            self._probing = True
            self._clock.after(PROBE_SECONDS, self._probe_again)

    def _probe_again(self) -> None:
        self._probe()
        self.decide()
        self._probing = bool(self._calls)
        if self._probing:
            self._clock.after(PROBE_SECONDS, self._probe_again)

    def _probe(self) -> None:
        for name, node in self._nodes.items():
            residents = [
                ResidentModel(runner.model, 1, runner.context, runner.expires_at)
                for runner in node.runners.values()
                if runner.ready
            ]
            self.scheduler.cluster.probed(name, self._installed, residents)

    def decide(self) -> None:
        waiting = self.scheduler.waiting
        began = time.thread_time_ns()
        bindings = self.scheduler.decide()
        self.times.append((time.thread_time_ns() - began, waiting))
        for binding in [*bindings, *self.scheduler.load_ahead()]:
            self.start(binding)
        wake = self.scheduler.wake_at
        if wake is not None and wake != self._woken:
            self._woken = wake
            self._clock.at(wake, self.decide)

    def start(self, binding: Assignment) -> None:
        request_id = binding.request.id
        if binding.request.load_only:
            self._load(binding)
            return
        call, first_token, done = self._calls[request_id]

        def began() -> None:
            self.scheduler.first_token(request_id)
            first_token()
            self.decide()

        def ended(spent: Spent) -> None:
            del self._calls[request_id]
            self.scheduler.finished(request_id, durations(spent, exact=self._exact))
            done(spent)
            self.decide()

        self._nodes[binding.node].submit(Job(call.work, self._clock.now, began, ended))

    def _load(self, binding: Assignment) -> None:
        """Load a model that nobody waits for."""
        request_id = binding.request.id

        def loaded(spent: Spent) -> None:
            self.scheduler.finished(request_id, durations(spent))
            self.decide()

        work = Work(request_id, binding.model, (), 0, load_only=True)
        self._nodes[binding.node].submit(Job(work, self._clock.now, lambda: None, loaded))


class Workers:
    """Several workers behind something that spreads calls by chance, as a load balancer does."""

    def __init__(self, workers: Sequence[Worker], dice: Random) -> None:
        self.workers = workers
        self._dice = dice

    def send(self, call: Call, first_token: Callable[[], None], done: Done) -> None:
        self._dice.choice(self.workers).send(call, first_token, done)


def durations(spent: Spent, *, exact: bool = False) -> Durations:
    """What the simulated node reports, as the scheduler takes it."""
    return Durations(
        spent.total,
        spent.load,
        spent.prompt,
        spent.prompt_count,
        spent.decode,
        spent.decode_count,
        spent.hit if exact else None,
    )
