"""Workers that share their nodes over whichever server a real Sentinel says is the master."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.cache_processes import until
from harness.crowds import EVENTS
from harness.fleet_peers import Peer, peers, run
from harness.valkey import Sentinel, Valkey
from harness.virtual_world import MODELS, resident
from ollama_pack.routing.peers.scripts import SHARE_PREFIX


@dataclass(frozen=True)
class WatchedPair:
    """A master with a replica, and the Sentinel that watches them."""

    master: Valkey
    replica: Valkey
    sentinel: Sentinel


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[WatchedPair]:
    at_once = {"repl-diskless-sync-delay": "0"}
    with Valkey(tmp_path, at_once) as master, Valkey(tmp_path) as replica:
        replica.follow(master)
        with Sentinel(tmp_path, master, down_seconds=0.5) as sentinel:
            yield WatchedPair(master, replica, sentinel)


@pytest.mark.parametrize("how", ["dies", "is replaced"])
def test_workers_meet_again_at_the_new_master(pair: WatchedPair, how: str) -> None:
    """Would catch workers that stay with a server which is no master any more, each alone, or that wait."""

    async def test() -> None:
        await until(pair.sentinel.knows_replica)
        async with peers(pair.sentinel.watching_url, 2, names=("x",), slots=1) as made:
            for peer in made:
                peer.world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])
            await take_turns(made, 10)
            await until(lambda: slots_taken(pair.replica) == 0)
            before = last_told(pair.replica)
            move(pair, how)
            await until(lambda: len(told_since(pair.replica, before)) == len(made))
            await until(lambda: all(peer.share.connected and peer.share.peers == 1 for peer in made))
            await take_turns(made, 20)

    run(test())


async def take_turns(made: list[Peer], number: int) -> None:
    """Both want the one slot; each gets it once, and neither while the other has it."""
    for peer in made:
        peer.world.ask(number + made.index(peer))
        peer.decide()
    for _ in made:
        await until(lambda: any(peer.sent for peer in made))
        await until(lambda: not any(peer.tasks for peer in made))
        (holder,) = (peer for peer in made if peer.sent)
        assert len(holder.sent) == 1
        holder.finish()


def move(pair: WatchedPair, how: str) -> None:
    """Another master: of itself, as the old one has died, or on an admin's wish."""
    if how == "dies":
        pair.master.kill()
        return
    pair.sentinel.fail_over()
    while pair.sentinel.master_port() != pair.replica.port:
        pass
    pair.master.follow(pair.replica)  # as Sentinel has it do, but ten seconds later


def slots_taken(server: Valkey) -> int:
    with looking_into(server) as client:
        return sum(int(client.zcard(key)) for key in client.keys(f"{SHARE_PREFIX}slots:*"))


def last_told(server: Valkey) -> bytes:
    """The id of the last thing that a worker has told there."""
    with looking_into(server) as client:
        (newest,) = client.xrevrange(EVENTS, count=1)
        return bytes(newest[0])


def told_since(server: Valkey, event: bytes) -> set[str]:
    """The workers that have told something there since."""
    with looking_into(server) as client:
        return {json.loads(fields[b"m"])["w"] for _, fields in client.xrange(EVENTS, min=b"(" + event)}


def looking_into(server: Valkey) -> Any:
    """A client that connects anew where Sentinel has ended its connection, as it does at a change."""
    return redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 3), socket_timeout=10)
