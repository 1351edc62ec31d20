"""Single decisions: which node, now or later, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.fair_queue import FairQueue, WaitingRequest
from ollama_pack.routing.decide.planner import Planner
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.prefix import PrefixMirror
from ollama_pack.routing.decide.returns import SPANS, ReturnCurve
from ollama_pack.routing.decide.view import (
    FleetRequest,
    FleetView,
    InstalledModel,
    KeptPrefix,
    ModelRates,
    NodeView,
    PromptBlock,
    RunnerView,
)

POLICY = RoutingPolicy()
AGREEING = RoutingPolicy(unsynced_peers=True)
RATES = ModelRates(slots=1, load=4.0, prompt=500.0, token=0.02, output=100.0, service=3.0, learned=True)
A, B = InstalledModel("blob-a", 10, "a"), InstalledModel("blob-b", 10, "b")


def dice(seed: int = 1) -> Random:
    return Random(seed)  # noqa: S311 - seeded on purpose


def runner(blob: str = "blob-a", ends: tuple[float, ...] = (), **fields: Any) -> RunnerView:
    return RunnerView(blob, blob[-1], 10, ends=ends, **fields)


def node(name: str, *runners: RunnerView, rates: ModelRates = RATES, **fields: Any) -> NodeView:
    known = {"blob-a": rates, "blob-b": rates}
    return NodeView(
        name, models=fields.pop("models", {"a": A, "b": B}), runners=runners, rates=known, **fields
    )


def blocks(*chains: int, tokens: int = 250) -> tuple[PromptBlock, ...]:
    return tuple(PromptBlock(chain, tokens * (n + 1)) for n, chain in enumerate(chains))


def held(*chains: int, tokens: int = 250) -> PrefixMirror:
    told = {block.chain: block.upto for block in blocks(*chains, tokens=tokens)}
    return PrefixMirror([KeptPrefix(told, chains[-1], tokens * len(chains), 0, used_at=0.0)])


def in_use() -> PrefixMirror:
    return PrefixMirror([KeptPrefix({9: 900}, 9, 900, 100, used_at=99.0)])


HALF_RETURN = (ReturnCurve((0.1,) * SPANS),)
RETURNS = {"blob-a": HALF_RETURN}


def ask(model: str = "a", prompt: tuple[PromptBlock, ...] = blocks(1), **fields: Any) -> FleetRequest:
    return FleetRequest(fields.pop("id", model), "ann", (model,), "chat", prompt, **fields)


def queue(*requests: FleetRequest, came: float = 100.0) -> FairQueue:
    line = FairQueue(1000, POLICY.background_wait)
    for request in requests:
        line.push(request, came, 1.0)
    return line


def kinds(*requests: FleetRequest, came: float = 100.0) -> Mapping[str, Sequence[WaitingRequest]]:
    return queue(*requests, came=came).kinds(100.0)


def plan(nodes: Sequence[NodeView], *requests: FleetRequest, **demand: float) -> list[Assignment]:
    rates = {f"blob-{name}": rate for name, rate in demand.items()}
    view = FleetView(100.0, tuple(nodes), rates, RETURNS)
    return Planner(POLICY, dice()).plan(view, kinds(*requests))


def told(placed: list[Assignment]) -> list[tuple[str, str, bool]]:
    return [(one.entry.request.id, one.node, one.starts) for one in placed]


def test_the_node_that_holds_the_model_answers() -> None:
    """Would catch a cold load beside a warm node."""
    assert told(plan([node("x"), node("y", runner())], ask())) == [("a", "y", True)]


def test_waiting_beats_a_long_load_and_those_behind_see_it() -> None:
    """Would catch an idle node that stays idle while a queue grows: the reason for the virtual timeline."""
    busy = node("x", runner(ends=(102.0,)))
    placed = plan([busy, node("y")], ask(id="1"), ask(id="2"), ask(id="3"))
    assert told(placed)[:2] == [("1", "x", False), ("2", "y", True)]


def test_a_model_in_demand_is_not_evicted_for_one_request() -> None:
    """Would catch two models that throw each other out in turns."""
    nodes = [node("x", runner("blob-a")), node("y", runner("blob-b", ends=(103.0,)))]
    assert told(plan(nodes, ask("b"), a=1.0, b=1.0)) == [("b", "y", False)]
    assert told(plan(nodes, ask("b"), a=0.0, b=1.0)) == [("b", "y", False)]
    nodes = [node("x", runner("blob-a")), node("y", runner("blob-b", ends=(120.0,)))]
    assert told(plan(nodes, ask("b"), a=0.0, b=1.0)) == [("b", "x", True)]


def test_a_runner_that_must_go_is_waited_for() -> None:
    """Would catch a load that is sent while the runner that it evicts still answers."""
    (placed,) = plan([node("x", runner("blob-a", ends=(102.0,), slots=2))], ask("b"))
    assert not placed.starts
    assert placed.chosen.wait == pytest.approx(2.0)
    assert placed.chosen.quote.load == 4.0


def test_room_for_two_needs_no_eviction() -> None:
    """Would catch a model that is unloaded, or waited for, where memory has room for both."""
    (placed,) = plan([node("x", runner("blob-a", ends=(102.0,)), room=20)], ask("b"), a=1.0)
    assert placed.starts
    assert placed.chosen.quote.victims == ()
    assert placed.chosen.harm == 0


def test_one_load_blocks_the_next() -> None:
    """Would catch two loads sent to one node, of which the second waits where nobody sees it."""
    placed = plan([node("x", loading_until=103.0, room=20)], ask("b"))
    assert told(placed) == []
    nodes = [node("x", loading_until=103.0, room=20), node("y", runner(ends=()))]
    assert told(plan(nodes, ask("b"), a=9.0)) == [("b", "x", False)]


def test_a_chat_goes_back_to_its_prefix() -> None:
    """Would catch a follow-up that is evaluated from the start on another idle node."""
    home = node("x", runner(prefixes=held(1, 2)))
    assert told(plan([node("y", runner()), home], ask(prompt=blocks(1, 2, 3)))) == [("a", "x", True)]


def test_a_chat_waits_for_its_prefix_only_where_that_is_sooner() -> None:
    """Would catch a chat that leaves its node to save nothing, or a free slot that stays empty for it."""
    prompt = blocks(1, 2, 3)

    def goes_to(free_at: float, *others: NodeView) -> list[tuple[str, str, bool]]:
        return told(
            plan([node("x", runner(ends=(free_at,), prefixes=held(1, 2))), *others], ask(prompt=prompt))
        )

    assert goes_to(100.6, node("y", runner())) == [("a", "x", False)]
    assert goes_to(101.2, node("y", runner())) == [("a", "y", True)]
    idle = node("z", runner(prefixes=held(1)))
    assert goes_to(100.0, idle) == [("a", "z", True)]


def test_a_chat_does_not_leave_its_node_for_little() -> None:
    """Would catch a chat whose prefix is evaluated again to save less than the noise of a prediction."""
    home = node("x", runner(slots=4, ends=(101.0,) * 3, prefixes=held(1, 2)))
    other = node("y", runner(slots=4, prefixes=held(1)))
    assert told(plan([home, other], ask(prompt=blocks(1, 2)))) == [("a", "x", True)]


def test_a_new_chat_spares_a_prefix_that_is_in_use() -> None:
    """Would catch a new chat that overwrites a living chat's prefix beside a node that holds none."""
    nodes = [node("x", runner(prefixes=in_use())), node("y", runner())]
    assert told(plan(nodes, ask())) == [("a", "y", True)]


