"""A client for a Redis URL: one server, Sentinel, or a cluster; and scripts that run there.

Making a client connects nothing.

redis://[user:password@]host[:6379][/db]      rediss:// with TLS, unix:///path/to.sock
redis+sentinel://[user:password@]host[:26379][,host…]/service[/db]      rediss+sentinel:// with TLS
redis+cluster://[user:password@]host[:6379][,host…]      rediss+cluster:// with TLS

Options follow after `?`, with `&` between them. Each has its effect or is refused by name. A refusal holds no
part of a URL that might be a password's.

redis-py is imported where it is used: the minimal image of the Pipelines server lacks it, and the router runs
there without.
"""

import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from ollama_pack.base.messages import message
from ollama_pack.errors import SettingError

_SENTINEL_PORT, _REDIS_PORT = 26379, 6379
# Limits are set around each call, by whoever calls. A socket timeout of redis-py costs a task for each write.
_NO_LIMIT: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None}
_REDIS_SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_HOW_WRITTEN = message(
    "in a password, @ is written as %40, : as %3A, / as %2F, ? as %3F, # as %23, and % as %25"
)
_OWN_LIMITS = message("the pack has time limits and connections of its own")


class RedisClient(Protocol):
    """What is used of a client of redis-py, for one server, Sentinel or a cluster."""

    response_callbacks: Any  # by command: what turns its answers into other values

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send a command and return its answer, with bytes for strings."""

    def script_load(self, script: str) -> Awaitable[Any]:
        """Leave a script there; in a cluster on every server of it."""

    async def aclose(self) -> None:
        """Close the connections."""


def connection_pool_of(client: RedisClient) -> Any:
    """Where the connections to its one server come from; a cluster has none such."""
    return getattr(client, "connection_pool", None)


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A script, and the name that the server knows it by once it has seen it."""

    text: str
    sha: str


