"""Workers that share their nodes: what they write, what they hear, and that no slot is taken twice."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.virtual_chats import Chat, Driver, Turn, trace
from harness.virtual_share import Bus, SharedPlace, SharingWorker
from harness.virtual_workers import Workers
from harness.virtual_world import MODELS, World, resident
from ollama_pack.routing.decide.prefix import MatchDepth, prompt_blocks
from ollama_pack.routing.decide.view import InstalledModel, PromptBlock
from ollama_pack.routing.dispatch.request import fleet_request
from ollama_pack.routing.peers.messages import (
    AliveMessage,
    ByeMessage,
    EventMessage,
    FleetMessage,
    HelloMessage,
    decode_message,
    encode_message,
)
from ollama_pack.routing.peers.share import RETRY_SECONDS, SILENT_SECONDS, ClaimRefusal, FleetShare, chain_key
from ollama_pack.routing.plan.virtual_fleet import NodeShape, SimNode, Spent, Timeline
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.events import (
    BegunEvent,
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    WaitingEvent,
)
from ollama_pack.routing.state.model_stats import Lesson
from ollama_pack.routing.state.peer_line import ASIDE_SECONDS, LEFT_SECONDS
from ollama_pack.routing.state.scheduler import MAX_FAILOVERS

words = st.text(max_size=20)
counts, seconds = st.integers(0, 10**6), st.floats(0, 10**6)
durations = st.builds(Durations, seconds, seconds, seconds, counts, seconds, counts, st.none() | counts)
matches = st.builds(MatchDepth, st.integers(-1, 9), counts, counts, st.booleans())
options = st.lists(st.tuples(words, counts | st.booleans()), max_size=3).map(tuple)
names = st.lists(words, max_size=3).map(tuple)
prompts = st.lists(st.builds(PromptBlock, st.integers(0, 2**64 - 1), counts, st.booleans()), max_size=5).map(
    tuple
)
events = st.one_of(
    st.builds(
        BoundEvent,
        words,
        words,
        words,
        words,
        st.booleans(),
        names,
        counts,
        options,
        seconds,
        seconds,
        prompts,
        words,
        st.booleans(),
    ),
    st.builds(WaitingEvent, words, words, names, prompts, counts, counts, options, st.booleans(), seconds),
    st.builds(BegunEvent, words, seconds),
    st.builds(
        FinishedEvent,
        words,
        words,
        words,
        st.builds(Lesson, durations, matches, counts, st.booleans(), st.booleans()),
    ),
    st.builds(EndedEvent, words),
    st.builds(FailedEvent, words, st.booleans(), st.booleans()),
)
messages = st.one_of(
    st.builds(HelloMessage, words),
    st.builds(AliveMessage, words, st.lists(words, max_size=5).map(tuple)),
    st.builds(ByeMessage, words),
    st.builds(EventMessage, words, events),
)


@given(messages)
def test_what_is_written_is_read(message: FleetMessage) -> None:
    """Would catch a field that is lost between workers, or comes as something else."""
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200) | messages.map(encode_message).map(lambda text: text[:-3]))
def test_what_cannot_be_read_is_passed_over(payload: bytes) -> None:
    """Would catch a worker that ends because another one runs a different version."""
    assert decode_message(payload) is None


def test_messages_of_other_versions_are_passed_over() -> None:
    """Would catch an unknown kind, a field too many or one that is missing, that ends a worker."""
    begun = {"t": "begun", "w": "a", "e": []}
    unusual = b'{"t":"begun","w":"a","e":{"request_id":"r","left":NaN}}'
    assert decode_message(unusual) is None
    for left in (b"1e999", b'"nan"', b"[" * 10_000):
        assert decode_message(unusual.replace(b"NaN", left)) is None
    others: list[Any] = [{"t": "new"}, {"t": "bound", "w": "a", "e": {}}, begun, [], 7]
    for written in others:
        assert decode_message(json.dumps(written).encode()) is None


def share_of(world: World, name: str) -> FleetShare:
    share = FleetShare(world.scheduler, name, lambda: world.now)
    share.join()
    return share


def pass_on(one: FleetShare, other: FleetShare) -> list[bytes]:
    """All that one has to tell."""
    told = [step.payload for step in one.outbox if step.payload]
    one.outbox.clear()
    for payload in told:
        other.hear(payload)
    return told


def pair(**fields: Any) -> tuple[World, FleetShare, World, FleetShare]:
    """Two workers that have met."""
    here, there = World(**fields), World(**fields)
    one, two = share_of(here, "one"), share_of(there, "two")
    pass_on(one, two)
    pass_on(two, one)
    pass_on(one, two)
    return here, one, there, two


def begin(world: World, share: FleetShare, number: int, model: str = "a") -> str:
    """Bind a request, and claim for it without being refused. Returns its node."""
    world.ask(number, model)
    (binding,) = world.decide()
    step = share.claim(binding)
    assert step.claim
    share.granted(step.claim)
    return binding.node


def test_what_one_sends_the_other_sees() -> None:
    """Would catch a slot, a load or a prefix of another worker that is not seen, or not seen to be over."""
    here, one, there, two = pair(names=("x",), slots=1)
    begin(here, one, 1)
    pass_on(one, two)
    runner = there.scheduler.cluster.view().nodes[0].runners[0]
    assert (runner.model, len(runner.ends), runner.ready_at) == ("a", 1, there.now + 4.0)
    there.ask(2)
    assert there.decide() == []
    here.first_token("r1")
    pass_on(one, two)
    assert there.scheduler.cluster.view().nodes[0].runners[0].ready_at == there.now
    here.finish("r1", prompt_count=300, decode_count=10)
    assert pass_on(one, two)
    (binding,) = there.decide()
    assert not binding.loads
    there.scheduler.cancel("r2")
    there.ask(1)
    (again,) = there.decide()
    assert again.hit == 100  # r2's prompt has taken the place of r1's, but for what they share


def test_what_one_learns_the_other_knows() -> None:
    """Would catch workers of which each has to find out for itself how fast a node is."""
    here, one, there, two = pair(names=("x",))
    for number in range(6):
        begin(here, one, number)
        here.first_token(f"r{number}")
        here.finish(f"r{number}", prompt=0.5, prompt_count=400, decode=2.0, decode_count=100)
        pass_on(one, two)
    known = there.scheduler.cluster.view().nodes[0].rates["blob-a"]
    assert known == here.scheduler.cluster.view().nodes[0].rates["blob-a"]
    assert known.learned


def test_failures_are_shared() -> None:
    """Would catch a dead node that each worker has to run into by itself."""
    here, one, there, two = pair(names=("x", "y"))
    node = begin(here, one, 1)
    pass_on(one, two)
    here.scheduler.failed("r1", node_down=True)
    pass_on(one, two)
    for number in range(2, 2 + MAX_FAILOVERS):
        there.ask(number)
    assert node not in {binding.node for binding in there.decide()}
    assert there.scheduler.cluster.nodes[node].breaker.state(there.now) == "open"
    here.now += 5.0
    there.now += 5.0
    here.scheduler.cluster.drain("y" if node == "x" else "x")
    begin(here, one, 9)
    pass_on(one, two)
    here.first_token("r9")
    here.finish("r9")
    pass_on(one, two)
    assert there.scheduler.cluster.nodes[node].breaker.state(there.now) == "closed"


@pytest.mark.parametrize("how", ["silent", "bye", "no longer named"])
def test_what_a_worker_held_is_free_when_it_is_gone(how: str) -> None:
    """Would catch slots that stay taken by a worker that has crashed, or by requests whose end got lost."""
    here, one, there, two = pair(names=("x",), slots=1)
    begin(here, one, 1)
    pass_on(one, two)
    there.ask(2)
    assert there.decide() == []
    if how == "silent":
        there.now += SILENT_SECONDS + 0.1
        two.beat()
    elif how == "bye":
        one.say_bye()
    else:
        here.scheduler.listener = lambda _: None
        here.scheduler.cancel("r1")
        one.beat()
    pass_on(one, two)
    assert len(there.decide()) == 1
    assert two.peers == int(how == "no longer named")


def test_a_newcomer_is_told_what_there_is() -> None:
    """Would catch a worker that starts, or comes back, and takes busy nodes to be idle."""
    here, there = World(names=("x",), slots=1), World(names=("x",), slots=1)
    one = share_of(here, "one")
    begin(here, one, 1)
    here.first_token("r1")
    one.outbox.clear()
    two = share_of(there, "two")
    pass_on(two, one)
    pass_on(one, two)
    there.ask(2)
    assert there.decide() == []
    two.leave()
    assert len(there.decide()) == 1  # alone again, what others do shows in the probes only


def test_a_refused_request_waits_again_and_nothing_else_has_changed() -> None:
    """Would catch a request that is lost, or a model believed to be loaded, because another was faster."""
    world = World(names=("x",), slots=1)
    world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])
    share = share_of(world, "one")
    world.ask(1, "b")
    before = world.scheduler.cluster.view().nodes
    (binding,) = world.decide()
    assert binding.loads
    share.refused(binding, ClaimRefusal("blob-a", ("theirs",)))
    world.running.clear()
    after = world.scheduler.cluster.view().nodes
    assert [len(runner.ends) for runner in after[0].runners] == [1]  # theirs
    assert (after[0].runners[0].blob, after[0].loading_until) == ("blob-a", before[0].loading_until)
    assert world.scheduler.waiting == 1
    assert world.decide() == []
    assert world.scheduler.wake_at
    world.now = world.scheduler.wake_at
    assert [one.request.id for one in world.decide()] == ["r1"]


def test_a_refused_request_leaves_the_mirror_as_it_was() -> None:
    """Would catch a prefix that is believed to be held, or lost, because of a request that was never sent."""
    world = World(names=("x",), slots=2)
    world.scheduler.cluster.probed("x", MODELS, [resident(1.0)])
    share = share_of(world, "one")
    world.ask(1)
    world.decide()
    world.first_token("r1")
    world.finish("r1", prompt_count=300, decode_count=10)
    world.ask(2)
    (binding,) = world.decide()
    share.refused(binding, ClaimRefusal("blob-a", ("theirs",)))
    world.scheduler.cancel("r2")
    world.ask(1)
    (again,) = world.decide()
    assert again.hit == 300


def test_a_refusal_that_teaches_nothing_is_not_asked_again_at_once() -> None:
    """Would catch a worker that asks for the same slot as fast as it can."""
    world = World(names=("x",))
    share = share_of(world, "one")
    world.ask(1)
    (binding,) = world.decide()
    share.refused(binding, ClaimRefusal(""))
    world.running.clear()
    assert world.decide() == []
    assert world.scheduler.wake_at == world.now + RETRY_SECONDS
    world.now = world.scheduler.wake_at
    assert len(world.decide()) == 1


def test_messages_hold_nothing_of_people_or_prompts() -> None:
    """Would catch a name, an address or a word of a prompt that is written where others read."""
    world = World(names=("x",))
    share = share_of(world, "one")
    for name, model in (("r1", "a"), ("r2", "b")):  # the second one waits for the first one's load
        body = {"messages": [{"role": "user", "content": "my secret question"}]}
        key = chain_key("key")
        world.scheduler.submit(
            fleet_request(body, [model], request_id=name, user="ann@example.org", chat="chat-7", key=key)
        )
    (binding,) = world.decide()
    written = share.claim(binding).payload
    assert b'"waiting"' in b"".join(step.payload for step in share.outbox)
    world.first_token("r1")
    world.finish("r1", prompt_count=30, decode_count=10)
    written += b"".join(step.payload for step in share.outbox)
    for private in (b"secret", b"question", b"ann@", b"chat-7", b"http"):
        assert private not in written


def two_that_wait() -> tuple[World, FleetShare, World, FleetShare]:
    """One request at the only slot, then r2 waits at one worker, and r3, which came later, at the other."""
    here, one, there, two = pair(names=("x",), slots=1)
    begin(here, one, 1)
    pass_on(one, two)
    here.ask(2, user="bob")
    assert here.decide() == []
    pass_on(one, two)
    there.ask(3, user="eve")
    assert there.decide() == []
    pass_on(two, one)
    return here, one, there, two


def finish_first(here: World, one: FleetShare, two: FleetShare) -> None:
    here.first_token("r1")
    here.finish("r1", prompt_count=300, decode_count=10)
    pass_on(one, two)


def test_a_free_slot_goes_to_the_first_in_line_wherever_it_waits() -> None:
    """Would catch requests at one worker that are passed by again and again, as another's slots come free."""
    here, one, there, two = two_that_wait()
    finish_first(here, one, two)
    assert there.decide() == []
    (binding,) = here.decide()
    assert binding.request.id == "r2"
    here, one, there, two = two_that_wait()
    here.scheduler.cancel("r2")
    finish_first(here, one, two)
    (binding,) = there.decide()
    assert binding.request.id == "r3"


