"""Process groups over which parameters are distinct, as of pipeline stages: ``clip_group``.

One stands for the whole optimizer or in a group of parameters, which overrules it; None there says
that all processes have the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch.distributed as dist

from adamas import settings
from adamas.checks import kind

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    #: The processes over which parameters are distinct.
    ClipGroup: TypeAlias = ProcessGroup | DeviceMesh
else:  # some builds of PyTorch have neither
    ClipGroup = Any

__all__ = [
    "KEY",
    "ClipGroup",
    "ClipGroupSetting",
    "checked",
    "given_in",
    "left_out",
    "of_all",
    "put_away",
    "taken_back",
    "told",
]

#: In groups and among the options of whole steps.
KEY = "clip_group"
_OWN = "_clip_group"
_NO_GROUP = object()


def checked(value: Any, what: str = KEY) -> Any:
    """Return a ``clip_group`` as it was given. Raises TypeError or ValueError for no such group."""
    if value is None:
        return None
    is_member, mesh_dim = True, getattr(value, "ndim", None)
    if _is_mesh(value):
        if mesh_dim != 1:
            raise ValueError(
                f"{what} is a DeviceMesh of {mesh_dim} dimensions, but it must have one, along "
                'which parameters are distinct. Give for example mesh["pp"].'
            )
        is_member = value.get_coordinate() is not None
    elif _is_group(value):
        is_member = dist.get_rank(value) >= 0
    elif dist.is_available() and value is dist.GroupMember.NON_GROUP_MEMBER:
        is_member = False
    else:
        raise TypeError(
            f"{what} is {kind(value)}, but it must be a torch.distributed.ProcessGroup, or a "
            "DeviceMesh of one dimension, over which parameters are distinct. Give for example "
            'mesh["pp"].'
        )
    if not is_member:
        raise ValueError(
            f"{what} is a process group without this process, which has rank {dist.get_rank()}. "
            "Give each process a group that it is in, or leave it out."
        )
    return value


def _is_mesh(value: Any) -> bool:
    return hasattr(value, "get_coordinate") and hasattr(value, "get_group")


def _is_group(value: Any) -> bool:
    return dist.is_available() and isinstance(value, dist.ProcessGroup)


def given_in(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return what groups of parameters say themselves, as it is.

    Those that say nothing have False, and what is no group has a value that no group has.
    """
    return [group.get(KEY, False) if isinstance(group, dict) else _NO_GROUP for group in groups]


def of_all(groups: Sequence[Mapping[str, Any]], of_optimizer: Any) -> tuple[list[Any], list[Any]]:
    """Return the process group of each parameter, and those of groups without parameters."""
    by_place: list[Any] = []
    others: list[Any] = []
    for i, group in enumerate(groups):
        found = checked(group.get(KEY, of_optimizer), f"param_groups[{i}]['{KEY}']")
        found = found.get_group() if _is_mesh(found) else found
        by_place.extend([found] * len(group["params"]))
        if not group["params"] and found is not None:
            others.append(found)
    return by_place, others


class ClipGroupSetting(settings.Setting[ClipGroup | None]):
    """The process group of a whole optimizer, which may be set between steps."""

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        """Return it as it is now."""
        return self if optimizer is None else settings.stepping(optimizer)._clip_group

    def __set__(self, optimizer: Any, value: Any) -> None:
        """Take another from the next step on; a wrong one raises, changing nothing."""
        stands = self._made(optimizer)
        with stands._stepper.held():
            stands._clip_group = checked(value)
            stands._stepper.go_by(stands._keeping)


def told(clip_group: Any) -> dict[str, str]:
    """Return what an optimizer's text says of it; nothing where there is none."""
    if clip_group is None:
        return {}
    try:
        group = clip_group.get_group() if _is_mesh(clip_group) else clip_group
        ranks = dist.get_process_group_ranks(group)
    except (KeyError, RuntimeError, ValueError):  # by torch's release
        return {KEY: "a process group that was destroyed"}
    return {KEY: f"processes {', '.join(map(str, ranks))}"}


# ── copies ─────────────────────────────────────────────────────────────────────────────────────


class _Away:
    """A process group in a copy of an optimizer: the same one here, and none in a pickle."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: Any) -> _Away:
        return self

    def __reduce__(self) -> Any:
        return (_Away, (None,))


def put_away(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's attributes such that they can be copied and pickled."""
    groups = cast("list[dict[str, Any]]", state["param_groups"])
    if any(group.get(KEY) is not None for group in groups):  # else a shallow copy shares the list
        groups = [
            group if group.get(KEY) is None else {**group, KEY: _Away(group[KEY])}
            for group in groups
        ]
    return {**state, "param_groups": groups, _OWN: _Away(state.get(_OWN))}


def taken_back(state: Mapping[str, Any], without: Collection[str]) -> dict[str, Any]:
    """Return the attributes that were put away, but for some."""
    found = {name: value for name, value in state.items() if name not in without}
    if isinstance(found.get(_OWN), _Away):
        found[_OWN] = found[_OWN].group
    for group in found.get("param_groups", ()):
        if isinstance(group.get(KEY), _Away):
            group[KEY] = group[KEY].group
    return found


def left_out(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return groups to be saved: a process group is no part of a checkpoint.

    None stands in its place, since PyTorch's flat state_dicts have each key of each group.
    """
    return [{**group, KEY: None} if KEY in group else dict(group) for group in groups]
