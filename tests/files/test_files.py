"""Checkpoints: whole or not at all, checked before anything changes, exact to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adamas
from tests.support.interrupts import whole_or_nothing
from tests.support.runs import EVERYTHING, advance, everything, made, schedule

#: For programs in processes of their own.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


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
    return adamas.Adam(made()[0], ema=0.9)


def other_method():
    return adamas.AdamW(made()[0], amsgrad=True, ema=0.9)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (other_parameters, KeyError, "Load it into an optimizer over the same parameters"),
        (other_shape, ValueError, "Give the optimizer parameters like those that were saved"),
        (other_dtype, ValueError, "dtype float32, but the parameter has shape .3, 5. and dtype fl"),
        (other_state, ValueError, "amsgrad is True, but this optimizer was created with False"),
        (
            other_method,
            ValueError,
            "holds the state of Adam of NumPy's arrays, but the optimizer is AdamW of",
        ),
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


# One that comes between opening and `with` leaves the file to be closed as it is let go.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_while_loading_leaves_all_as_it_was_or_loads_all(tmp_path, interrupt):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 2)
    adamas.save(tmp_path / "run", optimizer)

    def make():
        weights, optimizer = made()
        advance(weights, optimizer, 5, 6)
        return lambda: adamas.load(tmp_path / "run", optimizer), lambda: everything(optimizer)

    assert whole_or_nothing(make, interrupt) == {"nothing", "whole"}


def test_averaged_weights_are_neither_saved_nor_loaded_over(tmp_path):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 2)
    adamas.save(tmp_path / "run", optimizer)
    content, before = (tmp_path / "run").read_bytes(), everything(optimizer)
    with optimizer.ema_weights():
        with pytest.raises(RuntimeError, match="so a checkpoint would hold them twice and lose"):
            adamas.save(tmp_path / "run", optimizer)
        with pytest.raises(RuntimeError, match="swapped in, so what is loaded would be undone"):
            adamas.load(tmp_path / "run", optimizer)
    assert everything(optimizer) == before
    assert (tmp_path / "run").read_bytes() == content


def test_saving_and_loading_need_no_other_package(tmp_path):
    program = """
import sys, numpy, adamas
for name in ("safetensors", "torch", "jax"):
    sys.modules[name] = None
p = numpy.ones(3, numpy.float32)
optimizer = adamas.Adam(p)
optimizer.step(p)
kept = p.copy()
adamas.save(sys.argv[1], optimizer)
p[...] = 0
adamas.load(sys.argv[1], optimizer)
assert p.tobytes() == kept.tobytes()
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=True, env=ENVIRONMENT)


def test_a_file_of_the_first_format_is_read(tmp_path):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 3)
    about = optimizer.state_dict()
    tensors = {f"parameters/{name}": p for name, p in optimizer.named_parameters().items()}
    for name, entries in about.pop("state").items():
        tensors |= {f"state/{name}/{entry}": array for entry, array in entries.items()}
    about = {"format": 1, "method": "Adam", **about}
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(tensors, tmp_path / "old", metadata={"adamas": json.dumps(about)})
    _, resumed = made()
    adamas.load(tmp_path / "old", resumed)
    assert everything(resumed) == everything(optimizer)


def test_parameters_in_bfloat16_are_saved_to_the_bit(tmp_path):
    p = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    adamas.save(tmp_path / "run", adamas.Adam(p, rounding="remainder"))
    again = np.zeros_like(p)
    adamas.load(tmp_path / "run", adamas.Adam(again, rounding="remainder"))
    assert again.tobytes() == p.tobytes()


def test_what_is_saved_is_aligned_for_programs_that_map_files(tmp_path):
    p = [np.ones(3, np.float16), np.ones(5, np.float32), np.ones(7)]
    adamas.save(tmp_path / "run", adamas.Adam(p))
    content = (tmp_path / "run").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    header = json.loads(content[8:start])
    del header["__metadata__"]
    sizes = {"F16": 2, "F32": 4, "F64": 8}
    assert {sizes[each["dtype"]] for each in header.values()} == {2, 4, 8}
    assert [e["data_offsets"][0] % sizes[e["dtype"]] for e in header.values()] == [0] * len(header)
