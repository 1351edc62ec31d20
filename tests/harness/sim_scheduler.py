"""Which models are in a node's memory, and which requests wait for what: Ollama's own scheduler, retold.

A request for a loaded model goes to its runner and waits there for a slot, without bound. One that must load
goes into a line; its head is served until its model is loaded, and all behind it wait. To make room the idle
runner with the shortest ``keep_alive`` goes; when all are busy the one with the shortest goes as soon as it
is idle. A client that leaves while its model is loaded ends the load. All as in server/sched.go of 0.17.4.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from harness.ollama_wire import FOREVER, JSON, Model, RefusalError, resident
from harness.sim_runner import Runner, RunnerOptions, keep_seconds, runner_size
from harness.sim_shape import NodeShape

BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(slots=True)
class Wanted:
    """A request that waits for its model to be loaded. ``got`` is cancelled when its client leaves."""

    model: Model
    options: RunnerOptions
    body: JSON
    got: asyncio.Future["Lease"] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class Lease:
    """A request's right to a runner, which stays meanwhile; ``loaded``: it was loaded for this one."""

    runner: Runner
    loaded: bool


class Scheduler:
    """The memory of one node. Everything happens in one event loop.

    Attributes:
        loaded: runners by the digest of their weights, a loading one included.
        loads: how many times weights were read into memory, or begun to be.
    """

    def __init__(self, shape: NodeShape) -> None:
        self.loaded: dict[str, Runner] = {}
        self.loads = 0
        self._shape = shape
        self._line: deque[Wanted] = deque()
        self._served: Wanted | None = None
        self._serving: asyncio.Task[None] | None = None
        self._unloaded = asyncio.Event()

    @property
    def working(self) -> int:
        """How many requests hold a slot."""
        return sum(runner.working for runner in self.loaded.values())

    @property
    def waiting(self) -> int:
        """How many requests wait for a load, the one that is loading included."""
        return sum(wanted is not None and not wanted.got.done() for wanted in (self._served, *self._line))

    @asynccontextmanager
    async def lease(self, model: Model, body: JSON) -> AsyncIterator[Lease]:
        """Have the model in memory for as long as this is open.

        Raises:
            RefusalError: 503, too many wait for a load.
        """
        lease = await self._lease(model, body)
        try:
            yield lease
        finally:
            self._leave(lease.runner)

    def hold(self, model: Model) -> None:
        """Have a model in memory at once and for ever, as an engine that serves nothing else."""
        runner = Runner(model, RunnerOptions.asked(model, {}), math.inf, self._shape)
        runner.settled.set()
        self.loaded[model.blob] = runner

    async def expire(self, model: Model) -> None:
        """Unload a model as soon as nobody uses it; return before that."""
        if runner := self.loaded.get(model.blob):
            await runner.settled.wait()
            runner.expires_at = asyncio.get_running_loop().time()
            self._send_away(runner)

    def ps(self, *, gpu: bool) -> JSON:
        """Return the answer of /api/ps."""
        listed = [one for one in self.loaded.values() if self._shape.lists_loads or one.settled.is_set()]
        entries = [(self._expires_at(one), one) for one in listed]
        entries.sort(key=lambda entry: entry[0], reverse=True)
        return {"models": [resident(one.model, one.context, one.size, at, gpu=gpu) for at, one in entries]}

    async def close(self) -> None:
        """Forget everything, as a node that is switched off."""
        for runner in self.loaded.values():
            runner.stop_timer()
        if self._serving:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    def _wall(self, seconds: float) -> float:
        return seconds / self._shape.speed

    def _expires_at(self, runner: Runner) -> datetime:
        now = asyncio.get_running_loop().time()
        at = now + self._wall(runner.keep) if runner.expires_at is None else runner.expires_at
        return self._epoch + (FOREVER if math.isinf(at) else timedelta(seconds=at))

    @cached_property
    def _epoch(self) -> datetime:
        """When the loop's time was 0, held fast: a date must not move while the loop's time stands still."""
        return datetime.now(UTC) - timedelta(seconds=asyncio.get_running_loop().time())

    # --- asking for a runner

    async def _lease(self, model: Model, body: JSON) -> Lease:
        options = RunnerOptions.asked(model, body)
        runner = self.loaded.get(model.blob)
        if runner and await _usable(runner, options):
            return self._use(runner, body, loaded=False)
        wanted = Wanted(model, options, body)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve(wanted))
        elif len(self._line) < self._shape.max_queue:
            self._line.append(wanted)
        else:
            raise RefusalError(503, BUSY)
        try:
            return await wanted.got
        except asyncio.CancelledError:
            if wanted.got.done() and not wanted.got.cancelled():  # given and left in the same moment
                self._leave(wanted.got.result().runner)
            raise

    def _use(self, runner: Runner, body: JSON, *, loaded: bool) -> Lease:
        runner.users += 1
        runner.stop_timer()
        runner.keep = keep_seconds(body, runner.keep)
        return Lease(runner, loaded)

    def _leave(self, runner: Runner) -> None:
        runner.users -= 1
        if runner.users:
            return
        if runner.keep <= 0:
            self._unload(runner)
            return
        loop = asyncio.get_running_loop()
        seconds = self._wall(runner.keep)
        runner.expires_at = loop.time() + seconds
        if not math.isinf(seconds):
            runner.timer = loop.call_later(seconds, self._unload, runner)

    # --- the line of those that must load

    async def _serve(self, first: Wanted) -> None:
        """Serve a request, and all that come into the line meanwhile."""
        self._line.appendleft(first)
        while self._line:
            self._served = self._line.popleft()
            if not self._served.got.done():
                await self._place(self._served)

    async def _place(self, wanted: Wanted) -> None:
        """Load what is wanted, after others have gone to make room; or find that it is there by now."""
        while True:
            runner: Runner | None = self.loaded.get(wanted.model.blob)
            if runner and await _usable(runner, wanted.options):
                self._give(wanted, runner, loaded=False)
                return
            if runner is None and self._has_room(wanted):
                await self._load(wanted)
                return
            runner = self.loaded.get(wanted.model.blob) or self._to_unload()
            if runner:
                self._unloaded.clear()
                self._send_away(runner)
                await self._unloaded.wait()

    def _give(self, wanted: Wanted, runner: Runner, *, loaded: bool) -> None:
        if not wanted.got.done():
            wanted.got.set_result(self._use(runner, wanted.body, loaded=loaded))

    def _has_room(self, wanted: Wanted) -> bool:
        if not self.loaded:
            return True
        needed = runner_size(wanted.model, wanted.options, self._shape)
        taken = sum(runner.size for runner in self.loaded.values())
        fits = not self._shape.memory or taken + needed <= self._shape.memory
        return fits and len(self.loaded) < self._shape.max_loaded

    def _to_unload(self) -> Runner | None:
        by_keep = sorted(self.loaded.values(), key=lambda runner: (runner.keep, runner.model.blob))
        return next((runner for runner in by_keep if not runner.users), by_keep[0] if by_keep else None)

    async def _load(self, wanted: Wanted) -> None:
        keep = keep_seconds(wanted.body, self._shape.keep_alive)
        runner = Runner(wanted.model, wanted.options, keep, self._shape)
        self.loaded[wanted.model.blob] = runner
        self.loads += 1
        try:
            await asyncio.wait([wanted.got], timeout=self._shape.load_seconds(wanted.model))
            if wanted.got.done():  # the client left
                self._unload(runner)
            else:
                self._give(wanted, runner, loaded=True)
        finally:
            runner.settled.set()

    # --- unloading

    def _send_away(self, runner: Runner) -> None:
        runner.stop_timer()
        runner.keep = 0.0
        if runner.users <= 0:
            self._unload(runner)

    def _unload(self, runner: Runner) -> None:
        runner.stop_timer()
        runner.gone = True
        if self.loaded.get(runner.model.blob) is runner:
            del self.loaded[runner.model.blob]
        self._unloaded.set()


async def _usable(runner: Runner, options: RunnerOptions) -> bool:
    """Tell whether a runner will do for these options, once it is there; it may be gone by then."""
    await runner.settled.wait()
    return not runner.gone and options.served_by(runner.options)
