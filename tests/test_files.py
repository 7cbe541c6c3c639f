"""Checkpoints: whole or not at all, checked before anything changes, exact to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adamas
from cases import ROOT

EVERYTHING = {
    "adam": (adamas.Adam, {"amsgrad": True, "ema": 0.9, "clip_norm": 1.0}),
    "adamw": (adamas.AdamW, {"nesterov": True, "on_nonfinite": "skip"}),
    "momentum": (adamas.Momentum, {"weight_decay": 0.1, "ema": 0.5}),
    "rmsprop": (adamas.RMSProp, {"eps": 0.1 + 0.2}),
    "fully": (adamas.Adam, {"decay": "fully-decoupled", "weight_decay": 0.1}),
}


def schedule(step):
    return 0.1 / step


def made(kind="adam", lr=0.01):
    method, options = EVERYTHING[kind]
    random_numbers = np.random.default_rng(1)
    weights = {
        "a": random_numbers.standard_normal((3, 5)).astype(np.float32),
        "nested": [np.asfortranarray(random_numbers.standard_normal((4, 2))), np.ones(())],
        "slashed/name": np.zeros(0, np.float32),
    }
    if kind == "fully" and callable(lr):
        options = {**options, "lr_max": 0.1}
    return weights, method(weights, lr=lr, **options)


def gradients(weights, step):
    random_numbers = np.random.default_rng(step)

    def like(w):
        return np.asarray(random_numbers.standard_normal(w.shape), dtype=w.dtype)

    nested = [like(w) for w in weights["nested"]]
    return {
        "a": like(weights["a"]),
        "nested": nested,
        "slashed/name": like(weights["slashed/name"]),
    }


def advance(weights, optimizer, first, last):
    for step in range(first, last):
        given = gradients(weights, step)
        if step == 3 and optimizer._phase.on_nonfinite == "skip":
            given["a"][0, 0] = np.nan
        optimizer.step(given)


def everything(optimizer):
    """The bytes of parameters and state, and all counts and options."""
    stored = optimizer.state_dict()
    arrays = {
        (name, entry): array.tobytes()
        for name, entries in stored.pop("state").items()
        for entry, array in entries.items()
    }
    arrays |= {name: p.tobytes() for name, p in optimizer.named_parameters().items()}
    return arrays, stored


@pytest.mark.parametrize("kind", EVERYTHING)
@pytest.mark.parametrize("lr", [0.01, schedule])
def test_a_run_resumed_from_a_file_gives_the_bits_of_the_unbroken_run(tmp_path, kind, lr):
    weights, unbroken = made(kind, lr)
    advance(weights, unbroken, 0, 20)
    weights, first = made(kind, lr)
    advance(weights, first, 0, 10)
    adamas.save(tmp_path / "run.safetensors", first)
    weights, second = made(kind, lr)
    for p in second.named_parameters().values():
        p[...] = 7
    adamas.load(str(tmp_path / "run.safetensors"), second)
    assert everything(second) == everything(first)
    advance(weights, second, 10, 20)
    assert everything(second) == everything(unbroken)


def test_what_is_saved_is_what_stands_in_the_file(tmp_path):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 3)
    adamas.save(tmp_path / "run", optimizer)
    tensors = load_file(tmp_path / "run")
    assert tensors["parameters/nested.0"].tobytes() == weights["nested"][0].tobytes("C")
    assert set(tensors) >= {"parameters/a", "state/a/mean", "state/slashed/name/ema"}


def test_a_schedule_that_was_saved_must_be_given_again(tmp_path):
    _, scheduled = made(lr=schedule)
    adamas.save(tmp_path / "run", scheduled)
    _, fixed = made(lr=0.5)
    with pytest.raises(ValueError, match="was saved with a schedule for lr, which cannot"):
        adamas.load(tmp_path / "run", fixed)


def other_parameters():
    return adamas.Adam({"a": np.ones(3)})


def other_shape():
    weights, _ = made()
    weights["a"] = weights["a"][:2].copy()
    return adamas.Adam(weights, amsgrad=True, ema=0.9)


def other_dtype():
    weights, _ = made()
    weights["a"] = weights["a"].astype(np.float64)
    return adamas.Adam(weights, amsgrad=True, ema=0.9)


def other_state():
    return adamas.Adam(made()[0], amsgrad=True)


def other_method():
    return adamas.AdamW(made()[0], amsgrad=True, ema=0.9)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (other_parameters, KeyError, "Load it into an optimizer over the same parameters"),
        (other_shape, ValueError, "has a of shape .3, 5. and dtype float32, but the parameter has"),
        (other_dtype, ValueError, "dtype float32, but the parameter has shape .3, 5. and dtype fl"),
        (other_state, KeyError, "but this optimizer keeps largest_square"),
        (other_method, ValueError, "holds the state of Adam, but the optimizer is AdamW"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, other, error, message):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 2)
    adamas.save(tmp_path / "run", optimizer)
    target = other()
    before = everything(target)
    with pytest.raises(error, match=message):
        adamas.load(tmp_path / "run", target)
    assert everything(target) == before


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def text(path):
    path.write_text("no tensors here, but enough text to be read as a header")


def foreign(path):
    save_file({"x": np.ones(3)}, path)


def future(path):
    save_file({}, path, metadata={"adamas": json.dumps({"format": 2, "method": "Adam"})})


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (truncated, ValueError, "is no whole safetensors file"),
        (text, ValueError, "is no whole safetensors file"),
        (foreign, ValueError, "is a safetensors file, but not one that adamas.save wrote"),
        (future, ValueError, "has format 2, but this version of adamas reads formats up to 1"),
        (missing, FileNotFoundError, "There is no file"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_changes_nothing(tmp_path, spoil, error, message):
    _, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    spoil(tmp_path / "run")
    before = everything(optimizer)
    with pytest.raises(error, match=message):
        adamas.load(tmp_path / "run", optimizer)
    assert everything(optimizer) == before


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    weights, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    old = (tmp_path / "run").read_bytes()
    advance(weights, optimizer, 0, 1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        adamas.save(tmp_path / "run", optimizer)
    assert (tmp_path / "run").read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_file_keeps_its_permissions(tmp_path):
    _, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    (tmp_path / "run").chmod(0o640)
    adamas.save(tmp_path / "run", optimizer)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o640


SAVE_FOR_EVER = """
import sys
import numpy as np, adamas
weights = np.zeros(200_000, np.float32)
optimizer = adamas.Adam(weights, lr=1.0)
adamas.save(sys.argv[1], optimizer)
print("ready", flush=True)
while True:
    optimizer.step(np.ones_like(weights))
    weights[...] = optimizer.steps
    adamas.save(sys.argv[1], optimizer)
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    path = tmp_path / "run"
    moments = random.Random(5)
    seen = set()
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0, 0.05))  # somewhere in a save, most of the time
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        weights = np.full(200_000, -1, np.float32)
        optimizer = adamas.Adam(weights, lr=1.0)
        adamas.load(path, optimizer)
        assert (weights == optimizer.steps).all()
        seen.add(len(list(tmp_path.iterdir())))
    assert max(seen) > 1, "no kill hit a save under way, so nothing was shown"


def test_what_a_killed_save_left_disturbs_no_later_one(tmp_path):
    _, optimizer = made()
    left = tmp_path / ".run.abc.adamas-partial"
    left.write_bytes(b"half a file")
    adamas.save(tmp_path / "run", optimizer)
    adamas.load(tmp_path / "run", optimizer)
    assert left.read_bytes() == b"half a file"


def test_saving_without_safetensors_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    _, optimizer = made()
    message = r'adamas.save needs safetensors. Install it with: pip install "adamas\[safetensors\]"'
    with pytest.raises(ModuleNotFoundError, match=message):
        adamas.save(tmp_path / "run", optimizer)
    assert not Path(tmp_path / "run").exists()
