"""Subjects in plain Python: functions, objects with a method that steps, and boxes with gradients.

What a function or method is given goes by the roles of its arguments; where the new parameters are
found afterwards is seen at the first step.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.roles import Roles
from adamas.checking.subjects import Arguments, Subject, settings_in, signature_of
from adamas.checking.trials import Convention, Trial

__all__ = [
    "CONTAINERS",
    "WAYS",
    "Boxes",
    "Contained",
    "Function",
    "Object",
    "configured",
    "fill",
    "packed",
    "unpacked",
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
    """Return the arrays in a container."""
    if container.endswith("list"):
        return list(arrays)
    if container == "dict":
        return {f"p{i}": each for i, each in enumerate(arrays)}
    (alone,) = arrays
    return alone


def _leaves(tree: Any, container: str) -> list[Any] | None:
    if container.endswith("list"):
        return list(tree) if isinstance(tree, (list, tuple)) else None
    if container == "dict":
        return list(tree.values()) if isinstance(tree, Mapping) else None
    return None if tree is None or isinstance(tree, (list, tuple, Mapping)) else [tree]


def unpacked(tree: Any, like: Sequence[Array], container: str) -> list[Array] | None:
    """Return copies of the arrays in ``tree``; None where it is not built as the parameters."""
    leaves = _leaves(tree, container)
    if leaves is None or len(leaves) != len(like):
        return None
    try:
        arrays = [np.array(x.detach().cpu() if hasattr(x, "detach") else x) for x in leaves]
    except (TypeError, ValueError):
        return None
    pairs = zip(arrays, like, strict=True)
    fits = all(a.shape == given.shape and a.dtype.kind == "f" for a, given in pairs)
    return arrays if fits else None


def fill(tree: Any, values: Sequence[Array], container: str) -> bool:
    """Put ``values`` into the arrays in ``tree``; return whether that is possible."""
    leaves = _leaves(tree, container)
    if leaves is None:
        return False
    for leaf, value in zip(leaves, values, strict=True):
        if not isinstance(leaf, np.ndarray) or not leaf.flags.writeable:
            return False
        np.copyto(leaf, value)
    return True


class Contained(Convention):
    """A convention whose parameters stand in a container; its arguments have roles."""

    def __init__(
        self,
        trial: type[Trial],
        subject: Subject,
        arguments: Arguments,
        roles: Roles,
        container: str,
    ) -> None:
        super().__init__(trial, subject, arguments)
        self.roles, self.container = roles, container
        self.arrays = 1 if container == "array" else 2
        self.mixes_shapes = container != "even list"
        self.takes = frozenset(roles)
        self.name = self.name.format(roles=", ".join(roles), what=CONTAINERS[container])
        #: Where the new parameters are found; None before the first step.
        self.place: str | None = None


# -- functions and objects on NumPy arrays -------------------------------------------------------


class _CallTrial(Trial):
    """A trial of a function or of an object's method, ``function``."""

    function: Any
    state: Any = None

    def hold(self, arrays: list[Array]) -> Any:
        """Return the arrays as the subject is to have them."""
        self._container, self._roles = self.convention.container, self.convention.roles
        self._like = [a.copy() for a in arrays]
        self._keywords: dict[str, Any] = {}
        #: What is handed in again, by argument.
        self.memory: dict[str, Any] = {
            name: packed([np.zeros_like(a) for a in arrays], self._container)
            for name in self._named("memory")
        }
        self._held = packed(arrays, self._container)
        return self._held

    def _named(self, *roles: str) -> list[str]:
        return [name for name, role in self._roles.items() if role in roles]

    def _give(self, gradients: list[Array]) -> list[Any]:
        self._old = self._read(self._held) or self._like
        given = packed(gradients, self._container)
        values = {"params": self._held, "grads": given, "state": self.state, "t": self.t}
        if self._named("pairs"):
            values["pairs"] = list(zip(given, self._held, strict=True))
        self._given = {n: values[role] for n, role in self._roles.items() if role in values}
        self._given |= self.memory
        return gradients

    def _advance(self, given: list[Any]) -> None:  # noqa: ARG002 - it is among the arguments
        self._returned = self.function(**self._given, **self._keywords)

    def _parameters(self) -> list[Array]:
        new, rest = self._parted(self._returned)
        self._remember(rest)
        convention, old = self.convention, self._old
        place = convention.place or self._find(old, new)
        finite = new is None or all(np.isfinite(each).all() for each in new)
        if finite or self._named("params"):
            convention.place = place  # an update alone that is not finite shows no sign
        if place == "in place":
            return self._read(self._held) or old
        if place == "returned" and new is not None:
            if self._named("params"):
                self._hold_copies(new)
            return new
        if place in ("updates", "subtracted") and new is not None:
            sign = 1 if place == "updates" else -1
            added = [a + sign * b for a, b in zip(old, new, strict=True)]
            self._hold_copies(added)
            return added
        found = self._read(getattr(self.made, place, None))
        if found is None:
            raise TypeError("the new parameters are nowhere to be found after the step")
        return found

    def _read(self, tree: Any) -> list[Array] | None:
        return unpacked(tree, self._like, self._container)

    def _hold_copies(self, arrays: list[Array]) -> None:
        self._held = packed([each.copy() for each in arrays], self._container)

    def _parted(self, returned: Any) -> tuple[list[Array] | None, tuple[Any, ...]]:
        """Return the parameters (or updates) in what came back, and what came with them."""
        alone = self._read(returned)
        # Parameters and something else may look like two parameters.
        first = returned[0] if isinstance(returned, tuple) and returned else None
        if alone is not None and not isinstance(first, (list, Mapping)):
            return alone, ()
        several = tuple if self._container.endswith("list") else (tuple, list)
        if isinstance(returned, several) and returned:
            found = list(map(self._read, returned))
            place = next((i for i, each in enumerate(found) if each is not None), 0)
            return found[place], (*returned[:place], *returned[place + 1 :])
        return None, ()

    def _remember(self, rest: tuple[Any, ...]) -> None:
        kept, fed = self._named("memory", "t"), self._named("fed")
        if not rest:
            return
        if fed:
            # As many as come back, in the order of the signature; one takes all.
            parts = rest if len(fed) > 1 or len(rest) == 1 else (rest,)
            self.memory.update(zip(fed, parts, strict=False))
        elif self._named("state"):
            self.state = rest[0] if len(rest) == 1 else rest
        elif len(rest) <= len(kept):
            names = kept if len(rest) == len(kept) else self._named("memory")
            self.memory.update(zip(names, rest, strict=False))

    def _find(self, old: list[Array], new: list[Array] | None) -> str:
        held = self._read(self._held) or old
        if any(not np.array_equal(a, b) for a, b in zip(held, old, strict=True)):
            return "in place"
        if new is not None:
            name = getattr(self.function, "__name__", "")
            size = max(float(np.max(np.abs(each), initial=0.0)) for each in new)
            if not size < 50.0 and "get_update" not in name:
                return "returned"
            # Who gives no parameters applies the update, with the sign that goes downhill: the
            # first gradients are positive.
            open_sign = not self._named("params") or name.endswith("update")
            uphill = all((each > 0).all() for each in new)
            return "subtracted" if open_sign and uphill and "get_updates" not in name else "updates"
        for name in ("params", "parameters", "weights", "theta", "w", "x", "values"):
            if self._read(getattr(self.made, name, None)) is not None:
                return name
        return "in place"

    def _replace(self, parameters: list[Array]) -> bool:
        place = self.convention.place
        if place in ("updates", "subtracted") or (place == "returned" and self._named("params")):
            self._hold_copies(parameters)
            return True
        if place == "returned":
            return False
        tree = self._held if place in ("in place", None) else getattr(self.made, place, None)
        return fill(tree, parameters, self._container)


