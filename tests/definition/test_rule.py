"""The rule is the papers' formulas, to the last bit that rounding allows."""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import numpy as np
import pytest

from adamas.coefficients import Coefficients, at_step
from adamas.options import Options
from adamas.rule import flush, maximum, ratio, rule, shrinkage, smooth
from tests.support import rectified
from tests.support.cases import FLOATS
from tests.support.running_error import BITS, Format, Number

LR = 0.01

DIALECTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, other rates": {"betas": (0.5, 0.9), "eps": 1e-3},
    "adam, rates near one": {"betas": (0.999, 0.9999999)},
    "adam, L2": {"weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1, "decay": "decoupled"},
    "adamw, fully decoupled": {"weight_decay": 0.001, "decay": "fully-decoupled", "lr_max": 0.02},
    "adamw, cautious": {"weight_decay": 0.1, "decay": "cautious"},
    "adamw, corrected": {"weight_decay": 0.1, "decay": "corrected", "lr_max": 0.02},
    "adam, maximize": {"maximize": True, "weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "nadam": {"nesterov": True},
    "radam": {"rectify": True},
    "radam, short memory": {"rectify": True, "betas": (0.5, 0.75), "weight_decay": 0.1},
    "radam, never on": {"rectify": True, "betas": (0.5, 0.6)},
    "radam, decoupled": {
        "rectify": True,
        "betas": (0.9, 0.9999999),
        "weight_decay": 0.1,
        "decay": "decoupled",
    },
    "radam, Nesterov's": {"rectify": True, "nesterov": True, "eps_root": 1e-4, "maximize": True},
    "adam, eps_root": {"eps_root": 1e-4, "eps": 0.0},
    "adam, no correction": {"bias_correction": "none"},
    "adam, the note's": {"bias_correction": "first-step"},
    "nadam, the note's": {"bias_correction": "first-step", "nesterov": True},
    "momentum": {"betas": (0.9, None), "bias_correction": "none"},
    "momentum, corrected": {"betas": (0.9, None)},
    "nesterov": {"betas": (0.9, None), "nesterov": True, "weight_decay": 0.01},
    "rmsprop": {"betas": (None, 0.9), "bias_correction": "none"},
    "momentum, cautious": {"betas": (0.9, None), "weight_decay": 0.1, "decay": "cautious"},
    "rmsprop, corrected": {"betas": (None, 0.99), "amsgrad": True},
}


def papers_step(options, t, p, g, m, v, w):
    """One step in the letters of the papers, nothing rounded."""
    beta1, beta2 = (None if b is None else mpmath.mpf(b) for b in options.betas)
    decay = mpmath.mpf(options.weight_decay)
    eta = mpmath.mpf(LR)
    exponent = {"paper": t, "first-step": 1, "none": mpmath.inf}[options.bias_correction]
    following = exponent + 1 if options.bias_correction == "paper" else exponent
    g = -g if options.maximize else g
    if options.decay == "l2":
        g = g + decay * p
    direction = g
    if beta1 is not None:
        m = beta1 * m + (1 - beta1) * g
        direction = m / (1 - beta1**exponent)
        if options.nesterov:  # Dozat 2016, algorithm 2, with a constant momentum
            direction = beta1 * m / (1 - beta1**following) + (1 - beta1) * g / (1 - beta1**exponent)
    if beta2 is not None:
        v = beta2 * v + (1 - beta2) * g**2
        divides = v
        if options.amsgrad:
            w = divides = max(w, v)
        corrected = divides / (1 - beta2**exponent)
        divisor = mpmath.sqrt(corrected + mpmath.mpf(options.eps_root)) + mpmath.mpf(options.eps)
        if not options.rectify:
            direction = direction / divisor
        elif rectified.length(options.betas[1], t) > 5:  # Liu et al. 2020
            direction = rectified.rectification(options.betas[1], t) * direction / divisor
    rate_max = mpmath.mpf(options.lr_max or 1)
    shrink = {
        "l2": 0,
        "decoupled": eta * decay,
        "fully-decoupled": decay * eta / rate_max,
        "cautious": eta * decay * (direction * p >= 0),  # Chen et al. 2025, equation 2
        "corrected": decay * eta**2 / rate_max,  # Defazio 2025, algorithm 2
    }[options.decay]
    return p - eta * direction - shrink * p, m, v, w


def exact_numbers(options, t, form):
    """The numbers of the rule, exact, with what rounding them may cost.

    Each is rounded to the format once: u. Before, in float64, the longest way is that to `root`:
    1 - β^t takes at most two sums and a product for each bit of t, twice, and neither enlarges a
    relative error; a root, a quotient and the like add less than 4: (6·10 + 4)·2^-53 for t ≤ 1023.
    """
    beta1, beta2 = (None if b is None else mpmath.mpf(b) for b in options.betas)
    numbers = at_step(options, t, LR)

    def unbias(beta, exponent):
        return {
            "paper": 1 - beta**exponent,
            "first-step": 1 - beta,
            "none": mpmath.mpf(1),
        }[options.bias_correction]

    decay, eta = mpmath.mpf(options.weight_decay), mpmath.mpf(LR)
    values = {"grad_scale": numbers.grad_scale, "l2": 0, "decay": 0, "keep1": 0, "take1": 1}
    values |= {"keep2": 0, "take2": 1, "from_m": 1, "from_g": 0, "root": 1}
    values |= {"inner": options.eps_root, "eps": options.eps, "step": eta}
    if options.decay == "l2":
        values["l2"] = decay
    elif options.decay in ("decoupled", "cautious"):
        values["decay"] = eta * decay
    else:
        values["decay"] = decay * eta / mpmath.mpf(options.lr_max)
        if options.decay == "corrected":
            values["decay"] *= eta
    values["opposed"] = 0 if options.decay == "cautious" else values["decay"]
    if beta1 is not None:
        values |= {"keep1": beta1, "take1": 1 - beta1, "from_m": 1 / unbias(beta1, t)}
        if options.nesterov:
            values["from_m"] = beta1 / unbias(beta1, t + 1)
            values["from_g"] = (1 - beta1) / unbias(beta1, t)
    if beta2 is not None:
        values |= {"keep2": beta2, "take2": 1 - beta2, "root": 1 / mpmath.sqrt(unbias(beta2, t))}
        values["inner"] = options.eps_root * unbias(beta2, t)
    relative = dict.fromkeys(values, form.u + 64 * mpmath.mpf(2) ** -53)
    if options.rectify:
        found = rectified.rectification(options.betas[1], t)
        values |= {"step": eta * found} if found else {"root": 0, "eps": 1}
        relative["step"] += rectified.ROUNDINGS * t.bit_length() * mpmath.mpf(2) ** -53
    return Coefficients(
        **{name: Number(x, abs(mpmath.mpf(x)) * relative[name], form) for name, x in values.items()}
    )


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_rule_is_the_papers_formula_within_the_rounding_of_each_operation(
    dialect, dtype, steps
):
    """Step by step, each from the state that the rounded rule has reached."""
    options = Options(lr=LR, **DIALECTS[dialect])
    form = Format.of(dtype)
    random = np.random.default_rng(11)
    p = np.array([0.7, -3.0], dtype)
    m = np.zeros_like(p) if options.has_mean else None
    v = np.zeros_like(p) if options.has_square else None
    w = np.zeros_like(p) if options.amsgrad else None
    scales = np.array([1.0, 1e-3])
    with mpmath.workprec(BITS):
        for t in range(1, steps + 1):
            g = (random.standard_normal(2) * scales * 10.0 ** random.integers(-2, 2)).astype(dtype)
            rounded = rule(at_step(options, t, LR).rounded(p.dtype), p, g, m, v, w)
            numbers = exact_numbers(options, t, form)
            for i in range(2):
                given = [None if x is None else x[i] for x in (p, g, m, v, w)]
                exact = [None if x is None else mpmath.mpf(float(x)) for x in given]
                bounded = rule(numbers, *(None if x is None else Number(x, 0, form) for x in exact))
                formula = papers_step(options, t, *exact)
                computed = (rounded.p, rounded.m, rounded.v, rounded.w)
                bounds = (bounded.p, bounded.m, bounded.v, bounded.w)
                for value, bound, ours in zip(formula, bounds, computed, strict=True):
                    if bound is None:
                        assert ours is None
                        continue
                    assert abs(value - bound.value) <= form.smallest_normal + abs(value) * (
                        mpmath.mpf(2) ** (10 - BITS)
                    ), "the lines of the rule are not the formula"
                    distance = abs(mpmath.mpf(float(ours[i])) - value)
                    assert distance <= bound.error + form.smallest_normal
            p, m, v, w = rounded[:4]


def test_the_bound_is_of_the_size_of_rounding():
    """Else the test above could not fail: a few hundred units in the last place of an update."""
    options = Options(lr=LR)
    form = Format.of(np.float32)
    with mpmath.workprec(BITS):
        numbers = exact_numbers(options, 10, form)
        given = [Number(x, 0, form) for x in (0.7, 1.0, 0.1, 0.01)]
        change = rule(numbers, *given).change
        assert 0 < change.error < 40 * form.u * abs(change.value)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_notes_formulas_are_bias_correction_first_step(nesterov):
    """m̂ = m / (1 - β1), v̂ = v / (1 - β2), typed as the note writes them, in float64.

    Both sides do about ten rounded operations a step on numbers of size 1, and the differences
    add up over the steps: at most 20 · 2^-53 · lr a step, and half a unit of p's.
    """
    random = np.random.default_rng(3)
    beta1, beta2, eta, eps = 0.9, 0.999, 0.01, 1e-8
    w = random.standard_normal(50)
    p, m, v = w.copy(), np.zeros(50), np.zeros(50)
    ours_m, ours_v = np.zeros(50), np.zeros(50)
    options = Options(lr=eta, bias_correction="first-step", nesterov=nesterov)
    steps = 1000
    for t in range(1, steps + 1):
        g = random.standard_normal(50) + 0.5
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1)
        v_hat = v / (1 - beta2)
        if nesterov:
            m_hat = beta1 * m_hat + g
        w = w - eta * m_hat / (np.sqrt(v_hat) + eps)
        result = rule(at_step(options, t, eta).rounded(p.dtype), p, g, ours_m, ours_v)
        p, ours_m, ours_v = result.p, result.m, result.v
    update = eta * np.abs(m_hat / np.sqrt(v_hat)).max() + eta * 10
    bound = steps * 2.0**-53 * (20 * update + np.abs(w).max())
    assert np.abs(p - w).max() <= bound


