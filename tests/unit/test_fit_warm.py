"""The `warm` valve: hours that are read as they are written, on any day and in any zone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.virtual_world import MODELS, World
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.errors import WarmTableError
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.routing.peers.messages import PullState
from ollama_pack.routing.peers.share import FleetShare
from ollama_pack.routing.probe.catalogue import NodeModel
from ollama_pack.routing.warm import parse_warm

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)


def left(hours: str, day: int, clock: str, zone: str = "UTC") -> float:
    """Hours that are left on a day (0 is Monday) at a time of that zone."""
    (row,) = parse_warm(f"m = {hours} zone={zone}")
    hour, minute = map(int, clock.split(":"))
    moment = MONDAY.replace(tzinfo=ZoneInfo(zone)) + timedelta(days=day, hours=hour, minutes=minute)
    return row.seconds_left(moment.astimezone(UTC)) / 3600


@pytest.mark.parametrize(
    ("hours", "day", "clock", "expected"),
    [
        ("Mon-Fri 07:30-17:00", 0, "07:30", 9.5),
        ("Mon-Fri 07:30-17:00", 4, "16:30", 0.5),
        ("Mon-Fri 07:30-17:00", 5, "09:00", 0),
        ("Mon-Fri 07:30-17:00", 0, "07:29", 0),
        ("Mon-Fri 07:30-17:00", 0, "17:00", 0),
        ("22:00-02:00", 2, "23:00", 3),
        ("22:00-02:00", 3, "01:00", 1),
        ("Fri 22:00-02:00", 5, "01:00", 1),
        ("Fri 22:00-02:00", 4, "01:00", 0),
        ("Sat-Mon 10:00-11:00", 6, "10:30", 0.5),
        ("00:00-24:00", 3, "12:00", 12),
        ("Mon 24:00-01:00", 0, "00:30", 0),
        ("Mon 24:00-01:00", 1, "00:30", 0.5),
        ("Sun 24:00-01:00", 0, "00:30", 0.5),
        ("Mon 08:00-09:00, Mon 10:00-12:00", 0, "11:00", 1),
    ],
)
def test_hours_are_as_written(hours: str, day: int, clock: str, expected: float) -> None:
    assert left(hours, day, clock) == expected


def test_hours_are_those_of_the_zone() -> None:
    """Would catch a school in Shanghai whose models are loaded when it is night there."""
    assert left("Mon-Fri 07:30-17:00", 0, "08:00", "Asia/Shanghai") == 9
    (row,) = parse_warm("m = Mon-Fri 07:30-17:00 zone=Asia/Shanghai")
    assert row.seconds_left(MONDAY + timedelta(hours=10)) == 0
    assert row.seconds_left(MONDAY) == 9 * 3600


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis wants them so
def test_a_day_and_the_rest_of_it_never_overlap(now: datetime) -> None:
    """Would catch a minute that belongs to both, or to neither."""
    night, day = parse_warm("n = 19:00-07:00 zone=UTC\nd = 07:00-19:00 zone=UTC")
    assert (night.seconds_left(now) > 0) != (day.seconds_left(now) > 0)


def test_rows_have_settings_and_comments() -> None:
    rows = parse_warm("# the day\nllama3:8b = 07:00-09:00 copies=2\n\nqwen3 = Mon 10:00-11:00  # tests")
    assert [(row.model, row.copies, row.line) for row in rows] == [("llama3:8b", 2, 2), ("qwen3", 1, 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama3:8b", "write it as"),
        ("llama3:8b =", "hours are missing"),
        ("a b = 07:00-08:00", "write it as"),
        ("m = 7-8", "cannot be read"),
        ("m = Mon 25:00-26:00", "is not a time"),
        ("m = Foo 07:00-08:00", "is not a day"),
        ("m = 07:00-08:00 copies=0", "unknown setting"),
        ("m = 07:00-08:00 zone=Mars/Base", "zone=Mars/Base is unknown"),
        ("m = 07:00-08:00 zone=../../etc/passwd", "is unknown"),
        ("m = 07:00-08:00\nm = 09:00-10:00", "has a row already"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(WarmTableError, match=said):
        parse_warm(text)


# --- which nodes load ---


def fleet(**memory: str) -> World:
    """Nodes with so much memory, which have two models of 10 bytes each."""
    return World(
        tuple(memory),
        rows={
            name: {"memory": parse_nodes(f"x http://x memory={size}")[0].memory}
            for name, size in memory.items()
        },
    )


def test_copies_go_to_the_nodes_with_the_most_room() -> None:
    """Would catch a second copy on the same node, or one more each time that somebody looks."""
    world = fleet(x="8GB", y="24GB", z="16GB")
    assert [load.node for load in world.scheduler.warm("a", 2)] == ["y", "z"]
    assert world.scheduler.warm("a", 2) == []
    assert [load.node for load in world.scheduler.warm("a", 3)] == ["x"]
    assert world.scheduler.warm("unknown", 1) == []


def test_nothing_in_use_is_unloaded_for_the_hours_to_come() -> None:
    """Would catch a morning's load that throws out the model of a running chat."""
    world = World(("x",))
    world.ask(1, "b")
    (binding,) = world.decide()
    world.first_token(binding.request.id)
    assert world.scheduler.warm("a", 1) == []
    world.finish(binding.request.id)
    assert world.scheduler.warm("a", 1) == []


