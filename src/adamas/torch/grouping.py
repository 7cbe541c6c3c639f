"""Groups of parameters: made as most models are trained, and walked through in their order."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from adamas.checks import check_amount, check_flag, check_number, is_listed, kind
from adamas.torch.layers import is_norm, layers_of, plain_name, unwrapped

__all__ = [
    "check_parameters",
    "check_states",
    "names_of",
    "param_groups",
    "parameters_of",
    "places_of",
]


class _Place(NamedTuple):
    """What parameters of one group have in common; groups stand in this order."""

    is_kept: bool
    layer: int
    is_exempt: bool


def param_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    lr: float | Tensor | None = None,
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
    decay_embeddings: bool = True,
    float32: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return groups: parameters that decay by ``weight_decay``, and those that do not.

    Not decayed are biases, everything in a normalisation layer (torch's, or any class whose name
    ends in "Norm"), every other parameter with fewer than two dimensions, those that
    ``no_weight_decay()`` of the model or of a part of it names (timm's have it), and with
    ``decay_embeddings=False`` the weights of ``nn.Embedding`` and ``nn.EmbeddingBag``. (Where
    ``weight_decay`` is 0 all are alike, and in one group.) Parameters that need no gradient are
    left out; shared ones are listed once, under their first name, and do not decay if any of their
    uses does not. Groups carry ``param_names``. What DDP, FSDP or torch.compile wrapped is looked
    into: names are those of the model inside.

    ``lr`` stands in each group. With ``layer_decay`` layers learn the slower the lower they are
    (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT): the rate of layer i is
    ``lr * layer_decay ** (L - i)``, where L is the head's and 0 that of the embeddings. Each layer
    has groups of its own, which carry its number as ``layer``. Layers are told by ``layer_of``,
    which takes a parameter's name and gives their number; without it by timm's
    ``model.group_matcher()``, or else by the model's numbered blocks (``blocks.0``, ``blocks.1``):
    what a model defines before them, and every ``nn.Embedding``, is layer 0, and what it defines
    after them, or calls a head or classifier, is the head.

    ``float32`` has names of parameters, or patterns with ``*`` as of files ("head.*"), whose state
    stays in float32 whatever the optimizer's ``state`` is: they get groups of their own. Raises
    ValueError for a model without trainable parameters or whose layers cannot be told, and for a
    pattern without any.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"param_groups() got {kind(model)}, but it needs the model itself, whose layers tell "
            "what does not decay. Give for example param_groups(model, weight_decay=0.1)."
        )
    if weight_decay is None:
        raise TypeError(
            "param_groups() needs weight_decay, of those parameters that decay. "
            "Give for example param_groups(model, weight_decay=0.1)."
        )
    weight_decay = check_amount("weight_decay", weight_decay)
    check_flag("decay_embeddings", decay_embeddings)
    if lr is not None:
        number = check_amount("lr", lr)
        lr = lr if isinstance(lr, Tensor) else number
    layer_decay = _checked_layer_decay(layer_decay, lr, layer_of)
    model = unwrapped(model)
    named = [(plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("The model has no parameter that needs a gradient, so nothing to group.")
    exempt = _exempt(model, decay_embeddings)
    kept = _matching(float32, [name for name, _ in named])
    layers = {} if layer_decay is None else layers_of(model, layer_of)
    top = max(layers.values(), default=0)
    members: dict[_Place, list[tuple[str, Tensor]]] = {}
    for name, p in named:
        is_exempt = id(p) in exempt and weight_decay > 0
        place = _Place(name in kept, layers.get(name, top), is_exempt)
        members.setdefault(place, []).append((name, p))
    groups: list[dict[str, Any]] = []
    for place in sorted(members):
        group: dict[str, Any] = {"params": members[place]}
        group["weight_decay"] = 0.0 if place.is_exempt else weight_decay
        if lr is not None:
            group["lr"] = lr
        if lr is not None and layer_decay is not None:
            group["lr"] = lr * layer_decay ** (top - place.layer)
            group["layer"] = place.layer
        if place.is_kept:
            group["state"] = "float32"
        groups.append(group)
    return groups


def _checked_layer_decay(
    layer_decay: float | None, lr: Any, layer_of: Callable[[str], int] | None
) -> float | None:
    if layer_decay is None:
        if layer_of is not None:
            raise TypeError(
                "layer_of tells layers, which only layer_decay asks for. "
                "Give for example layer_decay=0.75, or leave it out."
            )
        return None
    number = check_number("layer_decay", layer_decay)
    if not 0 < number <= 1:
        raise ValueError(f"layer_decay is {number!r}, but it must be greater than 0 and at most 1.")
    if lr is None:
        raise TypeError(
            "layer_decay needs lr, the learning rate of the head, from which those of the layers "
            "below are made. Give for example param_groups(model, 0.05, lr=1e-3, layer_decay=0.75)."
        )
    return number


def _exempt(model: nn.Module, decay_embeddings: bool) -> set[int]:
    """Return what does not decay, by ``id``."""
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_exempt(module, name, parameter, decay_embeddings)
    }
    for module in model.modules():
        names = _not_to_decay(module)
        if names:
            named = module.named_parameters()
            exempt |= {id(parameter) for name, parameter in named if plain_name(name) in names}
    return exempt


def _not_to_decay(module: nn.Module) -> set[str]:
    """Return the names of parameters that a module itself says not to decay."""
    said: Any = getattr(module, "no_weight_decay", None)
    names = said() if callable(said) else said
    if names is None:
        return set()
    if not (is_listed(names) or isinstance(names, (set, frozenset, dict))):
        raise TypeError(
            f"no_weight_decay of {kind(module)} gives {names!r}, but it must give the names of "
            "parameters, such as {'pos_embed'}."
        )
    return set(cast("Iterable[str]", names))


def places_of(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor, int]]:
    """Yield all parameters with their groups and their places among all."""
    place = 0
    for group in groups:
        for parameter in group["params"]:
            yield group, parameter, place
            place += 1


def parameters_of(groups: Iterable[dict[str, Any]]) -> list[Tensor]:
    """Return the parameters of all groups, in their order."""
    return [parameter for group in groups for parameter in group["params"]]


def check_parameters(groups: Sequence[dict[str, Any]]) -> None:
    """Raise TypeError or KeyError where a group has something else in place of its parameters."""
    # Lists and nothing else, since the compiled module reads them.
    if not isinstance(groups, list):
        raise TypeError(
            f"param_groups is {kind(groups)}, but it must be the list of the optimizer's groups. "
            "Set it to what it was, or make the optimizer anew."
        )
    for i, group in enumerate(groups):
        if not isinstance(group, dict):
            raise TypeError(
                f"param_groups[{i}] is {kind(group)}, but groups are dicts. Take it out; "
                "add_param_group() adds one."
            )
        if "params" not in group:
            raise KeyError(
                f"param_groups[{i}] has no 'params' any more. Set it to the list of its parameters."
            )
        parameters = group["params"]
        if not isinstance(parameters, list):
            raise TypeError(
                f"param_groups[{i}]['params'] is {kind(parameters)}, but it must be a list of "
                "tensors. Set it to the parameters of the group."
            )
        for j, each in enumerate(parameters):
            if not isinstance(each, Tensor):
                raise TypeError(
                    f"param_groups[{i}]['params'][{j}] is {kind(each)}, but parameters are "
                    "tensors. Take it out, or put the parameter itself there."
                )


def check_state(states: object, groups: object = ()) -> None:
    """Raise TypeError where something stands in place of an optimizer's state, or of all groups."""
    if not isinstance(groups, list) and groups != ():
        check_parameters(cast(Any, groups))
    if not isinstance(states, dict):
        raise TypeError(
            f"state is {kind(states)}, but it must be the dict of the optimizer's states. Set it "
            "to what it was; optimizer.state.clear() begins anew."
        )


