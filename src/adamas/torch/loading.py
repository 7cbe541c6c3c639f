"""Loading a state_dict: checked as a whole first, then taken over as a whole.

What an optimizer loads comes from itself, from torch's class of the same name, or from anywhere.
``prepared`` looks at all of it and makes all that will be needed, in memory of its own, while
the optimizer is as it was; what is left then cannot fail. Errors name the parameter and the entry.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adamas import checks, codecs, settings, spikes
from adamas.state import Entries
from adamas.torch import (
    arguments,
    clip_groups,
    counting,
    decays,
    distributed,
    huge_pages,
    small,
    storage,
)
from adamas.torch.grouping import check_parameters, names_of
from adamas.torch.keeping import Keeping
from adamas.torch.methods import Method
from adamas.torch.storage import Kept

__all__ = ["FORMAT", "PACKED", "complete", "folded", "saved", "take_over"]

#: Where a packed state stands: not under "state", where torch's classes would take codes for
#: numbers.
PACKED = "packed_state"
FORMAT = 1

#: Options that stay those of the optimizer that loads.
_OWN = ("state", "rounding", clip_groups.KEY)
#: Options without which a group is one of another class.
_TELLING = ("betas", "alpha", "momentum", "momentum_decay")
_OF_OTHERS = frozenset((*_TELLING, "dampening", "nesterov", "centered", "rho", "etas", "lambd"))

State = dict[str, Any]
Group = dict[str, Any]


def saved(state_dict: State, groups: Sequence[Group], method: Method, *, packed: bool) -> State:
    """Return what torch's state_dict() gives with codes as numbers, or packed: as they are.

    Counts of what is cut, and all that distributed tensors have without dimensions, are copies:
    torch.distributed.checkpoint gathers or copies all but them, and they would be of a later step.
    What is int16 in distributed tensors is given as int32, since neither
    gloo nor NCCL gathers the former. Raises ValueError where what is packed could not be put
    together again.
    """
    saved_groups = clip_groups.left_out(state_dict["param_groups"])
    state_dict = {**state_dict, "param_groups": saved_groups}
    states = dict(state_dict["state"])
    names = iter(names_of(groups))
    for group, own in zip(state_dict["param_groups"], groups, strict=True):
        _, roles = method.names(own)
        for i, parameter, name in zip(group["params"], own["params"], names, strict=False):
            if not isinstance(states.get(i), dict):
                continue
            if packed:
                _refuse_cut_blocks(name, parameter, states[i])
            elif "state" in own or "top" in states[i]:
                states[i] = small.dense(states[i], roles)
            if distributed.is_distributed(parameter):
                is_gathered = distributed.is_cut(parameter) or parameter.ndim == 0
                states[i] = _to_be_gathered(states[i], are_copied=is_gathered)
    if not packed:
        return {**state_dict, "state": states}
    others = {name: value for name, value in state_dict.items() if name != "state"}
    return {PACKED: states, **others, "format": FORMAT}


def _to_be_gathered(state: State, *, are_copied: bool) -> State:
    found = dict(state)
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dtype == torch.int16:
            found[name] = value.detach().to(torch.int32)
        elif isinstance(value, Tensor) and value.ndim == 0 and are_copied:
            found[name] = value.detach().clone()
    return found


def _refuse_cut_blocks(name: str, parameter: Tensor, state: State) -> None:
    """Raise ValueError where a header is of this process's part alone."""
    header = state.get("header")
    if not isinstance(header, Tensor) or distributed.is_distributed(header):
        return
    if distributed.is_cut(parameter):
        raise ValueError(
            f"The state of {name} cannot be saved packed: it is stored in 8 bits, in blocks of "
            f"{codecs.BLOCK} elements, and the parameter of shape {tuple(parameter.shape)} is "
            f"sharded as {tuple(parameter.placements)}, so that its rows or its parts are "  # type: ignore[attr-defined]
            "not whole blocks. Save it dense, with packed=False, which loses nothing; or give it "
            'a group with state="compact".'
        )


def complete(
    groups: Sequence[Group], states: Any, defaults: Mapping[str, Any], method: Method
) -> None:
    """Give groups and states of older versions what they lack, as torch does."""
    of_groups = arguments.of_groups(defaults)
    for group in groups:
        for name, value in of_groups.items():
            group.setdefault(name, value)
        step, _ = method.names(group)
        is_beside = group.get("capturable") or group.get("fused")
        for p in group["params"]:
            kept = states.get(p)
            if isinstance(kept, dict) and isinstance(kept.get(step), Real):
                kept[step] = counting.step_tensor(kept[step], p.device if is_beside else None)


