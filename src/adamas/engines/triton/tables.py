"""What the tables hold that kernels read on the device.

The **table** has a row of int64 for each tensor: addresses (0 where there is no such array) and
numbers that change only when a plan is made anew. **Recipes** say, for each group, how the numbers
of a step come about. **Live** values are what may change from step to step: addresses of gradients,
numbers of steps that are counted on the host, learning rates. The **verdict** is what a look at the
gradients has led to. float64 stands in tables of int64 as its bits.

The constants are Triton's, so that they belong to the text that is compiled; ``.value`` is the int.
"""

from __future__ import annotations

from triton.language import constexpr

from adamas.statistics import TILE

__all__ = [
    "BIAS_CORRECTIONS",
    "CHUNK",
    "CHUNK_BITS",
    "DECAYS",
    "EPS_PLACES",
    "GIVEN_WIDTH",
    "NUMBERS",
    "RECIPE_WIDTH",
    "TABLE_WIDTH",
    "VERDICT_WIDTH",
]

#: Elements that one program steps or reads: eight tiles.
CHUNK = constexpr(8 * TILE)
#: A chunk is named by its tensor's row, shifted by this, plus its number in the tensor.
CHUNK_BITS = constexpr(36)
CHUNK_MASK = constexpr((1 << 36) - 1)

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
FIRST = constexpr(10)  # where the elements begin in the whole tensor
TOP = constexpr(11)  # adamas.codecs.mean_top
FIRST_TILE = constexpr(12)  # among the tiles of all tensors
STEP = constexpr(13)  # address of the step's number, or 0: it is a live value
STEP_IS_DOUBLE = constexpr(14)
RECIPE = constexpr(15)  # row of the recipe
GIVEN = constexpr(16)  # row of given numbers, or -1
LR = constexpr(17)  # address of the learning rate, or 0: it is a live value
LR_IS_DOUBLE = constexpr(18)
TABLE_WIDTH = constexpr(20)

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
RECIPE_WIDTH = constexpr(16)

#: How the choices of :class:`adamas.options.Options` are numbered.
DECAYS = ("l2", "decoupled", "fully-decoupled")
BIAS_CORRECTIONS = ("paper", "first-step", "none")
EPS_PLACES = ("corrected", "uncorrected", "inside")

# ── places of a verdict (float64) ──
APPLIED = constexpr(0)  # 1, or 0 where nothing may change
FACTOR = constexpr(1)  # that clips
NORM = constexpr(2)  # of the unscaled gradients
SCALE = constexpr(3)  # of the loss
VERDICT_WIDTH = constexpr(4)

#: Entries of a row of numbers (float64): those of the rule, then keep and take of the average.
NUMBERS = constexpr(16)
#: Entries of a row of given numbers: the same without padding.
GIVEN_WIDTH = constexpr(15)
