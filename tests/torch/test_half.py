"""Parameters of torch in bfloat16 and float16: the NumPy front-end's bits, and torch's state."""

from __future__ import annotations

import copy
import io

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import adamas
import adamas.torch as ours
from tests.support.copied import left_by_steps
from tests.support.torch_routes import standing_in

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
NUMPY = {BFLOAT16: np.dtype(ml_dtypes.bfloat16), FLOAT16: np.dtype(np.float16)}
SHAPES = [(5, 7), (33,), (), (0,), (40, 50)]
ROUNDINGS = [
    *((BFLOAT16, each) for each in (None, "nearest", "stochastic", "remainder", "remainder8")),
    *((FLOAT16, each) for each in (None, "nearest", "stochastic")),
]
STATES = ["float32", "bfloat16", "compact", "8bit", ("8bit", "float32")]


def drawn(dtype, steps=4, seed=0):
    random = np.random.default_rng(seed)

    def arrays():
        return [np.asarray(random.standard_normal(s), NUMPY[dtype]) for s in SHAPES]

    return arrays(), [arrays() for _ in range(steps)]


def tensor(array):
    if array.dtype == NUMPY[BFLOAT16]:
        return torch.from_numpy(array.view(np.int16).copy()).view(BFLOAT16)
    return torch.from_numpy(array.copy())


def array(tensor_):
    if tensor_.dtype == BFLOAT16:
        return tensor_.detach().view(torch.int16).numpy().view(NUMPY[BFLOAT16])
    return tensor_.detach().numpy()


def parameters(values):
    return [nn.Parameter(tensor(each)) for each in values]


def step(optimizer, params, gradients):
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = tensor(gradient)
    optimizer.step()


def trained(optimizer, params, gradients):
    for each in gradients:
        step(optimizer, params, each)
    return optimizer


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def is_native(optimizer):
    return {*optimizer.routes().values()} == {"native"}


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
def test_a_step_has_the_bits_of_the_numpy_front_end(dtype, rounding, state):
    values, gradients = drawn(dtype)
    options = {"lr": 0.01, "state": state, "rounding": rounding, "seed": 3, "weight_decay": 0.1}
    arrays = [each.copy() for each in values]
    judge = adamas.AdamW(arrays, **options)
    for each in gradients:
        judge.step(each)
    params = parameters(values)
    optimizer = trained(ours.AdamW(params, **options), params, gradients)
    for given, p in zip(arrays, params, strict=True):
        np.testing.assert_array_equal(array(p), given)
    assert is_native(optimizer)
    saved = optimizer.state_dict()["state"].values()
    for entries, own in zip(judge.state_dict()["state"].values(), saved, strict=True):
        np.testing.assert_array_equal(own["exp_avg"].numpy(), entries["mean"])
        np.testing.assert_array_equal(own["exp_avg_sq"].numpy(), entries["square"])
        assert ("remainder" in own) is (rounding in ("remainder", "remainder8"))
        if "remainder" in own:
            np.testing.assert_array_equal(own["remainder"].numpy(), entries["remainder"])


