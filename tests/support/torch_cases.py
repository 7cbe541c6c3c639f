"""Cases of what adamas.torch does: what a training consists of, in words.

A case says method, options, phase, storage, dtype, layout, gradients, resuming. Cases are drawn so
that each two values of different factors meet in one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import torch

__all__ = [
    "DTYPES",
    "METHODS",
    "OPTIONS",
    "PHASES",
    "ROUNDINGS",
    "SHAPES",
    "STATES",
    "Case",
    "cases",
    "words",
]

Case = dict[str, str]

#: Classes, and "AdamW, decays": the class with the decays and the clipping that torch has not.
METHODS = ("Adam", "AdamW", "NAdam", "RMSprop", "SGD", "RAdam", "AdamW, decays")

# ── factors ────────────────────────────────────────────────────────────────────────────────────

_HALVES = {"betas": (0.5, 0.75)}
_ALL = {"plain": {}, "weight decay": {"weight_decay": 0.1}, "maximize": {"maximize": True}}
_ADAM = {
    **_ALL,
    "amsgrad": {"amsgrad": True},
    "amsgrad and maximize": {"amsgrad": True, "maximize": True, "weight_decay": 0.25},
    "other betas": _HALVES,
    "betas of 0": {"betas": (0.0, 0.0)},
    "tensor betas": {"betas": (torch.tensor(0.5), torch.tensor(0.75))},
    "capturable": {"capturable": True},
    "fused": {"fused": True, **_HALVES},
    "foreach": {"foreach": True, "weight_decay": 0.5},
    "eps of 0": {"eps": 0.0},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "Adam": {**_ADAM, "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.25}},
    "AdamW": _ADAM,
    "NAdam": {
        **_ALL,
        "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.25},
        "other momentum": {**_HALVES, "momentum_decay": 0.125},
        "capturable": {"capturable": True},
        "foreach": {"foreach": True, "maximize": True},
        "eps of 0": {"eps": 0.0},
    },
    "RMSprop": {
        **_ALL,
        "momentum": {"momentum": 0.75},
        "centered": {"centered": True},
        "momentum and centered": {"momentum": 0.5, "centered": True, "weight_decay": 0.125},
        "other alpha": {"alpha": 0.5, "maximize": True},
        "capturable": {"capturable": True},
        "foreach": {"foreach": True},
        "eps of 0": {"eps": 0.0},
    },
    "SGD": {
        **_ALL,
        "momentum": {"momentum": 0.75},
        "nesterov": {"momentum": 0.75, "nesterov": True, "weight_decay": 0.25},
        "dampening": {"momentum": 0.5, "dampening": 0.25},
        "momentum and maximize": {"momentum": 0.5, "maximize": True},
        "fused": {"fused": True, "momentum": 0.5},
        "foreach": {"foreach": True},
    },
    "RAdam": {  # rho_t is above 5 from the sixth step on, but never with betas whose v is short
        **_ALL,
        "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.25},
        "cautious": {"decay": "cautious", "weight_decay": 0.25},
        "corrected": {"decay": "corrected", "lr_max": 0.25, "weight_decay": 0.5},
        "other betas": {"betas": (0.5, 0.875), "maximize": True},
        "short v": _HALVES,
        "capturable": {"capturable": True},
        "foreach": {"foreach": True},
        "eps of 0": {"eps": 0.0},
    },
    "AdamW, decays": {
        "plain": {"decay": "cautious", "weight_decay": 0.25},
        "cautious and maximize": {"decay": "cautious", "maximize": True, "weight_decay": 0.5},
        "cautious amsgrad": {"decay": "cautious", "amsgrad": True, "weight_decay": 0.5},
        "corrected": {"decay": "corrected", "lr_max": 0.25, "weight_decay": 0.5},
        "corrected, first lr": {"decay": "corrected", "weight_decay": 0.5, **_HALVES},
        "fully decoupled": {"decay": "fully-decoupled", "lr_max": 0.25, "weight_decay": 0.125},
    },
}
PHASES: dict[str, dict[str, Any]] = {
    "no phase": {},
    "clip": {"clip_norm": 0.75},
    "skip": {"on_nonfinite": "skip"},
    "raise": {"on_nonfinite": "raise"},
    "ema": {"ema": 0.75},
    "copies": {"copy_to": torch.bfloat16},
    "tensor copies": {"ema": 0.5},
    "statistics": {"statistics": True},
    "clip and raise": {"clip_norm": 2.0, "on_nonfinite": "raise", "statistics": True},
    "whole phase": {
        "clip_norm": 1.5,
        "on_nonfinite": "skip",
        "ema": 0.875,
        "copy_to": torch.float16,
        "statistics": True,
    },
    "scaler": {},
    "scaler and clip": {"clip_norm": 0.5},
    "scaler and whole phase": {
        "clip_norm": 3.0,
        "on_nonfinite": "skip",
        "ema": 0.5,
        "copy_to": torch.bfloat16,
        "statistics": True,
    },
}
_CLIPPED = {
    "clip update": {"clip_update": 0.5},
    "clip update and norm": {"clip_update": 0.125, "clip_norm": 1.5, "statistics": True},
    "whole phase, clip update": {**PHASES["whole phase"], "clip_update": 0.25},
}
PHASES |= _CLIPPED
STATES: dict[str, Any] = {
    "own state": None,
    "float32 state": "float32",
    "bfloat16 state": "bfloat16",
    "compact state": "compact",
    "8bit state": "8bit",
    "compact m, 8bit v": ("compact", "8bit"),
    "float32 m, 8bit v": ("float32", "8bit"),
    "8bit m, bfloat16 v": ("8bit", "bfloat16"),
}
ROUNDINGS: dict[str, Any] = {
    "own rounding": None,
    "nearest": "nearest",
    "stochastic": "stochastic",
    "remainder": "remainder",
    "remainder8": "remainder8",
}
DTYPES = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "complex64": (torch.complex64,),
    "mixed dtypes": (torch.float32, torch.bfloat16, torch.float64, torch.float16),
}
SHAPES = {
    "few": ((5, 3), (37,), (), (0, 2), (3, 2, 4, 2), (300,)),
    "many": tuple((1 + size % 7, 1 + size % 5) for size in range(14)),
    "large": ((9, 4), (70_001,), ()),
    "tiny": ((3, 4), (33,), ()),
}
#: Other values of the factors that every route has.
_SHARED = {
    "lr": ("fixed lr", "schedule", "ExponentialLR", "tensor lr", "lr of 0"),
    "groups": ("one group", "two groups", "named", "added", "stored apart", "own keys"),
    "phase": tuple(each for each in PHASES if each not in _CLIPPED),
    "state": tuple(STATES),
    "rounding": tuple(ROUNDINGS),
    "seed": ("seed 0", "seed 77"),
    "arrivals": ("finite", "a NaN", "an infinity", "huge ones"),
}
_GRADIENTS = (
    "all gradients",
    "come and go",
    "late",
    "frozen",
    "kept in place",
    "zeros",
    "none at one step",
)
_EXTRAS = (
    "nothing else",
    "hooks",
    "closure",
    "averages between",
    "copies read",
    "options set",
    "snapshot",
)
_RESUMES = ("no resume", "state_dict", "packed", "torch and back", "pickle", "deepcopy", "file")

SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "native": {
        **_SHARED,
        "dtype": ("float32", "float64", "bfloat16", "float16", "mixed dtypes"),
        "layout": ("contiguous", "offset"),
        "gradients": _GRADIENTS,
        "strides": ("alike", "transposed gradient", "expanded gradient"),
        "resume": _RESUMES,
        "extra": _EXTRAS,
        "shapes": ("few", "few", "few", "many", "large"),  # the large ones take most of the time
    },
    "plain": {
        **_SHARED,
        "dtype": tuple(DTYPES),
        "layout": ("turned", "sliced", "channels last", "shared", "each otherwise"),
        "gradients": (*_GRADIENTS, "sparse"),
        "strides": ("alike", "transposed gradient", "expanded gradient"),
        "resume": _RESUMES,
        "extra": _EXTRAS,
        "shapes": ("few", "many"),
    },
    "triton": {
        **_SHARED,
        "groups": ("one group", "two groups", "added"),
        "dtype": ("float32", "float64", "bfloat16", "float16"),
        "layout": ("contiguous", "turned"),
        "gradients": ("all gradients", "come and go", "none at one step"),
        "strides": ("alike", "transposed gradient"),
        "resume": ("no resume", "state_dict", "packed", "deepcopy"),
        "extra": ("nothing else", "averages between", "options set"),
        "shapes": ("tiny",),
    },
    "processes": {
        **_SHARED,
        "groups": ("one group", "two groups", "named", "added"),
        "phase": tuple(each for each in _SHARED["phase"] if not each.startswith("scaler")),
        "dtype": ("float32", "float64", "bfloat16", "float16"),
        "layout": ("rows", "columns", "replicas", "each its own cut"),
        "gradients": ("all gradients", "come and go", "late", "none at one step"),
        "strides": ("alike", "replicated gradient"),
        "resume": ("no resume", "state_dict", "deepcopy"),
        "extra": ("nothing else", "closure", "averages between", "copies read"),
        "shapes": ("few", "tiny"),
    },
}
SUITES["offload late"] = SUITES["offload early"] = {
    **SUITES["native"],
    "dtype": ("float32", "float64", "bfloat16", "float16", "mixed dtypes"),
    "layout": ("contiguous", "turned"),
    "gradients": ("all gradients", "come and go", "late", "kept in place", "none at one step"),
    "resume": ("no resume", "state_dict", "packed", "pickle", "deepcopy"),
    "shapes": ("few", "many"),
}
#: How many cases there are of each method: about as many as it takes until each two values have
#: met, but fewer where steps are slow.
COUNTS = {
    "native": 170,
    "plain": 120,
    "triton": 4,
    "offload late": 30,
    "offload early": 30,
    "processes": 20,
}
#: Methods that came later, whose updates are clipped as well: the draws of the others stay as they
#: are. They have fewer cases, since most of what the factors do does not depend on the method.
_LATER = {"RAdam": 4, "AdamW, decays": 4}


def is_possible(method: str, case: Case) -> bool:
    """Whether a case is one that trains, but for a few; what is refused is tested elsewhere."""
    options, dtype = OPTIONS[method][case["options"]], case["dtype"]
    state, rounding = case["state"], case["rounding"]
    is_small = state not in ("own state", "float32 state")
    is_special = bool(method == "RMSprop" and options.keys() & {"momentum", "centered"})
    remains = rounding.startswith("remainder")
    return not (
        (remains and dtype != "bfloat16")
        or (is_small and dtype in ("float64", "complex64", "mixed dtypes"))
        or (is_small and options.get("amsgrad"))
        or (method == "SGD" and is_small and state != "bfloat16 state")
        or (method == "RMSprop" and "," in state)
        or (is_special and (is_small or rounding in ("stochastic", "remainder", "remainder8")))
        or (is_special and (PHASES[case["phase"]].keys() & {"ema", "statistics"}))
        or (case["lr"] == "tensor lr" and options.get("foreach"))
        or (case["phase"].startswith("scaler") and dtype not in ("float32", "bfloat16"))
        or (case["gradients"] == "sparse" and (method != "SGD" or dtype == "complex64"))
        or (case["gradients"] == "sparse" and options.get("weight_decay"))
        or (case["resume"] == "torch and back" and (remains or case["groups"] == "stored apart"))
    )


def cases(route: str, method: str) -> list[Case]:
    """Return the cases of a method on a route; always the same ones."""
    factors = {"options": tuple(OPTIONS[method]), **SUITES[route]}
    if method in _LATER:
        factors["phase"] = (*factors["phase"], *_CLIPPED)
    drawn = random.Random(f"{route} {method}")
    names = list(factors)
    unmet = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    found: list[Case] = []
    count = max(4, math.ceil(COUNTS[route] / _LATER.get(method, 1)))
    vain = 0
    while len(found) < count and vain < 3:
        best: Case = {}
        most = -1
        for _ in range(40):
            case = {name: drawn.choice(values) for name, values in factors.items()}
            if unmet and drawn.random() < 0.8:  # random() of a set has no fixed order
                case |= dict(drawn.choice(sorted(unmet)) if len(unmet) < 60 else ())
            if is_possible(method, case):
                new = len(unmet.intersection(_pairs(case)))
                if new > most:
                    best, most = case, new
        vain = vain + 1 if most <= 0 else 0
        if best and most > 0:
            unmet.difference_update(_pairs(best))
            found.append(best)
    return found


def _pairs(case: Case) -> Iterator[Any]:
    return itertools.combinations(case.items(), 2)


def words(route: str, case: Case) -> str:
    """Return what a case is called: its values, but for those that are the usual ones."""
    usual = {name: values[0] for name, values in SUITES[route].items()} | {"options": "plain"}
    return ", ".join(value for name, value in case.items() if value != usual[name]) or "as usual"
