"""One generation for many: the leader's side. It runs in a task, so that it can outlive its own client."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import orjson

from ollama_pack.cache.collect import AnswerCollector
from ollama_pack.cache.counters import CacheCounters
from ollama_pack.cache.entry import Entry, seal_entry
from ollama_pack.cache.guard import StoreGuard, StoreTrouble
from ollama_pack.cache.keyring import Keyring, StreamCipher
from ollama_pack.cache.live import LiveAnswer
from ollama_pack.cache.outcome import Question
from ollama_pack.cache.store import CacheStore, Lease, Quota

# A record is a chunk's JSON, or one of these. Both are sealed like the chunks, so that nobody who can write
# into the store can make half an answer look like a whole one.
END_RECORD, LOST_RECORD = b"null", b"false"

_RETRY_SECONDS = 0.05  # between two tries to reach a store that is in trouble
_SETTLED_SECONDS = 0.005  # until a lease is looked after: by then its upstream has been asked

T = TypeVar("T")

Upstream = Callable[[], AsyncGenerator[dict[str, Any], None]]


@dataclass(frozen=True, slots=True)
class CacheRules:
    """How the cache behaves.

    Attributes:
        ttl_seconds: that an answer is kept; a hit does not prolong it.
        jitter: by which part of it this varies, so that not all of a morning's answers end at once.
        max_entry_octets: bytes of an entry; a longer answer is not kept.
        max_live_octets: bytes of the chunks of an answer while it is generated; a longer one, perhaps without
            an end, goes on for those who read it, and nobody else can join them.
        quota: of a scope.
        heartbeat_seconds: between signs of life of a leader; a third of `StoreTimes.lease`.
        first_tail_seconds: that a follower waits in one call for the first record; so long it takes to
            notice that the store is gone, while it could still generate by itself.
        tail_seconds: that it waits in one call for more.
        patience_seconds: that it waits for a store in trouble, once it has shown a part; and a leader, with
            the end of what it shares.
        max_detached: generations of a process that may go on when their own client has left.
        detached_seconds: for how long each.
        publish_seconds: between two times that the figures are added to those of all processes.
        quiet_seconds: without a chat, after which nobody is thought to be there.
    """

    ttl_seconds: float = 3600.0
    jitter: float = 0.1
    max_entry_octets: int = 512 * 1024
    max_live_octets: int = 32 * 2**20
    quota: Quota = field(default_factory=Quota)
    heartbeat_seconds: float = 1.0
    first_tail_seconds: float = 0.2
    tail_seconds: float = 1.0
    patience_seconds: float = 3.0
    max_detached: int = 16
    detached_seconds: float = 600.0
    publish_seconds: float = 10.0
    quiet_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class GenerationTools:
    """What all generations of a process share.

    Attributes:
        guard: the way to the store.
        keyring: seals what goes there.
        rules: how the cache behaves.
        counters: of the process.
        clock: seconds that nobody sets.
        wall: Unix time in seconds.
        lasting: draws the milliseconds that an entry stays.
        detached: those that go on for others alone.
        remember: enters an answer that was kept under the key of its question's wording.
    """

    guard: StoreGuard
    keyring: Keyring
    rules: CacheRules
    counters: CacheCounters
    clock: Callable[[], float]
    wall: Callable[[], float]
    lasting: Callable[[], int]
    detached: set[object]
    remember: Callable[[Question], Awaitable[None]]


class Generation:
    """Pulls the chunks of an answer, shows them to all who listen, here and elsewhere, and keeps it.

    Attributes:
        live: where this process listens.
    """

    def __init__(self, tools: GenerationTools, question: Question, lease: Lease) -> None:
        """Take what is needed.

        Args:
            tools: of the process.
            question: that is answered.
            lease: of this generation.
        """
        self.live = LiveAnswer()
        self._tools = tools
        self._question = question
        self._scope = question.scope
        self._lease = lease
        self._labels = question.labels
        self._labelled = not question.labels
        self._collector = AnswerCollector(needs_usage=question.needs_usage, answerer=question.answerer)
        self._taken: list[dict[str, Any]] = []  # neither collected nor recorded yet
        self._records: list[bytes] = []  # not yet in the store
        self._sent = 0  # records in the store
        self._last: tuple[int, bytes] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._closing = False
        self._until = float("inf")  # when what is left to write is given up
        self._broken = not lease.shared  # nobody elsewhere can follow, any more or at all
        self._octets = 0  # of all chunks
        self._endless = False

    async def run(self, upstream: Upstream) -> None:
        """Generate to the end. Cancelled: stop, and let a follower take over."""
        loop, began = asyncio.get_running_loop(), self._tools.clock()
        settled = loop.call_later(_SETTLED_SECONDS, self._look_after, asyncio.current_task())
        try:
            async with aclosing(upstream()) as chunks:
                async for chunk in chunks:
                    self._take(chunk)
                    while self._endless and self.live.is_ahead:
                        await self.live.catch_up()
            await self._close(self._tools.clock() - began)
        except Exception as error:  # noqa: BLE001 - it is raised again where the client listens
            await self._give_up()
            self.live.close("lost", error)
        except asyncio.CancelledError:
            await self._give_up()
            raise
        finally:
            self._tools.detached.discard(self)
            self.live.close("lost")
            settled.cancel()
            helpers = [helper for helper in (self._beating, self._writing) if helper]
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def _take(self, chunk: dict[str, Any]) -> None:
        """Show a chunk here; what else is done with it waits until those who listen have it."""
        self.live.push(chunk)
        self._taken.append(chunk)
        if len(self._taken) == 1:
            asyncio.get_running_loop().call_soon(self._take_in)

    def _take_in(self) -> None:
        """Collect what was taken, and begin to bring it into the store; nothing where that is done."""
        if not self._taken:
            return
        for chunk in () if self._endless else self._taken:
            self._collector.add(chunk)
            self._record(chunk)
        self._taken.clear()
        if self._endless:
            self.live.forget()
        elif self._octets > self._tools.rules.max_live_octets:
            self._endless = self._broken = True
            self._collector = AnswerCollector()
        if not self._broken and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())

    def _record(self, chunk: dict[str, Any]) -> None:
        try:
            record = orjson.dumps(chunk)
        except orjson.JSONEncodeError:
            self._broken = True  # followers will miss a record, and take over or give up
            return
        self._octets += len(record)
        if not self._broken:
            self._records.append(record)

    def _look_after(self, task: asyncio.Task[Any] | None) -> None:
        self._beating = asyncio.create_task(self._beat(task))

    @cached_property
    def _cipher(self) -> StreamCipher:
        """Made when the first record is sealed: by then the first chunk is on its way."""
        return self._tools.keyring.stream_cipher(self._scope, self._lease.slot.name, self._lease.token)

    def _ending(self, record: bytes) -> tuple[int, bytes]:
        """The last record and its place. Sealed once: a place is a nonce, and must not serve two texts."""
        if self._last is None:
            self._take_in()
            place = self._sent + len(self._records) + 1
            self._last = (place, self._cipher.seal_record(place, record))
        return self._last

    async def _write(self) -> None:
        """Bring records into the store, as many at once as there are."""
        while self._records and not self._broken:
            await self._write_once()

    async def _write_once(self) -> None:
        first = self._sent + 1
        # at a second try they are the same bytes: a place is a nonce, and a record stays in its place
        batch = [self._cipher.seal_record(place, each) for place, each in enumerate(self._records, first)]
        done = await self._tools.guard.ask(lambda store: store.append(self._lease, first, batch))
        if done is True:
            self._sent += len(batch)
            del self._records[: len(batch)]
        elif done is False or self._tools.clock() >= self._until:
            self._broken = True  # the lease is lost, or the store has been in trouble for too long
        else:
            await asyncio.sleep(_RETRY_SECONDS)

    async def _beat(self, task: asyncio.Task[Any] | None) -> None:
        """Keep the lease, and stop the generation when nobody wants it any more."""
        await self._label()
        left_at: float | None = None
        while True:
            await self._pause(left=left_at is not None or self._closing)
            await self._renew()
            if self.live.listeners or self._closing:
                left_at = None
                self._tools.detached.discard(self)
                continue
            left_at = self._tools.clock() if left_at is None else left_at
            late = self._tools.clock() - left_at >= self._tools.rules.detached_seconds
            if late or not await self._is_followed() or not self._may_detach():
                if task is not None and not self._closing:
                    task.cancel()
                return

    async def _pause(self, *, left: bool) -> None:
        """Until the next sign of life is due, or the last listener leaves."""
        try:
            async with asyncio.timeout(self._tools.rules.heartbeat_seconds):
                await (asyncio.Event() if left else self.live.alone).wait()
        except TimeoutError:
            return

    async def _renew(self) -> None:
        if not self._broken and await self._tools.guard.ask(lambda store: store.renew(self._lease)) is None:
            self._broken = True

    async def _is_followed(self) -> bool:
        """Whether anybody elsewhere follows. If not, from now on nobody can."""
        if self._broken:
            return False
        followers = await self._tools.guard.ask(lambda store: store.leave(self._lease))
        return isinstance(followers, int) and followers > 0

    def _may_detach(self) -> bool:
        if self not in self._tools.detached:
            if len(self._tools.detached) >= self._tools.rules.max_detached:
                return False
            self._tools.detached.add(self)
            self._tools.counters.add("detached")
        return True

    async def _label(self) -> None:
        """Make what will be kept known under its labels, before it is."""
        ttl = round(self._tools.rules.ttl_seconds * (1 + self._tools.rules.jitter) * 1000)
        for label in () if self._labelled else self._labels:
            if isinstance(await self._label_once(self._tools.keyring.label_tag(label), ttl), StoreTrouble):
                return
        self._labelled = True

    async def _label_once(self, tag: str, ttl: int) -> StoreTrouble | None:
        return await self._tools.guard.ask(lambda store: store.label(tag, self._lease.slot, ttl))

    async def _close(self, seconds: float) -> None:
        """Keep the answer if it may be kept, and tell all that it is complete.

        Those who listen here have all of it, and wait for the store no longer than its limit. Those elsewhere
        get the rest even where that takes longer.
        """
        self._closing = True
        self._until = self._tools.clock() + self._tools.rules.patience_seconds
        self._take_in()
        late = asyncio.get_running_loop().call_later(self._tools.guard.limit, self.live.close, "complete")
        try:
            if self._writing is not None:
                await self._writing
            verdict: Entry | str = "too large"
            if not self._endless:
                verdict = self._collector.verdict(created=self._tools.wall(), seconds=seconds)
            reason = verdict if isinstance(verdict, str) else await self._keep(verdict)
            self._tools.counters.add(f"not_stored/{reason}" if reason else "stored")
            if reason:
                await self._release(LOST_RECORD if self._broken else END_RECORD)
        finally:
            late.cancel()
        self.live.close("complete")
        if not reason:
            await self._tools.remember(self._question)

    async def _keep(self, entry: Entry) -> str:
        """Commit an entry; empty, or the reason why it is not kept."""
        tools, lease = self._tools, self._lease
        if lease.shared and self._broken:
            return "lease lost"
        try:
            sealed = seal_entry(entry, self._scope, lease.slot, tools.keyring)
        except orjson.JSONEncodeError:
            return "not JSON"
        if len(sealed) > tools.rules.max_entry_octets:
            return "too large"
        await self._label()
        if not self._labelled:
            return "no labels"  # it could not be found when it is to be discarded
        last, ttl = self._ending(END_RECORD), tools.lasting()
        result = await self._insist(lambda store: store.commit(lease, sealed, ttl, tools.rules.quota, last))
        if isinstance(result, StoreTrouble):
            return f"store {result.reason}"
        return "" if result == "stored" else result

    async def _insist(self, step: Callable[[CacheStore], Awaitable[T]]) -> "T | StoreTrouble":
        """Ask again while the store is in trouble that may pass, as long as there is time."""
        while True:
            done = await self._tools.guard.ask(step)
            passing = isinstance(done, StoreTrouble) and done.reason != "full"
            if not passing or self._tools.clock() >= self._until:
                return done
            await asyncio.sleep(_RETRY_SECONDS)

    async def _give_up(self) -> None:
        self._until = 0.0  # nobody waits for it
        self._tools.counters.add("not_stored/not finished")
        await self._release(LOST_RECORD)

    async def _release(self, record: bytes) -> None:
        if self._lease.shared:
            last = self._ending(record)
            await self._insist(lambda store: store.release(self._lease, last))
