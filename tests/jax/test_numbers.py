"""The numbers of a step in JAX are those of adamas.coefficients, at every step."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamas.coefficients import Coefficients, at_step, one_minus_power
from adamas.jax import binary64, numbers
from adamas.jax.binary64 import Binary64
from adamas.jax.numbers import Choices, coefficients
from adamas.options import Options
from tests.support.cases import bits

COUNT = 100_000


@pytest.fixture(autouse=True)
def x64():
    """float64 is needed to look at binary64, not to compute it."""
    with jax.enable_x64(True):
        yield


def drawn(low, high, seed=0, count=COUNT):
    """Numbers of many exponents, some with few digits, some with many nines, some of them 0."""
    random = np.random.default_rng(seed)
    x = np.ldexp(1 + random.random(count), random.integers(low, high, count))
    pattern, kind = x.view(np.uint64), random.integers(0, 8, count)
    pattern[kind == 0] &= np.uint64(0xFFFFFFF000000000)
    pattern[kind == 1] |= np.uint64(0xFFFFF)
    pattern[kind == 2] |= np.uint64(0xFFFFFFFFFFFFF)
    x[kind == 3] = 2.0 ** random.integers(low, high, (kind == 3).sum())
    x[:: 1 << 10] = 0
    return x


def taken(x):
    return binary64.from_array(jnp.asarray(x))


def given(x, dtype=np.float64):
    return np.asarray(binary64.to_array(x, dtype))


def same(a, b):
    np.testing.assert_array_equal(bits(a), bits(b))


# ── binary64 in integers ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("reach", [2, 60, 500])
def test_each_operation_gives_the_bits_of_the_processors_float64(reach):
    a, b = drawn(-reach, reach, 1), drawn(-reach, reach, 2)
    less, more = np.minimum(a, b), np.maximum(a, b)
    above = np.where(b == 0, 1.0, b)
    same(given(jax.jit(binary64.add)(taken(a), taken(b))), a + b)
    same(given(jax.jit(binary64.subtract)(taken(more), taken(less))), more - less)
    same(given(jax.jit(binary64.multiply)(taken(a), taken(b))), a * b)
    same(given(jax.jit(binary64.divide)(taken(a), taken(above))), a / above)
    same(given(jax.jit(binary64.sqrt)(taken(a))), np.sqrt(a))


def test_differences_of_numbers_that_are_nearly_equal_are_exact():
    random = np.random.default_rng(0)
    near = 1 + np.ldexp(random.random((2, COUNT)), -random.integers(0, 54, (2, COUNT)))
    less, more = near.min(axis=0), near.max(axis=0)
    same(given(jax.jit(binary64.subtract)(taken(more), taken(less))), more - less)
    small = np.ldexp(random.random(COUNT), -random.integers(0, 70, COUNT))
    same(given(jax.jit(binary64.one_minus)(taken(small))), 1 - small)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_come_back_as_they_were(dtype):
    random = np.random.default_rng(0)
    integer = np.dtype(f"u{np.dtype(dtype).itemsize}")
    finite = np.array(np.inf, dtype).view(integer)
    patterns = random.integers(0, finite, COUNT, integer)
    patterns[:1000] >>= integer.type(12)  # many that are subnormal
    x = patterns.view(dtype)
    if dtype == np.float64:  # in which they are not needed, and are 0
        x = np.where(x < np.finfo(dtype).smallest_normal, 0, x)
    same(given(taken(x), dtype), x)
    same(given(taken(-x), dtype), x)
    for each in x[:100]:
        known = binary64.from_float(float(each))
        assert np.array_equal(known, [part[()] for part in taken(each)])


def test_rounding_to_float32_is_that_of_the_processor():
    x = np.concatenate([drawn(-170, 140), drawn(-24, 24)])
    halves = np.ldexp(np.random.default_rng(0).integers(0, 1 << 26, 10_000) + 0.5, -160)
    x = np.concatenate([x, halves])
    with np.errstate(over="ignore", under="ignore"):
        same(given(taken(x), np.float32), x.astype(np.float32))


BETAS = [0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.999999, 1 - 2.0**-53, 1e-300]


@pytest.mark.parametrize("beta", [*BETAS, float(np.float32(0.9)), float(np.float32(0.999))])
def test_one_minus_a_power_has_the_bits_of_its_definition_for_all_exponents(beta):
    random = np.random.default_rng(0)
    steps = np.concatenate(
        [np.arange(1, 2000), 2 ** np.arange(32), random.integers(1, 2**32, 1000)]
    ).astype(np.uint32)
    complement = Binary64(*(jnp.full(steps.shape, x) for x in binary64.from_float(1.0 - beta)))
    found = given(jax.jit(binary64.one_minus_power)(complement, steps))
    same(found, np.array([one_minus_power(beta, int(step)) for step in steps]))


# ── the numbers ────────────────────────────────────────────────────────────────────────────────


def definition(options, counts, dtype):
    """The numbers of many steps, by ``adamas.coefficients.at_step``."""
    rows = [
        at_step(options, int(count) + 1, options.lr).rounded(np.dtype(dtype)) for count in counts
    ]
    return Coefficients(*(np.array(column, dtype) for column in zip(*rows, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def many(choices, arrays, counts, dtype):
    whole = dataclasses.replace(choices, **arrays)
    return jax.vmap(
        lambda count: tuple(each.parts[0] for each in coefficients(whole, count, dtype))
    )(counts)


def check(options, choices, counts, dtype, arrays=()):
    found = many(choices, dict(arrays), jnp.asarray(counts, jnp.int32), dtype)
    for name, ours, theirs in zip(
        Coefficients._fields, found, definition(options, counts, dtype), strict=True
    ):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(bits(ours), bits(theirs), name)


def choices_of(options, **changes):
    return Choices(
        **{
            "lr": options.lr,
            "b1": options.betas[0],
            "b2": options.betas[1],
            "eps": options.eps,
            "eps_root": options.eps_root,
            "weight_decay": options.weight_decay,
            "kind": options.decay,
            "lr_max": options.lr_max,
            "nesterov": options.nesterov,
            "unbias1": options.bias_correction == "paper",
            "unbias2": options.bias_correction == "paper",
            **changes,
        }
    )


def options_of(**changes):
    return Options(lr=1e-3, weight_decay=0.1, decay="decoupled", eps_root=1e-7).replace(**changes)


LATE = np.concatenate(
    [2 ** np.arange(31), 2 ** np.arange(1, 31) - 1, [2**31 - 1],
     np.random.default_rng(0).integers(0, 2**31, 500)]
)  # fmt: skip


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.99, 0.95), (0.8, 0.9997)])
def test_the_table_has_the_numbers_of_every_step_as_far_as_they_change_and_of_later_ones(
    betas, nesterov
):
    options = options_of(betas=betas, nesterov=nesterov)
    columns = [
        numbers.table_of(numbers.mean_columns, betas[0], nesterov),
        numbers.table_of(numbers.square_columns, betas[1], 1e-7),
    ]
    longest = max(map(len, columns))
    counts = np.concatenate([np.arange(longest + 10), LATE])
    check(options, choices_of(options), counts, np.float32)


@pytest.mark.parametrize("beta", np.random.default_rng(0).uniform(0, 0.999, 6).tolist())
def test_the_table_of_any_decay_rate_has_the_numbers_of_every_step(beta):
    options = options_of(betas=(beta, beta), nesterov=True)
    counts = np.concatenate([np.arange(int(60 / (1 - beta)) + 10), LATE[:80]])
    check(options, choices_of(options), counts, np.float32)


def test_a_table_is_made_only_where_it_is_short_and_certain():
    table = functools.partial(numbers.table_of, numbers.square_columns)
    assert len(table(0.999, 0.0)) < 20_000
    assert table(0.9999, 0.0) is None
    assert table(1 - 2.0**-53, 0.0) is None
    # β1 / 1 and β1 / (1 - 2^-53) are rounded to different numbers: the middle of two of float32.
    middle = 0.75 + 2.0**-25
    assert np.float32(middle / (1 - 2.0**-53)) != np.float32(middle)
    assert numbers.table_of(numbers.mean_columns, middle, True) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("betas", "nesterov", "dtype"),
    [((0.75 + 2.0**-25, 1 - 2.0**-53), True, np.float32), ((0.9, 0.9999), False, np.float64)],
)
def test_what_has_no_table_is_computed_and_has_the_numbers_of_every_step(betas, nesterov, dtype):
    counts = np.concatenate([np.arange(1000), np.arange(9_990, 10_010), LATE])
    options = options_of(betas=betas, nesterov=nesterov)
    check(options, choices_of(options), counts, dtype)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("correction", "dtype"), [("paper", np.float32), ("none", np.float32), ("none", np.float64)]
)
def test_numbers_that_are_arrays_give_the_same_as_those_that_are_known(correction, dtype):
    counts = np.concatenate([np.arange(300), LATE])
    exact = {
        name: dtype(value)
        for name, value in {
            "lr": 0.0123, "b1": 0.87, "b2": 0.993, "eps": 1e-6, "eps_root": 3e-7,
            "weight_decay": 0.07,
        }.items()
    }  # fmt: skip
    plain = {name: float(value) for name, value in exact.items()}
    options = Options(
        lr=plain["lr"],
        betas=(plain["b1"], plain["b2"]),
        eps=plain["eps"],
        eps_root=plain["eps_root"],
        weight_decay=plain["weight_decay"],
        decay="decoupled",
        bias_correction=correction,
        nesterov=True,
    )
    blank = dict.fromkeys(exact)
    arrays = {name: jnp.asarray(value) for name, value in exact.items()}
    check(options, choices_of(options, **blank), counts, dtype, arrays)


@pytest.mark.parametrize("lr", [1e-3, -0.25, 0.0, math.inf, math.nan, 1e-40, 3e38])
def test_the_decay_is_the_product_rounded_once_of_a_rate_of_any_kind(lr):
    rate = np.float32(lr)
    choices = Choices(lr=None, weight_decay=0.1, b1=0.9)
    (found,) = many(choices, {"lr": jnp.asarray(rate)}, jnp.zeros(1, jnp.int32), np.float32)[2]
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.float32(np.float64(rate) * 0.1)
    np.testing.assert_array_equal(bits(found), bits(want))


@functools.partial(jax.jit, static_argnums=0)
def shrunk(choices, arrays):
    whole = dataclasses.replace(choices, **arrays)
    c = coefficients(whole, 0, np.float32)
    return c.decay.parts[0], c.opposed.parts[0], c.opposed is c.decay


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("kind", ["decoupled", "fully-decoupled", "cautious", "corrected"])
@pytest.mark.parametrize(
    "names", [(), ("lr",), ("weight_decay",), ("lr", "weight_decay", "lr_max")]
)
def test_each_decay_has_the_numbers_of_the_definition_whatever_is_an_array(kind, names):
    most = 0.03 if kind in ("fully-decoupled", "corrected") else None
    plain = {"lr": float(np.float32(0.0123)), "weight_decay": float(np.float32(0.07))}
    plain |= {} if most is None else {"lr_max": float(np.float32(most))}
    blank = Choices(**{name: None if name in names else x for name, x in plain.items()}, kind=kind)
    arrays = {name: jnp.asarray(plain[name], np.float32) for name in names if name in plain}
    decay, opposed, is_one = shrunk(blank, arrays)
    wanted = at_step(Options(decay=kind, **plain), 1, plain["lr"]).rounded(np.dtype(np.float32))
    np.testing.assert_array_equal(bits(decay), bits(wanted.decay))
    np.testing.assert_array_equal(bits(opposed), bits(wanted.opposed))
    assert is_one == (kind != "cautious")


def test_products_of_many_rates_and_decays_are_rounded_once():
    random = np.random.default_rng(0)
    rates = random.uniform(0, 1, 100_000).astype(np.float32)
    found = jax.jit(
        jax.vmap(
            lambda rate: coefficients(
                Choices(lr=rate, weight_decay=0.1, b1=0.9), 0, np.float32
            ).decay.parts[0]
        )
    )(rates)
    wanted = (rates.astype(np.float64) * 0.1).astype(np.float32)
    np.testing.assert_array_equal(bits(found), bits(wanted))
    assert (wanted != rates * np.float32(0.1)).any(), "the cases tell nothing"


@pytest.mark.slow
def test_the_numbers_need_no_float64():
    options = options_of(betas=(0.9, 0.9999), eps=0.0)
    with jax.enable_x64(False):
        check(options, choices_of(options), [0, 4, 2**31 - 1], np.float32)
