"""The phase of adamas.torch: averages, copies, left out steps, statistics; and param_groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import adamas.torch as ours
from tests.support.copied import left_by_steps
from tests.support.small_model import backward, model, same, train, values


def test_the_average_is_that_of_torchs_AveragedModel():
    net, twin = model(), model()
    optimizer = ours.AdamW(net.parameters(), lr=0.05, ema=0.75)
    other = ours.AdamW(twin.parameters(), lr=0.05)
    averaged = torch.optim.swa_utils.AveragedModel(
        twin, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for step in range(6):
        train(net, optimizer, [step])
        train(twin, other, [step])
        averaged.update_parameters(twin)
    last = values(net)
    with optimizer.ema_weights():
        for a, b in zip(values(net), averaged.module.parameters(), strict=True):
            assert (a - b).abs().max() <= 8 * torch.finfo(torch.float32).eps * b.abs().max()
        with pytest.raises(RuntimeError, match="no step can be made"):
            train(net, optimizer, [7])
    assert same(values(net), last)


def test_the_average_goes_with_the_models_own_buffers_as_AveragedModels_does():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = ours.AdamW(net.parameters(), lr=0.05, ema=0.75)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for step in range(4):
        train(net, optimizer, [step])
        averaged.update_parameters(net)
    with optimizer.ema_weights():
        for mine, theirs in zip(net.buffers(), averaged.module.buffers(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_are_the_parameters_rounded_to_nearest(dtype):
    p = nn.Parameter(torch.zeros(5000))
    values_ = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    optimizer = ours.SGD([p], lr=1.0, copy_to=dtype)
    p.grad = torch.from_numpy(-values_)
    optimizer.step()
    expected = p.detach().to(dtype)
    found = left_by_steps(optimizer)[0]
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    assert torch.equal(found[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))


def test_skip_and_raise_touch_nothing():
    for action in ("skip", "raise"):
        net = model()
        optimizer = ours.Adam(net.named_parameters(), on_nonfinite=action)
        train(net, optimizer, [0])
        before = values(net)
        backward(net, 1)
        net[2].bias.grad[1] = float("nan")
        if action == "skip":
            optimizer.step()
            assert optimizer.skipped == 1
        else:
            message = (
                r"^Gradients are NaN or infinite: 2\.bias \(1 of 3 elements\)\. Nothing was "
                r"changed"
            )
            with pytest.raises(FloatingPointError, match=message):
                optimizer.step()
        assert same(values(net), before)
        assert optimizer.state[net[0].weight]["step"] == 1


def test_statistics_are_scalars_named_by_parameter():
    net = model()
    optimizer = ours.Adam(net.named_parameters(), statistics=True)
    train(net, optimizer, [0])
    taken = optimizer.statistics()
    norm = net[0].weight.grad.double().norm().item()
    assert taken["0.weight/gradient_norm"].item() == pytest.approx(norm, rel=1e-12)
    assert len(taken) == 4 * 6
    assert all(value.shape == () for value in taken.values())


def test_param_groups_keep_biases_and_norms_from_decaying():
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "linear": nn.Linear(4, 3),
            "norm": nn.LayerNorm(3),
            "convolution": nn.Conv1d(2, 2, 3),
        }
    )
    net["convolution"].bias.requires_grad_(False)
    decayed, others = ours.param_groups(net, weight_decay=0.1)
    assert [name for name, _ in decayed["params"]] == [
        "embedding.weight", "linear.weight", "convolution.weight",
    ]  # fmt: skip
    assert [name for name, _ in others["params"]] == ["linear.bias", "norm.weight", "norm.bias"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    decayed, _ = ours.param_groups(net, weight_decay=0.1, decay_embeddings=False)
    assert "embedding.weight" not in dict(decayed["params"])
    optimizer = ours.AdamW(ours.param_groups(net, weight_decay=0.1))
    assert optimizer.param_groups[1]["param_names"] == ["linear.bias", "norm.weight", "norm.bias"]


def test_param_groups_keep_named_parameters_in_float32():
    net = nn.Sequential()
    net.add_module("body", nn.Linear(3, 3))
    net.add_module("head", nn.Linear(3, 2))
    groups = ours.param_groups(net, weight_decay=0.1, float32=["head.*"])
    optimizer = ours.AdamW(groups, state="8bit")
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["body.weight"], ["body.bias"], ["head.weight"], ["head.bias"]
    ]  # fmt: skip
    assert [group["state"] for group in optimizer.param_groups] == ["8bit"] * 2 + ["float32"] * 2
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    dtypes = {name: optimizer.state[p]["exp_avg"].dtype for name, p in net.named_parameters()}
    small, wide = torch.int8, torch.float32
    assert list(dtypes.values()) == [small, small, wide, wide]
    with pytest.raises(
        ValueError, match=r"float32 has 'tail\.\*', but no parameter .* body\.weight, "
    ):
        ours.param_groups(net, weight_decay=0.1, float32="tail.*")


def test_complex_gradients_that_are_finite_are_not_skipped():
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = ours.SGD([p], lr=0.5, on_nonfinite="skip")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.skipped == 0
    p.grad[1] = complex(0, torch.inf)
    optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(p.detach(), torch.full((3,), 0.5 + 0j))
