"""How a subject is called: found out by its signature and by trying, once."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.callables import (
    CONTAINERS,
    WAYS,
    Boxes,
    Contained,
    Function,
    Object,
    configured,
    packed,
    way_of_making,
)
from adamas.checking.frameworks import Keras, Optax, Torch, Triple, is_of_keras
from adamas.checking.loops import Loop
from adamas.checking.prediction import Settings
from adamas.checking.roles import Roles, roles_of_function, roles_of_loop, roles_of_method
from adamas.checking.subjects import (
    Arguments,
    CannotCheckError,
    Subject,
    arguments_of,
    signature_of,
)
from adamas.checking.trials import Convention, quiet, told
from adamas.checks import near

__all__ = ["METHODS", "detect"]

Array = NDArray[Any]

#: What detection is done with: parameters of size 100, so that values and updates differ.
_FIRST = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
#: After how many steps without a change a way of calling is given up.
_FIRST_STEPS = 12
#: Names of methods that make a step, in the order in which they are tried.
METHODS = (
    "step", "update", "update_params", "update_parameters", "update_weights", "apply_gradients",
    "apply", "get_updates", "_get_updates", "get_update", "_get_update", "compute_update",
    "compute_updates", "optimize", "__call__",
)  # fmt: skip


def detect(subject: Subject, advance: Callable[[], object] = lambda: None) -> Convention:
    """Return the convention of ``subject``. Raises CannotCheckError where none fits.

    ``advance`` is called after each that was tried.
    """
    signature = signature_of(subject.make)
    if signature is None:
        raise CannotCheckError(
            f"{subject.name} has no signature that Python can tell, so what its arguments mean is "
            "unknown. Give a function around it, with params, lr, betas and eps as arguments."
        )
    parameters = signature.parameters
    unknown = [name for name in subject.options if name not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise CannotCheckError(
            f"{subject.name} has no argument {unknown[0]!r}.{near(unknown[0], parameters)} "
            f"Possible are {', '.join(parameters)}."
        )
    tried: list[str] = []
    for dtype in (np.float64, np.float32):
        for convention in _Candidates(subject, signature, dtype, tried):
            problem = _problem(convention, dtype)
            advance()
            if problem is None:
                convention.outlives = _outlives(convention, dtype)
                return convention
            tried.append(f"as {convention.name}: {problem}")
    raise CannotCheckError(
        f"{subject.name} can be called in no way that is known. Tried "
        + "; ".join(dict.fromkeys(tried) or ["nothing, as its arguments have unknown names"])
        + ". Possible are: a torch.optim.Optimizer; an optax transformation; an object with "
        "step(grads), update(params, grads), apply_gradients or get_updates; a function "
        "(params, grads, state) or (w, dw, config=None); a loop (gradient_function, x); a triple "
        "(init, update, get_params). Arguments that it needs besides are given by --set name=value."
    )


@dataclass(frozen=True)
class _Candidates:
    """The conventions that may be that of a subject; what fails on the way goes to ``tried``."""

    subject: Subject
    signature: inspect.Signature
    dtype: Any
    tried: list[str]

    def __iter__(self) -> Iterator[Convention]:
        arguments = arguments_of(self.signature, self.subject.options)
        if not isinstance(self.subject.make, type):
            roles, loop = roles_of_function(self.signature), roles_of_loop(self.signature)
            if roles is not None:
                yield from self._functions(arguments, roles)
            if loop is not None:
                for container in CONTAINERS:
                    yield Contained(Loop, self.subject, arguments, loop, container)
            if roles is not None or loop is not None:
                return
        if is_of_keras(self.subject.make):
            yield Convention(Keras, self.subject, arguments)
            return
        had_torch = "torch" in sys.modules
        for style in _styles(arguments):
            if had_torch:
                yield Convention(Torch, self.subject, style)
            yield from self._made(style)
        if not had_torch and "torch" in sys.modules:
            # The subject itself has loaded it on the way.
            yield from (Convention(Torch, self.subject, style) for style in _styles(arguments))

    def _functions(self, arguments: Arguments, roles: Roles) -> Iterator[Convention]:
        """Yield the conventions of a function that makes a step."""
        for container in CONTAINERS:
            for filled in (False, True) if "state" in roles.values() else (False,):
                plain = Function(self.subject, arguments, roles, container, filled=filled)
                by_dict = configured(plain)
                if by_dict is not None:
                    yield by_dict
                yield plain

    def _made(self, arguments: Arguments) -> Iterator[Convention]:
        """Yield the conventions of what a class or factory makes."""
        way = way_of_making(arguments, self.signature)
        if way is None:
            others = " and ".join(arguments.others)
            verb = "means" if len(arguments.others) == 1 else "mean"
            self.tried.append(f"a call, but what {others} {verb} is unknown")
            return
        for container in CONTAINERS if way in ("params", "nothing") else ("array",):
            convention = Object(self.subject, arguments, way, container)
            try:
                with quiet():
                    held = packed(_first_arrays(convention, self.dtype), container)
                    made = convention.make(held, convention.keywords(_FIRST))
            except Exception as error:
                self.tried.append(f"a call with {WAYS[way].format(container)}: {told(error, 160)}")
                continue
            trial = _framework_of(made)
            if trial is not None:
                yield Convention(trial, self.subject, arguments)
                return
            yield from self._methods(convention, made)

    def _methods(self, convention: Object, made: Any) -> Iterator[Convention]:
        found = False
        for name in METHODS:
            method: Any = getattr(made, name, None)
            try:
                signature = inspect.signature(method)
            except (TypeError, ValueError):
                continue
            roles = roles_of_method(signature)
            if roles is None:
                self.tried.append(f"its {name}{signature}, whose arguments are unknown")
                continue
            found = True
            if not roles:
                yield Boxes(self.subject, convention.arguments, name)
            else:
                made_as = convention.way, convention.container
                yield Object(self.subject, convention.arguments, *made_as, name, roles)
        if not found:
            kind = type(made).__name__
            self.tried.append(f"what it makes ({kind}) has no method that makes a step")


def _framework_of(made: Any) -> type[Keras | Triple | Optax] | None:
    """Return the way of calling what was made without parameters, by a framework's protocol."""
    if is_of_keras(type(made)):
        return Keras
    if isinstance(made, tuple) and len(made) == 3 and all(map(callable, made)):
        return Triple
    if callable(getattr(made, "init", None)) and callable(getattr(made, "update", None)):
        return Optax
    return None


