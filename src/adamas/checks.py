"""Checks of what users give, and the texts of their errors: one place for all front-ends.

Every function returns the value in the form it is used in, or raises TypeError (a value of another
kind) or ValueError (one that makes no sense), which says what was given, what is possible and what
to do. ``name`` is that of the option in these texts.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard, TypeVar

import numpy as np

__all__ = [
    "MOST_STEPS",
    "check_above_zero",
    "check_amount",
    "check_betas",
    "check_choice",
    "check_count",
    "check_flag",
    "check_forms",
    "check_names",
    "check_number",
    "check_plain",
    "check_rate",
    "is_listed",
    "kind",
    "near",
    "no_flag",
    "no_pair",
    "not_finite",
    "whole_number",
    "with_known_options",
]

#: How many steps a run may have: up to here float64 counts one by one.
MOST_STEPS = 2**53

#: What other libraries call options of ours, and our own front-ends each other's.
_ELSEWHERE = {
    "alpha": ("beta", "lr"),
    "b1": ("betas",),
    "b2": ("betas",),
    "beta": ("betas",),
    "beta1": ("betas", "b1"),
    "beta2": ("betas", "b2"),
    "beta_1": ("betas", "b1"),
    "beta_2": ("betas", "b2"),
    "betas": ("b1",),
    "clip_threshold": ("clip_update",),
    "clipnorm": ("clip_norm",),
    "epsilon": ("eps",),
    "global_clipnorm": ("clip_norm",),
    "learning_rate": ("lr",),
    "lr": ("learning_rate",),
    "max_grad_norm": ("clip_norm",),
    "momentum": ("beta",),
    "rate": ("lr", "learning_rate"),
    "rho": ("beta",),
    "rolling_interval_length": ("skip_window",),
    "sigma_factor": ("skip_above",),
    "step_size": ("lr", "learning_rate"),
    "wd": ("weight_decay",),
}

#: What float() takes, though it stands for something else.
_NO_NUMBERS = (bool, np.bool_, str, bytes, bytearray)

_Init = TypeVar("_Init", bound=Callable[..., None])


def near(name: object, possible: Iterable[str]) -> str:
    """Return " Did you mean 'weight_decay'?" where ``possible`` has such a name, else ""."""
    known = {_plain(each): each for each in possible}
    plain = _plain(name)
    meant = next((known[each] for each in _ELSEWHERE.get(plain, ()) if each in known), None)
    if meant is None:
        from difflib import get_close_matches  # which nothing else needs

        found = get_close_matches(plain, known, n=1)
        meant = known[found[0]] if found else None
    return "" if meant is None else f" Did you mean {meant!r}?"


def check_names(where: str, given: Iterable[object], possible: Iterable[str]) -> None:
    """Raise TypeError where ``given`` has a name that is not ``possible``; offer the near one."""
    known = sorted(possible)
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise TypeError(
            f"{where} has the unknown option {unknown[0]!r}.{near(unknown[0], known)} "
            f"Possible are {', '.join(known)}."
        )


def with_known_options(init: _Init) -> _Init:
    """Return an ``__init__`` that refuses unknown options by the name of the class that is made.

    Python's own error names the class that defines ``__init__``, which may be another.
    """
    taken = list(inspect.signature(init).parameters.values())[1:]
    possible = [each.name for each in taken if each.kind is not inspect.Parameter.POSITIONAL_ONLY]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        check_names(f"{type(self).__name__}()", options, possible)
        init(self, *args, **options)

    return checked  # type: ignore[return-value]


def check_number(name: str, value: Any) -> float:
    """Return a number as float: infinity and NaN are numbers, text and truth values are not."""
    if type(value) is float:  # soon, since a schedule's rate is checked at every step
        return value
    if not isinstance(value, _NO_NUMBERS) and not getattr(value, "ndim", 0):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} is {value!r}, but it must be a number.{_way_out(value)}")


def check_amount(name: str, value: Any) -> float:
    """Return a number that is finite and at least 0, as float."""
    number = check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} is {number!r}, but it must be finite and at least 0.")
    return number


def check_above_zero(name: str, value: Any, *, at_zero: str, otherwise: str) -> float:
    """Return a number that is finite and above 0, as float.

    ``at_zero`` is what 0 would do, ``otherwise`` what else can be given.
    """
    number = check_number(name, value)
    if number == 0:
        raise ValueError(f"{name} is 0, which {at_zero}.")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number!r}, but it must be finite and above 0, {otherwise}.")
    return number


def check_rate(name: str, value: Any) -> float:
    """Return a decay rate as float."""
    number = check_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(
            f"{name} is {number!r}, but a decay rate must be at least 0 and less than 1."
        )
    return number


def is_listed(value: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether values stand in a tuple, a list, or what configurations have for one."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def check_betas(betas: Any, name: str = "betas") -> tuple[float | None, float | None]:
    """Return a pair of decay rates, None where a method keeps no such mean."""
    if not is_listed(betas) or len(betas) != 2:
        raise no_pair(name, betas)
    first, second = (
        None if beta is None else check_rate(f"{name}[{i}]", beta) for i, beta in enumerate(betas)
    )
    return first, second


def check_forms(state: Any, possible: Sequence[str], name: str = "state") -> tuple[str, str]:
    """Return the forms of m and of v: one name stands for both, a tuple or list for each."""
    pair = (state, state) if isinstance(state, str) else state
    if not is_listed(pair) or len(pair) != 2:
        raise TypeError(
            f"{name} is {state!r}, but it must be one of {_listed(possible)}, or a pair of them "
            "(m, v)."
        )
    return check_choice(name, pair[0], possible), check_choice(name, pair[1], possible)


def check_plain(what: str, array: Any) -> None:
    """Raise TypeError for an array whose arithmetic is not NumPy's: of masks, matrices or units."""
    own = type(array)
    if own is np.ndarray or not isinstance(array, np.ndarray):
        return
    if any(
        getattr(own, name) is not getattr(np.ndarray, name)
        for name in ("__mul__", "__array_ufunc__")
    ):
        raise TypeError(
            f"{what} is {kind(array)}, whose arithmetic is not that of plain arrays. Give "
            "numpy.asarray() of it, or .filled(0.0) where a mask counts."
        )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the names that are possible."""
    if not isinstance(value, str) or value not in choices:
        offered = near(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} is {value!r}, but it must be one of {_listed(choices)}.{offered}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return True or False, as NumPy's comparisons give them, too."""
    if not isinstance(value, (bool, np.bool_)):
        raise no_flag(name, value)
    return bool(value)