def test_the_notes_formulas_agree_with_the_paper_at_the_first_step_only():
    options = [Options(bias_correction=each) for each in ("paper", "first-step")]
    assert at_step(options[0], 1, LR) == at_step(options[1], 1, LR)
    assert at_step(options[0], 2, LR) != at_step(options[1], 2, LR)


SPECIAL = [0.0, 1.0, 1e-37, 3e38, np.inf, np.nan, 1e-40, 1e-45]


@pytest.mark.parametrize("dtype", FLOATS)
def test_flush_takes_away_subnormal_numbers_and_nothing_else(dtype):
    smallest = np.finfo(dtype).smallest_normal
    below = np.nextafter(smallest, dtype(0))
    x = np.array([0, -0.0, smallest, -smallest, below, -below, np.inf, -np.inf, 1, np.nan], dtype)
    expected = np.array([0, 0, smallest, -smallest, 0, 0, np.inf, -np.inf, 1, np.nan], dtype)
    assert np.array_equal(flush(x), expected, equal_nan=True)
    assert not np.signbit(flush(x)[[4, 5]]).any()


def test_ratio_is_zero_where_the_divisor_is_and_division_elsewhere():
    for u, d in itertools.product(SPECIAL, [0.0, -0.0, 1.0, 1e-40, np.inf, np.nan]):
        with np.errstate(all="ignore"):
            found = ratio(np.array([u]), np.array([d]))[0]
            wanted = 0.0 if d == 0 and not np.isnan(u) else np.array([u])[0] / np.array([d])[0]
        assert np.array_equal(found, wanted, equal_nan=True), (u, d)


