"""The scheduler as a whole: told of events in any order, and playing chats in virtual time."""

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtual_chats import Chat, Driver, Turn
from harness.virtual_share import SharingWorker
from harness.virtual_world import MODELS, World, check, resident, steps, take
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.node_timeline import TimelineContext, VirtualNode
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.errors import NoNodeError, QueueFullError
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.plan.virtual_fleet import NodeShape, SimNode, Timeline
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.node_state import ResidentModel


def test_a_request_on_an_idle_fleet_begins_at_once() -> None:
    """Would catch a scheduler that waits for something that never comes."""
    world = World()
    world.ask(1)
    (binding,) = world.decide()
    assert binding.loads
    assert binding.terms.load > 0
    assert {node for node, _, _ in binding.considered()} == {"x", "y", "z"}
    assert world.scheduler.waiting == 0


def test_nodes_that_were_not_looked_at_are_named_with_their_load() -> None:
    """Would catch an explanation that makes somebody believe that a node was forgotten, or cost nothing."""
    world = World()
    world.scheduler.cluster.probed("y", MODELS, [resident(1.0)])
    world.ask(1)
    (binding,) = world.decide()
    told = {
        node: (model, terms.load, terms.total == terms.load) for node, model, terms in binding.considered()
    }
    assert told == {"x": ("a", 4.0, True), "y": ("a", 0.0, False), "z": ("a", 4.0, True)}


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        ("llama3", "llama3:latest"),
        ("llama3:latest", "Llama3"),
        ("Q:8b-q4_k_m", "q:8b-q4_K_M"),
        ("r/a", "R/A"),
    ],
)
def test_names_are_compared_as_ollama_does(asked: str, listed: str) -> None:
    """Would catch a request that is refused though a node has the model, or sent under a name not its own."""
    world = World(names=("x", "y"))
    world.scheduler.cluster.probed("x", {listed: InstalledModel("blob-1", 10)}, [])
    world.ask(1, asked)
    (binding,) = world.decide()
    assert (binding.node, binding.model, binding.request.models) == ("x", listed, (asked,))
    assert world.scheduler.cluster.can_answer([asked])
    assert not world.scheduler.cluster.can_answer([f"{asked}x"])
    with pytest.raises(NoNodeError):
        world.ask(2, f"{asked}x")


def test_a_name_may_stand_for_other_weights_on_another_node() -> None:
    """Would catch a node left out, or believed to be warm, since its model of that name is another one."""
    world = World(names=("x", "y"), slots=1)
    world.scheduler.cluster.probed("x", {"a:latest": InstalledModel("old", 10)}, [resident(1.0)])
    world.scheduler.cluster.probed("y", {"a": InstalledModel("new", 10)}, [])
    for number in range(2):
        world.ask(number)
    world.decide()
    world.now += 1.0
    world.ask(3)
    told = {binding.node: (binding.model, binding.loads) for binding in world.running.values()}
    assert told == {"x": ("a:latest", False), "y": ("a", True)}


def test_a_model_that_fails_is_left_alone_under_its_own_name() -> None:
    """Would catch a breaker that forgets its model because the request calls it otherwise."""
    world = World(names=("x",))
    world.scheduler.cluster.probed(
        "x", {"a:latest": InstalledModel("one", 10), "b": InstalledModel("two", 10)}, []
    )
    for number in range(2):
        world.ask(number)
        world.decide()
        world.running.clear()
        world.scheduler.failed(f"r{number}", node_down=False)
    world.ask(2)
    world.ask(3, "b")
    assert [binding.request.id for binding in world.decide()] == ["r3"]


def test_unknown_models_are_refused_with_a_remedy() -> None:
    """Would catch a request that waits for ever for a model that nobody has."""
    world = World()
    with pytest.raises(NoNodeError, match="no node has 'nope': pull it on one of x, y, z"):
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
    world.scheduler.cluster.unreachable("x")
    for number in range(4):
        world.ask(number)
    assert {binding.node for binding in world.decide()} <= {"y"}
    world.now += 6.0
    world.scheduler.cluster.probed("x", MODELS, [])
    for number in range(4, 12):
        world.ask(number)
    assert "x" in {binding.node for binding in world.decide()}


