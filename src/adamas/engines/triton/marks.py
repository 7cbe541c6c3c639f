"""Where marks of changed elements are set: see ``adamas.marks``.

One pass counts, so that the host knows how many there are, and one writes them: of 64 million
elements both read 8 MB, where a comparison with a copy in bfloat16 reads 256.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas.engines.triton.rule import OPTIONS

__all__ = ["count", "marked", "places"]

#: Elements of a word.
_WORD: tl.constexpr = tl.constexpr(32)
#: Words that one program looks at, and how many of them it takes apart at a time.
_WORDS: tl.constexpr = tl.constexpr(1024)
_AT_ONCE: tl.constexpr = tl.constexpr(64)


def marked(marks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the places of the bits that are set, ascending, on the device of the marks.

    It waits for the device, which has to say how many there are.
    """
    words = marks.numel()
    programs = -(-words // _WORDS.value)
    if not programs:
        return torch.empty(0, dtype=dtype, device=marks.device)
    counts = torch.empty(programs, dtype=torch.int64, device=marks.device)
    is_cuda = marks.device.type == "cuda"
    with torch.cuda.device(marks.device) if is_cuda else contextlib.nullcontext():
        _untyped(count)[(programs,)](marks, words, counts, **OPTIONS)
        ends = counts.cumsum(0)
        found = torch.empty(int(ends[-1].item()), dtype=dtype, device=marks.device)
        if found.numel():
            _untyped(places)[(programs,)](marks, words, counts, ends, found, **OPTIONS)
    return found


@triton.jit(do_not_specialize=["words"])
def count(marks, words, counts):
    """Write how many bits are set in the words of each program."""
    number = tl.program_id(0)
    at = number.to(tl.int64) * _WORDS + tl.arange(0, _WORDS)
    word = tl.load(marks + at, mask=at < words, other=0).to(tl.uint32, bitcast=True)
    # Of 2, 4 and 8 bits each, how many are set; then all four bytes are added in the highest.
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    tl.store(counts + number, tl.sum((word * 0x01010101 >> 24).to(tl.int32), axis=0).to(tl.int64))


@triton.jit(do_not_specialize=["words"])
def places(marks, words, counts, ends, found):
    """Write where bits are set: ``ends`` are the sums of ``counts`` up to each program."""
    number = tl.program_id(0)
    own = tl.load(counts + number)
    if own == 0:
        return
    into = found + (tl.load(ends + number) - own)
    first = number.to(tl.int64) * _WORDS
    for start in range(0, _WORDS, _AT_ONCE):
        at = first + start + tl.arange(0, _AT_ONCE)
        word = tl.load(marks + at, mask=at < words, other=0)
        bits = (word[:, None] >> tl.arange(0, _WORD)[None, :]) & 1
        bits = bits.reshape(_AT_ONCE * _WORD)
        upto = tl.cumsum(bits, axis=0)
        place = (first + start) * _WORD + tl.arange(0, _AT_ONCE * _WORD)
        tl.store(into + (upto - 1), place.to(found.dtype.element_ty), mask=bits != 0)
        into += tl.sum(bits, axis=0)


def _untyped(kernel: object) -> Any:
    """Return a kernel as it is: Triton's are not typed."""
    return kernel
