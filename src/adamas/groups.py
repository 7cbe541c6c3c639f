"""Parameters in groups with one set of options each, and the state that belongs to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.arrays import (
    Layout,
    as_bits,
    check_parameters,
    check_same_layout,
    checked_gradient,
    layout_of,
)
from adamas.checks import check_names, check_plain, kind, not_finite
from adamas.engines import Group, Slot
from adamas.options import Options, Phase, check_greatest, learning_rate_at
from adamas.state import State, converted, create, loaded
from adamas.trees import Tree, changed_leaf, difference_of_keys, leaves, matching_leaves

__all__ = ["ParameterGroup", "Parameters", "check_entries", "check_option_names"]

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
    #: What names begin with: the number of the group, or nothing where there are no groups.
    path: str
    names: tuple[str, ...]
    parameters: tuple[Array, ...]
    states: tuple[State, ...]
    #: Dtype, shape and place in memory of each parameter, as they were when a plan was made.
    layouts: tuple[Layout, ...]

    @classmethod
    def of(
        cls,
        options: Options,
        tree: Tree,
        path: str,
        names: Sequence[str],
        states: Sequence[State],
    ) -> ParameterGroup:
        """Return a group with the arrays that the tree has by these names, as they lie now."""
        found = dict(leaves(tree, path))
        parameters = tuple(found[name] for name in names)
        layouts = tuple(map(layout_of, parameters))
        return cls(options, tree, path, tuple(names), parameters, tuple(states), layouts)

    def found(self) -> ParameterGroup:
        """Return the group with its arrays as they lie in memory now."""
        return self.of(self.options, self.tree, self.path, self.names, self.states)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the arrays to the containers that have them."""
        return self.of, (self.options, self.tree, self.path, self.names, self.states)

    def with_options(self, changes: Mapping[str, Any]) -> ParameterGroup:
        """Return the group with other options, and its state as it is stored under them."""
        options = self.options.replace(**changes)
        _check_same_state(self.options, options)
        rows = zip(self.names, self.parameters, self.states, strict=True)
        states = tuple(converted(name, state, as_bits(p), options) for name, p, state in rows)
        return replace(self, options=options, states=states)

    def loaded(
        self, options: Options, stored: Mapping[str, Any], values: Mapping[str, Array]
    ) -> ParameterGroup:
        """Return the group with other options and state, those that belong to ``values``."""
        states = tuple(
            loaded(name, as_bits(values[name]), options, stored[name], ema=old.ema is not None)
            for name, old in zip(self.names, self.states, strict=True)
        )
        return replace(self, options=options, states=states)

    def planned(self, marks: Iterator[NDArray[np.int32] | None]) -> Group:
        """Return the group as engines take it, with the next ``marks``, one for each parameter."""
        slots: list[Slot] = []
        for p, state in zip(self.parameters, self.states, strict=True):
            bits = as_bits(p)
            slots.append(Slot(bits, state, array=None if bits is p else p, marks=next(marks)))
        return Group(self.options, tuple(slots))

    def plain(self) -> dict[str, Any]:
        """Return names and options as JSON can have them; a schedule is None."""
        plain = dataclasses.asdict(self.options)
        plain["betas"] = list(self.options.betas)
        plain["state"] = list(self.options.storage.forms)
        if callable(self.options.lr):
            plain["lr"] = None
        return {"params": list(self.names), **plain}

    def loaded_options(self, where: str, given: Any) -> Options:
        """Return the options of a ``plain`` group that is to be loaded, checked."""
        check_entries(where, given, (*_OPTION_NAMES, "params"))
        names = given["params"]
        if not isinstance(names, (list, tuple)) or list(names) != list(self.names):
            raise ValueError(
                f"{where} of the state_dict has the parameters {names!r}, but "
                f"this optimizer has {list(self.names)} there."
            )
        changes = {key: value for key, value in given.items() if key != "params"}
        for name in ("state", "rounding"):  # how it is stored is this optimizer's affair
            changes[name] = getattr(self.options, name)
        if changes["lr"] is None:
            if not callable(self.options.lr):
                raise ValueError(
                    f"{where} was saved with a schedule for lr, which cannot be stored, but "
                    f"this optimizer has lr={self.options.lr!r}. Create it with the schedule."
                )
            changes["lr"] = self.options.lr
        options = self.options.replace(**changes)
        _check_same_state(self.options, options)
        return options


