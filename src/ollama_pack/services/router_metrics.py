"""What a router and its nodes did, as Prometheus reads it."""

from collections.abc import Callable

from ollama_pack.routing.dispatch.counts import SECONDS_BOUNDS, ModelCounts, SecondsHistogram
from ollama_pack.routing.dispatch.report import load_report
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.services.metrics_text import (
    FAILOVERS,
    FAILURES,
    FIRST_TOKEN,
    GPU_TOTAL,
    GPU_USE,
    GPU_USED,
    IN_FLIGHT,
    LOADS,
    NODE_QUEUE,
    NODE_UP,
    PREDICTED,
    PROMPT_TOKENS,
    QUEUE,
    QUEUE_WAIT,
    REFUSED,
    RESIDENT,
    REUSED_TOKENS,
    SENT,
    Buckets,
    Metric,
    family,
)

_COUNTED: tuple[tuple[Metric, Callable[[ModelCounts], float | Buckets]], ...] = (
    (FIRST_TOKEN, lambda counts: _buckets(counts.actual)),
    (PREDICTED, lambda counts: _buckets(counts.predicted)),
    (QUEUE_WAIT, lambda counts: _buckets(counts.waited)),
    (SENT, lambda counts: counts.sent),
    (LOADS, lambda counts: counts.loads),
    (FAILURES, lambda counts: counts.failures),
    (FAILOVERS, lambda counts: counts.failovers),
    (PROMPT_TOKENS, lambda counts: counts.prompt_tokens),
    (REUSED_TOKENS, lambda counts: counts.reused_tokens),
)


def router_metrics(router: Router) -> str:
    """The text format, addresses of nodes left out."""
    nodes = load_report(router)["nodes"]
    by_node = [
        family(NODE_UP, [((node["name"],), int(node["healthy"])) for node in nodes]),
        family(IN_FLIGHT, [((node["name"],), router.own_in_flight(node["name"])) for node in nodes]),
        family(NODE_QUEUE, [((node["name"],), node["queued"]) for node in nodes]),
        family(RESIDENT, [((node["name"], model), 1) for node in nodes for model in set(node["models"])]),
    ]
    gpus = [((node["name"], str(gpu["index"])), gpu) for node in nodes for gpu in node["gpus"]]
    by_gpu = [
        family(metric, [(gpu, values[key] / unit) for gpu, values in gpus if values[key] is not None])
        for metric, key, unit in (
            (GPU_USE, "utilization", 100),
            (GPU_USED, "memory_used", 1),
            (GPU_TOTAL, "memory_total", 1),
        )
    ]
    counted = [
        family(metric, [(pair, value(counts)) for pair, counts in router.counts.models.items()])
        for metric, value in _COUNTED
    ]
    refused = [((reason,), count) for reason, count in router.counts.refused.items()]
    waiting = family(QUEUE, [((), router.scheduler.waiting)])
    return "".join((*by_node, *by_gpu, waiting, *counted, family(REFUSED, refused)))


def _buckets(times: SecondsHistogram) -> Buckets:
    return Buckets(SECONDS_BOUNDS, tuple(times.counts), times.total)
