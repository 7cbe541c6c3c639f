"""Small states in JAX: the codes of adamas.codecs, and the bits of the NumPy front-end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas
import adamas.jax as ours
from adamas import codecs
from adamas.jax import small
from tests.support.cases import FORMS, bits, python
from tests.support.jax_cases import same, stepper, trained

SHAPES = ((5, 7), ())
LR = 0.01


def drawn(steps=3, shapes=SHAPES):
    random = np.random.default_rng(0)

    def values():
        return [
            np.asarray(random.standard_normal(s) * 10.0 ** random.integers(-5, 5, s), np.float32)
            for s in shapes
        ]

    return values(), [values() for _ in range(steps)]


def arrays(values):
    return [jnp.asarray(each) for each in values]


def same_as(judge, params, state, parameters):
    for p, q in zip(params, parameters, strict=True):
        np.testing.assert_array_equal(bits(p), bits(q))
    for i, stored in enumerate(judge.state_dict(packed=True)["state"].values()):
        names = {"mu": "mean", "nu": "square", "header": "header"}
        for ours_, theirs in names.items():
            if theirs in stored:
                found = np.asarray(getattr(state[0], ours_)[i])
                assert found.dtype == stored[theirs].dtype
                found = found.reshape(stored[theirs].shape)
                np.testing.assert_array_equal(bits(found), bits(stored[theirs]), ours_)
        if not isinstance(state[0].top, tuple):
            assert state[0].top == stored["top"]


def check_beside_numpy(parameters, gradients, **options):
    optimizer = ours.adamw(LR, **options)
    params, state = arrays(parameters), optimizer.init(arrays(parameters))
    judge = adamas.AdamW(parameters, LR, **options)
    step = jax.jit(stepper(optimizer))
    for each in gradients:
        params, state = step(params, state, arrays(each))
        judge.step(each)
    same_as(judge, params, state, parameters)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("forms", "rounding"),
    [*((forms, None) for forms in FORMS), (("compact", "8bit"), "nearest")],
)
def test_a_step_has_the_bits_of_the_numpy_front_end(forms, rounding):
    parameters, gradients = drawn()
    options = {"weight_decay": 0.1, "state": forms, "rounding": rounding, "seed": 2**63 + 5}
    check_beside_numpy(parameters, gradients, **options)


OTHERS = {
    "nadam": (ours.nadam, adamas.Adam, {"state": "8bit"}, {"nesterov": True}),
    "rmsprop": (
        ours.rmsprop,
        adamas.RMSProp,
        {"state": "8bit"},
        {"eps": 0.0, "eps_root": 1e-8},
    ),
    "momentum": (ours.momentum, adamas.Momentum, {"state": "bfloat16"}, {}),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_have_the_bits_of_the_numpy_front_end(name):
    make, method, options, more = OTHERS[name]
    parameters, gradients = drawn(shapes=((50,),))
    optimizer = make(LR, **options)
    params, state = arrays(parameters), optimizer.init(arrays(parameters))
    judge = method(parameters, LR, **options, **more)
    for each in gradients:
        params, state = stepper(optimizer)(params, state, arrays(each))
        judge.step(each)
    same_as(judge, params, state, parameters)


@pytest.mark.slow
def test_a_scan_and_an_unrolled_program_have_the_bits_of_single_steps():
    parameters, gradients = drawn(shapes=((40,),), steps=4)
    optimizer = ours.adam(LR, state="8bit")
    step = stepper(optimizer)
    series = [jnp.stack([jnp.asarray(g[0]) for g in gradients])]

    def single(params):
        state = optimizer.init(params)
        for each in gradients:
            params, state = jax.jit(step)(params, state, arrays(each))
        return params, state

    @jax.jit
    def unrolled(params):
        state = optimizer.init(params)
        for each in gradients:
            params, state = step(params, state, arrays(each))
        return params, state

    @jax.jit
    def scanned(params):
        start = (params, optimizer.init(params))
        return jax.lax.scan(lambda carry, g: (step(*carry, g), None), start, series)[0]

    wanted = single(arrays(parameters))
    for way in (unrolled, scanned):
        found = way(arrays(parameters))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


# ── random bits ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (0, 2)])
def test_random_bits_are_those_of_the_definition_in_any_shape(shape):
    for seed, step in [(0, 1), (2**64 - 1, 2**31), (12345678901234567890, 77)]:
        keys = small.keys(seed, jnp.uint32(step), 5)
        for tensor in (0, 4):
            key = codecs.key_of(seed, step, tensor)
            assert tuple(map(int, keys[tensor])) == key
            found = small.random_bits(keys[tensor], shape)
            wanted = codecs.random_bits(key, 0, int(np.prod(shape))).reshape(shape)
            np.testing.assert_array_equal(found, wanted)


# ── as a state of optax ────────────────────────────────────────────────────────────────────────


def test_the_state_takes_the_bytes_it_promises():
    p = jnp.ones((64, 100))
    taken = {
        form: sum(x.nbytes for x in jax.tree.leaves(ours.adam(LR, state=form).init(p))) - 4
        for form in ("float32", "bfloat16", "compact", "8bit")
    }
    top = 4  # once, beside the count
    assert taken == {"float32": 8 * 6400, "bfloat16": 4 * 6400, "compact": 3 * 6400 + top,
                     "8bit": 2 * 6400 + 2 * 200 + top}  # fmt: skip


@pytest.mark.slow
def test_small_states_are_pytrees_that_keep_their_types():
    p = {"a": jnp.ones((3, 5)), "b": jnp.ones(4, jnp.bfloat16)}
    optimizer = ours.adamw(
        optax.linear_schedule(0.1, 0.0, 5), state="8bit", mask={"a": True, "b": False}
    )
    state = optimizer.init(p)
    updates, after = jax.jit(optimizer.update)(p, state, p)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, p)
    assert optax.tree.get(after, "mu")["a"].dtype == jnp.int8
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), p)
    assert jax.tree.structure(optimizer.init(shapes)) == jax.tree.structure(state)
    skipped, kept = optimizer.update({"a": p["a"], "b": None}, state, p)
    assert skipped["b"] is None
    np.testing.assert_array_equal(kept[0].nu["b"], state[0].nu["b"])


def test_a_seed_that_is_an_array_gives_the_bits_of_that_number():
    p = jnp.linspace(-1, 1, 40)
    fixed = ("b1", "b2", "eps", "eps_root", "weight_decay")
    injected = optax.inject_hyperparams(ours.adamw, static_args=fixed)(0.5, state="8bit", seed=7)
    state = injected.init(p)
    found = stepper(injected)(p, state, p)[1].inner_state[0]
    plain = ours.adamw(0.5, state="8bit", seed=7)
    wanted = stepper(plain)(p, plain.init(p), p)[1][0]
    np.testing.assert_array_equal(found.nu, wanted.nu)
    state.hyperparams["seed"] += 1
    assert (stepper(injected)(p, state, p)[1].inner_state[0].nu != wanted.nu).any()


def test_entries_under_vmap_are_arrays_of_their_own_with_the_same_random_bits():
    optimizer = ours.adam(LR, state="compact")
    p = jnp.linspace(-1, 1, 40)
    alone = stepper(optimizer)(p, optimizer.init(p), p)
    both = jnp.stack([p, p])
    together = jax.vmap(stepper(optimizer))(both, jax.vmap(optimizer.init)(both), both)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_array_equal(bits(b), bits(jnp.stack([a, a])))


SHARDED = """
import numpy as np
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import adamas.jax as ours
from tests.support.jax_cases import stepper

