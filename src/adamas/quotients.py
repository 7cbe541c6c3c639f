"""Derivatives by finite differences: all points first, then all values, then the quotients.

The points of a gradient do not depend on each other, so several workers may find the values there;
the quotients are SciPy's, with the same bits for any number of workers. Where the function is
noisy, ``Sight`` chooses the steps and says whether the run can be believed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pickle import PicklingError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Behind all of SciPy's own methods. `approx_fprime`, the public way to it, takes neither the value
# that is known nor the bounds.
from scipy.optimize._numdiff import approx_derivative

from adamas.checks import check_count, check_plain
from adamas.noise import Look, Record, look

__all__ = ["Evaluate", "Quotients", "Scheme", "Sight", "check_workers", "evaluating"]

Vector = NDArray[np.float64]
#: How derivatives are found by differences: forward, central, or of complex steps.
Scheme = Literal["2-point", "3-point", "cs"]
#: Gives what the user's function returns at each of some points.
Evaluate = Callable[[Sequence[Any]], list[Any]]
#: A number of processes, or what maps a function over points, as the map of an executor.
Workers = int | Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

#: Steps of central differences, as shares of that which balances noise with curvature: less is off
#: by less where the function is no parabola, and the mean of many steps takes away the noise.
_CENTRAL = 0.5
#: A fall of fun, in units of max(1, |fun|), that is none.
_NO_FALL = 1e-6


# -- who calls the function ----------------------------------------------------------------------


class _Call:
    """The function of x alone; it may be sent to another process."""

    def __init__(self, fun: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._fun, self._args = fun, args

    def __call__(self, x: Any) -> Any:
        return self._fun(x, *self._args)


_call: _Call | None = None


def _install(call: _Call) -> None:
    """Keep in a worker what it is to call, so that it is sent once."""
    global _call  # noqa: PLW0603 - a process has one run
    _call = call


def _called(x: Any) -> Any:
    assert _call is not None
    return _call(x)


def check_workers(workers: Any) -> Any:
    """Return ``workers``, -1 as the number of processors; raise where they are none."""
    if callable(workers):
        return workers
    try:
        if workers == -1:
            return _processors()
        return check_count("workers", workers, least=1)
    except (TypeError, ValueError):
        raise ValueError(
            f"workers is {workers!r}, but it must be a number of processes, at least 1; -1 for all "
            "processors; or a function that maps as Python's map does."
        ) from None


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def evaluating(
    workers: Workers, fun: Callable[..., Any], args: tuple[Any, ...]
) -> Generator[Evaluate, None, None]:
    """Give what calls ``fun`` at points; processes are closed at the end, however that comes."""
    call = _Call(fun, args)
    if callable(workers):
        mapped = workers
        yield lambda points: list(mapped(call, points))
        return
    if workers == 1:
        yield lambda points: [call(point) for point in points]
        return
    count = min(workers, 61) if sys.platform == "win32" else workers
    with ProcessPoolExecutor(count, initializer=_install, initargs=(call,)) as pool:

        def evaluate(points: Sequence[Any]) -> list[Any]:
            share = math.ceil(len(points) / count)
            try:
                return list(pool.map(_called, points, chunksize=share))
            except (BrokenProcessPool, PicklingError, AttributeError) as error:
                if isinstance(error, AttributeError) and "pickle" not in str(error):
                    raise
                raise TypeError(
                    f"workers is {workers}, but fun cannot be called in other processes "
                    f"({type(error).__name__}: {error}). Define it at the top of a module that can "
                    "be imported, or give a map of threads: ThreadPoolExecutor().map"
                ) from error

        try:
            yield evaluate
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# -- quotients -----------------------------------------------------------------------------------


class Quotients:
    """The gradient by finite differences, inside the bounds; counts the calls."""

    def __init__(
        self,
        evaluate: Evaluate,
        scheme: Scheme,
        lower: Vector,
        upper: Vector,
        relative_step: float | None,
    ) -> None:
        """``relative_step`` is in units of max(1, |x|); None is SciPy's choice."""
        self._evaluate, self.scheme = evaluate, scheme
        self._relative_step = relative_step
        #: An element that its bounds hold fast has no neighbours, and needs no derivative.
        self.free = lower < upper
        self.lower, self.upper = lower[self.free], upper[self.free]
        #: Steps of the free elements that take the place of the relative one.
        self.steps: Vector | None = None
        self.calls = 0

    def gradient(self, x: Vector, value: float) -> Vector:
        """Return the derivatives at ``x``, where the value is known."""
        gradient = np.zeros_like(x)
        if not self.free.any():
            return gradient
        here = x[self.free]
        points: list[Any] = []

        def noted(part: Any) -> Any:
            points.append(np.array(part))
            return 0j if self.scheme == "cs" else 0.0

        # The points do not depend on the values, so they can be had before.
        self._derivatives(noted, here, value)
        values = iter(self.values_at(x, points))
        gradient[self.free] = self._derivatives(lambda _: next(values), here, value)
        return gradient

    def _derivatives(self, fun: Callable[[Any], Any], here: Vector, value: float) -> Any:
        step = self.steps
        if step is None and self._relative_step is not None:
            step = self._relative_step * np.maximum(1.0, np.abs(here))
        with np.errstate(invalid="ignore", over="ignore"):  # where fun is infinite beside x
            return approx_derivative(
                fun,
                here,
                method=self.scheme,
                abs_step=None if step is None else np.copysign(step, here),
                f0=value,
                bounds=(self.lower, self.upper),
            )

    def values_at(self, x: Vector, parts: Sequence[Any]) -> list[Any]:
        """Return the values where the free elements of ``x`` are those of each of ``parts``."""
        is_complex = self.scheme == "cs"
        points: list[Any] = []
        for part in parts:
            point = x.astype(np.result_type(x, part))
            # A step to the edge of the box may round to a point beyond it.
            point[self.free] = part if is_complex else np.clip(part, self.lower, self.upper)
            points.append(point)
        self.calls += len(points)
        check = complex_number if is_complex else number
        return [check(found) for found in self._evaluate(points)]


