"""Groups of arrays with one set of options each, and what of them goes into a state_dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.arrays import Layout, as_bits, check_parameters, check_same_layout, layout_of
from adamas.checks import check_names, kind, not_finite
from adamas.engines import Group, Slot
from adamas.options import Options, Phase, learning_rate_at
from adamas.state import State, converted, create, loaded
from adamas.statistics import Outcome
from adamas.trees import Tree, changed_leaf, difference_of_keys, leaves

__all__ = [
    "ParameterGroup",
    "check_entries",
    "check_option_names",
    "check_unchanged",
    "checked_values",
    "chosen_groups",
    "grouped",
    "loaded_groups",
    "named_parameters",
    "named_states",
    "planned",
    "put_back_closely",
    "rates_at",
    "refuse_nonfinite",
    "state_of_run",
    "with_options",
    "with_parameters",
]

Array = NDArray[Any]

_OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(Options))
_OF_THE_STEP = frozenset(field.name for field in dataclasses.fields(Phase)) | {"engine"}


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that share one set of options: their names, arrays and state."""

    #: The options in force; the optimizer's ``set_options`` puts another group in place of this.
    options: Options
    #: What the user gave: an array, or containers of arrays.
    tree: Tree
    names: tuple[str, ...]
    parameters: tuple[Array, ...]
    states: tuple[State, ...]
    #: Dtype, shape and place in memory of each parameter, as they were when a plan was made.
    layouts: tuple[Layout, ...]


def grouped(
    params: Tree, options: Options, *, ema: bool
) -> tuple[Tree, tuple[ParameterGroup, ...]]:
    """Return the tree that gradients must match, and the groups, with the state before a step."""
    if _is_list_of_groups(params):
        trees = [given["params"] for given in params]
        found = [list(leaves(tree, str(i))) for i, tree in enumerate(trees)]
        own = [_own_options(options, f"params[{i}]", given) for i, given in enumerate(params)]
        tree = trees
    else:
        tree, trees, found, own = params, [params], [list(leaves(params))], [options]
    check_parameters([pair for pairs in found for pair in pairs])
    _check_remainders(own, found)
    groups = tuple(
        ParameterGroup(
            options=each,
            tree=branch,
            names=tuple(name for name, _ in pairs),
            parameters=tuple(p for _, p in pairs),
            states=tuple(create(as_bits(p), each, ema=ema) for _, p in pairs),
            layouts=tuple(layout_of(p) for _, p in pairs),
        )
        for each, branch, pairs in zip(own, trees, found, strict=True)
    )
    return tree, groups


def with_options(group: ParameterGroup, changes: Mapping[str, Any]) -> ParameterGroup:
    """Return a group with other options, and its state as it is stored under them."""
    options = group.options.replace(**changes)
    _check_same_state(group.options, options)
    states = tuple(
        converted(name, state, as_bits(p), options)
        for name, p, state in zip(group.names, group.parameters, group.states, strict=True)
    )
    return replace(group, options=options, states=states)


def loaded_groups(
    groups: Sequence[ParameterGroup], state_dict: Mapping[str, Any], values: Mapping[str, Array]
) -> tuple[ParameterGroup, ...]:
    """Return groups with the options and the state of a state_dict, changing nothing.

    ``values`` are the parameters that the state belongs to.
    """
    options = _loaded_options(groups, state_dict["groups"])
    stored = state_dict["state"]
    check_entries("The state", stored, list(values))
    return tuple(
        replace(
            group,
            options=own,
            states=tuple(
                loaded(name, as_bits(values[name]), own, stored[name], ema=old.ema is not None)
                for name, old in zip(group.names, group.states, strict=True)
            ),
        )
        for group, own in zip(groups, options, strict=True)
    )


def planned(group: ParameterGroup) -> Group:
    """Return the group as engines take it."""
    slots: list[Slot] = []
    for p, state in zip(group.parameters, group.states, strict=True):
        bits = as_bits(p)
        slots.append(Slot(bits, state, array=None if bits is p else p))
    return Group(group.options, tuple(slots))


def with_parameters(tree: Tree, groups: Sequence[ParameterGroup]) -> tuple[ParameterGroup, ...]:
    """Return the groups with the arrays of the tree, as they lie in memory now."""
    named = dict(leaves(tree))
    found = [tuple(named[name] for name in group.names) for group in groups]
    return tuple(
        replace(group, parameters=own, layouts=tuple(map(layout_of, own)))
        for group, own in zip(groups, found, strict=True)
    )


