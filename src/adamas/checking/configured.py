"""Functions that keep settings and state in one dict: ``adam(w, dw, config=None)``.

The dict comes back with the new parameters and is fed to the next step. Where it holds settings
(``config["learning_rate"]``), they can be set by handing over a dict that holds nothing else.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from adamas.checking.callables import Function
from adamas.checking.prediction import Settings
from adamas.checking.subjects import Subject, settings_in

__all__ = ["Configured", "configured"]


class Configured(Function):
    """A function whose settings stand in a dict that it returns."""

    def __init__(
        self, plain: Function, subject: Subject, roles: Mapping[str, str], container: str, key: str
    ) -> None:
        """Take over from ``plain``, which showed what the dict that is fed to ``key`` holds."""
        found = settings_in(shown(plain, key))
        arguments = dataclasses.replace(plain.arguments, names=found.names, defaults=found.defaults)
        super().__init__(subject, arguments, roles, container, "none")
        self._key = key
        told = ", ".join(found.names.values())
        self.name += f", {told} set in {key}"

    def first_fed(self, settings: Settings) -> dict[str, Any]:
        """Return a dict that holds the settings alone."""
        return {self._key: self.arguments.keywords(self.standing(settings))}

    def keywords(self, settings: Settings) -> dict[str, Any]:  # noqa: ARG002 - they are in the dict
        """Return the keyword arguments: only what the user gives."""
        return dict(self.subject.options)


def configured(
    plain: Function, subject: Subject, roles: Mapping[str, str], container: str
) -> Configured | None:
    """Return the convention in which settings are set in the dict that comes back.

    None where it has none, and where the argument is a dict by default, which could outlive a run.
    """
    fed = [name for name, role in roles.items() if role == "fed"]
    if len(fed) != 1 or plain.arguments.names:
        return None
    if inspect.signature(subject.make).parameters[fed[0]].default is not None:
        return None
    try:
        found = settings_in(shown(plain, fed[0]))
    except Exception:
        return None  # As a plain function it is told what is wrong.
    return Configured(plain, subject, roles, container, fed[0]) if found.names else None


def shown(plain: Function, key: str) -> Mapping[str, Any]:
    """Return the dict that the first step returns; empty where it is none."""
    arrays = [np.full(4, 100.0)] * plain.arrays
    trial: Any = plain.start(arrays, plain.arguments.defaults)
    trial.step([np.full(4, 0.5) for _ in arrays])
    found = trial.fed.get(key)
    return found if isinstance(found, Mapping) else {}