mesh = Mesh(np.array(jax.devices()), ("x",))
random = np.random.default_rng(0)
p, g = random.standard_normal((2, 16, 24)).astype(np.float32)
for form in ("compact", "8bit"):
    optimizer = ours.adam(0.1, state=form)
    ends = []
    for spec in (P(), P(None, "x")):
        put = lambda a: jax.device_put(jnp.asarray(a), NamedSharding(mesh, spec))
        params = put(p)
        state = jax.jit(optimizer.init)(params)
        step = jax.jit(stepper(optimizer))
        for _ in range(2):
            params, state = step(params, state, put(g))
        ends.append([np.asarray(x) for x in jax.tree.leaves((params, state))])
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    if form == "compact":
        text = step.lower(params, state, put(g)).compile().as_text()
        assert "all-" not in text and "collective" not in text
print("same")
"""


@pytest.mark.slow
def test_codes_do_not_depend_on_how_an_array_is_spread_over_devices():
    done = python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


REFUSED = [
    (lambda: ours.adam(LR, state="4bit"), "state is '4bit', but it must be one of "),
    (
        lambda: ours.momentum(LR, state="8bit"),
        'state is "8bit", which stores the first moment relative to the root of the second, but '
        'this method keeps no second moment. Use "float32" or "bfloat16".',
    ),
    (
        lambda: ours.adam(LR, rounding="remainder"),
        "rounding is 'remainder', but with JAX it is optax that adds updates to parameters. "
        'Use "nearest" or "stochastic", which round m and v.',
    ),
    (
        lambda: ours.adam(LR, mu_dtype="bfloat16", state="8bit"),
        "mu_dtype is 'bfloat16' and state is '8bit', but both say how m is stored. "
        "Leave mu_dtype out.",
    ),
    (
        lambda: ours.adam(LR, b1=jnp.float32(0.9), state="compact"),
        'state is "compact", which needs decay rates that are known when the program is made, but '
        "one is an array. Give floats; with optax.inject_hyperparams name them in static_args: "
        r'\("b1", "b2"\).',
    ),
    (
        lambda: ours.adam(LR, state="8bit").init(jnp.ones(2, jnp.complex64)),
        r"state is \('8bit', '8bit'\), but the parameter at the root has dtype complex64: "
        r"low-bit states are for float32, bfloat16 and float16. Convert the parameter, or use "
        r'state="float32", which keeps its dtype.',
    ),
    (
        lambda: ours.rmsprop(LR, initial_scale=1.0, state="8bit"),
        "initial_scale is 1.0, but a small state starts from 0. Leave initial_scale or state out.",
    ),
    (
        lambda: ours.adam(LR, seed=-1),
        r"seed is -1, but it must be a whole number, at least 0 and at most 2\^64 - 1\.",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_small_states_cannot_do_is_refused_with_a_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_array_whose_elements_32_bits_cannot_count_is_refused():
    optimizer = ours.adam(0.1, state="compact")
    p = jax.ShapeDtypeStruct((1 << 17, 1 << 16), jnp.float32)
    state = jax.eval_shape(optimizer.init, p)
    with pytest.raises(ValueError, match="count elements in 32 bits"):
        jax.eval_shape(optimizer.update, p, state, p)


# ── what codes are counted from ────────────────────────────────────────────────────────────────

FALLEN = {"b1": 0.5, "b2": 0.9}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", ["compact", "8bit"])
def test_codes_are_read_as_they_were_written_at_whatever_rates_the_run_goes_on(form):
    """How far m reaches, and with it what its codes stand for, depends on the decay rates."""
    forms = (form, form)
    random = np.random.default_rng(0)
    p, *gs, last = random.standard_normal((6, 64)).astype(np.float32)
    before = ours.adam(LR, b1=0.95, b2=0.999, state=form, rounding="nearest")
    after = ours.adam(LR, **FALLEN, state=form, rounding="nearest")
    params, state = trained(before, len(gs), p, gs[0])
    tops = [int(optimizer.init(p)[0].top) for optimizer in (before, after)]
    assert tops[0] != tops[1]
    codes = codecs.Codes(*(np.asarray(x) for x in (state[0].mu, state[0].nu)), None)
    if form == "8bit":
        codes = codes._replace(header=np.asarray(state[0].header))
    m, v = codecs.decode(forms, codes, tops[0])
    plain = ours.adam(LR, **FALLEN)
    fresh = plain.init(p)
    dense = (fresh[0]._replace(count=state[0].count, mu=m, nu=v), *fresh[1:])
    wanted, ended = trained(plain, 1, params, last, dense)
    found, kept = trained(after, 1, params, last, state)
    same(found, wanted)
    assert kept[0].top == tops[1]
    stored = codecs.encode(forms, *map(np.asarray, (ended[0].mu, ended[0].nu)), None, tops[1])
    np.testing.assert_array_equal(kept[0].mu, stored.mean)
    np.testing.assert_array_equal(kept[0].nu, stored.square)


@pytest.mark.slow
def test_arrays_of_every_size_have_the_bits_of_the_numpy_front_end():
    shapes = ((2048, 32), (5, 26400), (2**18 + 7,), (7, 9))
    parameters, gradients = drawn(steps=2, shapes=shapes)
    options = {"weight_decay": 0.1, "state": "8bit", "seed": 3}
    check_beside_numpy(parameters, gradients, **options)
