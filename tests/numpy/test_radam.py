"""RAdam on NumPy arrays: torch's and optax's values are in the tests of their front-ends."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest

import adamas
from adamas.coefficients import at_step, rectification
from adamas.epsilon import v_bound
from adamas.options import Options
from tests.support import rectified
from tests.support.cases import FLOATS

ENGINES = ("native", "reference")


def gradients(steps, size=40, dtype=np.float32):
    random = np.random.default_rng(4)
    return random.standard_normal((steps, size)).astype(dtype)


def trained(given, engine="native", **options):
    p = np.linspace(-1, 1, given.shape[1]).astype(given.dtype)
    optimizer = adamas.RAdam(p, engine=engine, **options)
    for g in given:
        optimizer.step(g)
    return p, optimizer


def kept(optimizer):
    (state,) = optimizer.state_dict()["state"].values()
    return state


def test_a_first_step_is_the_learning_rate_times_the_gradient():
    p = np.zeros(3)
    adamas.RAdam(p, lr=0.5).step(np.array([4.0, -1.0, 0.0]))
    assert p.tolist() == [-2.0, 0.5, 0.0]


def test_steps_are_liu_et_als_in_mpmath():
    """Twelve steps in float64, across the switch, from zero: every step adds a few roundings.

    A step is at most lr·|m̂| ≤ 3·lr before the switch, and lr after it. 20 roundings of it, with the
    few hundred at most of r_t, are below 5,000 units of 2^-53 for each step.
    """
    lr, beta1, beta2 = 0.01, 0.9, 0.999
    given = gradients(12, 5, np.float64)
    p = np.zeros(5)
    optimizer = adamas.RAdam(p, lr=lr, eps=0.0, betas=(beta1, beta2))
    with mpmath.workprec(200):
        exact = [mpmath.mpf(0)] * 5
        m, v = [mpmath.mpf(0)] * 5, [mpmath.mpf(0)] * 5
        b1, b2 = mpmath.mpf(beta1), mpmath.mpf(beta2)
        for t, row in enumerate(given, 1):
            optimizer.step(row)
            r = rectified.rectification(beta2, t)
            assert (r > 0) == (t > 5)
            for i, x in enumerate(map(float, row)):
                m[i] = b1 * m[i] + (1 - b1) * x
                v[i] = b2 * v[i] + (1 - b2) * mpmath.mpf(x) ** 2
                step = m[i] / (1 - b1**t)
                if r:
                    step = r * step * mpmath.sqrt((1 - b2**t) / v[i])
                exact[i] -= lr * step
                assert abs(exact[i] - float(p[i])) <= 5000 * t * 3 * lr * 2.0**-53


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dialect": "torch", "weight_decay": 0.1, "ema": 0.9, "clip_norm": 3.0},
        {"dialect": "optax", "lr": 0.01, "eps": 0.0, "nesterov": True, "on_nonfinite": "skip"},
        {"betas": (0.5, 0.75), "decay": "decoupled", "weight_decay": 0.1, "statistics": True},
        {"betas": (0.5, 0.6), "eps_root": 1e-3, "eps_place": "inside", "maximize": True},
        {"weight_decay": 0.1, "decay": "fully-decoupled", "lr_max": 0.01},
    ],
)
def test_engines_give_the_same_bits_across_the_switch(options, dtype):
    ends = [trained(gradients(20, dtype=dtype), engine, **options) for engine in ENGINES]
    assert ends[0][0].tobytes() == ends[1][0].tobytes()
    for one, other in zip(*(kept(end[1]).values() for end in ends), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("state", ["bfloat16", "compact", "8bit"])
def test_small_states_give_the_same_bits_in_both_engines(state):
    ends = [trained(gradients(14, 300), engine, state=state, seed=5)[0] for engine in ENGINES]
    assert ends[0].tobytes() == ends[1].tobytes()
    assert ends[0].tobytes() != trained(gradients(14, 300))[0].tobytes()


def test_where_nothing_is_divided_an_infinite_square_gives_nan_in_every_engine():
    """Its product with a root of 0; m is finite, and torch would step by it."""
    for engine in ENGINES:
        p, optimizer = trained(np.array([[1e30, 1.0]], np.float32), engine)
        assert np.isinf(kept(optimizer)["square"]).tolist() == [True, False]
        assert np.isnan(p).tolist() == [True, False]


def test_updates_are_clipped_where_they_are_divided():
    """Before, there is nothing that they could be a multiple of."""
    given = (
        np.ones((8, 40), np.float32) * np.float32(4.0) ** np.arange(8, dtype=np.float32)[:, None]
    )
    for steps in range(1, 9):
        ends = [trained(given[:steps], clip_update=limit)[0].tobytes() for limit in (None, 0.5)]
        assert (ends[0] == ends[1]) == (steps < 6)


def test_a_run_goes_on_across_the_switch_with_the_bits_of_an_unbroken_one():
    given = gradients(12)
    for cut in (3, 5, 6, 8):
        whole, _ = trained(given)
        p, before = trained(given[:cut])
        after = adamas.RAdam(p)
        after.load_state_dict(before.state_dict())
        for g in given[cut:]:
            after.step(g)
        assert p.tobytes() == whole.tobytes()


def test_a_schedule_gives_the_rate_of_each_step():
    given = gradients(9, 1, np.float64)
    p, _ = trained(given, lr=lambda step: 0.1 / step)
    q = np.linspace(-1, 1, 1)
    optimizer = adamas.RAdam(q)
    for step, g in enumerate(given, 1):
        optimizer.lr = 0.1 / step
        optimizer.step(g)
    assert p.tobytes() == q.tobytes()
    assert at_step(Options(rectify=True), 9, 0.1 / 9).step == 0.1 / 9 * rectification(0.999, 9)


def test_dialects_differ_in_epsilon_alone():
    places = {None: "corrected", "torch": "uncorrected", "optax": "corrected"}
    for dialect, place in places.items():
        (group,) = adamas.RAdam(np.ones(1), lr=1e-3, dialect=dialect).groups
        wanted = Options(rectify=True, eps_place=place)
        assert group.options == wanted


def test_no_element_is_below_epsilon_where_nothing_is_divided():
    options = Options(rectify=True, eps=0.5)
    bounds = [v_bound(at_step(options, t, 0.0)) for t in (1, 5, 6)]
    assert bounds[:2] == [0.0, 0.0]
    assert bounds[2] > 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda p: adamas.RAdam(p, dialect="keras"),
            'dialect is "keras", which has no RAdam. With RAdam it must be one of "torch", '
            '"optax", or None.',
        ),
        (
            lambda p: adamas.RAdam(p, dialect="paper"),
            'dialect is "paper", but Liu et al. (2020) rectify where ρ_t is above 4, and adamas '
            "above 5, as their own code and torch do. With RAdam it must be one of "
            '"torch", "optax", or None.',
        ),
        (
            lambda p: adamas.RAdam(p, dialect="optax"),
            'lr is missing: dialect "optax" has no default for it. Give one.',
        ),
        (
            lambda p: adamas.RAdam(p, betas=(0.9, None)),
            "betas is (0.9, None), but Adam keeps both moments. Give two decay rates, or use "
            "Momentum or RMSProp.",
        ),
        (
            lambda p: Options(betas=(None, 0.9), rectify=True),
            "rectify is True, but this method does not keep both moments. Use RAdam, which does, "
            "or leave rectify out.",
        ),
        (
            lambda p: Options(rectify=True, bias_correction="none"),
            "rectify is True and bias_correction is 'none', but r_t is the variance of moments "
            'that are corrected by 1 - β^t. Use "paper", or leave rectify out.',
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(ValueError, match=r"^\w") as refused:
        make(np.ones(2))
    assert str(refused.value) == text


def test_one_and_the_same_state_is_adams(tmp_path):
    """A checkpoint names the class, so that no run goes on with another method unasked."""
    p, optimizer = trained(gradients(7))
    adamas.save(tmp_path / "run.safetensors", optimizer)
    q = np.zeros_like(p)
    again = adamas.RAdam(q)
    adamas.load(tmp_path / "run.safetensors", again)
    assert q.tobytes() == p.tobytes()
    with pytest.raises(ValueError, match="RAdam"):
        adamas.load(tmp_path / "run.safetensors", adamas.Adam(q))
    assert kept(again).keys() == kept(adamas.Adam(q)).keys()


def test_options_turn_rectification_on_in_a_run():
    pairs = [adamas.Adam(np.ones(3)), adamas.RAdam(np.ones(3))]
    for optimizer, on in itertools.product(pairs, (True, False)):
        optimizer.set_options(rectify=on)
        assert optimizer.groups[0].options.rectify is on
