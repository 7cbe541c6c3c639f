"""Measuring adamas against what is installed: ratios, each from one run, results checked first.

A row names a piece of work and two contenders for it. Before anything is timed, the contenders'
results are compared; then they take turns, round by round, and the ratio is that of each round's
two times, so that it holds where the machine's speed drifts. What is quoted is the median.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import adamas
from adamas.engines import native

__all__ = [
    "HEADER",
    "Figure",
    "Pair",
    "Report",
    "Row",
    "WrongResultError",
    "cells",
    "machine",
    "markdown",
    "read_json",
    "rows",
    "run",
    "write_json",
]

Array = NDArray[Any]

HEADER = ("work", "against", "adamas", "other", "ratio", "from … to", "goal")

#: Two float32 implementations of one step differ by a few roundings of the update: this many units
#: of float32's precision, relative to the learning rate (updates are at most about 1 of those).
_ROUNDINGS = 16 * float(np.finfo(np.float32).eps)


class WrongResultError(AssertionError):
    """Two contenders do not compute the same, so their times mean nothing."""


@dataclass(frozen=True)
class Pair:
    """Two ways to do one piece of work, and how their results are compared."""

    ours: Callable[[], object]
    other: Callable[[], object]
    #: Raises WrongResultError where the results differ by more than a stated bound.
    check: Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    against: str
    #: Ratio of the other's time to ours that is to be reached; None where a row only informs.
    goal: float | None
    #: Makes the contenders; ``quick`` asks for a small size.
    make: Callable[[bool], Pair]
    #: Modules that must be installed.
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """What was measured for a row. Times are medians, in seconds."""

    work: str
    against: str
    goal: float | None
    ours: float | None = None
    other: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    rounds: int = 0
    #: Names of modules that are missing; then nothing was measured.
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All figures of one run, with the machine."""

    machine: dict[str, str]
    quick: bool
    figures: tuple[Figure, ...]


def run(
    rows: Iterable[Row], *, quick: bool = False, tell: Callable[[str], object] = lambda _: None
) -> Report:
    """Measure ``rows`` one after another; ``tell`` hears the name of each before it begins."""
    figures: list[Figure] = []
    for row in rows:
        tell(f"{row.work} · {row.against}")
        figures.append(_measured(row, quick))
    return Report(machine(), quick, tuple(figures))


def cells(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line of the table, under ``HEADER``."""
    for each in report.figures:
        goal = "" if each.goal is None else f"{each.goal:g}×"
        if each.ratio is None:
            yield (each.work, each.against, "", "", f"needs {', '.join(each.missing)}", "", goal)
            continue
        spread = f"{_short(each.lowest)} … {_short(each.highest)}"
        times = (_time(each.ours), _time(each.other))
        yield (each.work, each.against, *times, f"{_short(each.ratio)}×", spread, goal)


def markdown(report: Report) -> str:
    """Return the table and the machine as Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|--:|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells(report)]
    about = " · ".join(f"{key} {value}" for key, value in report.machine.items())
    note = "\n\nSmall sizes (--quick): no figures to quote." if report.quick else ""
    return "\n".join(lines) + f"\n\nMachine: {about}.{note}\n"


def write_json(report: Report, path: Path) -> None:
    """Write everything measured to ``path``."""
    path.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Report:
    """Return the report that :func:`write_json` wrote."""
    stored = json.loads(path.read_text("utf-8"))
    figures: list[Figure] = []
    for each in stored["figures"]:
        missing = tuple(each.pop("missing"))
        figures.append(Figure(**each, missing=missing))
    return Report(stored["machine"], stored["quick"], tuple(figures))


def machine() -> dict[str, str]:
    """Return what a reader must know of the machine to judge the figures."""
    found = {
        "processor": _processor(),
        "cores": str(native.processor_count()),
        "memory": _memory(),
        "system": platform.system(),
        "Python": platform.python_version(),
        "adamas": f"{adamas.__version__} ({native.target()}, {native.get_num_threads()} threads)",
    }
    installed = {each.name for each in importlib.metadata.distributions()}
    for package in sorted(_COMPARED & installed):
        found[package] = importlib.metadata.version(package)
    return found


_COMPARED = {"bitsandbytes", "jax", "numpy", "optax", "scikit-learn", "torch", "torchao"}


