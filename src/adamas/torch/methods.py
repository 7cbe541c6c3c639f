"""The methods: what each keeps as state, and what a step of it means in numbers of the rule.

A method knows groups, members and their states, and never the optimizer. Adam, RAdam and RMSprop
have options, from which engines take the numbers of their steps themselves; NAdam and SGD, whose
formulas the options do not know, say the numbers of each step.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from adamas.codecs import mean_top
from adamas.coefficients import Coefficients, one_minus_power, rectification
from adamas.options import Decay, Options
from adamas.state import Entries
from adamas.torch import decays
from adamas.torch.members import Member, OwnStep, scalar
from adamas.torch.operations import Tensors, step_rmsprop
from adamas.torch.storage import Kept

__all__ = ["SGD", "Adam", "Method", "NAdam", "RAdam", "RMSprop"]

Group = dict[str, Any]
State = dict[str, Any]


class Method:
    """What is asked of a method; the answers are those of most."""

    #: Whether the state has entries that the rule does not know, which ``stepped`` brings up
    #: to date.
    has_more_state = False
    #: Whether sparse gradients may be stepped.
    takes_sparse = False

    def __init__(self, name: str) -> None:
        """Take the name of the class, for errors."""
        self.name = name

    def names(self, group: Group) -> tuple[str | None, Entries]:
        """Return what ``group`` calls the count of steps, and what is kept by role."""
        raise NotImplementedError

    def kept(self, group: Group) -> Kept:
        """Return which entries parameters of ``group`` may have, and which they must have."""
        step, names = self.names(group)
        tensors = tuple(filter(None, names))
        numbers = () if step is None else (step,)
        return Kept(self.name, names, tensors, numbers, needed=(*numbers, *tensors))

    def top(self, group: Group) -> int:
        """Return what codes of m are counted from, where m is relative to v."""
        _, names = self.names(group)
        if names.mean is None or names.square is None:
            return 0
        beta1, beta2 = map(scalar, group["betas"])
        return mean_top(beta1, beta2)

    def usual_decay(self, group: Group) -> Decay:
        """Return how parameters of ``group`` decay where its ``decay`` does not say it."""
        return "decoupled" if group.get("decoupled_weight_decay") else "l2"

    def options(self, group: Group) -> Options | None:  # noqa: ARG002
        """Return the options of ``group`` as adamas has them, or None: see ``numbers``."""
        return None

    def numbers(self, member: Member, step: int) -> Coefficients:
        """Return the numbers of the coming step, for groups that have no options."""
        raise NotImplementedError

    def square_at_eps(self, group: Group, step: int) -> float | None:  # noqa: ARG002
        """Return what v is below where √v̂ < ε, after so many steps; None where there is no v."""
        return None

    def cohort(self, member: Member) -> Hashable:  # noqa: ARG002
        """Return what members of a group at the same step have in common, if their numbers are."""
        return None

    def counts(self, member: Member) -> tuple[str, ...]:
        """Return the names of the entries that the numbers of a step are taken from."""
        return () if member.step_name is None else (member.step_name,)

    def created(self, state: State, before: State) -> State:  # noqa: ARG002
        """Return a state before the first step, with what else is kept; ``before`` is there yet."""
        return state

    def complete(self, group: Group, state: State) -> None:
        """Create what options that were set in a run ask for, in a state that has all else."""

    def stepped(self, member: Member) -> None:
        """Bring entries that the rule does not know up to date after a step."""

    def own_step(self, group: Group) -> OwnStep | None:  # noqa: ARG002
        """Return what steps a group that follows another rule; None where it follows ours."""
        return None


class Adam(Method):
    """Adam (Kingma & Ba 2015), and AdamW (Loshchilov & Hutter 2019) where decay is decoupled."""

    def names(self, group: Group) -> tuple[str | None, Entries]:
        """Return torch's names."""
        largest = "max_exp_avg_sq" if group.get("amsgrad") else None
        return "step", Entries("exp_avg", "exp_avg_sq", largest)

    def kept(self, group: Group) -> Kept:
        """Allow a largest square, which torch leaves where it is when amsgrad is turned off."""
        kept = super().kept(group)
        return kept._replace(tensors=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))

    def square_at_eps(self, group: Group, step: int) -> float | None:
        """Return ε² in units of v, which is too small by 1 - β2^t."""
        eps, beta2 = scalar(group["eps"]), scalar(group["betas"][1])
        return eps * eps * one_minus_power(beta2, step)

    def options(self, group: Group) -> Options | None:
        """Return what torch's options mean."""
        beta1, beta2 = group["betas"]
        return Options(
            betas=(scalar(beta1), scalar(beta2)),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            **decays.options(group, self.usual_decay(group)),
            amsgrad=bool(group["amsgrad"]),
            maximize=bool(group["maximize"]),
        )


