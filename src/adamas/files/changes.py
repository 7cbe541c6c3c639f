"""What steps have changed, in a file, and how it is put into a model or arrays.

Of a tensor ``<name>`` a file has ``values/<name>``, one after the other, and ``indices/<name>``,
where they stand in the flattened tensor. Without indices all of the tensor is there, in its shape.
All else is JSON under the key ``adamas`` of the file's metadata: the shapes of the whole tensors,
the numbers of the first and last step, whether it is everything, the rank of the process (``part``)
and those that tell the rest of it (``parts``), and two random words. ``follows`` is where a model
must stand for the changes to fit, ``place`` is where it stands then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adamas.assignments import all_at_once
from adamas.changes import Changes
from adamas.checks import check_count, check_flag, kind
from adamas.files import arrays
from adamas.files.atomic import AnyPath, replacing, text_of
from adamas.files.contents import CHANGES, listed
from adamas.files.deltas import (
    Delta,
    check_follows,
    check_together,
    joined,
    names_in,
    read_delta,
)
from adamas.files.standing import Standing, known, remembering
from adamas.files.targets import Piece, Target, targets_of
from adamas.files.tensors import Source, write

__all__ = ["apply_changes", "save_changes"]

#: Dtypes that copies of parameters can have, as ``copy_to`` makes them.
_COPIES = ("bfloat16", "float16")


def save_changes(path: AnyPath, changes: Changes) -> None:
    """Write what ``optimizer.changes()`` returned to ``path``, atomically, and then clear it.

    The file is a safetensors file, written as ``save`` does it. Whatever happens, the changes are
    in the file, or the next ``optimizer.changes()`` gives them again. Of sharded parameters each
    process writes its own, to a file of its own; these belong together. Raises OSError where the
    file cannot be written, and TypeError for dtypes that safetensors lacks.
    """
    name = text_of(path, "before the changes")
    if not isinstance(changes, Changes):
        raise TypeError(
            f"changes is {kind(changes)}, but it must be what optimizer.changes() returned, as it "
            "is: what has changed is cleared once the file is in place."
        )
    sources: dict[str, Source] = {}
    shapes: dict[str, list[int]] = {}
    for change in changes.each():
        if change.name in shapes:
            raise ValueError(f"Two parameters have the name {change.name}. Give each its own.")
        shapes[change.name] = list(change.shape)
        values, indices = f"values/{change.name}", f"indices/{change.name}"
        if len(change.indices) == math.prod(change.shape):
            sources[values] = _source(values, change.values.reshape(change.shape))
        else:
            sources[values] = _source(values, change.values)
            sources[indices] = _source(indices, change.indices)
    about = {
        "kind": CHANGES,
        "first_step": changes.first_step,
        "last_step": changes.last_step,
        "is_whole": changes.is_whole,
        "part": changes.part,
        "parts": list(changes.parts),
        "follows": changes.follows,
        "place": changes.place,
        "shapes": shapes,
    }
    with replacing(name) as file:
        write(file, sources, about)
    changes.clear()


def apply_changes(
    target: Any,
    path: AnyPath | Sequence[AnyPath],
    *,
    after: int | None = None,
    strict: bool = True,
) -> int:
    """Put what ``save_changes`` wrote into a model, in place; return the step it stands at then.

    ``target`` is a ``torch.nn.Module``, or a dict (list, tuple) of PyTorch tensors or NumPy arrays
    by the names of the parameters, such as a ``state_dict()``. Of DTensors each process writes the
    elements it has. ``path`` is a file, or the files of all processes that had a part.

    Changes fit what stands where they begin. That is remembered of all tensors that changes were
    put into, as long as nothing else writes to them (of arrays that cannot be seen). ``after`` says
    it where it is not known: the number of the last step that the tensors have, 0 where they are as
    the training began. Files with everything fit anything, and all of one tensor fits it wherever
    it stands. With ``strict=False`` parameters that ``target`` lacks are passed over.

    All is checked before anything is written. Raises OSError where a file cannot be read, KeyError
    where ``target`` lacks a parameter, and ValueError where a file is damaged, does not follow on,
    or is of other shapes or dtypes; then nothing is changed.
    """
    paths = _paths(path)
    after = None if after is None else check_count("after", after)
    targets = targets_of(target)
    deltas = [read_delta(each) for each in paths]
    check_together(deltas)
    pieces = {name: joined(deltas, name) for name in names_in(deltas)}
    named = _chosen(deltas, targets, check_flag("strict", strict))
    for name in named:
        _check_like(deltas, name, targets[name])
    stood = _stood(deltas, targets, _in_part(pieces, targets, named), after)
    last = deltas[0].last
    places = {each.part: each.place for each in deltas}
    # What stands elsewhere and has not been named stays there; with everything all is named.
    is_told, is_whole = {*named}, all(each.is_whole for each in deltas)
    told = [
        each for name, each in targets.items()
        if name in is_told or (not is_whole and (stood is None or known(each.memory()) == stood))
    ]  # fmt: skip
    changed = [(targets[name], targets[name].own(pieces[name])) for name in named]
    _put(changed, told, Standing(last, places))
    return last


def _source(name: str, values: Any) -> Source:
    """Return a tensor of either kind as it is to be written, on the host by now."""
    if isinstance(values, np.ndarray):
        try:
            return arrays.source(values)
        except KeyError:
            raise TypeError(f"{name} has dtype {values.dtype}, which safetensors lacks.") from None
    from adamas.files.torch import source

    return source(name, values.cpu(), "Give what it is of a dtype that it has.")


def _paths(path: Any) -> list[str]:
    beside = "after the model"
    if isinstance(path, (str, bytes, os.PathLike)) or not isinstance(path, Iterable):
        return [text_of(path, beside)]
    paths = [text_of(each, beside) for each in path]
    if not paths:
        raise ValueError("path names no file. Give a file, or those of all processes.")
    return paths


# ── whether they fit a target ──────────────────────────────────────────────────────────────────


def _chosen(deltas: Sequence[Delta], targets: Mapping[str, Target], strict: bool) -> list[str]:
    """Return the names of what is to be changed; KeyError where a target is missing."""
    names = names_in(deltas)
    missing = [name for name in names if name not in targets]
    hint = _wrapped(missing, targets) if missing else ""
    # Where none of the names fits, and others would, it is no part of the model that was meant.
    if missing and (strict or not targets or (hint and len(missing) == len(names))):
        raise KeyError(
            f"{_called(deltas)} changes {listed(missing)}, which the model lacks: it has "
            f"{listed(targets)}.{hint} Names are those that the optimizer was given by "
            "named_parameters(). Give a model with these, a dict of its tensors by the names in "
            "the file, or strict=False and a part of the model, to pass over what is missing."
        )
    return [name for name in names if name in targets]


def _wrapped(missing: Sequence[str], targets: Iterable[str]) -> str:
    """Return a hint where names differ by what is put before all, as DDP and compile do."""
    name, here = missing[0], set(targets)
    for other in targets:
        longer, shorter = other.removesuffix(name), name.removesuffix(other)
        if longer.endswith("."):
            others = {longer + each for each in missing}
        elif shorter.endswith("."):
            others = {each.removeprefix(shorter) for each in missing}
        else:
            continue
        if others <= here:
            return f" {other} may be {name}, in a model that is wrapped, or unwrapped."
    return ""


def _check_like(deltas: Iterable[Delta], name: str, target: Target) -> None:
    """Raise an error where a tensor is not one that the changes were made of."""
    (path, shape, dtype), *_ = (
        (delta.path, delta.shapes[name], delta.dtypes[name])
        for delta in deltas
        if name in delta.shapes
    )
    if target.shape != shape:
        raise ValueError(
            f"{path} changes {name} of shape {shape}, but here it has shape {target.shape}. Give a "
            "model of the same sizes."
        )
    if target.dtype != dtype:
        way_out = (
            f", or have the training track a copy of this dtype (copy_to=torch.{target.dtype})"
            if target.dtype in _COPIES else ""
        )  # fmt: skip
        raise ValueError(
            f"{path} has new elements of {name} in {dtype}, but here it has dtype {target.dtype}. "
            f"Keep it in {dtype} and convert it after each change{way_out}."
        )
    target.check()


def _in_part(
    pieces: Mapping[str, Piece], targets: Mapping[str, Target], named: Sequence[str]
) -> list[str]:
    """Return the names of what keeps some elements; where the others stood is of no matter."""
    return [name for name in named if len(pieces[name].values) < math.prod(targets[name].shape)]


def _stood(
    deltas: Sequence[Delta],
    targets: Mapping[str, Target],
    named: Sequence[str],
    after: int | None,
) -> Standing | None:
    """Return where what is to be changed stands; ValueError where changes do not follow on that.

    None where it is not remembered but said, or of no matter.
    """
    # Of small parts everything may have changed when not all of the others' has.
    deltas = [delta for delta in deltas if not delta.is_whole]
    if not deltas:
        return None
    if after is not None:
        for delta in deltas:
            check_follows(delta, after, None)
        return None
    standings = {name: known(target.memory()) for name, target in targets.items()}
    if not named:  # nothing, or all of some tensors: it fits what has last been changed
        named = [name for name, standing in standings.items() if standing is not None]
        named = named or list(standings)[:1]
    found = {name: standings[name] for name in named}
    first = deltas[0].first
    for name, standing in found.items():
        if standing is None:
            raise ValueError(
                f"{_called(deltas)} has {deltas[0].steps}, but it is not known which step {name} "
                "stands at: no changes were put into it, or something else has written to it "
                f"since. Give after={first - 1} if it has the values of that step, or a file with "
                "everything in it."
            )
    if not found:
        return None
    (one, standing), *others = found.items()
    assert standing is not None
    for other, elsewhere in others:
        if elsewhere is not None and elsewhere != standing:
            raise ValueError(
                f"{_called(deltas)} has {deltas[0].steps}, but {one} stands at step "
                f"{standing.step} of what it follows and {other} at step {elsewhere.step}. Give a "
                "file with everything in it, or say by after= which step all of them stand at."
            )
    for delta in deltas:
        check_follows(delta, standing.step, standing.places.get(delta.part, ""))
    return standing


def _called(deltas: Sequence[Delta]) -> str:
    more = f" (with {len(deltas) - 1} more)" if len(deltas) > 1 else ""
    return deltas[0].path + more


# ── putting them in ────────────────────────────────────────────────────────────────────────────


def _put(
    changed: Sequence[tuple[Target, Piece]],
    told: Sequence[Target],
    standing: Standing,
) -> None:
    """Write all pieces and remember where ``told`` stand then, or leave all as it was."""
    stood = [known(target.memory()) for target in told]
    before: list[tuple[Target, Piece]] = []
    try:
        for target, piece in changed:
            before.append((target, Piece(piece.indices, target.read(piece.indices))))
            target.write(piece)
        all_at_once([remembering(target.memory(), standing) for target in told])
    except BaseException:
        for target, piece in reversed(before):
            target.write(piece)
        # That was a change of ours, too: what they stood at holds again.
        all_at_once(map(remembering, [target.memory() for target in told], stood))
        raise