def take_over(optimizer: torch.optim.Optimizer, keeping: Keeping, given: Any) -> None:
    """Load ``given``, with the hooks of torch's load_state_dict around; all of it or nothing.

    What hooks do afterwards stands.
    """
    check_parameters(optimizer.param_groups)
    given = dict(given) if isinstance(given, Mapping) else given
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
        result = hook(optimizer, given)
        given = given if result is None else result
    loaded = prepared(optimizer, keeping, given)
    loaded[settings.KEY] = settings.loaded(given)
    loaded[spikes.KEY] = spikes.loaded(given, keeping.phase.skip_window)
    optimizer.__setstate__(loaded)
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():  # type: ignore[attr-defined]
        hook(optimizer)


def prepared(optimizer: torch.optim.Optimizer, keeping: Keeping, given: Any) -> State:
    """Return what is to take the place of state and groups, having changed nothing.

    Raises ValueError or TypeError.
    """
    owns = optimizer.param_groups
    defaults = arguments.of_groups(optimizer.defaults)
    states, saved = _parts(given)
    _check_counts(owns, saved)
    groups = [
        _group(i, own, each, defaults, keeping.method.name)
        for i, (own, each) in enumerate(zip(owns, saved, strict=True))
    ]
    for group in groups:
        keeping.refuse_loaded(group)
    by_id: dict[Any, int] = {}
    owners: list[tuple[Tensor, Group]] = []
    for group, each in zip(groups, saved, strict=True):
        for parameter, number in zip(group["params"], each["params"], strict=True):
            place = by_id.setdefault(number, len(owners))
            if place < len(owners) and owners[place][0] is not parameter:
                raise ValueError(
                    f"Two parameters of the groups to load have the number {number!r}, but each "
                    "needs one of its own: state is found by it."
                )
            owners.append((parameter, group))
    names = names_of(owns)
    found: list[tuple[Any, Tensor, Group, Kept]] = []
    #: By parameter, and by name what belongs to none.
    state: dict[Any, Any] = defaultdict(dict)
    for number, value in states.items():
        if number not in by_id:
            state[number] = value  # of no parameter, and torch keeps it likewise
            continue
        place = by_id[number]
        parameter, group = owners[place]
        kept = keeping.method.kept(group)
        storage.check(names[place], value, parameter, kept, loading=True)
        found.append((value, parameter, group, kept))
    for value, parameter, group, kept in found:
        is_offloaded = keeping.is_offloaded(parameter)
        unread = storage.unread(value, kept.entries)
        if keeping.phase.ema is None:  # it would not be kept up, and be of long ago
            unread.add("ema")
        own = {
            entry: _owned(entry, each, parameter, group, kept, is_offloaded=is_offloaded)
            for entry, each in value.items()
            if entry not in unread and (each is not None or entry not in kept.names)
        }
        state[parameter] = keeping.fitted(own, parameter, group) if own else own
    return {"state": state, "param_groups": groups}


# ── the parts ──────────────────────────────────────────────────────────────────────────────────


def _parts(given: Any) -> tuple[Mapping[Any, Any], list[Mapping[str, Any]]]:
    """Return the states and the groups of a state_dict."""
    advice = "Give what state_dict() returned, of this class or of torch's of the same name."
    if not isinstance(given, Mapping):
        raise TypeError(
            f"What is to be loaded is {checks.kind(given)}, but it must be a dict. {advice}"
        )
    key = PACKED if PACKED in given else "state"
    for name in (key, "param_groups"):
        if name not in given:
            found = ", ".join(map(str, given)) or "nothing"
            raise KeyError(f"What is to be loaded has no {name!r}: it has {found}. {advice}")
    version = given.get("format", FORMAT)
    if key == PACKED and not (isinstance(version, int) and version == FORMAT):
        raise ValueError(
            f"The packed state has format {version!r}, but this version of adamas reads {FORMAT}. "
            "Load it with the version that saved it and save it with packed=False."
        )
    states, groups = given[key], given["param_groups"]
    if not isinstance(states, Mapping):
        raise TypeError(f"{key!r} is {checks.kind(states)}, but it must be a dict. {advice}")
    states = {number: _unfolded(number, state) for number, state in states.items()}
    if not isinstance(groups, (list, tuple)):
        raise TypeError(
            f"'param_groups' is {checks.kind(groups)}, but it must be a list of dicts. {advice}"
        )
    for i, group in enumerate(groups):
        is_group = isinstance(group, Mapping)
        if not is_group or not isinstance(group.get("params"), (list, tuple)):
            raise TypeError(
                f"param_groups[{i}] to load is no dict with a list of numbers as 'params'. {advice}"
            )
    return states, list(groups)


def folded(state: State, entries: Entries) -> State:
    """Return the state of a parameter under one name, which tells how it is stored.

    torch.distributed.checkpoint reads codes into tensors of any dtype, as numbers. By the name it
    misses what is stored in another form. No state stays none.
    """
    if not state:
        return state
    m, v = small.means_in(state, entries)
    pairs = zip((m, v), small.forms_in(state, entries), strict=True)
    forms = list(dict.fromkeys(form for entry, form in pairs if entry is not None))
    remainder = getattr(state.get("remainder"), "dtype", None)
    narrow = ["remainder8"] if remainder == torch.int8 else []
    return {"_".join((PACKED, *forms, *narrow)): state}


