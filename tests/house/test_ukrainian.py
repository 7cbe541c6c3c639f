"""The Ukrainian pages say what adamas computes, and what the English pages say."""

from __future__ import annotations

import ast
import json
import re

import numpy as np
import pytest

import adamas
from adamas import race, tracks
from adamas.coefficients import at_step, one_minus_power
from tests.house.test_docs import CODE
from tests.support.cases import ROOT

UK = ROOT / "docs" / "uk"
RULE = (UK / "the-rule.md").read_text("utf-8")


def rows(page, columns):
    """The rows of a page's tables that have so many columns, all numbers, as texts."""
    cell = r" ([\d\xa0]+(?:,\d+)?) \|"
    return re.findall(r"^\|" + cell * columns + "$", page, re.MULTILINE)


def written(number, digits):
    """A number as Ukrainian writes it: with a decimal comma."""
    return f"{number:.{digits}f}".replace(".", ",")


def effective(correction, t):
    """The update at lr = 1 after t gradients of 1, with ε = 0."""
    c = at_step(adamas.Options(bias_correction=correction), t, 1.0)
    m, v = one_minus_power(0.9, t), one_minus_power(0.999, t)
    return c.from_m * m / (v**0.5 * c.root)


def test_the_first_mean_is_short_by_the_sum_of_its_weights():
    found = rows(RULE, 4)
    assert len(found) == 5
    for t, *others in found:
        mean = adamas.ema(np.ones(int(t)), 0.9)[-1] * one_minus_power(0.9, int(t))
        weights = one_minus_power(0.9, int(t))
        assert others == [written(mean, 4), written(weights, 4), "1"]


def test_the_first_three_steps_are_those_that_adamas_makes():
    found = rows(RULE, 7)
    assert len(found) == 6
    for correction, steps in (("paper", found[:3]), ("first-step", found[3:])):
        w = np.array([1.0])
        optimizer = adamas.Adam(w, lr=0.1, bias_correction=correction)
        for t, step in enumerate(steps, start=1):
            g = 2 * w
            optimizer.step(g)
            state = optimizer.state_dict()["state"]["x"]
            m, v = state["mean"][0], state["square"][0]
            c = at_step(adamas.Options(bias_correction=correction), t, 0.1)
            numbers = (g[0], m, v, c.from_m * m, c.root**2 * v, w[0])
            digits = (4, 4, 6, 4, 4, 4)
            assert step == (str(t), *map(written, numbers, digits))


def test_both_tables_of_the_missing_exponent_are_what_adamas_computes():
    found = rows(RULE, 3)
    english = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    steps = re.findall(r"^\| ([\d,]+) \| 1 \| [\d.]+ \|$", english, re.MULTILINE)
    assert len(found) == len(steps) == 7
    for (t, paper, note), step in zip(found, steps, strict=True):
        assert re.sub(r"\s", "", t) == step.replace(",", "")
        assert paper == written(effective("paper", int(step.replace(",", ""))), 0)
        assert note == written(effective("first-step", int(step.replace(",", ""))), 3)


def test_what_the_text_tells_of_the_missing_exponent_is_what_adamas_computes():
    largest = max(range(1, 1000), key=lambda t: effective("first-step", t))
    below = next(t for t in range(2, 1000) if effective("first-step", t) < 1)
    end = written(effective("first-step", 10**6), 3).replace(",", "{,}")
    most = written(effective("first-step", largest), 2)
    assert f"на {largest}-му кроці більший у {most} раза; від {below}-го" in RULE
    assert f"$\\sqrt{{1-\\beta_2}}/(1-\\beta_1) = {end}$" in RULE


def test_what_the_text_tells_of_steps_without_correction_is_what_adamas_computes():
    def told(t):
        return written(effective("none", t), 2).replace(",", "{,}") + "\\eta$"

    largest = max(range(1, 1000), key=lambda t: effective("none", t))
    assert f"а ${told(1)}; при сталому" in RULE
    assert f"до ${told(largest)} на {largest}-му кроці" in RULE
    assert f"на тисячному це ще ${told(1000)}" in RULE
    english = (ROOT / "docs" / "the-rule.md").read_text("utf-8").replace("\n", " ")
    assert f"is {effective('none', 1):.2f} learning rates long" in english
    assert f"grows to {effective('none', largest):.2f} at step {largest}" in english


def test_the_first_page_tells_the_extras_of_users_and_the_command_of_installing():
    page = (UK / "index.md").read_text("utf-8")
    english = (ROOT / "docs" / "install.md").read_text("utf-8")
    table = english.partition("<!-- extras: begin -->")[2].partition("<!-- extras: end -->")[0]
    extras = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(extras) > 3
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(extras)
    commands = [re.search("^pip install .*$", text, re.MULTILINE) for text in (page, english)]
    assert commands[0][0] == commands[1][0]


