"""The arrays of the user: what happens to them between steps is noticed, whatever holds them."""

from __future__ import annotations

import collections
import copy
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import adamas
from adamas.engines import native
from tests.support.runs import everything

ENGINES = ["native", "reference"]


def drawn(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ── lone arrays ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_an_array_without_dimensions_may_stand_alone(dtype, engine):
    alone, within = np.array(1.0, dtype), np.array([1.0], dtype)
    one = adamas.Adam(alone, lr=0.1, ema=0.9, engine=engine)
    other = adamas.Adam(within, lr=0.1, ema=0.9)
    for value in (0.5, 2.0):
        one.step(np.array(value, dtype))
        one.lr = 0.2
        other.step(np.array([value], dtype))
        other.lr = 0.2
    assert alone.tobytes() == within.tobytes()
    one.step(dtype(3.0))  # a scalar of NumPy
    other.step(np.array([3.0], dtype))
    assert alone.tobytes() == within.tobytes()


class Unwalked(np.ndarray):
    """An array that may not be walked through."""

    def __iter__(self):
        raise AssertionError("the rows of an array are nobody's business")

    def __len__(self):
        raise AssertionError("the rows of an array are nobody's business")


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_walks_through_a_lone_array(engine):
    p = drawn(1000, 4).view(Unwalked)
    optimizer = adamas.Adam(p, lr=0.1, ema=0.9, statistics=True, engine=engine)
    optimizer.step(drawn(1000, 4, seed=1))
    optimizer.lr = 0.2
    optimizer.set_options(betas=(0.8, 0.9))
    optimizer.step(drawn(1000, 4, seed=2))
    stored = optimizer.state_dict()
    optimizer.load_state_dict(stored)
    optimizer.step(drawn(1000, 4, seed=3))
    with optimizer.ema_weights():
        repr(optimizer)
    optimizer.statistics()
    assert optimizer.steps == 3


# ── what changes in place ──────────────────────────────────────────────────────────────────────


def resized(p):
    p.resize((400_000,), refcheck=False)


def shaped(p):
    p.shape = (2, 3)


def typed(p):
    p.dtype = np.int32


def typed_as_wide(p):
    p.dtype = np.float64


def fixed(p):
    p.flags.writeable = False


def strided(p):
    p.strides = (0,)


CHANGES = {
    "resized": (resized, ValueError, "has shape (400000,) by now, but it had (6,) when"),
    "shaped": (shaped, ValueError, "has shape (2, 3) by now, but it had (6,) when"),
    "typed": (typed, TypeError, "has dtype int32 by now, but it had float32 when"),
    "typed wide": (typed_as_wide, TypeError, "has dtype float64 by now, but it had float32 when"),
    "fixed": (fixed, ValueError, "is read-only. Give a writeable array, or a copy."),
    "strided": (strided, ValueError, "has elements that share memory"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("within", ["alone", "dict"])
@pytest.mark.parametrize(("change", "error", "message"), CHANGES.values(), ids=CHANGES)
def test_an_array_that_has_changed_in_place_is_refused_until_it_is_back(
    change, error, message, within, engine
):
    p, other = np.ones(6, np.float32), np.ones(3, np.float32)
    tree = p if within == "alone" else {"other": other, "w": p}
    optimizer = adamas.Adam(tree, lr=0.1, engine=engine)
    g = np.ones(6, np.float32)
    gradients = g if within == "alone" else {"other": np.ones(3, np.float32), "w": g}
    optimizer.step(gradients)
    before, state = other.tobytes(), everything(optimizer)[0]
    change(p)
    now = p.tobytes()
    name = "x" if within == "alone" else "w"
    with pytest.raises(error, match=re.escape(f"Parameter {name} {message}")):
        optimizer.step(gradients)
    assert (p.tobytes(), other.tobytes(), optimizer.steps) == (now, before, 1)
    stored = optimizer.state_dict()
    for call in (
        lambda: optimizer.load_state_dict(stored),
        lambda: optimizer.snapshot().__enter__(),
    ):
        with pytest.raises(error, match=re.escape(f"Parameter {name} {message}")):
            call()
    assert state is not None
    if change in (shaped, typed, typed_as_wide, fixed):
        p.flags.writeable = True
        p.dtype = np.float32
        p.shape = (6,)
        optimizer.step(gradients)
        assert optimizer.steps == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_an_array_whose_memory_has_moved_is_stepped_where_it_is(engine):
    p = drawn(300, 400)
    twin = p.copy()
    optimizer, other = adamas.Adam(p, lr=0.1, engine=engine), adamas.Adam(twin, lr=0.1)
    g = drawn(300, 400, seed=1)
    optimizer.step(g)
    other.step(g)
    was, kept = p.ctypes.data, []
    for factor in range(2, 40):  # until there is no room behind it
        p.resize((300 * factor, 400), refcheck=False)
        p.resize((300, 400), refcheck=False)
        kept.append(np.ones((300, 400), np.float32))
        if p.ctypes.data != was:
            break
    assert p.ctypes.data != was
    optimizer.step(g)
    other.step(g)
    assert p.tobytes() == twin.tobytes()
    assert optimizer.steps == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_array_that_was_turned_in_place_is_stepped_as_it_stands(engine):
    p = drawn(5, 5)
    optimizer = adamas.Adam(p, lr=0.1, engine=engine)
    p.strides = p.strides[::-1]
    twin = p.copy(order="C")
    g = drawn(5, 5, seed=1)
    adamas.Adam(twin, lr=0.1).step(g)
    optimizer.step(g)
    assert p.tobytes() == twin.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_gradients_of_other_strides_give_the_bits_of_contiguous_ones(dtype, engine):
    p, twin = drawn(6, 5).astype(dtype), drawn(6, 5).astype(dtype)
    g = drawn(5, 6, seed=1).astype(dtype).T
    adamas.Adam({"p": p}, lr=0.1, engine=engine).step({"p": g})
    adamas.Adam({"p": twin}, lr=0.1).step({"p": np.array(g, order="C")})
    assert p.tobytes() == twin.tobytes()


def test_views_of_state_cannot_be_resized_under_the_step():
    optimizer = adamas.Adam(drawn(5), lr=0.1)
    mean = optimizer.state_dict(copy=False)["state"]["x"]["mean"]
    with pytest.raises(ValueError, match="does not own its data"):
        mean.resize((10**6,), refcheck=False)


# ── what is replaced ───────────────────────────────────────────────────────────────────────────


def tree():
    return {
        "w": drawn(4),
        "layers": [drawn(3, seed=1), (drawn(2, seed=2), {"b": drawn(5, seed=3)})],
    }


def like(branch):
    if isinstance(branch, np.ndarray):
        return np.ones_like(branch)
    if isinstance(branch, dict):
        return {key: like(each) for key, each in branch.items()}
    return [like(each) for each in branch]


def replaced(t):
    t["w"] = t["w"] * 2


def replaced_in_list(t):
    t["layers"][0] = t["layers"][0].copy()


def replaced_deep(t):
    t["layers"][1][1]["b"] = np.zeros(5, np.float32)


def replaced_branch(t):
    t["layers"] = [t["layers"][0], (drawn(2), t["layers"][1][1])]


def added(t):
    t["new"] = drawn(2)


def removed(t):
    del t["w"]


def swapped(t):
    t["w"], t["layers"][0] = t["layers"][0], t["w"]


REPLACED = [
    (replaced, "w"),
    (replaced_in_list, "layers.0"),
    (replaced_deep, "layers.1.1.b"),
    (replaced_branch, "layers.1.0"),
    (added, "new"),
    (removed, "w"),
    (swapped, "w"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("change", "name"), REPLACED)
def test_an_array_that_was_replaced_is_named(change, name, grouped, container, engine):
    params = container(tree())
    given = [{"params": params}, {"params": drawn(2)}] if grouped else params
    optimizer = adamas.Adam(given, lr=0.1, engine=engine)
    before = everything(optimizer)
    change(params)
    gradients = [like(params), drawn(2)] if grouped else like(params)
    name = f"0.{name}" if grouped else name
    message = (
        f"Parameter {name} is another array than the one that is stepped: its entry in params was "
        "replaced, added or taken out. Write values into the array itself, as in "
        'weights["w"][...] = values, or create another optimizer.'
    )
    stored = optimizer.state_dict()
    for call in (
        lambda: optimizer.step(gradients),
        lambda: optimizer.load_state_dict(stored),
        lambda: optimizer.snapshot().__enter__(),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
    assert everything(optimizer) == before


def test_an_array_that_was_replaced_is_not_saved_over_silently(tmp_path):
    params = tree()
    optimizer = adamas.Adam(params, lr=0.1, ema=0.9)
    replaced(params)
    for function in (adamas.save, lambda path, each: each.ema_weights().__enter__()):
        with pytest.raises(ValueError, match="Parameter w is another array than the one that is"):
            function(tmp_path / "run", optimizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize(("change", "name"), REPLACED)
def test_an_optimizer_whose_arrays_were_replaced_is_not_copied_over_others(change, name, copied):
    params = tree()
    optimizer = adamas.Adam(params, lr=0.1)
    change(params)
    with pytest.raises(
        ValueError, match=f"^Parameter {name} is another array than the one that is"
    ):
        copied(optimizer)


def frozen(p):
    p.setflags(write=False)


def reshaped(p):
    p.shape = (2, 2)


@pytest.mark.parametrize("change", [frozen, reshaped])
def test_arrays_that_changed_while_the_average_is_in_place_get_their_weights_back(change):
    params = {"a": drawn(3), "b": drawn(4), "c": drawn(5)}
    optimizer = adamas.Adam(params, lr=0.1, ema=0.9)
    for _ in range(2):
        optimizer.step(like(params))
    before = everything(optimizer)
    with optimizer.ema_weights():
        change(params["b"])
    params["b"].setflags(write=True)
    params["b"].shape = (4,)
    assert everything(optimizer) == before
    optimizer.step(like(params))
    assert optimizer.steps == 3


def test_an_array_resized_while_the_average_is_in_place_is_named_and_others_are_put_back():
    params = {"a": drawn(3), "b": drawn(4), "c": drawn(5)}
    optimizer = adamas.Adam(params, lr=0.1, ema=0.9)
    for _ in range(2):
        optimizer.step(like(params))
    before = {name: p.tobytes() for name, p in params.items()}

    def resize_inside():
        with optimizer.ema_weights():
            params["b"].resize(100_000, refcheck=False)

    message = (
        "Inside ema_weights() b was resized, so the weights in training could not be put back "
        "there. Go on from a checkpoint, with another optimizer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resize_inside()
    assert [params[name].tobytes() == before[name] for name in "ac"] == [True, True]
    with pytest.raises(ValueError, match=r"^Parameter b has shape \(100000,\) by now"):
        optimizer.step(like(params))


class Weights(dict):
    pass


class Computed(dict):
    """A dict that is not asked as others are."""

    def __getitem__(self, key):
        return super().__getitem__(key) * 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [dict, Weights, collections.OrderedDict])
def test_the_order_of_a_dict_is_no_matter(kind, engine):
    params = kind(a=drawn(4), b=Weights(c=drawn(4, seed=1), d=[drawn(3)]), e=drawn(4, seed=4))
    twin = {"a": params["a"].copy(), "b": {"c": drawn(4, seed=1), "d": [drawn(3)]}}
    twin["e"] = params["e"].copy()
    gradients = {"e": drawn(4, seed=7), "b": {"d": [drawn(3, seed=6)], "c": drawn(4, seed=5)}}
    gradients["a"] = drawn(4, seed=8)
    optimizer, other = adamas.Adam(params, lr=0.1, engine=engine), adamas.Adam(twin, lr=0.1)
    for _ in range(3):
        optimizer.step(kind(gradients))
        other.step(gradients)
        assert everything(optimizer) == everything(other)
        params["a"] = params.pop("a")
        if kind is collections.OrderedDict:
            params.move_to_end("e", last=False)
    again = pickle.loads(pickle.dumps(optimizer))
    again.step(gradients)
    other.step(gradients)
    assert everything(again) == everything(other)


def test_gradients_are_what_their_container_gives():
    p, twin = {"a": drawn(4)}, {"a": drawn(4)}
    g = {"a": drawn(4, seed=1)}
    adamas.Adam(p, lr=0.1).step(Computed(g))
    adamas.Adam(twin, lr=0.1).step(g)
    assert p["a"].tobytes() == twin["a"].tobytes()


# ── memory ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_every_way_an_array_may_lie_in_memory_gives_the_bits_of_a_contiguous_one(ndim, dtype):
    shape = (17, 33, 2, 5)[:ndim]
    random = np.random.default_rng(3)
    for _ in range(20):
        axes = random.permutation(ndim)
        steps = random.choice([-3, -2, -1, 1, 2, 3], ndim)
        whole = [0] * ndim
        for axis in range(ndim):
            whole[axes[axis]] = shape[axis] * abs(steps[axis])
        p = np.zeros(whole, dtype).transpose(axes)[tuple(slice(None, None, s) for s in steps)]
        assert p.shape == shape
        p[...] = random.standard_normal(shape)
        twin = np.array(p, order="C")
        options = {"lr": 0.1, "clip_norm": 1.0, "statistics": True, "rounding": "stochastic"}
        one, other = adamas.Adam(p, **options), adamas.Adam(twin, **options)
        for seed in range(2):
            g = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
            one.step(g)
            other.step(g)
        assert everything(one) == everything(other)
        between = p.base if p.base is not None else p
        assert np.count_nonzero(between) <= p.size


def test_an_array_of_other_strides_alone_keeps_its_options_where_memory_is_short(monkeypatch):
    p = drawn(6, 4)[:, ::2]
    optimizer = adamas.Adam(p, lr=0.1)
    optimizer.step(np.ones_like(p))

    def short(*_, **__):
        raise MemoryError

    monkeypatch.setattr(native, "Plan", short)
    before = everything(optimizer)
    with pytest.raises(MemoryError):
        optimizer.lr = 0.5
    assert everything(optimizer) == before
    monkeypatch.undo()
    moved = p.copy()
    optimizer.step(np.ones_like(p))
    assert (p < moved).all()
    assert (optimizer.lr, optimizer.steps) == (0.1, 2)
