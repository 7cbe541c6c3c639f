"""The learning rates of the demo and the race are the best of those that were tried."""

from __future__ import annotations

import numpy as np
import pytest

from adamas import demo, tracks
from adamas.methods import METHODS
from benchmarks import catalogue, pages, rates
from benchmarks.tables import Run

TABLE = catalogue.table("rates")
FIGURES = {(each["work"], each["against"]): each for each in pages.stored(TABLE)["figures"]}


def tried_in(figure):
    return [each["lr"] for each in figure["tried"]]


def test_each_method_of_the_demo_begins_at_the_best_rate_that_was_measured():
    assert {method: FIGURES["demo", method]["best"] for method in METHODS} == demo.RATES
    for method in METHODS:
        figure = FIGURES["demo", method]
        assert tried_in(figure) == list(demo.GRID)
        losses = {each["lr"]: each["score"][0] for each in figure["tried"]}
        assert min(losses, key=losses.get) == figure["best"]
        # Else a better one might lie outside of the grid.
        assert min(demo.GRID) < figure["best"] < max(demo.GRID)


def test_the_seeds_that_rates_were_chosen_by_are_not_those_that_the_demo_shows():
    assert not set(rates.SEEDS) & set(range(demo.SEEDS))


@pytest.mark.parametrize("name", tracks.FUNCTIONS)
def test_each_method_of_a_race_runs_at_the_best_rate_that_was_measured(name):
    assert {method: FIGURES[name, method]["best"] for method in METHODS} == (
        tracks.FUNCTIONS[name].rates
    )
    assert all(tried_in(FIGURES[name, method]) == list(rates.RACE_GRID) for method in METHODS)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(
            name, method, marks=() if (name, method) == ("rastrigin", "Adam") else pytest.mark.slow
        )
        for name in tracks.FUNCTIONS
        for method in METHODS
    ],
)
def test_what_was_stored_of_a_race_is_found_again(name, method):
    found = rates.of_a_race(name, method, quick=False)
    assert rates.best(found) == FIGURES[name, method]["best"]
    assert [each["told"] for each in found] == [e["told"] for e in FIGURES[name, method]["tried"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, t in tracks.FUNCTIONS.items() if t.steps > 200])
def test_a_race_is_as_short_as_lets_all_methods_arrive(name, monkeypatch):
    import dataclasses

    track = tracks.FUNCTIONS[name]
    fewer = rates.STEPS[rates.STEPS.index(track.steps) - 1]
    monkeypatch.setitem(tracks.FUNCTIONS, name, dataclasses.replace(track, steps=fewer))
    arrived = [
        any(each["score"][0] == 0 for each in rates.of_a_race(name, method, quick=False))
        for method in METHODS
    ]
    assert not all(arrived)


def test_near_for_good_is_near_for_the_last_hundred_steps():
    distances = np.full(301, 0.001)
    assert rates.settled(distances) == 0
    distances[50] = 0.5
    assert rates.settled(distances) == 51
    distances[200] = 0.5
    assert rates.settled(distances) is None


def test_of_rates_that_do_equally_well_the_larger_is_taken():
    tried = [{"lr": lr, "score": [0, step]} for lr, step in ((0.5, 9), (0.2, 7), (0.1, 7))]
    assert rates.best(tried) == 0.2


def test_the_table_tries_a_few_rates_where_it_is_quick():
    rows = [row for row in TABLE.rows if row.name in ("demo · Adam", "beale · note")]
    stored = {"machine": {"cores": 2}, "quick": True, **TABLE.measured(rows, Run(quick=True))}
    lines = TABLE.markdown(stored).splitlines()
    assert lines[0] == "| where | method | best rate | comes to | of the others, the best |"
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [
        ["| demo", "Adam"],
        ["| beale", "note"],
    ]
    assert [len(figure["tried"]) for figure in stored["figures"]] == [2, 2]
