"""The phase as an optimizer shows it, and what of it may be set between steps.

An optimizer has its ``adamas.Phase`` as ``_phase``, and takes other options by
``_change_phase``. What the constructor was given is for a script to give again. What was set in a
run belongs to the run: its state_dict has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from types import MethodType
from typing import Any, Generic, NoReturn, TypeVar, cast, overload

from adamas.checks import check_names, kind
from adamas.options import Phase

__all__ = [
    "ANEW",
    "KEY",
    "SETTABLE",
    "Fixed",
    "Setting",
    "fixed_method",
    "loaded",
    "no_dict",
    "saved",
    "shown",
    "stepping",
    "told",
    "whole",
]

#: Where it stands in a state_dict, if anything was set.
KEY = "phase"
_SETTABLE = ("clip_norm", "clip_update", "on_nonfinite", "skip_above")
#: The same in a sentence.
SETTABLE = f"{', '.join(_SETTABLE[:-1])} and {_SETTABLE[-1]}"
#: What the options of whole steps are where none is given.
_USUAL = {**vars(Phase()), "offload": False}
#: What help() and editors say of them.
_SAID = {
    "clip_norm": "Largest global norm of the gradients (clipping); None: no clipping. May be set "
    "between steps.",
    "clip_update": "Largest root mean square of a tensor's update, by its gradient and its second "
    "moment (StableAdamW); None: no clipping. May be set between steps.",
    "on_nonfinite": (
        "What happens to a step with NaN or infinite gradients: it computes with them "
        '("propagate"), is skipped ("skip") or refused ("raise"). May be set between steps.'
    ),
    "ema": "Decay rate of the exponential moving average (EMA) of the weights; None: there is "
    "none.",
    "seed": "Seed of the random bits of stochastic rounding.",
    "track_changes": "Whether steps mark which elements of the parameters they change.",
    "skip_above": "How many standard deviations the norm of the gradients may lie above the mean "
    "of the last steps'; a step above is left out. None: none is. May be set between steps.",
    "skip_window": "Of how many steps ``skip_above`` takes mean and standard deviation.",
    "clip_group": "Process group over which parameters are distinct, as of pipeline stages: norm "
    "and checks are of all its processes. Groups may have their own. May be set between steps.",
    "copy_to": "Dtype of the low-precision copies, or the tensors that were given for them; "
    "None: no copies.",
    "offload": "Whether the optimizer state of CUDA parameters is kept in host memory.",
    "engine": "The only engine that may step; None: each tensor is stepped by the fastest that "
    "can.",
    "phase": "All options of a step together, as ``adamas.Phase``.",
}
#: The way out where a run cannot change an option.
ANEW = "Create another optimizer with {name}= and load the state_dict() of this one."

_T = TypeVar("_T")
_Method = TypeVar("_Method", bound=Callable[..., Any])


class Fixed(Generic[_T]):
    """What is read at the optimizer and cannot be set there."""

    def __init__(self, read: Callable[[Any], _T], way_out: str = ANEW) -> None:
        """Give what ``read`` returns for an optimizer; errors end with the ``way_out``."""
        self._read, self._way_out = read, way_out

    def __set_name__(self, owner: type, name: str) -> None:
        """Be known by this name."""
        self._name = name
        self.__doc__ = _SAID[name]

    @overload
    def __get__(self, optimizer: None, owner: type) -> Fixed[_T]: ...
    @overload
    def __get__(self, optimizer: object, owner: type | None = None) -> _T: ...
    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        """Return it as it is now."""
        return self if optimizer is None else self._read(optimizer)

    def __set__(self, optimizer: Any, value: NoReturn) -> None:
        """Raise AttributeError."""
        raise _refusal("set", self._name, self._way_out)

    def __delete__(self, optimizer: Any) -> None:
        """Raise AttributeError."""
        raise _refusal("deleted", self._name, self._way_out)


class Setting(Fixed[_T]):
    """An option of the phase that is read at the optimizer, and may be set there between steps."""

    def __init__(self) -> None:
        """Be read of the phase."""
        way_out = "Set it to {usual!r}, as it is where none is given."
        super().__init__(lambda optimizer: getattr(stepping(optimizer)._phase, self._name), way_out)

    def __set__(self, optimizer: Any, value: _T) -> None:
        """Take another from the next step on; wrong ones raise as at creation, changing nothing."""
        self._made(optimizer)._change_phase({self._name: value})

    def _made(self, optimizer: Any) -> Any:
        """Return who makes the steps; raise AttributeError where it is not there yet."""
        stands = stepping(optimizer)
        if not hasattr(stands, "_phase"):
            raise AttributeError(
                f"{self._name} is set before the optimizer is made. Call super().__init__() first, "
                f"and give it {self._name}=."
            )
        return stands


def fixed_method(function: _Method) -> _Method:
    """Decorate a method that has the name of an option, and so refuses to be set as one."""
    return cast(Any, _FixedMethod(function))


class _FixedMethod:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self._function if optimizer is None else MethodType(self._function, optimizer)

    def __set__(self, optimizer: Any, value: NoReturn) -> None:
        raise _refusal("set", self._function.__name__, ANEW)

    def __delete__(self, optimizer: Any) -> None:
        raise _refusal("deleted", self._function.__name__, ANEW)


def stepping(optimizer: Any) -> Any:
    """Return who makes the steps. Lightning's wrapper is of the same class, and has it."""
    wrapped = getattr(optimizer, "optimizer", None)
    return wrapped if hasattr(wrapped, "_phase") else optimizer


def _refusal(done: str, name: str, way_out: str) -> AttributeError:
    usual = vars(Phase()).get(name)
    text = f"{name} cannot be {done} in a run. {way_out.format(name=name, usual=usual)}"
    return AttributeError(text)


def whole() -> Fixed[Phase]:
    """Return what shows all options of the phase together."""
    return Fixed(
        lambda optimizer: stepping(optimizer)._phase,
        f"Set its options one by one ({SETTABLE}), or create another optimizer.",
    )


def told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options of whole steps that are not what they are where none is given."""
    return {name: value for name, value in options.items() if value != _USUAL.get(name)}


def shown(text: str, options: Mapping[str, Any]) -> str:
    """Return torch's text of an optimizer with what is told of whole steps."""
    lines = "".join(f"    {name}: {options[name]}\n" for name in sorted(options))
    return f"{text.removesuffix(')')}Phase\n{lines})" if options else text


def saved(phase: Phase, phase_set: Set[str]) -> dict[str, Any]:
    """Return what a state_dict says of the options that were set: nothing if none was."""
    names = [name for name in _SETTABLE if name in phase_set]
    return {KEY: {name: getattr(phase, name) for name in names}} if names else {}


def no_dict(key: str, given: object, entries: str) -> TypeError:
    """Return the error of what is to be loaded in place of a dict of such entries."""
    return TypeError(
        f"{key!r} to load is {kind(given)}, but it must be a dict of {entries}. "
        "Give what state_dict() returned."
    )


def loaded(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a state_dict says were set, checked."""
    chosen = state_dict.get(KEY, {})
    if not isinstance(chosen, Mapping):
        raise no_dict(KEY, chosen, SETTABLE)
    check_names(f"{KEY!r} to load", chosen, _SETTABLE)
    try:
        phase = Phase(**chosen)
    except (TypeError, ValueError) as error:
        raise type(error)(f"In {KEY!r} to load: {error}") from None
    return {name: getattr(phase, name) for name in chosen}
