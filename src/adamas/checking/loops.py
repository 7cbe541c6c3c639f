"""Functions that make all steps themselves and ask for gradients: ``adam(gradient, x, …)``.

As in HIPS autograd. Each step is seen by letting the function run from the start with the gradients
that it has had, up to the call after that step, which has the new parameters.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.callables import CONTAINERS, packed, unpacked
from adamas.checking.prediction import Settings
from adamas.checking.subjects import Arguments, Subject, is_setting
from adamas.checking.trials import Convention, Stepped, Trial, quiet

__all__ = ["Loop", "roles_of_loop"]

Array = NDArray[Any]

_GRADIENT = re.compile(r"(.*grad.*|g|df.*|d_?f|dfdx|jac.*|.*derivative.*|∇.*)", re.IGNORECASE)
_VALUE = re.compile(r"(f|fun|func|fn|function|objective.*|loss.*|cost.*|value)", re.IGNORECASE)
_START = re.compile(
    r"(x|x_?0|w|w_?0|p|p_?0|.*init.*|start.*|.*params?_?0?|.*weights?_?0?|theta_?0?|θ0?|guess)",
    re.IGNORECASE,
)
_COUNT = re.compile(
    r"(n|num|max)_?(iters?|iterations?|steps?|epochs?)|iters?|iterations|steps|epochs|niter|t_max",
    re.IGNORECASE,
)


def roles_of_loop(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the role of each argument of a function that loops; None where it is none.

    Roles are "gradient", "value" (of which none is asked for), "start" and "count".
    """
    roles: dict[str, str] = {}
    for name, p in signature.parameters.items():
        if is_setting(name) or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if _COUNT.fullmatch(name):
            roles[name] = "count"
            continue
        patterns = {"gradient": _GRADIENT, "value": _VALUE, "start": _START}
        role = next(
            (r for r, each in patterns.items() if r not in roles.values() and each.fullmatch(name)),
            None,
        )
        if p.default is p.empty:
            if role is None:
                return None
            roles[name] = role
    return roles if {"gradient", "start"} <= set(roles.values()) else None


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """Ends a loop that has shown what it was run for."""


class Loop(Convention):
    """A function that makes steps until it has made enough."""

    def __init__(
        self, subject: Subject, arguments: Arguments, roles: Mapping[str, str], container: str
    ) -> None:
        super().__init__(subject, arguments)
        self.roles, self.container = roles, container
        self.arrays = 1 if container == "array" else 2
        self.mixes_shapes = container != "even list"
        self.takes = frozenset(roles)
        what = CONTAINERS[container]
        self.name = f"a loop ({', '.join(roles)}) that asks for the gradient of {what}"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:  # noqa: ARG002 - a loop has one rate
        """Return a trial that runs the loop anew for every step."""
        return _LoopTrial(self, arrays, self.keywords(settings))


class _LoopTrial(Trial):
    def __init__(self, loop: Loop, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._loop, self._start, self._keywords = loop, arrays, keywords
        self._gradients: list[list[Array]] = []
        #: What is to be put in place of the parameters before the gradient of a number.
        self._put: dict[int, list[Array]] = {}

    def step(self, gradients: list[Array]) -> Stepped:
        self._gradients.append([np.array(g) for g in gradients])
        container, asked = self._loop.container, 0
        found: list[Array] | None = None
        handed: Any = None
        began = time.perf_counter()

        def gradient(*given: Any, **_: Any) -> Any:
            nonlocal asked, found, handed, began
            if asked in self._put:
                self._replace(given, self._put[asked])
            if asked == len(self._gradients):
                self.seconds = time.perf_counter() - began
                found = self._among(given)
                raise _Enough
            handed = packed([np.array(g) for g in self._gradients[asked]], container)
            asked += 1
            began = time.perf_counter()
            return handed

        try:
            with quiet():
                end = self._loop.subject.make(**self._arguments(gradient), **self._keywords)
        except _Enough:
            pass
        else:
            if asked < len(self._gradients):
                raise ValueError(
                    f"it asked for {asked} gradients and ended, where step "
                    f"{len(self._gradients)} was to be seen"
                )
            found = self._among(end if isinstance(end, tuple) else (end,))
        if found is None:
            raise TypeError("the new parameters are nowhere to be found after the step")
        after = unpacked(handed, self._start, container)
        return Stepped(found, self._gradients[-1] if after is None else after)

    def _among(self, values: tuple[Any, ...]) -> list[Array] | None:
        """Return the first of some values that is built as the parameters."""
        all_read = (unpacked(each, self._start, self._loop.container) for each in values)
        return next((each for each in all_read if each is not None), None)

    def _arguments(self, gradient: Any) -> dict[str, Any]:
        held = packed([np.array(a, order="K") for a in self._start], self._loop.container)
        given = {"gradient": gradient, "value": lambda *_: 0.0, "start": held}
        given["count"] = len(self._gradients) + 2
        return {name: given[role] for name, role in self._loop.roles.items()}

    def put(self, parameters: list[Array]) -> bool:
        """Put values into the arrays where the loop asks for the next gradient: its own."""
        self._put[len(self._gradients)] = [np.array(p) for p in parameters]
        return True

    def _replace(self, given: tuple[Any, ...], values: list[Array]) -> None:
        for each in given:
            if unpacked(each, self._start, self._loop.container) is None:
                continue
            leaves = [each] if self._loop.container == "array" else each
            leaves = leaves.values() if isinstance(leaves, Mapping) else leaves
            for leaf, value in zip(leaves, values, strict=True):
                if isinstance(leaf, np.ndarray) and leaf.flags.writeable:
                    np.copyto(leaf, value)
            return
