"""A recorder of NumPy's optimizers, and what files, copies and forks do to any recorder."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import adamas
from adamas import records, statistics

SHAPES = {"matrix": (9, 40), "row": (33,), "one": ()}
FIELDS = {
    *("gradient_norm", "parameter_norm", "update_norm", "largest_update", "nonfinite", "unmoved"),
    "below_eps",
}


def weights(dtype=np.float32):
    return {name: np.ones(shape, dtype) for name, shape in SHAPES.items()}


def gradients(number, dtype=np.float32):
    random = np.random.default_rng(number)
    return {n: random.standard_normal(s).astype(dtype)[...] for n, s in SHAPES.items()}


def train(optimizer, numbers):
    for number in numbers:
        optimizer.step(gradients(number))


def steps(path):
    return [line for opening in records.read(path) for line in opening.steps]


def numbers(path):
    return [line["step"] for line in steps(path)]


# ── what is written ────────────────────────────────────────────────────────────────────────────


def test_the_first_step_and_multiples_of_every_are_recorded(tmp_path):
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=4)
    train(optimizer, range(13))
    assert numbers(tmp_path / "run.jsonl") == [1, 4, 8, 12]


def test_by_default_a_line_is_written_every_fifty_steps(tmp_path):
    optimizer = adamas.Adam(weights())
    assert adamas.Recorder(optimizer, tmp_path / "run.jsonl").every == 50
    train(optimizer, range(100))
    assert numbers(tmp_path / "run.jsonl") == [1, 50, 100]


@pytest.mark.parametrize("every", [1, 2])
def test_every_step_may_be_recorded(tmp_path, every):
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=every)
    train(optimizer, range(5))
    assert numbers(tmp_path / "run.jsonl") == [n for n in range(1, 6) if n == 1 or n % every == 0]


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_line_has_the_statistics_that_the_step_would_have_told(tmp_path, engine):
    twin = adamas.AdamW(weights(), lr=0.1, clip_norm=1.0, statistics=True, engine=engine)
    optimizer = adamas.AdamW(weights(), lr=0.1, clip_norm=1.0, engine=engine)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    train(optimizer, [1, 2])
    train(twin, [1, 2])
    line = steps(tmp_path / "run.jsonl")[-1]
    summary = twin.statistics(summary=True)
    assert (line["step"], line["lr"]) == (2, [0.1])
    assert line["gradient_norm"] == summary["gradient_norm"] == twin.gradient_norm
    assert line["clip_factor"] == summary["clip_factor"] == twin.clip_factor
    assert line["clipped"] == 1
    assert line["skipped"] == {"nonfinite": 0, "spikes": 0}
    assert list(line["tensors"]) == list(SHAPES)
    for name, told in line["tensors"].items():
        assert told.keys() == FIELDS
        assert {key: told[key] for key in FIELDS - {"below_eps"}} == vars(twin.statistics()[name])


def test_without_clipping_the_norm_is_that_of_all_gradients(tmp_path):
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    train(optimizer, [3])
    (line,) = steps(tmp_path / "run.jsonl")
    assert line["gradient_norm"] == statistics.norm(gradients(3).values())
    assert "clip_factor" not in line
    assert "clipped" not in line


def test_steps_that_clipped_are_counted_between_lines(tmp_path):
    optimizer = adamas.Adam(np.zeros(1), clip_norm=1.0)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=4)
    for value in (0.5, 2.0, 0.5, 3.0, 0.5, 1.0, 1.0, 0.25):
        optimizer.step(np.array([value]))
    assert [line["clipped"] for line in steps(tmp_path / "run.jsonl")] == [0, 2, 0]


def test_a_header_tells_all_that_the_rule_and_the_phase_were_told(tmp_path):
    optimizer = adamas.RAdam(np.ones(2), 0.5, decay="corrected", lr_max=1.0, clip_update=0.75)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    (opening,) = records.read(tmp_path / "run.jsonl")
    (group,) = opening.header["groups"]
    names = {field.name for field in dataclasses.fields(adamas.Options)}
    assert group.keys() == names | {"parameters"}
    assert (group["decay"], group["lr_max"], group["rectify"]) == ("corrected", 1.0, True)
    phase = opening.header["phase"]
    assert phase.keys() == {field.name for field in dataclasses.fields(adamas.Phase)}
    assert phase["clip_update"] == 0.75


def test_a_header_names_options_and_parameters(tmp_path):
    groups = [
        {"params": {"w": np.ones((3, 64), np.float32)}, "lr": 0.5, "state": "8bit"},
        {"params": [np.ones(2)], "weight_decay": 0.25},
    ]
    optimizer = adamas.AdamW(groups, lr=lambda step: 1 / step, clip_norm=2.0)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=7)
    (opening,) = records.read(tmp_path / "run.jsonl")
    header = opening.header
    assert (header["method"], header["every"], header["version"]) == (
        "AdamW",
        7,
        adamas.__version__,
    )
    assert header["phase"]["clip_norm"] == 2.0
    assert header["phase"]["on_nonfinite"] == "propagate"
    first, second = header["groups"]
    assert first == {
        "lr": 0.5,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "decay": "decoupled",
        "lr_max": None,
        "bias_correction": "paper",
        "eps_place": "corrected",
        "eps_root": 0.0,
        "amsgrad": False,
        "nesterov": False,
        "rectify": False,
        "maximize": False,
        "state": ["8bit", "8bit"],
        "rounding": None,
        "parameters": ["0.w"],
    }
    assert (second["lr"], second["weight_decay"], second["parameters"]) == (None, 0.25, ["1.0"])
    assert header["parameters"] == {
        "0.w": {"shape": [3, 64], "dtype": "float32"},
        "1.0": {"shape": [2], "dtype": "float64"},
    }


def test_notes_stand_in_the_next_line_alone_and_the_last_counts(tmp_path):
    optimizer = adamas.Adam(weights())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    for number, loss in enumerate((4.0, np.float32(3.5), np.array([2.0]))):
        recorder.note(loss=loss, number=number)
        train(optimizer, [number])
    train(optimizer, [3])
    assert [line.get("notes") for line in steps(tmp_path / "run.jsonl")] == [
        {"loss": 4.0, "number": 0.0},
        {"loss": 3.5, "number": 1.0},
        {"loss": 2.0, "number": 2.0},
    ]


@pytest.mark.parametrize(
    "value", ["0.5", None, np.ones(2), [1.0], 1j, np.array(1j), np.array("1"), np.array([None])]
)
def test_what_is_no_number_is_refused_when_it_is_noted(tmp_path, value):
    recorder = adamas.Recorder(adamas.Adam(weights()), tmp_path / "run.jsonl")
    with pytest.raises(TypeError, match=r"loss is .*, but what is noted must be a number"):
        recorder.note(loss=value)


def test_an_array_counts_as_it_was_when_it_was_noted(tmp_path):
    optimizer = adamas.Adam(weights())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    total = np.array([2.0])
    recorder.note(total=total)
    total[0] = 5.0
    train(optimizer, [1])
    assert [line["notes"] for line in steps(tmp_path / "run.jsonl")] == [{"total": 2.0}]


def test_numbers_that_json_has_not_come_back_as_numbers(tmp_path):
    optimizer = adamas.Adam(np.ones(3))
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    recorder.note(loss=-math.inf, large=10**400)
    optimizer.step(np.array([1.0, np.nan, np.inf]))
    (line,) = steps(tmp_path / "run.jsonl")
    assert math.isnan(line["gradient_norm"])
    assert line["notes"] == {"loss": -math.inf, "large": math.inf}
    assert [each["nonfinite"] for each in line["tensors"].values()] == [2]
    for text in (tmp_path / "run.jsonl").read_text("utf-8").splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_where_an_earlier_state_is_loaded_the_record_goes_on_from_there(tmp_path):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=2)
    train(optimizer, range(5))
    kept = optimizer.state_dict()
    train(optimizer, range(5))
    optimizer.load_state_dict(kept)
    train(optimizer, range(7))
    assert [[line["step"] for line in each.steps] for each in records.read(path)] == [
        [1, 2, 4, 6, 8, 10],
        [7, 8, 10, 12],
    ]
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, range(2))
    assert len(records.read(path)) == 2


# ── nobody notices ─────────────────────────────────────────────────────────────────────────────


def seen(optimizer):
    """What a user sees of an optimizer."""
    told = optimizer.state_dict()
    arrays = {n: {k: v.tobytes() for k, v in s.items()} for n, s in told.pop("state").items()}
    values = {name: p.tobytes() for name, p in optimizer.named_parameters().items()}
    return repr(optimizer), optimizer.phase, told, arrays, values, optimizer.gradient_norm


@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.1, "on_nonfinite": "skip"}, {"state": "8bit"}, {"ema": 0.9}]
)
def test_a_recorder_changes_nothing_that_is_seen(tmp_path, options):
    plain = adamas.AdamW(weights(), **options)
    recorded = adamas.AdamW(weights(), **options)
    recorder = adamas.Recorder(recorded, tmp_path / "run.jsonl", every=3)
    for number in range(8):
        if number == 7:
            recorder.close()
        train(plain, [number])
        train(recorded, [number])
        assert seen(recorded) == seen(plain)
        with pytest.raises(RuntimeError, match="No statistics were taken"):
            recorded.statistics()


def test_the_users_own_statistics_go_on(tmp_path):
    optimizer = adamas.Adam(weights(), statistics=True)
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=3)
    twin = adamas.Adam(weights(), statistics=True)
    for number in range(8):
        train(optimizer, [number])
        train(twin, [number])
        assert optimizer.statistics() == twin.statistics()
        if number == 5:
            recorder.close()


def test_several_recorders_do_not_disturb_each_other(tmp_path):
    optimizer = adamas.Adam(weights())
    first = adamas.Recorder(optimizer, tmp_path / "a.jsonl", every=2)
    adamas.Recorder(optimizer, tmp_path / "b.jsonl", every=3)
    train(optimizer, range(6))
    first.close()
    train(optimizer, range(6, 12))
    assert numbers(tmp_path / "a.jsonl") == [1, 2, 4, 6]
    assert numbers(tmp_path / "b.jsonl") == [1, 3, 6, 9, 12]


def test_closing_ends_the_lines_once_and_for_all(tmp_path):
    optimizer = adamas.Adam(weights())
    with adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1) as recorder:
        train(optimizer, range(2))
        assert "closed" not in repr(recorder)
    recorder.close()
    train(optimizer, range(2))
    assert numbers(tmp_path / "run.jsonl") == [1, 2]
    assert "closed" in repr(recorder)
    with pytest.raises(RuntimeError, match="was closed"):
        recorder.note(loss=1.0)


def test_a_recorder_does_not_keep_an_optimizer_alive(tmp_path):
    optimizer = adamas.Adam(weights())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    train(optimizer, [0])
    before = sys.getrefcount(optimizer)
    recorder.close()
    assert sys.getrefcount(optimizer) == before


def test_a_recorder_whose_optimizer_is_gone_is_closed_like_any_other(tmp_path):
    with adamas.Recorder(adamas.Adam(weights()), tmp_path / "run.jsonl") as recorder:
        gc.collect()
    assert "closed" in repr(recorder)


# ── mishaps ────────────────────────────────────────────────────────────────────────────────────


def test_steps_that_are_left_out_are_told_and_the_next_one_is_recorded(tmp_path):
    optimizer = adamas.Adam(np.ones(2), on_nonfinite="skip")
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=3)
    bad, good = np.array([1.0, np.nan]), np.ones(2)
    for gradient in (good, good, bad, bad, good, good, good):
        optimizer.step(gradient)
    lines = steps(tmp_path / "run.jsonl")
    assert [(line["step"], line["skipped"]["nonfinite"]) for line in lines] == [
        *((1, 0), (2, 1), (3, 2)),
    ]
    assert ["tensors" in line for line in lines] == [True, False, True]
    train_on = [good] * 3
    for gradient in train_on:
        optimizer.step(gradient)
    assert numbers(tmp_path / "run.jsonl")[-1] == 6


def test_a_run_that_leaves_out_all_steps_writes_a_line_of_every_so_many(tmp_path):
    optimizer = adamas.Adam(np.ones(2), on_nonfinite="skip")
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=4)
    for _ in range(9):
        optimizer.step(np.array([1.0, np.nan]))
    assert [x["skipped"]["nonfinite"] for x in steps(tmp_path / "run.jsonl")] == [1, 5, 9]


def test_a_step_that_is_refused_costs_no_line(tmp_path):
    optimizer = adamas.Adam(np.ones(2), on_nonfinite="raise")
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    for gradient, error in (
        (np.array([1.0, np.nan]), FloatingPointError),
        (np.ones(3), ValueError),
    ):
        with pytest.raises(error):
            optimizer.step(gradient)
    for _ in range(4):
        optimizer.step(np.ones(2))
    assert numbers(tmp_path / "run.jsonl") == [1, 2, 4]


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=4)
    train(optimizer, range(6))
    saved = optimizer.state_dict()
    other = adamas.Adam(weights())
    adamas.Recorder(other, path, every=4)
    other.load_state_dict(saved)
    train(other, range(6, 12))
    assert [[line["step"] for line in opening.steps] for opening in records.read(path)] == [
        [1, 4],
        [7, 8, 12],
    ]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_copies_of_an_optimizer_are_not_recorded(tmp_path, copied):
    optimizer = adamas.Adam(weights())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1)
    twin = copied(optimizer)
    train(twin, range(3))
    assert numbers(tmp_path / "run.jsonl") == []
    with pytest.raises(TypeError, match="A Recorder can be neither pickled nor copied"):
        copied(recorder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_records_nothing(tmp_path):
    code = f"""