def test_a_model_that_cannot_be_loaded_keeps_no_other_out() -> None:
    """Would catch a row whose model does not fit: the rows below it loaded nothing on that node, ever."""
    world = fleet(x="24GB")
    (broken,) = world.scheduler.warm("a", 1)
    assert world.scheduler.warm("b", 1, ["a"]) == []  # one load at a time
    world.scheduler.load_failed(broken.request.id)
    assert world.scheduler.warm("a", 1) == []
    assert [load.model for load in world.scheduler.warm("b", 1, ["a"])] == ["b"]


@pytest.mark.parametrize("lasts", [True, False])
def test_a_load_that_fails_again_and_again_is_tried_less_often(lasts: bool) -> None:  # noqa: FBT001
    """Would catch a load for want of memory that makes a node unload others every two minutes, all night.

    A node that is only busy or restarts is asked again as soon as before.
    """
    world, tries = World(("x",)), []
    begins = world.now
    while world.now < begins + 4 * 3600:
        for load in world.scheduler.warm("a", 1):
            tries.append(world.now - begins)
            world.scheduler.load_failed(load.request.id, lasts=lasts)
        world.now += 5.0
    pauses = [round(later - sooner) for sooner, later in pairwise(tries)]
    assert pauses == [120, 240, 480, 960, 1920, 3600, 3600] if lasts else set(pauses) == {120}
    world.ask(1)
    (chat,) = world.decide()  # people's chats are not kept from trying
    world.first_token(chat.request.id)
    world.finish(chat.request.id)
    world.scheduler.cluster.probed("x", MODELS, [])  # it has been unloaded since
    assert len(world.scheduler.warm("a", 1)) == 1


def test_a_drained_node_gets_nothing_new() -> None:
    world = World(("x", "y"))
    world.scheduler.cluster.drain("x")
    for number in range(3):
        world.ask(number, "a")
    assert {binding.node for binding in world.decide()} == {"y"}
    assert [load.node for load in world.scheduler.warm("b", 2)] == []
    world.scheduler.cluster.drain("x", draining=False)
    assert {binding.node for binding in world.decide()} == {"x"}


def test_a_node_that_has_left_stays_out_whatever_is_drained() -> None:
    """Would catch a node that was taken out of the table and gets chats again."""

    async def run() -> list[bool]:
        async with aiohttp.ClientSession() as session:
            rows = parse_nodes("x http://x.invalid\ny http://y.invalid")
            router = Router(rows, session)
            node, seen = router.scheduler.cluster.nodes["x"], []
            router.nodes["x"].leaving = True  # as `follow` has it, while x answers a chat
            for drained in ((), ("x",), ()):
                router.upkeep.drain(drained)
                seen.append(node.draining)
            router.upkeep.drain(("y",))
            router.follow(rows)
            seen += [node.draining, router.scheduler.cluster.nodes["y"].draining]
            router.follow(rows[:1])
            router.follow(rows)
            seen.append(router.scheduler.cluster.nodes["y"].draining)
            await router.close()
        return seen

    assert asyncio.run(run()) == [True, True, True, False, True, True]


