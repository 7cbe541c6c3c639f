"""The guide on batch sizes shows what was measured, and what it says of it is so."""

from __future__ import annotations

import copy
import statistics

import pytest

import adamas
from benchmarks import batch_size, catalogue, pages
from benchmarks.batch_size import ARMS, LARGE
from tests.support.cases import ROOT

TABLE = catalogue.table("batch_size")
PAGE = ROOT / "docs" / "guides" / "batch-size.md"


@pytest.fixture
def stored():
    return pages.stored(TABLE)


def losses(stored):
    """Of each arm at its best learning rate."""
    return [batch_size.best(figure)["losses"] for figure in stored["figures"]]


def test_the_page_shows_the_stored_figures(stored):
    text = PAGE.read_text("utf-8")
    assert pages.with_passages(text, TABLE.passages(stored)) == text
    changed = copy.deepcopy(stored)
    changed["figures"][0]["tried"][0]["losses"][0] = 0.0
    assert pages.with_passages(text, TABLE.passages(changed)) != text


def test_every_arm_has_all_rates_and_seeds(stored):
    for arm, figure in zip(ARMS, stored["figures"], strict=True):
        assert figure["steps"] == batch_size.SEQUENCES // arm.batch
        assert figure["beta2"] == arm.beta2
        assert [each["lr"] for each in figure["tried"]] == list(arm.rates)
        assert {len(each["losses"]) for each in figure["tried"]} == {batch_size.SEEDS}


def test_the_best_rate_lies_inside_the_grid(stored):
    """Else a better one might lie outside."""
    for arm, figure in zip(ARMS, stored["figures"], strict=True):
        assert min(arm.rates) < batch_size.best(figure)["lr"] < max(arm.rates), arm


def test_single_gradients_end_lower_than_accumulated_ones_by_many_spreads(stored):
    accumulated, *others = losses(stored)
    assert ARMS[0].batch == LARGE
    for each in others:
        apart = statistics.mean(accumulated) - statistics.mean(each)
        assert apart > 4 * max(statistics.stdev(accumulated), statistics.stdev(each))


def pairs(stored):
    """The figures of arms with the same batch: with the half-life kept, and with β2 as it was."""
    found = dict(zip(ARMS, stored["figures"], strict=True))
    for arm in ARMS:
        for other in ARMS:
            if arm.batch == other.batch and arm.scales and not other.scales:
                yield found[arm], found[other]


def test_at_their_best_rates_the_half_life_makes_no_difference_beyond_the_spread(stored):
    for both in pairs(stored):
        one, other = (batch_size.best(figure)["losses"] for figure in both)
        apart = abs(statistics.mean(one) - statistics.mean(other))
        assert apart < max(statistics.stdev(one), statistics.stdev(other))


def test_at_the_same_rate_it_is_lower_in_most_cases_and_clearly_at_the_smallest(stored):
    lower = []
    for one, other in pairs(stored):
        for kept, plain in zip(one["tried"], other["tried"], strict=True):
            assert kept["lr"] == plain["lr"]
            lower.append(statistics.mean(kept["losses"]) < statistics.mean(plain["losses"]))
        apart, spreads = 0.0, []
        for sign, figure in ((-1, one), (1, other)):
            smallest = min(figure["tried"], key=lambda each: each["lr"])["losses"]
            apart += sign * statistics.mean(smallest)
            spreads.append(statistics.stdev(smallest))
        assert apart > max(spreads)
    assert sum(lower) >= 6
    assert len(lower) == 8


def test_the_best_rate_falls_with_the_batch_by_less_than_it(stored):
    rates = {
        arm.batch: batch_size.best(figure)["lr"]
        for arm, figure in zip(ARMS, stored["figures"], strict=True)
        if arm.scales
    }
    for large, small in ((32, 4), (4, 1)):
        assert rates[large] / rates[small] == 2 < large / small


def test_the_memory_of_each_arm_is_that_of_the_large_batch_in_letters():
    life = adamas.half_life(batch_size.BETA2, every=LARGE)
    for arm in ARMS:
        if arm.scales:
            assert adamas.half_life(arm.beta2, every=arm.batch) == pytest.approx(life, rel=1e-12)
        else:
            assert arm.beta2 == batch_size.BETA2


@pytest.mark.slow
def test_what_was_stored_of_the_cheapest_run_is_found_again(stored):
    """As far as sums of another processor allow: a loss of 128 steps."""
    figure = stored["figures"][0]
    (given,) = [each for each in figure["tried"] if each["lr"] == ARMS[0].rates[0]]
    found = batch_size.trained(ARMS[0], given["lr"], 0, batch_size.SEQUENCES)
    assert found == pytest.approx(given["losses"][0], abs=0.02)
