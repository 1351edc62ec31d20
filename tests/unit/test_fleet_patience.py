"""How long a node may be silent: by what is known of it, else by the slowest that people run."""

import math
from dataclasses import replace

from harness.virtual_world import MODELS, World
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.dispatch.hang_delay import SUSPICION_SECONDS, honest_silence, longest_load


def bound(world: World, number: int) -> Assignment:
    world.ask(number)
    (binding,) = world.decide()
    return binding


def taught(world: World) -> World:
    """Six answers: 500 tokens of prompt a second, and the first of them loaded the model in two seconds."""
    for number in range(6):
        bound(world, number)
        world.first_token(f"r{number}")
        load = 0.0 if number else 2.0
        world.finish(f"r{number}", load=load, prompt=1.8, prompt_count=1000, decode_count=100)
        world.now += 10
    return world


def test_what_is_not_known_is_taken_to_be_slow() -> None:
    """Would catch a first load, or a first prompt, that is cut off because others are faster."""
    world = World(names=("x",))
    size = {name: replace(model, size=40_000_000_000) for name, model in MODELS.items()}
    world.scheduler.cluster.probed("x", size, [])
    assert honest_silence(bound(world, 1)) >= 400 + 300 / 10


def test_what_is_known_makes_it_short() -> None:
    """Would catch users who wait a minute for a node that has always answered in a second."""
    silence = honest_silence(bound(taught(World(names=("x",))), 7))
    assert SUSPICION_SECONDS + 3 * 2.0 < silence < SUSPICION_SECONDS + 3 * (2.0 + 1.0)


def test_a_size_that_is_not_told_sets_no_limit_on_a_load() -> None:
    """Would catch an engine that loads models itself, and is given up while it does."""
    world = World(names=("x",))
    world.scheduler.cluster.probed("x", {"a": InstalledModel("blob-a")}, [])
    assert honest_silence(bound(world, 1)) == math.inf


def test_a_load_that_was_measured_gets_less() -> None:
    """Would catch a hang in the first answer after a load, which looks like one, that costs ten minutes."""
    sized = {name: replace(model, size=1_000_000_000) for name, model in MODELS.items()}
    limits = []
    for load in (0.0, 2.0, 30.0):
        world = World(names=("x",))
        world.scheduler.cluster.probed("x", sized, [])
        if load:
            bound(world, 1)
            world.first_token("r1")
            world.finish("r1", load=load, total=load + 3.0)
        limits.append(longest_load(bound(world, 2), 7200.0))
    assert limits == [600.0, 120.0, 600.0]


def test_who_hangs_gets_nothing_more() -> None:
    """Would catch a second user who waits for a model that has just let the first one wait for nothing."""
    world = World(names=("x", "y"))
    node = bound(world, 1).node
    assert world.scheduler.has_another("r1")
    assert world.scheduler.failed("r1", node_down=False, hung=True)
    for number in range(2, 6):
        world.ask(number)
    assert [binding.node for binding in world.scheduler.decide() if binding.node == node] == []


def test_nobody_else_is_nobody_else() -> None:
    """Would catch a request that is taken from the only node that can answer it."""
    world = World(names=("x", "y"))
    other = {"x": "y", "y": "x"}[bound(world, 1).node]
    world.scheduler.cluster.unreachable(other)
    assert not world.scheduler.has_another("r1")
    world.scheduler.cluster.probed(other, {"b": MODELS["b"]}, [])
    world.now += 10
    assert not world.scheduler.has_another("r1")
    world.scheduler.cluster.probed(other, MODELS, [])
    assert world.scheduler.has_another("r1")
    world.scheduler.cluster.drain(other)
    assert not world.scheduler.has_another("r1")
    assert not world.scheduler.has_another("never heard of")
