"""The charts of the documentation, as SVG that can be read on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ._figure import Bars, Chart
from .contenders._contender import OURS

#: Neither black nor white, for text and axes.
INK = "#808080"
OUR_COLOR, OTHER_COLOR, GOAL_COLOR = "#009688", "#b0a090", "#d9534f"
#: Of curves, in their order.
COLORS = ("#009688", "#80cbc4", "#c0504d", "#e6a5a3", "#7b61a8", "#c3b5dd")
WIDTH = 8.0  # inches

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "pgq_anyio",  # the same chart is the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def draw(chart: Chart, path: Path) -> None:
    """Write a chart to a file."""
    if isinstance(chart, Bars):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * len(chart.values)))
        _draw_bars(figure.add_subplot(), chart)
    else:
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.add_subplot()
        for color, (name, points) in zip(COLORS, chart.curves.items(), strict=False):
            marker = "o" if len(points) < 10 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, color=color, marker=marker)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(color=INK, alpha=0.2)
        if len(chart.curves) > 1:
            axes.legend(frameon=False, fontsize=9)
        _clean(axes)
    figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", "utf-8")


def _draw_bars(axes: Any, chart: Bars) -> None:
    names = list(chart.values)
    colors = [OUR_COLOR if name.startswith(OURS) else OTHER_COLOR for name in names]
    bars = axes.barh(names, list(chart.values.values()), color=colors, height=0.7)
    labels = [f"{value:,.4g}" if value < 100 else f"{value:,.0f}" for value in chart.values.values()]
    axes.bar_label(bars, labels=labels, padding=4)
    if chart.goal is not None:
        axes.axvline(chart.goal, color=GOAL_COLOR, linestyle="--", linewidth=1.2)
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)
    _clean(axes)


def _clean(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _thousands(value: float, _: int) -> str:
    return f"{value:,g}"
