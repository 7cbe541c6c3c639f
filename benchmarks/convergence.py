"""Where trainings end: beside torch, and small states beside float32 and other libraries' 8 bits.

SUBJECTS says by what is trained, COMPARISONS which subjects stand beside each other and on which
tasks. The trainings themselves are in ``trainings.py``; all of them take about half an hour on one
core. bitsandbytes and torchao are in no extra of adamas; without them they are left out, and the
pages say so.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from adamas.codecs import mean_bound
from adamas.palette import COLOURS
from benchmarks import pictures
from benchmarks.pictures import Theme, new_figure
from benchmarks.tables import (
    Row,
    Run,
    Stored,
    Table,
    figures,
    machine_line,
    machine_note,
    markdown,
    why_not,
)

#: What is trained, and what that needs besides torch.
TASKS = {"digits": ("sklearn",), "letters": (), "words": ()}
CONTINUATION = "checkpoints from one library to the other"


# ── subjects ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Subject:
    """An optimizer, and the dtype of the parameters it steps."""

    package: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    #: Where it is run at all.
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def is_missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


def own(state: str) -> Subject:
    """Return adamas' AdamW with a form of state."""
    return Subject("adamas", {"state": state})


def own_half(rounding: str | None) -> Subject:
    """Return adamas' AdamW with 8bit state, of parameters in bfloat16."""
    options = {"state": "8bit", "rounding": rounding, "statistics": True}
    return Subject("adamas", options, "bfloat16")


SUBJECTS = {
    "torch float32": Subject("torch"),
    "adamas float32": own("float32"),
    "adamas bfloat16": own("bfloat16"),
    "adamas compact": own("compact"),
    "adamas 8bit": own("8bit"),
    # Of every tensor, as adamas' are, and of the large ones alone, as these packages choose.
    "bitsandbytes 8-bit": Subject("bitsandbytes", {"min_8bit_size": 0}),
    "bitsandbytes 8-bit, large tensors": Subject("bitsandbytes", tasks=("digits",)),
    "torchao 8-bit": Subject("torchao", {"every_tensor": True}),
    "torchao 8-bit, large tensors": Subject("torchao", tasks=("digits",)),
    "bfloat16 parameters, default": own_half(None),
    "bfloat16 parameters, nearest": own_half("nearest"),
    "bfloat16 parameters, stochastic": own_half("stochastic"),
    "bfloat16 parameters, remainder": own_half("remainder"),
    "bfloat16 parameters, remainder8": own_half("remainder8"),
}


@dataclass(frozen=True)
class Comparison:
    """Subjects beside each other; the first is the measure for the others."""

    subjects: tuple[str, ...]
    tasks: tuple[str, ...]


_FLOAT32 = "adamas float32"
#: By the name of the markers between which the table stands.
COMPARISONS = {
    "optimizers": Comparison(("torch float32", _FLOAT32), ("digits", "letters")),
    "states": Comparison(
        tuple(
            name
            for name, subject in SUBJECTS.items()
            if subject.dtype == "float32" and name != "torch float32"
        ),
        ("digits", "letters", "words"),
    ),
    "parameters": Comparison(
        (_FLOAT32, *(name for name, each in SUBJECTS.items() if each.dtype == "bfloat16")),
        ("digits", "letters"),
    ),
}


def subjects_of(task: str) -> list[str]:
    """Return the subjects to run on a task, with those whose package is missing."""
    wanted = {name for each in COMPARISONS.values() if task in each.tasks for name in each.subjects}
    return [name for name, each in SUBJECTS.items() if name in wanted and task in each.tasks]


# ── tables ─────────────────────────────────────────────────────────────────────────────────────


class Summary(NamedTuple):
    """What the runs of one subject on one task come to."""

    subject: str
    #: Of the final losses.
    mean: float
    #: Standard deviation of the final losses over the seeds.
    spread: float
    #: Mean difference to the final losses of the first subject with the same seeds.
    difference: float
    #: Standard error of that mean.
    error: float
    #: Of any element in any step of any seed, in learning rates.
    largest_update: float


def final(run: dict[str, Any]) -> tuple[float, float]:
    """Return the last loss of a run and its largest update."""
    return list(run["losses"].values())[-1], run["largest_update"]


