"""States: what an optimizer may be given to go on from, and how steps are counted.

A state is laid out as that of optax's chain. One that was made by another method, or for another
form of m and v, would be read as what it is not; it is refused, and so is what a restored
checkpoint is before it is put into the types of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from adamas.jax.trees import Gradients, described, is_known, number_kind, place, what

__all__ = [
    "check_decaying",
    "check_dtypes",
    "check_fields",
    "check_kept",
    "check_scalar",
    "following",
    "on_devices_of",
    "parts",
    "within_int32",
]

Array = Any

#: The greatest count: that of int32.
_MOST = 2**31 - 1

_RESTORED = (
    "A checkpoint that is restored without an example has dicts, lists and arrays for the types of "
    "a state. Give optimizer.init(params) as the example (the target in flax.serialization, the "
    "item in orbax)."
)
_FRESH = (
    "Go on with the method and the options that made the state, or start anew with "
    "optimizer.init(params)."
)


def parts(state: Any, length: int) -> list[Any]:
    """Return the parts of a chain's state; TypeError or ValueError where it has others."""
    if state is None:
        raise TypeError("The state is None. Start with state = optimizer.init(params).")
    named = getattr(state, "_fields", None)
    if not isinstance(state, (tuple, list)) or named is not None:
        fields = "" if named is None else f" ({', '.join(named)})"
        way_out = f" {_RESTORED}" if isinstance(state, dict) else ""
        raise TypeError(
            f"The state is {what(state)}{fields}, but it must be the tuple that init returned. "
            f"Call update(gradients, state, params).{way_out}"
        )
    if len(state) != length:
        raise ValueError(
            f"The state has {len(state)} part{'s' * (len(state) != 1)} "
            f"({', '.join(map(what, state))}), but this optimizer "
            f"keeps {length}. {_FRESH}"
        )
    return list(state)


def on_devices_of(params: Any, state: Any) -> Any:
    """Return a state whose counts are where steps leave them: on the devices of the parameters.

    From one device they would move there in the first step, and the second would be compiled anew.
    Nothing is changed within ``jit``, where not all parameters are on one mesh or device, and where
    they are on that which JAX chose by itself.
    """
    leaves = [each for each in jax.tree.leaves(params) if isinstance(each, jax.Array)]
    if not leaves or any(isinstance(each, Tracer) for each in leaves):
        return state
    shardings = [each.sharding for each in leaves]
    meshes = {each.mesh for each in shardings if isinstance(each, NamedSharding)}
    first = shardings[0]
    home: NamedSharding | SingleDeviceSharding
    if len(meshes) == 1 and all(isinstance(each, NamedSharding) for each in shardings):
        home = NamedSharding(meshes.pop(), PartitionSpec())
    elif isinstance(first, SingleDeviceSharding) and len(set(shardings)) == 1 and _stays(leaves):
        home = first
    else:
        return state

    def placed(leaf: Any) -> Any:
        is_alone = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, SingleDeviceSharding)
        return jax.device_put(leaf, home) if is_alone else leaf

    return jax.tree.map(placed, state)


def _stays(arrays: Sequence[Array]) -> bool:
    """Return whether one of the arrays was put where it is, so that results are put there, too."""
    return any(getattr(each, "committed", False) for each in arrays)


def check_fields(where: str, part: Any, fields: Sequence[str]) -> None:
    """Raise TypeError where a part of the state has not the fields that this optimizer keeps."""
    found = getattr(part, "_fields", None)
    if found is None and not (part == () and not fields):
        is_restored = isinstance(part, (dict, list, tuple)) or part is None
        raise TypeError(
            f"{where} is {what(part)}, but this optimizer keeps {_listed(fields)} there. "
            f"{_RESTORED if is_restored else _FRESH}"
        )
    if found is not None and set(found) != set(fields):
        raise TypeError(
            f"{where} is {what(part)} of {_listed(found)}, but this optimizer keeps "
            f"{_listed(fields)} there. {_FRESH}"
        )


