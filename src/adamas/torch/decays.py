"""How the parameters of a group decay where torch's flags cannot say it: ``decay``, ``lr_max``.

Both stand in ``param_groups``, where they were given. Without ``decay`` the class says it: through
the gradient, or decoupled.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from adamas.checks import check_amount, check_choice
from adamas.coefficients import at_step
from adamas.options import Decay, Options, check_greatest, is_above

__all__ = [
    "KEYS",
    "GroupDecay",
    "Shrinking",
    "check",
    "check_values",
    "completed",
    "is_at_most",
    "options",
    "shrinking",
]

#: The options of a group that concern decay.
KEYS = ("decay", "lr_max")
#: The decays that torch's classes do not have.
GroupDecay = Literal["fully-decoupled", "cautious", "corrected"]
#: How to have those that torch's classes have, which NumPy's name.
_TORCHS = {
    "decoupled": "Decoupled decay is that of AdamW, and of Adam, NAdam and RAdam with "
    "decoupled_weight_decay=True, where decay is left out.",
    "l2": "L2 is what all classes but AdamW do where decay is left out.",
}
#: Those that know the greatest learning rate.
_WITH_MOST = ("fully-decoupled", "corrected")

Group = Mapping[str, Any]


class Shrinking(NamedTuple):
    """The numbers of the rule that make parameters decay."""

    l2: float
    decay: float
    opposed: float


def check_values(group: Group, where: str = "") -> None:
    """Raise TypeError or ValueError for a decay that there is not, or no greatest learning rate.

    ``where`` names the group for the text.
    """
    kind, most = group.get("decay"), _number(group.get("lr_max"))
    if isinstance(kind, str) and kind in _TORCHS:
        raise ValueError(
            f'{where}decay is "{kind}", but it must be one of "fully-decoupled", "cautious", '
            f'"corrected". {_TORCHS[kind]}'
        )
    if kind is not None:
        check_choice(f"{where}decay", kind, get_args(GroupDecay))
    if most is not None:
        check_amount(f"{where}lr_max", most)


def check(group: Group, where: str) -> None:
    """Raise also ValueError where the one does not go with the other, or lr is above lr_max."""
    check_values(group, where)
    kind, most = group.get("decay"), _number(group.get("lr_max"))
    needs_most = kind in _WITH_MOST
    if most is not None and not needs_most:
        raise ValueError(
            f"{where}lr_max is {most!r}, but decay is {kind!r}: lr_max has a meaning with "
            'decay="fully-decoupled" and decay="corrected" only. Choose one of these or leave '
            "lr_max out."
        )
    if needs_most and not most:
        raise ValueError(
            f"{where}decay is {kind!r}, which needs the greatest learning rate of the run, but "
            f"lr_max is {most!r}. Give it as lr_max."
        )
    lr = _known_rate(group)
    if needs_most and lr is not None and most:
        check_greatest(f"{where}lr", lr, most, str(kind))


def is_at_most(group: Group) -> bool:
    """Return whether the learning rate is not above the greatest, as far as both are known here."""
    lr, most = _known_rate(group), _number(group.get("lr_max"))
    return lr is None or most is None or not is_above(lr, most)


def completed(group: Group, defaults: Group) -> dict[str, Any]:
    """Return a group with its greatest learning rate, that which it begins with if none is given.

    None where a default is for another decay than the group's.
    """
    merged = {**defaults, **group}
    needs_most = merged.get("decay") in _WITH_MOST
    if needs_most and merged.get("lr_max") is None:
        return {**group, "lr_max": _number(merged["lr"])}
    if "decay" in group and "lr_max" in defaults and not needs_most:
        return {"lr_max": None, **group}
    return {**group}


def options(group: Group, usual: Decay) -> dict[str, Any]:
    """Return decay and greatest learning rate as ``adamas.Options`` has them."""
    kind = group.get("decay")
    if kind is None:
        return {"decay": usual}
    return {"decay": kind, "lr_max": _number(group.get("lr_max"))}


def shrinking(group: Group, usual: Decay) -> Shrinking:
    """Return the numbers of the coming step."""
    lr, amount = (float(_number(group[name])) for name in ("lr", "weight_decay"))
    if group.get("decay") is None:  # torch lets any number pass
        decay = lr * amount if usual == "decoupled" else 0.0
        return Shrinking(amount if usual == "l2" else 0.0, decay, decay)
    named = Options(betas=(None, None), weight_decay=amount, **options(group, usual))
    if named.lr_max is not None:
        check_greatest("lr", lr, named.lr_max, named.decay)
    numbers = at_step(named, 1, lr)
    return Shrinking(numbers.l2, numbers.decay, numbers.opposed)


def _known_rate(group: Group) -> float | None:
    """Return the learning rate, where that waits for no device."""
    lr = group.get("lr")
    if isinstance(lr, Tensor) and not lr.is_cpu:
        return None
    number = _number(lr)
    return float(number) if isinstance(number, Real) else None


def _number(value: Any) -> Any:
    return float(value.item()) if isinstance(value, Tensor) else value
