"""The picture of a table of ratios: each row a dot with its range, on a logarithmic axis."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.pictures import TEXT, Theme, new_figure
from benchmarks.tables import short

#: Of one row and of the axis, in inches.
_ROW, _AXIS = 0.5, 0.75
#: Of a line of a label, in characters.
_LINE = 48


class Bar(NamedTuple):
    """What is drawn of one row."""

    label: str
    ratio: float
    lowest: float
    highest: float
    goal: float | None


def ratio_bars(bars: Sequence[Bar], theme: Theme) -> Any:
    """Return a figure with one row for each bar, from above, its label over it."""
    # Here, since versions of adamas that are compared need not have it.
    from adamas.palette import COLOURS

    figure = new_figure(_ROW * len(bars) + _AXIS)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axvline(1, color=theme.ink, linewidth=0.8)
    beside = axes.get_yaxis_transform()
    for row, bar in enumerate(bars):
        axes.plot((bar.lowest, bar.highest), (row, row), color=COLOURS["Adam"], alpha=0.6)
        axes.plot(bar.ratio, row, "o", color=COLOURS["Adam"], markersize=6)
        if bar.goal is not None:
            axes.plot(bar.goal, row, "|", color=theme.ink, markersize=11, markeredgewidth=1.5)
        for x, side, text in (
            (0.0, "left", textwrap.fill(bar.label, _LINE)),
            (1.0, "right", f"{short(bar.ratio)}×"),
        ):
            told = axes.text(x, row - 0.22, text, transform=beside, ha=side, va="bottom")
            told.set(fontsize=TEXT, in_layout=False, linespacing=1.0)
            told.set_bbox({"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5})
    low, high = _limits(bars)
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(len(bars) - 0.6, -0.85)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times as fast; the upright mark is the goal")
    return figure


def _limits(bars: Iterable[Bar]) -> tuple[float, float]:
    ends = [end for bar in bars for end in (bar.lowest, bar.highest, bar.goal or bar.ratio, 1.0)]
    return 0.85 * min(ends), 1.15 * max(ends)
