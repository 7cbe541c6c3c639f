"""What an optimizer keeps for its parameters: what is created, in which form, and what is refused.

All of it follows from a method, a phase, the groups and what is stored already. Nothing here steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.coefficients import is_count
from adamas.engines.triton import devices
from adamas.options import Phase, check_together
from adamas.state import Entries
from adamas.storage import Storage
from adamas.torch import (
    arguments,
    counting,
    distributed,
    gradients,
    host_memory,
    small,
    storage,
)
from adamas.torch.members import Member
from adamas.torch.methods import Method

__all__ = ["NOT_DIFFERENTIABLE", "Group", "Keeping", "State"]

Group = dict[str, Any]
State = dict[str, Any]

NOT_DIFFERENTIABLE = (
    "differentiable=True asks for a step that autograd can see through, but adamas steps in place "
    "outside of autograd. Use torch.optim for that optimizer, or torch.func with adamas.rule."
)


class Keeping(NamedTuple):
    """What is kept for the parameters of an optimizer, and how."""

    method: Method
    phase: Phase
    #: Whether parameters on a card keep their state in host memory.
    offloads: bool
    #: The process group over which the parameters of all groups are distinct that do not say.
    clip_group: Any = None

    # -- what is kept, in which form -----------------------------------------------------------

    def is_offloaded(self, parameter: Tensor) -> bool:
        """Whether a parameter keeps its state in host memory, and is stepped there."""
        return self.offloads and host_memory.is_offloaded(parameter)

    def storage(self, group: Group) -> Storage:
        """Return how ``group`` is stored, checked."""
        _, names = self.method.names(group)
        return self._storage(group, names)

    def _storage(self, group: Group, names: Entries) -> Storage:
        state = group.get("state")
        asked = ("float32" if state is None else state, group.get("rounding"), names)
        try:
            return _storage(*asked)
        except TypeError:  # of what cannot be kept, or is wrong
            return _storage.__wrapped__(*asked)

    def form(self, group: Group, parameter: Tensor, state: State) -> small.Form | None:
        """Return how the state of a parameter is stored, or None where it is as torch stores it.

        Without ``state=``, bfloat16 parameters have a state in bfloat16 (or in what was loaded),
        rounded to nearest, as in torch; those in float16, which is too narrow for a mean of
        squares, have one in float32.
        """
        _, names = self.method.names(group)
        storage = self._storage(group, names)
        if "state" in group:
            if not storage.is_small and parameter.dtype not in small.HALF:
                return None
        elif parameter.dtype != torch.float16:
            if (
                parameter.dtype != torch.bfloat16
                or names.largest_square is not None
                or self.method.own_step(group) is not None
            ):
                return None
            mean, square = (
                "float32" if name in state and state[name].dtype == torch.float32 else "bfloat16"
                for name in (names.mean, names.square)
            )
            storage = Storage(mean, square, storage.rounding or "nearest")
        has_header = storage.has_header(
            has_mean=names.mean is not None, has_square=names.square is not None
        )
        return small.Form(storage, has_header, self.method.top(group))

    def remainder(self, group: Group, parameter: Tensor) -> torch.dtype | None:
        """Return what the remainder of a parameter is stored in; None where it has none."""
        is_kept = parameter.dtype == torch.bfloat16
        return small.REMAINDERS.get(group.get("rounding", "")) if is_kept else None

    def member(
        self,
        group: Group,
        parameter: Tensor,
        place: int,
        state: State,
        copy: Tensor | None,
        marks: Tensor | None = None,
    ) -> Member:
        """Return a parameter with what belongs to it; ``state`` is what is there of it yet."""
        step, names = self.method.names(group)
        form = self.form(group, parameter, state)
        names = names._replace(
            ema=None if self.phase.ema is None else "ema",
            header="header" if form is not None and form.has_header else None,
            remainder=None if self.remainder(group, parameter) is None else "remainder",
        )
        return Member(
            parameter=parameter,
            group=group,
            place=place,
            state=state,
            step_name=step,
            names=names,
            form=form,
            is_offloaded=self.is_offloaded(parameter),
            copy=copy,
            own_step=self.method.own_step(group),
            marks=marks,
        )

    def fitted(self, state: State, parameter: Tensor, group: Group) -> State:
        """Return a checked state in the form that its group stores, ``state`` itself if it is."""
        is_asked_for = "state" in group or parameter.dtype == torch.float16
        _, names = self.method.names(group)
        fitted = storage.fitted(
            state,
            parameter,
            names,
            self.form(group, parameter, state) if is_asked_for else None,
            remainder=self.remainder(group, parameter),
        )
        return state if fitted is None else fitted

    def going_on(self, member: Member, name: str) -> State:
        """Return the state with which a member can be stepped, its own if that is.

        State and groups are anybody's to change between steps. Raises ValueError or TypeError
        where a state is none of the parameter, whose name is for the text.
        """
        kept, parameter = self.method.kept(member.group), member.parameter
        device = None if member.is_offloaded else parameter.device
        found = storage.begun_anew(member.state, kept)
        storage.check(name, found, parameter, kept, device=device)
        return self.fitted(found, parameter, member.group)

    # -- what is created -----------------------------------------------------------------------

    def complete(self, member: Member) -> None:
        """Create what the state of a member lacks."""
        state, wanted = member.state, member.wanted
        if member.is_offloaded:
            host_memory.settle(state)
        if not wanted <= state.keys():
            self._create(member, wanted)
        self.method.complete(member.group, state)

    def _create(self, member: Member, wanted: set[str]) -> None:
        state, p = member.state, member.parameter.detach()
        if not (wanted - {"ema"}) <= state.keys():  # a remainder that was not saved is zero, too
            for name, entry in self._zeros(member).items():
                state.setdefault(name, entry)
        if "ema" in wanted and "ema" not in state:
            wide = torch.float32 if p.dtype in small.HALF else p.dtype
            if member.is_offloaded:
                state["ema"] = host_memory.in_host(p, wide)
            else:
                state["ema"] = p.to(dtype=wide, copy=True, memory_format=torch.preserve_format)
        if member.is_offloaded:
            host_memory.settle(state, pinned=True)

    def _zeros(self, member: Member) -> State:
        """Return the state before the first step: zeros, as torch makes them."""
        parameter, group, form = member.parameter, member.group, member.form
        step, names = self.method.names(group)
        if member.is_offloaded:
            parameter = host_memory.host_like(parameter)
        dtype = parameter.dtype
        if form is not None and dtype in small.HALF:
            dtype = torch.float32
        state: State = {}
        if step is not None:
            state[step] = self._first_step(group, parameter.device)
        for name in filter(None, names):
            state[name] = _zeros_like(parameter, dtype)
        if form is not None:
            form.put_zeros(state, names)
        remainder = self.remainder(group, parameter)
        if remainder is not None:
            state["remainder"] = _zeros_like(parameter, remainder)
        return self.method.created(state, member.state)

    def _first_step(self, group: Group, device: torch.device) -> Tensor:
        """Return the number of steps made, 0, where torch keeps it or kernels read it."""
        is_beside = group.get("capturable") or group.get("fused")
        is_read = self.phase.reads_first and devices.takes(device)
        dtype = torch.float32 if group.get("fused") else None
        return counting.step_tensor(0.0, device if is_beside or is_read else None, dtype)

    def settle(self, states: Mapping[Any, Any]) -> None:
        """Bring the state of offloaded parameters into pinned host memory."""
        for parameter, state in states.items() if self.offloads else ():
            if isinstance(parameter, Tensor) and self.is_offloaded(parameter):
                host_memory.settle(state, pinned=True)

    # -- what is refused -----------------------------------------------------------------------

    def refuse_phase(self, groups: Iterable[Group]) -> None:
        """Raise ValueError where groups cannot be stepped as the phase says."""
        for group in groups:
            _, names = self.method.names(group)
            others = "Adam, AdamW, NAdam, RAdam or RMSprop"
            check_together(self.phase, has_square=names.square is not None, others=others)
            self._refuse_own_step(group)

    def refuse_group(self, group: Group, defaults: Group) -> None:
        """Raise TypeError or ValueError for parameters that ``group`` cannot have."""
        self.refuse_phase([group])
        if group.get("rounding") != defaults.get("rounding"):
            arguments.check_remainder([group])
        for parameter in group["params"]:
            distributed.cuts(parameter)
            if self.is_offloaded(parameter):
                host_memory.refuse(parameter, self.method.own_step(group) is not None)
                if self.member(group, parameter, 0, {}, None).draws:
                    host_memory.refuse_scattered(parameter)

    def refuse_loaded(self, group: Group) -> None:
        """Raise TypeError or ValueError where ``group`` could not be stepped once it is loaded."""
        self.refuse_phase([group])
        if self.method.own_step(group) is not None:
            for parameter in group["params"]:
                form = self.form(group, parameter, {}) if "state" in group else None
                small.refuse(parameter, form, group.get("rounding"), is_special=True)

    def refuse(self, member: Member, name: str) -> None:
        """Raise where a parameter cannot be stepped along its gradient."""
        self.refuse_parameter(member, name)
        if member.gradient.is_sparse:
            if not self.method.takes_sparse:
                method = self.method.name
                advice = ", please consider SparseAdam instead" if method == "Adam" else ""
                raise RuntimeError(f"{method} does not support sparse gradients{advice}")
            gradients.refuse_sparse(name, member.group, is_offloaded=member.is_offloaded)
        gradients.refuse(name, member.parameter, member.gradient)
        found = {"parameter": member.parameter, "gradient": member.gradient, **member.state}
        gradients.refuse_freed(name, found)
        kept = {
            name: entry
            for role, name in member.names.items()
            if role not in ("header", "remainder")
            and isinstance(entry := member.state.get(name), Tensor)
        }
        gradients.refuse_expanded(name, {"parameter": member.parameter, **kept})
        if member.is_offloaded:
            is_special = member.own_step is not None
            host_memory.refuse(member.parameter, is_special, member.gradient)
            if member.draws:
                host_memory.refuse_scattered(member.parameter)

    def refuse_parameter(self, member: Member, name: str) -> None:
        """Raise where a parameter cannot be stepped, whatever its gradient will be."""
        group = member.group
        if group.get("differentiable"):
            raise ValueError(NOT_DIFFERENTIABLE)
        arguments.refuse_parameter(member.parameter)
        self._refuse_step_number(member, name)
        self.refuse_phase([group])
        if "state" in group or "rounding" in group:
            chosen, is_special = (
                member.form if "state" in group else None,
                member.own_step is not None,
            )
            small.refuse(member.parameter, chosen, group.get("rounding"), is_special)

    def _refuse_own_step(self, group: Group) -> None:
        """Raise ValueError where a group of another rule is asked for what ours alone has."""
        phase = self.phase
        asked = phase.ema is not None or phase.statistics or phase.clip_update is not None
        if not asked and group.get("decay") is None:
            return
        if self.method.own_step(group) is None:
            return
        if group.get("decay") is not None:
            raise ValueError(
                f"decay is {group['decay']!r}, but RMSprop with momentum or centered follows "
                "another rule, in which the gradient decays. Leave out the one or the other."
            )
        raise ValueError(
            "ema, statistics and clip_update are not possible for RMSprop with momentum or "
            "centered, which follows another rule. Leave out the one or the other."
        )

    def _refuse_step_number(self, member: Member, name: str) -> None:
        """Raise ValueError where the steps of a parameter cannot be counted on."""
        done = member.state.get(member.step_name or "")
        if not isinstance(done, Tensor) or not done.is_cpu or not storage.is_number(done):
            return  # one on the device is not waited for; the kernel ends whatever it is
        if not is_count(done.item()):
            raise ValueError(
                f"The number of steps of {name} is {done.item()}, but it must be a whole number "
                "from 0 to 2**53 - 1. Load a state that was saved, or set "
                f'state["{member.step_name}"] of this parameter to what it was.'
            )


@functools.lru_cache(maxsize=64)
def _storage(state: Any, rounding: Any, names: Entries) -> Storage:
    """Return how something is stored, checked; kept, since all parameters ask for it."""
    return Storage.checked(
        state,
        rounding,
        has_mean=names.mean is not None,
        has_square=names.square is not None,
        amsgrad=names.largest_square is not None,
    )


def _zeros_like(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
