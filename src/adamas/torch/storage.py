"""What may stand in ``state[p]``, and how a state of another form becomes what a group keeps.

States come from anywhere: from files, from torch's optimizers, from a group that was told to store
them otherwise in the midst of a run. ``check`` says whether a state fits its parameter, before
anything is touched; ``fitted`` gives it as the group keeps it. The dtypes of the entries tell
which form a state is in (``adamas.torch.small``), so codes are never read as anything else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas import checks, codecs
from adamas.state import Entries
from adamas.torch import counting, distributed, small

__all__ = [
    "Kept",
    "begun_anew",
    "check",
    "check_kind",
    "fitted",
    "is_number",
    "restoring",
    "unread",
]

State = dict[str, Any]


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex64, torch.complex128, torch.complex32)
_SQUARES = frozenset(("exp_avg_sq", "max_exp_avg_sq", "square_avg"))
#: What optimizers of torch and others keep: where one keeps no such entry, the state is another's.
_OF_METHODS = frozenset(
    (
        "absmax1", "acc_delta", "ax", "compensation", "eta", "exp_avg", "exp_avg_col",
        "exp_avg_fast", "exp_avg_row", "exp_avg_slow", "exp_avg_sq", "exp_avg_sq_col",
        "exp_avg_sq_row", "exp_inf", "grad_avg", "kahan_comp", "max_exp_avg_sq",
        "momentum_buffer", "mu", "mu_product", "prev", "prev_grad", "qmap1", "square_avg",
        "state1", "state2", "step_size", "sum", "z",
    )
)  # fmt: skip


class Kept(NamedTuple):
    """The entries that a method keeps for the parameters of a group."""

    #: Of the class, for errors.
    method: str
    entries: Entries
    #: Tensors of the parameter's shape, and numbers: those that there may be.
    tensors: tuple[str, ...]
    numbers: tuple[str, ...]
    #: Those that there must be, in a state that is not empty.
    needed: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """All that a state of the method may have, beside what the phase adds."""
        own = (*self.tensors, *self.numbers, *self.needed)
        return frozenset((*own, "ema", "header", "remainder", "top", "step"))


# ── whether a state fits ───────────────────────────────────────────────────────────────────────


def check(
    name: str,
    state: Any,
    parameter: Tensor,
    kept: Kept,
    *,
    loading: bool = False,
    device: torch.device | None = None,
) -> None:
    """Raise TypeError or ValueError where a state is none of a parameter; nothing is touched.

    ``name`` is the parameter's. Where it is one for ``loading`` it has to be whole, and what the
    entries say is looked at, too: squares that are negative, codes that no step leaves. That takes
    a pass over them. Where it is one in use, moments have to be on ``device``.
    """
    check_kind(name, state)
    if not state:
        return
    _check_names(name, state, kept, loading=loading)
    for entry in kept.numbers:
        if entry in state:
            _check_number(name, entry, state[entry], is_read=loading)
    for entry in (*kept.tensors, "ema", "remainder"):
        if state.get(entry) is not None or (loading and entry in kept.needed):
            _check_tensor(name, entry, state[entry], parameter, loading=loading)
            if device is not None and state[entry].device != device:
                raise ValueError(
                    f"The state of {name} has {entry} on {state[entry].device}, but the parameter "
                    f"is on {device}. Bring the one to the other before the step."
                )
    _check_codes(name, state, parameter, kept.entries, values=loading)
    for entry in _SQUARES.intersection(state) if loading else ():
        _check_square(name, entry, distributed.local(state[entry].detach()))
    for entry in ("header", "remainder") if loading else ():
        _check_width(name, entry, state.get(entry))


def check_kind(name: str, state: Any) -> None:
    """Raise TypeError where a state is no dict."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"The state of {name} is {checks.kind(state)}, but it must be a dict of entries. Leave "
            "the parameter out of the state where there is none."
        )


