"""The one router of a plugin, which changes with its valves and loses no chat for it."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.request import getproxies

import aiohttp

from ollama_pack.base.single_flight import process_wide
from ollama_pack.engines.transport import node_session
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.peers.share import Connect
from ollama_pack.routing.probe.gpu_nvml import preload_nvml
from ollama_pack.services.activity import note_chat


class RouterHost:
    """Keeps the router that nodes and settings ask for. Lives on one event loop."""

    def __init__(
        self,
        connect: Callable[[str], Connect | None] = lambda _: None,
        secret: Callable[[], str] = lambda: "",
        trusted: Callable[[], SSLContext | bool] = lambda: True,
    ) -> None:
        """Make no router yet. What is given is asked whenever one is made.

        Args:
            connect: what connects it with other workers over an address; None: it is alone.
            secret: what only these workers know; see `Router`.
            trusted: the certificates of nodes, as `aiohttp.TCPConnector` takes them.
        """
        preload_nvml()
        self.current: Router | None = None
        self.is_left = False
        self._connect, self._secret, self._trusted = connect, secret, trusted
        self._made_of: tuple[tuple[NodeRow, ...], RouterSettings, str] | None = None
        self.closing: set[asyncio.Task[None]] = set()

    async def router(
        self, rows: tuple[NodeRow, ...], settings: RouterSettings, shared_over: str = ""
    ) -> Router:
        """The router for these nodes and settings, ready.

        It goes on, and keeps what it has learned, where nodes have come or gone. Another one is made when
        the row of a node, or a setting, has changed: hold the router before you wait for anything else
        (`holding`), or it may close meanwhile.

        Args:
            rows: the nodes.
            settings: what an admin may set.
            shared_over: for `connect`.
        """
        wanted = rows, settings, shared_over
        if self.current is not None and self._made_of != wanted and self._is_followed_by(wanted):
            self.current.follow(rows)
        elif self.current is None or self._made_of != wanted:
            self.retire()
            connector = aiohttp.TCPConnector(limit=0, ssl=self._trusted())
            session = node_session(connector, trust_env=_environment_counts())
            self.current = Router(
                rows,
                session,
                settings,
                connect=self._connect(shared_over),
                secret=self._secret(),
                note=note_chat,
            )
        self._made_of = wanted
        router = self.current
        with router.held():
            await router.ready()
        while _pulls_left() and router is self.current:
            router.upkeep.go_on(*_pulls_left().pop(0))
        return router

    @contextmanager
    def holding(self, router: Router) -> Iterator[None]:
        """A router that stays open meanwhile. Code that was replaced leaves none behind afterwards."""
        try:
            with router.held():
                yield
        finally:
            if self.is_left:
                self.retire()

    def _is_followed_by(self, wanted: tuple[tuple[NodeRow, ...], RouterSettings, str]) -> bool:
        """Whether only nodes have come or gone."""
        if self.current is None or self._made_of is None or self._made_of[1:] != wanted[1:]:
            return False
        known = {name: watch.row for name, watch in self.current.nodes.items()}
        return all(known.get(row.name, row) == row for row in wanted[0])

    def leave(self) -> None:
        """Other code has taken over: what is still asked here comes late, and gets a router of its own."""
        self.is_left = True
        self.retire()

    async def close(self) -> None:
        """Wait for what is under way, then leave all nodes alone. `router` may be asked again afterwards."""
        self.retire()
        await asyncio.gather(*self.closing)

    def retire(self) -> None:
        """Let the router finish what it has begun, and give its connections back.

        The next router of this process goes on with the models that it pulls.
        """
        if self.current is not None:
            pulls = self.current.upkeep.hand_over()
            task = asyncio.get_running_loop().create_task(self.current.close())
            if pulls:
                _pulls_left().append((pulls, task))
            self.closing.add(task)
            task.add_done_callback(self.closing.discard)
            self.current = None


def _pulls_left() -> list[tuple[list[dict[str, Any]], asyncio.Task[None]]]:
    """The pulls of routers of this process that were replaced, by whatever code, and when each has ended."""
    return process_wide("pulls left", list[tuple[list[dict[str, Any]], asyncio.Task[None]]])


def _environment_counts() -> bool:
    """Whether the environment says how to reach nodes, as for Open WebUI's own connections.

    That is a proxy (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) or a file of logins (.netrc). Without them aiohttp
    need not look for both before every request, which takes two threads and half a millisecond.
    """
    if getproxies().keys() & {"http", "https"}:
        return True
    try:
        return Path(os.environ.get("NETRC") or "~/.netrc").expanduser().is_file()
    except RuntimeError:  # there is no home folder
        return False
