"""Engines that spread a training over processes, with the bits of one optimizer over all of it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate", reason="needs the package accelerate")

from tests.support.cases import ROOT
from tests.support.processes import run_together
from tests.support.threads import linux

PROGRAM = str(ROOT / "tests" / "support" / "engines_program.py")
GROWTH = str(ROOT / "tests" / "support" / "growth_program.py")


@pytest.mark.slow
def test_engines_of_three_processes_train_with_the_bits_of_one_optimizer(tmp_path):
    assert run_together([PROGRAM], 3, tmp_path) == [0] * 3


@linux
@pytest.mark.slow
def test_steps_with_a_norm_of_all_processes_leave_no_objects_and_no_memory_behind(tmp_path):
    assert run_together([GROWTH], 2, tmp_path, "2000") == [0, 0]