def _check_names(name: str, state: Mapping[str, Any], kept: Kept, *, loading: bool) -> None:
    foreign = sorted(_OF_METHODS.intersection(state) - kept.names)
    if not foreign and not loading:
        return
    found = ", ".join(sorted(map(str, state)))
    if foreign:
        raise ValueError(
            f"The state of {name} has {', '.join(foreign)}, which {kept.method} does not keep: it "
            f"has {found}. It is the state of another class; load it into that one, or begin anew."
        )
    missing = [entry for entry in kept.needed if entry not in state]
    if missing:
        raise ValueError(
            f"The state of {name} has no {', '.join(missing)}, which {kept.method} needs: it has "
            f"{found}. Load a whole state of this class, or leave the parameter out of it."
        )
    if not kept.names.intersection(state):
        raise ValueError(
            f"The state of {name} has {found}, and nothing that {kept.method} keeps. It is the "
            "state of another class; load it into that one, or begin anew."
        )


def _check_number(name: str, entry: str, value: Any, *, is_read: bool) -> None:
    """Raise where an entry is no number; a tensor in use is not read: it may be on a device."""
    if isinstance(value, Tensor) and is_number(value) and not is_read:
        return
    number = _number(name, entry, value)
    if entry == "step":
        if not (0 <= number <= checks.MOST_STEPS and number == math.floor(number)):
            raise ValueError(
                f"The state of {name} has step {number!r}, but it must be a whole number from 0 to "
                "2^53."
            )
    elif not 0 <= number <= 1:
        raise ValueError(
            f"The state of {name} has {entry} {number!r}, but it must be from 0 to 1: it is a "
            "product of decay rates."
        )


def _number(name: str, entry: str, value: Any) -> float:
    if isinstance(value, Tensor):
        value = distributed.local(value.detach())
        if is_number(value):
            return float(value.item())
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(
        f"The state of {name} has {_described(value)} as {entry}, but it must be a number, or a "
        "tensor of one element."
    )


def is_number(value: Tensor) -> bool:
    """Return whether a tensor has one real number to be read."""
    is_plain = value.layout == torch.strided and not value.is_meta and not value.is_complex()
    return is_plain and value.numel() == 1


def _check_tensor(name: str, entry: str, value: Any, parameter: Tensor, *, loading: bool) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"The state of {name} has {_described(value)} as {entry}, but it must be a tensor of "
            f"shape {tuple(parameter.shape)}."
        )
    is_spread = distributed.is_distributed(value)
    is_other = hasattr(value, "__tensor_flatten__") and not is_spread
    if is_other and type(value) is not type(parameter):
        raise TypeError(
            f"The state of {name} has a {type(value).__name__} as {entry}, a tensor of its own "
            "kind, which another library keeps its numbers in. Save them as plain tensors there."
        )
    # torch's SGD keeps sparse gradients' sums as they are; they are made dense.
    is_dense = value.layout == torch.strided or (value.is_sparse and entry == "momentum_buffer")
    if not is_dense or (value.is_meta and not parameter.is_meta):
        raise TypeError(
            f"The state of {name} has a tensor of layout {value.layout} on device {value.device} "
            f"as {entry}, but it must be a dense one that has values."
        )
    if value.shape != parameter.shape:
        raise ValueError(
            f"The state of {name} has {entry} of shape {tuple(value.shape)}, but the parameter has "
            f"shape {tuple(parameter.shape)}. Load a state of the same parameters."
        )
    # torch.distributed.checkpoint gives what has no dimensions as plain tensors to all replicas.
    is_replica = loading and parameter.ndim == 0 and not is_spread
    if is_spread != distributed.is_distributed(parameter) and not is_replica:
        kinds = ("a DTensor", "a plain tensor") if is_spread else ("a plain tensor", "a DTensor")
        raise ValueError(
            f"The state of {name} has {kinds[0]} as {entry}, but the parameter is {kinds[1]}. "
            "Load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, "
            "which shards and gathers states as the parameters are."
        )
    if distributed.local(value).shape != distributed.local(parameter).shape:
        raise ValueError(
            f"The state of {name} has {entry} sharded in another way than the parameter: "
            f"{tuple(distributed.local(value).shape)} and "
            f"{tuple(distributed.local(parameter).shape)} are here. Load it with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict."
        )
    dtypes = _dtypes_of(entry, parameter, loading=loading)
    if value.dtype not in dtypes:
        possible = ", ".join(map(str, dtypes))
        raise TypeError(
            f"The state of {name} has {entry} of dtype {value.dtype}, but the parameter has dtype "
            f"{parameter.dtype}, for which it may be {possible}."
        )


