"""What the optimizers for PyTorch share: the step, the phase around it, and the state.

A step of plain CPU tensors is one native call for all of them; a plan made once says what it reads
and writes (``native/tensor_plan.cpp``), and is made anew where anything it was made for has
changed. CUDA tensors are stepped by a few launches of Triton's kernels, with a plan likewise
(:mod:`adamas.torch.on_device`). All other tensors (other devices, complex ones, strided or
distributed ones on the CPU) take
:mod:`adamas.torch.operations`, with the same rule.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.autograd import profiler

from adamas import settings
from adamas import state as state_entries
from adamas.checks import check_flag, not_finite
from adamas.codecs import Storage, key_of, random_bits_at
from adamas.coefficients import (
    Coefficients,
    StepNumbers,
    at_step,
    clip_factor,
    ema_weights,
    is_count,
)
from adamas.engines.native import Cohort, TensorPlan, TensorSlot, outcome_of
from adamas.engines.triton import devices
from adamas.engines.triton.launches import DeviceOutcome, Launches
from adamas.options import OnNonfinite, Options, Phase, Rounding, StateForm
from adamas.settings import Fixed, Setting, fixed_method
from adamas.statistics import NONE_LEFT, NOT_TAKEN, Outcome, Statistics
from adamas.torch import (
    arguments,
    copies,
    counting,
    distributed,
    gradients,
    loading,
    offload,
    operations,
    small,
    storage,
    turns,
)
from adamas.torch.copies import CopyTo
from adamas.torch.members import Entries, Member, scalar
from adamas.torch.memory import Memory
from adamas.torch.on_device import OnDevice, Stepped, planned
from adamas.torch.operations import Tensors
from adamas.torch.storage import Kept
from adamas.turns import CHANGED, NO_AVERAGE, averages_in_place, would_lose

__all__ = ["Optimizer", "Params"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_WIDE = (torch.float32, torch.float64)


class _Plan(NamedTuple):
    """How to make the next step, as long as nothing changes."""

    native: Any  # a TensorPlan, or None where no tensor takes it
    #: Those without a gradient among them are left out of a step.
    native_members: tuple[Member, ...]
    on_device: OnDevice | None
    other_members: tuple[Member, ...]
    #: One member of each cohort of the native plan whose numbers are given with each step.
    numbered: tuple[Member, ...]
    #: Whether norm and guard are taken on the host before anything is stepped: there are several
    #: kinds of tensors, or parts of tensors in other processes.
    looks_first: bool

    @property
    def members(self) -> tuple[Member, ...]:
        """All parameters that have gradients now, in the order in which outcomes report them."""
        device_members = () if self.on_device is None else self.on_device.members
        native_members = (m for m in self.native_members if m.has_gradient)
        return (*native_members, *device_members, *self.other_members)

    @property
    def is_native(self) -> bool:
        """Whether the native engine takes all of it."""
        return self.native is not None and self.on_device is None and not self.other_members

    @property
    def is_on_device(self) -> bool:
        """Whether Triton takes all of it."""
        alone = self.native is None and not self.other_members and not self.looks_first
        return self.on_device is not None and alone


class Optimizer(torch.optim.Optimizer):
    """Base of the optimizers; make an Adam, AdamW, NAdam, RMSprop or SGD.

    ``clip_norm`` and ``on_nonfinite`` may be set between steps, and count from the next one on.
    """

    clip_norm = Setting[float | None]()
    on_nonfinite = Setting[OnNonfinite]()
    ema = Fixed[float | None](lambda optimizer: optimizer._phase.ema)
    seed = Fixed[int](lambda optimizer: optimizer._phase.seed)
    copy_to = Fixed[CopyTo | None](lambda optimizer: optimizer._copy_dtype or optimizer._copies)
    offload = Fixed[bool](lambda optimizer: optimizer._offloads)
    phase = settings.whole()

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        *,
        clip_norm: float | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        ema: float | None = None,
        copy_to: CopyTo | None = None,
        statistics: bool = False,
        state: StateForm | tuple[StateForm, StateForm] | None = None,
        rounding: Rounding | None = None,
        seed: int = 0,
        offload: bool = False,
        **unknown: Any,
    ) -> None:
        """Take torch's parameters and defaults, and the phase; see :class:`adamas.Phase`.

        ``state`` and ``rounding`` may differ between groups; see :class:`adamas.Options`. They
        stand in ``param_groups`` only where they are given. ``state=None`` is torch's own: the
        running means have the dtype of the parameter, but float32 where that is float16.

        With ``offload``, parameters on a CUDA device keep their state in host memory and are
        stepped by the processor; raises TypeError or ValueError for parameters that cannot be.
        """
        arguments.refuse_unknown(type(self), unknown)
        arguments.refuse_model(type(self), params)
        check_flag("offload", offload)
        copy_to = arguments.checked_copy_to(copy_to)
        phase = Phase(
            clip_norm=clip_norm,
            on_nonfinite=on_nonfinite,
            ema=ema,
            statistics=statistics,
            seed=seed,
        )
        given = {"state": state, "rounding": rounding}
        defaults |= {name: value for name, value in given.items() if value is not None}
        arguments.put_pairs(defaults, defaults)
        if defaults.get("differentiable"):
            raise ValueError(_NOT_DIFFERENTIABLE)
        self._phase = phase
        #: The names of what was set since.
        self._phase_set: frozenset[str] = frozenset()
        self._offloads = offload
        self._copies: list[Tensor] | None = None
        #: Of copies that are made here; None where tensors were given.
        self._copy_dtype = copy_to if isinstance(copy_to, torch.dtype) else None
        self._skipped = 0
        self._skipped_on: dict[torch.device, Tensor] = {}
        #: Launches that a CUDA graph has recorded, whose tables it reads at each replay.
        self._captured: list[Launches] = []
        self._device_counts = counting.DeviceCounts()
        self._plan: _Plan | None = None
        self._turn = turns.Turn()
        self._reset()
        super().__init__(cast(Any, params), defaults)
        arguments.check_remainder(self.param_groups)
        if copy_to is not None:
            self._copies = copies.made(copy_to, self._parameters())

    def _change_phase(self, changes: Mapping[str, Any]) -> None:
        """Take other options of the phase from the next step on."""
        with self._in_turn():
            phase, plan = replace(self._phase, **changes), self._plan
            is_alike = phase.reads_first == self._phase.reads_first
            if is_alike and plan is not None and plan.is_native and not plan.looks_first:
                plan.native.set_phase(phase)  # a run may adapt clip_norm at each step
            elif phase != self._phase:
                self._keep(None)
            self._earlier.clear()
            self._phase, self._phase_set = phase, self._phase_set.union(changes)

    def __repr__(self) -> str:
        """Return torch's own text, and what of the phase was given or set."""
        whole, told = super().__repr__(), settings.told(self._phase)
        if self.copy_to is not None:
            told["copy_to"] = self._copy_dtype or f"{len(self._copies or ())} tensors"
        if self._offloads:
            told["offload"] = True
        lines = "".join(f"    {name}: {told[name]}\n" for name in sorted(told))
        return f"{whole.removesuffix(')')}Phase\n{lines})" if told else whole

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to us: a pass over gradients less.

        As in torch where ``fused=True``, and where the step clips. Otherwise not: Lightning takes
        it to mean that nobody else may clip the gradients.
        """
        return bool(self.defaults.get("fused")) or self._phase.clip_norm is not None

    # -- what a method says of itself --------------------------------------------------------

    def _entries(self, group: dict[str, Any]) -> Entries:
        """Return the names of the entries that parameters of ``group`` keep."""
        raise NotImplementedError

    def _options(self, group: dict[str, Any]) -> Options | None:
        """Return the options of ``group`` as adamas has them, or None: see ``_numbers``."""
        raise NotImplementedError

    def _numbers(self, member: Member) -> Coefficients:
        """Return the numbers of the coming step, for groups that have no options."""
        raise NotImplementedError

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return the state before the first step: zeros, as torch makes them."""
        entries = self._entries(group)
        if self._is_offloaded(parameter):
            parameter = offload.host_like(parameter)
        state: dict[str, Any] = {}
        if entries.step is not None:
            on_device = (
                group.get("capturable")
                or group.get("fused")
                or (self._phase.reads_first and devices.takes(parameter.device))
            )
            dtype = torch.float32 if group.get("fused") else _step_dtype()
            device = parameter.device if on_device else torch.device("cpu")
            state[entries.step] = torch.zeros((), dtype=dtype, device=device)
        form = self._form(group, parameter)
        dtype = parameter.dtype
        if form is not None and dtype in small.HALF:
            dtype = torch.float32
        for name in (entries.mean, entries.square, entries.largest_square):
            if name is not None:
                state[name] = torch.zeros_like(
                    parameter, dtype=dtype, memory_format=torch.preserve_format
                )
        if form is not None:
            small.made_small(state, entries.mean, entries.square, form)
        if self._keeps_remainder(parameter, group):
            of = small.REMAINDERS[group["rounding"]]
            state["remainder"] = torch.zeros_like(
                parameter, dtype=of, memory_format=torch.preserve_format
            )
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; its options, and how it is to be stored, are checked first."""
        with self._in_turn():
            self._add_group(param_group)

    def _add_group(self, param_group: dict[str, Any]) -> None:
        self._refuse_averaged("a group cannot be added: its weights have no average to stand for")
        given = None
        if isinstance(param_group, dict):  # torch refuses others
            given = self._copy_to_of(param_group)
            named = [
                name
                for name, value in param_group.items()
                if (given is None or name != "copy_to") and not self._is_own(name, value)
            ]
            arguments.check_group_names(named, self.defaults)
            merged = {**self.defaults, **param_group}
            own = {name: merged[name] for name in self.defaults}
            arguments.check_options(own, f"param_groups[{len(self.param_groups)}]: ")
            self._storage(merged)
            arguments.put_pairs(param_group, self.defaults)
        first = len(self._copies or ())
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._refuse_group(group)
            if given is not None:
                group.pop("copy_to", None)
                self._copies = [*(self._copies or ()), *copies.made(given, group["params"], first)]
        except BaseException:
            del self.param_groups[-1]
            raise

    def _is_own(self, name: Any, value: Any) -> bool:
        """Whether a group repeats what the optimizer was given: ZeRO's wrapper has it in groups."""
        own = {**vars(self._phase), "offload": self._offloads, "copy_to": self._copy_dtype}
        plain = (bool, int, float, str, torch.dtype, type(None))
        return name in own and isinstance(value, plain) and value == own[name]

    def _copy_to_of(self, group: dict[str, Any]) -> CopyTo | None:
        """Return what copies of a group that is added are kept in; None where there are none."""
        if self._copies is None:
            return None
        given = group.get("copy_to")
        if given is None and self._copy_dtype is None:
            raise ValueError(
                "copy_to was given as tensors, so a group that is added needs some of its own: "
                "give it a tensor for each of its parameters under 'copy_to'."
            )
        return self._copy_dtype if given is None else arguments.checked_copy_to(given)

    def _refuse_group(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError for parameters that ``group`` cannot have."""
        self._refuse_special(group)
        if group.get("rounding") != self.defaults.get("rounding"):
            arguments.check_remainder([group])
        for parameter in group["params"]:
            distributed.cuts(parameter)
            if self._is_offloaded(parameter):
                offload.refuse(parameter, self._is_special(group))

    def _storage(self, group: dict[str, Any]) -> Options:
        """Return options that say how ``group`` is stored, checked."""
        entries = self._entries(group)
        # Rates of one mean alone say nothing of how it is stored, and torch takes any.
        first, second = group["betas"] if "betas" in self.defaults else (0.0, 0.0)
        betas = (
            None if entries.mean is None else scalar(first),
            None if entries.square is None else scalar(second),
        )
        amsgrad, state = entries.largest_square is not None, group.get("state")
        state = "float32" if state is None else state
        try:
            return _stored(betas, amsgrad, state, group.get("rounding"))
        except TypeError:  # of what cannot be kept, or is wrong
            return Options(
                betas=betas, amsgrad=amsgrad, state=state, rounding=group.get("rounding")
            )

    def _form(self, group: dict[str, Any], parameter: Tensor) -> small.Form | None:
        """Return how the state of a parameter is stored, or None where it is as torch stores it.

        Without ``state=``, bfloat16 parameters have a state in bfloat16 (or in what was loaded),
        rounded to nearest, as in torch; those in float16, which is too narrow for a mean of
        squares, have one in float32.
        """
        options = self._storage(group)
        rounding = options.rounding
        if "state" in group:
            if not options.storage.is_small and parameter.dtype not in small.HALF:
                return None
            return small.form_of(options, rounding)
        if parameter.dtype == torch.float16:
            return small.form_of(options, rounding)
        if (
            parameter.dtype != torch.bfloat16
            or options.amsgrad
            or self._is_special(group)
            or (distributed.is_distributed(parameter) and rounding in (None, "nearest"))
        ):
            return None
        entries = self._entries(group)
        state = self.state.get(parameter, {})
        forms = (
            "float32" if name in state and state[name].dtype == torch.float32 else "bfloat16"
            for name in (entries.mean, entries.square)
        )
        return small.form_of(options.replace(state=tuple(forms)), rounding or "nearest")

    def _keeps_remainder(self, parameter: Tensor, group: dict[str, Any]) -> bool:
        return group.get("rounding") in small.REMAINDERS and parameter.dtype == torch.bfloat16

    def _is_offloaded(self, parameter: Tensor) -> bool:
        """Whether a parameter keeps its state in host memory, and is stepped there."""
        return self._offloads and offload.is_offloaded(parameter)

    #: Whether the state has entries that the rule does not know.
    _has_more_state = False

    def _after_step(self, member: Member) -> None:
        """Bring such entries up to date."""

    def _is_special(self, group: dict[str, Any]) -> bool:  # noqa: ARG002
        """Whether parameters of ``group`` follow another rule, in :meth:`_step_specially`."""
        return False

    def _step_specially(
        self, tensors: Tensors, state: dict[str, Any], group: dict[str, Any], factor: float
    ) -> None:
        """Step one parameter of a group that follows another rule."""
        raise NotImplementedError

    # -- the step ----------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return what ``closure`` returns, or None.

        ``closure`` evaluates the model anew, with gradients enabled, and is called once. Raises
        RuntimeError for sparse gradients (SGD takes them) and FloatingPointError for ones that are
        not finite (where ``on_nonfinite="raise"``), before anything is changed.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or profiler._is_profiler_enabled  # pyright: ignore[reportPrivateUsage]
            or torch_optimizer._global_optimizer_pre_hooks  # pyright: ignore[reportPrivateUsage]
            or torch_optimizer._global_optimizer_post_hooks  # pyright: ignore[reportPrivateUsage]
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        # What nearly every step is, with next to no Python around the native call.
        direct = self._direct
        if (
            direct is not None
            and closure is None
            and "found_inf" not in self.__dict__
            and direct(self.param_groups, self.state) is None
        ):
            return None
        return self._step(closure)

    #: torch wraps `step` for hooks and the profiler unless it finds this; see `_observed_step`.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if torch.compiler.is_compiling():  # of a training step: this is not for its graph
            return _uncompiled_step(self, closure)
        loss = None
        turn = self._turn
        if turn.is_busy or self._direct is not None:
            turns.refuse_within(turn, self._open_plan())
        try:
            if self._averaged:  # before the closure is called
                self._refuse_averaged("no step can be made")
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with turn.lock:
                turn.is_busy = True
                try:
                    self._step_in_turn()
                finally:
                    turn.is_busy = False
                    if self._direct is not None and not turn.is_held:
                        self._open_plan().open()
        except BaseException:
            # A GradScaler takes these back after a step that went well, and only then.
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise
        return loss

    def _step_in_turn(self) -> None:
        if self._averaged:  # which no plan looks at
            self._refuse_averaged("no step can be made")
        if self._direct is not None:
            turns.close(self._open_plan())
        plan = self._plan
        is_made = plan is not None and self._step_as_planned(plan)
        if not is_made and not self._step_as_earlier():
            self._step_closely()
        if self._copies:
            plan = self._plan
            stepped = plan.native.stepped if plan is not None and plan.is_native else 0
            if stepped < len(self._copies):
                self._renew_copies()

    def _step_as_planned(self, plan: _Plan) -> bool:
        """Make one step by a plan for all of it; False, having done nothing, where it is none."""
        if not plan.is_native:
            return plan.is_on_device and self._step_as_planned_on_device(plan)
        scale = self._loss_scale()
        if scale is None:
            return True
        try:
            numbers = self._given_numbers(plan)
        except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError):
            return False  # a wrong option or count: a close look says which
        outcome = self._step_natively(plan, numbers, scale)
        if outcome is NotImplemented:
            return False
        self._finish(plan, outcome)
        return True

    def _step_as_planned_on_device(self, plan: _Plan) -> bool:
        on = plan.on_device
        assert on is not None
        fits = self._device_counts.go_on and on.fits(self.param_groups, self.state)
        if fits:
            self._step_on_device(plan, on)
        return fits

    def _step_as_earlier(self) -> bool:
        """Make one step by a plan of before on devices; False, having done nothing, without one."""
        for i, (plan, last) in enumerate(self._earlier):
            on = plan.on_device
            if on is not None and on.fits(self.param_groups, self.state):
                del self._earlier[i]
                self._keep(plan)
                self._device_counts.last = last
                return self._step_as_planned(plan)
        return False

    def _given_numbers(self, plan: _Plan) -> list[StepNumbers] | None:
        """Return the numbers of the coming step that a plan does not make itself."""
        if not plan.numbered:
            return None
        for member in plan.numbered:
            state = self.state.get(member.parameter, {})  # which is not to be created by looking
            for name in self._counts(member):
                _ = state[name]
        return [self._own_numbers(member) for member in plan.numbered]

    def _step_natively(
        self,
        plan: _Plan,
        numbers: list[StepNumbers] | None,
        scale: float,
        factor: float = 1.0,
    ) -> Any:
        """Make one step of what is native in a plan; NotImplemented where it does not fit."""
        step = plan.native.step
        return outcome_of(step(self.param_groups, self.state, scale, factor, numbers))

    _observed_step = torch.optim.Optimizer.profile_hook_step(_step)

    @torch.no_grad()
    def _step_closely(self) -> None:
        """Make one step after a close look at every parameter, with a plan for the next."""
        if self._copies:
            self._copies = copies.fitted(self._copies, self._copy_dtype, self._parameters())
        arguments.check_groups(self.param_groups, self.defaults)
        names = self._names()
        for _, parameter, place in self._places():
            storage.check_kind(names[place], self.state.get(parameter, {}))
        with gradients.kept_apart(*self._read_and_written()):
            self._step_by(self._planned())

    def _step_by(self, plan: _Plan) -> None:
        """Make one step by a plan that was made for it."""
        self._keep(plan)
        self._earlier = [
            each
            for each in self._earlier[-_MOST_EARLIER:]
            if each[0].on_device is not None and each[0].on_device.is_current(self.state)
        ]
        if plan.is_on_device:
            assert plan.on_device is not None
            self._step_on_device(plan, plan.on_device)
            return
        scale = self._loss_scale()
        if scale is None:
            return
        if plan.is_native:
            outcome = self._step_natively(plan, self._given_numbers(plan), scale)
            if outcome is NotImplemented:
                raise RuntimeError(CHANGED)
            self._finish(plan, outcome)
            return
        self._finish(plan, self._step_apart(plan, scale))

    def _step_on_device(self, plan: _Plan, on: OnDevice) -> None:
        """Make one step of tensors that are all on devices, and wait for none of it."""
        found, scale = self.__dict__.get("found_inf"), self.__dict__.get("grad_scale")
        if self._phase.on_nonfinite == "raise" or not isinstance(found, Tensor):
            if gradients.has_overflowed(found):  # a scaler's own doing, and no reason to raise
                return
            found = None
        inputs = {"scale_on_device": scale}
        if not isinstance(scale, Tensor):
            inputs = {"loss_scale": gradients.scale_of(scale)}
        self._finish(plan, self._launch(on, found_inf=found, **inputs))

    def _launch(self, on: OnDevice, **inputs: Any) -> DeviceOutcome | None:
        """Launch a step of what is on devices; see :class:`adamas.engines.triton.jobs.Inputs`."""
        devices.refuse_capture(
            on.devices,
            host_steps=bool(on.host_steps),
            given=on.takes_numbers_on_host or (self._has_more_state and bool(on.given)),
            fresh=bool(self._fresh),
            waits=self._phase.on_nonfinite == "raise",
        )
        self._device_counts.step()
        given = [self._own_numbers(member) for member in on.given]
        for device in on.devices - self._skipped_on.keys():
            self._skipped_on[device] = torch.zeros((), dtype=torch.int64, device=device)
        return on.launch(given, self._skipped_on, **inputs)

    def _step_apart(self, plan: _Plan, scale: float) -> Outcome | None:
        """Make one step of tensors of several kinds: norm and guard first, then kind by kind."""
        phase = self._phase
        members = plan.members
        norm = nonfinite = None
        factor = 1.0
        if phase.reads_first:
            read = [member.local_gradient for member in members]
            parameters = [p for group in self.param_groups for p in group["params"]]
            groups = [distributed.shard_groups(p) for p in parameters]

            def of_all(parts: list[list[Any]]) -> list[list[Any]]:
                # Other processes may have gradients where this one has none.
                own = {member.place: part for member, part in zip(members, parts, strict=True)}
                return distributed.gathered(
                    [own.get(place, []) for place in range(len(parameters))], groups
                )

            norm = operations.norm_from_tiles(read, of_all) / scale
            counts = of_all([[operations.count_nonfinite(each)] for each in read])
            nonfinite = tuple(sum(counts[member.place]) for member in members)
            if any(map(sum, counts)) and phase.on_nonfinite != "propagate":
                return Outcome(applied=False, norm=norm, nonfinite=nonfinite, statistics=None)
            if phase.clip_norm is not None:
                factor = clip_factor(phase.clip_norm, norm)
        away = [m for m in plan.other_members if self._is_offloaded(m.parameter)]  # the last ones
        apart = plan.other_members[: len(plan.other_members) - len(away)]
        numbers = self._given_numbers(plan)
        taken_away = self._step_offloaded(away, scale, factor)  # first: it may refuse a state
        records: list[Statistics | None] = []
        if plan.native is not None:
            outcome = self._step_natively(plan, numbers, scale, factor)
            if outcome is NotImplemented:
                raise RuntimeError(CHANGED)
            records.extend((outcome and outcome.statistics) or ())
        if plan.on_device is not None:
            outcome = self._launch(plan.on_device, loss_scale=scale, factor=factor)
            records.extend((outcome and outcome.statistics) or ())
        records.extend(self._step_other(member, factor / scale) for member in apart)
        records.extend(taken_away)
        if not phase.reads_first and not phase.statistics:
            return None
        taken = cast("tuple[Statistics, ...]", tuple(records)) if phase.statistics else None
        return Outcome(applied=True, norm=norm, nonfinite=nonfinite, statistics=taken)

    def _step_other(self, member: Member, factor: float) -> Statistics | None:
        """Make one step of one parameter by torch's own operations."""
        state = self._state_of(member)
        group, entries = member.group, member.entries
        if member.gradient.is_sparse and self._steps_rows(member):
            numbers = self._coming_numbers(member)
            numbers = numbers._replace(grad_scale=numbers.grad_scale * factor)
            operations.step_rows(member.parameter.detach(), member.gradient, numbers)
            return None

        def entry(name: str | None) -> Tensor | None:
            return None if name is None else distributed.local(state[name])

        tensors = Tensors(
            parameter=distributed.local(member.parameter.detach()),
            gradient=member.local_gradient,
            mean=entry(entries.mean),
            square=entry(entries.square),
            largest_square=entry(entries.largest_square),
            ema=entry(entries.ema),
            copy=distributed.local(self._copies[member.place]) if self._copies else None,
        )
        if self._is_special(group):
            parts = {name: distributed.local(each) for name, each in state.items()}
            self._step_specially(tensors, parts, group, factor)
            return None
        form = member.form
        if form is not None:
            decoded = form.decoded(state, entries.mean, entries.square)
            tensors.mean, tensors.square = (
                None if each is None else distributed.local(each) for each in decoded
            )
        rounding = group.get("rounding") or "nearest"
        by_chance = member.parameter.dtype in small.HALF and rounding != "nearest"
        random = np.zeros(0, np.uint32)
        if form is not None or by_chance:
            key = key_of(self._phase.seed, self._step_number(member), member.place)
            random = random_bits_at(key, distributed.element_indices(member.parameter))
        if by_chance:
            p, remainder = tensors.parameter, entry(entries.remainder)
            tensors.value = small.decoded_parameter(p, remainder)
            tensors.put = lambda value: small.put_parameter(p, remainder, value, rounding, random)
        numbers = self._coming_numbers(member)
        numbers = numbers._replace(grad_scale=numbers.grad_scale * factor)
        record = operations.step_tensor(
            tensors, numbers, self._ema_weights(member), recorded=self._phase.statistics
        )
        if form is not None:
            form.store(state, entries.mean, entries.square, (tensors.mean, tensors.square), random)
        if entries.step is not None:
            state[entries.step] += 1
        return record

    def _steps_rows(self, member: Member) -> bool:
        """Whether a sparse gradient moves nothing but the rows that it has."""
        is_bare = self._copies is None and not self._phase.statistics
        return is_bare and not any(member.entries) and not member.draws

    def _step_offloaded(
        self, members: Sequence[Member], scale: float, factor: float
    ) -> list[Statistics | None]:
        """Make one step of parameters whose state is in host memory."""
        if not members:
            return []
        cohorts: dict[tuple[Any, ...], int] = {}
        numbers: list[StepNumbers] = []
        stored: dict[tuple[Any, ...], Options] = {}
        items: list[offload.Item] = []
        for member in members:
            key = self._cohort_key(member)
            if key not in cohorts:
                cohorts[key] = len(numbers)
                numbers.append(self._all_numbers(member))
            items.append(self._item(member, cohorts[key], stored))
        if self._pipeline is None:
            self._pipeline = offload.Offload(self._phase)
        records = self._pipeline.step(items, numbers, scale, factor)
        for member in members:
            if member.entries.step is not None:
                self.state[member.parameter][member.entries.step] += 1
        return records

    def _item(
        self, member: Member, cohort: int, stored: dict[tuple[Any, ...], Options]
    ) -> offload.Item:
        """Return what an offloaded step needs to know; ``stored`` keeps options for the next."""
        group, form, entries = member.group, member.form, member.entries
        forms, rounding = ("float32", "float32"), group.get("rounding")
        if form is not None:
            forms, rounding = form.forms, form.rounding
        key = (id(group), forms, rounding)
        if key not in stored:
            stored[key] = self._storage(group).replace(state=forms, rounding=rounding)
        state = self._state_of(member)
        names = (*entries[1:5], entries.header, entries.remainder)
        return offload.Item(
            parameter=member.parameter,
            gradient=member.gradient,
            entries=tuple(None if name is None else state[name] for name in names),
            options=stored[key],
            top=state.get("top", 0),
            number=member.place,
            cohort=cohort,
            copy=self._copies[member.place] if self._copies else None,
        )

    def _all_numbers(self, member: Member) -> StepNumbers:
        """Return the numbers of the coming step: the rule's, the average's, its own."""
        numbers, step = self._coming_numbers(member), self._step_number(member)
        return StepNumbers.averaging(numbers, self._phase.ema, step)

    def _finish(self, plan: _Plan, outcome: Outcome | DeviceOutcome | None) -> None:
        self._outcome = outcome
        if "grad_scale" in self.__dict__:
            self._leave_unscaled(plan, outcome)
        self._reported = plan.members if self._phase.statistics else ()
        on_nonfinite = self._phase.on_nonfinite
        is_on_device = isinstance(outcome, DeviceOutcome)
        if is_on_device and on_nonfinite != "raise" and not (self._has_more_state or self._fresh):
            return  # nothing here depends on whether the step was made, so nothing waits for it
        if outcome is None or outcome.applied:
            if self._has_more_state:
                for member in plan.members:
                    self._after_step(member)
            if self._fresh:  # from now on these go with the others
                self._fresh.difference_update(id(m.parameter) for m in plan.members)
                self._keep(plan if plan.is_on_device or outcome is not None else None)
            return
        if on_nonfinite == "skip" and not is_on_device:
            self._skipped += 1
        if on_nonfinite != "raise":
            return
        assert outcome.nonfinite is not None
        names = self._names()
        found = [
            f"{names[member.place]} ({count} of {member.parameter.numel()} elements)"
            for member, count in zip(plan.members, outcome.nonfinite, strict=True)
            if count
        ] or ["those that only other processes have"]
        raise not_finite(found)

    # -- the plan ----------------------------------------------------------------------------

    def _read_and_written(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters that have gradients, and all that a step along them may write.

        A plan for the processor is for parameters without a gradient, too.
        """
        written: list[Tensor] = list(self._copies or ())
        for group, p, _ in self._places():
            if p.grad is not None or (_is_plain(p, (p.dtype,)) and self._may_return(group, p)):
                entries = (x for x in self.state.get(p, {}).values() if isinstance(x, Tensor))
                written += (x for x in (p, *entries) if x.layout == torch.strided)
        return [p for p in self._parameters() if p.grad is not None], written

    def _planned(self) -> _Plan:
        members = self._members()
        names = self._names()
        for member in members:
            self._refuse(member, names[member.place])
        if self._fit_states(members, names):
            members = self._members()  # forms may be told by what is stored
        for member in members:
            self._prepare_state(member)
        native: list[Member] = []
        on_device: list[Member] = []
        other: list[Member] = []
        taken = Memory()
        for member in members:
            if self._takes_on_device(member):
                kind = on_device
            else:
                kind = native if self._takes_native(member) else other
            # What shares memory is stepped one after another, as torch does.
            is_apart = kind is other or not taken.add(self._parts(member))
            (other if is_apart else kind).append(member)
        other.sort(key=lambda member: self._is_offloaded(member.parameter))
        if native and not on_device and not other:
            # Whether they have gradients is no part of a plan for the processor.
            absent = filter(self._takes_native, self._absent_members())
            native.extend(m for m in absent if taken.add(self._parts(m)))
        # Plans walk the state in its own order, which is that of the first gradients.
        order = {id(p): i for i, p in enumerate(self.state)}
        for chosen in (native, on_device):
            chosen.sort(key=lambda member: order.get(id(member.parameter), -1))
        phase = self._phase
        kinds = bool(native) + bool(on_device) + bool(other)
        is_spread = any(
            distributed.is_distributed(p) for group in self.param_groups for p in group["params"]
        )
        looks_first = phase.reads_first and (kinds > 1 or bool(other) or is_spread)
        if looks_first:
            phase = Phase(ema=phase.ema, statistics=phase.statistics, seed=phase.seed)
        stepped = {id(member.parameter) for member in (*members, *native)}
        idle = [p for group in self.param_groups for p in group["params"] if id(p) not in stepped]
        launched = self._planned_on_device(on_device, idle, phase) if on_device else None
        steps = [self._state_of(m)[m.entries.step] for m in on_device if m.entries.step is not None]
        self._device_counts.planned(steps)
        if not native:
            return _Plan(None, (), launched, tuple(other), (), looks_first)
        cohorts: list[Cohort] = []
        numbered: list[Member] = []
        known: dict[tuple[Any, ...], int] = {}
        slots: list[TensorSlot] = []
        groups = {id(member.group): member.group for member in native}
        of_groups = {key: self._options(group) for key, group in groups.items()}
        for member in native:
            state = self._state_of(member)
            options = of_groups[id(member.group)]
            key = self._cohort_key(member) if options is None else (id(member.group),)
            if key not in known:
                known[key] = len(cohorts)
                cohorts.append(Cohort(self._group_index(member.group), options))
                if options is None:
                    numbered.append(member)
            copy = self._copies[member.place] if self._copies else None
            step, *names = member.entries
            slot = TensorSlot(
                parameter=member.parameter,
                state=state,
                step=step,
                names=state_entries.Entries(*names),
                storage=Storage() if member.form is None else member.form.storage,
                top=0 if member.form is None else state.get("top", 0),
                number=member.place,
                copy=copy,
                cohort=known[key],
            )
            slots.append(slot)
        plan = TensorPlan(
            Tensor,
            torch.nn.Parameter,
            self.param_groups,
            slots,
            cohorts,
            idle,
            phase,
            torch.autograd.graph.increment_version,
        )
        return _Plan(plan, tuple(native), launched, tuple(other), tuple(numbered), looks_first)

    def _planned_on_device(
        self, members: list[Member], idle: list[Tensor], phase: Phase
    ) -> OnDevice:
        """Return how to step ``members``."""
        groups = {id(member.group): member.group for member in members}
        options = {key: self._options(group) for key, group in groups.items()}
        stepped = [
            Stepped(
                member,
                self._state_of(member),
                options[id(member.group)],
                self._copies[member.place] if self._copies else None,
            )
            for member in members
        ]
        before = self._plan.on_device if self._plan is not None else None
        return planned(stepped, self.param_groups, idle, phase, before)

    def _members(self) -> list[Member]:
        """Return the parameters that have gradients."""
        return [
            self._member(group, parameter, place)
            for group, parameter, place in self._places()
            if parameter.grad is not None
        ]

    def _absent_members(self) -> list[Member]:
        """Return parameters without a gradient that could be stepped at once if they had one."""
        members = (
            self._member(group, parameter, place)
            for group, parameter, place in self._places()
            if parameter.grad is None and self._may_return(group, parameter)
        )
        return [member for member in members if self._has_state(member)]

    def _may_return(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether a gradient would find all that the parameter keeps, if it keeps anything."""
        return parameter in self.state or not any(self._entries(group))

    def _has_state(self, member: Member) -> bool:
        """Return whether nothing is to be created, converted or refused for a parameter."""
        wanted = {name for name in member.entries if name is not None}
        state, parameter = self.state.get(member.parameter, {}), member.parameter
        if not wanted <= state.keys():
            return False
        kept = self._kept(member.group)
        device = None if self._is_offloaded(parameter) else parameter.device
        try:
            self._refuse_member(member, "")
            if not wanted:
                return True
            storage.check("", state, parameter, kept, device=device)
        except (TypeError, ValueError):
            return False  # and who gives it a gradient is told why
        found = storage.begun_anew(state, kept)
        return found is state and self._fitted(found, parameter, member.group) is state

    def _places(self) -> Iterable[tuple[dict[str, Any], Tensor, int]]:
        """Yield all parameters with their groups and places."""
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter, place
                place += 1

    def _member(self, group: dict[str, Any], parameter: Tensor, place: int) -> Member:
        """Return a parameter with what belongs to it."""
        entries = self._entries(group)
        if self._phase.ema is not None:
            entries = entries._replace(ema="ema")
        form = self._form(group, parameter)
        if form is not None and form.has_header:
            entries = entries._replace(header="header")
        if self._keeps_remainder(parameter, group):
            entries = entries._replace(remainder="remainder")
        member = Member(parameter, group, entries, place, form)
        if entries.step is None and member.draws:
            # Random bits are those of a step, so steps have to be counted.
            return member._replace(entries=entries._replace(step="step"))
        return member

    def _refuse(self, member: Member, name: str) -> None:
        """Raise where a parameter cannot be stepped along its gradient."""
        self._refuse_member(member, name)
        if member.gradient.is_sparse:
            self._refuse_sparse(member, name)
        gradients.refuse(name, member.parameter, member.gradient)
        state = self.state.get(member.parameter, {})
        found = {"parameter": member.parameter, "gradient": member.gradient, **state}
        gradients.refuse_freed(name, found)
        names = (each for each in member.entries[1:5] if each is not None)
        kept = {each: state[each] for each in names if isinstance(state.get(each), Tensor)}
        gradients.refuse_expanded(name, {"parameter": member.parameter, **kept})
        if self._is_offloaded(member.parameter):
            offload.refuse(member.parameter, self._is_special(member.group), member.gradient)

    def _refuse_member(self, member: Member, name: str) -> None:
        """Raise where a parameter cannot be stepped, whatever its gradient will be."""
        group = member.group
        if group.get("differentiable"):
            raise ValueError(_NOT_DIFFERENTIABLE)
        arguments.refuse_parameter(member.parameter)
        self._refuse_step_number(member, name)
        self._refuse_special(group)
        if "state" in group or "rounding" in group:
            chosen = member.form if "state" in group else None
            small.refuse(member.parameter, chosen, group.get("rounding"), self._is_special(group))

    def _refuse_special(self, group: dict[str, Any]) -> None:
        """Raise ValueError where a group of another rule is asked for what ours alone has."""
        if self._is_special(group) and (self._phase.ema is not None or self._phase.statistics):
            raise ValueError(
                "ema and statistics belong to the rule, but RMSprop with momentum or centered "
                "follows another. Leave out the one or the other."
            )

    def _refuse_loaded(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError where ``group`` could not be stepped once it is loaded."""
        self._refuse_special(group)
        for parameter in group["params"] if self._is_special(group) else ():
            form = self._form(group, parameter) if "state" in group else None
            small.refuse(parameter, form, group.get("rounding"), is_special=True)

    def _refuse_sparse(self, member: Member, name: str) -> None:  # noqa: ARG002
        """Raise RuntimeError where a method, or a group, cannot be stepped by a sparse gradient."""
        own = type(self).__name__
        advice = ", please consider SparseAdam instead" if own == "Adam" else ""
        raise RuntimeError(f"{own} does not support sparse gradients{advice}")

    def _refuse_step_number(self, member: Member, name: str) -> None:
        """Raise ValueError where the steps of a parameter cannot be counted on."""
        done = self.state.get(member.parameter, {}).get(member.entries.step)
        # One on the device is not waited for; the kernel ends whatever it is.
        is_read = isinstance(done, Tensor) and done.is_cpu and storage.is_number(done)
        if is_read and not is_count(done.item()):
            raise ValueError(
                f"The number of steps of {name} is {done.item()}, but it must be a whole number "
                "from 0 to 2**53 - 1. Load a state that was saved, or set "
                f'state["{member.entries.step}"] of this parameter to what it was.'
            )

    def _fit_states(self, members: Sequence[Member], names: Sequence[str]) -> bool:
        """Bring states into the form that their groups store now; return whether one had another.

        State and groups are anybody's to change between steps. Raises ValueError or TypeError,
        having changed nothing, where a state is none of its parameter.
        """
        changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for member in members:
            state = self.state.get(member.parameter)
            if not state:
                continue
            kept, parameter = self._kept(member.group), member.parameter
            found = storage.begun_anew(state, kept)
            device = None if self._is_offloaded(parameter) else parameter.device
            storage.check(names[member.place], found, parameter, kept, device=device)
            fitted = self._fitted(found, parameter, member.group)
            step = fitted.get("step")
            if isinstance(step, Tensor) and devices.takes(parameter.device):
                counted = self._device_counts.counting(step)
                fitted = fitted if counted is step else {**fitted, "step": counted}
            if fitted is not state:
                changed.append((state, fitted))
        for state, fitted in changed:
            state.update(fitted)
            for name in state.keys() - fitted.keys():
                del state[name]
        return bool(changed)

    def _prepare_state(self, member: Member) -> None:
        """Create what the state of a parameter lacks."""
        wanted = {name for name in member.entries if name is not None}
        if not wanted:
            return
        if member.parameter not in self.state:  # which may be a plain dict that was put there
            self.state[member.parameter] = {}
        state = self.state[member.parameter]
        is_offloaded = self._is_offloaded(member.parameter)
        if is_offloaded:
            offload.settle(state)
        if wanted <= state.keys():
            return
        is_new = not wanted & state.keys()
        if member.entries.step is None and is_new:
            self._fresh.add(id(member.parameter))
        if not (wanted - {"ema"}) <= state.keys():  # a remainder that was not saved is zero, too
            for name, entry in self._new_state(member.parameter, member.group).items():
                state.setdefault(name, entry)
            if is_new and "step" in state and devices.takes(member.parameter.device):
                self._device_counts.created(state["step"])
        if "step" in wanted and "step" not in state:  # a method that counts none by itself
            state["step"] = torch.full((), 0.0 if is_new else 1.0, dtype=_step_dtype())
        if "ema" in wanted and "ema" not in state:
            p = member.parameter.detach()
            wide = torch.float32 if p.dtype in small.HALF else p.dtype
            if is_offloaded:
                state["ema"] = offload.in_host(p, wide)
            else:
                state["ema"] = p.to(dtype=wide, copy=True, memory_format=torch.preserve_format)
        if is_offloaded:
            offload.settle(state, pinned=True)

    def _cohort_key(self, member: Member) -> tuple[Any, ...]:
        """Return what parameters must have in common to be stepped with the same numbers."""
        return (id(member.group), self._step_number(member))

    def _step_number(self, member: Member) -> int:
        """Return the number of the coming step, 1 first; 2 for all others where none is kept."""
        name = member.entries.step
        if name is not None:
            return int(self.state[member.parameter][name].item()) + 1
        return 1 if id(member.parameter) in self._fresh else 2

    def _ema_weights(self, member: Member) -> tuple[float, float] | None:
        beta = self._phase.ema
        return None if beta is None else ema_weights(beta, self._step_number(member))

    def _state_of(self, member: Member) -> dict[str, Any]:
        """Return the state of a parameter; an empty dict, kept nowhere, where it needs none."""
        return self.state[member.parameter] if any(member.entries) else {}

    def _takes_native(self, member: Member) -> bool:
        """Whether the native engine can step a parameter: plain, on the CPU, contiguous."""
        stored = self._with_dtypes(member)
        p, step = member.parameter, member.entries.step
        if stored is None or not all(_is_plain(x, (dtype,)) for x, dtype in stored):
            return False
        form = member.form
        if form is not None and not form.is_read_on(p.device, self._state_of(member)):
            return False
        if step is not None:
            kept = self._state_of(member)[step]
            if type(kept) is not Tensor or not kept.is_cpu or kept.dtype not in _WIDE:
                return False
        return all(x.shape == p.shape for x, _ in stored) and (
            not self._copies or _is_plain(self._copies[member.place], small.HALF)
        )

    def _takes_on_device(self, member: Member) -> bool:
        """Whether Triton can step a parameter: on one of its devices, with all that belongs to it.

        Of a distributed tensor it steps this process's part, where the bits to round with are those
        of consecutive elements.
        """
        p = member.parameter
        if not devices.takes(p.device):
            return False
        stored = self._with_dtypes(member)
        if stored is None:
            return False
        local = [(distributed.local(x), dtype) for x, dtype in stored]
        part = local[0][0]
        fits = all(
            x.device == part.device
            and x.dtype == dtype
            and x.layout == torch.strided
            and x.shape == part.shape
            and not gradients.is_lazy(x)
            for x, dtype in local
        )
        form, copy = member.form, self._copies[member.place] if self._copies else None
        return (
            fits
            and (form is None or form.is_read_on(part.device, self._state_of(member)))
            and (copy is None or (copy.dtype in small.HALF and copy.device == part.device))
            and (not member.draws or distributed.first_element(p) is not None)
        )

    def _with_dtypes(self, member: Member) -> list[tuple[Tensor, torch.dtype]] | None:
        """Return parameter, gradient and entries, each with the dtype that the engines read.

        None where they follow another rule, compute in another dtype, or are on several devices.
        """
        p, form, entries = member.parameter, member.form, member.entries
        if self._is_special(member.group) or self._is_offloaded(p):
            return None
        if form is None and p.dtype not in _WIDE:
            return None
        state = self._state_of(member)
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        mean, square = (wide, wide) if form is None else form.dtypes
        wanted = (
            (entries.mean, mean),
            (entries.square, square),
            (entries.largest_square, wide),
            (entries.ema, wide),
        )
        stored = [(p, p.dtype)]
        if member.has_gradient:
            stored.append((member.gradient, p.dtype))
        stored += [(state[name], dtype) for name, dtype in wanted if name is not None]
        if entries.remainder is not None:
            stored.append((state[entries.remainder], small.REMAINDERS[member.group["rounding"]]))
        return stored

    def _parts(self, member: Member) -> Iterable[Tensor]:
        """Return this process's parts of a parameter and its state."""
        state = self._state_of(member)
        names = (name for name in member.entries if name is not None)
        return map(distributed.local, (member.parameter, *(state[name] for name in names)))

    def _group_index(self, group: dict[str, Any]) -> int:
        return next(i for i, each in enumerate(self.param_groups) if each is group)

    def _coming_numbers(self, member: Member) -> Coefficients:
        """Return the numbers of the coming step, from options or of the method's own."""
        options = self._options(member.group)
        if options is None:
            return self._numbers(member)
        return at_step(options, self._step_number(member), scalar(member.group["lr"]))

    def _counts(self, member: Member) -> tuple[str, ...]:
        """Return the names of the entries that the numbers of a step are taken from."""
        return () if member.entries.step is None else (member.entries.step,)

    def _own_numbers(self, member: Member) -> StepNumbers:
        """Return the numbers of a method that has no options, and the weights of the average."""
        step = self._step_number(member)
        return StepNumbers.averaging(self._numbers(member), self._phase.ema, step)

    def _keep(self, plan: _Plan | None) -> None:
        """Take over a plan for the next step."""
        if self._plan is not None and self._plan.is_on_device and plan is not self._plan:
            self._earlier.append((self._plan, self._device_counts.last))
        before = self._plan.on_device if self._plan is not None else None
        if before is not None and before.launches.is_captured:
            self._captured[:] = {id(x): x for x in (*self._captured, before.launches)}.values()
        self._plan = plan
        phase = self._phase
        is_whole = plan is not None and plan.is_native and not plan.numbered
        is_bare = not phase.reads_first and not phase.statistics
        #: The native step where it is all there is to do, and reports nothing.
        self._direct = None
        if plan is not None and plan.native is not None and is_whole and is_bare:
            self._direct = self._step_with_copies if self._copies else plan.native.step_if_open

    def _open_plan(self) -> Any:
        """Return the native plan that makes steps without a turn, or None."""
        plan = self._plan
        return None if plan is None or self._direct is None else plan.native

    def _in_turn(self) -> AbstractContextManager[None]:
        """Wait for the calls of other threads, and let them wait; see :mod:`.turns`."""
        return turns.held(self._turn, self._open_plan)

    def _reset(self) -> None:
        #: Plans for devices whose gradients may come back, and how far their counts may come.
        self._earlier: list[tuple[_Plan, float]] = []
        self._keep(None)
        self._earlier.clear()
        self._outcome: Outcome | DeviceOutcome | None = None
        #: The parameters that its statistics are of.
        self._reported: tuple[Member, ...] = ()
        self._averaged = False
        #: By place: what a parameter was when its copy was renewed outside of a step.
        self._renewed: dict[int, tuple[int, int]] = {}
        self._pipeline: offload.Offload | None = None
        #: Parameters (by identity) before their first step, where no step is kept.
        self._fresh: set[int] = set()

    # -- a GradScaler's protocol -------------------------------------------------------------

    def _loss_scale(self) -> float | None:
        """Return what gradients are to be divided by; None where one is not finite."""
        left = self.__dict__
        if "found_inf" not in left and "grad_scale" not in left:  # as in nearly every step
            return 1.0
        if gradients.has_overflowed(left.get("found_inf")):
            return None
        return gradients.scale_of(left.get("grad_scale"))

    def _leave_unscaled(self, plan: _Plan, outcome: Outcome | DeviceOutcome | None) -> None:
        """Divide gradients by the loss scale where a step was made, as torch's fused step does."""
        scale = self.__dict__.get("grad_scale")
        if scale is None:
            return
        is_made = None
        if isinstance(outcome, DeviceOutcome) and self._phase.on_nonfinite != "raise":
            is_made = outcome.launches.verdict
        elif outcome is not None and not outcome.applied:
            return
        gradients.unscale((m.parameter for m in plan.members), scale, is_made)

    # -- what the step leaves ----------------------------------------------------------------

    @fixed_method
    def statistics(self) -> dict[str, Tensor]:
        """Return what the last step did: float64 scalars under ``"<parameter>/<statistic>"``.

        The statistics are the fields of :class:`adamas.Statistics`; parameters have the names
        given by ``named_parameters()``, or ``"<group>.<index>"``. The form is that of
        TensorBoard's ``add_scalar(tag, value)``. Raises RuntimeError where ``statistics=True``
        was not given or no step was made yet.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        with self._in_turn():
            outcome, reported, names = self._outcome, self._reported, self._names()
            taken_of_all = None if outcome is None else outcome.statistics
        if taken_of_all is None:
            raise RuntimeError(NONE_LEFT)
        return {
            f"{names[member.place]}/{field}": torch.tensor(value, dtype=torch.float64)
            for member, taken in zip(reported, taken_of_all, strict=True)
            for field, value in vars(taken).items()
        }

    @property
    def skipped(self) -> int:
        """How many steps were left out because a gradient was not finite (on_nonfinite="skip")."""
        return self._skipped + sum(int(each.item()) for each in self._skipped_on.values())

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step, unscaled; None where no option needed it."""
        return None if self._outcome is None else self._outcome.norm

    @property
    def copies(self) -> list[Tensor]:
        """The low-precision copies of the parameters, in their order; empty without ``copy_to``.

        Reading them brings them up to date with what changed outside of steps. While
        ``ema_weights()`` is open they are those of the weights in training.
        """
        if not self._copies:
            return []
        with self._in_turn():
            if not self._averaged:
                self._renew_copies(at_reading=True)
            return list(self._copies)

    def _step_with_copies(self, groups: list[dict[str, Any]], state: Any) -> Any:
        """Make a native step that is all there is to do, but for copies that it does not write."""
        plan = self._plan
        assert plan is not None
        outcome = plan.native.step_if_open(groups, state)
        if outcome is None and plan.native.stepped < len(self._copies or ()):
            with self._in_turn():
                if not self._averaged:
                    self._renew_copies()
        return outcome

    def _renew_copies(self, *, at_reading: bool = False) -> None:
        """Bring copies up to date: at reading all of them, else those that no step writes."""
        if at_reading:
            self._copies = copies.fitted(self._copies or [], self._copy_dtype, self._parameters())
        place = -1
        for group in self.param_groups:
            for p in group["params"]:
                place += 1
                if p.grad is not None and not at_reading:
                    continue
                now = (p._version, distributed.local(p.detach()).data_ptr())
                if at_reading or self._renewed.get(place) != now:
                    keeps = self._keeps_remainder(p, group)
                    remainder = self.state.get(p, {}).get("remainder") if keeps else None
                    copies.renew((self._copies or [])[place], p, remainder)
                    self._renewed[place] = now

    def _refuse_averaged(self, why: str) -> None:
        """Raise RuntimeError while the averaged weights are in place of those in training."""
        if self._averaged:
            raise averages_in_place(why)

    @contextmanager
    def ema_weights(self) -> Generator[None]:
        """Put the averaged parameters in place of the parameters while the context is open.

        The parameters come back when it closes, on errors too. Inside, the model's state_dict has
        the averages; a step, and all that saves, loads or copies the optimizer or adds a group,
        raises RuntimeError.
        Parameters that were never stepped stay as they are, and so do a model's buffers (as with
        torch's AveragedModel, whose buffers are the model's). Raises RuntimeError where ``ema=``
        was not given, or inside itself.
        """
        if self._phase.ema is None:
            raise RuntimeError(NO_AVERAGE)
        pairs: list[tuple[Tensor, Tensor]] = []
        kept: list[Tensor] = []
        is_put = False
        try:
            with self._in_turn():
                if self._averaged:
                    raise RuntimeError("The averaged weights are in place already.")
                _ = self.copies  # up to date while the weights in training are there
                pairs = [
                    (p, state["ema"])
                    for p, state in self.state.items()
                    if isinstance(p, Tensor) and "ema" in state
                ]
                kept = [
                    offload.in_host(p) if self._is_offloaded(p) else p.detach().clone()
                    for p, _ in pairs
                ]
                self._direct = None  # each step asks first whether the averages are in place
                self._averaged = is_put = True
                with torch.no_grad():
                    for p, average in pairs:
                        p.copy_(average)
            yield
        finally:
            if is_put:
                with self._in_turn(), torch.no_grad():
                    for (p, _), value in zip(pairs, kept, strict=True):
                        p.copy_(value)
                    self._keep(self._plan)
                    self._averaged = False

    # -- saving, loading, copying ------------------------------------------------------------

    def state_dict(self, *, packed: bool = False) -> dict[str, Any]:
        """Return groups and state in torch's form.

        Running means in a small form are given as float32, which loses nothing and which torch's
        optimizers can load. With ``packed=True`` all is as it is stored, under "packed_state" in
        place of "state": torch's optimizers, which would take codes for numbers, refuse it. Options
        that were set in the run (``clip_norm``, ``on_nonfinite``) stand under "phase".

        As in torch, tensors are the optimizer's own and change with the next step; see
        :meth:`snapshot` where other threads step.
        """
        with self._in_turn():
            return self._state_dict(packed=packed)

    @contextmanager
    def snapshot(self, *, packed: bool = False) -> Generator[turns.Snapshot]:
        """Hold the run still, and give parameters and state as they are, to be written down.

        Calls of other threads wait until the context closes; those of this thread are refused.
        Nothing is copied, but for what has to be decoded. Processes that wait for each other inside
        should open it in the thread that steps.
        """
        with self._in_turn():
            named = dict(zip(self._names(), self._parameters(), strict=True))
            snapshot = turns.Snapshot(named, self._state_dict(packed=packed))
            self._turn.is_busy = True
            try:
                yield snapshot
            finally:
                self._turn.is_busy = False

    def _state_dict(self, *, packed: bool) -> dict[str, Any]:
        self._refuse_averaged(would_lose("a checkpoint"))
        saved = {**super().state_dict(), **settings.saved(self._phase, self._phase_set)}
        if packed:
            others = {name: value for name, value in saved.items() if name != "state"}
            return {loading.PACKED: saved["state"], **others, "format": loading.FORMAT}
        dense = dict(saved["state"])
        for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
            entries = self._entries(own)
            for i in group["params"]:
                if isinstance(dense.get(i), dict) and ("state" in own or "top" in dense[i]):
                    dense[i] = small.dense(dense[i], entries.mean, entries.square)
        return {**saved, "state": dense}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict, of this optimizer or of torch's of the same name.

        All of it is checked first: raises ValueError, TypeError or KeyError, naming the parameter
        and the entry, and nothing has changed. Unlike torch, running means that are wider than
        their parameter stay so, and no entry shares memory with ``state_dict`` afterwards. How
        groups store their state stays as it is. What hooks do after loading stands.
        """
        with self._in_turn():
            self._load(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        self._refuse_averaged("what is loaded would not belong to the weights that come back")
        before = dict(self.__dict__)
        try:
            given = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
            for hook in self._optimizer_load_state_dict_pre_hooks.values():
                given = _or_else(hook(self, given), given)
            target = loading.Target(
                type(self).__name__,
                self.param_groups,
                self.defaults,
                self._names(),
                self._kept,
                self._fitted,
                self._refuse_loaded,
                self._is_offloaded,
                self._phase.ema is not None,
            )
            state, groups = loading.prepared(target, given)
            chosen = settings.loaded(given)
            phase = {
                "_phase": replace(self._phase, **chosen),
                "_phase_set": self._phase_set.union(chosen),
            }
            self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups, **phase})
            for hook in self._optimizer_load_state_dict_post_hooks.values():
                hook(self)
        except BaseException:
            self.__dict__.update(before)
            raise

    def _settle(self) -> None:
        """Bring the state of offloaded parameters into pinned host memory."""
        for parameter, state in self.state.items() if self._offloads else ():
            if isinstance(parameter, Tensor) and self._is_offloaded(parameter):
                offload.settle(state, pinned=True)

    def _kept(self, group: dict[str, Any]) -> Kept:
        """Return which entries parameters of ``group`` may have, and which they must have."""
        entries = self._entries(group)
        needed = [name for name in entries[:4] if name is not None]
        tensors = [name for name in entries[1:4] if name is not None]
        numbers = [] if entries.step is None else [entries.step]
        return Kept(type(self).__name__, entries, tuple(tensors), tuple(numbers), tuple(needed))

    def _fitted(
        self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a checked state in the form that its group stores, ``state`` itself if it is."""
        is_asked_for = "state" in group or parameter.dtype == torch.float16
        fitted = storage.fitted(
            state,
            parameter,
            self._entries(group),
            self._form(group, parameter) if is_asked_for else None,
            remainder=small.REMAINDERS[group["rounding"]]
            if self._keeps_remainder(parameter, group)
            else None,
        )
        return state if fitted is None else fitted

    def __getstate__(self) -> dict[str, Any]:
        """Return what torch keeps, and the phase; refuse to be pickled with steps between."""
        with self._in_turn():
            self._refuse_averaged(would_lose("a copy"))
            kept = dict(super().__getstate__())
            own = ("_phase", "_phase_set", "_offloads", "_copies", "_copy_dtype", "skipped")
            still = turns.Still(self._pickled, self._in_turn)
            return {**kept, **{name: getattr(self, name) for name in own}, _STILL: still}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy with parameters, state and counts of its own."""
        with self._in_turn():
            twin = type(self).__new__(type(self))
            memo[id(self)] = twin
            twin.__setstate__(deepcopy(self.__getstate__(), memo))
        return twin

    def _pickled(self) -> Iterable[Any]:
        """Yield the objects that a pickle is made of."""
        for group in self.param_groups:
            yield from group.values()
            yield from group["params"]
        for state in self.state.values():
            yield from state.values() if isinstance(state, dict) else (state,)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, older ones with fewer options included."""
        super().__setstate__({name: value for name, value in state.items() if name != _STILL})
        self.__dict__.setdefault("_turn", turns.Turn())
        defaults: dict[str, Any] = {
            "_phase": Phase(),
            "_phase_set": frozenset(),
            "_offloads": False,
            "_copies": None,
            "_copy_dtype": None,
            "_skipped": self.__dict__.pop("skipped", 0),
            "_skipped_on": {},
            "_captured": [],
            "_device_counts": counting.DeviceCounts(),
            "_plan": None,
        }
        for name, value in defaults.items():
            self.__dict__.setdefault(name, value)
        self._reset()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            step = self._entries(group).step
            for p in group["params"]:
                kept = self.state.get(p)
                if kept and step in kept and not isinstance(kept[step], Tensor):
                    on_device = group.get("capturable") or group.get("fused")
                    kept[step] = counting.step_tensor(kept[step], p.device if on_device else None)
        self._settle()

    # -- inside ------------------------------------------------------------------------------

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self) -> list[str]:
        names: list[str] = []
        for i, group in enumerate(self.param_groups):
            given = group.get("param_names")
            names.extend(given or (f"{i}.{j}" for j in range(len(group["params"]))))
        return names


@torch._disable_dynamo  # type: ignore[attr-defined]
def _uncompiled_step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    return optimizer._step(closure)  # pyright: ignore[reportPrivateUsage]


_STILL = "still"
#: Plans for devices that are kept for the next time.
_MOST_EARLIER = 8
_NOT_DIFFERENTIABLE = (
    "differentiable=True asks for a step that autograd can see through, but adamas steps in place "
    "outside of autograd. Use torch.optim for that optimizer, or torch.func with adamas.rule."
)


@functools.lru_cache(maxsize=64)
def _stored(
    betas: tuple[float | None, float | None],
    amsgrad: bool,
    state: StateForm | tuple[StateForm, StateForm],
    rounding: Rounding | None,
) -> Options:
    """Return options that say how something is stored; kept, since all parameters ask for them."""
    return Options(betas=betas, amsgrad=amsgrad, state=state, rounding=rounding)


def _is_plain(tensor: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.dtype in dtypes
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not gradients.is_lazy(tensor)
    )


def _or_else(result: Any, given: Any) -> Any:
    """Return what a hook returned, or what it was given."""
    return given if result is None else result


def _step_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
