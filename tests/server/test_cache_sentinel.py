"""The cache behind a real Sentinel, and URLs that cannot be used."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from doctor import redis_finding
from harness.cache_processes import ask, run_on
from harness.cache_upstream import ScriptedUpstream, question
from harness.certificates import self_signed
from harness.valkey import Sentinel, Valkey
from local.processes import free_port
from ollama_pack.base.redis import redis_client
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.outcome import Hit
from ollama_pack.errors import SettingError


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


def test_tls_and_users_of_their_own_for_server_and_sentinel(redis_itself: Valkey, tmp_path: Path) -> None:
    """Would catch options of TLS, or the Sentinels' user, that are read and forgotten."""
    pem, port, sentinel_port = self_signed(tmp_path), free_port(), free_port()
    tls = {"tls-cert-file": str(pem), "tls-key-file": str(pem), "tls-ca-cert-file": str(pem)}
    logins = {"requirepass": "a@b/c", "tls-port": str(port), "tls-auth-clients": "no"}
    ours = "?" + "&".join((f"ssl_ca_certs={quote(str(pem), safe='')}", "ssl_min_version=1.2"))

    async def test(one: ResponseCache, two: ResponseCache) -> None:
        await ask(one, ScriptedUpstream())
        assert isinstance(await two.lookup(question()), Hit)

    with Valkey(tmp_path, tls, redis_itself.program) as server:
        server.config(**{name.replace("-", "_"): value for name, value in logins.items()})
        run_on(f"rediss://:a%40b%2Fc@127.0.0.1:{port}/1{ours}", test)
        lines = (
            f"tls-port {sentinel_port}",
            *(f"{name} {value}" for name, value in tls.items()),
            *("tls-auth-clients no", "tls-replication yes", "sentinel auth-pass pack a@b/c"),
            *("user default on nopass -@all +ping", "user watcher on >s#p +@all allchannels"),
        )
        server_at = Valkey(tmp_path, program=redis_itself.program)
        server_at.port = port  # where the Sentinel and its clients look for it
        with Sentinel(tmp_path, server_at, lines=lines):
            who = "&sentinel_username=watcher&sentinel_password=s%23p"
            run_on(f"rediss+sentinel://:a%40b%2Fc@127.0.0.1:{sentinel_port}/pack/2{ours}{who}", test)


def test_certificate_that_nobody_vouches_for_is_not_trusted(redis_itself: Valkey, tmp_path: Path) -> None:
    """Would catch TLS that takes anybody for the server, unless `ssl_cert_reqs=none` says so."""
    pem, port = self_signed(tmp_path), free_port()
    tls = {"tls-cert-file": str(pem), "tls-key-file": str(pem), "tls-ca-cert-file": str(pem)}
    options = {**tls, "tls-port": str(port), "tls-auth-clients": "no"}
    with Valkey(tmp_path, options, redis_itself.program):
        assert redis_finding(f"rediss://127.0.0.1:{port}").state == "wrong"
        assert redis_finding(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none").state == "ok"


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
    with pytest.raises(SettingError, match=says):
        redis_client(url)


def test_password_is_not_in_the_refusal() -> None:
    """Would catch a password that reaches a log or a valve's error."""
    with pytest.raises(SettingError) as refused:
        redis_client("redis+cluster://user:hunter2@:7000")
    assert "hunter2" not in str(refused.value)


def test_making_a_client_connects_nowhere() -> None:
    """Would catch a store that needs its server when a plugin is loaded."""

    async def make() -> None:
        for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/x", "redis+cluster://127.0.0.1:1"):
            await redis_client(url).aclose()

    asyncio.run(make())
