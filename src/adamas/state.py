"""The state of one array: what an optimizer remembers between steps.

A state is created as zeros, measured in bytes, and turned to and from a plain mapping of arrays
(the piece from which ``state_dict`` and checkpoint files are made). Entries have words for names;
``docs/names.md`` gives the paper's letters and other libraries' names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas import codecs
from adamas.checks import check_plain, kind
from adamas.codecs import Codes
from adamas.options import Options
from adamas.storage import Storage, bits_of

__all__ = ["ENTRIES", "Entries", "State", "converted", "create", "loaded"]

Array = NDArray[Any]


class Entries(NamedTuple):
    """What belongs to one parameter, by its role: names, arrays, tensors; None where not kept.

    The order is that of the rule's letters m, v, w, then the averaged parameter.
    """

    #: m, the first moment (moving average of the gradients).
    mean: Any = None
    #: v, the second moment (moving average of the squared gradients).
    square: Any = None
    #: w, the largest v so far (AMSGrad).
    largest_square: Any = None
    #: The exponential moving average (EMA) of the parameter itself.
    ema: Any = None
    #: What the codes of a block have in common, where the form of m or v is "8bit".
    header: Any = None
    #: What a parameter in bfloat16 has besides, where rounding keeps it.
    remainder: Any = None

    def map(self, turned: Callable[[Any], Any]) -> Entries:
        """Return entries with what ``turned`` makes of each that is kept."""
        return Entries(*(None if each is None else turned(each) for each in self))

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the roles that are kept, each with what it has."""
        roles = zip(self._fields, self, strict=True)
        return ((role, each) for role, each in roles if each is not None)


#: The roles by name; those of numpy's front-end in state_dict and files.
ENTRIES = Entries._fields

_MEANS = ("mean", "square")
_CODED = (*_MEANS, "header")


@dataclass(frozen=True, eq=False)
class State:
    """The moments that belong to one parameter; None where the method keeps none.

    All entries are C-contiguous. They have the parameter's shape (but for the header) and the
    dtype it is computed in, float32 or float64 (but for m and v in a small form, which are codes,
    and the remainder: see ``adamas.codecs``).
    """

    # The roles of Entries, as fields.
    mean: Array | None = None
    square: Array | None = None
    largest_square: Array | None = None
    ema: Array | None = None
    header: Array | None = None
    remainder: Array | None = None
    #: The forms of m and v.
    forms: tuple[str, str] = ("float32", "float32")
    #: The exponent that codes of m are counted from; that of the betas.
    top: int = 0

    @property
    def entries(self) -> Entries:
        """The arrays by role."""
        return Entries(*(getattr(self, role) for role in ENTRIES))

    @property
    def is_small(self) -> bool:
        """Whether m or v is stored in a small form."""
        return Storage(*self.forms).is_small

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
        return [(getattr(self, role), getattr(stored, role)) for role in _CODED]

    @property
    def is_relative(self) -> bool:
        """Whether m is stored relative to √v."""
        return self.mean is not None and Storage(*self.forms).is_relative

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
        return dict(self.entries.items())

    def dense(self) -> dict[str, Array]:
        """Return the entries with m and v as numbers: copies where they are stored as codes."""
        arrays = self.arrays()
        if self.is_small:
            arrays.pop("header", None)
            pairs = zip(_MEANS, self.means(), strict=True)
            arrays |= {name: each for name, each in pairs if each is not None}
        return arrays

    def packed(self) -> dict[str, Array]:
        """Return the entries as they are stored, and ``top`` where there are codes."""
        return {**self.arrays(), **({"top": np.array(self.top)} if self.is_small else {})}


def create(parameter: Array, options: Options, *, ema: bool = False) -> State:
    """Return the state before the first step: zeros, and the parameter as its own average."""
    storage, has_mean, has_square = options.storage, options.has_mean, options.has_square
    codes = storage.codes
    if storage.is_small and parameter.dtype == np.float64:
        raise ValueError(storage.refusal_of_dtype("a parameter has", parameter.dtype))
    if storage.keeps_remainder and parameter.dtype == np.float16:
        raise ValueError(storage.refusal_of_remainder("float16", "bfloat16"))
    start = codecs.decode_parameter(parameter)

    def zeros(wanted: bool, code: str | None = None) -> Array | None:
        dtype = start.dtype if code is None else bits_of(code)
        return np.zeros(parameter.shape, dtype) if wanted else None

    header = None
    if storage.has_header(has_mean=has_mean, has_square=has_square):
        header = np.zeros(-(-parameter.size // codecs.BLOCK), codes.header)
    return State(
        mean=zeros(has_mean, codes.mean),
        square=zeros(has_square, codes.square),
        largest_square=zeros(options.amsgrad),
        ema=np.array(start, order="C") if ema else None,
        header=header,
        remainder=zeros(
            storage.keeps_remainder and parameter.dtype == np.uint16, storage.remainder
        ),
        forms=storage.forms,
        top=_top(options),
    )


def converted(name: str, state: State, parameter: Array, options: Options) -> State:
    """Return ``state`` as it is stored under other options: itself where that is the same.

    m and v are decoded, and encoded anew (to nearest), where their form changes, or the betas so
    that codes of m reach to another size.
    """
    top = _top(options)
    if options.storage.forms == state.forms and state.reads(top):
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
    values = Entries(**numbers)
    _check_not_negative(name, "square", values.square)
    _check_not_negative(name, "largest_square", values.largest_square)
    if top is not None and state.reads(top):
        stored = zip(state.entries, Entries(**checked), strict=True)
    else:
        stored = state.encoded(values.mean, values.square)
        others = values._replace(**dict.fromkeys(_CODED))
        stored += zip(state.entries, others, strict=True)
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
    check_plain(f"{entry} in the state of {name}", given)
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
    entries = Entries(**arrays)
    codes = Codes(_flat(entries.mean), _flat(entries.square), entries.header)
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
    means = {"mean": _shaped(m, state.mean), "square": _shaped(v, state.square), "header": None}
    return dict(entries._replace(**means).items())


def _no_codes(name: str, entry: str) -> ValueError:
    return ValueError(
        f"The state of {name} has {entry} with bits that stand for no number. Load a state that "
        "is whole."
    )


def _check_not_negative(name: str, entry: str, array: Array | None) -> None:
    if array is not None and np.any(array < 0):
        found = array[array < 0].flat[0]
        raise ValueError(
            f"The state of {name} has {entry} with an element {found}, but a second moment is at "
            "least 0. Load a state that is whole."
        )


def _flat(array: Array | None) -> Array | None:
    return None if array is None else array.ravel()


def _shaped(flat: Array | None, like: Array | None) -> Array | None:
    return None if flat is None or like is None else flat.reshape(like.shape)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