def lua_script(text: str) -> LuaScript:
    # SHA-1 is what Redis names scripts by
    return LuaScript(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


async def run_script(
    send: Callable[..., Awaitable[Any]], script: LuaScript, keys: Sequence[str], *values: Any
) -> Any:
    """Run a script by its name, and by its text where the server has not seen it, or has restarted.

    Args:
        send: sends one command, as `RedisClient.execute_command`.
        script: to run.
        keys: that it uses.
        values: its other arguments.
    """
    from redis.exceptions import NoScriptError  # noqa: PLC0415 - see the top

    try:
        return await send("EVALSHA", script.sha, len(keys), *keys, *values)
    except NoScriptError:
        return await send("EVAL", script.text, len(keys), *keys, *values)


def redis_faults() -> tuple[type[Exception], ...]:
    """What is raised when Redis does not answer, or not as it should."""
    from redis.exceptions import RedisClusterException, RedisError  # noqa: PLC0415 - see the top

    return RedisError, RedisClusterException, OSError, EOFError  # a cluster's is no `RedisError`


class _UrlError(ValueError):
    """What is wrong with a URL, in words that may be shown."""


class _WatchedMaster:
    """The master that Sentinels name. Its end is theirs too: redis-py leaves their connections open."""

    def __init__(self, master: RedisClient, sentinels: Sequence[RedisClient]) -> None:
        self.execute_command = master.execute_command
        self.script_load = master.script_load
        self.response_callbacks = master.response_callbacks
        self.connection_pool = connection_pool_of(master)
        self.clients = master, *sentinels

    async def aclose(self) -> None:
        """Close the connections to the master and to the Sentinels."""
        for client in self.clients:
            await client.aclose()


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def check_redis_url(url: str) -> str:
    """The URL, which is none or can be used.

    Raises:
        SettingError: it is none of the forms.
        ModuleNotFoundError: there is no redis-py.
    """
    if url:
        redis_client(url)
    return url


def redis_client(url: str) -> RedisClient:
    """A client for a URL.

    Raises:
        SettingError: the URL is none of the forms, or has an option that would have no effect.
        ModuleNotFoundError: there is no redis-py.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    make = _REDIS_CLIENTS.get(scheme)
    if make is None:
        raise SettingError(
            message(
                "the URL of Redis begins with {url}: use {schemes}",
                url=_shown_beginning(url),
                schemes=_REDIS_SCHEMES,
            )
        )
    try:
        return make(_read_url(url))
    except _UrlError as error:
        raise SettingError(
            message("the {scheme}:// URL of Redis cannot be used: {error}", scheme=scheme, error=error)
        ) from None
    except (ValueError, TypeError):  # their words may have a piece of the password in them
        raise SettingError(
            message(
                "the {scheme}:// URL of Redis cannot be used: the port and the database are numbers, and "
                "{how}",
                scheme=scheme,
                how=_HOW_WRITTEN,
            )
        ) from None


def redis_fault(error: BaseException) -> str:
    """What redis-py says of a failure, without what was sent: an old server repeats an unknown AUTH whole."""
    return f"{type(error).__name__}: {str(error).partition(', with args')[0]}"


def _shown_beginning(url: str) -> str:
    """What a URL begins with, where that is a scheme or a host with its port, and no password for sure."""
    beginning = url.partition("://")[0]
    is_shown = re.fullmatch(r"[a-z][a-z.+-]{0,19}|[a-z][a-z.-]*:[0-9]{1,5}", beginning)
    return repr(beginning) if is_shown else message("no scheme that is known")


# --- reading ---


@dataclass(frozen=True, slots=True)
class _RedisUrl:
    """A URL in its parts.

    Attributes:
        tls: its scheme asks for TLS.
        hosts: names and ports, 0 where none is given.
        path: what follows the hosts, decoded.
        login: `username` and `password`, where there are.
        options: what each connection is made with.
        sentinel: the same for the Sentinels themselves.
        db: the number given as an option.
    """

    tls: bool
    hosts: Sequence[tuple[str, int]]
    path: str
    login: Mapping[str, str]
    options: Mapping[str, Any]
    sentinel: Mapping[str, Any]
    db: int | None


def _read_url(url: str) -> _RedisUrl:
    if not url.isprintable() or " " in url:
        raise _UrlError(message("it holds a space or a character that cannot be printed"))
    rest = url.partition("://")[2]
    # A raw character in a password moves what follows it to where a host, a path or an option is expected.
    if "#" in rest or rest.count("@") > 1 or "@" in re.sub(r"^[^/?]*", "", rest):
        raise _UrlError(
            message(
                "it has an @ or a # too many, perhaps in the password: {how}",
                how=_HOW_WRITTEN,
            )
        )
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    tls = scheme == "rediss"
    given = _options_in(parts.query)
    sentinel = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if kind != "sentinel" and any(sentinel.values()):
        raise _UrlError(message("sentinel_username and sentinel_password belong to redis+sentinel://"))
    login = {
        "username": unquote(parts.username or "") or given.pop("username", None),
        "password": unquote(parts.password or "") or given.pop("password", None),
    }
    if given.keys() & login.keys():
        raise _UrlError(message("it has a user or a password twice: before the host and as an option"))
    if not tls and (needs_tls := sorted(name for name in given if name.startswith("ssl_"))):
        raise _UrlError(
            message(
                "{option} is for TLS: begin the URL with {beginning}",
                option=needs_tls[0],
                beginning=f"rediss{'+' * bool(kind)}{kind}://",
            )
        )
    hosts = [] if scheme == "unix" else _hosts(parts.netloc)
    db = given.pop("db", None)
    return _RedisUrl(
        tls,
        hosts,
        unquote(parts.path),
        {name: value for name, value in login.items() if value},
        given,
        {name: value for name, value in sentinel.items() if value},
        db,
    )


def _options_in(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name in _REFUSED_OPTIONS:
            raise _UrlError(
                message(
                    "{name} has no effect here: {why}. Leave it out",
                    name=name,
                    why=_REFUSED_OPTIONS[name],
                )
            )
        if name not in _URL_OPTIONS:
            raise _UrlError(
                message(
                    "it has an option that is not known. The known ones are {known}",
                    known=", ".join(_URL_OPTIONS),
                )
            )
        if name in found:
            raise _UrlError(message("{name} is set twice", name=name))
        found[name] = _URL_OPTIONS[name](name, unquote(value))
    return {name: value for name, value in found.items() if value is not None}


def _url_text(name: str, value: str) -> str:
    if not value:
        raise _UrlError(message("{name} is empty: leave it out", name=name))
    return value


def _url_number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _UrlError(message("{name} needs a whole number", name=name))
    return int(value)


def _url_switch(name: str, value: str) -> bool:
    said = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in said:
        raise _UrlError(message("{name} needs true or false", name=name))
    return said[value.lower()]


def _url_checks(name: str, value: str) -> str:
    if value not in ("none", "optional", "required"):
        raise _UrlError(message("{name} needs none, optional or required", name=name))
    return value


def _url_tls_version(name: str, value: str) -> ssl.TLSVersion:
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    found = {**versions, **{str(int(version)): version for version in versions.values()}}.get(value)
    if found is None:
        raise _UrlError(message("{name} needs 1.2 or 1.3", name=name))
    return found


def _fixed_as(*fixed: str) -> Callable[[str, str], None]:
    """An option that may be written as it is here anyway."""

    def read(name: str, value: str) -> None:
        if value.lower() not in fixed:
            raise _UrlError(
                message("{name} is {fixed} here, and nothing else: leave it out", name=name, fixed=fixed[0])
            )

    return read


_URL_OPTIONS: Mapping[str, Callable[[str, str], Any]] = {
    "db": _url_number,
    "username": _url_text,
    "password": _url_text,
    "sentinel_username": _url_text,
    "sentinel_password": _url_text,
    "client_name": _url_text,
    "socket_keepalive": _url_switch,
    "ssl_cert_reqs": _url_checks,
    "ssl_check_hostname": _url_switch,
    "ssl_ca_certs": _url_text,
    "ssl_ca_path": _url_text,
    "ssl_ca_data": _url_text,
    "ssl_certfile": _url_text,
    "ssl_keyfile": _url_text,
    "ssl_password": _url_text,
    "ssl_min_version": _url_tls_version,
    "ssl_ciphers": _url_text,
    "decode_responses": _fixed_as("false", "0", "no"),
    "protocol": _fixed_as("2"),
    "encoding": _fixed_as("utf-8", "utf8"),
    "encoding_errors": _fixed_as("strict"),
}
_REFUSED_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout", "timeout", "max_connections"), _OWN_LIMITS),
    **dict.fromkeys(("retry", "retry_on_timeout", "retry_on_error", "retry_on_connect"), _OWN_LIMITS),
    **dict.fromkeys(("health_check_interval", "socket_read_size", "single_connection_client"), _OWN_LIMITS),
    **dict.fromkeys(("lib_name", "lib_version", "legacy_responses"), message("the pack sets it")),
    **dict.fromkeys(("host", "port", "path", "unix_socket_path"), message("it belongs before the ?")),
    **dict.fromkeys(("ssl", "ssl_context"), message("a URL that begins with rediss has TLS")),
    **dict.fromkeys(
        ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
        message("redis-py checks OCSP only where nothing is awaited"),
    ),
    **dict.fromkeys(
        ("ssl_include_verify_flags", "ssl_exclude_verify_flags"), message("only new versions have it")
    ),
    **dict.fromkeys(("read_from_replicas", "load_balancing_strategy"), message("replicas lag behind")),
    **dict.fromkeys(("require_full_coverage", "dynamic_startup_nodes"), message("the pack sets it")),
    **dict.fromkeys(("reinitialize_steps", "cluster_error_retry_attempts"), message("the pack sets it")),
}


def _hosts(netloc: str) -> list[tuple[str, int]]:
    """The hosts of a URL and their ports, 0 where none is given."""
    found = []
    for place in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{place}")
        if not parts.hostname:
            raise _UrlError(message("it names no host"))
        found.append((parts.hostname, parts.port or 0))
    return found


# --- making ---


def _once_more() -> Any:
    """A connection that broke while it was idle says nothing of the server: one more try, on a new one."""
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - see the top
    from redis.backoff import NoBackoff  # noqa: PLC0415 - see the top
    from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: PLC0415 - see the top

    return Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))


def _server_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import Redis  # noqa: PLC0415 - see the top

    place: dict[str, Any] = {"unix_socket_path": url.path}
    path = ""
    if url.hosts:
        (host, port), *others = url.hosts
        if others:
            raise _UrlError(message("it names several hosts: use redis+sentinel:// or redis+cluster://"))
        place, path = {"host": host, "port": port or _REDIS_PORT, "ssl": url.tls}, url.path
    elif not url.path:
        raise _UrlError(message("it needs the path of the socket, as in unix:///run/redis.sock"))
    client = Redis(
        **place,
        db=_database(url, path.strip("/")),
        protocol=2,
        retry=_once_more(),
        **{**url.login, **url.options, **_NO_LIMIT},
    )
    return _checked_client(client)


def _sentinel_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import Sentinel  # noqa: PLC0415 - see the top

    service, _, db = url.path.strip("/").partition("/")
    if not service:
        raise _UrlError(
            message("it needs the name of the service, as in redis+sentinel://host:26379/mymaster")
        )
    hosts = [(host, port or _SENTINEL_PORT) for host, port in url.hosts]
    secured: dict[str, Any] = {"ssl": url.tls, **url.options}
    sentinel = Sentinel(hosts, sentinel_kwargs={**secured, **url.sentinel}, **_NO_LIMIT)  # type: ignore[no-untyped-call] # it has no types
    master: RedisClient = sentinel.master_for(
        service, db=_database(url, db), protocol=2, retry=_once_more(), **{**secured, **url.login}
    )
    return _WatchedMaster(_checked_client(master), sentinel.sentinels)


def _cluster_client(url: _RedisUrl) -> RedisClient:
    from redis.asyncio import RedisCluster  # noqa: PLC0415 - see the top
    from redis.asyncio.cluster import ClusterNode  # noqa: PLC0415 - see the top

    if _database(url, url.path.strip("/")):
        raise _UrlError(message("a cluster has no db but 0: leave the number out"))
    for name in url.options:
        if name not in signature(RedisCluster.__init__).parameters:
            raise _UrlError(
                message(
                    "{name} is not known to this version of redis-py for a cluster: leave it out", name=name
                )
            )
    given: dict[str, Any] = {**url.login, **url.options, **_NO_LIMIT}
    nodes = [ClusterNode(host, port or _REDIS_PORT) for host, port in url.hosts]
    return RedisCluster(startup_nodes=nodes, protocol=2, ssl=url.tls, retry=_once_more(), **given)


def _database(url: _RedisUrl, written: str) -> int:
    if written and url.db is not None:
        raise _UrlError(message("it has the database twice: in the path and as an option"))
    return _url_number(message("the database"), written) if written else url.db or 0


def _checked_client(client: RedisClient) -> RedisClient:
    """The client, whose connections take the options: this version of redis-py may not know one of them."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - see the top

    try:
        connection_pool_of(client).make_connection()
    except (TypeError, RedisError) as error:
        raise _UrlError(message("this version of redis-py does not know one of the ssl_ options")) from error
    return client


_REDIS_CLIENTS: Mapping[str, Callable[[_RedisUrl], RedisClient]] = {
    **dict.fromkeys(("redis", "rediss", "unix"), _server_client),
    **dict.fromkeys(("redis+sentinel", "rediss+sentinel"), _sentinel_client),
    **dict.fromkeys(("redis+cluster", "rediss+cluster"), _cluster_client),
}
