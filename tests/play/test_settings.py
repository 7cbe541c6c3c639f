"""What the page can be set to: methods, links, fields, words, and that they fit adamas."""

from __future__ import annotations

import inspect
import re
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

import adamas
from adamas.coefficients import one_minus_power
from adamas.palette import COLOURS
from tests.support.node import PLAY, bits32, node


@pytest.fixture(scope="module")
def page():
    """What the page is made of: methods, forms of bias correction, words."""
    return SimpleNamespace(**node("return { METHODS, CORRECTIONS, MOST_STEPS, WORDS }"))


# ── methods ────────────────────────────────────────────────────────────────────────────────────


def test_each_method_does_what_adamas_does_where_nothing_is_said(page):
    kinds = {"momentum": adamas.Momentum, "rmsprop": adamas.RMSProp, "adam": adamas.Adam}
    found = page.METHODS
    assert list(found) == list(kinds)
    for key, kind in kinds.items():
        method = found[key]
        optimizer = kind(np.zeros(1, np.float32))
        (group,) = optimizer.state_dict()["groups"]
        assert [method["beta1"], method["beta2"]] == list(group["betas"])
        assert method["correction"] == group["bias_correction"]
        assert method["eps"] == (group["eps"] if method["square"] else None)
        assert method["name"] == kind.__name__
        assert [method["mean"], method["square"]] == [b is not None for b in group["betas"]]


def test_the_colours_of_the_methods_are_those_of_the_pictures():
    found = node("""
    const of = (method, correction) => colour_of({ ...defaults("beale", method), correction });
    return {
      Momentum: of("momentum", "none"), RMSProp: of("rmsprop", "first-step"),
      Adam: of("adam", "paper"), note: of("adam", "first-step"),
    };
    """)
    assert found == COLOURS


def test_the_forms_of_bias_correction_are_those_of_adamas(page):
    annotation = inspect.signature(adamas.Adam).parameters["bias_correction"].annotation
    assert "BiasCorrection" in str(annotation)
    for form in page.CORRECTIONS:
        adamas.Adam(np.zeros(1), bias_correction=form)
    assert len(page.CORRECTIONS) == 3


def test_a_way_has_the_bits_of_adamas_with_noise_too():
    script = """
    return given.map(([method, correction]) => {
      const settings = { ...defaults("valley", method), correction, seed: 3 };
      const way = new Way(settings);
      way.to(40);
      const of = (name) => way.steps.map(({ made }) => made.map((each) => bits32(each[name] ?? 0)));
      return { settings, g: of("g"), p: of("p"), m: of("m"), v: of("v") };
    });
    """
    kinds = {"momentum": adamas.Momentum, "rmsprop": adamas.RMSProp, "adam": adamas.Adam}
    cases = list(product(kinds, ("paper", "first-step", "none")))
    for (method, correction), found in zip(cases, node(script, cases), strict=True):
        settings = found["settings"]
        p = np.array([settings["x"], settings["y"]], np.float32)
        optimizer = kinds[method](p, lr=settings["lr"], bias_correction=correction)
        for t in range(40):
            optimizer.step(np.array(found["g"][t], np.uint32).view(np.float32))
            state = optimizer.state_dict()["state"]["x"]
            assert found["p"][t] == bits32(p), (method, correction, t)
            for key, name in (("m", "mean"), ("v", "square")):
                assert found[key][t] == bits32(state.get(name, [0, 0])), (method, correction, t)


def test_every_method_comes_nearer_to_a_minimum_on_every_function():
    """At the learning rate that it is first seen with, in as many steps as it is first run."""
    script = """
    return Object.keys(FUNCTIONS).flatMap((name) => Object.keys(METHODS).map((method) => {
      const way = new Way(defaults(name, method));
      const { value } = way.track;
      return [name, method, way.to(200), value(...way.points[0]), value(...way.points.at(-1))];
    }));
    """
    for name, method, steps, first, last in node(script):
        assert steps == 200, (name, method)
        assert last < 0.5 * first or (name == "rastrigin" and last < first), (name, method)


def test_a_way_ends_before_the_step_that_gives_no_finite_number():
    script = """
    const way = new Way({ ...defaults("rosenbrock", "momentum"), lr: 1 });
    const made = way.to(1000);
    return [made, way.diverged, way.points.length, way.points.flat().every(Number.isFinite)];
    """
    made, diverged, points, finite = node(script)
    assert (diverged, finite) == (True, True)
    assert 1 < made < 100
    assert points == made + 1


