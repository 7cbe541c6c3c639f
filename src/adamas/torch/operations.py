"""The rule in plain torch operations: any device, any floating dtype, any strides.

It calls ``adamas.rule.rule`` itself, on tensors that say which functions belong to them. Each
operation is one torch kernel, so nothing is fused and the bits are those of the other engines
where the device rounds correctly. Slower than the native engine; exact all the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas.coefficients import Coefficients
from adamas.rule import Result, flush, ratio, rule, smooth
from adamas.state import Entries
from adamas.statistics import ENLARGE, LANES, SHRINK, SMALLEST_SUM, TILE, Statistics

__all__ = [
    "SLAB",
    "Tensors",
    "count_nonfinite",
    "norm_from_tiles",
    "step_rmsprop",
    "step_rows",
    "step_tensor",
    "tile_sums",
]

#: Elements that sums are taken of at once, whole tiles: float64 copies of all would be too large.
SLAB = 4096 * TILE


@dataclass
class Tensors:
    """One parameter with what is stepped along: of one shape; None where there is none."""

    parameter: Tensor
    gradient: Tensor
    #: m and v as numbers, others as they are stored.
    entries: Entries
    copy: Tensor | None = None
    #: Of a parameter that is not stored to nearest: its value, in memory of its own, and what
    #: stores another and returns what it became.
    value: Tensor | None = None
    put: Callable[[Tensor], Tensor] | None = None


def step_tensor(
    tensors: Tensors,
    numbers: Coefficients,
    ema_weights: tuple[float, float],
    *,
    recorded: bool,
) -> Statistics | None:
    """Make one step in place; return what it did where that is to be ``recorded``.

    bfloat16 and float16 are computed in float32 and rounded once, on storing: to nearest, or as
    ``tensors.put`` does.
    """
    entries = tensors.entries
    start = tensors.parameter if tensors.value is None else tensors.value
    p, m, v, w = (
        None if each is None else _Operand(_real(each).to(_arithmetic(each)))
        for each in (start, entries.mean, entries.square, entries.largest_square)
    )
    assert p is not None
    g = _Operand(_real(tensors.gradient).to(p.tensor.dtype))
    result = Result(*map(_plain, rule(_rounded(numbers, p.tensor.dtype), p, g, m, v, w)))
    if tensors.put is None:
        stored = result.p.to(_real(tensors.parameter).dtype).to(p.tensor.dtype)
    else:
        stored = tensors.put(result.p)
    record = _describe(tensors.gradient, p.tensor, stored, result) if recorded else None
    if tensors.put is None:
        _store(tensors.parameter, stored)
    _store(entries.mean, result.m)
    _store(entries.square, result.v)
    _store(entries.largest_square, result.w)
    if entries.ema is not None:
        average = _Operand(_real(entries.ema).to(_arithmetic(entries.ema)))
        now = _Operand(stored.to(average.tensor.dtype))
        keep, take = (_number(weight, average.tensor.dtype) for weight in ema_weights)
        _store(entries.ema, smooth(keep, take, average, now).tensor)
    _store(tensors.copy, stored)
    return record


def step_rows(parameter: Tensor, gradient: Tensor, numbers: Coefficients) -> None:
    """Make one step of those elements alone that a sparse gradient has; nothing else is kept."""
    gradient = gradient.coalesce()
    where = tuple(gradient.indices())
    rows = parameter[where]
    step_tensor(Tensors(rows, gradient.values(), Entries()), numbers, (0.0, 0.0), recorded=False)
    parameter[where] = rows


def step_rmsprop(
    tensors: Tensors, state: dict[str, Any], options: dict[str, float], factor: float
) -> None:
    """Make one step of RMSprop with momentum, or centered, in place, by torch's formulas.

    Every operator rounds once, in the order written, as in the rule; what torch has for whole
    expressions (``addcmul_``, ``lerp_``, ``add`` with alpha) rounds as the processor likes.

    ``factor`` multiplies the gradient; ``options`` has lr, alpha, eps, weight_decay, momentum. The
    entries ``momentum_buffer`` and ``grad_avg`` of ``state`` are used where they exist.
    """
    dtype = _arithmetic(tensors.parameter)
    entries = (tensors.entries.square, state.get("grad_avg"), state.get("momentum_buffer"))
    p, g, v, mean, buffer = (
        None if each is None else _Operand(_real(each).to(dtype))
        for each in (tensors.parameter, tensors.gradient, *entries)
    )
    assert p is not None
    assert g is not None
    alpha, *others = (options[name] for name in ("alpha", "lr", "eps", "weight_decay", "momentum"))
    keep, take, scale, lr, eps, decay, momentum = (
        _number(each, dtype) for each in (alpha, 1.0 - alpha, factor, *others)
    )
    g = g * scale + decay * p
    v = smooth(keep, take * g, v, g)
    square = v
    if mean is not None:
        mean = smooth(keep, take, mean, g)
        square = v - mean * mean
    u = ratio(g, _sqrt(square) + eps)
    if buffer is not None:
        u = buffer = flush(momentum * buffer + u)
    stored = (p - lr * u).tensor
    _store(tensors.parameter, stored)
    _store(tensors.entries.square, v.tensor)
    _store(state.get("grad_avg"), mean and mean.tensor)
    _store(state.get("momentum_buffer"), buffer and buffer.tensor)
    _store(tensors.copy, tensors.parameter)


def tile_sums(x: Tensor, scale: float = 1.0) -> list[float]:
    """Return the sum of squares of each tile of ``x`` times ``scale``: adamas.statistics' order."""
    flat = _real(x).reshape(-1)
    if flat.numel() > SLAB:
        return [each for slab in flat.split(SLAB) for each in tile_sums(slab, scale)]
    flat = flat.to(torch.float64)
    tiles = -(-flat.numel() // TILE)
    padded = torch.nn.functional.pad(flat, (0, tiles * TILE - flat.numel()))
    rows = padded.reshape(tiles, TILE // LANES, LANES) * scale
    squares = rows * rows
    lanes = torch.zeros((tiles, LANES), dtype=torch.float64, device=x.device)
    for row in range(TILE // LANES):
        lanes = lanes + squares[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0].tolist()


def norm_from_tiles(
    tensors: list[Tensor],
    gathered: Callable[[list[list[float]]], list[list[float]]] = lambda parts: parts,
) -> float:
    """Return the Euclidean norm of all elements of all tensors, as one vector.

    ``gathered`` adds what other processes have of the sums of each tensor's tiles.
    """

    def total(scale: float) -> float:
        sums = gathered([tile_sums(x, scale) for x in tensors])
        try:
            return math.fsum(part for parts in sums for part in parts)
        except OverflowError:
            return math.inf

    plain = total(1.0)
    if math.isnan(plain) or SMALLEST_SUM <= plain < math.inf:
        return math.sqrt(plain)
    scale = SHRINK if plain == math.inf else ENLARGE
    return math.sqrt(total(scale)) / scale


def count_nonfinite(x: Tensor) -> int:
    """Return how many elements are infinite or NaN."""
    flat = _real(x).reshape(-1)
    return sum(int((~torch.isfinite(slab)).sum().item()) for slab in flat.split(SLAB))


def _describe(gradient: Tensor, before: Tensor, after: Tensor, result: Result) -> Statistics:
    """Return what one step did to one tensor; ``after`` is what the parameter became."""
    size = before.numel()
    moved = int((after != before).sum().item())
    return Statistics(
        gradient_norm=norm_from_tiles([gradient]),
        parameter_norm=norm_from_tiles([before]),
        update_norm=norm_from_tiles([result.change]),
        largest_update=float(result.u.abs().max().item()) if size else 0.0,
        nonfinite=count_nonfinite(gradient),
        unmoved=(size - moved) / size if size else 0.0,
    )


def _sqrt(x: _Operand) -> _Operand:
    """Return the correctly rounded root; torch's own on the CPU is a unit off here and there."""
    if not x.tensor.is_cpu:
        return _Operand(x.tensor.sqrt())
    with np.errstate(invalid="ignore"):
        return _Operand(torch.as_tensor(np.sqrt(x.tensor.detach().numpy())))


def _where(condition: Any, yes: Any, no: Any) -> _Operand:
    return _Operand(torch.where(_plain(condition), _plain(yes), _plain(no)))


#: The functions the rule asks an array for.
_NAMESPACE = SimpleNamespace(
    where=_where,
    abs=lambda x: _Operand(x.tensor.abs()),
    sqrt=_sqrt,
    zeros_like=lambda x: _Operand(torch.zeros_like(x.tensor)),
    ones_like=lambda x: _Operand(torch.ones_like(x.tensor)),
    finfo=lambda dtype: SimpleNamespace(smallest_normal=torch.finfo(dtype).smallest_normal),
)


def _operator(of: Callable[[Any, Any], Any]) -> Callable[[Any, Any], _Operand]:
    """Return an operator of operands, which may have a number on the other side."""
    return lambda one, other: _Operand(of(one.tensor, _plain(other)))


class _Operand:
    """A tensor as the rule wants its operands: with the functions that belong to it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def __array_namespace__(self) -> SimpleNamespace:
        return _NAMESPACE

    __add__ = __radd__ = _operator(operator.add)
    __sub__ = _operator(operator.sub)
    __mul__ = __rmul__ = _operator(operator.mul)
    __truediv__ = _operator(operator.truediv)
    __lt__ = _operator(operator.lt)
    __gt__ = _operator(operator.gt)
    __eq__ = _operator(operator.eq)  # pyright: ignore[reportAssignmentType]
    __ne__ = _operator(operator.ne)  # pyright: ignore[reportAssignmentType]
    __and__ = _operator(operator.and_)
    __or__ = _operator(operator.or_)
    __hash__ = None  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, _Operand) else value


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32


def _store(target: Tensor | None, value: Tensor | None) -> None:
    if target is not None and value is not None:
        _real(target).copy_(value)


def _number(value: float, dtype: torch.dtype) -> float:
    """Return ``value`` rounded to ``dtype``, so that torch's own conversion changes nothing."""
    return value if dtype == torch.float64 else torch.tensor(value, dtype=dtype).item()


def _rounded(numbers: Coefficients, dtype: torch.dtype) -> Coefficients:
    return Coefficients(*(_number(number, dtype) for number in numbers))
