"""Minimisation in SciPy's way: a function and a start go in, an OptimizeResult comes out.

    >>> import adamas
    >>> result = adamas.minimize(lambda x: ((x - 3) ** 2).sum(), [0.0, 0.0])
    >>> result.x.round(3)
    array([3., 3.])

``minimize`` is also a method for SciPy itself: ``scipy.optimize.minimize(fun, x0,
method=adamas.minimize)``. Its parts, in the order in which a run meets them: ``Settings``,
what may be asked for; ``Limits``, the box; ``Objective``, which evaluates and counts;
``Judge``, which says when to stop; and ``minimize``, which steps.

Nothing here compares two values to choose a step, so ``fun`` may be noisy: there is no line search
to be misled. Only what is *returned* depends on whether it is; see ``noisy``.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adamas.checks import (
    check_choice,
    check_count,
    check_flag,
    check_plain,
    check_rate,
    kind,
    near,
)
from adamas.coefficients import ema_weights
from adamas.keywords import MethodName, MinimizeArguments, Unpack
from adamas.numpy import Adam, Momentum, Optimizer, RMSProp
from adamas.options import LearningRate, Options, Schedule
from adamas.rule import smooth

try:
    from scipy.optimize import OptimizeResult, OptimizeWarning

    from adamas.limits import Limits
    from adamas.quotients import (
        Evaluate,
        Quotients,
        Scheme,
        Sight,
        check_workers,
        described,
        evaluating,
        number,
    )
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        'adamas.minimize needs SciPy. Install it with: pip install "adamas[scipy]"',
        name=missing.name,
    ) from None

__all__ = ["OWN", "Settings", "minimize"]

Vector = NDArray[np.float64]

_METHODS: dict[str, type[Optimizer]] = {"adam": Adam, "momentum": Momentum, "rmsprop": RMSProp}
_RATES = {"adam": 0.1, "momentum": 0.01, "rmsprop": 0.1}
#: Options of the optimizers that minimize decides itself, or that float64 has no use for.
OWN = {"self", "params", "maximize", "on_nonfinite", "ema", "statistics", "engine"} | {
    "state",
    "rounding",
    "seed",
    "skip_above",
    "skip_window",
    "track_changes",
}
_GTOL = 1e-5


# -- what may be asked for -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``minimize`` that are not the optimizer's. Errors name the option."""

    #: Which optimizer makes the steps.
    method: MethodName = "adam"
    #: A number is the rate of the first step, in units of x for Adam and RMSProp; it falls to zero
    #: along half a cosine over ``maxiter`` steps. A function of the step number (1 first) is taken
    #: as it is. None: 0.1, and 0.01 for Momentum.
    lr: LearningRate | None = None
    #: At most so many steps. The default schedule is stretched over them.
    maxiter: int | None = 10_000
    #: Stop where no component of the gradient at the best point exceeds this, components that push
    #: against a bound left out. None: ``tol``, or else 1e-5; or no test where ``noisy``.
    gtol: float | None = None
    #: Stop where the best value fell by no more than ``ftol * max(1, |value|)`` in ``patience``
    #: steps. None: ``tol``, or else no test.
    ftol: float | None = None
    #: How many steps ``ftol`` waits for a better value.
    patience: int = 100
    #: Whether two calls of fun at one point may give two values. If so, the smallest value is luck
    #: and is not looked at: the result is the moving average (EMA) of the iterates.
    noisy: bool = False
    #: Decay rate of that mean; 0 gives the last iterate. None: 1 - 10 / maxiter.
    ema: float | None = None
    #: Step of the finite differences, in units of max(1, |x|). None: SciPy's choice for the
    #: scheme (the square root of the machine's epsilon for "2-point", the cube root for "3-point"),
    #: or what the noise allows where ``noisy``.
    finite_diff_rel_step: float | None = None
    #: Who calls fun for finite differences: so many processes, -1 for one on each processor, or
    #: what maps a function over points, as the map of an executor. The bits are the same.
    workers: Any = 1
    #: Whether to print how the run ended.
    disp: bool = False
    #: Whether to draw a bar. Needs rich.
    progress: bool = False

    def __post_init__(self) -> None:
        """Check every option; fill in what has a default that depends on others."""
        check_choice("method", self.method, tuple(_METHODS))
        if self.lr is None:
            object.__setattr__(self, "lr", _RATES[self.method])
        if self.maxiter is None:
            object.__setattr__(self, "maxiter", 10_000)
        object.__setattr__(self, "maxiter", check_count("maxiter", self.maxiter))
        object.__setattr__(self, "patience", check_count("patience", self.patience, least=1))
        for name in ("gtol", "ftol"):
            _check_tolerance(name, getattr(self, name))
        step = self.finite_diff_rel_step
        if step is not None and not (_is_number(step) and 0 < step < math.inf):
            raise ValueError(
                f"finite_diff_rel_step is {step!r}, but it must be a finite number above 0."
            )
        for name in ("noisy", "progress"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        object.__setattr__(self, "workers", check_workers(self.workers))
        if self.noisy:
            self._check_noisy()
        elif self.ema is not None:
            raise ValueError(
                f"ema is {self.ema!r}, but noisy is False, so the best point is returned and no "
                "mean is kept. Give noisy=True, or leave ema out."
            )

    def with_tolerance(self, tol: float | None) -> Settings:
        """Return settings whose tolerances are ``tol`` where they were not given."""
        _check_tolerance("tol", tol)
        if self.noisy:
            if tol is not None:
                raise _noisy_tolerance("tol", tol)
            return self
        gtol = _GTOL if tol is None else tol
        return dataclasses.replace(
            self,
            gtol=gtol if self.gtol is None else self.gtol,
            ftol=tol if self.ftol is None else self.ftol,
        )

    @property
    def steps(self) -> int:
        """How many steps the run may make."""
        assert self.maxiter is not None
        return self.maxiter

    @property
    def schedule(self) -> Schedule:
        """The learning rate as a function of the step number."""
        assert self.lr is not None
        # Options checks a number as every front-end does.
        first = Options(lr=self.lr).lr
        return first if callable(first) else half_cosine(first, self.steps)

    def _check_noisy(self) -> None:
        for name in ("gtol", "ftol"):
            if getattr(self, name) is not None:
                raise _noisy_tolerance(name, getattr(self, name))
        rate = max(0.0, 1 - 10 / max(1, self.steps)) if self.ema is None else self.ema
        object.__setattr__(self, "ema", check_rate("ema", rate))


def half_cosine(first: float, steps: int) -> Schedule:
    """Return the rate that starts at ``first`` and would be zero after ``steps`` steps."""

    def rate(step: int) -> float:
        return first * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps))

    return rate


