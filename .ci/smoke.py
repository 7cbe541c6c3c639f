"""What an installed adamas must be able to do wherever it was built: steps with the right bits.

Compilers can be told to round otherwise, to drop NaN, or to flush subnormal numbers in the whole
process, and a module that was built so works, with other results. So each machine's code that this
processor can run is compared, bit by bit, with the definition (adamas.rule on NumPy arrays), and
the definition with bits that were computed elsewhere.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

SMALLEST = {np.float32: 2.0**-149, np.float64: 2.0**-1074}


def flushed() -> list[str]:
    """The types whose subnormal numbers this thread takes for 0."""
    return [t.__name__ for t, x in SMALLEST.items() if (np.full(9, x, t) * t(1) == 0).any()]


if flushed():
    raise SystemExit(f"subnormal numbers are flushed before adamas is imported: {flushed()}")

import adamas  # noqa: E402
from adamas.engines import native  # noqa: E402

if flushed():
    raise SystemExit(f"importing adamas makes the process flush subnormal numbers: {flushed()}")

# One step that anybody can do in the head: at step 1 the corrected mean is g and the root of the
# corrected square is |g|, so Adam moves every parameter by the learning rate against the sign of
# its gradient. ε = 1e-8 against |g| ≥ 1e-3 moves the quotient by 1e-5 at most, and lr is below 1.
start = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
gradient = np.array([0.25, -4.0, 1e-3, 0.0], np.float32)
parameter = start.copy()
adamas.Adam(parameter, lr=0.125).step(gradient)
expected = start - np.float32(0.125) * np.sign(gradient)
if not np.allclose(parameter, expected, rtol=0.0, atol=1e-5):
    raise SystemExit(f"a step from {start} gave {parameter} instead of {expected}")


def values(dtype: type, size: int, seed: int) -> np.ndarray:
    """Numbers of all sizes, and each special one more than once; whole registers and a rest."""
    random = np.random.default_rng(seed)
    info = np.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, info.max, info.tiny]
    special += [SMALLEST[dtype], -SMALLEST[dtype], info.tiny / 2, info.eps]
    scale = 2.0 ** random.integers(-40, 40, size)
    drawn = (random.standard_normal(size) * scale).astype(dtype)
    at = random.random(size) < 0.2
    drawn[at] = random.choice(np.array(special, dtype), at.sum())
    return drawn


def bits(make: type, dtype: type, finite: bool, options: dict) -> list[np.ndarray]:
    """Parameters and state after three steps, where NaN is NaN whatever its bits."""

    def drawn(size: int, seed: int) -> np.ndarray:
        some = values(dtype, size, seed)
        return np.nan_to_num(some, nan=0.5, posinf=2.0, neginf=-2.0) if finite else some

    tensors = [drawn(size, size) for size in (1500, 3)]
    optimizer = make(tensors, lr=0.1, **options)
    for step in range(1, 4):
        optimizer.step([drawn(p.size, 10 * p.size + step) for p in tensors])
    arrays = [*tensors]
    for state in optimizer.state_dict()["state"].values():
        arrays += [np.asarray(entry) for entry in state.values()]
    return [np.where(a == a, a, np.nan) if a.dtype.kind == "f" else a for a in arrays]


CASES = {
    "Adam": (adamas.Adam, {}),
    "AdamW, ε = 0": (adamas.AdamW, {"eps": 0.0}),
    "NAdam, AMSGrad": (adamas.Adam, {"nesterov": True, "amsgrad": True, "weight_decay": 0.1}),
    "RAdam": (adamas.RAdam, {"dialect": "torch"}),
    "Momentum": (adamas.Momentum, {}),
    "RMSProp": (adamas.RMSProp, {"eps": 0.0}),
    "clipped and averaged": (adamas.Adam, {"clip_norm": 1.0, "ema": 0.9, "statistics": True}),
    "compact": (adamas.Adam, {"state": "compact"}),
    "8bit": (adamas.Adam, {"state": "8bit"}),
}

HERE = [target for target, runs in native.targets().items() if runs]
wrong = []
with np.errstate(all="ignore"):
    for name, (make, options) in CASES.items():
        for dtype, finite in itertools.product(SMALLEST, (True, False)):
            if "state" in options and dtype is np.float64:
                continue  # small states are of float32 parameters
            wanted = bits(make, dtype, finite, {"engine": "reference", **options})
            for target in HERE:
                native.set_target(target)
                found = bits(make, dtype, finite, options)
                different = sum(
                    int((a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")).sum())
                    for a, b in zip(wanted, found, strict=True)
                )
                if different:
                    wrong.append(f"{different} numbers of {name}, {dtype.__name__}, {target}")
if wrong:
    raise SystemExit("this build has other bits than the definition:\n  " + "\n  ".join(wrong))
if flushed():
    raise SystemExit(f"a step leaves the process flushing subnormal numbers: {flushed()}")

# What judges the definition itself where NumPy's own arithmetic may be another one.
GOLDEN = {
    np.float32: (
        "0x1.3f9b2c0000000p-4",
        "-0x1.2429fc0000000p+1",
        "0x1.a2c1a80000000p-9",
        "0x1.bf05720000000p+2",
    ),
    np.float64: (
        "0x1.3f9b2afbc3807p-4",
        "-0x1.2429fd534f858p+1",
        "0x1.a2c1af350548ap-9",
        "0x1.bf057221afd5bp+2",
    ),
}
for dtype, wanted in GOLDEN.items():
    p = np.array([0.1, -2.3, 1e-30, 7.0], dtype)
    optimizer = adamas.AdamW(p, lr=0.01, engine="reference")
    for g in ([0.3, -4.5, 1e-3, 0.0], [1e-20, 0.7, -1e5, 1.1], [3e-3, 2.0, 1.0, -1e-9]):
        optimizer.step(np.array(g, dtype))
    found = tuple(float(x).hex() for x in p)
    if found != wanted:
        raise SystemExit(f"three steps of AdamW in {dtype.__name__} gave {found}, not {wanted}")

print(f"adamas {adamas.__version__} at {adamas.__file__}: the bits are right on", *HERE)
