"""The cache behind a real Sentinel, and URLs that cannot be used."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor import redis_finding
from harness.cache_processes import ask, run_on
from harness.cache_upstream import ScriptedUpstream, question
from harness.valkey import Sentinel, Valkey
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.errors import CacheConfigError
from ollama_pack.cache.outcome import Hit
from ollama_pack.cache.redis_url import redis_client


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Sentinel]:
    with Valkey(tmp_path) as valkey, Sentinel(tmp_path, valkey) as sentinel:
        yield sentinel


def test_server_is_found_through_sentinel(sentinel: Sentinel) -> None:
    """Would catch a Sentinel URL that is read wrongly, or whose clients ask the Sentinel itself."""

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert isinstance(await two.lookup(question()), Hit)

    run_on(f"redis+sentinel://127.0.0.1:{sentinel.port}/pack/0", test)


def test_doctor_asks_the_server_behind_sentinel(sentinel: Sentinel) -> None:
    """Would catch a doctor that takes a Sentinel for the store, or knows only plain addresses."""
    assert redis_finding(f"redis+sentinel://127.0.0.1:{sentinel.port}/pack/0").state == "ok"
    wrong = redis_finding(f"redis+sentinel://127.0.0.1:{sentinel.port}/nobody/0")
    assert wrong.state == "wrong"
    assert "cache.url" in wrong.remedy


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "redis://"),
        ("localhost:6379", "begins with 'localhost:6379'"),
        ("redis+sentinel://host:26379", "name of the service"),
        ("redis+cluster://:7000", "names no host"),
        ("redis+sentinel://host:none/pack", "cannot be used"),
    ],
)
def test_unusable_url_is_refused_with_what_to_write(url: str, says: str) -> None:
    """Would catch a mistyped URL that is found out when the first chat is asked, or not at all."""
    with pytest.raises(CacheConfigError, match=says):
        redis_client(url)


def test_password_is_not_in_the_refusal() -> None:
    """Would catch a password that reaches a log or a valve's error."""
    with pytest.raises(CacheConfigError) as refused:
        redis_client("redis+cluster://user:hunter2@:7000")
    assert "hunter2" not in str(refused.value)


def test_making_a_client_connects_nowhere() -> None:
    """Would catch a store that needs its server when a plugin is loaded."""

    async def make() -> None:
        for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/x", "redis+cluster://127.0.0.1:1"):
            await redis_client(url).aclose()

    asyncio.run(make())
