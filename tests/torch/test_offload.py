"""offload=True: state in host memory, and the bits of the optimizer without it.

The device is one of :mod:`queues`: its tensors are the processor's, its copies are made at the
worst moments. The tests at the end are for a card.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from contextlib import contextmanager
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch import host_memory
from adamas.torch.routes import chunks, offload
from tests.support.copied import left_by_steps
from tests.support.queues import ORDERS, Queues

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
DTYPES = [torch.float32, torch.float64, BFLOAT16, FLOAT16]
#: Tiles end within, at and before the ends of tensors.
SHAPES = [(5, 7), (3000,), (), (0,), (64, 48), (1024,), (1025,), (33,)]
METHODS = [
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("AdamW", {"lr": torch.tensor(0.02), "fused": True}),
    ("NAdam", {"momentum_decay": 0.1}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"weight_decay": 0.1}),
]
STATES = ["float32", "bfloat16", "compact", "8bit", ("8bit", "float32"), ("bfloat16", "8bit")]
ROUNDINGS = [
    *((torch.float32, each) for each in (None, "nearest")),
    *((BFLOAT16, each) for each in (None, "nearest", "stochastic", "remainder", "remainder8")),
    *((FLOAT16, each) for each in (None, "nearest", "stochastic")),
]


QUEUES = ("own", "down", "up")


class Device:
    """The device of the tests: what it is asked for by all optimizers."""

    def __init__(self, order):
        self.order, self.deaf = order, ()
        self.made = []
        #: What was prepared for each step: whose it is, and by what the step goes.
        self.pipelines, self.rounds = [], []

    def streams(self, device):
        self.made.append(Queues(self.order, self.deaf))
        return self.made[-1]

    @property
    def chunks(self):
        """The chunks of the last step."""
        return [chunk for each in self.rounds[-1] for chunk in each.chunks]


@pytest.fixture(params=ORDERS)
def device(request, monkeypatch):
    made = Device(request.param)
    prepare = offload.Offload.prepare

    def noted(pipeline, items):
        made.pipelines.append(pipeline)
        made.rounds.append(prepare(pipeline, items))
        return made.rounds[-1]

    monkeypatch.setattr(offload.Offload, "prepare", noted)
    monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
    monkeypatch.setattr(offload, "CudaStreams", made.streams)
    monkeypatch.setattr(chunks, "CHUNK", 1024)
    return made


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def give_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def trained(optimizer, params, steps=range(4), scale=1.0):
    for step in steps:
        give_gradients(params, step, scale)
        optimizer.step()
    return optimizer


def both(name, options, dtype=torch.float32, shapes=SHAPES):
    """An optimizer with and one without, each with its parameters, all alike."""
    pairs = []
    for offloads in (True, False):
        params = parameters(dtype, shapes)
        given = {"lr": 0.01, **options, "offload": offloads}
        pairs.append((getattr(ours, name)(params, **given), params))
    return pairs


def bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.itemsize]
    )


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(bits(x), bits(y))
        for x, y in zip(a, b, strict=True)
    )


def tensors_of(optimizer):
    """All that an optimizer keeps, in one order."""
    states = optimizer.state_dict(packed=True)["packed_state"]
    return [torch.as_tensor(states[i][name]) for i in sorted(states) for name in sorted(states[i])]


def assert_same(one, other):
    assert same(one[1], other[1])
    assert same(tensors_of(one[0]), tensors_of(other[0]))
    assert one[0].state_dict()["state"].keys() == other[0].state_dict()["state"].keys()


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


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


# ── where the state is ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pins(monkeypatch):
    """Let torch believe in a card as far as memory is concerned; return what was pinned."""
    pinned = set()
    empty, is_pinned = torch.empty, torch.Tensor.is_pinned
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def made(*shape, pin_memory=False, **options):
        tensor = empty(*shape, **options)
        if pin_memory:
            pinned.add(tensor.data_ptr())
            kept.append(tensor)
        return tensor

    kept = []
    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: x.data_ptr() in pinned)
    assert not is_pinned(torch.zeros(3))
    return pinned


def assert_pinned(optimizer):
    entries = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    assert entries
    assert all(value.is_pinned() and value.is_cpu for value in entries)


ALL = {"state": "8bit", "rounding": "remainder", "ema": 0.9}


def test_state_is_pinned_and_so_are_buffers(device, pins):
    params = parameters(BFLOAT16)
    optimizer = trained(ours.AdamW(params, offload=True, **ALL), params)
    assert_pinned(optimizer)
    (pipeline,) = set(device.pipelines)
    assert pipeline.buffers
    assert all(room.memory.is_pinned() for room in pipeline.buffers)


@pytest.mark.parametrize("way", ["load", "deepcopy", "pickle"])
def test_state_is_pinned_again_after_loading_and_copying(device, pins, way):
    params = parameters(BFLOAT16)
    optimizer = trained(ours.AdamW(params, offload=True, **ALL), params)
    if way == "load":
        other = ours.AdamW(parameters(BFLOAT16), offload=True, **ALL)
        other.load_state_dict(optimizer.state_dict(packed=True))
    elif way == "deepcopy":
        other = copy.deepcopy(optimizer)
    else:
        other = pickle.loads(pickle.dumps(optimizer))
    assert_pinned(other)
    assert same(tensors_of(other), tensors_of(optimizer))


@pytest.mark.parametrize("way", ["load", "deepcopy", "pickle"])
def test_training_goes_on_after_loading_and_copying(device, way):
    options = {**ALL, "seed": 3}
    one, other = both("AdamW", options, BFLOAT16)
    trained(*other)
    optimizer, params = one
    trained(optimizer, params, range(2))
    if way == "deepcopy":
        optimizer, params = copy.deepcopy((optimizer, params))
    elif way == "pickle":
        optimizer, params = pickle.loads(pickle.dumps((optimizer, params)))
    else:
        optimizer = ours.AdamW(params, lr=0.01, offload=True, **options)
        optimizer.load_state_dict(one[0].state_dict())
    trained(optimizer, params, range(2, 4))
    assert {*optimizer.routes().values()} == {"offload"}
    assert_same((optimizer, params), other)
    untouched = trained(*one, range(0)).state
    assert all(float(state["step"]) == 2 for state in untouched.values())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("AdamW", {}, torch.float32),
        ("AdamW", {"fused": True}, BFLOAT16),
        ("AdamW", {"state": "8bit", "rounding": "remainder8", "seed": 3, "ema": 0.9}, BFLOAT16),
        ("NAdam", {"state": "compact"}, torch.float32),
        ("SGD", {"momentum": 0.9}, FLOAT16),
    ],
)
def test_checkpoints_go_both_ways(device, name, options, dtype, first, packed):
    """From an optimizer with offload to one without, and back."""
    (_, other) = pair = both(name, options, dtype)
    trained(*other)
    before, params = both(name, options, dtype)[0 if first else 1]
    trained(before, params, range(2))
    stored = io.BytesIO()
    torch.save(before.state_dict(packed=packed), stored)
    stored.seek(0)
    after = getattr(ours, name)(params, **{"lr": 0.01, **options, "offload": not first})
    after.load_state_dict(torch.load(stored))
    trained(after, params, range(2, 4))
    assert {*after.routes().values()} == {"native" if first else "offload"}
    assert_same((after, params), other)
    assert pair


@pytest.mark.parametrize("offloads", [True, False])
def test_loading_brings_no_state_to_the_device(device, offloads):
    saved = trained(ours.AdamW(params := parameters()), params).state_dict()
    there = [nn.Parameter(p.detach().to("meta")) for p in params]
    optimizer = ours.AdamW(there, offload=offloads)
    optimizer.load_state_dict(saved)
    for p in there:
        assert optimizer.state[p]["exp_avg"].is_meta is not offloads


def test_a_checkpoint_of_torch_loads(device):
    params, others = parameters(), parameters()
    theirs = torch.optim.AdamW(others, lr=0.01)
    trained(theirs, others, range(2))
    found = []
    for offloads in (True, False):
        params = copy.deepcopy(others)
        optimizer = ours.AdamW(params, lr=0.01, offload=offloads)
        optimizer.load_state_dict(theirs.state_dict())
        found.append((trained(optimizer, params), params))
    assert_same(*found)


@pytest.mark.parametrize("count", [10, 4000])
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_touched(device, count):
    params = parameters(shapes=[(2000,), (3000,)])
    optimizer = trained(ours.AdamW(params, offload=True), params)
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(count)
    before = copy.deepcopy(params), copy.deepcopy([dict(optimizer.state[p]) for p in params])
    with pytest.raises(ValueError, match="exp_avg") as error:
        trained(optimizer, params)
    assert str(error.value) == (
        f"The state of 0.1 has exp_avg of shape ({count},), but the parameter has shape (3000,). "
        "Load a state of the same parameters."
    )
    assert same(params, before[0])
    for p, kept in zip(params, before[1], strict=True):
        assert same([*optimizer.state[p].values()], [*kept.values()])


def test_a_refused_state_leaves_parameters_of_the_processor_alone(device, monkeypatch):
    here, there = nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(9))
    monkeypatch.setattr(host_memory, "is_offloaded", lambda p: p is there)
    optimizer = trained(ours.AdamW([here, there], offload=True), [here, there])
    optimizer.state[there]["exp_avg"] = torch.zeros(10)
    before = here.detach().clone()
    with pytest.raises(ValueError, match=r"has exp_avg of shape \(10,\)"):
        trained(optimizer, [here, there])
    assert same([here], [before])
    assert float(optimizer.state[here]["step"]) == 4


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def test_offload_is_yes_or_no():
    with pytest.raises(TypeError) as error:
        ours.AdamW(parameters(), offload="cpu")
    assert str(error.value) == "offload is 'cpu', but it must be True or False."


def test_complex_parameters_are_refused(device):
    with pytest.raises(TypeError) as error:
        ours.AdamW([nn.Parameter(torch.zeros(3, dtype=torch.complex64))], offload=True)
    assert str(error.value) == (
        "offload is True, but a parameter has dtype torch.complex64 and layout torch.strided. "
        "Offloaded parameters are dense, and float32, float64, bfloat16 or float16. Give the "
        "others an optimizer of their own."
    )


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"centered": True}])
def test_rmsprop_of_another_rule_is_refused(device, options):
    with pytest.raises(ValueError, match="offload") as error:
        ours.RMSprop(parameters(), offload=True, **options)
    assert str(error.value) == (
        "offload is True, but RMSprop with momentum or centered follows another rule than the "
        "engine of the processor has. Leave out the one or the other."
    )


def test_a_refused_group_is_not_kept(device):
    optimizer = ours.AdamW(parameters(), offload=True)
    with pytest.raises(TypeError, match="complex64"):
        optimizer.add_param_group({"params": [torch.zeros(3, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_of_another_dtype_is_refused_and_nothing_is_touched(device):
    params = parameters(BFLOAT16)
    optimizer = trained(ours.AdamW(params, offload=True), params)
    before = copy.deepcopy(params), copy.deepcopy(tensors_of(optimizer))
    params[1].grad = None
    params[1].grad_dtype = torch.float32
    params[1].grad = torch.ones(3000)
    with pytest.raises(TypeError) as error:
        optimizer.step()
    assert str(error.value) == (
        "offload is True, but a gradient has dtype torch.float32 and its parameter "
        "torch.bfloat16. Convert the gradient."
    )
    assert same(params, before[0])
    assert same(tensors_of(optimizer), before[1])


def test_sparse_gradients_are_refused_as_ever(device):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = ours.Adam(embedding.parameters(), offload=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        optimizer.step()


def test_distributed_parameters_are_refused_with_a_way_out(device, tmp_path):
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread = nn.Parameter(distribute_tensor(torch.zeros(8), mesh, [Shard(0)]))
        with pytest.raises(TypeError) as error:
            ours.AdamW([spread], offload=True)
    finally:
        dist.destroy_process_group()
    assert str(error.value) == (
        "offload is True, but a parameter is a DTensor, and plain tensors alone are offloaded. "
        "FSDP2 offloads by itself, with fully_shard(model, offload_policy=CPUOffloadPolicy()); "
        "else leave offload out."
    )


def test_parameters_in_the_processors_memory_are_stepped_as_ever():
    one, other = both("AdamW", {})
    trained(*one)
    trained(*other)
    assert_same(one, other)
    assert {*one[0].routes().values()} == {"native"}


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
