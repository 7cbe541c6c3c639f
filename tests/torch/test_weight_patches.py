"""Changes as vLLM's receivers of sparse weight updates take them.

vLLM's ``sparse_nccl`` backend is told of each tensor its name, dtype, shape and number of updates,
and is sent two one-dimensional tensors: ``indices``, int32, into the flattened tensor, and
``values`` in the dtype of the parameter. Releases before checkpoint names were taken write them
into a parameter of that name, later ones hand them to the model's own loader as
``CheckpointWeightPatch(name, shape, dtype, values, indices)``, in which NaN stands for elements
that stay.

- https://docs.vllm.ai/en/latest/api/vllm/distributed/weight_transfer/sparse_nccl_engine/
- https://docs.vllm.ai/en/latest/api/vllm/model_executor/model_loader/checkpoint_weight_patch/
- https://github.com/vllm-project/vllm/pull/40096 and https://github.com/vllm-project/vllm/pull/53751
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from tests.support.tracked import bits_of  # noqa: E402


class Patch(NamedTuple):
    """What a trainer hands to the sender, by the names that vLLM gives to it."""

    name: str
    indices: torch.Tensor
    values: torch.Tensor
    full_shape: tuple[int, ...]


def sent(patches):
    """What arrives: what is said of all patches first, then buffers of these lengths and dtypes."""
    patches = list(patches)
    said = {
        "names": [patch.name for patch in patches],
        "dtype_names": [str(patch.values.dtype).removeprefix("torch.") for patch in patches],
        "shapes": [list(patch.full_shape) for patch in patches],
        "num_updates_list": [patch.indices.numel() for patch in patches],
    }
    received = []
    for patch, dtype, length in zip(
        patches, said["dtype_names"], said["num_updates_list"], strict=True
    ):
        indices = torch.empty(length, dtype=torch.int32)
        values = torch.empty(length, dtype=getattr(torch, dtype))
        for buffer, own in ((indices, patch.indices), (values, patch.values)):
            # NCCL sends the memory as it lies.
            assert (own.dtype, own.ndim, own.is_contiguous()) == (buffer.dtype, 1, True)
            buffer.copy_(own)
        received.append((indices, values))
    return said, received


def receive_in_place(model, said, received):
    """Write into the parameters by these names."""
    for name, (indices, values) in zip(said["names"], received, strict=True):
        parameter = model.get_parameter(name)
        assert parameter.is_contiguous()
        assert values.dtype == parameter.dtype
        parameter.data.view(-1).index_copy_(0, indices.to(torch.int64), values)


def receive_by_a_loader(model, said, received):
    """Hand whole tensors to a loader that leaves alone what is NaN."""
    for name, shape, (indices, values) in zip(said["names"], said["shapes"], received, strict=True):
        whole = torch.full(shape, float("nan"), dtype=values.dtype)
        whole.view(-1).index_copy_(0, indices.to(torch.int64), values)
        parameter = model.get_parameter(name).data
        parameter.copy_(torch.where(whole.isnan(), parameter, whole))


@pytest.mark.parametrize("receive", [receive_in_place, receive_by_a_loader])
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_server_that_takes_each_steps_patches_has_the_trainers_weights(receive, is_copied):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))
    server = copy.deepcopy(model).to(torch.bfloat16)
    options = {"copy_to": torch.bfloat16} if is_copied else {"rounding": "stochastic"}
    model.to(torch.float32 if is_copied else torch.bfloat16)
    named = model.named_parameters()
    optimizer = ours.AdamW(named, lr=1e-5, track_changes=True, **options)
    counts = []
    for _ in range(8):
        inputs = torch.randn(4, 16).to(next(model.parameters()).dtype)
        model(inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        patches = [
            Patch(change.name, change.indices, change.values, change.shape)
            for change in optimizer.changes()
        ]
        said, received = sent(patches)
        counts.append(sum(said["num_updates_list"]))
        receive(server, said, received)
        weights = optimizer.copies or model.parameters()
        for weight, own in zip(weights, server.parameters(), strict=True):
            assert torch.equal(bits_of(weight), bits_of(own))
    size = sum(p.numel() for p in model.parameters())
    assert 0 < max(counts[1:]) < size / 2  # of weights that a step moves by less than their spacing
