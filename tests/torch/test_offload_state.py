"""Where the state is with offload=True: in pinned host memory, after loading too; and refusals."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import adamas.torch as ours
from adamas.torch import distributed, host_memory
from tests.support.offloading import (
    BFLOAT16,
    FLOAT16,
    assert_pinned,
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


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_parameters_have_their_parts_of_the_state_in_host_memory(device, group, pins):
    shapes, mesh = [(5, 64), (1100,), ()], init_device_mesh("cpu", (1,))
    one, other = parameters(BFLOAT16, shapes), parameters(BFLOAT16, shapes)
    spread = [
        nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0) if p.ndim else Replicate()]))
        for p in one
    ]
    optimizers = [ours.AdamW(params, offload=True, seed=2, **ALL) for params in (spread, other)]
    for step in range(3):
        give_gradients(other, step)
        for p, whole in zip(spread, other, strict=True):
            p.grad = distribute_tensor(whole.grad.clone(), mesh, p.placements)
        for optimizer in optimizers:
            optimizer.step()
    assert same([p.to_local() for p in spread], other)
    states = [list(each.state.values()) for each in optimizers]
    for p, state, judge in zip(spread, *states, strict=True):
        for name, value in judge.items():
            if name in ("step", "top"):
                continue
            found = distributed.local(state[name])
            assert same([found], [value.view(found.shape)])
            assert found.is_pinned() or found.numel() == 1
            if name != "header":
                assert (type(state[name]), state[name].placements) == (DTensor, p.placements)


def test_parts_in_host_memory_stay_there_though_their_mesh_is_of_cards(group):
    """As FSDP2's CPUOffloadPolicy has them."""
    mesh = DeviceMesh("cuda", torch.arange(1), _init_backend=False)
    meta = torch.zeros(4, 64, device="meta")
    spec = DTensor.from_local(meta, mesh, [Shard(0)], run_check=False)._spec
    like = DTensor(torch.ones(4, 64), spec, requires_grad=False)
    header = distributed.by_runs(like, torch.arange(8, dtype=torch.int16), 32)
    for found in (
        header,
        distributed.with_part(like, torch.zeros(4, 64)),
        host_memory.in_host(like),
    ):
        assert (type(found), found.device_mesh, found.placements) == (DTensor, mesh, (Shard(0),))
        assert found.to_local().is_cpu
    assert (header.shape, header.dtype) == ((4, 2), torch.int16)
    assert header.to_local().flatten().tolist() == list(range(8))


def scattered(dtype):
    """A parameter of which the first of four processes has elements in a hundred kinds of runs."""
    mesh = DeviceMesh("cpu", torch.arange(4).view(2, 2), _init_backend=False)
    spread = DTensor.from_local(
        torch.ones(100, 2, 3, dtype=dtype),
        mesh,
        [Shard(1), Shard(2)],
        run_check=False,
        shape=torch.Size([100, 4, 6]),
        stride=(24, 6, 1),
    )
    return nn.Parameter(spread)


SCATTERED = (
    "offload is True, but a parameter has shape (100, 4, 6) and placements (S(1), S(2)), and this "
    "process's elements stand in more than 64 kinds of runs in the whole tensor: random bits to "
    'round with are not drawn for so many. Use rounding="nearest", or leave offload out.'
)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BFLOAT16, {"rounding": "stochastic"}),
        (BFLOAT16, {"rounding": "remainder8"}),
        (torch.float32, {"state": "compact", "rounding": "stochastic"}),
    ],
)
def test_parts_in_too_many_runs_to_draw_random_bits_are_refused(device, group, dtype, options):
    optimizer = ours.AdamW([nn.Parameter(torch.ones(2, dtype=dtype))], offload=True, **options)
    with pytest.raises(ValueError, match="kinds of runs") as error:
        optimizer.add_param_group({"params": [scattered(dtype)]})
    assert str(error.value) == SCATTERED
    assert len(optimizer.param_groups) == 1


def test_parts_in_many_runs_are_stepped_until_random_bits_are_asked_for(device, group):
    p, plain = scattered(BFLOAT16), nn.Parameter(torch.ones(600, dtype=BFLOAT16))
    optimizers = [ours.AdamW([each], offload=True) for each in (p, plain)]
    for each, optimizer in zip((p, plain), optimizers, strict=True):
        each.grad = torch.full_like(each, 0.5)
        optimizer.step()
    assert same([p.to_local().flatten()], [plain])
    optimizers[0].param_groups[0]["rounding"] = "stochastic"
    with pytest.raises(ValueError, match="kinds of runs") as error:
        optimizers[0].step()
    assert str(error.value) == SCATTERED
    assert same([p.to_local().flatten()], [plain])
    assert optimizers[0].state[p]["step"] == 1
