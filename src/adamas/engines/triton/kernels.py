"""The kernels that go through memory: two read, one steps everything.

A launch covers all tensors that are stored alike, whatever their number and shapes: each program
takes one chunk, and finds its tensor's addresses in the table. What a chunk's elements are stored
as is known when a kernel is compiled; where they are, when it runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from adamas.codecs import BLOCK
from adamas.engines.triton.codecs import (
    decode_bfloat16,
    decode_means_8bit,
    decode_means_compact,
    decode_remainder,
    decode_squares_8bit,
    encode_bfloat16,
    encode_float16,
    encode_means_8bit,
    encode_means_compact,
    encode_remainder,
    encode_remainder8,
    encode_squares_8bit,
    encode_squares_compact,
    float_of,
    random_bits,
    random_bits_at,
    random_bits_of_parameter,
    relative_mean,
    root_scale,
)
from adamas.engines.triton.numbers import coefficients_at, number_at
from adamas.engines.triton.rule import rule, smooth, unsmoothed
from adamas.engines.triton.sums import (
    ENTRIES,
    LARGEST,
    MOVED,
    ROW,
    added,
    no_row,
    nonfinite,
    norm_of,
    put_row,
    squares,
)
from adamas.engines.triton.tables import (
    APPLIED,
    CHUNK,
    CHUNK_BITS,
    CHUNK_MASK,
    COPY,
    COUNT,
    EMA,
    FIRST,
    HEADER,
    KEEP,
    LARGEST_SQUARE,
    LARGEST_UPDATE,
    MARKS,
    MEAN,
    NONFINITE_ELEMENTS,
    NORMS,
    NUMBERS,
    PARAMETER,
    REMAINDER,
    SQUARE,
    STATISTICS_WIDTH,
    TABLE_WIDTH,
    TAKE,
    TOP,
    UNMOVED,
)

__all__ = ["describe", "measure", "read", "sweep"]

#: Elements with one header of the 8bit codec.
_RUN: tl.constexpr = tl.constexpr(BLOCK)
#: Elements that share a word of marks: as many, so that words and headers are masked alike.
_WORD: tl.constexpr = tl.constexpr(32)
assert _WORD.value == BLOCK
#: Elements that go together: four for each of 128 threads. So float32 is read and
#: written 16 bytes at a time, arrays of all widths are spread over threads alike, and small forms
#: need two thirds of the registers that eight would.
_BLOCK: tl.constexpr = tl.constexpr(512)
#: Elements whose squares are added at once where updates are measured.
_MEASURED: tl.constexpr = tl.constexpr(1024)


class Arrays(NamedTuple):
    """Addresses of one tensor's arrays."""

    p: Any
    g: Any
    m: Any
    v: Any
    w: Any
    ema: Any
    copy: Any
    header: Any
    remainder: Any
    marks: Any


class Stepped(NamedTuple):
    """What some elements leave behind besides their new values."""

    g: Any
    before: Any
    after: Any
    u: Any
    change: Any


