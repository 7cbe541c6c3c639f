"""The state of one array: what an optimizer remembers between steps.

A state is created as zeros, measured in bytes, and turned to and from a plain mapping of arrays
(the piece from which ``state_dict`` and checkpoint files are made). Entries have words for names;
``docs/names.md`` gives the paper's letters and other libraries' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import codecs
from adamas.checks import kind
from adamas.codecs import Codes
from adamas.options import Options

__all__ = ["ENTRIES", "State", "converted", "create", "loaded"]

Array = NDArray[Any]

#: Names of the entries, in the order of the rule's letters m, v, w, then the averaged parameter.
ENTRIES = ("mean", "square", "largest_square", "ema", "header", "remainder")

_REMAINDERS = {"remainder": np.int16, "remainder8": np.int8}
_OTHERS = ("largest_square", "ema", "remainder")
#: Forms whose codes of m are relative to √v.
_RELATIVE = ("compact", "8bit")


@dataclass(frozen=True, eq=False)
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
    #: The exponent that codes of m are counted from; that of the betas.
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

    def encoded(
        self, m: Array | None, v: Array | None, r: Any = None
    ) -> list[tuple[Array | None, Array | None]]:
        """Return the entries that store m and v, each with its new values.

        Small forms are rounded by the random bits ``r``, or to nearest.
        """
        stored = Codes(m, v)
        if self.is_small:
            stored = codecs.encode(self.forms, _flat(m), _flat(v), r, self.top)
        return list(zip((self.mean, self.square, self.header), stored, strict=True))

    @property
    def is_relative(self) -> bool:
        """Whether m is stored relative to √v."""
        return self.mean is not None and self.forms[0] in _RELATIVE

    def reads(self, top: int) -> bool:
        """Whether codes of m that are counted from ``top`` are those of this state."""
        return top == self.top or not self.is_relative

    def _codes(self) -> Codes:
        return Codes(_flat(self.mean), _flat(self.square), self.header)

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
    return State(
        mean=zeros(options.has_mean, codecs.MEAN_CODES.get(forms[0], start.dtype)),
        square=zeros(options.has_square, codecs.SQUARE_CODES.get(forms[1], start.dtype)),
        largest_square=zeros(options.amsgrad),
        ema=np.array(start, order="C") if ema else None,
        header=np.zeros(-(-parameter.size // codecs.BLOCK), np.uint16) if has_header else None,
        remainder=None
        if parameter.dtype != np.uint16 or not options.keeps_remainder
        else np.zeros(parameter.shape, _REMAINDERS[options.parameter_rounding]),
        forms=forms,
        top=_top(options),
    )


def converted(name: str, state: State, parameter: Array, options: Options) -> State:
    """Return ``state`` as it is stored under other options: itself where that is the same.

    m and v are decoded, and encoded anew (to nearest), where their form changes, or the betas so
    that codes of m reach to another size.
    """
    top = _top(options)
    if options.forms == state.forms and state.reads(top):
        return state if top == state.top else replace(state, top=top)
    return loaded(name, parameter, options, state.dense(), ema=state.ema is not None)


def loaded(
    name: str, parameter: Array, options: Options, arrays: Any, *, ema: bool = False
) -> State:
    """Return a new state with the values of ``arrays``, those of a dense or of a packed state.

    ``name`` is the parameter's, for the errors: TypeError for what is no dict of arrays, KeyError
    where an entry is missing or unknown, ValueError where a shape or dtype differs or a value
    cannot be.  An average that was saved without need is left out; one that is missing starts from
    the parameter. A remainder that is missing is zero.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"The state of {name} is {kind(arrays)}, but it must be a dict of arrays.")
    state = create(parameter, options, ema=ema)
    is_packed = state.is_small and "top" in arrays
    wanted = state.packed() if is_packed else state.dense()
    optional = {"remainder", "ema"} & set(wanted)
    given = {each: array for each, array in arrays.items() if each != "ema" or ema}
    if not set(wanted) - optional <= set(given) <= set(wanted):
        raise KeyError(
            f"The state of {name} has the entries {_listed(given)}, but this optimizer keeps "
            f"{_listed(wanted)}. Load it into an optimizer with the options it was saved from."
        )
    checked = {
        each: _checked(name, each, given[each], like)
        for each, like in wanted.items()
        if each in given and each != "top"
    }
    numbers, top = checked, None
    if is_packed:
        top = _checked_top(name, state, given["top"])
        numbers = _unpacked(name, state, checked, top)
    for each in ("square", "largest_square"):
        _check_not_negative(name, each, numbers.get(each))
    if top is not None and state.reads(top):
        stored = [(getattr(state, each), array) for each, array in checked.items()]
    else:
        stored = state.encoded(numbers.get("mean"), numbers.get("square"))
        stored += [(getattr(state, each), numbers.get(each)) for each in _OTHERS]
    for target, values in stored:
        if target is not None and values is not None:
            np.copyto(target, values.reshape(target.shape))
    if state.ema is not None and "ema" not in given:
        np.copyto(state.ema, codecs.decode_parameter(parameter, state.remainder))
    return state


