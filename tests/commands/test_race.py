"""The functions to race on, and the race."""

from __future__ import annotations

import math
import re
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import adamas
from adamas import race, tracks
from adamas.methods import METHODS
from adamas.palette import COLOURS


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write source to a file of its own; return its path, and leave no trace in sys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source, name="mine.py"):
        (tmp_path / name).write_text(source)
        return name

    return write


@pytest.mark.parametrize("name", tracks.FUNCTIONS)
def test_gradients_are_those_of_the_functions(name):
    """Central differences are off by about eps^(2/3) of the function's size."""
    track = tracks.FUNCTIONS[name]
    for x in np.random.default_rng(1).uniform(-2, 2, (50, 2)):
        bound = 1e-8 * (1 + abs(track.value(x)) + np.abs(track.gradient(x)).max())
        assert np.abs(tracks.differences(track.value)(x) - track.gradient(x)).max() <= bound


def test_a_function_that_writes_into_its_argument_has_the_same_differences():
    def sum_of_squares(x):
        x *= x
        return float(x.sum())

    at = np.array([3.0, -2.0])
    assert tracks.differences(sum_of_squares)(at) == pytest.approx([6, -4], abs=1e-8)
    assert at.tolist() == [3.0, -2.0]


@pytest.mark.parametrize("name", tracks.FUNCTIONS)
def test_minima_are_zeros_of_the_function_and_its_gradient(name):
    track = tracks.FUNCTIONS[name]
    for minimum in track.minima:
        assert track.value(np.array(minimum)) == pytest.approx(0, abs=1e-20)
        assert track.gradient(np.array(minimum)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", tracks.FUNCTIONS)
def test_every_method_gets_lower_and_its_way_is_whole(name):
    track = tracks.FUNCTIONS[name]
    paths = race.race(track, methods=tuple(METHODS), steps=200)
    assert [path.method for path in paths] == ["Momentum", "RMSProp", "Adam", "note"]
    for path in paths:
        assert path.points.shape == (201, 2)
        assert tuple(path.points[0]) == track.start
        assert path.final_value == track.value(path.points[-1])
        assert path.final_value < track.value(np.array(track.start))


@pytest.mark.parametrize("name", ["himmelblau", "rosenbrock", "beale"])
def test_every_method_is_near_a_minimum_for_the_last_hundred_steps(name):
    track = tracks.FUNCTIONS[name]
    paths = race.race(track, methods=tuple(METHODS))
    for path in paths:
        assert len(path.points) == track.steps + 1
        assert race.distances(track, path)[-100:].max() <= race.NEAR
        assert race.arrival(track, path) < track.steps - 100
    assert race.remarks(track, paths) == []


def test_on_rastrigin_all_are_caught_in_a_local_minimum_and_it_is_said():
    track = tracks.FUNCTIONS["rastrigin"]
    paths = race.race(track)
    assert [race.arrival(track, path) for path in paths] == [None] * 3
    assert race.remarks(track, paths) == [
        "In the local minimum at (-0.995, 0.995), value 1.99, not in a global one: "
        "Momentum, RMSProp, Adam."
    ]


def test_a_method_that_is_still_on_its_way_is_told_from_one_that_is_caught():
    track = tracks.FUNCTIONS["rosenbrock"]
    paths = race.race(track, steps=20)
    assert race.remarks(track, paths) == [
        "At no minimum after the last step: Momentum, RMSProp, Adam. Try more --steps or another "
        "--lr."
    ]


def test_distances_are_those_to_the_nearest_minimum_and_the_first_near_step_is_told():
    track = tracks.Track(
        "two", lambda x: 0.0, lambda x: x, (9.0, 0.0), ((0, 9), (0, 9)), ((0.0, 0.0), (8.0, 0.0))
    )
    points = np.array([[9.0, 0.0], [8.0, 0.0], [3.0, 4.0], [8.0, 0.005]])
    path = race.Path2D("Adam", 0.1, points, 0.0)
    assert race.distances(track, path).tolist() == [1.0, 0.0, 5.0, 0.005]
    assert race.arrival(track, path) == 1
    assert race.arrival(track, race.Path2D("Adam", 0.1, points[:1], 0.0)) is None


def test_a_local_minimum_is_found_only_where_one_is_near():
    track = tracks.FUNCTIONS["rastrigin"]
    found = tracks.local_minimum(track, np.array([-1.05, 0.95]))
    assert found == pytest.approx([-0.99495864, 0.99495864], abs=1e-6)
    assert tracks.local_minimum(track, np.array([0.5, 0.5])) is None  # a maximum
    assert tracks.local_minimum(track, np.array([0.5, 0.0])) is None  # a saddle
    assert tracks.local_minimum(track, np.array([0.22, 0.0])) is None  # a slope


def test_the_notes_way_is_that_of_adam_without_the_exponent():
    track = tracks.FUNCTIONS["beale"]
    point = np.array(track.start)
    optimizer = adamas.Adam(point, lr=0.1, bias_correction="first-step")
    for _ in range(30):
        optimizer.step(track.gradient(point))
    adam, note = race.race(track, methods=("Adam", "note"), steps=30, lr=0.1)
    assert (adam.method, note.method) == ("Adam", "note")
    assert np.array_equal(note.points[-1], point)
    # At the first step the two agree, and at no other.
    assert np.array_equal(note.points[1], adam.points[1])
    assert not np.array_equal(note.points[2], adam.points[2])


# The others are slow to draw, and show no more.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "himmelblau" else pytest.mark.slow)
        for name in tracks.FUNCTIONS
    ],
)
def test_a_gif_of_all_methods_is_smaller_than_400_kilobytes(name, tmp_path):
    track = tracks.FUNCTIONS[name]
    path = tmp_path / "race.gif"
    race.animate(track, race.race(track, methods=tuple(METHODS)), path)
    assert path.stat().st_size < 400_000
    with Image.open(path) as moving:
        assert moving.n_frames == 45
        moving.seek(44)
        last = np.asarray(moving.convert("RGB")).reshape(-1, 3)
    assert tuple(last[0]) == (255, 255, 255)
    colours = {"#" + bytes(colour).hex().upper() for colour in np.unique(last, axis=0)}
    assert set(COLOURS.values()) <= colours


