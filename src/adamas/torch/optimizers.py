"""The classes that users make: torch's signatures, checked as torch checks them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adamas.keywords import Unpack
from adamas.torch import arguments, methods
from adamas.torch.arguments import PhaseArguments
from adamas.torch.optimizer import Optimizer, Params

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop"]


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as torch.optim.Adam; see there for the arguments.

    The phase's arguments (``clip_norm`` and on) are those of ``adamas.Phase``; ``copy_to`` is
    ``torch.bfloat16`` or ``torch.float16``, or tensors to keep as copies of the parameters.
    ``state``, ``rounding`` and ``offload`` are those of ``adamas.torch.Optimizer``.
    """

    _made_method = methods.Adam

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        super().__init__(params, _given(locals()), **phase)

    def _check(self, given: dict[str, Any]) -> None:
        foreach, capturable = given["foreach"], given["capturable"]
        arguments.refuse_foreach("lr", given["lr"], foreach, capturable)
        super()._check(given)
        given["betas"] = arguments.checked_betas_alike(given["betas"], foreach, capturable)
        arguments.check_fused(given["fused"], foreach, given["differentiable"])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW."""

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        options = _given(locals()) | {"decoupled_weight_decay": True}
        arguments.refuse_unknown(type(self), phase.keys() & {"decoupled_weight_decay"})
        super(Adam, self).__init__(params, options, **phase)  # which sorts them no second time

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; the decay stays decoupled, whatever an old one says."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class NAdam(Optimizer):
    """Adam with Nesterov's momentum and its schedule (Dozat 2016), as torch.optim.NAdam."""

    _made_method = methods.NAdam

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        super().__init__(params, _given(locals()), **phase)


class RAdam(Optimizer):
    """Adam with a rectified learning rate (Liu et al. 2020), as torch.optim.RAdam.

    ε is added to √v before its correction, as there.
    """

    _made_method = methods.RAdam

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        first = "lr", "betas", "eps", "weight_decay", "maximize", "foreach", "capturable"
        super().__init__(params, _given(locals(), first), **phase)


class RMSprop(Optimizer):
    """Gradients over the root of their mean square (Tieleman & Hinton 2012), as torch's RMSprop.

    With ``momentum`` or ``centered`` the formula is not that of the rule: such groups are stepped
    by torch's operations, one rounding each, without ``ema`` and ``statistics``.
    """

    _made_method = methods.RMSprop

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        defaults = _given(locals(), ("lr", "momentum", "alpha", "eps", "centered"))
        super().__init__(params, defaults, **phase)


class SGD(Optimizer):
    """Gradient descent with torch's momentum (a sum, not a mean), as torch.optim.SGD.

    Takes sparse gradients: without momentum, averages, copies and statistics nothing but their
    elements is read and written, otherwise they are made dense for the step.
    """

    _made_method = methods.SGD

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        super().__init__(params, _given(locals()), **phase)

    def _check(self, given: dict[str, Any]) -> None:
        super()._check(given)
        if given["nesterov"] and (given["momentum"] <= 0 or given["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        arguments.check_fused(given["fused"], given["foreach"], given["differentiable"])


def _given(names: dict[str, Any], first: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return torch's options, by name, of a constructor that has just begun: its ``locals()``.

    They have torch's order in groups, which is not that of the arguments in every class.
    """
    others = ("self", "params", "phase", "first", "__class__")
    return {name: names[name] for name in (*first, *names) if name not in others}
