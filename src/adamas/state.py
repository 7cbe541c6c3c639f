"""The state of one array: what an optimizer remembers between steps.

A state is created as zeros, measured in bytes, and turned to and from a plain mapping of arrays
(the piece from which ``state_dict`` and checkpoint files are made). Entries have words for names;
``docs/names.md`` gives the paper's letters and other libraries' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import codecs
from adamas.codecs import Codes
from adamas.options import Options

__all__ = ["ENTRIES", "State", "create", "from_arrays"]

Array = NDArray[Any]

#: Names of the entries, in the order of the rule's letters m, v, w, then the averaged parameter.
ENTRIES = ("mean", "square", "largest_square", "ema", "header", "remainder")

_MEAN_CODES = {"bfloat16": np.uint16, "compact": np.uint8, "8bit": np.int8}
_SQUARE_CODES = {"bfloat16": np.uint16, "compact": np.uint16, "8bit": np.uint8}
_REMAINDERS = {"remainder": np.int16, "remainder8": np.int8}


@dataclass
class State:
    """The running means that belong to one parameter; None where the method keeps none.

    All entries are C-contiguous. They have the parameter's shape (but for the header) and the
    dtype it is computed in, float32 or float64 (but for m and v in a small form, which are codes,
    and the remainder: see :mod:`adamas.codecs`).
    """

    #: m, the running mean of gradients.
    mean: Array | None = None
    #: v, the running mean of squared gradients.
    square: Array | None = None
    #: w, the largest v so far (AMSGrad).
    largest_square: Array | None = None
    #: The running mean of the parameter itself.
    ema: Array | None = None
    #: What the codes of a block have in common, where the form of m or v is "8bit".
    header: Array | None = None
    #: What a parameter in bfloat16 has besides, where rounding keeps it.
    remainder: Array | None = None
    #: The forms of m and v.
    forms: tuple[str, str] = ("float32", "float32")
    #: The exponent that codes of m are counted from; that of the betas at creation.
    top: int = 0

    @property
    def is_small(self) -> bool:
        """Whether m or v is stored in a small form."""
        return self.forms != ("float32", "float32")

    def means(self) -> tuple[Array | None, Array | None]:
        """Return m and v, decoded where they are codes, else the arrays themselves."""
        if not self.is_small:
            return self.mean, self.square
        m, v = codecs.decode(self.forms, self._codes(), self.top)
        return _shaped(m, self.mean), _shaped(v, self.square)

    def put_means(self, m: Array | None, v: Array | None, r: Any = None) -> None:
        """Store m and v, encoded with the random bits ``r``, or rounded to nearest."""
        stored = self._encoded(m, v, r) if self.is_small else Codes(m, v)
        for target, value in zip((self.mean, self.square, self.header), stored, strict=True):
            if target is not None and value is not None:
                np.copyto(target, value.reshape(target.shape))

    def _codes(self) -> Codes:
        return Codes(_flat(self.mean), _flat(self.square), self.header)

    def _encoded(self, m: Array | None, v: Array | None, r: Any) -> Codes:
        return codecs.encode(self.forms, _flat(m), _flat(v), r, self.top)

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the entries take."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, Array]:
        """Return the entries that exist, by name: the arrays themselves, not copies."""
        entries = ((name, getattr(self, name)) for name in ENTRIES)
        return {name: array for name, array in entries if array is not None}

    def dense(self) -> dict[str, Array]:
        """Return the entries with m and v as numbers: copies where they are stored as codes."""
        arrays = self.arrays()
        if self.is_small:
            arrays.pop("header", None)
            pairs = zip(("mean", "square"), self.means(), strict=True)
            arrays |= {name: each for name, each in pairs if each is not None}
        return arrays

    def packed(self) -> dict[str, Array]:
        """Return the entries as they are stored, and ``top`` where there are codes."""
        return {**self.arrays(), **({"top": np.array(self.top)} if self.is_small else {})}

    def packed_from(self, dense: Mapping[str, Array]) -> dict[str, Array]:
        """Return the entries as stored for those of :meth:`dense`.

        Nothing is lost where they were decoded from these forms.
        """
        stored = self._encoded(dense.get("mean"), dense.get("square"), None)
        others = {name: array for name, array in dense.items() if name not in ("mean", "square")}
        named = zip(("mean", "square", "header"), stored, strict=True)
        codes = {
            name: each.reshape(getattr(self, name).shape)
            for name, each in named
            if each is not None
        }
        return {**others, **codes}

    def assign(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values of ``arrays`` (as :func:`from_arrays` returns them) into the entries."""
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])
        self.top = int(arrays.get("top", self.top))


