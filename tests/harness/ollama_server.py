"""A node in the running event loop: what answers as Ollama does, faults on command, and when it listens."""

import asyncio
from collections.abc import Iterable
from typing import Self

from harness.ollama_routes import NodeRoutes, Request
from harness.ollama_state import NodeState
from harness.ollama_wire import Model
from harness.sim_control import node_routes
from harness.sim_faults import Fault, FaultBook
from harness.sim_shape import INSTANT, EngineWords, NodeShape
from harness.sim_site import Site

__all__ = ["NodeServer"]


class NodeServer:
    """One node. All but what is said to be safe is for its event loop.

    Args:
        models: installed at first.
        shape: its slots, memory and rates.
        gpu: loaded models are in the memory of a GPU.
        version: of Ollama.
        engine: whose protocol it speaks.
        port: 0 lets the system choose; it stays the same when the node is started again.
        keep_requests: keep each body in ``requests``, which grows without bound.

    Attributes:
        state: models, answers and records; any thread may look, install and enqueue.
        faults: in force; any thread may add and clear, but use ``command`` for "refuse".
        requests: with a body, in order.
    """

    def __init__(  # noqa: PLR0913 - all but the models have defaults and are named
        self,
        models: Iterable[Model],
        *,
        shape: NodeShape = INSTANT,
        gpu: bool = True,
        version: str = "0.17.4",
        engine: EngineWords = "ollama",
        port: int = 0,
        keep_requests: bool = True,
    ) -> None:
        self.state = NodeState(models, shape, gpu=gpu)
        self._engine = engine
        self.faults = FaultBook()
        self.requests: list[Request] = []
        self._site = Site(port)
        self._routes = NodeRoutes(
            self.state,
            self.faults,
            version,
            refusing=lambda: self._site.refusing,
            keep=self.requests.append if keep_requests else lambda _: None,
            engine=engine,
        )
        self._reopening: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return self._site.url

    async def __aenter__(self) -> Self:
        """Start the node."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the node."""
        await self.stop()

    async def start(self) -> None:
        """Serve, with nothing loaded and on the same port as before; a node that serves goes on as it is.

        Raises:
            OSError: the port is taken.
        """
        if self._site.serving:
            return
        self.state.restart()
        if self._engine != "ollama":
            for model in self.state.models.values():
                self.state.scheduler.hold(model)
        application = self._routes.application()
        application.add_routes(node_routes(self))
        await self._site.open(application)

    async def stop(self) -> None:
        """Cut all connections and stop listening, as a node that is switched off; again: nothing to do."""
        await self._close(keep_port=False)

    async def kill(self) -> None:
        """Stop, but let nobody else have the port until ``start`` or ``stop``."""
        await self._close(keep_port=True)

    async def command(self, *faults: Fault) -> None:
        """Put faults in force, behind those that are."""
        self.faults.add(faults)
        for fault in faults:
            if fault.kind == "refuse":
                await self._site.refuse()
                if fault.seconds:
                    loop = asyncio.get_running_loop()
                    self._reopening = loop.call_later(fault.seconds, self._spawn_heal, fault)

    async def clear_faults(self) -> None:
        """Let all be well again. What hangs goes on hanging."""
        self.faults.clear()
        if self._reopening:
            self._reopening.cancel()
        await self._site.listen()

    async def _close(self, *, keep_port: bool) -> None:
        if self._reopening:
            self._reopening.cancel()
        await self._site.close(keep_port=keep_port)
        await self.state.scheduler.close()

    def _spawn_heal(self, fault: Fault) -> None:
        async def heal() -> None:
            self.faults.remove(fault)
            await self._site.listen()

        task = asyncio.create_task(heal())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
