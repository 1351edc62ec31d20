"""A model in a node's memory: its slots, the prompts that it holds, and when it is unloaded."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

from harness.ollama_wire import FOREVER, JSON, Model, keep_alive_of
from harness.sim_prompt import PrefixCells, token_count
from harness.sim_shape import NodeShape

LEAST_CONTEXT = 4
LEAST_VISION_CONTEXT = 2048
BYTES_PER_CONTEXT_TOKEN = 22_604  # of SmolLM2-135M: 30 layers, 3 heads of keys and values, 64 numbers


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The options that a runner is started with. Any other value means that it must be started anew."""

    num_ctx: int
    num_batch: object = None
    num_gpu: object = None
    main_gpu: object = None
    use_mmap: object = None
    num_thread: object = None

    @classmethod
    def asked(cls, model: Model, body: JSON) -> Self:
        """Return what a request asks for; what it leaves out the model says."""
        options = body.get("options") or {}
        own = {key: options.get(key) for key in cls.__slots__ if key != "num_ctx"}
        least = LEAST_VISION_CONTEXT if "vision" in model.capabilities else LEAST_CONTEXT
        return cls(max(least, int(options.get("num_ctx") or model.num_ctx)), **own)

    def served_by(self, running: "RunnerOptions") -> bool:
        """Tell whether a runner with these options will do; ``num_gpu`` matters only where it is asked."""
        return self == (running if self.num_gpu is not None else replace(running, num_gpu=None))


def keep_seconds(body: JSON, default: float) -> float:
    """Return the simulated seconds of a request's ``keep_alive``; infinity means for ever."""
    given = body.get("keep_alive")
    if given is None:
        return default
    kept = keep_alive_of(given)
    return math.inf if kept == FOREVER else kept.total_seconds()


@dataclass(slots=True)
class Turn:
    """A request's use of a slot.

    Attributes:
        prompt_tokens: of its prompt.
        hit_tokens: those among them that were held from before.
        said: the answer so far, which the slot holds as well afterwards.
    """

    prompt_tokens: int
    hit_tokens: int
    said: str = ""


class Runner:
    """One model in memory, used by the requests of one event loop.

    Attributes:
        model: under the name that loaded it.
        keep: simulated seconds that it stays when idle; infinity means for ever, 0 that it must go.
        users: requests that have it, at work or waiting for a slot.
        expires_at: loop time at which it is unloaded if nobody comes. It stands still while requests run.
        settled: set when the load has ended; ``gone`` tells whether it came to nothing.
    """

    def __init__(self, model: Model, options: RunnerOptions, keep: float, shape: NodeShape) -> None:
        slots = shape.slots if "completion" in model.capabilities else 1
        self.model = model
        self.options = options
        self.keep = keep
        self.users = 0
        self.gone = False
        self.settled = asyncio.Event()
        self.expires_at: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.working = 0
        self.size = runner_size(model, options, shape)
        self._slots = asyncio.Semaphore(slots)
        self._cells = PrefixCells(slots, shape.prefixes)

    @property
    def context(self) -> int:
        """Tokens. More than the model was trained for is not given."""
        return min(self.options.num_ctx, self.model.context_length)

    def stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None

    @asynccontextmanager
    async def slot(self, prompt: str, *, reuse: bool = True) -> AsyncIterator[Turn]:
        """Wait for a slot, in the order of asking, and hold it; ``reuse`` what is held of the prompt."""
        async with self._slots:
            cell, hit = self._cells.take(prompt)
            turn = Turn(token_count(prompt), hit if reuse else 0)
            self.working += 1
            try:
                yield turn
            finally:
                self.working -= 1
                cell.busy = False
                cell.text += turn.said


def runner_size(model: Model, options: RunnerOptions, shape: NodeShape) -> int:
    """Return the bytes of memory that a runner takes: weights, and a context for each slot."""
    context = min(options.num_ctx, model.context_length)
    return model.size + context * BYTES_PER_CONTEXT_TOKEN * shape.slots
