"""The command line: what it prints, writes and refuses, with a terminal and without."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

import adamas
from adamas import demo, race
from adamas.cli import main
from adamas.tracks import FUNCTIONS
from tests.support.cases import PATIENCE, ROOT

ESCAPE = "\x1b"


def read_until_closed(descriptor):
    """Return what is written to the other side until that is closed, and close this one."""
    seen = bytearray()
    try:
        while data := os.read(descriptor, 1024):
            seen.extend(data)
    except OSError:  # Linux' way of saying that the other side has closed
        pass
    finally:
        os.close(descriptor)
    return seen


def adamas_in_a_process(*arguments, cwd, **environment):
    """Run ``python -m adamas`` without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "adamas", *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support"), *sys.path[1:]]),
            **environment,
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_demo_trains_draws_and_tells_where(tmp_path):
    done = adamas_in_a_process("demo", "--epochs", "2", "--seeds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["method", "rate"]
    assert [line.split()[0] for line in lines[2:5]] == ["Momentum", "RMSProp", "Adam"]
    picture = tmp_path / "adamas-demo.png"
    assert lines[-1] == f"wrote {picture.resolve()}"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 500
    # There is no terminal.
    assert ESCAPE not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python")
@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_bars_are_drawn_and_NO_COLOR_takes_the_colours_away(tmp_path, no_color):
    import pty

    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    if no_color:
        environment["NO_COLOR"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path[1:])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adamas", "demo", "--epochs", "3"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = read_until_closed(ours).decode()
    status = process.wait(timeout=PATIENCE)
    assert status == 0, text
    assert "330/330" in text  # 3 epochs of 22 batches, for 5 seeds
    coloured = any(f"{ESCAPE}[{code}" in text for code in ("3", "38;5;"))
    assert coloured != no_color


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python")
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_check_tells_how_far_it_is_where_standard_error_is_a_terminal(tmp_path, is_terminal):
    import pty

    from adamas.checking.progress import STAGES

    command = [sys.executable, "-m", "adamas", "check", "adamas:Adam"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path[1:])
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    seen = read_until_closed(ours)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert printed.decode().startswith("paper, ε outside the root, ")
    assert ESCAPE not in printed.decode()
    if is_terminal:
        # A stage that is quicker than the bar is drawn anew need not be seen.
        assert any(stage in seen.decode() for stage in STAGES)
    else:
        assert seen == b""


def test_a_command_that_is_nearly_right_is_answered_with_the_right_one():
    done = run("rce")
    assert done.exit_code == 2
    assert done.output.count("Did you mean 'race'?") == 1


def test_a_count_may_be_written_as_a_power_of_ten(tmp_path):
    for steps, code in (("1e1", 0), ("20", 0), ("1.5", 2), ("0", 2), ("many", 2)):
        done = run("race", "beale", "--steps", steps, "--output", tmp_path / "race.png")
        assert done.exit_code == code, done.output


def test_trying_out_a_path_leaves_no_file_behind_and_keeps_one_that_is_there(tmp_path):
    (tmp_path / "kept.png").write_bytes(b"kept")
    done = run("race", "nothing", "--output", tmp_path / "new.png")
    assert done.exit_code == 1
    done = run("race", "nothing", "--output", tmp_path / "kept.png")
    assert [each.name for each in tmp_path.iterdir()] == ["kept.png"]
    assert (tmp_path / "kept.png").read_bytes() == b"kept"


@pytest.mark.slow
def test_race_prints_where_the_methods_end_and_draws(tmp_path):
    picture, moving = tmp_path / "race.png", tmp_path / "race.gif"
    done = run("race", "rosenbrock", "--output", picture, "--gif", moving)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()[1:]] == [
        "method", "Momentum", "RMSProp", "Adam", "wrote", "wrote",
    ]  # fmt: skip
    with Image.open(picture) as image:
        assert image.format == "PNG"
    with Image.open(moving) as image:
        assert (image.format, image.n_frames) == ("GIF", 45)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("race --gif missing/a.gif", 1, "No such file or directory). Choose another with --gif."),
        ("race --gif a.txt", 2, "--gif is 'a.txt', but its name must end in .gif."),
        ("race --output a.jpg", 2, "--output is 'a.jpg', but its name must end in .png."),
        # One file would be written over the other.
        ("race --output a.gif --gif a.gif", 2, "--output is 'a.gif', but its name must end in"),
        ("demo --output missing/a.png", 1, "directory). Choose another with --output."),
        ("demo --output a.svg", 2, "--output is 'a.svg', but its name must end in .png."),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_any_work(
    command, code, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(race, "race", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr(demo, "load_digits", lambda seed: pytest.fail("work was done"))
    done = run(*command.split())
    assert done.exit_code == code
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_race_tells_when_each_method_arrives_and_how_far_from_a_minimum_it_ends(tmp_path):
    done = run("race", "beale", "--note", "--output", tmp_path / "race.png")
    assert done.exit_code == 0, done.output
    above, header, *lines = done.output.splitlines()
    assert above.split()[-3:] == ["to", "a", "within"]
    assert header.split()[-2:] == ["minimum", "0.01"]
    paths = race.race(FUNCTIONS["beale"], methods=("Momentum", "RMSProp", "Adam", "note"))
    for line, path in zip(lines[:4], paths, strict=True):
        track = FUNCTIONS["beale"]
        far, step = race.distances(track, path)[-1], race.arrival(track, path)
        assert line.split()[0] == path.method
        assert line.split()[-3:] == [f"{far:.2g}", "step", f"{step:,}"]
    assert lines[4].startswith("note: Adam without the exponent t in the bias correction")


def test_a_function_without_known_minima_has_no_distances_in_its_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def bowl(x):\n    return x[0] ** 2 + 3 * x[1] ** 2\n")
    done = run("race", "mine.py:bowl", "--steps", "3")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split()[-1] == "value"


def test_race_takes_the_users_own_function_from_the_current_directory(tmp_path):
    (tmp_path / "mine.py").write_text("def bowl(x):\n    return x[0] ** 2 + 3 * x[1] ** 2\n")
    done = adamas_in_a_process(
        "race", "mine:bowl", "--steps", "500", "--lr", "0.05", "--start", "2", "-1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    adam = next(line for line in done.stdout.splitlines() if line.startswith("Adam"))
    assert float(adam.split()[-1]) < 1e-3


def test_race_takes_x_and_y_from_a_file_and_tells_what_diverges(tmp_path):
    (tmp_path / "mine.py").write_text("def valley(x, y):\n    return x**4 + 3 * y**4\n")
    command = ("race", "mine.py:valley", "--lr", "1", "--start", "3", "-3")
    done = adamas_in_a_process(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.search(r" diverges at step \d+$", told["Momentum"].rstrip())
    assert float(told["Adam"].split()[-1]) < 1.0
    assert len(told["Momentum"].rstrip()) < 110


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "Known are himmelblau, rosenbrock, beale, rastrigin; your own is given as"),
        ("no_such_module:f", "The module 'no_such_module' cannot be imported"),
        ("math:no_such_function", "math has no 'no_such_function'. Possible are math:acos, "),
        ("rosenbrok", "There is no function 'rosenbrok'. Did you mean 'rosenbrock'? Known are"),
        ("builtins:str", "but it must return one number for an array of two."),
    ],
)
def test_race_says_what_is_wrong_with_a_function(tmp_path, function, message):
    done = run("race", function, "--output", tmp_path / "race.png")
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_command_whose_output_is_closed_ends_as_if_it_were_read(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m adamas race --steps 2 --output race.png >&-"
    path = os.pathsep.join(sys.path[1:])
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_a_count_that_is_no_number_is_called_no_integer():
    assert "'1.5' is not a valid integer." in run("demo", "--seeds", "1.5").output


@pytest.mark.parametrize("command", [["info"], ["race", "--steps", "2", "--output", "race.png"]])
def test_a_narrow_terminal_cuts_nothing_off(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("info", "race"):
        monkeypatch.setattr(f"adamas.cli.{module}.console_of", lambda who: Console(width=36))
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert "…" not in done.output


def test_info_tells_version_target_threads_and_frameworks(tmp_path):
    done = adamas_in_a_process("info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = dict(line.rstrip().split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["adamas"] == adamas.__version__
    assert rows["numpy"] == np.__version__
    assert rows["target"] == adamas.target()
    assert rows["threads"].startswith(str(adamas.get_num_threads()))


@pytest.mark.parametrize("arguments", [[], ["check"], ["demo"], ["race"], ["info"]])
def test_every_command_has_help(arguments):
    done = run(*arguments, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.output
    assert len(done.output.splitlines()) > 5


@pytest.mark.parametrize(
    "arguments", [["dance"], ["demo", "--epochs", "0"], ["demo", "--epochs", "x"], ["race", "--lr"]]
)
def test_wrong_usage_has_exit_code_2(arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("command", "module", "message"),
    [
        (
            "demo",
            "sklearn.datasets",
            'adamas demo needs scikit-learn. Install it with: pip install "adamas[demo]"',
        ),
        (
            "demo",
            "rich.console",
            'adamas demo needs rich. Install it with: pip install "adamas[cli]"',
        ),
        (
            "demo",
            "matplotlib",
            'adamas demo needs matplotlib. Install it with: pip install "adamas[demo]"',
        ),
        (
            "race",
            "matplotlib",
            'adamas race needs matplotlib. Install it with: pip install "adamas[plots]"',
        ),
        (
            "race --gif race.gif",
            "PIL",
            'adamas race --gif needs pillow. Install it with: pip install "adamas[plots]"',
        ),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_it(
    command, module, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    done = run(*command.split())
    assert done.exit_code == 1
    assert done.output == f"Error: {message}\n"  # and no work was done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["1e2", "100", "9007199254740993"])
def test_a_whole_number_on_the_command_line_is_taken_to_the_last_digit(text, monkeypatch):
    seeds = []

    def noted(seed):
        seeds.append(seed)
        raise ValueError

    monkeypatch.setattr(demo, "load_digits", noted)
    CliRunner().invoke(main, ["demo", "--seed", text])
    assert seeds == [100 if text == "1e2" else int(text)]