class _FunctionTrial(_CallTrial):
    name = "a function ({roles}) of {what}"

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        held, convention = self.hold(arrays), self.convention
        self.function, self._keywords = convention.subject.make, keywords
        make_state = getattr(self.function, "init", None)
        self.state = {} if convention.filled else None
        if callable(make_state):
            self.state = make_state(held)
        if convention.config is not None:
            standing = convention.standing(self.settings)
            self.memory[convention.config] = convention.arguments.keywords(standing)
            self._keywords = dict(convention.subject.options)

    def _set_rate(self, rate: float) -> None:
        name = self.convention.arguments.names.get("lr")
        if name is not None:
            self._keywords = {**self._keywords, name: rate}


class Function(Contained):
    """A plain function (params, grads, state) → what comes next.

    Its state is None first, or a dict where it is ``filled``. Where ``config`` is one of its
    arguments, that holds the settings: it comes back with state in it and is fed to the next step.
    """

    def __init__(
        self,
        subject: Subject,
        arguments: Arguments,
        roles: Roles,
        container: str,
        *,
        filled: bool = False,
        config: str | None = None,
    ) -> None:
        super().__init__(_FunctionTrial, subject, arguments, roles, container)
        self.filled, self.config = filled, config
        fed = [name for name, role in roles.items() if role == "fed"]
        if fed:
            self.name += f", {' and '.join(fed)} fed back from what it returns"
        if config is not None:
            self.name += f", {', '.join(arguments.names.values())} set in {config}"


