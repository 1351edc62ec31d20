"""Workers of a fleet that share over a real server, each a scheduler on its own, in one process."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.cache_processes import until
from harness.virtual_world import World
from ollama_pack.base.redis import redis_client
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.peers.redis import RedisShare
from ollama_pack.routing.peers.share import FleetShare


@dataclass
class Peer:
    """One worker: what it decides, and its connection. Its clock is the event loop's."""

    world: World
    share: FleetShare
    redis: RedisShare
    sent: list[Assignment] = field(default_factory=list)
    refused: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def decide(self) -> None:
        self.world.now = asyncio.get_running_loop().time()
        for binding in self.world.decide():
            task = asyncio.get_running_loop().create_task(self.send(binding))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def send(self, binding: Assignment) -> None:
        if await self.redis.claim(binding):
            self.sent.append(binding)
        else:
            self.refused += 1
            del self.world.running[binding.request.id]
            self.decide()

    def finish(self) -> None:
        """Every request that was sent is answered."""
        while self.sent:
            name = self.sent.pop().request.id
            self.world.first_token(name)
            self.world.finish(name, prompt_count=300, decode_count=100)
        self.decide()


@asynccontextmanager
async def peers(url: str, count: int, **fields: Any) -> AsyncIterator[list[Peer]]:
    """So many workers that have met."""
    made = []
    for number in range(count):
        world = World(now=asyncio.get_running_loop().time(), **fields)
        share = FleetShare(world.scheduler, f"worker-{number}", lambda world=world: world.now)  # type: ignore[misc] # mypy cannot see a lambda's defaults
        peer: list[Peer] = []
        clients = (redis_client(url), redis_client(url))
        redis = RedisShare(share, *clients, lambda peer=peer: peer[0].decide())  # type: ignore[misc] # the same
        peer.append(Peer(world, share, redis))
        made += peer
        redis.start()
    try:
        await until(lambda: all(peer.share.peers == count - 1 for peer in made))
        yield made
    finally:
        for one in made:
            await one.redis.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test; one that hangs fails."""
    asyncio.run(asyncio.wait_for(test, 60))