def summary(runs: dict[str, list[dict[str, Any]]], subjects: Iterable[str]) -> list[Summary]:
    """Return what the runs of each of the subjects come to, those left out that were not run."""
    ends = {name: [final(each)[0] for each in runs[name]] for name in subjects if name in runs}
    base = next(iter(ends.values()))
    found = []
    for name, losses in ends.items():
        differences = [a - b for a, b in zip(losses, base, strict=True)]
        updates = [final(each)[1] for each in runs[name]]
        found.append(
            Summary(
                name,
                statistics.mean(losses),
                statistics.stdev(losses),
                statistics.mean(differences),
                statistics.stdev(differences) / math.sqrt(len(differences)),
                float(np.max(updates)),  # NaN if any is
            )
        )
    return found


def table(stored: Stored, comparison: Comparison) -> str:
    """Return a comparison as Markdown, without the tasks that were not run."""
    head = ("task", "optimizer", "final loss", "spread", "difference to the first row")
    lines: list[tuple[str, ...]] = []
    for key in comparison.tasks:
        task = stored["tasks"].get(key)
        for i, each in enumerate(summary(task["runs"], comparison.subjects) if task else ()):
            title = "" if i else f"{task['title']}, {task['seeds']} seeds"
            difference = f"{each.difference:+.4f} ± {each.error:.4f}" if i else ""
            numbers = f"{each.mean:.4f}", f"{each.spread:.4f}", difference
            lines.append((title, each.subject, *numbers, shown(each.largest_update)))
    made = markdown((*head, "largest update"), lines, words=2)
    absent = {SUBJECTS[name].package for name in comparison.subjects} & {*stored["missing"]}
    if absent:
        made += f"\nNot installed, and so not measured: {', '.join(sorted(absent))}.\n"
    return made


def shown(number: float) -> str:
    """Return a number of any size, short."""
    return f"{number:.2f}" if number < 100 else f"{number:,.0f}"


def tables(stored: Stored) -> dict[str, str]:
    """Return all that stands between markers, by their name."""
    found = {name: table(stored, each) for name, each in COMPARISONS.items()}
    head = ("200 steps, then 200 more", "distance to torch's own, in learning rates")
    distances = stored.get("continuation", {})
    found["continuation"] = markdown(head, ((k, f"{v:.2g}") for k, v in distances.items()))
    found["machine"] = machine_line(stored) + "\n"
    return found


@dataclass(frozen=True)
class Convergence(Table):
    """Rows that make something to be run, which is given who hears how far it is."""

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        absent = missing()
        if absent:
            run.tell(f"Without these packages, which pip installs: {', '.join(absent)}")
        found: Stored = {"missing": absent, "tasks": {}}
        made = figures(rows, run, lambda row: {"found": row.make(run.quick)(run.tell)})
        for each in made:
            if "found" in each and each["work"] == CONTINUATION:
                found["continuation"] = each["found"]
            elif "found" in each:
                found["tasks"][each["work"]] = each["found"]
        found["figures"] = [each for each in made if "found" not in each]
        return json.loads(json.dumps(found))  # as it is read again

    def markdown(self, stored: Stored) -> str:
        *shown, _ = tables(stored).values()
        without = [f"{each['work']}: {why_not(each)}\n" for each in stored.get("figures", ())]
        return "\n".join([*shown, *without, machine_note(stored)])

    def passages(self, stored: Stored) -> dict[str, str]:
        return tables(stored)

    def draw(self, stored: Stored) -> None:
        if stored["tasks"].keys() != TASKS.keys():
            return
        pictures.draw("convergence", functools.partial(curves, stored))
        pictures.draw("small-states", functools.partial(differences, stored))


def rows() -> tuple[Row, ...]:
    """Return a row for each task, and one for checkpoints from one library to the other."""
    tasks = (
        Row(key, "", None, functools.partial(_trained, key), ("torch", *needs))
        for key, needs in TASKS.items()
    )
    return (*tasks, Row(CONTINUATION, "", None, _continued, ("torch", *TASKS["digits"])))


def _trained(key: str, quick: bool) -> Callable[[Callable[[str], object]], Stored]:
    from benchmarks.trainings import trained

    names = [name for name in subjects_of(key) if not SUBJECTS[name].is_missing]
    return functools.partial(trained, key, names, quick)