def rows() -> list[Row]:
    """Return the rows, those that need missing packages included."""
    return [*_numpy_rows(), *_torch_rows(), *_small_rows(), *_jax_rows()]


# -- measuring -----------------------------------------------------------------------------------


def _measured(row: Row, quick: bool) -> Figure:
    missing = tuple(name for name in row.needs if importlib.util.find_spec(name) is None)
    if missing:
        return Figure(row.work, row.against, row.goal, missing=missing)
    pair = row.make(quick)
    pair.check()
    times = _taken_in_turn(pair, rounds=3 if quick else 11, least=0.002 if quick else 0.1)
    ratios = [other / ours for ours, other in times]
    return Figure(
        row.work,
        row.against,
        row.goal,
        ours=statistics.median(ours for ours, _ in times),
        other=statistics.median(other for _, other in times),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=len(times),
    )


def _taken_in_turn(pair: Pair, *, rounds: int, least: float) -> list[tuple[float, float]]:
    """Return the time of one call of each contender in each round, in seconds.

    A contender that takes less than ``least`` seconds is called as often as fills them.
    """
    calls = [_calls_that_take(least, work) for work in (pair.ours, pair.other)]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return [(_timed(pair.ours, calls[0]), _timed(pair.other, calls[1])) for _ in range(rounds)]
    finally:
        if collecting:
            gc.enable()


def _calls_that_take(least: float, work: Callable[[], object]) -> int:
    work()  # what is done once only (plans, buffers, threads) is not timed
    calls = 1
    while (taken := _timed(work, calls) * calls) < least and calls < 1_000_000:
        calls = max(calls * 2, math.ceil(calls * least / max(taken, 1e-9)))
    return calls


