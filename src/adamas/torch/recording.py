"""An optimizer of tensors, as a recorder sees it: on any device, and sharded over processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from adamas import observing
from adamas.observing import Called, Observed, Taken
from adamas.summary import by_reason
from adamas.torch import decays, distributed, squares
from adamas.torch.grouping import names_of, parameters_of
from adamas.torch.members import Member, scalar
from adamas.torch.methods import Method
from adamas.torch.record import Record
from adamas.torch.statistics import elements_of

__all__ = ["WAITS", "Tensors"]

#: What groups have of it.
_CHOICES = (
    *("decay", "lr_max", "decoupled_weight_decay", "momentum_decay", "dampening"),
    *("amsgrad", "nesterov", "maximize"),
)

#: How long a process waits for others to record, too, in seconds.
WAITS = 300.0


class Tensors(Observed):
    """An optimizer of ``adamas.torch``."""

    def __init__(self, optimizer: Any, rank: int) -> None:
        """See it, as one of the processes of which ``rank`` writes."""
        self._optimizer: Callable[[], Any] = weakref.ref(optimizer)
        self._rank = rank
        self._has_begun = self._has_agreed = False
        #: Of steps that reported, when it was last asked to observe one.
        self._count = 0
        self._refuse(optimizer)

    @property
    def is_writer(self) -> bool:
        """Whether this is the process of the rank that writes."""
        return not distributed.is_initialized() or dist.get_rank() == self._rank

    @property
    def _record(self) -> Record:
        return self._optimizer()._stepper.record

    def description(self) -> dict[str, Any]:
        """Return ``method``, ``phase``, ``groups`` and ``parameters`` of a header."""
        optimizer = self._optimizer()
        names = names_of(optimizer.param_groups)
        parameters = parameters_of(optimizer.param_groups)
        own = iter(names)
        return {
            "method": type(optimizer).__name__,
            "phase": observing.shown(vars(optimizer.phase)),
            "groups": [
                {
                    **_plain(group),
                    **_chosen(optimizer._method, group),
                    "parameters": [next(own) for _ in group["params"]],
                }
                for group in optimizer.param_groups
            ],
            "parameters": {
                name: {"shape": list(p.shape), "dtype": str(p.dtype).removeprefix("torch.")}
                for name, p in zip(names, parameters, strict=True)
            },
        }

    def frame(self) -> Any:
        """Return what differs as soon as the description may."""
        optimizer = self._optimizer()
        kept = ("eps", "state", "rounding", *_CHOICES)
        groups = [
            (id(group), len(group["params"]), *map(group.get, kept))
            for group in optimizer.param_groups
        ]
        return optimizer._phase, groups

    def origin(self) -> Any:
        """Return what is another where a state was loaded, which makes groups anew."""
        return id(self._optimizer().param_groups[0])

    def follow(self, before_first: Called, after: Called) -> Callable[[], None]:
        """Have functions called before the next step, and after each; return what ends that."""
        optimizer = self._optimizer()

        def once(*_: Any) -> None:
            if not self._has_begun:
                before_first()
                self._has_begun = True

        def end() -> None:
            self._first.remove()
            handle.remove()

        self._first = optimizer.register_step_pre_hook(once)
        handle = optimizer.register_step_post_hook(after)
        return end

    def begun(self) -> None:
        """Need nothing called before a step any more; torch goes through its pre-hooks then."""
        self._first.remove()

    def goes_on_uncounted(self) -> bool:
        """Return whether SGD, which counts no steps, has momentum of earlier ones."""
        optimizer = self._optimizer()
        groups = optimizer.param_groups
        is_counted = any(optimizer._method.names(group)[0] is not None for group in groups)
        return not is_counted and any(optimizer.state.values())

    def begin(self, every: int) -> bool:
        """Return whether this process has anything to do; see that others take part."""
        if not distributed.is_initialized():
            return True
        among = _sharing(parameters_of(self._optimizer().param_groups))
        if not among:
            return self.is_writer
        if not self._has_agreed:
            _agree(among, every, self._rank)
            self._has_agreed = True
        return True

    def observe(self, *, wanted: bool) -> None:
        """Let further steps take statistics, or not."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self._count = self._record.count
            optimizer._observe(self, wanted)

    def is_clipped(self, optimizer: Any) -> bool | None:
        """Return whether the last step clipped; None where a device would be waited for."""
        return optimizer._stepper.record.is_clipped

    def taken(self) -> Taken | None:
        """Return what the last step did; None where it was not observed."""
        optimizer = self._optimizer()
        record: Record = optimizer._stepper.record
        if record.count == self._count:  # as in a step that a GradScaler has left out
            return None
        self._count = record.count
        with optimizer._stepper.turn.held():
            is_told = bool(record.parts)
            if not is_told and record.is_applied and record.norm is None:
                return None
            steps = _steps(record.reported)
            return Taken(
                step=max(steps, default=None),
                lr=[scalar(group["lr"]) for group in optimizer.param_groups],
                gradient_norm=record.gradient_norm(),
                is_clipping=optimizer.clip_norm is not None,
                clip_factor=record.clip_factor,
                skipped=by_reason(optimizer.skipped),
                tensors=self._tensors(steps) if is_told else None,
            )

    def _tensors(self, steps: Sequence[int]) -> dict[str, dict[str, float]]:
        optimizer, record = self._optimizer(), self._record
        found = dict(record.named(names_of(optimizer.param_groups)))
        scale = record.loss_scale
        if scale != 1.0:
            for values in found.values():
                values["gradient_norm"] /= scale
        below = _below_eps(record.reported, steps, optimizer)
        for values, share in zip(found.values(), below, strict=True):
            if share is not None:
                values["below_eps"] = share
        return found

    def _refuse(self, optimizer: Any) -> None:
        """Raise ValueError where a group follows a rule whose steps take no statistics."""
        if any(optimizer._method.own_step(group) is not None for group in optimizer.param_groups):
            raise ValueError(
                "Recorder() got an RMSprop with momentum or centered, which follows another rule "
                "and takes no statistics. Leave out momentum and centered."
            )


