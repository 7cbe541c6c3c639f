"""Small states of torch parameters: the bits of the NumPy front-end, and torch's checkpoints."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import adamas
import adamas.torch as ours
from tests.support.cases import FORMS
from tests.support.planned import plans_made

NAMES = ["bfloat16", "compact", "8bit"]
SHAPES = [(5, 7), (33,), (), (0,), (40, 50)]


def drawn(steps=4):
    random = np.random.default_rng(0)
    values = [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    gradients = [
        [np.asarray(random.standard_normal(shape), np.float32) for shape in SHAPES]
        for _ in range(steps)
    ]
    return [np.array(each, np.float32) for each in values], gradients


def parameters(values):
    return [nn.Parameter(torch.tensor(each)) for each in values]


def step(optimizer, params, gradients):
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = torch.tensor(gradient)
    optimizer.step()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("forms", FORMS)
def test_a_step_has_the_bits_of_the_numpy_front_end(forms, rounding):
    values, gradients = drawn()
    options = {"lr": 0.1, "state": forms, "rounding": rounding, "seed": 3, "weight_decay": 0.1}
    arrays = [each.copy() for each in values]
    judge = adamas.AdamW(arrays, **options)
    params = parameters(values)
    optimizer = ours.AdamW(params, **options)
    for each in gradients:
        judge.step(each)
        step(optimizer, params, each)
    for array, p in zip(arrays, params, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), array)
    assert {*optimizer.routes().values()} == {"native"}
    states = judge.state_dict()["state"].values()
    for state, saved in zip(states, optimizer.state_dict()["state"].values(), strict=True):
        np.testing.assert_array_equal(saved["exp_avg"].numpy(), state["mean"])
        np.testing.assert_array_equal(saved["exp_avg_sq"].numpy(), state["square"])


@pytest.mark.parametrize("forms", FORMS)
def test_torchs_operations_give_the_bits_of_the_native_engine(forms):
    values, gradients = drawn()
    runs = []
    for engine in ("native", "torch"):
        params = parameters(values)
        optimizer = ours.Adam(params, lr=0.1, state=forms, seed=1, engine=engine)
        for each in gradients:
            step(optimizer, params, each)
        assert {*optimizer.routes().values()} == {engine}
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_addresses_may_come_from_data_ptr(monkeypatch):
    values, gradients = drawn()
    runs = []
    for hidden in (False, True):
        params = parameters(values)
        optimizer = ours.Adam(params, lr=0.1, state="8bit")
        if hidden:
            monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
        with plans_made() as plans:
            for each in gradients:
                step(optimizer, params, each)
        assert [plan.native.is_fast for plan in plans] == [not hidden]
        runs.append([p.detach() for p in params])
    assert same(*runs)


@pytest.mark.parametrize("how", ["dense", "packed", "pickle"])
@pytest.mark.parametrize("form", NAMES)
def test_a_resumed_training_gives_the_bits_of_the_unbroken_one(form, how):
    values, gradients = drawn(8)
    params = parameters(values)
    optimizer = ours.AdamW(params, lr=0.1, state=form)
    for each in gradients[:4]:
        step(optimizer, params, each)
    if how == "pickle":
        twins, other = copy.deepcopy((params, optimizer))
    else:
        twins = parameters([p.detach().numpy().copy() for p in params])
        other = ours.AdamW(twins, lr=0.1, state=form)
        stored = io.BytesIO()
        torch.save(optimizer.state_dict(packed=how == "packed"), stored)
        stored.seek(0)
        other.load_state_dict(torch.load(stored, weights_only=True))
    for each in gradients[4:]:
        step(optimizer, params, each)
        step(other, twins, each)
    assert same(params, twins)


@pytest.mark.parametrize("form", NAMES)
def test_checkpoints_go_to_torch_and_come_back(form):
    values, gradients = drawn()
    params = parameters(values)
    optimizer = ours.Adam(params, lr=0.1, state=form)
    step(optimizer, params, gradients[0])
    saved = optimizer.state_dict()
    theirs = torch.optim.Adam(parameters(values), lr=0.1)
    theirs.load_state_dict(saved)
    assert theirs.state_dict()["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert theirs.state_dict()["state"][0]["exp_avg"].dtype == torch.float32
    again = ours.Adam(parameters(values), lr=0.1, state=form)
    again.load_state_dict(theirs.state_dict())
    for i, entries in again.state_dict(packed=True)["packed_state"].items():
        original = optimizer.state_dict(packed=True)["packed_state"][i]
        assert entries["exp_avg_sq"].dtype == original["exp_avg_sq"].dtype
    for i, entries in again.state_dict()["state"].items():
        assert same(entries.values(), saved["state"][i].values())


def test_a_group_keeps_its_parameters_in_float32():
    a, b = nn.Parameter(torch.ones(64)), nn.Parameter(torch.ones(64))
    optimizer = ours.AdamW([{"params": [a]}, {"params": [b], "state": "float32"}], state="8bit")
    a.grad, b.grad = torch.ones(64), torch.ones(64)
    optimizer.step()
    assert optimizer.state[a]["exp_avg"].dtype == torch.int8
    assert optimizer.state[b]["exp_avg"].dtype == torch.float32
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["state"] for group in optimizer.param_groups] == ["8bit", "float32"]
    assert optimizer.state[a]["exp_avg"].dtype == torch.int8
    assert optimizer.state[b]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", NAMES)
def test_parameters_in_half_precision_may_have_small_states(form, dtype):
    p = nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = ours.AdamW([p], lr=0.1, state=form)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.dtype == dtype
    assert ((p - 0.7).abs() < 0.02).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("NAdam", {}), ("RMSprop", {}), ("SGD", {"momentum": 0.9}), ("Adam", {"ema": 0.9}),
     ("Adam", {"clip_norm": 0.1, "statistics": True})],
)  # fmt: skip
def test_other_methods_and_the_phase_take_it(name, options):
    values, gradients = drawn()
    form = "bfloat16" if name == "SGD" else "8bit"
    runs = []
    for state in ("float32", form):
        params = parameters(values)
        optimizer = getattr(ours, name)(params, lr=0.01, state=state, **options)
        for each in gradients:
            step(optimizer, params, each)
        assert {*optimizer.routes().values()} == {"native"}
        runs.append(torch.cat([p.detach().flatten() for p in params]))
    assert (runs[0] - runs[1]).abs().max() < 0.02
    assert not torch.equal(*runs)


def test_what_cannot_have_a_small_state_is_refused_before_anything_changes():
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = ours.Adam([p], state="8bit")
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"dtype torch\.float64: low-bit states are for float32,"):
        optimizer.step()
    assert not optimizer.state
    q = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="state is 'int4', but it must be one of"):
        ours.Adam([q], state="int4")
    with pytest.raises(ValueError, match="amsgrad keeps the largest square so far"):
        ours.Adam([q], state="8bit", amsgrad=True)
    with pytest.raises(ValueError, match="but this method keeps no second moment"):
        ours.SGD([q], momentum=0.9, state="8bit")
    special = ours.RMSprop([q], momentum=0.9, state="8bit")
    q.grad = torch.ones_like(q)
    with pytest.raises(
        ValueError,
        match="not possible for RMSprop with momentum or centered, which follows another",
    ):
        special.step()
    assert torch.equal(q, torch.ones(3))


def test_the_seed_holds_where_a_clipped_step_has_tensors_of_several_kinds():
    """A gradient that is not contiguous keeps its parameter from the native engine."""
    found = []
    for clip_norm in (None, 1e9):
        params = [nn.Parameter(torch.full((40, 50), 0.3)), nn.Parameter(torch.ones(8, 8))]
        optimizer = ours.AdamW(params, state="compact", seed=7, clip_norm=clip_norm)
        for _ in range(3):
            params[0].grad = torch.linspace(0.1, 1, 2000).view(40, 50)
            params[1].grad = torch.ones(8, 8).t()
            optimizer.step()
        assert optimizer.routes() == {"0.0": "native", "0.1": "torch"}
        found.append(params)
    assert same(*found)