def chosen_groups(group: int | None, count: int) -> range:
    """Return the indices of the groups that are meant."""
    if group is None:
        return range(count)
    if isinstance(group, bool) or not isinstance(group, int) or not -count <= group < count:
        raise IndexError(
            f"group is {group!r}, but it must be the index of a group, from 0 to {count - 1}, or "
            "None for all."
        )
    return range(group % count, group % count + 1)


def _plain_group(group: ParameterGroup) -> dict[str, Any]:
    """Return names and options of a group as JSON can have them; a schedule is None."""
    plain = dataclasses.asdict(group.options)
    plain["betas"] = list(group.options.betas)
    plain["state"] = list(group.options.storage.forms)
    if callable(group.options.lr):
        plain["lr"] = None
    return {"params": list(group.names), **plain}


def state_of_run(
    groups: Sequence[ParameterGroup],
    record: Sequence[Any],
    others: Mapping[str, Any],
    *,
    packed: bool,
    copy: bool,
) -> dict[str, Any]:
    """Return a state_dict: counts, groups, the states by name (copies or as they are), others."""
    steps, skipped, _ = record
    return {
        "step": steps,
        "skipped": skipped,
        "groups": [_plain_group(group) for group in groups],
        "state": {
            name: {
                entry: array.copy() if copy else array[...]
                for entry, array in (state.packed() if packed else state.dense()).items()
            }
            for name, state in named_states(groups)
        },
        **others,
    }


def rates_at(groups: Sequence[ParameterGroup], step: int) -> tuple[float, ...]:
    """Return the learning rate of each group at ``step``."""
    return tuple(learning_rate_at(group.options.lr, step) for group in groups)


def refuse_nonfinite(groups: Sequence[ParameterGroup], phase: Phase, outcome: Outcome) -> None:
    """Raise FloatingPointError where a step that was left out is an error."""
    if phase.on_nonfinite == "skip":
        return
    assert outcome.nonfinite is not None
    raise not_finite(
        f"{name} ({count} of {p.size} elements)"
        for (name, p), count in zip(named_parameters(groups), outcome.nonfinite, strict=True)
        if count
    )


def named_parameters(groups: Sequence[ParameterGroup]) -> list[tuple[str, Array]]:
    """Return the parameters of all groups with their names."""
    return [pair for each in groups for pair in zip(each.names, each.parameters, strict=True)]


def named_states(groups: Sequence[ParameterGroup]) -> list[tuple[str, State]]:
    """Return the states of all groups with the names of their parameters."""
    return [pair for each in groups for pair in zip(each.names, each.states, strict=True)]


def check_unchanged(tree: Tree, groups: Sequence[ParameterGroup]) -> bool:
    """Return whether all parameters are as they were; False where memory has moved.

    Refuses what the state does not belong to: parameters that were replaced in the user's
    containers, or changed in place to another shape or dtype, or made read-only.
    """
    named = named_parameters(groups)
    changed = changed_leaf(tree, named)
    if changed is not None:
        raise ValueError(
            f"Parameter {changed} is another array than the one that is stepped: its entry in "
            "params was replaced, added or taken out. Write values into the array itself, as in "
            'weights["w"][...] = values, or create another optimizer.'
        )
    layouts = [layout for group in groups for layout in group.layouts]
    if all(layout_of(p) == old for (_, p), old in zip(named, layouts, strict=True)):
        return True
    for (name, p), old in zip(named, layouts, strict=True):
        check_same_layout(name, p, old)
    check_parameters(named)
    return False


def put_back_closely(kept: Sequence[tuple[str, Array, Array, Array]]) -> None:
    """Write what was kept into the memory that parameters had, read-only or reshaped by now.

    ``kept`` has the name, the parameter, a view of it and its values. Raises ValueError with the
    names of those whose memory is another.
    """
    lost: list[str] = []
    for name, p, place, values in kept:
        if p.nbytes == place.nbytes and p.ctypes.data == place.ctypes.data:
            place[...] = values
        else:  # what the view shows was given back
            lost.append(name)
    if lost:
        raise ValueError(
            f"Inside ema_weights() {', '.join(lost)} was resized, so the weights in training could "
            "not be put back there. Go on from a checkpoint, with another optimizer."
        )


def checked_values(
    groups: Sequence[ParameterGroup], given: Mapping[str, Any] | None
) -> dict[str, Array]:
    """Return copies of the values that the parameters shall take; without any, the parameters."""
    named = dict(named_parameters(groups))
    if given is None:
        return named
    check_entries("parameters", given, list(named))
    values = {name: np.array(given[name], order="C") for name in named}
    for name, value in values.items():
        p = named[name]
        if value.shape != p.shape or value.dtype != p.dtype:
            raise ValueError(
                f"parameters has {name} of shape {value.shape} and dtype {value.dtype}, but the "
                f"parameter has shape {p.shape} and dtype {p.dtype}."
            )
    return values