def test_a_slot_is_not_left_for_long_to_a_worker_that_does_not_take_it() -> None:
    """Would catch a slot that stays empty, since a worker is busy, gone or sees things otherwise."""
    here, one, there, two = two_that_wait()
    finish_first(here, one, two)
    assert there.decide() == []
    assert there.scheduler.wake_at == there.now + LEFT_SECONDS
    there.now = there.scheduler.wake_at
    (binding,) = there.decide()
    assert binding.request.id == "r3"
    there.first_token("r3")
    there.now += ASIDE_SECONDS
    there.ask(4, user="eve")
    there.finish("r3", prompt_count=300, decode_count=10)
    assert there.decide() == []  # r2 is in line again


def test_a_user_has_no_more_of_the_nodes_by_asking_at_several_workers() -> None:
    """Would catch fairness that each worker counts for itself."""
    here, one, there, two = pair(names=("x",), slots=2)
    begin(here, one, 1)
    here.first_token("r1")
    here.ask(2, user="ann")
    (binding,) = here.decide()
    one.claim(binding)
    pass_on(one, two)
    there.ask(3, user="ann")
    there.ask(4, user="bob")
    assert there.decide() == []
    here.finish("r1", prompt_count=300, decode_count=10)
    pass_on(one, two)
    (binding,) = there.decide()
    assert binding.request.id == "r4"


