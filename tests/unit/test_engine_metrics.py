"""Reading how busy an engine is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.openai_wire import VLLM_METRICS
from ollama_pack.engines.openai.metrics import EngineActivity, engine_activity

SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 4.0
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1"} 4.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="1"} 1.0
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.28
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="1"} 0.28
"""
SGLANG_BY_PRIORITY = """\
sglang:num_running_reqs{pp_rank="0",priority="",tp_rank="0"} 14.0
sglang:num_running_reqs{pp_rank="0",priority="-1",tp_rank="0"} 2.0
sglang:num_running_reqs{pp_rank="0",priority="0",tp_rank="0"} 12.0
sglang:num_queue_reqs{pp_rank="0",priority="",tp_rank="0"} 3.0
sglang:num_queue_reqs{pp_rank="0",priority="0",tp_rank="0"} 3.0
"""
# As a llama.cpp of 2026 says it; older ones have kv_cache_usage_ratio as well.
LLAMACPP = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 34
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 2
"""
TWO_ENGINES = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
"""


@pytest.mark.parametrize(
    ("text", "running", "waiting"),
    [
        (VLLM_METRICS, 3, 2),
        (SGLANG, 4, 1),
        (SGLANG_BY_PRIORITY, 14, 3),
        (LLAMACPP, 1, 2),
        (LLAMACPP + "llamacpp:kv_cache_usage_ratio 0.75\n", 1, 2),
        (TWO_ENGINES, 8, 2),
        ("vllm:num_requests_running 2\nvllm:gpu_cache_usage_perc 0.5", 2, 0),
    ],
    ids=["vllm", "sglang", "sglang by priority", "llamacpp", "older llamacpp", "two engines", "older vllm"],
)
def test_each_engine(text: str, running: int, waiting: int) -> None:
    """Would catch an engine that seems idle while it works, or one whose ranks are counted twice."""
    found = engine_activity(text)
    assert found is not None
    assert (found.running, found.waiting) == (running, waiting)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>not found</body></html>",
        "process_cpu_seconds_total 12.0\ngo_goroutines 7",
        "vllm:num_requests_waiting 2.0",
        "vllm:num_requests_running_total 5",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running",
        'vllm:num_requests_running{model_name="m} 5',
        "# vllm:num_requests_running 5",
    ],
)
def test_texts_that_tell_nothing(text: str) -> None:
    """Would catch a page of something else that reads as an idle engine."""
    assert engine_activity(text) is None


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running 3",
        "vllm:num_requests_running 3.0 1700000000000",
        "vllm:num_requests_running{} 3e0",
        'vllm:num_requests_running{model_name="a } b, \\"c\\" 9"} 3',
        'vllm:num_requests_running { model_name = "m" } 3',
        'vllm:num_requests_running{model_name="m",} 3',
    ],
)
def test_forms_of_a_sample(line: str) -> None:
    """Would catch a name of a model, or a time, that is taken for the number."""
    assert engine_activity(line) == EngineActivity(3, 0)


@given(st.text() | st.text(alphabet='vllm:num_requests_running{}=",\\ 019.\n').map(lambda text: text * 3))
def test_no_text_is_too_strange(text: str) -> None:
    """Would catch an answer of another server that crashes the router."""
    found = engine_activity(text)
    assert found is None or found.running >= 0
