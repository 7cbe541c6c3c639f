"""Subjects of frameworks: PyTorch optimizers, optax transformations, Keras optimizers."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Settings
from adamas.checking.trials import Convention, Stepped, Trial, quiet
from adamas.extras import require

__all__ = ["Keras", "Optax", "Torch", "Triple", "is_of_keras"]

Array = NDArray[Any]


# -- PyTorch -------------------------------------------------------------------------------------


class Torch(Convention):
    """A torch.optim.Optimizer, or what has its step() and works on tensors with gradients."""

    name = "a PyTorch optimizer: step() on tensors with grad"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a trial of a new optimizer, on new parameters."""
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


class _OfJax(Convention):
    """What JAX's conventions share: how a trial starts."""

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a trial of what is made anew, with float64 where ``arrays`` have it."""
        jax = require("jax", "this subject", "jax", "JAX")
        keywords = self.keywords(settings)
        rate = self.arguments.names.get("lr")
        wide = any(a.dtype == np.float64 for a in arrays)
        with quiet(), _width(jax, wide=wide):
            if rates is not None and rate is not None:
                table = jax.numpy.asarray(rates)
                keywords[rate] = lambda count: table[count]
            made = self.subject.make(**keywords)
            return self._trial(jax, made, [jax.numpy.asarray(a) for a in arrays], wide=wide)

    def _trial(self, jax: Any, made: Any, params: list[Any], *, wide: bool) -> Trial:
        raise NotImplementedError


class Optax(_OfJax):
    """A gradient transformation: init(params), update(grads, state, params)."""

    name = "an optax transformation: update(grads, state, params)"

    def _trial(self, jax: Any, made: Any, params: list[Any], *, wide: bool) -> Trial:
        return _OptaxTrial(jax, made, params, wide=wide)


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


class Triple(_OfJax):
    """Three functions, as in jax.example_libraries: init, update of (i, grads, state), params."""

    name = "a triple (init, update, get_params): update(i, grads, state), i from 0"

    def _trial(self, jax: Any, made: Any, params: list[Any], *, wide: bool) -> Trial:
        return _TripleTrial(jax, made, params, wide=wide)


class _TripleTrial(Trial):
    def __init__(self, jax: Any, made: Any, params: list[Any], *, wide: bool) -> None:
        self._jax = jax
        init, self._update, self._params = made
        self._wide = wide
        self._state = init(params)
        self._i = 0
        leaves = jax.tree.leaves(self._state)
        #: Under jit the number of the step is an array as all else. It is one here, too, where JAX
        #: would compile anew for every number.
        self._number = jax.numpy.asarray if all(isinstance(x, jax.Array) for x in leaves) else int

    def step(self, gradients: list[Array]) -> Stepped:
        with quiet(), _width(self._jax, wide=self._wide):
            given = [self._jax.numpy.asarray(g) for g in gradients]
            number = self._number(self._i)
            began = time.perf_counter()
            self._state = self._update(number, given, self._state)
            found = self._jax.block_until_ready(self._params(self._state))
            self.seconds = time.perf_counter() - began
            self._i += 1
            return Stepped([np.array(p) for p in found], [np.array(g) for g in given])

    def put(self, parameters: list[Array]) -> bool:
        """Put values in place of those entries of the state that are the parameters now."""
        with _width(self._jax, wide=self._wide):
            leaves, built = self._jax.tree.flatten(self._state)
            for now, value in zip(self._params(self._state), parameters, strict=True):
                place = next((i for i, x in enumerate(leaves) if _is_same(x, now)), None)
                if place is None:
                    return False
                leaves[place] = self._jax.numpy.asarray(value)
            state = self._jax.tree.unflatten(built, leaves)
            found = self._params(state)
            if not all(map(_is_same, found, parameters)):
                return False
            self._state = state
        return True


def _is_same(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.array_equal(one, other, equal_nan=True)


def _width(jax: Any, *, wide: bool) -> AbstractContextManager[Any]:
    """Return a context in which JAX has float64, where that is asked for."""
    if not wide:
        return nullcontext()
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


class Keras(Convention):
    """A keras.optimizers.Optimizer, on variables of whatever backend Keras has."""

    name = "a Keras optimizer: apply(grads, variables)"

    def start(self, arrays: list[Array], settings: Settings, rates: Array | None = None) -> Trial:
        """Return a trial of a new optimizer, on new variables."""
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
