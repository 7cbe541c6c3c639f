"""examples/elastic_training.py in a short form: what it finds equal, and what it does not."""

from __future__ import annotations

import runpy
import sys

import pytest

pytest.importorskip("torch")

import torch

from tests.support.cases import ROOT
from tests.support.processes import run_alone

PROGRAM = ROOT / "examples" / "elastic_training.py"
SHORT = ("--steps=12", "--every=2", "--layers=1")


def proof(*options):
    return run_alone("-W", "error", PROGRAM, *SHORT, *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--processes=2,3", "--state=compact", "--rounding=stochastic", "--shards=6"),
        ("--processes=2,1", "--state=float32", "--rounding=none", "--shards=4", "--unbroken=2"),
    ],
    ids=" ".join,
)
def test_a_killed_training_on_other_numbers_of_processes_ends_with_the_bits_of_an_unbroken_one(
    options,
):
    done = proof(*options)
    assert done.returncode == 0, done.stderr
    assert "killed; the last complete checkpoint is step-0000" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("equal: ")


@pytest.mark.slow
def test_sums_in_an_order_that_depends_on_processes_are_found_and_the_first_tensor_is_named():
    done = proof("--processes=2,1", "--steps=8", "--shards=4", "--sums=fsdp")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("NOT EQUAL: model.blocks.0.")
    assert " differs first in byte " in done.stdout


def test_what_differs_between_two_checkpoints_is_named_by_tensor_and_byte():
    difference = runpy.run_path(str(PROGRAM))["difference"]
    one = {"a": torch.zeros(3), "b": torch.arange(6.0).view(2, 3), "losses": [1.0]}
    assert difference(one, dict(one)) is None
    other = one["b"].clone()
    other[1, 0] = -3.0  # the sign is in its last byte
    assert difference(one, {**one, "b": other}) == "b differs first in byte 15: 3.0 and -3.0"
    signed = {**one, "a": torch.tensor([0.0, -0.0, 0.0])}
    assert difference(one, signed) == "a differs first in byte 7: 0.0 and -0.0"
    assert difference(one, {**one, "a": one["a"].double()}) == (
        "a is torch.float32 of shape (3,) in one and torch.float64 of shape (3,) in the other"
    )
    assert difference(one, {"a": one["a"], "losses": [1.0]}) == "b is in one of them only"
    assert difference({"a": one["a"], "losses": [1.0]}, one) == "b is in one of them only"
    assert (
        difference(one, {**one, "losses": [2.0]}) == "losses is [1.0] in one and [2.0] in the other"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--shards=10"],
            "--shards 10 cannot be shared by 4 processes alike: give a multiple of each number of "
            "processes.",
        ),
        (["--processes=4"], "--processes needs at least two numbers, such as 4,3,1."),
        (
            ["--steps=20"],
            "--steps 20 leaves no complete checkpoint before the kill: give at least 30, or a "
            "lower --every.",
        ),
        (["--keep=0"], "argument --keep: 0 is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_proved_is_refused_in_words(monkeypatch, capsys, options, text):
    monkeypatch.setattr(sys, "argv", ["elastic_training.py", *options])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM))["parsed"]()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {text}\n")
