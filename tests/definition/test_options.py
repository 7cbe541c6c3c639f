"""Options are checked once: each error says what was given, what is possible, what to do."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from adamas.options import Options, Phase, learning_rate_at

REFUSED = [
    (
        {"betas": (0.9, 1.0)},
        ValueError,
        "betas[1] is 1.0, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        {"betas": (-0.1, 0.9)},
        ValueError,
        "betas[0] is -0.1, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        {"betas": (float("nan"), 0.9)},
        ValueError,
        "betas[0] is nan, but a decay rate must be at least 0 and less than 1.",
    ),
    ({"betas": 0.9}, TypeError, "betas is 0.9, but it must be a pair of decay rates (β1, β2)."),
    ({"betas": (0.9,)}, TypeError, "betas is (0.9,), but it must be a pair of decay rates"),
    ({"betas": ("a", 0.9)}, TypeError, "betas[0] is 'a', but it must be a number."),
    ({"lr": -1.0}, ValueError, "lr is -1.0, but it must be finite and at least 0."),
    ({"lr": float("inf")}, ValueError, "lr is inf, but it must be finite and at least 0."),
    ({"lr": "fast"}, TypeError, "lr is 'fast', but it must be a number."),
    ({"lr": True}, TypeError, "lr is True, but it must be a number."),
    ({"eps": -1e-8}, ValueError, "eps is -1e-08, but it must be finite and at least 0."),
    (
        {"eps_place": "outside"},
        ValueError,
        'eps_place is \'outside\', but it must be one of "corrected", "uncorrected", "inside".',
    ),
    ({"eps_root": None}, TypeError, "eps_root is None, but it must be a number."),
    (
        {"weight_decay": float("nan")},
        ValueError,
        "weight_decay is nan, but it must be finite and at least 0.",
    ),
    (
        {"decay": "L2"},
        ValueError,
        'decay is \'L2\', but it must be one of "l2", "decoupled", "fully-decoupled", "cautious", '
        '"corrected".',
    ),
    (
        {"bias_correction": None},
        ValueError,
        'bias_correction is None, but it must be one of "paper", "first-step", "none".',
    ),
    ({"amsgrad": 1}, TypeError, "amsgrad is 1, but it must be True or False."),
    (
        {"amsgrad": True, "betas": (0.9, None)},
        ValueError,
        "amsgrad is True, but this method keeps no second moment (moving average of squared "
        "gradients). Use Adam, AdamW or RMSProp, or leave amsgrad out.",
    ),
    (
        {"nesterov": True, "betas": (None, 0.9)},
        ValueError,
        "nesterov is True, but this method keeps no first moment (moving average of gradients). "
        "Use Adam, AdamW or Momentum, or leave nesterov out.",
    ),
    (
        {"lr_max": 0.1},
        ValueError,
        "lr_max is 0.1, but decay is 'l2': lr_max has a meaning with decay=\"fully-decoupled\" and "
        'decay="corrected" only. Choose one of these or leave lr_max out.',
    ),
    (
        {"lr_max": 0.1, "decay": "cautious"},
        ValueError,
        "lr_max is 0.1, but decay is 'cautious': lr_max has a meaning with",
    ),
    (
        {"lr": lambda step: 0.1, "decay": "fully-decoupled"},
        ValueError,
        'decay="fully-decoupled" shrinks by weight_decay * lr / lr_max, and with a schedule for lr '
        "the greatest rate cannot be known. Give lr_max.",
    ),
    (
        {"lr": lambda step: 0.1, "decay": "corrected"},
        ValueError,
        'decay="corrected" shrinks by weight_decay * lr**2 / lr_max, and with a schedule for lr '
        "the greatest rate cannot be known. Give lr_max.",
    ),
    *(
        (
            {"lr": 0.0, "decay": decay},
            ValueError,
            "and lr_max is 0. Give the greatest learning rate of the run as lr_max.",
        )
        for decay in ("fully-decoupled", "corrected")
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED)
def test_what_makes_no_sense_is_refused_with_a_way_out(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Options(**given)


PHASES = [
    (
        {"clip_norm": 0.0},
        ValueError,
        "clip_norm is 0, which would erase every gradient. "
        "Give a positive norm, or None for no clipping.",
    ),
    (
        {"clip_norm": -1},
        ValueError,
        "clip_norm is -1.0, but it must be finite and above 0, or None for no clipping.",
    ),
    (
        {"clip_update": 0},
        ValueError,
        "clip_update is 0, which would let no parameter move. Give how large the root mean square "
        "of a tensor's update may be, such as 1.0, or None for no clipping.",
    ),
    (
        {"clip_update": float("nan")},
        ValueError,
        "clip_update is nan, but it must be finite and above 0, such",
    ),
    (
        {"on_nonfinite": "ignore"},
        ValueError,
        'on_nonfinite is \'ignore\', but it must be one of "propagate", "skip", "raise".',
    ),
    ({"ema": 1.0}, ValueError, "ema is 1.0, but a decay rate must be at least 0 and less than 1."),
    ({"statistics": "yes"}, TypeError, "statistics is 'yes', but it must be True or False."),
    ({"track_changes": 1}, TypeError, "track_changes is 1, but it must be True or False."),
]


@pytest.mark.parametrize(("given", "error", "message"), PHASES)
def test_a_phase_that_makes_no_sense_is_refused(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Phase(**given)


def test_options_are_frozen_and_replaced_with_a_check():
    options = Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.lr = 1.0  # type: ignore[misc]
    assert options.replace(lr=0.5).lr == 0.5
    with pytest.raises(ValueError, match=r"lr is -1\.0"):
        options.replace(lr=-1)


def test_numbers_of_any_kind_become_floats():
    options = Options(lr=np.float32(0.5), betas=[0, np.float64(0.5)], eps=1)
    assert (options.lr, options.betas, options.eps) == (0.5, (0.0, 0.5), 1.0)
    assert all(type(x) is float for x in (options.lr, *options.betas, options.eps))


def test_a_schedule_is_asked_for_the_step_and_checked():
    assert learning_rate_at(lambda step: 1 / step, 4) == 0.25
    with pytest.raises(ValueError, match=re.escape("lr(7) is nan, but it must be finite")):
        learning_rate_at(lambda step: float("nan"), 7)
    with pytest.raises(TypeError, match=re.escape("lr(7) is None, but it must be a number.")):
        learning_rate_at(lambda step: None, 7)