def configured(plain: Function) -> Function | None:
    """Return the convention in which settings are set in the dict that comes back.

    None where it has none, and where the argument is a dict by default, which could outlive a run.
    """
    subject, arguments = plain.subject, plain.arguments
    fed = [name for name, role in plain.roles.items() if role == "fed"]
    if len(fed) != 1 or arguments.names:
        return None
    if inspect.signature(subject.make).parameters[fed[0]].default is not None:
        return None
    try:
        trial: Any = plain.start([np.full(4, 100.0)] * plain.arrays, arguments.defaults)
        trial.step([np.full(4, 0.5) for _ in range(plain.arrays)])
        shown = trial.memory.get(fed[0])
    except Exception:
        return None  # As a plain function it is told what is wrong.
    found = settings_in(shown if isinstance(shown, Mapping) else {})
    if not found.names:
        return None
    arguments = dataclasses.replace(arguments, names=found.names, defaults=found.defaults)
    return Function(subject, arguments, plain.roles, plain.container, config=fed[0])


WAYS = {
    "params": "params as {}",
    "nothing": "no parameters",
    "shape": "a shape",
    "size": "a size",
}


def way_of_making(arguments: Arguments, signature: inspect.Signature) -> str | None:
    """Return what a class is given besides its settings; None where that cannot be told."""
    if not arguments.others:
        return "nothing" if _optional(signature) is None else "params"
    other, *more = arguments.others
    if more:
        return None
    if other in ("shape", "param_shape"):
        return "shape"
    if other in ("size", "n", "dim", "n_params", "num_params", "dimension", "ndim"):
        return "size"
    return "params"


def _optional(signature: inspect.Signature | None) -> str | None:
    """Return the argument that parameters can be given as but need not be."""
    parameters = {} if signature is None else signature.parameters
    names = [name for name, p in parameters.items() if p.default is None]
    return next((n for n in names if n in ("params", "parameters", "weights")), None)


class _ObjectTrial(_CallTrial):
    name = "an object with {{method}}({roles}) on {what}"

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self.made = self.convention.make(self.hold(arrays), keywords)
        self.function = getattr(self.made, self.convention.method)


class Object(Contained):
    """A class whose objects make a step by one of their methods, made in one of ``WAYS``."""

    def __init__(
        self,
        subject: Subject,
        arguments: Arguments,
        way: str,
        container: str,
        method: str = "",
        roles: Roles | None = None,
    ) -> None:
        super().__init__(_ObjectTrial, subject, arguments, roles or {}, container)
        self.way, self.method = way, method
        self.takes = frozenset()
        self.name = self.name.format(method=method)

    def make(self, held: Any, keywords: dict[str, Any]) -> Any:
        """Return a new object for the parameters ``held``."""
        if self.way == "nothing":
            return self.subject.make(**keywords)
        optional = _optional(signature_of(self.subject.make))
        name = self.arguments.others[0] if self.arguments.others else optional or ""
        given = held if self.way == "params" else getattr(held, self.way)
        return self.subject.make(**{name: given}, **keywords)


# -- step() on parameters that carry their gradients ---------------------------------------------


class _Box:
    """A parameter with ``data`` and ``grad``, as small autograd libraries have it."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self.grad = np.zeros_like(data)


class _BoxTrial(Trial):
    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._boxes = [_Box(a) for a in arrays]
        name = self.convention.arguments.others[0]
        self.made = self.convention.subject.make(**{name: self._boxes}, **keywords)

    def _give(self, gradients: list[Array]) -> list[Any]:
        for box, gradient in zip(self._boxes, gradients, strict=True):
            box.grad = gradient
        return gradients

    def _advance(self, given: list[Any]) -> None:  # noqa: ARG002 - the boxes have them
        getattr(self.made, self.convention.method)()

    def _parameters(self) -> list[Array]:
        return [np.array(box.data) for box in self._boxes]

    def _replace(self, parameters: list[Array]) -> bool:
        for box, value in zip(self._boxes, parameters, strict=True):
            np.copyto(box.data, value)
        return True


class Boxes(Convention):
    """An object with step(), on parameters with ``data`` and ``grad`` that are NumPy arrays."""

    def __init__(self, subject: Subject, arguments: Arguments, method: str) -> None:
        super().__init__(_BoxTrial, subject, arguments)
        self.method = method
        self.name = f"an object with {method}() on parameters with data and grad"
