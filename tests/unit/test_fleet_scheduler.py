"""The scheduler as a whole: told of events in any order, and playing chats in virtual time."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_pack.fleet.errors import NoNodeError, QueueFullError
from ollama_pack.fleet.nodes import NodeRow
from ollama_pack.fleet.rates import Durations
from ollama_pack.fleet.runners import ResidentModel
from ollama_pack.fleet.scheduler import DECISIONS_KEPT, Binding, Scheduler
from ollama_pack.fleet.view import FleetRequest, InstalledModel, PromptBlock

MODELS = {name: InstalledModel(f"blob-{name}", 10) for name in ("a", "b", "c")}
SLOTS = 2


@dataclass
class World:
    """A scheduler, its clock, and what has been bound to where."""

    names: tuple[str, ...] = ("x", "y", "z")
    slots: int | None = SLOTS
    seed: int = 1
    max_queue: int = 64
    now: float = 1000.0
    running: dict[str, Binding] = field(default_factory=dict)
    answering: set[str] = field(default_factory=set)
    log: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = [NodeRow(name, f"http://{name}", slots=self.slots) for name in self.names]
        dice = Random(self.seed)  # noqa: S311 - seeded on purpose
        self.scheduler = Scheduler(rows, lambda: self.now, dice, max_queue=self.max_queue)
        for name in self.names:
            self.scheduler.probed(name, MODELS, [])

    def ask(self, number: int, model: str = "a", **fields: Any) -> None:
        user = fields.pop("user", f"u{number % 4}")
        prompt = (PromptBlock(-1, 100), PromptBlock(number, 300))
        self.scheduler.submit(FleetRequest(f"r{number}", user, (model,), f"c{number}", prompt, **fields))

    def decide(self) -> list[Binding]:
        bindings = self.scheduler.decide()
        for binding in bindings:
            assert binding.request.id not in self.running
            self.running[binding.request.id] = binding
            self.log.append((binding.request.id, binding.node))
        return bindings

    def first_token(self, name: str) -> None:
        self.answering.add(name)
        self.scheduler.first_token(name)

    def finish(self, name: str, **fields: float) -> None:
        self.running.pop(name)
        self.scheduler.finished(name, Durations(**({"total": 3.0, "prompt": 0.5, "decode": 2.5} | fields)))  # type: ignore[arg-type] # counts and seconds in one


def test_a_request_on_an_idle_fleet_begins_at_once() -> None:
    """Would catch a scheduler that waits for something that never comes."""
    world = World()
    world.ask(1)
    (binding,) = world.decide()
    assert binding.loads
    assert binding.terms.load > 0
    assert {one.node for one in binding.considered} == {"x", "y", "z"}
    assert world.scheduler.waiting == 0


def test_unknown_models_are_refused_with_a_remedy() -> None:
    """Would catch a request that waits for ever for a model that nobody has."""
    world = World()
    with pytest.raises(NoNodeError, match="no node has `nope`: pull it on one of x, y, z"):
        world.ask(1, "nope")


def test_a_full_queue_refuses() -> None:
    """Would catch a queue without a limit."""
    world = World(names=("x",), max_queue=4)
    for number in range(4):
        world.ask(number)
    with pytest.raises(QueueFullError, match="the limit is 4"):
        world.ask(4)


def test_the_same_request_is_not_taken_twice() -> None:
    """Would catch an id that is used again while the first is there, so that two answers get mixed up."""
    world = World()
    world.ask(1)
    with pytest.raises(ValueError, match="'r1' is already here"):
        world.ask(1)
    world.decide()
    with pytest.raises(ValueError, match="'r1' is already here"):
        world.ask(1)


def test_a_failed_request_goes_elsewhere_twice_at_most() -> None:
    """Would catch a request that fails with its node, or that goes round for ever."""
    world = World()
    world.ask(1)
    tried = []
    for left in (True, True, False):
        (binding,) = world.decide()
        world.running.clear()
        tried.append(binding.node)
        assert world.scheduler.failed("r1", node_down=True) == left
    assert sorted(tried) == ["x", "y", "z"]
    assert world.scheduler.waiting == 0


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    """Would catch two generations spliced into one answer."""
    world = World()
    world.ask(1)
    world.decide()
    world.first_token("r1")
    assert not world.scheduler.failed("r1", node_down=True)


def test_a_dead_node_gets_nothing_until_it_answers_a_probe() -> None:
    """Would catch requests that are sent to a node that is known to be down."""
    world = World(names=("x", "y"))
    world.scheduler.unreachable("x")
    for number in range(4):
        world.ask(number)
    assert {binding.node for binding in world.decide()} <= {"y"}
    world.now += 6.0
    world.scheduler.probed("x", MODELS, [])
    for number in range(4, 12):
        world.ask(number)
    assert "x" in {binding.node for binding in world.decide()}


def test_requests_wait_for_a_single_node_to_come_back() -> None:
    """Would catch a restart of the only node that fails everything that was asked meanwhile."""
    world = World(names=("x",))
    world.scheduler.unreachable("x")
    world.ask(1)
    assert world.decide() == []
    assert world.scheduler.wake_at == world.now + 5.0
    world.now = world.scheduler.wake_at
    world.scheduler.probed("x", MODELS, [])
    assert len(world.decide()) == 1


def test_cancel_frees_the_slot_and_the_queue() -> None:
    """Would catch a stop button that leaves a slot taken, or a request that is sent after it was stopped."""
    world = World(names=("x",), slots=1)
    for number in range(3):
        world.ask(number, user="ann")
    assert [one.request.id for one in world.decide()] == ["r0"]
    world.scheduler.cancel("r1")
    world.scheduler.cancel("r0")
    world.scheduler.cancel("never heard of")
    world.now += 5.0
    assert [one.request.id for one in world.decide()] == ["r2"]


def test_a_drained_node_finishes_and_gets_nothing_new() -> None:
    """Would catch a node that cannot be taken out without failing somebody."""
    world = World(names=("x", "y"))
    world.scheduler.drain("x")
    for number in range(4):
        world.ask(number)
    assert {binding.node for binding in world.decide()} == {"y"}
    world.scheduler.drain("x", draining=False)
    assert {binding.node for binding in world.decide()} == {"x"}


def resident(expires_at: float, **fields: Any) -> ResidentModel:
    return ResidentModel("a", 10, 4096, expires_at, **fields)


def warm(world: World) -> None:
    """One request answered, and seen in a probe: the runner is there and holds its prefix."""
    world.ask(1)
    world.decide()
    world.first_token("r1")
    world.finish("r1", prompt_count=300, decode_count=100)
    world.scheduler.probed("x", MODELS, [resident(1.0)])
    world.scheduler.probed("x", MODELS, [resident(1.0)])


@pytest.mark.parametrize(("expires_at", "hit"), [(1.0, 300), (2.0, 0)])
def test_use_by_others_is_inferred(expires_at: float, hit: int) -> None:
    """Would catch a prefix that is believed in after another client has used the runner."""
    world = World(names=("x",))
    warm(world)
    world.scheduler.probed("x", MODELS, [resident(expires_at)])
    world.ask(1)
    (binding,) = world.decide()
    assert not binding.loads
    assert binding.hit == hit


def test_a_runner_that_others_use_is_not_idle() -> None:
    """Would catch a request that is sent to stand behind another client's."""
    world = World(names=("x",), slots=1)
    warm(world)
    world.scheduler.probed("x", MODELS, [resident(2.0, busy=True)])
    world.ask(2)
    assert world.decide() == []
    world.scheduler.probed("x", MODELS, [resident(3.0)])
    assert len(world.decide()) == 1


