"""What a step with offload=True waits for: copies, buffers, gradients, other streams.

The tests at the end are for a card.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch.routes import chunks, offload
from tests.support.copied import left_by_steps
from tests.support.offloading import (
    FLOAT16,
    ROUNDINGS,
    SHAPES,
    STATES,
    assert_pinned,
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


# ── what has to be waited for ──────────────────────────────────────────────────────────────────


def bits_differ(device, deaf):
    device.deaf = deaf
    one, other = both("AdamW", {}, shapes=[(9000,), (40, 50)])
    trained(*one)
    trained(*other)
    return not same(one[1], other[1]) or not same(tensors_of(one[0]), tensors_of(other[0]))


@pytest.mark.parametrize("deaf", ["synchronize", ("wait", "own"), ("wait", "down")])
def test_a_wait_that_is_left_out_gives_other_bits_where_copies_are_late(device, deaf):
    assert not bits_differ(device, ())
    if device.order == "late":
        assert bits_differ(device, (deaf,))


def test_a_single_buffer_in_place_of_three_gives_other_bits(device, monkeypatch):
    memory = torch.empty(1 << 20, dtype=torch.uint8)

    class Shared(chunks.Room):
        def __init__(self, nbytes, *, pinned):
            super().__init__(nbytes, pinned=pinned)
            self.memory = memory[:nbytes] if pinned else self.memory

    monkeypatch.setattr(offload, "Room", Shared)
    assert bits_differ(device, ())


@pytest.mark.parametrize("more", [0, 1])
def test_a_chunk_that_comes_down_too_early_gives_other_bits(device, more):
    """With ``more``, as many chunks as there are buffers and one are asked for at once."""

    class Buffers(list):
        def __len__(self):
            return super().__len__() + more

    one, other = both("AdamW", {}, shapes=[(9000,)])
    trained(*one, range(1))
    pipeline = device.pipelines[-1]
    pipeline.buffers = Buffers(pipeline.buffers)
    trained(*one, range(1, 2))
    trained(*other, range(2))
    assert same(one[1], other[1]) == (more == 0)


@pytest.mark.parametrize("deaf", [(), (("wait", "down"),)])
def test_gradients_that_the_device_still_computes_are_waited_for(device, deaf):
    device.deaf = deaf
    one, other = both("AdamW", {}, shapes=[(3000,)])
    trained(*one, range(1))
    trained(*other, range(1))
    give_gradients(other[1], 1)
    wanted = other[1][0].grad
    one[1][0].grad = torch.full_like(wanted, 1e3)
    device.made[0].work(lambda: one[1][0].grad.copy_(wanted))
    one[0].step()
    other[0].step()
    assert same(one[1], other[1]) == (not deaf)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_step_in_another_stream_waits_for_what_still_goes_up(device, forgets):
    """The other stream, current at the second step, waits for nothing of the first."""
    device.deaf = (("wait", "own"),)
    one, other = both("AdamW", {}, shapes=[(3000,)])
    trained(*one, range(1))
    if forgets:
        device.pipelines[-1].uploaded = None
    trained(*one, range(1, 2))
    trained(*other, range(2))
    (queues,) = device.made
    queues.synchronize(queues.record("up"))
    assert same(one[1], other[1]) == (not forgets or device.order == "early")


QUEUES = ("own", "down", "up")


def test_the_streams_of_a_card_are_asked_for_what_the_queues_are(monkeypatch):
    """Of a card there is but its interface here."""
    streams = {name: create_autospec(torch.cuda.Stream, instance=True) for name in QUEUES}
    entered = []
    made = iter((streams["down"], streams["up"]))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: next(made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams["own"])

    @contextmanager
    def stream(each):
        entered.append(each)
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    queues = offload.CudaStreams(torch.device("cuda", 1))
    for name in QUEUES:
        assert queues.record(name) is streams[name].record_event.return_value
        queues.wait(name, "event")
        streams[name].wait_event.assert_called_once_with("event")
    target, source = create_autospec(torch.Tensor, instance=True), torch.ones(3)
    queues.copy("up", [(target, source)])
    target.copy_.assert_called_once_with(source, non_blocking=True)
    assert entered == [streams["up"]]
    event = create_autospec(torch.cuda.Event, instance=True)
    queues.synchronize(event)
    event.synchronize.assert_called_once_with()


# ── on a card ──────────────────────────────────────────────────────────────────────────────────

needs_card = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: no CUDA device"
)


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize(("dtype", "rounding"), [*ROUNDINGS, (torch.float64, None)])
def test_a_card_gives_the_bits_of_the_processor(monkeypatch, dtype, rounding):
    states = [None, "float32"] if dtype == torch.float64 else [None, *STATES]
    shapes = [*SHAPES, (300, 700)]
    for state, chunk in itertools.product(states, (1024, 65536, chunks.CHUNK)):
        monkeypatch.setattr(chunks, "CHUNK", chunk)
        options = {"state": state, "rounding": rounding, "seed": 3, "ema": 0.9, "copy_to": FLOAT16}
        here = parameters(dtype, shapes)
        there = [nn.Parameter(p.detach().cuda()) for p in here]
        one = ours.AdamW(here, lr=0.01, **options)
        other = ours.AdamW(there, lr=0.01, offload=True, **options)
        for step in range(5):
            give_gradients(here, step)
            for p, q in zip(here, there, strict=True):
                q.grad = p.grad.cuda()
            one.step()
            other.step()
            for q in there:  # the memory is taken at once by what the card does next
                q.grad = None
            torch.full((1 << 20,), 7.0, device="cuda")
        assert same(here, [p.cpu() for p in there]), (state, chunk)
        assert same(left_by_steps(one), [each.cpu() for each in left_by_steps(other)]), (
            state,
            chunk,
        )
        assert same(tensors_of(one), tensors_of(other)), (state, chunk)
        assert_pinned(other)


@pytest.mark.gpu
@needs_card
def test_the_state_of_a_card_takes_none_of_its_memory():
    weight = nn.Parameter(torch.zeros(1 << 24, device="cuda"))
    weight.grad = torch.ones_like(weight)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer = ours.AdamW([weight], offload=True, ema=0.9)
    for _ in range(3):
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < weight.nbytes // 4


@pytest.mark.gpu
@needs_card
def test_a_card_that_is_busy_is_waited_for():
    """The gradient is still computed when the step begins, in a stream of the user's own."""
    stream = torch.cuda.Stream()
    weight = nn.Parameter(torch.zeros(1 << 22, device="cuda"))
    optimizer = ours.SGD([weight], lr=1.0, offload=True)
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        for step in range(3):
            weight.grad = torch.zeros_like(weight)
            torch.cuda._sleep(50_000_000)
            weight.grad.fill_(1.0)
            optimizer.step()
            assert bool((weight == -(step + 1.0)).all())
