"""The command ``adamas check``: what it lists, writes, shows and takes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

from adamas.checking import CannotCheckError, Report
from adamas.checking.examination import examine
from adamas.checking.progress import STAGES
from adamas.checking.subjects import Subject
from adamas.cli import main
from adamas.cli.arguments import assigned
from tests.support.cases import PATIENCE, ROOT
from tests.support.planted import Planted

THREE = """
from tests.support.planted import Planted


class Right(Planted):
    pass


class Wrong(Planted):
    mistakes = frozenset({"betas swapped"})


class Broken(Planted):
    def step(self, grads):
        raise ValueError("not yet")


__all__ = ["Right", "Wrong", "Broken"]
"""


def run(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    (tmp_path / "mine.py").write_text(THREE, "utf-8")
    return tmp_path


# ── all that a file has ────────────────────────────────────────────────────────────────────────


def test_a_file_alone_lists_the_commands_that_check_what_it_has(folder):
    done = run("mine.py")
    assert done.output.splitlines() == [
        "mine.py has 3 candidates. Check one of them, or all with --all:",
        "    adamas check mine.py:Right",
        "    adamas check mine.py:Wrong",
        "    adamas check mine.py:Broken",
        "    adamas check mine.py --all",
    ]
    assert done.exit_code == 2  # nothing was checked


def test_listed_commands_can_be_copied_and_have_the_options_that_were_given(folder):
    (folder / "mine.py").rename(folder / "by hand.py")
    done = run("by hand.py", "--set", "name=a b", "--json", "report.json")
    _, *commands = map(str.split, done.output.splitlines())
    assert [" ".join(each) for each in commands] == [
        f"adamas check {what} --set 'name=a b' --json report.json"
        for what in (
            "'by hand.py:Right'",
            "'by hand.py:Wrong'",
            "'by hand.py:Broken'",
            "'by hand.py' --all",
        )
    ]


@pytest.mark.slow
def test_all_are_checked_with_a_line_each(folder):
    done = run("mine.py", "--all", "--json", "all.json")
    right, wrong, broken, total, place = done.output.splitlines()
    assert right.startswith("  mine.py:Right   paper, ε outside the root, L2 weight decay, ")
    assert wrong.startswith("! mine.py:Wrong   β1 and β2 are swapped; else paper, ")
    assert broken.startswith("? mine.py:Broken  cannot be run: Tried ")
    assert total == "1 of 3 faithful, 1 with a deviation (!), 1 that cannot be run (?)"
    assert place == f"wrote {folder / 'all.json'}"
    assert done.exit_code == 1
    reports = json.loads((folder / "all.json").read_text("utf-8"))
    assert [each["subject"] for each in reports] == [f"mine.py:{name}" for name in VERDICTS]
    assert [each.get("faithful") for each in reports] == [True, False, None]
    assert "ValueError: not yet" in reports[2]["error"]


@pytest.mark.slow
def test_the_only_one_of_a_file_is_checked(folder):
    (folder / "one.py").write_text(
        "from tests.support.planted import Planted\n\n\nclass Right(Planted):\n    pass\n", "utf-8"
    )
    done = run("one.py")
    assert done.output.startswith("paper, ε outside the root, L2 weight decay, ")
    assert "subject    one.py:Right" in done.output
    assert done.exit_code == 0


#: What the three classes are found to be.
VERDICTS = {"Right": True, "Wrong": False, "Broken": None}


def told_at_once(subject, options, tell):
    """A report that takes no probing."""
    name = getattr(subject, "name", subject)
    faithful = VERDICTS[name.rpartition(":")[2]]
    if faithful is None:
        raise CannotCheckError("it is broken")
    return Report(subject=name, convention="", sentence="as is", faithful=faithful, deviations=())


@pytest.mark.parametrize(
    ("kept", "code"),
    [(["Right"], 0), (["Broken"], 2), (["Right", "Broken"], 1), (["Wrong"], 1), (["Right"] * 2, 0)],
)
def test_the_exit_code_of_all_is_0_where_all_are_faithful_and_2_where_none_runs(
    folder, kept, code, monkeypatch
):
    monkeypatch.setattr("adamas.checking.examination.examine", told_at_once)
    chosen = tuple(Subject(f"mine.py:{name}", Planted, {}) for name in kept)
    monkeypatch.setattr("adamas.checking.candidates.candidates", lambda place: chosen)
    done = run("mine.py", "--all")
    assert done.exit_code == code
    assert len(done.output.splitlines()) == len(kept) + 1


def test_all_of_one_thing_is_refused_with_the_place_that_it_stands_in():
    done = run("torch.optim:Adam", "--all")
    assert done.exit_code == 2
    words = " ".join(done.output.split())
    assert "torch.optim:Adam names one thing in it. Give torch.optim --all, or leave" in words


ENDS = """
import sys