def _dtypes_of(entry: str, parameter: Tensor, *, loading: bool) -> tuple[torch.dtype, ...]:
    """Return what an entry may be stored in, or saved in."""
    if entry == "remainder":
        return (*small.REMAINDERS.values(), *((torch.int32,) if loading else ()))
    if parameter.is_complex():
        return _COMPLEX
    if entry == "exp_avg":
        return (*_FLOATS, torch.uint8, torch.int8)
    return (*_FLOATS, torch.uint8) if entry in ("exp_avg_sq", "square_avg") else _FLOATS


def _check_codes(
    name: str, state: Mapping[str, Any], parameter: Tensor, entries: Entries, *, values: bool
) -> None:
    """Raise where codes lack what they are read by."""
    mean, square = small.means_in(state, entries)
    codes_of_mean = mean is not None and mean.dtype in (torch.uint8, torch.int8)
    codes_of_square = square is not None and square.dtype == torch.uint8
    if codes_of_mean and square is None:
        raise ValueError(
            f"The state of {name} has codes as {entries.mean}, which are relative to the second "
            "moment, but there is none."
        )
    if codes_of_mean:
        _check_top(name, state.get("top"), str(entries.mean))
    if not codes_of_square and (not codes_of_mean or mean is None or mean.dtype != torch.int8):
        return
    header: Any = state.get("header")
    _check_header(name, header, parameter, loading=values)
    if values and bool(((distributed.local(header) & 1023) > codecs.HIGHEST_IN_HEADER).any()):
        raise ValueError(
            f"The state of {name} has a header that no step leaves: its lowest 10 bits are beyond "
            f"{codecs.HIGHEST_IN_HEADER}. The state was damaged; load another."
        )


def _check_header(name: str, header: Any, parameter: Tensor, *, loading: bool) -> None:
    """Raise where a header is not in the shape that it is kept in, nor flat as it was before."""
    blocks = small.blocks_of(parameter)
    shape = distributed.shape_by_runs(parameter, codecs.BLOCK)
    is_parted = distributed.is_distributed(parameter)
    dtypes = (torch.int16, torch.int32) if loading else (torch.int16,)
    if isinstance(header, Tensor) and header.dtype in dtypes:
        here, is_strided = distributed.local(header), header.layout == torch.strided
        if distributed.is_distributed(header):
            fits = is_parted and header.shape == shape and here.numel() == blocks
        else:
            fits = here.shape == (blocks,) or (not is_parted and here.shape == shape)
        if fits and is_strided:
            return
    given = "no" if header is None else f"{_described(header)} as"
    wanted = f"one of shape {(blocks,) if shape is None else tuple(shape)} and dtype torch.int16"
    if not is_parted:
        why = f"a number for each {codecs.BLOCK} elements"
    elif shape is None:
        why = f"a number for each {codecs.BLOCK} elements of this process's part"
    else:
        why = (
            f"a number for each {codecs.BLOCK} elements, sharded as the parameter is. Load it with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    raise ValueError(
        f"The state of {name} is stored in 8 bits and has {given} header, but it must have "
        f"{wanted}: {why}."
    )


def _check_top(name: str, top: Any, mean: str) -> None:
    try:
        number = -1 if isinstance(top, bool) else operator.index(top)
    except (TypeError, ValueError, RuntimeError):  # the latter two: a tensor of many elements
        number = -1
    if not codecs.LOWEST_TOP <= number <= codecs.HIGHEST_TOP:
        raise ValueError(
            f"The state of {name} has codes as {mean} and {_described(top)} as top, but that must "
            f"be a whole number from {codecs.LOWEST_TOP} to {codecs.HIGHEST_TOP}: codes are "
            "counted from it."
        )


def _check_square(name: str, entry: str, value: Tensor) -> None:
    real = torch.view_as_real(value) if value.is_complex() else value
    if real.is_floating_point() and bool((real < 0).any()):
        raise ValueError(
            f"The state of {name} has {entry} with negative elements, but a second moment is at "
            "least 0. The state was damaged; load another."
        )


