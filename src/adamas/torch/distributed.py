"""Tensors sharded over processes (FSDP2's DTensor): this process's part, and what the others have.

A step is element-wise, so each process steps its own part. Norms and counts belong to the whole
tensor: they are added up over processes as digits of exact sums, in which any order gives the same.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from adamas import digits

__all__ = [
    "Cut",
    "Exchange",
    "Sets",
    "by_runs",
    "cuts",
    "element_indices",
    "is_asked_for_state",
    "is_cut",
    "is_distributed",
    "is_initialized",
    "joined",
    "laid_out_as",
    "listed",
    "local",
    "own_blocks",
    "sets_of",
    "shape_by_runs",
    "shard_groups",
    "sharers",
    "spread_as",
    "with_part",
    "with_values",
]

_STATE_DICTS = "torch.distributed.checkpoint.state_dict"


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a distributed tensor, or the tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def joined(like: Tensor, part: Tensor) -> Tensor:
    """Return a part that is flat and on the CPU in the shape, place and layout of ``like``."""
    part = part.view(local(like).shape).to(like.device)
    return _spread(like, part, like.shape, like.stride())


def spread_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor as one of which each process has all, where ``like`` is such a one."""
    if not is_distributed(like) or is_distributed(tensor):
        return tensor
    return _spread(like, tensor, tensor.shape, tensor.stride())


def with_values(like: Tensor, part: Tensor) -> Tensor:
    """Return this process's part of a tensor that is laid out as ``like`` is, strides and all."""
    return _spread(like, part, like.shape, like.stride())


def with_part(like: Tensor, part: Tensor) -> Tensor:
    """Return this process's part of a contiguous tensor that is cut as ``like`` is."""
    return _spread(like, part, like.shape, torch.empty(like.shape, device="meta").stride())


