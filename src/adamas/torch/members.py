"""The parameters that a step is about, each with what belongs to it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from adamas.torch import distributed, small

__all__ = ["Entries", "Member", "scalar"]


class Entries(NamedTuple):
    """Names of the entries of ``state[p]``; None where the method keeps no such entry."""

    step: str | None
    mean: str | None
    square: str | None
    largest_square: str | None
    ema: str | None
    header: str | None = None
    remainder: str | None = None


class Member(NamedTuple):
    """A parameter with what belongs to it; most often it has a gradient."""

    parameter: Tensor
    group: dict[str, Any]
    entries: Entries
    place: int  # among all parameters of all groups
    form: small.Form | None  # None: as torch stores it

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
    def rounds_means_by_chance(self) -> bool:
        """Whether m or v is stored in few bits, rounded by random bits."""
        form = self.form
        return form is not None and not form.is_dense and form.rounding != "nearest"

    @property
    def draws(self) -> bool:
        """Whether random bits are needed to store what belongs to the parameter."""
        by_chance = self.group.get("rounding") in ("stochastic", "remainder8")
        return self.rounds_means_by_chance or (self.is_half and by_chance)


def scalar(value: Any) -> float:
    """Return an option that may be a number or a tensor of one element as a float."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)