def test_requests_wait_for_a_single_node_to_come_back() -> None:
    """Would catch a restart of the only node that fails everything that was asked meanwhile."""
    world = World(names=("x",))
    world.scheduler.cluster.unreachable("x")
    world.ask(1)
    assert world.decide() == []
    assert world.scheduler.wake_at == world.now + 5.0
    world.now = world.scheduler.wake_at
    world.scheduler.cluster.probed("x", MODELS, [])
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
    world.scheduler.cluster.drain("x")
    for number in range(4):
        world.ask(number)
    assert {binding.node for binding in world.decide()} == {"y"}
    world.scheduler.cluster.drain("x", draining=False)
    assert {binding.node for binding in world.decide()} == {"x"}


def warm(world: World) -> None:
    """One request answered, and seen in a probe: the runner is there and holds its prefix."""
    world.ask(1)
    world.decide()
    world.first_token("r1")
    world.finish("r1", prompt_count=300, decode_count=100)
    world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])
    world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])


@pytest.mark.parametrize(("expires_at", "hit"), [(1.0, 300), (2.0, 0)])
def test_use_by_others_is_inferred(expires_at: float, hit: int) -> None:
    """Would catch a prefix that is believed in after another client has used the runner."""
    world = World(names=("x",))
    warm(world)
    world.scheduler.cluster.probed("x", MODELS, [resident(expires_at)])
    world.ask(1)
    (binding,) = world.decide()
    assert not binding.loads
    assert binding.hit == hit


def test_a_runner_that_others_use_is_not_idle() -> None:
    """Would catch a request that is sent to stand behind another client's."""
    world = World(names=("x",), slots=1)
    warm(world)
    world.scheduler.cluster.probed("x", MODELS, [resident(2.0, busy=True)])
    world.ask(2)
    assert world.decide() == []
    world.scheduler.cluster.probed("x", MODELS, [resident(3.0)])
    assert len(world.decide()) == 1


def test_the_node_s_default_context_is_learned() -> None:
    """Would catch a runner of somebody's own context that counts as one for everybody."""
    world = World(names=("x",), slots=1)
    world.scheduler.cluster.probed("x", MODELS, [])
    world.ask(1)
    world.decide()
    world.scheduler.first_token("r1")
    world.scheduler.cluster.probed(
        "x", MODELS, [ResidentModel("a", 10, 4096, 1.0)]
    )  # loaded without a wish: the default
    world.scheduler.finished("r1", Durations(1.0))
    loads = []
    for number, context in enumerate((4096, 131072), start=2):
        world.scheduler.cluster.probed(
            "x", MODELS, [ResidentModel("a", 10, context, float(number))]
        )  # by another client
        world.ask(number)
        (binding,) = world.decide()
        loads.append(binding.loads)
        world.scheduler.cancel(f"r{number}")
    assert loads == [False, True]


@settings(deadline=None, max_examples=150)
@given(steps, st.sampled_from(["predicted_ttft", "predicted_ttft", "least_busy", "random"]))
def test_whatever_happens_the_bounds_hold_and_nobody_is_forgotten(
    happening: list[tuple[str, int]], strategy: str
) -> None:
    """Would catch a slot that is given twice or never again, and a request that waits beside idle nodes."""
    world = World(strategy=strategy)
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


def a_resident_world(models: Mapping[str, InstalledModel], **others: list[ResidentModel]) -> World:
    """Three nodes of four slots; x has model a in memory."""
    world = World(slots=4)
    for name in world.names:
        world.scheduler.cluster.probed(name, models, others.get(name, [resident(1.0)] if name == "x" else []))
    return world


def crowd(world: World, count: int) -> list[Assignment]:
    """So many chats that ask for a, decided; and the loads that are then begun ahead of need."""
    for _ in range(count):
        world.ask(len(world.log) + world.scheduler.waiting)
        world.decide()
    return world.scheduler.load_ahead()


def test_a_model_is_loaded_ahead_of_need() -> None:
    """Would catch a burst that waits for loads on nodes that stood empty while the others filled up."""
    world = a_resident_world({"a": MODELS["a"]})
    assert not crowd(world, 2)
    (load,) = crowd(world, 1)
    assert (load.node in "yz", load.model, load.loads, load.victims) == (True, "a", True, ())
    assert not crowd(world, 1)  # it has begun
    world.now += 4.0
    world.scheduler.finished(load.request.id, Durations(4.0, load=4.0))
    crowd(world, 4)
    assert [one.loads for one in world.running.values()] == [False] * 8
    assert {one.node for one in world.running.values()} == {"x", load.node}


