"""Commands to Redis with a bound on how many run at once, and failures in the store's terms."""

import asyncio
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisClusterException, RedisError

from ollama_pack.cache.errors import StoreDownError, StoreError, StoreFullError
from ollama_pack.cache.redis_url import RedisClient, connection_pool_of, redis_fault

REDIS_FAULTS = (RedisError, RedisClusterException, OSError, EOFError)  # a Cluster's is no `RedisError`


class RedisLink:
    """Sends commands to a server or a cluster, at most `most` at once. Used from one event loop."""

    def __init__(self, client: RedisClient, most: int) -> None:
        """Connect nothing yet.

        Args:
            client: as `redis_client` makes it. The link changes and closes it.
            most: commands at once, and so connections.
        """
        self._client = client
        self._free = asyncio.Semaphore(most)
        self._running = 0
        self._closed = False
        if connection_pool_of(client) is not None:  # a cluster's client needs them for itself
            client.response_callbacks.clear()  # answers as the server gives them

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
            self._running += 1
            try:
                return await self._execute(name, *values)
            except NoScriptError:
                raise
            except REDIS_FAULTS as error:
                raise store_error(error) from error
            finally:
                self._running -= 1
                await self._disconnect_if_closed()

    async def _execute(self, *command: bytes | str | float) -> Any:
        try:
            return await self._client.execute_command(*command)
        except RedisConnectionError:  # redis-py has tried the same server again; this asks the Sentinels
            return await self._client.execute_command(*command)

    async def close(self) -> None:
        """Close the connections; if some are in use, when the last has its answer."""
        self._closed = True
        await self._disconnect_if_closed()

    async def _disconnect_if_closed(self) -> None:
        if self._closed and not self._running:
            await self._client.aclose()


def store_error(error: Exception) -> StoreError:
    """What went wrong, as the store says it; `error` is one of `REDIS_FAULTS`."""
    if isinstance(error, OutOfMemoryError):
        return StoreFullError("Redis is at its maxmemory")
    return StoreDownError(f"Redis failed: {redis_fault(error)}")