@dataclass(frozen=True, eq=False)
class Parameters:
    """All that an optimizer steps, group by group."""

    groups: tuple[ParameterGroup, ...]

    @classmethod
    def of(cls, params: Tree, options: Options, *, ema: bool) -> Parameters:
        """Return the parameters that a user gives, checked, with the state before a step."""
        if _is_list_of_groups(params):
            trees = [(str(i), given["params"]) for i, given in enumerate(params)]
            own = [_own_options(options, f"params[{i}]", given) for i, given in enumerate(params)]
        else:
            trees, own = [("", params)], [options]
        found = [list(leaves(tree, path)) for path, tree in trees]
        check_parameters([pair for pairs in found for pair in pairs])
        _check_remainders(own, found)
        return cls(
            tuple(
                ParameterGroup.of(
                    each,
                    tree,
                    path,
                    [name for name, _ in pairs],
                    [create(as_bits(p), each, ema=ema) for _, p in pairs],
                )
                for each, (path, tree), pairs in zip(own, trees, found, strict=True)
            )
        )

    @property
    def tree(self) -> Tree:
        """The containers that gradients must match."""
        if not self.groups[0].path:
            return self.groups[0].tree
        return [group.tree for group in self.groups]

    @property
    def named(self) -> list[tuple[str, Array]]:
        """All parameters with their names."""
        return [p for each in self.groups for p in zip(each.names, each.parameters, strict=True)]

    @property
    def states(self) -> list[tuple[str, State]]:
        """All states with the names of their parameters."""
        return [s for each in self.groups for s in zip(each.names, each.states, strict=True)]

    @property
    def arrays(self) -> list[Array]:
        """All parameters."""
        return [p for each in self.groups for p in each.parameters]

    @property
    def layouts(self) -> list[Layout]:
        """Dtype, shape and place in memory of all parameters, as a plan knows them."""
        return [layout for group in self.groups for layout in group.layouts]

    def found(self) -> Parameters:
        """Return the parameters as they lie in memory now."""
        return Parameters(tuple(group.found() for group in self.groups))

    def check_unchanged(self) -> bool:
        """Return whether all parameters are as they were; False where memory has moved.

        Refuses what the state does not belong to: parameters that were replaced in the user's
        containers, or changed in place to another shape or dtype, or made read-only.
        """
        named = self.named
        changed = changed_leaf(self.tree, named)
        if changed is not None:
            raise ValueError(
                f"Parameter {changed} is another array than the one that is stepped: its entry in "
                "params was replaced, added or taken out. Write values into the array itself, as "
                'in weights["w"][...] = values, or create another optimizer.'
            )
        layouts = self.layouts
        if all(layout_of(p) == old for (_, p), old in zip(named, layouts, strict=True)):
            return True
        for (name, p), old in zip(named, layouts, strict=True):
            check_same_layout(name, p, old)
        check_parameters(named)
        return False

    def in_order(self, gradients: Tree) -> list[Any]:
        """Return the leaves of ``gradients``, which must be built as the parameters are."""
        given = matching_leaves(gradients, self.tree, "gradients")
        by_name = dict(zip((name for name, _ in leaves(self.tree)), given, strict=True))
        return [by_name[name] for name, _ in self.named]

    def checked(self, gradients: Sequence[Any]) -> list[Array]:
        """Return copies of gradients that every engine can read, or say what is wrong with one."""
        pairs = zip(self.named, gradients, strict=True)
        return [checked_gradient(*named, gradient) for named, gradient in pairs]

    def rates_at(self, step: int) -> tuple[float, ...]:
        """Return the learning rate of each group at ``step``.

        Raises TypeError or ValueError for what is none, or above the greatest that was named.
        """
        rates = tuple(learning_rate_at(group.options.lr, step) for group in self.groups)
        for group, lr in zip(self.groups, rates, strict=True):
            options = group.options
            if options.lr_max is not None:
                name = f"lr({step})" if callable(options.lr) else "lr"
                check_greatest(name, lr, options.lr_max, options.decay)
        return rates

    def not_finite(self, counts: Sequence[int]) -> FloatingPointError:
        """Return the error of gradients with so many elements that are not finite."""
        return not_finite(
            f"{name} ({count} of {p.size} elements)"
            for (name, p), count in zip(self.named, counts, strict=True)
            if count
        )

    def with_options(self, group: int | None, changes: Mapping[str, Any]) -> Parameters:
        """Return the parameters with other options in one group (by index), or in all."""
        chosen = _chosen_groups(group, len(self.groups))
        return Parameters(
            tuple(
                each.with_options(changes) if i in chosen else each
                for i, each in enumerate(self.groups)
            )
        )

    def loaded(self, stored: Mapping[str, Any], values: Mapping[str, Array]) -> Parameters:
        """Return the parameters with the options and the state of a state_dict, changing nothing.

        ``values`` are those that the state belongs to.
        """
        options = self._loaded_options(stored["groups"])
        check_entries("The state", stored["state"], list(values))
        return Parameters(
            tuple(
                group.loaded(own, stored["state"], values)
                for group, own in zip(self.groups, options, strict=True)
            )
        )

    def _loaded_options(self, stored: Any) -> list[Options]:
        if not isinstance(stored, (list, tuple)):
            raise TypeError(f"groups of the state_dict is {kind(stored)}, but it must be a list.")
        if len(stored) != len(self.groups):
            raise ValueError(
                f"The state_dict has {len(stored)} groups, but this optimizer has "
                f"{len(self.groups)}."
            )
        pairs = enumerate(zip(self.groups, stored, strict=True))
        return [group.loaded_options(f"groups[{i}]", given) for i, (group, given) in pairs]

    def checked_values(self, given: Mapping[str, Any] | None) -> dict[str, Array]:
        """Return copies of the values that the parameters shall take; without any, themselves."""
        named = dict(self.named)
        if given is None:
            return named
        check_entries("parameters", given, list(named))
        for name in named:
            check_plain(f"The value of {name} in parameters", given[name])
        values = {name: np.array(given[name], order="C") for name in named}
        for name, value in values.items():
            p = named[name]
            if value.shape != p.shape or value.dtype != p.dtype:
                raise ValueError(
                    f"parameters has {name} of shape {value.shape} and dtype {value.dtype}, but "
                    f"the parameter has shape {p.shape} and dtype {p.dtype}."
                )
        return values

    def plain(self, *, packed: bool, copy: bool) -> dict[str, Any]:
        """Return what a state_dict has of them: groups, and the states by name."""
        return {
            "groups": [group.plain() for group in self.groups],
            "state": {
                name: {
                    entry: array.copy() if copy else array[...]
                    for entry, array in (state.packed() if packed else state.dense()).items()
                }
                for name, state in self.states
            },
        }


def _chosen_groups(group: int | None, count: int) -> range:
    """Return the indices of the groups that are meant."""
    if group is None:
        return range(count)
    if isinstance(group, bool) or not isinstance(group, int) or not -count <= group < count:
        raise IndexError(
            f"group is {group!r}, but it must be the index of a group, from 0 to {count - 1}, or "
            "None for all."
        )
    return range(group % count, group % count + 1)


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


def check_option_names(where: str, given: Iterable[str], way_out: str) -> None:
    """Raise TypeError for what groups do not have, with the ``way_out`` for what steps have."""
    for name in given:
        if name in _OF_THE_STEP:
            raise TypeError(f"{where} has {name}, which concerns the whole step. {way_out}")
    check_names(where, given, _OPTION_NAMES)


def _is_list_of_groups(params: Tree) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(each, Mapping) and "params" in each for each in params)
    )


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
            f"betas is {own.betas!r}, but every group of one optimizer keeps the same moments, "
            f"here {base.betas!r}. Use one optimizer for each method."
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
