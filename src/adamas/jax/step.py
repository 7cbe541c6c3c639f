"""A step of all arrays of a tree: the rule on operands, and how m and v are stored.

One program for all arrays, which is compiled once for what is static in it: numbers that are
known, forms, and which parameters decay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamas import codecs
from adamas.codecs import HIGHEST_TOP, LOWEST_TOP, Codes
from adamas.coefficients import Coefficients
from adamas.jax import small, states
from adamas.jax.calls import SMALL, called, each, held, row, type_of
from adamas.jax.numbers import Choices, Number, coefficients, shortened
from adamas.jax.operands import Operand, constant, real_dtype
from adamas.jax.small import CodedState
from adamas.jax.updates import Measured, factors, measured
from adamas.jax.words import Word
from adamas.rule import Result, rule, smooth, unsmoothed
from adamas.storage import Storage

__all__ = ["Coding", "Moments", "stepped", "traced"]

Array = Any

#: Elements of an array whose m and v are floats in memory while 8bit codes are made of them, and of
#: all arrays together where that is faster: more memory than that is fetched anew at each step.
_MOST_AS_FLOATS, _ALL_AS_FLOATS = 1 << 18, 3 << 20


@dataclass(frozen=True)
class Coding:
    """How m and v are stored in few bytes, and what they are encoded with."""

    storage: Storage
    #: The exponent that codes of m are counted from at these decay rates; None without codes.
    top: int | None
    #: Of the random bits; None where it is an array, which travels with other arrays.
    seed: int | None
    #: The most elements of an array whose m and v are floats in memory while codes are made.
    as_floats: int = SMALL

    def kept(self, choices: Choices) -> Moments:
        """Return the names of what a small state keeps."""
        mean, square = choices.b1 is not None, choices.b2 is not None
        has_header = self.storage.has_header(has_mean=mean, has_square=square)
        return Moments(
            "mu" if mean else None, "nu" if square else None, None, "header" if has_header else None
        )

    def checked_top(self, moments: CodedState) -> Array | None:
        """Return what codes of m in a state are counted from."""
        states.check_kept("top", moments.top, self.top is not None)
        if self.top is None:
            return None
        states.check_scalar("The state's top", moments.top, LOWEST_TOP, HIGHEST_TOP)
        return jnp.asarray(moments.top)


class Moments(NamedTuple):
    """m, v, w and headers of all parameters, or of one; None where there are none."""

    mean: Any = None
    square: Any = None
    largest: Any = None
    header: Any = None


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def stepped(
    constants: Choices,
    coding: Coding | None,
    decays: tuple[bool, ...],
    arrays: dict[str, Array],
    seed: Array | None,
    count: Array | None,
    top: Array | None,
    gradients: list[Array | None],
    params: list[Array] | None,
    moments: Moments,
) -> tuple[list[Array | None], Moments]:
    """Return updates and moments after one step of all arrays."""
    count = None if count is None else states.within_int32(count)
    keys = None
    if coding is not None and coding.storage.means_by_chance:
        following = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
        keys = small.keys(coding.seed if seed is None else seed, following, len(gradients))
    elements = sum(math.prod(jnp.shape(given)) for given in gradients if given is not None)
    if coding is not None and moments.header is not None and elements <= _ALL_AS_FLOATS:
        coding = replace(coding, as_floats=_MOST_AS_FLOATS)
    updates: list[Array | None] = [None] * len(gradients)
    after = [Moments(*(None if e is None else e[i] for e in moments)) for i in range(len(updates))]
    numbers: dict[Any, Coefficients] = {}
    moving: dict[int, dict[str, Array]] = {}
    if constants.clip_update is not None or "clip_update" in arrays:
        moving = _shortened(constants, arrays, count, coding, gradients, moments, numbers)
    alike: dict[Any, list[int]] = {}
    rows: dict[int, _Row] = {}
    for i, given in enumerate(gradients):
        if given is None:
            continue
        wide, dtype = _dtypes(given, after[i], coding)
        if dtype not in numbers:
            numbers[dtype] = _numbers(constants, arrays, count, dtype)
        has_decay = decays[i] and not numbers[dtype].decay.is_constant(0)
        parameter = params[i] if has_decay and params is not None else None
        rows[i] = _Row(given, parameter, after[i], moving.get(i))
        kind = tuple(map(type_of, jax.tree.leaves(rows[i])))
        alike.setdefault((has_decay, dtype, wide, kind), []).append(i)
    for (has_decay, dtype, wide, _), places in alike.items():
        c = numbers[dtype]
        if not has_decay:
            c = _without_decay(c, dtype)
        known, found = _parted(c)
        one = functools.partial(_step, known, coding, wide)
        is_stacked = coding is not None
        made = each(one, (found, top), [rows[i] for i in places], keys, places, stacked=is_stacked)
        for i, (update, kept) in zip(places, made, strict=True):
            updates[i], after[i] = update, kept
    columns = zip(*after, strict=True) if after else ((),) * len(moments)
    lists = (None if b is None else list(a) for a, b in zip(columns, moments, strict=True))
    return updates, Moments(*lists)


def _shortened(
    constants: Choices,
    arrays: dict[str, Array],
    count: Array | None,
    coding: Coding | None,
    gradients: list[Array | None],
    moments: Moments,
    numbers: dict[Any, Coefficients],
) -> dict[int, dict[str, Array]]:
    """Return the numbers that move arrays whose updates are clipped, by place and name."""
    choices, at = replace(constants, **arrays), jnp.asarray(0 if count is None else count)
    places: dict[Any, list[int]] = {}
    alike: dict[Any, list[int]] = {}
    rows: dict[int, _Row] = {}
    found: dict[int, Measured] = {}
    for i, given in enumerate(gradients):
        if given is None:
            continue
        before = Moments(*(None if old is None else old[i] for old in moments))
        _, dtype = _dtypes(given, before, coding)
        if dtype not in numbers:
            numbers[dtype] = _numbers(constants, arrays, count, dtype)
        places.setdefault(dtype, []).append(i)
        rows[i] = _Row(given, None, before._replace(mean=None), None)
        kind = tuple(map(type_of, jax.tree.leaves(rows[i])))
        alike.setdefault((dtype, kind), []).append(i)
    for (dtype, _), own in alike.items():
        known, others = _parted(numbers[dtype])
        one = functools.partial(_measured, known, coding, dtype)
        own_rows = [rows[i] for i in own]
        made = each(one, others, own_rows, None, own, stacked=True, goes_on_stacked=True)
        found |= dict(zip(own, made, strict=True))
    moving: dict[int, dict[str, Array]] = {}
    for dtype, own in places.items():
        c = numbers[dtype]
        measures = [found[i] for i in own]
        sizes = [math.prod(jnp.shape(rows[i].gradient)) for i in own]
        by = factors(measures, sizes, choices.clip_update, c.root.parts[0])
        rates = held(shortened(choices, at, c, by))
        moving |= {i: row(rates, k) for k, i in enumerate(own)}
    return moving


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(
    known: Coefficients,
    coding: Coding | None,
    dtype: Any,
    found: Coefficients,
    row: _Row,
    _: None,
) -> Measured:
    """Return what the update of one array is clipped by.

    It is traced once for all arrays that are alike.
    """
    c, before = _joined(known, found), row.before
    gradient = _inexact(row.gradient, dtype)
    square, largest = before.square, before.largest
    if coding is not None:
        home = small.home_of_cut_blocks(gradient) if before.header is not None else None
        codes = Codes(None, *_moved(small.everywhere, (square, before.header), home))
        decoded = codecs.decode(coding.storage.forms, codes, 0)
        _, square = _moved(small.back, decoded, home)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype) for each in (square, largest)
    )
    return measured(unsmoothed(c, None, Operand.of(gradient, dtype), v, w))


class _Row(NamedTuple):
    """What a step reads of one array; without decay the rule needs no parameter."""

    gradient: Array
    parameter: Array | None
    before: Moments
    #: The numbers that move it, where its update is clipped.
    moving: dict[str, Array] | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    known: Coefficients,
    coding: Coding | None,
    wide: Any,
    common: tuple[Coefficients, Array | None],
    row: _Row,
    key: Word | None,
) -> tuple[Array, Moments]:
    """Return the update and the moments of one array.

    It is traced once for all arrays that are alike.
    """
    found, top = common
    c = _joined(known, found)
    dtype = c.step.dtype
    if row.moving is not None:
        moved, decay = (Operand(row.moving[name]) for name in ("step", "decay"))
        is_one = c.opposed is c.decay
        decay = c.decay if c.decay.is_constant(0) else decay
        c = c._replace(step=moved, decay=decay, opposed=decay if is_one else c.opposed)
    gradient = _inexact(row.gradient, dtype)
    p = constant(0.0, dtype) if row.parameter is None else Operand.of(row.parameter, dtype)
    if coding is None:
        result, kept = _step_plain(c, gradient, p, row.before, dtype)
    else:
        home = small.home_of_cut_blocks(gradient) if row.before.header is not None else None
        result, kept = _step_coded(
            c, Operand.of(gradient, dtype), p, row.before, top, coding, key, home
        )
    return (-result.change).array(gradient, wide), kept


def _numbers(
    constants: Choices, arrays: dict[str, Array], count: Array | None, dtype: Any
) -> Coefficients:
    """Return the numbers of the step as operands."""
    known: list[Coefficients] = []

    def found(arrays: dict[str, Array], count: Array | None) -> Coefficients:
        choices = replace(constants, **arrays)
        parts = _parted(coefficients(choices, 0 if count is None else count, dtype))
        known.append(parts[0])
        return parts[1]

    numbers = called(found, arrays, count)
    return _joined(known[0], numbers)


def _without_decay(c: Coefficients, dtype: Any) -> Coefficients:
    none = constant(0.0, dtype)
    return c._replace(decay=none, opposed=none)


def _parted(c: Coefficients) -> tuple[Coefficients, Coefficients]:
    """Return the numbers that are known when the program is made, and those that are arrays.

    ``opposed`` is neither where it is the same as ``decay``.
    """
    numbers = [each.parts[0] for each in c]
    is_known = [isinstance(number, np.generic) for number in numbers]
    known = Coefficients(*(n if k else None for n, k in zip(numbers, is_known, strict=True)))
    found = Coefficients(*(None if k else n for n, k in zip(numbers, is_known, strict=True)))
    if c.opposed is c.decay:
        known, found = known._replace(opposed=None), found._replace(opposed=None)
    return known, found


def _joined(known: Coefficients, found: Coefficients) -> Coefficients:
    """Return as operands what ``_parted`` took."""
    pairs = [b if a is None else a for a, b in zip(known, found, strict=True)]
    c = Coefficients(*(None if number is None else Operand(number) for number in pairs))
    return c if c.opposed is not None else c._replace(opposed=c.decay)


def _inexact(gradient: Array, dtype: Any) -> Array:
    """Return a gradient of whole numbers in ``dtype``, any other as it is."""
    is_inexact = jnp.issubdtype(jnp.result_type(gradient), jnp.inexact)
    return gradient if is_inexact else jnp.asarray(gradient, dtype)


def _step_plain(
    c: Coefficients, gradient: Array, p: Operand, before: Moments, dtype: Any
) -> tuple[Result, Moments]:
    """Return the rule's result, and moments of the dtypes they had."""
    kept_whole = all(real_dtype(each.dtype) == dtype for each in jax.tree.leaves(before))
    if gradient.size > SMALL or not kept_whole:
        return _ruled(c, gradient, p, before, dtype)
    # XLA gives threads one operation each: of small arrays those of all moments as one are faster.
    known, found = _parted(c)

    def smoothed(found: Coefficients, gradient: Array, before: Moments) -> Moments:
        c = _without_decay(_joined(known, found), dtype)
        return _ruled(c, gradient, constant(0.0, dtype), before, dtype)[1]

    kept = called(smoothed, found, gradient, before)
    one, zero = constant(1.0, dtype), constant(0.0, dtype)
    done = c._replace(keep1=one, take1=zero, keep2=one, take2=zero)
    return _ruled(done, gradient, p, kept, dtype)[0], kept


