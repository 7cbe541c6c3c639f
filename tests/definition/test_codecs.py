"""Small forms of m and v: what they promise, exhaustively where the codes can be counted."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adamas import codecs
from adamas.codecs import Codes

PAIRS = {"compact": ("compact", "compact"), "8bit": ("8bit", "8bit")}
TOPS = [-3, 0, 4, 12]
ROUNDINGS = ["nearest", "stochastic"]
SMALLEST = np.finfo(np.float32).smallest_normal
LARGEST = np.finfo(np.float32).max

squares = st.one_of(
    st.just(0.0), st.floats(float(SMALLEST), float(LARGEST), width=32, allow_subnormal=False)
)
blocks = st.integers(1, 100).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=st.floats(-8, 8, width=32)),
        hnp.arrays(np.float32, n, elements=squares),
        st.integers(0, 2**64 - 1),
    )
)


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


def random_of(seed, count, rounding="stochastic"):
    if rounding == "nearest":
        return None
    return codecs.random_bits(codecs.key_of(seed, 1, 0), 0, count)


def means(y, v):
    """Return m that is ``y`` times √v, as a step would have it, flushed."""
    m = (y * np.sqrt(v.astype(np.float64))).astype(np.float32)
    return np.where(np.abs(m) < SMALLEST, np.float32(0), m)


# ── random bits ────────────────────────────────────────────────────────────────────────────────


def test_random_bits_are_those_of_the_element_however_a_tensor_is_cut():
    key = codecs.key_of(7, 8, 9)
    for start in (0, 2**32 - 50, 2**40 + 3):
        whole = codecs.random_bits(key, start, 100)
        parts = [codecs.random_bits(key, start + i, n) for i, n in ((0, 1), (1, 60), (61, 39))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_random_bits_follow_the_formula_of_the_specification():
    key = codecs.key_of(1, 2, 3)
    for index in (0, 1, 12345, 2**32 + 5):
        x = (index % 2**32 + key.k1 + (index >> 32) * 0x9E3779B1) % 2**32
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= key.k2
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        x ^= x >> 15
        assert codecs.random_bits(key, index, 1)[0] == x


def test_keys_differ_between_seeds_steps_and_tensors():
    keys = {codecs.key_of(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(keys) == 12**3


def test_random_bits_are_uniform_and_steps_and_streams_independent():
    """Means of n fair bits lie within 5 standard deviations, 5/(2√n)."""
    n = 1 << 16
    first = codecs.random_bits(codecs.key_of(0, 1, 0), 0, n)
    second = codecs.random_bits(codecs.key_of(0, 2, 0), 0, n)
    # The high half of the parameter's stream, beside either half of the state's.
    parameter = codecs.random_bits_of_parameter(first) >> np.uint32(16)
    parameter |= parameter << np.uint32(16)
    others = [second, parameter, np.roll(first, 1)]
    for words in (first, *(first ^ other for other in others)):
        set_bits = words[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
        assert np.abs(set_bits.mean(axis=0) - 0.5).max() < 2.5 / math.sqrt(n)
    # χ² of the high byte: 255 degrees of freedom, 5 standard deviations of √510.
    counts = np.bincount(first >> np.uint32(24), minlength=256)
    assert abs(((counts - n / 256) ** 2 / (n / 256)).sum() - 255) < 5 * math.sqrt(510)


# ── the bound of m ─────────────────────────────────────────────────────────────────────────────


def test_the_top_is_4_at_adams_defaults():
    assert codecs.mean_bound(0.9, 0.999) == pytest.approx(7.27, abs=0.01)
    assert codecs.mean_top(0.9, 0.999) == 4


@given(st.floats(0, 0.999), st.floats(0.01, 0.9999), st.integers(0, 2**32))
@settings(deadline=None)
def test_no_gradients_make_m_larger_than_the_bound(beta1, beta2, seed):
    bound = codecs.mean_bound(beta1, beta2)
    # The worst gradients are those of Cauchy-Schwarz, (β1/β2)^k into the past.
    worst = (beta1 / beta2) ** np.arange(40.0)[::-1] if bound < math.inf else np.ones(40)
    for g in (worst, np.random.default_rng(seed).standard_cauchy(40)):
        m = v = 0.0
        for each in g:
            m, v = beta1 * m + (1 - beta1) * each, beta2 * v + (1 - beta2) * each**2
        assert abs(m) <= bound * math.sqrt(v) * (1 + 1e-9) + 1e-300
    top = codecs.mean_top(beta1, beta2)
    assert 2 * bound <= 31 / 32 * 2.0**top or top == 12


@given(hnp.arrays(np.float32, 50, elements=squares))
def test_the_scale_of_m_is_the_power_of_two_in_the_root_of_v(v):
    for each, scale in zip(v, codecs.root_scale(v), strict=True):
        expected = 2.0**-64 if each == 0 else 2.0 ** ((math.frexp(each)[1] - 1) // 2)
        assert scale == expected


# ── bfloat16 ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_bfloat16_stays_itself(rounding):
    code = np.arange(2**16, dtype=np.uint16)
    values = codecs.decode_bfloat16(code)
    again = codecs.encode_bfloat16(values, random_of(3, code.size, rounding))
    nan = np.isnan(values)
    np.testing.assert_array_equal(again[~nan], code[~nan])
    assert np.isnan(codecs.decode_bfloat16(again[nan])).all()


def test_a_finite_number_never_rounds_to_infinity_by_chance():
    x = np.full(1000, -LARGEST, np.float32)
    assert np.isfinite(codecs.decode_bfloat16(codecs.encode_bfloat16(x, random_of(0, 1000)))).all()


def test_bfloat16_and_remainder_are_exactly_float32():
    x = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    x = np.append(x, np.array([0, -0.0, np.inf, -np.inf, LARGEST, -LARGEST, 1e-45], np.float32))
    high, low = codecs.encode_remainder(x)
    again = codecs.decode_remainder(high, low)
    nan = np.isnan(x)
    np.testing.assert_array_equal(bits(again[~nan]), bits(x[~nan]))
    assert np.isnan(again[nan]).all()
    assert np.isnan(codecs.decode_bfloat16(high[nan])).all()


@pytest.mark.parametrize("dtype", [np.int16, np.int8])
def test_no_remainder_of_another_number_makes_a_number_nan(dtype):
    """Whatever is assigned to a parameter, its remainder stays what it was."""
    code = np.arange(2**16, dtype=np.uint16)
    values = codecs.decode_bfloat16(code)
    limits = np.iinfo(dtype)
    for remainder in (limits.min, -1, 1, limits.max):
        found = codecs.decode_remainder(code, np.full(code.size, remainder, dtype))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
        is_zero = values == 0
        if remainder < 0:
            np.testing.assert_array_equal(bits(found[is_zero]), bits(values[is_zero]))
        else:
            np.testing.assert_array_equal(found[np.isinf(values)], values[np.isinf(values)])


# ── compact ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("top", TOPS)
def test_every_code_of_compact_stays_itself(top, rounding):
    """All codes of m at every exponent of v, both parities of it included."""
    v = (np.arange(0x0080, 0x7F80, 0x20)).astype(np.uint16)
    m = np.arange(256, dtype=np.uint8)
    m, v = (each.ravel() for each in np.meshgrid(m, v))
    decoded = codecs.decode(PAIRS["compact"], Codes(m, v), top)
    kept = np.isfinite(decoded[0]) & ((np.abs(decoded[0]) >= SMALLEST) | (m % 128 == 0))
    again = codecs.encode(PAIRS["compact"], *decoded, random_of(top % 7, v.size, rounding), top)
    np.testing.assert_array_equal(again.square, v)
    np.testing.assert_array_equal(again.mean[kept], m[kept])


@given(blocks, st.sampled_from(ROUNDINGS))
@settings(deadline=None)
def test_compact_is_near_and_loses_no_v(given_, rounding):
    y, v, seed = given_
    m = means(y, v)
    code = codecs.encode(PAIRS["compact"], m, v, random_of(seed, v.size, rounding), 4)
    m_again, v_again = codecs.decode(PAIRS["compact"], code, 4)
    np.testing.assert_array_equal(v_again == 0, v == 0)
    largest = codecs.decode_bfloat16(np.array([0x7F7F], np.uint16))[0]
    wide = v.astype(np.float64)
    assert (np.abs(v_again - np.minimum(wide, largest)) <= wide * 2.0**-7).all()
    scale = codecs.root_scale(v_again).astype(np.float64)
    error = np.abs(m_again.astype(np.float64) - m)
    # A unit of the last place: 1/16 of the value, or 2^-7 of the scale below 2^-3; doubled at most
    # where v, rounded up, has moved the scale, and one more for the 16 random bits.
    assert (error <= np.maximum(np.abs(m) / 16, scale / 128) * (1 + 2.0**-15)).all()


# ── 8bit ───────────────────────────────────────────────────────────────────────────────────────


def alone(values):
    """Each value in a block of its own."""
    rows = np.zeros((values.size, codecs.BLOCK), np.float32)
    rows[np.arange(values.size), np.arange(values.size) % codecs.BLOCK] = values
    return rows.ravel()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_square_that_8bit_can_hold_stays_itself(rounding):
    """All numbers of 6 mantissa bits, which hold those of fewer: alone in a block they fit."""
    k = np.arange(8 << 3, 2040 << 3, dtype=np.uint32)
    v = alone((k << np.uint32(17)).view(np.float32))
    code = codecs.encode(("8bit",) * 2, None, v, random_of(1, v.size, rounding), 4)
    np.testing.assert_array_equal(codecs.decode(("8bit",) * 2, code, 4)[1], v)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_mean_that_8bit_can_hold_stays_itself(rounding):
    """All codes of m at all scales of a block and every eighth exponent of v, and its next."""
    q, scale, exponent = np.meshgrid(
        np.arange(-127, 128), np.arange(-11, 5), np.arange(1, 248).reshape(-1, 13)[:, :2].ravel()
    )
    v = (exponent.ravel().astype(np.uint32) << np.uint32(23)).view(np.float32)
    y = np.ldexp(q.ravel().astype(np.float32), scale.ravel() - 7)
    m = y * codecs.root_scale(v)
    assert (np.abs(m[q.ravel() != 0]) >= SMALLEST).all()
    m, v = alone(m), alone(v)
    code = codecs.encode(("8bit",) * 2, m, v, random_of(2, v.size, rounding), 4)
    m_again, v_again = codecs.decode(("8bit",) * 2, code, 4)
    np.testing.assert_array_equal(v_again, v)
    np.testing.assert_array_equal(m_again, m)


@given(blocks, st.sampled_from(ROUNDINGS), st.sampled_from(ROUNDINGS))
@settings(deadline=None)
def test_8bit_stays_itself_once_it_is_exact(given_, rounding, then):
    y, v, seed = given_
    top = 4
    code = codecs.encode(PAIRS["8bit"], means(y, v), v, random_of(seed, v.size, rounding), top)
    decoded = codecs.decode(PAIRS["8bit"], code, top)
    again = codecs.decode(
        PAIRS["8bit"],
        codecs.encode(PAIRS["8bit"], *decoded, random_of(seed + 1, v.size, then), top),
        top,
    )
    np.testing.assert_array_equal(bits(again[1]), bits(decoded[1]))
    normal = np.abs(decoded[0]) >= SMALLEST
    np.testing.assert_array_equal(again[0][normal], decoded[0][normal])


@given(blocks, st.sampled_from(ROUNDINGS))
@settings(deadline=None)
def test_8bit_loses_no_v_and_never_makes_it_smaller_than_an_eighth_less(given_, rounding):
    y, v, seed = given_
    code = codecs.encode(PAIRS["8bit"], means(y, v), v, random_of(seed, v.size, rounding), 4)
    m_again, v_again = codecs.decode(PAIRS["8bit"], code, 4)
    np.testing.assert_array_equal(v_again == 0, v == 0)
    assert (v_again.astype(np.float64) >= v.astype(np.float64) * (8 / 9)).all()
    np.testing.assert_array_equal(m_again[v == 0], 0)
    assert np.isfinite(m_again).all()
    assert np.isfinite(v_again).all()


def test_every_header_and_code_of_8bit_decodes_to_finite_numbers():
    header = np.arange(2**16, dtype=np.uint16)
    header = header[(header & 1023) < 1020]
    c = np.resize(np.arange(256, dtype=np.uint8), header.size * 32)
    m, v = codecs.decode(PAIRS["8bit"], Codes(c.view(np.int8), c, header), 4)
    fits = v <= LARGEST
    assert (v[c > 0] >= SMALLEST).all()
    assert (v[c == 0] == 0).all()
    assert np.isfinite(m[fits]).all()


@pytest.mark.parametrize("size", [1, 31, 32, 33, 200])
def test_blocks_of_8bit_are_independent_of_each_other(size):
    generator = np.random.default_rng(size)
    v = generator.standard_normal(size).astype(np.float32) ** 2
    m = means(generator.standard_normal(size).astype(np.float32), v)
    key = codecs.key_of(0, 1, 0)
    whole = codecs.encode(PAIRS["8bit"], m, v, codecs.random_bits(key, 0, size), 4)
    for start in range(0, size, 32):
        part = slice(start, min(start + 32, size))
        r = codecs.random_bits(key, start, part.stop - start)
        own = codecs.encode(PAIRS["8bit"], m[part], v[part], r, 4)
        np.testing.assert_array_equal(own.mean, whole.mean[part])
        np.testing.assert_array_equal(own.square, whole.square[part])
        assert own.header[0] == whole.header[start // 32]


# ── all ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PAIRS)
def test_rounding_by_chance_is_right_on_average(name):
    """The mean of n roundings lies within 5 standard deviations of the value.

    A rounding to two neighbours a unit apart has a variance of at most a quarter unit; the 16
    random bits of m add a bias of at most 2^-16 units. Units: v 1/16 of its value for 8bit with
    neighbours alike (4 mantissa bits or more) and 2^-7 for compact; m 1/8 of its scale at most.
    """
    encode, decode = (partial(each, PAIRS[name]) for each in (codecs.encode, codecs.decode))
    n = 1 << 15
    for value, y in ((1.2345, 0.777), (3.9, -1.618), (1e-20, 0.03)):
        v = np.full(n, value, np.float32)
        m = means(np.float32(y), v)
        m_again, v_again = decode(encode(m, v, random_of(5, n), 4), 4)
        unit_v = value * (1 / 16 if name == "8bit" else 2.0**-7)
        unit_m = math.sqrt(value) / 8
        for found, exact, unit in ((v_again, v[0], unit_v), (m_again, m[0], unit_m)):
            error = abs(found.astype(np.float64).mean() - float(exact))
            assert error <= 5 * unit / 2 / math.sqrt(n) + unit * 2.0**-15


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_not_finite_stays_in_its_place(name, rounding):
    encode, decode = (partial(each, PAIRS[name]) for each in (codecs.encode, codecs.decode))
    v = np.ones(64, np.float32)
    m = np.full(64, 0.5, np.float32)
    plain = decode(encode(m, v, random_of(1, 64, rounding), 4), 4)
    m[3], v[3] = np.nan, np.nan
    m_again, v_again = decode(encode(m, v, random_of(1, 64, rounding), 4), 4)
    others = np.arange(64) != 3
    np.testing.assert_array_equal(m_again[others], plain[0][others])
    np.testing.assert_array_equal(v_again[others], plain[1][others])
    assert (m_again[3], v_again[3]) == (0, 0)
    m[3], v[3] = np.inf, np.inf
    m_again, v_again = decode(encode(m, v, random_of(1, 64, rounding), 4), 4)
    assert np.isfinite(m_again).all()
    assert LARGEST * 0.9 < v_again[3] <= LARGEST
    np.testing.assert_array_equal(m_again[32:], plain[0][32:])  # the other block


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_zeros_stay_zeros(name, rounding):
    encode, decode = (partial(each, PAIRS[name]) for each in (codecs.encode, codecs.decode))
    zeros = np.zeros(40, np.float32)
    for each in decode(encode(zeros, zeros, random_of(2, 40, rounding), 4), 4):
        np.testing.assert_array_equal(bits(each), 0)
