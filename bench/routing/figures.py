"""What is told of runs: pure functions from what was measured to figures. Times are simulated seconds."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.routing.chats import Asked, Played
from bench.routing.comparison import Run
from bench.routing.ways import OURS, RANDOM

GOALS = {"ttft_mean": 0.15, "ttft_p95": 0.2, "loads_per_1000": 0.1}  # of random's, with several models
QUANTILES = 100


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of all lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def waits(played: Played, *, background: bool = False) -> list[float]:
    """The times to first token of people's requests, or of title calls."""
    return [
        asked.waited for asked in played.asked if asked.background is background and asked.waited is not None
    ]


def policy_figures(runs: Sequence[Run]) -> dict[str, Any]:
    """What is told of a policy: means over the seeds, but sums of failures, and decisions taken together."""

    def mean(figure: Callable[[Run], float]) -> float:
        return round(statistics.mean(map(figure, runs)), 3)

    people = [waits(run.played) for run in runs]
    told = {
        "ttft_mean": round(statistics.mean([statistics.mean(found or [0.0]) for found in people]), 3),
        **{
            f"ttft_p{round(100 * share)}": round(
                statistics.mean([percentile(found, share) for found in people]), 3
            )
            for share in (0.5, 0.95, 0.99)
        },
        "reused": mean(lambda run: reused(run.totals)),
        "loads_per_1000": mean(lambda run: 1000 * run.totals["cold_loads"] / run.totals["requests"]),
        "title_mean": mean(lambda run: statistics.mean(waits(run.played, background=True) or [0.0])),
        "requests": mean(lambda run: len(run.played.asked)),
        "failures": failures([asked for run in runs for asked in run.played.asked]),
        "late_p99": mean(lambda run: percentile(run.played.late, 0.99)),
        "cpu_client": mean(lambda run: run.cpu[0]),
        "cpu_nodes": mean(lambda run: run.cpu[1]),
        "ttft_quantiles": quantiles([wait for found in people for wait in found]),
    }
    return told | decision_figures([decision for run in runs for decision in run.decisions])


def reused(totals: Mapping[str, int]) -> float:
    """The share of prompt tokens that nodes did not have to evaluate."""
    hit, evaluated = totals["prompt_tokens_reused"], totals["prompt_tokens_evaluated"]
    return hit / max(1, hit + evaluated)


def failures(asked: Sequence[Asked]) -> dict[str, Any]:
    """Of so many requests, those that failed before an answer began, and after; what was wrong, by type."""
    failed = [one for one in asked if one.error]
    return {
        "requests": len(asked),
        "before_first_token": sum(one.waited is None for one in failed),
        "after_first_token": sum(one.waited is not None for one in failed),
        "errors": dict(Counter(one.error for one in failed)),
    }


def quantiles(values: Sequence[float]) -> list[float]:
    """The values at 0, 1, … 100 percent, for plots."""
    return [round(percentile(values, step / QUANTILES), 3) for step in range(QUANTILES + 1)]


def decision_figures(decisions: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """How long decisions took, of the deciding thread, in milliseconds; nothing where none was measured."""
    if not decisions:
        return {}
    taken = [nanoseconds / 1e6 for nanoseconds, _ in decisions]
    return {
        "decisions": len(taken),
        "decision_p50_ms": round(percentile(taken, 0.5), 3),
        "decision_p99_ms": round(percentile(taken, 0.99), 3),
        "waiting_most": max(waiting for _, waiting in decisions),
    }


def ratios(by_policy: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Ours as a share of random, which the goals are about; nothing where one of them was not run."""
    if not {OURS, RANDOM} <= by_policy.keys():
        return {}
    ours, theirs = by_policy[OURS], by_policy[RANDOM]
    return {name: round(ours[name] / theirs[name], 3) for name in GOALS if theirs[name]}


def medians_beside_flood(played: Played, flooder: str, began: float) -> dict[str, Any]:
    """The median wait of each other user while the flood was being served.

    Args:
        played: the requests.
        flooder: the user who sent many at once.
        began: when, in seconds since the chats began.

    Returns:
        The median by user, the flooder's own, and the worst user's as a multiple of the median of all others,
        and of the best user's.
    """
    ends = max(
        (one.came + one.waited for one in played.asked if one.user == flooder and one.waited is not None),
        default=began,
    )
    by_user: dict[str, list[float]] = {}
    for one in played.asked:
        if one.waited is not None and began <= one.came <= ends and not one.background:
            by_user.setdefault(one.user, []).append(one.waited)
    own = by_user.pop(flooder, [0.0])
    medians = {user: statistics.median(found) for user, found in sorted(by_user.items())}
    multiples = [
        median / statistics.median([other for name, other in medians.items() if name != user])
        for user, median in medians.items()
        if len(medians) > 1
    ]
    return {
        "served_in": round(ends - began, 1),
        "flooder_median": round(statistics.median(own), 2),
        "others_median": round(statistics.median(medians.values()), 2) if medians else 0.0,
        "medians": {user: round(median, 2) for user, median in medians.items()},
        "worst_to_others": round(max(multiples, default=0.0), 2),
        "worst_to_best": round(max(medians.values()) / min(medians.values()), 2) if medians else 0.0,
        "requests_by_user": {user: len(found) for user, found in sorted(by_user.items())},
        "refused": failures([one for one in played.asked if one.user == flooder])["errors"],
    }
