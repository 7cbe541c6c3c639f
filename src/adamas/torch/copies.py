"""Copies of parameters in low precision: made, checked, and brought up to date.

A step writes the copies of all that it steps. What changes a parameter otherwise (a checkpoint, an
assignment, a new remainder) is not seen by any step, so copies are renewed where they are read, and
those of parameters that a step leaves out after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adamas.torch import distributed, small

__all__ = ["fitted", "made", "renew"]

CopyTo = torch.dtype | Sequence[Tensor]


def made(copy_to: CopyTo, parameters: Sequence[Tensor], first: int = 0) -> list[Tensor]:
    """Return a copy for each parameter: new ones of a dtype, or the tensors that were given.

    ``first`` is the place of the first parameter among all. Raises ValueError where tensors are not
    like their parameters.
    """
    for i, p in enumerate(parameters, first):
        if p.is_complex():
            raise TypeError(
                f"copy_to was given, but parameter {i} has dtype {p.dtype}, and copies are of real "
                "numbers. Give complex parameters an optimizer of their own."
            )
    if isinstance(copy_to, torch.dtype):
        return [p.detach().to(copy_to, copy=True) for p in parameters]
    copies = [copy.detach() for copy in copy_to]
    if len(copies) != len(parameters):
        raise ValueError(
            f"copy_to has {len(copies)} tensors, but there are {len(parameters)} parameters. "
            "Give one for each, in the same order."
        )
    for i, (copy, p) in enumerate(zip(copies, parameters, strict=True), first):
        if not _is_like(copy, p) or not copy.is_floating_point():
            raise ValueError(
                f"copy_to[{i}] has shape {tuple(copy.shape)} and dtype {copy.dtype}, but "
                f"the parameter has shape {tuple(p.shape)}. Give a floating tensor like it."
            )
    return copies


def fitted(
    copies: list[Tensor], dtype: torch.dtype | None, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Return copies for the parameters that there are now, the same list where they still fit.

    ``dtype`` is what new ones have, None where all were given. Raises RuntimeError where one is
    missing that would have to be given.
    """
    if len(copies) == len(parameters) and all(map(_is_like, copies, parameters)):
        return copies
    if dtype is None:
        raise RuntimeError(
            f"There are {len(parameters)} parameters, but the {len(copies)} tensors given as "
            "copy_to are not like them any more. Add parameters by add_param_group, with tensors "
            "for them under 'copy_to' in the group, or make a new optimizer."
        )
    known = [*copies, *[None] * len(parameters)]
    return [
        copy if copy is not None and _is_like(copy, p) else p.detach().to(dtype, copy=True)
        for copy, p in zip(known, parameters, strict=False)
    ]


def renew(copy: Tensor, parameter: Tensor, remainder: Tensor | None) -> None:
    """Write the value of a parameter into its copy: the bits that a step leaves there."""
    with torch.no_grad():
        value = distributed.local(parameter.detach())
        if remainder is not None:
            value = small.decoded_parameter(value, distributed.local(remainder))
        distributed.local(copy).copy_(value)


def _is_like(copy: Tensor, parameter: Tensor) -> bool:
    return (
        copy.shape == parameter.shape
        and distributed.local(copy).shape == distributed.local(parameter).shape
    )
