"""offload=True: state in host memory, and the bits of the optimizer without it.

The device is that of ``offloading``: its tensors are the processor's, its copies are made at the
worst moments. What is waited for is in ``test_offload_waits``, where the state is in
``test_offload_state``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch import host_memory
from adamas.torch.routes import chunks, offload
from tests.support.copied import left_by_steps
from tests.support.offloading import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    METHODS,
    ROUNDINGS,
    SHAPES,
    STATES,
    assert_same,
    both,
    device_of_queues,
    give_gradients,
    parameters,
    same,
    tensors_of,
    trained,
)
from tests.support.queues import ORDERS


@pytest.fixture(params=ORDERS)
def device(request, monkeypatch):
    return device_of_queues(request.param, monkeypatch)


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(48)
@pytest.mark.parametrize("chunk", [1024, 3072, chunks.CHUNK])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_step_has_the_bits_of_one_without_it(device, monkeypatch, name, options, dtype, chunk):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    one, other = both(name, options, dtype)
    trained(*one)
    trained(*other)
    assert_same(one, other)
    assert not same(one[1], parameters(dtype))
    (queues,) = device.made
    assert queues.copied["down"] == 2 * queues.copied["up"] > 0


@pytest.mark.quick_cases(30)
@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
def test_all_that_is_stored_in_few_bits_has_the_same_bits(device, dtype, rounding, state):
    options = {"state": state, "rounding": rounding, "seed": 3, "weight_decay": 0.1}
    one, other = both("AdamW", options, dtype)
    trained(*one)
    trained(*other)
    assert_same(one, other)


@pytest.mark.parametrize("state", [None, "bfloat16"])
@pytest.mark.parametrize("rounding", [None, "nearest", "stochastic", "remainder"])
@pytest.mark.parametrize("name", ["NAdam", "SGD", "RMSprop"])
def test_other_methods_in_half_precision_have_the_same_bits(device, name, rounding, state):
    options = {"state": state, "rounding": rounding, "seed": 5}
    if name == "SGD":
        options["momentum"] = 0.9
    one, other = both(name, options, BFLOAT16)
    trained(*one)
    trained(*other)
    assert_same(one, other)


@pytest.mark.parametrize("rounding", [None, "stochastic", "remainder"])
def test_amsgrad_in_half_precision_has_the_same_bits(device, rounding):
    one, other = both("Adam", {"amsgrad": True, "rounding": rounding, "seed": 2}, BFLOAT16)
    trained(*one)
    trained(*other)
    assert_same(one, other)


def test_a_chunk_ends_where_tiles_end_and_small_tensors_share_one(device, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4096)
    params = parameters(shapes=[(10,)] * 1000 + [(9000,)])
    trained(ours.AdamW(params, offload=True), params, range(1))
    pieces = [staged.piece for chunk in device.chunks for staged in chunk.staged]
    assert len(device.chunks) == -(-19000 // 4096)
    assert all(piece.first % 1024 == 0 for piece in pieces)
    assert sum(piece.last - piece.first for piece in pieces) == 19000
    (queues,) = device.made
    assert queues.synchronized == len(device.chunks)


def test_no_more_buffers_are_made_than_there_are_chunks(device):
    params = parameters(shapes=[(2048,)])
    optimizer = trained(ours.AdamW(params, offload=True), params, range(1))
    assert len(device.pipelines[-1].buffers) == len(device.chunks) == 2
    more = parameters(shapes=[(9000,)])
    optimizer.add_param_group({"params": more})
    trained(optimizer, [*params, *more], range(1))
    assert len(device.pipelines[-1].buffers) == offload.BUFFERS < len(device.chunks)


# ── the phase ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_clipping_averages_and_statistics_have_the_same_bits(device, dtype):
    options = {
        "clip_norm": 0.7, "on_nonfinite": "skip", "ema": 0.9, "statistics": True, "seed": 9,
        "state": "8bit", "rounding": "stochastic" if dtype == BFLOAT16 else None,
    }  # fmt: skip
    one, other = both("AdamW", options, dtype)
    for step in range(4):
        for optimizer, params in (one, other):
            give_gradients(params, step)
            if step == 2:
                params[0].grad[0, 0] = torch.inf
            optimizer.step()
        assert one[0].gradient_norm == other[0].gradient_norm
        if step != 2:
            assert one[0].statistics() == other[0].statistics()
    assert one[0].skipped == other[0].skipped == 1
    assert_same(one, other)
    with one[0].ema_weights(), other[0].ema_weights():
        assert same(one[1], other[1])
    assert_same(one, other)


@pytest.mark.parametrize("copy_to", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, None), (BFLOAT16, None), (BFLOAT16, "remainder"), (BFLOAT16, "remainder8")],
)
def test_copies_have_the_same_bits(device, dtype, rounding, copy_to):
    one, other = both("AdamW", {"copy_to": copy_to, "rounding": rounding}, dtype)
    trained(*one)
    trained(*other)
    assert_same(one, other)
    assert same(left_by_steps(one[0]), left_by_steps(other[0]))
    assert not same(left_by_steps(one[0]), [p.detach().to(copy_to) for p in parameters(dtype)])


def test_copies_may_be_anywhere_and_of_any_strides(device):
    found = []
    for offloads in (True, False):
        params = parameters(BFLOAT16, [(30, 50)])
        copies = [torch.zeros((50, 30), dtype=FLOAT16).t()]
        options = {"copy_to": copies, "rounding": "remainder", "offload": offloads}
        trained(ours.AdamW(params, **options), params)
        found.append(copies)
    assert same(*found)
    assert found[0][0].abs().sum() > 0


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_changed(device):
    params = parameters()
    optimizer = ours.AdamW(params, offload=True, on_nonfinite="raise")
    trained(optimizer, params)
    before = copy.deepcopy(params), copy.deepcopy(tensors_of(optimizer))
    give_gradients(params, 9)
    params[1].grad[7] = torch.nan
    with pytest.raises(FloatingPointError, match=r"0\.1 \(1 of 3000 elements\)"):
        optimizer.step()
    assert same(params, before[0])
    assert same(tensors_of(optimizer), before[1])


@pytest.mark.parametrize("fused", [True, False])
def test_a_grad_scaler_unscales_and_skips(device, fused):
    one, other = both("AdamW", {"fused": fused, "clip_norm": 0.5 if fused else None})
    for optimizer, params in (one, other):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        scaler.scale(torch.zeros(()))
        for step in range(4):
            give_gradients(params, step, 2.0**10)
            if step == 1:
                params[3 - step].grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        assert float(optimizer.state[params[0]]["step"]) == 3
    assert_same(one, other)


def test_found_inf_and_grad_scale_are_heeded(device):
    one, other = both("AdamW", {"fused": True})
    trained(*other, range(2))
    optimizer, params = one
    for step, found in ((0, 0.0), (5, 1.0), (1, 0.0)):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        give_gradients(params, step, 8.0)
        optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    assert_same(one, other)


def test_closures_and_hooks_are_called(device):
    one, other = both("NAdam", {})
    called = []
    for optimizer, params in (one, other):
        optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
        optimizer.register_step_post_hook(lambda *_: called.append("post"))

        def closure(params=params):
            assert torch.is_grad_enabled()
            give_gradients(params, 0)
            return 7.0

        assert optimizer.step(closure) == 7.0
    assert called == ["pre", "post"] * 2
    assert_same(one, other)


# ── what changes between steps ─────────────────────────────────────────────────────────────────


def test_a_plan_is_kept_while_nothing_changes(device):
    params = parameters()
    optimizer = trained(ours.NAdam(params, offload=True), params)
    rounds = device.rounds[-1]
    trained(optimizer, params)
    assert device.rounds[-1] is rounds
    optimizer.param_groups[0]["lr"] = 0.5
    trained(optimizer, params)
    assert device.rounds[-1] is rounds
    params[0].grad = None
    optimizer.step()
    assert device.rounds[-1] is not rounds


def test_what_users_change_between_steps_is_seen(device):
    one, other = both("AdamW", {"ema": 0.9}, BFLOAT16)
    for optimizer, params in (one, other):
        trained(optimizer, params)
        with torch.no_grad():
            params[1].mul_(0.5)
            optimizer.state[params[1]]["exp_avg"].mul_(0.5)
        params[4].data = torch.ones(64, 48, dtype=BFLOAT16)
        optimizer.state[params[4]]["exp_avg_sq"] = torch.ones(64, 48, dtype=BFLOAT16)
        optimizer.param_groups[0]["weight_decay"] = 0.3
        params[0].grad = None
        optimizer.step()
        optimizer.add_param_group({"params": parameters(seed=1), "lr": 0.1})
        more = optimizer.param_groups[1]["params"]
        trained(optimizer, [*params, *more])
        trained(optimizer, more)
    assert_same(one, other)
    assert same(one[0].param_groups[1]["params"], other[0].param_groups[1]["params"])


def test_parameters_and_gradients_may_have_any_strides(device):
    found = []
    for offloads in (True, False):
        start = parameters(shapes=[(60, 40), (2, 3, 4, 5), (30, 50)])
        params = [
            nn.Parameter(start[0].detach().t()),
            nn.Parameter(start[1].detach().to(memory_format=torch.channels_last)),
            start[2],
        ]
        optimizer = ours.AdamW(params, offload=offloads, state="compact", copy_to=BFLOAT16)
        for step in range(3):
            give_gradients(params, step)
            params[2].grad = params[2].grad.t().contiguous().t()
            optimizer.step()
        strides = [p.stride() for p in params]
        found.append([*params, *left_by_steps(optimizer), *tensors_of(optimizer)])
    assert same(*found)
    assert strides == [p.stride() for p in found[0][:3]]


def test_parameters_in_one_memory_are_stepped_one_after_another(device):
    found = []
    for offloads in (True, False):
        memory = torch.linspace(-1, 1, 5000)
        params = [nn.Parameter(memory[:3000]), nn.Parameter(memory[1000:]), *parameters()]
        optimizer = ours.AdamW(params, lr=0.01, offload=offloads)
        trained(optimizer, params)
        found.append([memory, *tensors_of(optimizer)])
    assert same(*found)


def test_parameters_of_both_kinds_are_stepped_together(device, monkeypatch):
    here = {}
    monkeypatch.setattr(host_memory, "is_offloaded", lambda p: id(p) in here)
    options = {"clip_norm": 0.5, "statistics": True, "seed": 4, "state": "8bit", "ema": 0.9}
    one, other = both("AdamW", options)
    here.update({id(p): p for p in one[1][::2]})
    for step in range(3):
        trained(*one, [step])
        trained(*other, [step])
        assert one[0].statistics() == other[0].statistics()
    assert_same(one, other)
    assert one[0].routes() == {
        f"0.{i}": "native" if i % 2 else "offload" for i in range(len(SHAPES))
    }


def test_autograd_learns_of_the_step(device):
    weight = nn.Parameter(torch.ones(1500))
    optimizer = ours.SGD([weight], lr=0.1, offload=True)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(1500)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_model_that_moves_takes_its_state_along(device, monkeypatch):
    """Trained in the processor's memory first, then on the device, then back."""
    one, other = both("AdamW", {"ema": 0.9})
    for is_there in (False, True, False):
        monkeypatch.setattr(host_memory, "is_offloaded", lambda p, there=is_there: there)
        trained(*one)
        trained(*other)
        assert_same(one, other)


