"""Sharded arrays: laid out as the parameters, the same bits on any mesh, and after a resume."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("jax")

from tests.support.cases import PATIENCE, ROOT

PROGRAM = ROOT / "tests" / "support" / "jax_meshes.py"


def run(*arguments, devices=4):
    """Start the program, and return it."""
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(*programs):
    """Wait for programs: each has found all the same."""
    try:
        for each in programs:
            output, errors = each.communicate(timeout=PATIENCE)
            assert each.returncode == 0, errors
            assert output.splitlines()[-1] == "same"
    finally:
        for each in programs:
            each.kill()


@pytest.mark.slow
def test_state_is_laid_out_as_parameters_and_a_step_moves_nothing_and_is_compiled_once():
    check(run("laid_out"))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("orbax"), reason="needs orbax-checkpoint")
def test_a_run_on_4_devices_then_2_by_2_then_1_by_way_of_orbax_has_the_bits_of_an_unbroken_one():
    check(run("resumed"))


@pytest.mark.slow
def test_arrays_sharded_over_two_processes_have_the_bits_of_one_and_a_step_is_compiled_once():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    check(*(run("of_two_processes", str(rank), port, devices=2) for rank in range(2)))
