"""What the page draws, as Vega-Lite has it: curves over steps, and a heat map of layers.

A chart has its data in few columns, from which the page's script makes rows: names and steps stand
in the file once. Where a record has more than can be looked at, some of it is left out, and the
page says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.report.reading import Numbers, Run

__all__ = ["Curve", "Heat", "curves", "drawn_lines", "heat", "shown_layers"]

#: Lines of a record that curves show, and layers, cells and lines that heat maps show.
POINTS = 400
LAYERS = 300
CELLS = 14_000
COLUMNS = (10, 120)
#: Charts of what users note, and lines for groups or others that share a chart.
NOTES = 6
SERIES = 4
#: How many times as large as the smallest number the largest is where a scale is logarithmic.
WIDE = 10.0
#: Digits that a page has of a number.
DIGITS = 4


@dataclass(frozen=True)
class Curve:
    """A chart of lines over steps: of each run one, or several with names of their own."""

    title: str
    says: str
    specification: dict[str, Any]
    #: Each with ``run`` (its place), ``series``, ``step`` and ``value``, ``low`` and ``high``.
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class Heat:
    """What the heat map of one run has: rows are layers, columns times."""

    layers: list[str]
    edges: list[int]
    #: By field, a list of rows; None where there is no number.
    values: dict[str, list[list[float | None]]]
    left_out: int


# ── curves ─────────────────────────────────────────────────────────────────────────────────────


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Return the charts of runs, one on the other: those that have anything to show."""
    notes = dict.fromkeys(name for run in runs for name in run.notes)
    ordered = sorted(notes, key=lambda name: "loss" not in name.lower())[:NOTES]
    found = [
        _curve(name, "As noted in the record.", runs, lambda run, n=name: {"": run.notes.get(n)})
        for name in ordered
    ]
    limits = {run.phase.get("clip_norm") for run in runs}
    limit = _positive(limits.pop()) if len(limits) == 1 else None
    found += [
        _curve(
            "Norm of the gradient",
            "Of all tensors together, before clipping"
            + ("." if limit is None else f"; the dashed line is clip_norm, {limit:g}."),
            runs,
            lambda run: {"": run.gradient_norm},
            log=True,
            rule=limit,
        ),
        _curve(
            "Clip factor",
            "What all gradients were multiplied by: 1 where nothing was clipped.",
            runs,
            lambda run: {"": run.clip_factor} if (run.clip_factor < 1).any() else {},
            log=True,
            top=1.0,
        ),
        _curve(
            "Size of the update",
            "Norm of the update by norm of the parameter, of the layer in the middle"
            + ("; the band is of all layers." if len(runs) == 1 else "."),
            runs,
            lambda run: {"": _of_layers(run, np.nanmedian)},
            log=True,
            band=len(runs) == 1,
        ),
        _curve("Learning rate", "At each line.", runs, _rates),
        _curve(
            "Steps left out",
            "So far, as spikes and since gradients were not finite.",
            runs,
            _left_out,
            stepwise=True,
        ),
    ]
    return [each for each in found if each.lines]


def _rates(run: Run) -> dict[str, Numbers]:
    """Return the rates of groups, those that are alike once."""
    found: dict[bytes, tuple[list[int], Numbers]] = {}
    for place, column in enumerate(run.lr.T):
        found.setdefault(column.tobytes(), ([], column))[0].append(place)
    kept = list(found.values())[:SERIES]
    if len(kept) == 1:
        return {"": kept[0][1]}
    return {f"group {', '.join(map(str, places))}": column for places, column in kept}


def _left_out(run: Run) -> dict[str, Numbers]:
    names = {"nonfinite": "not finite", "spikes": "spikes"}
    return {
        names.get(kind, kind): column
        for kind, column in run.skipped.items()
        if np.nanmax(column, initial=0) > 0
    }


def drawn_lines(run: Run) -> NDArray[np.intp]:
    """Return the lines that curves show: all, or of each stretch the one with the largest norm."""
    count = len(run.steps)
    if count <= POINTS:
        return np.arange(count)
    norms = np.nan_to_num(run.gradient_norm, nan=-1.0, posinf=-1.0)
    cuts = np.linspace(0, count, POINTS - 1).astype(int)  # besides the first line and the last one
    chosen = [a + int(np.argmax(norms[a:b])) for a, b in itertools.pairwise(cuts)]
    return np.unique([0, *chosen, count - 1])


