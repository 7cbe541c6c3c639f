"""What optimizers for PyTorch may be asked for: torch's rules with torch's words, and our own.

Numbers are checked where they are given: by the constructor, by ``add_param_group``, by loading,
and before the first step after somebody has set them in ``param_groups``. Ranges are torch's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from adamas import keywords
from adamas.checks import (
    check_amount,
    check_betas,
    check_choice,
    check_flag,
    check_names,
    check_number,
    is_listed,
    kind,
    near,
    no_flag,
    no_pair,
)
from adamas.options import Phase, Rounding, StateForm
from adamas.storage import Storage
from adamas.torch import clip_groups, decays, small
from adamas.torch.clip_groups import ClipGroup
from adamas.torch.decays import GroupDecay
from adamas.torch.grouping import check_parameters

__all__ = [
    "ROUNDING",
    "Chosen",
    "CopyTo",
    "Engine",
    "PhaseArguments",
    "check_fused",
    "check_group",
    "check_groups",
    "check_loaded",
    "check_options",
    "check_remainder",
    "checked_betas_alike",
    "checked_copy_to",
    "checked_phase",
    "of_groups",
    "options_of",
    "put_pairs",
    "refuse_foreach",
    "refuse_parameter",
    "refuse_unknown",
]

#: What torch calls the options that must be at least 0.
_AT_LEAST_ZERO = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "momentum_decay": "momentum_decay value",
    "alpha": "alpha value",
}
#: Flags that say what a step computes, and how it does.
_MEANINGS = ("amsgrad", "centered", "decoupled_weight_decay", "maximize", "nesterov")
_WAYS = ("capturable", "differentiable", "foreach", "fused")
_FLAGS = (*_MEANINGS, *_WAYS)
#: Options that concern the whole step, and so make no sense in a group.
_OF_THE_STEP = (
    "clip_norm",
    "clip_update",
    "copy_to",
    "ema",
    "engine",
    "offload",
    "on_nonfinite",
    "seed",
    "skip_above",
    "skip_window",
    "statistics",
    "track_changes",
)
#: What they may be where a group repeats them.
_PLAIN = (bool, int, float, str, torch.dtype, type(None))
#: What frameworks write into groups, though it is near to an option.
_OF_FRAMEWORKS = ("stage",)

#: How far below 0 a learning rate may be in a run: schedules that end at 0 may end beside it.
ROUNDING = 1e-12

Options = Mapping[str, Any]


#: What may step parameters: the compiled engine, Triton's kernels, or PyTorch's operations.
Engine = Literal["native", "triton", "torch"]
#: What copies of parameters are kept in: a dtype, or tensors.
CopyTo = torch.dtype | Sequence[Tensor]


class PhaseArguments(keywords.PhaseArguments, total=False):
    """What each class takes besides torch's arguments; the rest is ``adamas.Phase``."""

    #: Process group over which parameters are distinct, as of pipeline stages or experts: clipping
    #: and checks are of all its processes together. Groups may have their own.
    clip_group: ClipGroup | None
    #: Low-precision copies of the parameters, which steps keep up to date.
    copy_to: CopyTo | None
    #: How m and v are stored, see ``adamas.Options``; groups may have their own. None is
    #: torch's way: the dtype of the parameter, but float32 where that is float16.
    state: StateForm | tuple[StateForm, StateForm] | None
    #: How what is stored in few bits is rounded; groups may have their own.
    rounding: Rounding | None
    #: How parameters decay, in place of what the class says: see ``adamas.Options``. Groups may
    #: have their own.
    decay: GroupDecay | None
    #: The greatest learning rate of the run, for decays that know it; None: that which a group
    #: begins with. Groups may have their own.
    lr_max: float | None
    #: Whether parameters on a CUDA device keep their state in host memory, and are stepped there.
    offload: bool
    #: What may step parameters, for comparisons; a step raises ValueError for those that it cannot.
    #: None leaves each to the fastest that can: ``adamas.torch.Optimizer.routes``.
    engine: Engine | None


class Chosen(NamedTuple):
    """What an optimizer was given besides torch's arguments, checked."""

    phase: Phase
    #: What stands in ``param_groups``, where it was given.
    stored: dict[str, Any]
    copy_to: CopyTo | None
    offload: bool
    engine: Engine | None
    clip_group: ClipGroup | None


