"""What headers of records tell of an optimizer of PyTorch."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

import adamas
from adamas import records
from adamas.torch import SGD, AdamW, NAdam, RAdam, RMSprop


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda p: AdamW(p, decay="cautious"), {"decay": "cautious", "rectify": False}),
        (lambda p: AdamW(p, maximize=True), {"decay": "decoupled", "maximize": True}),
        (
            lambda p: RAdam(p, lr=0.5, decay="corrected"),
            {"decay": "corrected", "lr_max": 0.5, "rectify": True, "eps_place": "uncorrected"},
        ),
        (
            lambda p: NAdam(p, momentum_decay=0.125, decoupled_weight_decay=True),
            {"decay": "decoupled", "momentum_decay": 0.125},
        ),
        (RMSprop, {"decay": "l2", "bias_correction": "none"}),
        (
            lambda p: SGD(p, momentum=0.5, nesterov=True),
            {"decay": "l2", "dampening": 0.0, "nesterov": True},
        ),
    ],
)
def test_a_header_has_what_the_rule_was_told(tmp_path, made, told):
    adamas.Recorder(made([torch.ones(2, requires_grad=True)]), tmp_path / "run.jsonl")
    (opening,) = records.read(tmp_path / "run.jsonl")
    (group,) = opening.header["groups"]
    assert group.items() >= told.items()


def test_another_decay_in_a_run_is_told_by_another_header(tmp_path):
    parameter = torch.ones(2, requires_grad=True)
    optimizer = AdamW([parameter], clip_update=1.0)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1)
    for decay in (None, "cautious"):
        if decay is not None:
            optimizer.param_groups[0]["decay"] = decay
        parameter.grad = torch.ones(2)
        optimizer.step()
    openings = records.read(tmp_path / "run.jsonl")
    assert [each.header["groups"][0]["decay"] for each in openings] == ["decoupled", "cautious"]
    assert [each.header["phase"]["clip_update"] for each in openings] == [1.0, 1.0]