class Adam:
    def __init__(self, lr=1e-3):
        pass

    def update(self, params, grads):
        sys.exit(0)
"""


def test_a_step_that_ends_the_program_is_no_faithful_adam(folder):
    (folder / "ends.py").write_text(ENDS, "utf-8")
    done = run("ends.py")
    assert done.exit_code == 2
    assert "RuntimeError: it ends the program (SystemExit: 0)" in done.output


def test_an_interrupted_check_has_no_verdict(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("adamas.checking.examination.examine", interrupted)
    done = run("mine.py:Right")
    assert done.exit_code == 2
    assert done.output == "Error: Interrupted before the check was finished.\n"


# ── what is written and printed ────────────────────────────────────────────────────────────────


def test_the_report_is_written_before_it_is_printed(folder, monkeypatch):
    def fails(*_, **__):
        raise OSError("the console is gone")

    monkeypatch.setattr(Console, "print", fails)
    monkeypatch.setattr("adamas.checking.examination.examine", told_at_once)
    done = run("mine.py:Right", "--json", "report.json")
    assert "the console is gone" in done.output
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["subject"] == "mine.py:Right"
    assert report["faithful"] is True


def test_a_report_goes_where_a_link_points(folder, monkeypatch):
    monkeypatch.setattr("adamas.checking.examination.examine", told_at_once)
    (folder / "report.json").symlink_to("kept.json")
    done = run("mine.py:Right", "--json", "report.json")
    assert done.exit_code == 0
    assert (folder / "report.json").is_symlink()
    assert json.loads((folder / "kept.json").read_text("utf-8"))["faithful"] is True


def test_closed_streams_are_no_error(folder, monkeypatch):
    monkeypatch.setattr("adamas.checking.examination.examine", told_at_once)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["check", "mine.py:Right"], standalone_mode=False) is None
    with pytest.raises(SystemExit) as ended:
        main(["check", "mine.py:Wrong"], standalone_mode=False)
    assert ended.value.code == 1


def started(folder, *arguments, **options):
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-m", "adamas", "check", *arguments],
        cwd=folder,
        env={**os.environ, **environment, **options},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("Right", 0), ("Wrong", 1)])
def test_the_exit_code_is_the_verdict_also_where_nobody_reads(folder, name, code):
    process = started(folder, f"mine.py:{name}", "--json", "report.json")
    process.stdout.close()
    assert process.wait(PATIENCE) == code, process.stderr.read()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert json.loads((folder / "report.json").read_text("utf-8"))["faithful"] is (code == 0)


@pytest.mark.slow
def test_a_console_that_has_no_greek_letters_gets_a_verdict_all_the_same(folder):
    process = started(folder, "mine.py:Right", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    printed, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert printed.startswith(b"paper, ? outside the root, ")


# ── how far it is ──────────────────────────────────────────────────────────────────────────────


def test_every_stage_is_told_part_by_part_to_its_end():
    told = []
    examine(Planted, {}, told.append)
    assert list(dict.fromkeys(each.stage for each in told)) == list(STAGES)
    for stage in STAGES:
        parts = [each for each in told if each.stage == stage]
        assert [each.done for each in parts] == list(range(len(parts)))
        assert len({each.total for each in parts}) == 1
        if parts[-1].total is not None:
            assert parts[-1].done == parts[-1].total > 1
    steps = {each.stage: each.total for each in told}
    assert steps["running longer"] > 300
    assert steps["searching for its form"] is None


# ── options ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("True", True),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("none", "none"),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("Infinity", math.inf),
        ("float('inf')", math.inf),
        ("(0.9, inf)", (0.9, math.inf)),
        ("0.9,0.99", (0.9, 0.99)),
        ("{'a': true}", {"a": True}),
        ("first-step", "first-step"),
        ("'nan'", "nan"),
        ("float('much')", "float('much')"),
        ("__import__('os')", "__import__('os')"),
        ("", ""),
    ],
)
def test_an_option_is_a_python_literal_a_word_for_a_number_or_text(text, value):
    assert assigned(f"x={text}") == ("x", value)


def test_nan_is_a_number_in_an_option():
    for text in ("nan", "NaN", "-nan", "float('nan')"):
        name, value = assigned(f"x={text}")
        assert name == "x"
        assert type(value) is float
        assert math.isnan(value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "float('nan')"])
def test_a_setting_that_is_not_finite_is_refused_with_what_a_check_needs(value):
    done = run("adamas:Adam", "--set", f"lr={value}")
    assert done.exit_code == 2
    shown = value.removeprefix("float('").removesuffix("')")
    said = f"lr is {shown}, but a check needs finite settings, or no update tells anything."
    assert said in " ".join(done.output.split())
