"""How long a finished answer took the engine, by the figures in its last chunk."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.routing.state.estimates import Durations

NANO, MILLI = 1e-9, 1e-3
FASTEST_TOKEN = 0.0002  # seconds; no engine generates one faster, so what came faster came in one piece


@dataclass(frozen=True, slots=True)
class Elapsed:
    """What was measured here, in seconds since the request was sent.

    Attributes:
        first_token: until the first chunk came.
        total: until the end.
    """

    first_token: float
    total: float


def spent_on(
    usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None, elapsed: Elapsed
) -> Durations:
    """Read what the chunk with the figures tells: durations, or counts whose durations were measured here.

    Args:
        usage: its `usage`: with Ollama's nanoseconds, as `openai_usage` puts them, or OpenAI's own.
        timings: its `timings`: llama.cpp's milliseconds.
        elapsed: what was measured here, for what the engine does not tell.
    """
    usage, timings = usage or {}, timings or {}
    if _told(usage, "total_duration"):
        return _by_ollama(usage)
    if _told(timings, "prompt_ms") or _told(timings, "predicted_ms"):
        return _by_llamacpp(usage, timings, elapsed)
    return _by_clock(usage, elapsed)


def _by_ollama(usage: Mapping[str, Any]) -> Durations:
    """Ollama reports everything. Before 0.33.3 only the duration shows how much of the prompt it had."""
    return Durations(
        total=_told(usage, "total_duration") * NANO,
        load=_told(usage, "load_duration") * NANO,
        prompt=_told(usage, "prompt_eval_duration") * NANO,
        prompt_count=int(_told(usage, "prompt_eval_count")),
        decode=_told(usage, "eval_duration") * NANO,
        decode_count=int(_told(usage, "eval_count")),
        hit=_count_or_none(usage, "prompt_eval_cached_count"),
    )


def _by_llamacpp(usage: Mapping[str, Any], timings: Mapping[str, Any], elapsed: Elapsed) -> Durations:
    """llama.cpp reports durations and hits. What it does not report is how long the request waited.

    That is what passed before the first token without a prompt being evaluated. The time to the end does not
    tell, since a slow reader makes it longer.
    """
    prompt, decode = _told(timings, "prompt_ms") * MILLI, _told(timings, "predicted_ms") * MILLI
    began = min(elapsed.first_token, elapsed.total - decode)  # a reader of whole answers sees no first token
    evaluated, count = int(_told(timings, "prompt_n")), int(_told(usage, "prompt_tokens"))
    hit = _count_or_none(timings, "cache_n")
    if hit is None and count > evaluated:
        hit = count - evaluated  # an older one, which tells only what it evaluated
    elif hit is None:  # an older one that had nothing, or an Ollama, whose `prompt_n` counts what it had
        hit = _cached(usage)
        evaluated -= min(evaluated, hit or 0)
    return Durations(
        total=max(0.0, began - prompt) + prompt + decode,
        prompt=prompt,
        prompt_count=evaluated + (hit or 0),
        decode=decode,
        decode_count=int(_told(timings, "predicted_n")),
        hit=hit,
    )


def _by_clock(usage: Mapping[str, Any], elapsed: Elapsed) -> Durations:
    """Counts alone, as of vLLM and SGLang: what passed before the first token counts as the prompt's.

    Waiting in the engine's queue is in it, as nothing tells them apart. An answer that came in one piece
    shows no first token: then all of it counts as generation, and nothing is learned of the prompt.
    """
    total = max(0.0, elapsed.total)
    first = min(max(0.0, elapsed.first_token), total)
    count = int(_told(usage, "completion_tokens"))
    in_one_piece = count > 1 and total - first < FASTEST_TOKEN * (count - 1)
    return Durations(
        total=total,
        prompt=0.0 if in_one_piece else first,
        prompt_count=int(_told(usage, "prompt_tokens")),
        decode=total if in_one_piece else total - first,
        decode_count=count,
        hit=_cached(usage),
    )


def _cached(usage: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that were reused; None where it is not told.

    vLLM tells it with `--enable-prompt-tokens-details`, SGLang with `--enable-cache-report`.
    """
    details = usage.get("prompt_tokens_details")
    return _count_or_none(details, "cached_tokens") if isinstance(details, Mapping) else None


def _count_or_none(figures: Mapping[str, Any], name: str) -> int | None:
    return int(_told(figures, name)) if isinstance(figures.get(name), int | float) else None


def _told(figures: Mapping[str, Any], name: str) -> float:
    """A figure; 0 where there is none, or nonsense."""
    value = figures.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < math.inf else 0.0