@pytest.mark.parametrize("function", ["himmelblau", "rosenbrock"])
def test_both_pages_tell_how_a_race_with_the_note_ends(function):
    english = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    track = tracks.find(function)
    paths = race.race(track, methods=("Adam", "note"), lr=0.02)
    adam, note = (race.arrival(track, path) for path in paths)
    assert f"| {function} | {adam:,} | {note:,} |" in english
    assert f"| {function} | {adam} | {note} |" in RULE
    adam, note = (f"{track.rates[method]:g}" for method in ("Adam", "note"))
    prose = " ".join(english.split())
    told = f"{adam} for Adam and {note} for the note's form on `{function}`"
    assert told in prose or f"{adam} and {note} on `{function}`" in prose
    adam, note = adam.replace(".", ","), note.replace(".", ",")
    prose = " ".join(RULE.split())
    told = f"на `{function}` це {adam} для Adam і {note} для конспекту"
    assert told in prose or f"на `{function}` — {adam} і {note}" in prose


def test_both_pages_tell_how_the_demo_with_the_note_was_measured_to_end():
    results = json.loads((ROOT / "benchmarks" / "results" / "rates.json").read_text("utf-8"))
    ends = {
        row["against"]: min(tried["score"][0] for tried in row["tried"])
        for row in results["figures"]
        if row["work"] == "demo"
    }
    adam, note = f"{ends['Adam']:.2g}", f"{ends['note']:.2g}"
    english = " ".join((ROOT / "docs" / "the-rule.md").read_text("utf-8").split())
    assert f"ends at {adam} with Adam, and at {note} with the note's form" in english
    told = f"до {adam} з Adam і до {note} з формулою конспекту".replace(".", ",")
    assert told in " ".join(RULE.split())


def test_the_rule_in_ukrainian_quotes_the_same_lines():
    def quoted(page):
        return [found["code"] for found in CODE.finditer(page) if found["mark"] == "rule"]

    english = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    assert quoted(RULE) == quoted(english) != []


def test_both_languages_tell_of_the_same_numbers_of_a_step():
    def numbers(page):
        return re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)

    english = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    assert len(numbers(english)) == 11
    assert numbers(RULE) == numbers(english)


def sections(page):
    """The levels of a page's headings, in order, without those in code."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [len(level) for level in re.findall(r"^(#+) ", text, re.MULTILINE)]


@pytest.mark.parametrize("guide", ["command-line", "minimize", "torch"])
def test_a_guide_has_the_same_sections_in_both_languages(guide):
    english = sections(ROOT / "docs" / "guides" / f"{guide}.md")
    assert len(english) > 5
    assert sections(UK / f"{guide}.md") == english


def statements(page):
    """The Python code of a page, without comments and docstrings."""
    code = "\n".join(found["code"] for found in CODE.finditer(page.read_text("utf-8")))
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


@pytest.mark.parametrize("guide", ["minimize", "torch"])
def test_a_guide_has_the_same_code_in_both_languages(guide):
    english = statements(ROOT / "docs" / "guides" / f"{guide}.md")
    assert len(english.splitlines()) > 20
    assert statements(UK / f"{guide}.md") == english


def test_the_command_line_has_the_same_commands_in_both_languages():
    found = [
        re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        for page in (UK / "command-line.md", ROOT / "docs" / "guides" / "command-line.md")
    ]
    assert found[0] == found[1] != []


ALPHABET = "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя"


def place(term):
    """Where a term stands in an alphabetical list: after all that begin with a Latin letter."""
    letters = re.findall("[a-z0-9]|[а-яіїєґ]", term.lower())
    return [(letter in ALPHABET, ALPHABET.find(letter), letter) for letter in letters]


def test_both_glossaries_have_the_same_entries_in_the_same_chapters():
    english = (ROOT / "docs" / "glossary.md").read_text("utf-8").split("\n## ")[1:]
    ukrainian = (UK / "glossary.md").read_text("utf-8").split("\n## ")[1:]
    assert len(english) == len(ukrainian) > 3
    for here, there in zip(ukrainian, english, strict=True):
        entries = re.findall(r"^- \*\*(.+?)\*\* · \*(.+?)\* — [^—]", here, re.MULTILINE)
        assert len(entries) == len(re.findall("^- ", here, re.MULTILINE))
        wanted = re.findall("^### (.+)$", there, re.MULTILINE)
        assert sorted(term for _, term in entries) == sorted(wanted)
        terms = [term for term, _ in entries]
        assert terms == sorted(terms, key=place)


#: Letters that Russian has and Ukrainian has not; a straight apostrophe within a Ukrainian word.
FOREIGN = re.compile(r"[ыэъёЫЭЪЁ]|[а-яіїєґ]'[а-яіїєґ]", re.IGNORECASE)


@pytest.mark.parametrize("page", sorted(UK.glob("*.md")), ids=lambda page: page.stem)
def test_a_ukrainian_page_is_written_in_ukrainian_letters(page):
    assert FOREIGN.findall(page.read_text("utf-8")) == []


def test_ukrainian_pages_open_the_page_to_play_with_in_ukrainian():
    links = re.findall(
        r"play/index\.html[^)]*", "".join(p.read_text("utf-8") for p in UK.glob("*.md"))
    )
    assert len(links) >= 3
    assert set(links) == {"play/index.html?lang=uk"}