def test_a_moving_picture_begins_with_each_step_and_ends_with_the_last():
    assert race.steps_shown(300, 5) == [0, 19, 75, 169, 300]
    assert race.steps_shown(300, 45)[:4] == [0, 1, 2, 3]
    assert race.steps_shown(2, 5) == [0, 1, 2, 2, 2]


def test_one_rate_may_be_given_for_all():
    paths = race.race(tracks.FUNCTIONS["himmelblau"], steps=3, lr=0.25)
    assert [path.lr for path in paths] == [0.25] * 3
    assert paths[2].points[1] - paths[2].points[0] == pytest.approx([-0.25, 0.25], abs=1e-8)


def test_the_users_function_may_bring_gradient_start_and_view(tmp_path, monkeypatch):
    (tmp_path / "with_all.py").write_text(
        "def f(x):\n    return float(x @ x)\n"
        "f.gradient = lambda x: 2 * x\nf.start = (2.0, 3.0)\nf.view = ((0, 4), (0, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    track = tracks.find("with_all:f")
    assert (track.start, track.view) == ((2.0, 3.0), ((0, 4), (0, 4)))
    assert track.gradient(np.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_a_start_where_the_function_is_no_number_is_refused():
    track = tracks.Track("hole", lambda x: float("nan"), lambda x: x, (1.0, 1.0), ((0, 1), (0, 1)))
    with pytest.raises(ValueError, match="hole or its gradient is not finite at"):
        race.race(track)


# ── functions of one's own ─────────────────────────────────────────────────────────────────────

X_AND_Y = """
def valley(x, y):
    return x**2 + 3 * y**2
valley.gradient = lambda x, y: (2 * x, 6 * y)

def bowl(x):
    return x[0] ** 2 + 3 * x[1] ** 2

def turned(x, y=0.0):
    return x[0] ** 2 + 3 * x[1] ** 2 + y
"""


def test_a_function_of_x_and_y_is_raced_as_one_of_an_array(mine):
    path = mine(X_AND_Y)
    valley, bowl, turned = (tracks.find(f"{path}:{name}") for name in ("valley", "bowl", "turned"))
    assert valley.name == "valley"
    assert valley.value(np.array([2.0, -1.0])) == 7.0
    assert list(valley.gradient(np.array([2.0, -1.0]))) == [4.0, -6.0]
    by_array = race.race(bowl, steps=20)
    assert race.race(valley, steps=0)[0].final_value == by_array[0].points[0] ** 2 @ [1, 3]
    for one, other in zip(by_array, race.race(turned, steps=20), strict=True):
        assert np.array_equal(one.points, other.points)


def test_a_file_and_a_module_are_the_same_function(mine):
    mine(X_AND_Y, "mine_as_both.py")
    paths = [
        race.race(tracks.find(f"{n}:bowl"), steps=9) for n in ("mine_as_both", "mine_as_both.py")
    ]
    for one, other in zip(*paths, strict=True):
        assert np.array_equal(one.points, other.points)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def f(x, y, z): return x",
            "mine.py:f takes (x, y, z), but it must take an array of two numbers, or two numbers "
            "x and y.",
        ),
        ("def f(): return 1.0", "mine.py:f takes (), but it must take an array of two numbers"),
        (
            "def f(x):\n    return x['a']",
            "mine.py:f raised IndexError: only integers, slices (`:`), ellipsis (`...`), "
            "numpy.newaxis (`None`) and integer or boolean arrays are valid indices "
            "(at (-1, 1); mine.py, line 2). It is called with an array of two numbers.",
        ),
        (
            "import math\ndef f(x, y):\n    return math.log(x)",
            "mine.py:f raised ValueError: math domain error (at (-1, 1); mine.py, line 3).",
        ),
        ("def f(x): pass", "mine.py:f returned None, but it must return one number for an array"),
        ("def f(x): return x", "mine.py:f returned array([-1.,  1.]), but it must return one"),
        ("def f(x): return 1j", "mine.py:f returned 1j, but it must return one number"),
        ("def f(x): return 'high'", "mine.py:f returned 'high', but it must return one number"),
        ("def f(x): return float('nan')", "f or its gradient is not finite at (-1.0, 1.0)."),
        ("def f(x): return 1.0\nf.start = (1,)", "The start is (1,), but it must be two finite"),
        ("def f(x): return 1.0\nf.start = 'ab'", "The start is 'ab', but it must be two finite"),
        ("def f(x): return 1.0\nf.view = (0, 1)", "The view of mine.py:f is (0, 1), but it must"),
        (
            "def f(x): return 1.0\nf.view = ((-1e999, 1), (0, 1))",
            "The view of mine.py:f is ((-inf, 1), (0, 1)), but it must be two pairs (lower, upper) "
            "of finite numbers.",
        ),
        (
            "def f(x): return 1.0\nf.gradient = lambda x: None",
            "The gradient of f has shape () and dtype object, but it must hold two real numbers",
        ),
        (
            "def f(x): return 1.0\nf.gradient = lambda x: x.shape[1]",
            "mine.py:f.gradient raised IndexError: tuple index out of range (at (-1, 1); mine.py, "
            "line 2). It is called with an array of two numbers.",
        ),
        ("f = 3", "mine.py:f is 3, but it must be a class or a function. Nothing in mine.py can"),
        ("def g(x): return 1.0", "mine.py has no 'f'. Possible are mine.py:g."),
        ("1 / 0", "mine.py cannot be run (ZeroDivisionError: division by zero). It must be"),
        ("def f(x) return 1.0", "mine.py cannot be run (SyntaxError: "),
    ],
)
def test_a_function_that_is_none_to_race_on_is_refused_by_name(mine, source, message):
    path = mine(source)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        race.race(tracks.find(f"{path}:f"))