def test_background_waits_rather_than_harm_at_once() -> None:
    """Would catch a title call that throws away a chat's prefix, or a model, the moment it comes."""
    nodes = [node("x", runner(prefixes=in_use()))]
    view = FleetView(100.0, tuple(nodes), returns=RETURNS)
    (placed,) = Planner(POLICY, dice()).plan(view, kinds(ask(background=True)))
    assert not placed.starts
    (placed,) = Planner(POLICY, dice()).plan(view, kinds(ask(background=True), came=90.0))
    assert placed.starts


LAYERS, THREADS = ("num_gpu", 1), ("num_thread", 4)


@pytest.mark.parametrize(
    ("loaded", "asked", "fits"),
    [
        ({"context": 8192}, {"context": 8192}, True),
        ({"context": 8192}, {"context": 4096}, False),
        ({"context": 8192}, {"context": 16384}, False),
        ({"context": 8192}, {}, True),  # who loaded it is unknown: it may be the node's default
        ({"context": 8192, "asked": 0}, {}, True),
        ({"context": 8192, "asked": 0}, {"context": 8192}, True),
        ({"context": 8192, "asked": 8192}, {}, False),
        ({"context": 8192, "asked": 131072}, {"context": 131072}, True),  # the node gives less than was asked
        ({}, {"context": 4096}, True),  # an older Ollama does not say
        ({"context": 4096}, {"options": (LAYERS,)}, False),
        ({"options": (LAYERS,)}, {"options": (LAYERS,)}, True),
        ({"options": (LAYERS,)}, {}, True),  # Ollama compares it only where it is asked for
        ({"options": (LAYERS, THREADS)}, {"options": (THREADS,)}, True),
        ({"options": (THREADS,)}, {}, False),
        ({"options": ()}, {"options": (THREADS,)}, False),
    ],
)
def test_a_reload_is_predicted_for_other_options(
    loaded: dict[str, Any], asked: dict[str, Any], *, fits: bool
) -> None:
    """Would catch a load that Ollama does and nobody expected, or one that is feared for nothing."""
    (placed,) = plan([node("x", runner(**loaded))], ask(**asked))
    expected = (0.0, ()) if fits else (4.0, ("blob-a",))
    assert (placed.chosen.quote.load, placed.chosen.quote.victims) == expected


