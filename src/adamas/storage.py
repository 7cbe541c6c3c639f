"""What is stored how: the forms of moments, and all that follows from their choice.

One table says what dtypes each form stores (``adamas.codecs`` says what the bits mean), and one
value, made where options are checked, what follows from it; it refuses, in the same words in all
front-ends, what cannot be stored so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from adamas.checks import check_choice, check_forms
from adamas.codecs import Codes

__all__ = [
    "REMAINDERS",
    "STORED_AS",
    "Rounding",
    "StateForm",
    "Storage",
    "bits_of",
]

#: How a moving average is stored: as it is, or in fewer bits.
StateForm = Literal["float32", "bfloat16", "compact", "8bit"]
#: How parameters and moving averages that are stored in few bits are rounded.
Rounding = Literal["nearest", "stochastic", "remainder", "remainder8"]

#: The dtypes that each form stores codes in, by name; "float32" has numbers in place of codes.
STORED_AS = {
    "bfloat16": Codes("bfloat16", "bfloat16"),
    "compact": Codes("uint8", "bfloat16"),
    "8bit": Codes("int8", "uint8", "uint16"),
}
_NUMBERS = Codes(None, None)
#: The same of what parameters in bfloat16 have besides.
REMAINDERS = {"remainder": "int16", "remainder8": "int8"}


def bits_of(dtype: str) -> np.dtype[Any]:
    """Return the dtype of arrays that stand for a dtype by name: uint16 for bfloat16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class Storage(NamedTuple):
    """How one parameter and its moments are stored, and all that follows from it."""

    #: The forms of m and of v; that of a mean which is not kept has no meaning.
    mean: str = "float32"
    square: str = "float32"
    #: The option of this name, see ``adamas.Options``.
    rounding: str | None = None

    @classmethod
    def checked(
        cls, state: Any, rounding: Any, *, has_mean: bool, has_square: bool, amsgrad: bool
    ) -> Storage:
        """Return how a method stores, from the options ``state`` (a form, or a pair) and others.

        Raises TypeError or ValueError for what is no form, or cannot go together.
        """
        if rounding is not None:
            check_choice("rounding", rounding, get_args(Rounding))
        mean, square = check_forms(state, get_args(StateForm))
        if amsgrad and not has_square:
            raise ValueError(
                "amsgrad is True, but this method keeps no second moment (moving average of "
                "squared gradients). Use Adam, AdamW or RMSProp, or leave amsgrad out."
            )
        storage = cls(mean, square, rounding)
        if storage.is_relative and has_mean and not has_square:
            raise ValueError(
                f'state is "{mean}", which stores the first moment relative to the root of the '
                'second, but this method keeps no second moment. Use "float32" or "bfloat16".'
            )
        if amsgrad and square != "float32":
            raise ValueError(
                f'amsgrad keeps the largest square so far, which the rounding of "{square}" would '
                'drive up. Use state=("' + mean + '", "float32"), or leave amsgrad out.'
            )
        return storage

    @property
    def forms(self) -> tuple[str, str]:
        """The forms of m and of v."""
        return self.mean, self.square

    @property
    def is_small(self) -> bool:
        """Whether m or v is stored as codes."""
        return self.forms != ("float32", "float32")

    @property
    def is_relative(self) -> bool:
        """Whether codes of m are relative to √v, and counted from ``codecs.mean_top``."""
        return self.mean in ("compact", "8bit")

    @property
    def codes(self) -> Codes:
        """The dtypes of codes by name; None where the dtype is that of the arithmetic."""
        mean, square = (STORED_AS.get(form, _NUMBERS) for form in self.forms)
        return Codes(mean.mean, square.square, mean.header or square.header)

    def has_header(self, *, has_mean: bool, has_square: bool) -> bool:
        """Whether blocks have headers, for a method that keeps these means."""
        # No generator, which an interrupt could find half closed.
        means = zip(self.forms, (has_mean, has_square), strict=True)
        headers = [STORED_AS.get(form, _NUMBERS).header for form, is_kept in means if is_kept]
        return any(headers)

    @property
    def means_by_chance(self) -> bool:
        """Whether codes of m and v are rounded by random bits, not to nearest."""
        return self.is_small and self.rounding != "nearest"

    @property
    def parameter_rounding(self) -> str:
        """How parameters in half precision are rounded."""
        return self.rounding or "nearest"

    @property
    def parameters_by_chance(self) -> bool:
        """Whether parameters in half precision are rounded by random bits."""
        return self.rounding in ("stochastic", "remainder8")

    @property
    def remainder(self) -> str | None:
        """The dtype, by name, of what parameters in bfloat16 have besides; None without any."""
        return None if self.rounding is None else REMAINDERS.get(self.rounding)

    @property
    def keeps_remainder(self) -> bool:
        """Whether parameters in bfloat16 keep what rounding takes away."""
        return self.remainder is not None

    def refusal_of_dtype(self, whose: str, dtype: object, way: str = "use") -> str:
        """Return what is said of a parameter too wide for codes; ``whose`` is "a parameter has"."""
        return (
            f"state is {self.forms!r}, but {whose} dtype {dtype}: low-bit states are for "
            f'float32, bfloat16 and float16. Convert the parameter, or {way} state="float32", '
            "which keeps its dtype."
        )

    def refusal_of_remainder(self, dtype: object, possible: object) -> str:
        """Return what is said of a parameter that can have no remainder."""
        return (
            f'rounding is "{self.rounding}", but a parameter has dtype {dtype}: remainders are '
            f'for {possible}. Use rounding="stochastic", or convert the parameter.'
        )

    def refusal_of_remainders(self, possible: object, dtypes: Iterable[object], how: str) -> str:
        """Return what is said where no parameter can have a remainder."""
        found = " and ".join(sorted(map(str, dtypes)))
        return (
            f'rounding is "{self.rounding}", which keeps what rounding takes away from parameters '
            f"in {possible}, but they have dtype {found}. Leave rounding out, or {how}."
        )
