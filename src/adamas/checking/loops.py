"""Functions that make all steps themselves and ask for gradients: ``adam(gradient, x, …)``.

As in HIPS autograd. Each step is seen by letting the function run from the start with the gradients
that it has had, up to the call after that step, which has the new parameters.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.callables import fill, packed, unpacked
from adamas.checking.trials import Trial

__all__ = ["Loop"]

Array = NDArray[Any]


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """Ends a loop that has shown what it was run for; holds what it handed over last."""


class Loop(Trial):
    """A function that makes steps until it has made enough."""

    name = "a loop ({roles}) that asks for the gradient of {what}"

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._start, self._keywords = arrays, keywords
        self._container: str = self.convention.container
        self._gradients: list[list[Array]] = []
        #: What is to be put in place of the parameters before the gradient of a number.
        self._put: dict[int, list[Array]] = {}

    def _give(self, gradients: list[Array]) -> list[Any]:
        self._gradients.append([g.copy() for g in gradients])
        return gradients

    def _advance(self, given: list[Any]) -> None:
        asked, last = 0, len(self._gradients) - 1

        def gradient(*values: Any, **_: Any) -> Any:
            nonlocal asked
            if asked in self._put:
                self._fill(values, self._put[asked])
            if asked > last:
                raise _Enough(*values)
            handed = given if asked == last else [g.copy() for g in self._gradients[asked]]
            asked += 1
            self.began = time.perf_counter()
            return packed(handed, self._container)

        held = packed([np.array(a, order="K") for a in self._start], self._container)
        values = {"gradient": gradient, "value": lambda *_: 0.0, "start": held, "count": last + 3}
        arguments = {name: values[role] for name, role in self.convention.roles.items()}
        try:
            end = self.convention.subject.make(**arguments, **self._keywords)
        except _Enough as enough:
            self._found = enough.args
        else:
            if asked <= last:
                raise ValueError(
                    f"it asked for {asked} gradients and ended, where step {last + 1} was to be "
                    "seen"
                )
            self._found = end if isinstance(end, tuple) else (end,)

    def _parameters(self) -> list[Array]:
        for each in self._found:
            found = unpacked(each, self._start, self._container)
            if found is not None:
                return found
        raise TypeError("the new parameters are nowhere to be found after the step")

    def _replace(self, parameters: list[Array]) -> bool:
        """Put values into the arrays where the loop asks for the next gradient: its own."""
        self._put[len(self._gradients)] = [np.array(p) for p in parameters]
        return True

    def _fill(self, given: tuple[Any, ...], values: list[Array]) -> None:
        for each in given:
            if unpacked(each, self._start, self._container) is not None:
                fill(each, values, self._container)
                return
