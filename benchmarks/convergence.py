"""Train the same models from the same seeds with several optimizers; compare where they end.

    python benchmarks/convergence.py            all of it; writes results, tables and pictures
    python benchmarks/convergence.py --quick    a few steps, writes nothing

A run is one task, one seed, one optimizer: the seed decides weights, batches and the random bits
that small states are rounded with, so runs of one seed differ in the optimizer alone. The loss is
that of held-out data, at checkpoints on the way. TASKS (``tasks.py``) says what is trained,
SUBJECTS by what, COMPARISONS which subjects stand beside each other and on which tasks.

The largest update is the largest change of any element in any step, in learning rates: of what the
step has changed, the decay's part (lr · weight_decay · p, with p from before the step) is taken
away, and the rest is divided by lr. A parameter in bfloat16 moves by its own spacing; there it is
adamas' own statistic, taken before the parameter is rounded.

bitsandbytes and torchao are in no extra of adamas; without them their rows are left out:

    pip install torchao bitsandbytes            beside an installed torch
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tasks import TASKS, Task, digits
from torch import Tensor, nn

import adamas.torch
from adamas.bench import machine
from adamas.codecs import mean_bound

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "convergence.json"
PAGE = ROOT / "docs" / "convergence.md"
SMALL_PAGE = ROOT / "docs" / "guides" / "small-states.md"
PICTURE = ROOT / "docs" / "pictures" / "convergence.svg"
SMALL_PICTURE = ROOT / "docs" / "pictures" / "small-states.svg"
POINTS = 15  # of a curve

Make = Callable[..., torch.optim.Optimizer]


# ── subjects ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Subject:
    """An optimizer, and the dtype of the parameters it steps."""

    make: Make
    options: dict[str, Any] = field(default_factory=dict)
    #: That has to be installed besides torch.
    package: str | None = None
    dtype: torch.dtype = torch.float32
    #: Where it is run at all.
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def is_missing(self) -> bool:
        return self.package is not None and importlib.util.find_spec(self.package) is None


def own(state: str) -> Subject:
    """Return adamas' AdamW with a form of state."""
    return Subject(adamas.torch.AdamW, {"state": state})


def own_half(rounding: str | None) -> Subject:
    """Return adamas' AdamW with 8bit state, of parameters in bfloat16."""
    options = {"state": "8bit", "rounding": rounding, "statistics": True}
    return Subject(adamas.torch.AdamW, options, dtype=torch.bfloat16)


def bitsandbytes(params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, **options)


def torchao(
    params: list[nn.Parameter], every_tensor: bool = False, **options: Any
) -> torch.optim.Optimizer:
    """Return torchao's AdamW8bit, run without a compiler.

    Compiled it rounds differently, no more. It leaves the state of tensors in float32 that have
    fewer than 4,096 elements or no multiple of 256; with ``every_tensor`` of none: the block is the
    largest divisor up to 256 of a tensor's size.
    """
    from torchao.optim import AdamW8bit

    class EveryTensor(AdamW8bit):
        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            size = p.numel()
            block = max(n for n in range(1, self.block_size + 1) if size % n == 0)
            return self._subclass_zeros(p, signed, block)

    torch.compiler.set_stance("force_eager")
    return (EveryTensor if every_tensor else AdamW8bit)(params, **options)


SUBJECTS = {
    "torch float32": Subject(torch.optim.AdamW),
    "adamas float32": own("float32"),
    "adamas bfloat16": own("bfloat16"),
    "adamas compact": own("compact"),
    "adamas 8bit": own("8bit"),
    # Of every tensor, as adamas' are, and of the large ones alone, as these packages choose.
    "bitsandbytes 8-bit": Subject(bitsandbytes, {"min_8bit_size": 0}, package="bitsandbytes"),
    "bitsandbytes 8-bit, large tensors": Subject(
        bitsandbytes, package="bitsandbytes", tasks=("digits",)
    ),
    "torchao 8-bit": Subject(torchao, {"every_tensor": True}, package="torchao"),
    "torchao 8-bit, large tensors": Subject(torchao, package="torchao", tasks=("digits",)),
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
            if subject.dtype == torch.float32 and name != "torch float32"
        ),
        ("digits", "letters", "words"),
    ),
    "parameters": Comparison(
        (_FLOAT32, *(name for name, each in SUBJECTS.items() if each.dtype == torch.bfloat16)),
        ("digits", "letters"),
    ),
}


def subjects_of(task: str) -> list[str]:
    """Return the subjects to run on a task, with those whose package is missing."""
    wanted = {name for each in COMPARISONS.values() if task in each.tasks for name in each.subjects}
    return [name for name, each in SUBJECTS.items() if name in wanted and task in each.tasks]


# ── runs ───────────────────────────────────────────────────────────────────────────────────────


