"""Runs that go on with other numbers of processes have the bits of one that was never cut."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.support.cases import ROOT
from tests.support.processes import run_together

PROGRAM = str(ROOT / "tests" / "support" / "resharding_program.py")
#: One after another: 4 → 2, 2 → 4 (FSDP2 over tensor parallelism), 4 → 3, 3 → 1, 1 → 4.
CHAIN = ("4", "2", "2x2", "3", "1", "4")


@pytest.mark.slow
def test_a_run_that_is_resharded_between_steps_has_the_bits_of_one_that_is_not(tmp_path):
    for i, shape in enumerate(CHAIN):
        count = 4 if shape == "2x2" else int(shape)
        own = tmp_path / f"part {i}"
        own.mkdir()
        arguments = (shape, str(tmp_path), str(i), str(i + 1))
        assert run_together([PROGRAM], count, own, *arguments) == [0] * count, (i, shape)
