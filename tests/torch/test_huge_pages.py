"""Small states of large tensors lie in memory that has asked for huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adamas.torch import Adam, AdamW, huge_pages

LARGE = (1 << 20) + 7  # elements: more than 4 MiB of float32
SMAPS = Path("/proc/self/smaps")
asks = pytest.mark.skipif(
    not (SMAPS.exists() and Path("/sys/kernel/mm/transparent_hugepage").exists()),
    reason="needs a Linux kernel with transparent huge pages",
)


def has_asked(tensor):
    """Whether Linux keeps the flag "hg" for the middle of a tensor's memory."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    here = False
    for line in SMAPS.read_text().splitlines():
        if (span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            here = int(span[1], 16) <= middle < int(span[2], 16)
        elif here and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the memory is not there")


def parameter(shape, layout=torch.contiguous_format):
    p = torch.nn.Parameter(torch.ones(shape).contiguous(memory_format=layout))
    p.grad = torch.full_like(p, 0.5)
    return p


@asks
@pytest.mark.parametrize("form", ["bfloat16", "8bit"])
def test_codes_of_a_large_parameter_ask(form):
    p = parameter(5 * LARGE)
    optimizer = AdamW([p], state=form)
    optimizer.step()
    assert has_asked(optimizer.state[p]["exp_avg"])
    assert has_asked(optimizer.state[p]["exp_avg_sq"])


@asks
def test_a_loaded_state_asks():
    p = parameter(3 * LARGE)
    optimizer = Adam([p], state="bfloat16")
    optimizer.step()
    own = {name: value.clone() for name, value in optimizer.state[p].items()}
    again = Adam([p], state="bfloat16")
    saved = optimizer.state_dict(packed=True)
    again.load_state_dict(saved)
    loaded = again.state[p]["exp_avg"]
    assert has_asked(loaded)
    assert loaded.equal(own["exp_avg"])
    assert loaded.data_ptr() != own["exp_avg"].data_ptr()


@pytest.mark.parametrize("shape", [(LARGE,), (64, 64, 17, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_large_zeros_are_those_of_torch(shape, dtype):
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    like = parameter(shape, layout)
    wanted = torch.zeros_like(like, dtype=dtype)
    found = huge_pages.zeros_like(like, dtype)
    assert found.equal(wanted)
    assert (found.stride(), found.dtype) == (wanted.stride(), dtype)
    assert not found.requires_grad


def test_a_copy_is_no_part_of_the_graph_and_has_the_layout():
    like = parameter((64, 64, 17, 16), torch.channels_last)
    found = huge_pages.copied(like, torch.bfloat16)
    assert found.equal(like.detach().bfloat16())
    assert found.stride() == like.stride()
    assert found.grad_fn is None
    assert not found.requires_grad


def test_tensors_without_memory_ask_for_none():
    with FakeTensorMode():
        made = huge_pages.zeros_like(torch.ones(LARGE), torch.float32)
    assert tuple(made.shape) == (LARGE,)
    assert huge_pages.zeros_like(torch.ones(LARGE, device="meta"), torch.uint8).is_meta
