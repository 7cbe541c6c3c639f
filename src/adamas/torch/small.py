"""Small forms of the running means of torch parameters: what stands in ``state[p]``.

Codes are tensors of the parameter's shape: bfloat16 where the form is "bfloat16" (and for v,
"compact"), uint8 or int8 else; with "8bit" an entry ``header`` (int16) has one number for each
block of 32 elements. ``top`` is what codes of m are counted from (:func:`adamas.codecs.mean_top`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas import codecs
from adamas.codecs import Codes, Key
from adamas.options import Options

__all__ = ["Form", "form_of", "made_small", "refuse"]

_MEANS = {"bfloat16": torch.bfloat16, "compact": torch.uint8, "8bit": torch.int8}
_SQUARES = {"bfloat16": torch.bfloat16, "compact": torch.bfloat16, "8bit": torch.uint8}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

State = dict[str, Any]


class Form(NamedTuple):
    """How one group stores its running means."""

    mean: str
    square: str
    rounding: str | None
    has_header: bool
    #: For a state that is created now.
    top: int

    @property
    def _forms(self) -> tuple[str, str]:
        return self.mean, self.square

    def fits(self, p: Tensor, state: State, mean: str | None, square: str | None) -> bool:
        """Return whether the native engine can read what is stored."""
        wanted = ((mean, _MEANS.get(self.mean)), (square, _SQUARES.get(self.square)))
        entries = [(state[n], dtype or torch.float32) for n, dtype in wanted if n is not None]
        is_plain = all(
            type(each) is Tensor
            and each.is_cpu
            and each.is_contiguous()
            and each.dtype == dtype
            and each.shape == p.shape
            for each, dtype in entries
        )
        return is_plain and (not self.has_header or state["header"].is_cpu)

    def decoded(
        self, state: State, mean: str | None, square: str | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return m and v as new float32 tensors on the device of the state."""
        codes = Codes(
            None if mean is None else _codes_of(state[mean], self.mean),
            None if square is None else _codes_of(state[square], self.square),
            _header_of(state["header"]) if self.has_header else None,
        )
        found = codecs.decode(self._forms, codes, state["top"])
        likes = (None if name is None else state[name] for name in (mean, square))
        m, v = (
            None if like is None else torch.tensor(each).view(like.shape).to(like.device)
            for like, each in zip(likes, found, strict=True)
        )
        return m, v

    def store(
        self,
        state: State,
        mean: str | None,
        square: str | None,
        values: tuple[Tensor | None, Tensor | None],
        key: Key | None,
    ) -> None:
        """Store m and v: rounded by the random bits of ``key``, or to nearest without."""
        m, v = (None if each is None else _flat(each) for each in values)
        count = next(each.size for each in (m, v) if each is not None)
        by_chance = key is not None and self.rounding != "nearest"
        random = codecs.random_bits(key, 0, count) if by_chance and key is not None else None
        codes = codecs.encode(self._forms, m, v, random, state["top"])
        for name, code in ((mean, codes.mean), (square, codes.square)):
            if name is not None and code is not None:
                _put(state[name], code)
        if self.has_header:
            assert codes.header is not None
            _put(state["header"], codes.header)

    def dense(self, state: State, mean: str | None, square: str | None) -> State:
        """Return a state as torch has it: m and v in float32."""
        pairs = zip((mean, square), self.decoded(state, mean, square), strict=True)
        values = {name: value for name, value in pairs if name is not None}
        return {
            name: values.get(name, entry)
            for name, entry in state.items()
            if name not in ("header", "top")
        }

    def pack(self, state: State, mean: str | None, square: str | None) -> None:
        """Turn a dense state into codes, in place; nothing is lost where it came from codes."""
        values = tuple(None if name is None else state[name] for name in (mean, square))
        made_small(state, mean, square, self)
        self.store(state, mean, square, (values[0], values[1]), None)


def form_of(options: Options) -> Form | None:
    """Return how ``options`` store m and v; None where they are stored as they are."""
    if options.forms == ("float32", "float32"):
        return None
    mean, square = options.forms
    beta1, beta2 = options.betas
    return Form(
        mean,
        square,
        options.rounding,
        (options.has_mean and mean == "8bit") or (options.has_square and square == "8bit"),
        0 if beta1 is None or beta2 is None else codecs.mean_top(beta1, beta2),
    )


def made_small(state: State, mean: str | None, square: str | None, form: Form | None) -> State:
    """Put zeros in a small form in place of m and v; return the same ``state``."""
    if form is None:
        return state
    like = next(state[name] for name in (mean, square) if name is not None)
    wanted = ((mean, _MEANS.get(form.mean)), (square, _SQUARES.get(form.square)))
    for name, dtype in wanted:
        if name is not None:
            state[name] = torch.zeros(like.shape, dtype=dtype or torch.float32, device=like.device)
    if form.has_header:
        blocks = -(-like.numel() // codecs.BLOCK)
        state["header"] = torch.zeros(blocks, dtype=torch.int16, device=like.device)
    state["top"] = form.top
    return state


def refuse(parameter: Tensor, is_special: bool) -> None:
    """Raise TypeError or ValueError for what cannot have a small state."""
    if is_special:
        raise ValueError(
            "Small forms of state belong to the rule, but RMSprop with momentum or centered "
            'follows another. Use state="float32" for this group.'
        )
    if parameter.dtype not in _DTYPES:
        raise TypeError(
            f"A parameter has dtype {parameter.dtype}, but small forms of state are for float32, "
            'bfloat16 and float16. Give it a group of its own with state="float32".'
        )
    if hasattr(parameter, "device_mesh"):
        raise TypeError(
            "A parameter is a DTensor, for which there are no small forms of state yet. "
            'Give it a group of its own with state="float32".'
        )


def _codes_of(tensor: Tensor, form: str) -> Any:
    flat = tensor.detach().reshape(-1).cpu()
    if tensor.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    return _flat(flat) if form == "float32" else flat.numpy()


def _header_of(tensor: Tensor) -> Any:
    return tensor.cpu().numpy().view(np.uint16)


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().reshape(-1).to("cpu", torch.float32).numpy()


def _put(target: Tensor, code: Any) -> None:
    """Copy codes into an entry, bit for bit."""
    bits = code.view(np.int16) if code.dtype == np.uint16 else code
    source = torch.from_numpy(np.ascontiguousarray(bits))
    if target.dtype == torch.bfloat16:
        source = source.view(torch.bfloat16)
    target.copy_(source.view(target.shape))
