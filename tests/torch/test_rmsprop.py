"""RMSprop with momentum, or centered: a formula of its own, with the same bits everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import adamas.torch as ours
from tests.support.cases import ROOT

OPTIONS = [
    {"momentum": 0.9},
    {"centered": True},
    {"momentum": 0.9, "centered": True, "weight_decay": 0.03, "maximize": True},
    {"momentum": 1.5, "alpha": 0.7, "eps": 0.0},
]

#: Steps tensors that torch's operations take, and prints their bits.
PROGRAM = """
import sys, torch
import adamas.torch as ours
from tests.torch.test_rmsprop import OPTIONS, drawn
assert torch.backends.cpu.get_cpu_capability().lower() == {capability!r}
kinds = [(ours.RMSprop, options) for options in OPTIONS]
kinds += [(ours.AdamW, dict(amsgrad=True, ema=0.9)), (ours.NAdam, {{}})]
kinds += [(ours.SGD, dict(momentum=0.9))]
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.complex64):
    for kind, options in kinds:
        p = torch.nn.Parameter(drawn(0, dtype)[:, ::2])  # strided: not for the native engine
        optimizer = kind([p], lr=0.01, **options)
        for step in range(1, 4):
            p.grad = drawn(step, dtype)[:, ::2]
            optimizer.step()
        found = [p, *(value for value in optimizer.state[p].values() if value.ndim)]
        for each in found:
            wide = torch.view_as_real(each.detach().to(torch.complex128))
            print([x.hex() for x in wide.flatten().tolist()])
"""


def drawn(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(33, 62, generator=generator, dtype=torch.float64).to(dtype)


def capabilities():
    known = ["default", "avx2", "avx512"]
    own = torch.backends.cpu.get_cpu_capability().lower()
    return known[: known.index(own) + 1] if own in known else [own]


@pytest.mark.slow
def test_what_torchs_operations_step_has_the_same_bits_on_every_instruction_set():
    outputs = {}
    for capability in capabilities():
        outputs[capability] = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(capability=capability)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
                "ATEN_CPU_CAPABILITY": capability,
            },
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    first = outputs["default"] if "default" in outputs else next(iter(outputs.values()))
    assert first.count("\n") > 80
    assert [name for name, output in outputs.items() if output != first] == []


def by_hand(p, g, state, options, lr):
    """Return a step by NumPy: every operator rounds once, in the order of torch's formula."""
    number = p.dtype.type
    alpha, eps = options.get("alpha", 0.99), number(options.get("eps", 1e-8))
    sign = number(-1 if options.get("maximize") else 1)
    g = sign * g + number(options.get("weight_decay", 0)) * p
    state["square_avg"] = number(alpha) * state["square_avg"] + number(1 - alpha) * g * g
    square = state["square_avg"]
    if options.get("centered"):
        state["grad_avg"] = number(alpha) * state["grad_avg"] + number(1 - alpha) * g
        square = square - state["grad_avg"] * state["grad_avg"]
    u = g / (np.sqrt(square) + eps)
    if options.get("momentum"):
        u = state["momentum_buffer"] = number(options["momentum"]) * state["momentum_buffer"] + u
    return p - number(lr) * u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_has_the_bits_of_the_formula_and_is_near_to_torchs(options, dtype):
    own, theirs = (nn.Parameter(drawn(0, dtype)) for _ in range(2))
    optimizer = ours.RMSprop([own], lr=0.01, **options)
    other = torch.optim.RMSprop([theirs], lr=0.01, **options)
    expected = own.detach().numpy().copy()
    names = ("square_avg", "grad_avg", "momentum_buffer")
    state = {name: np.zeros_like(expected) for name in names}
    for step in range(1, 5):
        own.grad, theirs.grad = drawn(step, dtype), drawn(step, dtype)
        expected = by_hand(expected, own.grad.numpy(), state, options, 0.01)
        optimizer.step()
        other.step()
        np.testing.assert_array_equal(own.detach().numpy(), expected)
        for name in names:
            if name in optimizer.state[own]:
                found = optimizer.state[own][name].numpy()
                np.testing.assert_array_equal(found, state[name])
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


def test_momentum_set_in_a_run_counts_from_then_on():
    p = nn.Parameter(torch.ones(4))
    optimizer = ours.RMSprop([p], lr=0.1)
    for momentum in (0, 0.5, 0.5):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = torch.ones(4)
        optimizer.step()
    state, number = optimizer.state[p], np.float32
    square, buffer = number(0), number(0)
    for step in range(3):
        square = number(0.99) * square + number(1 - 0.99)
        u = number(1) / (np.sqrt(square) + number(1e-8))
        buffer = number(0.5) * buffer + u if step else buffer
    assert state["momentum_buffer"].tolist() == [buffer] * 4


@pytest.mark.parametrize("phase", [{"ema": 0.9}, {"statistics": True}, {"clip_update": 1.0}])
@pytest.mark.parametrize("option", [{"momentum": 0.9}, {"centered": True}])
def test_what_its_own_formula_has_not_is_refused_wherever_it_is_asked_for(option, phase):
    text = "^ema, statistics and clip_update are not possible for RMSprop with momentum or"
    p, q = (nn.Parameter(torch.ones(4)) for _ in range(2))
    with pytest.raises(ValueError, match=text):
        ours.RMSprop([p], **option, **phase)
    optimizer = ours.RMSprop([p], **phase)
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [q], **option})
    assert len(optimizer.param_groups) == 1
    p.grad = torch.ones(4)
    optimizer.step()
    before, usual = p.detach().clone(), dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(option)
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == 1
    optimizer.param_groups[0].update(usual)
    optimizer.step()
