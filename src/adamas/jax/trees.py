"""Trees of gradients, parameters, state and mask: their leaves side by side, if they fit.

Errors name the place by its path, and come before anything is computed: shapes and dtypes are
known when a program is made, so under ``jit`` these checks cost nothing in a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamas.checks import kind

__all__ = [
    "Gradients",
    "check_parameters",
    "decaying",
    "described",
    "dtype_kind",
    "flattened",
    "is_known",
    "number_kind",
    "place",
    "what",
]

Array = Any
Tree = Any

_LIKE_INIT = "All trees must be like the one that init was called with."


class Gradients(NamedTuple):
    """The leaves of a tree of gradients, with what tells where each of them is."""

    tree: Tree
    #: None where there is no gradient, or none that moves anything: of a parameter that is whole.
    leaves: list[Array | None]
    structure: Any
    paths: list[Any]
    #: The gradients of whole parameters by their place among the leaves.
    whole: dict[int, Any]

    @property
    def are_values(self) -> bool:
        """Whether a step is made now, not a program for it."""
        return not any(isinstance(each, Tracer) for each in self.leaves)

    def updated(self, updates: list[Array | None]) -> Tree:
        """Return the tree of updates, which is 0 for parameters that are whole numbers."""
        zeros = {i: jnp.zeros(jnp.shape(each), bool) for i, each in self.whole.items()}
        return self.structure.unflatten([zeros.get(i, each) for i, each in enumerate(updates)])

    def beside(
        self, name: str, tree: Tree, shape: Callable[[Array], tuple[int, ...]] = jnp.shape
    ) -> list[Any]:
        """Return what ``tree`` has in the place of each gradient; ValueError where it differs.

        ``shape`` says of a gradient which shape stands beside it.
        """
        try:
            found = self.structure.flatten_up_to(tree)
        except (TypeError, ValueError):
            difference = _difference(
                self.tree, tree, ("the tree of gradients", name), none_is_leaf=True
            )
            raise ValueError(f"{difference} {_LIKE_INIT}") from None
        for path, gradient, leaf in zip(self.paths, self.leaves, found, strict=True):
            if gradient is not None and not _is_alike(leaf, gradient, shape):
                _check_shape(f"{name} at {place(path)}", leaf, shape(gradient))
        return found

    def only(self, leaves: list[Any]) -> list[Any]:
        """Return what stands beside a gradient, and None where there is none."""
        pairs = zip(self.leaves, leaves, strict=True)
        return [None if gradient is None else leaf for gradient, leaf in pairs]

    def kept(self, before: list[Any], after: list[Any]) -> Tree:
        """Return a tree of what is after a step, and where there is no gradient what was before."""
        rows = zip(self.leaves, before, after, strict=True)
        return self.structure.unflatten([old if g is None else new for g, old, new in rows])

    def each(self, *lists: list[Any]) -> list[tuple[Any, ...]]:
        """Return path, gradient and what stands beside it, where there is a gradient."""
        return [
            row for row in zip(self.paths, self.leaves, *lists, strict=True) if row[1] is not None
        ]


def flattened(gradients: Tree) -> Gradients:
    """Return the leaves of ``gradients``; TypeError where one is neither an array nor None.

    Integers are numbers as others. Parameters that are whole numbers have no derivative (dtype
    float0, from ``jax.grad`` with ``allow_int``): they are left alone.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(gradients, is_leaf=_is_none)
    for path, leaf in found:
        if leaf is not None and number_kind(leaf) is None:
            raise TypeError(
                f"The gradient at {place(path)} {described(leaf)}, but it must be an array of "
                "numbers, or None where a parameter has none."
            )
    leaves = [leaf for _, leaf in found]
    whole = {i: leaf for i, leaf in enumerate(leaves) if number_kind(leaf) == "float0"}
    moving = [None if i in whole else leaf for i, leaf in enumerate(leaves)] if whole else leaves
    return Gradients(gradients, moving, structure, [path for path, _ in found], whole)


def check_parameters(params: Tree) -> None:
    """Raise TypeError where a leaf of ``params`` is no array."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not _is_array(leaf):
            raise TypeError(
                f"The parameter at {place(path)} {described(leaf)}, but state is kept for arrays "
                "of numbers. Call init with these alone; of an Equinox module they are "
                "eqx.filter(model, eqx.is_inexact_array)."
            )


def number_kind(x: Any) -> str | None:
    """Return ``dtype_kind`` of an array or number; None for what is neither."""
    dtype = getattr(x, "dtype", None)
    if dtype is not None and hasattr(x, "shape"):
        return dtype_kind(dtype)
    return dtype_kind(jnp.result_type(x)) if _is_array(x) else None


@functools.lru_cache(maxsize=64)
def dtype_kind(dtype: Any) -> str | None:
    """Return "floating", "complex", "whole" or "float0" for a dtype of such numbers, else None."""
    if dtype == jax.dtypes.float0:
        return "float0"
    if not is_known(dtype):
        return None
    kinds = {"floating": jnp.floating, "complex": jnp.complexfloating, "whole": jnp.integer}
    found = (name for name, each in kinds.items() if jnp.issubdtype(dtype, each))
    return next(found, "whole" if jnp.issubdtype(dtype, jnp.bool_) else None)


@functools.lru_cache(maxsize=64)
def is_known(dtype: Any) -> bool:
    """Return whether JAX has arrays of a dtype: not of objects, nor of other libraries' dtypes."""
    try:  # in the dtype that JAX takes it in: it warns of others that were asked for
        jnp.result_type(jax.dtypes.canonicalize_dtype(dtype))
    except (TypeError, ValueError):
        return False
    return True