def made(task: Task, subject: Subject, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a new model and its optimizer."""
    torch.manual_seed(seed)
    model = task.model().to(subject.dtype)
    options = {**task.options, **subject.options}
    if subject.make is adamas.torch.AdamW:
        options["seed"] = seed
    return model, subject.make(list(model.parameters()), **options)


def run(task: Task, subject: Subject, seed: int, steps: int) -> dict[str, Any]:
    """Return the held-out loss after some of the steps, and the largest update of all steps."""
    model, optimizer = made(task, subject, seed)
    generator = torch.Generator().manual_seed(seed)
    losses: dict[int, float] = {}
    largest = torch.tensor(0.0)
    every = max(1, steps // POINTS)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        task.loss(model, task.batch(generator)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        largest = torch.maximum(largest, update(task, optimizer, model, before))
        if step % every == 0 or step == steps:
            with torch.no_grad():
                losses[step] = round(task.loss(model, task.held_out).item(), 6)
    return {"losses": losses, "largest_update": round(largest.item(), 4)}


def update(
    task: Task, optimizer: torch.optim.Optimizer, model: nn.Module, before: list[Tensor]
) -> Tensor:
    """Return the largest update of the step just made, NaN where there is any."""
    if isinstance(optimizer, adamas.torch.Optimizer) and before[0].dtype == torch.bfloat16:
        taken = optimizer.statistics().items()
        each = [value for name, value in taken if name.endswith("/largest_update")]
        return torch.stack(each).max().float()
    lr, decay = task.options["lr"], task.options["weight_decay"]
    changes = zip(before, model.parameters(), strict=True)
    return torch.stack([((p - q.detach()) / lr - decay * p).abs().max() for p, q in changes]).max()


def continuation() -> dict[str, float]:
    """Return how far trainings end from torch's own that change to adamas half-way, or back.

    The largest difference of any parameter after 200 more steps on the digits, in learning rates.
    """
    task = digits()

    def ended(first: str, second: str) -> Tensor:
        torch.manual_seed(0)
        model = task.model()
        generator = torch.Generator().manual_seed(0)
        state = None
        for name in (first, second):
            subject = SUBJECTS[name]
            optimizer = subject.make(model.parameters(), **task.options, **subject.options)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(200):
                optimizer.zero_grad()
                task.loss(model, task.batch(generator)).backward()
                optimizer.step()
            state = optimizer.state_dict()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torchs, ours = "torch float32", _FLOAT32
    unbroken = ended(torchs, torchs)
    pairs = {
        "torch, then adamas": (torchs, ours),
        "adamas, then torch": (ours, torchs),
        "adamas throughout": (ours, ours),
    }
    return {
        name: (ended(*pair) - unbroken).abs().max().item() / task.options["lr"]
        for name, pair in pairs.items()
    }


def measured(quick: bool) -> dict[str, Any]:
    """Return all results, as they are stored."""
    stored: dict[str, Any] = {"machine": about(), "missing": missing(), "tasks": {}}
    for key, make in TASKS.items():
        task = make()
        seeds, steps = (2, 20) if quick else (task.seeds, task.steps)
        names = [name for name in subjects_of(key) if not SUBJECTS[name].is_missing]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for seed in range(seeds):
            for name in names:
                runs[name].append(run(task, SUBJECTS[name], seed, steps))
                print(key, seed, name, *final(runs[name][-1]), sep=" · ", flush=True)
        stored["tasks"][key] = {"title": task.title, "seeds": seeds, "steps": steps, "runs": runs}
    stored["continuation"] = continuation()
    return json.loads(json.dumps(stored))


def about() -> dict[str, str]:
    """Return what a reader must know of the machine and of the packages compared."""
    packages = sorted({each.package for each in SUBJECTS.values() if each.package})
    return machine() | {
        name: importlib.metadata.version(name) for name in packages if name not in missing()
    }


def missing() -> list[str]:
    """Return the packages that subjects need and that are not installed."""
    return sorted({str(each.package) for each in SUBJECTS.values() if each.is_missing})


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
        updates = torch.tensor([final(each)[1] for each in runs[name]], dtype=torch.float64)
        found.append(
            Summary(
                name,
                statistics.mean(losses),
                statistics.stdev(losses),
                statistics.mean(differences),
                statistics.stdev(differences) / math.sqrt(len(differences)),
                updates.max().item(),  # NaN if any is
            )
        )
    return found


def table(stored: dict[str, Any], comparison: Comparison) -> str:
    """Return a comparison as Markdown."""
    head = (
        "task",
        "optimizer",
        "final loss",
        "spread",
        "difference to the first",
        "update, at most",
    )
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|--:|--:|--:|"]
    for key in comparison.tasks:
        task = stored["tasks"][key]
        for i, each in enumerate(summary(task["runs"], comparison.subjects)):
            title = f"{task['title']}, {task['seeds']} seeds" if i == 0 else ""
            difference = f"{each.difference:+.4f} ± {each.error:.4f}" if i else ""
            lines.append(
                f"| {title} | {each.subject} | {each.mean:.4f} | {each.spread:.4f} "
                f"| {difference} | {shown(each.largest_update)} |"
            )
    absent = {SUBJECTS[name].package for name in comparison.subjects} & {*stored["missing"]}
    if absent:
        lines += ["", f"Not installed, and so not measured: {', '.join(sorted(absent))}."]
    return "\n".join(lines) + "\n"


def shown(number: float) -> str:
    """Return a number of any size, short."""
    return f"{number:.2f}" if number < 100 else f"{number:,.0f}"


def tables(stored: dict[str, Any]) -> dict[str, str]:
    """Return all that stands between markers, by their name."""
    found = {name: table(stored, each) for name, each in COMPARISONS.items()}
    lines = ["| 200 steps, then 200 more | distance to torch's own, in learning rates |"]
    lines += ["|---|--:|"]
    lines += [f"| {name} | {value:.2g} |" for name, value in stored["continuation"].items()]
    found["continuation"] = "\n".join(lines) + "\n"
    found["machine"] = " · ".join(f"{key} {value}" for key, value in stored["machine"].items())
    found["machine"] += "\n"
    return found


def with_tables(text: str, stored: dict[str, Any]) -> str:
    """Return the text of a page with each table between its markers."""
    for name, content in tables(stored).items():
        text = re.sub(
            rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)",
            lambda found, content=content: found[1] + content + found[2],
            text,
            flags=re.DOTALL,
        )
    return text


# ── pictures ───────────────────────────────────────────────────────────────────────────────────


def draw_curves(stored: dict[str, Any]) -> None:
    """Draw mean curves, each with the band between its smallest and largest seed."""
    comparison = COMPARISONS["optimizers"]
    figure = new_figure(5 * len(comparison.tasks), 3.6)
    panels = figure.subplots(1, len(comparison.tasks), squeeze=False)[0]
    for axes, key in zip(panels, comparison.tasks, strict=True):
        task = stored["tasks"][key]
        for i, name in enumerate(comparison.subjects):
            curves = [each["losses"] for each in task["runs"][name]]
            steps = [int(step) for step in curves[0]]
            rows = list(zip(*(curve.values() for curve in curves), strict=True))
            axes.plot(
                steps, list(map(statistics.mean, rows)), "--" if i else "-", label=name, lw=1.5
            )
            axes.fill_between(steps, list(map(min, rows)), list(map(max, rows)), alpha=0.15)
        axes.set(title=task["title"], xlabel="step", ylabel="held-out loss", yscale="log")
        axes.legend(fontsize=8)
    figure.savefig(PICTURE, metadata={"Date": None})


def draw_differences(stored: dict[str, Any]) -> None:
    """Draw how far each small state ends from float32, seed by seed, and the largest updates."""
    comparison = COMPARISONS["states"]
    was_run = {name for task in stored["tasks"].values() for name in task["runs"]}
    names = [name for name in comparison.subjects[1:] if name in was_run]
    places = {name: -i for i, name in enumerate(names)}
    figure = new_figure(3 * len(comparison.tasks) + 5, 0.36 * len(names) + 1.2)
    *panels, last = figure.subplots(1, len(comparison.tasks) + 1, sharey=True)
    for axes, marker, key in zip(panels, "os^", comparison.tasks, strict=True):
        task = stored["tasks"][key]
        base, *others = summary(task["runs"], comparison.subjects)
        axes.axvspan(-base.spread, base.spread, color="0.88", lw=0)
        axes.axvline(0, color="0.5", lw=0.8)
        for each in others:
            place, colour = places[each.subject], "C0" if "adamas" in each.subject else "C1"
            pairs = zip(task["runs"][each.subject], task["runs"][base.subject], strict=True)
            seeds = [final(a)[0] - final(b)[0] for a, b in pairs]
            axes.plot(seeds, [place] * len(seeds), ".", color=colour, alpha=0.35, mew=0)
            axes.errorbar(each.difference, place, xerr=each.error, fmt="|", color=colour, ms=11)
            last.plot(each.largest_update, place, marker, color=colour, alpha=0.8, mew=0)
        axes.set(xlabel="final loss − that of float32")
        axes.set_title(task["title"], fontsize=10)
        axes.locator_params(axis="x", nbins=4)
        last.plot([], [], marker, color="0.4", mew=0, label=task["title"])
    bound = mean_bound(0.9, 0.999)
    last.axvline(bound, color="0.5", lw=0.8, ls="--", label=f"bound, {bound:.2f}")
    last.set(xlabel="learning rates", xscale="log")
    last.set_title("largest update", fontsize=10)
    last.legend(fontsize=7)
    panels[0].set_yticks(list(places.values()), names)
    figure.savefig(SMALL_PICTURE, metadata={"Date": None})


def new_figure(width: float, height: float) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "adamas"
    return Figure(figsize=(width, height), layout="constrained")


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    stored = measured(quick)
    print(*tables(stored).values(), sep="\n")
    if absent := missing():
        print(
            f"Not installed, and so not measured: {', '.join(absent)}. "
            f"To install them: pip install {' '.join(absent)}"
        )
    if not quick:
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
        for page in (PAGE, SMALL_PAGE):
            page.write_text(with_tables(page.read_text("utf-8"), stored), "utf-8")
        draw_curves(stored)
        draw_differences(stored)


if __name__ == "__main__":
    main()