def test_what_waits_elsewhere_takes_no_place_in_the_queue() -> None:
    """Would catch a worker that refuses requests, or throws one out, because another one's queue is long."""
    here, one, there, two = pair(names=("x",), slots=1, max_queue=8)
    begin(here, one, 1)
    for number in range(2, 8):
        here.ask(number)
        here.decide()
    pass_on(one, two)
    for number in range(12, 18):
        there.ask(number)
    assert (there.scheduler.waiting, here.scheduler.waiting) == (6, 6)
    assert there.scheduler.ahead("r17") == 11
    one.say_bye()
    pass_on(one, two)
    assert there.scheduler.ahead("r17") == 5


def test_chains_are_of_no_use_without_the_secret() -> None:
    """Would catch hashes by which anybody who reads them can try out what was asked."""
    said = [{"role": "user", "content": "yes"}]
    plain, keyed = prompt_blocks(said), prompt_blocks(said, key=chain_key("secret"))
    assert plain != keyed
    assert keyed == prompt_blocks(said, key=chain_key("secret"))
    assert prompt_blocks(said, key=chain_key("")) == plain
    assert keyed != prompt_blocks(said, key=chain_key("other"))


def fleet(
    workers: int, shape: NodeShape, nodes: int = 3
) -> tuple[Timeline, list[SimNode], list[SharingWorker], Bus]:
    clock = Timeline()
    engines = [SimNode(f"n{number}", clock, shape) for number in range(nodes)]
    made = [
        SharingWorker(engines, clock, 3, Random(number), shape.slots)  # noqa: S311 - seeded on purpose
        for number in range(workers)
    ]
    return clock, engines, made, Bus(made, clock)


