"""``clip_update`` in optimizers of arrays: set, saved, copied, refused, and used by minimize."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import adamas

pytest.importorskip("scipy", reason="minimize needs SciPy")


def made(method=adamas.AdamW, **options):
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(5, 7)).astype(np.float32), "b": random.normal(size=40)[::2]}
    return method(weights, lr=0.05, **options)


def trained(optimizer, first, last):
    """Step along gradients that grow: so updates are clipped."""
    for step in range(first, last):
        random = np.random.default_rng(100 + step)
        optimizer.step(
            {
                name: (4.0**step * random.normal(size=p.shape)).astype(p.dtype)
                for name, p in optimizer.named_parameters().items()
            }
        )
    return optimizer


def weights(optimizer):
    return {name: p.tobytes() for name, p in optimizer.named_parameters().items()}


@pytest.mark.parametrize("method", [adamas.Adam, adamas.AdamW, adamas.RMSProp])
def test_the_native_engine_makes_the_steps_of_the_reference(method):
    one, other = (
        trained(made(method, clip_update=0.5, weight_decay=0.1, engine=engine), 0, 5)
        for engine in ("native", "reference")
    )
    assert weights(one) == weights(other)
    assert weights(one) != weights(trained(made(method, weight_decay=0.1), 0, 5))


def test_what_is_set_counts_from_the_next_step_on():
    bounds = [None, 0.5, 1e9, 0.25, None]
    one, other = made(clip_update=3.0), made(engine="reference")
    for step, bound in enumerate(bounds):
        one.clip_update = other.clip_update = bound
        trained(one, step, step + 1)
        trained(other, step, step + 1)
        assert weights(one) == weights(other), step
    assert one.clip_update is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_have_it_and_go_on_with_the_same_bits(copied):
    one = trained(made(clip_update=0.5), 0, 2)
    twin = copied(one)
    assert twin.clip_update == twin.phase.clip_update == 0.5
    assert weights(trained(twin, 2, 4)) == weights(trained(one, 2, 4))


def test_a_state_has_it_where_it_was_set_in_the_run_alone():
    one = trained(made(clip_update=0.5), 0, 2)
    assert "phase" not in one.state_dict()
    one.clip_update = 0.25
    assert one.state_dict()["phase"] == {"clip_update": 0.25}
    resumed = made()
    resumed.load_state_dict(one.state_dict(), parameters=one.named_parameters())
    assert resumed.clip_update == 0.25
    assert weights(trained(resumed, 2, 4)) == weights(trained(one, 2, 4))


def test_it_clips_beside_the_norm_which_acts_first():
    """Gradients a thousand times as large, clipped to the same norm, make the same step."""
    pair = [made(clip_norm=1.0, clip_update=0.5) for _ in range(2)]
    for optimizer, size in zip(pair, (1.0, 1024.0), strict=True):
        random = np.random.default_rng(1)
        optimizer.step(
            {
                name: (size * random.normal(size=p.shape).astype(np.float32)).astype(p.dtype)
                for name, p in optimizer.named_parameters().items()
            }
        )
        assert optimizer.clip_factor < 1
    assert weights(pair[0]) == weights(pair[1])


NO_SQUARE = (
    "clip_update is 1.0, but this method keeps no second moment (moving average of squared "
    "gradients) that updates could be measured by. Use Adam, AdamW, RAdam or RMSProp, or leave "
    "clip_update out."
)


def test_methods_without_a_second_moment_refuse_it_and_stay_as_they_were():
    optimizer = trained(made(adamas.Momentum), 0, 1)
    with pytest.raises(ValueError, match=f"^{re.escape(NO_SQUARE)}$"):
        optimizer.clip_update = 1.0
    assert optimizer.clip_update is None
    assert "phase" not in optimizer.state_dict()
    with pytest.raises(TypeError, match="unknown option 'clip_update'"):
        made(adamas.Momentum, clip_update=1.0)


def test_minimize_makes_the_same_steps():
    def slope(x):
        return np.where(x > 1.9, 1e-3, 1.0) * x

    def visited(**options):
        seen = []
        adamas.minimize(
            lambda x: float(x @ x), np.full(3, 2.0), jac=slope, maxiter=60,
            lr=lambda step: 0.01, callback=lambda x: seen.append(x.copy()), **options,
        )  # fmt: skip
        return seen

    x = np.full(3, 2.0)
    optimizer = adamas.Adam(x, lr=0.01, clip_update=1.0)
    for found in visited(clip_update=1.0):
        optimizer.step(slope(x))
        assert found.tobytes() == x.tobytes()
    assert visited()[-1].tobytes() != x.tobytes()
