"""The short way to Redis: a command goes out on a connection that is kept, and its answer comes back.

`Redis.execute_command` takes a connection out of a pool, looks whether it is still good, tells its metrics of
it, and puts it back: more work than all else for a kept answer. The connections here are redis-py's own, with
its way to log in, to find the master and to read.
"""

import asyncio
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisClusterException, RedisError
from redis.utils import HIREDIS_AVAILABLE

from ollama_pack.cache.errors import StoreDownError, StoreError, StoreFullError
from ollama_pack.cache.redis_url import RedisClient, connection_pool_of, redis_fault

if HIREDIS_AVAILABLE:
    import hiredis

REDIS_FAULTS = (RedisError, RedisClusterException, OSError, EOFError)  # a Cluster's is no `RedisError`


class RedisLink:
    """Asks a server, or a cluster, so many things at once and no more. Used from one event loop."""

    def __init__(self, client: RedisClient, most: int) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            client: as `redis_client` makes it.
            most: commands at once, and so connections.
        """
        self._client = client
        self._pool = connection_pool_of(client)
        self._free = asyncio.Semaphore(most)
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def ask(self, name: str, *values: bytes | str | float) -> Any:
        """The answer to a command, with texts as bytes.

        Args:
            name: of the command, one word or two.
            values: that it takes.

        Raises:
            StoreError: there is none.
            NoScriptError: the server does not know the script.
        """
        async with self._free:
            try:
                if self._pool is None:  # a cluster: its client alone knows which node to ask
                    return await self._client.execute_command(name, *values)
                return await self._ask_server((name, *values))
            except NoScriptError:
                raise
            except REDIS_FAULTS as error:
                raise store_error(error) from error

    async def close(self) -> None:
        """Give the connections back; those in use, once they have their answer."""
        self._closed = True
        for connection in self._idle:
            await connection.disconnect()
        await self._client.aclose()

    async def _ask_server(self, command: tuple[Any, ...]) -> Any:
        connection: AbstractConnection = self._idle.pop() if self._idle else self._pool.make_connection()
        try:
            packed = packed_command(connection, command)
            try:
                return await _answer_on(connection, packed)
            except RedisConnectionError:  # that it broke while it was idle says nothing of the server
                await connection.disconnect()
                return await _answer_on(connection, packed)
        finally:
            if self._closed:
                await connection.disconnect()
            self._idle.append(connection)


def store_error(error: Exception) -> StoreError:
    """What went wrong, as the store says it; `error` is one of `REDIS_FAULTS`."""
    if isinstance(error, OutOfMemoryError):
        return StoreFullError("Redis is at its maxmemory")
    return StoreDownError(f"Redis failed: {redis_fault(error)}")


def packed_command(connection: AbstractConnection, command: tuple[Any, ...]) -> list[bytes]:
    """A command as it is sent. redis-py has hiredis do that in its other connections alone."""
    if HIREDIS_AVAILABLE:
        return [hiredis.pack_command((*command[0].split(), *command[1:]))]
    packed: list[bytes] = connection.pack_command(*command)
    return packed


async def _answer_on(connection: AbstractConnection, packed: list[bytes]) -> Any:
    if not connection.is_connected:
        # to send would connect as well, but not ask the Sentinels where the master is now
        await connection.connect()  # type: ignore[no-untyped-call] # it has no types
    await connection.send_packed_command(packed, check_health=False)
    return await connection.read_response()
