"""What a simulated node noted of each request, and the sums: for assertions, and for benchmarks."""

import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from harness.ollama_wire import JSON

__all__ = ["NodeStats", "Outcome", "Record"]

KEPT = 100_000
Outcome = Literal["running", "done", "left", "refused", "failed"]


@dataclass(slots=True)
class Record:
    """One request for text or vectors. Times are Unix times in seconds, durations seconds, all on the wall.

    Attributes:
        number: in the order of arrival, from 1.
        path: such as /api/chat.
        model: as asked for.
        came: when its body was there.
        loaded: weights were read into memory for it.
        load: from its arrival until it had a runner: a load, and the waiting for others' before it.
        wait: for a slot.
        prompt_tokens: of its prompt, held ones included.
        hit_tokens: those that were held from before.
        first_token: when its first token was there; None: it never was.
        output_tokens: sent so far.
        ended: when it was over.
        outcome: "left": the client closed the connection; "refused": a status instead of an answer; "failed":
            a fault spoiled the answer.
        fault: what was commanded for it.
    """

    number: int
    path: str
    model: str
    came: float
    loaded: bool = False
    load: float = 0.0
    wait: float = 0.0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    first_token: float | None = None
    output_tokens: int = 0
    ended: float | None = None
    outcome: Outcome = "running"
    fault: str | None = None

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended = time.time()


@dataclass(slots=True)
class NodeStats:
    """The records of a node, oldest first, and their number; the oldest of very many are dropped."""

    records: deque[Record] = field(default_factory=lambda: deque(maxlen=KEPT))
    came: int = 0

    def begin(self, path: str, model: str, now: float) -> Record:
        self.came += 1
        record = Record(self.came, path, model, now)
        self.records.append(record)
        return record

    def clear(self) -> None:
        """Forget the records. Requests that run go on, and count no more."""
        self.records.clear()
        self.came = 0

    def totals(self) -> JSON:
        """Return sums over the records that are kept; ``requests`` counts all that ever came."""
        records = list(self.records)
        outcomes = Counter(record.outcome for record in records)
        prompt = sum(record.prompt_tokens for record in records)
        hit = sum(record.hit_tokens for record in records)
        return {
            "requests": self.came,
            **{outcome: outcomes[outcome] for outcome in get_args(Outcome)},
            "cold_loads": sum(record.loaded for record in records),
            "prompt_tokens_evaluated": prompt - hit,
            "prompt_tokens_reused": hit,
            "output_tokens": sum(record.output_tokens for record in records),
        }

    def last(self, count: int) -> list[JSON]:
        """Return the latest records, oldest first."""
        records = list(self.records)
        return [asdict(record) for record in records[max(0, len(records) - count) :]]