def _curve(
    title: str,
    says: str,
    runs: Sequence[Run],
    columns: Any,
    *,
    log: bool = False,
    top: float | None = None,
    rule: float | None = None,
    band: bool = False,
    stepwise: bool = False,
) -> Curve:
    """Return the chart of what ``columns`` gives of a run: columns, by the names of their lines.

    With ``log`` its scale is logarithmic, where numbers differ as much as that.
    """
    found: list[tuple[dict[str, Any], dict[str, Numbers]]] = []
    for place, run in enumerate(runs):
        chosen = drawn_lines(run)
        for series, column in columns(run).items():
            if column is None or not np.isfinite(column).any():
                continue
            numbers = {"value": column[chosen]}
            if band and len(run.tensors) > 1:
                for end, which in (("low", np.nanmin), ("high", np.nanmax)):
                    numbers[end] = _of_layers(run, which)[chosen]
            line = {"run": place, "series": series, "step": run.steps[chosen].tolist()}
            found.append((line, numbers))
    log = log and _is_wide([each for _, numbers in found for each in numbers.values()])
    lines: list[dict[str, Any]] = [
        line | {name: _rounded(each, positive=log) for name, each in numbers.items()}
        for line, numbers in found
    ]
    has_band = any("low" in line for line in lines)
    several = len({line["series"] for line in lines}) > 1
    return Curve(
        title,
        says,
        _lines_over_steps(
            title, log=log, top=top, rule=rule, band=has_band, several=several, step=stepwise
        ),
        lines,
    )


def _is_wide(columns: Sequence[Numbers]) -> bool:
    """Return whether the largest number is at least `WIDE` times the smallest one above 0."""
    positive = [each[(each > 0) & np.isfinite(each)] for each in columns]
    found = np.concatenate([*positive, np.zeros(0)])
    return bool(len(found)) and float(found.max()) >= WIDE * float(found.min())


def _of_layers(run: Run, which: Callable[..., Any]) -> Numbers:
    """Return the least, middle or largest of the ratios of all layers that move, at each line."""
    ratio = run.ratio
    ratio = np.where(ratio > 0, ratio, np.nan)
    some = ~np.isnan(ratio).all(axis=1)
    found = np.full(len(ratio), np.nan)
    if some.any():
        found[some] = which(ratio[some], axis=1)
    return found


def _lines_over_steps(
    title: str,
    *,
    log: bool,
    top: float | None,
    rule: float | None,
    band: bool,
    several: bool,
    step: bool,
) -> dict[str, Any]:
    """Return the specification of a chart of lines; the script puts data and colours into it."""
    scale: dict[str, Any] = {"type": "log"} if log else {"zero": False}
    if top is not None:
        scale["domainMax"] = top
    value: dict[str, Any] = {"field": "value", "type": "quantitative", "title": None}
    value |= {"scale": scale, "axis": _LOG if log else {"labelExpr": _LABEL, "tickCount": 5}}
    axis = {"format": "~s", "labelOverlap": True, "tickCount": 6}
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": axis}
    x["scale"] = {"zero": False, "nice": False}
    dash: dict[str, Any] = {"field": "series", "type": "nominal"}
    dash["legend"] = {"orient": "top", "title": None, "symbolType": "stroke"} if several else None
    mark: dict[str, Any] = {"type": "line", "strokeWidth": 1.6, "clip": True}
    if step:
        mark["interpolate"] = "step-after"
    layers: list[dict[str, Any]] = []
    if rule is not None:
        layers.append(
            {
                "data": {"values": [{"limit": rule}]},
                "mark": {"type": "rule", "strokeDash": [5, 4], "opacity": 0.8},
                "encoding": {"y": {**value, "field": "limit"}},
            }
        )
    if band:
        ends = {"y": {**value, "field": "low"}, "y2": {"field": "high"}}
        area = {"type": "area", "opacity": 0.22, "clip": True}
        layers.append({"mark": area, "encoding": {"x": x, "color": {"field": "run"}, **ends}})
    layers.append(
        {
            "mark": mark,
            "encoding": {"x": x, "y": value, "color": {"field": "run"}, "strokeDash": dash},
        }
    )
    # The script adds a rule that follows the pointer, with the numbers of all runs.
    return {
        "description": title,
        "width": "container",
        "height": 160,
        "layer": layers,
    }


#: Numbers beside an axis, as short as they can be told.
_LABEL = (
    "datum.value == 0 || abs(datum.value) >= 0.001 && abs(datum.value) < 10000"
    " ? format(datum.value, '~g') : format(datum.value, '~e')"
)
#: On an axis of powers those that begin with 1, 2 or 5.
_ROUND = (
    "indexof([1, 2, 5], round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))) >= 0"
)
_LOG = {
    "labelExpr": f"{_ROUND} ? ({_LABEL}) : ''",
    "tickCount": 4,
    "gridOpacity": {"condition": {"test": _ROUND, "value": 1}, "value": 0},
}


