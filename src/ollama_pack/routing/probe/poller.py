"""Looking at all nodes again and again, for as long as anybody uses them."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp

from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.routing.probe.catalogue import Catalogue, build_catalogue
from ollama_pack.routing.probe.gpu_nvml import GpuReader
from ollama_pack.routing.probe.node_watch import NodeWatch

FIRST_LOOK_SECONDS = 2.0  # that a request waits for nodes which have not been looked at yet
IDLE_SECONDS = 600.0  # without a request or a look at the models, nodes are left alone

log = logging.getLogger(__name__)


class Listens(Protocol):
    """Whoever is told what a look at a node has shown."""

    def looked(self, watch: NodeWatch, *, answers: bool) -> None:
        """What it has stands in the watch, where it answers."""

    def counted(self, watch: NodeWatch, activity: EngineActivity, asked_at: float) -> None:
        """What its engine does for all clients, since which moment at the earliest."""

    def gpus_read(self, watch: NodeWatch) -> None:
        """What its GPUs do stands in `watch.gpus`."""


class NodePoller:
    """Looks at nodes, each in a task of its own."""

    def __init__(
        self,
        nodes: Mapping[str, NodeWatch],
        session: aiohttp.ClientSession,
        seconds: float,
        listener: Listens,
    ) -> None:
        """Take what is needed; nothing is looked at before `ready`.

        Args:
            nodes: by name.
            session: holds the connections to agents.
            seconds: between two looks at a node.
            listener: told what each look has shown.
        """
        self._nodes = nodes
        self._session = session
        self._seconds = seconds
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._gpus = GpuReader()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._used_at = self._loop.time()
        self._closed = False
        self._made: tuple[tuple[Any, ...], Catalogue] = ((), Catalogue())

    @property
    def is_complete(self) -> bool:
        """Whether every node has been looked at once, and those that answer have told of all their models."""
        watches = self._nodes.values()
        return all(watch.looked.is_set() and (watch.is_whole or watch.fault) for watch in watches)

    async def ready(self, seconds: float = FIRST_LOOK_SECONDS) -> None:
        """Wait until every node has been looked at once, but no longer than this."""
        if self._closed:  # a chat that began before an update: its router looks at no node any more
            return
        self._used_at = self._loop.time()
        for name, watch in self._nodes.items():
            if name not in self._tasks or self._tasks[name].done():
                watch.looked.clear()  # what was seen long ago may not be so any more
                self._tasks[name] = self._loop.create_task(self._watch(watch), name=f"watch {name}")
        unseen = [watch.looked for watch in self._nodes.values() if not watch.looked.is_set()]
        if unseen:
            looks = [asyncio.ensure_future(looked.wait()) for looked in unseen]
            try:
                await asyncio.wait(looks, timeout=seconds)
            finally:
                for look in looks:
                    look.cancel()

    def leave(self, name: str) -> None:
        """Look at a node no more."""
        if task := self._tasks.pop(name, None):
            task.cancel()

    async def _watch(self, watch: NodeWatch) -> None:
        try:
            while self._loop.time() - self._used_at < IDLE_SECONDS:
                try:
                    await self._look(watch)
                except Exception:
                    log.exception("Node %s could not be looked at", watch.row.name)
                await watch.rest(self._seconds)
        finally:
            watch.stop()

    async def _look(self, watch: NodeWatch) -> None:
        """What the node has, what its engine does, what its GPUs do: each is told as soon as it is there."""
        answers = await watch.look()
        self._listener.looked(watch, answers=answers)
        asked_at = self._loop.time()
        if answers and (activity := await watch.activity()):
            self._listener.counted(watch, activity, asked_at)
        await watch.look_at_gpus(self._gpus, self._session)
        self._listener.gpus_read(watch)

    def catalogue(self) -> Catalogue:
        """The models of all nodes that answer, or did a short while ago."""
        listed = tuple((name, watch.models) for name, watch in self._nodes.items() if watch.is_listed)
        if listed != self._made[0]:
            self._made = listed, build_catalogue(dict(listed))
        return self._made[1]

    async def close(self) -> None:
        """Leave the nodes alone, for good."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._gpus.close()
