"""Steps over lists of tensors that somebody else owns: what ``adamas.torch.functional`` is made of.

Each parameter is stood in for by a detached tensor in the same memory, whose ``grad`` is the
gradient that was given, so that the routes of optimizers step it: there is no other arithmetic
here. A plan of the native engine is kept for the next call with the same tensors.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.checks import is_listed
from adamas.options import Phase
from adamas.torch import distributed, gradients
from adamas.torch.given import (
    NUMBERS,
    Given,
    check,
    check_is_number,
    is_sharded,
    laid_out,
    parts_of,
)
from adamas.torch.keeping import Keeping
from adamas.torch.members import Member
from adamas.torch.memory import Memory
from adamas.torch.numbers import Numbers, Scaling
from adamas.torch.plan import OVERFLOWED, Plan
from adamas.torch.routes import PLAIN_TYPES, Owned, Route, Setup, native
from adamas.torch.routes.native import Native
from adamas.torch.routes.plain import Plain
from adamas.turns import CHANGED

__all__ = ["PREPARED", "step"]

_PLAIN_SET = frozenset(PLAIN_TYPES)
_PHASE = Phase()
#: Of each parameter the first that is stepped with the same numbers; see ``_first_alike``.
Firsts = list[int] | None


def step(given: Given, scaling: Scaling) -> None:
    """Make one step in place; raise before anything is touched where that is impossible."""
    if torch.compiler.is_compiling():  # of a training step: this is not for its graph
        _uncompiled(given, scaling)
        return
    options = {name: _plain(name, value) for name, value in given.options.items()}
    given = given._replace(options=options, lr=_plain("lr", given.lr))
    if _stepped_again(given, scaling):
        return
    if is_sharded(given):
        _step_parts(given, scaling)
    else:
        check(given)
        _step_closely(given, scaling)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _uncompiled(given: Given, scaling: Scaling) -> None:
    step(given, scaling)


def _plain(name: str, value: Any) -> Any:
    """Return an option that may be a tensor of one element as a number; others as they are."""
    if isinstance(value, Tensor):
        check_is_number(name, value)
        return float(value.item())
    if type(value) is tuple:
        return tuple(_plain(f"beta{i}", each) for i, each in enumerate(value, start=1))
    return value


def _stepped_again(given: Given, scaling: Scaling) -> bool:
    """Make one step by a plan of before; False, having done nothing, where there is none."""
    key = _key(given)
    prepared = None if key is None else PREPARED.pop(key, None)  # nobody else has it meanwhile
    if prepared is None or not prepared.step_again(given, scaling):
        return False
    PREPARED[key] = prepared
    return True


@torch.no_grad()
def _step_parts(given: Given, scaling: Scaling) -> None:
    """Make one step of this process's parts: it is element-wise."""
    parts = parts_of(given)
    if parts is None or not _stepped_again(parts, scaling):
        check(given)
        parts = parts_of(laid_out(given))
        assert parts is not None
        _step_closely(parts, scaling)
        for name, listed in given.kept.items():
            for i, part in enumerate(parts.kept[name].tensors):
                if listed.tensors[i] is None and part is not None:  # a buffer that began
                    listed.tensors[i] = distributed.joined(given.parameters[i], part)
        if scaling.grad_scale is not None and not scaling.has_overflowed:
            summed = zip(given.gradients.tensors, parts.gradients.tensors, strict=True)
            alone = [distributed.local(g) for g, part in summed if distributed.local(g) is not part]
            for each in alone:
                each.div_(scaling.grad_scale)
    torch.autograd.graph.increment_version(given.parameters)


# ── plans that are used again ──────────────────────────────────────────────────────────────────


