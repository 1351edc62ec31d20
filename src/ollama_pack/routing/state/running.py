"""A request at a node, as the scheduler remembers it until it ends."""

from collections.abc import Mapping
from dataclasses import dataclass

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.fair_queue import WaitingRequest
from ollama_pack.routing.decide.prefix import MatchDepth
from ollama_pack.routing.decide.view import KeptPrefix, RunnerOptions
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.events import BoundEvent
from ollama_pack.routing.state.model_stats import Lesson
from ollama_pack.routing.state.node_state import NodeState, RunnerState
from ollama_pack.routing.state.peer_requests import node_key


@dataclass(frozen=True, slots=True)
class Undo:
    """What a request has changed by being bound, as it was before."""

    evicted: Mapping[str, RunnerState]
    loading_until: float
    prefixes: tuple[KeptPrefix, ...]


@dataclass(slots=True)
class RunningRequest:
    """A request at a node, `since` when. `wanted` is as `InstalledModel.wanted` gives it."""

    entry: WaitingRequest
    assignment: Assignment
    node: NodeState
    runner: RunnerState
    beside: int
    match: MatchDepth
    undo: Undo
    wanted: tuple[int, RunnerOptions]
    since: float
    answering: bool = False

    def event(self, now: float) -> BoundEvent:
        """As other workers are told of it."""
        assignment, runner = self.assignment, self.runner
        loading = assignment.loads and not self.answering
        context, options = self.wanted
        return BoundEvent(
            request_id=assignment.request.id,
            node=node_key(self.node.row),
            model=assignment.model,
            blob=runner.blob,
            loads=assignment.loads,
            victims=assignment.victims,
            context=context,
            options=options,
            ready=max(0.0, runner.ready_at - now) if loading else 0.0,
            left=max(0.0, runner.ends.get(assignment.request.id, now) - now),
            blocks=assignment.request.blocks,
            user=assignment.request.user,
            background=assignment.request.background,
        )

    def lesson(self, spent: Durations) -> Lesson:
        """What it teaches, now that it is answered."""
        return Lesson(
            spent=spent,
            match=self.match,
            beside=self.beside,
            background=self.assignment.request.background,
            loaded=self.assignment.loads,
        )
