"""The recipes of docs/guides/frameworks.md: each is run as it stands there.

Their fences say ``py``, so that the test of all pages leaves them to this one, which has what
they speak of: a model, rows, a configuration.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adamas.torch as ours
from tests.support.cases import ROOT

#: These packages take seconds to load, and use what others have deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PAGE = (ROOT / "docs" / "guides" / "frameworks.md").read_text("utf-8")


def recipe(section, language="py"):
    """Return the code of a section of the page, block by block."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(code, **names):
    exec(compile(code, "docs/guides/frameworks.md", "exec", dont_inherit=True), names)
    return SimpleNamespace(**names)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.linear(self.norm(x))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2))


def step(model, optimizer):
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    return not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_every_recipe_of_the_page_is_run_here():
    sections = re.findall(r"^## (.+)\n", PAGE, re.MULTILINE)
    with_code = {section for section in sections if recipe(section) or recipe(section, "yaml")}
    assert with_code == {
        "DeepSpeed", "Hugging Face Trainer", "Hydra", "LightningCLI",
        "ZeroRedundancyOptimizer", "timm", "torchtitan",
    }  # fmt: skip


# ── transformers ───────────────────────────────────────────────────────────────────────────────


def trained_by_trainer(code, folder, **arguments):
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    rows = [{"input_ids": each, "labels": each} for each in torch.arange(64).view(8, 8) % 30]
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=3, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", **arguments,
    )  # fmt: skip
    made = run(code, model=model, rows=rows, args=args)
    made.trainer.train()
    optimizer = made.trainer.optimizer
    return getattr(optimizer, "optimizer", optimizer), model


def test_the_trainer_takes_an_optimizer_that_clips(tmp_path):
    code, _ = recipe("Hugging Face Trainer")
    optimizer, model = trained_by_trainer(code, tmp_path, max_grad_norm=0.0)
    assert type(optimizer) is ours.AdamW
    assert optimizer.clip_norm == 1.0
    assert optimizer.gradient_norm > 0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.state[model.transformer.wte.weight]["step"] == 3


def test_the_trainer_makes_the_optimizer_with_the_rate_of_the_options(tmp_path):
    _, code = recipe("Hugging Face Trainer")
    arguments = {"learning_rate": 7.0, "weight_decay": 0.2, "lr_scheduler_type": "constant"}
    optimizer, model = trained_by_trainer(code, tmp_path, **arguments)
    assert type(optimizer) is ours.AdamW
    groups = optimizer.param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.2), (1e-3, 0.0)]
    assert groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.state[model.transformer.wte.weight]["exp_avg"].dtype == torch.int8


# ── Lightning ──────────────────────────────────────────────────────────────────────────────────


def fitted(model, yaml, folder, monkeypatch):
    pytest.importorskip("lightning", reason="needs the package lightning")
    pytest.importorskip("jsonargparse", reason="needs the package jsonargparse[signatures]")
    pytest.importorskip("docstring_parser", reason="needs the package jsonargparse[signatures]")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule

    path = folder / "config.yaml"
    path.write_text(yaml, "utf-8")
    given = {
        "fast_dev_run": 2, "accelerator": "cpu", "logger": "false", "enable_progress_bar": "false",
        "enable_model_summary": "false", "default_root_dir": folder,
    }  # fmt: skip
    arguments = [f"--trainer.{name}={value}" for name, value in given.items()]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={path}", *arguments])
    cli = LightningCLI(model, BoringDataModule, save_config_callback=None)
    (optimizer,) = cli.trainer.optimizers
    return optimizer, cli


def boring(**more):
    lightning = pytest.importorskip("lightning", reason="needs the package lightning")

    class Boring(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 2)

        def training_step(self, batch, _):
            return self.layer(batch).sum()

    return Boring


def test_lightning_cli_makes_what_the_configuration_says(tmp_path, monkeypatch):
    (yaml,) = recipe("LightningCLI", "yaml")
    optimizer, cli = fitted(boring(), yaml, tmp_path, monkeypatch)
    assert type(optimizer) is ours.AdamW
    (group,) = optimizer.param_groups
    assert (group["initial_lr"], group["betas"]) == (3e-4, (0.9, 0.95))
    assert group["state"] == ("bfloat16", "8bit")
    assert (optimizer.clip_norm, optimizer.copy_to) == (1.0, torch.bfloat16)
    assert optimizer.state[cli.model.layer.weight]["step"] == 2


@pytest.mark.parametrize("wrong", ["clip_nrom: 1.0", "state: 9bit", "ema: high"])
def test_lightning_cli_refuses_what_the_class_has_not(tmp_path, monkeypatch, capsys, wrong):
    yaml = f"optimizer:\n  class_path: adamas.torch.AdamW\n  init_args:\n    {wrong}\n"
    with pytest.raises(SystemExit):
        fitted(boring(), yaml, tmp_path, monkeypatch)
    assert wrong.split(": ")[0] in capsys.readouterr().err


def test_lightning_cli_lets_the_model_make_the_groups(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="needs the package jsonargparse[signatures]")
    (code,), (yaml,) = recipe("LightningCLI"), recipe("LightningCLI", "yaml")
    model = run(code, torch=torch, __name__="recipe").Model
    model.training_step = lambda self, batch, _: self.layer(batch).sum()
    optimizer_alone = yaml.partition("lr_scheduler:")[0]
    indented = "".join(f"  {line}\n" for line in optimizer_alone.splitlines())
    optimizer, _ = fitted(model, f"model:\n{indented}", tmp_path, monkeypatch)
    assert type(optimizer) is ours.AdamW
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [3e-4, 3e-4]