def test_parameters_in_the_processors_memory_are_stepped_as_ever():
    one, other = both("AdamW", {})
    trained(*one)
    trained(*other)
    assert_same(one, other)
    assert {*one[0].routes().values()} == {"native"}


# ── gradients that come and go, and what they share ────────────────────────────────────────────


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
def test_gradients_that_come_and_go_give_the_same_bits(device, name):
    one, other = both(name, {"clip_norm": 0.5})
    for step, absent in enumerate((0, 1, 0, 1, 2, 3, 0, 1)):
        for optimizer, params in (one, other):
            give_gradients(params, step)
            params[absent].grad = None
            optimizer.step()
        assert_same(one, other)


def test_sets_of_gradients_that_come_back_are_still_prepared(device):
    (optimizer, params), _ = both("AdamW", {})
    rounds = []
    for step in range(8):
        give_gradients(params, step)
        params[step % 2].grad = None
        optimizer.step()
        rounds.append(device.rounds[-1])
    assert rounds[4] is rounds[6]
    assert rounds[5] is rounds[7]
    assert rounds[4] is not rounds[5]


def test_nothing_is_prepared_for_memory_that_has_been_replaced(device):
    (optimizer, params), _ = both("AdamW", {})
    for step in range(4):
        give_gradients(params, step)
        params[step % 2].grad = None
        optimizer.step()
    state = optimizer.state[params[2]]
    state["exp_avg"] = state["exp_avg"].clone()
    optimizer.step()
    (pipeline,) = set(device.pipelines)
    assert len(pipeline.prepared) == 1


def test_a_gradient_may_be_its_parameter(device):
    one, other = both("AdamW", {"fused": True})
    trained(*one)
    trained(*other)
    for _ in range(2):
        for p, q in zip(one[1], other[1], strict=True):
            p.grad, q.grad = p.detach(), q.detach().clone()
        for optimizer, _ in (one, other):
            optimizer.step()
        assert_same(one, other)


def test_gradients_are_left_unscaled(device):
    (optimizer, params), _ = both("AdamW", {"fused": True})
    give_gradients(params, 0, 8.0)
    wanted = [p.grad / 8.0 for p in params]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    optimizer.step()
    assert same([p.grad for p in params], wanted)


def test_parameters_may_be_swapped_after_steps(device):
    (optimizer, params), _ = both("AdamW", {})
    trained(optimizer, params)
    assert [p._use_count() for p in params] == [1] * len(params)
    states = [x for state in optimizer.state.values() for x in state.values()]
    assert {x._use_count() for x in states if isinstance(x, torch.Tensor)} == {1}
