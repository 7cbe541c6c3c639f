"""The numbers that the page shows are those of adamas, to the bit."""

from __future__ import annotations

import re

import numpy as np
import pytest

import adamas
from adamas.codecs import key_of, random_bits
from adamas.coefficients import one_minus_power
from adamas.tracks import FUNCTIONS
from tests.browser.conftest import FILE, settle
from tests.support.node import bits32
from tests.support.products import Multiplied

pytestmark = pytest.mark.browser

F = np.float32


def shown(page, key):
    """The two numbers of a row, as float32; None where the method keeps none."""
    texts = [page.text_content(f"#{letter}-{key}").replace("−", "-") for letter in "xy"]
    return None if texts == ["–", "–"] else np.array([F(text) for text in texts])


def read(text):
    """A number as formulas have it, such as −1.2·10⁻⁸."""
    digits = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")
    return float(text.translate(digits).replace("·10", "e"))


def gradient_at(name, point, step, seed=0):
    """The gradient at a float32 point, in float64, rounded; with the noise of the valley."""
    if name == "valley":
        noise = (random_bits(key_of(seed, step, 0), 0, 2) >> np.uint32(16)) / 2**15 - 1
        return (np.array([0.5, 8]) * point.astype(np.float64) + 4 * noise).astype(F)
    here = np.array([Multiplied(x) for x in point], dtype=object)
    return np.array(FUNCTIONS[name].gradient(here), dtype=np.float64).astype(F)


@pytest.mark.parametrize(
    ("link", "kind", "options"),
    [
        ("f=himmelblau&m=adam&lr=0.1", adamas.Adam, {}),
        ("f=rosenbrock&m=adam&c=first-step&b1=0.8&b2=0.95&eps=0.001&lr=0.05", adamas.Adam,
         {"bias_correction": "first-step", "betas": (0.8, 0.95), "eps": 1e-3}),
        ("f=beale&m=adam&c=none&lr=0.03", adamas.Adam, {"bias_correction": "none"}),
        ("f=beale&m=rmsprop&lr=0.02", adamas.RMSProp, {}),
        ("f=himmelblau&m=rmsprop&c=paper&b2=0.99&lr=0.02", adamas.RMSProp,
         {"bias_correction": "paper", "beta": 0.99}),
        ("f=himmelblau&m=momentum&b1=0.5&lr=0.01", adamas.Momentum, {"beta": 0.5}),
        ("f=valley&m=adam&eps=0&lr=0.2&seed=12", adamas.Adam, {"eps": 0}),
    ],
)  # fmt: skip
def test_the_numbers_shown_at_each_step_are_those_of_adamas_to_the_bit(opened, link, kind, options):
    name = re.match(r"f=(\w+)", link)[1]
    lr = float(re.search(r"lr=([\d.]+)", link)[1])
    with opened(f"#{link}") as page:
        p = shown(page, "p")
        optimizer = kind(p, lr=lr, **options)
        for t in range(1, 13):
            gradient = gradient_at(name, p, t, seed=12)
            optimizer.step(gradient)
            page.click("#step")
            settle(page)
            assert shown(page, "g").tolist() == gradient.tolist(), t
            assert bits32(shown(page, "p")) == bits32(p), t
            state = optimizer.state_dict()["state"]["x"]
            for key, role in (("m", "mean"), ("v", "square")):
                if role in state:
                    assert bits32(shown(page, key)) == bits32(state[role]), (t, key)
                else:
                    assert shown(page, key) is None
        (group,) = optimizer.state_dict()["groups"]
        form, by = group["bias_correction"], {"paper": t, "first-step": 1}
        for key, role, beta in zip("mv", ("mean", "square"), group["betas"], strict=True):
            if beta is not None:
                left = 1.0 if form == "none" else one_minus_power(beta, by[form])
                moment = state[role]
                hat = moment * F(1 / left) if key == "m" else (moment.astype(float) / left)
                assert bits32(shown(page, f"{key}_hat")) == bits32(hat), key


