"""Sharded arrays: laid out as the parameters, the same bits on any mesh, and after a resume."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("jax")

from tests.support.cases import PATIENCE, ROOT

PROGRAM = ROOT / "tests" / "support" / "jax_meshes.py"


def run(what):
    done = subprocess.run(
        [sys.executable, PROGRAM, what],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


@pytest.mark.slow
def test_state_is_laid_out_as_parameters_and_a_step_moves_nothing_and_is_compiled_once():
    run("laid_out")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("orbax"), reason="needs orbax-checkpoint")
def test_a_run_on_4_devices_then_2_by_2_then_1_by_way_of_orbax_has_the_bits_of_an_unbroken_one():
    run("resumed")
