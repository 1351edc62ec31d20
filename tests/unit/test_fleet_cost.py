"""The terms of C: never negative, adding up, and moving the way they should."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.routing.decide.cost import (
    CostTerms,
    decode_share,
    evict_model,
    mean_queue,
    overwrite_prefix,
    predict_output,
    prompt_head,
    prompt_pace,
)
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.returns import SPANS, ReturnCurve
from ollama_pack.routing.decide.view import KeptPrefix, ModelRates

POLICY = RoutingPolicy()
CURVES = (ReturnCurve((0.2,) * SPANS),)
seconds = st.floats(0, 1e4)
rates = st.builds(
    ModelRates,
    load=seconds,
    prompt=st.floats(1, 1e5),
    token=st.floats(1e-5, 1),
    output=st.floats(1, 1e4),
    service=seconds,
    learned=st.booleans(),
)


@given(st.tuples(*[seconds] * 6))
def test_terms_add_up(values: tuple[float, ...]) -> None:
    """Would catch a term that is left out of C, or one that others bear and that the user is told of."""
    terms = CostTerms(*values)
    assert terms.total == pytest.approx(sum(values))
    assert terms.predict_ttft == pytest.approx(sum(values[:3]))
    assert terms.total == pytest.approx(sum(terms.as_dict().values()))


@given(rates, st.tuples(*[st.integers(0, 10**6)] * 3), seconds, st.floats(0, 1e3))
def test_no_term_is_negative(
    known: ModelRates, counts: tuple[int, int, int], age: float, demand: float
) -> None:
    """Would catch a cost below nothing, with which a node would draw all requests."""
    tokens, hit, busy = counts
    prefix = KeptPrefix({}, 1, tokens, hit, used_at=100.0)
    assert prompt_pace(busy, known) > 0
    assert prompt_head(busy, known) >= 0
    assert decode_share(known.output, busy, busy + 1, known, POLICY) >= 0
    assert 0 <= evict_model(known, demand, busy, POLICY) <= known.load + known.service
    assert overwrite_prefix(prefix, 100.0 - age, known, CURVES) >= 0
    assert overwrite_prefix(prefix, 100.0 + age, known, CURVES) >= 0


def test_prompt_term_before_and_after_learning() -> None:
    """Would catch the design's fallback, (P - hit + 1) * (b + 1), used when rates are known."""
    learned, unknown = ModelRates(prompt=600.0, learned=True), ModelRates(prompt=600.0)
    assert 600 * prompt_pace(3, learned) + prompt_head(3, learned) == pytest.approx(1.0)
    assert 599 * prompt_pace(3, unknown) + prompt_head(3, unknown) == pytest.approx(4.0)


def test_other_holders_make_an_eviction_cheaper() -> None:
    """Would catch the last copy of a model being unloaded as easily as one of many."""
    known = ModelRates(load=4.0, service=4.0)
    costs = [evict_model(known, 1.0, others, POLICY) for others in range(4)]
    assert costs[0] == pytest.approx(8.0)
    assert costs == sorted(costs, reverse=True)
    assert evict_model(known, 0.0, 0, POLICY) == 0


def erlang_queue(demand: float, service: float, slots: int) -> float:
    """The exact length of an M/M/c queue."""
    load = demand * service
    blocked = 1.0
    for slot in range(1, slots + 1):
        blocked = load * blocked / (slot + load * blocked)
    waits = blocked / (1 - load / slots * (1 - blocked))
    return waits * load / (slots - load)


@given(st.integers(1, 64), st.floats(0.01, 0.9), st.floats(0.1, 60.0))
def test_a_queue_is_as_long_as_queueing_theory_has_it(slots: int, used: float, service: float) -> None:
    """Would catch a node that is given away, or held back, for a queue that is not there."""
    demand = used * slots / service
    queue = mean_queue(demand, slots / service, slots, 60.0)
    assert queue == pytest.approx(erlang_queue(demand, service, slots), rel=0.15, abs=0.25)
    assert mean_queue(demand, (slots + 1) / service, slots + 1, 60.0) <= queue
    assert mean_queue(demand * 1.2, slots / service, slots, 60.0) >= queue


def test_a_queue_without_end_counts_for_the_horizon_alone() -> None:
    """Would catch a division by zero, or two overloaded models that look alike whatever is asked of them."""
    over = [mean_queue(demand, 0.4, 2, 60.0) for demand in (0.4, 0.8, 1.6)]
    assert over == sorted(over)
    assert over[2] - over[1] == pytest.approx(0.8 * 60.0 / 2)
    assert mean_queue(0.1, 0.0, 0, 60.0) == math.inf


def test_the_clients_limit_bounds_the_expected_answer() -> None:
    """Would catch a request for one token that is expected to hold its slot for a usual answer."""
    known = ModelRates(output=150.0, background_output=15.0)
    assert predict_output(known, background=False) == 150
    assert predict_output(known, background=True) == 15
    assert predict_output(known, background=False, limit=1) == 1
    assert predict_output(known, background=False, limit=4096) == 150
