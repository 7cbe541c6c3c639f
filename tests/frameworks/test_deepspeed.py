"""DeepSpeed's ZeRO over processes, with the bits of one optimizer over plain parameters."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.support.cases import ROOT
from tests.support.processes import run_together

PROGRAM = str(ROOT / "tests" / "support" / "deepspeed_program.py")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the package deepspeed")
def test_all_stages_of_zero_over_two_processes_train_and_resume_with_the_bits_of_one(tmp_path):
    assert run_together([PROGRAM], 2, tmp_path, str(tmp_path / "checkpoints")) == [0, 0]
