"""The parameters that a step is about, each with what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.state import Entries
from adamas.storage import Storage
from adamas.torch import distributed, small
from adamas.torch.operations import Tensors

__all__ = ["WIDE", "Member", "OwnStep", "scalar"]

#: What engines compute in.
WIDE = (torch.float32, torch.float64)

#: Steps one parameter of a group that follows another rule, given its parts of the state, and what
#: the gradient is to be multiplied by.
OwnStep = Callable[[Tensors, dict[str, Any], float], None]


class Member(NamedTuple):
    """A parameter with what belongs to it; most often it has a gradient."""

    parameter: Tensor
    group: dict[str, Any]
    place: int  # among all parameters of all groups
    state: dict[str, Any]  # of nobody, and empty, where nothing is kept
    #: In the state: of the count of steps, and of what is kept by role.
    step_name: str | None
    names: Entries
    form: small.Form | None  # None: as torch stores it
    is_offloaded: bool
    copy: Tensor | None
    own_step: OwnStep | None  # of a group that follows another rule
    #: Of this process's part, in the order in which it is flattened; None: no changes are tracked.
    marks: Tensor | None = None

    @property
    def has_gradient(self) -> bool:
        """Whether there is a gradient now."""
        return self.parameter.grad is not None

    @property
    def gradient(self) -> Tensor:
        """The gradient, as autograd left it."""
        gradient = self.parameter.grad
        assert gradient is not None
        return gradient

    @property
    def local_gradient(self) -> Tensor:
        """This process's part of the gradient, dense, laid out as the parameter is."""
        if self.gradient.is_sparse:
            return self.gradient.coalesce().to_dense()
        return distributed.local(distributed.laid_out_as(self.parameter, self.gradient))

    @property
    def is_half(self) -> bool:
        """Whether the parameter is in half precision."""
        return self.parameter.dtype in small.HALF

    @property
    def storage(self) -> Storage:
        """How it is stored."""
        rounding = self.group.get("rounding")
        return Storage(rounding=rounding) if self.form is None else self.form.storage

    @property
    def top(self) -> int:
        """What codes of m are counted from."""
        return self.state.get("top", 0)

    @property
    def rounds_parameter(self) -> bool:
        """Whether the parameter is stored otherwise than to nearest."""
        return self.is_half and self.storage.parameter_rounding != "nearest"

    @property
    def draws(self) -> bool:
        """Whether random bits are needed to store what belongs to the parameter."""
        storage = self.storage
        return storage.means_by_chance or (self.is_half and storage.parameters_by_chance)

    @property
    def step(self) -> Tensor | None:
        """The number of steps that were made; None where they are not counted."""
        return None if self.step_name is None else self.state[self.step_name]

    @property
    def wanted(self) -> set[str]:
        """The names of all that is kept."""
        return {name for name in (self.step_name, *self.names) if name}

    @property
    def is_new(self) -> bool:
        """Whether nothing of what is kept is there yet."""
        return not self.wanted & self.state.keys()

    @property
    def entries(self) -> Entries:
        """What is kept, by role."""
        return self.names.map(self.state.__getitem__)

    def parts(self) -> Iterator[Tensor]:
        """Yield this process's parts of the parameter and its state."""
        entries = (self.state[name] for name in (self.step_name, *self.names) if name)
        return map(distributed.local, (self.parameter, *entries))

    def with_dtypes(self) -> list[tuple[Tensor, torch.dtype]] | None:
        """Return parameter, gradient and entries, each with the dtype that the engines read.

        None where they follow another rule, compute in another dtype, or are on several devices.
        """
        p, form, names = self.parameter, self.form, self.names
        if self.own_step is not None or self.is_offloaded:
            return None
        if form is None and p.dtype not in WIDE:
            return None
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        mean, square = (wide, wide) if form is None else form.dtypes
        remainder = small.REMAINDERS.get(self.storage.parameter_rounding, wide)
        dtypes = Entries(mean, square, wide, wide, None, remainder)
        stored = [(p, p.dtype)]
        if self.has_gradient:
            stored.append((self.gradient, p.dtype))
        pairs = zip(names, dtypes, strict=True)
        return stored + [(self.state[name], dtype) for name, dtype in pairs if name and dtype]


def scalar(value: Any) -> float:
    """Return an option that may be a number or a tensor of one element as a float."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)
