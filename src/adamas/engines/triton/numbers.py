"""The numbers of a step, taken on the device: ``adamas.coefficients``, whose bits these are.

So a step's number, its learning rate and the loss scale may live there, and nothing waits for the
host. All of it is float64 additions, multiplications, divisions and roots, each rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas.coefficients import Coefficients
from adamas.engines.triton.codecs import key_of
from adamas.engines.triton.sums import added, nonfinite, norm_of
from adamas.engines.triton.tables import (
    APPLIED,
    BETA1,
    BETA2,
    BIAS_CORRECTION,
    C_DECAY,
    C_EPS,
    C_FROM_G,
    C_FROM_M,
    C_GRAD_SCALE,
    C_INNER,
    C_KEEP1,
    C_KEEP2,
    C_L2,
    C_OPPOSED,
    C_ROOT,
    C_STEP,
    C_TAKE1,
    C_TAKE2,
    CAUTIOUS,
    CLIP_NORM,
    CLIP_UPDATE,
    CORRECTED,
    DECAY,
    DECOUPLED,
    EMA_RATE,
    EPS,
    EPS_PLACE,
    EPS_ROOT,
    FACTOR,
    GIVEN,
    GIVEN_WIDTH,
    HAS_MEAN,
    HAS_SQUARE,
    INSIDE,
    KEEP,
    L2,
    LIVE_FACTOR,
    LIVE_LOSS_SCALE,
    LR,
    LR_IS_DOUBLE,
    LR_MAX,
    MAXIMIZE,
    NESTEROV,
    NO_CORRECTION,
    NORM,
    NORMS_AT_ONCE,
    NUMBERS,
    PAPER,
    PLACE,
    RECIPE,
    RECIPE_WIDTH,
    RECTIFY,
    SCALE,
    SEED,
    SKIP_ABOVE,
    SPIKE,
    STEP,
    STEP_IS_DOUBLE,
    TABLE_WIDTH,
    TAKE,
    UNCORRECTED,
    WEIGHT_DECAY,
    WHOLE,
)

__all__ = ["conclude", "number", "shorten"]


@triton.jit(do_not_specialize=["row_count", "window_size"])
def conclude(
    rows, row_count, found_inf, loss_scale, live_scale, limits, verdict, skipped,
    window, window_size,
    READS: tl.constexpr, SKIPS: tl.constexpr, COUNTS: tl.constexpr, CLIPS: tl.constexpr,
    WATCHES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write the verdict on a step: whether it is made, the clip factor, the norm, the loss scale.

    One program. ``rows`` are sums of gradients, ``STEP`` entries apart, read with ``READS``;
    ``found_inf`` and ``loss_scale`` are a GradScaler's float32 scalars or None;
    ``live_scale`` points to loss scale and factor of the host, ``limits`` to float64. A step
    that is left out with ``SKIPS`` is counted in ``skipped`` with ``COUNTS``. With ``WATCHES``
    the norm is judged by a ``window`` of so many, which it enters (``adamas.spikes``).
    """
    applied = tl.full((), 1, tl.int32)
    scale = tl.load(live_scale + LIVE_LOSS_SCALE).to(tl.float64, bitcast=True)
    factor = tl.load(live_scale + LIVE_FACTOR).to(tl.float64, bitcast=True)
    if found_inf is not None:
        applied = (tl.load(found_inf) == 0.0).to(tl.int32)
    if loss_scale is not None:
        scale = tl.load(loss_scale).to(tl.float64)
    if READS:
        row = added(rows, row_count, STEP)
        norm = norm_of(row) / scale
        tl.store(verdict + NORM, norm)
        if SKIPS:
            is_finite = (nonfinite(row) == 0).to(tl.int32)
            if COUNTS:
                tl.store(skipped, tl.load(skipped) + (applied & (1 - is_finite)))
            applied = applied & is_finite
        if WATCHES:
            above = tl.load(limits + SKIP_ABOVE)
            leaps = applied & is_spike(window, window_size, norm, above).to(tl.int32)
            enter(window, window_size, norm, applied, leaps)
            tl.store(verdict + SPIKE, leaps.to(tl.float64))
            applied = applied & (1 - leaps)
        if CLIPS:
            clip = tl.load(limits + CLIP_NORM)
            factor = factor * tl.where(norm <= clip, 1.0, clip / norm)
    tl.store(verdict + APPLIED, applied.to(tl.float64))
    tl.store(verdict + FACTOR, factor)
    tl.store(verdict + SCALE, scale)


@triton.jit
def is_judged(norm):
    """Return whether a norm tells how large a gradient is."""
    return (norm > 0.0) & (norm < float("inf"))


