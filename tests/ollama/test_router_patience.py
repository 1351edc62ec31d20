"""How long the router waits for a silent node: briefly where another can answer, but for each honest load.

On a fast clock, which both the router and the nodes live on: seconds here are simulated ones.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import aiohttp
import pytest

from bench.routing.clock import run_fast
from harness.ollama_server import NodeServer
from harness.ollama_wire import Model
from harness.routing import Chat
from harness.sim_faults import Fault
from harness.sim_shape import NodeShape
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.errors import NoAnswerError, QueueFullError
from ollama_pack.routing.nodes import NodeRow

SPEED = 10.0
WALL_SECONDS = 40.0  # that a scenario may take: one that waits for the admin's limit takes ten times as long
MODEL = Model("llama3:8b", size=1_000_000_000, load_seconds=2.0)
SHAPE = NodeShape(slots=1, prompt_rate=700.0, decode_rate=100.0, answer_tokens=20, answer_spread=0.0)
SHUT_SECONDS = 4.0  # for which nothing is sent there, and a little less, as the clocks are not the same
SETTINGS = RouterSettings(first_token_seconds=3600.0)
HANGS = Fault("hang", path="/api/chat")
Scenario = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def fleet(
    *nodes: NodeServer, slots: int = 1, spare_tier: int = 0, settings: RouterSettings = SETTINGS
) -> AsyncIterator[Router]:
    """A router over these nodes, called gpu0, gpu1 and so on; all but the first are of the other tier."""
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        rows = [
            NodeRow(f"gpu{number}", node.url, slots=slots, tier=spare_tier if number else 0)
            for number, node in enumerate(nodes)
        ]
        router = Router(rows, aiohttp.ClientSession(), settings, Random(1))  # noqa: S311 - breaks ties
        await router.ready()
        yield router
        await router.close()


def play(scenario: Scenario) -> None:
    """Run it on the fast clock, but not for ever."""
    run_fast(asyncio.wait_for(scenario(), WALL_SECONDS * SPEED), SPEED)


def asked(node: NodeServer) -> int:
    """How many chats a node was asked for."""
    return sum(request.path == "/api/chat" for request in node.requests)


def story(number: int) -> str:
    """A prompt long enough to learn from, unlike all others."""
    return f"Write 20 words about {number}. " + f"number {number} " * 60


async def learn(router: Router, nodes: Sequence[NodeServer]) -> None:
    """Chat until the router knows the nodes."""
    number = 0
    while any(asked(node) < 7 for node in nodes):
        number += 1
        await asyncio.gather(*(Chat(router, story(10 * number + more)).run() for more in range(len(nodes))))


def test_a_hang_costs_one_chat_a_few_seconds() -> None:
    """Would catch users who wait for the whole limit at a node whose chats hang, one after another."""

    async def scenario() -> None:
        first, second = NodeServer([MODEL], shape=SHAPE), NodeServer([MODEL], shape=SHAPE)
        async with fleet(first, second) as router:
            await learn(router, (first, second))
            await first.command(HANGS)
            before = asked(first)
            chats = [Chat(router, story(1000 + number)) for number in range(6)]
            for chat in chats:
                await chat.run()
            assert {chat.routed["node"] for chat in chats} == {"gpu1"}
            assert asked(first) - before <= 2  # the one that found out; and one that tried after a while
            assert asked(first) > before

    play(scenario)


def test_one_hang_shuts_its_model_out_at_that_node(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a second user who is sent to a model that has just hung, and waits as long as the first."""

    async def scenario() -> None:
        first, second = NodeServer([MODEL], shape=SHAPE), NodeServer([MODEL], shape=SHAPE)
        async with fleet(first, second, spare_tier=1) as router:
            await learn(router, (first,))
            await first.command(HANGS)
            chats = [Chat(router, story(1000 + number)) for number in range(3)]
            for chat in chats:
                await chat.run()
            assert {chat.routed["node"] for chat in chats} == {"gpu1"}
            hung = next(record.created for record in caplog.records if "failed a request" in record.message)
            after = [decision for decision in router.decisions if decision.at > hung]
            early = [decision.node for decision in after if decision.at - hung < SHUT_SECONDS / SPEED]
            assert after
            assert "gpu0" not in early

    play(scenario)


