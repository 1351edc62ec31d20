"""How busy an engine is, by the Prometheus metrics that it serves.

The names are those of vLLM, SGLang and llama.cpp's server, the text is Prometheus' exposition format 0.0.4.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(
    r"""([a-zA-Z_:][\w:]*)\s*(?:\{((?:[^"}]|"(?:\\.|[^"\\])*")*)\})?\s+(\S+)(?:\s+-?\d+)?\s*""", re.ASCII
)
_LABEL = re.compile(r'(\w+)\s*=\s*"((?:\\.|[^"\\])*)"', re.ASCII)
# Processes that share one request; each may report it.
_RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})

# By engine: what runs, what waits.
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_KNOWN = frozenset((*_RUNNING, *_WAITING))

# Labels but for ranks → value.
_Series = dict[tuple[tuple[str, str], ...], float]


@dataclass(frozen=True, slots=True)
class EngineActivity:
    """What an engine does at one moment, whoever asked for it.

    Attributes:
        running: requests that it generates for.
        waiting: requests in its own queue.
    """

    running: int
    waiting: int


def engine_activity(text: str) -> EngineActivity | None:
    """Read an exposition; None where none of the engines that are known speaks.

    Numbers of requests are added up over all series, as several engines behind one address are told apart by
    a label. What several ranks of one engine report of the same requests
    counts once, and so does what SGLang also reports by priority.

    Args:
        text: the answer of `/metrics`. Lines that cannot be read are left out.
    """
    found: dict[str, _Series] = {}
    for name, labels, value in _samples(text):
        kept = tuple(sorted(label for label in labels.items() if label[0] not in _RANKS))
        series = found.setdefault(name, {})
        series[kept] = max(value, series.get(kept, 0.0))
    running = _first_of(_RUNNING, found)
    if running is None:
        return None
    return EngineActivity(round(sum(running)), round(sum(_first_of(_WAITING, found) or [])))


def _samples(text: str) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of each sample that matters."""
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line) if line.startswith(("vllm:", "sglang:", "llamacpp:")) else None
        if match is None or match[1] not in _KNOWN:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        value = _sample_value(match[3])
        if math.isfinite(value) and value >= 0 and not labels.get("priority"):
            yield match[1], labels, value


def _sample_value(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _first_of(names: Iterable[str], found: Mapping[str, _Series]) -> list[float] | None:
    return next((list(found[name].values()) for name in names if name in found), None)
