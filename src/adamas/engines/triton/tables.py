"""What the tables hold that kernels read on the device.

The **table** has a row of int64 for each tensor: addresses (0 where there is no such array) and
numbers that change only when a plan is made anew. **Recipes** say, for each group, how the numbers
of a step come about. **Live** values are what may change from step to step: addresses of gradients,
numbers of steps that are counted on the host, learning rates. The **verdict** is what a look at the
gradients has led to. float64 stands in tables of int64 as its bits.

The constants are Triton's, so that they belong to the text that is compiled; ``.value`` is the int.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from triton.language import constexpr

from adamas.coefficients import Coefficients
from adamas.engines.triton.jobs import Int64, Job
from adamas.options import Options, Phase
from adamas.statistics import Statistics

__all__ = [
    "ADDRESSES",
    "ALIGNABLE",
    "CHUNK",
    "CHUNK_BITS",
    "GIVEN_WIDTH",
    "LIVE_SCALE_WIDTH",
    "NORMS",
    "NUMBERS",
    "RECIPE_WIDTH",
    "STATISTICS",
    "STATISTICS_WIDTH",
    "TABLE_WIDTH",
    "VERDICT_WIDTH",
    "recipe",
    "table_of",
]

_RULE = Coefficients._fields

#: Elements that one program steps.
CHUNK = constexpr(8192)
#: A chunk is named by its tensor's row, shifted by this, plus its number in the tensor.
CHUNK_BITS = constexpr(36)
CHUNK_MASK = constexpr((1 << CHUNK_BITS.value) - 1)

# ── columns of the table ──
PARAMETER = constexpr(0)
MEAN = constexpr(1)
SQUARE = constexpr(2)
LARGEST_SQUARE = constexpr(3)
EMA = constexpr(4)
COPY = constexpr(5)
HEADER = constexpr(6)
REMAINDER = constexpr(7)
COUNT = constexpr(8)  # elements
PLACE = constexpr(9)  # the tensor's number, for random bits
FIRST = constexpr(10)  # where the elements begin in the whole tensor, or the address of their runs
TOP = constexpr(11)  # adamas.codecs.mean_top
STEP = constexpr(12)  # address of the step's number, or 0: it is a live value
STEP_IS_DOUBLE = constexpr(13)
RECIPE = constexpr(14)  # row of the recipe
GIVEN = constexpr(15)  # row of given numbers, or -1
LR = constexpr(16)  # address of the learning rate, or 0: it is a live value
LR_IS_DOUBLE = constexpr(17)
MARKS = constexpr(18)  # one bit an element: which have changed
WHOLE = constexpr(19)  # elements of the whole tensor
TABLE_WIDTH = constexpr(20)

#: Columns of addresses, in the order in which a job's entries follow its parameter.
ADDRESSES = (PARAMETER, MEAN, SQUARE, LARGEST_SQUARE, EMA, HEADER, REMAINDER, COPY)
#: Columns of what is read several elements at a time where all of it is aligned.
ALIGNABLE = [each.value for each in ADDRESSES if each is not HEADER]

# ── columns of a recipe ──
BETA1 = constexpr(0)
BETA2 = constexpr(1)
EPS = constexpr(2)
EPS_ROOT = constexpr(3)
WEIGHT_DECAY = constexpr(4)
LR_MAX = constexpr(5)
EMA_RATE = constexpr(6)
DECAY = constexpr(7)
BIAS_CORRECTION = constexpr(8)
EPS_PLACE = constexpr(9)
HAS_MEAN = constexpr(10)
HAS_SQUARE = constexpr(11)
NESTEROV = constexpr(12)
MAXIMIZE = constexpr(13)
RECTIFY = constexpr(14)
RECIPE_WIDTH = constexpr(16)

#: How the choices of ``adamas.options.Options`` are numbered.
DECAYS = ("l2", "decoupled", "fully-decoupled", "cautious", "corrected")
BIAS_CORRECTIONS = ("paper", "first-step", "none")
EPS_PLACES = ("corrected", "uncorrected", "inside")
L2 = constexpr(DECAYS.index("l2"))
DECOUPLED = constexpr(DECAYS.index("decoupled"))
CAUTIOUS = constexpr(DECAYS.index("cautious"))
CORRECTED = constexpr(DECAYS.index("corrected"))
PAPER = constexpr(BIAS_CORRECTIONS.index("paper"))
NO_CORRECTION = constexpr(BIAS_CORRECTIONS.index("none"))
UNCORRECTED = constexpr(EPS_PLACES.index("uncorrected"))
INSIDE = constexpr(EPS_PLACES.index("inside"))

# ── places of the live scale ──
LIVE_LOSS_SCALE = constexpr(0)
LIVE_FACTOR = constexpr(1)
SEED = constexpr(2)
LIVE_SCALE_WIDTH = constexpr(3)

# ── places of a verdict (float64) ──
APPLIED = constexpr(0)  # 1, or 0 where nothing may change
FACTOR = constexpr(1)  # that clips
NORM = constexpr(2)  # of the unscaled gradients
SCALE = constexpr(3)  # of the loss
SPIKE = constexpr(4)  # 1 where it is left out since the norm leaps
VERDICT_WIDTH = constexpr(5)

# ── places of limits (float64), which a phase has ──
CLIP_NORM = constexpr(0)
SKIP_ABOVE = constexpr(1)
CLIP_UPDATE = constexpr(2)

#: Norms of a window that are added up at once, as many times at most (``MOST_NORMS``).
NORMS_AT_ONCE = constexpr(128)

# ── places of a row of numbers (float64): those of the rule, then those of the average ──
C_GRAD_SCALE = constexpr(_RULE.index("grad_scale"))
C_L2 = constexpr(_RULE.index("l2"))
C_DECAY = constexpr(_RULE.index("decay"))
C_OPPOSED = constexpr(_RULE.index("opposed"))
C_KEEP1 = constexpr(_RULE.index("keep1"))
C_TAKE1 = constexpr(_RULE.index("take1"))
C_KEEP2 = constexpr(_RULE.index("keep2"))
C_TAKE2 = constexpr(_RULE.index("take2"))
C_FROM_M = constexpr(_RULE.index("from_m"))
C_FROM_G = constexpr(_RULE.index("from_g"))
C_ROOT = constexpr(_RULE.index("root"))
C_INNER = constexpr(_RULE.index("inner"))
C_EPS = constexpr(_RULE.index("eps"))
C_STEP = constexpr(_RULE.index("step"))
KEEP = constexpr(len(_RULE))
TAKE = constexpr(len(_RULE) + 1)
#: Entries of a row of given numbers.
GIVEN_WIDTH = constexpr(len(_RULE) + 2)
#: Entries of a row of numbers: a power of two.
NUMBERS = constexpr(16)

#: Entries of a row of statistics (float64): norms, and what follows them.
STATISTICS = tuple(field.name for field in dataclasses.fields(Statistics))
NORMS = constexpr(sum(name.endswith("_norm") for name in STATISTICS))
STATISTICS_WIDTH = constexpr(len(STATISTICS))
LARGEST_UPDATE = constexpr(STATISTICS.index("largest_update"))
NONFINITE_ELEMENTS = constexpr(STATISTICS.index("nonfinite"))
UNMOVED = constexpr(STATISTICS.index("unmoved"))


def table_of(jobs: Sequence[Job]) -> Int64:
    """Return the table: a row for each job."""
    table = np.zeros((len(jobs), TABLE_WIDTH.value), np.int64)
    given = 0
    for row, job in zip(table, jobs, strict=True):
        _fill(row, job, given if job.is_given else -1)
        given += job.is_given
    return table


def _fill(row: Int64, job: Job, given: int) -> None:
    arrays = (job.parameter, *job.entries, job.copy, job.marks)
    for tensor, column in zip(arrays, (*ADDRESSES, MARKS), strict=True):
        row[column.value] = 0 if tensor is None else tensor.data_ptr()
    for tensor, column, is_double in (
        (job.step, STEP, STEP_IS_DOUBLE),
        (job.lr, LR, LR_IS_DOUBLE),
    ):
        if tensor is not None:
            row[column.value] = tensor.data_ptr()
            row[is_double.value] = tensor.dtype == torch.float64
    for column, number in (
        (COUNT, job.parameter.numel()),
        (PLACE, job.place),
        (FIRST, job.first),
        (TOP, job.top),
        (RECIPE, job.group),
        (GIVEN, given),
        (WHOLE, job.parameter.numel() if job.whole is None else job.whole),
    ):
        row[column.value] = number


def recipe(options: Options | None, phase: Phase) -> Int64:
    """Return the row that says how the numbers of a group's steps come about."""
    row = np.zeros(RECIPE_WIDTH.value, np.int64)
    real = row.view(np.float64)
    real[EMA_RATE.value] = phase.ema or 0.0
    real[LR_MAX.value] = 1.0
    if options is None:
        return row
    beta1, beta2 = options.betas
    for column, number in (
        (BETA1, beta1),
        (BETA2, beta2),
        (EPS, options.eps),
        (EPS_ROOT, options.eps_root),
        (WEIGHT_DECAY, options.weight_decay),
        (LR_MAX, options.lr_max),
    ):
        if number is not None:
            real[column.value] = number
    for column, choice in (
        (DECAY, DECAYS.index(options.decay)),
        (BIAS_CORRECTION, BIAS_CORRECTIONS.index(options.bias_correction)),
        (EPS_PLACE, EPS_PLACES.index(options.eps_place)),
        (HAS_MEAN, options.has_mean),
        (HAS_SQUARE, options.has_square),
        (NESTEROV, options.nesterov),
        (MAXIMIZE, options.maximize),
        (RECTIFY, options.rectify),
    ):
        row[column.value] = choice
    return row
