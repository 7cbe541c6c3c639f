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

from adamas.checks import is_listed, kind
from adamas.coefficients import is_count
from adamas.options import Phase
from adamas.torch import arguments, distributed, gradients, storage
from adamas.torch.keeping import NOT_DIFFERENTIABLE, Keeping
from adamas.torch.members import Member
from adamas.torch.memory import Memory
from adamas.torch.methods import Method
from adamas.torch.numbers import Numbers, Scaling
from adamas.torch.plan import OVERFLOWED, Plan
from adamas.torch.routes import PLAIN_TYPES, Owned, Route, Setup, native
from adamas.torch.routes.native import Native
from adamas.torch.routes.plain import Plain
from adamas.turns import CHANGED

__all__ = ["PREPARED", "Given", "Listed", "check_is_number", "step"]

#: Entries that are numbers; the others have their parameter's shape.
_NUMBERS = ("step", "mu_product")
_PLAIN_SET = frozenset(PLAIN_TYPES)
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
#: The first count of steps that float32 does not go beyond.
_END_OF_FLOAT32 = 2**24
_PHASE = Phase()
#: Of each parameter the first that is stepped with the same numbers; see ``_first_alike``.
Firsts = list[int] | None


class Listed(NamedTuple):
    """A list of tensors, and the argument that it was given as."""

    argument: str
    tensors: Any
    #: Whether None stands for what begins with this step.
    may_begin: bool = False


class Given(NamedTuple):
    """What a function was given."""

    method: Method
    parameters: Any
    gradients: Listed
    #: What is kept, by its name in the state; that which lives as long as the state comes first.
    kept: dict[str, Listed]
    #: Torch's, as they stand in groups, without lr.
    options: dict[str, Any]
    lr: Any


def step(given: Given, scaling: Scaling) -> None:
    """Make one step in place; raise before anything is touched where that is impossible."""
    if torch.compiler.is_compiling():  # of a training step: this is not for its graph
        _uncompiled(given, scaling)
        return
    options = {name: _plain(name, value) for name, value in given.options.items()}
    given = given._replace(options=options, lr=_plain("lr", given.lr))
    key = _key(given)
    prepared = None if key is None else PREPARED.pop(key, None)  # nobody else has it meanwhile
    if prepared is None or not prepared.step_again(given, scaling):
        prepared = _step_closely(given, scaling)
    if prepared is not None and key is not None:
        PREPARED[key] = prepared


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


def check_is_number(name: str, value: Tensor) -> None:
    """Raise ValueError where a tensor has not one real number to be read."""
    if not storage.is_number(value):
        raise ValueError(
            f"{name} is a tensor of shape {tuple(value.shape)} and dtype {value.dtype}, but it "
            "must be a number, or a real tensor of one element."
        )


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
            if name not in _NUMBERS and [each.shape for each in tensors] != self._shapes:
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
def _step_closely(given: Given, scaling: Scaling) -> _Prepared | None:
    """Make one step after a look at everything; return what can be used for the next."""
    _check(given)
    if not given.parameters:
        return None
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
    if first is None or key is None or not is_lasting:
        return None
    return _Prepared(given, key, first, work, plan, firsts)


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
    return Plan(routes, _PHASE, work.stands, apart=False)


def _put_buffers(given: Given, work: _Work) -> None:
    """Give those buffers that began with this step to their owner."""
    for name, listed in given.kept.items():
        for i, stand in enumerate(work.stands):
            if listed.tensors[i] is None:
                listed.tensors[i] = work.states[stand][name]


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def _check(given: Given) -> None:
    """Raise TypeError, ValueError or RuntimeError for what cannot be stepped."""
    function, options = given.method.name, given.options
    arguments.check_options({"lr": given.lr, **options}, f"{function}: ", -arguments.ROUNDING)
    if options.get("differentiable"):
        raise ValueError(NOT_DIFFERENTIABLE)
    for listed in (Listed("params", given.parameters), given.gradients, *given.kept.values()):
        _check_list(function, listed, given)
    for i, (p, g) in enumerate(zip(given.parameters, given.gradients.tensors, strict=True)):
        _check_parameter(f"params[{i}]", p)
        _check_gradient(given, i, p, g)
        for name, listed in given.kept.items():
            entry, called = listed.tensors[i], f"{listed.argument}[{i}]"
            if entry is None:
                continue
            if name in _NUMBERS:
                _check_number(name, called, entry, p, f"params[{i}]")
            else:
                _check_entry(called, entry, p, f"params[{i}]")
        _check_apart(given, i)


def _check_list(function: str, listed: Listed, given: Given) -> None:
    argument, tensors = listed.argument, listed.tensors
    if not is_listed(tensors):
        raise TypeError(
            f"{function}: {argument} is {kind(tensors)}, but it must be a list of tensors, one for "
            "each parameter."
        )
    for i, each in enumerate(tensors):
        if isinstance(each, Tensor) or (each is None and listed.may_begin):
            continue
        advice = ""
        if argument == given.gradients.argument:
            advice = " Leave parameters without a gradient out of all lists."
        raise TypeError(
            f"{function}: {argument}[{i}] is {kind(each)}, but it must be a tensor.{advice}"
        )
    if len(tensors) != len(given.parameters):
        raise ValueError(
            f"{function}: {argument} has {len(tensors)} tensors, but params has "
            f"{len(given.parameters)}. Give one for each parameter, in the same order."
        )
    if isinstance(tensors, tuple) and any(each is None for each in tensors):
        raise TypeError(
            f"{function}: {argument} is a tuple with None in it, but buffers that begin with this "
            "step are put in their places. Give a list."
        )


