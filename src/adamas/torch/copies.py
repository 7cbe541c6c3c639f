"""Copies of parameters in low precision: made, checked, and brought up to date.

A step writes the copies of all that it steps. What changes a parameter otherwise (a checkpoint, an
assignment, a new remainder) is not seen by any step, so copies are renewed where they are read, and
those of parameters that a step leaves out after it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adamas.torch import arguments, distributed, small
from adamas.torch.arguments import CopyTo
from adamas.torch.grouping import places_of
from adamas.torch.keeping import Keeping
from adamas.torch.tracking import Tracking

__all__ = ["Copies", "made"]


class Copies:
    """Copies of all parameters, in their order; of none, where none are asked for."""

    def __init__(self, copy_to: CopyTo | None = None) -> None:
        """Begin without copies, before the parameters are there."""
        self.tensors: list[Tensor] = []
        self._have_begun = False
        #: What new ones have; None where all were given.
        self.dtype = copy_to if isinstance(copy_to, torch.dtype) else None
        #: By place: what a parameter was when its copy was renewed outside of a step.
        self._renewed: dict[int, tuple[int, int]] = {}

    def begin(self, copy_to: CopyTo | None, parameters: Sequence[Tensor]) -> None:
        """Make copies, or take those that are given."""
        if copy_to is not None:
            self.tensors = made(copy_to, parameters)
            self._have_begun = True

    @property
    def given(self) -> CopyTo | None:
        """What copies are kept in; None where there are none."""
        return self.dtype or self.tensors or None

    @property
    def told(self) -> torch.dtype | str | None:
        """What is told of them where an optimizer is shown."""
        return self.dtype or (f"{len(self.tensors)} tensors" if self.tensors else None)

    def __getstate__(self) -> dict[str, Any]:
        """Return the copies; what was renewed outside of a step is renewed again."""
        return {**vars(self), "_renewed": {}}

    def doubt(self) -> None:
        """Renew all that no step writes with the next one: states may be others."""
        self._renewed.clear()

    def asked_of(self, group: dict[str, Any]) -> CopyTo | None:
        """Return what copies of a group that is added are to be; None where there are none.

        Raises ValueError where they would have to be given.
        """
        if not self._have_begun:
            return None
        given = arguments.checked_copy_to(group.get("copy_to"))
        if given is not None:
            return given
        if self.dtype is None:
            raise ValueError(
                "copy_to was given as tensors, so a group that is added needs some of its own: "
                "give it a tensor for each of its parameters under 'copy_to'."
            )
        return self.dtype

    def add(self, given: CopyTo | None, group: dict[str, Any]) -> None:
        """Take copies of the parameters of a group that was added, where there are any."""
        if given is not None:
            group.pop("copy_to", None)
            self.tensors = [*self.tensors, *made(given, group["params"], len(self.tensors))]

    def fit(self, parameters: Sequence[Tensor]) -> None:
        """Make copies for parameters that are new, or not what they were.

        Raises RuntimeError where one is missing that would have to be given.
        """
        copies = self.tensors
        if len(copies) == len(parameters) and all(map(_is_like, copies, parameters)):
            return
        dtype = self.dtype
        if dtype is None:
            raise RuntimeError(
                f"There are {len(parameters)} parameters, but the {len(copies)} tensors given as "
                "copy_to are not like them any more. Add parameters by add_param_group, with "
                "tensors for them under 'copy_to' in the group, or make a new optimizer."
            )
        known = [*copies, *[None] * len(parameters)]
        self.tensors = [
            copy if copy is not None and _is_like(copy, p) else p.detach().to(dtype, copy=True)
            for copy, p in zip(known, parameters, strict=False)
        ]

    def renew(
        self,
        groups: Iterable[dict[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        keeping: Keeping,
        tracking: Tracking,
        *,
        at_reading: Container[int] | None = None,
    ) -> None:
        """Bring copies up to date: at reading those in these places, else those no step writes."""
        for group, p, place in places_of(groups):
            if p.grad is not None and at_reading is None:
                continue
            now = (p._version, distributed.local(p.detach()).data_ptr())
            is_due = self._renewed.get(place) != now if at_reading is None else place in at_reading
            if is_due:
                keeps = keeping.remainder(group, p) is not None
                remainder = states.get(p, {}).get("remainder") if keeps else None
                with tracking.renewing(place):
                    _renew(self.tensors[place], p, remainder)
                self._renewed[place] = now


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
        if copy.shape != p.shape or not copy.is_floating_point():
            raise ValueError(
                f"copy_to[{i}] has shape {tuple(copy.shape)} and dtype {copy.dtype}, but "
                f"the parameter has shape {tuple(p.shape)}. Give a floating tensor like it."
            )
        if not _is_same_part(copy, p):
            raise ValueError(
                f"copy_to[{i}] has placements {getattr(copy, 'placements', None)}, but the "
                f"parameter has {getattr(p, 'placements', None)}, so this process has other "
                "elements of them. Lay it out as the parameter is."
            )
    return copies


def _renew(copy: Tensor, parameter: Tensor, remainder: Tensor | None) -> None:
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


def _is_same_part(copy: Tensor, parameter: Tensor) -> bool:
    """Return whether this process has the same elements of both; of a plain tensor, all."""
    if not _is_like(copy, parameter):
        return False
    if not (distributed.is_distributed(copy) and distributed.is_distributed(parameter)):
        return True
    own, other = (
        [distributed.listed(blocks).tolist() for blocks in distributed.own_blocks(each)]
        for each in (copy, parameter)
    )
    return own == other
