"""A node as Ollama is, in virtual time: no sockets, no sleeping, thousands of requests in a second.

What it does is what a real one does: requests for a loaded model wait at its runner
without bound; those that must load wait in one line, and one load blocks the others; the idle runner with the
shortest `keep_alive` makes room; prompts are evaluated but for the prefix that a slot still holds; waiting
shows only in the total duration.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ollama_pack.routing.decide.view import PromptBlock

KEEP_SECONDS = 300.0  # Ollama's own `keep_alive`


class Timeline:
    """Virtual time and what happens in it. Ties happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._order), then))

    def after(self, delay: float, then: Callable[[], None]) -> None:
        self.at(self.now + delay, then)

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that is due up to then."""
        while self._due and self._due[0][0] <= until:
            self.now, _, then = heapq.heappop(self._due)
            then()


@dataclass(frozen=True, slots=True)
class Work:
    """What a request makes a node do. The answer's block is what a later prompt may continue."""

    id: str
    model: str
    blocks: tuple[PromptBlock, ...]
    output: int
    answer: PromptBlock | None = None
    context: int = 4096
    load_only: bool = False

    @property
    def tokens(self) -> int:
        return self.blocks[-1].upto


@dataclass(frozen=True, slots=True)
class Spent:
    """What the node reports at the end, in seconds, as Ollama does; `hit` only the simulation knows."""

    total: float
    load: float
    prompt: float
    prompt_count: int
    decode: float
    decode_count: int
    hit: int


@dataclass(frozen=True, slots=True)
class NodeShape:
    """How a node is built. Sizes are in units of one model, or in bytes where a node gets its models' sizes.

    A load takes `load` seconds, or with a `load_rate` what reading so many bytes a second takes. With
    `unloads` a model that was idle for `KEEP_SECONDS` leaves, as in Ollama; otherwise only to make room.
    """

    slots: int = 2
    room: int = 1
    load: float = 4.0
    prompt_rate: float = 700.0
    decode_rate: float = 50.0
    prefixes: int = 1
    load_rate: float = 0.0
    unloads: bool = False


@dataclass(slots=True)
class Job:
    """A request at a node, and whom to tell."""

    work: Work
    came: float
    first_token: Callable[[], None]
    done: Callable[[Spent], None]
    load: float = 0.0
    began: float = 0.0
    cancelled: bool = False


@dataclass(slots=True)
class SimRunner:
    model: str
    context: int
    ready: bool = False
    busy: int = 0
    line: deque[Job] = field(default_factory=deque)
    kept: list[list[PromptBlock]] = field(default_factory=list)
    expires_at: float = 0.0


