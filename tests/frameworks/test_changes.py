"""What has changed where a framework steps, shards, saves and loads."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402

#: These packages use what PyTorch, Python or they themselves have deprecated.
pytestmark = pytest.mark.filterwarnings("default")

SIZES = {"0.weight": 32, "0.bias": 8, "1.weight": 16, "1.bias": 2}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def optimizer_of(net):
    return ours.AdamW(net.named_parameters(), lr=0.01, track_changes=True)


def told(optimizer):
    return {change.name: len(change.indices) for change in optimizer.changes()}


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_fsdp2_and_distributed_checkpoints_change_nothing_but_what_steps_and_loads_do(mesh):
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    def sharded(seed):
        net = network(seed)
        for layer in net:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net, optimizer_of(net)

    net, optimizer = sharded(0)
    for _ in range(3):
        assert told(optimizer) == {}
        net(torch.randn(3, 4)).sum().backward()
        assert told(optimizer) == {}
        optimizer.step()
        optimizer.zero_grad()
        changes = {change.name: change for change in optimizer.changes()}
        assert {name: len(change.indices) for name, change in changes.items()} == SIZES
        for name, p in net.named_parameters():
            assert changes[name].shape == p.shape
            assert torch.equal(changes[name].values, p.full_tensor().detach().view(-1))
    saved = get_optimizer_state_dict(net, optimizer)
    assert told(optimizer) == {}
    again, other = sharded(1)
    get_optimizer_state_dict(again, other)  # makes the state by a step that moves nothing
    assert told(other) == {}
    set_optimizer_state_dict(again, other, saved)
    changes = other.changes()
    assert (changes.first_step, changes.last_step, changes.is_whole) == (4, 3, True)
    assert told(other) == SIZES


@pytest.mark.slow
def test_accelerate_steps_and_loads_the_optimizer_whose_changes_are_told(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    net = network()
    inner = optimizer_of(net)
    model, optimizer = accelerator.prepare(net, inner)
    accelerator.backward(model(torch.ones(2, 4)).sum())
    optimizer.step()
    assert told(inner) == SIZES
    accelerator.save_state(str(tmp_path))
    assert told(inner) == {}
    accelerator.load_state(str(tmp_path))
    assert inner.changes().is_whole
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_lightnings_wrappers_tell_the_changes_of_the_optimizer_inside():
    lightning = pytest.importorskip("lightning")
    from torch.utils.data import DataLoader, TensorDataset

    found = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return self.net(batch[0]).sum()

        def configure_optimizers(self):
            return optimizer_of(self.net)

        def on_train_batch_end(self, *_):
            found.append(told(self.optimizers()))

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4))
    assert found == [SIZES, SIZES]

    fabric = lightning.Fabric(accelerator="cpu")
    net = network()
    model, optimizer = fabric.setup(net, optimizer_of(net))
    fabric.backward(model(torch.ones(2, 4)).sum())
    optimizer.step()
    assert told(optimizer) == SIZES
    optimizer.load_state_dict(optimizer.state_dict())  # the wrapper has what was there before
    assert optimizer.changes().is_whole
    assert told(optimizer) == SIZES
    optimizer.step()
    assert told(optimizer) == SIZES