def test_the_recipe_s_own_options_count_as_asked_for() -> None:
    """Would catch a load that is feared because a model's own recipe asks for what the runner has."""
    own = InstalledModel("blob-a", 10, "a", context=8192, options=(THREADS,))
    view = replace(node("x", runner(context=8192, asked=8192, options=(THREADS,))), models={"a": own})
    (placed,) = plan([view], ask())
    assert placed.chosen.quote.load == 0
    (placed,) = plan([view], ask(context=4096))
    assert placed.chosen.quote.load == 4.0


def test_who_loaded_a_model_without_options_has_those_of_its_recipe() -> None:
    """Would catch a model in memory that is thought to need a load, so that chats leave their prefixes."""
    own = InstalledModel("blob-a", 10, "a", options=(THREADS,))
    view = replace(node("x", runner(options=None)), models={"a": own})
    (placed,) = plan([view], ask())
    assert placed.starts
    assert not placed.loads
    (placed,) = plan([view], ask(options=(LAYERS,)))
    assert placed.loads


def test_an_engine_is_not_loaded_again_for_ollama_s_options() -> None:
    """Would catch a vLLM that is believed to load its model for a `num_ctx` that it never sees."""
    fixed = InstalledModel("blob-a", 10, "a", fixed=True)
    view = replace(node("x", runner(context=8192)), models={"a": fixed})
    (placed,) = plan([view], ask(context=4096, options=(THREADS,)))
    assert placed.chosen.quote.load == 0


def test_tiers_and_weights() -> None:
    """Would catch a reserve node that answers beside an idle first one, or a drained node that gets work."""
    far, drained = node("far", runner(), tier=1), node("drained", runner(), weight=0.0)
    assert told(plan([far, drained, node("x", runner())], ask())) == [("a", "x", True)]
    assert told(plan([far, drained, node("x", runner(ends=(105.0,)))], ask())) == [("a", "x", False)]
    assert told(plan([far, drained, node("x", runner(ends=(130.0,)))], ask())) == [("a", "far", True)]
    assert told(plan([drained], ask())) == []


@pytest.mark.parametrize("policy", [POLICY, AGREEING])
def test_equals_share_the_work_by_weight(policy: RoutingPolicy) -> None:
    """Would catch one of several equal nodes that is never used."""
    view = FleetView(100.0, (node("x", runner()), node("y", runner(), weight=3.0)))
    chance = dice(7)
    asked = [FleetRequest("r", "ann", ("a",), f"c{number}") for number in range(400)]
    chosen = [Planner(policy, chance).plan(view, kinds(one))[0].node for one in asked]
    assert 60 < chosen.count("x") < 140


def test_workers_that_do_not_hear_of_each_other_agree_on_a_chats_node() -> None:
    """Would catch a chat whose turns go to another node with each worker, so that no prefix is used again."""
    names = [f"n{number}" for number in range(8)]

    def choose(request: FleetRequest, seed: int, busy: str = "", policy: RoutingPolicy = AGREEING) -> str:
        nodes = tuple(node(name, runner(ends=(102.0,) * (name == busy), slots=2)) for name in names)
        placed = Planner(policy, dice(seed)).plan(FleetView(100.0, nodes), kinds(request))
        return placed[0].node

    home = {choose(ask(prompt=blocks(1, 2 + seed % 3)), seed) for seed in range(40)}
    assert len(home) == 1
    assert choose(ask(), 1, busy=next(iter(home))) not in home  # it has more than its share
    assert len({choose(ask(background=True), seed) for seed in range(40)}) > 1
    assert len({choose(ask(), seed, policy=POLICY) for seed in range(40)}) > 1


