"""The URL by which workers share the nodes, as an admin writes it."""

import traceback

import pytest

from ollama_pack.base.redis import check_redis_url
from ollama_pack.errors import SettingError
from ollama_pack.plugins.pipelines.gpu_router import KEY_VARIABLE, KNOWN_KEY, shared_secret
from ollama_pack.services.sharing import redis_sharing


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://localhost:6379/0",
        "rediss://:hush@redis.example.org",
        "redis+sentinel://:hush@a:26379,b/pack",
        "redis+cluster://:hush@a:7000,b:7000",
        "unix:///run/redis.sock",
    ],
)
def test_what_can_be_used_is_taken(url: str) -> None:
    """Would catch a valve that refuses what the documentation promises."""
    assert check_redis_url(url) == url  # upload.py asks where no event loop runs


@pytest.mark.parametrize(
    "url",
    ["http://:hush@redis", "redis://:hush/hush@redis:6379/0", "redis+sentinel://:hush@a:26379", "hush"],
)
def test_what_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    """Would catch a password, or a piece of one, in what an admin is shown and what is logged."""
    with pytest.raises(SettingError) as error:
        check_redis_url(url)
    told = "".join(traceback.format_exception(error.value))
    assert "URL of Redis" in str(error.value)
    if url != "hush":  # which is no password
        assert "hush" not in told.replace(repr(url), "")


def test_no_url_connects_nobody() -> None:
    """Would catch a worker that looks for a Redis which nobody has."""
    assert redis_sharing("") is None


def test_a_key_that_everybody_knows_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch prompts that whoever can read the Redis could test, as servers keep the image's key."""
    monkeypatch.setenv(KEY_VARIABLE, "a key of this site's own")
    assert shared_secret() == shared_secret() == "a key of this site's own"
    for known in (KNOWN_KEY, ""):
        monkeypatch.setenv(KEY_VARIABLE, known)
        assert len({shared_secret(), shared_secret(), known}) == 3
    monkeypatch.delenv(KEY_VARIABLE)
    assert shared_secret() != shared_secret()
