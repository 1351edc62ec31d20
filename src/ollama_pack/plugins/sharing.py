"""Workers that share what they know of the nodes over a Redis or Valkey."""

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
