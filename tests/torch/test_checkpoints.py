"""States for torch.distributed.checkpoint: what it asks for, packed ones, and what is refused."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import adamas
import adamas.torch as ours


@pytest.fixture
def mesh():
    """Let this process be the last of four, of which the others never answer."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 3), nn.Linear(3, 64, bias=False)).to(dtype)


def run(model, optimizer, steps):
    for step in steps:
        for i, p in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + i)
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    optimizer.zero_grad()


def same(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


def sharded(mesh, shape, placement, **options):
    """Return an optimizer that has made a step of one parameter."""
    p = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [placement], src_data_rank=None))
    p.grad = torch.ones_like(p)
    optimizer = ours.AdamW([("weight", p)], lr=0.1, **options)
    optimizer.step()
    return optimizer


METHODS = [
    ("AdamW", {"ema": 0.9, "clip_norm": 0.1, "on_nonfinite": "skip", "statistics": True}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "rounding": "remainder8"}),
    ("AdamW", {"state": "8bit", "rounding": "stochastic", "copy_to": torch.float16}),
    ("NAdam", {"state": "compact", "rounding": "remainder", "decoupled_weight_decay": True}),
    ("RMSprop", {"state": "8bit", "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("SGD", {"weight_decay": 0.1}),
]


@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_state_that_is_asked_for_before_the_first_step_is_no_step(name, options, rate):
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    runs = []
    for is_asked in (False, True):
        model = net(dtype)
        before = copy.deepcopy(model)
        given = rate.clone() if isinstance(rate, torch.Tensor) else rate
        optimizer = getattr(ours, name)(model.parameters(), lr=given, **options)
        if is_asked:
            get_optimizer_state_dict(model, optimizer)
            assert same(model, before)
            assert optimizer.skipped == 0
            assert optimizer.gradient_norm is None
            assert [group["lr"] for group in optimizer.param_groups] == [rate]
            for state in optimizer.state.values():
                assert state.get("step", torch.zeros(())).item() == 0
        run(model, optimizer, range(3))
        runs.append((model, optimizer))
    (one, first), (other, second) = runs
    assert same(one, other)
    assert first.gradient_norm == second.gradient_norm
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(*map(torch.as_tensor, (a[entry], b[entry]))) for entry in a)


def test_a_step_that_only_looks_like_the_one_for_a_state_is_a_step():
    model = net()
    optimizer = ours.AdamW(model.parameters(), lr=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("is_flat", [False, True])
def test_packed_states_are_saved_and_loaded_by_name(tmp_path, is_flat, is_named):
    def made():
        model = net()
        given = model.named_parameters() if is_named else model.parameters()
        return model, ours.AdamW(given, lr=0.01, state="8bit", ema=0.9)

    options = StateDictOptions(flatten_optimizer_state_dict=is_flat)
    model, optimizer = made()
    run(model, optimizer, range(3))
    packed = ours.Packed(optimizer)
    saved = get_optimizer_state_dict(model, packed, options=options)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path, no_dist=True)
    twin, other = made()
    twin.load_state_dict(model.state_dict())
    found = {"optimizer": get_optimizer_state_dict(twin, ours.Packed(other), options=options)}
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(
        twin, ours.Packed(other), optim_state_dict=found["optimizer"], options=options
    )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        a, b = optimizer.state[p], other.state[q]
        assert a.keys() == b.keys() == {"step", "exp_avg", "exp_avg_sq", "ema", "header", "top"}
        assert all(torch.equal(*map(torch.as_tensor, (a[entry], b[entry]))) for entry in a)
    run(model, optimizer, range(3, 6))
    run(twin, other, range(3, 6))
    assert same(model, twin)


