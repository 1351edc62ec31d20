"""The cache in Redis or Valkey, for any number of processes and hosts."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError

from ollama_pack.base.messages import message
from ollama_pack.base.redis import (
    LuaScript,
    RedisClient,
    connection_pool_of,
    redis_fault,
    redis_faults,
    run_script,
)
from ollama_pack.cache.errors import StoreDownError, StoreError, StoreFullError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.redis_scripts import (
    ACQUIRE,
    ALL_SCRIPTS,
    APPEND,
    COMMIT,
    DISCARD,
    DROP_SCOPE,
    FIND,
    FLUSH,
    FOLLOW,
    LABEL,
    LEAVE,
    REDIS_PREFIX,
    REGISTER,
    RELEASE,
    RENEW,
    SWEEP,
    RedisNames,
)
from ollama_pack.cache.store import (
    AcquireMode,
    CommitResult,
    Kept,
    Lease,
    Quota,
    Running,
    ScopeUse,
    StoreTimes,
    Tail,
)

# What it says when it cannot save to its disk, or has too few replicas: reads it still answers.
_WRITES_REFUSED = ("MISCONF", "NOREPLICAS")
_SCOPES, _COUNTS = f"{REDIS_PREFIX}scopes", f"{REDIS_PREFIX}counts"
_SWEPT_AT_ONCE = 200
_AT_ONCE = 64
_RECORDS_AT_ONCE = 1000
_DAY = 24 * 3_600_000
# What is asked at once of the server: more would wait for each other there, and a burst of new connections
# takes longer than a chat waits.
_CONNECTIONS, _WARM_CONNECTIONS = 8, 4


class RedisStore:
    """See `CacheStore`. Two clients, because a follower's waiting read keeps its connection."""

    def __init__(self, client: RedisClient, waiting: RedisClient, times: StoreTimes | None = None) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            client: for what is answered at once, as `redis_client` makes it. It answers with bytes.
            waiting: another one to the same place, for reads that wait.
            times: when left out, the defaults.
        """
        self._client = client
        self._waiting = waiting
        self._times = times or StoreTimes()
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._running = 0
        self._closed = False
        if connection_pool_of(client) is not None:  # a cluster's client needs them for itself
            client.response_callbacks.clear()  # answers as the server gives them

    async def ask(self, name: str, *values: bytes | str | float) -> Any:
        """The answer to a command, with texts as bytes. No more commands run at once than connections.

        Args:
            name: of the command, one word or two.
            values: that it takes.

        Raises:
            StoreError: there is none.
            NoScriptError: the server does not know the script.
        """
        async with self._free:
            self._running += 1
            try:
                return await self._sent(name, *values)
            except NoScriptError:
                raise
            except redis_faults() as error:
                raise _store_error(error) from error
            finally:
                self._running -= 1
                await self._disconnect_if_closed()

    async def _sent(self, *command: bytes | str | float) -> Any:
        try:
            return await self._client.execute_command(*command)
        except RedisConnectionError:  # redis-py has tried the same server again; this asks the Sentinels
            return await self._client.execute_command(*command)

    async def _disconnect_if_closed(self) -> None:
        if self._closed and not self._running:
            await self._client.aclose()

    async def ping(self) -> None:
        """Connect more than once, and leave the scripts there, so that the first chats find both."""
        await asyncio.gather(*(self.ask("PING") for _ in range(_WARM_CONNECTIONS)))
        for script in ALL_SCRIPTS:
            await self.ask("SCRIPT LOAD", script.text)

    async def acquire(self, slot: Slot, token: str, mode: AcquireMode) -> Kept | Lease | Running:
        found = await self._acquire(slot, token, mode, begin=False)
        if found[0] == b"new scope":
            # Known before it is begun, so that no flush of everything can miss it.
            await self._run(REGISTER, [_SCOPES], slot.scope)
            found = await self._acquire(slot, token, mode, begin=True)
        match found:
            case [b"kept", bytes(sealed), fence, age]:
                return Kept(sealed, int(fence), max(0, int(age)) / 1000)
            case [b"running", bytes(leader)]:
                return Running(slot, leader.decode())
            case [b"lease", fence, epoch]:
                return Lease(slot, token, int(fence), int(epoch), shared=mode == "read")
        raise StoreDownError(message("Redis answered {found!r} to a lookup", found=found[:1]))

    async def find(self, slot: Slot) -> Kept | None:
        names = RedisNames(slot.scope)
        match await self._run(FIND, [names.meta, names.entry(slot.name)]):
            case [bytes(sealed), fence, age]:
                return Kept(sealed, int(fence), max(0, int(age)) / 1000)
        return None

    async def append(self, lease: Lease, first: int, records: Sequence[bytes]) -> bool:
        keys = [*_lease_keys(lease), _stream(lease)]
        times = (self._times.lease, self._times.stream)
        return bool(await self._run(APPEND, keys, lease.token, *times, first, *records))

    async def renew(self, lease: Lease) -> int | None:
        keys = [*_lease_keys(lease), RedisNames(lease.slot.scope).followers(lease.token)]
        followers = await self._run(RENEW, keys, lease.token, self._times.lease)
        return None if followers < 0 else int(followers)

    async def leave(self, lease: Lease) -> int:
        keys = [*_lease_keys(lease), RedisNames(lease.slot.scope).followers(lease.token)]
        return int(await self._run(LEAVE, keys, lease.token))

    async def commit(
        self, lease: Lease, sealed: bytes, ttl: int, quota: Quota, last: tuple[int, bytes]
    ) -> CommitResult:
        names = RedisNames(lease.slot.scope)
        keys = [*_lease_keys(lease), _stream(lease), *names.index, names.meta, names.entry(lease.slot.name)]
        result = await self._run(
            COMMIT,
            keys,
            *(lease.token, lease.fence, lease.epoch, int(lease.shared), sealed, ttl),
            *(quota.entries, quota.octets, lease.slot.name, names.entries),
            *(*last, self._times.stream, max(self._times.scope, ttl)),
        )
        found: dict[bytes, CommitResult] = {b"stored": "stored", b"fenced": "fenced", b"flushed": "flushed"}
        return found[result]

    async def release(self, lease: Lease, last: tuple[int, bytes]) -> None:
        keys = [*_lease_keys(lease), _stream(lease)]
        await self._run(RELEASE, keys, lease.token, self._times.stream, *last)

    async def tail(self, running: Running, follower: str, after: int, wait: int) -> Tail:
        names = RedisNames(running.slot.scope)
        keys = [names.generation(running.token), names.followers(running.token)]
        alive = bool(await self._run(FOLLOW, keys, follower, self._times.follower))
        place = (names.stream(running.token), f"0-{after}")
        block = ("BLOCK", max(1, wait)) if alive and wait else ()
        # the answer's order is as asked, and the count of what a slow reader gets at once is bounded
        try:
            found = await self._waiting.execute_command(
                "XREAD", "COUNT", _RECORDS_AT_ONCE, *block, "STREAMS", *place
            )
        except redis_faults() as error:
            raise _store_error(error) from error
        return Tail(tuple(_records(found, after)), alive)

    async def discard(self, slot: Slot, fence: int | None = None) -> bool:
        names = RedisNames(slot.scope)
        keys = [*names.index, names.entry(slot.name), names.lease(slot.name)]
        return bool(await self._run(DISCARD, keys, slot.name, "" if fence is None else fence))

    async def flush(self, scope: str | None = None) -> None:
        if scope is not None:
            await self._flush(scope)
            return
        for tags in await self._members(_SCOPES):
            await asyncio.gather(*map(self._flush_or_drop, tags))

    async def label(self, label: str, slot: Slot, ttl: int) -> None:
        await self._run(LABEL, [_label_key(label)], f"{slot.scope}/{slot.name}", ttl)

    async def discard_labelled(self, label: str) -> int:
        key, count = _label_key(label), 0
        for members in await self._members(key):
            slots = (Slot(scope, name) for scope, _, name in (each.partition("/") for each in members))
            count += sum(await asyncio.gather(*map(self.discard, slots)))
            await self.ask("ZREM", key, *members)  # those alone: another may have come since
        return count

    async def use_of(self, scope: str) -> ScopeUse:
        ages, _, sizes = RedisNames(scope).index
        entries = await self.ask("ZCARD", ages)
        octets = await self.ask("HGET", sizes, "*")
        return ScopeUse(int(entries), int(octets or 0))

    async def add_counts(self, counts: Mapping[str, float]) -> None:
        for name, value in counts.items():
            await self.ask("HINCRBYFLOAT", _COUNTS, name, value)

    async def counts(self) -> dict[str, float]:
        found = await self.ask("HGETALL", _COUNTS)
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {name.decode(): float(value) for name, value in pairs}

    async def close(self) -> None:
        """Close the connections; if some are in use, when the last has its answer."""
        self._closed = True
        await self._disconnect_if_closed()
        await self._waiting.aclose()

    async def _acquire(self, slot: Slot, token: str, mode: AcquireMode, *, begin: bool) -> Any:
        names = RedisNames(slot.scope)
        keys = [names.meta, names.entry(slot.name), names.lease(slot.name), names.generation(token)]
        times = (self._times.lease, self._times.follower, self._times.scope)
        return await self._run(ACQUIRE, keys, token, mode, *times, int(begin), names.followers_of)

    async def _members(self, key: str) -> list[list[str]]:
        """Of a sorted set, in lists that are worked on at once."""
        found: list[bytes] = await self.ask("ZRANGE", key, 0, -1)
        names = [member.decode() for member in found]
        return [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]

    async def _flush_or_drop(self, scope: str) -> None:
        if not await self._flush(scope):
            await self._run(DROP_SCOPE, [_SCOPES], scope, _DAY)

    async def _flush(self, scope: str) -> bool:
        """Flush a scope; False when there is nothing of it."""
        names = RedisNames(scope)
        if not await self._run(FLUSH, [names.meta], self._times.scope):
            return False
        while await self._run(SWEEP, [*names.index, names.meta], _SWEPT_AT_ONCE, names.entries):
            pass
        return True

    async def _run(self, script: LuaScript, keys: Sequence[str], *values: Any) -> Any:
        return await run_script(self.ask, script, keys, *values)


def _store_error(error: Exception) -> StoreError:
    if isinstance(error, OutOfMemoryError):
        return StoreFullError(message("Redis is at its maxmemory"))
    if isinstance(error, ReadOnlyError) or str(error).startswith(_WRITES_REFUSED):
        return StoreFullError(message("Redis takes no writes: {error}", error=redis_fault(error)))
    return StoreDownError(message("Redis failed: {error}", error=redis_fault(error)))


def _lease_keys(lease: Lease) -> list[str]:
    names = RedisNames(lease.slot.scope)
    return [names.lease(lease.slot.name), names.generation(lease.token)]


def _stream(lease: Lease) -> str:
    return RedisNames(lease.slot.scope).stream(lease.token)


def _label_key(label: str) -> str:
    return f"{REDIS_PREFIX}{{{label}}}:k"


def _records(found: Any, after: int) -> Iterable[bytes]:
    """The records in an answer to XREAD, as long as none is left out."""
    streams = list(found.values()) if isinstance(found, dict) else [rest for _, rest in found or ()]
    for name, fields in streams[0] if streams else ():
        after += 1
        if int(name.partition(b"-")[2]) != after:
            return
        yield fields[b"r"]
