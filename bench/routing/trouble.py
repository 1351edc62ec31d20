"""Situations in which something goes wrong: nodes that fail in turn, and one user who floods."""

import asyncio
import logging
from random import Random

from bench.routing.comparison import Run, in_thread, run
from bench.routing.nodes import Shape
from harness.sim_faults import Fault
from harness.sim_process import SimulatedNodes
from harness.virtual_chats import Chat, Turn, trace
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import router_log

FAULT_SECONDS, REST_SECONDS = 40.0, 10.0
CHAT = "/api/chat"  # a runner that crashes takes nothing else with it: probes are answered as ever
CHATTING_SECONDS = 5 * FAULT_SECONDS + 6 * REST_SECONDS

FLOODER, FLOOD_AT, FLOOD = "flooder", 10.0, 200
CHATTERS, CHATTER_TURNS = 10, 20


def run_with_faults(policy: str, seed: int, speed: float) -> Run:
    """Chats go on while nodes fail in turn: killed, hung, crashing early, crashing late, talking garbage."""
    router_log.setLevel(logging.ERROR)  # a failed request that another node answers is what is wanted here
    chats = trace(0.2, (0.55, 0.30, 0.15), CHATTING_SECONDS, seed)
    return run(policy, chats, seed, speed, Shape(), beside=break_nodes)


async def break_nodes(nodes: SimulatedNodes) -> None:
    """Let nodes fail, each for a while and never two at once."""
    await asyncio.sleep(REST_SECONDS)
    await in_thread(lambda: nodes.kill("gpu0"))
    await asyncio.sleep(FAULT_SECONDS)
    await in_thread(lambda: nodes.start("gpu0"))
    for name, fault in (
        ("gpu1", Fault("hang")),
        ("gpu2", Fault("crash", path=CHAT, after=0)),
        ("gpu3", Fault("crash", path=CHAT, after=5)),
        ("gpu0", Fault("garbage", path=CHAT, after=0)),
    ):
        await asyncio.sleep(REST_SECONDS)
        await in_thread(lambda name=name, fault=fault: nodes.command(name, fault))  # type: ignore[misc] # mypy cannot see a lambda's defaults
        await asyncio.sleep(FAULT_SECONDS)
        await in_thread(lambda name=name: nodes.clear_faults(name))  # type: ignore[misc] # see above
    await asyncio.Event().wait()


def run_flood(policy: str, seed: int, speed: float, max_queue: int) -> Run:
    """Ten users chat, an answer read in three seconds, and one asks 200 things at once, of one model."""
    dice = Random(seed)
    chats = [
        Chat(
            number,
            dice.uniform(0, 5),
            "m0",
            tuple(Turn(40, 60, dice.expovariate(1 / 3)) for _ in range(CHATTER_TURNS)),
            f"user {number}",
        )
        for number in range(CHATTERS)
    ]
    flood = [Chat(100 + number, FLOOD_AT, "m0", (Turn(150, 80, 0.0),), FLOODER) for number in range(FLOOD)]
    settings = RouterSettings(max_queue=max_queue)
    return run(policy, [*chats, *flood], seed, speed, Shape(models=1), settings=settings, titles=False)
