"""Short trainings inside Lightning, accelerate and transformers, and torch.distributed's ways."""

from __future__ import annotations

import copy
import inspect
import random

import pytest
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
from torch.utils.data import DataLoader, TensorDataset

import adamas.torch as ours
from tests.support.processes import TWO_PROCESSES, run_in_two

F = nn.functional
#: These packages use what PyTorch, Python or they themselves have deprecated.
pytestmark = pytest.mark.filterwarnings("default")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def bits(module):
    return [p.detach().clone() for p in module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ── Lightning ──────────────────────────────────────────────────────────────────────────────────


def lightning_fit(folder, epochs, resumed_from=None, **arguments):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]).float(), batch[1])

        def configure_optimizers(self):
            optimizer = ours.AdamW(self.parameters(), lr=0.01, ema=0.9)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **arguments,
    )
    trainer.fit(module, DataLoader(rows(), batch_size=16), ckpt_path=resumed_from)
    return trainer, module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_clips_and_resumes_with_the_bits_of_the_unbroken_run(tmp_path, precision):
    arguments = {"gradient_clip_val": 0.1, "precision": precision}
    _, unbroken = lightning_fit(tmp_path, 4, **arguments)
    trainer, _ = lightning_fit(tmp_path, 2, **arguments)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer, resumed = lightning_fit(tmp_path, 4, tmp_path / "half.ckpt", **arguments)
    assert same(bits(resumed.net), bits(unbroken.net))
    optimizer = trainer.optimizers[0]
    assert optimizer.state[resumed.net[0].weight]["step"] == 16
    assert optimizer.param_groups[0]["lr"] == 0.01 * 0.5**2
    assert not same(bits(resumed.net), bits(network()))


# ── accelerate ─────────────────────────────────────────────────────────────────────────────────


def accelerate_fit(accelerator, model, optimizer, steps):
    x, y = rows().tensors
    for step in steps:
        with accelerator.accumulate(model):
            take = slice(16 * (step % 4), 16 * (step % 4) + 16)
            with accelerator.autocast():
                loss = F.cross_entropy(model(x[take]).float(), y[take])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_trains_clips_accumulates_and_resumes_with_the_same_bits(tmp_path, precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    net = network()
    inner = ours.AdamW(net.parameters(), lr=0.01, skip_above=1e6, skip_window=6)
    model, optimizer = accelerator.prepare(net, inner)
    accelerate_fit(accelerator, model, optimizer, range(8))
    accelerator.save_state(str(tmp_path))
    window = inner.state_dict()["spikes"]["norms"]
    accelerate_fit(accelerator, model, optimizer, range(8, 16))
    expected = bits(model)
    assert inner.state_dict()["spikes"]["norms"] != window
    accelerator.load_state(str(tmp_path))
    assert inner.state_dict()["spikes"]["norms"] == window
    assert not same(bits(model), expected)
    accelerate_fit(accelerator, model, optimizer, range(8, 16))
    assert same(bits(model), expected)
    assert inner.state[net[0].weight]["step"] == 8
    AcceleratorState._reset_state(reset_partial_state=True)


# ── Hugging Face ───────────────────────────────────────────────────────────────────────────────


def gpt():
    """Return a tiny GPT with random weights and pieces of the source of ``random`` as its rows."""
    from transformers import GPT2Config, GPT2LMHeadModel

    text = inspect.getsource(random)[:4096]
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(letter) for letter in text])
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(letters), n_positions=32, n_embd=16, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    return model, [{"input_ids": piece, "labels": piece} for piece in codes.view(-1, 32)]