@pytest.mark.quick_cases(24)
@pytest.mark.parametrize("phase", [{}, {"ema": 0.9, "statistics": True, "clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("state", [None, *STATES], ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
def test_torchs_operations_give_the_bits_of_the_native_engine(dtype, rounding, state, phase):
    values, gradients = drawn(dtype)
    runs = []
    for engine in ("native", "torch"):
        params = parameters(values)
        optimizer = ours.Adam(
            params,
            lr=0.01,
            state=state,
            rounding=rounding,
            copy_to=BFLOAT16,
            engine=engine,
            **phase,
        )
        trained(optimizer, params, gradients)
        assert {*optimizer.routes().values()} == {engine}
        entries = [each for kept in optimizer.state.values() for each in kept.values()]
        numbers = [torch.as_tensor(each) for each in entries]
        taken = optimizer.statistics().values() if phase else ()
        runs.append([*(p.detach() for p in params), *numbers, *left_by_steps(optimizer), *taken])
    assert same(*runs)


def test_other_methods_take_half_precision():
    for name, options in (("NAdam", {}), ("RMSprop", {}), ("SGD", {"momentum": 0.9}), ("SGD", {})):
        for rounding in ("nearest", "stochastic", "remainder"):
            values, gradients = drawn(BFLOAT16)
            wide = [nn.Parameter(tensor(each).float()) for each in values]
            judge = getattr(ours, name)(wide, lr=0.01, **options)
            for each in gradients:
                for p, gradient in zip(wide, each, strict=True):
                    p.grad = tensor(gradient).float()
                judge.step()
            params = parameters(values)
            optimizer = getattr(ours, name)(
                params, lr=0.01, state="float32", rounding=rounding, **options
            )
            trained(optimizer, params, gradients)
            assert is_native(optimizer)
            for a, b in zip(wide, params, strict=True):
                if rounding == "remainder":  # what is lost elsewhere is kept: the bits of float32
                    low = optimizer.state[b]["remainder"].to(torch.int32)
                    bits = (b.detach().view(torch.int16).to(torch.int32) << 16) + low
                    assert torch.equal(bits, a.detach().view(torch.int32)), name
                else:
                    assert torch.allclose(b.float(), a, rtol=0.03, atol=0.02), name


# ── what is kept ───────────────────────────────────────────────────────────────────────────────


def test_by_default_the_state_of_bfloat16_is_torchs():
    values, gradients = drawn(BFLOAT16)
    params, twins = parameters(values), parameters(values)
    optimizer = trained(ours.AdamW(params), params, gradients)
    theirs = trained(torch.optim.AdamW(twins), twins, gradients)
    for p, twin in zip(params, twins, strict=True):
        mine, other = optimizer.state[p], theirs.state[twin]
        assert {n: x.dtype for n, x in mine.items()} == {n: x.dtype for n, x in other.items()}
    assert not {"state", "rounding"} & optimizer.param_groups[0].keys()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop", "SGD"])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7])
def test_float16_trains_by_default_as_with_a_state_in_float32(name, size):
    """The square of a small gradient is 0 in float16, and a step of torch's infinite."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    found = []
    for state in ({}, {"state": "float32"}):
        p = nn.Parameter(torch.ones(5, dtype=FLOAT16))
        optimizer = getattr(ours, name)([p], lr=2.0**-9, **options, **state)
        for _ in range(10):
            p.grad = torch.full_like(p, size)
            optimizer.step()
        assert is_native(optimizer)
        found.append(p)
    assert same(*([p] for p in found))
    if name == "Adam" and size >= 1e-4:  # where ε is small beside the gradient: a step is lr
        assert torch.equal(found[0], torch.full_like(found[0], 1 - 10 * 2.0**-9))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"centered": True}], ids=str)
def test_rmsprops_own_formulas_keep_a_state_in_float32_in_float32(options, dtype):
    """A step is that of a parameter in float32 with the same value, rounded."""
    state = {"state": "float32"} if dtype == BFLOAT16 else {}
    p = nn.Parameter(torch.linspace(0.5, 1, 9, dtype=dtype))
    q = nn.Parameter(p.detach().float())
    optimizer, other = (
        ours.RMSprop([x], lr=2.0**-6, **options, **own) for x, own in ((p, state), (q, {}))
    )
    for _ in range(4):
        with torch.no_grad():
            q.copy_(p)
        p.grad, q.grad = torch.full_like(p, 2.0**-13), torch.full_like(q, 2.0**-13)
        optimizer.step()
        other.step()
        assert torch.equal(p, q.to(dtype))
    for name, entry in other.state[q].items():
        assert torch.equal(optimizer.state[p][name], entry)
        assert optimizer.state[p][name].dtype == torch.float32


@pytest.mark.parametrize("direction", ["to ours", "to torch's"])
def test_checkpoints_of_float16_parameters_go_both_ways(direction):
    values, gradients = drawn(FLOAT16)
    first, second = (torch.optim, ours) if direction == "to ours" else (ours, torch.optim)
    params, twins = parameters(values), parameters(values)
    before = trained(first.AdamW(params), params, gradients)
    after = second.AdamW(twins)
    after.load_state_dict(before.state_dict())
    wanted = torch.float32 if second is ours else FLOAT16
    for p, twin in zip(params, twins, strict=True):
        for entry in ("exp_avg", "exp_avg_sq"):
            found = after.state[twin][entry]
            assert found.dtype == wanted
            assert torch.equal(found, before.state[p][entry].to(wanted))


def test_float32_state_can_be_asked_for():
    values, gradients = drawn(BFLOAT16)
    params = parameters(values)
    optimizer = trained(
        ours.Adam(params, state="float32", amsgrad=True, ema=0.9), params, gradients
    )
    for p in params:
        dtypes = {n: x.dtype for n, x in optimizer.state[p].items()}
        assert set(dtypes.values()) == {torch.float32}
        assert dtypes.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema"}
    assert is_native(optimizer)
    with optimizer.ema_weights():
        assert torch.equal(params[0], optimizer.state[params[0]]["ema"].to(BFLOAT16))


def test_small_updates_are_kept_by_chance_and_by_remainders_only():
    ends = {}
    for rounding in (None, "stochastic", "remainder", "remainder8"):
        p = nn.Parameter(torch.ones(10_000, dtype=BFLOAT16))
        optimizer = ours.Adam([p], lr=1e-5, rounding=rounding)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends[rounding] = p.float().mean().item()
    assert ends.pop(None) == 1.0  # each update is below half a unit of bfloat16 at 1
    # The value is 1 - 100 * 1e-5. Of the mean of 10,000 roundings to a grid of 2^-8, the standard
    # deviation is at most 2^-9 / 100 = 2e-5; remainders alone show it rounded to the grid.
    assert abs(ends["stochastic"] - 0.999) < 1e-4
    assert ends["remainder"] == 1.0
    p = nn.Parameter(torch.ones(1, dtype=BFLOAT16))
    optimizer = ours.Adam([p], lr=1e-5, rounding="remainder")
    for _ in range(400):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.item() == 1 - 2**-8  # the sum of 400 updates, 0.996, on the grid of 2^-8 below 1


@pytest.mark.parametrize("route", ["native", "plain", "offload late", "triton"])
@pytest.mark.parametrize("rounding", ["remainder", "remainder8"])
def test_weights_that_are_assigned_zero_go_on_from_zero(rounding, route):
    """A mask of pruning leaves remainders of the weights that it takes away."""
    if route == "triton":
        pytest.importorskip("triton")
    options = {"offload": route == "offload late"}
    options["engine"] = "torch" if route == "plain" else None
    found = []
    with standing_in(route) as device:
        for remainder in ("old", "cleared"):
            start = torch.linspace(-2.0, 2.0, 201).to(device, BFLOAT16)
            p = nn.Parameter(start.clone())
            optimizer = ours.Adam([p], lr=0.01, rounding=rounding, seed=1, **options)
            for scale in (1.0, 0.7, 1.3, -0.2):
                p.grad = (start + 0.5) * scale
                optimizer.step()
            low = optimizer.state[p]["remainder"]
            assert (low < 0).any()
            assert (low > 0).any()
            with torch.no_grad():
                p.mul_(torch.arange(201, device=device) % 3 > 0)
            if remainder == "cleared":
                low[::3] = 0
            for _ in range(2):
                p.grad = start + 0.5
                optimizer.step()
            found.append([p.detach().cpu(), low.cpu()])
    assert found[0][0].isfinite().all()
    assert same(*found)


def test_random_bits_of_sgd_are_new_at_each_step():
    p = nn.Parameter(torch.ones(1000, dtype=BFLOAT16))
    optimizer = ours.SGD([p], lr=2.0**-10, rounding="stochastic")
    moved = []
    for _ in range(8):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        moved.append((p != before).tolist())
        with torch.no_grad():
            p.fill_(1)
    assert len({tuple(each) for each in moved}) == 8


# ── checkpoints ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["dense", "packed", "pickle"])
@pytest.mark.parametrize("state", [None, *STATES], ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
def test_a_resumed_training_gives_the_bits_of_the_unbroken_one(dtype, rounding, state, how):
    values, gradients = drawn(dtype, 8)
    options = {"lr": 0.01, "state": state, "rounding": rounding, "ema": 0.9}
    params = parameters(values)
    optimizer = trained(ours.AdamW(params, **options), params, gradients[:4])
    if how == "pickle":
        twins, other = copy.deepcopy((params, optimizer))
    else:
        twins = parameters([array(p).copy() for p in params])
        other = ours.AdamW(twins, **options)
        stored = io.BytesIO()
        torch.save(optimizer.state_dict(packed=how == "packed"), stored)
        stored.seek(0)
        other.load_state_dict(torch.load(stored, weights_only=True))
    trained(optimizer, params, gradients[4:])
    trained(other, twins, gradients[4:])
    assert same(params, twins)


@pytest.mark.parametrize("state", [None, *STATES], ids=str)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_a_state_of_torch_is_taken_over(dtype, state):
    values, gradients = drawn(dtype)
    twins = parameters(values)
    theirs = trained(torch.optim.AdamW(twins), twins, gradients)
    params = parameters([array(p).copy() for p in twins])
    optimizer = ours.AdamW(params, state=state)
    optimizer.load_state_dict(theirs.state_dict())
    fresh = ours.AdamW(parameters(values), state=state)
    trained(fresh, fresh.param_groups[0]["params"], gradients[:1])
    kept = optimizer.state_dict(packed=True)["packed_state"]
    for i, entries in fresh.state_dict(packed=True)["packed_state"].items():
        assert {n: getattr(x, "dtype", None) for n, x in kept[i].items()} == {
            n: getattr(x, "dtype", None) for n, x in entries.items()
        }
    for i, entries in theirs.state_dict()["state"].items():
        mine = optimizer.state_dict()["state"][i]
        root = entries["exp_avg_sq"].float().sqrt()
        # A code of v is within 4.4 % of it, of m within 1/32 of the power of two above 4√v
        assert torch.allclose(mine["exp_avg_sq"].float().sqrt(), root, rtol=0.05, atol=1e-4)
        assert ((mine["exp_avg"] - entries["exp_avg"]).abs() <= root / 4 + 1e-4).all()


@pytest.mark.parametrize("saved", ["bfloat16", "compact", "8bit", ("8bit", "float32")], ids=str)
@pytest.mark.parametrize("loading", [None, *STATES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16, FLOAT16])
def test_a_packed_state_of_any_form_is_read_in_its_own_form(dtype, loading, saved):
    values, gradients = drawn(BFLOAT16)
    params = [nn.Parameter(tensor(each).to(dtype)) for each in values]
    optimizer = ours.Adam(params, state=saved)
    for p, gradient in zip(params, gradients[0], strict=True):
        p.grad = tensor(gradient).to(dtype)
    optimizer.step()
    runs = []
    for packed in (True, False):
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        other = ours.Adam(twins, state=loading)
        other.load_state_dict(optimizer.state_dict(packed=packed))
        dense = other.state_dict()["state"].values()
        runs.append([x.float().clone() for entries in dense for x in entries.values()])
        for twin in twins:
            twin.grad = torch.ones_like(twin)
        other.step()
        if (dtype, loading, saved) == (BFLOAT16, None, "bfloat16"):
            # Torch's own form for such parameters, which packed is kept, and dense stays float32.
            kept = BFLOAT16 if packed else torch.float32
            assert all(each["exp_avg"].dtype == kept for each in other.state.values())
        else:
            runs[-1].extend(twin.detach() for twin in twins)
    assert same(*runs)


def test_remainders_are_converted_and_dropped():
    values, gradients = drawn(BFLOAT16)
    params = parameters(values)
    optimizer = trained(ours.Adam(params, lr=0.01, rounding="remainder"), params, gradients)
    for rounding, scale in (("remainder", 1), ("remainder8", 256)):
        other = ours.Adam(parameters(values), rounding=rounding)
        other.load_state_dict(optimizer.state_dict())
        for p, twin in zip(params, other.param_groups[0]["params"], strict=True):
            low = optimizer.state[p]["remainder"].to(torch.int32)
            mine = other.state[twin]["remainder"].to(torch.int32) * scale
            assert ((low - mine) >= 0).all()
            assert ((low - mine) < scale).all()
    other = ours.Adam(parameters(values))
    other.load_state_dict(optimizer.state_dict())
    assert all("remainder" not in entries for entries in other.state.values())


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_is_refused_before_anything_changes():
    p = nn.Parameter(torch.ones(3, dtype=FLOAT16))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"dtype torch\.float16: remainders are for torch\.bfloat1"):
        ours.Adam([p], rounding="remainder").step()
    with pytest.raises(ValueError, match="rounding is 'up', but it must be one of"):
        ours.Adam([p], rounding="up")
    with pytest.raises(TypeError, match="rounded to nearest only"):
        ours.RMSprop([p], momentum=0.9, rounding="stochastic").step()
    assert torch.equal(p, torch.ones(3, dtype=FLOAT16))


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_sgd_rounds_by_other_bits_at_each_step(momentum):
    """A change of 0.3 units at a time arrives on average; the same bits at each step would not do.

    With bits that never change, 3 of 10 elements would move at each step, and 7 never.
    """
    steps, unit = 400, 2.0**-7
    p = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    optimizer = ours.SGD([p], lr=1.0, momentum=momentum, rounding="stochastic")
    for _ in range(steps):
        p.grad = torch.full_like(p, -0.3 * unit * (1 - momentum))
        optimizer.step()
        with torch.no_grad():
            p.clamp_(max=1.0 + 120 * unit)
    moved = (p.detach().float() - 1.0) / unit
    assert optimizer.state[p]["step"] == steps
    # Each has moved 0.3 · 400 = 120 times, give or take 9.2 (binomial), so none stands still.
    assert float(moved.min()) > 120 - 8 * 9.2


def test_sgd_goes_on_with_a_buffer_from_torch():
    p = nn.Parameter(torch.ones(4))
    theirs = torch.optim.SGD([p], lr=0.5, momentum=0.5)
    p.grad = torch.ones(4)
    theirs.step()
    optimizer = ours.SGD([p], lr=0.5, momentum=0.5, state="bfloat16", rounding="stochastic")
    optimizer.load_state_dict(theirs.state_dict())
    optimizer.step()
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], torch.full((4,), 1.5))
