"""The tables and the picture of `docs/routing-measured.md`, from the figures of `bench/traces.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # draws without a screen; must come before pyplot

from matplotlib import pyplot as plt

BEGIN, END = "<!-- rows: bench/traces.py --page -->", "<!-- end of rows -->"
OURS, BOUND = "late binding", "no policy can beat"
HEAD = "Trace x time scale, nodes x slots"
WORSE = "Rows where a simple policy is better by more than half a percent:"
NONE_WORSE = "In none of these rows is a simple policy better by more than half a percent."
# Words of the page in Chinese; rows keep the names that they have in the picture.
CHINESE = {
    HEAD: "轨迹 x 时间缩放，节点 x 槽位",
    "No policy can beat": "任何策略都无法超越",
    "All in one": "合为一个节点",
    "Random": "随机",
    "Round robin": "轮询",
    "Least busy": "最空闲",
    "Sticky": "会话保持",
    "Cache-aware (SGLang)": "缓存感知（SGLang）",
    WORSE: "简单策略好出半个百分点以上的行：",
    NONE_WORSE: "在所有行中，简单策略都没有好出半个百分点以上。",
    "{key} {percent:.1f} % above {policy}": "{key} 比 {policy} 高 {percent:.1f} %",
    "- {name}: {parts}.": "- {name}：{parts}。",
    "; ": "；",
}
NAMES = {OURS: "`gpu_router`", "cache-aware": "Cache-aware (SGLang)"}
MARKS = {
    BOUND: ("|", "#222222"),
    "random": ("x", "#c44e52"),
    "round robin": ("+", "#dd8452"),
    "least busy": ("s", "#8172b3"),
    "sticky": ("^", "#64a0c8"),
    "cache-aware": ("D", "#937860"),
    "LMetric": ("v", "#da8bc3"),
    OURS: ("o", "#2f7d4f"),
}
WIDTH, ROW_HEIGHT = 11.0, 0.42  # inches
LIMIT = 4.0  # times the best; what is worse stands at the edge
EQUAL = 1.005  # times the best: shown as the best

Found = Mapping[str, Mapping[str, Any]]
Words = Mapping[str, str]  # English → the page's language; empty for English


def write_page(found: Found, page: Path) -> None:
    """Put the table into the page and into the Chinese one, and the picture next to it."""
    for path, words in ((page, {}), (page.parent / "zh" / page.name, CHINESE)):
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{BEGIN}\n\n{table(found, words)}\n\n{worse(found, words)}\n\n{END}{after}")
    draw(found, page.with_suffix(".svg"))


def table(found: Found, words: Words) -> str:
    """Mean / p95 in seconds, and the share of the prompts that was reused, of all policies in all rows."""
    policies = list(next(iter(found.values()))["policies"])
    heads = [HEAD, "No policy can beat", "All in one"]
    heads += [NAMES.get(policy, policy.capitalize() if policy.islower() else policy) for policy in policies]
    lines = [
        "| " + " | ".join(words.get(head, head) for head in heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for name, told in found.items():
        by_policy = told["policies"]
        best = {key: min(one[key] for one in by_policy.values()) for key in ("mean", "p95")}
        cells = [name, *(_cell(told[limit], {"mean": 0.0, "p95": 0.0}) for limit in ("bound", "as_one"))]
        lines.append("| " + " | ".join([*cells, *(_cell(one, best) for one in by_policy.values())]) + " |")
    return "\n".join(lines)


def _cell(one: Mapping[str, float], best: Mapping[str, float]) -> str:
    times = [_time(one[key], one[key] <= best[key] * EQUAL) for key in ("mean", "p95")]
    return f"{' / '.join(times)}, {one['reused']:.0%}"


def _time(seconds: float, best: bool) -> str:  # noqa: FBT001 - a cell's two facts
    digits = 2 if seconds < 10 else 1  # noqa: PLR2004 - as long as it is readable
    written = f"{seconds:.{digits}f}"
    return f"**{written}**" if best else written


def worse(found: Found, words: Words) -> str:
    """The rows where a simple policy is better, in the mean or at the 95th percentile."""

    def said(english: str, **values: object) -> str:
        return words.get(english, english).format(**values)

    lines = []
    for name, told in found.items():
        by_policy = told["policies"]
        parts = []
        for key in ("mean", "p95"):
            best = min((one[key], policy) for policy, one in by_policy.items() if policy != OURS)
            ratio = by_policy[OURS][key] / best[0]
            if ratio > EQUAL:
                percent = 100 * (ratio - 1)
                parts.append(
                    said("{key} {percent:.1f} % above {policy}", key=key, percent=percent, policy=best[1])
                )
        if parts:
            lines.append(said("- {name}: {parts}.", name=name, parts=said("; ").join(parts)))
    return "\n".join([said(WORSE), "", *lines]) if lines else said(NONE_WORSE)


def draw(found: Found, path: Path) -> None:
    """Mean and p95 of each policy as a multiple of the best simple policy's, a line for each row."""
    mpl.rcParams["svg.hashsalt"] = "traces"  # the same bytes from the same figures
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    figure, both = plt.subplots(
        1, 2, figsize=(WIDTH, 1.2 + ROW_HEIGHT * len(found)), sharey=True, layout="constrained"
    )
    for axes, key in zip(both, ("mean", "p95"), strict=True):
        _draw_key(axes, found, key)
    both[0].set_yticks(range(len(found)), list(found), fontsize="small")
    both[0].invert_yaxis()
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_key(axes: Any, found: Found, key: str) -> None:
    for policy, (mark, colour) in MARKS.items():
        ratios = [_ratio(told, policy, key) for told in found.values()]
        size = 70 if policy == OURS else 34
        label = {OURS: "gpu_router", BOUND: "no policy can beat"}.get(policy, policy)
        options = {} if mark in "x+|" else {"edgecolors": "none"}
        axes.scatter(
            ratios, range(len(ratios)), s=size, marker=mark, color=colour, label=label, zorder=3, **options
        )
    axes.axvline(1.0, color="#999999", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 0.7, 1, 1.5, 2, 3, 4], ["0.5", "0.7", "1", "1.5", "2", "3", "≥ 4"])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.25)
    axes.set_xlabel(f"{key}, as a multiple of the best simple policy's")


def _ratio(told: Mapping[str, Any], policy: str, key: str) -> float:
    simple = [one[key] for name, one in told["policies"].items() if name != OURS]
    one: Mapping[str, float] = told["bound"] if policy == BOUND else told["policies"][policy]
    return max(0.4, min(LIMIT, one[key] / float(min(simple))))
