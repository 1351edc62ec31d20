"""Workers that share their nodes over a real Valkey: slots are claimed once, and its loss is survived."""

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cache_processes import until
from harness.fleet_peers import peers, run
from harness.valkey import Valkey
from harness.virtual_share import SharedPlace
from harness.virtual_world import MODELS, World, resident
from ollama_pack.base.redis import redis_client
from ollama_pack.routing.dispatch.request import fleet_request
from ollama_pack.routing.peers import redis as share_redis
from ollama_pack.routing.peers.redis import RedisShare
from ollama_pack.routing.peers.share import FleetShare, ShareStep, SlotClaim


@pytest.mark.parametrize("count", [2, 4])
def test_a_free_slot_is_given_to_one_worker(
    server: Valkey, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a slot that several workers use at once, and requests that are never served for it."""
    monkeypatch.setattr(share_redis, "CLAIM_SECONDS", 30.0)  # a busy machine is no reason not to ask

    async def test() -> None:
        async with peers(server.url, count, names=("x", "y"), slots=2) as made:
            for peer in made:
                for name in peer.world.names:
                    peer.world.scheduler.cluster.probed(name, MODELS, [resident(1.0)])
            served = 0
            for number, peer in enumerate(made):
                for more in range(3):
                    peer.world.ask(10 * number + more, user=f"u{more}")
                peer.decide()
            while served < 3 * count:
                await until(lambda: any(peer.sent for peer in made))
                await until(lambda: not any(peer.tasks for peer in made))
                there = [binding.node for peer in made for binding in peer.sent]
                assert all(there.count(node) <= 2 for node in ("x", "y"))
                served += len(there)
                for peer in made:
                    peer.finish()
            assert sum(peer.refused for peer in made) > 0
        with server.client() as client:
            assert [key for key in client.keys("*slots*") if client.zcard(key)] == []

    run(test())


def test_only_one_worker_loads_at_a_node(server: Valkey) -> None:
    """Would catch two workers that throw out each other's models, one after the other."""

    async def test() -> None:
        async with peers(server.url, 2, names=("x",)) as (one, two):
            one.world.ask(1, "a")
            two.world.ask(2, "b")
            one.decide()
            two.decide()
            await until(lambda: len(one.sent) + len(two.sent) == 1 and one.refused + two.refused >= 1)
            first, second = (one, two) if one.sent else (two, one)
            first.finish()
            await until(lambda: bool(second.sent))

    run(test())


def test_a_worker_that_dies_holds_nothing_for_long(server: Valkey) -> None:
    """Would catch slots that are lost with a worker that was killed."""

    async def test() -> None:
        async with peers(server.url, 2, names=("x",), slots=1) as (one, two):
            one.world.ask(1)
            one.decide()
            await until(lambda: bool(one.sent))
            await until(lambda: len(two.world.scheduler.cluster.remote) == 1)
            assert one.redis._task  # noqa: SLF001 - the closest to a kill within one process
            one.redis._task.cancel()  # noqa: SLF001 - the same
            one.share.connected = False
            two.world.ask(2)
            two.decide()
            assert not two.sent
            await until(lambda: bool(two.sent))

    run(test())


@pytest.mark.parametrize("how", ["paused", "restarted"])
def test_without_redis_each_goes_on_alone_and_joins_again(server: Valkey, how: str) -> None:
    """Would catch chats that wait for a Redis that is down, or workers that stay apart when it is back."""

    async def test() -> None:
        async with peers(server.url, 2, names=("x", "y"), slots=1) as made:
            one, two = made
            server.pause() if how == "paused" else server.kill()
            try:
                one.world.ask(1)
                one.decide()
                await until(lambda: bool(one.sent))
                await until(lambda: not one.share.connected and not two.share.connected)
                two.world.ask(2)
                two.decide()
                await until(lambda: bool(two.sent))
            finally:
                server.resume() if how == "paused" else server.start()
            await until(lambda: all(peer.share.peers == 1 for peer in made))
            await until(lambda: all(len(peer.world.scheduler.cluster.remote) == 1 for peer in made))
            one.finish()
            await until(lambda: len(two.world.scheduler.cluster.remote) == 0)

    run(test())


def test_a_request_that_ends_while_it_asks_holds_nothing(server: Valkey) -> None:
    """Would catch a slot that stays taken because its user stopped at the wrong moment."""

    async def test() -> None:
        async with peers(server.url, 2, names=("x",), slots=1) as (one, two):
            one.world.ask(1)
            (binding,) = one.world.decide()
            asking = asyncio.ensure_future(one.redis.claim(binding))
            await asyncio.sleep(0)
            asking.cancel()
            one.world.scheduler.cancel("r1")
            two.world.ask(2)
            two.decide()
            await until(lambda: bool(two.sent))

    run(test())


def test_what_is_written_names_nobody(server: Valkey) -> None:
    """Would catch an address or a name in a key or a message, and anything that stays there for ever."""

    async def test() -> None:
        async with peers(server.url, 2, names=("x",)) as (one, _):
            said = {"messages": [{"role": "user", "content": "my secret question"}]}
            one.world.scheduler.submit(
                fleet_request(said, ["a"], request_id="r1", user="ann@example.org", chat="chat-7")
            )
            one.decide()
            await until(lambda: bool(one.sent))
            with server.client() as client:
                for key in client.keys("*"):
                    assert key.startswith(b"ollama_pack:{fleet}:")
                    assert client.pttl(key) > 0
                written = repr(client.xrange("ollama_pack:{fleet}:1:events")) + repr(client.keys("*"))
            assert "r1" in written
            for private in ("ann@", "http", "chat-7", "secret"):
                assert private not in written

    run(test())


claims = st.builds(
    SlotClaim,
    st.sampled_from("abcd"),
    st.sampled_from(["n1", "n2"]),
    st.sampled_from(["w1", "w2", "w3"]),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.sampled_from(["w1", "w2", "w3"]), max_size=2, unique=True).map(tuple),
)
steps = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "renew", "release", "loaded"]), claims), max_size=30
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_scripts_do_as_the_plain_model(server: Valkey, steps: list[tuple[Any, SlotClaim]]) -> None:
    """Would catch a script that grants what it must refuse, or the other way, or names the wrong holders."""

    async def test() -> None:
        place, world = SharedPlace(), World()
        share = FleetShare(world.scheduler, "w", lambda: 0.0)
        clients = (redis_client(server.url), redis_client(server.url))
        carrier = RedisShare(share, *clients, lambda: None, prefix=f"{Random().random()}:{{t}}:")  # noqa: S311 - a name of its own
        for kind, claim in steps:
            answer = await carrier._do(ShareStep(kind, claim))  # noqa: SLF001 - one step at a time
            if kind != "claim":
                getattr(place, kind)(claim)
                continue
            expected = place.claim(claim)
            holders = [part.decode() for part in answer[1:]] if answer else []
            assert (not answer) == (expected is None)
            assert sorted(holders) == sorted(expected.holders if expected else ())
        await carrier.close()

    run(test())