# ── Hydra ──────────────────────────────────────────────────────────────────────────────────────


def configured(yaml):
    pytest.importorskip("hydra", reason="needs the package hydra-core")
    from omegaconf import OmegaConf

    return OmegaConf.create(yaml)


def test_hydra_makes_the_class_of_groups():
    code, yaml = recipe("Hydra")[0], recipe("Hydra", "yaml")[0]
    model = network()
    optimizer = run(code, config=configured(yaml), model=model).optimizer
    assert type(optimizer) is ours.AdamW
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.clip_norm == 1.0
    assert step(model, optimizer)
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.int8


@pytest.mark.parametrize(("name", "kind"), [("adamw", ours.AdamW), ("nadam", ours.NAdam)])
def test_hydra_makes_an_optimizer_by_name_and_groups_by_layers(name, kind):
    code, yaml = recipe("Hydra")[1], recipe("Hydra", "yaml")[1]
    config = configured(yaml)
    config.optimizer.name = name
    model = network()
    optimizer = run(code, config=config, model=model).optimizer
    assert type(optimizer) is kind
    assert {g["layer"]: g["lr"] for g in optimizer.param_groups} == {
        i: 3e-4 * 0.75 ** (3 - i) for i in range(4)
    }
    assert step(model, optimizer)


def test_pairs_of_hydra_are_those_of_the_options():
    config = configured("{betas: [0.8, 0.9], state: [bfloat16, 8bit]}")
    optimizer = ours.Adam(network().parameters(), betas=config.betas, state=config.state)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["state"]) == ((0.8, 0.9), ("bfloat16", "8bit"))
    assert [type(each) for each in (*group["betas"], *group["state"])] == [float, float, str, str]


# ── timm ───────────────────────────────────────────────────────────────────────────────────────


def test_timm_models_have_the_rates_of_timm_under_schedules_of_timm():
    timm = pytest.importorskip("timm", reason="needs the package timm")
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    (code,) = recipe("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    optimizer = run(code, model=model).optimizer
    theirs = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    found = []
    for each in (optimizer, theirs):
        schedule = CosineLRScheduler(each, t_initial=10, warmup_t=2, warmup_lr_init=0.0)
        rates = []
        for epoch in (1, 2, 5):
            schedule.step(epoch)
            rates.append({p: g["lr"] for g in each.param_groups for p in g["params"]})
        found.append(rates)
    for ours_, theirs_ in zip(*found, strict=True):
        assert ours_.keys() == theirs_.keys()
        assert all(abs(ours_[p] - theirs_[p]) <= 1e-12 for p in ours_)


# ── torchtitan ─────────────────────────────────────────────────────────────────────────────────


def test_torchtitan_makes_steps_saves_and_loads_it(monkeypatch):
    pytest.importorskip("torchtitan.components.optimizer", reason="needs the package torchtitan")
    (code,) = recipe("torchtitan")
    module = run(code, __name__="recipe")
    config = module.with_adamas(SimpleNamespace(optimizer=None)).optimizer
    config.implementation = "for-loop"
    config.optimizer_factory_kwargs_by_name = {"AdamW": {"on_nonfinite": "skip"}}
    model, twin = network(), network()
    container = config.build(model_parts=[model])
    (optimizer,) = container.optimizers
    assert type(optimizer) is ours.AdamW
    assert optimizer.on_nonfinite == "skip"
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert all(step(model, container) for _ in range(2))
    again = config.build(model_parts=[twin])
    again.load_state_dict(container.state_dict())
    twin.load_state_dict(model.state_dict())
    assert step(model, container)
    assert step(twin, again)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


# ── ZeroRedundancyOptimizer ────────────────────────────────────────────────────────────────────


def test_zero_redundancy_has_a_group_for_its_norm(tmp_path):
    (code,) = recipe("ZeroRedundancyOptimizer")
    where = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        model = network()
        made = run(code, model=model, torch=torch)
        assert step(model, made.optimizer)
        assert made.optimizer.optim.clip_group is torch.distributed.group.WORLD
        assert made.optimizer.optim.gradient_norm > 0
    finally:
        torch.distributed.destroy_process_group()


# ── DeepSpeed ──────────────────────────────────────────────────────────────────────────────────

#: Trains, saves, goes on, and loads: prints the loss after either, and the class that stepped.
ZERO = """
import sys, torch, deepspeed

sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # it would be compiled for minutes
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
{recipe}

def step():
    loss = engine(torch.ones(2, 3)).square().sum()
    engine.backward(loss)
    engine.step()
    return loss.item()

for _ in range(3):
    step()
engine.save_checkpoint({folder!r})
expected = [step() for _ in range(2)]
engine.load_checkpoint({folder!r})
print("RESULT", [step() for _ in range(2)] == expected, expected[1] < expected[0])
"""


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the package deepspeed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_trains_and_resumes_with_the_same_bits_in_each_stage_of_zero(tmp_path, stage):
    (code,) = recipe("DeepSpeed")
    code = code.replace('{"stage": 2}', f'{{"stage": {stage}}}')
    script = ZERO.format(recipe=code, folder=str(tmp_path / "checkpoint"))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **alone, "MASTER_PORT": "29617", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "RESULT True True" in done.stdout, done.stderr[-2000:]
