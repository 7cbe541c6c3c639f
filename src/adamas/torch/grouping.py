"""Groups of parameters: made as most models are trained, and walked through in their order."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from adamas.checks import check_amount, kind

__all__ = ["check_parameters", "names_of", "param_groups", "parameters_of", "places_of"]

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


def param_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    decay_embeddings: bool = True,
    float32: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return groups: parameters that decay by ``weight_decay``, and those that do not.

    Not decayed are biases, everything in a normalisation layer (torch's, or any class whose name
    ends in "Norm"), every other parameter with fewer than two dimensions, and with
    ``decay_embeddings=False`` the weights of ``nn.Embedding`` and ``nn.EmbeddingBag``. Parameters
    that need no gradient are left out; shared ones are listed once, under their first name, and
    do not decay if any of their uses does not. Groups carry ``param_names``.

    ``float32`` has names of parameters, or patterns with ``*`` as of files ("head.*"), whose state
    stays in float32 whatever the optimizer's ``state`` is: they get groups of their own. Raises
    ValueError for a model without trainable parameters, and for a pattern without any.
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
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_exempt(module, name, parameter, decay_embeddings)
    }
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("The model has no parameter that needs a gradient, so nothing to group.")
    kept = _matching(float32, [name for name, _ in named])
    groups: list[dict[str, Any]] = []
    for form in ({}, {"state": "float32"}):
        for decays, decay in ((True, weight_decay), (False, 0.0)):
            members = [
                (name, p)
                for name, p in named
                if (id(p) not in exempt) is decays and (name in kept) is bool(form)
            ]
            if members:
                groups.append({"params": members, "weight_decay": decay, **form})
    return groups


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
        if not isinstance(parameters, (list, tuple)):
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
    if isinstance(patterns, str):
        patterns = [patterns]
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"float32 has {pattern!r}, but no parameter that needs a gradient has such a name. "
                f"Their names are: {', '.join(names)}."
            )
        found.update(matched)
    return found


def _is_exempt(module: nn.Module, name: str, parameter: Any, decay_embeddings: bool) -> bool:
    if isinstance(module, _NORMS) or type(module).__name__.endswith("Norm"):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return not decay_embeddings
    return name.endswith("bias") or parameter.ndim < 2
