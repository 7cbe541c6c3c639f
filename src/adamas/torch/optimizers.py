"""The methods: what each takes from torch, keeps as state, and means in numbers of the rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adamas.coefficients import Coefficients, one_minus_power
from adamas.keywords import Unpack
from adamas.options import Options
from adamas.torch import arguments
from adamas.torch.arguments import PhaseArguments
from adamas.torch.base import Optimizer, Params
from adamas.torch.gradients import refuse_sparse
from adamas.torch.members import Entries, Member, scalar
from adamas.torch.operations import Tensors, step_rmsprop
from adamas.torch.storage import Kept

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RMSprop"]


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as torch.optim.Adam; see there for the arguments.

    The phase's arguments (``clip_norm`` and on) are those of :class:`adamas.Phase`; ``copy_to`` is
    ``torch.bfloat16`` or ``torch.float16``, or tensors to keep as copies of the parameters.
    ``state``, ``rounding`` and ``offload`` are those of :class:`adamas.torch.Optimizer`.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        """Check the arguments as torch does."""
        arguments.check_tensor_lr(lr, foreach, capturable)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        arguments.check_options(defaults)
        defaults["betas"] = arguments.checked_betas_alike(betas, foreach, capturable)
        arguments.check_fused(fused, foreach, differentiable)
        super().__init__(params, defaults, **phase)

    def _entries(self, group: dict[str, Any]) -> Entries:
        largest = "max_exp_avg_sq" if group["amsgrad"] else None
        return Entries("step", "exp_avg", "exp_avg_sq", largest, None)

    def _kept(self, group: dict[str, Any]) -> Kept:
        # torch leaves the largest square where it is when amsgrad is turned off.
        return super()._kept(group)._replace(tensors=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))

    def _options(self, group: dict[str, Any]) -> Options | None:
        beta1, beta2 = group["betas"]
        return Options(
            betas=(scalar(beta1), scalar(beta2)),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            decay="decoupled" if group["decoupled_weight_decay"] else "l2",
            amsgrad=bool(group["amsgrad"]),
            maximize=bool(group["maximize"]),
        )


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
        """Check the arguments as torch does."""
        arguments.refuse_unknown(type(self), phase.keys() & {"decoupled_weight_decay"})
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **phase,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; the decay stays decoupled, whatever an old one says."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class NAdam(Optimizer):
    """Adam with Nesterov's momentum and its schedule (Dozat 2016), as torch.optim.NAdam."""

    _has_more_state = True

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
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **phase: Unpack[PhaseArguments],
    ) -> None:
        """Check the arguments as torch does."""
        arguments.check_tensor_lr(lr)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        arguments.check_options(defaults)
        super().__init__(params, defaults, **phase)

    def _entries(self, group: dict[str, Any]) -> Entries:  # noqa: ARG002
        return Entries("step", "exp_avg", "exp_avg_sq", None, None)

    def _kept(self, group: dict[str, Any]) -> Kept:
        kept = super()._kept(group)
        return kept._replace(
            numbers=(*kept.numbers, "mu_product"), needed=(*kept.needed, "mu_product")
        )

    def _options(self, group: dict[str, Any]) -> Options | None:  # noqa: ARG002
        return None

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = super()._new_state(parameter, group)
        step = state.pop("step")
        return {"step": step, "mu_product": torch.ones_like(step), **state}

    def _counts(self, member: Member) -> tuple[str, ...]:
        return (*super()._counts(member), "mu_product")

    def _cohort_key(self, member: Member) -> tuple[Any, ...]:
        return (*super()._cohort_key(member), float(self.state[member.parameter]["mu_product"]))

    def _numbers(self, member: Member) -> Coefficients:
        group, state = member.group, self.state[member.parameter]
        beta1, beta2 = map(scalar, group["betas"])
        lr, decay = scalar(group["lr"]), scalar(group["weight_decay"])
        step = self._step_number(member)
        now, following = _nadam_momentum(group, step), _nadam_momentum(group, step + 1)
        product = torch.mul(state["mu_product"], now).item()  # in the dtype torch keeps it in
        unbias2 = one_minus_power(beta2, step)
        decoupled = group["decoupled_weight_decay"]
        return Coefficients(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            l2=0.0 if decoupled else decay,
            decay=lr * decay if decoupled else 0.0,
            keep1=beta1,
            take1=1.0 - beta1,
            keep2=beta2,
            take2=1.0 - beta2,
            from_m=following / (1.0 - product * following),
            from_g=(1.0 - now) / (1.0 - product),
            root=1.0 / unbias2**0.5,
            inner=0.0,
            eps=scalar(group["eps"]),
            step=lr,
        )

    def _after_step(self, member: Member) -> None:
        state = self.state[member.parameter]
        state["mu_product"] *= _nadam_momentum(member.group, int(state["step"].item()))


