"""Plans of adamas.torch on devices that Triton serves: made once, used, and seen to be outdated."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from adamas.engines.triton.live import Live
from adamas.engines.triton.parts import Part
from adamas.torch import plan
from tests.support.device_trainings import Training, device_switch, differences, steps_launched
from tests.support.planned import plans_made
from tests.support.triton_plans import DEVICE


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""
    before = np.seterr(all="ignore")  # the interpreter computes with NumPy
    yield device_switch(monkeypatch)
    np.seterr(**before)


@pytest.fixture
def plans():
    """All plans that are made."""
    with plans_made() as made:
        yield made


@pytest.fixture
def stepped_by(monkeypatch):
    """The plans that have made steps, one for each step."""
    found, step = [], plan.Plan.step

    def noted(self, *given):
        made = step(self, *given)
        if made is not NotImplemented:
            found.append(self)
        return made

    monkeypatch.setattr(plan.Plan, "step", noted)
    return found


@pytest.fixture
def launched(monkeypatch):
    """All steps that are launched."""
    return steps_launched(monkeypatch)


# ── plans ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fused", [True, False])
def test_a_plan_is_made_once_and_then_used(fused, plans, launched):
    training = Training(fused=fused).step(4)
    assert len(plans) == 1
    assert [each.launches for each in launched] == [launched[0].launches] * 4
    assert training.optimizer.state[training.params[0]]["step"] == 4


def test_one_launch_steps_all_tensors_that_are_stored_alike(monkeypatch):
    launched = []
    launch = Part.launch

    def counted(part, which, kernel, *arguments, **constants):
        launched.append(kernel.__name__)
        launch(part, which, kernel, *arguments, **constants)

    monkeypatch.setattr(Part, "launch", counted)
    shapes = [(size,) for size in range(1, 40)] + [(8193,)]
    training = Training(shapes=shapes, fused=True).step(2)
    assert launched == ["number", "sweep"] * 2
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16, device=DEVICE))
    training.params.append(half)
    training.optimizer.add_param_group({"params": [half]})
    launched.clear()
    for p in training.params:
        p.grad = torch.ones_like(p)
    training.optimizer.step()
    assert launched == ["number", "sweep", "sweep"]


def test_what_has_not_changed_is_not_sent_again(monkeypatch):
    training = Training(fused=True).step(2)
    sent, send = [], Live.send
    monkeypatch.setattr(
        Live, "send", lambda live, **how: sent.append(send(live, **how)) or sent[-1]
    )
    training.optimizer.step()
    training.gradients()
    training.optimizer.step()
    assert sent == [False, True]


CHANGES = {
    "an option": lambda t: t.optimizer.param_groups[0].update(eps=0.1),
    "betas": lambda t: t.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
    "a rate": lambda t: t.optimizer.param_groups[0].update(lr=0.5),
    "the data of a parameter": lambda t: setattr(t.params[0], "data", t.params[0].data + 1),
    "an entry": lambda t: t.optimizer.state[t.params[1]].update(
        exp_avg=t.optimizer.state[t.params[1]]["exp_avg"] * 2
    ),
    "the number of a step": lambda t: t.optimizer.state[t.params[1]]["step"].fill_(7),
    "a loaded state": lambda t: t.optimizer.load_state_dict(
        copy.deepcopy(t.optimizer.state_dict())
    ),
    "another group": lambda t: t.optimizer.add_param_group(
        {"params": [t.params.append(nn.Parameter(t.drawn((5,)))) or t.params[-1]]}
    ),
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_seen(change, on_device):
    training = Training(fused=True).step(2)
    on_device(False)
    judge = Training(fused=True, device="cpu").step(2)
    CHANGES[change](judge)
    judge.step(2)
    on_device(True)
    CHANGES[change](training)
    assert differences(training.step(2), judge) == []


def test_a_parameter_without_a_gradient_waits_until_it_has_one(on_device):
    def made(device):
        training = Training(device=device)
        for step in range(4):
            training.gradients()
            if step < 2:
                training.params[1].grad = None
            training.optimizer.step()
        return training

    training = made(DEVICE)
    on_device(False)
    judge = made("cpu")
    assert training.optimizer.state[training.params[1]]["step"] == 2
    assert differences(training, judge) == []


def test_a_step_raises_the_version_of_its_parameters():
    training = Training().step()
    before = training.params[0]._version
    training.step()
    assert training.params[0]._version > before


def test_gradients_are_left_as_they_are():
    training = Training(clip_norm=0.1)
    training.gradients()
    before = [p.grad.clone() for p in training.params]
    training.optimizer.step()
    assert all(map(torch.equal, before, (p.grad for p in training.params)))


# ── gradients that come and go, and what they share ────────────────────────────────────────────

TURNS = ((0, 1, 3), (0, 2, 4), (0, 1, 3), (0, 2, 4), (4,), (0, 1, 3), (0, 1, 2, 3, 4), (0, 2, 4))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", ["AdamW", "NAdam", "SGD"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "statistics": True}])
def test_gradients_that_come_and_go_give_the_same_bits(method, options, on_device, stepped_by):
    def trained(device):
        training = Training(method, device=device, **options)
        for turn in TURNS:
            training.gradients()
            for i, p in enumerate(training.params):
                p.grad = p.grad if i in turn else None
            training.optimizer.step()
        return training

    one = trained(DEVICE)
    plans = stepped_by[:]
    assert len(plans) == len(TURNS)
    on_device(False)
    other = trained(torch.device("cpu"))
    assert differences(one, other) == []
    assert one.optimizer.gradient_norm == other.optimizer.gradient_norm
    assert plans[2] is plans[0] or method == "SGD"  # whose first step is another
    assert plans[7] is plans[3]


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[1]])
def test_with_averages_in_place_no_plan_makes_a_step(turn):
    """Neither the last plan nor one of before: the averages would be trained, and lost."""
    training = Training("AdamW", ema=0.5)

    def step(turn):
        training.gradients()
        for i, p in enumerate(training.params):
            p.grad = p.grad if i in turn else None
        training.optimizer.step()

    for each in TURNS[:4]:
        step(each)
    before = training.values()
    with training.optimizer.ema_weights():
        averages = [p.detach().clone() for p in training.params]
        with pytest.raises(RuntimeError, match="no step can be made"):
            step(turn)
        assert all(map(torch.equal, training.params, averages))
    after = training.values()
    assert after.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name]))
               for name in before)  # fmt: skip


@pytest.mark.slow
def test_no_plan_is_kept_for_a_state_that_was_replaced(plans):
    training = Training("AdamW")
    for turn in TURNS[:4]:
        training.gradients()
        for i, p in enumerate(training.params):
            p.grad = p.grad if i in turn else None
        training.optimizer.step()
    before = [weakref.ref(each) for each in plans]
    plans.clear()
    gc.collect()
    assert [each() is not None for each in before] == [True, True]
    state = training.optimizer.state[training.params[0]]
    state["exp_avg"] = state["exp_avg"].clone()
    training.optimizer.step()
    assert len(plans) == 1
    gc.collect()
    assert [each() for each in before] == [None, None]


def test_a_gradient_may_be_its_parameter_and_ends_unscaled():
    one, other = (Training("AdamW", fused=True).step() for _ in range(2))
    for p, q in zip(one.params, other.params, strict=True):
        p.grad, q.grad = p.detach(), q.detach() / 4.0
    wanted = [q.grad.clone() for q in other.params]
    one.optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
    one.optimizer.found_inf = torch.tensor(0.0, device=DEVICE)
    one.optimizer.step()
    other.optimizer.step()
    assert differences(one, other) == []
    assert all(torch.equal(p.grad, x) for p, x in zip(one.params, wanted, strict=True))


def test_gradients_of_a_step_that_is_left_out_stay_scaled():
    training = Training("AdamW", fused=True)
    training.gradients()
    before = [p.grad.clone() for p in training.params]
    training.optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
    training.optimizer.found_inf = torch.tensor(1.0, device=DEVICE)
    training.optimizer.step()
    assert all(torch.equal(p.grad, x) for p, x in zip(training.params, before, strict=True))


def test_no_use_count_is_left_on_a_device():
    training = Training("AdamW").step(2)
    assert [p._use_count() for p in training.params] == [1] * len(training.params)
