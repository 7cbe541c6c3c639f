"""What stands out in a run: each finding with its number, its threshold and its source.

A function looks for one thing and returns what it found. Medians are over the second half of the
record's lines, so that the beginning of a run, where much is unusual, does not decide. Thresholds
are constants here, and docs/guides/watching.md tells each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.report.reading import Numbers, Run
from adamas.report.words import counted, percent, short, was

__all__ = ["FEWEST", "FINDERS", "Finding", "Layer", "Source", "findings", "typical"]

SITE = "https://adamas-optimizer.github.io/adamas/"

#: Fewer lines than that tell nothing of what is usual in a run.
FEWEST = 4

#: Fraction of the elements of a tensor that keep their value, from which on it stands still.
STILL = 0.5
#: Smaller updates than that, relative to the value, never change a bfloat16: half of the distance
#: to the next number is 2^-9 to 2^-8 of it.
BFLOAT16_MOVES = 2.0**-8
#: Fraction of the elements of a tensor with √v̂ < ε, from which on ε decides its steps.
BELOW_EPS = 0.5
#: How many times as large as those of others updates stand out, and how large they are at least,
#: relative to the parameter. Fewer others than that tell nothing.
UNEVEN = 10.0
UNEVEN_FROM = 0.01
OTHERS = 3
#: Fraction of the steps that are clipped, from which on it is nearly all of them.
CLIPPED = 0.9
#: 2/(1 - β2) steps of warm-up, which end where the rate is that part of its largest.
WARMUP = 2.0
WARM = 0.99
#: Fraction of the steps left out, from which on it is a problem.
OFTEN = 0.01
#: How many times as large a norm is after twice the steps, from which on it grows without end:
#: √2 where it grows as √t, 2 where it grows steadily.
GROWS = 1.6


class Source(NamedTuple):
    """Where a threshold is from."""

    title: str
    url: str


class Layer(NamedTuple):
    """A tensor that a finding is about, with its number."""

    name: str
    number: str


@dataclass(frozen=True)
class Finding:
    """One thing that stands out."""

    #: Name of the function that found it.
    kind: str
    level: Literal["problem", "hint"]
    #: What it is, in a few words.
    title: str
    #: What was seen, with its number.
    sentence: str
    #: From which number on it is told.
    threshold: str
    source: Source
    #: What to try.
    advice: str
    #: What it is about, the worst first; none where it is about the whole run.
    layers: tuple[Layer, ...] = ()

    @property
    def page(self) -> str:
        """The section of adamas' docs that tells of it."""
        return f"{SITE}guides/watching/#{self.kind.replace('_', '-')}"


def findings(run: Run) -> tuple[Finding, ...]:
    """Return what stands out in a run: problems first."""
    found = [finding for find in FINDERS if (finding := find(run)) is not None]
    return tuple(sorted(found, key=lambda each: each.level != "problem"))