def check_scalar(where: str, value: Any, least: int = 0, most: int = _MOST) -> None:
    """Raise TypeError or ValueError where a count, or another whole number of a state, is none.

    Values are looked at where they are at hand: an array of JAX would have to be waited for.
    """
    dtype = jnp.result_type(value) if hasattr(value, "dtype") or isinstance(value, int) else None
    whole = dtype is not None and bool(jnp.issubdtype(dtype, jnp.integer))
    if not whole or np.dtype(dtype).itemsize < 4:
        found = what(value) if dtype is None else f"of dtype {dtype}"
        raise TypeError(f"{where} is {found}, but it must be a whole number in int32. {_FRESH}")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{where} has shape {jnp.shape(value)}, but it must be one number. Of a state that is "
            "replicated take one copy, or step it within jax.vmap or jax.pmap."
        )
    if not isinstance(value, jax.Array) and not least <= int(value) <= most:
        raise ValueError(
            f"{where} is {int(value)}, but it must be at least {least} and at most {most}. {_FRESH}"
        )


def check_kept(name: str, value: Any, wanted: bool) -> None:
    """Raise ValueError where a small state has what this optimizer keeps not, or lacks it."""
    is_empty = isinstance(value, tuple) and len(value) == 0
    if is_empty == wanted:
        has, keeps = ("has no", "keeps one") if is_empty else ("has a", "keeps none")
        raise ValueError(f"The state {has} {name}, but this optimizer {keeps}. {_FRESH}")


def check_dtypes(
    gradients: Gradients,
    names: Sequence[str | None],
    kept: Sequence[list[Any] | None],
    codes: Sequence[Any] | None,
) -> None:
    """Raise TypeError where state has not the dtype that it is read in.

    ``codes`` are the dtypes of a small state; other states have any that is floating.
    """
    wanted = (None,) * len(names) if codes is None else codes
    for name, leaves, code in zip(names, kept, wanted, strict=True):
        if leaves is None:
            continue
        loses = code is not None or name not in ("nu", "nu_max")  # which keep sizes alone
        for path, gradient, leaf in gradients.each(leaves):
            if code is None and number_kind(leaf) not in ("floating", "complex"):
                raise TypeError(
                    f"{_entry(name, path)} {described(leaf)}, but a moment is a floating-point "
                    "number. If the parameter is one of whole numbers, convert it, give None for "
                    "its gradient, or leave it out with optax.masked; if these are codes, give "
                    "the options that made them."
                )
            # NumPy's float64 may be float32 for JAX.
            if code is not None and getattr(leaf, "dtype", None) != code != _dtype(leaf):
                raise TypeError(
                    f"{_entry(name, path)} {described(leaf)}, but this optimizer keeps "
                    f"{np.dtype(code)} there. {_FRESH}"
                )
            if loses and number_kind(gradient) == "complex" != number_kind(leaf):
                raise TypeError(
                    f"The gradient at {place(path)} is complex, but the state's {name} has dtype "
                    f"{jnp.result_type(leaf)}, which would lose the imaginary part. Call init with "
                    "complex parameters, and leave mu_dtype and state out."
                )


def _dtype(leaf: Any) -> Any:
    """Return the dtype that JAX has for a leaf; None where it has none."""
    return jnp.result_type(leaf) if is_known(getattr(leaf, "dtype", None) or type(leaf)) else None


def _entry(name: str | None, path: Any) -> str:
    return f"The state's {name} at {place(path)}"


def check_decaying(gradients: Gradients, params: list[Any], means: list[Any] | None) -> None:
    """Raise TypeError where a parameter cannot decay, or would lose its imaginary part in it."""
    for path, gradient, p, m in gradients.each(params, means or [0.0] * len(params)):
        if number_kind(p) is None:
            raise TypeError(
                f"The parameter at {place(path)} {described(p)}, but what decays must be an array "
                "of numbers."
            )
        if number_kind(p) == "complex" and "complex" not in map(number_kind, (gradient, m)):
            raise TypeError(
                f"The parameter at {place(path)} is complex, but its gradient and state are real, "
                "which would lose the imaginary part of its decay. Call init with these parameters."
            )


# -- counts --------------------------------------------------------------------------------------


def following(count: Array) -> Array:
    """Return count + 1, as far as its dtype goes."""
    count = jnp.asarray(count)
    most = np.array(np.iinfo(count.dtype).max - 1, count.dtype)
    return jnp.minimum(count, most) + np.array(1, count.dtype)


def within_int32(count: Array) -> Array:
    """Return a count in int32, the greatest where it is beyond: nothing changes from there on."""
    count = jnp.asarray(count)
    return count if count.dtype == np.int32 else jnp.minimum(count, _MOST).astype(np.int32)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(fields) or "nothing"
