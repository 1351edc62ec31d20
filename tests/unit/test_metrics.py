"""What Prometheus reads, parsed by its own client's parser, and what `deploy/` makes of it."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import metrics_text
from docs import all_metrics
from ollama_pack.cache.counters import CacheCounters
from ollama_pack.routing.dispatch.counts import OTHER, SECONDS_BOUNDS, RouterCounts, SecondsHistogram
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.routing.probe.gpus import Gpu, GpuReport
from ollama_pack.services.metrics_text import (
    FIRST_TOKEN,
    GPU_TOTAL,
    GPU_USE,
    GPU_USED,
    NODE_UP,
    QUEUE,
    RESIDENT,
    SENT,
    Buckets,
    cache_metrics,
    family,
    voice_metrics,
)
from ollama_pack.services.router_metrics import router_metrics
from ollama_pack.webui.routes import check_route_key, shows_key

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "ollama-pack.json"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    """The series, each of which must be there once, in a family of its own."""
    families = list(text_string_to_metric_families(text))
    assert len({one.name for one in families}) == len(families)
    samples = [sample for one in families for sample in one.samples]
    series = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(series) == len(samples)
    return series


@settings(max_examples=50)
@given(st.tuples(st.text(max_size=20), st.text(max_size=20)))
def test_labels_come_back_as_they_were(names: tuple[str, str]) -> None:
    """Would catch a model's name that breaks the scrape, or that smuggles a series in."""
    text = family(SENT, [(names, 3)])
    node, model = names
    labels = frozenset({("node", node), ("model", model)})
    assert parsed(text) == {("ollama_pack_requests_total", labels): 3}


@given(st.lists(st.floats(0, 1e6), max_size=30))
def test_histograms_are_cumulative(times: list[float]) -> None:
    """Would catch classes that are not added up, or a sum or count that is another."""
    histogram = SecondsHistogram()
    for seconds in times:
        histogram.add(seconds)
    buckets = Buckets(SECONDS_BOUNDS, tuple(histogram.counts), histogram.total)
    found = parsed(family(FIRST_TOKEN, [(("gpu0", "m"), buckets)]))
    labels = {("node", "gpu0"), ("model", "m")}
    for bound in (*SECONDS_BOUNDS, math.inf):
        le = ("le", "+Inf" if bound == math.inf else str(bound))
        name = "ollama_pack_time_to_first_token_seconds_bucket"
        assert found[name, frozenset({*labels, le})] == sum(seconds <= bound for seconds in times)
    assert found["ollama_pack_time_to_first_token_seconds_count", frozenset(labels)] == len(times)


def test_several_workers_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch counters of two processes mixed into one series, which then jumps back and forth."""
    assert parsed(family(QUEUE, [((), 1)])) == {("ollama_pack_queue_length", frozenset()): 1}
    monkeypatch.setenv("UVICORN_WORKERS", "4")
    ((_, labels),) = parsed(family(QUEUE, [((), 1)]))
    assert [name for name, _ in labels] == ["worker"]


def test_cache() -> None:
    """Would catch an outcome that is lost, or a cache that cannot be asked shown as one that does nothing."""
    counters = CacheCounters()
    for name in ("hits", "hits", "misses/absent", "bypasses/tools", "not_stored/too large"):
        counters.add(name)
    counters.looked_up(0.0004)
    found = parsed(cache_metrics({"worker": counters.snapshot(), "fault": "Redis is down"}))
    requests = {
        tuple(value for _, value in sorted(labels)): value
        for (name, labels), value in found.items()
        if name == "ollama_pack_cache_requests_total"
    }
    expected = {("hit", ""): 2, ("follow", ""): 0, ("miss", "absent"): 1, ("bypass", "tools"): 1}
    assert requests == expected
    assert found["ollama_pack_cache_up", frozenset()] == 0
    assert found["ollama_pack_cache_lookup_seconds_bucket", frozenset({("le", "0.0003")})] == 0
    assert found["ollama_pack_cache_lookup_seconds_bucket", frozenset({("le", "0.0005")})] == 1
    assert cache_metrics({"fault": "not installed"}) == ""


def test_pairs_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a memory that grows with every name that some node ever listed."""
    monkeypatch.setattr("ollama_pack.routing.dispatch.counts.MAX_PAIRS", 2)
    counts = RouterCounts()
    for model in "abcd":
        counts.failed(Anywhere(model))  # type: ignore[arg-type] # all that it looks at
    assert {pair: one.failures for pair, one in counts.models.items()} == {
        ("gpu0", "a"): 1,
        ("gpu0", "b"): 1,
        ("gpu0", OTHER): 2,
    }


class Anywhere:
    """As much of an assignment as a failure needs."""

    node = "gpu0"

    def __init__(self, model: str) -> None:
        self.model = model


class Request:
    """A request with headers."""

    def __init__(self, authorization: str) -> None:
        self.headers = {"authorization": authorization} if authorization else {}