def checked_phase(kind_of: type, params: Any, given: PhaseArguments) -> Chosen:
    """Return what a class was given. Raises TypeError or ValueError for what cannot be."""
    refuse_unknown(kind_of, given.keys() - PhaseArguments.__annotations__.keys())
    _refuse_model(kind_of, params)
    offload, engine = check_flag("offload", given.get("offload", False)), given.get("engine")
    _check_engine(engine, offload)
    copy_to = checked_copy_to(given.get("copy_to"))
    options: dict[str, Any] = {**given}
    of_phase = options.keys() & keywords.PhaseArguments.__annotations__.keys()
    phase = Phase(**{name: options[name] for name in of_phase})
    stored = {name: options.get(name) for name in ("state", "rounding", *decays.KEYS)}
    stored = {name: value for name, value in stored.items() if value is not None}
    decays.check_values(stored)
    clip_group = clip_groups.checked(given.get("clip_group"))
    return Chosen(phase, stored, copy_to, offload, engine, clip_group)


def check_options(options: Options, where: str = "", least_lr: float = 0.0) -> None:
    """Raise TypeError or ValueError for torch's options that make no sense.

    ``where`` names a group for the text: "param_groups[1]: ". Without it the text is torch's own.
    """
    for name, value in options.items():
        if name in _AT_LEAST_ZERO:
            number = _checked_number(name, value, where)
            least = least_lr if name == "lr" else 0.0
            if number is not None and not number >= least:
                way_out = ", but it must be at least 0." if where else ""
                raise ValueError(f"{where}Invalid {_AT_LEAST_ZERO[name]}: {value}{way_out}")
        elif name == "betas":
            _check_betas(value, where)
        elif name == "dampening":
            number = _checked_number(name, value, where)
            if number != number:
                raise ValueError(f"{where}Invalid dampening value: {value}")
        elif name in _FLAGS and isinstance(value, str):
            raise no_flag(where + name, value)


def _checked_number(name: str, value: Any, where: str) -> float | None:
    """Return a number, or None where reading it would wait for a device."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{where}Tensor {name} must be 1-element")
        return float(value.item()) if value.is_cpu else None
    # torch counts True as 1.
    return float(value) if isinstance(value, bool) else check_number(where + name, value)


def _check_betas(betas: Any, where: str) -> None:
    for i, beta in enumerate(_pair(betas, where)):
        number = _checked_number(f"betas[{i}]", beta, where)
        if number is not None and not 0.0 <= number < 1.0:
            way_out = ", but a decay rate must be at least 0 and less than 1." if where else ""
            raise ValueError(f"{where}Invalid beta parameter at index {i}: {beta}{way_out}")


def _pair(betas: Any, where: str = "") -> tuple[Any, Any]:
    # What has an order, and can be read again: no set, and no generator.
    pair = tuple(betas) if is_listed(betas) or getattr(betas, "ndim", 0) else ()
    if len(pair) != 2:
        raise no_pair(f"{where}betas", betas)
    return pair


def put_pairs(options: dict[str, Any], known: Options) -> None:
    """Turn pairs that are lists, as YAML and JSON give them, or arrays into tuples, in place."""
    if "betas" in known and not isinstance(options.get("betas", ()), tuple):
        options["betas"] = tuple(options["betas"])
    if is_listed(options.get("state")):
        options["state"] = tuple(options["state"])


# -- what torch asks of a constructor's arguments alone ----------------------------------------


def refuse_foreach(what: str, value: Any, foreach: bool | None, capturable: bool) -> None:
    """Raise ValueError for an option that is a tensor where ``foreach`` takes none in torch."""
    if isinstance(value, Tensor) and foreach and not capturable:
        raise ValueError(
            f"{what} as a Tensor is not supported for capturable=False and foreach=True"
        )


def checked_betas_alike(betas: Any, foreach: bool | None, capturable: bool) -> tuple[float, float]:
    """Return decay rates as floats; they must be floats or tensors both, as in torch."""
    pair = _pair(betas)
    are_tensors = [isinstance(beta, Tensor) for beta in pair]
    if not all(are_tensors) and not all(isinstance(beta, float) for beta in pair):
        raise ValueError("betas must be either both floats or both Tensors")
    refuse_foreach("betas[0]", pair[0], foreach, capturable)
    return float(pair[0]), float(pair[1])


def check_fused(fused: bool | None, foreach: bool | None, differentiable: bool) -> None:
    """Raise RuntimeError for choices of implementations that exclude each other in torch."""
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


# -- what torch has not ------------------------------------------------------------------------


def _refuse_model(kind_of: type, params: Any) -> None:
    """Raise TypeError for a model in the place of its parameters."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"{kind_of.__name__}() got {kind(params)} as params, but it needs its parameters. "
            f"Give for example {kind_of.__name__}(model.parameters())."
        )


