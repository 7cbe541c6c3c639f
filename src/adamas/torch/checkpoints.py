"""An optimizer for torch.distributed.checkpoint, with its state as it is stored.

``get_optimizer_state_dict`` and its kin ask an optimizer for its groups, its state and its
state_dict. ``Packed`` answers with codes in place of numbers, under a name that tells their form:
no file of codes is loaded as if it had numbers or codes of another form, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from adamas.checks import kind
from adamas.state import Entries
from adamas.torch.loading import PACKED, folded
from adamas.torch.optimizer import Optimizer

__all__ = ["Packed"]


class Packed(torch.optim.Optimizer):
    """An optimizer as torch.distributed.checkpoint is to save and load it: as it is stored.

    Takes the place of the optimizer in ``get_optimizer_state_dict``, ``set_optimizer_state_dict``,
    ``get_state_dict`` and ``set_state_dict``, with all of their options. It has nothing of its own.
    Tensors of which a block of 8-bit codes is cut are refused with ValueError: save those dense.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Take an optimizer of adamas.torch; torch's own initialisation is not for this."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Packed was given {kind(optimizer)}, but it must be an optimizer of adamas.torch. "
                "Give others to torch.distributed.checkpoint as they are."
            )
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer itself."""
        return self._optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the optimizer itself."""
        return self._optimizer.defaults

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """The state in the form of ``state_dict``, to be looked at."""
        return _Shown(self._optimizer)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Return groups and state, the latter under names such as "packed_state_8bit"."""
        saved = self._optimizer.state_dict(packed=True)
        states = saved.pop(PACKED)
        for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
            entries = _entries(self._optimizer, own)
            for i in group["params"]:
                if i in states:
                    states[i] = folded(states[i], entries)
        return {"state": states, **saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this or the optimizer itself has returned."""
        self._optimizer.load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the optimizer itself."""
        return self._optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do so for the optimizer itself."""
        self._optimizer.zero_grad(set_to_none)

    def __repr__(self) -> str:
        """Return the text of the optimizer, in brackets."""
        return f"Packed({self._optimizer!r})"


def _entries(optimizer: Optimizer, group: dict[str, Any]) -> Entries:
    return optimizer._method.names(group)[1]  # pyright: ignore[reportPrivateUsage]


class _Shown(Mapping[Tensor, dict[str, Any]]):
    """The state of an optimizer, each parameter's under the name that tells its form."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._state = optimizer.state
        self._optimizer = optimizer

    def __getitem__(self, parameter: Tensor) -> dict[str, Any]:
        group = next(
            group
            for group in self._optimizer.param_groups
            if any(p is parameter for p in group["params"])
        )
        return folded(self._state[parameter], _entries(self._optimizer, group))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