def test_a_first_load_of_unknown_length_is_waited_for() -> None:
    """Would catch a large model that is never loaded, because each node is given up while it loads."""

    async def scenario() -> None:
        slow = replace(MODEL, size=6_000_000_000, load_seconds=30.0)
        nodes = [NodeServer([slow], shape=SHAPE) for _ in range(2)]
        async with fleet(*nodes) as router:
            await Chat(router, story(1)).run()
            assert sum(map(asked, nodes)) == 1

    play(scenario)


def test_a_long_prompt_is_waited_for() -> None:
    """Would catch long conversations that are sent from node to node on a machine without a GPU."""

    async def scenario() -> None:
        shape = replace(SHAPE, prompt_rate=30.0)
        nodes = [NodeServer([MODEL], shape=shape) for _ in range(2)]
        async with fleet(*nodes) as router:
            await Chat(router, "word " * 900).run()
            assert sum(map(asked, nodes)) == 1

    play(scenario)


def test_a_node_that_answers_somebody_else_does_not_hang() -> None:
    """Would catch a node that is shut out because its row promises a slot more than it has."""

    async def scenario() -> None:
        busy, spare = (NodeServer([MODEL], shape=SHAPE) for _ in range(2))
        async with fleet(busy, spare, slots=2, spare_tier=1) as router:
            await learn(router, (busy,))
            long = Chat(router, "Write 3000 words about it")  # 30 s
            speaks = asyncio.Event()

            async def begun(_: object) -> None:
                speaks.set()

            long.on_chunk = begun
            first = asyncio.create_task(long.run())
            await speaks.wait()
            behind = Chat(router, story(5))
            await asyncio.gather(first, behind.run())
            assert behind.routed["node"] == long.routed["node"] == "gpu0"
            assert asked(spare) == 0

    play(scenario)


def test_a_hang_is_waited_for_where_nobody_else_could_answer() -> None:
    """Would catch the only node being given up: its users would get errors instead of slow answers."""

    async def scenario() -> None:
        node = NodeServer([replace(MODEL, load_seconds=40.0)], shape=SHAPE)
        async with fleet(node) as router:
            await Chat(router, story(1)).run()
            assert asked(node) == 1

    play(scenario)


IMPATIENT = RouterSettings(first_token_seconds=20.0, probe_seconds=2.0)
LONG_LOADS = {"404 GB": (404_000_000_000, 90.0), "5 GB from a slow share": (5_000_000_000, 90.0)}


ENGINES = {"listed": SHAPE, "unlisted": replace(SHAPE, lists_loads=False)}  # in /api/ps while they load