def test_lines_filled_in_with_numbers_end_where_the_rule_ends():
    script = """
    const found = [];
    for (const method of Object.keys(METHODS)) {
      const way = new Way({ ...defaults("beale", method), correction: "paper" });
      way.to(5);
      for (const step of way.steps) {
        for (const i of [0, 1]) {
          const lines = filled_lines(way.settings, step, i);
          const { g, m, v, u, change, p } = step.made[i];
          const q = quantities(way.options, step, i);
          const of = (text) => lines.find((line) => line.text.startsWith(text)).result;
          found.push([
            of("g ="), g, of("m ="), m, of("v ="), v, of("change ="), change, of("p ="), p,
            lines.filter((line) => line.text.startsWith("u =") && line.filled).at(-1).result, u,
            q.v === null ? 0 : ratio(q.m_hat ?? g, q.d), q.v === null ? 0 : u,
          ]);
        }
      }
    }
    return found;
    """
    rows = node(script)
    assert len(rows) == 3 * 5 * 2
    for row in rows:
        assert row[0::2] == row[1::2]


def test_an_update_is_said_to_be_about_the_learning_rate_only_where_it_is():
    """Without the exponent or without correction, updates of Adam are up to six times as long."""
    script = """
    const why = {};
    for (const method of Object.keys(METHODS)) {
      for (const correction of CORRECTIONS) {
        const lines = formula_lines({ ...defaults("beale", method), correction }, null, 0);
        why[`${method} ${correction}`] = lines.find((line) => line.target === "Δ").why;
      }
    }
    return why;
    """
    said = [kind for kind, why in node(script).items() if why == "why_update_adam"]
    assert said == ["adam paper"]


# ── links ──────────────────────────────────────────────────────────────────────────────────────


def test_a_link_brings_back_all_that_is_set():
    script = """
    const found = [];
    for (const name of Object.keys(FUNCTIONS)) {
      for (const method of Object.keys(METHODS)) {
        const settings = { ...defaults(name, method), lr: 0.123, x: -1.5 };
        settings.correction = "first-step";
        settings.seed = FUNCTIONS[name].noise === undefined ? 0 : 77;
        const kept = [{ ...defaults(name, "adam"), steps: 12 }, { ...settings, steps: 3 }];
        const state = { settings, steps: 42, coordinate: 1, kept };
        found.push([{ ...state, wrong: [] }, from_hash(hash_of(state))]);
      }
    }
    return found;
    """
    pairs = node(script)
    assert len(pairs) == 15
    for before, after in pairs:
        assert before == after


def test_a_link_brings_back_numbers_with_large_and_small_powers():
    """A plus in a link is read as a space."""
    script = """
    const settings = { ...defaults(), lr: 1.5e300, eps: 1e-300 };
    const state = { settings, steps: 0, coordinate: 0, kept: [{ ...settings, steps: 1 }] };
    return [{ ...state, wrong: [] }, from_hash(hash_of(state))];
    """
    before, after = node(script)
    assert before == after


def test_an_empty_link_is_the_page_as_it_is_first_seen():
    found = node('return [from_hash(""), defaults()]')
    assert found[0] == {
        "settings": found[1],
        "steps": 0,
        "coordinate": 0,
        "kept": [],
        "wrong": [],
    }


IMPOSSIBLE = (
    ["f=sphere", "m=sgd", "c=half", "b1=1", "b1=-0.1", "b2=nan", "eps=-1", "lr=fast", "x=1e9"],
    ["t=-1", "t=5001", "t=2.5", "of=z", "keep=adam"],
    ["keep=sgd,paper,0.9,0.999,1e-8,1,0,0,0,5", "keep=adam,paper,1.5,0.999,1e-8,1,0,0,0,5"],
    ["keep=adam,half,0.9,0.999,1e-8,1,0,0,0,5"],
)


def test_what_a_link_cannot_say_is_named_and_left_out():
    parts = [part for row in IMPOSSIBLE for part in row]
    first, *found = node("return ['', ...given].map(from_hash)", parts)
    assert first["wrong"] == []
    for part, each in zip(parts, found, strict=True):
        assert each == {**first, "wrong": [part]}


