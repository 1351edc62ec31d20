"""Other clients' requests: what shows them, and that they neither go unseen nor keep ours out for ever."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.virtual_world import MODELS, World, resident
from ollama_pack.routing.state.external_load import STALE_SERVICES, YIELD_SERVICES, ExternalLoad

SERVICE = 5.0  # the prior


def resting(slots: int | None = 1, **fields: Any) -> World:
    """One node with a model in memory."""
    world = World(names=("x",), slots=slots, **fields)
    world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])
    return world


def let_pass(world: World, seconds: float) -> None:
    """Time in which the node is probed and goes on to answer somebody else."""
    until = world.now + seconds
    while world.now < until:
        world.now = min(until, world.now + 1.0)
        world.scheduler.cluster.probed("x", MODELS, [resident(1.0, busy=True)])


def test_an_engine_that_counts_shows_what_others_do() -> None:
    """Would catch requests that are sent to an engine whose slots others hold, or ours counted as others'."""
    world = resting(slots=4)
    world.scheduler.cluster.activity("x", running=3, waiting=0)
    for number in range(3):
        world.ask(number)
    assert len(world.decide()) == 1
    world.scheduler.cluster.activity("x", running=4, waiting=0)
    assert world.decide() == []
    world.scheduler.cluster.activity("x", running=1, waiting=0)
    assert len(world.decide()) == 2


def test_a_count_from_before_one_of_ours_ended_says_nothing() -> None:
    """Would catch a request of ours that is counted as another client's because the count came late."""
    world = resting(slots=1)
    world.ask(1)
    world.decide()
    asked_at, world.now = world.now, world.now + 0.5
    world.first_token("r1")
    world.finish("r1")
    world.scheduler.cluster.activity("x", 1, 0, asked_at)
    world.ask(2)
    assert len(world.decide()) == 1


def test_what_waits_in_an_engine_comes_before_ours() -> None:
    """Would catch a prediction that takes a slot to be free when the request before ours ends."""
    world = resting(slots=1)
    world.scheduler.cluster.activity("x", running=1, waiting=1)
    load = ExternalLoad()
    load.seen(4, 100.0, SERVICE)
    assert load.ends(100.0, 3) == (105.0, 105.0, 110.0)
    world.ask(1)
    assert world.decide() == []


def test_a_counting_engine_teaches_its_slots() -> None:
    """Would catch an engine with hundreds of slots that gets one request at a time."""
    world = resting(slots=None)
    world.scheduler.cluster.activity("x", running=24, waiting=0)
    world.scheduler.cluster.activity("x", running=0, waiting=0)
    for number in range(30):
        world.ask(number)
    assert len(world.decide()) == 30  # it holds nothing back with 24, so twice as many are offered
    for _ in range(5):
        world.scheduler.cluster.activity("x", running=8, waiting=16)
    assert world.scheduler.cluster.view().nodes[0].runners[0].slots == 9


def test_others_do_not_keep_ours_out_for_ever() -> None:
    """Would catch a request that waits until it runs out of time beside another client's steady stream."""
    world = resting(slots=1)
    let_pass(world, 1.0)
    world.ask(1)
    world.ask(2)
    let_pass(world, YIELD_SERVICES * SERVICE - 1.0)
    assert world.decide() == []
    assert world.scheduler.wake_at == 1001.0 + YIELD_SERVICES * SERVICE
    world.now = world.scheduler.wake_at
    assert [binding.request.id for binding in world.decide()] == ["r1"]
    world.first_token("r1")
    world.finish("r1")
    let_pass(world, 1.0)
    assert world.decide() == []  # now it is the others' turn again


def test_after_one_of_ours_others_have_their_turn_again() -> None:
    """Would catch a saturated engine to which ours go one after another, past those who wait in it."""
    world = resting(slots=1)
    world.scheduler.cluster.activity("x", running=1, waiting=3)
    world.ask(1)
    world.ask(2)
    world.now += YIELD_SERVICES * SERVICE
    assert [binding.request.id for binding in world.decide()] == ["r1"]
    world.first_token("r1")
    world.finish("r1")
    assert world.decide() == []
    world.now += YIELD_SERVICES * SERVICE
    assert [binding.request.id for binding in world.decide()] == ["r2"]


def test_a_full_engine_gets_one_of_ours_behind_the_others() -> None:
    """Would catch a crowd that is sent to a saturated engine as soon as the wait is over."""
    world = resting(slots=2)
    world.scheduler.cluster.activity("x", running=2, waiting=6)
    for number in range(5):
        world.ask(number)
    world.now += YIELD_SERVICES * SERVICE
    assert len(world.decide()) == 1
    assert world.decide() == []


def test_what_nobody_repeats_is_forgotten() -> None:
    """Would catch an engine that is full for ever because its numbers no longer come."""
    world = resting(slots=2)
    world.scheduler.cluster.activity("x", running=2, waiting=6)
    world.now += STALE_SERVICES * SERVICE
    for number in range(5):
        world.ask(number)
    assert len(world.decide()) == 2


def test_a_busy_gpu_without_ours_counts_as_somebody_else() -> None:
    """Would catch a request that is sent to stand behind one that only the GPU shows."""
    world = World(names=("x", "y"), slots=1)
    for name in world.names:
        world.scheduler.cluster.probed(name, MODELS, [resident(1.0)])
    world.scheduler.cluster.gpu_busy("x", 95.0)
    world.scheduler.cluster.gpu_busy("y", 20.0)
    world.ask(1)
    world.ask(2)
    assert [binding.node for binding in world.decide()] == ["y"]
    world.scheduler.cluster.gpu_busy("x", 10.0)
    assert [binding.node for binding in world.decide()] == ["x"]


def test_a_gpu_that_is_always_busy_counts_for_a_while_only() -> None:
    """Would catch a node that is never used again because somebody watches films on its GPU."""
    world = resting(slots=1)
    world.ask(1)
    for _ in range(int(YIELD_SERVICES * SERVICE)):
        world.scheduler.cluster.gpu_busy("x", 95.0)
        assert world.decide() == []
        world.now += 1.0
    world.scheduler.cluster.gpu_busy("x", 95.0)
    assert len(world.decide()) == 1


@pytest.mark.parametrize("running", [True, False])
def test_our_own_work_does_not_count_as_somebody_elses(running: bool) -> None:  # noqa: FBT001 - a case
    """Would catch a node that is held to be busy with others while, or just after, it works for us."""
    world = resting(slots=2)
    world.ask(1)
    world.decide()
    world.first_token("r1")
    if not running:
        world.finish("r1")
    world.scheduler.cluster.gpu_busy("x", 95.0)
    world.ask(2)
    world.ask(3)
    assert len(world.decide()) == (1 if running else 2)


seen = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 20), st.booleans(), st.floats(0.1, 10)), max_size=30
)


@given(seen, st.integers(1, 4), st.booleans())
def test_others_never_hold_more_than_the_slots(
    events: list[tuple[int, float, bool, float]],
    slots: int,
    sure: bool,  # noqa: FBT001 - a case
) -> None:
    """Would catch a count that takes slots which are not there, or all of them after the patience is over."""
    load, now = ExternalLoad(sure=sure), 0.0
    for count, passes, ended, service in events:
        now += passes
        if ended:
            load.ours_ended(now)
        load.seen(count, now, service)
        assert len(load.ends(now, slots)) <= min(count, slots)
        assert all(end >= now for end in load.ends(now, slots))
        for when in load.changes_at():
            assert len(load.ends(when, slots)) < max(1, min(count, slots)) or count < slots