def test_loads_ahead_of_need_take_nothing_from_other_models() -> None:
    """Would catch one model that takes all nodes before anybody can ask for another one, or unloads it."""
    assert len(crowd(a_resident_world(MODELS), 4)) == 1
    taken = [ResidentModel("b", 10, 4096, 1.0)]
    assert not crowd(a_resident_world(MODELS, y=taken, z=taken), 4)


def test_the_last_node_with_room_waits_until_a_model_is_short_of_slots() -> None:
    """Would catch two early chats for one model that give it the node which another one needs for hours."""

    def last_is_z(room: int) -> World:
        models = {name: MODELS[name] for name in "ab"}
        world = a_resident_world(models, y=[ResidentModel("b", 10, 4096, 1.0)])
        world.scheduler.cluster.sized("z", room)
        return world

    scarce = last_is_z(10)
    assert not crowd(scarce, 4)
    assert "z" in {one.node for one in (*crowd(scarce, 1), *scarce.running.values())}
    assert [one.node for one in crowd(last_is_z(20), 3)] == ["z"]


@pytest.mark.parametrize("count", [2, 4])
def test_people_who_overwrite_each_other_are_parted(count: int) -> None:
    """Would catch chats that evaluate all they said at each turn beside an idle node, or take all nodes."""
    clock = Timeline()
    nodes = [SimNode(f"n{number}", clock, NodeShape(slots=1, prompt_rate=3500.0)) for number in range(count)]
    worker = SharingWorker(nodes, clock, 1, Random(1), 1)  # noqa: S311 - seeded on purpose
    driver = Driver(clock, worker)
    turns = (Turn(6000, 50, 20.0), *(Turn(20, 50, 20.0),) * 9)
    driver.play([Chat(number, 12.0 * number, "m0", turns, f"u{number}") for number in range(2)])
    clock.run()
    assert max(driver.measured.waits[2:6]) > 1.5
    assert max(driver.measured.waits[-8:]) < 0.3
    assert sum(node.loads for node in nodes) <= 3


def test_a_load_ahead_of_need_that_fails_is_not_tried_again_at_once() -> None:
    """Would catch a node that is asked again and again to load what it cannot, or is shut for it."""
    world = a_resident_world({"a": MODELS["a"]})
    (load,) = crowd(world, 3)
    world.scheduler.load_failed(load.request.id)
    again = crowd(world, 1)
    assert {one.node for one in again} == {"y", "z"} - {load.node}
    assert not world.scheduler.cluster.nodes[load.node].shut(world.now)
    assert load.node not in {one.node for one in world.running.values()}


def a_queue_for(  # noqa: PLR0913 - what differs from one test to the next
    model: str,
    load: float,
    waiting: int,
    held: Mapping[str, str],
    *,
    services: Mapping[str, float] | None = None,
    demand: float = 0.0,
    **fields: Any,
) -> World:
    """Nodes (x="ab": with those models in memory), one of whose models so many requests wait for.

    Each has one slot, and answers in five seconds unless `services` say otherwise. Both models were asked for
    so many times a second before.
    """
    world = World(names=tuple(held), slots=1, **fields)
    cluster = world.scheduler.cluster
    both = {name: MODELS[name] for name in "ab"}
    for name, models in held.items():
        cluster.probed(name, both, [ResidentModel(one, 10, 4096, 1.0) for one in models])
        service = (services or {}).get(name, 5.0)
        taught = Durations(
            0.0, load=load, prompt=0.2 * service, prompt_count=300, decode=0.8 * service, decode_count=100
        )
        for blob in ("blob-a", "blob-b"):
            cluster.nodes[name].stats(blob).rates.observe(taught, 0, background=False, loaded=True)
            cluster.nodes[name].learned(blob)
    for _ in range(600 if demand else 0):
        world.now += 1.0
        for blob in ("blob-a", "blob-b"):
            cluster.demand.add(blob, world.now, demand)
    for number in range(1 + waiting):
        world.ask(number, model)
        world.now += 1.0
        world.decide()
    return world


