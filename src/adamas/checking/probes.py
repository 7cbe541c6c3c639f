"""What the subject is asked to do: gradients of many kinds, at several settings.

A probe is one run of an optimizer. Each element of its arrays sees a sequence of its own, so that
one short run holds constant, alternating, heavy-tailed, sparse, tiny, fading and other gradients
side by side. Every number is a float32, and is made of ``adamas.codecs.random_bits``, so that
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
    "LARGE",
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
#: Elements of a large probe: as many as make implementations store their quantized state.
LARGE = 8192
_COPIES = 256


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


def _heavy(t: Array, scale: float, seed: int) -> Array:
    """Return the reciprocals of uniform numbers: a tail without a variance, cut at 1,000."""
    u = _uniform(seed, 2, len(t))
    return scale * 0.25 * np.sign(u) / np.maximum(np.abs(u), 2.0**-10)


def _random(t: Array, scale: float, seed: int) -> Array:
    return scale * _uniform(seed, 1, len(t))


#: Gradients at the steps ``t`` (0 first), by a scale and a seed.
_KINDS: dict[str, Callable[[Array, float, int], Array]] = {
    "constant": lambda t, scale, _: np.full(len(t), scale),
    "alternating": lambda t, scale, _: scale * np.where(t % 2 == 0, 1.0, -1.0),
    "lopsided": lambda t, scale, _: scale * np.where(t % 2 == 0, 1.0, -0.5),
    "random": _random,
    "heavy-tailed": _heavy,
    "sparse": lambda t, scale, seed: np.where((t + seed) % 4 == 0, _random(t, scale, seed), 0.0),
    "impulse": lambda t, scale, _: np.where(t == 0, scale, 0.0),
    "fading": lambda t, scale, _: scale * 2.0 ** -t.clip(0, 30),
    "growing": lambda t, scale, _: scale * 2.0 ** (t.clip(0, 20) - 8),
    "late": lambda t, scale, seed: np.where(t < len(t) // 3, 0.0, _random(t, scale, seed)),
}
#: Name, kind and scale of a sequence. Where a scale is a letter it is ε or √ε of the probe.
_Sequence = tuple[str, str, float | str]
_SEQUENCES: tuple[_Sequence, ...] = (
    ("constant", "constant", 1.0),
    ("constant, negative", "constant", -0.01),
    ("alternating", "alternating", 1.0),
    ("lopsided", "lopsided", 0.5),
    ("random", "random", 1.0),
    ("random, small", "random", 0.05),
    ("heavy-tailed", "heavy-tailed", 1.0),
    ("heavy-tailed, small", "heavy-tailed", 0.01),
    ("sparse", "sparse", 1.0),
    ("sparse, small", "sparse", 0.1),
    ("impulse", "impulse", 1.0),
    ("fading", "fading", 2.0),
    ("growing", "growing", 1.0),
    ("late", "late", 1.0),
    ("tiny: as ε", "random", "ε"),
    ("tiny: alternating, as ε", "alternating", "ε"),
    ("tiny: as √ε", "random", "√ε"),
    ("tiny: lopsided, as √ε", "lopsided", "√ε"),
    ("tiny: 1e-8", "random", 1e-8),
    ("tiny: 1e-4", "random", 1e-4),
    ("zero", "constant", 0.0),
)
_WITH_HUGE: tuple[_Sequence, ...] = (*_SEQUENCES, ("huge", "random", 1e8))
_FEW = {"constant", "alternating", "random", "heavy-tailed", "sparse", "impulse", "tiny: 1e-4"}


@lru_cache(maxsize=64)
def _probe(
    name: str,
    settings: Settings,
    steps: int,
    arrays: int,
    *,
    sequences: tuple[_Sequence, ...] = _SEQUENCES,
    zero: bool = False,
    rates: tuple[float, ...] | None = None,
) -> Probe:
    """Return a probe; with ``zero`` parameters start at 0, else they are of size 1."""
    scales = {"ε": 2.0 * settings.eps, "√ε": 2.0 * settings.eps**0.5}
    gradients = np.empty((steps, arrays, len(sequences)))
    t = np.arange(steps, dtype=np.float64)
    for number, (_, kind, scale) in enumerate(sequences):
        size = scales[scale] if isinstance(scale, str) else scale
        for array in range(arrays):
            # Other numbers, signs and sizes in the second array: what is shared is seen.
            found = _KINDS[kind](t, size, 97 * number + array)
            gradients[:, array, number] = found * (1.0, -0.75)[array]
    start = np.zeros((arrays, len(sequences)))
    if not zero:
        values = _uniform(7, 3, start.size)
        start += (np.sign(values) * (np.abs(values) + 0.25)).reshape(start.shape)
    return Probe(
        name,
        settings,
        start,
        gradients.astype(np.float32).astype(np.float64),
        None if rates is None else np.array(rates),
        tuple(each[0] for each in sequences),
    )


def plain(arrays: int, default: Settings) -> tuple[Probe, ...]:
    """Return the probes without weight decay; the first tells most variants apart."""
    near = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
    far = Settings(lr=0.5, beta1=0.75, beta2=0.96875, eps=0.002)
    return (
        _probe("short memory", near, 10, arrays, zero=True),
        _probe("long memory", far, 14, arrays, zero=True, sequences=_WITH_HUGE),
        _probe("defaults", default, 16, arrays, zero=True),
    )


def usual(arrays: int, default: Settings) -> Probe:
    """Return the probe that errors are told of: default settings, parameters that start at 0.

    They stay as small as their updates, so that the errors of updates are not hidden.
    """
    return _probe("usual", default, USUAL_STEPS, arrays, zero=True)


def shown(settings: Settings, rates: tuple[float, ...] | None) -> Probe:
    """Return the probe of a test vector: every sequence, on one array with a start of size 1."""
    return _probe("shown", settings, USUAL_STEPS, 1, sequences=_WITH_HUGE, rates=rates)


_DECAYING = Settings(lr=0.25, beta1=0.625, beta2=0.75, eps=0.05, weight_decay=0.125)


def decaying(arrays: int) -> tuple[Probe, ...]:
    """Return the probes with weight decay, large enough to tell before from after."""
    other = Settings(lr=0.0625, beta1=0.75, beta2=0.875, eps=0.01, weight_decay=0.5)
    return (
        _probe("weight decay", _DECAYING, 10, arrays),
        _probe("more weight decay", other, 10, arrays),
    )


def scheduled(arrays: int) -> Probe:
    """Return a probe whose learning rate changes on the way, with weight decay."""
    rates = (*[0.25] * 4, *[0.0625] * 4, *[0.125] * 4)
    return _probe("schedule", _DECAYING, len(rates), arrays, rates=rates)


def long(arrays: int, default: Settings) -> Probe:
    """Return a probe of many steps, past 255, on a few elements of size 1."""
    few = tuple(each for each in _SEQUENCES if each[0] in _FEW)
    return _probe("long", default, 300, arrays, sequences=few)


def large(default: Settings) -> tuple[Probe, Array]:
    """Return a probe of one large array, and which of its sequences each element sees.

    Each of 32 sequences stands at many places among the others, so that equal gradients lie in
    different blocks. The last is much larger than the others and stands in the second half alone.
    """
    steps, kinds = 6, LARGE // _COPIES
    scales = [2.0 ** -(kind % 8) for kind in range(kinds - 1)] + [64.0]
    distinct = np.stack(
        [_uniform(11, kind, steps) * scale for kind, scale in enumerate(scales)], axis=-1
    )
    order = np.argsort(random_bits(key_of(13, 0, 0), 0, LARGE), kind="stable")
    which = (np.arange(LARGE) % kinds)[order]
    last = kinds - 1
    which[: LARGE // 2][which[: LARGE // 2] == last] = 0
    gradients = distinct[:, which].astype(np.float32).astype(np.float64)
    return Probe("large", default, np.zeros((1, LARGE)), gradients[:, None, :]), which
