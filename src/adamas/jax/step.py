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
from adamas.jax.numbers import Choices, Number, coefficients, shortened
from adamas.jax.operands import Operand, constant, real_dtype
from adamas.jax.small import CodedState
from adamas.jax.updates import Measured, factors, measured
from adamas.rule import Result, rule, smooth, unsmoothed
from adamas.storage import Storage

__all__ = ["Coding", "Moments", "stepped", "traced"]

Array = Any


@dataclass(frozen=True)
class Coding:
    """How m and v are stored in few bytes, and what they are encoded with."""

    storage: Storage
    #: The exponent that codes of m are counted from at these decay rates; None without codes.
    top: int | None
    #: Of the random bits; None where it is an array, which travels with other arrays.
    seed: int | None

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
    choices = replace(constants, **arrays)
    count = None if count is None else states.within_int32(count)
    bits: list[Any] = [None] * len(gradients)
    if coding is not None and coding.storage.means_by_chance:
        step = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
        chosen = coding.seed if seed is None else seed
        bits = list(zip(*small.keys(chosen, step, len(gradients)), strict=True))
    numbers: dict[Any, Coefficients] = {}
    moving: dict[int, dict[str, Array]] = {}
    if choices.clip_update is not None:
        moving = _shortened(choices, count, coding, gradients, moments, numbers)
    updates: list[Array | None] = []
    after: list[Moments] = []
    for i, given in enumerate(gradients):
        before = Moments(*(None if each is None else each[i] for each in moments))
        if given is None:
            updates.append(None)
            after.append(before)
            continue
        wide, dtype = _dtypes(given, before, coding)
        if dtype not in numbers:
            numbers[dtype] = coefficients(choices, 0 if count is None else count, dtype)
        c = numbers[dtype]
        if i in moving:
            step, decay = (Operand(moving[i][name]) for name in ("step", "decay"))
            is_one = c.opposed is c.decay
            decay = c.decay if c.decay.is_constant(0) else decay
            c = c._replace(step=step, decay=decay, opposed=decay if is_one else c.opposed)
        if not decays[i]:
            none = constant(0.0, dtype)
            c = c._replace(decay=none, opposed=none)
        whole = not jnp.issubdtype(jnp.result_type(given), jnp.inexact)
        gradient = jnp.asarray(given, dtype) if whole else given
        operands = (Operand.of(gradient, dtype), _parameter(c, params, i, dtype))
        if coding is None:
            result, kept = _step_plain(c, *operands, before, dtype)
        else:
            home = small.home_of_cut_blocks(gradient) if before.header is not None else None
            result, kept = _step_coded(c, *operands, before, top, coding, bits[i], home)
        updates.append((-result.change).array(gradient, wide))
        after.append(kept)
    columns = zip(*after, strict=True) if after else ((),) * len(moments)
    lists = (None if b is None else list(a) for a, b in zip(columns, moments, strict=True))
    return updates, Moments(*lists)


def _shortened(
    choices: Choices,
    count: Array | None,
    coding: Coding | None,
    gradients: list[Array | None],
    moments: Moments,
    numbers: dict[Any, Coefficients],
) -> dict[int, dict[str, Array]]:
    """Return the numbers that move arrays whose updates are clipped, by place and name."""
    at = jnp.asarray(0 if count is None else count)
    places: dict[Any, list[int]] = {}
    counts: dict[int, int] = {}
    found: dict[int, Measured] = {}
    for i, given in enumerate(gradients):
        if given is None:
            continue
        before = Moments(*(None if each is None else each[i] for each in moments))
        _, dtype = _dtypes(given, before, coding)
        if dtype not in numbers:
            numbers[dtype] = coefficients(choices, at, dtype)
        places.setdefault(dtype, []).append(i)
        counts[i] = math.prod(jnp.shape(given))
        found[i] = _measured(coding, dtype, numbers[dtype], given, before)
    moving: dict[int, dict[str, Array]] = {}
    for dtype, own in places.items():
        c = numbers[dtype]
        measures, sizes = [found[i] for i in own], [counts[i] for i in own]
        by = factors(measures, sizes, choices.clip_update, c.root.parts[0])
        rates = shortened(choices, at, c, by)
        moving |= {i: {name: each[k] for name, each in rates.items()} for k, i in enumerate(own)}
    return moving


def _measured(
    coding: Coding | None, dtype: Any, c: Coefficients, given: Array, before: Moments
) -> Measured:
    """Return what the update of one array is clipped by."""
    whole = not jnp.issubdtype(jnp.result_type(given), jnp.inexact)
    gradient = jnp.asarray(given, dtype) if whole else given
    square, largest = before.square, before.largest
    if coding is not None:
        home = small.home_of_cut_blocks(gradient) if before.header is not None else None
        codes = Codes(None, *_each(small.everywhere, (square, before.header), home))
        decoded = codecs.decode(coding.storage.forms, codes, 0)
        _, square = _each(small.back, decoded, home)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype) for each in (square, largest)
    )
    return measured(unsmoothed(c, None, Operand.of(gradient, dtype), v, w))


def _step_plain(
    c: Coefficients, g: Operand, p: Operand, before: Moments, dtype: Any
) -> tuple[Result, Moments]:
    """Return the rule's result, and moments of the dtypes they had."""
    m = None if before.mean is None else Operand.of(before.mean, dtype)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype)
        for each in (before.square, before.largest)
    )
    result = rule(c, p, g, m, v, w)
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
    forms = coding.storage.forms
    codes = Codes(*_each(small.everywhere, (before.mean, before.square, before.header), home))
    m, v = _each(small.back, codecs.decode(forms, codes, 0 if top is None else top), home)
    result = rule(
        c, p, g, *(None if each is None else Operand.of(each, np.float32) for each in (m, v))
    )
    m, v = (None if each is None else each.parts[0] for each in (result.m, result.v))
    bits = None if key is None else small.random_bits(key, g.parts[0].shape)
    m, v, bits = _each(small.everywhere, (m, v, bits), home)
    mean, square, header = codecs.encode(forms, m, v, bits, coding.top or 0)
    mean, square = _each(small.back, (mean, square), home)
    return result, Moments(mean, square, None, header)


def _each(move: Callable[[Array, Any], Array], arrays: Iterable[Array | None], home: Any) -> Any:
    """Return arrays moved from home or back; None for None."""
    return tuple(None if each is None else move(each, home) for each in arrays)


def _parameter(c: Coefficients, params: list[Array] | None, i: int, dtype: Any) -> Operand:
    """Return the parameter where it decays; where not, the rule needs only its change."""
    if params is None or c.decay.is_constant(0):
        return constant(0.0, dtype)
    return Operand.of(params[i], dtype)


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