# ── heat map ───────────────────────────────────────────────────────────────────────────────────

#: What can be chosen, with the kind of its colours.
FIELDS = {
    "ratio": ("update / parameter", "log"),
    "gradient_norm": ("norm of the gradient", "log"),
    "unmoved": ("elements unmoved", "fraction"),
    "below_eps": ("elements with √v̂ < ε", "fraction"),
}


def shown_layers(run: Run, most: int, told: Iterable[str] = ()) -> list[int]:
    """Return the places of the layers that are shown: all, or as many as may be.

    Those that findings are about come first, then the largest ones.
    """
    if len(run.tensors) <= most:
        return list(range(len(run.tensors)))
    first = set(told)
    places = sorted(
        range(len(run.tensors)),
        key=lambda i: (run.tensors[i].name not in first, -run.tensors[i].count, i),
    )
    return sorted(places[:most])


def heat(run: Run, told: Iterable[str], runs: int = 1) -> Heat:
    """Return the heat map of a run, one of so many."""
    least, most = COLUMNS
    cells = CELLS // runs
    places = shown_layers(run, max(1, min(LAYERS, cells // least)), told)
    columns = min(most, max(least, cells // max(1, len(places))), len(run.steps))
    lines = np.unique(np.linspace(0, len(run.steps) - 1, columns).round().astype(int))
    steps = run.steps[lines]
    width = int(np.median(np.diff(steps))) if len(steps) > 1 else max(1, int(steps[0]))
    # A column reaches from the line before it to its own.
    edges = [max(0, int(steps[0]) - width), *steps.tolist()]
    of: dict[str, Numbers] = {"ratio": run.ratio, **run.of}
    return Heat(
        layers=[run.tensors[place].name for place in places],
        edges=edges,
        values={
            field: [_rounded(of[field][lines, place]) for place in places]
            for field in FIELDS
            if np.isfinite(of[field]).any()
        },
        left_out=len(run.tensors) - len(places),
    )


def heat_specification(field: str, layers: int) -> dict[str, Any]:
    """Return the specification of a heat map of so many layers; the script puts in data."""
    title, kind = FIELDS[field]
    scale: dict[str, Any] = {"type": "log"} if kind == "log" else {"domain": [0, 1]}
    axis = {"format": "~s", "labelOverlap": True, "tickCount": 6, "grid": False}
    axis |= {"domain": False}
    y_axis = {
        "labelOverlap": "greedy",
        "labelSeparation": 2,
        "labelLimit": 400,
        "ticks": False,
        "domain": False,
    }
    y: dict[str, Any] = {"field": "place", "type": "ordinal", "title": None}
    encoding = {
        "x": {
            "field": "from",
            "type": "quantitative",
            "title": "step",
            "axis": axis,
            "scale": {"nice": False, "zero": False},
        },
        "x2": {"field": "to"},
        "y": {**y, "axis": y_axis},
        "tooltip": [
            {"field": "layer", "title": "layer"},
            {"field": "to", "title": "step", "format": ","},
            {"field": "told", "title": title},
        ],
    }
    legend: dict[str, Any] = {"title": title, "orient": "top", "titleLimit": 320}
    if kind == "log":
        legend |= {"labelExpr": _LOG["labelExpr"], "tickCount": 3}
    else:
        legend["format"] = ".0%"
    color = {"field": "value", "type": "quantitative", "scale": scale, "legend": legend}
    return {
        "description": f"Heat map of layers over steps: {title}",
        "width": "container",
        "height": layers * _row(layers),
        "encoding": encoding,
        # Cells with a number, and those without. A pixel more, so that none shows between two.
        "layer": [
            {"mark": {"type": "rect", "x2Offset": 1}, "encoding": {"color": color}},
            {"mark": {"type": "rect", "x2Offset": 1}},
        ],
    }


def _row(layers: int) -> int:
    """Return how many pixels high a layer is."""
    return 18 if layers <= 24 else max(6, ceil(900 / layers))


# ── numbers ────────────────────────────────────────────────────────────────────────────────────


def _rounded(numbers: Numbers, *, positive: bool = False) -> list[float | None]:
    """Return numbers with few digits; None where there is none, or where it cannot be drawn."""
    return [
        float(f"{number:.{DIGITS}g}") if isfinite(number) and (number > 0 or not positive) else None
        for number in numbers.tolist()
    ]


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None
