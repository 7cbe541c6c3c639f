"""Loading into DTensors: what fits is taken, what is no part of the parameter is refused."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh  # noqa: E402

import adamas.torch as ours  # noqa: E402


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one process: DTensors are DTensors all the same."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def made(mesh, **options):
    values = torch.linspace(-1, 1, 70).view(7, 10)
    p = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
    optimizer = ours.AdamW([p], lr=0.1, **options)
    return p, optimizer


def stepped(p, optimizer, steps=2):
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("state", [None, "compact", "8bit"])
def test_states_of_dtensors_load_and_training_goes_on(mesh, state, packed):
    p, optimizer = made(mesh, state=state)
    stepped(p, optimizer)
    q, other = made(mesh, state=state)
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict(packed=packed)))
    assert other.state[q]["exp_avg"].placements == p.placements
    stepped(p, optimizer)
    stepped(q, other)
    assert torch.equal(p.to_local(), q.to_local())


@pytest.mark.parametrize("state", [None, "8bit"])
@pytest.mark.parametrize("case", ["shape", "plain", "kept in a plain one"])
def test_what_is_no_part_of_the_parameter_is_refused_and_nothing_is_changed(mesh, state, case):
    p, optimizer = made(mesh, state=state)
    saved = copy.deepcopy(stepped(p, optimizer).state_dict())
    whole = torch.zeros(7, 10)
    if case == "shape":
        wrong = distribute_tensor(torch.zeros(8, 10), mesh, [Shard(0)])
        message = r"exp_avg of shape \(8, 10\), but the parameter has shape \(7, 10\)"
    else:
        wrong, message = whole, "has a plain tensor as exp_avg, but the parameter is a DTensor"
    if case == "kept in a plain one":
        p = nn.Parameter(whole.clone())
        optimizer = stepped(p, ours.AdamW([p], lr=0.3))
        message = "has a DTensor as exp_avg, but the parameter is a plain tensor"
    else:
        saved["state"][0]["exp_avg"] = wrong
    before = copy.deepcopy(optimizer.state[p])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    for name, entry in before.items():
        kept = optimizer.state[p][name]
        assert kept == entry if name == "top" else torch.equal(kept, entry)
    stepped(p, optimizer)