def _unfolded(number: Any, state: Any) -> Any:
    """Return the state of a parameter without the name that ``folded`` gives to all of it."""
    names = [str(name) for name in state] if isinstance(state, Mapping) else []
    folds = [name for name in names if name.startswith(PACKED)]
    if not folds:
        return state
    if len(names) > 1 or not state[folds[0]]:
        found = ", ".join(names) if len(names) > 1 else f"an empty {folds[0]}"
        raise ValueError(
            f"The state of {number} to load has {found}, but it must have one packed state alone: "
            "it was saved in another form than this optimizer stores. Load it into an optimizer "
            "with the state= and rounding= of the one that saved it, and with Packed if that was "
            'used there. Afterwards set param_groups[i]["state"], which converts it.'
        )
    return state[folds[0]]


def _check_counts(owns: Sequence[Group], saved: Sequence[Mapping[str, Any]]) -> None:
    if len(saved) != len(owns):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(saved)}, but "
            f"this optimizer has {len(owns)}. Make the groups that were saved first."
        )
    for i, (own, each) in enumerate(zip(owns, saved, strict=True)):
        if len(own["params"]) != len(each["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: param_groups[{i}] has {len(each['params'])} parameters, but "
                f"here it has {len(own['params'])}."
            )


# ── groups ─────────────────────────────────────────────────────────────────────────────────────


def _group(
    i: int, own: Group, saved: Mapping[str, Any], defaults: Mapping[str, Any], method: str
) -> Group:
    """Return a group as it will be: saved options, what stays, and defaults for what is lacking."""
    missing = [name for name in _TELLING if name in defaults and name not in saved]
    foreign = sorted(_OF_OTHERS.intersection(saved) - defaults.keys())
    if missing and foreign:
        raise ValueError(
            f"param_groups[{i}] to load has {', '.join(foreign)} and no {', '.join(missing)}: it "
            f"is of another class than {method}. Load it into that one, or begin anew."
        )
    group = {name: copy.deepcopy(value) for name, value in saved.items() if name != "params"}
    group["params"] = own["params"]
    if "param_names" in own:
        group.setdefault("param_names", own["param_names"])
    names = group.get("param_names", own["params"])
    # DeepSpeed puts one flat parameter in place of many, and leaves the names of those.
    are_own = names == own.get("param_names")
    if not are_own and (not isinstance(names, (list, tuple)) or len(names) != len(own["params"])):
        raise ValueError(
            f"In param_groups[{i}] to load: param_names is {names!r}, but it must be a list of "
            f"{len(own['params'])} names, one for each parameter."
        )
    for name in _OWN:
        group.pop(name, None)
        if name in own:
            group[name] = own[name]
    if "decay" not in group:  # torch's, which knows no such thing
        group |= {name: own[name] for name in decays.KEYS if name in own}
    for name, value in defaults.items():
        if name not in (*_OWN, *decays.KEYS):
            group.setdefault(name, value)
    arguments.check_loaded(group, defaults, f"In param_groups[{i}] to load: ")
    arguments.put_pairs(group, defaults)
    return group


# ── entries ────────────────────────────────────────────────────────────────────────────────────


def _owned(
    entry: str, value: Any, parameter: Tensor, group: Group, kept: Kept, *, is_offloaded: bool
) -> Any:
    """Return an entry in memory of its own, where the optimizer keeps it."""
    if entry == "top":
        return int(value)
    if entry in kept.numbers:
        return _owned_number(value, parameter, group, is_offloaded=is_offloaded)
    if isinstance(value, Tensor):
        device = torch.device("cpu") if is_offloaded else parameter.device
        if value.is_sparse:  # as torch's SGD keeps what sparse gradients add up to
            value = value.to_dense()
        dtype = torch.int16 if value.dtype == torch.int32 else value.dtype
        is_coded = group.get("state") is not None and entry in kept.tensors
        if is_coded and device == value.device:
            owned = huge_pages.copied(value, dtype)
        else:
            owned = value.detach().to(device=device, dtype=dtype, copy=True)
        if entry in (*kept.tensors, "ema", "remainder"):  # a header is laid out where it is fitted
            return distributed.spread_as(parameter, owned)
        return owned
    return copy.deepcopy(value)


def _owned_number(value: Any, parameter: Tensor, group: Group, *, is_offloaded: bool) -> Tensor:
    """Return a count of steps, or another number, where torch would keep it."""
    device, dtype = torch.device("cpu"), None
    if isinstance(value, Tensor):
        value = distributed.local(value.detach())
        device = value.device
        dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else None
    if group.get("capturable") or group.get("fused"):
        device, dtype = parameter.device, torch.float32
    if is_offloaded:
        device = torch.device("cpu")
    return counting.step_tensor(float(value), device, dtype)