FORMS = ["float32", "bfloat16", "compact", "8bit", ("compact", "float32"), ("bfloat16", "8bit")]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kept", FORMS, ids=str)
def test_packed_states_are_not_found_by_an_optimizer_that_stores_another_form(tmp_path, kept):
    model = net()
    optimizer = ours.AdamW(model.parameters(), state=kept)
    run(model, optimizer, range(2))
    state = get_optimizer_state_dict(model, ours.Packed(optimizer))
    dcp.save({"optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    for other in FORMS:
        twin = net()
        again = ours.Packed(ours.AdamW(twin.parameters(), state=other))
        found = {"optimizer": get_optimizer_state_dict(twin, again)}
        if other == kept:
            dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
            continue
        name = other if isinstance(other, str) else "_".join(other)
        message = rf"Missing key in checkpoint .*\.packed_state_{name}\."
        with pytest.raises(dcp.api.CheckpointException, match=message):
            dcp.load(found, checkpoint_id=tmp_path, no_dist=True)


@pytest.mark.parametrize("kept", ["remainder", "remainder8"])
@pytest.mark.parametrize("wanted", ["remainder", "remainder8"])
def test_remainders_of_sharded_parameters_are_converted_and_their_names_tell_the_width(
    mesh, kept, wanted
):
    made = []
    for rounding in (kept, wanted):
        whole = torch.linspace(1, 2, 8 * 64).view(8, 64).to(torch.bfloat16)
        p = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None))
        p.grad = torch.ones_like(p)
        optimizer = ours.AdamW([p], lr=0.1, rounding=rounding)
        optimizer.step()
        made.append((optimizer, p))
    (optimizer, p), (other, q) = made
    other.load_state_dict(optimizer.state_dict())
    value = optimizer.state[p]["remainder"].to_local().int()
    value = value * (256 if kept == "remainder8" else 1) >> (8 if wanted == "remainder8" else 0)
    assert value.any()
    assert torch.equal(other.state[q]["remainder"].to_local().int(), value)
    names = [[*ours.Packed(each).state_dict()["state"][0]] for each, _ in made]
    assert (names[0] == names[1]) is (kept == wanted)


@pytest.mark.parametrize("form", ["full_state_dict", "flatten_optimizer_state_dict"])
def test_packed_states_of_another_form_are_refused_and_change_nothing(form):
    options = StateDictOptions(**{form: True})
    is_full = form == "full_state_dict"  # torch's own error then
    message = "packed_state_8bit" if is_full else "has an empty packed_state_compact, but it must"
    model, twin = net(), net()
    optimizer = ours.AdamW(model.parameters(), state="8bit")
    run(model, optimizer, range(2))
    saved = get_optimizer_state_dict(model, ours.Packed(optimizer), options=options)
    other = ours.AdamW(twin.parameters(), state="compact")
    run(twin, other, range(1))
    before = copy.deepcopy(other.state_dict(packed=True))
    with pytest.raises((KeyError, ValueError), match=message):
        set_optimizer_state_dict(twin, ours.Packed(other), optim_state_dict=saved, options=options)
    after = other.state_dict(packed=True)
    torch.testing.assert_close(after["packed_state"], before["packed_state"], rtol=0, atol=0)


def test_a_packed_state_that_was_loaded_is_brought_into_another_form():
    model, twin = net(), net()
    optimizer = ours.AdamW(model.parameters(), state="8bit")
    run(model, optimizer, range(2))
    saved = get_optimizer_state_dict(model, ours.Packed(optimizer))
    other = ours.AdamW(twin.parameters(), state="8bit")
    set_optimizer_state_dict(twin, ours.Packed(other), optim_state_dict=saved)
    for each in (optimizer, other):
        each.param_groups[0]["state"] = "compact"
    twin.load_state_dict(model.state_dict())
    run(model, optimizer, range(2, 4))
    run(twin, other, range(2, 4))
    assert same(model, twin)
    assert all(state["exp_avg"].dtype == torch.uint8 for state in other.state.values())


def test_packed_takes_optimizers_of_adamas_alone_and_has_nothing_of_its_own():
    model = net()
    with pytest.raises(
        TypeError, match=r"^Packed was given an AdamW, but it must be an optimizer of"
    ):
        ours.Packed(torch.optim.AdamW(model.parameters()))
    optimizer = ours.AdamW(model.parameters(), state="compact")
    packed = ours.Packed(optimizer)
    assert packed.param_groups is optimizer.param_groups
    assert packed.defaults is optimizer.defaults
    assert repr(packed) == f"Packed({optimizer!r})"
    assert not packed.state
    run(model, packed, range(1))
    assert [*packed.state] == [*optimizer.state]
    assert all(p.grad is None for p in model.parameters())


PARTS = [((8, 37), Shard(0)), ((8, 64), Shard(1)), ((100,), Shard(0))]