def _ruled(
    c: Coefficients, gradient: Array, p: Operand, before: Moments, dtype: Any
) -> tuple[Result, Moments]:
    """Return the rule's result, and moments of the dtypes they had."""
    m = None if before.mean is None else Operand.of(before.mean, dtype)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype)
        for each in (before.square, before.largest)
    )
    result = rule(c, p, Operand.of(gradient, dtype), m, v, w)
    kept = (
        None if old is None or new is None else new.array(old, old.dtype)
        for new, old in zip((result.m, result.v, result.w), before[:3], strict=True)
    )
    return result, Moments(*kept)


def _step_coded(
    c: Coefficients,
    g: Operand,
    p: Operand,
    before: Moments,
    top: Array | None,
    coding: Coding,
    key: Any,
    home: Any,
) -> tuple[Result, Moments]:
    """Return the rule's result, and moments as codes.

    Those before are read with the ``top`` that they were written with, and written with that of
    the decay rates now: m may reach further than at the rates before. Codes are made and read
    everywhere if they have a ``home``, else where they are.
    """
    storage, forms = coding.storage, coding.storage.forms
    codes = Codes(*_moved(small.everywhere, (before.mean, before.square, before.header), home))
    m, v = _moved(small.back, codecs.decode(forms, codes, 0 if top is None else top), home)
    result = rule(
        c, p, g, *(None if each is None else Operand.of(each, np.float32) for each in (m, v))
    )
    m, v = (None if each is None else each.parts[0] for each in (result.m, result.v))
    mean_form, square_form = forms
    header = square = mean = None

    def bits(key: Word | None) -> Word | None:
        found = None if key is None else small.random_bits(key, g.parts[0].shape)
        return _moved(small.everywhere, (found,), home)[0]

    def squares(v: Array, key: Word | None) -> tuple[Array, Array | None]:
        return codecs.encode_squares(square_form, v, bits(key))

    def means(
        m: Array, square: Array | None, header: Array | None, key: Word | None
    ) -> tuple[Array, Array | None]:
        v = None
        if storage.is_relative:
            v = codecs.decode_squares(square_form, square, header)
        mean, scale = codecs.encode_means(mean_form, m, v, bits(key), coding.top or 0)
        if scale is not None:
            header = scale if header is None else header | scale
        return mean, header

    m, v = _moved(small.everywhere, (m, v), home)
    if g.parts[0].size <= coding.as_floats:
        m, v = held((m, v))
    if v is not None:
        square, header = held(squares(v, key))
    if m is not None:
        mean, header = means(m, square if storage.is_relative else None, header, key)
    mean, square = _moved(small.back, (mean, square), home)
    return result, Moments(mean, square, None, header)


