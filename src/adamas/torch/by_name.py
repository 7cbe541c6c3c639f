"""Optimizers by name, as configurations ask for them."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, overload

from torch import Tensor, nn

from adamas.checks import kind, near
from adamas.keywords import Unpack
from adamas.torch import arguments
from adamas.torch.arguments import PhaseArguments
from adamas.torch.grouping import param_groups
from adamas.torch.optimizer import Optimizer, Params
from adamas.torch.optimizers import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

__all__ = ["create", "names"]

_CLASSES: dict[str, type[Optimizer]] = {
    each.__name__.lower(): each for each in (Adam, AdamW, NAdam, RAdam, RMSprop, SGD)
}
#: Names that other libraries have for what is an option here.
_OPTIONS = {
    "adam8bit": ("adam", 'state="8bit"'),
    "adamw8bit": ("adamw", 'state="8bit"'),
    "adamc": ("adamw", 'decay="corrected"'),
    "amsgrad": ("adam", "amsgrad=True"),
    "momentum": ("sgd", "momentum=0.9"),
    "nadamw": ("nadam", "decoupled_weight_decay=True"),
    "nesterov": ("sgd", "momentum=0.9, nesterov=True"),
    "radamw": ("radam", "decoupled_weight_decay=True"),
    "stableadamw": ("adamw", "clip_update=1.0"),
}


class GroupingArguments(PhaseArguments, total=False):
    """What ``create`` takes for each name: all classes have it, or it makes groups."""

    lr: float | Tensor | None
    weight_decay: float | None
    layer_decay: float | None
    layer_of: Callable[[str], int] | None
    decay_embeddings: bool
    float32: Iterable[str]
    maximize: bool
    foreach: bool | None
    differentiable: bool


class AdamWArguments(GroupingArguments, total=False):
    """The options of ``AdamW``."""

    betas: tuple[float | Tensor, float | Tensor]
    eps: float
    amsgrad: bool
    capturable: bool
    fused: bool | None


class AdamArguments(AdamWArguments, total=False):
    """The options of ``Adam``."""

    decoupled_weight_decay: bool


class NAdamArguments(GroupingArguments, total=False):
    """The options of ``NAdam``."""

    betas: tuple[float, float]
    eps: float
    momentum_decay: float
    decoupled_weight_decay: bool
    capturable: bool


class RAdamArguments(GroupingArguments, total=False):
    """The options of ``RAdam``."""

    betas: tuple[float, float]
    eps: float
    decoupled_weight_decay: bool
    capturable: bool


class RMSpropArguments(GroupingArguments, total=False):
    """The options of ``RMSprop``."""

    alpha: float
    eps: float
    momentum: float
    centered: bool
    capturable: bool


class SGDArguments(GroupingArguments, total=False):
    """The options of ``SGD``."""

    momentum: float
    dampening: float
    nesterov: bool
    fused: bool | None


class AnyArguments(AdamArguments, RMSpropArguments, SGDArguments, total=False):
    """The options of all classes, where the name is known at run time only."""

    momentum_decay: float


def names(pattern: str | Iterable[str] = "*") -> list[str]:
    """Return the names that ``create`` knows, sorted: those that fit a pattern (``"*adam*"``).

    Of several patterns one has to fit.
    """
    several = isinstance(pattern, Iterable) and not isinstance(pattern, (str, bytes))
    patterns: list[Any] = list(pattern) if several else [pattern]
    if not all(isinstance(each, str) for each in patterns):
        raise TypeError(
            f"names() got {pattern!r}, but it takes a pattern, or several. "
            'Give for example names("*adam*").'
        )
    return [
        name
        for name in sorted(_CLASSES)
        if any(fnmatch.fnmatchcase(name, each.lower()) for each in patterns)
    ]


@overload
def create(
    name: Literal["adam"], params: Params | nn.Module, **options: Unpack[AdamArguments]
) -> Adam: ...
@overload
def create(
    name: Literal["adamw"], params: Params | nn.Module, **options: Unpack[AdamWArguments]
) -> AdamW: ...
@overload
def create(
    name: Literal["nadam"], params: Params | nn.Module, **options: Unpack[NAdamArguments]
) -> NAdam: ...
@overload
def create(
    name: Literal["radam"], params: Params | nn.Module, **options: Unpack[RAdamArguments]
) -> RAdam: ...
@overload
def create(
    name: Literal["rmsprop"], params: Params | nn.Module, **options: Unpack[RMSpropArguments]
) -> RMSprop: ...
@overload
def create(
    name: Literal["sgd"], params: Params | nn.Module, **options: Unpack[SGDArguments]
) -> SGD: ...
@overload
def create(name: str, params: Params | nn.Module, **options: Unpack[AnyArguments]) -> Optimizer: ...
def create(
    name: str,
    params: Params | nn.Module,
    *,
    lr: float | Tensor | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
    decay_embeddings: bool = True,
    float32: Iterable[str] = (),
    **options: Any,
) -> Optimizer:
    """Return a new optimizer of the class with this name, in capitals or not.

    ``params`` are parameters or groups, as the class takes them, or the model itself: then its
    parameters that need a gradient are grouped by ``adamas.torch.param_groups``, to which
    ``layer_decay``, ``layer_of``, ``decay_embeddings`` and ``float32`` go. Without ``lr`` and
    ``weight_decay`` the class's own hold; ``options`` are all others that it has.

    Raises ValueError for a name that there is not, and TypeError for an option that the class has
    not.
    """
    made = _class_of(name)
    usual = inspect.signature(made.__init__).parameters
    lr = usual["lr"].default if lr is None else lr
    weight_decay = usual["weight_decay"].default if weight_decay is None else weight_decay
    of_models: dict[str, Any] = {
        "layer_decay": layer_decay,
        "layer_of": layer_of,
        "decay_embeddings": decay_embeddings,
        "float32": float32,
    }
    # Only then parameters are taken, which may be a generator.
    arguments.refuse_unknown(made, options.keys() - arguments.options_of(made), of_models)
    if isinstance(params, nn.Module):
        rate = None if layer_decay is None else lr
        params = param_groups(params, weight_decay, lr=rate, **of_models)
    else:
        _refuse_grouping(name, of_models)
    return cast(Any, made)(params, lr=lr, weight_decay=weight_decay, **options)


def _class_of(name: Any) -> type[Optimizer]:
    """Return the class of a name. Raises TypeError or ValueError where there is none."""
    if not isinstance(name, str):
        raise TypeError(
            f"create() got {kind(name)} as the name of an optimizer, which comes first. "
            'Give for example create("adamw", model, lr=1e-3).'
        )
    found = _CLASSES.get(name.lower())
    if found is None:
        plain = "".join(letter for letter in name.lower() if letter.isalnum())
        meant, options = _OPTIONS.get(plain, (None, ""))
        way_out = (
            near(name, _CLASSES) if meant is None else f" Use create({meant!r}, params, {options})."
        )
        raise ValueError(
            f"There is no optimizer {name!r}, but there are {', '.join(names())}.{way_out}"
        )
    return found


def _refuse_grouping(name: str, given: dict[str, Any]) -> None:
    """Raise TypeError for what groups the parameters of a model, where no model is given."""
    usual = inspect.signature(param_groups).parameters
    for option, value in given.items():
        if value not in (usual[option].default, []):
            raise TypeError(
                f"create() got {option}, which needs the model itself, but params are parameters. "
                f"Give for example create({name!r}, model, {option}={value!r})."
            )