class RAdam(Method):
    """Adam with a rectified learning rate (Liu et al. 2020)."""

    def names(self, group: Group) -> tuple[str | None, Entries]:  # noqa: ARG002
        """Return torch's names."""
        return "step", Entries("exp_avg", "exp_avg_sq")

    def square_at_eps(self, group: Group, step: int) -> float | None:
        """Return ε², since torch adds ε to √v before its correction; 0 where nothing is divided."""
        eps, beta2 = scalar(group["eps"]), scalar(group["betas"][1])
        return eps * eps if rectification(beta2, step) else 0.0

    def options(self, group: Group) -> Options | None:
        """Return what torch's options mean."""
        beta1, beta2 = group["betas"]
        return Options(
            betas=(scalar(beta1), scalar(beta2)),
            eps=scalar(group["eps"]),
            eps_place="uncorrected",
            weight_decay=scalar(group["weight_decay"]),
            **decays.options(group, self.usual_decay(group)),
            rectify=True,
            maximize=bool(group["maximize"]),
        )


class NAdam(Method):
    """Adam with Nesterov's momentum and its schedule (Dozat 2016)."""

    has_more_state = True

    def names(self, group: Group) -> tuple[str | None, Entries]:  # noqa: ARG002
        """Return torch's names."""
        return "step", Entries("exp_avg", "exp_avg_sq")

    def kept(self, group: Group) -> Kept:
        """Ask for the product of momenta besides."""
        kept = super().kept(group)
        return kept._replace(
            numbers=(*kept.numbers, "mu_product"), needed=(*kept.needed, "mu_product")
        )

    def square_at_eps(self, group: Group, step: int) -> float | None:
        """Return ε² in units of v, which is too small by 1 - β2^t."""
        eps, beta2 = scalar(group["eps"]), scalar(group["betas"][1])
        return eps * eps * one_minus_power(beta2, step)

    def numbers(self, member: Member, step: int) -> Coefficients:
        """Return Adam's numbers, with momenta of a schedule in place of powers of β1."""
        group = member.group
        beta1, beta2 = map(scalar, group["betas"])
        lr = scalar(group["lr"])
        now, following = _momentum(group, step), _momentum(group, step + 1)
        # In the dtype that torch keeps it in.
        product = torch.mul(member.state["mu_product"], now).item()
        return Coefficients(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            **decays.shrinking(group, self.usual_decay(group))._asdict(),
            keep1=beta1,
            take1=1.0 - beta1,
            keep2=beta2,
            take2=1.0 - beta2,
            from_m=following / (1.0 - product * following),
            from_g=(1.0 - now) / (1.0 - product),
            root=1.0 / one_minus_power(beta2, step) ** 0.5,
            inner=0.0,
            eps=scalar(group["eps"]),
            step=lr,
        )

    def cohort(self, member: Member) -> Hashable:
        """Return the product of momenta."""
        return float(member.state["mu_product"])

    def counts(self, member: Member) -> tuple[str, ...]:
        """Return the product of momenta, too."""
        return (*super().counts(member), "mu_product")

    def created(self, state: State, before: State) -> State:  # noqa: ARG002
        """Return torch's order: the product stands second."""
        step = state.pop("step")
        return {"step": step, "mu_product": torch.ones_like(step), **state}

    def stepped(self, member: Member) -> None:
        """Multiply the product by the momentum of the step."""
        state = member.state
        state["mu_product"] *= _momentum(member.group, int(state["step"].item()))


