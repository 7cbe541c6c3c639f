"""What the subject is asked to do: gradients of many kinds, at several settings.

A probe is one run of an optimizer. Each element of its arrays sees a sequence of its own, so that
one short run holds constant, alternating, heavy-tailed, sparse, tiny, fading and other gradients
side by side. Every number is a float32, and is made of :func:`adamas.codecs.random_bits`, so that
the probes are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.codecs import key_of, random_bits

__all__ = [
    "SEQUENCES",
    "USUAL_STEPS",
    "Probe",
    "decaying",
    "large",
    "long",
    "plain",
    "scheduled",
    "shown",
    "usual",
]

Array = NDArray[Any]

#: Steps of the probes that errors are told of.
USUAL_STEPS = 24
#: Elements of a large probe: as many as make implementations store their state in few bits.
_LARGE, _COPIES = 8192, 256


@dataclass(frozen=True)
class Probe:
    """One run: gradients of shape (steps, arrays, elements), float32 numbers in float64."""

    name: str
    settings: Settings
    start: Array
    gradients: Array
    #: The learning rate of each step, where it changes.
    rates: Array | None = None
    #: The name of each element's sequence.
    names: tuple[str, ...] = ()


def _uniform(seed: int, stream: int, count: int) -> Array:
    """Return ``count`` numbers in [-1, 1), multiples of 2^-15."""
    bits = random_bits(key_of(seed, 0, stream), 0, count)
    return (bits >> np.uint32(16)).astype(np.float64) / 2**15 - 1.0


def _constant(steps: int, scale: float, _: int) -> Array:
    return np.full(steps, scale)


def _alternating(steps: int, scale: float, _: int) -> Array:
    return scale * np.where(np.arange(steps) % 2 == 0, 1.0, -1.0)


def _lopsided(steps: int, scale: float, _: int) -> Array:
    return scale * np.where(np.arange(steps) % 2 == 0, 1.0, -0.5)


def _random(steps: int, scale: float, seed: int) -> Array:
    return scale * _uniform(seed, 1, steps)


def _heavy(steps: int, scale: float, seed: int) -> Array:
    """Return the reciprocals of uniform numbers: a tail without a variance, cut at 1,000."""
    u = _uniform(seed, 2, steps)
    return scale * 0.25 * np.sign(u) / np.maximum(np.abs(u), 2.0**-10)


def _sparse(steps: int, scale: float, seed: int) -> Array:
    return np.where((np.arange(steps) + seed) % 4 == 0, _random(steps, scale, seed), 0.0)


def _impulse(steps: int, scale: float, _: int) -> Array:
    return np.where(np.arange(steps) == 0, scale, 0.0)


def _fading(steps: int, scale: float, _: int) -> Array:
    return scale * 2.0 ** -np.arange(steps, dtype=np.float64).clip(0, 30)


def _growing(steps: int, scale: float, _: int) -> Array:
    return scale * 2.0 ** (np.arange(steps, dtype=np.float64).clip(0, 20) - 8)


def _late(steps: int, scale: float, seed: int) -> Array:
    return np.where(np.arange(steps) < steps // 3, 0.0, _random(steps, scale, seed))


def _zero(steps: int, _scale: float, _: int) -> Array:
    return np.zeros(steps)


Sequence = Callable[[int, float, int], Array]

#: Name, sequence and scale. Where a scale is a letter it is ε or √ε of the probe.
SEQUENCES: tuple[tuple[str, Sequence, float | str], ...] = (
    ("constant", _constant, 1.0),
    ("constant, negative", _constant, -0.01),
    ("alternating", _alternating, 1.0),
    ("lopsided", _lopsided, 0.5),
    ("random", _random, 1.0),
    ("random, small", _random, 0.05),
    ("heavy-tailed", _heavy, 1.0),
    ("heavy-tailed, small", _heavy, 0.01),
    ("sparse", _sparse, 1.0),
    ("sparse, small", _sparse, 0.1),
    ("impulse", _impulse, 1.0),
    ("fading", _fading, 2.0),
    ("growing", _growing, 1.0),
    ("late", _late, 1.0),
    ("tiny: as ε", _random, "ε"),
    ("tiny: alternating, as ε", _alternating, "ε"),
    ("tiny: as √ε", _random, "√ε"),
    ("tiny: lopsided, as √ε", _lopsided, "√ε"),
    ("tiny: 1e-8", _random, 1e-8),
    ("tiny: 1e-4", _random, 1e-4),
    ("zero", _zero, 0.0),
)
_HUGE: tuple[tuple[str, Sequence, float | str], ...] = (("huge", _random, 1e8),)


def _gradients(
    sequences: tuple[tuple[str, Sequence, float | str], ...], steps: int, arrays: int, eps: float
) -> Array:
    scales = {"ε": 2.0 * eps, "√ε": 2.0 * eps**0.5}
    gradients = np.empty((steps, arrays, len(sequences)))
    for number, (_, sequence, scale) in enumerate(sequences):
        size = scales[scale] if isinstance(scale, str) else scale
        for array in range(arrays):
            # Other numbers, signs and sizes in the second array: what is shared is seen.
            found = sequence(steps, size, 97 * number + array)
            gradients[:, array, number] = found * (1.0, -0.75, 1.5)[array % 3]
    return gradients.astype(np.float32).astype(np.float64)


def _start(arrays: int, elements: int, *, zero: bool) -> Array:
    if zero:
        return np.zeros((arrays, elements))
    values = _uniform(7, 3, arrays * elements)
    return (np.sign(values) * (np.abs(values) + 0.25)).reshape(arrays, elements)


def _probe(
    name: str,
    settings: Settings,
    steps: int,
    arrays: int,
    *,
    sequences: tuple[tuple[str, Sequence, float | str], ...] = SEQUENCES,
    zero: bool = False,
    rates: Array | None = None,
) -> Probe:
    gradients = _gradients(sequences, steps, arrays, settings.eps)
    start = _start(arrays, len(sequences), zero=zero)
    return Probe(name, settings, start, gradients, rates, tuple(each[0] for each in sequences))


@lru_cache(maxsize=8)
def plain(arrays: int, default: Settings) -> tuple[Probe, ...]:
    """Return the probes without weight decay; the first tells most forms apart."""
    near = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
    far = Settings(lr=0.5, beta1=0.75, beta2=0.96875, eps=0.002)
    return (
        _probe("short memory", near, 10, arrays, zero=True),
        _probe("long memory", far, 14, arrays, zero=True, sequences=SEQUENCES + _HUGE),
        _probe("defaults", default, 16, arrays, zero=True),
    )


@lru_cache(maxsize=8)
def usual(arrays: int, default: Settings) -> Probe:
    """Return the probe that errors are told of: default settings, parameters that start at 0.

    They stay as small as their updates, so that the errors of updates are not hidden.
    """
    return _probe("usual", default, USUAL_STEPS, arrays, zero=True)


def shown(settings: Settings, rates: Array | None) -> Probe:
    """Return the probe of a test vector: every sequence, on one array with a start of size 1."""
    sequences = SEQUENCES + _HUGE
    return _probe("shown", settings, USUAL_STEPS, 1, sequences=sequences, rates=rates)


@lru_cache(maxsize=8)
def decaying(arrays: int) -> tuple[Probe, ...]:
    """Return the probes with weight decay, large enough to tell before from after."""
    one = Settings(lr=0.25, beta1=0.625, beta2=0.75, eps=0.05, weight_decay=0.125)
    other = Settings(lr=0.0625, beta1=0.75, beta2=0.875, eps=0.01, weight_decay=0.5)
    return (
        _probe("weight decay", one, 10, arrays),
        _probe("more weight decay", other, 10, arrays),
    )


@lru_cache(maxsize=8)
def scheduled(arrays: int) -> Probe:
    """Return a probe whose learning rate changes on the way, with weight decay."""
    settings = Settings(lr=0.25, beta1=0.625, beta2=0.75, eps=0.05, weight_decay=0.125)
    rates = np.array([0.25] * 4 + [0.0625] * 4 + [0.125] * 4)
    return _probe("schedule", settings, 12, arrays, rates=rates)


@lru_cache(maxsize=8)
def long(arrays: int, default: Settings, steps: int = 300) -> Probe:
    """Return a probe of many steps, past 255, on a few elements of size 1."""
    kept = {"constant", "alternating", "random", "heavy-tailed", "sparse", "impulse", "tiny: 1e-4"}
    sequences = tuple(each for each in SEQUENCES if each[0] in kept)
    return _probe("long", default, steps, arrays, sequences=sequences)


def large(default: Settings) -> tuple[Probe, Array]:
    """Return a probe of one large array, and which of its sequences each element sees.

    Each of 32 sequences stands at many places among the others, so that equal gradients lie in
    different blocks. The last is much larger than the others and stands in the second half alone.
    """
    steps, kinds = 6, _LARGE // _COPIES
    scales = [2.0 ** -(kind % 8) for kind in range(kinds - 1)] + [64.0]
    distinct = np.stack(
        [_uniform(11, kind, steps) * scale for kind, scale in enumerate(scales)], axis=-1
    )
    order = np.argsort(random_bits(key_of(13, 0, 0), 0, _LARGE), kind="stable")
    which = (np.arange(_LARGE) % kinds)[order]
    last = kinds - 1
    which[: _LARGE // 2][which[: _LARGE // 2] == last] = 0
    gradients = distinct[:, which].astype(np.float32).astype(np.float64)
    return Probe("large", default, np.zeros((1, _LARGE)), gradients[:, None, :]), which