@triton.jit
def is_spike(window, size, norm, above):
    """Return whether a norm lies more than ``above`` standard deviations above the mean."""
    n = tl.minimum(tl.load(window + size).to(tl.int32), size)
    place = tl.arange(0, NORMS_AT_ONCE)
    largest = tl.zeros((NORMS_AT_ONCE,), tl.float64)
    for first in range(0, n, NORMS_AT_ONCE):
        is_there = first + place < n
        largest = tl.maximum(largest, tl.load(window + first + place, mask=is_there, other=0.0))
    scale = reciprocal(tl.max(largest, 0))
    count = tl.maximum(n, 2).to(tl.float64)  # fewer are not asked
    mean = sum_of(window, n, scale, 0.0, False) / count
    std = tl.sqrt(sum_of(window, n, scale, mean, True) / (count - 1.0))
    is_above = norm * scale - mean > above * std
    return is_judged(norm) & (n >= size // 2) & is_above


@triton.jit
def sum_of(window, n, scale, mean, SQUARES: tl.constexpr):
    """Return the sum of the first ``n`` norms, or of the squares of what they deviate by."""
    place = tl.arange(0, NORMS_AT_ONCE)
    sums = tl.zeros((NORMS_AT_ONCE,), tl.float64)
    for block in range(tl.cdiv(n, NORMS_AT_ONCE)):
        own = block * NORMS_AT_ONCE + place
        is_there = own < n
        x = tl.load(window + own, mask=is_there, other=0.0) * scale
        if SQUARES:
            deviations = tl.where(is_there, x - mean, 0.0)
            x = deviations * deviations
        sums = tl.where(place == block, halved(x), sums)
    return halved(sums)


@triton.jit
def halved(x):
    """Return the sum of a block, by halving neighbours."""
    place = tl.arange(0, NORMS_AT_ONCE)
    distance = 1
    while distance < NORMS_AT_ONCE:
        x += tl.gather(x, place ^ distance, 0)
        distance *= 2
    return tl.max(x, 0)  # all are the same


@triton.jit
def reciprocal(x):
    """Return the power of two that brings a number of the normal range to from 1 to 2."""
    exponent = x.to(tl.int64, bitcast=True) >> 52
    exponent = tl.minimum(tl.maximum(exponent, 1), 2045)
    return ((2046 - exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def enter(window, size, norm, applied, leaps):
    """Let a norm enter, of a step that is ``applied`` unless it ``leaps``."""
    enters = is_judged(norm) & (applied != 0)
    count = tl.load(window + size)
    tl.store(window + count.to(tl.int64) % size, norm, mask=enters)
    tl.store(window + size, count + 1.0, mask=enters)
    left_out = tl.load(window + size + 1)
    tl.store(window + size + 1, left_out + leaps.to(tl.float64), mask=enters)


@triton.jit
def number(
    table, recipes, given, live_steps, live_rates, live_scale, verdict, numbers, keys,
    GUARDED: tl.constexpr,
):  # fmt: skip
    """Write the numbers of one tensor's step and its random key; count the step on the device.

    One program for each tensor. ``live_scale`` points to the loss scale and factor of the host,
    used without a verdict (``GUARDED``), and the seed.
    """
    tensor = tl.program_id(0)
    row = table + tensor * TABLE_WIDTH
    applied = tl.full((), True, tl.int1)
    scale = tl.load(live_scale + LIVE_LOSS_SCALE).to(tl.float64, bitcast=True)
    factor = tl.load(live_scale + LIVE_FACTOR).to(tl.float64, bitcast=True)
    if GUARDED:
        applied = tl.load(verdict + APPLIED) != 0.0
        scale = tl.load(verdict + SCALE)
        factor = tl.load(verdict + FACTOR)
    step = step_of(row, live_steps + tensor, applied)
    recipe = tl.load(row + RECIPE)
    lr = rate_of(row, live_rates + recipe)
    recipe_row = recipes + recipe * RECIPE_WIDTH
    into = numbers + tensor * NUMBERS
    given_row = tl.load(row + GIVEN)
    if given_row >= 0:
        place = tl.arange(0, NUMBERS)
        values = tl.load(
            given + given_row * GIVEN_WIDTH + place, mask=place < GIVEN_WIDTH, other=0
        ).to(tl.float64, bitcast=True)
        values = tl.where(place == C_GRAD_SCALE, values / scale * factor, values)
        values = tl.where(place == C_STEP, lr, values)
        tl.store(into + place, values)
    else:
        write_numbers(recipe_row, step, lr, scale, factor, into)
    seed = tl.load(live_scale + SEED).to(tl.uint64, bitcast=True)
    place = tl.load(row + PLACE).to(tl.uint64)
    key = key_of(seed, step.to(tl.uint64), place)
    tl.store(keys + tensor, key.to(tl.int64, bitcast=True))


@triton.jit
def shorten(rows, table, limits, numbers, STEP: tl.constexpr):
    """Multiply what moves a tensor by the factor that its update is clipped by.

    One program for each tensor. ``rows`` are sums of squares of updates, ``STEP`` entries apart.
    """
    tensor = tl.program_id(0)
    norm = norm_of(added(rows + tensor.to(tl.int64) * STEP, 1, STEP))
    count = tl.load(table + tensor * TABLE_WIDTH + WHOLE).to(tl.float64)
    own = numbers + tensor * NUMBERS
    is_free = (count == 0.0) | (tl.load(own + C_ROOT) == 0.0)
    size = norm / tl.sqrt(tl.where(count == 0.0, 1.0, count))
    limit = tl.load(limits + CLIP_UPDATE)
    factor = tl.where(is_free | (size <= limit), 1.0, limit / size)
    place = tl.arange(0, NUMBERS)
    values = tl.load(own + place)
    is_shortened = (place == C_DECAY) | (place == C_OPPOSED) | (place == C_STEP)
    tl.store(own + place, tl.where(is_shortened, values * factor, values))


@triton.jit
def step_of(row, live, applied):
    """Return the number of the coming step, 1 first; count it where it is kept on the device."""
    address = tl.load(row + STEP)
    if address == 0:
        step = tl.load(live)
    elif tl.load(row + STEP_IS_DOUBLE) != 0:
        step = counted(address.to(tl.pointer_type(tl.float64)), applied)
    else:
        step = counted(address.to(tl.pointer_type(tl.float32)), applied)
    return step


@triton.jit
def counted(pointer, applied):
    """Return the number of the coming step and count it, where it is ``applied``."""
    done = tl.load(pointer)
    tl.store(pointer, done + 1.0, mask=applied)
    return done.to(tl.int64) + 1


@triton.jit
def rate_of(row, live):
    """Return the learning rate, wherever it is kept."""
    address = tl.load(row + LR)
    if address == 0:
        lr = tl.load(live).to(tl.float64, bitcast=True)
    elif tl.load(row + LR_IS_DOUBLE) != 0:
        lr = tl.load(address.to(tl.pointer_type(tl.float64)))
    else:
        lr = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return lr


@triton.jit
def real(recipe, column: tl.constexpr):
    """Return an option that is a number."""
    return tl.load(recipe + column).to(tl.float64, bitcast=True)


@triton.jit
def write_numbers(recipe, step, lr, scale, factor, into):
    """Write what ``adamas.coefficients.at_step`` gives, and the weights of the average."""
    beta1, beta2 = real(recipe, BETA1), real(recipe, BETA2)
    has_mean, has_square = tl.load(recipe + HAS_MEAN) != 0, tl.load(recipe + HAS_SQUARE) != 0
    weight_decay, kind = real(recipe, WEIGHT_DECAY), tl.load(recipe + DECAY)
    fully = weight_decay * (lr / real(recipe, LR_MAX))
    by_rates = tl.where(kind == CORRECTED, lr * fully, fully)
    is_decoupled = (kind == DECOUPLED) | (kind == CAUTIOUS)
    decay = tl.where(kind == L2, 0.0, tl.where(is_decoupled, lr * weight_decay, by_rates))
    now1 = tl.where(has_mean, unbias(recipe, beta1, step), 1.0)
    now2 = tl.where(has_square, unbias(recipe, beta2, step), 1.0)
    is_nesterov = tl.load(recipe + NESTEROV) != 0
    from_m = tl.where(is_nesterov, beta1 / unbias(recipe, beta1, step + 1), 1.0 / now1)
    from_g = tl.where(is_nesterov, (1.0 - beta1) / now1, 0.0)
    root = 1.0 / tl.sqrt(now2)
    eps, inside = real(recipe, EPS), real(recipe, EPS_ROOT)
    eps_place = tl.load(recipe + EPS_PLACE)
    inside = tl.where(eps_place == INSIDE, inside + eps, inside)
    eps = tl.where(eps_place == INSIDE, 0.0, tl.where(eps_place == UNCORRECTED, eps * root, eps))
    rate = lr
    if tl.load(recipe + RECTIFY) != 0:
        rectified = rectification(beta2, step)
        is_off = rectified == 0.0
        root, eps = tl.where(is_off, 0.0, root), tl.where(is_off, 1.0, eps)
        rate = tl.where(is_off, lr, lr * rectified)
    sign = tl.where(tl.load(recipe + MAXIMIZE) != 0, -1.0, 1.0).to(tl.float64)
    tl.store(into + C_GRAD_SCALE, sign / scale * factor)
    tl.store(into + C_L2, tl.where(kind == L2, weight_decay, 0.0))
    tl.store(into + C_DECAY, decay)
    tl.store(into + C_OPPOSED, tl.where(kind == CAUTIOUS, 0.0, decay))
    tl.store(into + C_KEEP1, tl.where(has_mean, beta1, 0.0))
    tl.store(into + C_TAKE1, tl.where(has_mean, 1.0 - beta1, 1.0))
    tl.store(into + C_KEEP2, tl.where(has_square, beta2, 0.0))
    tl.store(into + C_TAKE2, tl.where(has_square, 1.0 - beta2, 1.0))
    tl.store(into + C_FROM_M, tl.where(has_mean, from_m, 1.0))
    tl.store(into + C_FROM_G, tl.where(has_mean, from_g, 0.0))
    tl.store(into + C_ROOT, root)
    tl.store(into + C_INNER, inside * now2)
    tl.store(into + C_EPS, eps)
    tl.store(into + C_STEP, rate)
    ema = real(recipe, EMA_RATE)
    tl.store(into + KEEP, tl.where(step == 1, 0.0, ema))
    tl.store(into + TAKE, tl.where(step == 1, 1.0, 1.0 - ema))


@triton.jit
def coefficients_at(numbers, T: tl.constexpr):
    """Return the numbers of the rule that were written for a tensor, in the dtype ``T``."""
    return Coefficients(
        number_at(numbers, C_GRAD_SCALE, T), number_at(numbers, C_L2, T),
        number_at(numbers, C_DECAY, T), number_at(numbers, C_OPPOSED, T),
        number_at(numbers, C_KEEP1, T), number_at(numbers, C_TAKE1, T),
        number_at(numbers, C_KEEP2, T), number_at(numbers, C_TAKE2, T),
        number_at(numbers, C_FROM_M, T), number_at(numbers, C_FROM_G, T),
        number_at(numbers, C_ROOT, T), number_at(numbers, C_INNER, T), number_at(numbers, C_EPS, T),
        number_at(numbers, C_STEP, T),
    )  # fmt: skip


@triton.jit
def number_at(numbers, place: tl.constexpr, T: tl.constexpr):
    """Return one number of a row, in the dtype ``T``."""
    return tl.load(numbers + place).to(T)


@triton.jit
def unbias(recipe, beta, step):
    """Return 1 - beta^step, or what another bias correction puts in its place."""
    kind = tl.load(recipe + BIAS_CORRECTION)
    exponent = tl.where(kind == PAPER, step, 1)
    return tl.where(kind == NO_CORRECTION, 1.0, one_minus_power(beta, exponent))


@triton.jit
def one_minus_power(beta, exponent):
    """Return 1 - beta^exponent; see ``adamas.coefficients.one_minus_power``."""
    total = beta * 0.0
    q = 1.0 - beta
    while exponent > 0:
        total = tl.where((exponent & 1) == 1, total + q * (1.0 - total), total)
        q = q * (2.0 - q)
        exponent = exponent >> 1
    return total


@triton.jit
def rectification(beta, step):
    """Return r_t, or 0 where it is off; see ``adamas.coefficients.rectification``."""
    weights = beta * 0.0
    numbers = beta * 0.0
    q = 1.0 - beta
    of_numbers = 1.0 - beta
    power = beta
    terms = beta * 0.0 + 1.0
    while step > 0:
        is_set = (step & 1) == 1
        numbers = tl.where(is_set, of_numbers + power * (terms * weights + numbers), numbers)
        weights = tl.where(is_set, q + power * weights, weights)
        of_numbers = of_numbers + power * (terms * q + of_numbers)
        q = q + power * q
        power = tl.where(q <= 0.5, 1.0 - q, power * power)
        terms = terms + terms
        step = step >> 1
    length = 2.0 * (numbers / weights) - 1.0
    is_on = length > 5.0
    longest = 2.0 / (1.0 - beta) - 1.0
    now = (length - 4.0) * (length - 2.0)
    last = (longest - 4.0) * (longest - 2.0)
    return tl.where(is_on, tl.sqrt(tl.where(is_on, now * longest / (last * length), 0.0)), 0.0)
