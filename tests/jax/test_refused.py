"""What adamas.jax is given and cannot take is refused: by its path, by what it is, with a way out.

And what optax takes is taken: masks that are modules, gradients that are integers.
"""

from __future__ import annotations

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas.jax as ours
from tests.support.jax_cases import GRADIENTS, PARAMS, same, trained, tree

LR = 0.1


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """A tree that can be called, as modules of Equinox are."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, x):
        raise AssertionError("a module was called for a mask")

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("a"), self.a), (key("b"), self.b)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


# ── masks ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("amount", [0.5, lambda count: 0.5], ids=["fixed", "schedule"])
def test_a_module_that_can_be_called_is_a_mask_by_its_leaves(amount):
    params, gradients = (
        Module(PARAMS["a"], PARAMS["b"]["c"]),
        Module(GRADIENTS["a"], GRADIENTS["b"]["c"]),
    )
    masked = ours.adamw(LR, weight_decay=amount, mask=Module(True, False))
    found, state = trained(masked, params=params, gradients=gradients)
    decayed, _ = trained(ours.adamw(LR, weight_decay=amount), params=params, gradients=gradients)
    plain, _ = trained(ours.adam(LR), params=params, gradients=gradients)
    same((found.a, found.b), (decayed.a, plain.b))
    theirs = optax.adamw(LR, weight_decay=amount, mask=Module(True, False)).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(theirs)


def test_a_function_without_leaves_is_asked_for_its_mask():
    mask = jax.tree_util.Partial(lambda tree: jax.tree.map(lambda x: x.ndim == 1, tree))
    found, _ = trained(ours.adamw(LR, weight_decay=0.5, mask=mask))
    same(found["a"], trained(ours.adamw(LR, weight_decay=0.5))[0]["a"])
    same(found["b"], trained(ours.adam(LR))[0]["b"])


def masked(mask):
    return functools.partial(ours.adamw(LR, mask=mask).init, tree())


def from_tracer(params):
    return {"a": jnp.sum(params["a"]) > 0, "b": True}


MASKS = [
    ({"a": True}, "The tree of arrays has ['b'] besides at the root, compared with the mask. A "),
    (
        {"a": True, "b": {"c": True, "d": False}},
        "The tree of arrays lacks ['d'] at ['b'], compared with the mask. A mask is a tree of "
        "booleans like the parameters, or a prefix of it, or a function that makes one of them.",
    ),
    (
        lambda _: [True],
        "The tree of arrays has a dict at the root, where what the mask returned has a list.",
    ),
    (
        {"a": {"x": True}, "b": True},
        "The tree of arrays has an array at ['a'], where the mask has ",
    ),
    ({"a": "no", "b": True}, "The mask has 'no' at ['a'], but it must be True or False."),
    (
        {"a": np.ones(2, bool), "b": True},
        "The mask has an array of shape (2,) and dtype bool at ['a'], but it must be True or ",
    ),
    ({"a": None, "b": True}, "The tree of arrays has an array at ['a'], where the mask has None."),
    ({}, "The tree of arrays has ['a'], ['b'] besides at the root, compared with the mask."),
    ({"a": lambda x: True, "b": True}, "at ['a'], but it must be True or False."),
]


@pytest.mark.parametrize(("mask", "message"), MASKS, ids=range(len(MASKS)))
def test_a_mask_that_does_not_fit_is_refused_by_path(mask, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        masked(mask)()


def test_a_mask_that_depends_on_values_is_refused_under_jit():
    optimizer = ours.adamw(LR, mask=from_tracer)
    state = optimizer.init(tree())
    with pytest.raises(
        TypeError, match=r"What the mask returned has an array at .* whose value is "
    ):
        jax.jit(optimizer.update)(tree(GRADIENTS), state, tree())


def test_a_function_for_the_mask_that_inject_hyperparams_takes_for_a_schedule_is_refused():
    def matrices(tree):
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    wrapped = optax.inject_hyperparams(ours.adamw)(LR, mask=matrices)
    message = r"mask is False, for the whole tree. .* name mask in static_args."
    with pytest.raises(ValueError, match=message):
        wrapped.init(tree())
    named = optax.inject_hyperparams(ours.adamw, static_args="mask")(LR, mask=matrices)
    plain = ours.adamw(LR, mask={"a": False, "b": True})
    assert jax.tree.structure(named.init(tree()).inner_state) == jax.tree.structure(
        plain.init(tree())
    )


# ── trees that do not fit ──────────────────────────────────────────────────────────────────────


def updated(gradients=GRADIENTS, params=PARAMS, state=lambda state: state, make=ours.adamw):
    """A call of update with trees that differ from those of init."""
    optimizer = make(LR)

    def update():
        return optimizer.update(gradients, state(optimizer.init(tree())), params)

    return update


def of_moments(**changes):
    return lambda state: (state[0]._replace(**changes), *state[1:])


def with_mean(change):
    return lambda state: (state[0]._replace(mu=change(state[0].mu)), *state[1:])


def small(form, **options):
    return lambda _: ours.adam(LR, state=form, **options).init(tree())


UNFIT = {
    "params-missing": (
        updated(params={"a": PARAMS["a"]}),
        "The tree of parameters lacks ['b'] at the root, compared with the tree of gradients. All "
        "trees must be like the one that init was called with.",
    ),
    "params-deep": (
        updated(params={**PARAMS, "b": {"d": PARAMS["b"]["c"]}}),
        "The tree of parameters lacks ['c'] and has ['d'] besides at ['b'], compared with ",
    ),
    "params-list": (
        updated(params=[PARAMS["a"], PARAMS["b"]]),
        "The tree of parameters has a list at the root, where the tree of gradients has a dict.",
    ),
    "params-node": (
        updated(params={**PARAMS, "a": {"x": PARAMS["a"]}}),
        "The tree of parameters at ['a'] is a dict, but the gradient is an array.",
    ),
    "params-none": (
        updated(params={**PARAMS, "a": None}),
        "The tree of parameters at ['a'] is None, but there is a gradient. Call init with a tree "
        "that has all parameters that are trained.",
    ),
    "params-shape": (
        updated(params={**PARAMS, "a": np.ones((1, 2), np.float32)}),
        "The tree of parameters at ['a'] has shape (1, 2), but beside this gradient it must have "
        "shape (2,).",
    ),
    "params-not-there": (updated(params=None), "Weight decay needs the parameters, but params is "),
    "gradients-extra": (
        updated(gradients={**GRADIENTS, "n": GRADIENTS["a"]}, make=ours.adam),
        "The state's mu lacks ['n'] at the root, compared with the tree of gradients.",
    ),
    "gradients-missing": (
        updated(gradients={"a": GRADIENTS["a"]}, make=ours.adam),
        "The state's mu has ['b'] besides at the root, compared with the tree of gradients.",
    ),
    "gradients-empty": (
        updated(gradients={**GRADIENTS, "b": {}}, make=ours.adam),
        "The state's mu has ['c'] besides at ['b'], compared with the tree of gradients.",
    ),
    "header-of-another-form": (
        updated(state=small("compact"), make=functools.partial(ours.adam, state="8bit")),
        "The state has no header, but this optimizer keeps one. Go on with the method and ",
    ),
    "gradients-shape": (
        updated(gradients={**GRADIENTS, "a": np.float32(1)}, make=ours.adam),
        "The state's mu at ['a'] has shape (2,), but beside this gradient it must have shape ().",
    ),
    "gradients-broadcast": (
        updated(gradients={**GRADIENTS, "b": {"c": GRADIENTS["b"]["c"][:1]}}, make=ours.rmsprop),
        "The state's nu at ['b']['c'] has shape (2, 3), but beside this gradient it must have ",
    ),
    "gradients-text": (
        updated(gradients={**GRADIENTS, "a": "0.5"}),
        "The gradient at ['a'] is a str, but it must be an array of numbers, or None where a ",
    ),
    "gradients-key": (
        updated(gradients={**GRADIENTS, "a": jax.random.key(0)}),
        "The gradient at ['a'] has dtype key<fry>, but it must be an array of numbers",
    ),
    "state-none": (
        updated(state=lambda _: None),
        "The state is None. Start with state = optimizer.init(params).",
    ),
    "state-is-params": (
        updated(state=lambda _: PARAMS),
        "The state is a dict, but it must be the tuple that init returned. Call update(gradients, "
        "state, params). A checkpoint that is restored without an example has dicts",
    ),
    "state-inner": (
        updated(state=lambda state: state[0]),
        "The state is a ScaleByAdamState (count, mu, nu), but it must be the tuple that init ",
    ),
    "state-of-adam": (
        updated(state=lambda _: ours.adam(LR).init(tree())),
        "The state has 2 parts (a ScaleByAdamState, an EmptyState), but this optimizer keeps 3. Go "
        "on with the method and the options that made the state, or start anew with ",
    ),
    "state-of-amsgrad": (
        updated(state=lambda _: ours.amsgrad(LR).init(tree()), make=ours.adam),
        "state[0] is a ScaleByAmsgradState of count, mu, nu, nu_max, but this optimizer keeps "
        "count, mu, nu there.",
    ),
    "state-of-sgd": (
        updated(state=lambda _: ours.sgd(LR, momentum=0.9).init(tree()), make=ours.adam),
        "state[0] is a TraceState of trace, but this optimizer keeps count, mu, nu there.",
    ),
    "state-of-momentum-in-sgd": (
        updated(
            state=lambda _: ours.momentum(LR).init(tree()),
            make=functools.partial(ours.sgd, momentum=0.9),
        ),
        "state[0] is an EmaState of count, ema, but this optimizer keeps trace there.",
    ),
    "momentum-dropped": (
        updated(state=lambda _: ours.sgd(LR, momentum=0.9).init(tree()), make=ours.sgd),
        "state[0] is a TraceState of trace, but this optimizer keeps nothing there.",
    ),
    "trace-missing": (
        updated(
            state=lambda _: ours.rmsprop(LR).init(tree()),
            make=functools.partial(ours.rmsprop, momentum=0.9),
        ),
        "state[2] is an EmptyState of nothing, but this optimizer keeps trace there.",
    ),
    "schedule-missing": (
        updated(
            state=lambda _: ours.adam(LR).init(tree()),
            make=lambda lr: ours.adam(lambda count: lr),
        ),
        "state[1] (of the schedule of learning_rate) is an EmptyState of nothing, but this ",
    ),
    "mask-missing": (
        updated(
            state=lambda _: ours.adamw(LR, weight_decay=lambda count: 0.1).init(tree()),
            make=lambda lr: ours.adamw(lr, weight_decay=lambda count: 0.1, mask=True),
        ),
        "state[1] (of the mask) is a WeightDecaySchedule of count, but this optimizer keeps ",
    ),
    "state-missing": (
        updated(state=with_mean(lambda mean: {"a": mean["a"]})),
        "The state's mu lacks ['b'] at the root, compared with the tree of gradients.",
    ),
    "state-none-leaf": (
        updated(state=with_mean(lambda mean: {**mean, "a": None})),
        "The state's mu at ['a'] is None, but there is a gradient.",
    ),
    "state-shape": (
        updated(state=with_mean(lambda mean: {**mean, "a": jnp.ones((1, 2))})),
        "The state's mu at ['a'] has shape (1, 2), but beside this gradient it must have shape ",
    ),
    "state-integer": (
        updated(state=with_mean(lambda mean: {**mean, "a": jnp.ones(2, jnp.int32)})),
        "The state's mu at ['a'] has dtype int32, but a moment is a floating-point number.",
    ),
    "codes-in-floats": (
        updated(state=small("8bit"), make=ours.adam),
        "state[0] is a CodedState of count, mu, nu, header, top, but this optimizer keeps ",
    ),
    "codes-under-the-name-of-floats": (
        updated(state=lambda s: (s[0]._replace(nu=small("8bit")(0)[0].nu), *s[1:]), make=ours.adam),
        "The state's nu at ['a'] has dtype uint8, but a moment is a floating-point number. If "
        "the parameter is one of whole numbers, convert it, give None for its gradient, or leave "
        "it out with optax.masked; if these are codes, give the options that made them.",
    ),
    "floats-in-codes": (
        updated(
            state=lambda _: ours.adam(LR).init(tree()),
            make=functools.partial(ours.adam, state="8bit"),
        ),
        "state[0] is a ScaleByAdamState of count, mu, nu, but this optimizer keeps count, mu, nu, "
        "header, top there. Go on with the method and the options that made the state, or ",
    ),
    "8bit-in-compact": (
        updated(state=small("8bit"), make=functools.partial(ours.adam, state="compact")),
        "The state has a header, but this optimizer keeps none.",
    ),
    "compact-in-pair": (
        updated(
            state=small("compact"),
            make=functools.partial(ours.adam, state=["compact", "float32"]),
        ),
        "The state's nu at ['a'] has dtype uint16, but this optimizer keeps float32 there.",
    ),
    "bfloat16-in-compact": (
        updated(state=small("bfloat16"), make=functools.partial(ours.adam, state="compact")),
        "The state has no top, but this optimizer keeps one.",
    ),
    "codes-of-adam-in-rmsprop": (
        updated(
            state=lambda _: (*ours.adam(LR, state=("bfloat16", "8bit")).init(tree()), ()),
            make=functools.partial(ours.rmsprop, state="8bit"),
        ),
        "The state has a mu, but this optimizer keeps none.",
    ),
    "header-shape": (
        updated(
            state=lambda s: (
                s[0]._replace(header={**s[0].header, "a": jnp.zeros(2, "uint16")}),
                *s[1:],
            ),
            make=functools.partial(ours.adam, state="8bit"),
        ),
        "The state's header at ['a'] has shape (2,), but beside this gradient it must have shape ",
    ),
    "count-text": (
        updated(state=of_moments(count="3")),
        "The state's count is a str, but it must ",
    ),
    "count-float": (
        updated(state=of_moments(count=jnp.float32(3))),
        "The state's count is of dtype float32, but it must be a whole number in int32.",
    ),
    "count-narrow": (
        updated(state=of_moments(count=jnp.int16(3))),
        "The state's count is of dtype int16, but it must be a whole number in int32.",
    ),
    "count-shape": (
        updated(state=of_moments(count=jnp.zeros(8, jnp.int32))),
        "The state's count has shape (8,), but it must be one number. Of a state that is ",
    ),
    "count-negative": (
        updated(state=of_moments(count=np.int32(-5))),
        "The state's count is -5, but it must be at least 0 and at most 2147483647.",
    ),
    "count-large": (
        updated(state=of_moments(count=np.int64(2**31))),
        "The state's count is 2147483648, but it must be at least 0 and at most 2147483647.",
    ),
    "top-foreign": (
        updated(
            state=of_moments(top=np.int64(10**6)),
            make=functools.partial(ours.adam, state="compact"),
        ),
        "The state's top is 1000000, but it must be at least 2 and at most 12.",
    ),
    "complex": (
        updated(gradients={**GRADIENTS, "a": GRADIENTS["a"] * 1j}),
        "The gradient at ['a'] is complex, but the state's mu has dtype float32, which would "
        "lose the imaginary part. Call init with complex parameters, and leave mu_dtype and "
        "state out.",
    ),
    "complex-in-codes": (
        updated(
            gradients={**GRADIENTS, "a": GRADIENTS["a"] * 1j},
            make=functools.partial(ours.rmsprop, state="8bit"),
        ),
        "The gradient at ['a'] is complex, but the state's nu has dtype uint8, which would lose ",
    ),
    "complex-parameter": (
        updated(params={**PARAMS, "a": PARAMS["a"] * 1j}),
        "The parameter at ['a'] is complex, but its gradient and state are real, which would lose ",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_trees_that_do_not_fit_are_refused_by_path(case):
    call, message = UNFIT[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_under_jit_they_are_refused_while_the_program_is_made():
    optimizer = ours.adamw(LR)
    state = optimizer.init(tree())
    with pytest.raises(ValueError, match=r"The tree of parameters lacks \['b'\] at the root"):
        jax.jit(optimizer.update)(tree(GRADIENTS), state, {"a": PARAMS["a"]})


def test_parameters_that_a_method_does_not_read_may_be_anything():
    optimizer = ours.adam(LR)
    state = optimizer.init(tree())
    same(optimizer.update(tree(GRADIENTS), state, "any"), optimizer.update(tree(GRADIENTS), state))


def test_what_has_no_gradient_may_be_anything_in_the_parameters_and_stays_as_it_is_in_the_state():
    """A model of Equinox has functions among its leaves, and goes into update as it is."""
    optimizer = ours.adamw(LR, weight_decay=0.5)
    state = optimizer.init({**tree(), "f": None})
    updates, after = optimizer.update({**tree(GRADIENTS), "f": None}, state, {**tree(), "f": len})
    alone, _ = optimizer.update(tree(GRADIENTS), optimizer.init(tree()), tree())
    same({**updates, "f": None}, {**alone, "f": None})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    frozen = state[0]._replace(mu={**state[0].mu, "f": len})
    _, after = optimizer.update(
        {**tree(GRADIENTS), "f": None}, (frozen, *state[1:]), tree() | {"f": len}
    )
    assert after[0].mu["f"] is len


def test_init_refuses_what_is_no_array():
    message = (
        "The parameter at ['f'] is a builtin_function_or_method, but state is kept for arrays of "
        "numbers. Call init with these alone; of an Equinox module they are eqx.filter(model, "
        "eqx.is_inexact_array)."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        ours.adam(LR).init({**tree(), "f": len})


class Foreign:
    """An array of another library, whose dtypes NumPy does not know."""

    dtype, shape, ndim = object(), (2,), 1


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (np.array([None, 1.0]), "has dtype object"),
        (np.array(["a", "b"]), "has dtype <U1"),
        (np.zeros(2, "M8[D]"), "has dtype datetime64[D]"),
        (Foreign(), "is a Foreign"),
    ],
    ids=["object", "text", "date", "foreign"],
)
@pytest.mark.parametrize("form", ["float32", "8bit"])
def test_arrays_that_jax_does_not_know_are_refused_by_path(form, leaf, words):
    optimizer = ours.adamw(LR, state=form)
    state = optimizer.init(tree())
    tampered = state[0]._replace(mu={**state[0].mu, "a": leaf})
    calls = {
        "The parameter": lambda: optimizer.init({**PARAMS, "a": leaf}),
        "The gradient": lambda: optimizer.update({**GRADIENTS, "a": leaf}, state, PARAMS),
        "The tree of parameters|The parameter": lambda: optimizer.update(
            GRADIENTS, state, {**PARAMS, "a": leaf}
        ),
        "The state's mu": lambda: optimizer.update(GRADIENTS, (tampered, *state[1:]), PARAMS),
    }
    for subject, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=rf"({subject}) at \['a'\]") as caught:
            call()
        assert words in str(caught.value)


# ── states that come from elsewhere ────────────────────────────────────────────────────────────


def as_restored(state):
    """A state as orbax and flax restore it where they have no example of it."""
    return {
        "0": {name: getattr(state[0], name) for name in state[0]._fields},
        **{str(i): {} for i in range(1, len(state))},
    }


def test_a_state_that_was_restored_as_dicts_is_refused_with_the_way_to_restore_it():
    optimizer = ours.adam(LR)
    state = as_restored(trained(optimizer)[1])
    message = "The state is a dict, .* Give optimizer.init\\(params\\) as the example"
    with pytest.raises(TypeError, match=message):
        optimizer.update(tree(GRADIENTS), state)
    with pytest.raises(TypeError, match=r"state\[0\] is a dict, .* as the example"):
        optimizer.update(tree(GRADIENTS), [state["0"], state["1"]])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", ["float32", "8bit"])
def test_a_state_of_numpy_arrays_goes_on_as_that_of_jax(form):
    optimizer = ours.adamw(LR, state=form)
    params, state = trained(optimizer)
    restored = jax.tree.map(np.asarray, state)
    pickled = pickle.loads(pickle.dumps(state))
    wanted = trained(optimizer, params=params, state=state)
    for each in (restored, list(restored), pickled):
        found = trained(optimizer, params=params, state=each)
        same(found, wanted)


# ── gradients of integers ──────────────────────────────────────────────────────────────────────

INTEGERS = {"a": np.array([127, -3], np.int8), "b": {"c": np.array([[255, 0, 127]] * 2, np.uint8)}}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "momentum"])
@pytest.mark.parametrize("options", [{}, {"state": "bfloat16"}], ids=["plain", "small"])
def test_gradients_that_are_integers_are_the_numbers_they_are(name, options):
    if name == "sgd" and options:
        return
    optimizer = getattr(ours, name)(LR, **options)
    floats = jax.tree.map(lambda x: x.astype(np.float32), INTEGERS)
    same(trained(optimizer, gradients=INTEGERS), trained(optimizer, gradients=floats))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32"])
@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_updates_of_integer_gradients_have_the_dtype_of_optax(name, params, dtype):
    p, g = jnp.ones(2, params), jnp.ones(2, dtype)
    found = []
    for module in (ours, optax):
        optimizer = getattr(module, name)(LR)
        updates, state = jax.eval_shape(optimizer.update, g, optimizer.init(p), p)
        found.append((updates.dtype, jax.tree.map(lambda x: x.dtype, state)))
    assert found[0] == found[1]


def test_a_parameter_of_whole_numbers_without_a_derivative_is_left_alone():
    params = {"w": jnp.ones(2), "n": jnp.array([3, 4])}

    def loss(p):
        return (p["w"] * p["n"]).sum()

    for make in (ours.adamw, functools.partial(ours.adamw, state="8bit")):
        optimizer = make(LR)
        state = optimizer.init(params)
        gradients = jax.grad(loss, allow_int=True)(params)
        updates, after = optimizer.update(gradients, state, params)
        moved = optax.apply_updates(params, updates)
        assert moved["n"].tolist() == [3, 4]
        assert moved["n"].dtype == params["n"].dtype
        alone, _ = optimizer.update(
            {"w": gradients["w"]}, optimizer.init({"w": params["w"]}), {"w": params["w"]}
        )
        same(updates["w"], alone["w"])
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_a_parameter_of_whole_numbers_with_a_gradient_is_refused():
    params = {"w": jnp.ones(2), "n": jnp.array([3, 4])}
    optimizer = ours.adam(LR)
    message = r"The state's mu at \['n'\] has dtype int32, .* leave it out with optax.masked"
    with pytest.raises(TypeError, match=message):
        optimizer.update(params, optimizer.init(params))
    updates, _ = optimizer.update({**params, "n": None}, optimizer.init(params))
    assert updates["n"] is None