def test_the_token() -> None:
    """Would catch an empty token that lets everybody in, or a token that can be guessed."""
    assert shows_key(Request("Bearer 0123456789abcdef"), "0123456789abcdef")
    assert not shows_key(Request("Bearer 0123456789abcdeF"), "0123456789abcdef")
    for shown in ("", "Bearer ", "Basic 0123456789abcdef"):
        assert not shows_key(Request(shown), "")
        assert not shows_key(Request(shown), "0123456789abcdef")
    with pytest.raises(ValueError, match="16 or more"):
        check_route_key("guessed")


# --- deploy/ ---


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def known_names() -> set[str]:
    """Every name that a query may use: those of the events function, and those of the agent."""
    gpu = Gpu(0, "A100", 1.0, 1, 1, 1.0, 1.0)
    names = {
        sample.name
        for one in text_string_to_metric_families(metrics_text(GpuReport((gpu,)), "1"))
        for sample in one.samples
    }
    for metric in all_metrics():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {f"ollama_pack_{metric.name}{end}" for end in ends}
    return names


def test_the_dashboard_asks_for_what_there_is() -> None:
    """Would catch a panel that stays empty: its metric is called otherwise, or its query is none."""
    for expression in expressions():
        promql_parser.parse(expression.replace("$__rate_interval", "5m").replace("$node", "gpu0"))
    asked = {name for expression in expressions() for name in re.findall(r"ollama_pack_\w+", expression)}
    assert asked
    assert asked <= known_names()


ALIKE = {
    f"ollama_pack_{metric.name}" for metric in (NODE_UP, RESIDENT, GPU_USE, GPU_USED, GPU_TOTAL)
}  # every replica that is scraped tells these of the same nodes


def added_up(expression: Any, *, is_one: bool = False) -> list[str]:
    """Series of `ALIKE` in a query of which each replica's own is taken, added or counted."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression.name] if expression.name in ALIKE and not is_one else []
    is_one = is_one or str(getattr(expression, "op", "")) in {"min", "max"}
    below = [getattr(expression, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    return [
        name
        for each in (*below, *getattr(expression, "args", ()))
        if each is not None
        for name in added_up(each, is_one=is_one)
    ]


def test_the_dashboard_counts_each_node_once() -> None:
    """Would catch eight nodes where two replicas tell of the same four."""
    wrong = [
        expression
        for expression in expressions()
        if added_up(promql_parser.parse(expression.replace("$__rate_interval", "5m")))
    ]
    assert wrong == []
    assert added_up(promql_parser.parse("sum(ollama_pack_node_up)")) == ["ollama_pack_node_up"]


def test_requests_at_a_node_can_be_added_up_over_replicas() -> None:
    """Would catch a request that each replica that has heard of it counts as its own."""

    async def told() -> Series:
        async with aiohttp.ClientSession() as session:
            router = Router(parse_nodes("gpu0 http://127.0.0.1:9"), session)
            router.in_flight = lambda node: 3  # type: ignore[method-assign] # noqa: ARG005 - one is its own
            router.own_in_flight = lambda node: 1  # type: ignore[method-assign] # noqa: ARG005
            text = router_metrics(router)
            await router.close()
        return parsed(text)

    found = asyncio.run(told())
    assert found["ollama_pack_node_requests", frozenset({("node", "gpu0")})] == 1


def test_the_dashboard_is_of_grafana_s_form() -> None:
    """Would catch a field that Grafana does not know: its own library would lose it."""
    register_default_plugins()
    written = json.loads(DASHBOARD.read_text())
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(written)))
    assert missing(written, read) == []


def missing(written: Any, read: Any, path: str = "") -> list[str]:
    """What is in the one and not the same in the other, which may have more."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [
            lost
            for key, value in written.items()
            for lost in (missing(value, read[key], f"{path}/{key}") if key in read else [f"{path}/{key}"])
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        pairs = enumerate(zip(written, read, strict=True))
        return [lost for at, (one, other) in pairs for lost in missing(one, other, f"{path}/{at}")]
    return [] if written == read else [path]


def test_the_scrape_example() -> None:
    """Would catch an example that asks at a path where nothing answers."""
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert [job.get("metrics_path", "/metrics") for job in jobs] == ["/ollama-pack/metrics", "/metrics"]


def test_voice() -> None:
    """Would catch recordings that failed counted as transcribed."""
    counts = {"outcome/ok": 2, "outcome/audio_too_long": 1, "audio_seconds": 6.0, "work_seconds": 1.5}
    found = parsed(voice_metrics(counts))
    name = "ollama_pack_voice_transcriptions_total"
    assert found[name, frozenset({("outcome", "ok")})] == 2
    assert found[name, frozenset({("outcome", "audio_too_long")})] == 1
    assert found["ollama_pack_voice_audio_seconds_total", frozenset()] == 6