def _moved(move: Callable[[Array, Any], Array], arrays: Iterable[Array | None], home: Any) -> Any:
    """Return arrays moved from home or back; None for None."""
    return tuple(None if each is None else move(each, home) for each in arrays)


def _dtypes(gradient: Array, kept: Moments, coding: Coding | None = None) -> tuple[Any, Any]:
    """Return the dtype of the update, and that which is computed with."""
    if coding is not None:
        return jnp.result_type(gradient, 1.0), np.dtype(np.float32)
    state = kept.square if kept.square is not None else kept.mean
    wide = jnp.result_type(gradient, 1.0 if state is None else state)
    return wide, np.dtype(np.float64 if real_dtype(wide) == np.float64 else np.float32)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def traced(
    nesterov: bool, decay: Number, updates: list[Array | None], trace: list[Array]
) -> tuple[list[Array | None], list[Array]]:
    """Return sums of updates: what is added to the parameters, and what is kept."""
    moved: list[Array | None] = []
    kept: list[Array] = []
    for update, old in zip(updates, trace, strict=True):
        if update is None:
            moved.append(None)
            kept.append(old)
            continue
        wide, dtype = _dtypes(update, Moments(old))
        keep, take = Operand(jnp.asarray(decay, dtype)), constant(1.0, dtype)
        u = Operand.of(update, dtype)
        total = smooth(keep, take, Operand.of(old, dtype), u)
        moved.append((smooth(keep, take, total, u) if nesterov else total).array(update, wide))
        kept.append(total.array(old, old.dtype))
    return moved, kept