def _top(options: Options) -> int:
    beta1, beta2 = options.betas
    return 0 if beta1 is None or beta2 is None else codecs.mean_top(beta1, beta2)


def _checked(name: str, entry: str, given: Any, like: Array) -> Array:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        raise TypeError(
            f"The state of {name} has {entry} as {kind(given)}, but it must be an array."
        ) from None
    if array.shape != like.shape or array.dtype != like.dtype:
        raise ValueError(
            f"The state of {name} has {entry} of shape {array.shape} and dtype {array.dtype}, "
            f"but it must have shape {like.shape} and dtype {like.dtype}. "
            "Load it into an optimizer over the same parameters."
        )
    return array


def _checked_top(name: str, state: State, given: Any) -> int:
    """Return what the codes of m are counted from, which must be such that betas can give it."""
    top = np.asarray(given)
    least = codecs.LOWEST_TOP if state.is_relative else 0
    if top.shape != () or top.dtype.kind not in "iu" or not least <= top <= codecs.HIGHEST_TOP:
        raise ValueError(
            f"The state of {name} has top {given!r}, but codes of m are counted from a whole "
            f"number from {least} to {codecs.HIGHEST_TOP}. Load a state that is whole."
        )
    return int(top)


def _unpacked(name: str, state: State, arrays: Mapping[str, Array], top: int) -> dict[str, Array]:
    """Return the entries of a dense state for those of a packed one, whose codes are checked."""
    mean_form, square_form = state.forms
    codes = Codes(_flat(arrays.get("mean")), _flat(arrays.get("square")), arrays.get("header"))
    if codes.header is not None:
        meant = 0xF000 * (codes.mean is not None and mean_form == "8bit")
        meant |= 0x0FFF * (codes.square is not None and square_form == "8bit")
        if np.any(codes.header & ~np.uint16(meant)):
            raise _no_codes(name, "header")
    if codes.square is not None and square_form == "compact" and np.any(codes.square > 0x7F7F):
        raise _no_codes(name, "square")
    m, v = codecs.decode(state.forms, codes, top)
    if v is not None and square_form == "8bit" and not np.all(np.isfinite(v)):
        raise _no_codes(name, "header")
    means = {"mean": _shaped(m, state.mean), "square": _shaped(v, state.square)}
    others = {each: array for each, array in arrays.items() if each not in (*means, "header")}
    return others | {each: array for each, array in means.items() if array is not None}


def _no_codes(name: str, entry: str) -> ValueError:
    return ValueError(
        f"The state of {name} has {entry} with bits that stand for no running mean. "
        "Load a state that is whole."
    )


def _check_not_negative(name: str, entry: str, array: Array | None) -> None:
    if array is not None and np.any(array < 0):
        found = array[array < 0].flat[0]
        raise ValueError(
            f"The state of {name} has {entry} with an element {found}, but running means of "
            "squares are at least 0. Load a state that is whole."
        )


def _flat(array: Array | None) -> Array | None:
    return None if array is None else array.ravel()


def _shaped(flat: Array | None, like: Array | None) -> Array | None:
    return None if flat is None or like is None else flat.reshape(like.shape)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
