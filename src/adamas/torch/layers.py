"""How deep each parameter of a model is, for learning rates that decay with depth.

Layers are numbered from 0, the lowest: embeddings, then the blocks in their order, then the head.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from adamas.checks import kind

__all__ = ["is_norm", "layers_of", "plain_name", "unwrapped"]

#: Layers whose parameters set a scale or a position, so that shrinking them makes no sense.
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
#: Where torch.compile, FSDP and activation checkpointing put a module that they wrap.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: Parts of names that stand for what is above all blocks, wherever a model defines it.
_HEAD = re.compile(r"(^|\.)(\w*head|classifier|fc)(\.|$)")
#: What is looked up by a number and feeds the lowest block, wherever a model defines it.
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_HOW = (
    "Say it by layer_of: a function that takes the name of a parameter and gives the number of its "
    "layer, 0 for the lowest."
)


class _Stack(NamedTuple):
    """A container of numbered layers: the names and modules of those that have parameters."""

    name: str
    layers: dict[str, nn.Module]
    #: Whether it only lists them, so that the model's own code goes through them.
    is_list: bool


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises: torch's, or any class whose name ends in "Norm"."""
    return isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside what DDP, FSDP, torch.compile or checkpointing made of it."""
    while True:
        names = _WRAPPED
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            names = ("module",)
        children = dict(module.named_children())
        inner = next((children[name] for name in names if name in children), None)
        if inner is None:
            return module
        module = inner


def plain_name(name: str) -> str:
    """Return the name that a parameter or module has where nothing inside the model is wrapped."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def layers_of(model: nn.Module, layer_of: Callable[[str], int] | None = None) -> dict[str, int]:
    """Return the number of the layer of each parameter, by its plain name.

    Asked are ``layer_of``, or timm's ``model.group_matcher()``, or else the order of the model's
    numbered blocks. Raises ValueError where they cannot be told, TypeError for a ``layer_of`` that
    gives no number.
    """
    if layer_of is not None:
        return _as_told(model, layer_of)
    if callable(getattr(model, "group_matcher", None)):
        return _as_timm_tells(model)
    found = _as_numbered(model)
    ranks = {layer: rank for rank, layer in enumerate(sorted(set(found.values())))}
    return {name: ranks[layer] for name, layer in found.items()}


def _as_told(model: nn.Module, layer_of: Callable[[str], int]) -> dict[str, int]:
    if not callable(layer_of):
        raise TypeError(
            f"layer_of is {layer_of!r}, but it must be a function that takes the name of a "
            "parameter and gives the number of its layer, 0 for the lowest."
        )
    found: dict[str, int] = {}
    for name in map(plain_name, dict(model.named_parameters())):
        given = layer_of(name)
        try:
            found[name] = -1 if isinstance(given, bool) else operator.index(given)
        except TypeError:
            found[name] = -1
        if found[name] < 0:
            raise TypeError(
                f"layer_of({name!r}) gave {given!r}, but it must give the number of the layer: an "
                "integer, 0 for the lowest."
            )
    return found


def _as_timm_tells(model: Any) -> dict[str, int]:
    try:
        from timm.models import (  # pyright: ignore[reportMissingImports]
            group_parameters,  # pyright: ignore[reportUnknownVariableType]
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The model is {kind(model)} with a group_matcher(), which timm reads, but timm is not "
            f"installed. Install it with: pip install timm. {_HOW}"
        ) from error
    found = group_parameters(model, model.group_matcher(), reverse=True)
    return {plain_name(name): layer for name, layer in found.items()}


def _as_numbered(model: nn.Module) -> dict[str, int]:
    """Return 0 for what is below the blocks, 1 and on for them, and one more for the rest."""
    blocks = _blocks(model)
    embeddings = {
        plain_name(f"{name}.{own}" if name else own)
        for name, module in model.named_modules()
        if isinstance(module, _EMBEDDINGS)
        for own, _ in module.named_parameters(recurse=False)
    }
    names = map(plain_name, dict(model.named_parameters()))
    within = {name: _block_of(name, blocks) for name in names}
    top = max(within.values())
    found: dict[str, int] = {}
    reached = 0
    for name, block in within.items():
        reached = max(reached, block)
        if block:
            found[name] = block
        elif name in embeddings:
            found[name] = 0
        elif reached == top or _HEAD.search(name):
            found[name] = top + 1
        else:
            found[name] = reached
    return found


def _block_of(name: str, blocks: dict[str, int]) -> int:
    """Return the number of the block that a parameter belongs to, or 0."""
    parts = name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((blocks[each] for each in prefixes if each in blocks), 0)


def _blocks(model: nn.Module) -> dict[str, int]:
    """Return the names of the blocks with their numbers, from 1 up."""
    containers = [each for each in _numbered(model) if not _HEAD.search(each.name)]
    # A frozen tower beside what is trained does not count, but one below a head that is does.
    containers = [each for each in containers if _is_trained(each)] or containers
    stacks = _outermost(filter(_is_stack, containers)) or _outermost(containers)
    if not stacks:
        raise ValueError(
            "The model has no numbered layers (such as blocks.0, blocks.1), so how deep its "
            f"parameters are cannot be told. {_HOW}"
        )
    if len({re.sub(r"\d+$", "", each.name) for each in stacks}) > 1:
        raise ValueError(
            f"The model has layers in more than one place: {', '.join(e.name for e in stacks)}. "
            f"Which are above which cannot be told. {_HOW}"
        )
    found: dict[str, int] = {}
    number = 0
    for stack in stacks:
        for name, module in _blocks_of(stack):
            # A norm that is listed by itself belongs to what it normalises.
            number += not (number and is_norm(module))
            found[name] = number
    return found


def _blocks_of(stack: _Stack) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks of a stack; those of its stages where it has stages of blocks."""
    for name, module in stack.layers.items():
        is_stage = type(module).__name__.endswith("Stage") or _is_numbered(module)
        stacks = _outermost(filter(_is_stack, _numbered(module, name))) if is_stage else []
        for each in stacks:
            yield from _blocks_of(each)
        if not stacks:
            yield name, module


def _is_numbered(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children()]
    return bool(names) and all(name.isdecimal() for name in names)


def _numbered(module: nn.Module, start: str = "") -> Iterator[_Stack]:
    """Yield containers of numbered layers, outer ones first."""
    for wrapped, each in module.named_modules(prefix=start):
        name = plain_name(wrapped)
        if not _is_numbered(each):
            continue
        layers = {
            f"{name}.{number}" if name else number: unwrapped(layer)
            for number, layer in each.named_children()
            if any(True for _ in layer.parameters())
        }
        if layers:
            yield _Stack(name, layers, not isinstance(each, nn.Sequential))


def _is_trained(stack: _Stack) -> bool:
    return any(p.requires_grad for layer in stack.layers.values() for p in layer.parameters())


def _outermost(stacks: Iterable[_Stack]) -> list[_Stack]:
    """Return those that stand within no other; outer ones come first."""
    found: list[_Stack] = []
    for each in stacks:
        if not any(not o.name or each.name.startswith(f"{o.name}.") for o in found):
            found.append(each)
    return found


def _is_stack(container: _Stack) -> bool:
    """Return whether its layers are blocks, gone through one by one.

    An ``nn.Sequential`` of parts that all differ (an embedding, an encoder, a head) is none, and
    neither is one of single layers (a stem of convolution and norm).
    """
    layers = container.layers.values()
    blocks = [type(each) for each in layers if any(True for _ in each.children())]
    if container.is_list or len(layers) == 1:
        return bool(blocks)
    return len(set(blocks)) < len(blocks)