@pytest.mark.parametrize("shape", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("case", LONG_LOADS)
def test_a_load_longer_than_the_limit_is_waited_for(case: str, shape: NodeShape) -> None:
    """Would catch a large model that never answers: each node is made to load it, and given up meanwhile."""
    size, seconds = LONG_LOADS[case]

    async def scenario() -> None:
        slow = replace(MODEL, size=size, load_seconds=seconds)
        nodes = [NodeServer([slow], shape=shape) for _ in range(2)]
        async with fleet(*nodes, settings=IMPATIENT) as router:
            chat = Chat(router, story(1))
            await chat.run()
            assert sum(map(asked, nodes)) == 1
            lines = [line for line, done in chat.told if not done]
            assert lines[0].endswith("loads llama3:8b")
            told = [int(line.rpartition(" · ")[2].removesuffix(" s")) for line in lines[1:]]
            assert len(told) >= 2
            assert told == sorted(told)
            assert told[-1] >= IMPATIENT.first_token_seconds
            assert chat.told[-1][1]

    play(scenario)


@pytest.mark.parametrize("shape", ENGINES.values(), ids=ENGINES)
def test_those_behind_a_load_are_not_refused(shape: NodeShape) -> None:
    """Would catch a second user who reads that all nodes were busy, because the model is being loaded."""

    async def scenario() -> None:
        node = NodeServer([replace(MODEL, size=5_000_000_000, load_seconds=60.0)], shape=shape)
        async with fleet(node, settings=IMPATIENT) as router:
            await asyncio.gather(
                *(Chat(router, story(number), user=str(number)).run() for number in range(3))
            )
            assert node.state.scheduler.loads == 1

    play(scenario)


def test_a_load_that_never_ends_is_given_up() -> None:
    """Would catch a chat that waits for ever for a model that is never there."""

    async def scenario() -> None:
        node = NodeServer([replace(MODEL, load_seconds=3000.0)], shape=SHAPE)
        async with fleet(node, settings=replace(IMPATIENT, load_seconds=40.0)) as router:
            with pytest.raises(NoAnswerError, match=r"gpu0: has not loaded the model within 4\d s"):
                await Chat(router, story(1)).run()

    play(scenario)


def test_after_the_load_the_usual_limit_counts() -> None:
    """Would catch a model that hangs once it is loaded, and is waited for as if it were still loading."""

    async def scenario() -> None:
        first, second = NodeServer([MODEL], shape=SHAPE), NodeServer([MODEL], shape=SHAPE)
        async with fleet(first, second, spare_tier=1, settings=IMPATIENT) as router:
            await learn(router, (first,))
            await second.kill()
            await first.command(HANGS)
            began = asyncio.get_running_loop().time()
            with pytest.raises(NoAnswerError, match=r"has not sent its first byte within \d+"):
                await Chat(router, story(1000)).run()
            assert asyncio.get_running_loop().time() - began < 100  # a load would have ten minutes

    play(scenario)


@pytest.mark.parametrize(("slots", "count"), [(1, 1), (2, 2)])
def test_one_user_s_long_answers_refuse_nobody(slots: int, count: int) -> None:
    """Would catch others who read that all nodes were busy, since one user's answers are long."""

    async def scenario() -> None:
        shape = replace(SHAPE, slots=slots)
        nodes = [NodeServer([MODEL], shape=shape) for _ in range(count)]
        async with fleet(*nodes, slots=slots, settings=IMPATIENT) as router:
            long = [
                Chat(router, f"Write 2500 words about {number}", user="long")
                for number in range(slots * count + 1)
            ]
            flood = asyncio.gather(*(chat.run() for chat in long), return_exceptions=True)
            await asyncio.sleep(3)  # the model is loaded
            others = [Chat(router, "Write 5 words", user=user) for user in ("ann", "bob")]
            await asyncio.gather(*(chat.run() for chat in others))
            assert [len(chat.said.split()) for chat in others] == [5, 5]
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)

    play(scenario)


def test_one_user_s_flood_refuses_nobody() -> None:
    """Would catch others who are refused because one user's requests fill the queue."""

    async def scenario() -> None:
        node = NodeServer([MODEL], shape=SHAPE)
        async with fleet(node, settings=replace(SETTINGS, max_queue=8)) as router:
            flood = [Chat(router, f"Write 500 words about {number}", user="flood") for number in range(12)]
            running = [asyncio.create_task(chat.run()) for chat in flood]
            await asyncio.sleep(3)  # one is answered, and as many wait as may
            others = [Chat(router, "Write 5 words", user=user) for user in ("ann", "ann", "bob", "bob")]
            await asyncio.gather(*(chat.run() for chat in others))
            assert [len(chat.said.split()) for chat in others] == [5] * 4
            ended = [task.exception() for task in running if task.done()]
            refused = [error for error in ended if isinstance(error, QueueFullError)]
            assert len(refused) == 12 - 1 - 6 + 2  # 6 may wait, and two of these made room
            assert {error.own for error in refused} == {6, 5}
            waited = [chat for chat in flood if ("waited" in chat.told[-1][0] if chat.told else False)]
            assert len(waited) == 2  # their status lines have ended
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    play(scenario)
