"""Commands on connections that are kept: on a real Valkey, alone and behind a real Sentinel."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness.cache_processes import until
from harness.valkey import Sentinel, Valkey
from ollama_pack.base.redis import redis_client
from ollama_pack.cache.errors import StoreDownError
from ollama_pack.cache.store_redis import RedisStore

MOST = 8
NAME = "link"  # of its connections, at the server


def run(url: str, test: Callable[[RedisStore], Awaitable[None]]) -> None:
    """Run a test on a link, which is closed afterwards."""

    async def within() -> None:
        link = RedisStore(redis_client(f"{url}?client_name={NAME}"), redis_client(url))
        try:
            async with asyncio.timeout(30):
                await test(link)
        finally:
            await link.close()

    asyncio.run(within())


async def has_connections(valkey: Valkey, number: int) -> None:
    """Wait until the server has this many of links: it hears of an end a moment later."""

    def holds() -> bool:
        with valkey.client() as client:
            return [each["name"] for each in client.client_list()].count(NAME) == number

    await until(holds)


def test_values_of_all_kinds_arrive(valkey: Valkey) -> None:
    """Would catch a command that is put together wrongly, or an answer that is decoded."""

    async def test(link: RedisStore) -> None:
        kinds: list[tuple[bytes | str | float, bytes]] = [
            (b"\x00\r\n\xff", b"\x00\r\n\xff"),
            ("é $1", "é $1".encode()),
            (7, b"7"),
            (0.5, b"0.5"),
        ]
        for value, kept in kinds:
            await link.ask("SET", "key", value)
            assert await link.ask("GET", "key") == kept
        assert isinstance(await link.ask("SCRIPT LOAD", "return 1"), bytes)

    run(valkey.url, test)


def test_connections_are_kept_and_no_more_are_made_than_allowed(valkey: Valkey) -> None:
    """Would catch a connection for each command, or a burst of lookups that opens one for each of them."""

    async def test(link: RedisStore) -> None:
        for _ in range(3):
            answers = await asyncio.gather(*(link.ask("ECHO", f"{n}") for n in range(50)))
            assert answers == [b"%d" % n for n in range(50)]
        await has_connections(valkey, MOST)
        await link.ask("PING")
        await has_connections(valkey, MOST)

    run(valkey.url, test)
    asyncio.run(has_connections(valkey, 0))


def test_answer_that_nobody_waits_for_is_given_to_nobody(valkey: Valkey) -> None:
    """Would catch a lookup that was given up, whose answer the next lookup takes for its own."""

    async def test(link: RedisStore) -> None:
        await link.ask("SET", "mine", "mine")
        await link.ask("SET", "yours", "yours")
        valkey.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.ask("GET", "yours")
        valkey.resume()
        assert await link.ask("GET", "mine") == b"mine"

    run(valkey.url, test)


def test_connection_in_use_is_closed_once_it_has_its_answer(valkey: Valkey) -> None:
    """Would catch a lookup that fails, or a connection that stays, when the valves are saved meanwhile."""

    async def test(link: RedisStore) -> None:
        asked = asyncio.create_task(link.ask("BLPOP", "later", 30))
        await has_connections(valkey, 1)
        await link.close()
        with valkey.client() as client:
            client.rpush("later", "now")
        assert await asked == [b"later", b"now"]
        await has_connections(valkey, 0)

    run(valkey.url, test)


def test_dead_server_is_told_in_the_stores_terms(tmp_path: Path) -> None:
    """Would catch an error of the client that no guard knows, or a link that does not recover."""
    with Valkey(tmp_path) as valkey:

        async def test(link: RedisStore) -> None:
            await link.ask("PING")
            valkey.kill()
            with pytest.raises(StoreDownError):
                await link.ask("PING")
            valkey.start()
            assert await link.ask("PING") == b"PONG"

        run(valkey.url, test)


def test_new_master_is_found_through_sentinel(tmp_path: Path) -> None:
    """Would catch a broken connection that goes back to where the master was."""
    with Valkey(tmp_path) as old, Valkey(tmp_path) as new, Sentinel(tmp_path, old) as sentinel:
        for server, name in ((old, "old"), (new, "new")):
            with server.client() as client:
                client.set("name", name)

        async def test(link: RedisStore) -> None:
            assert await link.ask("GET", "name") == b"old"
            with sentinel.client() as client:
                client.execute_command("SENTINEL REMOVE", "pack")
                client.execute_command("SENTINEL MONITOR", "pack", "127.0.0.1", new.port, 1)
            old.kill()
            assert await link.ask("GET", "name") == b"new"

        run(f"redis+sentinel://127.0.0.1:{sentinel.port}/pack/0", test)
