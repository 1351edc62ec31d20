"""How commands are written for Redis, which hiredis does where it is there."""

import pytest
from redis.asyncio import Connection
from redis.utils import HIREDIS_AVAILABLE

from ollama_pack.cache import redis_link

COMMANDS = (
    ("PING",),
    ("SCRIPT LOAD", "return 1"),
    ("EVALSHA", "0" * 40, 2, "{scope}:m", "{scope}:e", b"\x00\r\n$1\xff", "", 1_700_000_000_001),
    ("HINCRBYFLOAT", "counts", "seconds saved", 0.1),
    ("HINCRBYFLOAT", "counts", "seconds saved", 1e-7),
    ("SET", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher", 2**53 + 1),
)


@pytest.mark.skipif(not HIREDIS_AVAILABLE, reason="hiredis is not installed")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command[:1])))
def test_commands_are_the_same_with_and_without_hiredis(
    command: tuple[str | bytes | float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a Pipelines server without hiredis that asks for something else than Open WebUI does."""
    connection = Connection()
    by_hiredis = b"".join(redis_link.packed_command(connection, command))
    monkeypatch.setattr(redis_link, "HIREDIS_AVAILABLE", False)
    assert b"".join(redis_link.packed_command(connection, command)) == by_hiredis