# -- evaluation ----------------------------------------------------------------------------------


class Point(NamedTuple):
    """A point with the value and the gradient found there; its arrays are nobody else's."""

    x: Vector
    value: float
    gradient: Vector

    @property
    def is_finite(self) -> bool:
        """Whether a step can be made from here; an infinite value alone does not hinder it."""
        return not math.isnan(self.value) and bool(np.isfinite(self.gradient).all())


#: What is called after every step, with the point reached and the number of the step.
Watcher = Callable[[Point, int], None]


class Objective:
    """The user's functions: calls them with copies of x, checks what they give, counts."""

    def __init__(
        self, fun: Any, jac: Any, args: tuple[Any, ...], quotients: Quotients | None
    ) -> None:
        """Find the gradient by ``quotients`` where there are any, else as ``jac`` says."""
        self._fun, self._jac, self._args = fun, jac, args
        self._quotients = quotients
        self._calls = self.njev = 0

    @property
    def nfev(self) -> int:
        """How often fun was called."""
        return self._calls + (0 if self._quotients is None else self._quotients.calls)

    def __call__(self, x: Vector) -> Point:
        """Return value and gradient at ``x``; where the value is NaN, no gradient is asked for."""
        x = x.copy()
        if self._jac is True:
            value, gradient = self._both(x)
        else:
            value = self._value(x)
            gradient = np.full_like(x, np.nan) if math.isnan(value) else self._gradient(x, value)
        return Point(x, value, gradient)

    def _value(self, x: Vector) -> float:
        self._calls += 1
        return number(self._fun(x.copy(), *self._args))

    def _both(self, x: Vector) -> tuple[float, Vector]:
        self._calls += 1
        self.njev += 1
        pair = self._fun(x.copy(), *self._args)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                "jac is True, so fun must return a pair (value, gradient), but it returned "
                f"{kind(pair)}. Return both, or give the gradient as jac."
            )
        return number(pair[0]), _as_gradient(pair[1], x)

    def _gradient(self, x: Vector, value: float) -> Vector:
        self.njev += 1
        if self._quotients is None:
            return _as_gradient(self._jac(x.copy(), *self._args), x)
        return self._quotients.gradient(x, value)


# -- the end -------------------------------------------------------------------------------------


class End(NamedTuple):
    """Why a run ended, in SciPy's words and numbers."""

    status: int
    success: bool
    message: str


