"""``decay="cautious"`` and its like in adamas.torch: as in NumPy, on every route."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import adamas
from adamas import torch as ours
from tests.support.queues import ORDERS
from tests.support.torch_routes import standing_in

DECAYS = {
    "fully-decoupled": {"lr_max": 0.04},
    "cautious": {},
    "corrected": {"lr_max": 0.04},
}


def drawn(size=300):
    random = np.random.default_rng(size)
    return [random.standard_normal(size).astype(np.float32) for _ in range(6)]


def numpy_run(make, schedule=None, **options):
    p, *gradients = drawn()
    optimizer = make(p, lr=0.02, weight_decay=0.3, **options)
    for step, g in enumerate(gradients):
        if schedule is not None:
            optimizer.lr = 0.02 * schedule(step)
        optimizer.step(g)
    return p


def torch_run(make, schedule=None, device="cpu", **options):
    p, *gradients = drawn()
    parameter = torch.nn.Parameter(torch.from_numpy(p).to(device))
    optimizer = make([parameter], lr=0.02, weight_decay=0.3, **options)
    scheduler = None if schedule is None else LambdaLR(optimizer, schedule)
    for g in gradients:
        parameter.grad = torch.from_numpy(g).to(device)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return parameter.detach().cpu().numpy()


def slower(step):
    return 1 / (1 + step)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_decay_follows_a_schedule_as_numpys_does(decay, engine):
    options = {"decay": decay, **DECAYS[decay]}
    given = numpy_run(adamas.AdamW, slower, **options)
    found = torch_run(ours.AdamW, slower, **options, engine=engine)
    assert np.array_equal(given, found)
    assert not np.array_equal(found, torch_run(ours.AdamW, slower))


@pytest.mark.parametrize("route", ["triton", f"offload {ORDERS[0]}"])
@pytest.mark.parametrize("decay", ["cautious", "corrected"])
def test_devices_and_offloaded_states_follow_it_too(decay, route):
    options = {"decay": decay, **DECAYS[decay]}
    more = {"engine": "triton"} if route == "triton" else {"offload": True}
    with standing_in(route) as device:
        found = torch_run(ours.AdamW, slower, device, **options, **more)
    assert np.array_equal(numpy_run(adamas.AdamW, slower, **options), found)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize(
    ("make", "twin"),
    [
        (ours.Adam, adamas.Adam),
        (ours.RMSprop, lambda p, **options: adamas.RMSProp(p, beta=0.99, **options)),
    ],
)
def test_other_classes_take_it_too(make, twin, engine):
    found = torch_run(make, decay="cautious", engine=engine)
    assert np.array_equal(numpy_run(twin, decay="cautious"), found)


@pytest.mark.parametrize("make", [ours.NAdam, ours.RAdam, ours.SGD])
@pytest.mark.parametrize("decay", DECAYS)
def test_what_decays_is_what_the_formula_says(make, decay):
    """The first step of float64, of which decay is the difference to a step without."""
    p, g = np.array([1.0, -1.0, 2.0, -2.0]), np.array([1.0, 1.0, -1.0, -1.0])
    moved = []
    for options in ({"weight_decay": 0.0}, {"weight_decay": 0.5, "decay": decay, **DECAYS[decay]}):
        parameter = torch.nn.Parameter(torch.tensor(p))
        parameter.grad = torch.tensor(g)
        make([parameter], lr=0.02, **options).step()
        moved.append(parameter.detach().numpy())
    amount = {"fully-decoupled": 0.25, "cautious": 0.01, "corrected": 0.005}[decay]
    shrunk = amount * p * ((p * g >= 0) if decay == "cautious" else 1)
    np.testing.assert_allclose(moved[0] - moved[1], shrunk, rtol=1e-12, atol=1e-15)


def test_groups_may_decay_each_in_its_way_and_go_on_after_loading():
    def made():
        parameters = [torch.nn.Parameter(torch.from_numpy(drawn(9)[i].copy())) for i in range(3)]
        groups = [
            {"params": parameters[:1], "decay": "cautious"},
            {"params": parameters[1:2]},
            {"params": parameters[2:], "decay": "corrected", "lr_max": 0.5},
        ]
        return parameters, ours.AdamW(groups, lr=0.1, weight_decay=0.3)

    def steps(parameters, optimizer, numbers):
        for i in numbers:
            for j, each in enumerate(parameters):
                each.grad = torch.from_numpy(drawn(9)[3 + (i + j) % 3])
            optimizer.step()

    parameters, optimizer = made()
    steps(parameters, optimizer, range(4))
    again, resumed = made()
    steps(again, resumed, range(2))
    other, loads = made()
    for group in loads.param_groups:
        group.pop("decay", None)
        group.pop("lr_max", None)
    loads.load_state_dict(resumed.state_dict())
    with torch.no_grad():
        for new, old in zip(other, again, strict=True):
            new.copy_(old)
    steps(other, loads, range(2, 4))
    for one, two in zip(parameters, other, strict=True):
        assert torch.equal(one, two)
    single, usual = made()
    for group in usual.param_groups:
        group |= {"decay": None, "lr_max": None}
    steps(single, usual, range(4))
    assert [torch.equal(a, b) for a, b in zip(parameters, single, strict=True)] == [
        False,
        True,
        False,
    ]


def test_the_greatest_rate_is_that_which_a_group_begins_with():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups = [{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:2]}]
    optimizer = ours.AdamW(groups, lr=torch.tensor(0.25), decay="corrected", capturable=True)
    optimizer.add_param_group({"params": parameters[2:], "decay": "cautious"})
    assert [group["lr_max"] for group in optimizer.param_groups[:2]] == [0.5, 0.25]
    assert "lr_max" not in optimizer.param_groups[2]
    optimizer = ours.AdamW(parameters[:1], decay="corrected", lr_max=1.0)
    optimizer.add_param_group({"params": parameters[1:], "decay": "cautious"})
    assert [group["lr_max"] for group in optimizer.param_groups] == [1.0, None]


def test_a_state_of_torchs_leaves_decay_and_greatest_rate_as_they_are():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    theirs = torch.optim.AdamW([parameter], lr=0.25)
    theirs.step()
    optimizer = ours.AdamW([parameter], lr=0.5, decay="corrected")
    optimizer.load_state_dict(theirs.state_dict())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["decay"], group["lr_max"]) == (0.25, "corrected", 0.5)


def test_a_decay_that_is_set_in_a_run_is_that_of_the_next_step():
    p = np.ones(3, np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(p))
    parameter.grad = -torch.ones(3)
    optimizer = ours.SGD([parameter], lr=0.5, weight_decay=0.5, decay="fully-decoupled")
    optimizer.step()
    assert p.tolist() == [1.0] * 3  # 1 + 0.5 - 0.5
    optimizer.param_groups[0] |= {"decay": "cautious", "lr_max": None}
    optimizer.step()
    assert p.tolist() == [1.5] * 3


REFUSED = [
    (
        {"decay": "l2"},
        'decay is "l2", but it must be one of "fully-decoupled", "cautious", "corrected". L2 is '
        "what all classes but AdamW do where decay is left out.",
    ),
    (
        {"decay": "decoupled"},
        'decay is "decoupled", but it must be one of "fully-decoupled", "cautious", "corrected". '
        "Decoupled decay is that of AdamW, and of Adam, NAdam and RAdam with ",
    ),
    ({"decay": "cautious", "lr_max": 1.0}, "lr_max is 1.0, but decay is 'cautious': lr_max has a"),
    ({"lr_max": 1.0}, "lr_max is 1.0, but decay is None: lr_max has a meaning with"),
    ({"decay": "corrected", "lr_max": -1.0}, "lr_max is -1.0, but it must be finite and at least"),
    ({"decay": "corrected", "lr": 0.0}, "decay is 'corrected', which needs the greatest learning "),
    (
        {"decay": "fully-decoupled", "lr": torch.tensor(0.5), "lr_max": 0.25},
        'lr is 0.5, but lr_max is 0.25, which decay="fully-decoupled" takes for the greatest '
        "learning rate of the run. Give the greatest as lr_max.",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_makes_no_sense_is_refused(options, text):
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=re.escape(text)):
        ours.AdamW([parameter], **options)
    optimizer = ours.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=re.escape(text)):
        optimizer.add_param_group({"params": [parameter], **options})
    assert len(optimizer.param_groups) == 1
    parameter.grad = torch.ones(2)
    optimizer = ours.AdamW([parameter], weight_decay=0.5)
    optimizer.param_groups[0].update({"lr_max": None, **options})
    if options != {"decay": "corrected", "lr": 0.0}:
        with pytest.raises(ValueError, match=re.escape(text)):
            optimizer.step()
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize("kind", [ours.AdamW, ours.NAdam])
@pytest.mark.parametrize(
    "route", ["native", "plain", pytest.param("triton", marks=pytest.mark.slow)]
)
def test_a_step_at_more_than_the_greatest_rate_is_refused_before_anything_is_touched(route, kind):
    """But for what schedules round."""
    with standing_in(route) as device:
        values = torch.ones(2, 3, device=device)
        parameter = torch.nn.Parameter(values if route != "plain" else values.t())
        optimizer = kind([parameter], lr=0.5, weight_decay=0.5, decay="corrected")
        group = optimizer.param_groups[0]
        for rate in (0.25, 0.5, 0.5 * (1 + 1e-9), 0.75):
            parameter.grad = torch.ones_like(parameter)
            group["lr"] = rate
            before = parameter.detach().clone()
            if rate > 0.6:
                with pytest.raises(
                    ValueError, match=r"param_groups\[0\]: lr is 0.75, but lr_max is "
                ):
                    optimizer.step()
            else:
                optimizer.step()
            assert torch.equal(parameter, before) == (rate > 0.6)
        assert int(optimizer.state[parameter]["step"]) == 3
        group["lr_max"] = 0.75
        optimizer.step()
        assert int(optimizer.state[parameter]["step"]) == 4


def test_rmsprop_with_momentum_says_that_it_follows_another_rule():
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="decay is 'cautious', but RMSprop with momentum or cente"):
        ours.RMSprop([parameter], momentum=0.9, decay="cautious")