def check_count(name: str, value: Any, most: int = MOST_STEPS, least: int = 0) -> int:
    """Return a whole number from ``least`` to ``most``, as an int; 1e4 is one, too."""
    whole = whole_number(value)
    if whole is None or not least <= whole <= most:
        limit = {MOST_STEPS: "2^53", 2**64 - 1: "2^64 - 1"}.get(most, most)
        raise ValueError(
            f"{name} is {value!r}, but it must be a whole number, at least {least} and at most "
            f"{limit}."
        )
    return whole


def whole_number(value: Any) -> int | None:
    """Return what is a whole number as an int, NumPy's and 1e4 among them; None for all else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]  # as numpy.savez gives back what was a number
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    return None


def no_pair(name: str, value: object) -> TypeError:
    """Return the error of what is no pair of decay rates."""
    return TypeError(
        f"{name} is {value!r}, but it must be a pair of decay rates (β1, β2). "
        "Give for example (0.9, 0.999)."
    )


def no_flag(name: str, value: object) -> TypeError:
    """Return the error of what is neither True nor False."""
    return TypeError(f"{name} is {value!r}, but it must be True or False.")


def not_finite(found: Iterable[str]) -> FloatingPointError:
    """Return the error of a step along gradients that are not finite; ``found`` says which."""
    return FloatingPointError(
        f"Gradients are NaN or infinite: {', '.join(found)}. Nothing was changed. Look for a "
        'division or overflow in the loss, or skip such steps with on_nonfinite="skip".'
    )


def kind(value: object) -> str:
    """Return what ``value`` is, for an error: "None", "a list"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _listed(choices: Iterable[str]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)


def _plain(name: object) -> str:
    return str(name).casefold().replace("-", "_")


def _way_out(value: object) -> str:
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return f" It is text: give float({value!r})."