def test_nan_passes_through_flush_ratio_and_maximum():
    nan, one, zero = (np.array([x]) for x in (np.nan, 1.0, 0.0))
    with np.errstate(invalid="ignore"):
        for result in (flush(nan), ratio(nan, one), ratio(one, nan), ratio(nan, zero)):
            assert np.isnan(result).all()
    assert np.isnan(maximum(nan, one)).all()
    assert np.isnan(maximum(one, nan)).all()


SIGNED = [*SPECIAL, *(-x for x in SPECIAL)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_shrinks_by_another_decay_has_a_sign_opposite_to_the_updates(dtype):
    """Chen et al.'s u·p ≥ 0 in numbers that never round to 0; nothing is opposite to 0 or NaN."""
    pairs = [(dtype(u), dtype(p)) for u, p in itertools.product(SIGNED, SIGNED)]
    u, p = (np.array(each) for each in zip(*pairs, strict=True))
    with np.errstate(invalid="ignore", over="ignore"):
        found = shrinkage(dtype(2.0), dtype(3.0), u, p)
        for (own, other), ours in zip(pairs, found, strict=True):
            is_opposed = mpmath.sign(float(own)) * mpmath.sign(float(other)) < 0
            wanted = (dtype(3.0) if is_opposed else dtype(2.0)) * other
            assert np.array_equal(ours, wanted, equal_nan=True), (own, other)
            assert np.signbit(ours) == np.signbit(wanted) or np.isnan(wanted)
    tiny = np.finfo(dtype).tiny
    assert dtype(tiny) * dtype(-tiny) == 0, "the case tells nothing"
    assert shrinkage(dtype(2.0), dtype(3.0), np.array([tiny]), np.array([-tiny])) == -3.0 * tiny


def test_smooth_is_a_weighted_mean_without_subnormal_numbers():
    mean, x = np.array([1.0, 1e-307]), np.array([3.0, 0.0])
    assert smooth(0.75, 0.25, mean, x).tolist() == [1.5, 1e-307 * 0.75]
    assert smooth(0.01, 0.99, mean, x)[1] == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_without_epsilon_a_gradient_of_zero_moves_nothing(dtype):
    options = Options(eps=0.0)
    zero, p = np.zeros(3, dtype), np.ones(3, dtype)
    result = rule(at_step(options, 1, LR).rounded(p.dtype), p, zero, zero, zero)
    assert (result.p == 1).all()
    assert (result.u == 0).all()