def _steps(members: Sequence[Member]) -> list[int]:
    """Return the steps that were made of members; nothing where they are not counted."""
    own: list[Any] = []
    for member in members:
        step = member.step
        if step is None:
            return []
        own.append(step if type(step) is Tensor else distributed.local(step))
    return [int(number) for number in squares.read(own)]


def _below_eps(
    members: Sequence[Member], steps: Sequence[int], optimizer: Any
) -> list[float | None]:
    """Return the fraction of elements of each whole tensor with √v̂ < ε; None without a v."""
    if not steps:
        return [None] * len(members)
    method: Method = optimizer._method
    known: dict[Any, float | None] = {}
    bounds: list[float | None] = []
    for member, step in zip(members, steps, strict=True):
        key = id(member.group), step
        if key not in known:
            known[key] = method.square_at_eps(member.group, step)
        bounds.append(known[key])
    found = squares.read(squares.counts_below(members, bounds))
    parameters = parameters_of(optimizer.param_groups)
    exchange = distributed.sets_of(parameters).parts if distributed.is_initialized() else None
    if exchange is not None:
        each = torch.zeros(len(parameters), dtype=torch.int64)
        for member, count in zip(members, found, strict=True):
            each[member.place] = int(count)
        exchange.each(each)
        found = [each[member.place].item() for member in members]
    return [
        None if member.names.square is None else _share(count, elements_of(member.parameter))
        for member, count in zip(members, found, strict=True)
    ]


def _share(count: float, size: int) -> float:
    return int(count) / size if size else 0.0


def _chosen(method: Method, group: dict[str, Any]) -> dict[str, Any]:
    """Return what the rule is told besides numbers; by torch's names where it has no options."""
    options = method.options(group)
    if options is not None:
        return {name: getattr(options, name) for name in observing.CHOICES}
    own = {name: group[name] for name in ("momentum_decay", "dampening") if name in group}
    flags = {name: bool(group[name]) for name in ("nesterov", "maximize") if name in group}
    shrinks = decays.options(group, method.usual_decay(group))
    return shrinks | {name: scalar(value) for name, value in own.items()} | flags


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group as JSON can have them; None for what a method has not."""
    betas = group.get("betas")
    if betas is None:  # RMSprop and SGD
        betas = (group.get("momentum"), group.get("alpha"))
    eps, state = group.get("eps"), group.get("state")
    return {
        "lr": scalar(group["lr"]),
        "betas": [None if beta is None else scalar(beta) for beta in betas],
        "eps": None if eps is None else scalar(eps),
        "weight_decay": scalar(group["weight_decay"]),
        "state": [state, state] if isinstance(state, str) else state and list(state),
        "rounding": group.get("rounding"),
    }


# ── several processes ──────────────────────────────────────────────────────────────────────────


def _sharing(parameters: Iterable[Tensor]) -> list[int]:
    """Return the processes that have parts of tensors that this one has parts of."""
    found: set[int] = set()
    for parameter in parameters:
        for group in distributed.shard_groups(parameter):
            found.update(dist.get_process_group_ranks(group))
    return sorted(found) if len(found) > 1 else []


def _agree(among: Sequence[int], every: int, rank: int) -> None:
    """See that all these processes record the same steps; no collective, which could hang."""
    store: Any = cast(Any, dist.distributed_c10d)._get_default_store()
    own, wanted = dist.get_rank(), f"every {every} steps, written by process {rank}"
    turn = store.add(f"adamas/recorder/{own}", 1)
    store.set(f"adamas/recorder/{turn}/{own}", wanted)
    for other in among:
        key = f"adamas/recorder/{turn}/{other}"
        try:
            store.wait([key], timedelta(seconds=WAITS))
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {other} has parts of the parameters, but no Recorder of its own within "
                f"{WAITS:.0f} seconds. Statistics of sharded tensors need all processes: create "
                "adamas.Recorder in each of them, before the first step."
            ) from error
        theirs = store.get(key).decode()
        if theirs != wanted:
            raise ValueError(
                f"Process {other} records {theirs}, but process {own} {wanted}. Give all "
                "processes the same every and the same rank."
            )