def refuse_unknown(kind_of: type, unknown: Collection[str], besides: Iterable[str] = ()) -> None:
    """Raise TypeError for options that a class does not have, naming it; offer the near ones.

    ``besides`` are options that it does not have, but whoever makes it.
    """
    if not unknown:
        return
    check_names(f"{kind_of.__name__}()", unknown, options_of(kind_of).union(besides))


def options_of(kind_of: type) -> set[str]:
    """Return the names of what a class takes."""
    ours = [each for each in kind_of.__mro__ if each.__module__.startswith("adamas.")]
    return {*_keywords(ours[0]), *PhaseArguments.__annotations__} - {"defaults"}


def _keywords(of: type) -> Iterable[str]:
    parameters = list(inspect.signature(of.__init__).parameters.values())[1:]
    return (each.name for each in parameters if each.kind is not each.VAR_KEYWORD)


def checked_copy_to(copy_to: Any) -> CopyTo | None:
    """Return what copies of parameters are kept in: a dtype, or tensors."""
    if copy_to is None:
        return None
    if isinstance(copy_to, torch.dtype):
        if copy_to not in small.HALF:
            raise ValueError(_copy_to_is(str(copy_to)))
        return copy_to
    is_many = isinstance(copy_to, Iterable) and not isinstance(copy_to, (str, bytes, Tensor))
    given: list[Any] = list(copy_to) if is_many else [None]
    tensors = [each for each in given if isinstance(each, Tensor)]
    if len(tensors) < len(given):
        raise TypeError(_copy_to_is(repr(copy_to)))
    return tensors


def _copy_to_is(given: str) -> str:
    return (
        f"copy_to is {given}, but it must be torch.bfloat16 or torch.float16, "
        "or a tensor for each parameter."
    )


def _check_group_names(group: Iterable[Any], known: Iterable[str]) -> None:
    """Raise TypeError for a key of a group that is nearly an option, but none.

    Other keys are left alone, as in torch: frameworks keep their own there.
    """
    known = {*known, "params", "param_names", "state", "rounding", *decays.KEYS, clip_groups.KEY}
    for name in group:
        if name in known or not isinstance(name, str):
            continue
        if name in _OF_THE_STEP:
            raise TypeError(
                f"A group has {name}, which concerns the whole step. "
                "Give it to the optimizer, not to a group."
            )
        meant = [each for each in known if _is_slip(name, each)]
        if meant and name not in _OF_FRAMEWORKS:
            raise TypeError(
                f"A group has the unknown option {name!r}.{near(name, meant)} "
                "(A key that is no option may have any name that is not that near to one.)"
            )


def _check_engine(engine: Any, offload: bool) -> None:
    """Raise ValueError for an engine that there is not, or none that offloaded state has."""
    if engine is None:
        return
    check_choice("engine", engine, get_args(Engine))
    if offload and engine != "native":
        raise ValueError(
            f"offload is True, but engine is {engine!r}: state in host memory is stepped by the "
            'native engine. Leave out the one or the other, or use engine="native".'
        )


def of_groups(defaults: Options) -> dict[str, Any]:
    """Return the defaults of groups, without what concerns whole steps."""
    return {name: value for name, value in defaults.items() if name not in _OF_THE_STEP}


def check_group(
    group: Options,
    defaults: Options,
    own: Options,
    before: Sequence[dict[str, Any]],
    takes_copies: bool,
) -> None:
    """Raise TypeError or ValueError for a group to add, of names or options that make no sense.

    It may repeat what the optimizer has, its ``own``, and what the groups ``before`` repeat: those
    of ZeRO's wrapper do, and go on to when another was set.
    """
    check_parameters(before)

    def repeats(name: str, value: object) -> bool:
        said = [each[name] for each in (own, *before) if name in own and name in each]
        return isinstance(value, _PLAIN) and any(value == x for x in said if isinstance(x, _PLAIN))

    named = [
        name
        for name, value in group.items()
        if not (takes_copies and name == "copy_to") and not repeats(name, value)
    ]
    _check_group_names(named, defaults)
    clip_groups.checked(group.get(clip_groups.KEY), f"param_groups[{len(before)}]: clip_group")
    merged = {**defaults, **decays.completed(group, defaults)}
    check_options({name: merged[name] for name in defaults}, f"param_groups[{len(before)}]: ")
    decays.check(merged, f"param_groups[{len(before)}]: ")


