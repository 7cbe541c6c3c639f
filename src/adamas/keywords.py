"""What functions take as keywords, for editors and type checkers; at run time they check it too.

``**options: Unpack[…]`` has type checkers refuse names and values that would be refused.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from adamas.dialects import Dialect
from adamas.options import (
    BiasCorrection,
    Decay,
    EpsPlace,
    LearningRate,
    OnNonfinite,
    Rounding,
    StateForm,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack
else:

    class Unpack:
        """What typing has from Python 3.11 on, as far as reading annotations needs it."""

        def __class_getitem__(cls, _: object) -> Any:
            return Any


__all__ = ["MethodName", "MinimizeArguments", "OptionArguments", "PhaseArguments", "Unpack"]

#: The method that looks for the minimum.
MethodName = Literal["adam", "momentum", "rmsprop"]


class OptionArguments(TypedDict, total=False):
    """The fields of ``adamas.Options``."""

    lr: LearningRate
    betas: tuple[float | None, float | None]
    eps: float
    eps_place: EpsPlace
    eps_root: float
    weight_decay: float
    decay: Decay
    lr_max: float | None
    bias_correction: BiasCorrection
    amsgrad: bool
    nesterov: bool
    rectify: bool
    maximize: bool
    state: StateForm | tuple[StateForm, StateForm]
    rounding: Rounding | None


class PhaseArguments(TypedDict, total=False):
    """The fields of ``adamas.Phase``."""

    clip_norm: float | None
    on_nonfinite: OnNonfinite
    ema: float | None
    statistics: bool
    seed: int
    track_changes: bool
    skip_above: float | None
    skip_window: int
    clip_update: float | None


class MinimizeArguments(TypedDict, total=False):
    """The settings of ``adamas.minimize``, and the options of its optimizers."""

    method: MethodName
    lr: LearningRate | None
    maxiter: int | None
    gtol: float | None
    ftol: float | None
    patience: int
    noisy: bool
    ema: float | None
    finite_diff_rel_step: float | None
    workers: Any
    disp: bool
    progress: bool
    betas: tuple[float, float] | None
    beta: float | None
    eps: float | None
    weight_decay: float | None
    dialect: Dialect | None
    decay: Decay | None
    lr_max: float | None
    amsgrad: bool
    nesterov: bool
    eps_place: EpsPlace | None
    eps_root: float
    bias_correction: BiasCorrection | None
    clip_norm: float | None
    clip_update: float | None
