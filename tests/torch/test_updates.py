"""``clip_update`` in optimizers of tensors: all ways to step clip as the definition does."""

from __future__ import annotations

import numpy as np
import pytest

import adamas

torch = pytest.importorskip("torch")
import adamas.torch as ours  # noqa: E402
from adamas.torch.routes import chunks  # noqa: E402
from tests.support.settings import (  # noqa: E402
    ROUTES,
    bits,
    everything,
    made,
    parameters,
    params_of,
    take_route,
)

#: How large gradients are: they outgrow what is kept of them, shrink, and vanish.
SIZES = (1.0, 1.0, 30.0, 0.1, 0.0, 500.0)
#: Its interpreter takes its time.
BY_TRITON = pytest.param("device", marks=pytest.mark.slow)


@pytest.fixture(params=[BY_TRITON if name == "device" else name for name in ROUTES])
def route(request, monkeypatch):
    before = np.seterr(all="ignore")  # Triton's interpreter computes with NumPy
    take_route(request.param, monkeypatch)
    yield request.param
    np.seterr(**before)


def judge(route, **options):
    """The same optimizer, stepped by torch's operations."""
    dtype, strided, own = ROUTES[route]
    options |= {name: value for name, value in own.items() if name != "offload"}
    return ours.AdamW(parameters(dtype, strided), lr=0.05, engine="torch", **options)


def give(optimizer, step, size, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(params_of(optimizer)):
        gradient = torch.randn(p.shape, generator=generator) * (size if i % 2 == 0 else 1.0)
        p.grad = (scale * gradient).to(p.device, p.dtype)


def trained(optimizer, sizes=SIZES, first=0):
    for step, size in enumerate(sizes, first):
        give(optimizer, step, size)
        optimizer.step()
    return optimizer


# ── the definition ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_of_torch_clip_as_the_definition_does(kind, dtype):
    name = {"RMSprop": "RMSProp"}.get(kind, kind)
    start = [each.detach() for each in parameters(dtype)[:2]]
    options = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3, "clip_update": 0.8}
    ours_ = getattr(ours, kind)([p.clone() for p in start], engine="torch", **options)
    arrays = [p.clone().numpy() for p in start]
    if kind == "RMSprop":
        options |= {"bias_correction": "none", "beta": 0.99}
    theirs = getattr(adamas, name)(arrays, engine="reference", **options)
    unclipped = [p.clone().numpy() for p in start]
    free = getattr(adamas, name)(unclipped, engine="reference", **options | {"clip_update": None})
    for step, size in enumerate(SIZES):
        give(ours_, step, size)
        gradients = [p.grad.numpy() for p in params_of(ours_)]
        ours_.step()
        theirs.step(gradients)
        free.step(gradients)
        for p, array in zip(params_of(ours_), arrays, strict=True):
            assert bits(p) == bits(torch.from_numpy(array)), step
    assert bits(unclipped) != bits(arrays)


def test_a_complex_number_counts_as_two():
    """Of 8 numbers of 4 elements, as many steps of a real tensor."""
    torch.manual_seed(0)
    start = torch.randn(4, dtype=torch.complex64)
    pair = [ours.AdamW([each], lr=0.1, clip_update=0.5) for each in (start.clone(), real(start))]
    for step in range(3):
        gradient = torch.randn(4, dtype=torch.complex64) * 10.0**step
        for optimizer in pair:
            (p,) = params_of(optimizer)
            p.grad = gradient if p.is_complex() else real(gradient)
            optimizer.step()
    (one,), (other,) = map(params_of, pair)
    assert bits(real(one.detach())) == bits(other)


def real(tensor):
    return torch.view_as_real(tensor).clone()


# ── routes ─────────────────────────────────────────────────────────────────────────────────────


