"""The pages on trainings show what was measured, and what they say of it is so."""

from __future__ import annotations

import copy
import functools
import re
import statistics

import pytest

from adamas.codecs import mean_bound
from benchmarks import catalogue, convergence, pages, pictures
from benchmarks.tables import Row, Run
from tests.support.cases import ROOT

TABLE = catalogue.table("convergence")
PAGE, SMALL_PAGE = (ROOT / "docs" / name for name in ("convergence.md", "guides/small-states.md"))


@pytest.fixture
def stored():
    return pages.stored(TABLE)


def summaries(stored, name):
    """Each task's measure and the others, by their names."""
    comparison = convergence.COMPARISONS[name]
    for key in comparison.tasks:
        found = convergence.summary(stored["tasks"][key]["runs"], comparison.subjects)
        yield key, found[0], {each.subject: each for each in found[1:]}


def test_the_pages_show_the_stored_figures(stored):
    shown = set()
    for page in (PAGE, SMALL_PAGE):
        text = page.read_text("utf-8")
        assert pages.with_passages(text, TABLE.passages(stored)) == text
        shown |= set(re.findall("<!-- ([a-z]+): begin -->", text))
    assert set(convergence.tables(stored)) <= shown


def test_a_changed_figure_is_seen_in_the_page(stored):
    changed = copy.deepcopy(stored)
    losses = changed["tasks"]["words"]["runs"]["adamas 8bit"][0]["losses"]
    losses[list(losses)[-1]] += 0.1
    text = SMALL_PAGE.read_text("utf-8")
    assert pages.with_passages(text, TABLE.passages(changed)) != text


def test_a_table_counts_from_the_runs_of_the_first_subject_with_the_same_seeds():
    def runs(*pairs):
        return [{"losses": {"1": 9.0, "2": loss}, "largest_update": u} for loss, u in pairs]

    given = {"a": runs((1.0, 1.0), (2.0, 3.0)), "b": runs((1.25, 9.0), (2.75, 2.0))}
    first, second = convergence.summary(given, ["a", "b", "not run"])
    assert first == ("a", 1.5, statistics.stdev([1.0, 2.0]), 0.0, 0.0, 3.0)
    assert second == ("b", 2.0, statistics.stdev([1.25, 2.75]), 0.5, 0.25, 9.0)


def test_what_is_not_installed_is_named_where_it_would_stand(stored):
    without = {**stored, "missing": ["torchao"]}
    tables = convergence.tables(without)
    assert tables["states"].endswith("\n\nNot installed, and so not measured: torchao.\n")
    assert "Not installed" not in tables["optimizers"]


def test_all_was_measured_that_the_pages_compare(stored):
    assert stored["missing"] == []
    for key, task in stored["tasks"].items():
        assert list(task["runs"]) == convergence.subjects_of(key)
        assert task["seeds"] >= 6
        assert {len(runs) for runs in task["runs"].values()} == {task["seeds"]}


def test_adamas_ends_where_torch_does(stored):
    for _, first, others in summaries(stored, "optimizers"):
        assert abs(others["adamas float32"].difference) < first.spread


def test_small_states_end_within_the_spread_of_the_seeds(stored):
    for key, first, others in summaries(stored, "states"):
        for form in ("bfloat16", "compact", "8bit"):
            assert abs(others[f"adamas {form}"].difference) < first.spread, (key, form)


def test_no_update_exceeds_the_bound_of_the_mean(stored):
    bound = mean_bound(0.9, 0.999)
    for task in stored["tasks"].values():
        for name, runs in task["runs"].items():
            if name.startswith(("adamas", "bfloat16")):
                assert all(each["largest_update"] < bound for each in runs), name


@pytest.mark.parametrize("rounding", ["stochastic", "remainder", "remainder8"])
def test_bfloat16_parameters_end_within_the_spread_of_the_seeds(stored, rounding):
    for key, first, others in summaries(stored, "parameters"):
        found = others[f"bfloat16 parameters, {rounding}"]
        assert abs(found.difference) < first.spread, key


def test_bfloat16_parameters_that_are_rounded_to_nearest_end_outside_of_it(stored):
    for key, first, others in summaries(stored, "parameters"):
        for rounding in ("default", "nearest"):
            found = others[f"bfloat16 parameters, {rounding}"]
            assert found.difference > first.spread, (key, rounding)


def test_the_other_packages_are_told_of_as_they_were_measured(stored):
    for key, first, others in summaries(stored, "states"):
        assert others["torchao 8-bit"].largest_update > 50 * first.largest_update
        for name in ("bitsandbytes 8-bit", "torchao 8-bit"):
            if key != "digits":
                assert abs(others[name].difference) > 3 * others[name].error, (key, name)


@pytest.mark.slow
def test_trainings_are_made_of_all_that_is_installed_and_small_ones_say_so():
    pytest.importorskip("sklearn")
    heard = []
    rows = [row for row in TABLE.rows if row.work == "digits"]
    found = TABLE.measured(rows, Run(quick=True, tell=heard.append))
    runs = found["tasks"]["digits"]["runs"]
    absent = {*found["missing"]}
    assert list(runs) == [
        name
        for name in convergence.subjects_of("digits")
        if convergence.SUBJECTS[name].package not in absent
    ]
    assert all(len(each) == 2 for each in runs.values())
    assert runs["torch float32"] != runs["adamas 8bit"]
    assert f"digits · seed 1 · adamas 8bit · {convergence.final(runs['adamas 8bit'][1])[0]} · " in (
        "\n".join(heard)
    )
    text = TABLE.markdown({**found, "machine": {"processor": "some"}, "quick": True})
    assert "| digits, MLP, 2 seeds | torch float32 |" in text
    assert "letters" not in text


@pytest.mark.slow
def test_the_pictures_are_drawn_from_what_is_stored(stored, tmp_path):
    pytest.importorskip("matplotlib")
    for drawing in (convergence.curves, convergence.differences):
        drawn = []
        for _ in range(2):
            pictures.draw("some", functools.partial(drawing, stored), tmp_path)
            drawn.append([(tmp_path / f"some{s}.svg").read_text("utf-8") for s in ("", "-dark")])
        (light, dark), again = drawn
        assert again == [light, dark]
        for text, theme, other in (
            (light, pictures.LIGHT, pictures.DARK),
            (dark, pictures.DARK, pictures.LIGHT),
        ):
            assert "letters, GPT" in text
            assert theme.ink in text
            assert other.ink not in text


def failing(quick):
    raise ValueError("no data")


def test_a_task_that_fails_or_lacks_something_keeps_no_other_from_being_trained():
    rows = [
        Row("digits", "", None, failing),
        Row("letters", "", None, pytest.fail, ("no_such_package",)),
        Row(convergence.CONTINUATION, "", None, lambda quick: lambda tell: {"torch": 0.5}),
    ]
    found = TABLE.measured(rows, Run(quick=True))
    assert found["tasks"] == {}
    assert found["continuation"] == {"torch": 0.5}
    TABLE.draw(found)  # leaves the pictures as they are
    text = TABLE.markdown({**found, "machine": {"processor": "some"}})
    assert "digits: failed: ValueError: no data\n" in text
    assert "letters: needs no_such_package\n" in text