def create(parameter: Array, options: Options, *, ema: bool = False) -> State:
    """Return the state before the first step: zeros, and the parameter as its own average."""
    forms = options.forms
    if forms != ("float32", "float32") and parameter.dtype == np.float64:
        raise ValueError(
            f"state is {forms!r}, but a parameter has dtype float64: small forms are for float32 "
            'and half precision. Convert the parameter, or use state="float32", which keeps its '
            "dtype."
        )
    if options.keeps_remainder and parameter.dtype == np.float16:
        raise ValueError(
            f'rounding is "{options.rounding}", but a parameter has dtype float16: remainders are '
            'for bfloat16. Use rounding="stochastic", or convert the parameter.'
        )
    start = codecs.decode_parameter(parameter)

    def zeros(wanted: bool, dtype: Any = start.dtype) -> Array | None:
        return np.zeros(parameter.shape, dtype) if wanted else None

    has_header = (options.has_mean and forms[0] == "8bit") or (
        options.has_square and forms[1] == "8bit"
    )
    beta1, beta2 = options.betas
    return State(
        mean=zeros(options.has_mean, _MEAN_CODES.get(forms[0], start.dtype)),
        square=zeros(options.has_square, _SQUARE_CODES.get(forms[1], start.dtype)),
        largest_square=zeros(options.amsgrad),
        ema=np.array(start, order="C") if ema else None,
        header=np.zeros(-(-parameter.size // codecs.BLOCK), np.uint16) if has_header else None,
        remainder=None
        if parameter.dtype != np.uint16 or not options.keeps_remainder
        else np.zeros(parameter.shape, _REMAINDERS[options.parameter_rounding]),
        forms=forms,
        top=0 if beta1 is None or beta2 is None else codecs.mean_top(beta1, beta2),
    )


def from_arrays(name: str, like: State, arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Return ``arrays`` checked to be a whole state of the kind of ``like``, changing nothing.

    ``name`` is the parameter's, for the errors: KeyError where an entry is missing or unknown,
    ValueError where a shape or dtype differs. A parameter that was saved without a remainder has
    none: it is zero.
    """
    is_packed = like.is_small and "top" in arrays
    wanted = like.packed() if is_packed else like.dense()
    if "remainder" in wanted and "remainder" not in arrays:
        arrays = {**arrays, "remainder": np.zeros_like(wanted["remainder"])}
    if set(arrays) != set(wanted):
        raise KeyError(
            f"The state of {name} has the entries {_listed(arrays)}, but this optimizer keeps "
            f"{_listed(wanted)}. Load it into an optimizer with the options it was saved from."
        )
    checked = {entry: np.asarray(array) for entry, array in arrays.items()}
    for entry, array in checked.items():
        if array.shape != wanted[entry].shape or array.dtype != wanted[entry].dtype:
            raise ValueError(
                f"The state of {name} has {entry} of shape {array.shape} and dtype {array.dtype}, "
                f"but the parameter has shape {wanted[entry].shape} and dtype "
                f"{wanted[entry].dtype}. Load it into an optimizer over the same parameters."
            )
    return checked if is_packed or not like.is_small else like.packed_from(checked)


def _flat(array: Array | None) -> Array | None:
    return None if array is None else array.ravel()


def _shaped(flat: Array | None, like: Array | None) -> Array | None:
    return None if flat is None or like is None else flat.reshape(like.shape)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