_NOT_FINITE = End(
    3, False, "fun or its gradient is NaN or infinite. x is the point reached before."
)
_CALLED_OFF = End(99, False, "`callback` raised `StopIteration`.")


class Judge:
    """Says when a run has come to its end."""

    def __init__(self, settings: Settings, limits: Limits, first: Point) -> None:
        """Begin to watch at the ``first`` point."""
        self._settings, self._limits = settings, limits
        self._lowest, self._since = first.value, 0

    def verdict(self, nit: int, point: Point, best: Point) -> End | None:
        """Return why the run ends after ``nit`` steps, at ``point``; None while it goes on."""
        settings = self._settings
        if not point.is_finite:
            return _NOT_FINITE
        # Judged at the best point alone: a gradient can vanish on a hill too.
        if settings.gtol is not None and point is best:
            slope = self._limits.slope(point.x, point.gradient)
            if slope <= settings.gtol:
                return End(0, True, f"The gradient is zero to within gtol: {slope:.3g}.")
        if settings.ftol is not None and self._stalls(nit, best.value, settings.ftol):
            return End(0, True, f"fun has not fallen by ftol in {settings.patience} steps.")
        if nit >= settings.steps:
            return self._out_of_steps()
        return None

    def _stalls(self, nit: int, value: float, ftol: float) -> bool:
        if not self._lowest - value <= ftol * max(1.0, abs(value)):
            self._lowest, self._since = value, nit
        return nit - self._since >= self._settings.patience

    def _out_of_steps(self) -> End:
        settings = self._settings
        if settings.gtol is None and settings.ftol is None:
            return End(0, True, f"All {settings.steps} steps were made.")
        return End(1, False, f"maxiter={settings.steps} steps were made and no tolerance was met.")


# -- the run -------------------------------------------------------------------------------------


def minimize(
    fun: Callable[..., Any],
    x0: ArrayLike,
    args: Any = (),
    *,
    jac: Callable[..., Any] | bool | Scheme | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **more: Unpack[MinimizeArguments],
) -> OptimizeResult:
    """Return the minimum that Adam finds, as SciPy's OptimizeResult.

    ``fun(x, *args)`` gives a number for a float64 vector x. ``jac`` gives its gradient; True where
    ``fun`` returns (value, gradient); "2-point" or "3-point" where finite differences are to be
    taken, inside the bounds; None for the former, or where ``noisy`` for the latter. ``x0`` is a
    vector or a number, moved into ``bounds`` if it lies outside. ``callback(x)`` or
    ``callback(intermediate_result)`` is called after each step and may raise StopIteration to end
    the run.

    Options, as keywords or in ``options``: those of ``Settings`` (``lr``, ``maxiter``,
    ``gtol``, ``ftol``, ``patience``, ``noisy``, ``ema``, ``finite_diff_rel_step``, ``workers``,
    ``disp``, ``progress``, ``method``), and those of the optimizer that ``method`` names (for Adam
    ``betas``, ``eps``, ``amsgrad``, ``nesterov``, ``clip_norm``, …). Unknown ones warn. ``tol``
    sets ``gtol`` and ``ftol``.

    ``x`` is the best point seen, ``fun`` the value and ``jac`` the gradient found there, without
    another call. With ``noisy=True`` it is the moving average (EMA) of the iterates, where
    ``fun`` is called once more. ``status`` is 0 where a tolerance was met or none was set, 1 after
    ``maxiter`` steps, 3 where a value was NaN or a gradient not finite, 4 where noise hides what
    finite differences are to find, 99 where the callback ended the run. ``nfev`` counts all calls
    of ``fun``, those for finite differences too.

    Raises ValueError or TypeError, before ``fun`` is called, for what it cannot do,
    constraints among them.
    """
    _refuse_constraints(constraints)
    _check_function("fun", fun)
    if callback is not None:
        _check_function("callback", callback)
    _warn_of_unused(hess=hess, hessp=hessp)
    settings, rest = _sorted_options(options, more, tol)
    x = _start(x0)
    limits = Limits.of(bounds, x.size)
    limits.project(x)
    arguments = args if isinstance(args, tuple) else (args,)
    scheme = _scheme(jac, settings)
    optimizer = _optimizer(x, settings, rest)
    with (
        evaluating(settings.workers if scheme else 1, fun, arguments) as evaluate,
        _watching(settings, callback) as watch,
    ):
        quotients = None if scheme is None else _quotients(evaluate, scheme, limits, settings)
        sight = None if quotients is None else _sight(quotients, settings)
        objective = Objective(fun, jac, arguments, quotients)
        end, nit, point = _run(x, settings, limits, objective, optimizer, watch, sight)
    result = OptimizeResult(
        x=point.x,
        fun=point.value,
        jac=point.gradient,
        nit=nit,
        nfev=objective.nfev,
        njev=objective.njev,
        status=end.status,
        success=end.success,
        message=end.message,
    )
    if settings.disp:
        sys.stdout.write(_described(result))
    return result


