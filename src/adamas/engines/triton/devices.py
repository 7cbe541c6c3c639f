"""What the engine takes: tensors on which devices, how they lie in memory, what a graph repeats.

Nothing here needs Triton: whoever steps tensors asks here before there is anything to compile.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = [
    "DEVICE_TYPES",
    "WHERE_TRITON_IS",
    "has_triton",
    "is_beside",
    "is_capturing",
    "is_dense",
    "laid_out",
    "refuse_capture",
    "takes",
]

#: Types of devices whose tensors the engine takes.
DEVICE_TYPES = ("cuda",)

#: For those who miss it.
WHERE_TRITON_IS = "It comes with PyTorch for CUDA on Linux; elsewhere try: pip install triton"

_NO_TRITON = (
    "CUDA parameters are stepped by plain torch operations, with the same bits but slower, since "
    f"Triton is not installed. {WHERE_TRITON_IS}"
)


def takes(device: torch.device) -> bool:
    """Return whether the engine steps tensors on a device.

    Where it would but for Triton, which is not installed, a warning says so once.
    """
    if device.type not in DEVICE_TYPES:
        return False
    if has_triton():
        return True
    # Of one place, whoever asks: that is what makes Python say it once.
    warnings.warn(_NO_TRITON, RuntimeWarning, stacklevel=1)
    return False


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def is_beside(step: Tensor, parameter: Tensor) -> bool:
    """Return whether the number of a step is kept where kernels that step a parameter read it."""
    return step.device == parameter.device


# -- memory --------------------------------------------------------------------------------------


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory, each at a place of its own."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size if size != 1 else 1
    return True


def laid_out(tensors: Sequence[Tensor | None], *, is_ordered: bool) -> list[Tensor | None]:
    """Return tensors of one shape that have their elements in the same order in memory.

    They are the given ones where those have: in C order, or in any where nothing depends on it
    (not ``is_ordered``). Else there are contiguous copies in place of those that need it.
    """
    present = [each for each in tensors if each is not None]
    layouts = {
        tuple(a for a, n in zip(x.stride(), x.shape, strict=True) if n != 1) for x in present
    }
    if not is_ordered and len(layouts) == 1 and is_dense(present[0]):
        return list(tensors)
    return [None if each is None else each.contiguous() for each in tensors]


# -- CUDA graphs ---------------------------------------------------------------------------------


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph records what is launched on a device now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(
    devices: Iterable[torch.device],
    *,
    host_steps: bool,
    given: bool,
    fresh: bool,
    waits: bool,
    moves: bool,
) -> None:
    """Raise RuntimeError where a CUDA graph is recorded of a step that it could not repeat."""
    if not any(map(is_capturing, devices)):
        return
    for is_so, why in (
        (host_steps, _HOST_STEPS),
        (fresh, _FRESH),
        (given, _GIVEN),
        (waits, _WAITS),
        (moves, _MOVES),
    ):
        if is_so:
            raise RuntimeError(f"A CUDA graph is being recorded, but {why}")


_HOST_STEPS = (
    "the numbers of the steps are counted on the host, so that each replay would make the same "
    "step. Create the optimizer with capturable=True."
)
_FRESH = "this would be the first step, which differs from all others. Make one before recording."
_GIVEN = (
    "this method takes the numbers of its steps on the host, so that each replay would make the "
    "same step. Use Adam, AdamW, RAdam or RMSprop, or make the step outside of the graph."
)
_MOVES = (
    "the norms that skip_above judges by are not on the device yet, so that each replay would send "
    "those of now. Make a step before recording."
)
_WAITS = 'on_nonfinite="raise" waits for the device at each step. Use on_nonfinite="skip".'
