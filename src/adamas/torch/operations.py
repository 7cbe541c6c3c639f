"""The rule in plain torch operations: any device, any floating dtype, any strides.

It calls ``adamas.rule.rule`` itself, on tensors that say which functions belong to them. Each
operation is one torch kernel, so nothing is fused and the bits are those of the other engines
where the device rounds correctly. Slower than the native engine; exact all the same.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas import digits
from adamas.coefficients import Coefficients
from adamas.digits import BITS, DIGITS, INFINITE, NAN, WIDTH
from adamas.engines import native
from adamas.engines.triton import devices
from adamas.marks import LARGEST, word_count
from adamas.rule import Result, flush, ratio, rule, smooth, unsmoothed
from adamas.state import Entries
from adamas.statistics import OfPart

__all__ = [
    "SLAB",
    "Tensors",
    "mark",
    "marked",
    "marked_by_operations",
    "marks_of",
    "row_by_operations",
    "row_of",
    "step_rmsprop",
    "step_rows",
    "step_tensor",
    "store",
    "take_marks",
    "update_row",
]

#: Elements that are looked at at once: copies of all would be too large.
SLAB = 1 << 20
#: Elements that are added before digits are carried: each adds less than 2^51 to a digit.
_AT_ONCE = 2048
#: Half a digit.
_HALF = BITS // 2
_HALF_MASK = (1 << _HALF) - 1
_MASK = (1 << BITS) - 1
#: Marks that are looked at together.
_BYTE = 8
#: What brings eight booleans together: 2^7 + 2^14 + ... + 2^56.
_GATHERED = sum(1 << 7 * each for each in range(1, 9))
#: What has the bits of a dtype, by its bytes.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    #: Where elements are marked that change: of the copy, where there is one.
    marks: Tensor | None = None

    @property
    def own_marks(self) -> Tensor | None:
        """The marks where they are of the parameter."""
        return self.marks if self.copy is None else None


def step_tensor(
    tensors: Tensors,
    numbers: Coefficients,
    ema_weights: tuple[float, float],
    *,
    recorded: bool,
) -> OfPart | None:
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
        before = None if tensors.own_marks is None else tensors.parameter.clone()
        stored = tensors.put(result.p)
        if before is not None and tensors.own_marks is not None:
            mark(tensors.own_marks, before, tensors.parameter)
    record = _describe(tensors.gradient, p.tensor, stored, result) if recorded else None
    if tensors.put is None:
        store(tensors.parameter, stored, tensors.own_marks)
    store(entries.mean, result.m)
    store(entries.square, result.v)
    store(entries.largest_square, result.w)
    if entries.ema is not None:
        average = _Operand(_real(entries.ema).to(_arithmetic(entries.ema)))
        now = _Operand(stored.to(average.tensor.dtype))
        keep, take = (_number(weight, average.tensor.dtype) for weight in ema_weights)
        store(entries.ema, smooth(keep, take, average, now).tensor)
    store(tensors.copy, stored, tensors.marks)
    return record


def update_row(tensors: Tensors, numbers: Coefficients) -> Tensor:
    """Return the row of ``adamas.digits`` of what an update is clipped by; nothing is changed."""
    entries = tensors.entries
    start = tensors.parameter if tensors.value is None else tensors.value
    dtype = _arithmetic(start)
    c = _rounded(numbers, dtype)
    p, g, v, w = (
        None if each is None else _Operand(_real(each).to(dtype))
        for each in (start, tensors.gradient, entries.square, entries.largest_square)
    )
    return row_of(unsmoothed(c, p if c.l2 != 0 else None, g, v, w).tensor)


def step_rows(
    parameter: Tensor, gradient: Tensor, numbers: Coefficients, marks: Tensor | None = None
) -> None:
    """Make one step of those elements alone that a sparse gradient has; nothing else is kept.

    Which of them change is marked where there are ``marks``.
    """
    gradient = gradient.coalesce()
    where = tuple(gradient.indices())
    rows = parameter[where]
    before = None if marks is None else rows.clone()
    step_tensor(Tensors(rows, gradient.values(), Entries()), numbers, (0.0, 0.0), recorded=False)
    parameter[where] = rows
    if marks is not None and before is not None:
        _mark_rows(marks, parameter.shape, where, _differs(before, rows))


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
    store(tensors.parameter, stored, tensors.own_marks)
    store(tensors.entries.square, v.tensor)
    store(state.get("grad_avg"), mean and mean.tensor)
    store(state.get("momentum_buffer"), buffer and buffer.tensor)
    store(tensors.copy, tensors.parameter, tensors.marks)


# ── which elements have changed ────────────────────────────────────────────────────────────────


def marks_of(before: Tensor, after: Tensor) -> Tensor:
    """Return marks of the elements that are stored as other bits: see ``adamas.marks``.

    Of any dtype and strides, on one device, where the marks are too. A complex number is one
    element. Nothing waits for the device.
    """
    count = before.numel()
    marks = torch.zeros(word_count(count), dtype=torch.int32, device=before.device)
    one, other = before.detach().reshape(-1), after.detach().reshape(-1)
    for start in range(0, count, SLAB):
        part = slice(start, start + SLAB)
        differs = _packed(_differs(one[part], other[part]))
        first = start // _BYTE
        marks.view(torch.uint8)[first : first + len(differs)] = differs
    return marks


def mark(marks: Tensor, before: Tensor, after: Tensor) -> None:
    """Mark, besides what is marked, the elements that are stored as other bits."""
    marks |= marks_of(before, after).to(marks.device)


def take_marks(marks: Tensor, found: Tensor, like: Tensor) -> None:
    """Move marks that number elements as those of ``like`` lie in memory, without gaps."""
    each = torch.arange(_BYTE, dtype=torch.uint8, device=found.device)
    bits = (found.view(torch.uint8).unsqueeze(1) >> each) & 1
    ordered = torch.as_strided(bits, like.shape, like.stride()).reshape(-1)
    packed = _packed(ordered.to(torch.bool))
    marks.view(torch.uint8)[: len(packed)] |= packed
    found.zero_()


def marked(marks: Tensor, count: int) -> Tensor:
    """Return the places of the bits that are set in marks of ``count`` elements, ascending.

    They are int32, or int64 where there are more than 2^31 - 1 elements, on the device of the
    marks. It waits for the device, which has to say how many there are.
    """
    if devices.takes(marks.device):
        from adamas.engines.triton.marks import marked as marked_by_triton

        return marked_by_triton(marks, _index_dtype(count))
    if marks.is_cpu:  # several times faster
        return torch.from_numpy(native.marked(marks.numpy(), count))
    return marked_by_operations(marks, count)


def marked_by_operations(marks: Tensor, count: int) -> Tensor:
    """Return them by operations of their device."""
    dtype = _index_dtype(count)
    found = [torch.empty(0, dtype=dtype, device=marks.device)]
    each = torch.arange(_BYTE, dtype=torch.uint8, device=marks.device)
    for first, part in enumerate(marks.view(torch.uint8).split(SLAB // _BYTE)):
        # Most bytes are 0, or most bits are set: in both cases little more is written than found.
        where = part.nonzero().view(-1)
        bits = (part[where].unsqueeze(1) >> each) & 1
        of_those = bits.view(-1).nonzero().view(-1)
        place = (where[of_those >> 3] << 3) | (of_those & 7)
        found.append((place + first * SLAB).to(dtype))
    return torch.cat(found)


def _index_dtype(count: int) -> torch.dtype:
    return torch.int32 if count <= LARGEST else torch.int64


def _differs(before: Tensor, after: Tensor) -> Tensor:
    """Return where two tensors of one dtype and shape are stored as other bits."""
    pair = (_real(each.resolve_conj().resolve_neg()) for each in (before, after))
    one, other = (each.view(_BITS[each.itemsize]) for each in pair)
    return (one != other).any(-1) if before.is_complex() else one != other


def _packed(flags: Tensor) -> Tensor:
    """Return booleans as bits, the first the lowest: bytes, of which the last may not be full."""
    lacking = -len(flags) % _BYTE
    flags = torch.nn.functional.pad(flags, (0, lacking)) if lacking else flags.contiguous()
    # Byte i of eight is the bit 8 i. Of the products with 2^7, 2^14, ... 2^56, the one that moves
    # it to 56 + i is above all others, and no two meet.
    eight = flags.view(torch.uint8).view(torch.int64)
    return ((eight * _GATHERED) >> (64 - _BYTE)).to(torch.uint8)


def _mark_rows(
    marks: Tensor, shape: torch.Size, where: tuple[Tensor, ...], differs: Tensor
) -> None:
    """Mark what ``differs`` in the rows that stand at ``where``, each there once."""
    place = torch.zeros_like(where[0])
    for index, length in zip(where, shape, strict=False):
        place = place * length + index
    within = shape[len(where) :].numel()
    place = place.unsqueeze(1) * within + torch.arange(within, device=place.device)
    place, differs = place.reshape(-1), differs.reshape(-1)
    word, bit = place >> 5, (place & 31).to(torch.int32)
    # Bits that are not set yet: their sums are their unions.
    is_new = differs & ((marks[word] >> bit) & 1 == 0)
    marks.index_add_(0, word, is_new.to(torch.int32) << bit)


# ── exact sums ─────────────────────────────────────────────────────────────────────────────────


def row_of(tensor: Tensor) -> Tensor:
    """Return the row of ``adamas.digits`` of the squares of a tensor, on the tensor's device.

    Any strides; complex numbers count as two. Nothing waits for the device.
    """
    flat = _real(tensor.detach().resolve_conj().resolve_neg()).reshape(-1)
    if flat.is_cpu:  # several times faster
        bits = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
        array = bits.numpy()
        return torch.from_numpy(
            native.row_of([array.view(np.uint16) if bits is not flat else array])
        )
    return row_by_operations(flat)


def row_by_operations(flat: Tensor) -> Tensor:
    """Return the row of a real tensor of one dimension, by operations of its device."""
    row = torch.zeros(WIDTH, dtype=torch.int64, device=flat.device)
    for slab in flat.split(SLAB):
        row = _carried(row + _nearly_carried(slab))
    return row


def _nearly_carried(flat: Tensor) -> Tensor:
    """Return the row of a few elements; its digits are below 2^60."""
    significand, exponent, is_infinite, is_nan = _taken_apart(flat)
    # An element is a whole number times 2^(24 q): its square begins at digit q. Parts of 24 bits
    # are multiplied, so that no product leaves int64.
    q = exponent // _HALF
    shift = exponent - q * _HALF
    width = 4 if flat.dtype == torch.float64 else 2
    # Of at most 76 bits: the lowest 24 of them, and what is above.
    above = (significand >> (_HALF * i - shift).clamp(max=63) for i in range(1, width))
    parts = [each & _HALF_MASK for each in (significand << shift, *above)]
    columns = [torch.zeros_like(q) for _ in range(2 * width - 1)]
    for (i, one), (j, other) in itertools.product(enumerate(parts), repeat=2):
        columns[i + j] += one * other
    buckets = -(-flat.numel() // _AT_ONCE)
    padding = (0, buckets * _AT_ONCE - flat.numel())
    rows = torch.zeros((buckets, WIDTH), dtype=torch.int64, device=flat.device)
    for digit in range(width):
        found = columns[2 * digit]
        if digit > 0:
            found = found + (columns[2 * digit - 1] >> _HALF)
        if digit < width - 1:
            found = found + ((columns[2 * digit + 1] & _HALF_MASK) << _HALF)
        where, what = (
            torch.nn.functional.pad(each, padding).view(buckets, _AT_ONCE)
            for each in (q + digit, found)
        )
        rows.scatter_add_(1, where, what)
    row = _carried_once(rows).sum(0)
    row[INFINITE], row[NAN] = is_infinite.sum(), is_nan.sum()
    return row


def _taken_apart(flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return magnitudes as whole numbers and exponents, and which are infinite, and which NaN.

    An element is its number times 2^(exponent - 1074); what is not finite has the number 0.
    """
    if flat.dtype == torch.float64:
        bits, fraction_bits, last, lowest = flat.view(torch.int64), 52, 0x7FF, 0
    else:
        bits = flat.to(torch.float32).view(torch.int32).to(torch.int64)
        fraction_bits, last, lowest = 23, 0xFF, 1074 - 149
    exponent = bits >> fraction_bits & last
    fraction = bits & (1 << fraction_bits) - 1
    is_special = exponent == last
    is_zero = fraction == 0
    number = torch.where(exponent > 0, fraction | 1 << fraction_bits, fraction)
    number = number.masked_fill(is_special, 0)
    place = (exponent.clamp(min=1) - 1).masked_fill(is_special, 0)
    return number, place + lowest, is_special & is_zero, is_special & ~is_zero