def typical(run: Run, numbers: Numbers) -> Numbers:
    """Return the median of each column over the second half of the lines; NaN where it has none."""
    late = numbers[len(run.steps) // 2 :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a number
        return np.nanmedian(late, axis=0) if len(late) else np.full(numbers.shape[1:], np.nan)


# ── tensors ────────────────────────────────────────────────────────────────────────────────────


def stand_still(run: Run) -> Finding | None:
    """Weights in bfloat16 that most updates do not move, since rounding to nearest loses them.

    Of a tensor half of the elements or more keep their value, those aside that have no gradient
    (v is below ε), and its update is smaller, relative to the parameter, than what can move a
    bfloat16. Threshold: half of the elements. Source: Zamirai et al. 2020, and
    docs/guides/small-states.md.
    """
    still, below, ratio = (
        typical(run, each) for each in (run.of["unmoved"], run.of["below_eps"], run.ratio)
    )
    lost = still - np.nan_to_num(below)

    nearest = [
        tensor.dtype.endswith("bfloat16")
        and (tensor.group is None or tensor.group.rounding in (None, "nearest"))
        for tensor in run.tensors
    ]
    is_still = np.array(nearest, bool) & (lost >= STILL) & (ratio < BFLOAT16_MOVES)
    layers = _layers(run, still, is_still, lambda x: f"{percent(x)} unmoved")
    if not _is_told(run, layers):
        return None
    worst = _place(run, layers[0])
    verb = "moves" if len(layers) == 1 else "move"
    return Finding(
        kind="stand_still",
        level="problem",
        title="bfloat16 weights stand still",
        sentence=(
            f"{counted(len(layers), 'tensor')} in bfloat16 hardly {verb}: "
            f"in {layers[0].name} a step leaves {percent(still[worst])} of the elements where they "
            f"are, since its update is {percent(ratio[worst])} of the parameter."
        ),
        threshold=(
            f"{percent(STILL)} unmoved, at updates below {percent(BFLOAT16_MOVES)} (2⁻⁸) of the "
            "parameter, which rounding to nearest loses"
        ),
        source=Source("Zamirai et al. 2020", "https://arxiv.org/abs/2010.06192"),
        advice=(
            'rounding="remainder" keeps what rounding takes away, in 2 bytes an element, '
            '"remainder8" in 1; rounding="stochastic" costs none.'
        ),
        layers=layers,
    )


def epsilon_above_root(run: Run) -> Finding | None:
    """Tensors of whose elements most have √v̂ < ε, so that ε decides how far they go.

    Those are left aside whose elements below ε are the ones without any gradient, as the rows of an
    embedding that no batch has: they keep their value while others go on as usual. Threshold: half
    of the elements. Source: Wortsman et al. 2023, and docs/names.md.
    """
    below, still, largest = (
        typical(run, run.of[field]) for field in ("below_eps", "unmoved", "largest_update")
    )
    unused = (below - still < BELOW_EPS) & (largest >= BELOW_EPS)
    is_below = (below >= BELOW_EPS) & ~unused & ~_dead(run)
    layers = _layers(run, below, is_below, lambda x: f"{percent(x)} below ε")
    if not _is_told(run, layers):
        return None
    worst = _place(run, layers[0])
    group = run.tensors[worst].group
    eps = None if group is None else group.eps
    of = "" if eps is None else f" of {short(eps)}"
    return Finding(
        kind="epsilon_above_root",
        level="problem",
        title="ε is above √v̂",
        sentence=(
            f"In {counted(len(layers), 'tensor')} ε{of}, not the gradient, decides how far most "
            f"elements go: in {layers[0].name} √v̂ is below it for {percent(below[worst])} of them."
        ),
        threshold=f"{percent(BELOW_EPS)} of the elements of a tensor",
        source=Source("Wortsman et al. 2023", "https://arxiv.org/abs/2309.14322"),
        advice=(
            "A smaller eps, such as 1e-15, or a larger scale of the loss: with ε above √v̂ Adam is "
            "momentum with a learning rate of lr/ε, and small gradients make small steps."
        ),
        layers=layers,
    )


def uneven_layers(run: Run) -> Finding | None:
    """Layers whose updates, relative to the parameter, are many times those of the others.

    Matrices are compared with matrices and vectors with vectors, since biases that begin at 0 move
    far relative to their norm. Threshold: 10 times the median of the others, of at least three, and
    an update of at least 1 % of the parameter. Source: You et al. 2017, for what
    follows from uneven ratios; the factor is of adamas.
    """
    ratio = typical(run, run.ratio)
    is_matrix = _are_matrices(run)
    others = np.full(len(ratio), np.nan)
    for place in range(len(ratio)):
        alike = ratio[(is_matrix == is_matrix[place]) & (np.arange(len(ratio)) != place)]
        alike = alike[np.isfinite(alike) & (alike > 0)]  # what stands still is no measure
        if len(alike) >= OTHERS:
            others[place] = np.median(alike)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = ratio / others

    is_uneven = (times >= UNEVEN) & (ratio >= UNEVEN_FROM)
    layers = _layers(run, times, is_uneven, lambda x: f"{x:,.0f} times")
    if not _is_told(run, layers):
        return None
    worst = _place(run, layers[0])
    return Finding(
        kind="uneven_layers",
        level="problem",
        title="Updates of a layer are far larger than the others'",
        sentence=(
            f"{layers[0].name} changes by {percent(ratio[worst])} of itself in a step, "
            f"{times[worst]:,.0f} times as much as the median of the others of its kind "
            f"({percent(others[worst])})."
        ),
        threshold=(
            f"{UNEVEN:g} times the median of the other matrices (vectors), and "
            f"{percent(UNEVEN_FROM)} of the parameter"
        ),
        source=Source("You et al. 2017", "https://arxiv.org/abs/1708.03888"),
        advice=(
            "A group with a smaller learning rate for it, or a larger initial scale: a tensor that "
            "begins near 0 moves far relative to its norm."
        ),
        layers=layers,
    )


def dead_tensors(run: Run) -> Finding | None:
    """Tensors whose gradient is 0 at every line of the second half.

    Threshold: exactly 0, at each line. Source: Lu et al. 2020 for units that die, and
    docs/guides/logging.md.
    """
    dead = _dead(run)
    layers = _layers(run, dead, dead, lambda _: "gradient 0")
    if not _is_told(run, layers):
        return None
    late = run.steps[len(run.steps) // 2 :]
    return Finding(
        kind="dead_tensors",
        level="problem",
        title="Tensors have no gradient",
        sentence=(
            f"The gradient of {counted(len(layers), 'tensor')} is 0 at all of the last "
            f"{counted(len(late), 'line')} (steps {late[0]:,} to {late[-1]:,})."
        ),
        threshold="exactly 0 at every line of the second half of the record",
        source=Source("Lu et al. 2020", "https://arxiv.org/abs/1903.06733"),
        advice=(
            "See whether the loss depends on it. Units whose ReLU is 0 for every input come back "
            "by a smaller learning rate, another start, or a leaky activation; what is to stay "
            "as it is belongs out of the optimizer."
        ),
        layers=layers,
    )


def grow_without_end(run: Run) -> Finding | None:
    """Matrices whose norm grows faster than √t, which is how norms grow by themselves.

    Compared are the last line and the one at half of its step, where there is one. Threshold: 1.6
    times (√t makes 1.41, steady growth 2). Source: Merrill et al. 2021.
    """
    norms = run.of["parameter_norm"]
    end = _last_with(norms)
    half = int(np.argmin(np.abs(run.steps - run.steps[end] / 2)))
    # A record that begins late has no line there, and one of no step has none at all.
    if not 0.45 * run.steps[end] <= run.steps[half] <= 0.55 * run.steps[end] or not run.steps[end]:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        times = norms[end] / norms[half]

    grows = _are_matrices(run) & np.isfinite(times) & (times >= GROWS)
    layers = _layers(run, times, grows, lambda x: f"× {x:.2f}")
    if not _is_told(run, layers):
        return None
    worst = _place(run, layers[0])
    return Finding(
        kind="grow_without_end",
        level="hint",
        title="Weights grow without end",
        sentence=(
            f"From step {run.steps[half]:,} to step {run.steps[end]:,} the norm of "
            f"{layers[0].name} has grown from {short(norms[half, worst])} to "
            f"{short(norms[end, worst])}: {times[worst]:.2f} times as large."
        ),
        threshold=(
            f"{GROWS:g} times after twice the steps; growth as √t makes 1.41, steady growth 2"
        ),
        source=Source("Merrill et al. 2021", "https://arxiv.org/abs/2010.09697"),
        advice="Weight decay (AdamW's weight_decay), a learning rate that falls, or a smaller one.",
        layers=layers,
    )


# ── the whole run ──────────────────────────────────────────────────────────────────────────────


def clipped_always(run: Run) -> Finding | None:
    """Clipping at almost every step of the second half.

    Where the record counts clipped steps between lines the count is taken, else the lines whose
    factor is below 1. Threshold: 90 % of the steps. Source: Pascanu et al. 2013, section 3.2, who
    take a threshold from half to ten times the average norm.
    """
    clip_norm = run.phase.get("clip_norm")
    late = slice(len(run.steps) // 2, None)
    if not isinstance(clip_norm, (int, float)) or len(run.steps) < FEWEST:
        return None
    steps = np.diff(run.steps, prepend=0)[late]
    counted = ~np.isnan(run.clipped[late])
    seen = ~np.isnan(run.clip_factor[late])
    if counted.any() and steps[counted].sum() > 0:
        share = float(run.clipped[late][counted].sum() / steps[counted].sum())
    elif seen.any():
        share = float(np.mean(run.clip_factor[late][seen] < 1))
    else:
        return None
    share = min(share, 1.0)
    if share < CLIPPED:
        return None
    norm = float(np.nanmedian(run.gradient_norm[late]))
    return Finding(
        kind="clipped_always",
        level="hint",
        title="Nearly every step is clipped",
        sentence=(
            f"{percent(share)} of the steps since step {run.steps[late][0]:,} were clipped: the "
            f"gradient's norm is {short(norm)} in the median, clip_norm {short(clip_norm)}."
        ),
        threshold=f"{percent(CLIPPED)} of the steps",
        source=Source("Pascanu et al. 2013", "https://arxiv.org/abs/1211.5063"),
        advice=(
            f"A clip_norm between half the usual norm and ten times it ({short(norm / 2)} to "
            f"{short(norm * 10)} here). Where every step is clipped, all gradients have the same "
            "length, and clipping tells large ones from usual ones no more."
        ),
    )


def old_square(run: Run) -> Finding | None:
    """A second moment that averages over more steps than were made.

    Threshold: fewer steps than 1/(1 - β2). Source: Kingma & Ba 2015, section 3; Brown et al. 2020
    for β2 = 0.95 in long trainings of language models.
    """
    steps = int(run.steps[-1])
    over = [group.square_steps for group in run.groups if group.square_steps is not None]
    if not over or not 0 < steps < round(max(over)):
        return None
    longest = max(over)
    beta = 1 - 1 / longest
    return Finding(
        kind="old_square",
        level="hint",
        title="v is older than the run",
        sentence=(
            f"β2 = {beta:.6g} averages squared gradients over {longest:,.0f} steps, but "
            f"{steps:,} {'were' if steps > 1 else 'was'} made, so v still has the first gradients."
        ),
        threshold=f"1/(1 − β2) = {longest:,.0f} steps",
        source=Source("Kingma & Ba 2015, section 3", "https://arxiv.org/abs/1412.6980"),
        advice=(
            "If the run is to end about here, a smaller β2: 0.99 averages over 100 steps, 0.95, "
            "which trainings of language models take (Brown et al. 2020), over 20. If it has only "
            "begun, nothing."
        ),
    )


def short_warmup(run: Run) -> Finding | None:
    """A learning rate that is at its largest sooner than 2/(1 - β2) steps after the start.

    The warm-up ends at the first line whose rate is 99 % of the largest; one that goes on still, or
    that ended before the record's second line came too late to tell, is not judged. Threshold:
    2/(1 - β2) steps, for methods that have both moments. Source: Ma & Yarats 2021.
    """
    worst: tuple[float, int, float, float] | None = None
    for place, group in enumerate(run.groups):
        needed = group.square_steps
        rates = run.lr[:, place] if place < run.lr.shape[1] else np.array([np.nan])
        rates = np.where(run.steps > 0, rates, np.nan)  # of steps that were made
        if group.betas[0] is None or needed is None or not np.nanmax(rates, initial=0) > 0:
            continue
        needed = WARMUP * needed
        warm = int(np.argmax(rates >= WARM * np.nanmax(rates)))
        # At the last line the rate may rise still; before the first one nothing is known.
        if warm == len(rates) - 1 or run.steps[warm] >= needed:
            continue
        if worst is None or needed / run.steps[warm] > worst[0]:
            worst = needed / run.steps[warm], int(run.steps[warm]), needed, float(rates[warm])
    if worst is None:
        return None
    _, step, needed, rate = worst
    is_first = step == run.steps[run.steps > 0][0]
    seen = "is at its largest from the first line on" if is_first else "has risen to its largest"
    return Finding(
        kind="short_warmup",
        level="hint",
        title="The warm-up is short for β2",
        sentence=(
            f"The learning rate {seen} ({short(rate)} at step {step:,}), but v needs about "
            f"{ceil(needed - 1e-6):,} steps to settle at β2 = {1 - WARMUP / needed:.6g}."
        ),
        threshold=f"2/(1 − β2) = {ceil(needed - 1e-6):,} steps of warm-up",
        source=Source("Ma & Yarats 2021", "https://arxiv.org/abs/1910.04209"),
        advice=(
            f"Let the learning rate rise linearly over {ceil(needed - 1e-6):,} steps, or take a "
            "smaller β2. Without a warm-up the first updates are the largest of the run."
        ),
    )


def nonfinite_gradients(run: Run) -> Finding | None:
    """Gradients with infinite or NaN elements, at recorded steps or in those that were left out.

    Threshold: any; a problem from one step in a hundred on. Source: Micikevicius et al. 2018 for
    overflow in half precision, and docs/guides/logging.md.
    """
    counts = np.nansum(run.of["nonfinite"], axis=0)
    skipped = int(np.nanmax(run.skipped.get("nonfinite", np.zeros(1)), initial=0))
    lines = int((np.nansum(run.of["nonfinite"], axis=1) > 0).sum())
    if not skipped and not lines:
        return None
    steps = int(run.steps[-1]) + run.left_out
    layers = _layers(run, counts, counts > 0, lambda x: counted(int(x), "element"))
    told = []
    if skipped:
        told.append(
            f"{counted(skipped, 'step')} of {steps:,} ({percent(skipped / steps)}) "
            f"{was(skipped)} left out, since the gradient was infinite or NaN"
        )
    if lines:
        told.append(
            f"{lines:,} of {len(run.steps):,} lines {'has' if lines == 1 else 'have'} gradients "
            f"that are infinite or NaN, most in {layers[0].name}"
        )
    is_problem = bool(lines) or skipped >= OFTEN * steps
    return Finding(
        kind="nonfinite_gradients",
        level="problem" if is_problem else "hint",
        title="Gradients are infinite or NaN",
        sentence="; ".join(told) + ".",
        threshold=f"any; a problem in {percent(OFTEN)} of the steps",
        source=Source("Micikevicius et al. 2018", "https://arxiv.org/abs/1710.03740"),
        advice=(
            'on_nonfinite="skip" leaves such steps out, "raise" names the tensors. A few '
            "overflows of float16 at the start of a run are how the loss scale is found; later "
            "ones come from data, a learning rate that is too large, or an operation outside of "
            "its domain."
        ),
        layers=layers,
    )


def spikes(run: Run) -> Finding | None:
    """Steps that `skip_above` left out.

    Threshold: any; a problem from one step in a hundred on. Source: Chowdhery et al. 2022, section
    5.1, for spikes that come from single batches.
    """
    skipped = int(np.nanmax(run.skipped.get("spikes", np.zeros(1)), initial=0))
    if not skipped:
        return None
    steps = int(run.steps[-1]) + run.left_out
    above = run.phase.get("skip_above")
    limit = f" ({above:g})" if isinstance(above, (int, float)) else ""
    return Finding(
        kind="spikes",
        level="problem" if skipped >= OFTEN * steps else "hint",
        title="Steps were left out as spikes",
        sentence=(
            f"{counted(skipped, 'step')} of {steps:,} ({percent(skipped / steps)}) "
            f"{was(skipped)} left out, since the gradient's norm was more than skip_above{limit} "
            "standard deviations above the mean of the steps before."
        ),
        threshold=f"any; a problem in {percent(OFTEN)} of the steps",
        source=Source("Chowdhery et al. 2022, section 5.1", "https://arxiv.org/abs/2204.02311"),
        advice=(
            "Look at the batches of these steps. If spikes are frequent: a smaller learning rate, "
            "a longer warm-up or a smaller β2; if the steps look harmless, a larger skip_above."
        ),
    )


#: In the order in which they are told.
FINDERS: tuple[Callable[[Run], Finding | None], ...] = (
    nonfinite_gradients,
    stand_still,
    epsilon_above_root,
    dead_tensors,
    uneven_layers,
    spikes,
    clipped_always,
    short_warmup,
    old_square,
    grow_without_end,
)


# ── tensors and words ──────────────────────────────────────────────────────────────────────────


def _layers(
    run: Run,
    numbers: NDArray[Any],
    belongs: NDArray[np.bool_],
    told: Callable[[float], str],
) -> tuple[Layer, ...]:
    """Return the tensors that belong to a finding: by their numbers, then by how large they are."""
    places = sorted(
        np.flatnonzero(belongs),
        key=lambda place: (-float(numbers[place]), -run.tensors[place].count),
    )
    return tuple(Layer(run.tensors[place].name, told(float(numbers[place]))) for place in places)


def _is_told(run: Run, layers: Sequence[Layer]) -> bool:
    return bool(layers) and len(run.steps) >= FEWEST


def _place(run: Run, layer: Layer) -> int:
    return next(i for i, tensor in enumerate(run.tensors) if tensor.name == layer.name)


def _dead(run: Run) -> NDArray[np.bool_]:
    """Return of each tensor whether its gradient is 0 at all lines of the second half."""
    late = run.of["gradient_norm"][len(run.steps) // 2 :]
    return (late == 0).any(axis=0) & ((late == 0) | np.isnan(late)).all(axis=0)


def _are_matrices(run: Run) -> NDArray[np.bool_]:
    return np.array([len(tensor.shape) > 1 for tensor in run.tensors], bool)


def _last_with(norms: Numbers) -> int:
    """Return the last line that has statistics; the last one where none has."""
    rows = np.flatnonzero(~np.isnan(norms).all(axis=1))
    return int(rows[-1]) if len(rows) else len(norms) - 1
