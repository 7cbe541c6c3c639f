"""How state[p] stores moments in few bits, and what rounding takes from parameters.

Codes are tensors of the parameter's shape: bfloat16 where the form is "bfloat16" (and for v,
"compact"), uint8 or int8 else; with "8bit" an entry ``header`` (int16) has one number for each
block of 32 elements. ``top`` is what codes of m are counted from (``adamas.codecs.mean_top``).
The dtypes tell the forms, so that a state of any form can be read by any optimizer.

Where rows (the last dimension) are of whole blocks, the header has the parameter's shape with that
dimension divided by 32; else it is flat. Of distributed tensors each process has its part: codes
are DTensors laid out as the parameter is, and so are headers of whole blocks. Where blocks are cut,
the header is a plain tensor and of the blocks of the part.

A parameter in bfloat16 may have an entry ``remainder``: int16, or int8 for "remainder8".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas import codecs
from adamas.codecs import Bits, Codes
from adamas.state import Entries
from adamas.storage import REMAINDERS as REMAINDERS_BY_NAME
from adamas.storage import STORED_AS, StateForm, Storage
from adamas.torch import distributed, huge_pages

__all__ = [
    "HALF",
    "REMAINDERS",
    "Form",
    "blocks_of",
    "converted_remainder",
    "decoded_parameter",
    "dense",
    "fitted_header",
    "forms_in",
    "means_in",
    "put_parameter",
    "refuse",
]

HALF = (torch.bfloat16, torch.float16)
REMAINDERS = {rounding: getattr(torch, dtype) for rounding, dtype in REMAINDERS_BY_NAME.items()}

_MEANS = {form: getattr(torch, codes.mean) for form, codes in STORED_AS.items()}
_SQUARES = {form: getattr(torch, codes.square) for form, codes in STORED_AS.items()}
_FORMS_OF_MEANS: dict[Any, Any] = {dtype: form for form, dtype in _MEANS.items()}
#: "compact" has codes of v that are those of "bfloat16".
_FORMS_OF_SQUARES: dict[Any, Any] = {
    dtype: form for form, dtype in _SQUARES.items() if form != "compact"
}
_DTYPES = (torch.float32, *HALF)

State = dict[str, Any]


class Form(NamedTuple):
    """How the state of one parameter is stored."""

    storage: Storage
    has_header: bool
    #: Of codes that are created now.
    top: int

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """The dtypes of what is stored of m and of v."""
        mean, square = self.storage.forms
        return _MEANS.get(mean, torch.float32), _SQUARES.get(square, torch.float32)

    def is_read_on(self, device: torch.device, state: State) -> bool:
        """Return whether engines read a state on a device: headers are there, and ``top`` is ours.

        Where m is larger than its decay rates allow ``top`` is higher, and each step looks anew.
        """
        is_there = not self.has_header or state["header"].device == device
        return is_there and state.get("top", self.top) == self.top

    def decoded(self, state: State, names: Entries) -> tuple[Tensor | None, Tensor | None]:
        """Return m and v as new float32 tensors on the device of the state, laid out as it is."""
        likes = means_in(state, names)
        mean, square = map(_codes_of, likes, self.storage.forms)
        header = None
        if self.has_header:
            flat = distributed.local(state["header"].detach()).reshape(-1).contiguous()
            header = flat.cpu().numpy().view(np.uint16)
        codes = Codes(mean, square, header)
        found = codecs.decode(self.storage.forms, codes, state.get("top", 0))
        m, v = (
            None if like is None else distributed.joined(like, torch.tensor(each))
            for like, each in zip(likes, found, strict=True)
        )
        return m, v

    def store(
        self,
        state: State,
        names: Entries,
        values: tuple[Tensor | None, Tensor | None],
        random: Bits | None,
    ) -> None:
        """Store m and v: rounded by ``random`` bits of the elements, or to nearest."""
        m, v = map(_flat, values)
        random = None if self.storage.rounding == "nearest" else random
        codes = codecs.encode(self.storage.forms, m, v, random, state.get("top", 0))
        header = state["header"] if self.has_header else None
        for entry, code in zip((*means_in(state, names), header), codes, strict=True):
            if entry is not None and code is not None:
                _put(entry, code)

    def pack(self, state: State, names: Entries) -> None:
        """Turn a state of any form into this one, in place; its tensors stay as they are.

        Nothing is lost of what is dense and came from such codes. Codes of m are counted from the
        form's ``top``, or from a higher one where m is larger than its decay rates allow.
        """
        means = means_in(state, names)
        has_dtypes = all(
            entry is None or entry.dtype == dtype
            for entry, dtype in zip(means, self.dtypes, strict=True)
        )
        counts = means[0] is not None and self.storage.is_relative
        if has_dtypes and (not counts or state["top"] == self.top):
            return
        m, v = means_in(dense(state, names), names)
        top = self._reaching_top(m, v) if counts and v is not None else self.top
        if has_dtypes and state["top"] == top:
            return
        for name in ("header", "top"):
            state.pop(name, None)
        self._replace(top=top).put_zeros(state, names)
        self.store(state, names, (m, v), None)

    def put_zeros(self, state: State, names: Entries) -> None:
        """Put zeros in place of m and v, where they are kept."""
        means = means_in(state, names)
        like = means[1] if means[0] is None else means[0]  # so that both are laid out alike
        kept = zip((names.mean, names.square), means, self.dtypes, strict=True)
        for name, entry, dtype in kept:
            if name is not None and entry is not None:
                state[name] = huge_pages.zeros_like(like, dtype)
        if self.has_header and like is not None:
            part = torch.zeros(blocks_of(like), dtype=torch.int16, device=like.device)
            state["header"] = distributed.by_runs(like, part, codecs.BLOCK)
        if means[0] is not None and self.storage.is_relative:
            state["top"] = self.top

    def _reaching_top(self, mean: Tensor | None, square: Tensor) -> int:
        v = codecs.encode(self.storage.forms, None, _flat(square), None, self.top)
        _, read = codecs.decode(self.storage.forms, v, self.top)
        return self.top if mean is None else codecs.reaching_top(_flat(mean), read, self.top)


def blocks_of(tensor: Tensor) -> int:
    """Return how many blocks this process's part of a tensor has."""
    return -(-distributed.local(tensor).numel() // codecs.BLOCK)


def fitted_header(header: Tensor, parameter: Tensor) -> Tensor:
    """Return the header of a parameter in the shape that it is kept in, itself where it is so.

    Flat ones come from before headers had the shape of rows.
    """
    part = distributed.local(header)
    shape = distributed.shape_by_runs(parameter, codecs.BLOCK)
    is_spread = distributed.is_distributed(header)
    if shape is None:
        is_kept = not is_spread and part.shape == (blocks_of(parameter),)
    else:
        is_kept = is_spread == distributed.is_distributed(parameter) and header.shape == shape
    if is_kept and part.is_contiguous():
        return header
    return distributed.by_runs(parameter, part.detach(), codecs.BLOCK)


def means_in(state: Mapping[str, Any], names: Entries) -> tuple[Any, Any]:
    """Return m and v as they stand in a state; None for one that is not there."""
    mean, square = (
        None if name is None else state.get(name) for name in (names.mean, names.square)
    )
    return mean, square


def forms_in(state: State, names: Entries) -> tuple[StateForm, StateForm]:
    """Return the forms that a state is in; "float32" for what is no code.

    Codes of v are the same in "bfloat16" and "compact"; the form of m says which is meant.
    """
    m, v = (getattr(entry, "dtype", None) for entry in means_in(state, names))
    first = _FORMS_OF_MEANS.get(m, "float32")
    second = _FORMS_OF_SQUARES.get(v, "float32")
    return first, "compact" if (first, second) == ("compact", "bfloat16") else second


def dense(state: State, names: Entries) -> State:
    """Return a state as torch has it: m and v in float32 in place of any codes."""
    found = {name: each for name, each in state.items() if name not in ("header", "top")}
    forms = forms_in(state, names)
    if forms != ("float32", "float32"):
        form = Form(Storage(*forms), has_header="header" in state, top=0)
        pairs = zip((names.mean, names.square), form.decoded(state, names), strict=True)
        found |= {name: value for name, value in pairs if name is not None and value is not None}
    return found


# ── parameters in half precision ───────────────────────────────────────────────────────────────


def decoded_parameter(parameter: Tensor, remainder: Tensor | None) -> Tensor:
    """Return the float32 value of a parameter in half precision, as a new tensor."""
    if remainder is None:
        return parameter.to(torch.float32)
    code = _codes_of(parameter, "bfloat16")
    value = codecs.decode_remainder(code, remainder.detach().reshape(-1).cpu().numpy())
    return torch.from_numpy(value).view(parameter.shape).to(parameter.device)


def put_parameter(
    parameter: Tensor, remainder: Tensor | None, value: Tensor, rounding: str, random: Bits
) -> Tensor:
    """Store a float32 ``value`` in a parameter in half precision; return what it became."""
    flat = _flat(value)
    like = np.empty(0, np.float16 if parameter.dtype == torch.float16 else np.uint16)
    code, low = codecs.encode_parameter(flat, like, rounding, random)
    _put(parameter, code)
    if remainder is not None and low is not None:
        _put(remainder, low)
    return decoded_parameter(parameter, remainder)


def converted_remainder(remainder: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a remainder in 16 or 8 bits; going to 8, the lower 8 bits are lost."""
    if remainder.dtype == dtype:
        return remainder
    here = distributed.local(remainder)  # a DTensor's `>>` gives back what was to be shifted
    here = here.to(dtype) * 256 if dtype == torch.int16 else (here >> 8).to(dtype)
    return distributed.with_values(remainder, here)


def refuse(parameter: Tensor, form: Form | None, rounding: str | None, is_special: bool) -> None:
    """Raise TypeError or ValueError for what cannot be stored as its group asks for.

    ``form`` is None where the group does not say how to store m and v.
    """
    is_small = form is not None and form.storage.is_small
    if is_small and is_special:
        raise ValueError(
            "Low-bit states are not possible for RMSprop with momentum or centered, which "
            'follows another rule. Use state="float32" for this group.'
        )
    if form is not None and is_small and parameter.dtype not in _DTYPES:
        way = "give it a group of its own with"
        raise TypeError(form.storage.refusal_of_dtype("a parameter has", parameter.dtype, way))
    if parameter.dtype not in HALF or rounding in (None, "nearest"):
        return
    if is_special:
        raise TypeError(
            f'rounding is "{rounding}", but a parameter is of RMSprop with momentum or centered, '
            "which is rounded to nearest only. Give it a group of its own with "
            'rounding="nearest".'
        )
    if rounding in REMAINDERS and parameter.dtype == torch.float16:
        storage = Storage(rounding=rounding)
        raise TypeError(storage.refusal_of_remainder(parameter.dtype, torch.bfloat16))


def _codes_of(tensor: Tensor | None, form: str) -> Any:
    if tensor is None or form == "float32":
        return _flat(tensor)
    flat = distributed.local(tensor.detach()).reshape(-1).cpu()
    return flat.view(torch.int16).numpy().view(np.uint16) if flat.itemsize == 2 else flat.numpy()


def _flat(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return distributed.local(tensor.detach()).reshape(-1).to("cpu", torch.float32).numpy()


def _put(target: Tensor, code: Any) -> None:
    """Copy codes into an entry, bit for bit."""
    target = distributed.local(target.detach())
    bits = code.view(np.int16) if code.dtype in (np.uint16, np.float16) else code
    source = torch.from_numpy(np.ascontiguousarray(bits))
    if target.dtype in HALF:
        source = source.view(target.dtype)
    target.copy_(source.view(target.shape))
