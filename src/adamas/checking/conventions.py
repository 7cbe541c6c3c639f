"""How a subject is called: found out by its signature and by trying, once.

A :class:`Convention` starts trials: one optimizer on given arrays, with given settings. A trial is
given gradients and gives back the new parameters, all as NumPy arrays, whatever is in between.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.checking.subjects import (
    LONE_RATES,
    Arguments,
    CannotCheckError,
    Subject,
    arguments_of,
    roles_of,
    signature_of,
)
from adamas.extras import require

__all__ = ["Convention", "Stepped", "Trial", "detect"]

Array = NDArray[Any]


class Stepped(NamedTuple):
    """What one step left behind: parameters, and the gradients as they are after it."""

    parameters: list[Array]
    gradients: list[Array]


class Trial:
    """One optimizer at work on its arrays."""

    #: How long the subject itself took for the last step.
    seconds: float = 0.0

    def step(self, gradients: list[Array]) -> Stepped:
        """Make one step."""
        raise NotImplementedError

    def put(self, parameters: list[Array]) -> bool:
        """Put values in place of the parameters; return whether that is possible."""
        raise NotImplementedError


class Convention:
    """A way of calling one subject."""

    #: What it is, for people.
    name: str = ""
    #: Whether one optimizer steps several arrays.
    several: bool = True
    #: Whether these arrays may be of different shapes.
    mixes_shapes: bool = True
    #: Whether state outlives the optimizer: a second one does not start anew.
    outlives: bool = False

    def __init__(self, subject: Subject, arguments: Arguments) -> None:
        """Keep what is called, and what its arguments mean."""
        self.subject = subject
        self.arguments = arguments

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a new optimizer at work on copies of ``arrays``.

        ``rates`` is the learning rate of each step, where it changes.
        """
        raise NotImplementedError

    @property
    def default(self) -> Settings:
        """The settings that stand where none are given."""
        return self.standing(self.arguments.defaults)

    def standing(self, settings: Settings) -> Settings:
        """Return ``settings`` as far as they can be set, else what stands."""
        kept = {
            name: getattr(self.arguments.defaults, name)
            for name in ("lr", "beta1", "beta2", "eps", "weight_decay")
            if name not in self.arguments.settable
        }
        for name, given in self.subject.options.items():
            if name == "betas":
                kept["beta1"], kept["beta2"] = given
            elif name in Settings.__dataclass_fields__:
                kept[name] = given
            elif name in LONE_RATES and "beta1" not in self.arguments.settable:
                kept["beta1"] = kept["beta2"] = given
        return dataclasses.replace(settings, **kept)

    def keywords(self, settings: Settings) -> dict[str, Any]:
        """Return all keyword arguments for ``settings``."""
        return {**self.arguments.keywords(settings), **self.subject.options}


