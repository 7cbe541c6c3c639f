"""Averaged weights in PyTorch: what is refused while they are in place, and when they begin."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas  # noqa: E402
import adamas.torch as ours  # noqa: E402


def stepped(optimizer, steps=3):
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
    return optimizer


def made(state=None, **options):
    p = nn.Parameter(torch.linspace(-1, 1, 40))
    return p, ours.AdamW([p], lr=0.1, state=state, **{"ema": 0.9, **options})


def load(optimizer, saved):
    optimizer.load_state_dict(saved)


CALLS = {
    "step": (lambda o, saved, path: o.step(), "no step can be made"),
    "state_dict": (lambda o, saved, path: o.state_dict(), "a checkpoint would hold them twice"),
    "packed": (lambda o, saved, path: o.state_dict(packed=True), "a checkpoint would hold them"),
    "load_state_dict": (lambda o, saved, path: o.load_state_dict(saved), "what is loaded would"),
    "save": (lambda o, saved, path: adamas.save(path, o), "a checkpoint would hold them twice"),
    "add_param_group": (
        lambda o, saved, path: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
        "a group cannot be added",
    ),
    "pickle": (lambda o, saved, path: pickle.dumps(o), "a copy would hold them twice"),
    "deepcopy": (lambda o, saved, path: copy.deepcopy(o), "a copy would hold them twice"),
    "copy": (lambda o, saved, path: copy.copy(o), "a copy would hold them twice"),
    "ema_weights": (lambda o, saved, path: o.ema_weights().__enter__(), "in place already"),
}  # fmt: skip


@pytest.mark.parametrize("state", [None, "8bit"])
@pytest.mark.parametrize("name", CALLS)
def test_with_averages_in_place_it_is_refused_and_training_goes_on(name, state, tmp_path):
    call, message = CALLS[name]
    p, optimizer = made(state)
    twin, other = made(state)
    saved = copy.deepcopy(stepped(made(state)[1], 1).state_dict())
    stepped(optimizer)
    stepped(other)
    average = optimizer.state[p]["ema"].clone()
    for _ in range(2):  # a call that was refused leaves the next one refused
        with optimizer.ema_weights():
            with pytest.raises(RuntimeError, match=f"The EMA weights are swapped in.*{message}|"
                               "The EMA weights are swapped in already"):  # fmt: skip
                call(optimizer, saved, tmp_path / "o.safetensors")
            assert torch.equal(p, average)
        assert torch.equal(p, twin)
    assert not list(tmp_path.iterdir())
    assert len(optimizer.param_groups) == 1
    stepped(optimizer)
    stepped(other)
    assert torch.equal(p, twin)
    assert torch.equal(optimizer.state[p]["ema"], other.state[twin]["ema"])


def test_with_averages_in_place_a_closure_is_not_called():
    _, optimizer = made()
    stepped(optimizer)
    called = []
    with optimizer.ema_weights(), pytest.raises(RuntimeError, match="no step can be made"):
        optimizer.step(lambda: called.append(1))
    assert called == []


def test_a_models_state_has_the_averages_while_they_are_in_place():
    net = nn.Linear(3, 2)
    optimizer = stepped(ours.Adam(net.parameters(), lr=0.1, ema=0.5))
    with optimizer.ema_weights():
        exported = copy.deepcopy(net.state_dict())
    for name, p in net.named_parameters():
        assert torch.equal(exported[name], optimizer.state[p]["ema"])
        assert not torch.equal(exported[name], p)


def test_the_weights_come_back_where_the_averages_cannot_be_put_in_place():
    p, optimizer = made()
    stepped(optimizer)
    before = p.detach().clone()
    optimizer.state[p]["ema"] = torch.ones(3)
    with pytest.raises(RuntimeError), optimizer.ema_weights():
        pass
    assert torch.equal(p, before)
    optimizer.state[p]["ema"] = before.clone()
    stepped(optimizer)


def test_no_average_of_long_ago_comes_back():
    """With ema, then without, then with it: each run goes on with the state of the one before."""
    p, first = made()
    stepped(first)
    second = ours.AdamW([p], lr=0.1)
    second.load_state_dict(first.state_dict())
    assert "ema" not in second.state[p]
    stepped(second, 20)
    third = ours.AdamW([p], lr=0.1, ema=0.9)
    third.load_state_dict(second.state_dict())
    start = p.detach().clone()
    stepped(third, 1)
    keep, take = torch.tensor(0.9), torch.tensor(1 - 0.9, dtype=torch.float64).float()
    assert torch.equal(third.state[p]["ema"], keep * start + take * p)


def test_an_average_that_was_saved_goes_on():
    p, first = made()
    stepped(first)
    q, second = made()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[q]["ema"], first.state[p]["ema"])
