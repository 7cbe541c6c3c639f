"""Cases and builders that several test files share; what is asserted stands in the tests."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamas import state as states
from adamas.engines import Group, Slot, native
from adamas.options import Options, Phase
from adamas.statistics import TILE, Outcome

#: Seconds until a process counts as hanging: machines are shared, and slow at times.
PATIENCE = 900
ROOT = Path(__file__).resolve().parents[2]
FLOATS = (np.float32, np.float64)

# ── options ────────────────────────────────────────────────────────────────────────────────────

#: What decides which running means are kept, and so which loop is compiled for them.
METHODS: dict[str, dict[str, Any]] = {
    "descent": {"betas": (None, None)},
    "momentum": {"betas": (0.9, None)},
    "nesterov": {"betas": (0.9, None), "nesterov": True},
    "rmsprop": {"betas": (None, 0.99)},
    "rmsprop-amsgrad": {"betas": (None, 0.99), "amsgrad": True},
    "adam": {"betas": (0.9, 0.999)},
    "nadam": {"betas": (0.9, 0.999), "nesterov": True},
    "radam": {"betas": (0.9, 0.99), "rectify": True},
    "adam-amsgrad": {"betas": (0.9, 0.999), "amsgrad": True},
    "nadam-amsgrad": {"betas": (0.9, 0.999), "nesterov": True, "amsgrad": True},
}
DECAYS: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.01},
    {"weight_decay": 0.01, "decay": "decoupled"},
    {"weight_decay": 0.01, "decay": "fully-decoupled", "lr_max": 0.3},
    {"weight_decay": 0.01, "decay": "cautious"},
)
EPSILONS: tuple[dict[str, Any], ...] = (
    {},
    {"eps": 0.0},
    {"eps": 1e-6, "eps_root": 1e-5},
    {"eps": 1e-3, "eps_place": "uncorrected"},
    {"eps": 1e-3, "eps_place": "inside"},
)


def every_option(method: str) -> list[Options]:
    """All combinations of the options of one method."""
    return [
        Options(
            lr=0.1,
            bias_correction=correction,
            maximize=maximize,
            **METHODS[method],
            **decay,
            **epsilon,
        )
        for correction, maximize, decay, epsilon in itertools.product(
            ("paper", "first-step", "none"), (False, True), DECAYS, EPSILONS
        )
        if correction == "paper" or "rectify" not in METHODS[method]
    ]


def every_phase() -> list[Phase]:
    """All combinations of what a step may be asked for."""
    return [
        Phase(clip_norm=clip_norm, on_nonfinite=on_nonfinite, ema=ema, statistics=statistics)
        for clip_norm, on_nonfinite, ema, statistics in itertools.product(
            (None, 1.0), ("propagate", "skip", "raise"), (None, 0.9), (False, True)
        )
    ]


#: No extras, each alone, and all at once.
PHASES: dict[str, Phase] = {
    "plain": Phase(),
    "clip": Phase(clip_norm=1.0),
    "skip": Phase(on_nonfinite="skip"),
    "ema": Phase(ema=0.9),
    "statistics": Phase(statistics=True),
    "all": Phase(clip_norm=1.0, on_nonfinite="skip", ema=0.9, statistics=True),
}

#: Forms of m and v: every one for each of them, and the pairs that one name stands for.
FORMS: tuple[tuple[str, str], ...] = (
    ("bfloat16", "bfloat16"),
    ("compact", "compact"),
    ("8bit", "8bit"),
    ("float32", "8bit"),
    ("8bit", "float32"),
    ("compact", "8bit"),
    ("8bit", "bfloat16"),
    ("bfloat16", "compact"),
)

# ── values ─────────────────────────────────────────────────────────────────────────────────────


def special_values(dtype: Any) -> np.ndarray[Any, Any]:
    """The numbers at which arithmetic changes its ways, and two ordinary ones."""
    limits = np.finfo(dtype)
    positive = [
        0.0,
        limits.smallest_subnormal,
        limits.smallest_normal - limits.smallest_subnormal,
        limits.smallest_normal,
        np.sqrt(limits.smallest_normal),
        0.7,
        3.0,
        np.sqrt(limits.max) * dtype(0.5),
        limits.max,
        np.inf,
    ]
    return np.array([*positive, *(-x for x in positive), np.nan], dtype=dtype)


def ordinary(random: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Normally distributed numbers."""
    return random.standard_normal(shape).astype(dtype)


