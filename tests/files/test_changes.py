"""Changes in files, put into arrays and models: the bits of what they were told of, or nothing."""

from __future__ import annotations

import copy
import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

import adamas
from adamas.files.standing import known
from adamas.files.targets import targets_of
from tests.support.interrupts import interrupted_at, places, whole_or_nothing
from tests.support.told import Told, all_bits, bits_of

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64]
KINDS = ["numpy", "torch"]
TORCH = {
    "float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"
}  # fmt: skip


def arrays(dtypes=(ml_dtypes.bfloat16, np.float32)):
    """Return arrays of several shapes, one of which no element is in."""
    shapes = {"wide/weight": (5, 33), "bias": (7,), "scalar": (), "empty": (0, 3), "é": (1,)}
    return {
        f"{name}.{i}": np.ones(shape, dtype)
        for i, dtype in enumerate(dtypes)
        for name, shape in shapes.items()
    }


def tensors(dtypes=("bfloat16", "float32")):
    made = arrays([np.float32] * len(dtypes))
    return {
        name: torch.from_numpy(each).to(getattr(torch, dtypes[int(name[-1])]))
        for name, each in made.items()
    }


def made(kind):
    return Told(arrays() if kind == "numpy" else tensors())


def copied(values):
    return copy.deepcopy(values)


@pytest.fixture(params=KINDS)
def told(request):
    return made(request.param)


# ── the bits of the training ───────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_a_chain_of_changes_gives_the_bits_of_what_they_were_told_of(told, tmp_path, fraction):
    target = copied(told.tensors)
    after = 0
    for count in (1, 3, 0, 2, 5):
        told.advance(count, fraction)
        adamas.save_changes(tmp_path / "delta", told.changes())
        assert adamas.apply_changes(target, tmp_path / "delta", after=after) == told.step
        assert all_bits(target) == all_bits(told.tensors)
        after = None


@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_arrays_of_every_dtype_that_files_have_come_to_the_same_bits(tmp_path, dtype):
    told = Told(arrays([dtype]))
    target = copied(told.tensors)
    told.advance(2)
    adamas.save_changes(tmp_path / "delta", told.changes())
    adamas.apply_changes(target, tmp_path / "delta", after=0)
    assert all_bits(target) == all_bits(told.tensors) != all_bits(arrays([dtype]))


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_tensors_of_every_dtype_that_files_have_come_to_the_same_bits(tmp_path, dtype):
    told = Told(tensors([dtype]))
    target = copied(told.tensors)
    told.advance(2)
    adamas.save_changes(tmp_path / "delta", told.changes())
    adamas.apply_changes(target, tmp_path / "delta", after=0)
    assert all_bits(target) == all_bits(told.tensors) != all_bits(tensors([dtype]))


def test_what_torch_told_goes_into_arrays_and_what_numpy_told_into_tensors(tmp_path):
    for kind, target in (("numpy", tensors()), ("torch", arrays())):
        told = made(kind)
        told.advance()
        adamas.save_changes(tmp_path / kind, told.changes())
        adamas.apply_changes(target, tmp_path / kind, after=0)
        found, wanted = all_bits(target), all_bits(told.tensors)
        assert {name: found[name][1:] for name in found} == {n: wanted[n][1:] for n in wanted}


def test_base_and_deltas_after_a_restart_give_the_bits_of_the_model(told, tmp_path):
    told.advance(4)
    told.go_back_to(4, copied(told.tensors))  # everything counts as changed
    adamas.save_changes(tmp_path / "base", told.changes())
    for number in (1, 2):
        told.advance(3)
        adamas.save_changes(tmp_path / str(number), told.changes())
    restored = copied(told.tensors)
    for each in restored.values():
        bits_of(each)[...] = 3
    steps = [adamas.apply_changes(restored, tmp_path / name) for name in ("base", "1")]
    assert steps == [4, 7]
    elsewhere = copied(restored)  # as a reader that begins again from what it had stored
    assert adamas.apply_changes(elsewhere, tmp_path / "2", after=7) == 10
    assert all_bits(elsewhere) == all_bits(told.tensors)


def test_elements_are_set_where_they_are_and_nothing_else_is_touched(tmp_path):
    told = Told({"w": np.zeros((40, 30), np.float32)})
    told.advance()
    changed = bits_of(told.tensors["w"]) != 0
    adamas.save_changes(tmp_path / "delta", told.changes())
    whole = np.full((40, 60), 5, np.float32)
    target = whole[:, ::2]  # not contiguous
    adamas.apply_changes({"w": target}, tmp_path / "delta", after=0)
    assert (bits_of(target)[changed] == bits_of(told.tensors["w"])[changed]).all()
    assert (target[~changed] == 5).all()
    assert (whole[:, 1::2] == 5).all()