def check_states(groups: Sequence[dict[str, Any]], states: Mapping[Any, Any]) -> None:
    """Raise as `check_parameters`, and KeyError for a state whose parameter is in no group."""
    check_parameters(groups)
    check_state(states)
    known = {id(parameter) for parameter in parameters_of(groups)}
    for each in states:
        if isinstance(each, Tensor) and id(each) not in known:
            raise KeyError(
                f"A parameter of shape {tuple(each.shape)} has a state, but is in no group any "
                "more, so there is nothing to save it under. Put it back into a group, or take out "
                "its state: del optimizer.state[parameter]."
            )


def names_of(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Return their names: those given by ``named_parameters()``, or "<group>.<index>".

    Names that are not one for each parameter (one was put in or taken out by hand) say nothing of
    any. Raises as ``check_parameters`` does.
    """
    check_parameters(groups)
    names: list[str] = []
    for i, group in enumerate(groups):
        given, count = group.get("param_names") or (), len(group["params"])
        names.extend(given if len(given) == count else (f"{i}.{j}" for j in range(count)))
    return names


def _matching(patterns: Iterable[str], names: list[str]) -> set[str]:
    listed: list[Any] = [patterns]
    if isinstance(patterns, Iterable) and not isinstance(patterns, (str, bytes)):
        listed = list(patterns)
    if not all(isinstance(each, str) for each in listed):
        raise TypeError(
            f"float32 is {patterns!r}, but it must hold names of parameters, or patterns of them. "
            "Give for example float32=['head.*']."
        )
    found: set[str] = set()
    for pattern in listed:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"float32 has {pattern!r}, but no parameter that needs a gradient has such a name. "
                f"Their names are: {', '.join(names)}."
            )
        found.update(matched)
    return found


def _is_exempt(module: nn.Module, name: str, parameter: Any, decay_embeddings: bool) -> bool:
    if is_norm(module):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return not decay_embeddings
    return name.endswith("bias") or parameter.ndim < 2