def wide(random: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Finite numbers of all magnitudes, subnormal and huge ones too, many of them equal to 0."""
    limits = np.finfo(dtype)
    exponents = random.uniform(limits.minexp - limits.nmant, limits.maxexp, shape)
    signs = random.choice([-1.0, 0.0, 1.0], shape, p=[0.45, 0.1, 0.45])
    return (signs * np.exp2(exponents)).astype(dtype)


def special(random: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Infinities, NaNs, zeros of both signs, the smallest and the largest numbers."""
    return random.choice(special_values(dtype), shape)


def unreadable(p: np.ndarray[Any, Any], beside: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Gradients for the parameters ``p`` and ``beside`` that an engine must decline."""
    g, h = np.ones_like(p), np.ones_like(beside)
    return {
        "none at all": [],
        "one too few": [g],
        "one too many": [g, h, h],
        "an iterator": iter([g, h]),
        "an array of arrays": np.ones((2, 6), p.dtype),
        "not an array": [g, None],
        "another dtype": [g, h.astype(np.float64)],
        "integers": [g, h.astype(np.int32)],
        "another byte order": [g, h.astype(h.dtype.newbyteorder())],
        "another shape": [g, h.reshape(3, 2)],
        "another length": [g, h[:-1]],
        "strided": [g, np.ones(12, p.dtype)[::2]],
    }


# ── runs ───────────────────────────────────────────────────────────────────────────────────────


class Run(NamedTuple):
    """All that an engine leaves behind."""

    #: Parameters and state entries: "0", "0.mean", "1.ema", ...
    arrays: dict[str, np.ndarray[Any, Any]]
    outcomes: list[Outcome | None]


def run(
    engine: Any,
    options: Options | Sequence[Options],
    phase: Phase,
    parameters: Sequence[np.ndarray[Any, Any]],
    gradients: Sequence[Sequence[np.ndarray[Any, Any]]],
    *,
    first: int = 1,
    starts: Sequence[Mapping[str, np.ndarray[Any, Any]]] = (),
) -> Run:
    """Steps of an engine over copies of ``parameters``, one for each entry of ``gradients``.

    ``options`` are one for all, or one for each parameter, which then make groups of one.
    ``first`` is the number of the first step. ``starts``, where given, holds for each parameter
    the values that the entries of its state start from, by name.
    """
    several = [options] * len(parameters) if isinstance(options, Options) else list(options)
    slots = [
        Slot(p.copy(), states.create(p, own, ema=phase.ema is not None))
        for p, own in zip(parameters, several, strict=True)
    ]
    for slot, start in zip(slots, starts, strict=False):
        for name, array in slot.state.arrays().items():
            array[...] = start[name]
    if isinstance(options, Options):
        groups = [Group(options, tuple(slots))]
    else:
        groups = [Group(own, (slot,)) for own, slot in zip(several, slots, strict=True)]
    plan = engine.Plan(groups, phase)
    rates = [group.options.lr for group in groups]
    outcomes = [plan.step(g, number, rates) for number, g in enumerate(gradients, first)]
    assert NotImplemented not in outcomes, "the case has gradients that no engine reads"
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for i, slot in enumerate(slots):
        arrays[f"{i}"] = slot.parameter
        arrays.update({f"{i}.{name}": each for name, each in slot.state.arrays().items()})
    return Run(arrays, outcomes)


def bits(values: Any) -> np.ndarray[Any, Any]:
    """The bit patterns of numbers, all NaNs as one.

    IEEE 754 leaves open which sign and payload the NaN of an operation has, and processors
    differ; so they are no part of the contract.
    """
    values = np.array(values, order="C")
    if values.dtype.kind == "f":
        values[np.isnan(values)] = np.nan
    return values.view(f"u{values.itemsize}")


def numbers(outcome: Outcome | None) -> dict[str, Any]:
    """All numbers that an outcome reports, by name."""
    if outcome is None:
        return {}
    found: dict[str, Any] = {"applied": outcome.applied, "nonfinite": outcome.nonfinite}
    found["norm"] = outcome.norm
    for i, each in enumerate(outcome.statistics or ()):
        found.update({f"{i}.{name}": x for name, x in dataclasses.asdict(each).items()})
    return found


def differences(one: Run, other: Run) -> list[str]:
    """Names of the arrays and of the reported numbers that are not the same, bit for bit."""
    found = sorted(one.arrays.keys() ^ other.arrays.keys())
    for name in one.arrays.keys() & other.arrays.keys():
        a, b = one.arrays[name], other.arrays[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape) or not np.array_equal(bits(a), bits(b)):
            found.append(name)
    if len(one.outcomes) != len(other.outcomes):
        found.append("outcomes")
    for i, (x, y) in enumerate(zip(one.outcomes, other.outcomes, strict=False)):
        a, b = numbers(x), numbers(y)
        found += [f"outcomes[{i}] {name}" for name in sorted(a.keys() ^ b.keys())]
        found += [
            f"outcomes[{i}] {name}" for name in a.keys() & b.keys() if differ(a[name], b[name])
        ]
    return found


def differ(a: Any, b: Any) -> bool:
    """Whether two reported numbers are of different types or bits."""
    if type(a) is not type(b):
        return True
    return bool(bits(a) != bits(b)) if isinstance(a, float) else a != b


# ── machines, threads, processes ───────────────────────────────────────────────────────────────

#: The machines whose code runs on this processor.
MACHINES = tuple(name for name, runs in native.targets().items() if runs)
#: So many elements are shared among threads, whatever the threshold, and end within a tile.
LARGE = 700 * TILE + 37


def each_machine(names: Sequence[str] = MACHINES) -> Iterator[str]:
    """Let the code of one machine after the other answer, then the one that answered before."""
    before = native.target()
    try:
        for name in names:
            native.set_target(name)
            yield name
    finally:
        native.set_target(before)


def python(
    code: str, *arguments: str, timeout: float = PATIENCE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, where adamas and these cases can be imported."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("ADAMAS_")},
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
            **environment,
        },
    )
