"""adamas.jax keeps to what optax and its users rely on: signatures, states, dtypes, wrappers."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import adamas
import adamas.jax as ours
from adamas.coefficients import at_step
from adamas.jax import trees
from adamas.options import Options
from adamas.rule import rule, smooth
from tests.support.cases import bits, python
from tests.support.jax_cases import (
    CASES,
    GRADIENTS,
    LR,
    PARAMS,
    expected,
    same,
    stepper,
    trained,
    tree,
)

NAMES = ["adam", "adamw", "amsgrad", "nadam", "nadamw", "radam", "rmsprop", "sgd"]
SCHEDULE = optax.linear_schedule(0.1, 0.01, 10)


def types(value):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), value)


def close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


# ── signatures and states ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_function_begins_with_the_arguments_of_optax_and_their_defaults(name):
    mine, theirs = (
        [
            (parameter.name, parameter.default, parameter.kind)
            for parameter in inspect.signature(getattr(module, name)).parameters.values()
        ]
        for module in (ours, optax)
    )
    assert mine[: len(theirs)] == theirs
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, _, kind in mine[len(theirs) :])


TWINS = {
    "adam": ("adam", {}),
    "schedule": ("adam", {"learning_rate": SCHEDULE}),
    "mu_dtype": ("nadam", {"mu_dtype": "bfloat16"}),
    "adamw": ("adamw", {"weight_decay": 0.1}),
    "mask": ("adamw", {"mask": {"a": True, "b": False}, "learning_rate": SCHEDULE}),
    "decay-schedule": ("adamw", {"weight_decay": SCHEDULE}),
    "masked-decay-schedule": (
        "nadamw",
        {"weight_decay": SCHEDULE, "mask": {"a": True, "b": False}},
    ),
    "amsgrad": ("amsgrad", {"bias_correction_nu": False}),
    "rmsprop": ("rmsprop", {"initial_scale": 1.0}),
    "rmsprop-momentum": ("rmsprop", {"momentum": 0.9, "nesterov": True, "bias_correction": True}),
    "sgd": ("sgd", {}),
    "sgd-momentum": ("sgd", {"momentum": 0.9, "learning_rate": SCHEDULE}),
    "sgd-nesterov": ("sgd", {"momentum": 0.9, "nesterov": True, "accumulator_dtype": "float32"}),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("case", TWINS)
def test_states_are_those_of_optax_and_runs_may_change_hands(case):
    name, arguments = TWINS[case]
    mine, theirs = (
        getattr(module, name)(**{"learning_rate": 0.01, **arguments}) for module in (ours, optax)
    )
    assert isinstance(mine, optax.GradientTransformationExtraArgs)
    params, state = trained(mine)
    other_params, other_state = trained(theirs)
    start, other_start = mine.init(tree()), theirs.init(tree())
    for a, b in ((start, other_start), (state, other_state), (start, state)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert types(a) == types(b)
    tolerance = {"rtol": 1e-2 if "mu_dtype" in arguments else 1e-5}
    close(params, other_params, **tolerance)
    close(state, other_state, **tolerance)
    # Three steps of one, then three of the other.
    for first, second in ((mine, theirs), (theirs, mine)):
        middle = trained(first)
        close(
            trained(second, params=middle[0], state=middle[1]),
            trained(theirs, steps=6),
            **tolerance,
        )


def test_momentum_has_the_state_of_optax_ema():
    theirs = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(0.01))
    params, state = trained(ours.momentum(0.01))
    other_params, other_state = trained(theirs)
    assert jax.tree.structure(state) == jax.tree.structure(other_state)
    close((params, state), (other_params, other_state), rtol=1e-5)


def test_the_state_is_found_by_its_names_and_mapped():
    optimizer = ours.adamw(SCHEDULE)
    params, state = trained(optimizer)
    assert optax.tree.get(state, "mu")["b"]["c"].shape == (2, 3)
    assert optax.tree.get(state, "nu") is state[0].nu
    assert optax.tree.get(state, "count", filtering=lambda path, _: "Adam" in str(path)) == 3
    changed = optax.tree.set(state, mu=params)
    assert optax.tree.get(changed, "mu") is params
    doubled = optax.tree.map_params(optimizer, lambda x: 2 * x, state)
    same(doubled[0].nu, jax.tree.map(lambda x: 2 * x, state[0].nu))
    assert doubled[0].count == 3


def test_a_state_can_be_made_of_shapes_alone():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    for name in NAMES:
        optimizer = getattr(ours, name)(0.01)
        assert types(optimizer.init(shapes)) == types(optimizer.init(tree()))
        abstract = jax.eval_shape(optimizer.init, shapes)
        assert types(abstract) == types(optimizer.init(tree()))
        updates, after = jax.eval_shape(optimizer.update, shapes, abstract, shapes)
        assert types(updates) == types(shapes)
        assert types(after) == types(abstract)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_second_step_is_not_compiled_again(name):
    optimizer = getattr(ours, name)(SCHEDULE)
    step = jax.jit(stepper(optimizer))
    params, state = tree(), optimizer.init(tree())
    for _ in range(3):
        params, state = step(params, state, tree(GRADIENTS))
    assert step._cache_size() == 1


@pytest.mark.parametrize("form", ["float32", "bfloat16", "8bit"])
def test_a_state_is_bound_to_a_device_where_parameters_are(form):
    optimizer = ours.adamw(SCHEDULE, state=form)
    bound = jax.device_put(tree(), jax.devices()[0])
    for params, is_bound in ((tree(), False), (bound, True), ({**tree(), "a": bound["a"]}, True)):
        assert {each.committed for each in jax.tree.leaves(optimizer.init(params))} == {is_bound}


def test_a_step_with_jit_switched_off_has_its_bits():
    optimizer = ours.sgd(0.1)
    gradients = {"w": np.linspace(-1, 2, 3, dtype=np.float32)}
    wanted = optimizer.update(gradients, optimizer.init(gradients))
    with jax.disable_jit():
        same(optimizer.update(gradients, optimizer.init(gradients)), wanted)


@pytest.mark.filterwarnings("error")
def test_gradients_in_float64_are_taken_in_float32_without_a_warning():
    trees.is_known.cache_clear()  # each dtype is asked for once
    trees.dtype_kind.cache_clear()
    optimizer = ours.sgd(0.5)
    gradient = np.linspace(-1, 2, 3)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    assert updates.dtype == np.float32


def test_an_eager_step_is_compiled_once():
    from adamas.jax import step

    optimizer = optax.inject_hyperparams(ours.sgd)(0.01, momentum=0.9)
    params, state = tree(), optimizer.init(tree())
    params, state = stepper(optimizer)(params, state, tree(GRADIENTS))
    before = step.stepped._cache_size()
    for _ in range(2):
        params, state = stepper(optimizer)(params, state, tree(GRADIENTS))
    assert step.stepped._cache_size() == before


@pytest.mark.parametrize("name", ["adam", "adamw", "scheduled-decay"])
def test_an_eager_step_with_a_schedule_of_python_floats_is_compiled_once_and_has_their_bits(name):
    from adamas.jax import step

    def schedule(count):
        return 0.1 * 0.7 ** int(count)

    make = {
        "adam": ours.adam,
        "adamw": functools.partial(ours.adamw, weight_decay=0.3),
        "scheduled-decay": functools.partial(ours.adamw, weight_decay=lambda count: 0.3),
    }[name]
    optimizer = make(schedule)
    p = np.linspace(-3, 5, 33, dtype=np.float32)
    params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
    g = np.cos(p)
    decay = {} if name == "adam" else {"weight_decay": 0.3}
    method = adamas.AdamW if decay else adamas.Adam
    judge = method(p, lambda number: schedule(number - 1), **decay, engine="reference")
    sizes = []
    for _ in range(4):
        params, state = stepper(optimizer)(params, state, jnp.asarray(g))
        sizes.append(step.stepped._cache_size())
        judge.step(g)
    assert sizes[0] == sizes[-1]
    np.testing.assert_array_equal(bits(params), bits(p))


@pytest.mark.quick_cases(10)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("name", NAMES)
def test_updates_have_the_dtype_of_gradients_and_states_stay_as_they_are(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        optimizer = getattr(ours, name)(0.01)
        params = jnp.array([1.0, 2.0], dtype)
        state = optimizer.init(params)

        def step(state):
            return optimizer.update(params, state, params)

        def perhaps(flag, state):
            return jax.lax.cond(flag, lambda s: s, lambda s: step(s)[1], state)

        updates, after = jax.eval_shape(step, state)
        assert updates.dtype == params.dtype
        assert jax.tree.map(lambda x: (x.dtype, x.weak_type), after) == jax.tree.map(
            lambda x: (x.dtype, x.weak_type), state
        )
        assert types(jax.eval_shape(perhaps, True, state)) == types(state)


def test_gradients_of_another_dtype_do_not_change_that_of_the_state():
    for params, gradients, updates in (
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
    ):
        optimizer = ours.adamw(0.01)
        p, g = jnp.ones(3, params), jnp.ones(3, gradients)
        state = optimizer.init(p)
        found, after = jax.eval_shape(optimizer.update, g, state, p)
        assert found.dtype == updates
        assert types(after) == types(state)


# ── wrappers ───────────────────────────────────────────────────────────────────────────────────


def test_inject_hyperparams_lets_numbers_be_changed_and_gives_the_bits_of_the_reference_engine():
    optimizer = optax.inject_hyperparams(ours.adamw)(0.01, weight_decay=0.1)
    p = np.array([1.0, -2.0, 3.0], np.float32)
    judge = p.copy()
    as_float = lambda x: float(np.float32(x))  # noqa: E731
    reference = adamas.AdamW(
        judge,
        as_float(0.01),
        betas=(as_float(0.9), as_float(0.999)),
        eps=as_float(1e-8),
        weight_decay=as_float(0.1),
        engine="reference",
    )
    params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
    step = jax.jit(stepper(optimizer))
    g = np.array([0.3, 0.1, -4.0], np.float32)
    for rate in (0.01, 0.01, 0.2):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        reference.lr = as_float(rate)
        params, state = step(params, state, jnp.asarray(g))
        reference.step(g)
    np.testing.assert_array_equal(bits(params), bits(judge))


def test_inject_hyperparams_of_the_learning_rate_alone_takes_schedules():
    fixed = ("b1", "b2", "eps", "eps_root", "weight_decay")
    injected = optax.inject_hyperparams(ours.adamw, static_args=fixed)(SCHEDULE)
    found = trained(injected)
    same(found[0], trained(ours.adamw(SCHEDULE))[0])
    assert found[1].hyperparams["learning_rate"] == SCHEDULE(2)


def test_multi_steps_take_the_mean_gradient_every_so_often():
    optimizer = optax.MultiSteps(ours.adam(0.01), every_k_schedule=2)
    params, _ = trained(optimizer, steps=4)
    same(params, trained(ours.adam(0.01), steps=2)[0])


def test_chains_clip_before_the_step():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), ours.adamw(0.01))
    params, state = trained(optimizer)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01))
    close((params, state), trained(theirs), rtol=1e-5)
    norm = np.sqrt(sum(np.sum(g * g) for g in jax.tree.leaves(GRADIENTS)))
    clipped = jax.tree.map(lambda g: g / norm * 0.5, GRADIENTS)
    close(params, trained(ours.adamw(0.01), gradients=clipped)[0], rtol=1e-6)


def test_multi_transform_and_masked_step_each_part_its_way():
    optimizer = optax.multi_transform(
        {"fast": ours.adam(0.1), "slow": ours.momentum(0.01)}, {"a": "fast", "b": "slow"}
    )
    params, _ = trained(optimizer)
    same(params["a"], trained(ours.adam(0.1))[0]["a"])
    same(params["b"], trained(ours.momentum(0.01))[0]["b"])
    masked = optax.masked(ours.adamw(0.01), {"a": False, "b": True})
    params, state = trained(masked)
    same(params["b"], trained(ours.adamw(0.01))[0]["b"])
    same(params["a"], PARAMS["a"] + 3 * GRADIENTS["a"])  # passed through
    assert jax.tree.structure(state) == jax.tree.structure(
        trained(optax.masked(optax.adamw(0.01), {"a": False, "b": True}))[1]
    )


def test_steps_with_gradients_that_are_not_finite_can_be_left_out():
    optimizer = optax.apply_if_finite(ours.adam(0.01), max_consecutive_errors=3)
    params, state = trained(optimizer, steps=1)
    broken = {**GRADIENTS, "a": np.array([np.nan, 1.0], np.float32)}
    kept, after = trained(optimizer, steps=1, params=params, gradients=broken, state=state)
    same(kept, params)
    same(after.inner_state, state.inner_state)
    assert after.total_notfinite == 1


MASKS = {
    "tree": {"a": True, "b": {"c": False}},
    "prefix": {"a": True, "b": False},
    "callable": lambda params: jax.tree.map(lambda x: x.ndim == 1, params),
    "numpy": {"a": True, "b": {"c": np.bool_(False)}},
}


def test_a_mask_says_what_decays():
    decayed, plain = trained(ours.adamw(0.01, weight_decay=0.5)), trained(ours.adam(0.01))
    for mask in MASKS.values():
        params, _ = trained(ours.adamw(0.01, weight_decay=0.5, mask=mask))
        same(params["a"], decayed[0]["a"])
        same(params["b"], plain[0]["b"])


def test_gradients_of_none_leave_parameter_and_state_alone():
    for optimizer in (ours.adamw(0.01), ours.rmsprop(0.01, momentum=0.9)):
        state = optimizer.init(tree())
        updates, after = optimizer.update({**tree(GRADIENTS), "b": {"c": None}}, state, tree())
        assert updates["b"]["c"] is None
        same(optax.tree.get(after, "nu")["b"], optax.tree.get(state, "nu")["b"])
        whole, _ = optimizer.update(tree(GRADIENTS), state, tree())
        same(updates["a"], whole["a"])


def test_a_tree_without_arrays_is_stepped():
    optimizer = ours.adam(0.01)
    updates, state = optimizer.update({}, optimizer.init({}), {})
    assert updates == {}
    assert state[0].count == 1


def test_update_takes_extra_arguments_and_adam_no_parameters():
    optimizer = ours.adam(0.01)
    state = optimizer.init(tree())
    with_params, _ = optimizer.update(tree(GRADIENTS), state, tree(), value=1.0)
    without, _ = optimizer.update(tree(GRADIENTS), state)
    same(with_params, without)


# ── what the options mean ──────────────────────────────────────────────────────────────────────


def test_a_sum_of_gradients_is_the_rule_with_other_numbers():
    for nesterov in (False, True):
        params, state = trained(ours.sgd(0.1, momentum=0.9, nesterov=nesterov))
        plain = at_step(Options(betas=(None, None)), 1, 0.1)._replace(keep1=0.9, take1=1.0)
        if nesterov:
            plain = plain._replace(from_m=0.9, from_g=1.0)
        c = plain.rounded(np.dtype(np.float32))
        p, m = PARAMS["a"], np.zeros(2, np.float32)
        for _ in range(3):
            p, m, *_ = rule(c, p, GRADIENTS["a"], m)
        np.testing.assert_array_equal(bits(params["a"]), bits(p))
        np.testing.assert_array_equal(bits(state[0].trace["a"]), bits(m))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_rmsprop_smooths_the_updates(nesterov):
    params, state = trained(ours.rmsprop(0.1, momentum=0.9, nesterov=nesterov))
    options = CASES["rmsprop"].options
    c = at_step(options, 1, 0.1).rounded(np.dtype(np.float32))
    keep, take = np.float32(0.9), np.float32(1)
    p, v, trace = PARAMS["a"], *np.zeros((2, 2), np.float32)
    for _ in range(3):
        result = rule(c, p, GRADIENTS["a"], None, v)
        v = result.v
        trace = smooth(keep, take, trace, -result.change)
        p = p + (smooth(keep, take, trace, -result.change) if nesterov else trace)
    np.testing.assert_array_equal(bits(params["a"]), bits(p))
    np.testing.assert_array_equal(bits(state[2].trace["a"]), bits(trace))


def test_amsgrad_corrects_the_largest_square_and_optax_the_squares():
    gradients = [np.array([g], np.float32) for g in (10.0, 0.1, 0.1)]
    params, state = jnp.ones(1), ours.amsgrad(LR).init(jnp.ones(1))
    for g in gradients:
        params, state = stepper(ours.amsgrad(LR))(params, state, jnp.asarray(g))
    judge = expected(CASES["amsgrad"], [np.ones(1, np.float32)], [[g] for g in gradients])
    np.testing.assert_array_equal(state[0].nu_max, judge.arrays["0.largest_square"])
    theirs = trained(optax.amsgrad(LR), steps=1, params=jnp.ones(1), gradients=gradients[0])[1]
    np.testing.assert_allclose(theirs[0].nu_max, 1000 * state[0].nu_max, rtol=1e-2)


@pytest.mark.parametrize("wrapped", [jax.jit, lambda f: f])
def test_a_bfloat16_mean_is_rounded_to_nearest_also_between_steps_of_one_program(wrapped):
    """XLA would leave such roundings out: it may compute in more digits than it is told."""
    p = np.linspace(-1, 1, 33, dtype=np.float32)
    gs = np.random.default_rng(0).standard_normal((3, 33)).astype(np.float32)
    optimizer = ours.adam(LR, mu_dtype=jnp.bfloat16)

    def three(params, gradients):
        state = optimizer.init(params)
        for g in gradients:
            params, state = stepper(optimizer)(params, state, g)
        return params, state[0].mu

    params, mean = wrapped(three)(jnp.asarray(p), jnp.asarray(gs))
    judge = adamas.Adam(p, LR, state=("bfloat16", "float32"), rounding="nearest")
    for g in gs:
        judge.step(g)
    np.testing.assert_array_equal(bits(params), bits(p))
    stored = judge.state_dict()["state"]["x"]["mean"]
    np.testing.assert_array_equal(np.asarray(mean, np.float32), stored)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wrapped", [jax.jit, lambda f: f])
def test_in_half_precision_the_rule_is_computed_in_float32_and_results_are_rounded(wrapped, dtype):
    random = np.random.default_rng(0)
    p, *gs = random.standard_normal((4, 64)).astype(dtype)
    optimizer = ours.adamw(LR, weight_decay=0.1)

    def three(params, gradients):
        state = optimizer.init(params)
        for g in gradients:
            params, state = stepper(optimizer)(params, state, g)
        return params, state

    params, state = wrapped(three)(jnp.asarray(p), [jnp.asarray(g) for g in gs])
    stored = np.float32 if dtype is np.float16 else dtype
    m = v = np.zeros(64, stored)
    for number, g in enumerate(gs, 1):
        c = at_step(CASES["adamw"].options, number, LR).rounded(np.dtype(np.float32))
        result = rule(c, *(x.astype(np.float32) for x in (p, g, m, v)))
        m, v = result.m.astype(stored), result.v.astype(stored)
        update = (-result.change).astype(dtype)
        p = (p.astype(np.float32) + update.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(bits(params), bits(p))
    np.testing.assert_array_equal(bits(state[0].mu), bits(m))
    np.testing.assert_array_equal(bits(state[0].nu), bits(v))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw", "amsgrad", "nadam", "rmsprop"])
def test_small_gradients_of_float16_parameters_move_them_as_far_as_those_of_float32(name):
    """In float16 the squares of these gradients are 0."""
    ends = []
    for dtype in ("float16", "float32"):
        p, g = jnp.zeros(1, dtype), jnp.full(1, 2.0**-12, dtype)
        optimizer = getattr(ours, name)(2.0**-6)
        state = optimizer.init(p)
        for _ in range(20):
            p, state = jax.jit(stepper(optimizer))(p, state, g)
        ends.append((np.asarray(p, np.float32), state))
    np.testing.assert_allclose(*(end[0] for end in ends), rtol=2e-2)
    same(*(end[1] for end in ends))


def test_a_mean_in_float16_is_had_for_the_asking_and_one_of_optax_goes_on_as_it_is():
    p = jnp.ones(2, jnp.float16)
    state = ours.adam(0.1, mu_dtype=jnp.float16).init(p)[0]
    assert (state.mu.dtype, state.nu.dtype) == (jnp.float16, jnp.float32)
    theirs = optax.adam(0.1).init(p)
    _, after = ours.adam(0.1).update(p, theirs, p)
    assert types(after) == types(theirs)


def test_complex_numbers_are_stepped_along_themselves_by_the_size_of_their_squares():
    random = np.random.default_rng(0)
    p, *gs = (random.standard_normal((4, 20, 2)) * 3).astype(np.float32)
    as_complex = lambda x: x[:, 0] + 1j * x[:, 1]  # noqa: E731
    optimizer = ours.nadam(LR)
    params = jnp.asarray(as_complex(p))
    state = optimizer.init(params)
    step = jax.jit(stepper(optimizer))
    m, v = np.zeros_like(p), np.zeros(20, np.float32)
    for number, g in enumerate(gs, 1):
        params, state = step(params, state, jnp.asarray(as_complex(g)))
        c = at_step(CASES["nadam"].options, number, LR).rounded(np.dtype(np.float32))
        m = c.keep1 * m + c.take1 * g
        squares = c.take2 * g * g
        v = c.keep2 * v + (squares[:, 0] + squares[:, 1])
        d = np.sqrt(v) * c.root + c.eps
        p = p - c.step * ((c.from_m * m + c.from_g * g) / d[:, None])
    np.testing.assert_array_equal(bits(params.real), bits(p[:, 0]))
    np.testing.assert_array_equal(bits(params.imag), bits(p[:, 1]))
    np.testing.assert_array_equal(bits(state[0].nu.real), bits(v))
    assert (state[0].nu.imag == 0).all()


@pytest.mark.parametrize("name", ["adamw", "amsgrad", "rmsprop", "sgd"])
def test_complex_steps_are_near_those_of_optax(name):
    params = np.array([1 + 2j, -1j, 3.0], np.complex64)
    gradients = np.array([0.1 - 1j, 2.0, -3j], np.complex64)
    mine, theirs = (
        trained(getattr(module, name)(0.01), steps=1, params=params, gradients=gradients)
        for module in (ours, optax)
    )
    close(mine[0], theirs[0], rtol=1e-5)


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_without_jax_the_error_says_how_to_install_it(missing):
    code = f"""
import sys
sys.modules["{missing}"] = None
try:
    import adamas.jax
except ModuleNotFoundError as error:
    print(error)
"""
    wanted = 'adamas.jax needs JAX. Install it with: pip install "adamas[jax]"\n'
    assert python(code).stdout == wanted