@pytest.mark.parametrize("workers", [2, 4])
def test_no_request_stands_behind_another_workers(workers: int) -> None:
    """Would catch two workers that give the same free slot away, or that throw out each other's models."""
    clock, nodes, made, bus = fleet(workers, NodeShape())
    waits: list[float] = []

    class Watched(Workers):
        def send(self, call: Any, first_token: Any, done: Any) -> None:
            def ended(spent: Spent) -> None:
                waits.append(spent.total - spent.load - spent.prompt - spent.decode)
                done(spent)

            super().send(call, first_token, ended)

    driver = Driver(clock, Watched(made, Random(1)))  # noqa: S311 - seeded on purpose
    driver.play(trace(0.45, (0.5, 0.3, 0.2), 70.0, 2))
    clock.run()
    assert driver.measured.requests == len(waits) > 100
    assert max(waits) < 1e-6
    assert sum(worker.refusals for worker in made) > 0  # it came to that
    assert not any(bus.place.slots.values())
    for worker in made:
        assert len(worker.scheduler.cluster.remote) == len(worker.scheduler._line) == 0  # noqa: SLF001 - bounded
    assert sum(node.loads for node in nodes) < 25


def test_sharing_is_worth_it() -> None:
    """Would catch a share that costs more than it brings: four workers do nearly as well as one."""

    def mean(workers: int, *, shared: bool) -> float:
        waits: list[float] = []
        for seed in range(3):
            clock, _, made, _ = fleet(workers, NodeShape())
            if not shared:
                for worker in made:
                    worker.share.leave()
            driver = Driver(clock, Workers(made, Random(1)))  # noqa: S311 - seeded on purpose
            driver.play(chats(seed))
            clock.run()
            waits += driver.measured.waits
        return sum(waits) / len(waits)

    one, alone, shared = mean(1, shared=False), mean(4, shared=False), mean(4, shared=True)
    assert shared < 1.25 * one
    assert shared < 0.85 * alone


