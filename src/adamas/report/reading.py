"""A record as columns: what is drawn, and what is looked for in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, nan, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import records

__all__ = ["FIELDS", "Group", "Numbers", "Run", "Tensor", "read"]

Numbers = NDArray[np.float64]

#: What is kept of each tensor at each line.
FIELDS = (
    "gradient_norm",
    "parameter_norm",
    "update_norm",
    "largest_update",
    "nonfinite",
    "unmoved",
    "below_eps",
)

#: Options of the rule that are True or not.
_FLAGS = ("amsgrad", "nesterov", "rectify", "maximize")

#: Numbers of tensors that are held; of larger records lines are left out.
MOST = 16_000_000


@dataclass(frozen=True)
class Group:
    """The options of a group, as the last header of the record has them."""

    lr: float | None
    betas: tuple[float | None, float | None]
    eps: float | None
    weight_decay: float | None
    state: Any
    rounding: str | None
    #: How parameters decay; None in records that do not tell.
    decay: str | None = None
    lr_max: float | None = None
    #: The names of the options that are True.
    flags: tuple[str, ...] = ()

    @property
    def square_steps(self) -> float | None:
        """1/(1 - β2): over how many steps v averages; None where there is no such number."""
        beta = self.betas[1]
        return None if beta is None or not 0 <= beta < 1 else 1 / (1 - beta)


@dataclass(frozen=True)
class Tensor:
    """A parameter of the run."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: Group | None

    @property
    def count(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Run:
    """A record, by columns: rows are its lines, NaN is what a line has not."""

    name: str
    #: Headers, in their order: more than one where the run was resumed or its options were changed.
    headers: tuple[dict[str, Any], ...]
    tensors: tuple[Tensor, ...]
    groups: tuple[Group, ...]
    #: Which of the record's lines these are: all (1), every second one (2), …
    stride: int
    #: Of each line: the number of the step, and when it was written, in seconds since 1970.
    steps: NDArray[np.int64]
    times: Numbers
    #: A column for each group.
    lr: Numbers
    gradient_norm: Numbers
    clip_factor: Numbers
    #: Since the line before, how many steps were clipped.
    clipped: Numbers
    #: How many steps were left out so far, by reason.
    skipped: dict[str, Numbers]
    #: What the user noted, by name.
    notes: dict[str, Numbers]
    #: Statistics by field of `FIELDS`, a column for each tensor.
    of: dict[str, Numbers]

    @property
    def phase(self) -> dict[str, Any]:
        """Options of whole steps, as the last header has them."""
        return self.headers[-1].get("phase") or {}

    @property
    def ratio(self) -> Numbers:
        """Norm of the update by the norm of the parameter; NaN where the parameter is 0."""
        return _divided(self.of["update_norm"], self.of["parameter_norm"])

    @property
    def left_out(self) -> int:
        """How many steps were left out, by the last line that tells."""
        return int(sum(np.nanmax(each, initial=0) for each in self.skipped.values()))


def read(path: str | Path, name: str | None = None) -> Run:
    """Return the run that a record is of.

    Of a record that is too large to be held every second line is kept, or every third, …; what
    lines count since the one before is added up. Raises OSError where it cannot be read,
    ValueError where it is no record, is one of another format, or has no line of a step.
    """
    try:
        return _read(Path(path), Path(path).name if name is None else name)
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}).") from error


def _read(path: Path, name: str) -> Run:
    headers, names, count = _surveyed(path)
    if not count:
        raise ValueError(
            f"{path} has a header, but no line of a step yet. Wait until the run has made its "
            "first step."
        )
    stride = ceil(count * len(names) * len(FIELDS) / MOST) or 1
    kept = _kept(path, {each: place for place, each in enumerate(names)}, stride)
    lines = [line for line, _ in kept]
    of = {
        field: np.array([values[place] for _, values in kept]).reshape(len(kept), len(names))
        for place, field in enumerate(FIELDS)
    }
    groups, tensors = _parameters(headers[-1], names)
    norms = _column(line.get("gradient_norm") for line in lines)
    norms = np.where(np.isnan(norms), _norm(of["gradient_norm"]), norms)
    return Run(
        name=name,
        headers=headers,
        tensors=tensors,
        groups=groups,
        stride=stride,
        steps=np.array([line["step"] for line in lines], np.int64),
        times=_column(line.get("time") for line in lines),
        lr=_rates([line.get("lr") for line in lines], len(groups)),
        gradient_norm=norms,
        clip_factor=_column(line.get("clip_factor") for line in lines),
        clipped=_column(line.get("clipped") for line in lines),
        skipped=_columns([line.get("skipped") for line in lines]),
        notes=_columns([line.get("notes") for line in lines]),
        of=of,
    )


def _surveyed(path: Path) -> tuple[tuple[dict[str, Any], ...], list[str], int]:
    """Return the headers, the names of all tensors, and the number of lines of steps."""
    headers: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    count = 0
    for line, is_header in records.lines(path):
        if is_header:
            headers.append(line)
        else:
            count += 1
            names |= dict.fromkeys(line.get("tensors") or ())
    return tuple(headers), [*(dict.fromkeys(headers[-1].get("parameters") or ()) | names)], count