def _run(
    x: Vector,
    settings: Settings,
    limits: Limits,
    objective: Objective,
    optimizer: Optimizer,
    watch: Watcher,
    sight: Sight | None,
) -> tuple[End, int, Point]:
    """Step ``x`` in place until the end; return it, the number of steps and the point to return."""
    nit = 0
    doubt = None if sight is None else sight.before(nit, x)
    point = best = objective(x)
    average: Vector | None = None
    judge = Judge(settings, limits, point)
    end = judge.verdict(nit, point, best)
    if doubt is not None and point.is_finite:
        end = End(4, False, doubt)
    while end is None:
        nit += 1
        if sight is not None:
            sight.add(point.gradient)
        optimizer.step(point.gradient)
        limits.project(x)
        if not np.isfinite(x).all():
            end = _NOT_FINITE
            break
        if sight is not None:
            sight.before(nit, x)
        # Where x did not move, a function without noise has nothing new to say.
        if settings.noisy or not np.array_equal(x, point.x):
            point = objective(x)
        if point.value <= best.value:
            best = point
        if settings.ema is not None and point.is_finite:
            keep, take = ema_weights(settings.ema, nit)
            average = smooth(keep, take, x if average is None else average, x)
        try:
            watch(point, nit)
        except StopIteration:
            end = _CALLED_OFF
            break
        end = judge.verdict(nit, point, best)
    if settings.noisy:
        best = point if average is None else _mean_point(average, point, limits, objective)
        if not best.is_finite:
            end = _NOT_FINITE
        elif sight is not None and end.success:
            doubts = sight.doubt(best.x, best.value)
            end = end if doubts is None else End(doubts[0], False, doubts[1])
    return end, nit, best


def _mean_point(average: Vector, last: Point, limits: Limits, objective: Objective) -> Point:
    # Rounding may carry a mean of points inside the box out of it.
    limits.project(average)
    return last if np.array_equal(average, last.x) else objective(average)


def _quotients(evaluate: Evaluate, scheme: Scheme, limits: Limits, settings: Settings) -> Quotients:
    return Quotients(evaluate, scheme, limits.lower, limits.upper, settings.finite_diff_rel_step)


def _sight(quotients: Quotients, settings: Settings) -> Sight | None:
    """Return what looks at the noise; None where there is none, or complex steps go below it."""
    if not settings.noisy or quotients.scheme == "cs":
        return None
    chooses = settings.finite_diff_rel_step is None
    return Sight(quotients, settings.steps, chooses=chooses)


def _optimizer(x: Vector, settings: Settings, options: dict[str, Any]) -> Optimizer:
    if options.get("decay") in ("fully-decoupled", "corrected") and not callable(settings.lr):
        options = {"lr_max": settings.lr, **options}
    make: Any = _METHODS[settings.method]
    return make(x, lr=settings.schedule, **options)