@pytest.mark.parametrize("start", [(math.nan, 1.0), (1.0, math.inf), (1.0,), (1.0, 2.0, 3.0)])
def test_a_start_that_is_no_point_is_refused(start):
    track = tracks.Track("bowl", lambda x: x @ x, lambda x: 2 * x, start, ((0, 1), (0, 1)))
    with pytest.raises(ValueError, match="but it must be two finite numbers"):
        race.race(track)


def test_names_that_are_nearly_right_are_answered_with_the_right_one(mine):
    mine(X_AND_Y)
    mine(X_AND_Y, "mine_to_race.py")
    for name, meant in (
        ("himelblau", "himmelblau"),
        ("mine.py:vally", "valley"),
        ("mine_to_race:bowls", "bowl"),
        ("mne.py:valley", "mine.py"),
        ("mine.bowl", None),
    ):
        told = "Give|Known" if meant is None else f"Did you mean '{re.escape(meant)}'\\?"
        with pytest.raises(ValueError, match=told):
            tracks.find(name)
    with pytest.raises(ValueError, match=r"does not say what in it\. Possible are mine"):
        tracks.find("mine.py")


# ── races that diverge ─────────────────────────────────────────────────────────────────────────


def quartic(x):
    return float(x[0] ** 4 + x[1] ** 4)


