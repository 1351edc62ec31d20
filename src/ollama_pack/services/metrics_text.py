"""What the pack counts, as Prometheus reads it: text format 0.0.4, base units, nothing for what is not known.

Each process counts for itself, since it was started. Labels are nodes, models and a few words: never users.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ollama_pack.cache.counters import LOOKUP_BOUNDS

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series.

    Attributes:
        name: without the beginning that all have, `ollama_pack_`.
        kind: as Prometheus calls it.
        labels: their names.
        text: what it is.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Buckets:
    """What a histogram shows.

    Attributes:
        bounds: upper bounds, the smallest first; there is one class more, of what is above the last.
        counts: how many there were in each class.
        total: the sum of all.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float


MetricSamples = Iterable[tuple[tuple[str, ...], float | Buckets]]  # values of the labels, and the value

NODE, MODEL = ("node",), ("node", "model")
PLUGIN_UP = Metric(
    "plugin_up", "gauge", ("plugin",), "Whether this plugin of the pack is on and answers (1)."
)

NODE_UP = Metric(
    "node_up", "gauge", NODE, "Whether the node answers, and has not just failed (1). A drained node is up."
)
IN_FLIGHT = Metric("node_requests", "gauge", NODE, "Requests of this process at the node.")
NODE_QUEUE = Metric("node_queue_length", "gauge", NODE, "Waiting requests that the node could answer.")
RESIDENT = Metric("model_resident", "gauge", MODEL, "1 for each model in a node's memory.")
GPU_USE = Metric("node_gpu_utilization_ratio", "gauge", ("node", "gpu"), "How busy the GPU is, 0 to 1.")
GPU_USED = Metric("node_gpu_memory_used_bytes", "gauge", ("node", "gpu"), "GPU memory in use.")
GPU_TOTAL = Metric("node_gpu_memory_total_bytes", "gauge", ("node", "gpu"), "GPU memory.")
QUEUE = Metric("queue_length", "gauge", (), "Requests that wait for a node.")
FIRST_TOKEN = Metric(
    "time_to_first_token_seconds",
    "histogram",
    MODEL,
    "From sending a request to its node to the first token.",
)
PREDICTED = Metric(
    "predicted_time_to_first_token_seconds", "histogram", MODEL, "What was predicted for the same requests."
)
QUEUE_WAIT = Metric(
    "queue_wait_seconds", "histogram", MODEL, "How long requests waited before they went to the node."
)
SENT = Metric(
    "requests_total", "counter", MODEL, "Requests sent to the node, those that failed there included."
)
LOADS = Metric("loads_total", "counter", MODEL, "Requests for which the node had to load the model.")
FAILURES = Metric("node_failures_total", "counter", MODEL, "Requests that failed at the node.")
FAILOVERS = Metric("failovers_total", "counter", MODEL, "Of these, requests that another node was asked for.")
PROMPT_TOKENS = Metric("prompt_tokens_total", "counter", MODEL, "Tokens of the prompts of finished answers.")
REUSED_TOKENS = Metric(
    "reused_prompt_tokens_total", "counter", MODEL, "Of these, tokens that the node held already (prefix)."
)
REFUSED = Metric("chat_errors_total", "counter", ("reason",), "Chats that ended with an error, by its kind.")

CACHE_UP = Metric("cache_up", "gauge", (), "Whether the response cache's store answers (1).")
CACHE_REQUESTS = Metric(
    "cache_requests_total",
    "counter",
    ("outcome", "reason"),
    "Chats by what the cache did: hit, follow (shares a generation), miss, bypass (not looked up).",
)
CACHE_LOOKUP = Metric("cache_lookup_seconds", "histogram", (), "How long lookups took.")
CACHE_STORED = Metric("cache_stored_total", "counter", (), "Answers that were stored.")
CACHE_NOT_STORED = Metric("cache_not_stored_total", "counter", ("reason",), "Answers that were not stored.")
CACHE_SECONDS = Metric("cache_saved_seconds_total", "counter", (), "Seconds of generation saved.")
CACHE_TOKENS = Metric("cache_saved_tokens_total", "counter", (), "Generated tokens saved.")

