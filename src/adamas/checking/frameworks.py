"""Subjects of frameworks: PyTorch optimizers, optax transformations, Keras optimizers."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.trials import Trial
from adamas.extras import require

__all__ = ["Keras", "Optax", "Torch", "Triple", "is_of_keras"]

Array = NDArray[Any]


# -- PyTorch -------------------------------------------------------------------------------------


class Torch(Trial):
    """A torch.optim.Optimizer, or what has its step() and works on tensors with gradients."""

    name = "a PyTorch optimizer: step() on tensors with grad"

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._torch = torch = require("torch", "this subject", "torch", "torch")
        self._tensors = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays]
        self.made = self.convention.subject.make(self._tensors, **keywords)
        if not hasattr(self.made, "step"):
            raise TypeError(f"what it makes ({type(self.made).__name__}) has no step()")

    def _give(self, gradients: list[Array]) -> list[Any]:
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = self._torch.from_numpy(np.array(gradient)).to(tensor.dtype)
        return [tensor.grad for tensor in self._tensors]

    def _set_rate(self, rate: float) -> None:
        groups = getattr(self.made, "param_groups", None)
        for group in groups if isinstance(groups, list) else ():
            if self._torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _advance(self, given: list[Any]) -> None:  # noqa: ARG002 - the tensors have them
        self.made.step()

    def _parameters(self) -> list[Array]:
        return list(map(self._array, self._tensors))

    def _array(self, value: Any) -> Array:
        return value.detach().cpu().numpy().copy()

    def _replace(self, parameters: list[Array]) -> bool:
        with self._torch.no_grad():
            for tensor, value in zip(self._tensors, parameters, strict=True):
                tensor.copy_(self._torch.from_numpy(np.array(value)))
        return True


# -- JAX -----------------------------------------------------------------------------------------


class _OfJax(Trial):
    """What is made of functions: with float64 where the arrays have it."""

    def _around(self) -> AbstractContextManager[Any]:
        return _float64(self.wide)

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._jax = jax = require("jax", "this subject", "jax", "JAX")
        rate = self.convention.arguments.names.get("lr")
        if self.rates is not None and rate is not None:
            table = jax.numpy.asarray(self.rates)
            keywords = {**keywords, rate: lambda count: table[count]}
        self._init(self.convention.subject.make(**keywords), list(map(jax.numpy.asarray, arrays)))

    def _init(self, made: Any, params: list[Any]) -> None:
        raise NotImplementedError

    def _give(self, gradients: list[Array]) -> list[Any]:
        return list(map(self._jax.numpy.asarray, gradients))


class Optax(_OfJax):
    """A gradient transformation: init(params), update(grads, state, params)."""

    name = "an optax transformation: update(grads, state, params)"

    def _init(self, made: Any, params: list[Any]) -> None:
        self._update, self._params, self._state = made.update, params, made.init(params)

    def _advance(self, given: list[Any]) -> None:
        updates, self._state = self._update(given, self._state, self._params)
        # As optax.apply_updates does it.
        self._params = [
            self._jax.numpy.asarray(p + u).astype(p.dtype)
            for p, u in zip(self._params, updates, strict=True)
        ]
        self._jax.block_until_ready(self._params)

    def _parameters(self) -> list[Array]:
        return list(map(self._array, self._params))

    def _replace(self, parameters: list[Array]) -> bool:
        self._params = list(map(self._jax.numpy.asarray, parameters))
        return True


class Triple(_OfJax):
    """Three functions, as in jax.example_libraries: init, update of (i, grads, state), params."""

    name = "a triple (init, update, get_params): update(i, grads, state), i from 0"

    def _init(self, made: Any, params: list[Any]) -> None:
        init, self._update, self._params = made
        self._state = init(params)
        leaves = self._jax.tree.leaves(self._state)
        #: Under jit the number of the step is an array as all else. It is one here, too, where JAX
        #: would compile anew for every number.
        traced = all(isinstance(each, self._jax.Array) for each in leaves)
        self._number = self._jax.numpy.asarray if traced else int

    def _advance(self, given: list[Any]) -> None:
        self._state = self._update(self._number(self.t - 1), given, self._state)
        self._found = self._jax.block_until_ready(self._params(self._state))

    def _parameters(self) -> list[Array]:
        return list(map(self._array, self._found))

    def _replace(self, parameters: list[Array]) -> bool:
        """Put values in place of those entries of the state that are the parameters now."""
        leaves, built = self._jax.tree.flatten(self._state)
        for now, value in zip(self._params(self._state), parameters, strict=True):
            place = next((i for i, each in enumerate(leaves) if _is_same(each, now)), None)
            if place is None:
                return False
            leaves[place] = self._jax.numpy.asarray(value)
        state = self._jax.tree.unflatten(built, leaves)
        if not all(map(_is_same, self._params(state), parameters)):
            return False
        self._state = state
        return True


def _is_same(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.array_equal(one, other, equal_nan=True)


def _float64(wide: bool) -> AbstractContextManager[Any]:
    """Return a context in which JAX has float64, where that is asked for."""
    if not wide:
        return nullcontext()
    jax = require("jax", "this subject", "jax", "JAX")
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return import_module("jax.experimental").enable_x64()  # before JAX 0.8


# -- Keras ---------------------------------------------------------------------------------------


def is_of_keras(make: Any) -> bool:
    """Return whether ``make`` is a class of Keras' optimizers, which has loaded Keras then."""
    keras = sys.modules.get("keras")
    optimizers = getattr(keras, "optimizers", None)
    return (
        optimizers is not None and isinstance(make, type) and issubclass(make, optimizers.Optimizer)
    )


class Keras(Trial):
    """A keras.optimizers.Optimizer, on variables of whatever backend Keras has."""

    name = "a Keras optimizer: apply(grads, variables)"

    def _around(self) -> AbstractContextManager[Any]:
        # Without this, float64 variables of the JAX backend hold float32.
        self._keras = require("keras", "this subject", "test", "Keras")
        return _float64(self.wide and self._keras.backend.backend() == "jax")

    def _begin(self, arrays: list[Array], keywords: dict[str, Any]) -> None:
        self._variables = [self._keras.Variable(a, dtype=str(a.dtype)) for a in arrays]
        self.made = self.convention.subject.make(**keywords)
        self.made.build(self._variables)

    def _give(self, gradients: list[Array]) -> list[Any]:
        return list(map(self._keras.ops.convert_to_tensor, gradients))

    def _set_rate(self, rate: float) -> None:
        self.made.learning_rate = rate

    def _advance(self, given: list[Any]) -> None:
        self.made.apply(given, self._variables)
        # What JAX has not done yet is part of the step.
        self._found = list(map(self._array, self._variables))

    def _parameters(self) -> list[Array]:
        return self._found

    def _array(self, value: Any) -> Array:
        return np.array(self._keras.ops.convert_to_numpy(value))

    def _replace(self, parameters: list[Array]) -> bool:
        for variable, value in zip(self._variables, parameters, strict=True):
            variable.assign(value)
        return True