def test_a_resident_context_is_sent_again() -> None:
    """Would catch a request without num_ctx that makes Ollama load the model anew with its default."""
    world = World(names=("x",))
    world.scheduler.probed("x", MODELS, [resident(1.0)])
    world.ask(1)
    (binding,) = world.decide()
    assert (binding.loads, binding.context) == (False, 4096)


def test_predictions_are_recorded_beside_what_happened() -> None:
    """Would catch predictions that nobody can check."""
    world = World(names=("x",))
    world.ask(1)
    (binding,) = world.decide()
    world.now += 5.0
    world.first_token("r1")
    (outcome,) = world.scheduler.outcomes
    assert (outcome.node, outcome.predicted, outcome.actual) == ("x", binding.terms.predict_ttft, 5.0)


def check(world: World) -> None:
    """What holds at every moment."""
    by_runner: dict[tuple[str, str], int] = {}
    for binding in world.running.values():
        key = (binding.node, binding.model)
        by_runner[key] = by_runner.get(key, 0) + 1
    assert all(count <= SLOTS for count in by_runner.values())
    for node in world.scheduler.nodes.values():
        assert len(node.runners) <= len(MODELS)
        assert sum(len(runner.ends) for runner in node.runners.values()) <= len(world.running)
    assert len(world.scheduler.outcomes) <= DECISIONS_KEPT