def test_a_pull_goes_on_when_a_node_goes() -> None:
    """Would catch pulls that stand as waiting for ever after the node before them has gone."""

    async def run() -> list[tuple[str, str]]:
        async with aiohttp.ClientSession() as session:
            rows = parse_nodes(
                "x http://127.0.0.1:9\ny http://127.0.0.1:9/y\nz http://127.0.0.1:8 kind=openai"
            )
            router = Router(rows, session)
            router.upkeep.pull("m", ["x", "z", "y"])
            router.follow(rows[1:])
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "pull"))
            await router.close()
        return [(pull.node, pull.fault) for pull in router.upkeep.pulls]

    found = dict(asyncio.run(asyncio.wait_for(run(), 20)))
    assert found["x"] == "It is not a node any more."
    assert found["z"] == "Only an Ollama can pull models."
    assert found["y"]


def test_a_pull_at_all_of_no_ollamas_says_so() -> None:
    """Would catch a button that seems to do nothing, in a fleet of vLLMs alone."""

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            router = Router(parse_nodes("z http://127.0.0.1:8 kind=openai"), session)
            with pytest.raises(ValueError, match="No node is an Ollama"):
                router.upkeep.pull("m")
            await router.close()

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("moment", ["draining", "pulling"])
def test_a_node_that_is_pulled_gets_chats_again_where_the_other_fails(moment: str) -> None:
    """Would catch chats that wait for the end of a pull, as the only other node has stopped meanwhile."""

    async def play() -> list[bool]:
        router = Router(parse_nodes("x http://127.0.0.1:9\ny http://127.0.0.1:9/y"), aiohttp.ClientSession())
        upkeep, up, seen = router.upkeep, {"x", "y"}, []
        for watch in router.nodes.values():
            watch.models, watch.answered_at = (NodeModel("m", InstalledModel("m", 1)),), 0.0
        router.is_healthy = lambda node: node in up  # type: ignore[method-assign]
        busy = iter([1, 1, 0] if moment == "draining" else [0])
        router.in_flight = lambda node: next(busy, 0) if node == "x" else 0  # type: ignore[method-assign]

        async def ask(_model: str) -> AsyncIterator[tuple[int, int]]:
            seen.append("x" in upkeep.drained)
            up.discard("y")
            yield 1, 2
            seen.append("x" in upkeep.drained)

        state = PullState("x", "new")
        up_at_first = upkeep.drained
        if moment == "draining":
            asyncio.get_running_loop().call_later(0.1, up.discard, "y")
        async with upkeep._without_chats(state):  # noqa: SLF001
            await upkeep._pull_at(state, ask)  # noqa: SLF001
        assert (up_at_first, state.state, upkeep.drained) == (frozenset(), "done", frozenset())
        await router.close()
        return seen

    assert asyncio.run(asyncio.wait_for(play(), 20)) == [moment == "pulling", False]


def test_no_node_of_a_large_fleet_is_forgotten_in_a_pull() -> None:
    """Would catch nodes that a new router does not pull at, as only the last ones were handed over."""

    async def play() -> None:
        rows = parse_nodes("\n".join(f"n{number} http://127.0.0.1:9/{number}" for number in range(80)))
        router = Router(rows, aiohttp.ClientSession())
        router.upkeep.pull("m")
        assert len(router.upkeep.own("me").pulls) < 80
        assert [one["node"] for one in router.upkeep.hand_over()] == [row.name for row in rows]
        await router.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_the_node_that_pulls_now_is_told_of_any_fleet() -> None:
    """Would catch a dashboard that shows nothing but nodes that wait, here and at other workers."""

    async def play() -> None:
        rows = parse_nodes("\n".join(f"n{number} http://127.0.0.1:9/{number}" for number in range(80)))
        router = Router(rows, aiohttp.ClientSession())
        upkeep = router.upkeep
        upkeep.pull("m")
        for at, state in enumerate(upkeep.pulls):
            state.state = "pulling"
            for told in (upkeep.report["pulls"], [asdict(one) for one in upkeep.own("me").pulls]):
                assert (len(told), f"n{at}" in [one["node"] for one in told]) == (64, True)
            state.state = "done"
        assert upkeep.report["pulls"][-1]["node"] == "n79"
        await router.close()

    asyncio.run(asyncio.wait_for(play(), 30))


