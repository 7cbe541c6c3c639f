"""Subjects in plain Python: functions, objects with a method that steps, and boxes with gradients.

What a function or method is given goes by the names of its arguments; where the new parameters are
found afterwards is seen at the first step.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.checking.subjects import Arguments, Subject, is_setting, roles_of
from adamas.checking.trials import Convention, Stepped, Trial, quiet

__all__ = [
    "CONTAINERS",
    "WAYS",
    "Boxes",
    "Function",
    "Object",
    "roles_of_function",
    "roles_of_method",
    "way_of_making",
]

Array = NDArray[Any]

#: How parameters may be handed over, in the order in which that is tried.
CONTAINERS = {
    "list": "a list of arrays",
    "even list": "a list of arrays of one shape",
    "array": "one array",
    "dict": "a dict of arrays",
}


# -- containers ----------------------------------------------------------------------------------


def packed(arrays: Sequence[Any], container: str) -> Any:
    if container.endswith("list"):
        return list(arrays)
    if container == "dict":
        return {f"p{i}": each for i, each in enumerate(arrays)}
    (alone,) = arrays
    return alone


def unpacked(tree: Any, like: Sequence[Array], container: str) -> list[Array] | None:
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
            elif role == "memory" or name in memory:
                given[name] = memory[name]
        return given


class _NumPyTrial(Trial):
    """A trial of a function or of an object's method."""

    def __init__(
        self,
        call: _Call,
        function: Callable[..., Any],
        arrays: list[Array],
        held: Any,
        *,
        owner: Any = None,
        state: Any = None,
        fed: Mapping[str, Any] | None = None,
        keywords: Callable[[int], dict[str, Any]] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._call = call
        self._function = function
        self._like = arrays
        self._held = held
        self._owner = owner
        self._state = state
        self._keywords = keywords or (lambda _: {})
        self._before = before or (lambda _: None)
        self._memory: dict[str, Any] = {
            name: packed([np.zeros_like(a) for a in arrays], call.container)
            for name, role in call.roles.items()
            if role == "memory"
        }
        self._memory |= fed or {}
        self._t = 0

    @property
    def fed(self) -> dict[str, Any]:
        """What the last step returned beside the parameters, by the arguments it is fed back to."""
        return {n: v for n, v in self._memory.items() if self._call.roles[n] == "fed"}

    def step(self, gradients: list[Array]) -> Stepped:
        self._t += 1
        call = self._call
        old = unpacked(self._held, self._like, call.container) or self._like
        trees = self._held, packed(gradients, call.container)
        given = call.arguments(*trees, self._state, self._memory, self._t)
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
        alone = unpacked(returned, self._like, self._call.container)
        if alone is not None and not self._is_pair(returned):
            return alone, ()
        several = tuple if self._call.container.endswith("list") else (tuple, list)
        if isinstance(returned, several) and returned:
            found = [unpacked(each, self._like, self._call.container) for each in returned]
            place = next((i for i, each in enumerate(found) if each is not None), 0)
            return found[place], (*returned[:place], *returned[place + 1 :])
        return None, ()

    def _is_pair(self, returned: Any) -> bool:
        """Return whether a tuple is parameters and something else, though it would fit."""
        return isinstance(returned, tuple) and isinstance(returned[0], (list, Mapping))

    def _remember(self, rest: tuple[Any, ...]) -> None:
        if not rest:
            return
        kept = [name for name, role in self._call.roles.items() if role in ("memory", "t")]
        fed = [name for name, role in self._call.roles.items() if role == "fed"]
        if fed:
            # As many as come back, in the order of the signature; one takes all.
            parts = rest if len(fed) > 1 or len(rest) == 1 else (rest,)
            self._memory.update(zip(fed, parts, strict=False))
        elif "state" in self._call.roles.values():
            self._state = rest[0] if len(rest) == 1 else rest
        elif len(rest) <= len(kept):
            memories = [n for n in kept if self._call.roles[n] == "memory"]
            names = kept if len(rest) == len(kept) else memories
            self._memory.update(zip(names, rest, strict=False))

    def _parameters(self, old: list[Array], new: list[Array] | None) -> list[Array]:
        call = self._call
        place = call.place or self._find(old, new)
        finite = new is None or all(np.isfinite(each).all() for each in new)
        if finite or "params" in call.roles.values():
            call.place = place  # an update alone that is not finite shows no sign
        if place == "in place":
            return unpacked(self._held, self._like, call.container) or old
        if place == "returned" and new is not None:
            if "params" in call.roles.values():
                self._held = packed([each.copy() for each in new], call.container)
            return new
        if place in ("updates", "subtracted") and new is not None:
            sign = 1 if place == "updates" else -1
            added = [a + sign * b for a, b in zip(old, new, strict=True)]
            self._held = packed([each.copy() for each in added], call.container)
            return added
        found = unpacked(getattr(self._owner, place, None), self._like, call.container)
        if found is None:
            raise TypeError("the new parameters are nowhere to be found after the step")
        return found

    def _find(self, old: list[Array], new: list[Array] | None) -> str:
        held = unpacked(self._held, self._like, self._call.container) or old
        if any(not np.array_equal(a, b) for a, b in zip(held, old, strict=True)):
            return "in place"
        if new is not None:
            name = getattr(self._function, "__name__", "")
            size = max(float(np.max(np.abs(each), initial=0.0)) for each in new)
            if not size < 50.0 and "get_update" not in name:
                return "returned"
            # Who gives no parameters applies the update, with the sign that goes downhill: the
            # first gradients are positive.
            open_sign = "params" not in self._call.roles.values() or name.endswith("update")
            uphill = all((each > 0).all() for each in new)
            return "subtracted" if open_sign and uphill and "get_updates" not in name else "updates"
        for name in ("params", "parameters", "weights", "theta", "w", "x", "values"):
            value = getattr(self._owner, name, None)
            if unpacked(value, self._like, self._call.container) is not None:
                return name
        return "in place"

    def put(self, parameters: list[Array]) -> bool:
        place = self._call.place
        tree = self._held if place != "returned" else None
        if place in ("updates", "subtracted") or (
            place == "returned" and "params" in self._call.roles.values()
        ):
            self._held = packed([p.copy() for p in parameters], self._call.container)
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


class Function(Convention):
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
        self.arrays = 1 if container == "array" else 2
        self.mixes_shapes = container != "even list"
        self._first = first
        self._call = _Call(roles, container)
        self.takes = frozenset(roles)
        self.name = f"a function ({', '.join(roles)}) of {CONTAINERS[container]}"
        fed = [name for name, role in roles.items() if role == "fed"]
        if fed:
            self.name += f", {' and '.join(fed)} fed back from what it returns"

    def first_fed(self, settings: Settings) -> dict[str, Any]:  # noqa: ARG002 - of those who need it
        """Return what is fed to the first step; nothing leaves the defaults."""
        return {}

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a trial whose state is new."""
        function = self.subject.make
        make_state = getattr(function, "init", None)
        held = packed([np.array(a, order="K") for a in arrays], self._call.container)
        state = None if self._first == "none" else {}
        if callable(make_state):
            state = make_state(held)
        fixed = self.keywords(settings)
        rate = self.arguments.names.get("lr")

        def keywords(t: int) -> dict[str, Any]:
            if rates is None or rate is None or t > len(rates):
                return fixed
            return {**fixed, rate: float(rates[t - 1])}

        fed = self.first_fed(settings)
        return _NumPyTrial(
            self._call, function, arrays, held, state=state, fed=fed, keywords=keywords
        )


WAYS = {
    "params": "params as {}",
    "nothing": "no parameters",
    "shape": "a shape",
    "size": "a size",
}


def way_of_making(arguments: Arguments, signature: inspect.Signature) -> str | None:
    """Return what a class is given besides its settings; None where that cannot be told."""
    others = arguments.others
    if not others:
        for name, p in signature.parameters.items():
            if name in ("params", "parameters", "weights") and p.default is None:
                return "params"
        return "nothing"
    other, *more = others
    if more:
        return None
    if other in ("shape", "param_shape"):
        return "shape"
    if other in ("size", "n", "dim", "n_params", "num_params", "dimension", "ndim"):
        return "size"
    return "params"


class Object(Convention):
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
        self.arrays = 1 if container == "array" else 2
        self.mixes_shapes = container != "even list"
        self._method = method
        self._call = _Call(roles or {}, container)
        told = ", ".join(roles or {})
        self.name = f"an object with {method}({told}) on {CONTAINERS[container]}"

    def pack(self, arrays: list[Array]) -> Any:
        """Return the arrays in the container."""
        return packed(arrays, self.container)

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
        """Return a trial of a new object."""
        held = self.pack([np.array(a, order="K") for a in arrays])
        with quiet():
            made = self.make(held, settings)
        rate = self.arguments.names.get("lr")

        def before(t: int) -> None:
            if rates is not None and rate is not None and hasattr(made, rate):
                setattr(made, rate, float(rates[min(t, len(rates)) - 1]))

        method = getattr(made, self._method)
        return _NumPyTrial(self._call, method, arrays, held, owner=made, before=before)


def roles_of_function(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the role of each argument of a function that makes a step; None where it makes none.

    Where the names say nothing, three arguments that are needed are params, grads and state. Where
    none is for the state, those that begin as None or empty are fed with what a step returns.
    """
    roles = roles_of(signature)
    if roles is not None and {"params", "pairs"} & set(roles.values()):
        if not {"state", "memory"} & set(roles.values()):
            roles |= {name: "fed" for name in _begin_empty(signature) if name not in roles}
        return roles
    needed = _needed(signature)
    if roles is None and len(needed) == 3:
        return dict(zip(needed, ("params", "grads", "state"), strict=True))
    return None


def _begin_empty(signature: inspect.Signature) -> list[str]:
    """Return the arguments that may hold a state: those that are None or empty by default."""
    return [
        name
        for name, p in signature.parameters.items()
        if (p.default is None or (isinstance(p.default, (dict, list)) and not p.default))
        and not is_setting(name)
    ]


def roles_of_method(signature: inspect.Signature) -> dict[str, str] | None:
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


class Boxes(Convention):
    """An object with step(), on parameters with ``data`` and ``grad`` that are NumPy arrays."""

    def __init__(self, subject: Subject, arguments: Arguments, method: str) -> None:
        super().__init__(subject, arguments)
        self._method = method
        self.name = f"an object with {method}() on parameters with data and grad"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a trial of a new object, on new boxes."""
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
