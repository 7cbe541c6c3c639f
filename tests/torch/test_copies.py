"""Copies of parameters in low precision: right after whatever changes a parameter."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


def model(seed=0, frozen=True):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    net[1].requires_grad_(not frozen)
    return net


def stepped(optimizer, steps=2):
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 1.0 + step) if p.requires_grad else None
        optimizer.step()
    return optimizer


def tensors_like(net, dtype=BFLOAT16):
    return [torch.zeros(p.shape, dtype=dtype) for p in net.parameters()]


def are_right(copies, net):
    pairs = zip(copies, net.parameters(), strict=True)
    return all(torch.equal(each, p.detach().to(each.dtype)) for each, p in pairs)


def load(net):
    net.load_state_dict(model(seed=1).state_dict())


def change_in_place(net):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)


def change_data(net):
    for p in net.parameters():
        p.data = p.data * 3


CHANGES = [load, change_in_place, change_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_copies_are_right_when_they_are_read(change, before, dtype):
    net = model()
    optimizer = stepped(ours.AdamW(net.parameters(), lr=0.1, copy_to=dtype), before)
    held = optimizer.copies
    change(net)
    assert are_right(optimizer.copies, net)
    assert are_right(held, net)


@pytest.mark.parametrize("phase", [{}, {"clip_norm": 1.0}, {"ema": 0.9, "statistics": True}])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("frozen", [True, False])
def test_tensors_that_were_given_are_right_after_the_next_step(change, frozen, phase):
    """Those of frozen parameters, too, which no step writes."""
    net = model(frozen=frozen)
    given = tensors_like(net)
    optimizer = stepped(ours.AdamW(net.parameters(), lr=0.1, copy_to=given, **phase))
    assert are_right(given, net)
    for _ in range(2):
        change(net)
        stepped(optimizer, 1)
        assert are_right(given, net)


def test_a_copy_is_renewed_where_a_gradient_is_missing_for_once():
    net = model(frozen=False)
    given = tensors_like(net)
    optimizer = stepped(ours.AdamW(net.parameters(), lr=0.1, copy_to=given))
    change_in_place(net)
    for p in net.parameters():
        p.grad = None
    next(net.parameters()).grad = torch.ones(7, 5)
    optimizer.step()
    assert are_right(given, net)


@pytest.mark.parametrize("rounding", ["remainder", "remainder8", "stochastic"])
def test_reading_leaves_the_bits_that_the_step_wrote(rounding):
    """A remainder says more than a parameter in bfloat16, and its copy in float16 has that."""
    net = model(frozen=False).to(BFLOAT16)
    given = tensors_like(net, FLOAT16)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, copy_to=given, rounding=rounding)
    stepped(optimizer, 3)
    wrote = [each.clone() for each in given]
    if rounding != "stochastic":
        assert not are_right(given, net)
    assert all(map(torch.equal, optimizer.copies, wrote))


def test_copies_are_right_after_a_state_is_loaded():
    net = model(frozen=False).to(BFLOAT16)
    first = stepped(ours.AdamW(net.parameters(), lr=0.01, rounding="remainder"))
    optimizer = ours.AdamW(net.parameters(), rounding="remainder", copy_to=FLOAT16)
    optimizer.load_state_dict(first.state_dict())
    twin = copy.deepcopy(first)
    for p, each in zip(twin.param_groups[0]["params"], optimizer.copies, strict=True):
        low = twin.state[p]["remainder"].to(torch.int32)
        whole = (p.detach().view(torch.int16).to(torch.int32) << 16) + low
        assert torch.equal(each, whole.view(torch.float32).to(FLOAT16))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_along_where_an_optimizer_is_copied(way):
    net = model()
    optimizer = stepped(ours.AdamW(net.parameters(), lr=0.1, copy_to=BFLOAT16))
    pair = (net, optimizer)
    twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    change_in_place(twin)
    stepped(other)
    assert are_right(other.copies, twin)
    assert are_right(optimizer.copies, net)
    other.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert other.copies[-1].dtype == BFLOAT16


def test_copies_stay_those_of_the_weights_in_training_while_averages_are_in_place():
    net = model(frozen=False)
    optimizer = stepped(ours.AdamW(net.parameters(), lr=0.1, ema=0.5, copy_to=BFLOAT16))
    change_in_place(net)
    trained = copy.deepcopy(net)
    with optimizer.ema_weights():
        assert are_right(optimizer.copies, trained)
        assert not are_right(optimizer.copies, net)
    assert are_right(optimizer.copies, net)


def test_parameters_in_bfloat16_have_copies_of_their_own_in_bfloat16():
    p = nn.Parameter(torch.ones(4, dtype=BFLOAT16))
    (held,) = ours.SGD([p], copy_to=BFLOAT16).copies
    with torch.no_grad():
        p.zero_()
    assert torch.equal(held, torch.ones(4, dtype=BFLOAT16))


# ── groups that are added ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("own", [{}, {"copy_to": FLOAT16}])
def test_a_group_that_is_added_has_copies_of_the_dtype(own):
    net = model(frozen=False)
    optimizer = stepped(ours.AdamW(net[0].parameters(), lr=0.1, copy_to=BFLOAT16))
    optimizer.add_param_group({"params": net[1].parameters(), **own})
    dtype = own.get("copy_to", BFLOAT16)
    assert [each.dtype for each in optimizer.copies] == [BFLOAT16] * 2 + [dtype] * 2
    for _ in range(2):
        stepped(optimizer, 1)
        assert are_right(optimizer.copies, net)
    assert "copy_to" not in optimizer.param_groups[1]
    torch.optim.AdamW(net.parameters()).state_dict()


def test_a_group_that_is_added_brings_tensors_where_tensors_were_given():
    net = model(frozen=False)
    given = tensors_like(net)
    optimizer = stepped(ours.AdamW(net[0].parameters(), lr=0.1, copy_to=given[:2]))
    optimizer.add_param_group({"params": net[1].parameters(), "copy_to": given[2:]})
    stepped(optimizer)
    assert are_right(given, net)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(optimizer.copies, given, strict=True))


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({}, ValueError, "copy_to was given as tensors, so a group that is added needs some of"),
        ({"copy_to": []}, ValueError, "copy_to has 0 tensors, but there are 2 parameters"),
        (
            {"copy_to": [torch.zeros(3, 7), torch.zeros(4)]},
            ValueError,
            r"copy_to\[3\] has shape \(4,\)",
        ),
        ({"copy_to": "bfloat16"}, TypeError, "copy_to is 'bfloat16', but it must be"),
    ],
)
def test_a_group_without_what_it_needs_is_refused_before_anything_is_touched(own, error, message):
    net = model(frozen=False)
    given = tensors_like(net)
    optimizer = stepped(ours.AdamW(net[0].parameters(), lr=0.1, copy_to=given[:2]))
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": net[1].parameters(), **own})
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.copies) == 2
    stepped(optimizer)


def test_copies_in_a_group_are_refused_where_there_are_none():
    optimizer = ours.AdamW(model().parameters())
    with pytest.raises(TypeError, match="A group has copy_to, which concerns the whole step"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "copy_to": BFLOAT16})
    assert len(optimizer.param_groups) == 1


def test_groups_that_are_put_there_have_copies_or_are_refused():
    net = model(frozen=False)
    for copy_to in (BFLOAT16, tensors_like(net[0])):
        optimizer = stepped(ours.AdamW(net[0].parameters(), lr=0.1, copy_to=copy_to))
        group = {**optimizer.param_groups[0], "params": list(net[1].parameters())}
        optimizer.param_groups.append(group)
        if copy_to is BFLOAT16:
            stepped(optimizer)
            assert are_right(optimizer.copies, net)
            continue
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(RuntimeError, match="There are 4 parameters, but the 2 tensors given"):
            stepped(optimizer)
        assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_a_shallow_copy_that_takes_further_parameters_leaves_the_copies_of_the_first_alone():
    one, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    first = ours.AdamW([one], copy_to=torch.bfloat16)
    second = copy.copy(first)
    assert second.param_groups is first.param_groups  # as in torch
    second.load_state_dict(second.state_dict())  # whose groups are its own from now on
    second.add_param_group({"params": [other]})
    assert (len(first.copies), len(second.copies)) == (1, 2)
    one.grad = torch.ones(3)
    first.step()
    assert len(first.copies) == 1
    assert torch.equal(first.copies[0], one.to(torch.bfloat16))