def _check_width(name: str, entry: str, value: Any) -> None:
    """Raise where 16 bits that are saved in 32, to be gathered, need more than 16."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32:
        return
    here = distributed.local(value.detach())
    if bool((here.to(torch.int16) != here).any()):
        raise ValueError(
            f"The state of {name} has {entry} with elements beyond 16 bits, which it is kept in. "
            "The state was damaged; load another."
        )


def unread(state: Mapping[str, Any], entries: Entries) -> set[str]:
    """Return the entries of a checked state that belong to codes, where there are no such codes."""
    mean, square = (getattr(each, "dtype", None) for each in small.means_in(state, entries))
    is_read = {
        "header": mean == torch.int8 or square == torch.uint8,
        "top": mean in (torch.int8, torch.uint8),
    }
    return {name for name, is_needed in is_read.items() if not is_needed}


def begun_anew(state: State, kept: Kept) -> State:
    """Return a state in use without what cannot go on, ``state`` itself where all of it can.

    A first moment that was taken out begins at zero while the others go on. Without its second
    moment, or the count of steps that bias correction needs, a parameter begins as a whole.
    """
    entries = kept.entries
    if kept.needed:
        vital = [name for name in (*kept.numbers, entries.square) if name is not None]
    else:  # SGD, whose buffer begins with the first gradient
        vital = [] if entries.mean is None else [entries.mean]
    own = (*kept.tensors, *kept.numbers, "header", "top")
    begins = any(state.get(name) is None for name in vital)
    gone = [name for name in own if name in state and (begins or state[name] is None)]
    return {name: state[name] for name in state if name not in gone} if gone else state


# ── a state as it is kept ──────────────────────────────────────────────────────────────────────


def fitted(
    state: Mapping[str, Any],
    parameter: Tensor,
    entries: Entries,
    form: small.Form | None,
    *,
    remainder: torch.dtype | None,
) -> State | None:
    """Return a checked state as its group keeps it, in a new dict; None where it is kept so.

    ``form`` is None where m and v are stored as numbers, in the parameter's dtype or a wider one;
    ``remainder`` where none is kept. What is dense and came from codes of ``form`` loses nothing.
    """
    found = dict(state)
    if form is None:
        _widen(found, parameter, entries)
    else:
        form.pack(found, entries)
        if form.has_header and "header" in found:
            found["header"] = small.fitted_header(found["header"], parameter)
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if not parameter.is_complex():
        for name in ("max_exp_avg_sq", "momentum_buffer", "grad_avg"):
            if form is not None and name != entries.mean and found.get(name) is not None:
                _convert(found, name, (wide,))
        if found.get("ema") is not None:
            _convert(found, "ema", (wide,))
    if remainder is None:
        found.pop("remainder", None)
    elif "remainder" in found:
        found["remainder"] = small.converted_remainder(found["remainder"], remainder)
    if "step" in found:
        found["step"] = counting.counting(found["step"])
    is_same = found.keys() == state.keys() and all(found[each] is state[each] for each in found)
    return None if is_same else found


def _widen(state: State, parameter: Tensor, entries: Entries) -> None:
    """Turn codes and numbers of other dtypes into those that a parameter's state may have."""
    if not {"float32", "bfloat16"}.issuperset(small.forms_in(state, entries)):
        state.update(small.dense(state, entries))
    for name in ("header", "top"):
        state.pop(name, None)
    if parameter.is_complex() or parameter.dtype not in _FLOATS:
        dtypes = (parameter.dtype,)
    elif parameter.dtype == torch.bfloat16:
        dtypes = (torch.float32, parameter.dtype)
    else:
        dtypes = (torch.float64 if parameter.dtype == torch.float64 else torch.float32,)
    for name in (entries.mean, entries.square, "max_exp_avg_sq", "momentum_buffer", "grad_avg"):
        if name is not None and state.get(name) is not None:
            _convert(state, name, dtypes)


def _convert(state: State, name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if state[name].dtype not in dtypes:
        state[name] = state[name].detach().to(dtypes[0])


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 40 else checks.kind(value)


@contextmanager
def restoring(states: MutableMapping[Tensor, State]) -> Generator[None]:
    """Leave states as they were on errors."""
    before = set(states)
    kept = [(state, dict(state)) for state in states.values() if isinstance(state, dict)]
    try:
        yield
    except BaseException:
        for p in states.keys() - before:
            del states[p]
        for state, entries in kept:
            state.clear()
            state.update(entries)
        raise
