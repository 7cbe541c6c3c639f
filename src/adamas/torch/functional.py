"""Steps as functions, for engines that own parameters, gradients and state themselves.

    from adamas.torch.functional import adamw

    adamw(params, grads, exp_avgs, exp_avg_sqs, [], state_steps, amsgrad=False,
          beta1=0.9, beta2=0.999, lr=3e-4, weight_decay=0.01, eps=1e-8, maximize=False)

Each has the signature of torch 2.13's function of that name (``torch.optim.adamw.adamw``), changes
parameters and state in place, and gives the bits of the class of ``adamas.torch``. Lists have one
tensor for each parameter that has a gradient; those that options leave unused may be empty. All
plain, contiguous tensors on the CPU are stepped by one call of the native engine, others by
PyTorch's operations. Of sharded tensors (DTensor) each process steps its parts, beside plain ones;
state has the mesh and the placements of its parameter, and a gradient with other placements is
redistributed. Parts may be given as plain tensors, too.

``foreach``, ``fused``, ``capturable``, ``has_complex`` and ``has_sparse_grad`` choose in torch how
a step is computed; here they change nothing. ``grad_scale`` and ``found_inf`` are taken as torch's
fused step takes them: gradients are left divided by the scale, and nothing changes where
``found_inf`` is not 0. Gradients that share memory with parameters or state cannot be left so, and
are refused. Whatever is wrong raises before anything is touched.

The next call with the same state tensors costs least. What was found out about them is kept, and
with it their memory and that of the parameters, until a call is given others in their place, or
the first of ``state_steps`` (for ``sgd``, of ``momentum_buffer_list``) is no more.

What has changed is not tracked here: marks belong to an optimizer (``track_changes``).
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor

from adamas.checks import kind
from adamas.torch import lists, methods
from adamas.torch.given import Given, Listed, check_is_number
from adamas.torch.numbers import UNSCALED, Scaling

__all__ = ["adam", "adamw", "nadam", "radam", "rmsprop", "sgd"]

_ADAM, _NADAM = methods.Adam("adam"), methods.NAdam("nadam")
_ADAMW, _RADAM = methods.Adam("adamw"), methods.RAdam("radam")
_RMSPROP, _SGD = methods.RMSprop("rmsprop"), methods.SGD("sgd")


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,  # noqa: ARG001
    capturable: bool = False,  # noqa: ARG001
    differentiable: bool = False,
    fused: bool | None = None,  # noqa: ARG001
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,  # noqa: ARG001
    decoupled_weight_decay: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """Make one step of Adam in place, as torch.optim.adam.adam."""
    listed = _of_adam(exp_avgs, exp_avg_sqs, max_exp_avg_sqs if amsgrad else None, state_steps)
    options = {
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "decoupled_weight_decay": decoupled_weight_decay,
        "differentiable": differentiable,
    }
    given = Given(_ADAM, params, Listed("grads", grads), listed, options, lr)
    lists.step(given, _scaling(grad_scale, found_inf))


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,  # noqa: ARG001
    capturable: bool = False,  # noqa: ARG001
    differentiable: bool = False,
    fused: bool | None = None,  # noqa: ARG001
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,  # noqa: ARG001
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """Make one step of AdamW in place, as torch.optim.adamw.adamw."""
    listed = _of_adam(exp_avgs, exp_avg_sqs, max_exp_avg_sqs if amsgrad else None, state_steps)
    options = {
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "decoupled_weight_decay": True,
        "differentiable": differentiable,
    }
    given = Given(_ADAMW, params, Listed("grads", grads), listed, options, lr)
    lists.step(given, _scaling(grad_scale, found_inf))


def nadam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    mu_products: list[Tensor],
    state_steps: list[Tensor],
    decoupled_weight_decay: bool = False,
    foreach: bool | None = None,  # noqa: ARG001
    capturable: bool = False,  # noqa: ARG001
    differentiable: bool = False,
    has_complex: bool = False,  # noqa: ARG001
    maximize: bool = False,
    *,
    beta1: float,
    beta2: float,
    lr: float,
    weight_decay: float,
    momentum_decay: float,
    eps: float,
) -> None:
    """Make one step of NAdam in place, as torch.optim.nadam.nadam."""
    listed = {
        "step": Listed("state_steps", state_steps),
        "mu_product": Listed("mu_products", mu_products),
        "exp_avg": Listed("exp_avgs", exp_avgs),
        "exp_avg_sq": Listed("exp_avg_sqs", exp_avg_sqs),
    }
    options = {
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum_decay": momentum_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "differentiable": differentiable,
    }
    lists.step(Given(_NADAM, params, Listed("grads", grads), listed, options, lr), UNSCALED)


def radam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    decoupled_weight_decay: bool = False,
    foreach: bool | None = None,  # noqa: ARG001
    differentiable: bool = False,
    capturable: bool = False,  # noqa: ARG001
    has_complex: bool = False,  # noqa: ARG001
    maximize: bool = False,
    *,
    beta1: float,
    beta2: float,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Make one step of RAdam in place, as torch.optim.radam.radam."""
    listed = _of_adam(exp_avgs, exp_avg_sqs, None, state_steps)
    options = {
        "betas": (beta1, beta2),
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "differentiable": differentiable,
    }
    lists.step(Given(_RADAM, params, Listed("grads", grads), listed, options, lr), UNSCALED)


