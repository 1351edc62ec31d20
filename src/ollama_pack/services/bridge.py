"""The pack's async core for a server that calls from threads: an event loop of its own, in its own thread.

The Pipelines server goes through a streamed answer in threads of a pool that all requests share, and each
stream holds one of them for as long as it waits for its next line. So each stream of ours brings a thread
of its own to the pool, and takes it away when it ends: nobody else ever waits for it.

anyio is imported where it is used: upload.py loads a pipeline where the server's packages are not.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from ollama_pack.services.line_stream import Lines, LineStream, pump_lines

FAREWELL_SECONDS = 1.0  # that a server's end waits for ours

log = logging.getLogger(__name__)

T = TypeVar("T")


class Portal(Protocol):
    """anyio's `BlockingPortal`: the way to an event loop for other threads."""

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call or await something on the loop, and wait for it."""


class ThreadPool:
    """The pool of the server whose event loop runs here: streams bring their own threads to it."""

    def __init__(self) -> None:
        from anyio.to_thread import current_default_thread_limiter  # noqa: PLC0415 - see the top

        self._loop = asyncio.get_running_loop()
        self._limiter = current_default_thread_limiter()

    def grow(self) -> None:
        """Add a thread. May be called from any."""
        self._soon(1)

    def shrink(self) -> None:
        """Take a thread away. May be called from any."""
        self._soon(-1)

    def _soon(self, threads: int) -> None:
        try:
            self._loop.call_soon_threadsafe(self._add, threads)
        except RuntimeError:  # the server's loop is closed, and its pool with it
            log.debug("The server has ended before a stream")

    def _add(self, threads: int) -> None:
        self._limiter.total_tokens += threads


class Bridge:
    """Runs the core for threads and for other event loops. Starts when it is first used.

    After `retire` it ends with the last work that is under way. Used once more, it starts again until then.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        """Take what is called on the loop before it ends."""
        self._closing = closing
        self._lock = threading.RLock()  # again in one thread: a stream may be forgotten at any point
        self._home: _LoopThread | None = None
        self._pool: ThreadPool | None = None
        self._retired = False
        self._uses = 0

    def use_pool(self, pool: ThreadPool) -> None:
        """Say whose threads will wait."""
        self._pool = pool

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the loop and wait for it, in a thread that has no loop of its own."""
        home = self._begin()
        try:
            return asyncio.run_coroutine_threadsafe(work(), home.loop).result()
        finally:
            self._leave()

    def stream(self, lines: Lines) -> LineStream:
        """What an iterator on the loop yields, for a thread. The iterator is closed with the stream."""
        home = self._begin()
        try:
            kept: SimpleQueue[str | None] = SimpleQueue()
            pump = asyncio.run_coroutine_threadsafe(pump_lines(lines, kept), home.loop)
            return LineStream(kept, pump, self._leave)
        except BaseException:
            self._leave()
            raise

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the loop and wait for it on another one."""
        home = self._begin()
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), home.loop))
        finally:
            self._leave()

    def soon(self, callback: Callable[[], object]) -> None:
        """Call something on the loop without waiting for it; nothing where the loop does not run."""
        home = self._home
        if home is not None:
            with suppress(RuntimeError):  # it has just ended
                home.loop.call_soon_threadsafe(callback)

    async def retire(self) -> None:
        """Take no part in the server's life any more. What is under way goes on, and is not waited for."""
        with self._lock:
            self._retired = True
            home = self._end_if_idle()
        if home is not None:
            await asyncio.wait([asyncio.wrap_future(home.ended)], timeout=FAREWELL_SECONDS)

    def _begin(self) -> "_LoopThread":
        if self._pool:
            self._pool.grow()
        with self._lock:
            self._uses += 1
            if self._home is None:
                self._home = _LoopThread(self._closing)
            return self._home

    def _leave(self) -> None:
        if self._pool:
            self._pool.shrink()
        with self._lock:
            self._uses -= 1
            self._end_if_idle()

    def _end_if_idle(self) -> "_LoopThread | None":
        home = self._home
        if home is None or not self._retired or self._uses:
            return None
        self._home = None
        home.over.set()
        return home


class _LoopThread:
    """A running event loop in a thread of its own, and a second thread that keeps it until it is over.

    Attributes:
        portal: the way in for threads.
        loop: the loop.
        over: set to end it.
        ended: done when it has.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        """Start it. `closing` is called on the loop before it ends."""
        started: Future[Portal] = Future()
        self.over = threading.Event()
        self.ended: Future[None] = Future()
        keep = threading.Thread(target=self._keep, args=(started, closing), name="ollama-pack", daemon=True)
        keep.start()
        self.portal = started.result()
        self.loop: asyncio.AbstractEventLoop = self.portal.call(asyncio.get_running_loop)

    def _keep(self, started: Future[Portal], closing: Callable[[], Awaitable[None]]) -> None:
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415 - see the top

        try:
            with start_blocking_portal() as portal:
                started.set_result(portal)
                self.over.wait()
                portal.call(closing)
        except Exception as error:
            if started.done():
                log.exception("An event loop did not end well")
            else:
                started.set_exception(error)
        finally:
            self.ended.set_result(None)
