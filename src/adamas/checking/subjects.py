"""What is to be checked: found by its name, and which of its arguments mean what."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adamas.checking.prediction import Settings
from adamas.checks import check_betas, check_number
from adamas.importing import called

__all__ = [
    "Arguments",
    "CannotCheckError",
    "Subject",
    "arguments_of",
    "find",
    "is_setting",
    "settings_in",
    "signature_of",
]


class CannotCheckError(ValueError):
    """A subject cannot be run: the message says what was given, what is possible, what to do."""


@dataclass(frozen=True)
class Subject:
    """Something that makes steps: its name, the class, factory or function, and its options."""

    name: str
    make: Callable[..., Any]
    #: Keyword arguments that are given whenever it is made or called.
    options: Mapping[str, Any]


def find(subject: object, options: Mapping[str, Any]) -> Subject:
    """Return the subject that a name or a callable stands for, with ``options``.

    Raises CannotCheckError.
    """
    if isinstance(subject, Subject):
        return dataclasses.replace(subject, options=options)
    if isinstance(subject, str):
        return Subject(subject, _found(subject), options)
    if hasattr(subject, "step") and not isinstance(subject, type):
        raise CannotCheckError(
            f"The subject is an object of class {type(subject).__name__}, whose options stand "
            "already. Give its class, or a function that makes it, so that other options can be "
            "tried."
        )
    if not callable(subject):
        raise CannotCheckError(
            f"The subject is {subject!r:.80}, but it must be a class, a function that makes an "
            "optimizer, a function that makes a step, or the name of one."
        )
    name = getattr(subject, "__qualname__", type(subject).__name__)
    module = getattr(subject, "__module__", None)
    return Subject(f"{module}:{name}" if module else name, subject, options)


def _found(name: str) -> Callable[..., Any]:
    try:
        return called(name, "Class", "adam|optim|step|update")
    except ValueError as error:
        is_place = ":" in name or name.endswith(".py")
        example = "" if is_place else " For example: adamas check torch.optim:Adam"
        raise CannotCheckError(f"{error}{example}") from error.__cause__


# -- arguments -----------------------------------------------------------------------------------

_LR = ("lr", "learning_rate", "learning_rate_init", "step_size", "stepsize", "eta", "η")
_NAMES: dict[str, tuple[str, ...]] = {
    "lr": (*_LR, "alpha", "α"),
    "beta1": ("beta1", "b1", "beta_1", "beta_one", "β1", "rho1"),
    "beta2": ("beta2", "b2", "beta_2", "beta_two", "β2", "rho2"),
    "eps": ("eps", "epsilon", "eps_hat", "ε"),
    "weight_decay": ("weight_decay", "wd", "weight_decay_rate", "decay_weight", "lam", "lambda_"),
    "betas": ("betas",),
    "eps_root": ("eps_root",),
}
#: A decay rate that stands alone: the only one of Momentum or RMSProp.
_LONE_RATES = ("beta", "rho", "decay", "alpha", "momentum", "β", "gamma")


@dataclass(frozen=True)
class Arguments:
    """How lr, betas, eps and weight_decay are called in a signature, and their defaults there."""

    #: Our name, or "betas" or "beta", to theirs.
    names: Mapping[str, str]
    defaults: Settings
    #: Names of the arguments that have no default and are none of these.
    others: tuple[str, ...]
    #: Whether further keywords are taken that the signature does not name.
    open: bool = False

    @property
    def known(self) -> frozenset[str]:
        """Return their names for all that is set from ``Settings``."""
        return frozenset(self.names.values())

    @property
    def settable(self) -> frozenset[str]:
        """Return which of lr, beta1, beta2, eps and weight_decay can be given."""
        found = set(self.names)
        if found & {"betas", "beta"}:
            found |= {"beta1", "beta2"}
        return frozenset(found - {"betas", "beta", "eps_root"})

    def keywords(self, settings: Settings) -> dict[str, Any]:
        """Return the keyword arguments that stand for ``settings``."""
        given: dict[str, Any] = {}
        for ours, theirs in self.names.items():
            if ours == "betas":
                given[theirs] = (settings.beta1, settings.beta2)
            elif ours == "beta":
                given[theirs] = settings.beta2
            else:
                given[theirs] = getattr(settings, ours)
        return given


def arguments_of(signature: inspect.Signature, options: Mapping[str, Any]) -> Arguments:
    """Return what the arguments of ``signature`` mean.

    ``options`` are given by the user: those that are settings take the place of the defaults.
    Raises CannotCheckError where such a one is no number.
    """
    parameters = dict(signature.parameters)
    defaults = {
        name: options.get(name, None if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }
    if "eps_root" not in options:
        defaults["eps_root"] = 0.0  # whatever it is by default: it is not everywhere in the root
    names = _names_in(parameters)
    if not {"betas", "beta1", "beta2"} & set(names):
        lone = [n for n in _LONE_RATES if n in parameters and n not in names.values()]
        lone = [n for n in lone if defaults[n] is None or _is_number(defaults[n])]
        if lone:
            names["beta"] = lone[0]
    known = set(names.values())
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    others = tuple(
        name
        for name, p in parameters.items()
        if name not in {*known, *options} and p.default is p.empty and p.kind not in kinds
    )
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for ours, theirs in names.items():
        if options.get(theirs) is not None:
            defaults[theirs] = _given(ours, theirs, options[theirs])
    settings = _settings_of({ours: defaults[theirs] for ours, theirs in names.items()})
    return Arguments(names, settings, others, is_open)


def _given(ours: str, theirs: str, value: Any) -> Any:
    """Return a setting that the user gave as numbers."""
    try:
        if ours == "betas":
            numbers = found = check_betas(value, theirs)
        else:
            numbers = (found := check_number(theirs, value),)
    except (TypeError, ValueError) as error:
        raise CannotCheckError(str(error)) from None
    if not all(each is None or math.isfinite(each) for each in numbers):
        raise CannotCheckError(
            f"{theirs} is {value}, but a check needs finite settings, or no update tells anything. "
            "What NaN and infinity in gradients do is told in every report, under edge."
        )
    return found


def _names_in(known: Iterable[str]) -> dict[str, str]:
    """Return our names for settings, each with theirs, where one of those is ``known``."""
    found = ((ours, [each for each in theirs if each in known]) for ours, theirs in _NAMES.items())
    return {ours: names[0] for ours, names in found if names}


def settings_in(values: Mapping[str, Any]) -> Arguments:
    """Return what the entries of a dict mean that has settings among other things."""
    numbers = [name for name in values if name == "betas" or _is_number(values[name])]
    names = _names_in(numbers)
    settings = _settings_of({ours: values[theirs] for ours, theirs in names.items()})
    return Arguments(names, settings, ())


def _settings_of(defaults: Mapping[str, Any]) -> Settings:
    """Return what stands where nothing is given: the paper's numbers where there is no default."""
    paper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    for ours in paper:
        if _is_number(defaults.get(ours)):
            paper[ours] = float(defaults[ours])
    betas = defaults.get("betas")
    if isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(_is_number, betas)):
        paper["beta1"], paper["beta2"] = map(float, betas)
    if "beta" in defaults:
        alone = float(defaults["beta"]) if _is_number(defaults["beta"]) else 0.9
        paper["beta1"] = paper["beta2"] = alone
    return Settings(**paper)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def signature_of(make: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of ``make``, with what its base classes take through ``**kwargs``.

    Keywords that an annotation names (``Unpack``) are its own: they stay ``**``.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return None
    if not isinstance(make, type):
        return signature
    merged = dict(signature.parameters)
    for base in make.__mro__[1:-1]:
        passed_on = (p for p in merged.values() if p.kind is p.VAR_KEYWORD)
        if not any("Unpack[" not in str(p.annotation) for p in passed_on):
            break
        try:
            _, *further = inspect.signature(base.__init__).parameters.values()
        except (TypeError, ValueError):
            break
        merged = {name: p for name, p in merged.items() if p.kind is not p.VAR_KEYWORD}
        for p in further:
            if p.kind is p.VAR_KEYWORD:
                merged[p.name] = p
            elif p.kind is not p.VAR_POSITIONAL:
                merged.setdefault(p.name, p.replace(kind=p.KEYWORD_ONLY))
    order = sorted(merged.values(), key=lambda p: p.kind)
    return signature.replace(parameters=order)


def is_setting(name: str) -> bool:
    """Return whether an argument of this name is taken for a setting, such as lr or eps."""
    return name in _LONE_RATES or any(name in names for names in _NAMES.values())