def test_each_line_of_code_gives_its_number_from_those_filled_in(opened):
    """Worked out here in NumPy's float32, with the rule's own functions."""

    def flush(x):
        return x if abs(x) >= np.finfo(F).smallest_normal else F(0)

    def shrinkage(decay, opposed, u, p):
        return (opposed if u < 0 < p or p < 0 < u else decay) * p

    def ratio(u, d):
        return u / d if d else F(0)

    own = {"flush": flush, "ratio": ratio, "shrinkage": shrinkage}
    names = {"F": F, "sqrt": np.sqrt, **own}
    with opened("#f=beale&t=7") as page:
        page.click("label[for=shown-as-code]")
        for letter in "xy":
            page.click(f"label[for=coordinate-{letter}]")
            settle(page)
            lines = page.locator("#lines li").all()
            assert len(lines) == 10
            results = {}
            for line in lines:
                text = line.locator(".numbers").text_content()
                target, formula, result = text.split(" = ")
                formula = re.sub(r"(?<![\w.])-?\d[\d.]*(?:e[+-]?\d+)?", r"F('\g<0>')", formula)
                assert bits32(eval(formula, names)) == bits32(F(result)), text
                results[target] = F(result)
            index = "xy".index(letter)
            for target, key in {"m": "m", "v": "v", "change": "change", "p": "p"}.items():
                assert bits32(results[target]) == bits32(shown(page, key)[index]), target


def test_before_the_first_step_there_are_formulas_and_lines_without_numbers(opened):
    with opened() as page:
        assert page.locator("#lines .rule").count() == 7
        page.click("label[for=shown-as-code]")
        settle(page)
        assert page.locator("#lines .rule").all_text_contents()[-1] == "p = p - change"
        assert page.locator("#lines .numbers").count() == 0
        assert page.text_content("#lines .first") == "Make a step: then the numbers stand here."
        assert page.locator("#numbers .number").all_text_contents() == ["−0.5", "−4.2", *"–" * 14]


def test_the_formulas_have_the_numbers_of_the_table(opened):
    with opened("#f=rosenbrock&t=3&of=y") as page:
        lines = [text.split(" = ") for text in page.locator("#lines .numbers").all_text_contents()]
        keys = ("g", "m", "v", "m_hat", "v_hat", "change", "p")
        assert len(lines) == len(keys)
        for (*_, result), key in zip(lines, keys, strict=True):
            value = float(shown(page, key)[1])
            assert read(result) == float(f"{value:.5g}"), key
        rules = page.locator("#lines .rule").all_text_contents()
        # As it is read aloud: indices and exponents beside their letters.
        assert rules[1:3] == ["m ← β1m + (1 − β1) g", "v ← β2v + (1 − β2) g2"]
        assert rules[3:5] == ["m̂ = m / (1 − βt1)", "v̂ = v / (1 − βt2)"]
        assert rules[5:] == ["Δ = ηm̂ / (√v̂ + ε)", "y ← y − Δ"]


def test_the_noise_of_a_gradient_stands_in_its_formula(opened):
    for name, formula in (("valley", "g = ∂f / (∂x) + ξ"), ("beale", "g = ∂f / (∂x)")):
        with opened(f"#f={name}&t=1") as page:
            assert page.text_content("#lines .rule") == formula


@pytest.mark.parametrize("method", ["momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("correction", ["paper", "first-step", "none"])
def test_each_method_shows_the_lines_that_it_has(opened, method, correction):
    lines = {
        "momentum": ["g", "m", "m̂", "Δ", "x"],
        "rmsprop": ["g", "v", "v̂", "Δ", "x"],
        "adam": ["g", "m", "v", "m̂", "v̂", "Δ", "x"],
    }
    by = {"paper": "m̂ = m / (1 − βt1)", "first-step": "m̂ = m / (1 − β1)", "none": "m̂ = m"}
    with opened(f"#m={method}&c={correction}&t=2") as page:
        rules = page.locator("#lines .rule").all_text_contents()
        assert [rule.split(" ")[0] for rule in rules] == lines[method]
        assert (by[correction] in rules) == (method != "rmsprop")


def test_a_link_shows_the_same_numbers_as_stepping_there(opened):
    with opened("#f=beale&m=rmsprop&lr=0.05") as page:
        for _ in range(9):
            page.click("#step")
        settle(page)
        page.wait_for_function("location.hash.includes('t=9')")
        link = page.url.removeprefix(FILE)
        stepped = [shown(page, key).tolist() for key in ("p", "g", "v", "d", "change")]
    with opened(link) as page:
        assert [shown(page, key).tolist() for key in ("p", "g", "v", "d", "change")] == stepped
