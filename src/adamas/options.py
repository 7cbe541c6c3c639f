"""What a user may ask for: checked once, then frozen.

``Options`` are the choices that shape the rule for one group of parameters; ``Phase``
those that concern the whole step (clipping, NaN or infinite gradients, EMA, statistics).
Both refuse what makes no sense with an error that says what was given and what is possible.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from adamas.checks import (
    check_above_zero,
    check_amount,
    check_betas,
    check_choice,
    check_count,
    check_flag,
    check_rate,
)
from adamas.storage import Rounding, StateForm, Storage

__all__ = [
    "MOST_NORMS",
    "BiasCorrection",
    "Decay",
    "EpsPlace",
    "LearningRate",
    "OnNonfinite",
    "Options",
    "Phase",
    "Rounding",
    "Schedule",
    "StateForm",
    "check_greatest",
    "check_together",
    "is_above",
    "learning_rate_at",
    "observed",
]

#: A learning rate that depends on the step: called with the number of the coming step, 1 first.
Schedule = Callable[[int], float]
#: A number, or a schedule.
LearningRate = float | Schedule
#: What the moving averages are divided by: 1 - β^t, 1 - β, or nothing.
BiasCorrection = Literal["paper", "first-step", "none"]
#: Where ε is added: to the corrected root, to the root before, or under it.
EpsPlace = Literal["corrected", "uncorrected", "inside"]
#: How weights decay: through the gradient; beside it; apart from the learning rate; only where the
#: update does not oppose it; with the learning rate squared.
Decay = Literal["l2", "decoupled", "fully-decoupled", "cautious", "corrected"]
#: What the decays that know the greatest learning rate shrink by.
_SHRINKS: dict[Decay, str] = {
    "fully-decoupled": "weight_decay * lr / lr_max",
    "corrected": "weight_decay * lr**2 / lr_max",
}
#: How many norms a window of ``skip_above`` may have: kernels add up 128 at once, and their sums.
MOST_NORMS = 128 * 128
#: What a step does with gradients that are infinite or NaN: steps, leaves out, or raises.
OnNonfinite = Literal["propagate", "skip", "raise"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices for one group of parameters. Errors: ValueError or TypeError, naming the option.

    A method is told by which moments it keeps: both for Adam (``betas`` = β1, β2), the
    first for Momentum (``betas`` = β1, None), the second for RMSProp (None, β2).
    """

    #: Learning rate α, or a function of the step number (1 first).
    lr: LearningRate = 1e-3
    #: Decay rates of the two moments; None where the method does not keep it.
    betas: tuple[float | None, float | None] = (0.9, 0.999)
    #: ε, added to the root of the square.
    eps: float = 1e-8
    #: "corrected" adds ε to the root after its bias is taken out; "uncorrected" before, so that it
    #: is divided by √(1 - β2^t) as the root is (ε̂ of Kingma & Ba 2015, section 2); "inside" adds it
    #: under the root, to the corrected square.
    eps_place: EpsPlace = "corrected"
    #: Added to the corrected square under the root (optax's ``eps_root``).
    eps_root: float = 0.0
    #: How strongly parameters are pulled towards 0, in the way that ``decay`` says.
    weight_decay: float = 0.0
    #: "l2" adds ``weight_decay * p`` to the gradient; "decoupled" shrinks the parameter by
    #: ``lr * weight_decay`` (AdamW); "fully-decoupled" by ``weight_decay * lr / lr_max``;
    #: "cautious" as "decoupled", but only elements that the update does not move away from 0 (Chen
    #: et al. 2025, arXiv 2510.12402); "corrected" by ``weight_decay * lr**2 / lr_max`` (AdamC;
    #: Defazio 2025, arXiv 2506.02285).
    decay: Decay = "l2"
    #: The greatest learning rate of the run, for "fully-decoupled" and "corrected"; lr if it is
    #: fixed. Optimizers refuse to step at a greater one.
    lr_max: float | None = None
    #: "paper" divides by 1 - β^t; "first-step" by 1 - β at every step; "none" leaves the bias.
    bias_correction: BiasCorrection = "paper"
    #: Divide by the root of the largest second moment so far (Reddi, Kale & Kumar 2018).
    amsgrad: bool = False
    #: Take Nesterov's momentum (Dozat 2016), with a constant β1.
    nesterov: bool = False
    #: Rectify the variance of the adaptive learning rate (RAdam; Liu et al. 2020, algorithm 2):
    #: steps are lr * r_t, or while ρ_t is at most 5, lr times the first moment alone.
    rectify: bool = False
    #: Step along the gradient, not against it.
    maximize: bool = False
    #: How the moments are stored (``adamas.codecs``): one form for both, or a pair for m
    #: and v. "float32" stores them as they are, in the parameter's dtype. Kept as a pair.
    state: StateForm | tuple[StateForm, StateForm] = "float32"
    #: How small states and half-precision parameters are rounded. None: small forms of m and v
    #: stochastically, parameters to nearest, as elsewhere. "nearest" and "stochastic" mean both.
    #: "remainder" (bfloat16 parameters) keeps what rounding takes away in 16 more bits, so that
    #: nothing is lost; "remainder8" in 8 bits, the rest stochastically.
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        """Check every option; fill in ``lr_max`` where a fixed learning rate gives it."""
        for name in ("amsgrad", "nesterov", "rectify", "maximize"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        check_choice("bias_correction", self.bias_correction, get_args(BiasCorrection))
        check_choice("decay", self.decay, get_args(Decay))
        check_choice("eps_place", self.eps_place, get_args(EpsPlace))
        for name in ("eps", "eps_root", "weight_decay"):
            object.__setattr__(self, name, check_amount(name, getattr(self, name)))
        object.__setattr__(self, "betas", check_betas(self.betas))
        if not callable(self.lr):
            object.__setattr__(self, "lr", check_amount("lr", self.lr))
        storage = Storage.checked(
            self.state,
            self.rounding,
            has_mean=self.has_mean,
            has_square=self.has_square,
            amsgrad=self.amsgrad,
        )
        object.__setattr__(self, "state", storage.forms)
        self._check_combinations()
        if self.lr_max is not None:
            object.__setattr__(self, "lr_max", check_amount("lr_max", self.lr_max))
        if self.decay in _SHRINKS:
            object.__setattr__(self, "lr_max", self._greatest_rate())

    @property
    def has_mean(self) -> bool:
        """Whether the method keeps a first moment (moving average of the gradients)."""
        return self.betas[0] is not None

    @property
    def has_square(self) -> bool:
        """Whether the method keeps a second moment (moving average of the squared gradients)."""
        return self.betas[1] is not None

    @property
    def storage(self) -> Storage:
        """How parameters and moments are stored."""
        mean, square = self.state
        return Storage(mean, square, self.rounding)

    def replace(self, **changes: object) -> Options:
        """Return options with some of them changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def _check_combinations(self) -> None:
        if self.nesterov and not self.has_mean:
            raise ValueError(
                "nesterov is True, but this method keeps no first moment (moving average of "
                "gradients). Use Adam, AdamW or Momentum, or leave nesterov out."
            )
        if self.rectify and not (self.has_mean and self.has_square):
            raise ValueError(
                "rectify is True, but this method does not keep both moments. Use RAdam, which "
                "does, or leave rectify out."
            )
        if self.rectify and self.bias_correction != "paper":
            raise ValueError(
                f"rectify is True and bias_correction is {self.bias_correction!r}, but r_t is the "
                'variance of moments that are corrected by 1 - β^t. Use "paper", or leave rectify '
                "out."
            )
        if self.lr_max is not None and self.decay not in _SHRINKS:
            raise ValueError(
                f"lr_max is {self.lr_max!r}, but decay is {self.decay!r}: lr_max has a meaning "
                'with decay="fully-decoupled" and decay="corrected" only. Choose one of these or '
                "leave lr_max out."
            )

    def _greatest_rate(self) -> float:
        shrinks = f'decay="{self.decay}" shrinks by {_SHRINKS[self.decay]}'
        if self.lr_max is None and callable(self.lr):
            raise ValueError(
                f"{shrinks}, and with a schedule for lr the greatest rate cannot be known. Give "
                "lr_max."
            )
        greatest = self.lr_max if self.lr_max is not None else self.lr
        assert not callable(greatest)
        if greatest == 0:
            raise ValueError(
                f"{shrinks}, and lr_max is 0. Give the greatest learning rate of the run as lr_max."
            )
        return greatest


#: Numbers of the phase that must be above 0 where they are given: what 0 would do, and what else
#: can be given.
_ABOVE_ZERO = (
    (
        "clip_norm",
        "would erase every gradient. Give a positive norm, or None for no clipping",
        "or None for no clipping",
    ),
    (
        "clip_update",
        (
            "would let no parameter move. Give how large the root mean square of a tensor's update "
            "may be, such as 1.0, or None for no clipping"
        ),
        "such as 1.0, or None for no clipping",
    ),
    (
        "skip_above",
        (
            "would leave out every gradient above the mean. Give how many standard deviations "
            "above it a norm may lie, such as 6.0, or None to leave out none"
        ),
        "such as 6.0, or None to leave out no step",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The choices that concern a whole step, all groups together."""

    #: Scale gradients down so that their norm over all parameters is at most this; None: never.
    clip_norm: float | None = None
    #: "propagate" steps regardless; "skip" touches nothing and counts; "raise" names the tensors.
    on_nonfinite: OnNonfinite = "propagate"
    #: Decay rate of the exponential moving average (EMA) of the parameters; None: there is none.
    ema: float | None = None
    #: Whether to take norms and extremes of gradient, parameter and update on the way.
    statistics: bool = False
    #: Of the random bits that small states are rounded with.
    seed: int = 0
    #: Whether steps mark the elements of the parameters whose stored bits they change.
    track_changes: bool = False
    #: Leave a step out where the norm of its gradients lies more than so many standard deviations
    #: above the mean of the last steps' (``adamas.spikes``); None: never. OLMo takes 6.
    skip_above: float | None = None
    #: How many steps these are. Nothing is left out before half as many.
    skip_window: int = 128
    #: Shorten the update of a tensor where its gradient has outgrown its second moment: where the
    #: root mean square of g / max(√v̂, ε) is above this, its step and its decay are multiplied by
    #: this over that (StableAdamW: Wortsman et al. 2023, arXiv 2304.13013, algorithm 2, takes 1;
    #: after Shazeer & Stern 2018). The tensor is the whole one, however it is sharded; None: never.
    clip_update: float | None = None

    def __post_init__(self) -> None:
        """Check every choice."""
        check_choice("on_nonfinite", self.on_nonfinite, get_args(OnNonfinite))
        for name in ("statistics", "track_changes"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_count("seed", self.seed, most=2**64 - 1))
        for name, at_zero, otherwise in _ABOVE_ZERO:
            if (given := getattr(self, name)) is not None:
                number = check_above_zero(name, given, at_zero=at_zero, otherwise=otherwise)
                object.__setattr__(self, name, number)
        if self.ema is not None:
            object.__setattr__(self, "ema", check_rate("ema", self.ema))
        window = check_count("skip_window", self.skip_window, most=MOST_NORMS, least=4)
        object.__setattr__(self, "skip_window", window)

    @property
    def reads_first(self) -> bool:
        """Whether the gradients must be read once before any parameter may change."""
        return (
            self.clip_norm is not None
            or self.on_nonfinite != "propagate"
            or self.skip_above is not None
        )


def check_together(phase: Phase, *, has_square: bool, others: str) -> None:
    """Raise ValueError where a group cannot be stepped as ``phase`` says.

    ``has_square``: whether its method keeps a second moment; ``others`` are methods that do.
    """
    if phase.clip_update is not None and not has_square:
        raise ValueError(
            f"clip_update is {phase.clip_update!r}, but this method keeps no second moment (moving "
            "average of squared gradients) that updates could be measured by. Use "
            f"{others}, or leave clip_update out."
        )


@functools.lru_cache(maxsize=64)
def observed(phase: Phase) -> Phase:
    """Return a phase with statistics, whether or not the user asks for them."""
    return dataclasses.replace(phase, statistics=True)


def is_above(lr: float, lr_max: float) -> bool:
    """Return whether ``lr`` is above ``lr_max`` by more than schedules round."""
    return lr > lr_max * 1.000001  # as the compiled engine compares


def check_greatest(name: str, lr: float, lr_max: float, decay: str) -> None:
    """Raise ValueError where a learning rate is above the greatest that was named."""
    if is_above(lr, lr_max):
        raise ValueError(
            f'{name} is {lr!r}, but lr_max is {lr_max!r}, which decay="{decay}" takes for the '
            "greatest learning rate of the run. Give the greatest as lr_max."
        )


def learning_rate_at(lr: LearningRate, step: int) -> float:
    """Return the learning rate of ``step`` (1 first), refusing what is none."""
    return check_amount(f"lr({step})", lr(step)) if callable(lr) else lr
