"""What the figures of a finished answer tell."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.engines.ollama.to_openai import openai_usage
from ollama_pack.routing.dispatch.durations import Elapsed, spent_on
from ollama_pack.routing.state.estimates import Durations

SECOND = 1_000_000_000
MEASURED = Elapsed(first_token=1.5, total=4.0)
LLAMACPP = {"cache_n": 300, "prompt_n": 60, "prompt_ms": 800.0, "predicted_n": 50, "predicted_ms": 1000.0}
COUNTS = {"prompt_tokens": 360, "completion_tokens": 50, "total_tokens": 410}


def test_ollamas_durations() -> None:
    """Would catch figures that arrive at the fleet in another unit, or as measured here although told."""
    line = {
        "total_duration": 5 * SECOND,
        "load_duration": 2 * SECOND,
        "prompt_eval_count": 360,
        "prompt_eval_duration": SECOND // 2,
        "eval_count": 50,
        "eval_duration": SECOND,
    }
    spent = spent_on(openai_usage(line), None, MEASURED)
    assert spent == Durations(5.0, 2.0, 0.5, 360, 1.0, 50, None)
    assert spent.wait == pytest.approx(1.5)


def test_llamacpps_durations() -> None:
    """Would catch a prompt held in part that counts as evaluated: nodes would seem many times faster."""
    spent = spent_on(COUNTS, LLAMACPP, MEASURED)
    assert (spent.prompt_count, spent.hit, spent.decode_count) == (360, 300, 50)
    assert (spent.prompt, spent.decode, spent.load) == (0.8, 1.0, 0.0)
    assert spent.wait == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("elapsed", "wait"),
    [(Elapsed(0.8, 1.8), 0.0), (Elapsed(0.7, 1.7), 0.0), (Elapsed(0.8, 60.0), 0.0), (Elapsed(2.3, 2.3), 0.5)],
    ids=["none", "clocks that differ", "a slow reader", "an answer in one piece"],
)
def test_the_wait_at_a_llamacpp(elapsed: Elapsed, wait: float) -> None:
    """Would catch a slow browser, or an unstreamed answer, that makes a node seem to have fewer slots."""
    assert spent_on(COUNTS, LLAMACPP, elapsed).wait == pytest.approx(wait)


def test_an_older_llamacpp() -> None:
    """Would catch one without `cache_n` whose hits count as evaluated, or as unknown although told."""
    timings = {name: value for name, value in LLAMACPP.items() if name != "cache_n"}
    spent = spent_on(COUNTS, timings, MEASURED)
    assert (spent.prompt_count, spent.hit) == (360, 300)
    alone = spent_on(None, timings, MEASURED)
    assert (alone.prompt_count, alone.hit) == (60, None)


@pytest.mark.parametrize(
    ("details", "hit"), [({"prompt_tokens_details": {"cached_tokens": 300}}, 300), ({}, None)]
)
def test_timings_of_an_ollama_behind_openai_s_protocol(details: dict[str, Any], hit: int | None) -> None:
    """Would catch a prompt rate that is 31 times too high: there `prompt_n` counts cached tokens, too."""
    timings = {"prompt_n": 360, "prompt_ms": 100.0, "predicted_n": 50, "predicted_ms": 1000.0}
    spent = spent_on({**COUNTS, "prompt_tokens": 360, **details}, timings, MEASURED)
    assert (spent.prompt_count, spent.hit) == (360, hit)


def test_a_newer_ollama_reports_what_it_had() -> None:
    """Would catch a hit that is guessed from the duration though it is reported."""
    usage = {"total_duration": 2_000_000_000, "prompt_eval_count": 360, "prompt_eval_cached_count": 300}
    assert spent_on(usage, None, MEASURED).hit == 300
    assert spent_on({**usage, "prompt_eval_cached_count": 0}, None, MEASURED).hit == 0
    assert spent_on({"total_duration": 1, "prompt_eval_count": 360}, None, MEASURED).hit is None


@pytest.mark.parametrize(
    ("details", "hit"),
    [(None, None), ({}, None), ({"cached_tokens": None}, None), ({"cached_tokens": 320}, 320)],
)
def test_counts_alone(details: Any, hit: int | None) -> None:
    """Would catch a vLLM of which nothing is learned, or whose hits are made up where it tells none."""
    spent = spent_on({**COUNTS, "prompt_tokens_details": details}, None, MEASURED)
    assert spent == Durations(4.0, 0.0, 1.5, 360, 2.5, 50, hit)
    assert spent.wait == 0.0


def test_counts_of_an_answer_in_one_piece() -> None:
    """Would catch an unstreamed answer by which a node generates in no time, or evaluates slowly."""
    spent = spent_on(COUNTS, None, Elapsed(4.0, 4.0))
    assert (spent.prompt, spent.decode, spent.decode_count) == (0.0, 4.0, 50)
    single = spent_on(COUNTS | {"completion_tokens": 1}, None, Elapsed(4.0, 4.0))
    assert (single.prompt, single.decode) == (4.0, 0.0)


def test_no_figures() -> None:
    """Would catch an engine that tells nothing and crashes the router at the end of each answer."""
    assert spent_on(None, None, MEASURED) == Durations(4.0, 0.0, 1.5, 0, 2.5, 0, None)


FIGURE = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.integers(-10, 10**12),
    st.floats(),
    st.dictionaries(st.just("cached_tokens"), st.floats() | st.integers(-5, 10**9)),
)
USAGE = st.dictionaries(
    st.sampled_from(
        ["total_duration", "eval_count", "prompt_tokens", "completion_tokens", "prompt_tokens_details"]
    ),
    FIGURE,
)
TIMINGS = st.dictionaries(st.sampled_from(list(LLAMACPP)), FIGURE)
TIME = st.floats(0, 1e6)


@given(st.none() | USAGE, st.none() | TIMINGS, TIME, TIME)
def test_figures_that_are_nonsense(usage: Any, timings: Any, first: float, total: float) -> None:
    """Would catch an engine whose nonsense crashes the router or makes rates that are no numbers."""
    spent = spent_on(usage, timings, Elapsed(first, total))
    figures = (spent.total, spent.load, spent.prompt, spent.decode, spent.prompt_count, spent.decode_count)
    assert all(math.isfinite(figure) and figure >= 0 for figure in (*figures, spent.wait, spent.hit or 0))