import os, numpy as np, adamas
optimizer = adamas.Adam(np.ones(3))
adamas.Recorder(optimizer, {str(tmp_path / "run.jsonl")!r}, every=1)
optimizer.step(np.ones(3))
child = os.fork()
for _ in range(2 if child else 5):
    optimizer.step(np.ones(3))
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert numbers(tmp_path / "run.jsonl") == [1, 2, 3]


def test_a_killed_run_leaves_all_lines_but_the_last_one_whole(tmp_path):
    path = tmp_path / "run.jsonl"
    code = f"""
import os, signal, numpy as np, adamas
optimizer = adamas.Adam(np.ones(3))
adamas.Recorder(optimizer, {str(path)!r}, every=1)
for _ in range(3):
    optimizer.step(np.ones(3))
with open({str(path)!r}, "ab") as file:
    file.write(b'{{"step":4,"tensors":{{"0":{{"grad')
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode < 0
    assert numbers(path) == [1, 2, 3]
    optimizer = adamas.Adam(np.ones(3))
    adamas.Recorder(optimizer, path, every=1)
    optimizer.step(np.ones(3))
    assert numbers(path) == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing/run.jsonl", "There is no directory .*missing. Create it first: .*run.jsonl"),
        ("", "This is a directory. Name a file in it"),
    ],
)
def test_a_file_that_cannot_be_opened_is_refused_with_what_to_do(tmp_path, name, said):
    optimizer = adamas.Adam(weights())
    with pytest.raises(OSError, match=said):
        adamas.Recorder(optimizer, tmp_path / name)
    with pytest.raises(TypeError, match="path is an int, but it must be the name of a file"):
        adamas.Recorder(optimizer, 50)
    train(optimizer, [1])
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_is_full_from_the_start_is_told_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: .*run\.jsonl"):
        adamas.Recorder(adamas.Adam(weights()), tmp_path / "run.jsonl")


def test_what_cannot_be_written_is_warned_of_once_and_the_training_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=1)
    train(optimizer, [1])
    write = os.write
    full = OSError(28, "No space left on device")

    def torn(file, text):
        write(file, text[:20])
        raise full

    monkeypatch.setattr(os, "write", torn)
    with pytest.warns(RuntimeWarning, match=r"No space left on device.*The training goes on"):
        train(optimizer, [2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, [3])
        monkeypatch.setattr(os, "write", write)
        train(optimizer, [4, 5])
    assert numbers(path) == [1, 4, 5]
    monkeypatch.setattr(os, "write", torn)
    with pytest.warns(RuntimeWarning, match=r"run\.jsonl"):
        train(optimizer, [6])
    assert optimizer.steps == 6


def test_what_could_not_be_written_of_a_line_stands_in_the_next(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(np.zeros(1), clip_norm=1.0)
    recorder = adamas.Recorder(optimizer, path, every=1)
    optimizer.step(np.ones(1))
    optimizer.set_options(eps=1e-6)
    recorder.note(loss=2.0)
    write = os.write
    monkeypatch.setattr(os, "write", raising(OSError(28, "No space left on device")))
    with pytest.warns(RuntimeWarning, match="No space left"):
        optimizer.step(np.full(1, 3.0))
    monkeypatch.setattr(os, "write", write)
    optimizer.step(np.full(1, 3.0))
    first, second = records.read(path)
    assert first.header["groups"][0]["eps"] == 1e-8
    assert second.header["groups"][0]["eps"] == 1e-6
    (line,) = second.steps
    assert (line["step"], line["clipped"], line["notes"]) == (3, 2, {"loss": 2.0})


def raising(error):
    def call(*_):
        raise error

    return call


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=1)
    train(optimizer, [1])
    path.unlink()
    train(optimizer, [2])
    assert numbers(path) == [2]


def test_a_file_that_was_renamed_keeps_its_lines_and_another_is_begun(tmp_path):
    path, before = tmp_path / "run.jsonl", tmp_path / "before.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=1)
    train(optimizer, [1, 2])
    path.rename(before)
    train(optimizer, [3, 4])
    assert (numbers(before), numbers(path)) == ([1, 2], [3, 4])


def test_what_others_append_meanwhile_is_not_written_into(tmp_path):
    path = tmp_path / "run.jsonl"
    optimizer = adamas.Adam(weights())
    adamas.Recorder(optimizer, path, every=1)
    train(optimizer, [1])
    with path.open("a") as file:
        file.write('{"step": 2, "ti')
    train(optimizer, [2, 3])
    assert numbers(path) == [1, 2, 3]


def test_the_folder_in_which_a_run_began_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer = adamas.Adam(weights())
    recorder = adamas.Recorder(optimizer, "run.jsonl", every=1)
    monkeypatch.chdir(tmp_path.parent)
    train(optimizer, [1])
    assert recorder.path == str(tmp_path / "run.jsonl")
    assert numbers(tmp_path / "run.jsonl") == [1]


def test_options_that_are_set_in_a_run_make_a_new_header_and_schedules_do_not(tmp_path):
    optimizer = adamas.Adam(weights(), clip_norm=5.0)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1)
    for change in ({"lr": 0.5}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.1}):
        optimizer.set_options(**change)
        optimizer.clip_norm *= 2
        train(optimizer, [1])
    assert len(records.read(tmp_path / "run.jsonl")) == 1
    optimizer.set_options(eps=1e-6)
    train(optimizer, [1])
    optimizer.clip_norm = None
    train(optimizer, [1, 2])
    openings = records.read(tmp_path / "run.jsonl")
    assert [len(opening.steps) for opening in openings] == [3, 1, 2]
    assert [each.header["groups"][0]["eps"] for each in openings] == [1e-8, 1e-6, 1e-6]


# ── what is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("every", "error", "message"),
    [
        (0, ValueError, "every is 0, but it must be at least 1."),
        (-3, ValueError, "every is -3, but it must be at least 1."),
        (2.5, TypeError, "every is 2.5, but it must be a whole number of steps."),
        (True, TypeError, "every is True, but it must be a whole number of steps."),
        (None, TypeError, "every is None, but it must be a whole number of steps."),
    ],
)
def test_every_must_be_a_number_of_steps(tmp_path, every, error, message):
    with pytest.raises(error) as caught:
        adamas.Recorder(adamas.Adam(weights()), tmp_path / "run.jsonl", every=every)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [None, {}, weights, "AdamW"])
def test_what_is_no_optimizer_of_ours_is_refused(tmp_path, given):
    with pytest.raises(
        TypeError, match=r"Recorder\(\) got .*, but it takes an optimizer of adamas"
    ):
        adamas.Recorder(given, tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_before_the_training(tmp_path):
    optimizer = adamas.Adam(weights())
    with pytest.raises(FileNotFoundError, match=r"missing.*run\.jsonl"):
        adamas.Recorder(optimizer, tmp_path / "missing" / "run.jsonl")
    train(optimizer, [1])
    with pytest.raises(RuntimeError, match="No statistics were taken"):
        optimizer.statistics()
