"""What the optimizers for PyTorch share: torch's contract, and nothing else.

Here is what torch and its users call; the work is done below. ``plan`` chooses the routes of a
step, ``keeping`` says what is kept, ``loading`` takes over a state_dict, ``turns`` lets
one call in at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.autograd import profiler

from adamas import settings, spikes
from adamas.keywords import Unpack
from adamas.options import OnNonfinite, Phase
from adamas.settings import Fixed, Setting
from adamas.torch import arguments, clip_groups, decays, loading
from adamas.torch.arguments import CopyTo, Engine, PhaseArguments
from adamas.torch.clip_groups import ClipGroupSetting
from adamas.torch.copies import Copies
from adamas.torch.grouping import (
    check_parameters,
    check_state,
    check_states,
    parameters_of,
)
from adamas.torch.keeping import NOT_DIFFERENTIABLE, Keeping
from adamas.torch.methods import Method
from adamas.torch.numbers import Scaling
from adamas.torch.reports import Reports
from adamas.torch.stepper import Stepper
from adamas.torch.tracking import Tracking
from adamas.torch.turns import Snapshot, Still
from adamas.turns import would_lose

__all__ = ["Optimizer", "Params"]

#: Parameters, groups of them with options, or parameters with their names, as torch takes them.
Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Optimizer(Reports, torch.optim.Optimizer):
    """Base of the optimizers; make an Adam, AdamW, NAdam, RAdam, RMSprop or SGD."""

    clip_norm = Setting[float | None]()
    clip_update = Setting[float | None]()
    on_nonfinite = Setting[OnNonfinite]()
    ema = Fixed[float | None](lambda optimizer: optimizer._phase.ema)
    seed = Fixed[int](lambda optimizer: optimizer._phase.seed)
    track_changes = Fixed[bool](lambda optimizer: optimizer._phase.track_changes)
    skip_above = Setting[float | None]()
    skip_window = Fixed[int](lambda optimizer: optimizer._phase.skip_window)
    copy_to = Fixed[CopyTo | None](lambda optimizer: optimizer._copies.given)
    offload = Fixed[bool](lambda optimizer: optimizer._offloads)
    engine = Fixed[Engine | None](lambda optimizer: optimizer._engine)
    clip_group = ClipGroupSetting()
    phase = settings.whole()

    #: Makes the method, given the name of the class.
    _made_method: type[Method] = Method

    def __init__(
        self, params: Params, defaults: dict[str, Any], **phase: Unpack[PhaseArguments]
    ) -> None:
        """Take torch's parameters and defaults, and the phase; see ``PhaseArguments``."""
        self._check(defaults)
        chosen = arguments.checked_phase(type(self), params, phase)
        defaults |= chosen.stored
        arguments.put_pairs(defaults, defaults)
        if defaults.get("differentiable"):
            raise ValueError(NOT_DIFFERENTIABLE)
        self._phase = chosen.phase
        self._phase_set: frozenset[str] = frozenset()  # the names of what was set since
        self._offloads = chosen.offload
        self._engine: Engine | None = chosen.engine
        self._clip_group = chosen.clip_group
        self._copies = Copies(chosen.copy_to)
        self._tracking = Tracking(chosen.phase.track_changes, chosen.offload)
        self._begin()
        super().__init__(cast(Any, params), defaults)
        arguments.check_remainder(self.param_groups)
        parameters = parameters_of(self.param_groups)
        self._copies.begin(chosen.copy_to, parameters)
        self._tracking.begin(parameters, self._copies.tensors)
        self._show()

    def _check(self, given: dict[str, Any]) -> None:
        """Raise as torch does for arguments of its own that make no sense."""
        arguments.check_options(given)

    def _begin(self) -> None:
        """Begin the steps anew: of a new optimizer, or of one that has loaded."""
        before = self.__dict__.get("_stepper")
        self._method = self._made_method(type(self).__name__)
        self._stepper = Stepper(self._keeping, self._engine, self._copies, self._tracking, before)

    def _change_phase(self, changes: Mapping[str, Any]) -> None:
        """Take other options of the phase from the next step on."""
        with self._stepper.held():
            phase = replace(self._phase, **changes)
            self._keeping._replace(phase=phase).refuse_phase(self.param_groups)
            self._phase = phase
            self._phase_set = self._phase_set.union(changes)
            self._stepper.go_by(self._keeping)
            self._show()

    @property
    def _own(self) -> dict[str, Any]:
        own = {"copy_to": self._copies.dtype, "offload": self._offloads, "engine": self._engine}
        return {**vars(self.phase), **own}

    def _show(self) -> None:
        """Let ``defaults`` tell what was given or set for whole steps; no group has it."""
        self.defaults = {**arguments.of_groups(self.defaults), **settings.told(self._own)}

    def __repr__(self) -> str:
        """Return torch's own text, and what was given or set for whole steps."""
        check_parameters(self.param_groups)
        own = {**self._own, "copy_to": self._copies.told, **clip_groups.told(self._clip_group)}
        return settings.shown(super().__repr__(), settings.told(own))

    @property
    def _keeping(self) -> Keeping:
        return Keeping(self._method, self._phase, self._offloads, self._clip_group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling to us: as in torch with ``fused``, or if we clip.

        Otherwise not: Lightning takes it to mean that nobody else may clip the gradients.
        """
        return bool(self.defaults.get("fused")) or self.clip_norm is not None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; return what ``closure`` returns, or None.

        ``closure`` evaluates the model anew, with gradients enabled, and is called once. Raises
        RuntimeError for sparse gradients (SGD takes them) and FloatingPointError for ones that are
        not finite (where ``on_nonfinite="raise"``), before anything is changed.
        """
        if (
            self._optimizer_step_pre_hooks
            or profiler._is_profiler_enabled  # pyright: ignore[reportPrivateUsage]
            or torch_optimizer._global_optimizer_pre_hooks  # pyright: ignore[reportPrivateUsage]
            or torch_optimizer._global_optimizer_post_hooks  # pyright: ignore[reportPrivateUsage]
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        # What nearly every step is, with next to no Python around the native call.
        direct = self._stepper.direct
        loss = None
        try:
            is_made = (
                direct is not None
                and closure is None
                and "found_inf" not in self.__dict__
                and direct(self.param_groups, self.state) is None
            )
        except TypeError:  # the compiled module takes no None; what follows says so
            if isinstance(self.param_groups, list) and isinstance(self.state, dict):
                raise
            is_made = False
        if not is_made:
            loss = self._step(closure)
        if self._optimizer_step_post_hooks:  # without torch's span for a profiler that is not there
            args = (self,) if closure is None else (self, closure)
            for hook in [*self._optimizer_step_post_hooks.values()]:
                hook(self, args, {})
        return loss

    #: torch wraps `step` for hooks and the profiler unless it finds this; see `_observed_step`.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if torch.compiler.is_compiling():  # of a training step: this is not for its graph
            return _uncompiled_step(self, closure)
        check_state(self.state, self.param_groups)
        loss = None
        turn = self._stepper.turn
        if turn.is_busy or turn.plan is not None:
            turn.refuse_within()
        try:
            self._stepper.averages.refuse("no step can be made")  # before the closure is called
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with turn.lock:
                turn.is_busy = True
                try:
                    scaling = Scaling.left_in(self.__dict__)
                    self._stepper.step(self.param_groups, self.state, self.defaults, scaling)
                finally:
                    turn.is_busy = False
                    if turn.plan is not None and not turn.is_held:
                        turn.plan.open()
        except BaseException:
            # A GradScaler takes these back after a step that went well, and only then.
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise
        return loss

    _observed_step = torch.optim.Optimizer.profile_hook_step(_step)

    def ema_weights(self) -> AbstractContextManager[None]:
        """Swap in the EMA of the weights while the context is open.

        They come back when it closes, on errors too. Inside, the model's state_dict has the
        averages; a step, and all that saves, loads or copies the optimizer or adds a group, raises
        RuntimeError. Parameters that were never stepped stay as they are, and so do a model's
        buffers, as with torch's AveragedModel. Raises RuntimeError without ``ema``, or in itself.
        """
        return self._stepper.averaged(self.param_groups, self.state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; its options, and how it is to be stored, are checked first."""
        why = "a group cannot be added: its parameters have no average to be swapped for"
        with self._stepper.held(why):
            shown, self.defaults = self.defaults, arguments.of_groups(self.defaults)
            try:
                self._add_group(param_group)
            finally:
                self.defaults = shown

    def _add_group(self, param_group: dict[str, Any]) -> None:
        given = None
        if isinstance(param_group, dict):  # torch refuses others
            given, before = self._copies.asked_of(param_group), self.param_groups
            arguments.check_group(param_group, self.defaults, self._own, before, given is not None)
            self._keeping.storage({**self.defaults, **param_group})
            arguments.put_pairs(param_group, self.defaults)
            param_group.update(decays.completed(param_group, self.defaults))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._keeping.refuse_group(group, self.defaults)
            self._copies.add(given, group)
            self._stepper.fit(self.param_groups)
        except BaseException:
            del self.param_groups[-1]
            raise

    def state_dict(self, *, packed: bool = False) -> dict[str, Any]:
        """Return groups and state in torch's form.

        Moments in a small form are given as float32, which loses nothing and which torch's
        optimizers can load. With ``packed=True`` all is as it is stored, under "packed_state" in
        place of "state": torch's optimizers, which would take codes for numbers, refuse it. Options
        that were set in the run (``clip_norm`` and on) stand under "phase", and what
        ``skip_above`` judges by under "spikes".
        As in torch, tensors are the optimizer's own and change with the next step; see
        ``snapshot`` where other threads step.
        """
        with self._stepper.held(would_lose("a checkpoint")):
            check_states(self.param_groups, self.state)
            sets = settings.stepping(self)
            own = settings.saved(sets._phase, sets._phase_set)
            own |= spikes.saved(sets._stepper.spikes.read())
            saved = {**super().state_dict(), **own}
            return loading.saved(saved, self.param_groups, self._method, packed=packed)

    @contextmanager
    def snapshot(self, *, packed: bool = False) -> Generator[Snapshot]:
        """Hold the run still, and give parameters and state as they are, to be written down.

        Calls of other threads wait until it closes; those of this thread are refused. Nothing is
        copied but what has to be decoded. Processes that wait for each other inside should open it
        in the thread that steps.
        """
        with self._stepper.held():
            snapshot = Snapshot.of(self.param_groups, self.state_dict(packed=packed))
            with self._stepper.turn.busy():
                yield snapshot

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict, of this optimizer or of torch's of the same name.

        All of it is checked first: raises ValueError, TypeError or KeyError, naming parameter and
        entry, and nothing has changed. Unlike in torch, moments may be wider than parameters,
        and no entry shares memory with ``state_dict``. Groups go on to store their state as they
        do. What hooks do after loading stands.
        """
        with self._stepper.held("what is loaded would not belong to the weights that come back"):
            before = dict(self.__dict__)
            try:
                loading.take_over(self, self._keeping, state_dict)
            except BaseException:
                self.__dict__.update(before)
                self._stepper.resume()
                raise

    def __getstate__(self) -> dict[str, Any]:
        """Return what torch keeps, and the phase; refuse to be pickled with steps between."""
        with self._stepper.held(would_lose("a copy")):
            self._stepper.settle(self.param_groups, self.state)
            kept = settings.stepping(self)
            own = {name: getattr(kept, name) for name in _OWN}
            own |= {"skipped": kept.skipped.nonfinite, spikes.KEY: kept._stepper.spikes.read()}
            state = {**super().__getstate__(), **own, _STILL: Still(self, self._stepper.turn)}
            return clip_groups.put_away(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy with parameters, state and counts of its own."""
        with self._stepper.held():
            memo[id(self)] = twin = type(self).__new__(type(self))
            twin.__setstate__(deepcopy(self.__getstate__(), memo))
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, older ones with fewer options included."""
        super().__setstate__(clip_groups.taken_back(state, without=_NOT_KEPT))
        for name, made in _OWN.items():
            self.__dict__.setdefault(name, made())
        self._copies = copy(self._copies)  # of its own, where copy.copy() shares all else
        parameters, copies = parameters_of(self.param_groups), self._copies.tensors
        self._tracking = (
            self._tracking.of(parameters, copies)
            if "_tracking" in state
            else self._tracking.loaded(parameters, copies, self.state)
        )
        chosen = state.get(settings.KEY, {})
        self._phase = replace(self._phase, **chosen)
        self._phase_set = self._phase_set.union(chosen)
        self._begin()
        self._stepper.record.skipped = state.get("skipped", self._stepper.record.skipped)
        if spikes.KEY in state:
            self._stepper.go_on_from(state[spikes.KEY])
        self._show()
        loading.complete(self.param_groups, self.state, self.defaults, self._method)
        self._keeping.settle(self.state)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _uncompiled_step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    return optimizer._step(closure)  # pyright: ignore[reportPrivateUsage]


#: What a copy takes along besides what torch keeps, and how it begins where it was not there yet.
_OWN: dict[str, Callable[[], Any]] = {
    "_phase": Phase,
    "_phase_set": frozenset,
    "_offloads": bool,
    "_engine": lambda: None,
    "_clip_group": lambda: None,
    "_copies": Copies,
    "_tracking": Tracking,
}
_STILL = "still"
_NOT_KEPT = (_STILL, "skipped", settings.KEY, spikes.KEY)
