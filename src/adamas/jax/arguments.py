"""What the functions are called with: names, numbers and dtypes, checked before they are used.

A number is a float where it is known when the program is made, else an array without axes
(``optax.inject_hyperparams`` makes such arrays), of which dtype and shape are known at once, and
the value only when the program runs.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamas.checks import check_amount, check_flag, check_names, check_number, check_rate
from adamas.options import Phase

__all__ = [
    "amount",
    "bound",
    "check_mask",
    "check_seed",
    "check_values",
    "greatest",
    "known_by",
    "number",
    "number_or_schedule",
    "rate",
    "threshold",
]

Array = Any
Number = Any
Schedule = Callable[[Any], Any]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def known_by(name: str, **defaults: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator for functions that speak of themselves by ``name`` in errors.

    ``defaults`` stand in place of the function's own.
    """

    def decorated(make: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(make)
        parameters = [
            each.replace(default=defaults.get(each.name, each.default))
            for each in signature.parameters.values()
        ]
        signature = signature.replace(parameters=parameters)
        changed: Any = make  # which takes the defaults too, but a ParamSpec cannot say so

        @functools.wraps(make)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            check_names(f"{name}()", kwargs, signature.parameters)
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{name}(): {error}.") from None
            for each, value in given.items():
                if isinstance(signature.parameters[each].default, bool):
                    check_flag(each, value)
                if each.endswith("_dtype"):
                    _check_floating(each, value)
            return changed(*args, **{**defaults, **kwargs})

        checked.__name__ = checked.__qualname__ = name
        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorated


# -- numbers -------------------------------------------------------------------------------------


def number(name: str, value: Any) -> Number:
    """Return a float that is finite, or an array without axes."""
    return _array(name, value) if isinstance(value, jax.Array) else _finite(name, value)


def number_or_schedule(name: str, value: Any) -> Number | Schedule:
    """Return a number, or a function of the count."""
    return value if callable(value) else number(name, value)


def rate(name: str, value: Any) -> Number:
    """Return a decay rate."""
    return _array_or(name, value, check_rate)


def amount(name: str, value: Any) -> Number:
    """Return a number that is at least 0."""
    return _array_or(name, value, check_amount)


def greatest(name: str, value: Any) -> Number:
    """Return a greatest learning rate, which is above 0."""
    return _array_or(name, value, _check_greatest)


def threshold(name: str, value: Any) -> Number:
    """Return a bound of ρ_t that is at least 4."""
    return _array_or(name, value, _check_threshold)


def bound(name: str, value: Any) -> Number:
    """Return what updates are clipped at, or None."""
    return _array_or(name, value, _check_bound)


def _check_bound(name: str, value: Any) -> float | None:
    return Phase(**{name: value}).clip_update


def _array_or(name: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return an array without axes, or what ``check`` returns of any other value."""
    _check_fixed(name, value)
    return _array(name, value) if isinstance(value, jax.Array) else check(name, value)


def check_values(arrays: Mapping[str, Array], names: Mapping[str, str]) -> None:
    """Raise ValueError where an array whose value can be seen holds none that makes sense.

    ``names`` are those that users have. Reading waits for a device, so this is for ``init`` alone.
    """
    checks: dict[str, Callable[[str, Any], float]]
    checks = dict.fromkeys(("b1", "b2", "momentum"), check_rate)
    checks |= dict.fromkeys(("eps", "eps_root", "initial_scale"), check_amount)
    checks["threshold"] = _check_threshold
    checks["lr_max"] = _check_greatest
    checks["clip_update"] = bound
    for name, array in arrays.items():
        if not isinstance(array, Tracer) and array.is_fully_addressable:
            checks.get(name, _finite)(names.get(name, name), float(array))


def check_seed(seed: Array) -> None:
    """Raise TypeError where a seed that is an array is no whole number."""
    if seed.shape != () or not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(
            f"seed has dtype {seed.dtype} and shape {seed.shape}, but it must be a whole number. "
            "With optax.inject_hyperparams name it in static_args."
        )


def check_mask(mask: Any, is_injected: bool) -> None:
    """Raise ValueError where a function for the mask was asked for a number instead."""
    if is_injected and isinstance(mask, (bool, np.bool_)):
        raise ValueError(
            f"mask is {mask}, for the whole tree. optax.inject_hyperparams calls functions with "
            "the count, also one that makes a mask: name mask in static_args. If nothing is to "
            "decay, give weight_decay=0.0; if all is, leave mask out."
        )


def _check_floating(name: str, dtype: Any) -> None:
    """Raise TypeError where ``dtype`` is given and cannot hold a moving average."""
    if dtype is None:
        return
    try:
        is_floating = jnp.issubdtype(jnp.result_type(jnp.dtype(dtype)), jnp.inexact)
    except TypeError:
        known, is_floating = "which is no dtype of JAX", False
    else:
        known = "but moments are floating-point numbers"
    if not is_floating:
        raise TypeError(
            f'{name} is {dtype!r}, {known}. Give for example "bfloat16"; 8-bit states are made '
            'with state="8bit".'
        )


def _finite(name: str, value: Any) -> float:
    found = check_number(name, value)
    if not math.isfinite(found):
        raise ValueError(f"{name} is {found!r}, but it must be finite.")
    return found


def _check_greatest(name: str, value: Any) -> float:
    found = _finite(name, value)
    if found <= 0:
        raise ValueError(
            f"{name} is {found!r}, but weight decay is divided by it. Give the greatest learning "
            "rate of the run."
        )
    return found


def _check_threshold(name: str, value: Any) -> float:
    found = _finite(name, value)
    if found < 4:
        raise ValueError(
            f"{name} is {found!r}, but it must be at least 4: below, r_t is no real number. Liu et "
            "al. (2020) have 4 in the paper and 5 in their code."
        )
    return found


def _array(name: str, value: Array) -> Array:
    if value.shape != () or not _is_real(value.dtype):
        raise TypeError(f"{name} is {value!r}, but it must be a number.")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(jnp.float32)
    if jnp.finfo(value.dtype).bits < 32:
        raise ValueError(
            f"{name} has dtype {value.dtype}, which rounds {_example(value.dtype)}. Give it in "
            "float32; optax.inject_hyperparams takes the dtype of the parameters unless it has "
            "hyperparam_dtype=jnp.float32."
        )
    return value


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))


def _example(dtype: Any) -> str:
    """Return what the dtype makes of usual numbers."""
    near_one, tiny = (float(np.asarray(x).astype(dtype)) for x in (0.999, 1e-8))
    return f"0.999 to {near_one:.4g} and 1e-8 to {tiny:.3g}"


def _check_fixed(name: str, value: Any) -> None:
    if callable(value) and not isinstance(value, jax.Array):
        raise TypeError(
            f"{name} is a function, but only learning_rate and weight_decay are asked for at each "
            f"step. Use optax.inject_hyperparams to schedule {name}."
        )