def test_a_number_may_be_written_as_people_do():
    texts = {"0.9": 0.9, "0,9": 0.9, " .5 ": 0.5, "1e-8": 1e-8, "−2": -2, "3.": 3}
    assert node("return given.map(number_of)", list(texts)) == list(texts.values())


def test_what_is_no_number_is_none():
    texts = ["", "abc", "1e", "0x10", "1 2", "Infinity", "--1", "1,000.5"]
    assert node("return given.map(number_of).map(Number.isNaN)", texts) == [True] * len(texts)


# ── words ──────────────────────────────────────────────────────────────────────────────────────


class Named(HTMLParser):
    """What index.html names: words, ids, files."""

    def __init__(self):
        super().__init__()
        self.words, self.files, self.links = set(), [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.words |= {given[key] for key in ("data-word", "data-label") if key in given}
        self.files += [given["src"]] if tag == "script" else []
        self.links += [given["href"]] if "href" in given else []


@pytest.fixture(scope="module")
def named():
    parser = Named()
    parser.feed((PLAY / "index.html").read_text("utf-8"))
    return parser


def test_both_languages_say_the_same_things_with_the_same_gaps(page):
    words = page.WORDS
    assert list(words) == ["en", "uk"]
    assert list(words["en"]) == list(words["uk"])
    for key, text in words["en"].items():
        gaps = [sorted(re.findall(r"\{(\w+)\}", t)) for t in (text, words["uk"][key])]
        assert gaps[0] == gaps[1], key


def test_every_text_is_used_and_every_text_that_is_used_is_there(page, named):
    words = set(page.WORDS["en"])
    assert named.words <= words
    scripts = "".join(
        (PLAY / name).read_text("utf-8") for name in named.files if name != "words.js"
    )
    made = {f"why_update_{m}" for m in [*page.METHODS, "other"]}
    made |= {f"{key}_text" for key in re.findall(r'"(try_\w+)"', scripts)} | {"start_x", "start_y"}
    quoted = set(re.findall(r"""["'](\w[\w-]*)["']""", scripts))
    quoted |= set(re.findall(r"\b(\w+): ", scripts))  # names of functions and amounts
    assert words - named.words - made - quoted == set()


def test_what_experiments_promise_is_what_adamas_computes(page):
    """For gradients that stay as they are: m = 1 − β1^t and v = 1 − β2^t of them."""

    def note(t):  # the update in learning rates, where the exponent is missing
        m, v = (one_minus_power(beta, t) / (1 - beta) for beta in (0.9, 0.999))
        return m / v**0.5

    without = (1 - 0.9) / (1 - 0.999) ** 0.5
    assert round(note(10)) == 2
    assert round(without) == 3
    assert [round(1 / (1 - 0.9)), round(1 / (1 - 0.999) ** 0.5, -1)] == [10, 30]
    words = page.WORDS
    for language, (twice, tenth, thirtieth, three) in {
        "en": ("twice", "a tenth", "a thirtieth", "three times"),
        "uk": ("подвійного", "десята", "тридцята", "втричі"),
    }.items():
        text = words[language]["try_note_text"]
        assert re.search(rf"{note(page.MOST_STEPS):.2f} .*\(t = {page.MOST_STEPS}\)", text)
        assert twice in text
        text = words[language]["try_start_text"]
        assert all(each in text for each in (tenth, thirtieth, three)), language


def test_no_ukrainian_text_is_left_in_english(page):
    words = page.WORDS["uk"]
    latin = {key for key, text in words.items() if not re.search("[а-яіїєґ]", text, re.IGNORECASE)}
    assert latin == {"to_other_language", "now", "docs_link"}


def test_the_page_loads_its_own_files_alone(named):
    assert sorted(named.files) == sorted(path.name for path in PLAY.glob("*.js"))
    (outside,) = (link for link in named.links if link not in ("style.css", "data:,"))
    assert outside == "https://adamas-optimizer.github.io/adamas/"
    for path in PLAY.iterdir():
        text = path.read_text("utf-8")
        found = set(re.findall(r"https?://[^\s\"')]+|@import|\bfetch\(|\bimport\(", text))
        assert found <= {outside, f"{outside}uk/"}, path.name