def test_four_workers_do_as_well_as_one_when_all_slots_are_taken() -> None:
    """Would catch requests that wait behind younger ones of other workers (2.3 times as long)."""

    def mean(workers: int) -> float:
        clock, _, made, _ = fleet(workers, NodeShape(prefixes=4), nodes=4)
        driver = Driver(clock, Workers(made, Random(2)))  # noqa: S311 - seeded on purpose
        driver.play(trace(0.35, (0.55, 0.30, 0.15), 60.0, 2))
        clock.run()
        return sum(driver.measured.waits) / len(driver.measured.waits)

    assert mean(4) < 1.1 * mean(1)


def chats(seed: int) -> Sequence[Chat]:
    dice = Random(seed)  # noqa: S311 - seeded on purpose
    return [
        Chat(
            number,
            number * 2.2,
            f"m{dice.choice((0, 0, 0, 1, 1, 2))}",
            (Turn(150, 90, 20.0),) * 3,
            f"u{number % 9}",
        )
        for number in range(60)
    ]


def test_a_model_that_runs_elsewhere_is_not_held_to_the_node_s_slots() -> None:
    """Would catch cloud chats that are refused over Redis, and pause the node for all others."""
    world = World(names=("x",), slots=2)
    cloud = InstalledModel("cloud", 0, fixed=True, remote=True)
    world.scheduler.cluster.probed("x", {"c:cloud": cloud}, [])
    share = FleetShare(world.scheduler, "w0", lambda: world.now)
    share.join()
    place = SharedPlace()
    for number in range(5):
        world.ask(number, "c:cloud", user=f"u{number}")
        (binding,) = world.decide()
        claim = share.claim(binding).claim
        assert claim
        assert place.claim(claim) is None
        share.granted(claim)
        world.first_token(binding.request.id)
