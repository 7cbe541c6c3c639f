"""What a checkpoint of PyTorch tensors holds, and how it is put back.

All goes through ``state_dict()`` and ``load_state_dict()``, so this takes any optimizer whose state
consists of tensors and plain values: those of ``adamas.torch``, as they store their state, and
those of torch. Values in JSON that are not JSON's own are dicts of one entry, which tells the type:
``{"tuple": [0.9, 0.999]}``, ``{"tensor": "groups/0/lr"}``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas.checks import kind
from adamas.files.contents import check_parameters, fitting, listed
from adamas.files.tensors import DTYPES, Source, Stored
from adamas.torch import Optimizer
from adamas.torch.grouping import names_of, parameters_of
from adamas.torch.loading import PACKED

__all__ = ["KIND", "check_weights", "contents", "put_back", "source"]

#: Of a file.
KIND = "torch"

_DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name) for code, (name, _) in DTYPES.items() if hasattr(torch, name)
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_TYPES = (Tensor, torch.nn.Parameter)
_PLAIN = (type(None), bool, int, float, str)
#: What only optimizers of adamas keep, and what only they have in groups.
_OWN_ENTRIES = frozenset(("ema", "header", "remainder", "top"))
_OWN_OPTIONS = frozenset(("state", "rounding"))
_ELSE = "Save this optimizer with torch.save(optimizer.state_dict(), path)."

_WHENCE = " Names are those of named_parameters(), if it was given that."

Found = dict[str, Tensor]


def check_weights(optimizer: torch.optim.Optimizer, why: str) -> None:
    """Raise RuntimeError, saying ``why``, while averages stand in place of the weights."""
    if isinstance(optimizer, Optimizer):
        optimizer._stepper.averages.refuse(why)  # pyright: ignore[reportPrivateUsage]


@contextmanager
def contents(
    optimizer: torch.optim.Optimizer,
) -> Generator[tuple[dict[str, Source], dict[str, Any]]]:
    """Give the tensors and all else that a file is to hold; TypeError for what it cannot."""
    with _held(optimizer):
        found, about = _told_of(optimizer)
        yield {name: source(name, tensor) for name, tensor in found.items()}, about


def _held(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Let no other thread step or change an optimizer of ours meanwhile."""
    if isinstance(optimizer, Optimizer):
        return optimizer._stepper.turn.held()  # pyright: ignore[reportPrivateUsage]
    return nullcontext()


def _told_of(optimizer: torch.optim.Optimizer) -> tuple[Found, dict[str, Any]]:
    """Return the tensors by name, and what JSON holds of all else."""
    is_ours = isinstance(optimizer, Optimizer)
    names, parameters = names_of(optimizer.param_groups), parameters_of(optimizer.param_groups)
    _check_names(names)
    found: Found = {f"parameters/{name}": p for name, p in zip(names, parameters, strict=True)}
    for name, parameter in found.items():
        _check_kind(name, parameter)
    saved = optimizer.state_dict(packed=True) if is_ours else optimizer.state_dict()
    key = PACKED if PACKED in saved else "state"
    about: dict[str, Any] = {
        "kind": KIND,
        "method": type(optimizer).__name__,
        "skipped": optimizer.skipped.nonfinite if is_ours else 0,
        "groups": [],
        key: {},
        "others": {},
    }
    named = iter(names)
    by_number: dict[Any, str] = {}
    for i, group in enumerate(saved["param_groups"]):
        own = [next(named) for _ in group["params"]]
        by_number.update(zip(group["params"], own, strict=True))
        options = {
            name: _told(value, f"groups/{i}/{name}", found)
            for name, value in group.items()
            if name not in ("params", "param_names")
        }
        about["groups"].append({"params": own, "options": options})
    for number, entries in saved[key].items():
        if number not in by_number or not isinstance(entries, Mapping):
            raise TypeError(f"The state has {number!r}, which belongs to no parameter. {_ELSE}")
        name = by_number[number]
        about[key][name] = {
            entry: _told(value, f"state/{name}/{entry}", found) for entry, value in entries.items()
        }
    for name, value in saved.items():
        if name not in (key, "param_groups"):
            about["others"][name] = _told(value, f"others/{name}", found)
    # Counts of steps may be on a device while others are not.
    about["on_device"] = [
        name for name, tensor in found.items() if tensor.ndim == 0 and not tensor.is_cpu
    ]
    return found, about