@contextmanager
def quiet() -> Generator[None]:
    """Let the subject divide by zero and warn; what comes of it is looked at."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def detect(subject: Subject) -> Convention:
    """Return the convention of ``subject``. Raises CannotCheckError where none fits."""
    signature = signature_of(subject.make)
    if signature is None:
        raise CannotCheckError(
            f"{subject.name} has no signature that Python can tell, so what its arguments mean is "
            "unknown. Give a function around it, with params, lr, betas and eps as arguments."
        )
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
        "(params, grads, state). Arguments that it needs besides are given by --set name=value."
    )


def _candidates(
    subject: Subject,
    signature: inspect.Signature,
    arguments: Arguments,
    dtype: Any,
    tried: list[str],
) -> Iterator[Convention]:
    make = subject.make
    roles = None if isinstance(make, type) else _roles_of_function(signature)
    if roles is not None:
        for container in _CONTAINERS:
            for first in ("none", "empty"):
                yield _Function(subject, arguments, roles, container, first)
                if "state" not in roles.values():
                    break
        return
    if _is_of_keras(make):
        yield _Keras(subject, arguments)
        return
    had_torch = "torch" in sys.modules
    for style in _styles(arguments):
        if had_torch:
            yield _Torch(subject, style)
        yield from _made(subject, style, signature, dtype, tried)
    if not had_torch and "torch" in sys.modules:
        # The subject itself has loaded it on the way.
        yield from (_Torch(subject, style) for style in _styles(arguments))


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
    way = _way_of_making(arguments, signature)
    if way is None:
        tried.append(f"a call, but what {' and '.join(arguments.others)} means is unknown")
        return
    for container in _CONTAINERS if way in ("params", "nothing") else ("array",):
        convention = _Object(subject, arguments, way, container)
        try:
            with quiet():
                made = convention.make(convention.pack(_first_arrays(convention, dtype)), _FIRST)
        except Exception as error:
            tried.append(f"a call with {_WAYS[way].format(container)}: {_told(error)}")
            continue
        if _is_of_keras(type(made)):
            yield _Keras(subject, arguments)
            return
        if callable(getattr(made, "init", None)) and callable(getattr(made, "update", None)):
            yield _Optax(subject, arguments)
            return
        yield from _methods(convention, made, tried)


def _methods(convention: _Object, made: Any, tried: list[str]) -> Iterator[Convention]:
    found = False
    for name in _METHODS:
        method = getattr(made, name, None)
        if not callable(method):
            continue
        try:
            roles = _roles_of_method(inspect.signature(method))
        except (TypeError, ValueError):
            continue
        if roles is None:
            tried.append(f"its {name}{inspect.signature(method)}, whose arguments are unknown")
            continue
        found = True
        if not roles:
            yield _Boxes(convention.subject, convention.arguments, name)
        else:
            yield _Object(
                *(convention.subject, convention.arguments, convention.way, convention.container),
                *(name, roles),
            )
    if not found:
        tried.append(f"what it makes ({type(made).__name__}) has no method that makes a step")


#: What detection is done with: parameters of size 100, so that values and updates differ.
_FIRST = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
_CONTAINERS = ("list", "even list", "array", "dict")
_TOLD = {
    "list": "a list of arrays",
    "even list": "a list of arrays of one shape",
    "array": "one array",
    "dict": "a dict of arrays",
}
_METHODS = (
    *("step", "update", "update_params", "apply_gradients", "apply", "get_updates"),
    *("_get_updates", "__call__"),
)


def _first_arrays(convention: Convention, dtype: Any) -> list[Array]:
    shapes = ((2, 3), (4,)) if convention.several else ((4,),)
    if not convention.mixes_shapes:
        shapes = ((4,), (4,))
    return [np.full(shape, 100.0, dtype=dtype) for shape in shapes]


def _problem(convention: Convention, dtype: Any) -> str | None:
    """Return why a convention does not work, after one step; None where it does."""
    arrays = _first_arrays(convention, dtype)
    try:
        trial = convention.start(arrays, _FIRST)
        stepped = trial.step([np.full(a.shape, 0.5, dtype=dtype) for a in arrays])
    except Exception as error:
        return _told(error)
    found = stepped.parameters
    if [each.shape for each in found] != [each.shape for each in arrays]:
        return "what came back does not have the shapes of the parameters"
    if all(np.array_equal(each, given) for each, given in zip(found, arrays, strict=True)):
        return "the parameters did not change"
    return None


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


def _told(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0]
    told = f"{type(error).__name__}: {first:.160}"
    if isinstance(error, ZeroDivisionError):
        told += " (1 − β^t is 0 where t starts at 0: count the first step as 1)"
    return told


# -- containers ----------------------------------------------------------------------------------


def _packed(arrays: Sequence[Any], container: str) -> Any:
    if container.endswith("list"):
        return list(arrays)
    if container == "dict":
        return {f"p{i}": each for i, each in enumerate(arrays)}
    (alone,) = arrays
    return alone


def _unpacked(tree: Any, like: Sequence[Array], container: str) -> list[Array] | None:
    """Return copies of the arrays in ``tree``; None where it is not built as the parameters."""
    if container.endswith("list"):
        leaves = list(tree) if isinstance(tree, (list, tuple)) else None
    elif container == "dict":
        leaves = list(tree.values()) if isinstance(tree, Mapping) else None
    else:
        leaves = None if tree is None or isinstance(tree, (list, tuple, Mapping)) else [tree]
    if leaves is None or len(leaves) != len(like):
        return None
    try:
        arrays = [_as_array(leaf) for leaf in leaves]
    except (TypeError, ValueError):
        return None
    fits = all(
        a.shape == given.shape and a.dtype.kind == "f"
        for a, given in zip(arrays, like, strict=True)
    )
    return arrays if fits else None


def _as_array(leaf: Any) -> Array:
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
    return np.array(leaf)


# -- functions and objects on NumPy arrays -------------------------------------------------------


class _Call:
    """One function or method that makes a step: how arguments go in and parameters come out."""

    def __init__(self, roles: Mapping[str, str], container: str) -> None:
        self.roles = roles
        self.container = container
        #: Where the new parameters are found; None before the first step.
        self.place: str | None = None

    def arguments(
        self, params: Any, gradients: Any, state: Any, memory: Mapping[str, Any], t: int
    ) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, role in self.roles.items():
            if role == "params":
                given[name] = params
            elif role == "grads":
                given[name] = gradients
            elif role == "pairs":
                given[name] = list(zip(gradients, params, strict=True))
            elif role == "state":
                given[name] = state
            elif role == "t":
                given[name] = memory.get(name, t)
            else:
                given[name] = memory[name]
        return given


class _NumPyTrial(Trial):
    """A trial of a function or of an object's method."""

    def __init__(
        self,
        call: _Call,
        function: Callable[..., Any],
        arrays: list[Array],
        *,
        held: Any = None,
        owner: Any = None,
        state: Any = None,
        keywords: Callable[[int], dict[str, Any]] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._call = call
        self._function = function
        self._like = arrays
        self._held = (
            _packed([np.array(a, order="K") for a in arrays], call.container)
            if held is None
            else held
        )
        self._owner = owner
        self._state = state
        self._keywords = keywords or (lambda _: {})
        self._before = before or (lambda _: None)
        self._memory: dict[str, Any] = {
            name: _packed([np.zeros_like(a) for a in arrays], call.container)
            for name, role in call.roles.items()
            if role == "memory"
        }
        self._t = 0

    def step(self, gradients: list[Array]) -> Stepped:
        self._t += 1
        call = self._call
        old = _unpacked(self._held, self._like, call.container) or self._like
        packed = _packed(gradients, call.container)
        given = call.arguments(self._held, packed, self._state, self._memory, self._t)
        with quiet():
            self._before(self._t)
            began = time.perf_counter()
            returned = self._function(**given, **self._keywords(self._t))
            self.seconds = time.perf_counter() - began
        new, rest = self._returned(returned)
        self._remember(rest)
        return Stepped(self._parameters(old, new), [np.array(g) for g in gradients])

    def _returned(self, returned: Any) -> tuple[list[Array] | None, tuple[Any, ...]]:
        """Return the parameters (or updates) in what came back, and what came with them."""
        alone = _unpacked(returned, self._like, self._call.container)
        if alone is not None and not self._is_pair(returned):
            return alone, ()
        if isinstance(returned, tuple) and returned:
            first = _unpacked(returned[0], self._like, self._call.container)
            return first, returned[1:]
        return None, ()

    def _is_pair(self, returned: Any) -> bool:
        """Return whether a tuple is parameters and something else, though it would fit."""
        return isinstance(returned, tuple) and isinstance(returned[0], (list, Mapping))

    def _remember(self, rest: tuple[Any, ...]) -> None:
        if not rest:
            return
        kept = [name for name, role in self._call.roles.items() if role in ("memory", "t")]
        if "state" in self._call.roles.values():
            self._state = rest[0] if len(rest) == 1 else rest
        elif len(rest) <= len(kept):
            memories = [n for n in kept if self._call.roles[n] == "memory"]
            names = kept if len(rest) == len(kept) else memories
            self._memory.update(zip(names, rest, strict=False))

    def _parameters(self, old: list[Array], new: list[Array] | None) -> list[Array]:
        call = self._call
        if call.place is None:
            call.place = self._find(old, new)
        if call.place == "in place":
            return _unpacked(self._held, self._like, call.container) or old
        if call.place == "returned" and new is not None:
            if "params" in call.roles.values():
                self._held = _packed([each.copy() for each in new], call.container)
            return new
        if call.place == "updates" and new is not None:
            added = [a + b for a, b in zip(old, new, strict=True)]
            self._held = _packed([each.copy() for each in added], call.container)
            return added
        found = _unpacked(getattr(self._owner, call.place, None), self._like, call.container)
        if found is None:
            raise TypeError("the new parameters are nowhere to be found after the step")
        return found

    def _find(self, old: list[Array], new: list[Array] | None) -> str:
        held = _unpacked(self._held, self._like, self._call.container) or old
        if any(not np.array_equal(a, b) for a, b in zip(held, old, strict=True)):
            return "in place"
        if new is not None:
            name = getattr(self._function, "__name__", "")
            size = max(float(np.max(np.abs(each), initial=0.0)) for each in new)
            return "updates" if size < 50.0 or "get_updates" in name else "returned"
        for name in ("params", "parameters", "weights", "theta", "w", "x", "values"):
            value = getattr(self._owner, name, None)
            if _unpacked(value, self._like, self._call.container) is not None:
                return name
        return "in place"

    def put(self, parameters: list[Array]) -> bool:
        place = self._call.place
        tree = self._held if place != "returned" else None
        if place == "updates" or (place == "returned" and "params" in self._call.roles.values()):
            self._held = _packed([p.copy() for p in parameters], self._call.container)
            return True
        if place not in ("in place", "returned", None):
            tree = getattr(self._owner, place, None)
        leaves = [tree] if self._call.container == "array" else tree
        leaves = list(leaves.values()) if isinstance(leaves, Mapping) else leaves
        if not isinstance(leaves, (list, tuple)):
            return False
        for leaf, value in zip(leaves, parameters, strict=True):
            if not isinstance(leaf, np.ndarray):
                return False
            np.copyto(leaf, value)
        return True


class _Function(Convention):
    """A plain function (params, grads, state) → what comes next."""

    def __init__(
        self,
        subject: Subject,
        arguments: Arguments,
        roles: Mapping[str, str],
        container: str,
        first: str,
    ) -> None:
        super().__init__(subject, arguments)
        self.several = container != "array"
        self.mixes_shapes = container != "even list"
        self._first = first
        self._call = _Call(roles, container)
        self.name = f"a function ({', '.join(roles)}) of {_TOLD[container]}"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        function = self.subject.make
        make_state = getattr(function, "init", None)
        held = _packed([np.array(a, order="K") for a in arrays], self._call.container)
        state = None if self._first == "none" else {}
        if callable(make_state):
            state = make_state(held)
        fixed = self.keywords(settings)
        rate = self.arguments.names.get("lr")

        def keywords(t: int) -> dict[str, Any]:
            if rates is None or rate is None or t > len(rates):
                return fixed
            return {**fixed, rate: float(rates[t - 1])}

        return _NumPyTrial(self._call, function, arrays, held=held, state=state, keywords=keywords)


_WAYS = {
    "params": "params as {}",
    "nothing": "no parameters",
    "shape": "a shape",
    "size": "a size",
}


def _way_of_making(arguments: Arguments, signature: inspect.Signature) -> str | None:
    """Return what a class is given besides its settings; None where that cannot be told."""
    others = arguments.others
    if not others:
        for name, p in signature.parameters.items():
            if name in ("params", "parameters", "weights") and p.default is None:
                return "params"
        return "nothing"
    if len(others) > 1:
        return None
    if others[0] in ("shape", "param_shape"):
        return "shape"
    if others[0] in ("size", "n", "dim", "n_params", "num_params", "dimension", "ndim"):
        return "size"
    return "params"


class _Object(Convention):
    """A class whose objects make a step by one of their methods."""

    def __init__(
        self,
        subject: Subject,
        arguments: Arguments,
        way: str,
        container: str,
        method: str = "",
        roles: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(subject, arguments)
        self.way = way
        self.container = container
        self.several = container != "array"
        self.mixes_shapes = container != "even list"
        self._method = method
        self._call = _Call(roles or {}, container)
        told = ", ".join(roles or {})
        self.name = f"an object with {method}({told}) on {_TOLD[container]}"

    def pack(self, arrays: list[Array]) -> Any:
        """Return the arrays in the container."""
        return _packed(arrays, self.container)

    def make(self, held: Any, settings: Settings) -> Any:
        """Return a new object for the parameters ``held``."""
        keywords = self.keywords(settings)
        if self.way == "nothing":
            return self.subject.make(**keywords)
        if not self.arguments.others:
            name = next(
                n for n in ("params", "parameters", "weights")
                if n in inspect.signature(self.subject.make).parameters
            )  # fmt: skip
            return self.subject.make(**{name: held}, **keywords)
        if self.way == "params":
            return self.subject.make(**{self.arguments.others[0]: held}, **keywords)
        value = held.shape if self.way == "shape" else held.size
        return self.subject.make(**{self.arguments.others[0]: value}, **keywords)

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        held = self.pack([np.array(a, order="K") for a in arrays])
        with quiet():
            made = self.make(held, settings)
        rate = self.arguments.names.get("lr")

        def before(t: int) -> None:
            if rates is not None and rate is not None and hasattr(made, rate):
                setattr(made, rate, float(rates[min(t, len(rates)) - 1]))

        return _NumPyTrial(
            *(self._call, getattr(made, self._method), arrays),
            held=held,
            owner=made,
            before=before,
        )


def _roles_of_function(signature: inspect.Signature) -> dict[str, str] | None:
    roles = roles_of(signature)
    if roles is not None and {"params", "pairs"} & set(roles.values()):
        return roles
    needed = _needed(signature)
    if roles is None and len(needed) == 3:
        return dict(zip(needed, ("params", "grads", "state"), strict=True))
    return None


def _roles_of_method(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the roles of a method's arguments; empty where it takes none."""
    roles = roles_of(signature)
    needed = _needed(signature)
    if roles is not None:
        return roles
    if not needed:
        return {}
    if len(needed) == 1:
        return {needed[0]: "grads"}
    if len(needed) == 2:
        return dict(zip(needed, ("params", "grads"), strict=True))
    return None


def _needed(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in kinds
    ]


# -- step() on parameters that carry their gradients ---------------------------------------------


class _Box:
    """A parameter with ``data`` and ``grad``, as small autograd libraries have it."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self.grad = np.zeros_like(data)


class _Boxes(Convention):
    """An object with step(), on parameters with ``data`` and ``grad`` that are NumPy arrays."""

    def __init__(self, subject: Subject, arguments: Arguments, method: str) -> None:
        super().__init__(subject, arguments)
        self._method = method
        self.name = f"an object with {method}() on parameters with data and grad"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        boxes = [_Box(np.array(a, order="K")) for a in arrays]
        keywords = self.keywords(settings)
        with quiet():
            made = self.subject.make(**{self.arguments.others[0]: boxes}, **keywords)
        rate = self.arguments.names.get("lr")
        return _BoxTrial(boxes, made, self._method, rates, rate)


class _BoxTrial(Trial):
    def __init__(
        self, boxes: list[_Box], made: Any, method: str, rates: Array | None, rate: str | None
    ) -> None:
        self._boxes = boxes
        self._made = made
        self._method = method
        self._rates = rates
        self._rate = rate
        self._t = 0

    def step(self, gradients: list[Array]) -> Stepped:
        for box, gradient in zip(self._boxes, gradients, strict=True):
            box.grad = gradient
        if self._rates is not None and self._rate is not None and hasattr(self._made, self._rate):
            setattr(self._made, self._rate, float(self._rates[self._t]))
        self._t += 1
        with quiet():
            began = time.perf_counter()
            getattr(self._made, self._method)()
            self.seconds = time.perf_counter() - began
        return Stepped(
            [np.array(box.data) for box in self._boxes], [np.array(g) for g in gradients]
        )

    def put(self, parameters: list[Array]) -> bool:
        for box, value in zip(self._boxes, parameters, strict=True):
            np.copyto(box.data, value)
        return True


# -- PyTorch -------------------------------------------------------------------------------------


class _Torch(Convention):
    """A torch.optim.Optimizer, or what has its step() and works on tensors with gradients."""

    name = "a PyTorch optimizer: step() on tensors with grad"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        torch = require("torch", "this subject", "torch", "torch")
        tensors = [torch.nn.Parameter(torch.from_numpy(np.array(a, order="K"))) for a in arrays]
        with quiet():
            made = self.subject.make(tensors, **self.keywords(settings))
        if not hasattr(made, "step"):
            raise TypeError(f"what it makes ({type(made).__name__}) has no step()")
        return _TorchTrial(torch, made, tensors, rates)


class _TorchTrial(Trial):
    def __init__(self, torch: Any, made: Any, tensors: list[Any], rates: Array | None) -> None:
        self._torch = torch
        self._made = made
        self._tensors = tensors
        self._rates = rates
        self._t = 0

    def step(self, gradients: list[Array]) -> Stepped:
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = self._torch.from_numpy(np.array(gradient)).to(tensor.dtype)
        given = [tensor.grad for tensor in self._tensors]
        if self._rates is not None:
            self._set_rate(float(self._rates[min(self._t, len(self._rates) - 1)]))
        self._t += 1
        with quiet():
            began = time.perf_counter()
            self._made.step()
            self.seconds = time.perf_counter() - began
        return Stepped(
            [tensor.detach().cpu().numpy().copy() for tensor in self._tensors],
            [gradient.detach().cpu().numpy().copy() for gradient in given],
        )

    def _set_rate(self, rate: float) -> None:
        groups = getattr(self._made, "param_groups", None)
        for group in groups if isinstance(groups, list) else ():
            if self._torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def put(self, parameters: list[Array]) -> bool:
        with self._torch.no_grad():
            for tensor, value in zip(self._tensors, parameters, strict=True):
                tensor.copy_(self._torch.from_numpy(np.array(value)))
        return True


# -- optax ---------------------------------------------------------------------------------------


class _Optax(Convention):
    """A gradient transformation: init(params), update(grads, state, params)."""

    name = "an optax transformation: update(grads, state, params)"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        jax = require("jax", "this subject", "jax", "JAX")
        keywords = self.keywords(settings)
        rate = self.arguments.names.get("lr")
        wide = any(a.dtype == np.float64 for a in arrays)
        with quiet(), _width(jax, wide=wide):
            if rates is not None and rate is not None:
                table = jax.numpy.asarray(rates)
                keywords[rate] = lambda count: table[count]
            made = self.subject.make(**keywords)
            return _OptaxTrial(jax, made, [jax.numpy.asarray(a) for a in arrays], wide=wide)


class _OptaxTrial(Trial):
    def __init__(self, jax: Any, made: Any, params: list[Any], *, wide: bool) -> None:
        self._jax = jax
        self._made = made
        self._params = params
        self._wide = wide
        self._state = made.init(params)

    def step(self, gradients: list[Array]) -> Stepped:
        with quiet(), _width(self._jax, wide=self._wide):
            given = [self._jax.numpy.asarray(g) for g in gradients]
            began = time.perf_counter()
            updates, self._state = self._made.update(given, self._state, self._params)
            # As optax.apply_updates does it.
            self._params = [
                self._jax.numpy.asarray(p + u).astype(p.dtype)
                for p, u in zip(self._params, updates, strict=True)
            ]
            self._jax.block_until_ready(self._params)
            self.seconds = time.perf_counter() - began
            return Stepped([np.array(p) for p in self._params], [np.array(g) for g in given])

    def put(self, parameters: list[Array]) -> bool:
        with _width(self._jax, wide=self._wide):
            self._params = [self._jax.numpy.asarray(p) for p in parameters]
        return True


def _width(jax: Any, *, wide: bool) -> AbstractContextManager[Any]:
    """Return a context in which JAX has float64, where that is asked for."""
    return jax.enable_x64(True) if wide else nullcontext()


# -- Keras ---------------------------------------------------------------------------------------


def _is_of_keras(make: Any) -> bool:
    keras = sys.modules.get("keras")
    optimizers = getattr(keras, "optimizers", None)
    return (
        optimizers is not None and isinstance(make, type) and issubclass(make, optimizers.Optimizer)
    )


class _Keras(Convention):
    """A keras.optimizers.Optimizer, on variables of whatever backend Keras has."""

    name = "a Keras optimizer: apply(grads, variables)"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        keras = require("keras", "this subject", "test", "Keras")
        wide = any(a.dtype == np.float64 for a in arrays)
        # Without this, float64 variables of the JAX backend hold float32.
        jax = sys.modules["jax"] if keras.backend.backend() == "jax" and wide else None
        with quiet(), _width(jax, wide=jax is not None):
            variables = [keras.Variable(np.array(a), dtype=str(a.dtype)) for a in arrays]
            made = self.subject.make(**self.keywords(settings))
            made.build(variables)
        return _KerasTrial(keras, jax, made, variables, rates)


class _KerasTrial(Trial):
    def __init__(
        self, keras: Any, jax: Any, made: Any, variables: list[Any], rates: Array | None
    ) -> None:
        self._keras = keras
        self._jax = jax
        self._made = made
        self._variables = variables
        self._rates = rates
        self._t = 0

    def step(self, gradients: list[Array]) -> Stepped:
        ops = self._keras.ops
        with quiet(), _width(self._jax, wide=self._jax is not None):
            given = [ops.convert_to_tensor(g) for g in gradients]
            if self._rates is not None:
                self._made.learning_rate = float(self._rates[min(self._t, len(self._rates) - 1)])
            self._t += 1
            began = time.perf_counter()
            self._made.apply(given, self._variables)
            parameters = [np.array(ops.convert_to_numpy(each)) for each in self._variables]
            self.seconds = time.perf_counter() - began
            return Stepped(parameters, [np.array(ops.convert_to_numpy(each)) for each in given])

    def put(self, parameters: list[Array]) -> bool:
        with _width(self._jax, wide=self._jax is not None):
            for variable, value in zip(self._variables, parameters, strict=True):
                variable.assign(value)
        return True
