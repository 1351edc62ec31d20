"""The comparison as pictures: times to first token, cold loads, and what was reused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # draws without a screen; must come before pyplot

from matplotlib import pyplot as plt

from bench.routing.figures import QUANTILES

COLOURS = {
    "random": "#c44e52",
    "round robin": "#dd8452",
    "least busy": "#8172b3",
    "sticky": "#64a0c8",
    "ours": "#2f7d4f",
    "ollama-herd": "#937860",
    "litellm": "#da8bc3",
}
WIDTH, HEIGHT = 5.2, 3.6  # inches of one picture
SHORTEST = 0.05  # seconds, the left end of the axis


def draw(routing: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Write a row of pictures for each setting.

    Args:
        routing: figures by setting and policy, as `policy_figures` makes them.
        path: of the PNG.
    """
    figure, rows = plt.subplots(
        len(routing),
        3,
        figsize=(2.6 * WIDTH, HEIGHT * len(routing)),
        squeeze=False,
        width_ratios=(2, 1, 1),
        layout="constrained",
    )
    for (setting, by_policy), (times, loads, reuse) in zip(routing.items(), rows, strict=True):
        _draw_times(times, setting, by_policy)
        _draw_bars(loads, by_policy, "loads_per_1000", "cold loads per 1,000 requests", "{:.0f}")
        _draw_bars(reuse, by_policy, "reused", "share of prompt tokens reused", "{:.0%}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_times(axes: Any, setting: str, by_policy: Mapping[str, Mapping[str, Any]]) -> None:
    shares = [step / QUANTILES for step in range(QUANTILES + 1)]
    for policy, told in by_policy.items():
        waits = [max(SHORTEST, wait) for wait in told["ttft_quantiles"]]
        label = f"{policy}: mean {told['ttft_mean']:.2g} s"
        width = 2.6 if policy == "ours" else 1.4
        axes.plot(waits, shares, label=label, color=COLOURS[policy], linewidth=width)
    axes.set_xscale("log")
    axes.set_xlim(left=SHORTEST)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("time to first token of people's requests, simulated s (log)")
    axes.set_ylabel("share of requests answered by then")
    axes.set_title(setting)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="upper left", fontsize="small")


def _draw_bars(
    axes: Any, by_policy: Mapping[str, Mapping[str, Any]], name: str, label: str, form: str
) -> None:
    values = [told[name] for told in by_policy.values()]
    bars = axes.barh(list(by_policy), values, color=[COLOURS[policy] for policy in by_policy])
    axes.bar_label(bars, [form.format(value) for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(label)
