"""Nested containers of arrays: their leaves, and the names of the leaves.

A tree is an array, or a list, tuple or dict of trees. A leaf is named by the way to it:
``"encoder.0.weight"`` is ``tree["encoder"][0]["weight"]``; a lone array is ``"x"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from adamas.checks import kind

__all__ = ["LONE", "Tree", "changed_leaf", "difference_of_keys", "leaves", "matching_leaves"]

#: An array, or a list, tuple or dict of trees; typing cannot say it recursively.
Tree = Any

#: The name of an array that stands alone.
LONE = "x"


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and leaf of every leaf, depth first; keys of dicts in their own order."""
    if isinstance(tree, (Mapping, list, tuple)):
        for key, branch in _branches(tree):
            yield from leaves(branch, _joined(path, key))
    else:
        yield path or LONE, tree


def changed_leaf(tree: Tree, leaves_before: Sequence[tuple[str, Any]]) -> str | None:
    """Return the name of a leaf that is not the one it was, or None; the order is no matter.

    ``leaves_before`` are names and leaves that ``leaves`` gave.
    """
    found = list(leaves(tree))
    before, now = dict(leaves_before), dict(found)
    for name, leaf in leaves_before:
        if now.get(name) is not leaf:
            return name
    return next((name for name, leaf in found if before.get(name) is not leaf), None)


def matching_leaves(tree: Tree, like: Tree, what: str, path: str = "") -> Iterator[Any]:
    """Yield the leaves of ``tree`` in the order of the leaves of ``like``.

    ``what`` names the tree in errors. Raises ValueError where the two are not built alike.
    """
    here = f"{what} at {path}" if path else what
    if isinstance(like, Mapping):
        if not isinstance(tree, Mapping):
            raise ValueError(f"{here} is {kind(tree)}, but the parameters are a dict there.")
        difference = difference_of_keys(set(tree), set(like))
        if difference:
            raise ValueError(
                f"{here} {difference}. Give one gradient for each parameter, by its name."
            )
        for key, branch in like.items():
            yield from matching_leaves(tree[key], branch, what, _joined(path, key))
    elif isinstance(like, (list, tuple)):
        if not isinstance(tree, (list, tuple)):
            raise ValueError(f"{here} is {kind(tree)}, but the parameters are a list there.")
        if len(tree) != len(like):
            raise ValueError(
                f"{here} has {len(tree)} entries, but the parameters have {len(like)}. "
                "Give one gradient for each parameter, in the same order."
            )
        for key, (branch, twin) in enumerate(zip(tree, like, strict=True)):
            yield from matching_leaves(branch, twin, what, _joined(path, key))
    elif isinstance(tree, (Mapping, list, tuple)):
        raise ValueError(f"{here} is {kind(tree)}, but the parameters are one array there.")
    else:
        yield tree


def difference_of_keys(given: Set[Any], wanted: Set[Any]) -> str:
    """Return what is wrong with the keys of a dict, "lacks 'b'" for example, or "" if nothing."""
    missing = ", ".join(sorted(map(repr, wanted - given)))
    extra = ", ".join(sorted(map(repr, given - wanted)))
    found = [f"lacks {missing}"] * bool(missing) + [f"has the unknown {extra}"] * bool(extra)
    return " and ".join(found)


def _branches(tree: Tree) -> Iterator[tuple[Any, Tree]]:
    yield from tree.items() if isinstance(tree, Mapping) else enumerate(tree)


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