def _check_parameter(name: str, p: Tensor) -> None:
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(
            f"{name} has dtype {p.dtype}, but only floating and complex tensors can be stepped. "
            "Convert it, or leave it out of all lists."
        )
    if p.layout != torch.strided:
        raise TypeError(f"{name} has layout {p.layout}, but it must be dense. Call to_dense().")
    if gradients.is_lazy(p):
        raise TypeError(
            f"{name} is a conjugated or negated view, which cannot be stepped in place. Make it of "
            "resolve_conj() or resolve_neg()."
        )
    if p.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} would be stepped while a CUDA graph is captured, but these functions read the "
            "number of the step on the host. Use the classes of adamas.torch there."
        )
    gradients.refuse_freed(name, {"memory": p})
    gradients.refuse_expanded(name, {"memory": p})
    distributed.cuts(p)


def _check_gradient(given: Given, i: int, p: Tensor, g: Tensor) -> None:
    name = f"params[{i}]"
    if g.is_sparse:
        called = f"{given.gradients.argument}[{i}]"
        if not given.method.takes_sparse:
            raise RuntimeError(
                f"{given.method.name} does not support sparse gradients, but {called} is one. Give "
                "its to_dense()."
            )
        if given.options["weight_decay"] != 0:
            raise RuntimeError(
                f"{called} is sparse, but weight_decay is {given.options['weight_decay']}, which "
                "shrinks all elements. Give its to_dense(), or step it with weight_decay=0."
            )
    gradients.refuse(name, p, g)
    if g.dtype != p.dtype:
        raise TypeError(
            f"The gradient of {name} has dtype {g.dtype}, but the parameter has dtype {p.dtype}. "
            "Convert the gradient."
        )
    gradients.refuse_freed(name, {"gradient": g})


def _check_number(name: str, called: str, entry: Tensor, p: Tensor, parameter: str) -> None:
    if not storage.is_number(entry):
        raise ValueError(
            f"{called} has shape {tuple(entry.shape)} and dtype {entry.dtype}, but it must be a "
            "real tensor of one element."
        )
    if not entry.is_cpu and entry.device != p.device:
        raise _elsewhere(called, entry, p, parameter)
    if entry.dtype not in (torch.float32, torch.float64) and (
        name != "step" or entry.dtype not in (torch.int32, torch.int64)
    ):
        raise TypeError(
            f"{called} has dtype {entry.dtype}, which does not hold it. Give it in torch.float32."
        )
    gradients.refuse_freed(called, {"memory": entry})
    value = entry.item()
    if name == "step":
        if not is_count(value):
            raise ValueError(
                f"{called} is {value}, but it must be the number of steps made: a whole number "
                "from 0 to 2**53 - 1."
            )
        if value >= _END_OF_FLOAT32 and entry.dtype == torch.float32:
            raise ValueError(
                f"{called} is {value}, but float32 counts no further than 2**24. Give it in "
                "torch.float64."
            )
    elif not 0 <= value <= 1:
        raise ValueError(
            f"{called} is {value}, but it must be from 0 to 1: it is a product of decay rates."
        )


def _check_entry(called: str, entry: Tensor, p: Tensor, parameter: str) -> None:
    if entry.layout != torch.strided or gradients.is_lazy(entry):
        raise TypeError(
            f"{called} has layout {entry.layout}, but it must be a dense tensor that can be "
            "written in place."
        )
    local, local_p = distributed.local(entry), distributed.local(p)
    if entry.shape != p.shape or local.shape != local_p.shape:
        raise ValueError(
            f"{called} has shape {tuple(local.shape)}, but {parameter} has shape "
            f"{tuple(local_p.shape)}. State is kept for each element."
        )
    if distributed.is_distributed(entry) != distributed.is_distributed(p):
        raise TypeError(
            f"{called} is a {type(entry).__name__}, but {parameter} is a {type(p).__name__}. "
            "Distribute both or neither."
        )
    if entry.device != p.device:
        raise _elsewhere(called, entry, p, parameter)
    possible = _NARROW if p.dtype in _NARROW else (p.dtype,)
    if entry.dtype not in possible:
        raise TypeError(
            f"{called} has dtype {entry.dtype}, but {parameter} has dtype {p.dtype}, for which it "
            f"may be {', '.join(map(str, possible))}."
        )
    gradients.refuse_freed(called, {"memory": entry})
    gradients.refuse_expanded(called, {"memory": entry})


def _check_apart(given: Given, i: int) -> None:
    """Raise ValueError where a parameter and its state are in one memory."""
    known: dict[int, str] = {}
    for listed in (Listed("params", given.parameters), *given.kept.values()):
        tensor = listed.tensors[i]
        part = None if tensor is None else distributed.local(tensor)
        if part is None or not part.numel() or part.is_meta or type(part) not in PLAIN_TYPES:
            continue
        other = known.setdefault(part.data_ptr(), listed.argument)
        if other != listed.argument:
            raise ValueError(
                f"{listed.argument}[{i}] and {other}[{i}] are in the same memory, so that one step "
                "would write both values there. Give each tensor memory of its own."
            )


def _elsewhere(called: str, entry: Tensor, p: Tensor, parameter: str) -> ValueError:
    return ValueError(
        f"{called} is on {entry.device}, but {parameter} is on {p.device}. Bring the one to the "
        "other."
    )
