"""What adamas.torch hands to Triton: all launches up to the start of the kernel, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.cases import PATIENCE, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "launched.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_triton_takes_and_compiles_every_launch(launches):
    names = {name for name, _, _ in launches["found"]}
    assert names == {
        "read", "collect", "conclude", "number", "measure", "shorten", "sweep", "describe"
    }  # fmt: skip


def test_a_kernel_that_is_launched_again_gets_the_arguments_in_triton_s_order(launches):
    assert len(launches["again"]) > len(launches["found"])
    known = {(name, *arguments[:2]): arguments for name, _, arguments in launches["found"]}
    grids = {(name, *arguments[:2]): grid for name, grid, arguments in launches["found"]}
    for name, grid, arguments in launches["again"]:
        key = (name, *arguments[:2])
        assert arguments == known[key]
        assert grid == [*grids[key], 1, 1][:3]


def test_each_kernel_is_looked_for_once_in_a_plan(launches):
    looked = [
        (name, *arguments[:2]) for name, _, arguments in launches["found"] if name != "conclude"
    ]
    assert len(looked) == len(set(looked))
