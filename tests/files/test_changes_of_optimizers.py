"""Readers follow trainings of NumPy's and of torch's optimizers, whatever happens to these."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

import adamas
from adamas.torch import AdamW
from tests.support.told import all_bits

SHAPES = {"a": (40, 33), "b.c": (7,), "d": ()}


class OfArrays:
    """A training of arrays."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.tensors = {
            name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()
        }
        self.optimizer = adamas.AdamW(self.tensors, lr=1e-8, track_changes=True)

    def advance(self):
        random = np.random.default_rng(self.optimizer.steps)
        self.optimizer.step(
            {name: random.standard_normal(s).astype(np.float32) for name, s in SHAPES.items()}
        )

    def state(self):
        return copy.deepcopy((self.optimizer.state_dict(), self.tensors))

    def load(self, state):
        self.optimizer.load_state_dict(state[0], parameters=state[1])

    def pickled(self):
        return pickle.dumps(self.optimizer)

    def unpickled(self, content):
        self.optimizer = pickle.loads(content)
        self.tensors = self.optimizer.named_parameters()


class OfTensors(OfArrays):
    """A training of tensors in bfloat16."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator).bfloat16())
            for name, shape in SHAPES.items()
        }
        self.optimizer = AdamW(
            self.tensors.items(), lr=1e-4, rounding="remainder", track_changes=True
        )
        self.steps = 0

    def advance(self):
        generator = torch.Generator().manual_seed(self.steps)
        for p in self.tensors.values():
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
        self.optimizer.step()
        self.steps += 1

    def state(self):
        return copy.deepcopy((self.optimizer.state_dict(), self.tensors, self.steps))

    def load(self, state):
        self.optimizer.load_state_dict(state[0])
        with torch.no_grad():
            for name, p in self.tensors.items():
                p.copy_(state[1][name])
        self.steps = state[2]

    def pickled(self):
        return pickle.dumps((self.tensors, self.optimizer, self.steps))

    def unpickled(self, content):
        self.tensors, self.optimizer, self.steps = pickle.loads(content)


@pytest.fixture(params=[OfArrays, OfTensors])
def training(request):
    return request.param()


def followed(training, path, reader, count=1, **options):
    """Make steps, save, let a reader follow; return the step that it came to."""
    for _ in range(count):
        training.advance()
    adamas.save_changes(path, training.optimizer.changes())
    step = adamas.apply_changes(reader, path, **options)
    assert all_bits(reader) == all_bits(training.tensors)
    return step


def test_a_reader_follows_through_loads_and_goes_back_with_the_training(training, tmp_path):
    reader, path = copy.deepcopy(training.tensors), tmp_path / "delta"
    assert followed(training, path, reader, 2, after=0) == 2
    early = training.state()
    assert followed(training, path, reader, 3) == 5
    training.load(early)
    assert followed(training, path, reader, 1) == 3  # everything has changed
    assert followed(training, path, reader, 2) == 5
    assert followed(training, path, reader, 0) == 5


def test_what_has_been_saved_is_not_told_again_and_what_is_saved_is_a_part(training, tmp_path):
    reader, path = copy.deepcopy(training.tensors), tmp_path / "delta"
    followed(training, path, reader, 3, after=0)
    assert list(training.optimizer.changes(clear=False)) == []
    training.advance()
    counts = {each.name: len(each.indices) for each in training.optimizer.changes(clear=False)}
    assert 0 < counts["a"] < 40 * 33
    followed(training, path, reader)


def test_a_pickled_optimizer_goes_on_where_its_readers_stand(training, tmp_path):
    reader, path = copy.deepcopy(training.tensors), tmp_path / "delta"
    followed(training, path, reader, 2, after=0)
    training.advance()
    content = training.pickled()
    training.unpickled(content)
    assert followed(training, path, reader) == 4
    training.unpickled(content)  # once more from there
    for _ in range(2):
        training.advance()
    before = all_bits(reader)
    adamas.save_changes(path, training.optimizer.changes())
    with pytest.raises(ValueError, match=r"another training|stands at step"):
        adamas.apply_changes(reader, path)
    assert all_bits(reader) == before


def test_copies_in_low_precision_are_what_readers_get(tmp_path):
    parameters = [("w", torch.nn.Parameter(torch.linspace(-1, 1, 500)))]
    optimizer = AdamW(parameters, lr=1e-4, copy_to=torch.bfloat16, track_changes=True)
    reader = {"w": optimizer.copies[0].clone()}
    for step in (1, 2, 3):
        parameters[0][1].grad = torch.sin(torch.arange(500.0) + step)
        optimizer.step()
        adamas.save_changes(tmp_path / "delta", optimizer.changes())
        adamas.apply_changes(reader, tmp_path / "delta", after=step - 1)
        assert all_bits(reader) == all_bits({"w": optimizer.copies[0]})


def test_bfloat16_arrays_are_followed_by_tensors(tmp_path):
    weights = {"w": np.linspace(-1, 1, 500).astype(ml_dtypes.bfloat16)}
    reader = {"w": torch.from_numpy(weights["w"].astype(np.float32)).bfloat16()}
    optimizer = adamas.AdamW(weights, lr=1e-3, rounding="stochastic", track_changes=True)
    for step in (1, 2, 3):
        optimizer.step({"w": np.sin(np.arange(500) + step).astype(ml_dtypes.bfloat16)})
        adamas.save_changes(tmp_path / "delta", optimizer.changes())
        adamas.apply_changes(reader, tmp_path / "delta", after=step - 1)
        assert all_bits(reader)["w"][1:] == all_bits(weights)["w"][1:]


def test_two_optimizers_of_one_model_write_files_of_their_own(tmp_path):
    """Everything of one says nothing of where the tensors of the other stand."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 9)).bfloat16()
    reader, named = copy.deepcopy(model), list(model.named_parameters())
    optimizers = [
        AdamW(part, lr=1e-4, rounding="remainder", track_changes=True)
        for part in (named[:2], named[2:])
    ]
    for each in optimizers:
        each.load_state_dict(each.state_dict())  # everything has changed
    for step in range(1, 4):
        model(torch.ones(1, 9).bfloat16()).sum().backward()
        for number, each in enumerate(optimizers):
            each.step()
            path = tmp_path / f"{step}.{number}"
            changes = each.changes()
            assert changes.is_whole is (step == 1)
            adamas.save_changes(path, changes)
            assert adamas.apply_changes(reader, path) == step
        assert all_bits(dict(reader.named_parameters())) == all_bits(dict(named))