def trainer_fit(folder, how, resumed_from=None, bf16=False):
    from transformers import Trainer, TrainingArguments

    model, pieces = gpt()
    given = (
        {"optimizers": (ours.AdamW(model.parameters(), lr=1e-3), None)}
        if how == "optimizers"
        else {"optimizer_cls_and_kwargs": (ours.AdamW, {"lr": 1e-3})}
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=8,
            save_steps=4,
            per_device_train_batch_size=8,
            max_grad_norm=0.5,
            lr_scheduler_type="constant",
            bf16=bf16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=pieces,
        **given,
    )
    trainer.train(resume_from_checkpoint=resumed_from)
    return trainer


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
def test_the_trainer_of_transformers_trains_clips_and_resumes_with_the_same_bits(
    tmp_path, how, bf16
):
    pytest.importorskip("transformers", reason="transformers is not there for every Python")
    unbroken = trainer_fit(tmp_path, how, bf16=bf16)
    checkpoint = str(tmp_path / "checkpoint-4")
    resumed = trainer_fit(tmp_path, how, checkpoint, bf16=bf16)
    assert same(bits(resumed.model), bits(unbroken.model))
    assert not same(bits(resumed.model), bits(gpt()[0]))
    assert isinstance(getattr(resumed.optimizer, "optimizer", resumed.optimizer), ours.AdamW)


# ── torch.distributed ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def step_once(model, optimizer, step=0):
    x, y = rows().tensors
    optimizer.zero_grad()
    F.cross_entropy(model(x[step % 2 :: 2]), y[step % 2 :: 2]).backward()
    optimizer.step()


def whole(p):
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


def test_fsdp2_gives_the_bits_of_the_plain_model_and_distributed_state(mesh):
    from torch.distributed.fsdp import fully_shard

    plain, sharded = network(), network()
    fully_shard(sharded, mesh=mesh)
    optimizers = [ours.AdamW(net.parameters(), lr=0.01) for net in (plain, sharded)]
    for step in range(4):
        step_once(plain, optimizers[0], step)
        step_once(sharded, optimizers[1], step)
    assert same(bits(plain), [whole(p) for p in sharded.parameters()])
    for p in sharded.parameters():
        state = optimizers[1].state[p]
        assert isinstance(state["exp_avg"], DTensor)
        assert state["exp_avg"].shape == p.shape
        assert state["exp_avg"].placements == p.placements
        assert type(state["step"]) is torch.Tensor


def test_groups_may_mix_distributed_and_plain_tensors(mesh):
    values = torch.arange(1.0, 7.0).view(3, 2)
    gradient = torch.linspace(-1, 1, 6).view(3, 2)
    plain = nn.Parameter(values.clone())
    sharded = nn.Parameter(distribute_tensor(values.clone(), mesh, [Shard(0)]))
    plain.grad = gradient.clone()
    # Another placement than the parameter's: it is redistributed.
    sharded.grad = distribute_tensor(gradient.clone(), mesh, [Replicate()])
    ours.Adam([plain, sharded], lr=0.1).step()
    assert torch.equal(whole(sharded), plain.detach())


@pytest.mark.parametrize("state", [None, "compact", "8bit"])
@pytest.mark.parametrize("kind", ["plain", "fsdp2"])
def test_distributed_checkpoints_save_and_load_with_the_same_bits(mesh, tmp_path, kind, state):
    from torch.distributed.fsdp import fully_shard

    def made():
        net = network()
        if kind == "fsdp2":
            fully_shard(net, mesh=mesh)
        return net, ours.AdamW(net.parameters(), lr=0.01, state=state)

    net, optimizer = made()
    for step in range(3):
        step_once(net, optimizer, step)
    dcp.save(
        {"state": get_optimizer_state_dict(net, optimizer), "model": net.state_dict()},
        checkpoint_id=tmp_path,
    )
    again, other = made()
    before = [whole(p) for p in again.parameters()]
    # Makes the state by a step with zero gradients and lr 0, which must move nothing.
    own = get_optimizer_state_dict(again, other)
    assert same([whole(p) for p in again.parameters()], before)
    loaded = {"state": own, "model": again.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path)
    again.load_state_dict(loaded["model"])
    set_optimizer_state_dict(again, other, loaded["state"])
    for step in range(3, 6):
        step_once(net, optimizer, step)
        step_once(again, other, step)
    assert same([whole(p) for p in net.parameters()], [whole(p) for p in again.parameters()])


