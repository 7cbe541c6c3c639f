"""What optimizers for PyTorch hold, and that they let go of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import adamas
import adamas.torch as ours
from tests.support.cases import python


def stepped(**options: Any) -> tuple[torch.nn.Parameter, ours.AdamW]:
    """A parameter, and its optimizer after some steps."""
    p = torch.nn.Parameter(torch.ones(1000))
    optimizer = ours.AdamW([p], lr=1e-3, **options)
    for _ in range(3):
        p.grad = torch.ones(1000)
        optimizer.step()
    return p, optimizer


def held_by_its_parameter(p: torch.nn.Parameter, optimizer: ours.AdamW) -> None:
    p.optimizer = optimizer  # type: ignore[attr-defined]


def held_by_a_group(p: torch.nn.Parameter, optimizer: ours.AdamW) -> None:
    optimizer.param_groups[0]["tell"] = lambda: optimizer


def held_by_a_state(p: torch.nn.Parameter, optimizer: ours.AdamW) -> None:
    optimizer.state[p]["owner"] = optimizer


def held_by_a_hook_of_its_own(p: torch.nn.Parameter, optimizer: ours.AdamW) -> None:
    optimizer.register_step_post_hook(lambda *_: optimizer.param_groups)


HOLDERS = [held_by_its_parameter, held_by_a_group, held_by_a_state, held_by_a_hook_of_its_own]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("hold", HOLDERS)
def test_an_optimizer_that_what_it_steps_holds_is_collected(hold: Callable[..., None]):
    p, optimizer = stepped()
    hold(p, optimizer)
    p.grad = torch.ones(1000)
    optimizer.step()  # a plan is made that has seen what is held
    alive = weakref.ref(optimizer), weakref.ref(p)
    del p, optimizer
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_an_optimizer_that_its_array_holds_is_collected():
    class Weights(np.ndarray[Any, Any]):
        optimizer: adamas.Adam

    weights = np.ones(1000).view(Weights)
    weights.optimizer = adamas.Adam(weights)
    weights.optimizer.step(np.ones(1000))
    alive = weakref.ref(weights.optimizer)
    del weights
    gc.collect()
    assert alive() is None


#: One optimizer for each parameter, which steps as soon as there is a gradient.
IN_HOOKS = """
import torch
import adamas.torch as ours

net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
optimizers = {p: ours.AdamW([p], lr=1e-3) for p in net.parameters()}


def step(p):
    optimizers[p].step()
    optimizers[p].zero_grad()


for p in net.parameters():
    p.register_post_accumulate_grad_hook(step)
for _ in range(3):
    net(torch.ones(5, 3)).sum().backward()
print(all(optimizers[p].state[p]["step"] == 3 for p in net.parameters()))
"""


@pytest.mark.slow
def test_a_process_with_an_optimizer_for_each_parameter_in_hooks_ends_without_a_word():
    done = python(IN_HOOKS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.slow
def test_optimizers_that_come_and_go_leave_no_objects_and_no_references():

    def once() -> None:
        p, optimizer = stepped(clip_norm=1.0, ema=0.9)
        optimizer.load_state_dict(optimizer.state_dict())
        p.grad = torch.ones(1000)
        optimizer.step()

    def count() -> int:
        gc.collect()
        return len(gc.get_objects())

    for _ in range(3):
        once()
    before = count()
    for _ in range(20):
        once()
    assert count() - before < 20