def _kept(path: Path, places: dict[str, int], stride: int) -> list[tuple[dict[str, Any], Numbers]]:
    """Return the lines that are kept, without their tensors, and the numbers of these.

    Where a run was resumed the later lines count, and those that they replace go.
    """
    kept: list[tuple[dict[str, Any], Numbers]] = []
    waiting: tuple[dict[str, Any], Numbers] | None = None
    is_resumed, number = False, 0
    for line, is_header in records.lines(path):
        if is_header:
            is_resumed = bool(kept) or waiting is not None
            continue
        if is_resumed:
            while kept and kept[-1][0]["step"] >= line["step"]:
                kept.pop()
            if waiting is not None and waiting[0]["step"] >= line["step"]:
                waiting = None
            if stride > 1:  # lines between may be gone with what they have counted
                line.pop("clipped", None)
            is_resumed = False
        waiting = _added(waiting, line, _numbers_of(line, places))
        number += 1
        if number % stride == 0:
            kept.append(waiting)
            waiting = None
    return kept if waiting is None else [*kept, waiting]


def _numbers_of(line: dict[str, Any], places: dict[str, int]) -> Numbers:
    """Return the numbers of tensors, a row for each field; removes them from the line."""
    numbers = np.full((len(places), len(FIELDS)), nan)
    for tensor, values in (line.pop("tensors", None) or {}).items():
        if tensor in places:
            numbers[places[tensor]] = [_number(values.get(field)) for field in FIELDS]
    return numbers.T


def _added(
    before: tuple[dict[str, Any], Numbers] | None, line: dict[str, Any], numbers: Numbers
) -> tuple[dict[str, Any], Numbers]:
    """Return a line with what the one before it, which is not kept, has counted."""
    if before is None:
        return line, numbers
    line["clipped"] = _number(line.get("clipped")) + _number(before[0].get("clipped"))
    row = FIELDS.index("nonfinite")
    counted = np.nan_to_num(before[1][row])
    numbers[row] = np.where(counted > 0, np.nan_to_num(numbers[row]) + counted, numbers[row])
    return line, numbers


def _parameters(
    header: dict[str, Any], names: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[Tensor, ...]]:
    """Return groups and tensors, as the header tells them."""
    groups: list[Group] = []
    group_of: dict[str, Group] = {}
    for given in header.get("groups") or ():
        group = _group(given)
        groups.append(group)
        group_of |= dict.fromkeys(given.get("parameters") or (), group)
    known: dict[str, Any] = header.get("parameters") or {}
    tensors = tuple(
        Tensor(
            name,
            tuple(known.get(name, {}).get("shape") or ()),
            str(known.get(name, {}).get("dtype", "")),
            group_of.get(name),
        )
        for name in names
    )
    return tuple(groups), tensors


def _group(given: dict[str, Any]) -> Group:
    betas = given.get("betas")
    first, second = betas if isinstance(betas, list) and len(betas) == 2 else (None, None)
    return Group(
        lr=_option(given.get("lr")),
        betas=(_option(first), _option(second)),
        eps=_option(given.get("eps")),
        weight_decay=_option(given.get("weight_decay")),
        state=given.get("state"),
        rounding=given.get("rounding"),
        decay=decay if isinstance(decay := given.get("decay"), str) else None,
        lr_max=_option(given.get("lr_max")),
        flags=tuple(name for name in _FLAGS if given.get(name) is True),
    )


def _option(value: Any) -> float | None:
    number = _number(value)
    return None if np.isnan(number) else number


def _number(value: Any) -> float:
    """Return a number; NaN of what is none."""
    if type(value) is float:  # as nearly all are
        return value
    with suppress(TypeError, ValueError):
        return float(value)
    return nan


def _column(values: Iterable[Any]) -> Numbers:
    return np.array([_number(value) for value in values])


def _columns(lines: Sequence[Any]) -> dict[str, Numbers]:
    """Return a column for each name that any line has."""
    found = [line if isinstance(line, dict) else {} for line in lines]
    names = dict.fromkeys(name for line in found for name in line)
    return {name: _column(line.get(name) for line in found) for name in names}


def _rates(lines: Sequence[Any], groups: int) -> Numbers:
    """Return the rates of each line, as many as there are groups in the end, or in any line."""
    found = [line if isinstance(line, list) else [line] for line in lines]
    width = max(groups, *map(len, found))
    return np.array([[*map(_number, line), *[nan] * (width - len(line))] for line in found])


def _norm(of_tensors: Numbers) -> Numbers:
    """Return the norm of all tensors together at each line; NaN where there is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.nansum(np.square(of_tensors), axis=1))
    return np.where(np.isnan(of_tensors).all(axis=1), nan, norms)


def _divided(a: Numbers, b: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(b > 0, a / b, nan)