class _Prepared:
    """A plan of the native engine for tensors that may come again.

    It holds the state and memory of the parameters, but not ``first``, of which one in the same
    memory stands in the state: when that is no more, this goes as well.
    """

    def __init__(
        self, given: Given, key: Any, first: Tensor, work: _Work, plan: Plan, firsts: Firsts
    ) -> None:
        self._options = given.options
        self._work, self._plan = work, plan
        self._dtypes = [p.dtype for p in work.stands]
        self._shapes = [p.shape for p in work.stands]
        self._first = next(iter(work.states[work.stands[0]].values()))
        self._kept = {
            name: tuple(work.states[stand][name] for stand in work.stands) for name in given.kept
        }
        self._firsts = firsts
        self._ref = weakref.ref(first, _forgetting(key))

    def step_again(self, given: Given, scaling: Scaling) -> bool:
        """Make one step; False, having done nothing, where something is not as it was."""
        if not self._fits(given, scaling):
            return False
        work = self._work
        work.groups[0]["lr"] = given.lr
        try:
            try:
                for stand, gradient in zip(work.stands, given.gradients.tensors, strict=True):
                    stand.grad = gradient
            except (TypeError, RuntimeError):  # the gradient of another shape, dtype or device
                return False
            with torch.no_grad():
                made = self._plan.step(scaling)
                if made is NotImplemented:
                    return False
                if made is not OVERFLOWED:
                    work.finish(self._plan, scaling)
                    if scaling.grad_scale is not None:
                        work.write_unscaled(given)
        finally:
            for stand in work.stands:
                stand.grad = None
        if made is not OVERFLOWED:
            torch.autograd.graph.increment_version(given.parameters)
        return True

    def _fits(self, given: Given, scaling: Scaling) -> bool:
        parameters, stands = given.parameters, self._work.stands
        if (
            not _are_equal(given.options, self._options)
            or not isinstance(given.gradients.tensors, (list, tuple))
            or not isinstance(parameters, (list, tuple))
            or len(parameters) != len(stands)
            or len(given.gradients.tensors) != len(stands)
            or not _PLAIN_SET.issuperset(map(type, parameters))
            or not _PLAIN_SET.issuperset(map(type, given.gradients.tensors))
            or not all(map(Tensor.is_set_to, parameters, stands))  # negated views are not
            or [p.dtype for p in parameters] != self._dtypes
            or (
                scaling.grad_scale is not None
                and any(map(gradients.is_sealed, given.gradients.tensors))
            )
        ):
            return False
        is_first = True
        for (name, listed), known in zip(given.kept.items(), self._kept.values(), strict=True):
            tensors = listed.tensors
            if not isinstance(tensors, (list, tuple)) or len(tensors) != len(known):
                return False
            start = int(is_first)  # the first of all is known by ``_key``
            if is_first and not tensors[0].is_set_to(self._first):
                return False
            if not all(map(operator.is_, tensors[start:], known[start:])):
                return False
            # The plan sees where state is, and resize_ or t_ may leave it there.
            if name not in NUMBERS and [each.shape for each in tensors] != self._shapes:
                return False
            is_first = False
        return self._firsts is None or self._are_alike(given)

    def _are_alike(self, given: Given) -> bool:
        """Whether those that are stepped with the same numbers still have the same product."""
        assert self._firsts is not None
        products = [float(each) for each in given.kept["mu_product"].tensors]
        if not all(0 <= each <= 1 for each in products):
            return False
        return all(products[i] == products[first] for i, first in enumerate(self._firsts))


def _are_equal(options: dict[str, Any], others: dict[str, Any]) -> bool:
    try:
        return options == others
    except (TypeError, ValueError):  # arrays, which are refused
        return False


#: Plans for the next call, by function and identity of the first tensor of the state.
PREPARED: dict[Any, _Prepared] = {}


def _key(given: Given) -> Any:
    """Return what a plan is found again by; None where there is nothing that lives with it."""
    first = _first(given)
    return None if first is None else (given.method.name, id(first))


def _first(given: Given) -> Tensor | None:
    """Return the tensor of the state that plans live as long as."""
    for listed in given.kept.values():
        tensors = listed.tensors
        found: Any = tensors[0] if is_listed(tensors) and tensors else None
        return found if type(found) in PLAIN_TYPES else None
    return None


def _forgetting(key: Any) -> Callable[[Any], None]:
    """Return what lets go of a plan; it holds nothing of it."""
    prepared = PREPARED  # the module may be gone by then

    def forget(_: Any) -> None:
        prepared.pop(key, None)

    return forget


def _first_alike(numbers: Numbers, members: Sequence[Member]) -> Firsts:
    """Return of each member the first that it shares numbers with.

    None where the count of steps tells the numbers.
    """
    if not numbers.method.has_more_state:
        return None
    firsts: dict[Any, int] = {}
    return [firsts.setdefault(numbers.cohort(each), i) for i, each in enumerate(members)]


# ── a step after a close look ──────────────────────────────────────────────────────────────────