def check_entries(
    what: str, mapping: Any, wanted: Sequence[str], *, optional: Set[str] = frozenset()
) -> None:
    """Refuse what is no dict with exactly the keys ``wanted``, and as it may be ``optional``."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{what} is {kind(mapping)}, but it must be a dict.")
    difference = difference_of_keys(set(mapping) - optional, set(wanted))
    if difference:
        raise KeyError(
            f"{what} {difference}, but it must have exactly {', '.join(sorted(wanted))}. Load what "
            "an optimizer over the same parameters saved."
        )


def _is_list_of_groups(params: Tree) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(each, Mapping) and "params" in each for each in params)
    )


def check_option_names(where: str, given: Iterable[str], way_out: str) -> None:
    """Raise TypeError for what groups do not have, with the ``way_out`` for what steps have."""
    for name in given:
        if name in _OF_THE_STEP:
            raise TypeError(f"{where} has {name}, which concerns the whole step. {way_out}")
    check_names(where, given, _OPTION_NAMES)


def _own_options(base: Options, where: str, given: Mapping[str, Any]) -> Options:
    changes = {key: value for key, value in given.items() if key != "params"}
    check_option_names(where, changes, "Give it to the optimizer, not to a group.")
    own = base.replace(**changes)
    _check_same_method(base, own)
    return own


def _check_remainders(
    options: Sequence[Options], found: Sequence[Sequence[tuple[str, Array]]]
) -> None:
    """Refuse remainders where no parameter can have one."""
    asked = [own.storage for own in options if own.storage.keeps_remainder]
    kept = any(
        as_bits(p).dtype == np.uint16
        for own, pairs in zip(options, found, strict=True)
        for _, p in pairs
        if own.storage.keeps_remainder
    )
    if asked and not kept:
        dtypes = {str(p.dtype) for pairs in found for _, p in pairs}
        how = "convert the parameters to ml_dtypes' bfloat16"
        raise ValueError(asked[0].refusal_of_remainders("bfloat16", dtypes, how))


def _check_same_method(base: Options, own: Options) -> None:
    if (base.has_mean, base.has_square) != (own.has_mean, own.has_square):
        raise ValueError(
            f"betas is {own.betas!r}, but every group of one optimizer keeps the same running "
            f"means, here {base.betas!r}. Use one optimizer for each method."
        )


def _check_same_state(old: Options, new: Options) -> None:
    _check_same_method(old, new)
    if old.amsgrad != new.amsgrad:
        raise ValueError(
            f"amsgrad is {new.amsgrad}, but this optimizer was created with {old.amsgrad} and "
            "keeps its state accordingly. Create another optimizer."
        )
    before, after = old.storage, new.storage
    if (
        before.parameter_rounding != after.parameter_rounding
        and before.keeps_remainder | after.keeps_remainder
    ):
        raise ValueError(
            f'rounding is "{new.rounding}", but this optimizer was created with "{old.rounding}" '
            "and keeps its remainders accordingly. Create another optimizer."
        )


def _loaded_options(groups: Sequence[ParameterGroup], stored: Any) -> list[Options]:
    if not isinstance(stored, (list, tuple)):
        raise TypeError(f"groups of the state_dict is {kind(stored)}, but it must be a list.")
    if len(stored) != len(groups):
        raise ValueError(
            f"The state_dict has {len(stored)} groups, but this optimizer has {len(groups)}."
        )
    loaded: list[Options] = []
    for i, (group, given) in enumerate(zip(groups, stored, strict=True)):
        check_entries(f"groups[{i}]", given, (*_OPTION_NAMES, "params"))
        names = given["params"]
        if not isinstance(names, (list, tuple)) or list(names) != list(group.names):
            raise ValueError(
                f"groups[{i}] of the state_dict has the parameters {names!r}, but "
                f"this optimizer has {list(group.names)} there."
            )
        changes = {key: value for key, value in given.items() if key != "params"}
        for name in ("state", "rounding"):  # how it is stored is this optimizer's affair
            changes[name] = getattr(group.options, name)
        if changes["lr"] is None:
            if not callable(group.options.lr):
                raise ValueError(
                    f"groups[{i}] was saved with a schedule for lr, which cannot be stored, but "
                    f"this optimizer has lr={group.options.lr!r}. Create it with the schedule."
                )
            changes["lr"] = group.options.lr
        options = group.options.replace(**changes)
        _check_same_state(group.options, options)
        loaded.append(options)
    return loaded