def put_back(
    path: str,
    about: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Check that a file fits, and put it into the optimizer and its parameters."""
    groups = optimizer.param_groups
    with _held(optimizer):
        parameters = dict(zip(names_of(groups), parameters_of(groups), strict=True))
        for name, parameter in parameters.items():
            _check_kind(f"parameters/{name}", parameter)
        found = {name: _tensor(path, each) for name, each in tensors.items()}
        values = {
            name.removeprefix("parameters/"): found.pop(name)
            for name in tensors
            if name.startswith("parameters/")
        }
        check_parameters(path, values, parameters, _WHENCE)
        state_dict, skipped = _state_dict(path, about, found, optimizer)
        if found:
            raise ValueError(f"{path} has the unknown tensor {min(found)!r}.")
        pairs = [(p, values[name]) for name, p in parameters.items()]
        _take_over(path, optimizer, state_dict, skipped, pairs)


def _take_over(
    path: str,
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    skipped: int,
    pairs: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Load values of parameters and a state_dict, or leave all as it was."""
    if isinstance(optimizer, Optimizer):
        copies = zip(optimizer.copies, pairs, strict=False)
        pairs = [*pairs, *((copy, value) for copy, (_, value) in copies)]
    before = dict(optimizer.__dict__)  # loading puts new objects in the place of those
    # On the host: a card may have no memory left.
    kept = [(p, p.detach().to("cpu", copy=True)) for p, _ in pairs]
    try:
        _put(pairs)  # first: hooks may look at them, and an average starts from them
        with fitting(path):
            optimizer.load_state_dict(state_dict)
        if isinstance(optimizer, Optimizer):
            # Counts on devices stay: CUDA graphs write to them.
            optimizer._stepper.record.skipped += skipped - optimizer.skipped.nonfinite  # pyright: ignore[reportPrivateUsage]
    except BaseException:
        optimizer.__dict__.update(before)
        if isinstance(optimizer, Optimizer):
            optimizer._stepper.resume()  # pyright: ignore[reportPrivateUsage]
        _put(kept)
        raise


@torch.no_grad()
def _put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for target, value in pairs:
        target.copy_(value)


# ── from a file ────────────────────────────────────────────────────────────────────────────────


def _state_dict(
    path: str, about: Mapping[str, Any], found: Found, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], int]:
    """Return a state_dict in torch's form, of tensors that are taken out of ``found``."""
    key = PACKED if PACKED in about else "state"
    on_device: Any = about.get("on_device")
    skipped: Any = about.get("skipped")
    entries = {"format", "kind", "method", "skipped", "groups", key, "others", "on_device"}
    is_whole = (
        set(about) == entries
        and isinstance(about.get("groups"), list)
        and all(map(_is_group, about["groups"]))
        and _is_dict_of_dicts(about.get(key))
        and isinstance(about.get("others"), dict)
        and isinstance(on_device, list)
        and type(skipped) is int
        and skipped >= 0
    )
    if not is_whole:
        raise ValueError(
            f"{path} lacks entries of a checkpoint of torch's tensors (groups, {key}, …), so it "
            "cannot be loaded. Give a file that adamas.save wrote."
        )
    groups = _groups(path, about["groups"], found, optimizer)
    names, parameters = names_of(optimizer.param_groups), parameters_of(optimizer.param_groups)
    numbers = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for name, entries in about[key].items():
        if name not in numbers:
            raise KeyError(f"{path} has the state of {name}, which is no parameter of its groups.")
        parameter = parameters[numbers[name]]

        def placed(full: str, tensor: Tensor, like: Tensor = parameter) -> Tensor:
            return tensor.to(like.device) if full in on_device else _laid_out_as(like, tensor)

        state[numbers[name]] = {
            entry: _meant(path, value, found, placed) for entry, value in entries.items()
        }
    others = {name: _meant(path, value, found) for name, value in about["others"].items()}
    if not isinstance(optimizer, Optimizer):
        _check_plain(path, state, groups)
        key = "state"
    return {key: state, "param_groups": groups, **others}, skipped