def _carried_once(rows: Tensor) -> Tensor:
    """Return equal rows: what digits have above 2^48 is added to the next ones, once."""
    carry = rows[..., : DIGITS - 1] >> BITS
    rows = rows.clone()
    rows[..., : DIGITS - 1] &= _MASK
    rows[..., 1:DIGITS] += carry
    return rows


def _carried(row: Tensor) -> Tensor:
    """Return an equal row whose digits are below 2^48; they were below 2^62."""
    row = _carried_once(_carried_once(row))
    # Now no digit is above 2^48. One of 2^48 carries 1, and those of 2^48 - 1 above it pass it on:
    # what a digit carries is told by the last one, from it downwards, that does not pass it on.
    own = row[:DIGITS]
    index = torch.arange(DIGITS, device=row.device)
    source = torch.where(own == _MASK, -1, index).cummax(0).values
    carry = (own >> BITS)[source.clamp(min=0)] * (source >= 0)
    own = own & _MASK
    own[1:] += carry[:-1]
    return torch.cat([own & _MASK, row[DIGITS:]])


def _describe(gradient: Tensor, before: Tensor, after: Tensor, result: Result) -> OfPart:
    """Return what one step did to one tensor; ``after`` is what the parameter became."""
    size = before.numel()
    moved = int((after != before).sum().item())
    sums = torch.stack([*map(row_of, (gradient, before, result.change))]).cpu().numpy()
    return OfPart(
        *map(digits.norm, sums),
        largest_update=float(result.u.abs().max().item()) if size else 0.0,
        nonfinite=digits.nonfinite(sums[0]),
        unmoved=(size - moved) / size if size else 0.0,
        sums=sums,
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


def store(target: Tensor | None, value: Tensor | None, marks: Tensor | None = None) -> None:
    """Write real values into a tensor; mark those that are stored as other bits than before.

    Nothing where there is no tensor, or no values.
    """
    if target is None or value is None:
        return
    if marks is not None:
        value = value.to(_real(target))
        is_pair = target.is_complex()
        mark(marks, target, torch.complex(value[..., 0], value[..., 1]) if is_pair else value)
    _real(target).copy_(value)


def _number(value: float, dtype: torch.dtype) -> float:
    """Return ``value`` rounded to ``dtype``, so that torch's own conversion changes nothing."""
    return value if dtype == torch.float64 else torch.tensor(value, dtype=dtype).item()


def _rounded(numbers: Coefficients, dtype: torch.dtype) -> Coefficients:
    return Coefficients(*(_number(number, dtype) for number in numbers)).with_shared_decay()
