"""Workers that share what they know of the nodes over a Redis or Valkey."""

import logging
from importlib import import_module

from ollama_pack.base.redis import check_redis_url, redis_client
from ollama_pack.routing.peers.redis import RedisShare
from ollama_pack.routing.peers.share import Connect

log = logging.getLogger(__name__)


def usable_redis_url(url: str) -> str:
    """The URL, which is none or can be used; unchecked where redis-py is missing.

    Raises:
        SettingError: as `check_redis_url`.
    """
    return check_redis_url(url) if url and _has_redis_py() else url


def redis_sharing(url: str) -> Connect | None:
    """What connects a router with the others. Nothing is connected yet.

    Args:
        url: as `redis_client` takes it.

    Returns:
        None where there is no URL, and where redis-py is missing, which is logged.
    """
    if not url:
        return None
    if not _has_redis_py():
        log.warning(
            "redis_url has no effect: the package redis is not installed here, so the router shares nothing "
            "with others. Install it on the server (pip install redis), or take its full image"
        )
        return None
    return lambda share, decide: RedisShare(share, redis_client(url), redis_client(url), decide)


def _has_redis_py() -> bool:
    try:
        import_module("redis")
    except ImportError:
        return False
    return True