class SimNode:
    """One Ollama. `loads` counts the times that weights were read into memory."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        shape: NodeShape,
        sizes: Mapping[str, int] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Have nothing in memory.

        Args:
            name: of it.
            timeline: when things happen.
            shape: how it is built.
            sizes: of its models; None: all are of one size.
            kept: models whose chats ask for them to stay in memory.
        """
        self.name = name
        self.shape = shape
        self.loads = 0
        self.runners: dict[str, SimRunner] = {}
        self._sizes = sizes or {}
        self._kept = frozenset(kept)
        self._time = timeline
        self._pending: deque[Job] = deque()
        self._loading = False

    @property
    def outstanding(self) -> int:
        at_runners = sum(runner.busy + len(runner.line) for runner in self.runners.values())
        return at_runners + len(self._pending)

    def submit(self, job: Job) -> None:
        runner = self.runners.get(job.work.model)
        if runner and runner.context >= job.work.context:
            self._join(runner, job)
        else:
            self._pending.append(job)
            self._serve_pending()

    def _serve_pending(self) -> None:
        while self._pending and not self._loading:
            job = self._pending[0]
            runner = self.runners.get(job.work.model)
            if runner and runner.context >= job.work.context:
                self._pending.popleft()
                self._join(runner, job)
            elif runner is None and self._fits(job.work.model):
                self._load(self._pending.popleft())
            elif not self._evict(runner):
                return

    def preload(self, model: str, context: int = 4096) -> None:
        """Have a model in memory from the beginning, and keep it as long as there is another to unload."""
        self.loads += 1
        self.runners[model] = SimRunner(model, context, ready=True, expires_at=math.inf)

    def _size(self, model: str) -> int:
        return self._sizes.get(model, 1)

    def _fits(self, model: str) -> bool:
        return not self.runners or sum(map(self._size, (*self.runners, model))) <= self.shape.room

    def _evict(self, reloaded: SimRunner | None) -> bool:
        """Unload the runner that must go; False: it is busy, and whoever waits waits."""
        idle = [one for one in self.runners.values() if not one.busy and not one.line]
        victim = reloaded or min(idle, key=_stays, default=None)
        if victim is None or victim.busy or victim.line:
            return False
        del self.runners[victim.model]
        return True

    def _expire(self, runner: SimRunner) -> None:
        is_there = self.runners.get(runner.model) is runner
        if is_there and not runner.busy and not runner.line and self._time.now >= runner.expires_at:
            del self.runners[runner.model]

    def _load(self, job: Job) -> None:
        self._loading = True
        self.loads += 1
        shape = self.shape
        job.load = self._size(job.work.model) / shape.load_rate if shape.load_rate else shape.load
        runner = self.runners[job.work.model] = SimRunner(job.work.model, job.work.context)
        runner.line.append(job)

        def loaded() -> None:
            self._loading = False
            runner.ready = True
            self._start_next(runner)
            self._serve_pending()

        self._time.after(job.load, loaded)

    def _join(self, runner: SimRunner, job: Job) -> None:
        runner.line.append(job)
        self._start_next(runner)

    def _start_next(self, runner: SimRunner) -> None:
        while runner.ready and runner.line and runner.busy < self.shape.slots:
            job = runner.line.popleft()
            if not job.cancelled:
                self._start(runner, job)

    def _start(self, runner: SimRunner, job: Job) -> None:
        if job.work.load_only:
            job.done(Spent(self._time.now - job.came, job.load, 0.0, 0, 0.0, 0, 0))
            return
        runner.busy += 1
        job.began = self._time.now
        blocks = job.work.blocks
        hit, slot = self._take_slot(runner, blocks)
        prompt = (job.work.tokens - hit + 1) / self.shape.prompt_rate
        decode = job.work.output / self.shape.decode_rate

        def done() -> None:
            runner.busy -= 1
            if job.work.answer:
                slot.append(job.work.answer)
            stays = math.inf if runner.model in self._kept else self._time.now + KEEP_SECONDS
            runner.expires_at = max(runner.expires_at, stays)
            if self.shape.unloads and runner.expires_at < math.inf:
                self._time.at(runner.expires_at, lambda: self._expire(runner))
            total = self._time.now - job.came
            spent = Spent(total, job.load, prompt, job.work.tokens, decode, job.work.output, hit)
            self._start_next(runner)
            self._serve_pending()
            job.done(spent)

        self._time.after(prompt, job.first_token)
        self._time.after(prompt + decode, done)

    def _take_slot(self, runner: SimRunner, blocks: tuple[PromptBlock, ...]) -> tuple[int, list[PromptBlock]]:
        """The longest prefix that is held, and the slot that now holds this prompt instead."""
        hits = [_common(kept, blocks) for kept in runner.kept]
        best = max(range(len(hits)), key=hits.__getitem__, default=-1)
        hit = hits[best] if hits else 0
        if hits and 2 * hit >= runner.kept[best][-1].upto:  # it continues that prompt
            runner.kept.pop(best)
        slot = list(blocks)
        runner.kept.insert(0, slot)
        del runner.kept[self.shape.prefixes :]
        return hit, slot


def _stays(runner: SimRunner) -> tuple[bool, str]:
    """Ollama unloads those first that stay shortest after a chat, of equals by their digests."""
    return math.isinf(runner.expires_at), runner.model


def _common(kept: list[PromptBlock], blocks: tuple[PromptBlock, ...]) -> int:
    same = itertools.takewhile(lambda pair: pair[0].chain == pair[1].chain, zip(kept, blocks, strict=False))
    return max((block.upto for _, block in same), default=0)
