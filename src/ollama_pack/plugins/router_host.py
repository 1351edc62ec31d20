"""The one router of a plugin, which changes with its valves and loses no chat for it."""

import asyncio

import aiohttp

from ollama_pack.fleet.gpu_nvml import preload_nvml
from ollama_pack.fleet.journey import RouterSettings
from ollama_pack.fleet.nodes import NodeRow
from ollama_pack.fleet.router import Router


class RouterHost:
    """Keeps the router that nodes and settings ask for. Lives on one event loop."""

    def __init__(self) -> None:
        preload_nvml()
        self.current: Router | None = None
        self._made_of: tuple[tuple[NodeRow, ...], RouterSettings] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def router(self, rows: tuple[NodeRow, ...], settings: RouterSettings) -> Router:
        """The router for these nodes and settings, ready; another one once they change."""
        if self.current is None or self._made_of != (rows, settings):
            self._retire()
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            self.current, self._made_of = Router(rows, session, settings), (rows, settings)
        router = self.current
        await router.ready()
        return router

    async def close(self) -> None:
        """Wait for what is under way, then leave all nodes alone. `router` may be asked again afterwards."""
        self._retire()
        await asyncio.gather(*self._closing)

    def _retire(self) -> None:
        """Let the router finish what it has begun."""
        if self.current is not None:
            task = asyncio.get_running_loop().create_task(self.current.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self.current = None
