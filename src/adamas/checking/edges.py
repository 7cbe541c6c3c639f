"""What the subject does where arithmetic or shapes come to an end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.arithmetic import Exact
from adamas.checking.forms import Form
from adamas.checking.prediction import Prediction, Settings
from adamas.checking.trials import Convention

__all__ = ["Edge", "edges"]

Array = NDArray[Any]

#: Elements of the arrays that edges are tried on.
_ELEMENTS = 4


@dataclass(frozen=True)
class Edge:
    """One edge: what was tried, what happened, and whether nobody can be hurt by it."""

    name: str
    happens: str
    harmless: bool


def edges(convention: Convention, form: Form | None) -> tuple[Edge, ...]:
    """Try every edge, each on an optimizer of its own, with float32 parameters.

    ``form`` is what the subject is known to compute, to compare with where it matters.
    """
    tried: list[tuple[str, Callable[[Convention], tuple[str, bool]]]] = [
        ("zero gradient", _zero),
        ("zero gradient, ε = 0", _zero_without_eps),
        ("subnormal gradient", lambda c: _small(c, form, 1e-40, c.default.eps)),
        ("g² underflows, ε = 0", lambda c: _small(c, form, 1e-30, 0.0)),
        ("g² overflows", _huge),
        ("NaN in the gradient", lambda c: _not_finite(c, np.nan)),
        ("infinity in it", lambda c: _not_finite(c, np.inf)),
        ("0-dim array", lambda c: _shape(c, ())),
        ("empty array", lambda c: _shape(c, (0,))),
        ("array not contiguous", _strided),
    ]
    found: list[Edge] = []
    for name, attempt in tried:
        if "ε = 0" in name and "eps" not in convention.arguments.settable:
            continue
        try:
            happens, harmless = attempt(convention)
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            happens, harmless = f"{type(error).__name__}: {first:.100}", False
        found.append(Edge(name, happens, harmless))
    return tuple(found)


def _run(
    convention: Convention, start: Array, gradients: Sequence[Array], settings: Settings
) -> list[Array]:
    """Return the first parameter before and after each step; all arrays see the same."""
    count = 2 if convention.several else 1
    trial = convention.start([start for _ in range(count)], settings)
    seen = [start]
    for gradient in gradients:
        given = [np.array(gradient, order="K") for _ in range(count)]
        seen.append(trial.step(given).parameters[0])
    return seen


def _same(value: float, count: int = 1, start: float = 0.0) -> tuple[Array, list[Array]]:
    gradient = np.full(_ELEMENTS, value, dtype=np.float32)
    return np.full(_ELEMENTS, start, dtype=np.float32), [gradient] * count


def _zero(convention: Convention) -> tuple[str, bool]:
    seen = _run(convention, *_same(0.0, 2, start=1.0), _without_decay(convention))
    return _stays(seen)


def _zero_without_eps(convention: Convention) -> tuple[str, bool]:
    settings = dataclasses.replace(_without_decay(convention), eps=0.0)
    return _stays(_run(convention, *_same(0.0, 2, start=1.0), settings))


def _without_decay(convention: Convention) -> Settings:
    return dataclasses.replace(convention.default, weight_decay=0.0)


def _stays(seen: list[Array]) -> tuple[str, bool]:
    if np.isnan(seen[-1]).any():
        return "the parameter becomes NaN", False
    if np.array_equal(seen[-1], seen[0]):
        return "the parameter stays", True
    return f"the parameter moves by {float(np.max(np.abs(seen[-1] - seen[0]))):.3g}", False


def _small(
    convention: Convention, form: Form | None, gradient: float, eps: float
) -> tuple[str, bool]:
    settings = dataclasses.replace(_without_decay(convention), eps=eps)
    seen = _run(convention, *_same(gradient, 1), settings)
    moved = float(seen[1][0])
    if not np.isfinite(moved):
        return f"the parameter becomes {moved}", False
    found = f"a step of {abs(moved):.1e}" if moved else "no step"
    if form is None:
        return found, True
    given = np.full((1, 1, 1), gradient)
    exact = Prediction(settings, given, np.zeros((1, 1, 1)), arithmetic=Exact()).change(form)
    return f"{found}, where that of exact arithmetic is {abs(float(exact.item())):.1e}", True


def _huge(convention: Convention) -> tuple[str, bool]:
    start, gradients = _same(1e30, 1)
    ordinary = [np.ones(_ELEMENTS, dtype=np.float32)] * 3
    seen = _run(convention, start, gradients + ordinary, _without_decay(convention))
    if not np.isfinite(seen[-1]).all():
        return f"the parameter becomes {seen[-1][0]}", False
    first = "a step" if seen[1][0] != seen[0][0] else "no step"
    if seen[-1][0] == seen[1][0]:
        return f"{first}, and none ever after", False
    return f"{first}, and steps after it", True


def _not_finite(convention: Convention, value: float) -> tuple[str, bool]:
    ordinary = np.ones(_ELEMENTS, dtype=np.float32)
    broken = ordinary.copy()
    broken[0] = value
    start = np.zeros(_ELEMENTS, dtype=np.float32)
    seen = _run(
        convention, start, [ordinary, broken, ordinary, ordinary], _without_decay(convention)
    )
    lost = ~np.isfinite(seen[-1])
    if lost[1:].any():
        return "all elements are lost", False
    if lost[0]:
        return "that element is lost for good, others are not", True
    if seen[-1][0] == seen[2][0] != seen[1][0]:
        return "that element never moves again, others do", True
    if np.array_equal(seen[2], seen[1]):
        return "the step is left out", True
    if seen[2][0] == seen[1][0] == seen[-1][0]:
        return "that element never moves again, others do", True
    return "that element goes on as if nothing were", True


def _shape(convention: Convention, shape: tuple[int, ...]) -> tuple[str, bool]:
    start = np.zeros(shape, dtype=np.float32)
    gradient = np.ones(shape, dtype=np.float32)
    settings = _without_decay(convention)
    seen = _run(convention, start, [gradient, gradient], settings)
    if seen[-1].shape != shape:
        return f"comes back with the shape {seen[-1].shape}", False
    if not shape:
        usual = _run(convention, *_same(1.0, 2), settings)
        if usual[-1][0] != seen[-1]:
            return "moves otherwise than in a larger array", False
    return "works", True


def _strided(convention: Convention) -> tuple[str, bool]:
    values = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    gradient = np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3)
    settings = _without_decay(convention)
    plain = _run(convention, values, [gradient] * 2, settings)
    turned = np.asfortranarray(values)
    seen = _run(convention, turned, [np.asfortranarray(gradient)] * 2, settings)
    if np.array_equal(plain[-1], seen[-1]):
        return "works, with the same bits", True
    if np.allclose(plain[-1], seen[-1], rtol=1e-6, atol=0):
        return "works, but for the last bits", True
    return "moves otherwise than a contiguous one", False