# --- what other workers must know of a pull ---


def pair() -> tuple[Router, Router]:
    """Two workers that hear each other: what one writes the other reads, in the same moment."""
    rows = parse_nodes("x http://127.0.0.1:9\ny http://127.0.0.1:9/y")
    heard: list[FleetShare] = []

    class Wire:
        fault = ""

        def __init__(self, share: FleetShare) -> None:
            self._share = share
            heard.append(share)
            share.wake = self._deliver
            share.connected = True

        def start(self) -> None:
            """It is."""

        def _deliver(self) -> None:
            while self._share.outbox:
                payload = self._share.outbox.popleft().payload
                for other in heard:
                    other.hear(payload)

        async def claim(self, _binding: object) -> bool:
            return True

        async def close(self) -> None:
            self._share.say_bye()

    return tuple(
        Router(rows, aiohttp.ClientSession(), connect=lambda share, _decide: Wire(share)) for _ in range(2)
    )  # type: ignore[return-value] # two of them


def draining(router: Router) -> list[str]:
    return [name for name, node in router.scheduler.cluster.nodes.items() if node.draining]


def test_other_workers_give_a_node_nothing_while_it_is_pulled() -> None:
    """Would catch a pull that only the worker knows of that does it, and drains that outlive it."""

    async def play() -> None:
        one, two = pair()
        state = PullState("x", "m", "pulling", 40.0)
        one.upkeep.pulls = [state]
        one.upkeep._pulling = {"x": frozenset()}  # noqa: SLF001 - as in the middle of a pull
        one.upkeep._changed()  # noqa: SLF001
        assert draining(two) == ["x"]
        (told,) = two.upkeep.report["pulls"]
        assert (told["node"], told["state"], told["percent"]) == ("x", "pulling", 40.0)
        with pytest.raises(ValueError, match="under way"):
            two.upkeep.pull("m")
        await two.close()
        await one.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_a_worker_that_goes_leaves_no_node_drained() -> None:
    """Would catch a node that gets nothing for ever, as the worker that pulled it was killed."""

    async def play() -> None:
        one, two = pair()
        one.upkeep.pulls = [PullState("x", "m", "pulling")]
        one.upkeep._pulling = {"x": frozenset()}  # noqa: SLF001
        one.upkeep._changed()  # noqa: SLF001
        assert draining(two) == ["x"]
        await one.close()
        assert draining(two) == []
        (told,) = two.upkeep.report["pulls"]
        assert (told["state"], "continues where it was" in told["fault"]) == ("failed", True)
        await two.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_any_worker_stops_a_pull() -> None:
    """Would catch a stop button that works only where the pull happens to run."""

    async def play() -> None:
        one, two = pair()
        with pytest.raises(ValueError, match="No pull is under way"):
            two.upkeep.stop()
        one.upkeep.pull("m", ["x", "y"])
        two.upkeep.stop()
        assert [pull.state for pull in one.upkeep.pulls] == ["stopped", "stopped"]
        assert [pull["state"] for pull in two.upkeep.report["pulls"]] == ["stopped", "stopped"]
        await two.close()
        await one.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_a_pull_is_handed_over_to_the_router_that_follows() -> None:
    """Would catch a pull that ends without a word when an admin changes a setting."""

    async def play() -> None:
        rows = parse_nodes("x http://127.0.0.1:9")
        one, two = (Router(rows, aiohttp.ClientSession()) for _ in range(2))
        one.upkeep.pull("m", ["x"])
        left = one.upkeep.hand_over()
        assert one.upkeep.pulls == []
        two.upkeep.go_on([{"node": "of another version"}])
        two.upkeep.go_on(left)
        assert [(pull.node, pull.model, pull.state) for pull in two.upkeep.pulls] == [("x", "m", "waiting")]
        assert two.upkeep.hand_over() == left
        await one.close()
        await two.close()

    asyncio.run(asyncio.wait_for(play(), 30))