def a_queue_for_a(load: float, waiting: int, **fields: Any) -> World:
    """Three nodes: a is at x, and has so many waiting; b at y and z, and nobody asks for it."""
    return a_queue_for("a", load, waiting, {"x": "a", "y": "b", "z": "b"}, **fields)


def test_a_lasting_queue_gets_a_node_of_which_others_have_the_model() -> None:
    """Would catch nodes that stand idle beside a queue, as no single request gains by a load that is long."""
    world = a_queue_for_a(load=40.0, waiting=4)
    (load,) = world.scheduler.load_ahead()
    assert (load.node in "yz", load.model, load.victims) == (True, "a", ("blob-b",))
    assert len(world.running) == 1
    world.ask(9)
    world.decide()
    assert not world.scheduler.load_ahead()  # the last one that has b keeps it


@pytest.mark.parametrize(("load", "waiting"), [(40.0, 0), (40.0, 1), (4000.0, 4)])
def test_a_short_queue_gets_no_other_node(load: float, waiting: int) -> None:
    """Would catch models that change places at each fluctuation, or for loads that outlast a queue."""
    assert not a_queue_for_a(load, waiting).scheduler.load_ahead()


def test_a_node_is_not_given_away_where_others_cannot_take_over() -> None:
    """Would catch a model that is left to a node that fails it, or to one that is asked last."""
    far = a_queue_for_a(load=40.0, waiting=4, rows={"z": {"tier": 1}})
    assert not far.scheduler.load_ahead()
    failing = a_queue_for_a(load=40.0, waiting=4)
    node = failing.scheduler.cluster.nodes["z"]
    node.failed("b", failing.now, node_down=False, hung=True)
    failing.decide()
    assert [load.node for load in failing.scheduler.load_ahead()] == ["z"]


@pytest.mark.parametrize(("copies", "ago", "loads"), [(2, 0.0, 0), (1, 0.0, 1), (2, 60.0, 1)])
def test_a_model_that_is_kept_in_memory_stays_there(copies: int, ago: float, loads: int) -> None:
    """Would catch a model that an admin keeps on two nodes, and that is unloaded at one of them."""
    world = a_queue_for_a(load=40.0, waiting=2)
    assert not world.scheduler.load_ahead()
    assert not world.scheduler.warm("b", copies)
    world.now += ago
    for number in range(10, 16):
        world.ask(number)
    world.decide()
    assert len(world.scheduler.load_ahead()) == loads


def test_what_a_node_unloads_is_foreseen() -> None:
    """Would catch a load that is believed to unload one model, and unloads another that no other node has."""
    for order in ("bc", "cb"):
        world = World(names=("x",))
        world.scheduler.cluster.sized("x", 20)
        there = [ResidentModel(model, 10, 4096, 1.0) for model in order]
        world.scheduler.cluster.probed("x", MODELS, there)
        world.ask(1)
        assert [one.victims for one in world.decide()] == [("blob-b",)]


def test_a_fast_node_among_slow_ones_is_not_passed_to_and_fro() -> None:
    """Would catch a fast node that is worth more to whichever model it does not have, and loads for ever."""
    held, loads = {"x": "a", "y": "b", "z": "b"}, []
    services = {"x": 12.0, "y": 1.5, "z": 12.0}
    for model in "abab":
        world = a_queue_for(model, 40.0, 3, held, services=services, demand=0.08)
        loads += world.scheduler.load_ahead()
        held |= {load.node: load.model for load in loads}
    assert [(load.node, load.model) for load in loads] == [("z", "a")]


def holding(world: World, **held: str) -> None:
    """Have nodes (x="ab": those models) be there with all of these in memory, and no others."""
    for name, models in held.items():
        there = {model: MODELS[model] for model in models}
        loaded = [ResidentModel(model, 10, 4096, 1.0) for model in models]
        world.scheduler.cluster.probed(name, there, loaded)


def test_a_chat_that_waits_for_its_model_keeps_no_slot_of_another() -> None:
    """Would catch a node that is shut since quick chats of another model overtook the queue for one."""
    world = World(names=("x",))
    holding(world, x="ab")
    for number in range(4):  # two of them wait
        world.ask(number, user=f"u{number}")
    assert len(world.decide()) == 2
    for number in range(10, 60):
        world.now += 1.0
        world.ask(number, "b", user=f"v{number}")
        (binding,) = world.decide()
        assert binding.model == "b"
        world.finish(f"r{number}")


