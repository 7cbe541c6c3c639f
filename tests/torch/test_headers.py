"""Headers of 8-bit states: the shape of rows of blocks, laid out as the parameter is."""

from __future__ import annotations

import copy
import itertools

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

import adamas.torch as ours
from adamas.torch.distributed import shape_by_runs
from adamas.torch.parts import runs

#: Of a parameter, and of its header.
SHAPES = [
    ((), (1,)),
    ((0,), (0,)),
    ((3, 0), (3, 0)),
    ((0, 64), (0, 2)),
    ((33,), (2,)),
    ((96,), (3,)),
    ((5, 7), (2,)),
    ((40, 50), (63,)),
    ((5, 64), (5, 2)),
    ((2, 3, 32), (2, 3, 1)),
]


def trained(params, steps=2, **options):
    optimizer = ours.AdamW(params, lr=0.1, **{"state": "8bit", **options})
    for step in range(steps):
        for i, p in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + i)
            gradient = torch.randn(p.shape, generator=generator)
            if isinstance(p, DTensor):
                gradient = cut(gradient, p.device_mesh, p.placements)
            p.grad = gradient
        optimizer.step()
    return optimizer


def parameters():
    return [nn.Parameter(torch.ones(shape)) for shape, _ in SHAPES]


def headers(optimizer):
    return [state["header"] for state in optimizer.state.values()]


def cut(whole, mesh, placements):
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


@pytest.fixture
def processes():
    """Let this process be the last of several that never answer; return what makes it that one.

    It is always the last: torch keeps the sizes of parts for all meshes that compare equal.
    """

    def begin(shape):
        world = torch.Size(shape).numel()
        dist.init_process_group("fake", store=FakeStore(), rank=world - 1, world_size=world)
        return init_device_mesh("cpu", shape)

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_header_has_the_shape_of_rows_where_they_are_whole_blocks():
    optimizer = trained(parameters())
    assert [tuple(header.shape) for header in headers(optimizer)] == [each for _, each in SHAPES]
    assert {header.dtype for header in headers(optimizer)} == {torch.int16}
    assert {*optimizer.routes().values()} == {"native"}


@pytest.mark.parametrize("packed", [False, True])
def test_flat_headers_of_before_are_loaded_and_used(packed):
    first, second = parameters(), parameters()
    one = trained(first)
    saved = copy.deepcopy(one.state_dict(packed=packed))
    for state in saved["packed_state"].values() if packed else ():
        state["header"] = state["header"].reshape(-1)
    other = trained(second, steps=0)
    other.load_state_dict(saved)
    for a, b in zip(headers(one), headers(other), strict=True):
        assert a.shape == b.shape
        assert b.is_contiguous()
        assert torch.equal(a, b) or not packed
    for state in other.state.values():  # and where somebody puts one in its place
        state["header"] = state["header"].reshape(-1)
    for p, q in zip(first, second, strict=True):
        q.data.copy_(p.data)
        p.grad = q.grad = torch.ones_like(p)
    one.step()
    other.step()
    assert all(map(torch.equal, first, second))
    assert [tuple(header.shape) for header in headers(other)] == [each for _, each in SHAPES]


def test_a_header_that_is_not_contiguous_is_not_read_as_if_it_were():
    first, second = ([nn.Parameter(torch.ones(4, 96))] for _ in range(2))
    one, other = trained(first), trained(second)
    state = other.state[second[0]]
    state["header"] = state["header"].t().contiguous().t()
    assert not state["header"].is_contiguous()
    first[0].grad = second[0].grad = torch.linspace(-1, 1, 384).view(4, 96)
    one.step()
    other.step()
    assert torch.equal(first[0], second[0])
    saved = one.state_dict(packed=True)
    saved["packed_state"][0]["header"] = saved["packed_state"][0]["header"].t().contiguous().t()
    other.load_state_dict(saved)
    assert other.state[second[0]]["header"].is_contiguous()
    one.step()
    other.step()
    assert torch.equal(first[0], second[0])


