"""What a router has done since it was made, by node and model: for Prometheus."""

from bisect import bisect_left
from dataclasses import dataclass, field

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.state.estimates import Durations

SECONDS_BOUNDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
MAX_PAIRS = 2048  # of a node and a model; more are counted as OTHER models
OTHER = "other"


@dataclass(slots=True)
class SecondsHistogram:
    """Times in classes.

    Attributes:
        counts: how many there were up to each of `SECONDS_BOUNDS`, and above the last.
        total: the sum, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class ModelCounts:
    """What one model did at one node.

    Attributes:
        sent: requests sent there.
        loads: those for which the model had to be loaded.
        failures: those that failed there.
        failovers: failures after which another node was asked for.
        prompt_tokens: of finished answers.
        reused_tokens: of these, what the node held: as the engine reports it, else as it was expected.
        waited: in the queue, of the requests sent.
        predicted: to the first token, of the answers that began.
        actual: the same as measured.
    """

    sent: int = 0
    loads: int = 0
    failures: int = 0
    failovers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    waited: SecondsHistogram = field(default_factory=SecondsHistogram)
    predicted: SecondsHistogram = field(default_factory=SecondsHistogram)
    actual: SecondsHistogram = field(default_factory=SecondsHistogram)


class RouterCounts:
    """Counts what happens to requests.

    Attributes:
        models: node and model → its counts.
        refused: kind of error → chats that ended with it.
    """

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], ModelCounts] = {}
        self.refused: dict[str, int] = {}

    def sent(self, assignment: Assignment) -> None:
        """A request goes to its node."""
        counts = self._of(assignment)
        counts.sent += 1
        counts.loads += assignment.loads
        counts.waited.add(assignment.waited)

    def began(self, assignment: Assignment, elapsed: float) -> None:
        """Its answer begins, so many seconds after it was sent."""
        counts = self._of(assignment)
        counts.predicted.add(assignment.terms.predict_ttft)
        counts.actual.add(elapsed)

    def finished(self, assignment: Assignment, spent: Durations) -> None:
        """It is answered."""
        counts = self._of(assignment)
        prompt = spent.prompt_count or assignment.request.tokens
        counts.prompt_tokens += prompt
        counts.reused_tokens += min(prompt, assignment.hit if spent.hit is None else spent.hit)

    def failed(self, assignment: Assignment) -> None:
        """It failed at its node."""
        self._of(assignment).failures += 1

    def failed_over(self, assignment: Assignment) -> None:
        """After that another node is asked for."""
        self._of(assignment).failovers += 1

    def refuse(self, reason: str) -> None:
        """A chat ended with an error."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def _of(self, assignment: Assignment) -> ModelCounts:
        pair = assignment.node, assignment.model
        if pair not in self.models and len(self.models) >= MAX_PAIRS:
            pair = assignment.node, OTHER
        return self.models.setdefault(pair, ModelCounts())
