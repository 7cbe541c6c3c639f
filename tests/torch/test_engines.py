"""Engines that spread a training over processes, with the bits of one optimizer over all of it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate", reason="needs the package accelerate")

from tests.support.cases import ROOT
from tests.support.processes import run_together

PROGRAM = str(ROOT / "tests" / "support" / "engines_program.py")


@pytest.mark.slow
def test_engines_of_three_processes_train_with_the_bits_of_one_optimizer(tmp_path):
    assert run_together([PROGRAM], 3, tmp_path) == [0] * 3
