"""Dialects: what a library or paper means by Adam where nothing else is said.

A dialect is a set of values for ``adamas.Options``: where ε stands, how the bias is taken out,
what is a default. It gives what the user does not; whatever the user gives stands. What no dialect
of a method says has to be given, and what a library computes by another rule is refused.

========== =====================================================================================
"torch"    PyTorch: ``torch.optim.Adam``, ``AdamW``, ``RMSprop``
"optax"    ``optax.adam``, ``adamw``, ``rmsprop`` (ε under the root); lr has no default there
"keras"    Keras 3: ε = 1e-7, beside √v before correction (ε̂ of Kingma & Ba 2015, section 2), and
           under the root in RMSprop
"paper"    Kingma & Ba 2015, algorithm 1; AMSGrad without correction (Reddi et al. 2018, algorithm
           2); AdamW with a decay apart from the learning rate (Loshchilov & Hutter 2019, algorithm
           2); RMSProp without ε (Tieleman & Hinton 2012)
"note"     1 - β without the exponent t in the correction, as some texts write it
========== =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = ["Dialect", "with_conventions"]

#: Whose Adam is meant where nothing else is said.
Dialect = Literal["torch", "optax", "keras", "paper", "note"]

_BETAS = (0.9, 0.999)
_CORRECTED = {"eps": 1e-8, "eps_place": "corrected", "bias_correction": "paper"}
_KERAS = {"eps": 1e-7, "eps_place": "uncorrected", "bias_correction": "paper"}
_NOTE = {**_CORRECTED, "bias_correction": "first-step"}
_L2 = {"weight_decay": 0.0, "decay": "l2"}
_INSIDE = {"eps_place": "inside", "bias_correction": "none"}
_BESIDE = {"eps": 1e-8, "eps_place": "corrected", "bias_correction": "none"}

#: For each method and dialect (None is adamas' own) what it says.
_CONVENTIONS: dict[str, dict[str | None, dict[str, Any]]] = {
    "Adam": {
        None: {"lr": 1e-3, "betas": _BETAS, **_CORRECTED, **_L2},
        "torch": {"lr": 1e-3, "betas": _BETAS, **_CORRECTED, **_L2},
        "optax": {"betas": _BETAS, **_CORRECTED, **_L2},
        "keras": {"lr": 1e-3, "betas": _BETAS, **_KERAS, **_L2},
        "paper": {"lr": 1e-3, "betas": _BETAS, **_CORRECTED, **_L2},
        "note": {"lr": 1e-3, "betas": _BETAS, **_NOTE, **_L2},
    },
    "AdamW": {
        None: {"weight_decay": 0.01, "decay": "decoupled"},
        "torch": {"weight_decay": 0.01, "decay": "decoupled"},
        "optax": {"weight_decay": 1e-4, "decay": "decoupled"},
        "keras": {"weight_decay": 0.004, "decay": "decoupled"},
        "paper": {"decay": "fully-decoupled"},
        "note": {"weight_decay": 0.01, "decay": "decoupled"},
    },
    "RAdam": {
        None: {"lr": 1e-3, "betas": _BETAS, **_CORRECTED, **_L2},
        "torch": {"lr": 1e-3, "betas": _BETAS, **_CORRECTED, "eps_place": "uncorrected", **_L2},
        "optax": {"betas": _BETAS, **_CORRECTED, **_L2},
    },
    "RMSProp": {
        None: {"lr": 1e-3, "beta": 0.9, **_BESIDE, **_L2},
        "torch": {"lr": 1e-2, "beta": 0.99, **_BESIDE, **_L2},
        "optax": {"beta": 0.9, "eps": 1e-8, **_INSIDE, **_L2},
        "keras": {"lr": 1e-3, "beta": 0.9, "eps": 1e-7, **_INSIDE, **_L2},
        "paper": {"lr": 1e-3, "beta": 0.9, **_BESIDE, "eps": 0.0, **_L2},
        "note": {"lr": 1e-3, "beta": 0.9, **_BESIDE, **_L2},
    },
}
for _dialect, _own in _CONVENTIONS["AdamW"].items():
    _CONVENTIONS["AdamW"][_dialect] = {
        key: value
        for key, value in _CONVENTIONS["Adam"][_dialect].items()
        if key not in ("weight_decay", "decay")
    } | _own

#: What a library computes by another rule: method, dialect, option, and the way out.
_OTHER_RULES = {
    ("optax", "amsgrad"): (
        "optax's amsgrad takes the largest of the corrected squares, the rule that of the squares "
        "themselves. Use optax itself, or another dialect"
    ),
    ("torch", "nesterov"): (
        "torch's NAdam lets β1 grow from step to step. Use adamas.torch.NAdam, or another dialect"
    ),
    ("keras", "nesterov"): (
        "Keras' Nadam lets β1 grow from step to step. Use another dialect"
    ),
}  # fmt: skip

#: Why a method is missing in a dialect that has something of its name: dialect, method, reason.
_NO_METHODS = {
    ("paper", "RAdam"): (
        "but Liu et al. (2020) rectify where ρ_t is above 4, and adamas above 5, as their own code "
        "and torch do"
    )
}


def with_conventions(method: str, dialect: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given, and for those that are None what the dialect says.

    ``method`` is "Adam", "AdamW", "RAdam" or "RMSProp"; ``given`` has the method's own
    arguments. Raises ValueError for a dialect that does not exist or has no such method, for an
    option that is None and has no default there, and for what the named library computes by
    another rule.
    """
    if dialect is not None and dialect not in get_args(Dialect):
        possible = ", ".join(f'"{name}"' for name in get_args(Dialect))
        raise ValueError(f"dialect is {dialect!r}, but it must be one of {possible}, or None.")
    if dialect not in _CONVENTIONS[method]:
        reason = _NO_METHODS.get((str(dialect), method), f"which has no {method}")
        possible = ", ".join(f'"{name}"' for name in _CONVENTIONS[method] if name is not None)
        raise ValueError(
            f'dialect is "{dialect}", {reason}. With {method} it must be one of {possible}, or '
            "None."
        )
    for option in ("amsgrad", "nesterov"):
        reason = _OTHER_RULES.get((str(dialect), option))
        if reason is not None and given.get(option) is True:
            raise ValueError(
                f'dialect is "{dialect}" and {option} is True, but {reason}, or leave {option} out.'
            )
    says = dict(_CONVENTIONS[method][dialect])
    if dialect == "paper" and given.get("amsgrad") is True:
        says["bias_correction"] = "none"
    options = dict(given)
    for option, value in given.items():
        if value is None and option in _CONVENTIONS[method][None]:
            if option not in says:
                raise ValueError(
                    f'{option} is missing: dialect "{dialect}" has no default for it. Give one.'
                )
            options[option] = says[option]
    return options
