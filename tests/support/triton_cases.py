"""Arrays of every dtype that kernels step, and the judge of what they leave."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from adamas import codecs
from adamas.engines import reference
from adamas.engines import triton as engine
from adamas.engines.triton import tables
from adamas.statistics import TILE
from tests.support.cases import bits, differences, ordinary, run, special, wide

__all__ = [
    "BFLOAT16",
    "CHUNK",
    "DTYPES",
    "FEW",
    "HALVES",
    "IDS",
    "agrees",
    "as_stored",
    "copied",
    "copy_of",
    "drawn",
    "same",
]

CHUNK = tables.CHUNK.value
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Every dtype of half precision with every rounding it can have.
HALVES = [
    *((BFLOAT16, rounding) for rounding in ("nearest", "stochastic", "remainder", "remainder8")),
    *((np.dtype(np.float16), rounding) for rounding in ("nearest", "stochastic")),
]
IDS = [f"{dtype}-{rounding}" for dtype, rounding in HALVES]


def as_stored(values, dtype):
    """Round to the dtype; bfloat16 as its bits."""
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
    return rounded.view(np.uint16) if dtype == BFLOAT16 else rounded


def drawn(dtype, kinds, steps=2, seed=0):
    """Parameters and gradients: ``kinds`` are pairs of how numbers are drawn and how many."""
    random = np.random.default_rng(seed)
    own = np.float64 if dtype == np.float64 else np.float32

    def arrays():
        return [as_stored(values(random, size, own), dtype) for values, size in kinds]

    return arrays(), [arrays() for _ in range(steps)]


def agrees(options, phase, parameters, gradients, **more):
    """Assert that both engines leave the same bits; return what they leave."""
    judge = run(reference, options, phase, parameters, gradients, **more)
    found = run(engine, options, phase, parameters, gradients, **more)
    assert differences(judge, found) == []
    return judge


FEW = [(ordinary, 33), (wide, TILE + 70), (special, TILE + 70)]


DTYPES = [(np.float32, None), (np.float64, None), HALVES[0], HALVES[3], HALVES[5]]


def same(a, b):
    return np.array_equal(bits(a), bits(b))


def copied(stored, remainder, dtype):
    """Parameters rounded to nearest, as float32."""
    value = codecs.decode_parameter(stored, remainder)
    with np.errstate(all="ignore"):
        rounded = value.astype(np.float32).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    return rounded.astype(np.float32)


def copy_of(plan, index):
    return plan.jobs[index].copy.float().cpu().numpy()
