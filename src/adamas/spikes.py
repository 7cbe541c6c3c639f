"""Steps that are left out since the norm of the gradients leaps, and what that is judged by.

A step is left out where ``norm - mean > skip_above * std``: mean and standard deviation (with n - 1
below) are those of the norms of the last ``skip_window`` steps. This is the rule of OLMo's
``SkipStepOptimizer`` (OLMo-core, ``olmo_core/optim/skip_step_optimizer.py``), for gradients alone;
OLMo et al. 2025, "2 OLMo 2 Furious" (arXiv:2501.00656), tell of the spikes. As there,

- norms are those of all gradients, before clipping and without a loss scale;
- nothing is left out before half a window of norms is there;
- a norm enters the window after it was judged, and so does one that was left out: a level that
  stays is taken up after a while.

Otherwise than there, losses are not looked at, half of a window may be fewer than 20 norms, and
what is no size of a gradient is not judged and does not enter: infinity and NaN, which
``on_nonfinite`` is for, and 0, as where no parameter has a gradient.

The window is one array of float64: ``skip_window`` norms, written round and round, how many have
entered, and how many steps were left out. Every engine computes with it in the same order, so
verdicts and windows have the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checks import check_count, check_names, kind
from adamas.options import Phase
from adamas.settings import no_dict

__all__ = [
    "COUNT",
    "EXTRA",
    "KEY",
    "LEFT_OUT",
    "Skipped",
    "Window",
    "created",
    "entered",
    "is_judged",
    "is_spike",
    "kept",
    "left_out",
    "loaded",
    "padded",
    "saved",
]

Window = NDArray[np.float64]

#: Where it stands in a state_dict, if a norm has entered.
KEY = "spikes"
#: Entries behind the norms: how many have entered, and how many steps were left out.
COUNT, LEFT_OUT = -2, -1
EXTRA = 2

_ENTRIES = ("norms", "count", "skipped")


class Skipped(int):
    """How many steps were left out, with what for."""

    #: Since gradients were NaN or infinite, with ``on_nonfinite="skip"``.
    nonfinite: int
    #: Since the norm of the gradients was above what ``skip_above`` allows.
    spikes: int

    def __new__(cls, nonfinite: int = 0, spikes: int = 0) -> Skipped:
        """Count both together."""
        made = super().__new__(cls, nonfinite + spikes)
        made.nonfinite, made.spikes = nonfinite, spikes
        return made

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """Return what a copy is made of."""
        return self.nonfinite, self.spikes

    def __repr__(self) -> str:
        """Tell both."""
        return f"Skipped(nonfinite={self.nonfinite}, spikes={self.spikes})"

    def __str__(self) -> str:
        """Return the number, as logs want it."""
        return int.__repr__(self)


def created(window: int) -> Window:
    """Return the window of ``window`` norms that none has entered."""
    return np.zeros(window + EXTRA)


def kept(phase: Phase, given: Window | None) -> Window | None:
    """Return what a plan for a phase goes by: ``given``, else one of its own if it needs any."""
    if phase.skip_above is None:
        return None
    return created(phase.skip_window) if given is None else given


def is_judged(norm: float) -> bool:
    """Return whether a norm tells how large a gradient is."""
    return 0.0 < norm < math.inf


def is_spike(window: Window, norm: float, above: float) -> bool:
    """Return whether a norm lies more than ``above`` standard deviations above the mean."""
    size = len(window) - EXTRA
    n = min(int(window[COUNT]), size)
    if not is_judged(norm) or n < size // 2:
        return False
    norms = window[:n]
    # Neither squares nor sums of those in the window leave the range of float64.
    scale = _reciprocal(np.max(norms))
    with np.errstate(all="ignore"):
        norms = norms * scale
        mean = _sum(norms, size) / n
        deviations = norms - mean
        std = np.sqrt(_sum(deviations * deviations, size) / (n - 1))
        return bool(np.float64(norm) * scale - mean > np.float64(above) * std)


def entered(window: Window, norm: float, *, is_left_out: bool) -> Window:
    """Return the window after a step."""
    after = window.copy()
    if is_judged(norm):
        after[int(window[COUNT]) % (len(window) - EXTRA)] = norm
        after[COUNT] += 1
        after[LEFT_OUT] += is_left_out
    return after


def padded(size: int) -> int:
    """Return the power of two that a sum of ``size`` norms is taken over."""
    return 1 << (size - 1).bit_length()


def _sum(x: Window, size: int) -> np.float64:
    """Return the sum, by halving neighbours, with zeros up to a power of two."""
    all_of_it = np.zeros(padded(size))
    all_of_it[: len(x)] = x
    while len(all_of_it) > 1:
        all_of_it = all_of_it.reshape(-1, 2).sum(1)
    return all_of_it[0]


def _reciprocal(x: np.float64) -> np.float64:
    """Return the power of two that brings a number of float64's normal range to from 1 to 2.

    Those at the ends of the range are brought near it.
    """
    exponent = int(x.view(np.int64)) >> 52
    return np.int64((2046 - min(max(exponent, 1), 2045)) << 52).view(np.float64)


# ── in a state_dict ────────────────────────────────────────────────────────────────────────────


def left_out(window: Window | None) -> int:
    """Return how many steps were left out."""
    return 0 if window is None else int(window[LEFT_OUT])


def saved(window: Window | None) -> dict[str, Any]:
    """Return what a state_dict says of a window, nothing where no norm has entered it.

    Norms stand there from the oldest to the newest, as floats: what casts the tensors of a
    state_dict, or moves them to a device without float64, leaves these as they are.
    """
    if window is None or not window[COUNT]:
        return {}
    size, count = len(window) - EXTRA, int(window[COUNT])
    norms = window[: min(count, size)]
    if count > size:
        norms = np.roll(norms, -(count % size))
    return {KEY: {"norms": norms.tolist(), "count": count, "skipped": left_out(window)}}


def loaded(state_dict: Mapping[str, Any], size: int) -> Window | None:
    """Return the window of a state_dict, checked; None where it has none.

    A window of another size keeps its newest norms.
    """
    given = state_dict.get(KEY)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise no_dict(KEY, given, ", ".join(_ENTRIES))
    where = f"{KEY!r} to load"
    check_names(where, given, _ENTRIES)
    missing = [name for name in _ENTRIES if name not in given]
    if missing:
        raise KeyError(f"{where} has no {missing[0]!r}. Give what state_dict() returned.")
    norms = _checked_norms(where, given["norms"])
    least = len(norms)
    count = check_count(f"{where}: count", given["count"], least=least)
    skipped = check_count(f"{where}: skipped", given["skipped"], most=count)
    window = created(size)
    if len(norms) < size:
        count = len(norms)  # as if it had begun with these
    norms = norms[-size:]
    first = count - len(norms)
    window[(first + np.arange(len(norms))) % size] = norms
    window[COUNT], window[LEFT_OUT] = count, skipped
    return window


def _checked_norms(where: str, given: Any) -> Window:
    try:
        norms = np.array(given, np.float64)
    except (TypeError, ValueError):
        norms = np.zeros((0, 0))
    if norms.ndim != 1:
        raise TypeError(f"{where}: norms is {kind(given)}, but it must be numbers in a row.")
    if not ((norms > 0) & (norms < math.inf)).all():
        raise ValueError(f"{where}: norms has others than finite ones above 0, as no step leaves.")
    return norms
