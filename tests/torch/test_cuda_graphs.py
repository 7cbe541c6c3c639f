"""What a device decides by itself, so that nothing waits for it, and what a CUDA graph repeats."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch

from adamas.engines.triton import devices
from adamas.engines.triton.launches import Launches
from tests.support.device_trainings import (
    NO_GPU,
    PHASE,
    SHAPES,
    Training,
    device_switch,
    differences,
    on_the_cpu,
    steps_launched,
)
from tests.support.triton_plans import DEVICE


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""
    before = np.seterr(all="ignore")  # the interpreter computes with NumPy
    yield device_switch(monkeypatch)
    np.seterr(**before)


@pytest.fixture
def launched(monkeypatch):
    """All steps that are launched."""
    return steps_launched(monkeypatch)


# ── the device decides ─────────────────────────────────────────────────────────────────────────


def test_nothing_waits_for_the_device(monkeypatch):
    training = Training(kind="AdamW", fused=True, skip_above=6.0, **PHASE).step()
    training.gradients()
    training.optimizer.found_inf = torch.zeros((), device=DEVICE)
    training.optimizer.grad_scale = torch.full((), 8.0, device=DEVICE)

    def refuse(*_):
        raise AssertionError("this waits for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    training.optimizer.step()
    monkeypatch.undo()
    assert training.optimizer.state[training.params[0]]["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_by_the_device(bad):
    training = Training(fused=True, **PHASE).step(2)
    kept = copy.deepcopy(training.values())
    training.gradients()
    training.params[4].grad[1029] = bad
    training.optimizer.step()
    assert training.optimizer.skipped == 1
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    with pytest.raises(RuntimeError, match="the last step was left out"):
        training.optimizer.statistics()
    training.step()
    assert training.optimizer.skipped == 1
    assert training.optimizer.state[training.params[0]]["step"] == 3


def test_a_step_that_raises_changes_nothing():
    training = Training(on_nonfinite="raise").step()
    kept = copy.deepcopy(training.values())
    training.gradients()
    training.params[0].grad[0, :2] = float("nan")
    training.params[4].grad[3] = float("inf")
    with pytest.raises(FloatingPointError) as raised:
        training.optimizer.step()
    assert str(raised.value) == (
        "Gradients are NaN or infinite: 0.0 (2 of 12 elements), 0.4 (1 of 1030 elements). "
        "Nothing was changed. Look for a division or overflow in the loss, or skip such steps "
        'with on_nonfinite="skip".'
    )
    assert training.optimizer.skipped == 0
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "options", [{"fused": True}, {"clip_norm": 0.5, "clip_update": 0.5}, {"on_nonfinite": "raise"}]
)
def test_a_scalers_word_is_taken_on_the_device(options, on_device):
    def made(device):
        training = Training(device=device, **options)
        for step, found in enumerate((0.0, 0.0, 1.0, 0.0)):
            training.gradients()
            training.optimizer.found_inf = torch.full((), found, device=device)
            training.optimizer.grad_scale = torch.full((), 4.0 + step, device=device)
            training.optimizer.step()
        del training.optimizer.found_inf, training.optimizer.grad_scale
        return training

    training = made(DEVICE)
    on_device(False)
    judge = made("cpu")
    assert training.optimizer.state[training.params[0]]["step"] == 3
    assert training.optimizer.gradient_norm == judge.optimizer.gradient_norm
    assert differences(training, judge) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_on_the_device_is_read_at_each_step(dtype, on_device, monkeypatch):
    rates = [0.1, 0.25, 0.5]
    training = Training(capturable=True, lr=torch.tensor(0.0, dtype=dtype, device=DEVICE))
    on_device(False)
    judge = Training(device="cpu", capturable=True)
    for step, rate in enumerate(rates):
        judge.optimizer.param_groups[0]["lr"] = float(torch.tensor(rate, dtype=dtype))
        judge.step()
        on_device(True)
        training.optimizer.param_groups[0]["lr"].fill_(rate)
        training.step()
        on_device(False)
        if step == 0:
            monkeypatch.setattr(Launches, "__init__", None)  # the first are used again
    assert differences(training, judge) == []


def test_another_rate_in_place_of_that_on_the_device_is_seen(on_device):
    training = Training(lr=torch.tensor(0.1, device=DEVICE)).step()
    training.optimizer.param_groups[0]["lr"] = torch.tensor(0.5, device=DEVICE)
    training.step()
    training.optimizer.param_groups[0]["lr"] = 0.25
    training.step()
    on_device(False)
    judge = Training(device="cpu", lr=float(torch.tensor(0.1))).step()
    for rate in (0.5, 0.25):
        judge.optimizer.param_groups[0]["lr"] = rate
        judge.step()
    assert differences(training, judge) == []


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("options", [{}, {"on_nonfinite": "skip"}])
@pytest.mark.parametrize("kind", ["Adam", "NAdam"])
def test_steps_may_be_counted_on_the_host(kind, options, on_device, monkeypatch, launched):
    judge = on_the_cpu(on_device, 4, kind=kind, **options)
    monkeypatch.setattr(devices, "is_beside", lambda *_: False)
    training = Training(kind=kind, **options).step(2)
    if options:
        training.gradients()
        training.params[0].grad[0, 0] = float("nan")
        kept = training.random.get_state()
        training.optimizer.step()
        assert training.optimizer.skipped == 1
        on_device(False)
        judge = Training(kind=kind, device="cpu", **options).step(2)
        judge.gradients()
        judge.random.set_state(kept)
        judge.step(2)
        on_device(True)
    training.step(2)
    assert launched[-1].inputs.steps.tolist() == [4] * len(SHAPES)
    assert differences(training, judge) == []


# ── CUDA graphs ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "options", "steps", "message"),
    [
        (
            "Adam",
            {},
            1,
            "A CUDA graph is being recorded, but the numbers of the steps are counted on the host, "
            "so that each replay would make the same step. Create the optimizer with "
            "capturable=True.",
        ),
        (
            "SGD",
            {"momentum": 0.9},
            0,
            "A CUDA graph is being recorded, but this would be the first step, which differs from "
            "all others. Make one before recording.",
        ),
        (
            "NAdam",
            {"capturable": True},
            1,
            "A CUDA graph is being recorded, but this method takes the numbers of its steps on the "
            "host, so that each replay would make the same step. Use Adam, AdamW, RAdam or "
            "RMSprop, or make the step outside of the graph.",
        ),
        (
            "SGD",
            {"lr": torch.tensor(0.1)},
            1,
            "A CUDA graph is being recorded, but this method takes the numbers of its steps on the "
            "host, so that each replay would make the same step. Use Adam, AdamW, RAdam or "
            "RMSprop, or make the step outside of the graph.",
        ),
        (
            "Adam",
            {"capturable": True, "on_nonfinite": "raise"},
            1,
            'A CUDA graph is being recorded, but on_nonfinite="raise" waits for the device at each '
            'step. Use on_nonfinite="skip".',
        ),
        (
            "Adam",
            {"capturable": True, "skip_above": 6.0},
            0,
            "A CUDA graph is being recorded, but the norms that skip_above judges by are not on "
            "the device yet, so that each replay would send those of now. Make a step before "
            "recording.",
        ),
    ],
)
def test_what_a_graph_cannot_repeat_is_refused(kind, options, steps, message, monkeypatch):
    if kind == "Adam" and not options:
        monkeypatch.setattr(devices, "is_beside", lambda *_: False)
    if "lr" in options:
        options = {**options, "lr": options["lr"].to(DEVICE)}
    training = Training(kind=kind, **options).step(steps)
    kept = copy.deepcopy(training.values())
    training.gradients()
    monkeypatch.setattr(devices, "is_capturing", lambda _: True)
    with pytest.raises(RuntimeError) as raised:
        training.optimizer.step()
    assert str(raised.value) == message
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_a_graph_has_recorded_outlives_the_plan_and_nothing_else_does(
    is_recorded, monkeypatch, launched
):
    training = Training(capturable=True).step(2)
    monkeypatch.setattr(devices, "is_capturing", lambda _: is_recorded)
    training.step()
    launches = launched[-1].launches
    live = launches.parts[0].live
    if is_recorded:
        (sent,) = live.recorded
        assert np.array_equal(sent.numpy(), np.concatenate(list(live.host.values())))
        del sent
    monkeypatch.setattr(devices, "is_capturing", lambda _: False)
    known = weakref.ref(launches)
    launched.clear()
    del launches, live
    training.optimizer.load_state_dict(training.optimizer.state_dict())
    training.step()
    launched.clear()
    gc.collect()
    assert (known() is not None) == is_recorded


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize(
    "options",
    [
        {},
        PHASE,
        {"state": "8bit", "clip_update": 0.5},
        {"skip_above": 1000.0, "skip_window": 4, "clip_update": 0.5},
    ],
    ids=["plain", "phase", "8bit", "spikes"],
)
def test_a_replayed_graph_has_the_bits_of_eager_steps(options):
    eager = Training(kind="AdamW", capturable=True, lr=torch.tensor(0.1, device=DEVICE), **options)
    graphed = Training(
        kind="AdamW", capturable=True, lr=torch.tensor(0.1, device=DEVICE), **options
    )
    for training in (eager, graphed):
        training.step(2)
    static = [p.grad for p in graphed.params]
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    kept = copy.deepcopy(graphed.values())
    with torch.cuda.graph(graph, stream=stream):
        graphed.optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(kept[name], value) for name, value in graphed.values().items())
    for step in range(4):
        rate = 0.1 / (step + 1)
        for training in (eager, graphed):
            training.optimizer.param_groups[0]["lr"].fill_(rate)
        eager.gradients()
        for p in eager.params:
            p.grad *= 1e4 if step == 2 else 1.0
        eager.optimizer.step()
        for gradient, p in zip(static, eager.params, strict=True):
            gradient.copy_(p.grad)
        graph.replay()
    assert differences(eager, graphed) == []
    spikes = int("skip_above" in options)
    assert eager.optimizer.skipped.spikes == graphed.optimizer.skipped.spikes == spikes


@pytest.mark.parametrize(
    ("rate", "error"), [(None, TypeError), ([0.1], TypeError), (-1.0, ValueError), (..., KeyError)]
)
def test_a_rate_that_is_none_is_refused_before_anything_is_touched(rate, error):
    training = Training("AdamW", lr=0.1).step(2)
    before = training.values()
    group = training.optimizer.param_groups[0]
    group["lr"] = rate
    if rate is ...:
        del group["lr"]
    with pytest.raises(error, match=r"^.?param_groups\[0\]"):
        training.step()
    group["lr"] = 0.1
    assert str(training.values()) == str(before)
    training.step()
