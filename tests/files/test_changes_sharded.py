"""Changes go into DTensors: each process writes the elements that it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import adamas
from tests.support.told import Told, all_bits, bits_of

SHAPE = (7, 6, 5)

#: How a mesh of 2 and 3 processes cuts the tensor.
LAYOUTS = [
    (Shard(0), Replicate()),
    (Shard(0), Shard(1)),
    (Shard(1), Shard(2)),
    (Shard(0), Shard(0)),
    (Replicate(), Shard(2)),
    (Replicate(), Replicate()),
]


def process(rank):
    """Be one of six processes that never send anything, and return their mesh."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=6)
    # DTensor keeps specs by their meshes, which know the place of the process.
    return init_device_mesh("cpu", (2, 3), mesh_dim_names=(f"rows {rank}", f"columns {rank}"))


@pytest.fixture(autouse=True)
def alone():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def cut(whole, rank, layout):
    """Return the part of a whole array that a process has, by NumPy alone."""
    for coordinate, count, placement in zip(divmod(rank, 3), (2, 3), layout, strict=True):
        if not placement.is_replicate():
            size = -(-whole.shape[placement.dim] // count)  # as torch cuts
            begin = min(coordinate * size, whole.shape[placement.dim])
            whole = np.moveaxis(
                np.moveaxis(whole, placement.dim, 0)[begin : begin + size], 0, placement.dim
            )
    return np.ascontiguousarray(whole)


def sharded(mesh, part, layout):
    local = torch.from_numpy(part.copy())
    stride = torch.empty(SHAPE).stride()
    return DTensor.from_local(local, mesh, layout, run_check=False, shape=SHAPE, stride=stride)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_process_writes_its_own_elements(tmp_path, layout):
    told = Told({"w": np.zeros(SHAPE, np.float32)})
    start = told.tensors["w"].copy()
    wanted = []
    for number, fraction in enumerate((0.3, 1.0)):  # some of it, and all of it
        told.advance(1, fraction)
        adamas.save_changes(tmp_path / str(number), told.changes())
        wanted.append(told.tensors["w"].copy())
    for rank in range(6):
        parameter = torch.nn.Parameter(sharded(process(rank), cut(start, rank, layout), layout))
        local = parameter.to_local()
        before = parameter._version, local._version
        for number, whole in enumerate(wanted):
            after = None if number else 0
            assert adamas.apply_changes({"w": parameter}, tmp_path / str(number), after=after)
            part = cut(whole, rank, layout)
            assert bits_of(parameter.to_local()).tobytes() == bits_of(part).tobytes()
        assert parameter._version > before[0]
        dist.destroy_process_group()


def test_a_process_that_is_not_of_the_mesh_writes_nothing(tmp_path):
    told = Told({"w": np.zeros((6, 4), np.float32), "v": np.zeros(5, np.float32)})
    told.advance()
    adamas.save_changes(tmp_path / "1", told.changes())
    process(5)
    mesh = dist.device_mesh.DeviceMesh("cpu", [0, 1])
    elsewhere = DTensor.from_local(
        torch.zeros(0, 4), mesh, [Shard(0)], run_check=False, shape=(6, 4), stride=(4, 1)
    )
    here = {"w": elsewhere, "v": np.zeros(5, np.float32)}
    assert adamas.apply_changes(here, tmp_path / "1", after=0) == 1
    assert elsewhere.to_local().numel() == 0
    assert all_bits({"v": here["v"]}) == all_bits({"v": told.tensors["v"]})


def test_sums_that_are_not_added_up_are_refused(tmp_path):
    told = Told({"w": np.zeros(SHAPE, np.float32)})
    told.advance()
    adamas.save_changes(tmp_path / "1", told.changes())
    layout = (Partial(), Replicate())
    waiting = sharded(process(0), np.zeros(SHAPE, np.float32), layout)
    with pytest.raises(TypeError, match=r"the placement P.*Redistribute the parameter first"):
        adamas.apply_changes({"w": waiting}, tmp_path / "1", after=0)
    assert bool((waiting.to_local() == 0).all())