@contextmanager
def _watching(
    settings: Settings, callback: Callable[..., Any] | None
) -> Generator[Watcher, None, None]:
    """Give what is to be called after every step: it draws the bar and calls ``callback``."""
    call_back = _caller(callback)
    if not settings.progress:
        yield call_back
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'progress=True needs rich. Install it with: pip install "adamas[cli]"', name="rich"
        ) from None
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("fun = {task.fields[value]:.6g}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=settings.steps, value=math.nan)

        def draw_and_call(point: Point, nit: int) -> None:
            bar.update(task, completed=nit, value=point.value)
            call_back(point, nit)

        yield draw_and_call


def _caller(callback: Callable[..., Any] | None) -> Watcher:
    """Return what calls ``callback`` in the form that its signature asks for, with copies."""
    if callback is None:
        return lambda _point, _nit: None
    try:
        parameters = set(inspect.signature(callback).parameters)
    except (TypeError, ValueError):  # built in, without a signature
        parameters = set[str]()
    if parameters != {"intermediate_result"}:
        return lambda point, _nit: callback(point.x.copy())
    return lambda point, nit: callback(
        intermediate_result=OptimizeResult(
            x=point.x.copy(), fun=point.value, jac=point.gradient.copy(), nit=nit
        )
    )


def _described(result: OptimizeResult) -> str:
    return (
        f"{result.message}\n"
        f"         Current function value: {result.fun:g}\n"
        f"         Iterations: {result.nit}\n"
        f"         Function evaluations: {result.nfev}\n"
        f"         Gradient evaluations: {result.njev}\n"
    )


# -- checks of what the user gives ---------------------------------------------------------------


def _sorted_options(
    options: Mapping[str, Any] | None, more: Mapping[str, Any], tol: float | None
) -> tuple[Settings, dict[str, Any]]:
    """Return the settings and the options of the optimizer; warn of what is neither."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options is {options!r}, but it must be a dict.")
    twice = sorted(set(options or {}) & set(more))
    if twice:
        raise TypeError(f"{twice[0]} is given twice, as a keyword and in options. Give it once.")
    given = {**(options or {}), **more}
    own = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: given.pop(name) for name in list(given) if name in own})
    make = _METHODS[settings.method]
    possible = set(inspect.signature(make.__init__).parameters) - OWN - own
    unknown = sorted(set(given) - possible)
    if unknown:
        warnings.warn(
            f"Unknown solver options: {', '.join(unknown)}.{near(unknown[0], own | possible)} "
            f'Possible with method="{settings.method}" are {", ".join(sorted(own | possible))}.',
            OptimizeWarning,
            stacklevel=3,
        )
    known = {name: value for name, value in given.items() if name in possible}
    return settings.with_tolerance(tol), known


def _check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, but it must be a function.")


def _start(x0: ArrayLike) -> Vector:
    check_plain("x0", x0)
    try:
        start = np.atleast_1d(np.asarray(x0))
    except ValueError:  # rows of different lengths
        raise ValueError(f"x0 is {x0!r}, but it must be a vector or a number.") from None
    if start.ndim != 1 or start.size == 0:
        raise ValueError(
            f"x0 has shape {start.shape}, but it must be a vector with at least one element, or a "
            "number. Flatten it with .ravel(), and reshape x inside fun."
        )
    if start.dtype.kind not in "buif":
        raise TypeError(f"x0 has dtype {start.dtype}, but it must hold real numbers.")
    if not np.isfinite(start).all():
        raise ValueError("x0 holds NaN or infinity. Start where fun is defined.")
    return np.array(start, dtype=np.float64)


def _refuse_constraints(constraints: Any) -> None:
    none = constraints is None or (
        isinstance(constraints, (tuple, list, dict)) and len(constraints) == 0
    )
    if not none:
        raise ValueError(
            "constraints were given, but adamas.minimize can keep bounds only. Give bounds, add a "
            'penalty to fun, or use method="SLSQP" or "trust-constr" of scipy.optimize.minimize.'
        )


def _warn_of_unused(**unused: Any) -> None:
    for name, what in (("hess", "Hessian"), ("hessp", "Hessian-vector product")):
        if unused[name] is not None:
            warnings.warn(
                f"Method adamas.minimize does not use {what} information ({name}).",
                RuntimeWarning,
                stacklevel=3,
            )


def _scheme(jac: Any, settings: Settings) -> Scheme | None:
    """Return how differences are taken; None where the gradient is given."""
    if jac is True or callable(jac):
        if settings.workers != 1:
            warnings.warn(
                f"workers is {settings.workers!r}, but jac gives the gradient, so there are no "
                "finite differences to share among them. Leave workers or jac out.",
                OptimizeWarning,
                stacklevel=3,
            )
        return None
    if jac is None or jac is False:
        # Forward differences are off by half a step, and noise asks for wide ones.
        return "3-point" if settings.noisy else "2-point"
    if isinstance(jac, str) and jac in get_args(Scheme):
        return jac  # type: ignore[return-value]
    raise ValueError(
        f"jac is {jac!r}, but it must be a function, True where fun returns (value, gradient), "
        '"2-point", "3-point", "cs" or None.'
    )


def _as_gradient(value: Any, x: Vector) -> Vector:
    check_plain("The gradient", value)
    gradient = np.atleast_1d(np.asarray(value))
    if gradient.shape != x.shape or gradient.dtype.kind not in "buif":
        raise ValueError(
            f"The gradient is {described(gradient)}, but x is a vector of shape {x.shape}. Return "
            "one real number for each element of x."
        )
    return np.array(gradient, dtype=np.float64, order="C")


def _check_tolerance(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} is {value!r}, but it must be a finite number, at least 0.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _noisy_tolerance(name: str, value: float) -> ValueError:
    return ValueError(
        f"{name} is {value!r}, but noisy is True, and a single value or gradient cannot tell that "
        f"a noisy run has converged. Leave {name} out and set maxiter, or raise StopIteration in "
        "callback."
    )
