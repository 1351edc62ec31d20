"""The peers' hits, for `bench/cache.py --peers PYTHON`: run by an interpreter that has them.

    PYTHON bench/peers/cache.py redis://127.0.0.1:PORT/0 CALLS      prints a JSON object

Each is asked for an answer that it has, as its own client would be: LiteLLM's cache on Redis (key of the
request, read, parsed); GPTCache with exact matching, which has no Redis of its own for that and keeps its map
in the process; RedisVL's semantic cache, which needs a search module in Redis, and where there is none its
embeddings cache, one read by an exact key.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

Hit = Callable[[], Awaitable[Any]]
ANSWER = {"role": "assistant", "content": "word " * 200}


async def litellm_hit(url: str, body: dict[str, Any]) -> Hit:
    parts = urlsplit(url)
    cache = import_module("litellm.caching.caching").Cache(
        type="redis", host=parts.hostname, port=str(parts.port)
    )
    choices = [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]
    response = import_module("litellm").ModelResponse(id="x", choices=choices, model=body["model"])
    await cache.async_add_cache(response.model_dump_json(), **body)
    return lambda: cache.async_get_cache(**body)


async def gptcache_hit(_url: str, body: dict[str, Any]) -> Hit:
    cache = import_module("gptcache").Cache()
    manager = import_module("gptcache.manager").get_data_manager(data_path=str(Path(mkdtemp()) / "map"))
    cache.init(pre_embedding_func=import_module("gptcache.processor.pre").get_prompt, data_manager=manager)
    api = import_module("gptcache.adapter.api")
    prompt = body["messages"][-1]["content"]
    api.put(prompt, ANSWER["content"], cache_obj=cache)

    async def hit() -> Any:
        return api.get(prompt, cache_obj=cache)

    return hit


async def redisvl_semantic_hit(url: str, body: dict[str, Any]) -> Hit:
    # one vector for all: what is measured is the search, not a model
    vectorizer = import_module("redisvl.utils.vectorize").CustomTextVectorizer(embed=one_vector)
    cache = import_module("redisvl.extensions.cache.llm").SemanticCache(redis_url=url, vectorizer=vectorizer)
    prompt = body["messages"][-1]["content"]
    await cache.astore(prompt, ANSWER["content"])
    return lambda: cache.acheck(prompt)


def one_vector(_text: str, **_more: Any) -> list[float]:
    return [0.1] * 8


async def redisvl_embeddings_hit(url: str, body: dict[str, Any]) -> Hit:
    cache = import_module("redisvl.extensions.cache.embeddings").EmbeddingsCache(redis_url=url)
    prompt = body["messages"][-1]["content"]
    await cache.aset(content=prompt, model_name="m", embedding=[0.1] * 200)
    return lambda: cache.aget(content=prompt, model_name="m")


PEERS = {
    "litellm": ("litellm", litellm_hit),
    "gptcache": ("gptcache", gptcache_hit),
    "redisvl_semantic": ("redisvl", redisvl_semantic_hit),
    "redisvl_embeddings": ("redisvl", redisvl_embeddings_hit),
}


async def measure(hit: Hit, calls: int) -> dict[str, float]:
    if not await hit():
        raise LookupError("it does not find what was stored")
    times = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        await hit()
        times.append((time.perf_counter_ns() - began) / 1e6)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50_ms": round(cuts[49], 4), "p99_ms": round(cuts[98], 4)}


async def main(url: str, calls: int) -> None:
    body = json.loads(sys.stdin.read())
    found: dict[str, Any] = {}
    for name, (package, make) in PEERS.items():
        try:
            found[name] = {"version": version(package), **await measure(await make(url, body), calls)}
        except PackageNotFoundError:
            found[name] = {"error": "not installed"}
        except Exception as error:  # noqa: BLE001 - what keeps a peer from running is the result
            found[name] = {"version": version(package), "error": f"{type(error).__name__}: {error}"[:200]}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