def number(value: Any) -> float:
    """Return what the function gave as a float; raise TypeError where it is no real number."""
    check_plain("What fun returned", value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "buif":
        raise TypeError(
            f"fun returned {described(array)}, but it must return one real number. With a "
            "gradient, return (value, gradient) and give jac=True."
        )
    return float(array.item())


def complex_number(value: Any) -> complex:
    """Return what the function gave for complex x; raise TypeError where that is not complex."""
    check_plain("What fun returned", value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind != "c":
        raise TypeError(
            f'jac is "cs", which needs a complex number from fun for complex x, but fun returned '
            f'{described(array)}. Use "3-point".'
        )
    return complex(array.item())


def described(array: NDArray[Any]) -> str:
    """Return what an array is, for an error."""
    return f"an array of shape {array.shape} and dtype {array.dtype}"


# -- noise ---------------------------------------------------------------------------------------


class Sight:
    """Looks at a noisy function: chooses the steps of its quotients, and judges their run."""

    def __init__(self, quotients: Quotients, steps: int, *, chooses: bool) -> None:
        """Watch a run of ``steps`` steps; choose the steps of quotients where that is asked for."""
        self._quotients, self._steps, self._chooses = quotients, steps, chooses
        self._every = max(50, steps // 10)
        self._share = _CENTRAL
        if quotients.scheme == "2-point":
            # Half a step is how far off a forward difference is: balanced with the noise of a mean.
            self._share = max(1.0, steps / 10.0) ** -0.25
        size = int(np.count_nonzero(quotients.free))
        self._record = Record(size, steps)
        self._seen = np.zeros(size, dtype=bool)
        self._last: Look | None = None

    def before(self, nit: int, x: Vector) -> str | None:
        """Choose the steps, where that is due before step ``nit + 1``; return what forbids it."""
        if not self._chooses or nit % self._every or nit == self._steps > 0 or not self._seen.size:
            return None
        found = self._look(x, thorough=nit == 0)
        if nit == 0 and not self._seen.any():
            return (
                "Nothing that fun does within a step of max(1, |x|) around x0 stands out of its "
                f"noise, {found.noise:.3g}. Give its gradient as jac, a wider "
                "finite_diff_rel_step, or the mean of more draws as fun."
            )
        return None

    def add(self, gradient: Vector) -> None:
        """Take in the quotients that a step was made by."""
        self._record.add(gradient[self._quotients.free])

    def doubt(self, x: Vector, value: float) -> tuple[int, str] | None:
        """Return why ``x`` is not to be believed, and the status; None where it is."""
        if not self._seen.size or self._steps == 0:
            return None
        found = self._look(x, thorough=True)
        hidden = np.flatnonzero(self._quotients.free)[~(self._seen | self._record.seen)]
        if hidden.size:
            told = ", ".join(f"x[{i}]" for i in hidden[:8])
            more = ", …" if hidden.size > 8 else ""
            return 4, (
                f"What {told}{more} do to fun does not stand out of its noise, {found.noise:.3g}. "
                f"{self._way_out()}, or hold them fast by bounds."
            )
        fall = self._fall(x, found)
        # Each element adds something at random.
        chance = found.noise * max(1.0, math.sqrt(self._seen.size) / 2.0)
        if not fall <= max(chance, _NO_FALL * max(1.0, abs(value))):
            return 1, (
                f"All {self._steps} steps were made, but by its mean gradient fun could still fall "
                f"by about {fall:.2g}, where its noise is {found.noise:.2g}. Raise maxiter. "
                f"{self._way_out()}."
            )
        return None

    def _look(self, x: Vector, *, thorough: bool) -> Look:
        quotients = self._quotients

        def values_at(parts: Sequence[Vector]) -> list[float]:
            return quotients.values_at(x, parts)

        bounds = quotients.lower, quotients.upper
        here = x[quotients.free]
        self._last = found = look(values_at, here, *bounds, self._last, thorough=thorough)
        self._seen |= found.seen
        if self._chooses:
            quotients.steps = found.steps * self._share
        return found

    def _fall(self, x: Vector, found: Look) -> float:
        """Return by how much parabolas of the mean gradient and the curvature lie below ``x``."""
        quotients, slope = self._quotients, self._record.mean
        here = x[quotients.free]
        room = np.where(slope > 0.0, here - quotients.lower, quotients.upper - here)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            parabola = slope**2 / (2.0 * found.curvature)
            # Where nothing bends, it falls to the end of the step at which that was looked for.
            straight = np.abs(slope) * np.where(found.curvature > 0.0, room, found.steps)
            falls = np.fmin(parabola, np.minimum(straight, np.abs(slope) * room))
        return float(np.sum(np.where(slope == 0.0, 0.0, falls)))

    def _way_out(self) -> str:
        if self._chooses:
            return "Give the gradient as jac, or the mean of more draws as fun"
        return "Widen finite_diff_rel_step or leave it out, or give the gradient as jac"