def test_a_full_state_dict_on_the_cpu_does_not_follow_later_steps(mesh):
    net = network()
    optimizer = ours.AdamW(net.parameters(), lr=0.01)
    step_once(net, optimizer)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    assert saved["state"]["0.weight"]["step"] == 1
    twin = network()
    twin.load_state_dict(net.state_dict())
    other = ours.AdamW(twin.parameters(), lr=0.01)
    set_optimizer_state_dict(twin, other, saved, options=options)
    step_once(net, optimizer, 1)
    assert other.state[twin[0].weight]["step"] == 1
    step_once(twin, other, 1)
    assert same(bits(net), bits(twin))


def test_zero_redundancy_takes_it_as_its_optimizer(mesh):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net, twin = network(), network()
    optimizer = ZeroRedundancyOptimizer(net.parameters(), ours.AdamW, lr=0.01, weight_decay=0.1)
    other = ours.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        step_once(net, optimizer, step)
        step_once(twin, other, step)
    assert same(bits(net), bits(twin))


@pytest.mark.parametrize(
    "phase",
    [
        {"ema": 0.9, "clip_norm": 1, "on_nonfinite": "skip", "statistics": True, "seed": 3},
        {"copy_to": torch.bfloat16, "offload": False, "engine": "torch"},
    ],
    ids=", ".join,
)
def test_zero_redundancy_takes_the_phase_and_resumes(mesh, phase):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    nets = [network(), network(), network()]
    kind, options = ZeroRedundancyOptimizer, {"lr": 0.01, **phase}
    optimizer = kind(nets[0].parameters(), ours.AdamW, **options)
    alone = ours.AdamW(nets[1].parameters(), **options)
    for step in range(3):
        step_once(nets[0], optimizer, step)
        step_once(nets[1], alone, step)
    optimizer.consolidate_state_dict()
    nets[2].load_state_dict(nets[0].state_dict())
    resumed = kind(nets[2].parameters(), ours.AdamW, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, each in zip(nets, (optimizer, alone, resumed), strict=True):
        step_once(net, each, 3)
    assert same(bits(nets[0]), bits(nets[1]))
    assert same(bits(nets[2]), bits(nets[1]))


def test_zero_redundancy_adds_groups_after_another_norm_was_set(mesh):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net, more = network(), nn.Parameter(torch.ones(3))
    optimizer = ZeroRedundancyOptimizer(net.parameters(), ours.AdamW, lr=0.01, clip_norm=1.0)
    optimizer.optim.clip_norm = 0.5
    optimizer.add_param_group({"params": [more]})
    step_once(net, optimizer, 0)
    more.grad = torch.ones(3)
    optimizer.step()
    assert (more != 1).all()
    assert optimizer.optim.clip_norm == 0.5
    with pytest.raises(TypeError, match=r"^A group has clip_norm, which concerns"):
        optimizer.optim.add_param_group({"params": [nn.Parameter(more.clone())], "clip_norm": 2.0})


@pytest.mark.slow
def test_two_processes_have_one_norm_skip_together_and_give_the_bits_of_one(tmp_path):
    assert run_in_two(TWO_PROCESSES, tmp_path) == [0, 0]


# ── torch's other companions ───────────────────────────────────────────────────────────────────


def test_swa_utils_average_and_anneal_with_it():
    nets = []
    for kind in (ours.AdamW, torch.optim.AdamW):
        net = network()
        optimizer = kind(net.parameters(), lr=0.05)
        averaged = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
        schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for step in range(6):
            step_once(net, optimizer, step)
            averaged.update_parameters(net)
            schedule.step()
        torch.optim.swa_utils.update_bn([row[0][None] for row in rows()], averaged)
        nets.append((bits(averaged.module), optimizer.param_groups[0]["lr"]))
    assert nets[0][1] == nets[1][1]
    for a, b in zip(nets[0][0], nets[1][0], strict=True):
        assert (a - b).abs().max() <= 100 * torch.finfo(torch.float32).eps


def test_a_compiled_model_is_stepped_eagerly():
    net, twin = network(), network()
    compiled = torch.compile(net, backend="aot_eager")
    optimizer, other = ours.AdamW(compiled.parameters()), ours.AdamW(twin.parameters())
    for step in range(3):
        step_once(compiled, optimizer, step)
        step_once(twin, other, step)
    assert same(bits(net), bits(twin))