def test_every_route_clips_as_operations_of_torch_do(route):
    one, other = made(route=route, clip_update=0.5), judge(route, clip_update=0.5)
    assert everything(trained(one)) == everything(trained(other))
    assert everything(one) != everything(trained(made(route=route)))


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RMSprop"])
@pytest.mark.parametrize("name", ["native", "offload"])
def test_methods_are_clipped_alike_on_all_routes(name, kind, monkeypatch):
    take_route(name, monkeypatch)
    options = {"weight_decay": 0.1, "eps": 1e-2, "maximize": True, "clip_update": 0.5}
    options |= {"amsgrad": True} if kind == "Adam" else {}
    one = made(kind, route=name, **options)
    other = getattr(ours, kind)(parameters(), lr=0.05, engine="torch", **options)
    assert bits(params_of(trained(one))) == bits(params_of(trained(other)))


@pytest.mark.parametrize("state", ["bfloat16", "compact", "8bit", ("float32", "8bit")])
def test_offloaded_codes_are_clipped_by_what_they_stand_for(state, monkeypatch):
    take_route("offload", monkeypatch)
    monkeypatch.setattr(chunks, "CHUNK", 1024)
    pair = []
    for offloads in (True, False):
        torch.manual_seed(0)
        p = torch.randn(5000).bfloat16()
        options = {"state": state, "rounding": "remainder8", "clip_update": 0.5}
        engine = {"offload": True} if offloads else {"engine": "torch"}
        pair.append(ours.AdamW([p], lr=0.05, **options, **engine))
        trained(pair[-1], SIZES[:4])
    assert everything(pair[0]) == everything(pair[1])


# ── with all else ──────────────────────────────────────────────────────────────────────────────

MORE = {
    "clip_norm": 2.0,
    "on_nonfinite": "skip",
    "skip_above": 3.0,
    "skip_window": 4,
    "track_changes": True,
}


def test_update_clipping_goes_with_all_else_that_is_asked_for(route):
    own = {"ema": 0.9, "copy_to": torch.bfloat16, "statistics": True}
    own = {name: value for name, value in own.items() if name not in ROUTES[route][2]}
    own |= MORE | {"clip_update": 0.5}
    pair = made(route=route, **own), judge(route, **own)
    for step, size in enumerate((1.0, 1.2, 0.9, 90.0, 1.0, 7.0)):
        for optimizer in pair:
            give(optimizer, step, size)
            if step == 4:
                params_of(optimizer)[0].grad[0, 0] = float("nan")
            optimizer.step()
        one, other = pair
        assert everything(one) == everything(other), step
        if step not in (3, 4):  # which are left out
            assert bits(one.statistics()) == bits(other.statistics())
        found = [[(c.name, c.indices, c.values) for c in each.changes()] for each in pair]
        assert bits(found[0]) == bits(found[1]), step
    assert repr(one.skipped) == "Skipped(nonfinite=1, spikes=1)"


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_a_scaler_has_multiplied_is_divided_before_updates_are_measured(route, clip_norm):
    options = {"clip_update": 0.5, "clip_norm": clip_norm}
    one, other = made(route=route, **options), judge(route, **options)
    for step, size in enumerate(SIZES[:3]):
        give(one, step, size, scale=4.0)
        one.grad_scale, one.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        if step == 1:
            one.found_inf = torch.tensor(1.0)
            one.step()
            one.found_inf = torch.tensor(0.0)
        one.step()
        give(other, step, size)
        other.step()
    assert bits(params_of(one)) == bits(params_of(other))


def test_it_may_be_set_between_steps_and_counts_from_the_next_one_on(route):
    one, other = made(route=route), judge(route)
    for step, bound in enumerate((None, 0.5, 0.5, 1e9, None, 0.25)):
        for optimizer in (one, other):
            optimizer.clip_update = bound
            trained(optimizer, SIZES[step : step + 1], step)
        assert bits(params_of(one)) == bits(params_of(other)), step


def test_a_bound_that_no_update_reaches_changes_no_bit(route):
    one, other = made(route=route, clip_update=1e9), made(route=route)
    assert everything(trained(one)) == everything(trained(other))


def test_parameters_without_a_gradient_are_left_as_they_are(route):
    one, other = made(route=route, clip_update=0.5), judge(route, clip_update=0.5)
    for step in range(4):
        for optimizer in (one, other):
            give(optimizer, step, 10.0**step)
            params_of(optimizer)[step % 3].grad = None
            optimizer.step()
        assert bits(params_of(one)) == bits(params_of(other)), step
