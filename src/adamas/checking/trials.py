"""A subject at work: what every way of calling one has in common."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.checking.subjects import Arguments, Subject, signature_of

__all__ = ["Convention", "Stepped", "Trial", "quiet"]

Array = NDArray[Any]


class Stepped(NamedTuple):
    """What one step left behind: parameters, and the gradients as they are after it."""

    parameters: list[Array]
    gradients: list[Array]


class Trial:
    """One optimizer at work on its arrays."""

    #: How long the subject itself took for the last step.
    seconds: float = 0.0

    def step(self, gradients: list[Array]) -> Stepped:
        """Make one step."""
        raise NotImplementedError

    def put(self, parameters: list[Array]) -> bool:
        """Put values in place of the parameters; return whether that is possible."""
        raise NotImplementedError


class Convention:
    """A way of calling one subject."""

    #: What it is, for people.
    name: str = ""
    #: How many arrays it is given: two, but one where it takes no more.
    arrays: int = 2
    #: Whether these arrays may be of different shapes.
    mixes_shapes: bool = True
    #: Whether state outlives the optimizer: a second one does not start anew.
    outlives: bool = False
    #: The arguments of the subject that are given besides its settings.
    takes: frozenset[str] = frozenset()

    def __init__(self, subject: Subject, arguments: Arguments) -> None:
        """Keep what is called, and what its arguments mean."""
        self.subject = subject
        self.arguments = arguments

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a new optimizer at work on copies of ``arrays``.

        ``rates`` is the learning rate of each step, where it changes.
        """
        raise NotImplementedError

    @property
    def default(self) -> Settings:
        """The settings that stand where none are given."""
        return self.standing(self.arguments.defaults)

    def standing(self, settings: Settings) -> Settings:
        """Return ``settings`` as far as they can be set, else what stands."""
        names = ("lr", "beta1", "beta2", "eps", "weight_decay")
        kept = {
            name: getattr(self.arguments.defaults, name)
            for name in names
            if name not in self.arguments.settable
        }
        if "beta" in self.arguments.names:
            kept["beta1"] = settings.beta2  # One rate stands for both.
        eps_root = self.arguments.defaults.eps_root
        return dataclasses.replace(settings, **kept, eps_root=eps_root)

    def left_alone(self) -> list[str]:
        """Return the arguments that have defaults and were left at them."""
        signature = signature_of(self.subject.make)
        given = {*self.takes, *self.arguments.known, *self.subject.options}
        parameters = {} if signature is None else signature.parameters
        return [
            name for name, p in parameters.items() if p.default is not p.empty and name not in given
        ]

    def keywords(self, settings: Settings) -> dict[str, Any]:
        """Return all keyword arguments for ``settings``."""
        given = self.arguments.keywords(self.standing(settings))
        more = {n: v for n, v in self.subject.options.items() if n not in self.arguments.known}
        return {**given, **more}


@contextmanager
def quiet() -> Generator[None]:
    """Let the subject divide by zero and warn; what comes of it is looked at."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