VOICE = Metric(
    "voice_transcriptions_total", "counter", ("outcome",), "Recordings: ok, kept, or the error's code."
)
VOICE_AUDIO = Metric("voice_audio_seconds_total", "counter", (), "Length of the recordings transcribed.")
VOICE_WORK = Metric("voice_work_seconds_total", "counter", (), "Time that these took, waiting included.")


def family(metric: Metric, samples: MetricSamples) -> str:
    """A family in the text format; empty where it has no samples."""
    full = f"ollama_pack_{metric.name}"
    lines = [line for values, value in samples for line in _lines(full, metric, values, value)]
    head = (f"# HELP {full} {metric.text}", f"# TYPE {full} {metric.kind}")
    return "\n".join([*head, *lines, ""]) if lines else ""


def _lines(full: str, metric: Metric, values: tuple[str, ...], value: float | Buckets) -> Iterator[str]:
    labels = dict(zip(metric.labels, values, strict=True)) | _worker()
    if not isinstance(value, Buckets):
        yield f"{full}{_labels(labels)} {value}"
        return
    for bound, count in zip((*value.bounds, "+Inf"), accumulate(value.counts), strict=True):
        yield f"{full}_bucket{_labels(labels | {'le': str(bound)})} {count}"
    yield f"{full}_sum{_labels(labels)} {value.total}"
    yield f"{full}_count{_labels(labels)} {sum(value.counts)}"


def _worker() -> dict[str, str]:
    """A label where several processes answer at one address: each counts for itself."""
    return {} if os.environ.get("UVICORN_WORKERS", "1") in {"", "1"} else {"worker": str(os.getpid())}


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def cache_metrics(report: Mapping[str, Any]) -> str:
    """What the response cache of this process did.

    Args:
        report: as its `cache_report` gives it, of any version; only `fault`, where it cannot be asked.
    """
    counts = report.get("worker")
    if not isinstance(counts, Mapping):
        return ""
    number = {str(name): float(value) for name, value in counts.items() if isinstance(value, int | float)}
    outcomes = [(("hit", ""), number.get("hits", 0.0)), (("follow", ""), number.get("follows", 0.0))]
    outcomes += [(("miss", reason), value) for reason, value in _by_reason(number, "misses/")]
    outcomes += [(("bypass", reason), value) for reason, value in _by_reason(number, "bypasses/")]
    classes = [number.get(f"lookups_ms/{bound:g}", 0.0) for bound in LOOKUP_BOUNDS]
    lookups = Buckets(
        tuple(bound / 1000 for bound in LOOKUP_BOUNDS),
        (*classes, number.get("lookups_ms/more", 0.0)),
        number.get("lookup_seconds", 0.0),
    )
    families = (
        family(CACHE_UP, [((), float(not report.get("fault")))]),
        family(CACHE_REQUESTS, outcomes),
        family(CACHE_LOOKUP, [((), lookups)]),
        family(CACHE_STORED, [((), number.get("stored", 0.0))]),
        family(CACHE_NOT_STORED, [((reason,), value) for reason, value in _by_reason(number, "not_stored/")]),
        family(CACHE_SECONDS, [((), number.get("seconds_saved", 0.0))]),
        family(CACHE_TOKENS, [((), number.get("tokens_saved", 0.0))]),
    )
    return "".join(families)


def _by_reason(counts: Mapping[str, float], begin: str) -> Iterator[tuple[str, float]]:
    return ((name.removeprefix(begin), value) for name, value in counts.items() if name.startswith(begin))


def voice_metrics(counts: Mapping[str, float]) -> str:
    """What `transcribing.voice_counts` has counted."""
    outcomes = [((name,), value) for name, value in _by_reason(counts, "outcome/")]
    families = (
        family(VOICE, outcomes),
        family(VOICE_AUDIO, [((), counts.get("audio_seconds", 0.0))]),
        family(VOICE_WORK, [((), counts.get("work_seconds", 0.0))]),
    )
    return "".join(families)