STEPS = ("ask", "ask", "title", "tick", "first token", "finish", "fail", "cancel", "probe")
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=120)


def take(world: World, number: int, step: str, chance: int) -> None:
    """One event of any kind; one that does not apply does nothing."""
    running = sorted(world.running)
    name = running[chance % len(running)] if running else ""
    match step:
        case "ask" | "title" if world.scheduler.waiting < 40:
            world.ask(number, "abc"[chance % 3], background=step == "title")
        case "tick":
            world.now += chance / 200
        case "first token" if name:
            world.first_token(name)
        case "finish" if name:
            world.first_token(name)
            world.finish(name, prompt_count=300, decode_count=100)
        case "fail" if name:
            world.running.pop(name)
            world.scheduler.failed(name, node_down=False)
        case "cancel" if name:
            world.running.pop(name)
            world.scheduler.cancel(name)
        case "probe":
            node = world.names[chance % 3]
            known = world.scheduler.nodes[node].runners.values()
            world.scheduler.probed(
                node, MODELS, [ResidentModel(one.model, 10, 0, 1.0) for one in known if not one.loading]
            )


@settings(deadline=None, max_examples=150)
@given(steps)
def test_whatever_happens_the_bounds_hold_and_nobody_is_forgotten(happening: list[tuple[str, int]]) -> None:
    """Would catch a slot that is given twice or never again, and a request that waits beside idle nodes."""
    world = World()
    for number, (step, chance) in enumerate(happening):
        take(world, number, step, chance)
        world.decide()
        check(world)
    for _ in range(400):  # now everything is answered: nobody may be left
        if not world.running and not world.scheduler.waiting:
            break
        for name in sorted(world.running):
            world.first_token(name)
            world.finish(name)
        world.now = max(world.now + 1.0, world.scheduler.wake_at or 0.0)
        world.decide()
        check(world)
        assert world.running or not world.scheduler.waiting or world.scheduler.wake_at
    assert not world.scheduler.waiting


@given(steps)
@settings(deadline=None, max_examples=40)
def test_equal_seeds_decide_equally(happening: list[tuple[str, int]]) -> None:
    """Would catch a decision that depends on hashes or on the order of a set, which nobody could repeat."""
    logs = []
    for _ in range(2):
        world = World()
        for number, (step, chance) in enumerate(happening):
            take(world, number, step, chance)
            world.decide()
        logs.append(world.log)
    assert logs[0] == logs[1]


def test_background_never_takes_a_slot_that_a_person_waits_for() -> None:
    """Would catch a title call that begins before a person who came within its patience."""
    world = World(names=("x",), slots=1)
    world.ask(0)
    world.decide()
    world.first_token("r0")
    world.ask(1, background=True)
    world.now += 1.0
    world.ask(2)
    world.finish("r0")
    assert [one.request.id for one in world.decide()] == ["r2"]
    world.first_token("r2")
    world.now += 9.5
    world.ask(3)
    world.finish("r2")
    assert [one.request.id for one in world.decide()] == ["r1"]


def test_overtaking_is_bounded() -> None:
    """Would catch a request for a rare model that a stream of others passes by for ever."""
    world = World(names=("x",))
    world.ask(0)
    world.decide()
    world.first_token("r0")
    world.ask(1, "b")
    for number in range(2, 60):
        world.ask(number)
        world.now += 0.4
        if any(binding.request.id == "r1" for binding in world.decide()):
            break
        for name in sorted(world.running)[:1]:
            world.first_token(name)
            world.finish(name, prompt_count=300, decode_count=100)
    else:
        pytest.fail("r1 never began")
    assert world.log.index(("r1", "x")) <= 20