def _styles(arguments: Arguments) -> Iterator[Arguments]:
    """Yield the arguments as they are, and as usual where the signature keeps them open."""
    if not arguments.names and arguments.open:
        usual = {name: name for name in ("lr", "betas", "eps", "weight_decay")}
        short = {"lr": "learning_rate", "beta1": "b1", "beta2": "b2", "eps": "eps"}
        decayed = {**short, "weight_decay": "weight_decay"}
        for names in (usual, decayed, short, {"lr": "lr"}):
            yield dataclasses.replace(arguments, names=names)
    yield arguments


def _first_arrays(convention: Convention, dtype: Any) -> list[Array]:
    shapes = ((2, 3), (4,)) if convention.mixes_shapes else ((4,), (4,))
    return [np.full(shape, 100.0, dtype=dtype) for shape in shapes[-convention.arrays :]]


def _problem(convention: Convention, dtype: Any) -> str | None:
    """Return why a convention does not work, after its first steps; None where it does."""
    arrays = found = _first_arrays(convention, dtype)
    try:
        with _restored(convention.subject.make):
            trial = convention.start(arrays, _FIRST)
            # Some RAdams move nothing until they rectify, which is here from the 8th step on.
            for _ in range(_FIRST_STEPS):
                gradients = [np.full(a.shape, 0.5, dtype=dtype) for a in arrays]
                found = trial.step(gradients).parameters
                if not all(map(np.array_equal, found, arrays)):
                    break
    except Exception as error:
        cause = " (1 − β^t is 0 where t starts at 0: count the first step as 1)"
        return told(error, 160) + cause * isinstance(error, ZeroDivisionError)
    if [each.shape for each in found] != [each.shape for each in arrays]:
        return "what came back does not have the shapes of the parameters"
    if all(map(np.array_equal, found, arrays)):
        return f"the parameters did not change in {_FIRST_STEPS} steps"
    return None


@contextmanager
def _restored(make: Any) -> Generator[None]:
    """Put back what is in dicts and lists that are defaults, so that the next attempt can do."""
    signature = signature_of(make)
    held = [p.default for p in signature.parameters.values()] if signature else []
    before = [(each, each.copy()) for each in held if type(each) in (dict, list)]
    try:
        yield
    finally:
        for each, content in before:
            each.clear()
            each.update(content) if isinstance(each, dict) else each.extend(content)


def _outlives(convention: Convention, dtype: Any) -> bool:
    """Return whether a new trial goes on where another one stopped."""
    arrays = _first_arrays(convention, dtype)
    gradients = [np.full(a.shape, 0.5, dtype=dtype) for a in arrays]
    ends: list[Array] = []
    for _ in range(2):
        try:
            trial = convention.start(arrays, _FIRST)
            moved = [trial.step([np.array(f * g) for g in gradients]) for f in (1.0, -0.5, 0.25)]
        except Exception:
            return False  # Probing will come upon it, and tell.
        ends.append(moved[-1].parameters[0] - arrays[0])
    first, second = ends
    # Chance, as in stochastic rounding, moves less.
    size = np.nanmax(np.abs(first), initial=0.0)
    return bool(np.any(np.abs(first - second) > 0.05 * size))
