"""A port of this machine: served, or refused while nobody else can take it."""

import asyncio
import socket

from aiohttp import web

HOST = "127.0.0.1"
BACKLOG = 1024
_ACCEPTING_TURNS = 3  # of the loop, from accepting a connection to its protocol


class Site:
    """Serves an application on one port. After ``refuse`` and ``close(keep_port=True)`` the port stays ours.

    Attributes:
        port: 0 until it was opened for the first time.
        refusing: nobody listens, though requests on open connections may still come in.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.refusing = False
        self._runner: web.AppRunner | None = None
        self._site: web.BaseSite | None = None
        self._held: socket.socket | None = None

    @property
    def serving(self) -> bool:
        """Tell whether an application is there, though nobody may listen."""
        return self._runner is not None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def open(self, application: web.Application) -> None:
        """Serve.

        Raises:
            OSError: the port is taken.
        """
        # handler_cancellation: a client that leaves ends its generation, as in Ollama
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        try:
            await self.listen()
        except OSError:
            await self.close()
            raise

    async def listen(self) -> None:
        """Listen again after ``refuse``; nothing to do when somebody listens."""
        if self._runner is None or self._site:
            return
        self._listener, self._held = self._held or self._bound(), None
        self._site = web.SockSite(self._runner, self._listener, backlog=BACKLOG)
        await self._site.start()
        self.refusing = False

    async def refuse(self) -> None:
        """Let nobody connect; what runs goes on."""
        if self._site is None:
            return
        self.refusing = True
        await self._stop_listening()
        self._held = self._bound()

    async def close(self, *, keep_port: bool = False) -> None:
        """Cut all connections and stop listening."""
        runner, self._runner = self._runner, None
        await self._stop_listening()
        if runner:
            for connection in runner.server.connections if runner.server else ():
                if connection.transport:
                    connection.transport.abort()
            await runner.cleanup()
            await asyncio.sleep(0)  # transports say good-bye in the loop
        self.refusing = False
        if not keep_port:
            self.release()
        elif self._held is None:
            self._held = self._bound()

    def release(self) -> None:
        """Let others have the port."""
        if self._held:
            self._held.close()
        self._held = None

    async def _stop_listening(self) -> None:
        site, self._site = self._site, None
        if site is None:
            return
        # Accept no more, and let asyncio finish with what it accepted: it loses that when its server closes.
        asyncio.get_running_loop().remove_reader(self._listener)
        for _ in range(_ACCEPTING_TURNS):
            await asyncio.sleep(0)
        await site.stop()

    def _bound(self) -> socket.socket:
        """Return a socket on the port that does not listen: who connects is refused."""
        bound = socket.socket()
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((HOST, self.port))
        except OSError:
            bound.close()
            raise
        self.port = bound.getsockname()[1]
        return bound