def _continued(quick: bool) -> Callable[[Callable[[str], object]], Stored]:
    from benchmarks.trainings import continuation

    del quick  # it takes a second
    return continuation


def missing() -> list[str]:
    """Return the packages that subjects need and that are not installed."""
    return sorted({each.package for each in SUBJECTS.values() if each.is_missing})


# ── pictures ───────────────────────────────────────────────────────────────────────────────────


def curves(stored: Stored, _: Theme) -> Any:
    """Return mean curves, each with the band between its smallest and largest seed."""
    from matplotlib.ticker import LogFormatter

    comparison = COMPARISONS["optimizers"]
    figure = new_figure(2.3 * len(comparison.tasks))
    panels = figure.subplots(len(comparison.tasks), squeeze=False)[:, 0]
    for axes, key in zip(panels, comparison.tasks, strict=True):
        task = stored["tasks"][key]
        for i, name in enumerate(comparison.subjects):
            runs = [each["losses"] for each in task["runs"][name]]
            steps = [int(step) for step in runs[0]]
            rows = list(zip(*(run.values() for run in runs), strict=True))
            # Where one curve covers the other, both are seen.
            style = {"ls": (0, (3, 3)), "lw": 1.5} if i else {"lw": 3, "alpha": 0.6}
            means, colour = list(map(statistics.mean, rows)), _colour(name)
            axes.plot(steps, means, color=colour, label=name, **style)
            axes.fill_between(
                steps, list(map(min, rows)), list(map(max, rows)), alpha=0.15, color=colour, lw=0
            )
        axes.set(title=task["title"], xlabel="step", ylabel="held-out loss", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.grid(visible=True, axis="y", which="minor")
        axes.legend()
    return figure


def differences(stored: Stored, theme: Theme) -> Any:
    """Return how far each small state ends from float32, seed by seed, and the largest updates."""
    comparison = COMPARISONS["states"]
    tasks = {key: stored["tasks"][key] for key in comparison.tasks}
    found = {key: summary(task["runs"], comparison.subjects) for key, task in tasks.items()}
    were_run = {each.subject for rows in found.values() for each in rows[1:]}
    all_names = [name for name in comparison.subjects[1:] if name in were_run]
    heights = [*map(len, found.values()), len(all_names) + 1]
    figure = new_figure(0.3 * sum(heights) + 0.62 * len(heights))
    *panels, last = figure.subplots(len(heights), height_ratios=heights)
    for axes, marker, key in zip(panels, "os^", tasks, strict=True):
        base, *others = found[key]
        axes.axvspan(-base.spread, base.spread, color=theme.faint, alpha=0.5, lw=0)
        axes.axvline(0, color=theme.ink, lw=0.8)
        for place, each in enumerate(others):
            colour = _colour(each.subject)
            pairs = zip(
                tasks[key]["runs"][each.subject], tasks[key]["runs"][base.subject], strict=True
            )
            seeds = [final(a)[0] - final(b)[0] for a, b in pairs]
            axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.45, mew=0, ms=4)
            axes.errorbar(each.difference, place, xerr=each.error, fmt="|", color=colour, ms=12)
            row = all_names.index(each.subject)
            last.plot(each.largest_update, row, marker, color=colour, alpha=0.8, mew=0, ms=5)
        _name_rows(axes, [each.subject for each in others])
        axes.set(title=tasks[key]["title"], xlabel="final loss − that of float32")
        axes.locator_params(axis="x", nbins=4)
        last.plot([], [], marker, color=theme.ink, mew=0, ms=5, label=tasks[key]["title"])
    bound = mean_bound(0.9, 0.999)
    last.axvline(bound, color=theme.ink, lw=0.8, ls="--", label=f"bound of adamas: {bound:.2f}")
    _name_rows(last, all_names)
    last.set(title="largest update", xlabel="learning rates", xscale="log")
    last.legend(loc="upper center", bbox_to_anchor=(0.2, -0.3), ncols=2, columnspacing=1)
    return figure


def _name_rows(axes: Any, names: list[str]) -> None:
    """Name the rows of a panel, the first at the top; long names take two lines."""
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _colour(subject: str) -> str:
    """Return adamas' colour, or that of all others: two that any eyes can tell apart."""
    return COLOURS["Adam"] if "adamas" in subject else "#E69F00"
