"""What optimizers say has changed: equal to a snapshot and a bitwise diff, whatever happens."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from tests.support.interrupts import interrupted_at  # noqa: E402
from tests.support.torch_routes import standing_in  # noqa: E402
from tests.support.tracked import ACTIONS, drawn, look, step, take  # noqa: E402

#: Cases of each of the tests with drawn ones.
_EACH = 100


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("block", range(100))
def test_what_has_changed_is_what_a_diff_finds_whatever_happens(block):
    for seed in range(block * _EACH, (block + 1) * _EACH):
        run = drawn(seed)
        names = np.random.default_rng(seed).choice([*ACTIONS], 6)
        for name in names:
            ACTIONS[name](run)
        take(run)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("route", ["offload late", "offload early", "triton"])
def test_every_route_marks_what_a_diff_finds(route, seed):
    if route == "triton":
        pytest.importorskip("triton")
    with standing_in(route):
        run = drawn(seed, engine=None, offload=route.startswith("offload"))
        for name in np.random.default_rng(seed).choice([*ACTIONS], 4):
            step(run)
            look(run)
            ACTIONS[name](run)
        take(run)


@pytest.mark.parametrize("options", [{}, {"copy_to": torch.bfloat16}])
def test_a_step_that_is_one_native_call_is_one_with_tracking(options):
    """Nothing else of Python is called than ``step`` itself, and what copies need."""
    parameters = [nn.Parameter(torch.ones(5)) for _ in range(3)]
    optimizer = ours.AdamW(parameters, track_changes=True, **options)
    for p in parameters:
        p.grad = torch.ones(5)
    for _ in range(2):
        optimizer.step()
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame) if event == "call" else None)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    assert {frame.f_code.co_name for frame in called} == {"step"}
    assert optimizer.changes().last_step == 3


@pytest.mark.parametrize("is_strided", [False, True])
def test_each_step_has_one_number_whoever_counts_it(is_strided):
    """Native steps, those of several routes, and one without any gradient."""
    parameters = [nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4, 2))]
    if is_strided:
        parameters[1].data = torch.ones(2, 4).T
    optimizer = ours.AdamW(parameters, track_changes=True)
    for count in range(1, 8):
        for p in parameters:
            p.grad = None if count == 4 else torch.ones_like(p)
        optimizer.step()
        assert optimizer.changes(clear=False).last_step == count


def test_other_memory_is_told_from_that_of_before_where_the_address_is_the_same():
    """An allocator gives out again what was freed."""
    memory = np.ones(5, np.float32)
    p = nn.Parameter(torch.from_numpy(memory))
    optimizer = ours.AdamW([p], track_changes=True)
    address = p.data_ptr()
    p.data = torch.ones(5)
    memory[:] = 2
    p.data = torch.from_numpy(memory)
    assert p.data_ptr() == address
    (change,) = optimizer.changes()
    assert torch.equal(change.values, torch.full((5,), 2.0))


def test_a_parameter_that_comes_back_to_its_memory_is_marked_where_changes_are_told():
    """A plan of before fits it again, but has the marks of before."""
    pytest.importorskip("triton")
    with standing_in("triton") as device:
        p = nn.Parameter(torch.ones(40, device=device))
        optimizer = ours.AdamW([p], track_changes=True)
        memory, told = p.data, []
        for data in (memory, torch.ones(80, device=device), memory):
            p.data = data
            list(optimizer.changes())
            if p.numel() == 40:
                p.grad = torch.ones(40, device=device)
                optimizer.step()
                told.append([len(change.indices) for change in optimizer.changes()])
            p.grad = None
        assert optimizer.routes() == {"0.0": "triton"}
        assert told == [[40], [40]]


def told(optimizer):
    return [change.name for change in optimizer.changes()]


def test_an_interrupted_telling_has_told_all_or_loses_nothing():
    place, seen = 0, set()
    p = nn.Parameter(torch.ones(5))
    while True:
        optimizer = ours.SGD([p], lr=0.1, track_changes=True)
        p.grad = torch.ones(5)
        optimizer.step()
        before = optimizer.changes(clear=False)
        if not interrupted_at(place, partial(told, optimizer), KeyboardInterrupt):
            break
        left = optimizer.changes(clear=False)
        is_left = bool([*left])
        assert (left.follows == before.follows) is is_left
        assert left.first_step == (1 if is_left else 2)
        optimizer.step()
        assert told(optimizer) == ["0.0"]
        seen.add(is_left)
        place += 1
    assert seen == {False, True}


@pytest.mark.parametrize("options", [{}, {"engine": "torch"}, {"copy_to": torch.bfloat16}])
def test_of_parameters_in_one_buffer_those_have_changed_that_a_step_has_moved(options):
    """PyTorch counts a write to one of them as one to both."""
    memory = torch.ones(8)
    first, second = nn.Parameter(memory[:4]), nn.Parameter(memory[4:])
    optimizer = ours.AdamW([first, second], lr=0.1, track_changes=True, **options)
    for _ in range(3):
        first.grad = torch.ones(4)
        optimizer.step()
        assert second._version == first._version
        assert told(optimizer) == ["0.0"]
    with torch.no_grad():
        second.add_(1)
    optimizer.step()
    assert told(optimizer) == ["0.0", "0.1"]
