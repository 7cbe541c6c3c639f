"""The optimizers of NumPy arrays: what they take, change, keep and give back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import adamas

ENGINES = ["native", "reference"]
METHODS = [adamas.Adam, adamas.AdamW, adamas.Momentum, adamas.RMSProp]


def drawn(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arrays_of(optimizer):
    """Copies of all parameters and state, by name."""
    found = {name: p.copy() for name, p in optimizer.named_parameters().items()}
    for name, entries in optimizer.state_dict()["state"].items():
        found |= {f"{name}/{entry}": array for entry, array in entries.items()}
    return found


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


TREES = {
    "array": lambda: drawn(5, 3),
    "list": lambda: [drawn(4), drawn(2, 2, dtype=np.float64)],
    "tuple": lambda: (drawn(4), drawn(1)),
    "dict": lambda: {"b": drawn(4), "a": drawn(3)},
    "nested": lambda: {"layers": [{"w": drawn(3, 2), "b": drawn(2)}, (drawn(4),)], "x": drawn(1)},
    "groups": lambda: [{"params": drawn(3)}, {"params": {"w": drawn(2)}, "lr": 0.5}],
}


def like(tree, make):
    """The same tree with other leaves, in the form of gradients."""
    if isinstance(tree, dict):
        if "params" in tree:
            return like(tree["params"], make)
        return {key: like(branch, make) for key, branch in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(like(branch, make) for branch in tree)
    return make(tree)


def leaves(tree):
    if isinstance(tree, dict):
        if "params" in tree:
            return leaves(tree["params"])
        return [leaf for branch in tree.values() for leaf in leaves(branch)]
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tree", TREES)
def test_every_array_of_a_tree_is_stepped_as_it_would_be_alone(tree, engine):
    params = TREES[tree]()
    lone = [p.copy() for p in leaves(params)]
    optimizer = adamas.Adam(params, lr=0.1, engine=engine)
    rates = [0.1] * len(lone) if tree != "groups" else [0.1, 0.5]
    twins = [adamas.Adam(p, lr=lr) for p, lr in zip(lone, rates, strict=True)]
    before = [id(p) for p in leaves(params)]
    for _ in range(3):
        optimizer.step(like(params, lambda p: p * 2 + 1))
        for p, twin in zip(lone, twins, strict=True):
            twin.step(p * 2 + 1)
    assert [id(p) for p in leaves(params)] == before
    for p, expected in zip(leaves(params), lone, strict=True):
        assert p.tobytes() == expected.tobytes()


def test_leaves_are_named_by_the_way_to_them():
    assert list(adamas.Adam(TREES["nested"]()).named_parameters()) == [
        "layers.0.w", "layers.0.b", "layers.1.0", "x",
    ]  # fmt: skip
    assert list(adamas.Adam(TREES["array"]()).named_parameters()) == ["x"]
    assert list(adamas.Adam(TREES["groups"]()).named_parameters()) == ["0", "1.w"]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_never_written(method):
    p, g = drawn(1000), drawn(1000, seed=1)
    kept = g.tobytes()
    options = {"clip_norm": 0.1, "maximize": True, "weight_decay": 0.1}
    method(p, **options).step(g)
    assert g.tobytes() == kept


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "a part of more": lambda x: np.pad(x, 2)[2:-2, 2:-2],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["parameter", "gradient", "both"])
def test_the_layout_in_memory_changes_no_bit(layout, of, engine):
    options = {"clip_norm": 1.0, "ema": 0.9, "statistics": True, "engine": engine}
    plain = drawn(37, 50)
    odd = LAYOUTS[layout](plain.copy()) if of != "gradient" else plain.copy()
    ours, expected = adamas.Adam(odd, **options), adamas.Adam(plain, **options)
    for seed in range(3):
        g = drawn(37, 50, seed=seed)
        ours.step(LAYOUTS[layout](g) if of != "parameter" else g)
        expected.step(g)
    assert bits(arrays_of(ours)) == bits(arrays_of(expected))
    assert ours.statistics() == expected.statistics()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_between_the_elements_of_a_strided_array_stays(layout):
    if layout != "a part of more":
        whole = np.zeros((6, 8), np.float32)
        part = whole[::2, 1::2]
    else:
        whole = np.zeros((6, 8), np.float32)
        part = whole[1:3, 2:5]
    adamas.Adam(part, lr=1.0).step(np.ones_like(part))
    assert (part == -1).all()
    assert np.count_nonzero(whole) == part.size


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_without_dimensions_or_elements_are_stepped(engine):
    params = {"scalar": np.array(1.0), "none": np.zeros((0, 3)), "one": np.ones(1, np.float32)}
    optimizer = adamas.Adam(params, lr=0.5, statistics=True, engine=engine)
    gradients = {"scalar": np.float64(2.0), "none": np.zeros((0, 3)), "one": np.ones(1, "f4")}
    optimizer.step(gradients)
    assert params["scalar"] == pytest.approx(0.5, abs=1e-7)
    assert optimizer.statistics()["none"].unmoved == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_in_memory_that_is_written_is_read_before(engine):
    plain = drawn(2000)
    expected = adamas.Adam(plain)
    itself = plain.copy()
    ours = adamas.Adam(itself, engine=engine)
    for _ in range(3):
        expected.step(plain.copy())
        ours.step(itself)
    assert itself.tobytes() == plain.tobytes()
    state = ours.groups[0].states[0]
    expected.step(expected.groups[0].states[0].mean.copy())
    ours.step(state.mean)
    assert bits(arrays_of(ours)) == bits(arrays_of(expected))


def test_a_schedule_is_asked_for_every_step_from_one_on():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 / step

    p = np.zeros(1)
    optimizer = adamas.Momentum(p, lr=schedule, beta=0.0)
    moved = []
    for _ in range(3):
        before = p.copy()
        optimizer.step(np.ones(1))
        moved.append(float(before[0] - p[0]))
    assert moved == pytest.approx([1.0, 0.5, 1 / 3])
    assert asked == [1, 2, 3]


def test_each_group_may_have_a_schedule_of_its_own():
    params = [np.zeros(1), np.zeros(1)]
    groups = [{"params": params[0], "lr": lambda step: 2.0}, {"params": params[1]}]
    adamas.Momentum(groups, lr=1.0, beta=0.0).step([np.ones(1), np.ones(1)])
    assert [float(p[0]) for p in params] == [-2.0, -1.0]


def test_options_changed_on_the_way_count_from_the_next_step():
    p, twin = drawn(100), drawn(100)
    optimizer, other = adamas.Adam(p, lr=0.1), adamas.AdamW(twin, lr=0.2, weight_decay=0.3)
    g = drawn(100, seed=1)
    optimizer.step(g)
    other.load_state_dict({**optimizer.state_dict(), "groups": other.state_dict()["groups"]})
    twin[...] = p
    optimizer.set_options(lr=0.2, weight_decay=0.3, decay="decoupled")
    optimizer.step(g)
    other.step(g)
    assert p.tobytes() == twin.tobytes()
    assert optimizer.lr == 0.2


def test_setting_lr_sets_all_groups_and_an_index_one():
    optimizer = adamas.Adam(TREES["groups"]())
    optimizer.lr = 0.25
    assert [group.options.lr for group in optimizer.groups] == [0.25, 0.25]
    optimizer.set_options(group=1, lr=0.5)
    assert [group.options.lr for group in optimizer.groups] == [0.25, 0.5]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_run_taken_up_again_gives_the_bits_of_the_unbroken_one(method, how):
    def made():
        params = {"a": drawn(300), "b": drawn(7, 5, dtype=np.float64)[:, ::2]}
        return params, method(params, lr=0.1, ema=0.9, on_nonfinite="skip")

    def advance(params, optimizer, steps):
        for step in steps:
            factor = np.inf if step == 2 else 1.0
            gradients = {"a": drawn(300, seed=step) * np.float32(factor), "b": params["b"] * 2}
            optimizer.step(gradients)

    params, unbroken = made()
    advance(params, unbroken, range(8))
    params, first = made()
    advance(params, first, range(4))
    if how == "state_dict":
        stored, values = first.state_dict(), copy.deepcopy(params)
        advance(params, first, range(4, 6))  # what was stored must not change with it
        params, second = made()
        for name, p in params.items():
            p[...] = values[name]
        second.load_state_dict(stored)
    else:
        second = copy.deepcopy(first) if how == "deepcopy" else pickle.loads(pickle.dumps(first))
        params = second.named_parameters()
    assert (second.steps, second.skipped) == (3, 1)
    advance(params, second, range(4, 8))
    assert bits(arrays_of(second)) == bits(arrays_of(unbroken))


def test_nbytes_counts_the_state():
    p = np.zeros(1000, np.float32)
    assert adamas.Momentum(p).nbytes == 4000
    assert adamas.Adam(p, amsgrad=True, ema=0.9).nbytes == 16000


def test_repr_tells_method_size_rate_and_steps():
    optimizer = adamas.Adam([np.zeros(1500), np.zeros(2)], lr=0.5)
    assert repr(optimizer) == "<adamas.Adam: 1,502 parameters in 2 arrays, lr=0.5, 0 steps>"


# ── the phase ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_is_a_step_with_gradients_scaled_by_hand(engine):
    p, twin = [drawn(3000), drawn(50, seed=1)], [drawn(3000), drawn(50, seed=1)]
    clipped = adamas.Adam(p, lr=0.1, clip_norm=2.0, engine=engine)
    plain = adamas.Adam(twin, lr=0.1)
    gradients = [drawn(3000, seed=2), drawn(50, seed=3)]
    norm = float(np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients)))
    clipped.step(gradients)
    assert clipped.gradient_norm == pytest.approx(norm, rel=1e-14)
    plain.step([g * np.float32(2.0 / clipped.gradient_norm) for g in gradients])
    for a, b in zip(p, twin, strict=True):
        assert a.tobytes() == b.tobytes()


def test_gradients_within_the_norm_are_not_touched():
    p, twin, g = drawn(10), drawn(10), drawn(10, seed=1)
    adamas.Adam(p, clip_norm=1e9).step(g)
    adamas.Adam(twin).step(g)
    assert p.tobytes() == twin.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skip_leaves_a_step_out_and_counts_it(bad, engine):
    params = {"good": drawn(2000), "bad": drawn(3)}
    optimizer = adamas.Adam(params, on_nonfinite="skip", ema=0.9, engine=engine)
    optimizer.step({"good": drawn(2000), "bad": drawn(3)})
    before = bits(arrays_of(optimizer))
    gradients = {"good": drawn(2000), "bad": np.array([1, bad, 1], np.float32)}
    optimizer.step(gradients)
    assert bits(arrays_of(optimizer)) == before
    assert (optimizer.steps, optimizer.skipped) == (1, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_raise_names_the_tensors_and_touches_nothing(engine):
    params = {"good": drawn(2000), "bad": drawn(3), "worse": drawn(4)}
    optimizer = adamas.Adam(params, on_nonfinite="raise", engine=engine)
    before = bits(arrays_of(optimizer))
    gradients = {key: np.ones_like(p) for key, p in params.items()}
    gradients["bad"][0], gradients["worse"][1:] = np.nan, np.inf
    message = (
        r"^Gradients are NaN or infinite: bad \(1 of 3 elements\), worse \(3 of 4 elements\)\. "
        r"Nothing was changed\. Look for a division or overflow in the loss, or skip such steps "
        r'with on_nonfinite="skip"\.$'
    )
    with pytest.raises(FloatingPointError, match=message):
        optimizer.step(gradients)
    assert bits(arrays_of(optimizer)) == before
    assert (optimizer.steps, optimizer.skipped) == (0, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_propagate_lets_nan_through_to_its_own_element_only(engine):
    p = drawn(5)
    adamas.Adam(p, engine=engine).step(np.array([1, np.nan, 1, 1, 1], np.float32))
    assert np.isnan(p).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_average_is_the_running_mean_of_the_parameters(engine):
    p = drawn(2000, dtype=np.float64)
    optimizer = adamas.Adam(p, lr=0.1, ema=0.75, engine=engine)
    seen = []
    for seed in range(5):
        optimizer.step(drawn(2000, dtype=np.float64, seed=seed))
        seen.append(p.copy())
    expected = adamas.ema(np.array(seen), 0.75, debias=False)[-1]
    last = p.copy()
    with optimizer.ema_weights():
        assert (p == expected).all()
    assert (p == last).all()


def test_the_parameters_come_back_from_the_average_after_an_error():
    p = drawn(10)
    optimizer = adamas.Adam(p, lr=0.5, ema=0.9)
    for _ in range(2):
        optimizer.step(np.ones_like(p))
    last = p.copy()

    def fail_inside():
        with optimizer.ema_weights():
            assert (p != last).all()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert (p == last).all()


def test_no_step_is_made_while_the_average_is_in_place():
    p = drawn(10)
    optimizer = adamas.Adam(p, ema=0.9)
    with optimizer.ema_weights():
        with pytest.raises(
            RuntimeError,
            match=r"^The EMA weights are swapped in, so no step",
        ):
            optimizer.step(np.ones_like(p))
        with (
            pytest.raises(RuntimeError, match=r"^The EMA weights are swapped in already\.$"),
            optimizer.ema_weights(),
        ):
            pass
    optimizer.step(np.ones_like(p))
    assert optimizer.steps == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_what_numpy_computes(engine):
    params = {"a": drawn(3000), "b": drawn(3)}
    optimizer = adamas.AdamW(params, lr=0.1, statistics=True, engine=engine)
    before = {name: p.copy() for name, p in params.items()}
    gradients = {"a": drawn(3000, seed=1), "b": np.array([0, np.inf, np.nan], np.float32)}
    gradients["a"][:600] = 0
    before["a"][:600] = params["a"][:600] = 0
    optimizer.step(gradients)
    taken = optimizer.statistics()
    a = taken["a"]
    assert a.gradient_norm == pytest.approx(np.linalg.norm(gradients["a"].astype(float)), rel=1e-13)
    assert a.parameter_norm == pytest.approx(np.linalg.norm(before["a"].astype(float)), rel=1e-13)
    change = (before["a"] - params["a"]).astype(float)
    # p - change was rounded: half a unit of p's for each element.
    assert a.update_norm == pytest.approx(np.linalg.norm(change), rel=1e-4)
    assert a.largest_update == pytest.approx(1.0, abs=1e-5)
    assert (a.nonfinite, a.unmoved) == (0, 0.2)
    assert taken["b"].nonfinite == 2
    assert np.isnan(taken["b"].largest_update)


def test_statistics_and_averages_must_have_been_asked_for():
    optimizer = adamas.Adam(drawn(2))
    with pytest.raises(RuntimeError, match=r"Create the optimizer with statistics=True\.$"):
        optimizer.statistics()
    with (
        pytest.raises(RuntimeError, match=r"Create the optimizer with ema=0\.999, for example\.$"),
        optimizer.ema_weights(),
    ):
        pass
    with pytest.raises(RuntimeError, match=r"^There are no statistics: the last step was left out"):
        adamas.Adam(drawn(2), statistics=True).statistics()
    assert optimizer.gradient_norm is None