def _groups(
    path: str, stored: list[Any], found: Found, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    own_groups = optimizer.param_groups
    names = iter(names_of(own_groups))
    if len(stored) != len(own_groups):
        raise ValueError(
            f"{path} has {len(stored)} groups, but the optimizer has {len(own_groups)}. Make the "
            "groups that were saved first."
        )
    groups: list[dict[str, Any]] = []
    start = 0
    for i, (group, own) in enumerate(zip(stored, own_groups, strict=True)):
        wanted = [next(names) for _ in own["params"]]
        if group["params"] != wanted:
            raise ValueError(
                f"{path} has the parameters {listed(group['params'])} in groups[{i}], but the "
                f"optimizer has {listed(wanted)} there. Give it the same groups in the same order."
            )
        options = {
            name: _meant(path, value, found, _beside(own.get(name)))
            for name, value in group["options"].items()
        }
        if "param_names" in own:
            options["param_names"] = list(own["param_names"])
        groups.append({**options, "params": list(range(start, start + len(wanted)))})
        start += len(wanted)
    return groups


def _beside(own: Any) -> Callable[[str, Tensor], Tensor] | None:
    """Return what brings the tensor of an option to where the optimizer has its own."""
    return (lambda _, tensor: tensor.to(own.device)) if isinstance(own, Tensor) else None


def _check_plain(
    path: str, state: Mapping[int, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> None:
    has_more = any(_OWN_ENTRIES.intersection(entries) for entries in state.values())
    if has_more or any(_OWN_OPTIONS.intersection(group) for group in groups):
        raise ValueError(
            f"{path} holds state that only adamas.torch keeps (low-bit states, remainders or an "
            "EMA of the weights). Load it into the class of adamas.torch of the same name; "
            "torch's class can load what its state_dict() returns."
        )


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and set(group) == {"params", "options"}
        and isinstance(group["params"], list)
        and all(isinstance(name, str) for name in group["params"])
        and isinstance(group["options"], dict)
    )


def _is_dict_of_dicts(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(each, dict) for each in state.values())


def _meant(
    path: str,
    told: Any,
    found: Found,
    placed: Callable[[str, Tensor], Tensor] | None = None,
) -> Any:
    """Return what ``_told`` was given; tensors are taken out of ``found``."""
    if not isinstance(told, (dict, list)):
        return told
    kind, value = next(iter(told.items())) if isinstance(told, dict) and len(told) == 1 else ("", 0)
    if kind == "tensor" and isinstance(value, str) and value in found:
        tensor = found.pop(value)
        return tensor if placed is None else placed(value, tensor)
    if kind in ("tuple", "list") and isinstance(value, list):
        inner = [_meant(path, each, found, placed) for each in value]
        return tuple(inner) if kind == "tuple" else inner
    if kind == "dict" and isinstance(value, dict):
        return {name: _meant(path, each, found, placed) for name, each in value.items()}
    raise ValueError(
        f"{path} has a value that adamas.save does not write, {str(told)[:80]}, so it cannot be "
        "loaded. Give a file that adamas.save wrote."
    )


def _tensor(path: str, stored: Stored) -> Tensor:
    if stored.dtype not in _DTYPES:
        raise ValueError(
            f"{path} has tensors of dtype {stored.dtype}, which this version of torch lacks."
        )
    if not stored.data.size:  # torch gives NumPy's empty arrays strides of no use
        return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype])
    return torch.from_numpy(stored.data).view(_DTYPES[stored.dtype]).view(stored.shape)


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Return an entry with the strides of its parameter, as it was created (channels_last)."""
    if tensor.shape != like.shape or like.is_contiguous():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device="cpu").copy_(tensor)


# ── into a file ────────────────────────────────────────────────────────────────────────────────


def _told(value: Any, name: str, found: Found) -> Any:
    """Return a value as JSON can hold it; tensors are put into ``found``."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        if name in found:
            raise ValueError(f"Two tensors would have the name {name}. Rename a parameter.")
        found[name] = value
        return {"tensor": name}
    if type(value) in (tuple, list):
        inner = [_told(each, f"{name}/{i}", found) for i, each in enumerate(value)]
        return {type(value).__name__: inner}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _told(each, f"{name}/{key}", found) for key, each in value.items()}}
    raise TypeError(
        f"{name} is {kind(value)}, but a checkpoint holds tensors, numbers, text, and "
        f"lists, tuples and dicts of them. {_ELSE}"
    )


def source(name: str, tensor: Tensor, way_out: str = _ELSE) -> Source:
    """Return a tensor as it is to be written; TypeError, with a way out, where it cannot be."""
    _check_kind(name, tensor, way_out)

    def data() -> Any:
        host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # Tensors of one or no element may have strides that forbid another view; and what NumPy has
        # looked at cannot be given other room, which parameters that are empty for now wait for.
        flat = host.as_strided((host.numel(),), (1,)) if host.numel() else host.new_empty(0)
        return flat.view(torch.uint8).numpy()

    return Source(_CODES[tensor.dtype], tuple(tensor.shape), data)


def _check_kind(name: str, tensor: Tensor, way_out: str = _ELSE) -> None:
    """Refuse tensors that are not their values alone."""
    if hasattr(tensor, "device_mesh"):
        raise TypeError(
            f"{name} is sharded over processes (DTensor), but a file of adamas.save holds whole "
            "tensors. Use torch.distributed.checkpoint, with get_optimizer_state_dict of "
            "torch.distributed.checkpoint.state_dict."
        )
    if type(tensor) not in _TYPES or tensor.layout != torch.strided or tensor.is_meta:
        what = f"{type(tensor).__name__} on {tensor.device} with layout {tensor.layout}"
        raise TypeError(f"{name} is a {what}, but a checkpoint holds plain tensors. {way_out}")
    if tensor.dtype not in _CODES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, which safetensors lacks. {way_out}")


# ── names ──────────────────────────────────────────────────────────────────────────────────────


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(
            f"Two parameters have the name {twice[0]}. Give each its own in named_parameters()."
        )