@pytest.mark.parametrize("is_whole", [False, True])
def test_tensors_that_are_not_contiguous_come_to_the_same_bits(tmp_path, is_whole):
    told = Told({"w": torch.zeros(6, 5, 4, 3)})
    if is_whole:
        told.go_back_to(0, copied(told.tensors))
    told.advance()
    adamas.save_changes(tmp_path / "delta", told.changes())
    target = torch.zeros(6, 5, 4, 3).to(memory_format=torch.channels_last)
    adamas.apply_changes({"w": target}, tmp_path / "delta", after=0)
    assert target.stride() == (60, 1, 15, 5)
    assert all_bits({"w": target.contiguous()}) == all_bits(told.tensors)


def test_indices_are_int64_where_a_tensor_needs_them(tmp_path):
    indices, values = np.array([2**31 + 5], np.int64), np.ones(1, np.float16)
    change = adamas.Change("w", indices, values, (2**32,))
    told = adamas.Changes(lambda: iter([change]), None, 1, 1, False)
    adamas.save_changes(tmp_path / "delta", told)
    assert load_file(tmp_path / "delta")["indices/w"].dtype == np.int64
    target = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(2**32,))
    adamas.apply_changes({"w": target}, tmp_path / "delta", after=0)
    assert target[2**31 + 4 : 2**31 + 7].tolist() == [0, 1, 0]


# ── models ─────────────────────────────────────────────────────────────────────────────────────


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = torch.nn.BatchNorm1d(6)
        self.bfloat16()


def named(model):
    return dict(model.named_parameters())


def test_a_model_takes_the_names_of_its_parameters_tied_ones_under_either(tmp_path):
    for name in ("embedding.weight", "head.weight"):
        torch.manual_seed(0)
        trained, model = Tied(), Tied()
        model.load_state_dict(trained.state_dict())
        told = Told({name: trained.head.weight, "norm.weight": trained.norm.weight})
        told.advance()
        adamas.save_changes(tmp_path / "delta", told.changes())
        before = [p._version for p in model.parameters()]
        assert adamas.apply_changes(model, tmp_path / "delta", after=0) == 1
        assert all_bits(dict(model.named_parameters())) == all_bits(
            dict(trained.named_parameters())
        )
        assert model.head.weight is model.embedding.weight
        grown = [p._version > old for p, old in zip(model.parameters(), before, strict=True)]
        assert grown == [True, True, False]  # the bias of the norm has not changed
        told.advance()
        adamas.save_changes(tmp_path / "delta", told.changes())
        assert adamas.apply_changes(model, tmp_path / "delta") == 2  # what it stands at is known


def test_a_state_dict_is_the_model_and_both_know_where_it_stands(tmp_path):
    trained, model = Tied(), Tied()
    model.load_state_dict(trained.state_dict())
    told = Told({"head.weight": trained.head.weight})
    for step, target in enumerate((model, model.state_dict(), model.state_dict(), model)):
        told.advance()
        adamas.save_changes(tmp_path / "delta", told.changes())
        after = None if step else 0
        assert adamas.apply_changes(target, tmp_path / "delta", after=after) == step + 1
    assert all_bits(named(model)) == all_bits(named(trained))


def test_a_model_that_was_made_in_inference_mode_is_changed(tmp_path):
    trained = Tied()
    with torch.inference_mode():
        model = Tied()
        model.load_state_dict(trained.state_dict())
    told = Told({"head.weight": trained.head.weight})
    for step in (1, 2):
        told.advance()
        adamas.save_changes(tmp_path / "delta", told.changes())
        after = 0 if step == 1 else None
        assert adamas.apply_changes(model, tmp_path / "delta", after=after) == step
    assert all_bits({"": model.head.weight}) == all_bits({"": trained.head.weight})


def test_changes_of_a_model_that_is_larger_go_into_a_part_of_it_where_asked(tmp_path):
    told = Told({"a": np.zeros(50, np.float32), "b": np.zeros(50, np.float32)})
    told.advance()
    adamas.save_changes(tmp_path / "delta", told.changes())
    part = {"b": np.zeros(50, np.float32)}
    with pytest.raises(KeyError, match="delta changes a, which the model lacks: it has b"):
        adamas.apply_changes(part, tmp_path / "delta", after=0)
    assert adamas.apply_changes(part, tmp_path / "delta", after=0, strict=False) == 1
    assert all_bits(part) == all_bits({"b": told.tensors["b"]})


