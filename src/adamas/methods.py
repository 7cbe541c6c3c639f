"""The methods that ``adamas demo`` and ``adamas race`` compare, by their names in tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adamas.checks import near
from adamas.numpy import Adam, Momentum, Optimizer, RMSProp

__all__ = ["METHODS", "USUAL", "named"]

#: What makes an optimizer of arrays, given a learning rate. "note" is Adam without the exponent t
#: in the bias correction.
METHODS: dict[str, Callable[..., Optimizer]] = {
    "Momentum": Momentum,
    "RMSProp": RMSProp,
    "Adam": Adam,
    "note": partial(Adam, bias_correction="first-step"),
}

#: Those that are compared where nobody says which.
USUAL = ("Momentum", "RMSProp", "Adam")


def named(names: Sequence[str]) -> tuple[str, ...]:
    """Return keys of ``METHODS`` for names in any case, in the order given."""
    known = {method.lower(): method for method in METHODS}
    possible = f"Possible are {', '.join(known)}."
    found: list[str] = []
    for name in names:
        method = known.get(name.strip().lower())
        if method is None:
            raise ValueError(
                f"There is no method {name.strip()!r}.{near(name, known)} {possible}"
                if name.strip()
                else f"The name of a method is empty. {possible}"
            )
        if method in found:
            raise ValueError(f"The method {method.lower()} is given twice. Leave one out.")
        found.append(method)
    return tuple(found)
