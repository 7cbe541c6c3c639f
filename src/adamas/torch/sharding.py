"""What sharding a model does to its parameters: PyTorch gathers some, and puts others in place.

An optimizer sees none of it: it has the parameters that it was given. Where these are no longer
those of the model they get no gradient, and a step would do nothing without a word.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from adamas.torch import distributed, gradients

__all__ = [
    "gather_anew",
    "refuse_absent_parts",
    "refuse_flat_parts",
    "refuse_parts_of_several",
    "refuse_strays",
]

_WAY_OUT = "Shard the model first, then make the optimizer from model.parameters()."
#: Where FSDP2 has the class of its modules, in newer and older releases.
_FSDP2 = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")


def gather_anew(parameters: Iterable[Tensor]) -> None:
    """Have FSDP2 gather what it holds gathered of parameters, as they have changed.

    After a forward pass without a backward pass the root of a model stays gathered, and so do
    modules with ``reshard_after_forward=False``: the next one would go by what they were. All
    processes call this together.
    """
    own = {id(p) for p in parameters if distributed.is_distributed(p)}
    classes = [vars(sys.modules[name]).get("FSDPModule") for name in _FSDP2 if name in sys.modules]
    if not own or not any(classes):
        return
    kinds = tuple(filter(None, classes))
    for module in _instances(kinds):
        if any(id(p) in own for p in _sharded(module)):
            module.reshard()


def _sharded(module: Any) -> Iterator[Any]:
    """Yield the parameters that FSDP2 shards for a module, whether it is gathered or not."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # releases in which a module has one at most
        groups = filter(None, [state._fsdp_param_group])
    for group in groups:
        for each in group.fsdp_params:
            yield each.sharded_param


def refuse_strays(
    parameters: Sequence[Tensor], names: Sequence[str], *, looks_around: bool
) -> None:
    """Raise RuntimeError where sharding has put others in place of parameters without gradient.

    ``looks_around``: at all modules that there are, which is for steps without any gradient.
    """
    for parameter, name in zip(parameters, names, strict=True):
        if parameter.grad is None and parameter.requires_grad:
            _refuse_replaced(name, parameter)
            _refuse_gathered(name, parameter)
    if looks_around:
        _refuse_unknown(parameters)


def _refuse_replaced(name: str, parameter: Tensor) -> None:
    """Raise for a parameter in whose place FSDP2 has put another one."""
    if hasattr(parameter, "_fsdp_orig_uid"):
        raise RuntimeError(
            f"{name} is no parameter of the model any more, so it gets no gradient: fully_shard "
            f"has put a sharded one in its place. {_WAY_OUT}"
        )


def _refuse_gathered(name: str, parameter: Tensor) -> None:
    """Raise for what FSDP2 has gathered for a forward pass, and freed since."""
    if distributed.is_initialized() and gradients.is_freed(parameter):
        raise RuntimeError(
            f"{name} has no gradient, and its memory was freed. model.parameters() gives such "
            "tensors while FSDP2 has a model gathered, after a forward pass without a backward "
            "pass. Call model.reshard(), then make the optimizer from model.parameters()."
        )


def _refuse_unknown(parameters: Sequence[Tensor]) -> None:
    """Raise where models have sharded parameters in place of all of these."""
    shapes = {tuple(p.shape) for p in parameters if p.requires_grad}
    if not shapes or not distributed.is_initialized():
        return
    own = set(map(id, parameters))
    is_replaced = False
    for module in _instances((nn.Module,)):
        for p in vars(module).get("_parameters", {}).values():
            if id(p) in own:
                return
            is_replaced = is_replaced or (p is not None and not shapes.isdisjoint(_shapes(p)))
    if is_replaced:
        raise RuntimeError(
            "No parameter of this optimizer has a gradient, and none is a parameter of any "
            "module: sharding (parallelize_module, fully_shard, FullyShardedDataParallel) puts "
            f"others in their place. {_WAY_OUT}"
        )


def refuse_flat_parts(
    parameters: Sequence[Tensor], names: Sequence[str], clip_groups: Sequence[Any]
) -> None:
    """Raise ValueError for parts of FSDP1's flat parameters of which nobody says who has others.

    They are plain tensors, and a norm of them would be of this process alone. ``clip_groups`` has
    what is said of each, or None.
    """
    for place in _flat_parts(parameters):
        if clip_groups[place] is None:
            raise ValueError(
                f"{names[place]} is a part of a flat parameter of FullyShardedDataParallel. The "
                "other processes have others, so clip_norm and on_nonfinite need to know them: "
                "give the optimizer clip_group=model.process_group."
            )


def refuse_parts_of_several(parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise ValueError for parts of FSDP1's flat parameters, where updates are clipped.

    They are of several tensors, or tell nobody which part of a tensor they are.
    """
    for place in _flat_parts(parameters)[:1]:
        raise ValueError(
            f"{names[place]} is a part of a flat parameter of FullyShardedDataParallel, and does "
            "not tell of which tensors it has elements, but clip_update goes by the update of each "
            "whole tensor. Shard the model by fully_shard (FSDP2), or leave clip_update out."
        )


def refuse_absent_parts(
    parameters: Sequence[Tensor], names: Sequence[str], clip_groups: Sequence[Any]
) -> None:
    """Raise ValueError for parameters on meshes without this process, beside others that it has.

    A norm would lack them here alone, and clip the others otherwise than in the processes that
    have them. ``clip_groups`` has what is said of each, or None.
    """
    absent = [i for i, p in enumerate(parameters) if not _is_here(p)]
    unknown = [i for i in absent if clip_groups[i] is None]
    if unknown and len(absent) < len(parameters):
        mesh: Any = parameters[unknown[0]].device_mesh  # type: ignore[attr-defined]
        raise ValueError(
            f"{names[unknown[0]]} lies on the processes {sorted(mesh.mesh.flatten().tolist())}, "
            f"not on this one ({dist.get_rank()}), so a norm taken here would lack it, and "
            "clip_norm and on_nonfinite would differ between processes. Put it into a group of its "
            "own with a clip_group of all processes of the optimizer, such as dist.group.WORLD."
        )


def _flat_parts(parameters: Sequence[Tensor]) -> list[int]:
    """Return the places of parts of FSDP1's flat parameters."""
    flat = {i: p for i, p in enumerate(parameters) if hasattr(p, "_fsdp_flattened")}
    if any(p.ndim > 1 for p in flat.values()):
        return []  # parts have one axis; where nothing is sharded, parameters have their own
    return [i for i, p in flat.items() if getattr(p, "_unpadded_unsharded_size", None) != p.shape]


def _is_here(parameter: Tensor) -> bool:
    mesh = getattr(parameter, "device_mesh", None)
    return mesh is None or mesh.get_coordinate() is not None


def _shapes(parameter: Tensor) -> Iterable[tuple[int, ...]]:
    """Return the shapes of the parameters that a sharded one stands for; none for a plain one."""
    if distributed.is_distributed(parameter):
        return (tuple(parameter.shape),)
    return [tuple(shape) for shape in getattr(parameter, "_shapes", ())]  # of FSDP1's


def _instances(kinds: tuple[Any, ...]) -> Iterator[Any]:
    """Yield all objects of some classes, whoever holds them."""
    return (each for each in gc.get_objects() if issubclass(type(each), kinds))
