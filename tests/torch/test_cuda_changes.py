"""Changes on devices that Triton serves: where they are found, and that no step waits for it.

Without a GPU CPU tensors stand in for CUDA tensors, and the kernels run in Triton's interpreter.
That the marks are those of a diff is in ``test_marks_by_route``.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

import adamas.torch as ours
from adamas.engines.triton import marks
from adamas.engines.triton.launches import Launches
from adamas.torch import operations
from tests.support.device_trainings import (
    NO_GPU,
    PHASE,
    Training,
    device_switch,
    on_the_cpu,
    routes_of,
)
from tests.support.triton_plans import DEVICE


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""
    before = np.seterr(all="ignore")  # the interpreter computes with NumPy
    yield device_switch(monkeypatch)
    np.seterr(**before)


def told(training):
    return {change.name: change for change in training.optimizer.changes()}


def test_changes_are_told_on_the_device_and_are_those_of_the_processor(on_device):
    case = {"kind": "AdamW", "dtype": torch.bfloat16, "lr": 1e-3, "track_changes": True}
    judge = on_the_cpu(on_device, 3, **case)
    on_device(False)
    expected = told(judge)
    on_device(True)
    training = Training(**case).step(3)
    found = told(training)
    assert routes_of(training.optimizer) == {"triton"}
    assert found.keys() == expected.keys()
    for name, change in found.items():
        assert change.indices.device == change.values.device == DEVICE
        assert change.indices.dtype == torch.int32
        assert torch.equal(change.indices.cpu(), expected[name].indices)
        assert torch.equal(change.values.cpu(), expected[name].values)
    assert sum(len(each.indices) for each in found.values()) < 1000


def test_what_is_marked_on_a_device_is_found_by_its_kernels(monkeypatch):
    asked = []

    def seen(*given):
        asked.append(given)
        return found(*given)

    found = marks.marked
    monkeypatch.setattr(marks, "marked", seen)
    training = Training(track_changes=True).step()
    assert asked == []
    assert len(told(training)) == 4
    assert [dtype for _, dtype in asked] == [torch.int32] * 5


def test_a_plan_of_tensors_in_another_order_marks_by_indices_and_is_used_again(monkeypatch):
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 3, 5, 7, generator=random).to(DEVICE)
    p = torch.nn.Parameter(drawn.to(memory_format=torch.channels_last))
    optimizer = ours.AdamW([p], lr=3e-8, track_changes=True)
    for step in range(3):
        p.grad = torch.ones_like(p)
        before = p.detach().clone()
        optimizer.step()
        assert p.grad.is_contiguous(memory_format=torch.channels_last)
        (change,) = optimizer.changes()
        differs = (before != p.detach()).reshape(-1)
        assert torch.equal(change.indices.to(torch.int64), differs.nonzero().view(-1))
        assert 0.2 < differs.float().mean() < 0.9
        if step == 0:
            monkeypatch.setattr(Launches, "__init__", None)


def test_an_interrupted_step_loses_no_change(monkeypatch):
    p = torch.nn.Parameter(torch.ones(2, 3, 5, 7, device=DEVICE).permute(0, 2, 3, 1))
    optimizer = ours.AdamW([p], lr=0.1, track_changes=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    list(optimizer.changes())

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(operations, "take_marks", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    (change,) = optimizer.changes()
    assert len(change.indices) == p.numel()


def test_the_device_decides_whether_anything_is_marked(monkeypatch):
    training = Training(track_changes=True, fused=True, on_nonfinite="skip").step()
    list(training.optimizer.changes())
    training.gradients()
    training.params[4].grad[1029] = float("nan")

    def refuse(*_):
        raise AssertionError("this waits for the device")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, refuse)
        training.optimizer.step()
    changes = training.optimizer.changes()
    assert (changes.first_step, changes.last_step, [*changes]) == (2, 2, [])
    assert len(told(training.step())) == 4


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("options", [{}, PHASE], ids=["plain", "phase"])
def test_no_step_that_is_tracked_synchronizes_with_the_device(options):
    training = Training(kind="AdamW", fused=True, track_changes=True, **options).step(2)
    training.gradients()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(told(training)) == 4


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("copy_to", [None, torch.bfloat16])
def test_marks_of_offloaded_parameters_take_memory_of_the_card_for_copies_alone(copy_to):
    taken = []
    for track_changes in (False, True):
        gc.collect()
        before = torch.cuda.memory_allocated()
        training = Training(
            "AdamW",
            shapes=[(1 << 20,)],
            offload=True,
            copy_to=copy_to,
            track_changes=track_changes,
        ).step(2)
        taken.append(torch.cuda.memory_allocated() - before)
        if track_changes:
            (change,) = training.optimizer.changes()
            assert change.indices.device == change.values.device == DEVICE
            assert len(change.indices) == 1 << 20
        del training
    assert taken[1] - taken[0] == (0 if copy_to is None else (1 << 20) // 8)


@pytest.mark.gpu
@NO_GPU
def test_each_replay_of_a_graph_marks_what_it_changes():
    training = Training(
        kind="AdamW",
        dtype=torch.bfloat16,
        lr=torch.tensor(1e-3, device=DEVICE),
        capturable=True,
        track_changes=True,
    ).step(2)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        training.optimizer.step()
    list(training.optimizer.changes())
    for _ in range(3):
        before = [p.detach().clone().view(-1) for p in training.params]
        graph.replay()
        found = told(training)
        for i, (old, p) in enumerate(zip(before, training.params, strict=True)):
            where = (old.view(torch.int16) != p.detach().view(-1).view(torch.int16)).nonzero()
            places = found[f"0.{i}"].indices if f"0.{i}" in found else torch.zeros(0, device=DEVICE)
            assert torch.equal(places.to(torch.int64), where.view(-1))
