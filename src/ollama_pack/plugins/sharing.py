"""Workers that share what they know of the nodes over a Redis or Valkey."""

from functools import lru_cache

from ollama_pack.cache.redis_url import redis_client
from ollama_pack.fleet.share import Connect
from ollama_pack.fleet.share_redis import RedisShare


def redis_sharing(url: str) -> Connect | None:
    """What connects a router with the others; None where there is no URL. Nothing is connected yet.

    Args:
        url: as `redis_client` takes it.
    """
    if not url:
        return None
    return lambda share, decide: RedisShare(share, redis_client(url), redis_client(url), decide)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def check_redis_url(url: str) -> str:
    """The URL, which is none or can be used.

    Raises:
        CacheConfigError: it is none of the forms.
    """
    if url:
        redis_client(url)
    return url
