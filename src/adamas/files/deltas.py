"""What a file of changes holds, and whether files belong together and fit what stands somewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.changes import steps_in_words
from adamas.files import arrays
from adamas.files.atomic import naming, opened
from adamas.files.contents import CHANGES, listed
from adamas.files.targets import BITS, Piece
from adamas.files.tensors import DTYPES, Stored, read

__all__ = ["Delta", "check_follows", "check_together", "joined", "names_in", "read_delta"]

Array = NDArray[Any]

_ENTRIES = {
    "format", "kind", "first_step", "last_step", "is_whole", "part", "parts", "follows", "place",
    "shapes",
}  # fmt: skip
_INDICES = {"I32": np.int32, "I64": np.int64}


class Delta(NamedTuple):
    """What a file holds."""

    path: str
    first: int
    last: int
    is_whole: bool
    part: int
    parts: tuple[int, ...]
    follows: str
    place: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    pieces: Mapping[str, Piece]

    @property
    def steps(self) -> str:
        """The steps in words."""
        if self.last < self.first:
            return f"changes after step {self.last}, without a step"
        return f"the changes of {steps_in_words(self.first, self.last)}"


class _NotBuiltError(ValueError):
    """A file that is whole, but not what ``save_changes`` writes."""


def read_delta(path: str) -> Delta:
    """Return what a file holds; ValueError where it is damaged, or no file of changes."""
    with naming(path), opened(path) as file:
        about, tensors = read(file, path, "a later one with everything in it")
    if about.get("kind") != CHANGES:
        raise ValueError(
            f"{path} is a checkpoint of adamas.save, which holds no changes. Load it into an "
            "optimizer with adamas.load."
        )
    try:
        return _delta(path, about, tensors)
    except (AttributeError, KeyError, RecursionError, TypeError, _NotBuiltError) as error:
        why = f" ({error})" if isinstance(error, _NotBuiltError) else ""
        raise ValueError(
            f"{path} is not built as changes are{why}, so it cannot be applied. Give a file that "
            "adamas.save_changes wrote."
        ) from None


def _delta(path: str, about: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Delta:
    """Return what a file holds; an error of any kind where it is not built as it should be."""
    numbers = [about["first_step"], about["last_step"], about["part"], *about["parts"]]
    shapes = {name: tuple(map(_whole, shape)) for name, shape in about["shapes"].items()}
    first, last, part, *parts = map(_whole, numbers)
    is_built = (
        set(about) == _ENTRIES
        and type(about["is_whole"]) is bool
        and type(about["follows"]) is type(about["place"]) is str
        and first <= last + 1
        and part in parts
        and {f"values/{name}" for name in shapes} <= set(tensors)
        and set(tensors) <= {f"{what}/{name}" for name in shapes for what in ("values", "indices")}
    )
    if not is_built:
        raise _NotBuiltError("its entries are others")
    pieces: dict[str, Piece] = {}
    dtypes: dict[str, str] = {}
    for name, shape in shapes.items():
        values = tensors[f"values/{name}"]
        dtypes[name], width = DTYPES[values.dtype]
        bits = arrays.little(values.data.view(BITS[width]))
        indices = tensors.get(f"indices/{name}")
        if values.shape != (shape if indices is None else indices.shape):
            raise _NotBuiltError(f"{name} has {values.shape} values, which is not what it needs")
        pieces[name] = Piece(None if indices is None else _indices(name, indices, shape), bits)
    return Delta(
        path, first, last, about["is_whole"], part, tuple(parts), about["follows"], about["place"],
        shapes, dtypes, pieces,
    )  # fmt: skip


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise _NotBuiltError(f"{number!r} is no number of steps, ranks or elements")
    return number


def _indices(name: str, stored: Stored, shape: tuple[int, ...]) -> Array:
    if stored.dtype not in _INDICES or len(stored.shape) != 1:
        raise _NotBuiltError(f"the indices of {name} are not a list of int32 or int64")
    indices = arrays.little(stored.data.view(_INDICES[stored.dtype]))
    if len(indices) and not 0 <= indices.min() <= indices.max() < math.prod(shape):
        raise _NotBuiltError(
            f"{name} has {math.prod(shape)} elements, but the indices go from {indices.min()} to "
            f"{indices.max()}"
        )
    if not (indices[1:] > indices[:-1]).all():
        raise _NotBuiltError(f"the indices of {name} do not ascend")
    return indices


def names_in(deltas: Iterable[Delta]) -> list[str]:
    """Return the names of all tensors that changed."""
    return list(dict.fromkeys(name for delta in deltas for name in delta.pieces))


# ── whether files belong together ──────────────────────────────────────────────────────────────


def check_together(deltas: Sequence[Delta]) -> None:
    """Raise ValueError where files are not the parts of one delta, or not all of them."""
    one, *others = deltas
    for other in others:
        if (other.first, other.last) != (one.first, one.last):
            raise ValueError(
                f"{one.path} has {one.steps}, but {other.path} has {other.steps}. Give the files "
                "that all processes wrote after one step; apply one set after the other."
            )
    given = {delta.part: delta.path for delta in deltas}
    if len(given) < len(deltas):
        parts = [delta.part for delta in deltas]
        twice = next(part for part in parts if parts.count(part) > 1)
        raise ValueError(
            f"{listed(delta.path for delta in deltas if delta.part == twice)} are of one process, "
            f"that of rank {twice}. Give one file of each process."
        )
    for delta in deltas:
        missing = sorted(set(delta.parts) - set(given))
        if missing:
            raise ValueError(
                f"{delta.path} is a part of changes that {len(delta.parts)} processes wrote, but "
                f"there is no file of rank {listed(map(str, missing))}. Give the files of all of "
                "them, as a list."
            )


def joined(deltas: Sequence[Delta], name: str) -> Piece:
    """Return what all files have of a tensor; ValueError where they differ."""
    have = [delta for delta in deltas if name in delta.pieces]
    pieces = [delta.pieces[name] for delta in have]
    alike = {(delta.shapes[name], delta.dtypes[name]) for delta in have}
    if len(alike) == 1 and len(pieces) == 1:
        return pieces[0]
    # Replicas are told by each process that has one.
    united = _united(pieces) if len(alike) == 1 else None
    if united is None:
        raise ValueError(
            f"{listed(delta.path for delta in have)} differ in what they have of {name}, so they "
            "are not of one training. Give the files that its processes wrote after one step."
        )
    return united


def _united(pieces: Sequence[Piece]) -> Piece | None:
    """Return what has all elements of all pieces; None where two of them differ."""
    for whole in pieces:
        if whole.indices is None:
            alike = (
                np.array_equal(
                    whole.values if each.indices is None else whole.values[each.indices],
                    each.values,
                )
                for each in pieces
            )
            return whole if all(alike) else None
    indices = np.concatenate([each.indices for each in pieces if each.indices is not None])
    values = np.concatenate([each.values for each in pieces])
    order = np.argsort(indices, kind="stable")
    indices, values = indices[order], values[order]
    is_twin = indices[1:] == indices[:-1]
    if not (values[1:] == values[:-1])[is_twin].all():
        return None
    is_new = np.append(True, ~is_twin)
    return Piece(indices[is_new], values[is_new])


def check_follows(delta: Delta, stands: int, place: str | None) -> None:
    """Raise ValueError where changes do not fit a model that stands at a step and a place.

    They may begin before that: then they have all that the model has, and more. ``place`` is None
    where it is not known.
    """
    follows, ends = place == delta.follows, place == delta.place
    has = f"{delta.path} has {delta.steps}"
    again = (
        f"Give a file with everything in it, or say by after={delta.first - 1} that the model has "
        "the values of that step."
    )
    if ends and stands == delta.last and (delta.first <= delta.last or not follows):
        raise ValueError(f"{has}, and the model has them already. Go on with the next file.")
    if stands > delta.last or (stands == delta.last >= delta.first and not follows):
        raise ValueError(f"{has}, but the model stands at step {stands} already. {again}")
    if stands < delta.first - 1:
        raise ValueError(
            f"{has}, but the model stands at step {stands}, and lacks the changes of "
            f"{steps_in_words(stands + 1, delta.first - 1)}. Apply the files with those first, or "
            "one with everything in it."
        )
    if place is not None and not follows and not ends:
        raise ValueError(
            f"{has}, which the model's step fits, but not what was put into it: they are of "
            "another training, or of this one after it went back to an earlier state, or others "
            f"before them were told elsewhere. {again}"
        )
