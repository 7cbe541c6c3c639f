"""Every example runs, and its own checks hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.cases import PATIENCE, ROOT
from tests.support.processes import run_alone

#: Lightning 2.6 itself calls what PyTorch 2.13 deprecates.
WARNS = {"lightning_training.py"}
#: What is not there for every Python.
NEEDS = {
    "elastic_training_jax.py": "orbax",
    "huggingface_trainer.py": "transformers",
    "jax_training.py": "jax",
}
#: What loads a framework for longer than it trains.
SLOW = {
    *("accelerate_training.py", "huggingface_trainer.py", "lightning_training.py"),
    *(
        "elastic_training.py",
        "elastic_training_jax.py",
        "gradient_release.py",
        "jax_training.py",
        "torch_training.py",
        "weight_sync.py",
    ),
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(each, marks=pytest.mark.slow) if each.name in SLOW else each
        for each in EXAMPLES
    ],
    ids=lambda path: path.name,
)
def test_the_example_runs_without_warnings_and_its_checks_hold(path, tmp_path):
    if path.name in NEEDS and not find_spec(NEEDS[path.name]):
        pytest.skip(f"needs {NEEDS[path.name]}")
    warnings = "default" if path.name in WARNS else "error"
    done = run_alone("-W", warnings, path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"
    assert "assert " in path.read_text("utf-8"), "an example checks itself"


def test_every_example_stands_in_the_gallery_once():
    gallery = (ROOT / "docs" / "guides" / "gallery.md").read_text("utf-8")
    shown = re.findall(r"^\| \[([^\]]+)\]\(\S+/examples/\1\) \| \w", gallery, re.MULTILINE)
    assert len(EXAMPLES) >= 5
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.*"))


@pytest.mark.slow
def test_an_example_that_needs_adamas_alone_runs_without_any_other_package(tmp_path):
    gallery = (ROOT / "docs" / "guides" / "gallery.md").read_text("utf-8")
    alone = re.findall(r"^\| \[([^\]]+\.py)\].*\| `adamas` \|$", gallery, re.MULTILINE)
    assert alone
    extras = ("click", "jax", "matplotlib", "mpmath", "rich", "scipy", "sklearn", "torch")
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({extras}))\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    for name in alone:
        done = subprocess.run(
            [sys.executable, "-c", program, ROOT / "examples" / name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