# ── the file ───────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_read_by_safetensors_and_says_what_it_is(told, tmp_path):
    told.advance(3)
    adamas.save_changes(tmp_path / "first", told.changes())
    told.advance(2)
    changes = list(told.changes(clear=False))
    adamas.save_changes(tmp_path / "delta", told.changes())
    loaded = load_tensors(tmp_path / "delta")
    for change in changes:
        values = loaded.pop(f"values/{change.name}")
        if f"indices/{change.name}" in loaded:
            indices = loaded.pop(f"indices/{change.name}")
            assert indices.dtype == torch.int32
            assert indices.tolist() == change.indices.tolist()
            assert values.ndim == 1
        else:  # all of it
            assert len(change.indices) == values.numel()
            assert tuple(values.shape) == change.shape
        assert bits_of(values).tobytes() == bits_of(change.values).tobytes()
    assert loaded == {}
    about = json.loads(header(tmp_path / "delta")["__metadata__"]["adamas"])
    assert (about["kind"], about["first_step"], about["last_step"]) == ("changes", 4, 5)
    assert about["shapes"]["wide/weight.0"] == [5, 33]
    first = json.loads(header(tmp_path / "first")["__metadata__"]["adamas"])
    assert first["place"] == about["follows"] != about["place"]


def header(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_a_tensor_all_of_which_has_changed_is_stored_without_indices(told, tmp_path):
    told.advance()
    told.go_back_to(1, copied(told.tensors))
    adamas.save_changes(tmp_path / "base", told.changes())
    found = load_tensors(tmp_path / "base")
    assert {name for name in found if name.startswith("indices")} == set()
    assert found["values/wide/weight.1"].shape == (5, 33)


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_save_that_fails_loses_no_change_and_leaves_the_old_file(
    told, tmp_path, monkeypatch, error
):
    told.advance()
    adamas.save_changes(tmp_path / "delta", told.changes())
    old, target = (tmp_path / "delta").read_bytes(), copied(told.tensors)
    told.advance(2)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        adamas.save_changes(tmp_path / "delta", told.changes())
    assert (tmp_path / "delta").read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["delta"]
    monkeypatch.setattr(os, "fsync", fsync)
    told.advance()
    adamas.save_changes(tmp_path / "delta", told.changes())
    assert adamas.apply_changes(target, tmp_path / "delta", after=1) == 4
    assert all_bits(target) == all_bits(told.tensors)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("pitch", [200, pytest.param(30, marks=pytest.mark.slow)])
def test_whoever_applied_the_file_of_an_interrupted_save_can_go_on_with_the_next(tmp_path, pitch):
    path = tmp_path / "delta"
    first, seen = made("numpy"), set()
    first.advance()
    total = places(lambda: adamas.save_changes(path, first.changes()))
    for place in sorted(
        {*range(0, total, pitch), *range(total - 1, total - 30, -max(1, pitch // 60))}
    ):
        told, target = made("numpy"), made("numpy").tensors
        told.advance()
        path.unlink(missing_ok=True)
        changes = told.changes()

        def save(changes=changes):
            adamas.save_changes(path, changes)

        assert interrupted_at(place, save, KeyboardInterrupt) or path.exists()
        is_there = path.exists()
        seen.add(is_there)
        if is_there:
            adamas.apply_changes(target, path, after=0)
            assert all_bits(target) == all_bits(told.tensors)
        told.advance()
        adamas.save_changes(path, told.changes())
        assert adamas.apply_changes(target, path, after=None if is_there else 0) == 2
        assert all_bits(target) == all_bits(told.tensors)
    assert seen == {False, True}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_interrupt_while_applying_leaves_all_as_it_was_or_applies_all(tmp_path, kind):
    told = made(kind)
    start = copied(told.tensors)
    told.advance()
    adamas.save_changes(tmp_path / "1", told.changes())
    told.advance()
    adamas.save_changes(tmp_path / "2", told.changes())

    def make():
        target = copied(start)
        adamas.apply_changes(target, tmp_path / "1", after=0)

        def look():
            return all_bits(target), [known(t.memory()) for t in targets_of(target).values()]

        return lambda: adamas.apply_changes(target, tmp_path / "2"), look

    found = whole_or_nothing(make, most=60)
    assert found == {"nothing"}  # no place is left once all is written
    assert torch.is_grad_enabled()


def test_a_write_that_fails_midway_is_taken_back(tmp_path, monkeypatch):
    told = Told(tensors())
    target = copied(told.tensors)
    told.advance()
    adamas.save_changes(tmp_path / "delta", told.changes())
    before = all_bits(target)
    index_copy = torch.Tensor.index_copy_
    calls = []

    def failing(self, *given):
        calls.append(self)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no")
        return index_copy(self, *given)

    monkeypatch.setattr(torch.Tensor, "index_copy_", failing)
    with pytest.raises(torch.OutOfMemoryError):
        adamas.apply_changes(target, tmp_path / "delta", after=0)
    assert all_bits(target) == before
    assert len(calls) == 6  # all three were taken back
    monkeypatch.undo()
    adamas.apply_changes(target, tmp_path / "delta", after=0)
    assert all_bits(target) == all_bits(told.tensors)
