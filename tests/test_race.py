"""The functions to race on, and the race."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from adamas import race


@pytest.mark.parametrize("name", race.FUNCTIONS)
def test_gradients_are_those_of_the_functions(name):
    """Central differences are off by about eps^(2/3) of the function's size."""
    track = race.FUNCTIONS[name]
    for x in np.random.default_rng(1).uniform(-2, 2, (50, 2)):
        bound = 1e-8 * (1 + abs(track.value(x)) + np.abs(track.gradient(x)).max())
        assert np.abs(race.differences(track.value)(x) - track.gradient(x)).max() <= bound


@pytest.mark.parametrize("name", race.FUNCTIONS)
def test_minima_are_zeros_of_the_function_and_its_gradient(name):
    track = race.FUNCTIONS[name]
    for minimum in track.minima:
        assert track.value(np.array(minimum)) == pytest.approx(0, abs=1e-20)
        assert track.gradient(np.array(minimum)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", race.FUNCTIONS)
def test_every_method_gets_lower_and_its_way_is_whole(name):
    track = race.FUNCTIONS[name]
    paths = race.race(track, steps=200)
    assert [path.method for path in paths] == ["Momentum", "RMSProp", "Adam"]
    for path in paths:
        assert path.points.shape == (201, 2)
        assert tuple(path.points[0]) == track.start
        assert path.final_value == track.value(path.points[-1])
        assert path.final_value < track.value(np.array(track.start))


def test_one_rate_may_be_given_for_all():
    paths = race.race(race.FUNCTIONS["himmelblau"], steps=3, lr=0.25)
    assert [path.lr for path in paths] == [0.25] * 3
    assert paths[2].points[1] - paths[2].points[0] == pytest.approx([-0.25, 0.25], abs=1e-8)


def test_the_users_function_may_bring_gradient_start_and_view(tmp_path, monkeypatch):
    (tmp_path / "with_all.py").write_text(
        "def f(x):\n    return float(x @ x)\n"
        "f.gradient = lambda x: 2 * x\nf.start = (2.0, 3.0)\nf.view = ((0, 4), (0, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    track = race.find("with_all:f")
    assert (track.start, track.view) == ((2.0, 3.0), ((0, 4), (0, 4)))
    assert track.gradient(np.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_a_start_where_the_function_is_no_number_is_refused():
    track = race.Track("hole", lambda x: float("nan"), lambda x: x, (1.0, 1.0), ((0, 1), (0, 1)))
    with pytest.raises(ValueError, match="hole or its gradient is not finite at"):
        race.race(track)
