"""What the subject does where arithmetic or shapes come to an end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.arithmetic import exact
from adamas.checking.prediction import Prediction, Settings
from adamas.checking.progress import STAGES, Progress
from adamas.checking.trials import Convention, told
from adamas.checking.variants import Variant
from adamas.coefficients import rectification

__all__ = ["Edge", "edges"]

Array = NDArray[Any]

#: With a β2 of at most 2/3 a RAdam never rectifies: it rests forever, of which this is enough.
_LONGEST_REST = 50


@dataclass(frozen=True)
class Edge:
    """One edge: what was tried, what happened, and whether nobody can be hurt by it."""

    name: str
    happens: str
    harmless: bool


def edges(convention: Convention, variant: Variant | None, progress: Progress) -> tuple[Edge, ...]:
    """Try every edge, each on an optimizer of its own, with float32 parameters.

    ``variant`` is what the subject is known to compute, to compare with where it matters.
    """
    settings = dataclasses.replace(convention.default, weight_decay=0.0)
    bare = dataclasses.replace(settings, eps=0.0)
    rests = _rests(variant, settings)
    run = partial(_run, convention, settings, rests)
    run_bare = partial(_run, convention, bare, rests)
    tried: dict[str, Callable[[], tuple[str, bool]]] = {
        "zero gradient": lambda: _zero(run),
        "zero gradient, ε = 0": lambda: _zero(run_bare),
        "subnormal gradient": lambda: _small(run, settings, variant, rests, 1e-40),
        "g² underflows, ε = 0": lambda: _small(run_bare, bare, variant, rests, 1e-30),
        "g² overflows": lambda: _huge(run),
        "NaN in the gradient": lambda: _not_finite(run, np.nan),
        "infinity in it": lambda: _not_finite(run, np.inf),
        "0-dim array": lambda: _shape(run, ()),
        "empty array": lambda: _shape(run, (0,)),
        "array not contiguous": lambda: _strided(run),
    }
    found: list[Edge] = []
    if "eps" not in convention.arguments.settable:
        tried = {name: attempt for name, attempt in tried.items() if "ε = 0" not in name}
    progress.begin(STAGES[5], len(tried))
    for name, attempt in tried.items():
        try:
            happens, harmless = attempt()
        except Exception as error:
            happens, harmless = told(error, 100), False
        found.append(Edge(name, happens, harmless))
        progress.advance()
    return tuple(found)


#: Takes the first parameter and the gradient of each step; all arrays see the same. Gives the first
#: parameter before and after each step.
_Run = Callable[[Array, list[Array]], list[Array]]


def _rests(variant: Variant | None, settings: Settings) -> int:
    """Return in how many steps nothing moves, whatever the gradient: those of a RAdam at rest."""
    if variant is None or variant.rectified != "5, at rest":
        return 0
    later = range(1, _LONGEST_REST + 1)
    return next((t - 1 for t in later if rectification(settings.beta2, t)), _LONGEST_REST)


def _run(
    convention: Convention, settings: Settings, rests: int, start: Array, gradients: list[Array]
) -> list[Array]:
    trial = convention.start([start] * convention.arrays, settings)
    for _ in range(rests):
        trial.step([np.zeros_like(gradients[0]) for _ in range(convention.arrays)])
    seen = [start]
    for gradient in gradients:
        given = [np.array(gradient, order="K") for _ in range(convention.arrays)]
        seen.append(trial.step(given).parameters[0])
    return seen


def _full(value: float, shape: tuple[int, ...] = (4,)) -> Array:
    return np.full(shape, value, dtype=np.float32)


def _zero(run: _Run) -> tuple[str, bool]:
    seen = run(_full(1.0), [_full(0.0)] * 2)
    if np.isnan(seen[-1]).any():
        return "the parameter becomes NaN", False
    if np.array_equal(seen[-1], seen[0]):
        return "the parameter stays", True
    return f"the parameter moves by {float(np.max(np.abs(seen[-1] - seen[0]))):.3g}", False


def _small(
    run: _Run, settings: Settings, variant: Variant | None, rests: int, gradient: float
) -> tuple[str, bool]:
    moved = float(run(_full(0.0), [_full(gradient)])[1][0])
    if not np.isfinite(moved):
        return f"the parameter becomes {moved}", False
    found = f"a step of {abs(moved):.1e}" if moved else "no step"
    if variant is None:
        return found, True
    given, before = np.zeros((2, rests + 1, 1, 1))
    given[-1] = gradient
    true = Prediction(settings, given, before, arithmetic=exact()).change(variant)[-1]
    return f"{found}, where that of exact arithmetic is {abs(float(true.item())):.1e}", True


def _huge(run: _Run) -> tuple[str, bool]:
    start, first, *_, last = run(_full(0.0), [_full(1e30), *[_full(1.0)] * 3])
    if not np.isfinite(last).all():
        return f"the parameter becomes {last[0]}", False
    found = "a step" if first[0] != start[0] else "no step"
    if last[0] == first[0]:
        return f"{found}, and none ever after", False
    return f"{found}, and steps after it", True


def _not_finite(run: _Run, value: float) -> tuple[str, bool]:
    broken = _full(1.0)
    broken[0] = value
    _, before, after, _, last = run(_full(0.0), [_full(1.0), broken, *[_full(1.0)] * 2])
    lost = ~np.isfinite(last)
    if lost[1:].any():
        return "all elements are lost", False
    if lost[0]:
        return "that element is lost for good, others are not", True
    if last[0] == after[0] != before[0]:
        return "that element never moves again, others do", True
    if np.array_equal(after, before):
        return "the step is left out", True
    if after[0] == before[0] == last[0]:
        return "that element never moves again, others do", True
    return "that element goes on as if nothing were", True


def _shape(run: _Run, shape: tuple[int, ...]) -> tuple[str, bool]:
    last = run(_full(0.0, shape), [_full(1.0, shape)] * 2)[-1]
    if last.shape != shape:
        return f"comes back with the shape {last.shape}", False
    if not shape and run(_full(0.0), [_full(1.0)] * 2)[-1][0] != last:
        return "moves otherwise than in a larger array", False
    return "works", True


def _strided(run: _Run) -> tuple[str, bool]:
    values = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    gradient = np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3)
    plain = run(values, [gradient] * 2)[-1]
    turned = run(np.asfortranarray(values), [np.asfortranarray(gradient)] * 2)[-1]
    if np.array_equal(plain, turned):
        return "works, with the same bits", True
    if np.allclose(plain, turned, rtol=1e-6, atol=0):
        return "works, but for the last bits", True
    return "moves otherwise than a contiguous one", False
