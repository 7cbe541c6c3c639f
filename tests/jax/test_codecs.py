"""One text of the codecs makes the same bits of arrays of NumPy and of JAX, eager or compiled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamas import codecs
from adamas.codecs import Codes
from tests.support.cases import FORMS

WAYS = {"eager": lambda function: function, "jit": jax.jit}


def patterns(random):
    """Numbers of every exponent and both signs: subnormal, infinite, NaN and zeros among them."""
    edges = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x3FFFFF, 0x400000, 0x7FFFFF], np.uint32)
    sizes = (np.arange(256, dtype=np.uint32)[:, None] << 23 | edges).ravel()
    others = random.integers(0, 2**32, 8192, np.uint32)
    return np.concatenate([sizes, sizes | np.uint32(1 << 31), others]).view(np.float32)


def moments():
    """m and v of any patterns, then m beside √v with v in any order, then in order of size."""
    random = np.random.default_rng(0)
    any_m, any_v = (random.permutation(patterns(random)) for _ in range(2))
    v = np.abs(np.concatenate([any_v, any_v, np.sort(any_v)]))
    with np.errstate(over="ignore", invalid="ignore"):
        beside = np.sqrt(v) * random.uniform(-8, 8, v.size).astype(np.float32)
    return np.concatenate([any_m, beside[any_m.size :]]), v


def same(found, wanted):
    """Compare bit patterns, of NaN too: codes are made and read by integers alone."""
    assert (found is None) == (wanted is None)
    if wanted is not None:
        found = np.asarray(found)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        integer = f"u{wanted.itemsize}"
        np.testing.assert_array_equal(found.view(integer), wanted.view(integer))


def in_jax(values):
    return jax.tree.map(jnp.asarray, values)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("forms", FORMS)
def test_m_and_v_of_every_pattern_have_the_same_codes_in_jax_as_in_numpy(forms, stochastic):
    m, v = (x.reshape(3, -1) for x in moments())
    r = codecs.random_bits(codecs.key_of(1, 2, 3), 0, m.size).reshape(m.shape)
    r = r if stochastic else None
    of_m = forms[0] in ("compact", "8bit")
    for top in (codecs.LOWEST_TOP, 4, codecs.HIGHEST_TOP) if of_m else (4,):
        encode = functools.partial(codecs.encode, forms, top=top)
        wanted = encode(m, v, r)
        values = codecs.decode(forms, wanted, top)
        for way in WAYS.values():
            codes = way(encode)(*in_jax((m, v, r)))
            for a, b in zip(codes, wanted, strict=True):
                same(a, b)
            for a, b in zip(way(functools.partial(codecs.decode, forms))(codes, jnp.int32(top)),
                            values, strict=True):  # fmt: skip
                same(a, b)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("top", [codecs.HIGHEST_TOP, codecs.LOWEST_TOP])
@pytest.mark.parametrize("way", WAYS)
def test_every_code_and_header_stands_for_the_same_numbers_in_jax_as_in_numpy(way, top):
    halves = np.arange(2**16, dtype=np.uint16)
    same(WAYS[way](codecs.decode_bfloat16)(jnp.asarray(halves)), codecs.decode_bfloat16(halves))
    not_negative = halves[: 2**15]
    bytes_ = np.arange(256, dtype=np.uint8)
    blocks = np.resize(bytes_, halves.size * codecs.BLOCK)
    every = {
        "compact": Codes(np.tile(bytes_, 2**15), np.repeat(not_negative, 256)),
        "8bit": Codes(blocks.view(np.int8), blocks, halves),
    }
    for form, codes in every.items():
        decode = functools.partial(codecs.decode, (form, form), top=top)
        for a, b in zip(WAYS[way](decode)(in_jax(codes)), decode(codes), strict=True):
            same(a, b)