def _timed(work: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def _require_close(ours: Array, other: Array, bound: float, what: str) -> None:
    worst = float(np.max(np.abs(ours.astype(np.float64) - other), initial=0.0))
    if not worst <= bound:
        raise WrongResultError(
            f"{what}: the results differ by {worst:.3g}, but at most {bound:.3g} is rounding."
        )


# -- NumPy ---------------------------------------------------------------------------------------

_LR = 1e-3


def _numpy_rows() -> list[Row]:
    return [
        Row("NumPy step, 16 M", "the formula in NumPy", 8, _against(_formula)),
        Row("NumPy step, 16 M", "the formula with out=", None, _against(_formula_in_place)),
        Row("NumPy step, 16 M", "scikit-learn", 12, _against(_sklearn), needs=("sklearn",)),
        Row("step, 64 M", "reading and writing the arrays", 0.95, _bandwidth),
        Row("NumPy step of 100 elements", "3 µs", 1, _hundred),
        Row("import adamas", "import numpy + 50 ms", 1, _imports),
    ]


def _drawn(count: int) -> tuple[Array, Array]:
    """Return a parameter and a gradient, away from 0: there dialects of ε differ, not roundings."""
    random = np.random.default_rng(0)
    p, g = (random.standard_normal(count, np.float32) for _ in range(2))
    return p, g + np.copysign(np.float32(0.1), g)


Stepper = Callable[[Array, Array], Callable[[], object]]


def _against(other: Stepper) -> Callable[[bool], Pair]:
    """Return a pair of steps over 16 M elements: ours and what ``other`` makes of its arrays."""

    def make(quick: bool) -> Pair:
        ours, gradient = _drawn(1 << 12 if quick else 1 << 24)
        theirs = ours.copy()
        optimizer = adamas.Adam(ours, lr=_LR)
        step = other(theirs, gradient)

        def check() -> None:
            for _ in range(3):
                optimizer.step(gradient)
                step()
            bound = 3 * _LR * _ROUNDINGS + 4 * np.finfo(np.float32).eps * np.abs(ours).max()
            _require_close(ours, theirs, float(bound), "three steps of Adam")

        return Pair(lambda: optimizer.step(gradient), step, check)

    return make


def _formula(p: Array, g: Array) -> Callable[[], object]:
    """Return a step as one writes it from the paper."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0

    def step() -> None:
        nonlocal m, v, t
        t += 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat = m / (1 - 0.9**t)
        v_hat = v / (1 - 0.999**t)
        p[...] -= _LR * m_hat / (np.sqrt(v_hat) + 1e-8)

    return step


def _formula_in_place(p: Array, g: Array) -> Callable[[], object]:
    """Return a step that allocates nothing, as one writes it who has measured."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0
    scratch, other = np.empty_like(p), np.empty_like(p)

    def step() -> None:
        nonlocal t
        t += 1
        np.multiply(m, 0.9, out=m)
        np.multiply(g, 0.1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(v, 0.999, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 0.001, out=scratch)
        np.add(v, scratch, out=v)
        np.multiply(v, 1 / (1 - 0.999**t), out=scratch)
        np.sqrt(scratch, out=scratch)
        np.add(scratch, 1e-8, out=scratch)
        np.multiply(m, _LR / (1 - 0.9**t), out=other)
        np.divide(other, scratch, out=other)
        np.subtract(p, other, out=p)

    return step


def _sklearn(p: Array, g: Array) -> Callable[[], object]:
    from sklearn.neural_network._stochastic_optimizers import (  # pyright: ignore
        AdamOptimizer,  # pyright: ignore
    )

    optimizer: Any = AdamOptimizer([p], learning_rate_init=_LR)
    return lambda: optimizer.update_params([p], [g])


def _bandwidth(quick: bool) -> Pair:
    p, g = _drawn(1 << 12 if quick else 1 << 26)
    optimizer = adamas.Adam(p, lr=_LR)
    state = optimizer.groups[0].states[0]
    arrays = [p, g, state.mean, state.square]

    def check() -> None:
        twin = p[:4096].copy()
        judge = adamas.Adam(twin, lr=_LR, engine="reference")
        optimizer.step(g)
        judge.step(g[:4096].copy())
        _require_close(p[:4096], twin, 0.0, "a step and the reference engine's")

    return Pair(lambda: optimizer.step(g), lambda: native.touch(arrays), check)


def _hundred(quick: bool) -> Pair:  # noqa: ARG001
    p, g = _drawn(100)
    optimizer = adamas.Adam(p, lr=_LR)

    def budget() -> None:
        until = time.perf_counter() + 3e-6
        while time.perf_counter() < until:
            pass

    def check() -> None:
        twin = p.copy()
        judge = adamas.Adam(twin, lr=_LR, engine="reference")
        optimizer.step(g)
        judge.step(g)
        _require_close(p, twin, 0.0, "a step and the reference engine's")

    return Pair(lambda: optimizer.step(g), budget, check)


def _imports(quick: bool) -> Pair:  # noqa: ARG001
    def imported(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    def other() -> None:
        imported("numpy")
        time.sleep(0.05)

    return Pair(lambda: imported("adamas"), other, lambda: None)


# -- PyTorch -------------------------------------------------------------------------------------

_MLP = ((50, 64), (50,), (40, 50), (40,), (10, 40), (10,))
_MANY = ((2080,),) * 128


def _transformer() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a small transformer: 6 layers of width 256, 4.7 M parameters."""
    width = 256
    layer = (
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
        *((width,),) * 4,
    )
    return layer * 6


def _torch_rows() -> list[Row]:
    needs = ("torch",)
    large = ((1 << 26,),)
    return [
        Row("torch step, 64 M in 1 tensor", "torch fused", 1, _torch(large, fused=True), needs),
        Row("torch step, 64 M in 1 tensor", "torch default", 7, _torch(large), needs),
        Row("torch step, 5,702 in 6 tensors", "torch fused", 15, _torch(_MLP, fused=True), needs),
        Row("torch step, 5,702 in 6 tensors", "torch default", 50, _torch(_MLP), needs),
        Row("torch step, 128 tensors of 2,080", "torch fused", 4, _torch(_MANY, fused=True), needs),
        Row(
            "phase, transformer of 4.7 M",
            "torch fused and friends",
            1.8,
            _torch_phase(_transformer()),
            needs,
        ),
        Row("phase, 5,702 in 6 tensors", "torch fused and friends", 20, _torch_phase(_MLP), needs),
    ]


def _torch_parameters(shapes: Iterable[tuple[int, ...]], quick: bool) -> tuple[list[Any], Any]:
    """Return two equal lists of parameters with equal gradients."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def made() -> list[Any]:
        generator.manual_seed(0)
        parameters: list[Any] = []
        for shape in shapes:
            small = tuple(min(side, 64) for side in shape) if quick else shape
            p = torch.nn.Parameter(torch.randn(small, generator=generator))
            p.grad = torch.randn(small, generator=generator)
            parameters.append(p)
        return parameters

    return made(), made()


def _require_close_tensors(ours: list[Any], theirs: list[Any], steps: int, what: str) -> None:
    for a, b in zip(ours, theirs, strict=True):
        x, y = a.detach().float().numpy(), b.detach().float().numpy()
        bound = steps * (_LR * _ROUNDINGS + 2 * float(np.finfo(np.float32).eps) * np.abs(x).max())
        _require_close(x, y, bound, what)


def _torch(shapes: Iterable[tuple[int, ...]], **options: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import Adam

        ours, theirs = _torch_parameters(shapes, quick)
        mine = Adam(ours, lr=_LR)
        other = torch.optim.Adam(theirs, lr=_LR, **options)

        def check() -> None:
            for _ in range(3):
                mine.step()
                other.step()
            _require_close_tensors(ours, theirs, 3, "three steps of Adam")

        return Pair(mine.step, other.step, check)

    return make


def _torch_phase(shapes: Iterable[tuple[int, ...]]) -> Callable[[bool], Pair]:
    """Return clipping, AdamW, averaging and a bfloat16 copy: in one step, and in torch's parts."""

    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        ours, theirs = _torch_parameters(shapes, quick)
        mine = AdamW(ours, lr=_LR, clip_norm=1.0, ema=0.999, copy_to=torch.bfloat16)
        model = torch.nn.ParameterList(theirs)
        gradients = [p.grad.clone() for p in theirs]
        other = torch.optim.AdamW(theirs, lr=_LR, fused=True)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        copies = [p.detach().to(torch.bfloat16) for p in theirs]
        copy_all = cast(Any, torch)._foreach_copy_  # the fastest there is

        def phase() -> None:
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            other.step()
            average.update_parameters(model)
            copy_all(copies, [p.detach() for p in theirs])

        def check() -> None:
            for _ in range(3):
                mine.step()
                for p, gradient in zip(theirs, gradients, strict=True):
                    p.grad.copy_(gradient)  # clip_grad_norm_ has scaled it
                phase()
            _require_close_tensors(ours, theirs, 3, "three phases with AdamW")
            averages = [mine.state[p]["ema"] for p in ours]
            _require_close_tensors(averages, list(average.parameters()), 3, "averaged weights")
            apart = [
                (a.float() - b.float()).abs().max()
                for a, b in zip(mine.copies, copies, strict=True)
            ]
            step = max(float(c.float().abs().max()) for c in copies) * 2**-7
            if max(map(float, apart)) > step:
                raise WrongResultError("the bfloat16 copies differ by more than one rounding")

        return Pair(mine.step, phase, check)

    return make


# -- small states --------------------------------------------------------------------------------

_SMALL = {
    "bfloat16 states": {"state": "bfloat16"},
    "compact states": {"state": "compact"},
    "8bit states": {"state": "8bit"},
    "8bit states, bfloat16 parameters": {"state": "8bit"},
    "8bit states, bfloat16 parameters by chance": {"state": "8bit", "rounding": "stochastic"},
    "8bit states, bfloat16 parameters with remainder": {"state": "8bit", "rounding": "remainder"},
}


def _small_rows() -> list[Row]:
    fused = "torch fused, float32"
    goals = dict(zip(_SMALL, (None, 0.8, 0.8, 1.3, None, None), strict=True))
    rows = [
        Row(f"small, 64 M, {name}", fused, goals[name], _small(name, _torch_fused), ("torch",))
        for name in _SMALL
    ]
    for name in ("compact states", "8bit states"):
        for package, other in (("bitsandbytes", _bitsandbytes), ("torchao", _torchao)):
            work = f"small, 64 M, {name}"
            needs = ("torch", package)
            rows.append(Row(work, f"{package} 8-bit", 20, _small(name, other), needs))
    return rows


def _torch_fused(parameters: list[Any]) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=_LR, fused=True)


def _bitsandbytes(parameters: list[Any]) -> Any:
    module: Any = importlib.import_module("bitsandbytes.optim")
    return module.AdamW8bit(parameters, lr=_LR)


def _torchao(parameters: list[Any]) -> Any:
    """Return torchao's optimizer, compiled as it compiles itself."""
    module: Any = importlib.import_module("torchao.optim")
    return module.AdamW8bit(parameters, lr=_LR)


def _small(name: str, make_other: Callable[[list[Any]], Any]) -> Callable[[bool], Pair]:
    """Return a step with small states, and another's over the same parameters in float32.

    A first step moves parameters by the same in all of them, but for rounding: what is stored is
    read in the second. What is stored is compared, bit for bit, with the reference engine's.
    """

    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        p, g = _drawn(1 << 12 if quick else 1 << 26)
        dtype = torch.bfloat16 if "bfloat16 parameters" in name else torch.float32
        ours, theirs = (torch.nn.Parameter(torch.from_numpy(p.copy())) for _ in range(2))
        ours.data = ours.data.to(dtype)
        ours.grad, theirs.grad = (torch.from_numpy(g).to(each.dtype) for each in (ours, theirs))
        mine: Any = AdamW([ours], lr=_LR, **cast(Any, _SMALL[name]))
        other = make_other([theirs])
        judged = torch.nn.Parameter(ours.detach()[:4096].clone())
        assert ours.grad is not None
        judged.grad = ours.grad[:4096].clone()
        judge: Any = AdamW([judged], lr=_LR, **cast(Any, _SMALL[name]))

        def check() -> None:
            for optimizer in (mine, other, judge):
                optimizer.step()
            x, y = (each.detach().float().numpy() for each in (ours, theirs))
            unit = float(np.finfo(np.float32).eps if dtype == torch.float32 else 2.0**-8)
            bound = _LR * (_ROUNDINGS + unit) + 2 * unit * float(np.abs(x).max())
            _require_close(x, y, bound, "a first step of AdamW")
            mine.step()
            judge._takes_native = lambda _: False  # torch's operations and NumPy's codecs
            judge._reset()
            judge.step()
            a, b = (each.detach().float()[:4096].numpy() for each in (ours, judged))
            _require_close(a, b, 0.0, "a second step and the reference's")

        return Pair(mine.step, other.step, check)

    return make


# -- JAX -----------------------------------------------------------------------------------------


def _jax_rows() -> list[Row]:
    needs = ("jax", "optax")
    large = ((1 << 24,),)
    return [
        Row("JAX step, 16 M in 1 array", "optax.adam", 0.95, _jax(large, "adam"), needs),
        Row("JAX step, 16 M in 1 array", "optax.adamw", 0.95, _jax(large, "adamw"), needs),
        Row("JAX step, 5,702 in 6 arrays", "optax.adam", None, _jax(_MLP, "adam"), needs),
    ]


def _jax(shapes: Iterable[tuple[int, ...]], name: str) -> Callable[[bool], Pair]:
    """Return update and apply_updates in one program, which may write over what it is given."""

    def make(quick: bool) -> Pair:
        import jax
        import jax.numpy as jnp
        import optax

        import adamas.jax

        random = np.random.default_rng(0)
        arrays = [
            random.standard_normal(tuple(min(side, 64) for side in shape) if quick else shape)
            for shape in shapes
        ]
        gradients = [jnp.asarray(each + np.copysign(0.1, each), jnp.float32) for each in arrays]

        def contender(module: Any) -> tuple[Callable[[], object], Callable[[], list[Array]]]:
            optimizer: Any = getattr(module, name)(_LR)
            params = [jnp.asarray(each, jnp.float32) for each in arrays]
            kept = [params, optimizer.init(params)]

            def program(params: Any, state: Any, gradients: Any) -> Any:
                updates, state = optimizer.update(gradients, state, params)
                return optax.apply_updates(params, updates), state

            compiled = jax.jit(program, donate_argnums=(0, 1))

            def step() -> None:
                kept[:] = jax.block_until_ready(compiled(*kept, gradients))

            return step, lambda: [np.asarray(each) for each in kept[0]]

        (ours, mine), (other, theirs) = contender(adamas.jax), contender(optax)

        def check() -> None:
            for _ in range(3):
                ours()
                other()
            for a, b in zip(mine(), theirs(), strict=True):
                bound = 3 * (
                    _LR * _ROUNDINGS + 2 * float(np.finfo(np.float32).eps) * np.abs(a).max()
                )
                _require_close(a, b, float(bound), f"three steps of {name}")

        return Pair(ours, other, check)

    return make


# -- the machine and the table -------------------------------------------------------------------


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