class RMSprop(Method):
    """RMSProp (Tieleman & Hinton 2012). With momentum or centered its rule is another."""

    def names(self, group: Group) -> tuple[str | None, Entries]:  # noqa: ARG002
        """Return torch's names."""
        return "step", Entries(square="square_avg")

    def kept(self, group: Group) -> Kept:
        """Allow the buffers of momentum and mean, and ask for them where the group does."""
        kept, asked = super().kept(group), _asked_for(group)
        return kept._replace(
            tensors=(*kept.tensors, *asked),
            needed=(*kept.needed, *(name for name, is_asked in asked.items() if is_asked)),
        )

    def square_at_eps(self, group: Group, step: int) -> float | None:  # noqa: ARG002
        """Return ε²: nothing is corrected."""
        eps = scalar(group["eps"])
        return eps * eps

    def options(self, group: Group) -> Options | None:
        """Return what torch's options mean; None for an alpha that is no decay rate."""
        if scalar(group["alpha"]) >= 1:  # torch lets it pass
            return None
        return Options(
            betas=(None, scalar(group["alpha"])),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            **decays.options(group, self.usual_decay(group)),
            bias_correction="none",
            maximize=bool(group["maximize"]),
        )

    def numbers(self, member: Member, step: int) -> Coefficients:  # noqa: ARG002
        """Return those of an alpha that is no decay rate."""
        group = member.group
        alpha = scalar(group["alpha"])
        return _NEUTRAL._replace(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            **decays.shrinking(group, self.usual_decay(group))._asdict(),
            keep2=alpha,
            take2=1.0 - alpha,
            eps=scalar(group["eps"]),
            step=scalar(group["lr"]),
        )

    def complete(self, group: Group, state: State) -> None:
        """Create buffers that a group asks for since somebody has set it so."""
        for name, is_asked in _asked_for(group).items():
            if is_asked and state.get(name) is None:
                like = state["square_avg"]  # in float32 where the parameter is too narrow for it
                state[name] = torch.zeros_like(like, memory_format=torch.preserve_format)

    def own_step(self, group: Group) -> OwnStep | None:
        """Return torch's formulas where there is momentum, or a mean to be centered by."""
        if not group["centered"] and not group["momentum"] > 0:
            return None

        def step(tensors: Tensors, state: State, factor: float) -> None:
            options = {name: scalar(group[name]) for name in _OF_OWN_STEP}
            step_rmsprop(tensors, state, options, -factor if group["maximize"] else factor)
            state["step"] += 1

        return step


class SGD(Method):
    """Gradient descent with torch's momentum (a sum, not a mean)."""

    takes_sparse = True

    def names(self, group: Group) -> tuple[str | None, Entries]:
        """Return torch's names; steps are counted where random bits need to know them."""
        mean = "momentum_buffer" if group.get("momentum", 0) != 0 else None
        step = "step" if "state" in group or "rounding" in group else None
        return step, Entries(mean)

    def kept(self, group: Group) -> Kept:
        """Ask for nothing: a buffer begins with the first gradient."""
        kept = super().kept(group)
        return kept._replace(tensors=("momentum_buffer",), numbers=("step",), needed=())

    def numbers(self, member: Member, step: int) -> Coefficients:
        """Return numbers that add gradients up; the first one is the buffer, undampened."""
        group = member.group
        momentum = scalar(group["momentum"])
        is_first = step == 1
        return _NEUTRAL._replace(
            grad_scale=-1.0 if group["maximize"] else 1.0,
            **decays.shrinking(group, self.usual_decay(group))._asdict(),
            keep1=0.0 if is_first else momentum,
            take1=1.0 if is_first else 1.0 - scalar(group["dampening"]),
            from_m=momentum if group["nesterov"] else 1.0,
            from_g=1.0 if group["nesterov"] else 0.0,
            step=scalar(group["lr"]),
        )

    def created(self, state: State, before: State) -> State:
        """Count the step that must have been made where a buffer of torch's is there."""
        if "step" in state and before.get("momentum_buffer") is not None:
            state["step"] += 1
        return state


_OF_OWN_STEP = ("lr", "alpha", "eps", "weight_decay", "momentum")

#: What leaves gradients as they are, and steps nowhere.
_NEUTRAL = Coefficients(*[0.0] * len(Coefficients._fields))._replace(
    grad_scale=1.0, take1=1.0, take2=1.0, from_m=1.0, root=1.0
)


def _momentum(group: Group, step: int) -> float:
    """Return μ of ``step``: β1 on its way up from half of it (Dozat 2016, section 2.2)."""
    beta1 = scalar(group["betas"][0])
    return beta1 * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))


def _asked_for(group: Group) -> dict[str, bool]:
    """Return the buffers of RMSprop, and whether a group asks for each."""
    return {"momentum_buffer": scalar(group["momentum"]) > 0, "grad_avg": bool(group["centered"])}