def test_models_that_were_there_before_the_router_make_way() -> None:
    """Would catch a fleet that waits for one node beside others that could load, after a restart."""
    world = World(names=("x", "y"), slots=1, rows={name: {"memory": 10} for name in "xy"})
    for name, held in {"x": "a", "y": "b"}.items():
        both = {model: MODELS[model] for model in "ab"}
        world.scheduler.cluster.probed(name, both, [ResidentModel(held, 10, 4096, 1.0)])
    world.now += 60
    node = world.scheduler.cluster.view().by_name["y"]
    assert VirtualNode(node, TimelineContext(RoutingPolicy(), world.now)).can_load() == (True, 1000.0)


@pytest.mark.parametrize("waiting", [30, 45, 80])
@pytest.mark.parametrize("state", ["dead", "drained", "well"])
def test_a_long_queue_for_one_model_stands_in_nobody_else_s_way(waiting: int, state: str) -> None:
    """Would catch a chat that is never looked at, as each decision spends its bound on the same queue."""
    world = World(names=("w", "x", "y", "z"), max_queue=100)
    holding(world, w="a", x="a", y="c", z="a")
    if state == "dead":
        world.scheduler.cluster.unreachable("z")
    world.scheduler.cluster.nodes["z"].draining = state == "drained"
    world.scheduler.cluster.nodes["z"].changed()
    for number in range(4 + waiting):
        world.ask(number, user=f"u{number}")
        world.decide()
    world.ask(999, "c", user="new")
    assert [binding.node for binding in world.decide()] == ["y"]


def test_a_first_token_lets_the_next_one_try() -> None:
    """Would catch 31 free slots that stand empty until the one long answer after a failure has ended."""
    world = World(names=("x",), slots=32)
    holding(world, x="a")
    for number in range(2):
        world.ask(number, user=f"u{number}")
        world.decide()
        world.running.clear()
        assert not world.scheduler.was_busy(f"r{number}", pause=None, waits=False)
    world.now += 5
    for number in range(2, 6):
        world.ask(number, user=f"u{number}")
    for number in range(2, 6):
        assert [binding.request.id for binding in world.decide()] == [f"r{number}"]
        world.first_token(f"r{number}")


def test_a_node_that_answers_a_look_after_its_failure_is_asked_at_once() -> None:
    """Would catch a node that stays unused for minutes after a long restart, though it answers every look."""
    world = World(names=("x",))
    for _ in range(60):
        world.scheduler.cluster.unreachable("x")
        world.now += 5
    world.ask(1)
    world.scheduler.cluster.probed("x", MODELS, [], world.now - 6)  # asked before it failed last
    assert not world.decide()
    world.scheduler.cluster.probed("x", MODELS, [], world.now)
    assert world.decide()


def test_models_that_do_not_fit_together_do_not_evict_each_other() -> None:
    """Would catch a night of loads: each `warm` row takes the memory that the other has just got."""
    world = World(names=("x",), rows={"x": {"memory": 15}})
    world.scheduler.cluster.probed("x", MODELS, [ResidentModel("a", 10, 4096, 1.0, vram=10)])
    assert not world.scheduler.warm("b", 1, ("a", "b"))
    assert world.scheduler.warm("b", 1, ("b",))


def test_a_node_that_was_renamed_and_taken_out_can_go() -> None:
    """Would catch chats that all end with an error once its last answer under the old name has ended."""
    world = World(names=("x",))
    world.scheduler.cluster.add(NodeRow("renamed", "http://x"))
    for name in ("renamed", "x"):
        world.scheduler.cluster.remove(name)
    assert not world.scheduler.cluster.nodes


def test_a_node_without_weight_answers_nothing_new() -> None:
    """Would catch a chat that waits for ever where the only node with its model is drained by `weight=0`."""
    world = World(names=("x", "y"), rows={"y": {"weight": 0.0}})
    holding(world, x="a", y="b")
    assert world.scheduler.cluster.can_answer(["a"])
    assert not world.scheduler.cluster.can_answer(["b"])
    holding(world, y="ab")
    world.ask(1)
    world.decide()
    assert not world.scheduler.failed("r1", node_down=True)