def quartic_slope(x):
    return 4 * x**3


def walled(x):
    """Has no value where x[0] is below 0, and says so as Python's own functions do."""
    return math.sqrt(x[0]) + x[1] ** 2


@pytest.mark.parametrize("slope", [quartic_slope, tracks.differences(quartic)])
def test_a_method_that_diverges_ends_where_the_last_number_was(slope, tmp_path):
    track = tracks.Track("quartic", quartic, slope, (3.0, -3.0), ((-5, 5), (-5, 5)))
    paths = race.race(track, steps=400, lr=1.0)
    momentum = paths[0]
    assert momentum.diverges_at == len(momentum.points) < 400
    assert np.isfinite(momentum.points).all()
    assert momentum.final_value == quartic(momentum.points[-1]) < math.inf
    # One step further nothing is a number any more.
    again = race.race(track, steps=momentum.diverges_at, lr=1.0)[0]
    assert (again.diverges_at, len(again.points)) == (momentum.diverges_at, momentum.diverges_at)
    whole = race.race(track, steps=momentum.diverges_at - 1, lr=1.0)[0]
    assert whole.diverges_at is None
    for path in paths[1:]:  # RMSProp and Adam make steps of the length of lr
        assert (path.diverges_at, len(path.points)) == (None, 401)
    race.draw(track, paths, tmp_path / "race.png")
    race.animate(track, paths, tmp_path / "race.gif", frames=3)
    with Image.open(tmp_path / "race.gif") as moving:
        assert moving.n_frames == 3


def test_a_function_that_raises_beyond_its_edge_ends_the_way_there(tmp_path):
    track = tracks.Track(
        "walled", walled, tracks.differences(walled), (1.0, 1.0), ((-1, 2), (-1, 2))
    )
    adam = race.race(track, steps=300)[2]
    assert adam.diverges_at is not None
    assert adam.points[-1][0] >= 0.0
    race.draw(track, [adam], tmp_path / "race.png")


def test_a_flat_function_and_one_without_values_in_the_picture_are_drawn(tmp_path):
    def narrow(x):
        return 1.0 if x[0] > 100 else math.nan

    for name, value, start in (("flat", lambda x: 1.0, (0.0, 0.0)), ("far", narrow, (200.0, 0.0))):
        track = tracks.Track(name, value, lambda x: np.zeros(2), start, ((-1, 1), (-1, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            race.draw(track, race.race(track, steps=2), tmp_path / f"{name}.png")


def test_the_picture_is_wide_enough_for_its_start():
    track = tracks.Track("bowl", lambda x: x @ x, lambda x: 2 * x, (9.0, 0.0), ((-1, 1), (-1, 1)))
    assert race.view_of(track) == [(-1, 9.5), (-1, 1)]