def test_where_a_tensor_is_cut_is_found_out_without_memory_of_its_size(processes):
    length = 2**45
    assert shape_by_runs(torch.empty(3, length, device="meta"), 32) == (3, length // 32)
    mesh = processes((4,))
    cut_in_four = DTensor.from_local(
        torch.empty(length // 4, device="meta"), mesh, [Shard(0)], run_check=False
    )
    assert shape_by_runs(cut_in_four, 32) == (length // 32,)
    assert [(each.start, each.length) for each in runs(cut_in_four)] == [
        (length // 4 * 3, length // 4)  # of the last process
    ]


#: Placements on meshes, and the shapes of those parameters below whose headers are laid out so.
ROW, COLUMN, WHOLE, STRIDED = Shard(0), Shard(1), Replicate(), _StridedShard(0, split_factor=2)
WIDE = (1, 96), (3, 256), (5, 32), (7, 128), (8, 64)


@pytest.mark.parametrize(
    ("mesh_shape", "placements", "laid_out"),
    [
        ((4,), (ROW,), WIDE),
        ((4,), (WHOLE,), WIDE),
        ((4,), (COLUMN,), ((3, 256), (7, 128))),
        ((3,), (COLUMN,), ((1, 96),)),
        ((2, 2), (STRIDED, ROW), WIDE),
        ((2, 2), (ROW, COLUMN), ((3, 256), (7, 128), (8, 64))),
        ((2, 2), (COLUMN, COLUMN), ((3, 256), (7, 128))),
        ((2, 2), (_StridedShard(1, split_factor=2), COLUMN), ((3, 256), (7, 128))),
    ],
    ids=str,
)
def test_headers_are_laid_out_as_parameters_unless_a_block_is_cut(
    processes, mesh_shape, placements, laid_out
):
    mesh = processes(mesh_shape)
    shapes = [*WIDE, (5, 37), (4, 8)]
    params = [nn.Parameter(cut(torch.ones(shape), mesh, placements)) for shape in shapes]
    optimizer = trained(params)
    found = []
    for p, header in zip(params, headers(optimizer), strict=True):
        code = optimizer.state[p]["exp_avg"]
        assert (code.placements, code.device_mesh) == (p.placements, p.device_mesh)
        if isinstance(header, DTensor):
            assert (header.placements, header.device_mesh) == (p.placements, p.device_mesh)
            assert header.shape == (*p.shape[:-1], p.shape[-1] // 32)
            assert header.to_local().is_contiguous()
            found.append(tuple(p.shape))
        else:
            assert header.shape == (-(-p.to_local().numel() // 32),)
    assert tuple(found) == laid_out


def test_flat_headers_of_parts_are_laid_out_when_they_are_loaded(processes):
    mesh = processes((4,))

    def made():
        return nn.Parameter(cut(torch.ones(7, 64), mesh, [ROW]))

    first, second = made(), made()
    one, other = trained([first]), trained([second], steps=0)
    saved = copy.deepcopy(one.state_dict(packed=True))
    entry = saved["packed_state"][0]
    entry["header"] = entry["header"].to_local().reshape(-1)
    other.load_state_dict(saved)
    for name, a in one.state[first].items():
        b = other.state[second][name]
        assert type(a) is type(b), name
        assert torch.equal(*(x.to_local() if isinstance(x, DTensor) else torch.as_tensor(x)
                             for x in (a, b))), name  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "header", "message"),
    [
        ((8, 64), torch.zeros(8, 2, dtype=torch.int16), r"^The state of 0\.0 is stored in 8 bits "
         r"and has a tensor of shape \(8, 2\) and dtype torch\.int16 as header, but it must have "
         r"one of shape \(8, 2\) and dtype torch\.int16: a number for each 32 elements, sharded as "
         r"the parameter is\. Load it with "
         r"torch\.distributed\.checkpoint\.state_dict\.set_optimizer_state_dict\.$"),
        ((8, 37), torch.zeros(10, dtype=torch.int16), r"must have one of shape \(3,\) and dtype "
         r"torch\.int16: a number for each 32 elements of this process's part\.$"),
    ],
)  # fmt: skip
def test_a_header_of_the_whole_tensor_is_none_of_a_part(processes, shape, header, message):
    mesh = processes((4,))
    optimizer = trained([nn.Parameter(cut(torch.ones(shape), mesh, [ROW]))])
    before = headers(optimizer)
    saved = {**(groups := optimizer.state_dict()), "state": {0: dict(
        next(iter(optimizer.state.values())), header=header)}}  # fmt: skip
    assert groups["param_groups"]
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert all(a is b for a, b in itertools.zip_longest(before, headers(optimizer)))


def test_copies_that_have_other_elements_in_the_same_shape_are_refused(processes):
    mesh = processes((4,))
    turned = DeviceMesh("cpu", [3, 2, 1, 0])
    p = nn.Parameter(cut(torch.ones(8, 4), mesh, [Shard(0)]))
    like = torch.zeros(8, 4, dtype=torch.bfloat16)
    ours.AdamW([p], copy_to=[cut(like, mesh, [Shard(0)])])
    with pytest.raises(ValueError, match=r"copy_to\[0\] has placements .* other elements of them"):
        ours.AdamW([p], copy_to=[cut(like, turned, [Shard(0)])])
    with pytest.raises(ValueError, match=r"has placements None, but the parameter has \(Shard"):
        ours.AdamW([p], copy_to=[like])