def _is_slip(name: str, option: str) -> bool:
    """Return whether a name is an option with a slip: a letter more, less, other or swapped."""
    name, option = (each.casefold().replace("-", "_") for each in (name, option))
    if name == option:
        return True
    if min(len(name), len(option)) < 4:
        return False
    start = next((i for i, (a, b) in enumerate(zip(name, option, strict=False)) if a != b), None)
    if start is None:  # one begins with the other
        return abs(len(name) - len(option)) == 1
    a, b = name[start:], option[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def check_remainder(groups: Sequence[Options]) -> None:
    """Raise ValueError where remainders are asked for, but no parameter can have one."""
    asking = [group for group in groups if group.get("rounding") in small.REMAINDERS]
    parameters = [p for group in asking for p in group["params"]]
    if not parameters or any(p.dtype in small.HALF for p in parameters):
        return  # the step refuses float16
    dtypes, how = {p.dtype for p in parameters}, "convert the model before the optimizer is made"
    storage = Storage(rounding=asking[0]["rounding"])
    raise ValueError(storage.refusal_of_remainders(torch.bfloat16, dtypes, how))


def check_groups(groups: Sequence[Options], defaults: Options) -> None:
    """Check the options that stand in ``param_groups``, where anybody may have set them."""
    clip_groups.of_all(groups, None)
    for i, group in enumerate(groups):
        for name in (*_AT_LEAST_ZERO, "betas", "dampening", *_MEANINGS):
            if name in defaults and name not in group:
                raise KeyError(
                    f"param_groups[{i}] has no {name!r} any more. Set it to what it was, for "
                    f"example {defaults[name]!r}."
                )
        own = {name: group[name] for name in defaults if name in group}
        check_options(own, f"param_groups[{i}]: ", -ROUNDING)
        decays.check(group, f"param_groups[{i}]: ")


def check_loaded(group: Options, defaults: Options, where: str) -> None:
    """Raise TypeError or ValueError for options out of a file that this optimizer cannot have.

    Stricter than for those that are set, where torch's ranges hold: what is not finite, or no flag,
    comes from damage there.
    """
    for name in _AT_LEAST_ZERO:
        if name in defaults:
            number = _plain(group[name])
            is_beside = name == "lr" and isinstance(number, float) and -ROUNDING <= number < 0
            if not is_beside:
                check_amount(f"{where}{name}", number)
    if "dampening" in defaults and not math.isfinite(
        check_number(f"{where}dampening", _plain(group["dampening"]))
    ):
        raise ValueError(f"{where}dampening is {group['dampening']!r}, but it must be finite.")
    if "betas" in defaults:
        pair = [math.nan if each is None else _plain(each) for each in _pair(group["betas"], where)]
        check_betas(pair, f"{where}betas")
    decays.check(group, where)
    for name in _FLAGS:
        value = group[name] if name in defaults else None
        if value is not None and not (isinstance(value, (int, np.bool_)) and value in (0, 1)):
            raise no_flag(where + name, value)
    if group.get("differentiable"):
        raise ValueError(
            f"{where}differentiable is True, which asks for a step that autograd can see through, "
            "but adamas steps in place. Set it to False there, or use torch.optim."
        )


def _plain(value: Any) -> Any:
    """Return an option that may be a tensor of one element as a number, others as they are."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def refuse_parameter(parameter: Tensor) -> None:
    """Raise TypeError for a parameter that has a gradient, but cannot be stepped."""
    if not (parameter.is_floating_point() or parameter.is_complex()):
        raise TypeError(
            f"A parameter has dtype {parameter.dtype}, but only floating and complex ones can be "
            "stepped. Convert it, or leave it without a gradient."
        )
    if parameter.is_conj():
        raise TypeError(
            f"A parameter of shape {tuple(parameter.shape)} is a conjugated view, which cannot be "
            "stepped in place. Make the parameter of tensor.resolve_conj()."
        )