class RMSprop(Optimizer):
    """Gradients over the root of their mean square (Tieleman & Hinton 2012), as torch's RMSprop.

    With ``momentum`` or ``centered`` the formula is not that of the rule: such groups are stepped
    by torch's operations, one rounding each, without ``ema`` and ``statistics``.
    """

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
        """Check the arguments as torch does."""
        arguments.check_tensor_lr(lr)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        arguments.check_options(defaults)
        super().__init__(params, defaults, **phase)

    def _entries(self, group: dict[str, Any]) -> Entries:  # noqa: ARG002
        return Entries("step", None, "square_avg", None, None)

    def _kept(self, group: dict[str, Any]) -> Kept:
        kept = super()._kept(group)
        asked = {"momentum_buffer": scalar(group["momentum"]) > 0, "grad_avg": group["centered"]}
        return kept._replace(
            tensors=(*kept.tensors, *asked),
            needed=(*kept.needed, *(name for name, is_asked in asked.items() if is_asked)),
        )

    def _options(self, group: dict[str, Any]) -> Options | None:
        if scalar(group["alpha"]) >= 1:  # torch lets it pass; no decay rate of ours
            return None
        return Options(
            betas=(None, scalar(group["alpha"])),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            bias_correction="none",
            maximize=bool(group["maximize"]),
        )

    def _numbers(self, member: Member) -> Coefficients:
        group = member.group
        alpha = scalar(group["alpha"])
        return _PLAIN._replace(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            l2=scalar(group["weight_decay"]),
            keep2=alpha,
            take2=1.0 - alpha,
            eps=scalar(group["eps"]),
            step=scalar(group["lr"]),
        )

    def _prepare_state(self, member: Member) -> None:
        super()._prepare_state(member)
        parameter, group = member.parameter, member.group
        state = self.state[parameter]
        wanted = (("momentum_buffer", group["momentum"] > 0), ("grad_avg", group["centered"]))
        for name, is_wanted in wanted:
            if is_wanted and state.get(name) is None:  # one may have been set in a run
                like = state["square_avg"]  # in float32 where the parameter is too narrow for it
                state[name] = torch.zeros_like(like, memory_format=torch.preserve_format)

    def _is_special(self, group: dict[str, Any]) -> bool:
        return bool(group["centered"]) or group["momentum"] > 0

    def _step_specially(
        self, tensors: Tensors, state: dict[str, Any], group: dict[str, Any], factor: float
    ) -> None:
        options = {name: scalar(value) for name, value in group.items() if name in _RMSPROP}
        step_rmsprop(tensors, state, options, -factor if group["maximize"] else factor)
        state["step"] += 1


class SGD(Optimizer):
    """Gradient descent with torch's momentum (a sum, not a mean), as torch.optim.SGD.

    Takes sparse gradients: without momentum, averages, copies and statistics nothing but their
    elements is read and written, otherwise they are made dense for the step.
    """

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
        """Check the arguments as torch does."""
        arguments.check_tensor_lr(lr)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        arguments.check_options(defaults)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        arguments.check_fused(fused, foreach, differentiable)
        super().__init__(params, defaults, **phase)

    def _entries(self, group: dict[str, Any]) -> Entries:
        mean = "momentum_buffer" if group["momentum"] != 0 else None
        # Only random bits need to know which step it is.
        step = "step" if "state" in group or "rounding" in group else None
        return Entries(step, mean, None, None, None)

    def _kept(self, group: dict[str, Any]) -> Kept:
        # A buffer begins with the first gradient, so there may be none yet.
        tensors, numbers = ("momentum_buffer",), ("step",)
        return super()._kept(group)._replace(tensors=tensors, numbers=numbers, needed=())

    def _options(self, group: dict[str, Any]) -> Options | None:  # noqa: ARG002
        return None

    def _refuse_sparse(self, member: Member, name: str) -> None:
        is_offloaded = self._is_offloaded(member.parameter)
        refuse_sparse(name, member.group, is_offloaded=is_offloaded)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = super()._new_state(parameter, group)
        if "step" in state and self.state[parameter].get("momentum_buffer") is not None:
            state["step"] += 1  # torch's state does not count
        return state

    def _numbers(self, member: Member) -> Coefficients:
        group = member.group
        momentum = scalar(group["momentum"])
        first = self._step_number(member) == 1  # the first gradient is the buffer, undampened
        return _PLAIN._replace(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            l2=scalar(group["weight_decay"]),
            keep1=0.0 if first else momentum,
            take1=1.0 if first else 1.0 - scalar(group["dampening"]),
            from_m=momentum if group["nesterov"] else 1.0,
            from_g=1.0 if group["nesterov"] else 0.0,
            step=scalar(group["lr"]),
        )


_RMSPROP = frozenset(("lr", "alpha", "eps", "weight_decay", "momentum"))

#: The numbers of a method that keeps nothing and scales nothing.
_PLAIN = Coefficients(
    grad_scale=1.0,
    l2=0.0,
    decay=0.0,
    keep1=0.0,
    take1=1.0,
    keep2=0.0,
    take2=1.0,
    from_m=1.0,
    from_g=0.0,
    root=1.0,
    inner=0.0,
    eps=0.0,
    step=0.0,
)


def _nadam_momentum(group: dict[str, Any], step: int) -> float:
    """Return μ of ``step``: β1 on its way up from half of it (Dozat 2016, section 2.2)."""
    beta1 = scalar(group["betas"][0])
    return beta1 * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))
