"""A subject at work: what every way of calling one has in common."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.checking.subjects import Arguments, Subject, signature_of

__all__ = ["Convention", "Stepped", "Trial", "quiet", "told"]

Array = NDArray[Any]


class Stepped(NamedTuple):
    """What one step left behind: parameters, and the gradients as they are after it."""

    parameters: list[Array]
    gradients: list[Array]


class Trial:
    """One optimizer at work on its arrays. A way of calling it fills in what is its own."""

    #: What that way is, for people; a ``Contained`` convention fills in roles and container.
    name: ClassVar[str] = ""
    #: How long the subject itself took for the last step.
    seconds: float = 0.0
    #: The object that has the learning rate, if any.
    made: Any = None

    def __init__(
        self, convention: Any, arrays: list[Array], settings: Settings, rates: Array | None
    ) -> None:
        self.convention, self.settings, self.rates = convention, settings, rates
        self.wide = any(a.dtype == np.float64 for a in arrays)
        self.t = 0
        #: When the subject began with the last step.
        self.began = 0.0
        with quiet(), self._around():
            copies = [np.array(a, order="K") for a in arrays]
            self._begin(copies, convention.keywords(settings))

    def step(self, gradients: list[Array]) -> Stepped:
        """Make one step."""
        self.t += 1
        with quiet(), self._around():
            given = self._give(gradients)
            if self.rates is not None:
                self._set_rate(float(self.rates[self.t - 1]))
            self.began = time.perf_counter()
            self._advance(given)
            self.seconds = time.perf_counter() - self.began
            return Stepped(self._parameters(), [self._array(each) for each in given])

    def put(self, parameters: list[Array]) -> bool:
        """Put values in place of the parameters; return whether that is possible."""
        with quiet(), self._around():
            return self._replace(parameters)

    # -- of each way ---------------------------------------------------------------------------

    def _around(self) -> AbstractContextManager[Any]:
        """Return what the subject must run in."""
        return nullcontext()

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        """Make the optimizer, at work on ``arrays``."""
        raise NotImplementedError

    def _give(self, gradients: list[Array]) -> list[Any]:
        """Return the gradients as the subject has them."""
        return gradients

    def _set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step, where that is possible."""
        name = self.convention.arguments.names.get("lr")
        if name is not None and hasattr(self.made, name):
            setattr(self.made, name, rate)

    def _advance(self, given: list[Any]) -> None:
        """Let the subject make its step: this is what is timed."""
        raise NotImplementedError

    def _parameters(self) -> list[Array]:
        """Return copies of the parameters."""
        raise NotImplementedError

    def _array(self, value: Any) -> Array:
        """Return a copy of a parameter or gradient of the subject."""
        return np.array(value)

    def _replace(self, parameters: list[Array]) -> bool:
        """Do what ``put`` promises."""
        raise NotImplementedError


class Convention:
    """A way of calling one subject."""

    #: How many arrays it is given: two, but one where it takes no more.
    arrays: int = 2
    #: Whether these arrays may be of different shapes.
    mixes_shapes: bool = True
    #: Whether state outlives the optimizer: a second one does not start anew.
    outlives: bool = False
    #: The arguments of the subject that are given besides its settings.
    takes: frozenset[str] = frozenset()

    def __init__(self, trial: type[Trial], subject: Subject, arguments: Arguments) -> None:
        self.trial, self.subject, self.arguments = trial, subject, arguments
        #: What it is, for people.
        self.name = trial.name

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a new optimizer at work on copies of ``arrays``.

        ``rates`` is the learning rate of each step, where it changes.
        """
        return self.trial(self, arrays, settings, rates)

    @property
    def default(self) -> Settings:
        """The settings that stand where none are given."""
        return self.standing(self.arguments.defaults)

    def standing(self, settings: Settings) -> Settings:
        """Return ``settings`` as far as they can be set, else what stands."""
        defaults = self.arguments.defaults
        names = {"lr", "beta1", "beta2", "eps", "weight_decay"} - self.arguments.settable
        kept = {name: getattr(defaults, name) for name in names}
        if "beta" in self.arguments.names:
            kept["beta1"] = settings.beta2  # One rate stands for both.
        return dataclasses.replace(settings, **kept, eps_root=defaults.eps_root)

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
    """Let the subject divide by zero and warn; what comes of it is looked at.

    Where it ends the program, that is an error: its exit code would be taken for a verdict.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            yield
        except SystemExit as error:
            raise RuntimeError(f"it ends the program (SystemExit: {error})") from error


def told(error: BaseException, most: int) -> str:
    """Return the kind of an error and its first line, of which ``most`` characters are kept."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first[:most]}"
