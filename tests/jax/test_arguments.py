"""Numbers and names that make no sense are refused where the functions of adamas.jax are called."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas.jax as ours
from tests.support.jax_cases import GRADIENTS, same, trained, tree

LR = 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_that_inject_hyperparams_rounded_to_half_precision_are_refused(dtype):
    p = jnp.ones(3, dtype)
    made = "1" if dtype == "bfloat16" else "0.999"
    message = (
        f"b1 has dtype {dtype}, which rounds 0.999 to {made} and 1e-8 to .*Give it in float32; "
        "optax.inject_hyperparams takes the dtype of the parameters unless it has "
        "hyperparam_dtype=jnp.float32."
    )
    with pytest.raises(ValueError, match=message):
        optax.inject_hyperparams(ours.adamw)(LR).init(p)
    with pytest.raises(ValueError, match=message):
        jax.jit(optax.inject_hyperparams(ours.adamw)(LR).init)(p)
    fixed = ("b1", "b2", "eps", "eps_root", "weight_decay")
    with pytest.raises(ValueError, match=f"learning_rate has dtype {dtype}"):
        optax.inject_hyperparams(ours.adamw, static_args=fixed)(LR).init(p)
    scheduled = ours.adam(lambda count: jnp.asarray(LR, dtype))
    state = scheduled.init(p)
    with pytest.raises(ValueError, match=rf"learning_rate\(count\) has dtype {dtype}"):
        scheduled.update(p, state)


def test_with_the_way_out_half_precision_is_stepped_at_the_rates_that_were_given():
    p = {"a": jnp.linspace(-1, 1, 5, dtype=jnp.bfloat16)}
    injected = optax.inject_hyperparams(ours.adamw, hyperparam_dtype=jnp.float32)(LR)
    rates = {
        name: float(np.float32(value))
        for name, value in {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4}.items()
    }
    plain = ours.adamw(float(np.float32(LR)), **rates)
    found, state = trained(injected, params=p, gradients=p)
    wanted, inner = trained(plain, params=p, gradients=p)
    same(found, wanted)
    same(state.inner_state, inner)
    assert np.isfinite(np.asarray(found["a"], np.float32)).all()


NUMBERS = [
    (lambda: ours.adam(0.1, b1=1.0), "b1 is 1.0, but a decay rate must be at least 0 and less "),
    (lambda: ours.adam(0.1, b2="0.9"), "b2 is '0.9', but it must be a number."),
    (lambda: ours.adam(None), "learning_rate is None, but it must be a number."),
    (lambda: ours.adam(float("nan")), "learning_rate is nan, but it must be finite."),
    (
        lambda: ours.adam(jnp.ones(2)),
        "learning_rate is Array([1., 1.], dtype=float32), but it must be ",
    ),
    (lambda: ours.adamw(0.1, weight_decay=None), "weight_decay is None, but it must be a number."),
    (lambda: ours.adam(0.1, eps=-1), "eps is -1.0, but it must be finite and at least 0."),
    (lambda: ours.rmsprop(0.1, decay=-0.1), "decay is -0.1, but a decay rate must be at least 0"),
    (
        lambda: ours.rmsprop(0.1, centered=True),
        "centered is True, but the rule divides by the root of the mean square, not of the "
        "variance. Leave centered out, or use optax.rmsprop.",
    ),
    (
        lambda: ours.adamw(0.1).update(jnp.ones(2), ours.adamw(0.1).init(jnp.ones(2))),
        "Weight decay needs the parameters, but params is None. "
        "Call update(gradients, state, params).",
    ),
    (lambda: ours.adam("1e-3"), "learning_rate is '1e-3', but it must be a number. It is text: "),
    (lambda: ours.adam(jnp.complex64(1)), "but it must be a number."),
    (lambda: ours.adam(np.ones(1)), "learning_rate is array([1.]), but it must be a number."),
    (lambda: ours.adam(1e-3, (0.9, 0.999)), "b1 is (0.9, 0.999), but it must be a number."),
    (
        lambda: ours.adam(1e-3, b1=lambda count: 0.9),
        "b1 is a function, but only learning_rate and weight_decay are asked for at each step. Use "
        "optax.inject_hyperparams to schedule b1.",
    ),
    (lambda: ours.adam(1e-3, eps=float("inf")), "eps is inf, but it must be finite and at least 0"),
    (lambda: ours.adam(1e-3, nesterov="no"), "nesterov is 'no', but it must be True or False."),
    (lambda: ours.rmsprop(1e-3, 0.9, bias_correction=1), "bias_correction is 1, but it must be "),
    (
        lambda: ours.amsgrad(1e-3, mu_dtype="int8"),
        "mu_dtype is 'int8', but moments are floating-point numbers. Give for example ",
    ),
    (
        lambda: ours.adam(1e-3, mu_dtype="bf16"),
        "mu_dtype is 'bf16', which is no dtype of JAX. Give for example \"bfloat16\"; ",
    ),
    (lambda: ours.sgd(1e-3, 0.9, accumulator_dtype=np.longdouble), "which is no dtype of JAX."),
    (
        lambda: ours.rmsprop(1e-3, initial_scale=-1.0),
        "initial_scale is -1.0, but it must be finite and at least 0.",
    ),
    (
        lambda: optax.inject_hyperparams(ours.rmsprop)(1e-3, initial_scale=-1.0).init(tree()),
        "initial_scale is -1.0, but it must be finite and at least 0.",
    ),
    (
        lambda: ours.sgd(1e-3, 0.9, accumulator_dtype=jnp.int32),
        "but moments are floating-point numbers.",
    ),
    (
        lambda: ours.adam(1e-3, state="8bit", seed=jnp.float32(1.5)),
        "seed has dtype float32 and shape (), but it must be a whole number.",
    ),
    (lambda: ours.adam(1e-3, state="8bits"), "state is '8bits', but it must be one of "),
    (lambda: ours.adam(1e-3, state=["8bit"]), 'but it must be one of "float32", '),
    (
        lambda: ours.adamw(1e-3, weigth_decay=0.1),
        "adamw() has the unknown option 'weigth_decay'. Did you mean 'weight_decay'? Possible are ",
    ),
    (
        lambda: ours.nadamw(1e-3, weigth_decay=0.1),
        "nadamw() has the unknown option 'weigth_decay'. Did you mean 'weight_decay'?",
    ),
    (
        lambda: ours.adam(lr=1e-3),
        "adam() has the unknown option 'lr'. Did you mean 'learning_rate'?",
    ),
    (
        lambda: ours.adam(1e-3, betas=(0.9, 0.999)),
        "adam() has the unknown option 'betas'. Did you mean 'b1'?",
    ),
    (ours.nadam, "nadam(): missing a required argument: 'learning_rate'."),
    (lambda: ours.sgd(1, 0.9, True, None, 5), "sgd(): too many positional arguments."),
    (
        lambda: ours.adam(jnp.float32("nan")).init(tree()),
        "learning_rate is nan, but it must be finite.",
    ),
    (
        lambda: optax.inject_hyperparams(ours.adam)(1e-3, b2=1.0).init(tree()),
        "b2 is 1.0, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        lambda: ours.rmsprop(1e-3, decay=jnp.float32(1.5)).init(tree()),
        "decay is 1.5, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        lambda: ours.rmsprop(1e-3, momentum=jnp.float32(-1)).init(tree()),
        "momentum is -1.0, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        lambda: ours.sgd(1e-3, momentum=jnp.float32(2)).init(tree()),
        "momentum is 2.0, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        lambda: ours.sgd(lambda count: "fast").update(
            tree(GRADIENTS), ours.sgd(lambda c: 1).init(tree())
        ),
        "learning_rate(count) is 'fast', but it must be a number.",
    ),
]


@pytest.mark.parametrize(("call", "message"), NUMBERS, ids=range(len(NUMBERS)))
def test_numbers_and_names_that_make_no_sense_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_forms_may_stand_in_a_list():
    pair = ["8bit", "float32"]
    same(ours.adam(LR, state=pair).init(tree()), ours.adam(LR, state=tuple(pair)).init(tree()))
    programs = [
        str(
            jax.make_jaxpr(ours.adam(LR, state=each).update)(
                tree(), ours.adam(LR, state=each).init(tree())
            )
        )
        for each in (pair, tuple(pair))
    ]
    assert programs[0] == programs[1]