def rmsprop(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    grad_avgs: list[Tensor],
    momentum_buffer_list: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,  # noqa: ARG001
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,  # noqa: ARG001
    has_complex: bool = False,  # noqa: ARG001
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> None:
    """Make one step of RMSprop in place, as torch.optim.rmsprop.rmsprop."""
    listed = {
        "step": Listed("state_steps", state_steps),
        "square_avg": Listed("square_avgs", square_avgs),
    }
    if momentum > 0:
        listed["momentum_buffer"] = Listed("momentum_buffer_list", momentum_buffer_list)
    if centered:
        listed["grad_avg"] = Listed("grad_avgs", grad_avgs)
    options = {
        "alpha": alpha,
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "centered": centered,
        "maximize": maximize,
        "differentiable": differentiable,
    }
    lists.step(Given(_RMSPROP, params, Listed("grads", grads), listed, options, lr), UNSCALED)


def sgd(
    params: list[Tensor],
    d_p_list: list[Tensor],
    momentum_buffer_list: list[Tensor | None],
    has_sparse_grad: bool = False,  # noqa: ARG001
    foreach: bool | None = None,  # noqa: ARG001
    fused: bool | None = None,  # noqa: ARG001
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    weight_decay: float,
    momentum: float,
    lr: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Make one step of SGD in place, as torch.optim.sgd.sgd.

    With momentum, buffers that are None begin with this gradient, and are put into
    ``momentum_buffer_list``.
    """
    listed: dict[str, Listed] = {}
    if momentum != 0:
        listed["momentum_buffer"] = Listed("momentum_buffer_list", momentum_buffer_list, True)
    options = {
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    given = Given(_SGD, params, Listed("d_p_list", d_p_list), listed, options, lr)
    lists.step(given, _scaling(grad_scale, found_inf))


def _of_adam(
    means: list[Tensor], squares: list[Tensor], largest: list[Tensor] | None, steps: list[Tensor]
) -> dict[str, Listed]:
    """Return what Adam keeps, by its names in the state of the class."""
    listed = {
        "step": Listed("state_steps", steps),
        "exp_avg": Listed("exp_avgs", means),
        "exp_avg_sq": Listed("exp_avg_sqs", squares),
    }
    if largest is not None:
        listed["max_exp_avg_sq"] = Listed("max_exp_avg_sqs", largest)
    return listed


def _scaling(grad_scale: Any, found_inf: Any) -> Scaling:
    if grad_scale is None and found_inf is None:
        return UNSCALED
    for name, value in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        if isinstance(value, Tensor):
            check_is_number(name, value)
        elif value is not None and not isinstance(value, Real):
            raise TypeError(
                f"{name} is {kind(value)}, but it must be a real tensor of one element, or None."
            )
    return Scaling(grad_scale, found_inf)