@triton.jit(do_not_specialize=["chunks_each"])
def read(
    pieces, table, gradients, rows, chunks_each, P: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """Write the row of the squares of one piece of the gradients: so many chunks of a tensor."""
    LOW: tl.constexpr = 16 if P == "bfloat16" else 13 if P == "float16" else 0
    SIZE: tl.constexpr = 1024 if P == "float64" else 2048
    tensor, at, left = piece_of(pieces, table, chunks_each)
    g = tl.load(gradients + tensor)
    offsets = tl.arange(0, SIZE)
    total = no_row()
    for start in range(0, left, SIZE):
        if start + SIZE <= left:
            code = load(g, at + start, offsets, None, P, ALIGNED)
        else:
            code = load(g, at + start, offsets, offsets < left - start, P, ALIGNED)
        total += squares(value(code, None, P), LOW)
    put_row(rows, tl.program_id(0), total)


@triton.jit(do_not_specialize=["chunks_each"])
def measure(
    pieces, table, gradients, numbers, verdict, rows, chunks_each,
    P: tl.constexpr, V: tl.constexpr, W: tl.constexpr, ROUNDING: tl.constexpr,
    GUARDED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the row of the squares of what updates are clipped by, of one piece of a tensor.

    The constants are those of ``sweep``.
    """
    if GUARDED:
        if tl.load(verdict + APPLIED) == 0.0:
            return
    T: tl.constexpr = tl.float64 if P == "float64" else tl.float32
    tensor, at, left = piece_of(pieces, table, chunks_each)
    row = table + tensor * TABLE_WIDTH
    p, g = tl.load(row + PARAMETER), tl.load(gradients + tensor)
    v, w = tl.load(row + SQUARE), tl.load(row + LARGEST_SQUARE)
    header, remainder = tl.load(row + HEADER), tl.load(row + REMAINDER)
    c = coefficients_at(numbers + tensor * NUMBERS, T)
    offsets, blocks = tl.arange(0, _MEASURED), tl.arange(0, _MEASURED // _RUN)
    total = no_row()
    for start in range(0, left, _MEASURED):
        if start + _MEASURED <= left:
            update = update_at(
                c, p, g, v, w, header, remainder, at + start, offsets, blocks, None, None,
                P, V, W, ROUNDING, ALIGNED,
            )  # fmt: skip
        else:
            mask = offsets < left - start
            update = update_at(
                c, p, g, v, w, header, remainder, at + start, offsets, blocks,
                mask, blocks * _RUN < left - start,
                P, V, W, ROUNDING, ALIGNED,
            )  # fmt: skip
            update = tl.where(mask, update, 0.0)
        total += squares(update, 0)
    put_row(rows, tl.program_id(0), total)


@triton.jit
def update_at(
    c, p, g, v, w, header, remainder, at, offsets, blocks, mask, block_mask,
    P: tl.constexpr, V: tl.constexpr, W: tl.constexpr, ROUNDING: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return what the update of some elements would be without a first moment."""
    OWN: tl.constexpr = "float64" if P == "float64" else "float32"
    g = value(load(g, at, offsets, mask, P, ALIGNED), None, P)
    if V == "8bit":
        header = header_at(header, at, blocks, block_mask)
    v = square_at(v, header, at, offsets, mask, V, OWN, ALIGNED)
    if W:
        w = load(w, at, offsets, mask, OWN, ALIGNED)
    else:
        w = None
    if c.l2 != 0:
        lower = None
        if ROUNDING == "remainder":
            lower = load(remainder, at, offsets, mask, "int16", ALIGNED)
        elif ROUNDING == "remainder8":
            lower = load(remainder, at, offsets, mask, "int8", ALIGNED)
        own = value(load(p, at, offsets, mask, P, ALIGNED), lower, P)
        update = unsmoothed(c, own, g, v, w)
    else:
        update = unsmoothed(c, None, g, v, w)
    return update


@triton.jit
def header_at(address, at, blocks, block_mask):
    """Return the headers of some blocks, unsigned."""
    header = load(address, at // _RUN, blocks, block_mask, "int16", False)
    return header.to(tl.int32) & 0xFFFF


@triton.jit
def square_at(
    address, header, at, offsets, mask, V: tl.constexpr, OWN: tl.constexpr, ALIGNED: tl.constexpr
):
    """Return v of some elements; ``header`` has what ``header_at`` gives, where it is needed."""
    if V == "own":
        return load(address, at, offsets, mask, OWN, ALIGNED)
    elif V == "8bit":
        return decode_squares_8bit(load(address, at, offsets, mask, "uint8", ALIGNED), header)
    else:
        return decode_bfloat16(load(address, at, offsets, mask, "bfloat16", ALIGNED))


@triton.jit
def piece_of(pieces, table, chunks_each):
    """Return the tensor of a program's piece, where the piece begins, and how many elements."""
    piece = tl.load(pieces + tl.program_id(0))
    tensor, at = piece >> CHUNK_BITS, (piece & CHUNK_MASK) * CHUNK
    left = tl.load(table + tensor * TABLE_WIDTH + COUNT) - at
    return tensor, at, tl.minimum(left, chunks_each.to(tl.int64) * CHUNK).to(tl.int32)


@triton.jit(do_not_specialize=["chunks_each"])
def sweep(
    chunks, table, gradients, numbers, keys, verdict, rows, chunks_each,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, W: tl.constexpr, HAS_EMA: tl.constexpr,
    COPY_TO: tl.constexpr, ROUNDING: tl.constexpr, BY_CHANCE: tl.constexpr, SPREAD: tl.constexpr,
    HAS_MARKS: tl.constexpr, GUARDED: tl.constexpr, RECORDED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Step the elements of one chunk: decode, the rule, encode, average, copy, record.

    ``P`` is the dtype of parameter and gradient; ``M`` and ``V`` are the forms of m and v or None,
    "own" for the dtype of the arithmetic. ``COPY_TO`` is the dtype of the copy or None;
    ``ROUNDING`` is for parameters in half precision; small forms are rounded ``BY_CHANCE`` or to
    nearest. With ``HAS_MARKS`` elements that change are marked. With ``RECORDED`` it is a piece of
    ``chunks_each`` chunks, or what is left of its tensor, and rows are written for
    ``sums.collect``: of gradient, parameter, update. All addresses are multiples of 16 where
    ``ALIGNED``; those of marks need not be.
    """
    if GUARDED:
        if tl.load(verdict + APPLIED) == 0.0:
            return
    tensor, at, left = piece_of(chunks, table, chunks_each)
    row = table + tensor * TABLE_WIDTH
    arrays = Arrays(
        tl.load(row + PARAMETER),
        tl.load(gradients + tensor),
        tl.load(row + MEAN),
        tl.load(row + SQUARE),
        tl.load(row + LARGEST_SQUARE),
        tl.load(row + EMA),
        tl.load(row + COPY),
        tl.load(row + HEADER),
        tl.load(row + REMAINDER),
        tl.load(row + MARKS),
    )
    T: tl.constexpr = tl.float64 if P == "float64" else tl.float32
    own = numbers + tensor * NUMBERS
    c = coefficients_at(own, T)
    keep, take = number_at(own, KEEP, T), number_at(own, TAKE, T)
    key = tl.load(keys + tensor).to(tl.uint64, bitcast=True)
    first, top = tl.load(row + FIRST), tl.load(row + TOP).to(tl.int32)
    offsets, blocks = tl.arange(0, _BLOCK), tl.arange(0, _BLOCK // _RUN)
    if RECORDED:
        gradient, parameter, update = no_row(), no_row(), no_row()
        moved = tl.zeros((_BLOCK,), tl.int32)
        largest = tl.zeros((_BLOCK,), tl.int64)
        for start in range(0, left, _BLOCK):
            mask = offsets < left - start
            stepped = step_block(
                c, keep, take, key, first, top, arrays, at + start, offsets, blocks,
                mask, blocks * _RUN < left - start,
                P, M, V, W, HAS_EMA, COPY_TO, ROUNDING, BY_CHANCE, SPREAD, HAS_MARKS,
                ALIGNED,
            )  # fmt: skip
            gradient += squares(stepped.g, 0)
            parameter += squares(stepped.before, 0)
            update += squares(tl.where(mask, stepped.change, 0.0), 0)
            moved += ((stepped.after != stepped.before) & mask).to(tl.int32)
            size = tl.abs(tl.where(mask, stepped.u, 0.0)).to(tl.float64)
            largest = tl.maximum(largest, size.to(tl.int64, bitcast=True))
        entries = tl.arange(0, ENTRIES)
        gradient += tl.where(entries == MOVED, tl.sum(moved, 0), 0)
        gradient += tl.where(entries == LARGEST, tl.max(largest, 0), 0)
        place = tl.program_id(0) * NORMS
        put_row(rows, place, gradient)
        put_row(rows, place + 1, parameter)
        put_row(rows, place + 2, update)
    elif left >= CHUNK:
        for start in range(0, CHUNK, _BLOCK):
            step_block(
                c, keep, take, key, first, top, arrays, at + start, offsets, blocks, None, None,
                P, M, V, W, HAS_EMA, COPY_TO, ROUNDING, BY_CHANCE, SPREAD, HAS_MARKS,
                ALIGNED,
            )  # fmt: skip
    else:
        for start in range(0, left, _BLOCK):
            step_block(
                c, keep, take, key, first, top, arrays, at + start, offsets, blocks,
                offsets + start < left, blocks * _RUN + start < left,
                P, M, V, W, HAS_EMA, COPY_TO, ROUNDING, BY_CHANCE, SPREAD, HAS_MARKS,
                ALIGNED,
            )  # fmt: skip


@triton.jit
def step_block(
    c, keep, take, key, first, top, arrays, at, offsets, blocks, mask, block_mask,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, W: tl.constexpr, HAS_EMA: tl.constexpr,
    COPY_TO: tl.constexpr, ROUNDING: tl.constexpr, BY_CHANCE: tl.constexpr, SPREAD: tl.constexpr,
    HAS_MARKS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Step the elements ``at + offsets`` of a tensor, of which each 32 are a block of the codec.

    ``first`` is where the first one stands in the whole tensor; with ``SPREAD`` the address of runs
    that say where all of them do. ``blocks`` are the numbers of those blocks, counted from ``at``,
    and of the words of marks. Elements outside of ``mask`` are as zeros, and are not written.
    """
    p_code = load(arrays.p, at, offsets, mask, P, ALIGNED)
    before, marks = p_code, None
    if HAS_MARKS:  # read with all else, not when the rest is over
        marks = load(arrays.marks, at // _WORD, blocks, block_mask, "int32", False)
        if COPY_TO is not None:
            before = load(arrays.copy, at, offsets, mask, COPY_TO, ALIGNED)
    remainder = None
    if ROUNDING == "remainder":
        remainder = load(arrays.remainder, at, offsets, mask, "int16", ALIGNED)
    elif ROUNDING == "remainder8":
        remainder = load(arrays.remainder, at, offsets, mask, "int8", ALIGNED)
    p = value(p_code, remainder, P)
    g = value(load(arrays.g, at, offsets, mask, P, ALIGNED), None, P)
    OWN: tl.constexpr = "float64" if P == "float64" else "float32"
    header = None
    if M == "8bit" or V == "8bit":
        header = header_at(arrays.header, at, blocks, block_mask)
    v = None
    if V is not None:
        v = square_at(arrays.v, header, at, offsets, mask, V, OWN, ALIGNED)
    m = None
    if M == "own":
        m = load(arrays.m, at, offsets, mask, OWN, ALIGNED)
    elif M == "bfloat16":
        m = decode_bfloat16(load(arrays.m, at, offsets, mask, "bfloat16", ALIGNED))
    elif M == "compact":
        y = decode_means_compact(load(arrays.m, at, offsets, mask, "uint8", ALIGNED), top)
        m = y * float_of(root_scale(v))
    elif M == "8bit":
        y = decode_means_8bit(load(arrays.m, at, offsets, mask, "int8", ALIGNED), header, top)
        m = y * float_of(root_scale(v))
    w = None
    if W:
        w = load(arrays.w, at, offsets, mask, OWN, ALIGNED)
    result = rule(c, p, g, m, v, w)
    r = None
    if BY_CHANCE or (ROUNDING == "stochastic" or ROUNDING == "remainder8"):
        if SPREAD:
            r = random_bits_at(key, place_in_whole(first, at, offsets))
        else:
            r = random_bits(key, first + at, offsets)
    after, code = put_parameter(arrays, result.p, r, at, offsets, mask, P, ROUNDING, ALIGNED)
    put_means(
        arrays, result.m, result.v, r if BY_CHANCE else None, top,
        at, offsets, blocks, mask, block_mask, M, V, OWN, ALIGNED,
    )  # fmt: skip
    if W:
        put(arrays.w, at, offsets, mask, result.w, OWN, ALIGNED)
    if HAS_EMA:
        mean = load(arrays.ema, at, offsets, mask, OWN, ALIGNED)
        put(arrays.ema, at, offsets, mask, smooth(keep, take, mean, after), OWN, ALIGNED)
    if COPY_TO is not None:
        if COPY_TO == "bfloat16":
            code = encode_bfloat16(after.to(tl.float32), None)
        else:
            code = encode_float16(after.to(tl.float32), None)
        put(arrays.copy, at, offsets, mask, code, COPY_TO, ALIGNED)
    if marks is not None:
        marked = marks | words_of(stored_bits(before) != stored_bits(code), mask)
        differs = marked != marks  # in few words, and no others are written
        if block_mask is not None:
            differs = differs & block_mask
        put(arrays.marks, at // _WORD, blocks, differs, marked, "int32", False)
    return Stepped(g, p, after, result.u, result.change)


@triton.jit
def words_of(is_so, mask):
    """Return words of a bit for each element; 0 outside of ``mask``."""
    if mask is not None:
        is_so = is_so & mask
    bits = is_so.to(tl.int32).reshape(is_so.shape[0] // _WORD, _WORD)
    return tl.sum(bits << tl.arange(0, _WORD)[None, :], axis=1)


@triton.jit
def stored_bits(x):
    """Return the bits of a parameter or copy as it is stored."""
    if x.dtype == tl.float64:
        return x.to(tl.uint64, bitcast=True)
    elif x.dtype == tl.float32:
        return x.to(tl.uint32, bitcast=True)
    else:
        return x


@triton.jit
def place_in_whole(address, at, offsets):
    """Return where the elements ``at + offsets`` of a part stand in the whole tensor.

    At the address is how many runs there are, where the first element is in the part that they are
    of, and four numbers of each run: see ``Runs``.
    """
    runs = address.to(tl.pointer_type(tl.int64))
    count = tl.load(runs)
    at += tl.load(runs + 1)
    runs += 2
    element = at + offsets
    place = element * 0
    for _ in range(count):
        first, start = tl.load(runs), tl.load(runs + 1)
        length, pitch = tl.load(runs + 2), tl.load(runs + 3)
        runs += 4
        if (first < at + offsets.shape[0]) & (tl.load(runs) > at):
            number = (element - first) // length
            own = start + number * pitch + (element - first) - number * length
            place = tl.where(element >= first, own, place)
    return place


@triton.jit
def put_parameter(
    arrays, p, r, at, offsets, mask,
    P: tl.constexpr, ROUNDING: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Store a parameter; return what it became, and as what it is stored."""
    after, code = p, p
    if P == "float32" or P == "float64":
        put(arrays.p, at, offsets, mask, p, P, ALIGNED)
    elif ROUNDING == "remainder":
        code, low = encode_remainder(p)
        put(arrays.p, at, offsets, mask, code, "bfloat16", ALIGNED)
        put(arrays.remainder, at, offsets, mask, low, "int16", ALIGNED)
        after = decode_remainder(code, low)
    elif ROUNDING == "remainder8":
        code, low = encode_remainder8(p, random_bits_of_parameter(r))
        put(arrays.p, at, offsets, mask, code, "bfloat16", ALIGNED)
        put(arrays.remainder, at, offsets, mask, low, "int8", ALIGNED)
        after = decode_remainder(code, low)
    else:
        own = None
        if ROUNDING == "stochastic":
            own = random_bits_of_parameter(r)
        if P == "bfloat16":
            code = encode_bfloat16(p, own)
        else:
            code = encode_float16(p, own)
        put(arrays.p, at, offsets, mask, code, P, ALIGNED)
        after = value(code, None, P)
    return after, code


@triton.jit
def put_means(
    arrays, m, v, r, top, at, offsets, blocks, mask, block_mask,
    M: tl.constexpr, V: tl.constexpr, OWN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Store m and v, rounded by ``r`` or to nearest: v first, since m is relative to its code."""
    header = None
    if mask is not None:  # what is outside takes no part in the scales of a block
        if V == "8bit":
            v = tl.where(mask, v, 0.0)
        if M == "8bit":
            m = tl.where(mask, m, 0.0)
    if V == "own":
        put(arrays.v, at, offsets, mask, v, OWN, ALIGNED)
    elif V == "8bit":
        code, header = encode_squares_8bit(v, r)
        v = decode_squares_8bit(code, header)
        put(arrays.v, at, offsets, mask, code, "uint8", ALIGNED)
    elif V is not None:
        if V == "compact":
            code = encode_squares_compact(v, r)
        else:
            code = encode_bfloat16(v, r)
        put(arrays.v, at, offsets, mask, code, "bfloat16", ALIGNED)
        v = decode_bfloat16(code)
    if M == "own":
        put(arrays.m, at, offsets, mask, m, OWN, ALIGNED)
    elif M == "bfloat16":
        low = r
        if r is not None:
            low = r << 16
        put(arrays.m, at, offsets, mask, encode_bfloat16(m, low), "bfloat16", ALIGNED)
    elif M == "compact":
        code = encode_means_compact(relative_mean(m, v), r, top)
        put(arrays.m, at, offsets, mask, code, "uint8", ALIGNED)
    elif M == "8bit":
        code, scale = encode_means_8bit(relative_mean(m, v), r, top)
        put(arrays.m, at, offsets, mask, code, "int8", ALIGNED)
        if header is None:
            header = scale
        else:
            header = header | scale
    if M == "8bit" or V == "8bit":
        put(arrays.header, at // _RUN, blocks, block_mask, header.to(tl.int16), "int16", False)


@triton.jit
def start_of(address, at, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to element ``at`` (64 bits) of an array; half precision as its bits."""
    if TYPE == "float64":
        start = address.to(tl.pointer_type(tl.float64))
    elif TYPE == "float32":
        start = address.to(tl.pointer_type(tl.float32))
    elif TYPE == "uint8":
        start = address.to(tl.pointer_type(tl.uint8))
    elif TYPE == "int8":
        start = address.to(tl.pointer_type(tl.int8))
    elif TYPE == "int16":
        start = address.to(tl.pointer_type(tl.int16))
    elif TYPE == "int32":
        start = address.to(tl.pointer_type(tl.int32))
    else:
        start = address.to(tl.pointer_type(tl.uint16))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start + at


@triton.jit
def load(address, at, offsets, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return elements of an array; zeros outside of ``mask``."""
    places = start_of(address, at, TYPE, ALIGNED) + offsets
    if mask is None:
        return tl.load(places)
    else:
        return tl.load(places, mask=mask, other=0)


@triton.jit
def put(address, at, offsets, mask, x, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Store elements of an array."""
    places = start_of(address, at, TYPE, ALIGNED) + offsets
    tl.store(places, x, mask=mask)


@triton.jit
def value(code, remainder, P: tl.constexpr):
    """Return a parameter or gradient of dtype ``P`` in the arithmetic of its step."""
    if remainder is not None:
        return decode_remainder(code, remainder)
    elif P == "bfloat16":
        return decode_bfloat16(code)
    elif P == "float16":
        return code.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return code


@triton.jit
def describe(rows, table, statistics):
    """Write a row of float64 for each tensor: the fields of adamas.statistics.Statistics.

    Program axis 0 is the tensor, axis 1 one of its norms, of which ``rows`` has the rows.
    """
    tensor, which = tl.program_id(0), tl.program_id(1)
    own = rows + (tensor * NORMS + which).to(tl.int64) * ROW
    row = added(own, 1, ROW)
    into = statistics + tensor * STATISTICS_WIDTH
    tl.store(into + which, norm_of(row))
    if which == 0:
        count = tl.load(table + tensor * TABLE_WIDTH + COUNT)
        unmoved = (count - tl.load(own + MOVED)).to(tl.float64)
        tl.store(into + LARGEST_UPDATE, tl.load(own + LARGEST).to(tl.float64, bitcast=True))
        tl.store(into + NONFINITE_ELEMENTS, nonfinite(row).to(tl.float64))
        tl.store(into + UNMOVED, unmoved / tl.maximum(count, 1).to(tl.float64))