def test_candidates_are_tried_in_order() -> None:
    """Would catch another model than the preferred one answering where the preferred one is there."""
    request = FleetRequest("1", "ann", ("b", "a"))
    with_both = [node("x", runner("blob-a")), node("y", models={"b": B})]
    assert plan(with_both, request)[0].model == "b"
    assert plan([node("x", runner("blob-a"), models={"a": A})], request)[0].model == "a"


def test_a_request_overtaken_too_often_is_next() -> None:
    """Would catch a request for a rare model that is passed by for ever on the only node that can load it."""
    nodes = [node("x", runner("blob-a", ends=(101.0,), slots=2))]
    waiting = queue(ask("b"), ask("a"))
    view = FleetView(100.0, tuple(nodes), {"blob-a": 1.0})
    next(iter(waiting)).overtaken = POLICY.overtake_limit
    placed = Planner(POLICY, dice()).plan(view, waiting.kinds(100.0))
    assert [one for one in placed if one.starts] == []


def test_a_long_queue_is_looked_at_in_samples() -> None:
    """Would catch decisions that take longer the longer the queue, or that stop seeing its end."""
    nodes = [node("x", runner(ends=(101.0,))), node("y", runner("blob-b"))]
    requests = [ask("a", id=f"a{number}") for number in range(200)] + [ask("b", id="last")]
    placed = plan(nodes, *requests, a=9.0, b=9.0)
    assert len(placed) < 60
    assert ("last", "y", True) in told(plan(nodes[1:], *requests[-1:]))
    assert any(one.starts for one in placed)


def test_every_decision_names_all_nodes() -> None:
    """Would catch an explanation that leaves out why the others were not chosen."""
    nodes = [node("x", runner(ends=(108.0,))), node("y", loading_until=101.0), node("z", runner("blob-b"))]
    (placed,) = plan(nodes, ask(), b=1.0)
    terms = {name: terms for name, _, terms in placed.considered()}
    assert set(terms) == {"x", "y", "z"}
    assert terms["x"].load == 0
    assert terms["y"].load == 4
    assert terms["z"].evict > 0
    assert placed.unasked == []
    assert placed.terms.total == pytest.approx(placed.chosen.total)


def test_nodes_that_would_load_are_not_asked_where_one_answers_sooner() -> None:
    """Would catch a decision that goes through all nodes of a large fleet to no purpose, or hides them."""
    (placed,) = plan([node("x", runner()), node("y"), node("z", runner("blob-b"))], ask(), b=1.0)
    assert [cost.name for cost in placed.costs] == ["x"]
    assert [virtual.view.name for virtual in placed.unasked] == ["y", "z"]


def test_a_free_slot_of_a_large_fleet_is_found_behind_a_long_queue() -> None:
    """Would catch slots that stay empty, since the look at the queue ends before those who could use them."""
    busy = [node(f"x{n}", runner(ends=(100.5 + n,))) for n in range(60)]
    idle = node("y", runner("blob-b"), models={"b": B})
    requests = [ask(id=f"a{number}") for number in range(300)] + [ask("b", id="last")]
    assert ("last", "y", True) in told(plan([*busy, idle], *requests, a=9.0, b=9.0))


def test_what_cannot_begin_is_not_looked_at_again_until_something_changes() -> None:
    """Would catch decisions that go through the whole queue after every event."""
    nodes = [node(f"x{n}", runner(ends=(101.0,))) for n in range(40)] + [node("y", runner("blob-b"))]
    waiting = kinds(*[ask(id=f"a{number}") for number in range(100)])
    planner, demand = Planner(POLICY, dice()), {"blob-a": 9.0, "blob-b": 90.0}
    assert planner.plan(FleetView(100.0, tuple(nodes), demand), waiting)
    assert planner.plan(FleetView(100.1, tuple(nodes), demand), waiting) == []
    assert planner.look_again > 100.1
    nodes[3] = node("x3", runner())
    assert told(planner.plan(FleetView(100.2, tuple(nodes), demand), waiting))[0] == ("a0", "x3", True)
    nodes[3] = node("x3", runner(ends=(110.0,)))
    planner.plan(FleetView(100.3, tuple(nodes), demand), waiting)
    assert planner.plan(FleetView(planner.look_again, tuple(nodes), demand), waiting)