@pytest.mark.parametrize(("shape", "placement"), PARTS)
def test_a_tensor_that_is_cut_within_a_block_is_saved_dense_alone(mesh, shape, placement):
    optimizer = sharded(mesh, shape, placement, state="8bit")
    message = (
        r"^The state of weight cannot be saved packed: it is stored in 8 bits, in blocks of 32 "
        r"elements, and the parameter of shape .* is sharded as \(Shard\(dim=.\),\), so that .* "
        r'Save it dense, with packed=False, which loses nothing; or .* state="compact"\.$'
    )
    for saving in (lambda: optimizer.state_dict(packed=True), ours.Packed(optimizer).state_dict):
        with pytest.raises(ValueError, match=message):
            saving()
    dense = optimizer.state_dict()["state"][0]
    assert dense["exp_avg"].placements == (placement,)
    compact = sharded(mesh, shape, placement, state="compact").state_dict(packed=True)
    assert compact["packed_state"][0]["exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("shape", "placement"), [((8, 64), Shard(0)), ((8, 37), Replicate()), ((), Replicate())]
)
def test_what_is_not_cut_within_a_block_is_saved_packed(mesh, shape, placement):
    optimizer = sharded(mesh, shape, placement, state="8bit")
    state = optimizer.state_dict(packed=True)["packed_state"][0]
    assert isinstance(state["header"], DTensor) == (placement == Shard(0))


def test_a_file_for_whole_tensors_names_the_sharded_one(mesh, tmp_path):
    optimizer = sharded(mesh, (8, 37), Shard(0), state="8bit")
    with pytest.raises(TypeError, match="parameters/weight is sharded over processes"):
        adamas.save(tmp_path / "run.safetensors", optimizer)


@pytest.mark.parametrize("packed", [False, True])
def test_counts_of_sharded_parameters_are_of_the_step_at_which_they_were_asked_for(mesh, packed):
    optimizer = sharded(mesh, (8, 64), Shard(0))
    state = optimizer.state_dict(packed=packed)["packed_state" if packed else "state"][0]
    optimizer.step()
    assert state["step"].item() == 1
    assert optimizer.state_dict()["state"][0]["step"].item() == 2


def test_replicas_take_a_state_of_plain_tensors(mesh):
    optimizer = sharded(mesh, (), Replicate(), state="8bit", ema=0.9)
    saved = copy.deepcopy(optimizer.state_dict())
    entries = saved["state"][0]
    whole = {name: each.to_local() for name, each in entries.items() if name != "step"}
    saved["state"][0] = {**entries, **whole}
    before = {name: each.to_local().clone() for name, each in entries.items() if name != "step"}
    optimizer.load_state_dict(saved)
    for name, value in before.items():
        there = optimizer.state_dict()["state"][0][name]
        assert there.placements == (Replicate(),)
        assert torch.equal(there.to_local(), value)
    parted = sharded(mesh, (8, 64), Shard(0))
    wrong = parted.state_dict()
    wrong["state"][0]["exp_avg"] = torch.zeros(8, 64)
    with pytest.raises(ValueError, match="has a plain tensor as exp_avg, but the parameter is a"):
        parted.load_state_dict(wrong)


@pytest.mark.parametrize("packed", [False, True])
def test_16_bits_of_sharded_parameters_are_saved_in_32_which_can_be_gathered(mesh, packed):
    value = torch.linspace(-1, 1, 512).view(8, 64).to(torch.bfloat16)
    p = nn.Parameter(distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None))
    optimizer = ours.AdamW([("weight", p)], lr=0.1, state="8bit", rounding="remainder")
    p.grad = torch.ones_like(p)
    optimizer.step()
    key = "packed_state" if packed else "state"
    before = {name: optimizer.state[p][name] for name in ("header", "remainder")}
    saved = optimizer.state_dict(packed=packed)
    dtypes = {each.dtype for each in saved[key][0].values() if isinstance(each, DTensor)}
    assert torch.int16 not in dtypes
    assert torch.int32 in dtypes
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["remainder"].dtype == torch.int16
    assert optimizer.state[p]["header"].dtype == torch.int16
    for name in ("header", "remainder") if packed else ("remainder",):
        assert torch.equal(optimizer.state[p][name].to_local(), before[name].to_local())
    saved[key][0]["remainder"].to_local().fill_(40_000)
    with pytest.raises(ValueError, match="has remainder with elements beyond 16 bits"):
        optimizer.load_state_dict(saved)