def _is_alike(leaf: Any, gradient: Array, shape: Callable[[Array], tuple[int, ...]]) -> bool:
    """Return soon whether a leaf is an array of the shape that it must have."""
    found = getattr(leaf, "shape", None)
    if shape is jnp.shape:
        return found is not None and found == getattr(gradient, "shape", None)
    return found == shape(gradient)


def _check_shape(where: str, leaf: Any, shape: tuple[int, ...]) -> None:
    if leaf is None:
        raise ValueError(
            f"{_upper(where)} is None, but there is a gradient. Call init with a tree that has "
            "all parameters that are trained."
        )
    if not _is_array(leaf):
        raise ValueError(
            f"{_upper(where)} {described(leaf)}, but the gradient is an array. {_LIKE_INIT}"
        )
    if jnp.shape(leaf) != shape:
        raise ValueError(
            f"{_upper(where)} has shape {jnp.shape(leaf)}, but beside this gradient it must have "
            f"shape {shape}. {_LIKE_INIT}"
        )


# -- masks ---------------------------------------------------------------------------------------


def decaying(mask: Any, tree: Tree) -> list[bool]:
    """Return for each leaf of ``tree`` (None is one) what the mask says.

    As in optax, a mask whose leaves are all callable is a function of the tree; any other is a
    tree of booleans, though it may be callable, as modules of Equinox are. Its tree is a prefix.
    """
    name = "the mask"
    leaves = jax.tree.leaves(mask)
    if all(map(callable, leaves)) and callable(mask):
        mask, name = mask(tree), "what the mask returned"
    found, structure = jax.tree_util.tree_flatten_with_path(mask)
    try:
        parts = structure.flatten_up_to(tree)
    except (TypeError, ValueError):
        difference = _difference(mask, tree, (name, "the tree of arrays"), none_is_leaf=False)
        raise ValueError(
            f"{difference} A mask is a tree of booleans like the parameters, or a prefix of it, or "
            "a function that makes one of them."
        ) from None
    flags: list[bool] = []
    for (path, flag), part in zip(found, parts, strict=True):
        is_true = _flag(name, path, flag)
        flags += [is_true] * len(jax.tree.leaves(part, is_leaf=_is_none))
    return flags


def _flag(name: str, path: Any, flag: Any) -> bool:
    if isinstance(flag, Tracer):
        raise TypeError(
            f"{_upper(name)} has an array at {place(path)} whose value is known only when the "
            "program runs. Give True or False."
        )
    is_array = (
        isinstance(flag, (np.ndarray, jax.Array)) and flag.shape == () and flag.dtype.kind == "b"
    )
    if not is_array and not isinstance(flag, (bool, int, np.bool_)):
        is_many = hasattr(flag, "shape") and hasattr(flag, "dtype")
        found = f"an array of shape {flag.shape} and dtype {flag.dtype}" if is_many else repr(flag)
        raise TypeError(
            f"{_upper(name)} has {found} at {place(path)}, but it must be True or False."
        )
    return bool(flag)


# -- differences ---------------------------------------------------------------------------------


def _difference(
    a: Tree, b: Tree, names: tuple[str, str], path: tuple[Any, ...] = (), *, none_is_leaf: bool
) -> str:
    """Return the first place where ``b`` has not the nodes of ``a``, or "" where it has all."""
    inner_a, node_a = _level(a)
    inner_b, node_b = _level(b)
    is_leaf = jax.tree_util.treedef_is_leaf(node_a) and node_a.num_leaves == 1  # None has none
    if is_leaf or (a is None and none_is_leaf):
        return ""
    if node_a == node_b:
        pairs = zip(inner_a, inner_b, strict=True)
        differences = (
            _difference(x, y, names, (*path, *key), none_is_leaf=none_is_leaf)
            for (key, x), (_, y) in pairs
        )
        return next(filter(None, differences), "")
    first, second = names
    where = place(path)
    if type(a) is not type(b):
        return _upper(f"{second} has {what(b)} at {where}, where {first} has {what(a)}.")
    keys_a, keys_b = ([jax.tree_util.keystr(key) for key, _ in each] for each in (inner_a, inner_b))
    missing = ", ".join(key for key in keys_a if key not in keys_b)
    extra = ", ".join(key for key in keys_b if key not in keys_a)
    words = (f"lacks {missing}" if missing else "", f"has {extra} besides" if extra else "")
    found = " and ".join(filter(None, words)) or f"has another {type(a).__name__}"
    return _upper(f"{second} {found} at {where}, compared with {first}.")


def _level(tree: Tree) -> tuple[list[Any], Any]:
    """Return the children of the topmost node with their keys, and the node without them."""
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)


def what(x: Any) -> str:
    """Return what a part of a tree is."""
    return "an array" if _is_array(x) else kind(x)


def described(x: Any) -> str:
    """Return what is said of a part of a tree that is not what it must be."""
    is_array = isinstance(x, (np.ndarray, np.generic, jax.Array))
    return f"has dtype {x.dtype}" if is_array else f"is {kind(x)}"


def place(path: Sequence[Any]) -> str:
    """Return a path as text."""
    return jax.tree_util.keystr(tuple(path)) or "the root"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_none(x: Any) -> bool:
    return x is None


def _is_array(x: Any) -> bool:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return is_known(x.dtype)
    return isinstance(x, (int, float, complex))
