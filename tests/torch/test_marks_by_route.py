"""However parameters are stepped, their steps mark themselves what a bitwise diff finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch.tracking import Tracking
from tests.support.offloading import BFLOAT16, FLOAT16, ROUNDINGS
from tests.support.queues import ORDERS
from tests.support.torch_routes import standing_in

SHAPES = [(5, 7), (33,), (), (0,), (32,), (513,), (41, 25), (2080,)]
#: What stands in for each, and what it is called.
ROUTES = {"plain": "torch", "triton": "triton"}
ROUTES |= {f"offload {order}": "offload" for order in ORDERS}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def raw(tensor):
    """The bytes of a tensor, a row for each element in the order of the flattened tensor."""
    flat = np.ascontiguousarray(tensor.detach().cpu().reshape(-1).view(BITS[tensor.itemsize]))
    return torch.from_numpy(flat.view(np.uint8).reshape(tensor.numel(), tensor.itemsize))


def drawn(random, shape, dtype):
    """Numbers in the widest dtype of a kind."""
    real, imaginary = random.standard_normal((2, *shape))
    return torch.tensor(real + 1j * imaginary if dtype.is_complex else real)


def given_gradients(params, step):
    """Some elements have none, and do not move; one gradient in five is not there."""
    for place, p in enumerate(params):
        random = np.random.default_rng([step, place])
        wide = drawn(random, p.shape, p.dtype) * torch.tensor(random.random(p.shape) < 0.8)
        p.grad = None if random.random() < 0.2 else torch.empty_like(p).copy_(wide)


def followed(route, made, steps=4):
    """What each two steps of an optimizer have changed, judged by snapshots.

    ``made`` returns the optimizer, given the device of its parameters and how to choose the route.
    """
    with standing_in(route) as device:
        optimizer = made(device, **chosen_by(route))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        compared = optimizer.copies or params
        told = []
        for step in range(0, steps, 2):
            expected = [torch.zeros(each.numel(), dtype=torch.bool) for each in compared]
            for number in (step, step + 1):
                before = [raw(each).clone() for each in compared]
                given_gradients(params, number)
                optimizer.step()
                for differs, old, new in zip(expected, before, compared, strict=True):
                    differs |= (old != raw(new)).any(1)  # noqa: PLW2901
            assert set(optimizer.routes().values()) == {ROUTES[route]}
            judge(optimizer, compared, expected)
            told.append(expected)
    return told


def chosen_by(route):
    """The arguments of an optimizer whose parameters take a route."""
    if route == "plain":
        return {"engine": "torch"}
    return {"offload": True} if route.startswith("offload") else {}


def judge(optimizer, compared, expected):
    """Assert that the optimizer tells of the elements that are expected, and of no others."""
    found = {change.name: change for change in optimizer.changes()}
    for i, (each, differs) in enumerate(zip(compared, expected, strict=True)):
        where = differs.nonzero().view(-1)
        if len(where):
            change = found.pop(f"0.{i}")
            assert torch.equal(change.indices.cpu().to(torch.int64), where), (i, each.shape)
            assert torch.equal(raw(change.values), raw(each)[where])
    assert not found


def parameters(dtype, device, shapes=SHAPES):
    made = []
    for place, shape in enumerate(shapes):
        random = np.random.default_rng([7, place])
        made.append(nn.Parameter(drawn(random, shape, dtype).to(dtype).to(device)))
    return made


def method_of(name, dtype, **options):
    """What makes an optimizer that tracks changes; at its learning rate not all elements move."""
    rate = torch.finfo(options.get("copy_to") or dtype).eps / 4

    def made(device, **chosen):
        options_of_all = {"lr": rate, "track_changes": True, **options, **chosen}
        return getattr(ours, name)(parameters(dtype, device), **options_of_all)

    return made


def share(told):
    """How much of all elements has changed."""
    return torch.cat([each for step in told for each in step]).float().mean()


@pytest.mark.parametrize("route", ROUTES)
def test_no_step_compares_parameters_with_what_they_were(route, monkeypatch):
    monkeypatch.setattr(Tracking, "comparing", None)
    with standing_in(route) as device:
        optimizer = method_of("AdamW", torch.float32)(device, **chosen_by(route))
        given_gradients(optimizer.param_groups[0]["params"], 1)
        optimizer.step()
        assert len(list(optimizer.changes())) > 3


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("copy_to", [None, BFLOAT16, FLOAT16])
@pytest.mark.parametrize(("dtype", "rounding"), [*ROUNDINGS, (torch.float64, None)], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_steps_mark_themselves_what_a_diff_finds(route, dtype, rounding, copy_to):
    options = {} if rounding is None else {"rounding": rounding}
    told = followed(route, method_of("AdamW", dtype, copy_to=copy_to, **options))
    assert 0.02 < share(told) < 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("bfloat16", {"ema": 0.9}),
        ("compact", {"clip_norm": 1.0}),
        ("8bit", {"statistics": True}),
        (("float32", "8bit"), {"ema": 0.9, "clip_norm": 1.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("route", ROUTES)
def test_neither_forms_of_state_nor_the_phase_make_a_difference(route, state, phase):
    options = {"state": state, "rounding": "stochastic", **phase}
    assert 0.2 < share(followed(route, method_of("Adam", BFLOAT16, **options))) < 0.99


OWN_STEPS = {
    "momentum": ("RMSprop", {"momentum": 0.9}),
    "centered": ("RMSprop", {"centered": True, "momentum": 0.5}),
    "SGD": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "NAdam": ("NAdam", {}),
    "AMSGrad": ("Adam", {"amsgrad": True}),
}


@pytest.mark.parametrize("copy_to", [None, BFLOAT16])
@pytest.mark.parametrize("case", OWN_STEPS)
def test_other_methods_mark_what_they_change(case, copy_to):
    name, options = OWN_STEPS[case]
    told = followed("plain", method_of(name, torch.float32, copy_to=copy_to, **options))
    assert 0.1 < share(told) < 0.99


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_a_complex_number_is_one_element(dtype):
    told = followed("plain", method_of("Adam", dtype))
    assert 0.2 < share(told) < 0.99
    assert told[0][0].shape == (35,)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("copy_to", [None, BFLOAT16])
@pytest.mark.parametrize("route", ROUTES)
def test_elements_are_numbered_by_their_indices_whatever_the_strides(route, copy_to):
    def made(device, **chosen):
        random = np.random.default_rng(3)
        whole = torch.tensor(random.standard_normal((6, 4, 5, 3)), device=device)
        laid = [
            whole.to(memory_format=torch.channels_last),
            whole[:, ::2],
            whole.permute(3, 2, 0, 1),
        ]
        return ours.Adam(
            [nn.Parameter(each.clone()) for each in laid],
            lr=1e-3,
            track_changes=True,
            copy_to=copy_to,
            **chosen,
        )

    assert 0.1 < share(followed(route, made)) <= 1.0


def test_rows_that_a_sparse_gradient_has_are_marked_alone():
    random = torch.Generator().manual_seed(3)
    table = nn.Parameter(torch.randn(50, 3, 7, generator=random))
    optimizer = ours.SGD([table], lr=0.1, track_changes=True)
    expected = torch.zeros(50, 21, dtype=torch.bool)
    for rows in ([4, 9, 4, 31], [0, 49, 9]):
        values = torch.randn(len(rows), 3, 7, generator=random)
        values[:, 1] = 0.0
        table.grad = torch.sparse_coo_tensor([rows], values, (50, 3, 7), check_invariants=True)
        before = table.detach().clone()
        optimizer.step()
        expected |= (before != table.detach()).view(50, 21)
    (change,) = optimizer.changes()
    assert change.indices.tolist() == expected.view(-1).nonzero().view(-1).tolist()
    assert expected[[0, 4, 9, 31, 49]].float().mean() == 2 / 3
    assert expected.sum() == 5 * 14


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("route", ROUTES)
def test_a_step_that_is_left_out_marks_nothing(route):
    with standing_in(route) as device:
        optimizer = method_of("AdamW", torch.float32, on_nonfinite="skip")(
            device, **chosen_by(route)
        )
        params = optimizer.param_groups[0]["params"]
        given_gradients(params, 1)
        params[1].grad = torch.full_like(params[1], float("inf"))
        optimizer.step()
        assert list(optimizer.changes()) == []
        given_gradients(params, 1)
        optimizer.step()
        assert len(list(optimizer.changes())) > 3
