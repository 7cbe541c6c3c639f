"""The lines of docs/guides/watching.md for Lightning's and transformers' loggers, in trainings."""

from __future__ import annotations

import re

import pytest
import torch

import adamas
import adamas.torch as ours
from tests.support.cases import ROOT

#: These packages take seconds to load, and use what others have deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PAGE = (ROOT / "docs" / "guides" / "watching.md").read_text("utf-8")
LIGHTNING, TRAINER = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def made(code):
    names = {}
    exec(compile(code, "docs/guides/watching.md", "exec", dont_inherit=True), names)
    return names


def test_a_logger_of_lightning_gets_the_summary_of_each_step(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs the package lightning")
    from lightning.pytorch.demos.boring_classes import RandomDataset
    from lightning.pytorch.loggers import CSVLogger

    torch.manual_seed(0)

    class Model(made(LIGHTNING)["Watched"]):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(32, 2)

        def on_train_start(self):
            optimizer = self.optimizers()
            self.recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)

        def training_step(self, batch, _):
            return self.layer(batch).square().sum()

        def configure_optimizers(self):
            return ours.AdamW(self.named_parameters(), lr=1e-3, statistics=True)

    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", log_every_n_steps=1, logger=CSVLogger(tmp_path, "csv"),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Model(), torch.utils.data.DataLoader(RandomDataset(32, 8)))
    (written,) = (tmp_path / "csv").rglob("metrics.csv")
    head, *lines = written.read_text("utf-8").splitlines()
    assert len(lines) == 4
    assert {"optimizer/gradient_norm", "optimizer/update_ratio"} <= {*head.split(",")}
    assert "nan" not in written.read_text("utf-8")
    assert recorded(tmp_path).steps.tolist() == [1, 2, 4]


def test_the_trainer_of_transformers_logs_the_summary(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)

    class Recorded(transformers.TrainerCallback):
        def on_train_begin(self, *_, optimizer, **__):
            self.recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)

    trainer = made(TRAINER)["WatchedTrainer"](
        model,
        transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, logging_steps=1, use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=[
            {"input_ids": each, "labels": each} for each in torch.arange(64).view(8, 8) % 30
        ],
        optimizers=(ours.AdamW(model.named_parameters(), lr=1e-3, statistics=True), None),
        callbacks=[Recorded()],
    )  # fmt: skip
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert all(line["update_ratio"] > 0 for line in logged)
    assert recorded(tmp_path).steps.tolist() == [1, 2, 4]


def recorded(folder):
    from adamas.report import read

    return read(folder / "run.jsonl")