class _Work(NamedTuple):
    """What routes are given in place of an optimizer's own."""

    stands: list[Tensor]
    groups: list[dict[str, Any]]
    states: dict[Tensor, dict[str, Any]]
    numbers: Numbers

    def finish(self, plan: Plan, scaling: Scaling) -> None:
        """Bring up to date what depends on a step that was made."""
        method = self.numbers.method
        if method.has_more_state:
            for member in plan.members:
                method.stepped(member)
        if scaling.grad_scale is not None:
            gradients.unscale(self.stands, scaling.grad_scale)

    def write_unscaled(self, given: Given) -> None:
        """Write gradients that were divided elsewhere into the memory that was given."""
        for stand, gradient in zip(self.stands, given.gradients.tensors, strict=True):
            divided = stand.grad
            if divided is not None and divided is not gradient and not gradient._is_zerotensor():
                gradient.copy_(divided)


@torch.no_grad()
def _step_closely(given: Given, scaling: Scaling) -> None:
    """Make one step after a look at everything; keep what can be used for the next."""
    if not given.parameters:
        return
    work, first = _work(given), _first(given)
    written = [*work.stands, *(x for state in work.states.values() for x in state.values())]
    if scaling.grad_scale is not None:
        gradients.refuse_undivided(given.gradients.argument, given.gradients.tensors, written)
    # Gradients may share memory with what is written.
    with gradients.kept_apart(work.stands, written):
        members = [_member(work, i) for i in range(len(work.stands))]
        firsts = _first_alike(work.numbers, members)
        plan = _planned(work, members)
        made = plan.step(scaling)
        if made is NotImplemented:
            plan.ready()
            raise RuntimeError(CHANGED)
        if made is not OVERFLOWED:
            work.finish(plan, scaling)
            _put_buffers(given, work)
    if made is not OVERFLOWED and scaling.grad_scale is not None:
        work.write_unscaled(given)
    for stand in work.stands:
        stand.grad = None
    key = _key(given)
    # A plan holds whatever it is for, so there has to be something that ends it.
    is_lasting = plan.native is not None and not work.numbers.has_fresh
    if first is not None and key is not None and is_lasting:
        PREPARED[key] = _Prepared(given, key, first, work, plan, firsts)


def _work(given: Given) -> _Work:
    """Return stand-ins with their gradients, and their states."""
    stands = [p.detach() for p in given.parameters]
    for stand, gradient in zip(stands, given.gradients.tensors, strict=True):
        stand.grad = gradient
    states: dict[Tensor, dict[str, Any]] = {stand: {} for stand in stands}
    for name, listed in given.kept.items():
        for state, tensor in zip(states.values(), listed.tensors, strict=True):
            if tensor is not None:
                state[name] = tensor
    for name in list(given.kept)[:1]:  # see _Prepared
        if name in states[stands[0]]:
            states[stands[0]][name] = states[stands[0]][name].detach()
    numbers = Numbers(given.method, None)
    groups = [{"params": stands, "lr": given.lr, **given.options}]
    return _Work(stands, groups, states, numbers)


def _member(work: _Work, place: int) -> Member:
    """Return a parameter with what belongs to it; buffers that begin now are created."""
    keeping = Keeping(work.numbers.method, _PHASE, offloads=False)
    stand = work.stands[place]
    member = keeping.member(work.groups[0], stand, place, work.states[stand], None)
    if member.is_new and any(member.names):
        work.numbers.begins(stand)
        keeping.complete(member)
    form = member.form
    if form is not None:
        stored = zip((member.names.mean, member.names.square), form.dtypes, strict=True)
        if any(name and member.state[name].dtype != dtype for name, dtype in stored):
            member = member._replace(form=None)  # stored as it is, rounded to nearest
    return member


def _planned(work: _Work, members: Sequence[Member]) -> Plan:
    """Return a plan: the native route for those that it takes, PyTorch's operations for others."""
    names = [f"params[{i}]" for i in range(len(members))]
    setup = Setup(Owned(work.groups, work.states, names, ()), _PHASE, work.numbers, [])
    taken = Memory()
    # What shares memory is stepped one after another, as torch does.
    at_once: list[Member] = []
    others: list[Member] = []
    for member in members:
        is_alone = native.takes(member) and taken.add(member.parts())
        (at_once if is_alone else others).append(member)
    routes: list[Route] = [Native(at_once, setup)] if at_once else []
    if others:
        routes.append(Plain(others, setup))
    return Plan(routes, _PHASE, setup, apart=False)


def _put_buffers(given: Given, work: _Work) -> None:
    """Give those buffers that began with this step to their owner."""
    for name, listed in given.kept.items():
        for i, stand in enumerate(work.stands):
            if listed.tensors[i] is None:
                listed.tensors[i] = work.states[stand][name]