def _spread(like: Tensor, part: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Return this process's part of a tensor that is cut as ``like`` is; itself if that is not."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None:
        return part
    kind: Any = type(like)
    placements = like.placements  # type: ignore[attr-defined]
    # from_local would bring a part in host memory to the devices of the mesh.
    is_there = part.device.type == mesh.device_type
    spread = kind.from_local(
        part if is_there else part.to("meta"),
        mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=stride,
    )
    return spread if is_there else kind(part, spread._spec, requires_grad=False)


def is_initialized() -> bool:
    """Return whether this process is one of several, or of one, that know each other."""
    return dist.is_available() and dist.is_initialized()


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor is one of which each process may have a part of its own."""
    return getattr(tensor, "device_mesh", None) is not None


class Cut(NamedTuple):
    """How one dimension of the mesh cuts a tensor: a block, or several blocks, for each process."""

    dimension: int  # of the tensor
    #: Blocks that are there before this cut, each of which it cuts: 1 for a plain shard.
    blocks: int


def cuts(parameter: Tensor) -> list[Cut | None]:
    """Return how each dimension of the mesh cuts a tensor; None where it holds replicas.

    All that asks a placement asks here. Raises TypeError for placements of which no process has
    elements of its own: sums that are not added up yet (Partial), and unknown ones.
    """
    return [_cut(placement, parameter.ndim) for placement in getattr(parameter, "placements", ())]


def _cut(placement: Any, ndim: int) -> Cut | None:
    if placement.is_replicate():
        return None
    # `is_shard()` is False of what FSDP2 makes of tensors that are cut along a dimension already.
    dimension = getattr(placement, "dim", None)
    if dimension is None or placement.is_partial():
        raise TypeError(
            f"A parameter has the placement {placement}, but each process must have elements of "
            "its own, or all of them: Shard or Replicate. Redistribute the parameter first."
        )
    return Cut(dimension % max(ndim, 1), int(getattr(placement, "split_factor", 1)))


def is_asked_for_state() -> bool:
    """Return whether torch.distributed.checkpoint makes this step, for the state that it leaves.

    It steps along gradients of 0, with a learning rate of 0, where there is no state yet to be
    saved or loaded. Those values do not tell: one process alone may have none but zeros in a step
    of a run.
    """
    frame = inspect.currentframe()
    while frame is not None:
        is_asking = frame.f_code.co_name == "_init_optim_state"
        if is_asking and frame.f_globals.get("__name__") == _STATE_DICTS:
            return True
        frame = frame.f_back
    return False


def is_cut(parameter: Tensor) -> bool:
    """Return whether any process has another part of a tensor than others have."""
    mesh = getattr(parameter, "device_mesh", None)
    lengths = () if mesh is None else mesh.shape
    cut = zip(cuts(parameter), lengths, strict=True)
    return any(each is not None and length > 1 for each, length in cut)


def shape_by_runs(like: Tensor, run: int) -> torch.Size | None:
    """Return the shape of a tensor that has one element for each ``run`` elements of each row.

    Its last dimension is that of ``like``, divided by ``run``, and it is cut where ``like`` is.
    None where a run would be of several rows, or of several processes.
    """
    last = like.shape[-1] if like.ndim else 1
    if last % run or not _cuts_between(last, run, _along(like, like.ndim - 1)):
        return None
    return torch.Size((*like.shape[:-1], last // run))


def by_runs(like: Tensor, part: Tensor, run: int) -> Tensor:
    """Return ``part``, one element for each ``run`` elements of this process's part, laid out.

    In the shape, mesh and placements that ``shape_by_runs`` speaks of; where there is no such
    shape, flat and of this process alone.
    """
    shape = shape_by_runs(like, run)
    flat = part.reshape(-1).contiguous()
    if shape is None:
        return flat
    *others, own = local(like).shape
    stride = torch.empty(shape, device="meta").stride()
    return _spread(like, flat.view(*others, own // run), shape, stride)


def _along(tensor: Tensor, dimension: int) -> tuple[tuple[int, int], ...]:
    """Return how one dimension is cut, in order: the number of blocks, and of processes."""
    mesh = getattr(tensor, "device_mesh", None)
    lengths = () if mesh is None else mesh.shape
    pairs = zip(cuts(tensor), lengths, strict=True)
    return tuple(
        (cut.blocks, length)
        for cut, length in pairs
        if cut is not None and cut.dimension == dimension
    )


@functools.lru_cache(maxsize=256)
def _cuts_between(length: int, run: int, along: tuple[tuple[int, int], ...]) -> bool:
    """Return whether all parts of a dimension are runs, and those of one with an element for each.

    All processes find the same, since each looks at the parts of all.
    """
    elements, runs = [range(length)], [range(length // run)]
    return all(
        [range(each.start * run, each.stop * run) for each in _kept(runs, along, own)]
        == _kept(elements, along, own)
        for own in itertools.product(*(range(count) for _, count in along))
    )


def _kept(
    indices: list[range], along: Iterable[tuple[int, int]], own: Iterable[int]
) -> list[range]:
    """Return which indices of a dimension the process in a place of the mesh has."""
    for (blocks, count), place in zip(along, own, strict=True):
        pieces = (_chunk(_chunk(indices, blocks, i), count, place) for i in range(blocks))
        indices = [each for piece in pieces for each in piece]
    joined: list[range] = []
    for each in indices:
        is_next = joined and joined[-1].stop == each.start
        joined.append(range(joined.pop().start if is_next else each.start, each.stop))
    return joined


def _chunk(indices: Iterable[range], count: int, place: int) -> list[range]:
    """Return one of the ``count`` parts that ``torch.chunk`` would make of indices."""
    indices = list(indices)
    size = -(-sum(map(len, indices)) // count)
    first = place * size
    found: list[range] = []
    for each in indices:
        found.append(each[max(first, 0) : max(first + size, 0)])
        first -= len(each)
    return [each for each in found if each]


def element_indices(parameter: Tensor) -> NDArray[np.uint64]:
    """Return where the elements of this process's part stand in the whole tensor, flattened."""
    if not is_distributed(parameter):
        return np.arange(parameter.numel(), dtype=np.uint64)
    indices = np.zeros((), np.uint64)
    for whole, along in zip(parameter.shape, own_blocks(parameter), strict=True):
        indices = indices[..., None] * np.uint64(whole) + listed(along).astype(np.uint64)
    return indices.ravel()


def own_blocks(parameter: Tensor) -> list[list[range]]:
    """Return which indices along each dimension this process has of a distributed tensor.

    They ascend, and are not always consecutive: where FSDP2 cuts what is cut along the same
    dimension already, a process has several blocks.
    """
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    alongs = [[range(length)] for length in parameter.shape]
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this process is not of the mesh, and has nothing
        return [[] for _ in alongs]
    for cut, length, own in zip(cuts(parameter), mesh.shape, coordinate, strict=True):
        if cut is not None:
            along = alongs[cut.dimension]
            alongs[cut.dimension] = _kept(along, [(cut.blocks, length)], [own])
    return alongs


def listed(blocks: Iterable[range]) -> NDArray[np.int64]:
    """Return the indices that blocks have, one by one."""
    found = (np.arange(each.start, each.stop, dtype=np.int64) for each in blocks)
    return np.concatenate([np.zeros(0, np.int64), *found])


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient redistributed as its parameter is, where it is not already.

    Sums over processes that are not added up yet are added up.
    """
    placements = getattr(parameter, "placements", None)
    if placements is None or getattr(gradient, "placements", placements) == placements:
        return gradient
    if all(cut is None or cut.blocks == 1 for cut in cuts(parameter)):
        return gradient.redistribute(placements=placements)  # type: ignore[attr-defined]
    own = gradient.full_tensor()  # type: ignore[attr-defined]
    for dimension, along in enumerate(own_blocks(parameter)):
        own = own.index_select(dimension, torch.from_numpy(listed(along)).to(own.device))
    return joined(parameter, own)


def shard_groups(parameter: Tensor) -> tuple[Any, ...]:
    """Return the process groups that a tensor's parts are spread over; none for a plain tensor."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.get_coordinate() is None:
        return ()
    return tuple(
        mesh.get_group(dimension)
        for dimension, cut in enumerate(cuts(parameter))
        if cut is not None
    )


def sharers(parameters: Iterable[Tensor]) -> tuple[int, tuple[int, ...]]:
    """Return the rank of this process, and those that have other elements of any parameter.

    (0, (0,)) where this process has all of all.
    """
    cut = [p for p in parameters if is_distributed(p) and is_cut(p)]
    if not cut:
        return 0, (0,)
    ranks = (rank for p in cut for rank in _ranks_of_mesh(p, whole=False))
    return dist.get_rank(), tuple(sorted({dist.get_rank(), *ranks}))


# ── sums over processes ────────────────────────────────────────────────────────────────────────

#: How many carried rows of digits can be added in int64: see ``adamas.digits``.
_MOST_ROWS = 2**15

#: A process group as it is told from others: its processes, in ascending order.
_Ranks = tuple[int, ...]


class Sets(NamedTuple):
    """In which sums the parameters of an optimizer are counted: one for each set of groups."""

    #: Of each parameter, by its place, the sum that it is counted in.
    rows: tuple[int, ...] = ()
    #: How many sums there are.
    row_count: int = 1
    #: Adds up the sums of all processes; None where there is nothing to add.
    exchange: Exchange | None = None
    #: Adds up what processes have of each parameter; None where each has all of them.
    parts: Exchange | None = None


def sets_of(
    parameters: Sequence[Tensor], clip_groups: Sequence[Any] = (), others: Sequence[Any] = ()
) -> Sets:
    """Return the sums that parameters are counted in, in the order in which they appear.

    ``clip_groups`` has the group over which a parameter is another one in each process, or None;
    by place, or nothing at all. In ``others`` this process takes part without a parameter. Raises
    ValueError where processes of such a group hold the same elements of a parameter, which would be
    counted several times.
    """
    first: dict[_Ranks, Any] = {}  # of several groups of the same processes, one does for all
    known: dict[Any, list[tuple[Any, ...]]] = {}
    sums: dict[tuple[Any, ...], int] = {}
    rows: list[int] = []
    parts: list[tuple[Any, ...]] = []

    def alike(groups: dict[_Ranks, Any]) -> tuple[Any, ...]:
        return tuple(first.setdefault(ranks, group) for ranks, group in groups.items())

    for place, parameter in enumerate(parameters):
        clip = clip_groups[place] if clip_groups else None
        mesh = getattr(parameter, "device_mesh", None)
        laid = () if mesh is None else (id(mesh), parameter.placements, parameter.ndim)  # type: ignore[attr-defined]
        if (laid, clip) not in known:
            shards = _of_several({_ranks(group): group for group in shard_groups(parameter)})
            spread = shards if clip is None else _spread_over(parameter, shards, clip)
            known[laid, clip] = [alike(spread), alike(shards)]
        spread, shards = known[laid, clip]
        rows.append(sums.setdefault(spread, len(sums)))
        parts.append(shards)
    for clip in others:
        sums.setdefault(alike(_of_several({_ranks(clip): clip})), len(sums))
    clips = [_ranks(each) for each in dict.fromkeys((*clip_groups, *others)) if each is not None]
    late = [first[each] for each in clips if each in first]
    device = _device_of(parameters)
    return Sets(
        tuple(rows),
        len(sums),
        Exchange(list(sums), late, device) if any(sums) else None,
        Exchange(parts, (), device) if any(parts) else None,
    )


def _device_of(parameters: Sequence[Tensor]) -> torch.device:
    """Return the device on which sums are sent: the same kind in all processes.

    A process may have gradients on the CPU alone, and a group with a backend for each kind of
    device (``cpu:gloo,cuda:nccl``) would send them by another one than those of other processes.
    """
    if not parameters:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    devices = [parameter.device for parameter in parameters]
    return next((each for each in devices if each.type != "cpu"), devices[0])


def _spread_over(parameter: Tensor, shards: dict[_Ranks, Any], clip: Any) -> dict[_Ranks, Any]:
    """Return the groups that elements are spread over, where a group has distinct parameters."""
    among, own = set(_ranks(clip)), set(_ranks_of_mesh(parameter, whole=False))
    is_repeated = (among & set(_ranks_of_mesh(parameter, whole=True))) - own
    if not is_repeated and len(among & own) <= 1:  # the others have other parameters
        return _of_several({**shards, _ranks(clip): clip})
    if not is_repeated and own <= among:  # they have all parts of this one, too
        return {_ranks(clip): clip}
    if not is_repeated and among <= own:
        return shards
    placements = getattr(parameter, "placements", None)
    raise ValueError(
        f"clip_group has the processes {sorted(among)}, but several of them hold the same elements "
        f"of a parameter of shape {tuple(parameter.shape)} and placements {placements}, which "
        "would be counted several times. Give the group of processes whose parameters are "
        "distinct: one of each set of replicas."
    )


def _of_several(groups: dict[_Ranks, Any]) -> dict[_Ranks, Any]:
    """Return those of groups that have more than one process."""
    return {ranks: group for ranks, group in groups.items() if len(ranks) > 1}


def _ranks(group: Any) -> _Ranks:
    return tuple(sorted(dist.get_process_group_ranks(group)))


def _ranks_of_mesh(parameter: Tensor, *, whole: bool) -> list[int]:
    """Return the processes of a parameter's mesh, or those that hold its elements once."""
    mesh = getattr(parameter, "device_mesh", None)
    coordinate = None if mesh is None else mesh.get_coordinate()
    if mesh is None or coordinate is None:
        return [dist.get_rank()]
    if whole:
        return mesh.mesh.flatten().tolist()
    found = mesh.mesh
    for dimension, (own, cut) in enumerate(zip(coordinate, cuts(parameter), strict=True)):
        if cut is None:
            found = found.narrow(dimension, own, 1)
    return found.flatten().tolist()


class Exchange:
    """Adds up sums of all processes, in place: one all-reduce for each process group.

    The order of groups follows from all parameters, so it is the same in all processes that have
    the same ones. Those of a ``clip_group`` need not have: such groups come last, in the order of
    their processes. Where a group is the last that sums are spread over, all these sums are sent as
    one.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Any, ...]],
        clip_groups: Sequence[Any],
        device: torch.device,
    ) -> None:
        """Take, for each sum, the process groups that its elements are spread over.

        What is sent is sent from ``device``, if a group has a backend for it.
        """
        self._made_of = (tuple(groups), tuple(clip_groups), device)
        self._device = device
        each_once = dict.fromkeys(group for own in groups for group in own)
        uses = {group: sum(group in own for own in groups) for group in each_once}
        # Those that most sums are spread over come last, so that as many as can be are sent as one.
        turn = sorted(
            each_once,
            key=lambda each: (math.inf, _ranks(each)) if each in clip_groups else (uses[each], ()),
        )
        #: All process groups in their turn, each with the sums that are spread over it: those that
        #: further groups have a part in, and those that are complete then.
        self._passes: list[tuple[Any, list[int], list[int]]] = []
        for i, group in enumerate(turn):
            spread = [row for row, own in enumerate(groups) if group in own]
            further = {row for row in spread if set(groups[row]) & set(turn[i + 1 :])}
            complete = [row for row in spread if row not in further]
            self._passes.append((group, sorted(further), complete))
        self._count = sum(math.prod(map(dist.get_world_size, own)) for own in groups)
        #: By device, for each pass, which sums are spread over its group; sent there once.
        self._spread: dict[torch.device, list[Tensor]] = {}

    def __eq__(self, other: object) -> bool:
        """Return whether the same is added up, so that a plan may be used again."""
        return isinstance(other, Exchange) and self._made_of == other._made_of

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, rows: Any) -> None:
        """Add up rows of digits (``adamas.digits``, carried), an int64 tensor or array.

        Their total is that of all processes afterwards; which row has what of it may differ. That
        there are infinities or NaN is known then in all processes of all groups, whichever sum
        they are in, so that all come to the same verdict; how many is not.
        """
        if self._count > _MOST_ROWS:
            raise ValueError(
                f"Sums of {self._count} processes and sets of process groups are to be added, but "
                f"the digits of exact sums have room for {_MOST_ROWS}. Leave clip_norm and "
                "on_nonfinite out, and clip by the framework."
            )
        tensor: Tensor = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        for group, apart, complete in self._passes:
            sent = [tensor[i] for i in apart]
            if len(complete) == 1:
                sent.append(tensor[complete[0]])
            elif complete:
                sent.append(torch.stack([tensor[i] for i in complete]).sum(0))
            stacked = torch.stack(sent)
            if len(tensor) > len(apart) + len(complete):
                stacked[0, digits.INFINITE :] = tensor[:, digits.INFINITE :].sum(0)
            self._reduce(stacked, dist.ReduceOp.SUM, group)
            for i, values in zip([*apart, *complete[:1]], stacked, strict=True):
                tensor[i].copy_(values)
            for i in complete[1:]:
                tensor[i].zero_()

    def each(self, values: Tensor, operation: Any = None) -> None:
        """Reduce values of each sum over the processes that it is spread over, in place.

        ``values`` has an entry, or a row, for each sum; they are added up where no ``operation`` is
        given.
        """
        if values.device not in self._spread:
            self._spread[values.device] = [
                torch.tensor(sorted((*apart, *complete)), device=values.device)
                for _, apart, complete in self._passes
            ]
        for (group, _, _), where in zip(self._passes, self._spread[values.device], strict=True):
            stacked = values[where]
            self._reduce(stacked, dist.ReduceOp.SUM if operation is None else operation, group)
            values[where] = stacked

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest that a number is in all processes of all groups."""
        found = value.detach().reshape(1).clone()
        for group, _, _ in self._passes:
            self._reduce(found, dist.ReduceOp.MAX, group)
        return found.reshape(value.shape)

    def _reduce(self, tensor: Tensor, operation: Any, group: Any) -> None:
        """Reduce a tensor in place, from a device that the group's backend takes."""
        taken = [each.partition(":")[0] for each in dist.get_backend_config(group).split(",")]
        is_taken = self._device.type in taken or not taken[0]
        device = self._device if is_taken else torch.device(taken[0])
        sent = tensor if tensor.device.type == device.type else tensor.to(device)
        dist.all_reduce(sent, op=operation, group=group)
        if sent is not tensor:
            tensor.copy_(sent)
