"""A client for a Redis URL: one server, Sentinel, or a cluster. Nothing is connected yet.

redis://[user:password@]host[:6379][/db]      rediss:// with TLS, unix:///path/to.sock
redis+sentinel://[user:password@]host[:26379][,host…]/service[/db][?sentinel_password=…]
redis+cluster://[user:password@]host[:6379][,host…]      rediss+cluster:// with TLS

redis-py is imported where it is used: the minimal image of the Pipelines server lacks it, and the router runs
there without.
"""

from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from ollama_pack.cache.errors import CacheConfigError

_SENTINEL_PORT, _REDIS_PORT = 26379, 6379
# Limits are set around each call, by whoever calls. A socket timeout of redis-py costs a task for each write.
_NO_LIMIT: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}


class RedisClient(Protocol):
    """What is used of a client of redis-py, for one server, Sentinel or a cluster."""

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send a command and return its answer, with bytes for strings."""

    def script_load(self, script: str) -> Awaitable[Any]:
        """Leave a script there; in a cluster on every server of it."""

    async def aclose(self) -> None:
        """Close the connections."""


def connection_pool_of(client: RedisClient) -> Any:
    """Where the connections to its one server come from; a cluster has none such."""
    return getattr(client, "connection_pool", None)


class _PartMissingError(ValueError):
    """What is missing, in words that may be shown."""


class _WatchedMaster:
    """The master that Sentinels name. Its end is theirs too: redis-py leaves their connections open."""

    def __init__(self, master: RedisClient, sentinels: Sequence[RedisClient]) -> None:
        self.execute_command = master.execute_command
        self.script_load = master.script_load
        self.connection_pool = connection_pool_of(master)
        self._clients = master, *sentinels

    async def aclose(self) -> None:
        """Close the connections to the master and to the Sentinels."""
        for client in self._clients:
            await client.aclose()


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def check_redis_url(url: str) -> str:
    """The URL, which is none or can be used.

    Raises:
        CacheConfigError: it is none of the forms.
        ModuleNotFoundError: there is no redis-py.
    """
    if url:
        redis_client(url)
    return url


def redis_client(url: str) -> RedisClient:
    """A client for a URL.

    Raises:
        CacheConfigError: the URL is none of the forms.
        ModuleNotFoundError: there is no redis-py.
    """
    scheme = url.partition("://")[0]
    try:
        match scheme:
            case "redis" | "rediss" | "unix":
                return _server_client(url)
            case "redis+sentinel" | "rediss+sentinel":
                return _sentinel_client(url, tls=scheme.startswith("rediss"))
            case "redis+cluster" | "rediss+cluster":
                return _cluster_client(url, tls=scheme.startswith("rediss"))
    except _PartMissingError as error:
        raise CacheConfigError(f"the {scheme}:// URL of Redis cannot be used: {error}") from error
    except ValueError:  # its words, and those it was raised from, may have a piece of the password in them
        raise CacheConfigError(
            f"the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and in a "
            "password / is written as %2F, @ as %40, # as %23, : as %3A"
        ) from None
    raise CacheConfigError(
        f"the URL of Redis begins with {scheme!r}: use redis://, rediss://, unix://, "
        "redis+sentinel:// or redis+cluster://"
    )


def _once_more() -> Any:
    """A connection that broke while it was idle says nothing of the server: one more try, on a new one."""
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - see the top
    from redis.backoff import NoBackoff  # noqa: PLC0415 - see the top
    from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: PLC0415 - see the top

    return Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))


def _server_client(url: str) -> RedisClient:
    from redis.asyncio import Redis  # noqa: PLC0415 - see the top

    client: RedisClient = Redis.from_url(url, protocol=2, retry=_once_more(), **_NO_LIMIT)
    return client


def _sentinel_client(url: str, *, tls: bool) -> RedisClient:
    from redis.asyncio import Sentinel  # noqa: PLC0415 - see the top

    parts = urlsplit(url)
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise _PartMissingError(
            "it needs the name of the service, as in redis+sentinel://host:26379/mymaster"
        )
    password = parse_qs(parts.query).get("sentinel_password", [None])[0]
    hosts = [(host, port or _SENTINEL_PORT) for host, port in _hosts(parts.netloc)]
    kwargs = {"password": password, "ssl": tls}
    sentinel = Sentinel(hosts, sentinel_kwargs=kwargs, **_NO_LIMIT)  # type: ignore[no-untyped-call] # it has no types
    master: RedisClient = sentinel.master_for(
        service,
        db=int(db or 0),
        ssl=tls,
        protocol=2,
        retry=_once_more(),
        **_login(parts.username, parts.password),
    )
    return _WatchedMaster(master, sentinel.sentinels)


def _cluster_client(url: str, *, tls: bool) -> RedisClient:
    from redis.asyncio import RedisCluster  # noqa: PLC0415 - see the top
    from redis.asyncio.cluster import ClusterNode  # noqa: PLC0415 - see the top

    parts = urlsplit(url)
    nodes = [ClusterNode(host, port or _REDIS_PORT) for host, port in _hosts(parts.netloc)]
    return RedisCluster(
        startup_nodes=nodes,
        protocol=2,
        ssl=tls,
        retry=_once_more(),
        **_login(parts.username, parts.password),
        **_NO_LIMIT,
    )


def _hosts(netloc: str) -> list[tuple[str, int]]:
    """The hosts of a URL and their ports, 0 where none is given."""
    found = []
    for place in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{place}")
        if not parts.hostname:
            raise _PartMissingError("it names no host")
        found.append((parts.hostname, parts.port or 0))
    return found


def _login(username: str | None, password: str | None) -> dict[str, Any]:
    return {
        "username": unquote(username) if username else None,
        "password": unquote(password) if password else None,
    }
