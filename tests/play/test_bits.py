"""The page computes what adamas computes, to the bit: the rule, its numbers, functions, noise.

``tests/checking/test_vectors.py`` runs it on the files of ``adamas check --vectors``.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from adamas.codecs import key_of, random_bits
from adamas.coefficients import at_step, one_minus_power, rectification
from adamas.options import Options
from adamas.rule import rule
from adamas.tracks import FUNCTIONS
from tests.support.node import bits32, bits64, node
from tests.support.products import Multiplied

# ── the rule where numbers are of any kind ─────────────────────────────────────────────────────


@pytest.mark.parametrize("decay", ["l2", "cautious"])
def test_the_rule_has_the_bits_of_python_on_numbers_of_every_kind(decay):
    """Subnormal, huge, infinite, signed zeros: whatever 32 bits stand for, but NaN."""
    random = np.random.default_rng(5)
    values = random.integers(0, 2**32, (4000, 5), dtype=np.uint32).view(np.float32)
    values[np.isnan(values)] = 0.0
    values[:, 3:] = np.abs(values[:, 3:])  # v and w
    values[:40] *= np.float32(0.0)
    options = Options(weight_decay=0.25, decay=decay)
    numbers = at_step(options, 3, 0.125).rounded(np.dtype(np.float32))
    with np.errstate(all="ignore"):
        wanted = rule(numbers, *values.T)
    script = (
        f'const decay = "{decay}";'
        """
    const c = rounded(at_step({ ...DEFAULT_OPTIONS, weight_decay: 0.25, decay }, 3, 0.125));
    const view = new DataView(new ArrayBuffer(4));
    const of32 = (bits) => (view.setUint32(0, bits), view.getFloat32(0));
    return given.map((row) => {
      const made = rule(c, ...row.map(of32));
      return ["p", "m", "v", "w", "u", "change"].map((name) => bits32(made[name]));
    });
    """
    )
    made = np.array(node(script, values.view(np.uint32).tolist()), dtype=np.uint32)
    for name, page in zip(("p", "m", "v", "w", "u", "change"), made.T, strict=True):
        ours, theirs = np.asarray(getattr(wanted, name)), page.view(np.float32)
        assert np.isnan(ours).tolist() == np.isnan(theirs).tolist(), name
        kept = ~np.isnan(ours)
        assert kept.sum() > 1000, name
        assert ours.view(np.uint32)[kept].tolist() == page[kept].tolist(), name


def test_a_number_is_shown_in_the_fewest_digits_that_stand_for_its_bits():
    random = np.random.default_rng(6)
    bits = random.integers(0, 2**32, 3000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    script = "const to32 = new DataView(new ArrayBuffer(4));"
    script += "return given.map((b) => short((to32.setUint32(0, b), to32.getFloat32(0))))"
    texts = node(script, values.view(np.uint32).tolist())
    assert bits32([np.float32(text) for text in texts]) == values.view(np.uint32).tolist()

    def digits(text):
        return text.lower().partition("e")[0].strip("-").replace(".", "").strip("0")

    fewest = [np.format_float_scientific(value, unique=True) for value in values]
    assert [len(digits(text)) for text in texts] == [len(digits(text)) for text in fewest]
    assert node("return [0.1, -0, 1, 1e-8, 16777216].map((x) => short(f(x)))") == (
        ["0.1", "-0", "1", "1e-8", "16777216"]
    )


# ── the numbers of the rule ────────────────────────────────────────────────────────────────────

_CHOICES = [
    {},
    *({"bias_correction": each} for each in ("first-step", "none")),
    *({"eps_place": each, "eps_root": 1e-3} for each in ("corrected", "uncorrected", "inside")),
    {"nesterov": True, "maximize": True},
    {"rectify": True, "eps_place": "uncorrected"},
    {"nesterov": True, "bias_correction": "first-step"},
    {"weight_decay": 0.3},
    {"weight_decay": 0.3, "decay": "decoupled"},
    {"weight_decay": 0.3, "decay": "fully-decoupled", "lr_max": 0.7},
    {"weight_decay": 0.3, "decay": "cautious"},
    {"weight_decay": 0.3, "decay": "corrected", "lr_max": 0.9},
]


def test_the_numbers_of_a_step_have_the_bits_of_python():
    cases = [
        (betas, choice, step)
        for betas in ((0.9, 0.999), (0.9, None), (None, 0.9), (0.0, 0.99999))
        for choice in _CHOICES
        for step in (1, 2, 3, 10, 999, 65537)
        if betas[0] is not None or "nesterov" not in choice
        if betas[1] is not None or "eps_place" not in choice
        if None not in betas or "rectify" not in choice
    ]
    script = """
    return given.map(([[beta1, beta2], choice, step]) => {
      const c = at_step({ ...DEFAULT_OPTIONS, beta1, beta2, ...choice }, step, 0.7, 0.5);
      return [Object.keys(c), Object.values(c).map(bits64)];
    });
    """
    for (betas, choice, step), (names, bits) in zip(cases, node(script, cases), strict=True):
        wanted = at_step(Options(betas=betas, **choice), step, 0.7, 0.5)
        assert names == list(wanted._fields)
        assert bits == bits64(wanted), (betas, choice, step)


def test_one_minus_a_power_has_the_bits_of_python():
    cases = [(beta, t) for beta in (0.0, 0.3, 0.9, 0.999999) for t in (1, 2, 7, 100, 4999)]
    made = node("return given.map(([beta, t]) => bits64(one_minus_power(beta, t)))", cases)
    assert made == bits64([one_minus_power(beta, t) for beta, t in cases])


def test_the_rectification_has_the_bits_of_python():
    cases = [(beta, t) for beta in (0.5, 0.7, 0.9, 0.999999) for t in (1, 5, 6, 7, 100, 4999)]
    made = node("return given.map(([beta, t]) => bits64(rectification(beta, t)))", cases)
    assert made == bits64([rectification(beta, t) for beta, t in cases])


# ── functions and noise ────────────────────────────────────────────────────────────────────────


def points_of(name):
    track = FUNCTIONS[name]
    random = np.random.default_rng(8)
    (left, right), (low, high) = track.view
    inside = random.uniform((left, low), (right, high), (300, 2))
    return [*inside.tolist(), list(track.start), *map(list, track.minima)]


@pytest.fixture(scope="module")
def page():
    """The functions of the page, and bits of values and gradients by function and point."""
    script = """
    const bits = {};
    for (const [name, points] of Object.entries(given)) {
      const { value, gradient } = FUNCTIONS[name];
      bits[name] = points.map(([x, y]) => [value(x, y), ...gradient(x, y)].map(bits64));
    }
    return { functions: FUNCTIONS, bits };
    """
    return SimpleNamespace(**node(script, {name: points_of(name) for name in FUNCTIONS}))


@pytest.mark.parametrize("name", ["himmelblau", "rosenbrock", "beale"])
def test_a_polynomial_has_the_bits_of_the_race(page, name):
    track = FUNCTIONS[name]
    for point, bits in zip(points_of(name), page.bits[name], strict=True):
        here = np.array([Multiplied(x) for x in point], dtype=object)
        assert bits == bits64([track.value(here), *track.gradient(here)])


def test_rastrigin_is_that_of_the_race_but_for_the_rounding_of_sines(page):
    """Engines and libraries give sines within 1 ulp, so two of them differ by 2, of at most 2^-53.

    In the value that is 2 · 10 · 2^-52, in the gradient 20π · 2^-52. Each has fewer than ten other
    operations, on numbers below 128, that round by at most 2^-47 here and there.
    """
    points, track = points_of("rastrigin"), FUNCTIONS["rastrigin"]
    made = np.array(page.bits["rastrigin"], dtype=np.uint64).view(np.float64)
    wanted = [[track.value(p), *track.gradient(p)] for p in map(np.array, points)]
    bound = np.array([20, 20 * np.pi, 20 * np.pi]) * 2.0**-52 + 2 * 10 * 2.0**-47
    assert (np.abs(made - np.array(wanted)) <= bound).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_start_picture_and_minima_are_those_of_the_race(page, name):
    track = page.functions[name]
    ours = FUNCTIONS[name]
    assert track["start"] == list(ours.start)
    assert track["view"] == [list(bounds) for bounds in ours.view]
    assert track["minima"] == [list(point) for point in ours.minima]


def test_the_page_has_every_function_of_the_race_and_a_valley(page):
    assert list(page.functions) == [*FUNCTIONS, "valley"]


def test_the_gradient_of_the_valley_is_that_of_its_value():
    """It is a polynomial of the second degree: central differences of powers of two are exact."""
    script = """
    const { value: v, gradient } = FUNCTIONS.valley, h = 0.25;
    const slopes = given.map(([x, y]) => [
      [v(x + h, y) - v(x - h, y), v(x, y + h) - v(x, y - h)].map((d) => d / (2 * h)),
      gradient(x, y),
    ]);
    return slopes;
    """
    points = [[x / 4, y / 4] for x in range(-20, 21, 3) for y in range(-20, 21, 3)]
    slopes = node(script, points)
    assert len(slopes) == len(points)
    assert [differences for differences, _ in slopes] == [slope for _, slope in slopes]


def test_the_noise_is_made_of_the_random_bits_of_adamas():
    cases = [(seed, step) for seed in (0, 1, 999_999) for step in (1, 2, 4999)]
    made = node("return given.map(([seed, step]) => uniform(seed, step))", cases)
    wanted = [
        ((random_bits(key_of(seed, step, 0), 0, 2) >> np.uint32(16)) / 2**15 - 1).tolist()
        for seed, step in cases
    ]
    assert made == wanted
    assert len({struct.pack("2d", *pair) for pair in made}) == len(cases)
