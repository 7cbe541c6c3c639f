"""One page of what runs tell, in one file that asks for nothing from anywhere.

The page is text, tables and data; Vega-Lite, which draws the data, comes from the package
vl-convert-python and is put into the page as it is. Names are anybody's: all of them are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

import adamas.report.charts as drawn
from adamas.extras import require
from adamas.report.findings import FEWEST, Finding, findings, typical
from adamas.report.reading import Group, Numbers, Run
from adamas.report.words import counted, date, percent, short

__all__ = ["page"]

#: Rows of the tables of all runs together.
ROWS = 2000
#: Layers of a finding that stand in the page at once, and further ones that are folded.
SHOWN, FOLDED = 6, 100
#: Layers of a finding that stay where others are left out.
KEPT = 20

_NOTHING = (
    "No line of the record has numbers of layers yet. Lines of steps that were left out have none."
)

_COLUMNS = (
    ("layer", "Name of the parameter"),
    ("shape", "Sorted by the number of elements"),
    ("dtype", "What the parameter is stored in"),
    ("gradient norm", "Before clipping"),
    ("parameter norm", "At the end of the record"),
    ("update / parameter", "Norm of the update by norm of the parameter"),
    ("largest update", "Of any element, in learning rates"),
    ("unmoved", "Share of elements that kept their value"),
    ("below ε", "Share of elements with √v̂ below ε"),
    ("not finite", "Infinite and NaN elements of the gradient, of all lines together"),
)


def page(runs: Sequence[Run], version: str) -> str:
    """Return the page of one run or several, as HTML.

    Raises MissingExtraError where the package that has Vega-Lite is missing.
    """
    library = require("vl_convert", "adamas report", "report", "vl-convert-python")
    found = [findings(run) for run in runs]
    told = [[layer.name for each in of for layer in each.layers[:KEPT]] for of in found]
    charts = drawn.curves(runs)
    heats = [drawn.heat(run, names, len(runs)) for run, names in zip(runs, told, strict=True)]
    rows = max(1, ROWS // len(runs))
    tabled = [drawn.shown_layers(run, rows, names) for run, names in zip(runs, told, strict=True)]
    has_layers = any(heat.values for heat in heats)
    parts = {
        "title": escape(_title(runs)),
        "head": _head(runs, found),
        "findings": "".join(
            _findings(run, of, is_one_of_several=len(runs) > 1)
            for run, of in zip(runs, found, strict=True)
        ),
        "legend": _legend(runs),
        "curves": "".join(
            f'<figure><h3>{escape(chart.title)}</h3><div class="chart" id="curve-{place}"></div>'
            f"<figcaption>{escape(chart.says)}</figcaption></figure>"
            for place, chart in enumerate(charts)
        ),
        "nothing": "" if has_layers else f'<p class="note">{_NOTHING}</p>',
        "hidden": "" if has_layers else " hidden",
        "choices": _choices(runs, heats),
        "tables": "".join(map(_table, runs, tabled, range(len(runs)))),
        "left": _left_out(runs, heats, tabled),
        "version": escape(version),
        "data": _script_data(runs, charts, heats),
        "style": _file("page.css"),
        # The last line of the bundle makes its functions known to the script of the page.
        "library": library.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        "script": _file("page.js"),
    }
    text = _file("page.html")
    pieces = text.split("{{")
    return pieces[0] + "".join(
        parts[name] + rest for name, _, rest in (each.partition("}}") for each in pieces[1:])
    )


def _file(name: str) -> str:
    return files("adamas.report").joinpath(name).read_text("utf-8")


def _title(runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"


# ── head ───────────────────────────────────────────────────────────────────────────────────────


def _head(runs: Sequence[Run], found: Sequence[Sequence[Finding]]) -> str:
    cards: list[str] = []
    for place, (run, of) in enumerate(zip(runs, found, strict=True)):
        facts = "".join(
            f"<div><dt>{escape(term)}</dt><dd>{escape(said)}</dd></div>"
            for term, said in _facts(run)
        )
        listed = f"<dl>{facts}</dl>"
        if len(runs) > 1:  # on a phone findings would be screens away
            listed = f"<details><summary>Method, options, sizes</summary>{listed}</details>"
        problems = sum(each.level == "problem" for each in of)
        told = [counted(problems, "problem")] * bool(problems)
        told += [counted(len(of) - problems, "hint")] * (len(of) > problems)
        verdict = f'<p class="verdict">{" and ".join(told) or "Nothing found"}</p>'
        cards.append(
            f'<article class="run"><h2>{_swatch(place, runs)}{escape(run.name)}</h2>{verdict}'
            f"{listed}</article>"
        )
    return f'<div class="runs">{"".join(cards)}</div>'


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    """Yield what is to be known of a run, each with its name."""
    header = run.headers[-1]
    yield "Method", str(header.get("method", "unknown"))
    first, last = (f"{step:,}" for step in (run.steps[0], run.steps[-1]))
    steps = last if first == last else f"{first} to {last}"
    yield "Steps", f"{steps}, in {counted(len(run.steps), 'line')}"
    begin, end = date(run.times[0]), date(run.times[-1])
    if begin and end:
        yield "Written", begin if begin == end else f"{begin} to {end}"
    elements = sum(tensor.count for tensor in run.tensors)
    dtypes = dict.fromkeys(tensor.dtype for tensor in run.tensors if tensor.dtype)
    of = f" in {', '.join(dtypes)}" if dtypes else ""
    yield "Parameters", f"{elements:,} in {counted(len(run.tensors), 'tensor')}{of}"
    unseen = int(np.isnan(run.of["gradient_norm"]).all(axis=0).sum())
    if unseen and len(run.tensors) > unseen:
        yield "Without a gradient", f"{counted(unseen, 'tensor')}, at every line"
    for place, group in enumerate(run.groups):
        if place == drawn.SERIES and len(run.groups) > drawn.SERIES + 1:
            yield "Groups", f"{len(run.groups) - place} more"
            break
        yield "Options" if len(run.groups) == 1 else f"Group {place}", _options(run, group, place)
    phase = [
        f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in run.phase.items()
        if value not in (None, False, "propagate")
        and not isinstance(value, (dict, list))
        and (name != "skip_window" or run.phase.get("skip_above") is not None)
    ]
    if phase:
        yield "Whole steps", ", ".join(phase)
    if len(run.headers) > 1:
        yield "Opened", f"{len(run.headers)} times: resumed, or options were changed"
    yield "Written by", f"adamas {header.get('version', 'of unknown version')}"


def _options(run: Run, group: Group, place: int) -> str:
    told: list[str] = []
    rates = run.lr[:, place]
    if np.isfinite(rates).any():
        low, high = np.nanmin(rates), np.nanmax(rates)
        told.append(f"lr {short(high)}" if low == high else f"lr {short(low)} to {short(high)}")
    told += [f"β{i} {beta:g}" for i, beta in enumerate(group.betas, 1) if beta is not None]
    if group.eps is not None and group.betas[1] is not None:
        told.append(f"ε {short(group.eps)}")
    if group.weight_decay:
        kind = "" if group.decay is None else f" ({group.decay})"
        told.append(f"weight decay {short(group.weight_decay)}{kind}")
        if group.lr_max is not None:
            told.append(f"lr_max {short(group.lr_max)}")
    told += group.flags
    given = group.state if isinstance(group.state, list) else [group.state]
    state = dict.fromkeys(str(each) for each in given)  # of both moments
    if state.keys() - {"None", "float32"}:
        told.append(f"state {' and '.join(state)}")
    told += [f"rounding {group.rounding}"] * bool(group.rounding)
    return ", ".join(each.replace(" ", "\u00a0") for each in told)  # no break before a number


def _swatch(place: int, runs: Sequence[Run]) -> str:
    return f'<span class="swatch run-{place % 6}"></span>' if len(runs) > 1 else ""


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    names = "".join(
        f"<li>{_swatch(place, runs)}{escape(run.name)}</li>" for place, run in enumerate(runs)
    )
    return f'<ul class="legend" aria-label="Which line is which run">{names}</ul>'


# ── findings ───────────────────────────────────────────────────────────────────────────────────


def _findings(run: Run, found: Sequence[Finding], *, is_one_of_several: bool) -> str:
    head = f'<h3 class="of-run">{escape(run.name)}</h3>' if is_one_of_several else ""
    if found:
        return f"<div>{head}{''.join(map(_finding, found))}</div>"
    said = "None of the findings that adamas knows shows in this record."
    if len(run.steps) < FEWEST:
        said = (
            f"The record has {counted(len(run.steps), 'line')} so far; findings need {FEWEST}. "
            "Look again later, or record more often (every=)."
        )
    return f'<div>{head}<p class="none">{said}</p></div>'


def _finding(each: Finding) -> str:
    level = "Problem" if each.level == "problem" else "Hint"
    return (
        f'<article class="finding {each.level}"><h4><span class="level">{level}</span> '
        f"{escape(each.title)}</h4><p>{escape(each.sentence)}</p>"
        f"<p><b>Try</b> {escape(each.advice)}</p>{_layers(each)}"
        f'<p class="threshold">Threshold: {escape(each.threshold)}. Source: '
        f'<a href="{escape(each.source.url)}" rel="noreferrer">{escape(each.source.title)}</a>, '
        f'<a href="{escape(each.page)}" rel="noreferrer">adamas</a>.</p></article>'
    )


def _layers(each: Finding) -> str:
    if not each.layers:
        return ""
    items = [
        f"<li><code>{escape(layer.name)}</code> {escape(layer.number)}</li>"
        for layer in each.layers[: SHOWN + FOLDED]
    ]
    told = f'<ul class="layers">{"".join(items[:SHOWN])}</ul>'
    further = len(each.layers) - SHOWN
    if further > 0:
        rest = len(each.layers) - len(items)
        last = f"<li>and {rest:,} more</li>" if rest else ""
        told += (
            f"<details><summary>{further:,} more</summary>"
            f'<ul class="layers">{"".join(items[SHOWN:])}{last}</ul></details>'
        )
    return told


# ── layers ─────────────────────────────────────────────────────────────────────────────────────


def _choices(runs: Sequence[Run], heats: Sequence[drawn.Heat]) -> str:
    of_runs = "".join(
        f'<option value="{place}">{escape(run.name)}</option>' for place, run in enumerate(runs)
    )
    fields = dict.fromkeys(field for heat in heats for field in heat.values)
    of_fields = "".join(
        f'<option value="{field}">{escape(drawn.FIELDS[field][0])}</option>'
        for field in drawn.FIELDS
        if field in fields
    )
    hidden = " hidden" * (len(runs) == 1)
    return (
        f'<label{hidden}>Run <select id="run">{of_runs}</select></label>'
        f'<label>Colour <select id="field">{of_fields}</select></label>'
    )


def _table(run: Run, places: Sequence[int], number: int) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button" title="{escape(says)}">'
        f"{escape(name.rpartition(' ')[0])} <b>{escape(name.rpartition(' ')[2])}<i></i></b>"
        "</button></th>"
        for name, says in _COLUMNS
    )
    of: dict[str, Numbers] = {field: typical(run, run.of[field]) for field in run.of}
    of["ratio"] = typical(run, run.ratio)
    of["nonfinite"] = np.nansum(run.of["nonfinite"], axis=0)
    ends = run.of["parameter_norm"]
    rows: list[str] = []
    for place in places:
        tensor = run.tensors[place]
        known = ends[~np.isnan(ends[:, place]), place]
        cells = [
            _told(of["gradient_norm"][place]),
            _told(known[-1] if len(known) else np.nan),
            _told(of["ratio"][place]),
            _told(of["largest_update"][place]),
            _told(of["unmoved"][place], percent),
            _told(of["below_eps"][place], percent),
            f"{of['nonfinite'][place]:,.0f}",
        ]
        shape = " × ".join(map(str, tensor.shape)) or ("scalar" if tensor.dtype else "")
        rows.append(
            f'<tr><th scope="row">{escape(tensor.name)}</th>'
            f'<td data-v="{tensor.count}">{shape}</td><td>{escape(tensor.dtype)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return (
        f'<div class="scroll" data-run="{number}" role="region" tabindex="0" '
        f'aria-label="Layers of {escape(run.name)}"{" hidden" * bool(number)}><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _told(number: float, by: Any = short) -> str:
    return "–" if np.isnan(number) else by(float(number))


# ── what was left out, and the data ────────────────────────────────────────────────────────────


def _left_out(
    runs: Sequence[Run], heats: Sequence[drawn.Heat], tabled: Sequence[Sequence[int]]
) -> str:
    """Return what the page does not show of the records, each as a paragraph."""
    told: list[str] = []
    for run, heat, places in zip(runs, heats, tabled, strict=True):
        of = f"{run.name}: " if len(runs) > 1 else ""
        if run.stride > 1:
            told.append(f"{of}of every {run.stride} lines of this large record one was read.")
        lines = len(run.steps)
        points = len(drawn.drawn_lines(run))
        if points < lines:
            told.append(
                f"{of}curves show {points:,} of {lines:,} lines, of each stretch the one with the "
                "largest gradient; findings look at all."
            )
        columns = len(heat.edges) - 1
        if columns < lines:
            told.append(f"{of}the heat map shows {columns:,} of {lines:,} lines, evenly chosen.")
        for what, left in (
            ("heat map", heat.left_out),
            ("table", len(run.tensors) - len(places)),
        ):
            if left:
                told.append(
                    f"{of}the {what} leaves {counted(left, 'layer')} out: it shows those of "
                    "findings, and then the largest."
                )
    return "".join(f"<p>{escape(each)}</p>" for each in told)


def _script_data(
    runs: Sequence[Run], charts: Sequence[drawn.Curve], heats: Sequence[drawn.Heat]
) -> str:
    """Return the data as JSON that no tag ends and that no quote leaves."""
    data = {
        "runs": [run.name for run in runs],
        "curves": [{"chart": chart.specification, "lines": chart.lines} for chart in charts],
        "heats": [
            {
                "layers": heat.layers,
                "edges": heat.edges,
                "values": heat.values,
                "charts": {
                    field: drawn.heat_specification(field, len(heat.layers))
                    for field in heat.values
                },
                "kinds": {field: drawn.FIELDS[field][1] for field in heat.values},
            }
            for heat in heats
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
