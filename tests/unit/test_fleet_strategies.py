"""The plain strategies: least busy and random. What the scheduler does around them holds as ever."""

from collections import Counter

import pytest

from harness.virtual_world import MODELS, World, resident
from ollama_pack.routing.errors import QueueFullError
from ollama_pack.routing.state.estimates import Durations

PLAIN = ("least_busy", "random")


def test_an_unknown_strategy_is_refused() -> None:
    """Would catch a misspelt strategy that routes in some way that nobody chose."""
    with pytest.raises(ValueError, match="'fastest' is unknown: the known ones are predicted_ttft, least_b"):
        World(strategy="fastest")


def test_least_busy_fills_nodes_evenly_for_their_slots() -> None:
    """Would catch a large node that gets as little as a small one, or one that gets more than its slots."""
    world = World(names=("x", "y"), strategy="least_busy", rows={"y": {"slots": 6}})
    for number in range(4):
        world.ask(number)
    assert Counter(binding.node for binding in world.decide()) == {"x": 1, "y": 3}
    for number in range(4, 20):
        world.ask(number)
    world.decide()
    assert Counter(binding.node for binding in world.running.values()) == {"x": 2, "y": 6}
    world.finish(next(name for name, one in world.running.items() if one.node == "y"))
    assert [binding.node for binding in world.decide()] == ["y"]
    assert world.scheduler.waiting == 11


def test_least_busy_prefers_what_is_in_memory_only_among_equals() -> None:
    """Would catch a load beside an idle node that has the model, or all work going to one warm node."""
    world = World(strategy="least_busy")
    world.scheduler.cluster.probed("y", MODELS, [resident(1.0)])
    for number in range(2):
        world.ask(number)
    first, second = world.decide()
    assert (first.node, first.loads) == ("y", False)
    assert (second.node == "y", second.loads) == (False, True)


def test_least_busy_keeps_higher_tiers_for_when_the_others_are_as_busy() -> None:
    """Would catch a reserve node that is used beside idle first ones."""
    world = World(names=("x", "y"), strategy="least_busy", rows={"x": {"tier": 1}})
    for number in range(2):
        world.ask(number)
    assert [binding.node for binding in world.decide()] == ["y", "x"]


def test_random_holds_nothing_back_and_uses_every_node() -> None:
    """Would catch a queue where the strategy has none, or a node that chance never finds."""
    world = World(strategy="random", slots=1)
    for number in range(60):
        world.ask(number, user=f"u{number}")
        world.decide()
    assert world.scheduler.waiting == 0
    at = Counter(one.node for one in world.running.values())
    assert set(at) == {"x", "y", "z"}
    assert min(at.values()) > 10


@pytest.mark.parametrize("strategy", PLAIN)
def test_nodes_that_are_down_drained_or_without_the_model_get_nothing(strategy: str) -> None:
    """Would catch a plain strategy that sends requests where they must fail."""
    world = World(names=("x", "y", "z", "w", "v"), strategy=strategy, rows={"v": {"weight": 0.0}})
    world.scheduler.cluster.unreachable("x")
    world.scheduler.cluster.drain("y")
    world.scheduler.cluster.probed("z", {"b": MODELS["b"]}, [])
    for number in range(12):
        world.ask(number)
        world.decide()
    assert {one.node for one in world.running.values()} == {"w"}


@pytest.mark.parametrize("strategy", PLAIN)
def test_failover_goes_elsewhere(strategy: str) -> None:
    """Would catch a failed request that is sent to the same node again, or lost."""
    world = World(strategy=strategy)
    world.ask(1)
    tried = []
    for left in (True, True, False):
        (binding,) = world.decide()
        world.running.clear()
        tried.append(binding.node)
        assert world.scheduler.failed("r1", node_down=False) == left
    assert sorted(tried) == ["x", "y", "z"]


@pytest.mark.parametrize("strategy", ["predicted_ttft", *PLAIN])
def test_a_node_that_comes_back_gets_one_request_at_first(strategy: str) -> None:
    """Would catch a crowd that is sent to a node of which nobody knows yet whether it answers again."""
    world = World(names=("x",), strategy=strategy)
    world.ask(0)
    world.decide()
    world.running.clear()
    world.scheduler.failed("r0", node_down=True)
    for number in range(1, 6):
        world.ask(number)
    assert world.decide() == []
    assert world.scheduler.wake_at == world.now + 5.0
    world.now += 5.0
    assert len(world.decide()) == 1
    assert world.decide() == []
    world.scheduler.finished(next(iter(world.running)), Durations(1.0))
    assert len(world.decide()) >= 2


@pytest.mark.parametrize("strategy", PLAIN)
def test_the_queue_has_its_limit(strategy: str) -> None:
    """Would catch a strategy under which requests pile up without bound while no node may be used."""
    world = World(names=("x",), strategy=strategy, max_queue=4)
    world.scheduler.cluster.unreachable("x")
    for number in range(4):
        world.ask(number)
    world.decide()
    with pytest.raises(QueueFullError):
        world.ask(4)


@pytest.mark.parametrize("strategy", PLAIN)
def test_choices_are_explained(strategy: str) -> None:
    """Would catch a choice that the dashboard cannot show."""
    world = World(strategy=strategy)
    world.ask(1)
    (binding,) = world.decide()
    assert {node for node, _, _ in binding.considered()} == {"x", "y", "z"}
    assert binding.terms.load > 0
