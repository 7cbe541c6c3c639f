"""What functions are given: lists of tensors, what is refused of them, and the parts that are here.

A step is element-wise, so of sharded tensors each process steps its own parts, as plain tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.checks import is_listed, kind
from adamas.coefficients import is_count
from adamas.torch import arguments, distributed, gradients, parts, storage
from adamas.torch.keeping import NOT_DIFFERENTIABLE
from adamas.torch.methods import Method
from adamas.torch.routes import PLAIN_TYPES

__all__ = [
    "NUMBERS",
    "Given",
    "Listed",
    "check",
    "check_is_number",
    "is_sharded",
    "laid_out",
    "parts_of",
]

#: Entries that are numbers; the others have their parameter's shape.
NUMBERS = ("step", "mu_product")
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
#: The first count of steps that float32 does not go beyond.
_END_OF_FLOAT32 = 2**24


class Listed(NamedTuple):
    """A list of tensors, and the argument that it was given as."""

    argument: str
    tensors: Any
    #: Whether None stands for what begins with this step.
    may_begin: bool = False


class Given(NamedTuple):
    """What a function was given."""

    method: Method
    parameters: Any
    gradients: Listed
    #: What is kept, by its name in the state; that which lives as long as the state comes first.
    kept: dict[str, Listed]
    #: Torch's, as they stand in groups, without lr.
    options: dict[str, Any]
    lr: Any


# ── parts of sharded tensors ───────────────────────────────────────────────────────────────────


def is_sharded(given: Given) -> bool:
    """Whether anything that is given is a distributed tensor."""
    lists = (given.parameters, given.gradients.tensors, *(x.tensors for x in given.kept.values()))
    listed = (tensors for tensors in lists if is_listed(tensors))
    return any(distributed.is_distributed(x) for tensors in listed for x in tensors)


def parts_of(given: Given) -> Given | None:
    """Return what is given with this process's parts in place of sharded tensors.

    None where a gradient is laid out in another way than its parameter, and where lists are of
    several lengths, or none.
    """
    lists = (given.parameters, given.gradients.tensors, *(x.tensors for x in given.kept.values()))
    if not all(map(is_listed, lists)) or len(set(map(len, lists))) > 1:
        return None
    if not all(map(parts.is_alike, given.parameters, given.gradients.tensors)):
        return None
    own, gradients_here, *kept = ([parts.here(x) for x in tensors] for tensors in lists)
    return given._replace(
        parameters=own,
        gradients=given.gradients._replace(tensors=gradients_here),
        kept={
            name: listed._replace(tensors=here)
            for (name, listed), here in zip(given.kept.items(), kept, strict=True)
        },
    )


def laid_out(given: Given) -> Given:
    """Return what is given with gradients redistributed as their parameters are."""
    pairs = zip(given.parameters, given.gradients.tensors, strict=True)
    here = [distributed.laid_out_as(p, gradient) for p, gradient in pairs]
    return given._replace(gradients=given.gradients._replace(tensors=here))


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def check(given: Given) -> None:
    """Raise TypeError, ValueError or RuntimeError for what cannot be stepped."""
    function, options = given.method.name, given.options
    arguments.check_options({"lr": given.lr, **options}, f"{function}: ", -arguments.ROUNDING)
    if options.get("differentiable"):
        raise ValueError(NOT_DIFFERENTIABLE)
    for listed in (Listed("params", given.parameters), given.gradients, *given.kept.values()):
        _check_list(function, listed, given)
    for i, (p, g) in enumerate(zip(given.parameters, given.gradients.tensors, strict=True)):
        _check_parameter(f"params[{i}]", p)
        _check_gradient(given, i, p, g)
        for name, listed in given.kept.items():
            entry, called = listed.tensors[i], f"{listed.argument}[{i}]"
            if entry is None:
                continue
            if name in NUMBERS:
                _check_number(name, called, entry, p, f"params[{i}]")
            else:
                _check_entry(called, entry, p, f"params[{i}]")
        _check_apart(given, i)


def _check_list(function: str, listed: Listed, given: Given) -> None:
    argument, tensors = listed.argument, listed.tensors
    if not is_listed(tensors):
        raise TypeError(
            f"{function}: {argument} is {kind(tensors)}, but it must be a list of tensors, one for "
            "each parameter."
        )
    for i, each in enumerate(tensors):
        if isinstance(each, Tensor) or (each is None and listed.may_begin):
            continue
        advice = ""
        if argument == given.gradients.argument:
            advice = " Leave parameters without a gradient out of all lists."
        raise TypeError(
            f"{function}: {argument}[{i}] is {kind(each)}, but it must be a tensor.{advice}"
        )
    if len(tensors) != len(given.parameters):
        raise ValueError(
            f"{function}: {argument} has {len(tensors)} tensors, but params has "
            f"{len(given.parameters)}. Give one for each parameter, in the same order."
        )
    if isinstance(tensors, tuple) and any(each is None for each in tensors):
        raise TypeError(
            f"{function}: {argument} is a tuple with None in it, but buffers that begin with this "
            "step are put in their places. Give a list."
        )


def _check_parameter(name: str, p: Tensor) -> None:
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(
            f"{name} has dtype {p.dtype}, but only floating and complex tensors can be stepped. "
            "Convert it, or leave it out of all lists."
        )
    if p.layout != torch.strided:
        raise TypeError(f"{name} has layout {p.layout}, but it must be dense. Call to_dense().")
    if gradients.is_lazy(p):
        raise TypeError(
            f"{name} is a conjugated or negated view, which cannot be stepped in place. Make it of "
            "resolve_conj() or resolve_neg()."
        )
    if p.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} would be stepped while a CUDA graph is captured, but these functions read the "
            "number of the step on the host. Use the classes of adamas.torch there."
        )
    gradients.refuse_freed(name, {"memory": p})
    gradients.refuse_expanded(name, {"memory": p})
    distributed.cuts(p)


def _check_gradient(given: Given, i: int, p: Tensor, g: Tensor) -> None:
    name = f"params[{i}]"
    if g.is_sparse:
        called = f"{given.gradients.argument}[{i}]"
        if not given.method.takes_sparse:
            raise RuntimeError(
                f"{given.method.name} does not support sparse gradients, but {called} is one. Give "
                "its to_dense()."
            )
        if given.options["weight_decay"] != 0:
            raise RuntimeError(
                f"{called} is sparse, but weight_decay is {given.options['weight_decay']}, which "
                "shrinks all elements. Give its to_dense(), or step it with weight_decay=0."
            )
    gradients.refuse(name, p, g)
    if g.dtype != p.dtype:
        raise TypeError(
            f"The gradient of {name} has dtype {g.dtype}, but the parameter has dtype {p.dtype}. "
            "Convert the gradient."
        )
    gradients.refuse_freed(name, {"gradient": g})


def _check_number(name: str, called: str, entry: Tensor, p: Tensor, parameter: str) -> None:
    if not storage.is_number(entry):
        raise ValueError(
            f"{called} has shape {tuple(entry.shape)} and dtype {entry.dtype}, but it must be a "
            "real tensor of one element."
        )
    if not entry.is_cpu and entry.device != p.device:
        raise _elsewhere(called, entry, p, parameter)
    if entry.dtype not in (torch.float32, torch.float64) and (
        name != "step" or entry.dtype not in (torch.int32, torch.int64)
    ):
        raise TypeError(
            f"{called} has dtype {entry.dtype}, which does not hold it. Give it in torch.float32."
        )
    gradients.refuse_freed(called, {"memory": entry})
    value = entry.item()
    if name == "step":
        if not is_count(value):
            raise ValueError(
                f"{called} is {value}, but it must be the number of steps made: a whole number "
                "from 0 to 2**53 - 1."
            )
        if value >= _END_OF_FLOAT32 and entry.dtype == torch.float32:
            raise ValueError(
                f"{called} is {value}, but float32 counts no further than 2**24. Give it in "
                "torch.float64."
            )
    elif not 0 <= value <= 1:
        raise ValueError(
            f"{called} is {value}, but it must be from 0 to 1: it is a product of decay rates."
        )


def _check_entry(called: str, entry: Tensor, p: Tensor, parameter: str) -> None:
    if entry.layout != torch.strided or gradients.is_lazy(entry):
        raise TypeError(
            f"{called} has layout {entry.layout}, but it must be a dense tensor that can be "
            "written in place."
        )
    local, local_p = distributed.local(entry), distributed.local(p)
    if distributed.is_distributed(entry) != distributed.is_distributed(p):
        raise TypeError(
            f"{called} is a {type(entry).__name__}, but {parameter} is a {type(p).__name__}. "
            "Distribute both or neither."
        )
    if entry.shape == p.shape and not parts.is_alike(p, entry):
        raise ValueError(
            f"{called} is laid out as {_layout(entry)}, but {parameter} as {_layout(p)}. State has "
            "the mesh and the placements of its parameter: redistribute the one or the other."
        )
    if entry.shape != p.shape or local.shape != local_p.shape:
        raise ValueError(
            f"{called} has shape {tuple(local.shape)}, but {parameter} has shape "
            f"{tuple(local_p.shape)}. State is kept for each element."
        )
    if entry.device != p.device:
        raise _elsewhere(called, entry, p, parameter)
    possible = _NARROW if p.dtype in _NARROW else (p.dtype,)
    if entry.dtype not in possible:
        raise TypeError(
            f"{called} has dtype {entry.dtype}, but {parameter} has dtype {p.dtype}, for which it "
            f"may be {', '.join(map(str, possible))}."
        )
    gradients.refuse_freed(called, {"memory": entry})
    gradients.refuse_expanded(called, {"memory": entry})


def _layout(tensor: Any) -> str:
    return f"{tensor.placements} over {tensor.device_mesh}"


def _check_apart(given: Given, i: int) -> None:
    """Raise ValueError where a parameter and its state are in one memory."""
    known: dict[int, str] = {}
    for listed in (Listed("params", given.parameters), *given.kept.values()):
        tensor = listed.tensors[i]
        part = None if tensor is None else distributed.local(tensor)
        if part is None or not part.numel() or part.is_meta or type(part) not in PLAIN_TYPES:
            continue
        other = known.setdefault(part.data_ptr(), listed.argument)
        if other != listed.argument:
            raise ValueError(
                f"{listed.argument}[{i}] and {other}[{i}] are in the same memory, so that one step "
                "would write both values there. Give each tensor memory of its own."
            )


def _elsewhere(called: str, entry: Tensor, p: Tensor, parameter: str) -> ValueError:
    return ValueError(
        f"{called} is on {entry.device}, but {parameter} is on {p.device}. Bring the one to the "
        "other."
    )


def check_is_number(name: str, value: Tensor) -> None:
    """Raise ValueError where a tensor has not one real number to be read."""
    if not storage.is_number(value):
        raise ValueError(
            f"{name} is a tensor of shape {tuple(value.shape)} and dtype {value.dtype}, but it "
            "must be a number, or a real tensor of one element."
        )
