"""How a subject is called: found out by its signature and by trying, once."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.callables import (
    CONTAINERS,
    WAYS,
    Boxes,
    Function,
    Object,
    configured,
    packed,
    way_of_making,
)
from adamas.checking.frameworks import Keras, Optax, Torch, Triple, is_of_keras
from adamas.checking.loops import Loop
from adamas.checking.prediction import Settings
from adamas.checking.roles import roles_of_function, roles_of_loop, roles_of_method
from adamas.checking.subjects import (
    Arguments,
    CannotCheckError,
    Subject,
    arguments_of,
    signature_of,
)
from adamas.checking.trials import Convention, quiet, told
from adamas.checks import near

__all__ = ["detect"]

Array = NDArray[Any]


def detect(subject: Subject) -> Convention:
    """Return the convention of ``subject``. Raises CannotCheckError where none fits."""
    signature = signature_of(subject.make)
    if signature is None:
        raise CannotCheckError(
            f"{subject.name} has no signature that Python can tell, so what its arguments mean is "
            "unknown. Give a function around it, with params, lr, betas and eps as arguments."
        )
    _check_options(subject, signature)
    arguments = arguments_of(signature, subject.options)
    tried: list[str] = []
    for dtype in (np.float64, np.float32):
        for convention in _candidates(subject, signature, arguments, dtype, tried):
            problem = _problem(convention, dtype)
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


def _check_options(subject: Subject, signature: inspect.Signature) -> None:
    parameters = signature.parameters
    unknown = [name for name in subject.options if name not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise CannotCheckError(
            f"{subject.name} has no argument {unknown[0]!r}.{near(unknown[0], parameters)} "
            f"Possible are {', '.join(parameters)}."
        )


def _candidates(
    subject: Subject,
    signature: inspect.Signature,
    arguments: Arguments,
    dtype: Any,
    tried: list[str],
) -> Iterator[Convention]:
    make = subject.make
    roles = None if isinstance(make, type) else roles_of_function(signature)
    if roles is not None:
        for container in CONTAINERS:
            for filled in (False, True) if "state" in roles.values() else (False,):
                plain = Function(subject, arguments, roles, container, filled=filled)
                by_dict = configured(plain)
                if by_dict is not None:
                    yield by_dict
                yield plain
    loop = None if isinstance(make, type) else roles_of_loop(signature)
    if loop is not None:
        yield from (Loop(subject, arguments, loop, container) for container in CONTAINERS)
    if roles is not None or loop is not None:
        return
    if is_of_keras(make):
        yield Keras(subject, arguments)
        return
    had_torch = "torch" in sys.modules
    for style in _styles(arguments):
        if had_torch:
            yield Torch(subject, style)
        yield from _made(subject, style, signature, dtype, tried)
    if not had_torch and "torch" in sys.modules:
        # The subject itself has loaded it on the way.
        yield from (Torch(subject, style) for style in _styles(arguments))


def _styles(arguments: Arguments) -> Iterator[Arguments]:
    """Yield the arguments as they are, and as usual where the signature keeps them open."""
    if arguments.names or not arguments.open:
        yield arguments
        return
    usual = {name: name for name in ("lr", "betas", "eps", "weight_decay")}
    yield dataclasses.replace(arguments, names=usual)
    short = {"lr": "learning_rate", "beta1": "b1", "beta2": "b2", "eps": "eps"}
    yield dataclasses.replace(arguments, names={**short, "weight_decay": "weight_decay"})
    yield dataclasses.replace(arguments, names=short)
    yield dataclasses.replace(arguments, names={"lr": "lr"})
    yield arguments


def _made(
    subject: Subject,
    arguments: Arguments,
    signature: inspect.Signature,
    dtype: Any,
    tried: list[str],
) -> Iterator[Convention]:
    """Yield the conventions of what a class or factory makes."""
    way = way_of_making(arguments, signature)
    if way is None:
        tried.append(f"a call, but what {' and '.join(arguments.others)} means is unknown")
        return
    for container in CONTAINERS if way in ("params", "nothing") else ("array",):
        convention = Object(subject, arguments, way, container)
        try:
            with quiet():
                held = packed(_first_arrays(convention, dtype), container)
                made = convention.make(held, convention.keywords(_FIRST))
        except Exception as error:
            tried.append(f"a call with {WAYS[way].format(container)}: {told(error, 160)}")
            continue
        if is_of_keras(type(made)):
            yield Keras(subject, arguments)
            return
        if isinstance(made, tuple) and len(made) == 3 and all(map(callable, made)):
            yield Triple(subject, arguments)
            return
        if callable(getattr(made, "init", None)) and callable(getattr(made, "update", None)):
            yield Optax(subject, arguments)
            return
        yield from _methods(convention, made, tried)


def _methods(convention: Object, made: Any, tried: list[str]) -> Iterator[Convention]:
    found = False
    for name in _METHODS:
        method = getattr(made, name, None)
        if not callable(method):
            continue
        try:
            roles = roles_of_method(inspect.signature(method))
        except (TypeError, ValueError):
            continue
        if roles is None:
            tried.append(f"its {name}{inspect.signature(method)}, whose arguments are unknown")
            continue
        found = True
        if not roles:
            yield Boxes(convention.subject, convention.arguments, name)
        else:
            yield Object(
                *(convention.subject, convention.arguments, convention.way, convention.container),
                *(name, roles),
            )
    if not found:
        tried.append(f"what it makes ({type(made).__name__}) has no method that makes a step")


#: What detection is done with: parameters of size 100, so that values and updates differ.
_FIRST = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
_METHODS = (
    *("step", "update", "update_params", "update_parameters", "update_weights", "apply_gradients"),
    *("apply", "get_updates", "_get_updates", "get_update", "_get_update", "compute_update"),
    *("compute_updates", "optimize", "__call__"),
)


def _first_arrays(convention: Convention, dtype: Any) -> list[Array]:
    shapes = ((2, 3), (4,)) if convention.arrays > 1 else ((4,),)
    if not convention.mixes_shapes:
        shapes = ((4,), (4,))
    return [np.full(shape, 100.0, dtype=dtype) for shape in shapes]


def _problem(convention: Convention, dtype: Any) -> str | None:
    """Return why a convention does not work, after one step; None where it does."""
    arrays = _first_arrays(convention, dtype)
    try:
        with _restored(convention.subject.make):
            trial = convention.start(arrays, _FIRST)
            stepped = trial.step([np.full(a.shape, 0.5, dtype=dtype) for a in arrays])
    except Exception as error:
        cause = " (1 − β^t is 0 where t starts at 0: count the first step as 1)"
        return told(error, 160) + cause * isinstance(error, ZeroDivisionError)
    found = stepped.parameters
    if [each.shape for each in found] != [each.shape for each in arrays]:
        return "what came back does not have the shapes of the parameters"
    if all(np.array_equal(each, given) for each, given in zip(found, arrays, strict=True)):
        return "the parameters did not change"
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
