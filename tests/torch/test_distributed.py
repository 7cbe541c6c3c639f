"""Tensors cut over processes in every way, with the bits of one process."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.support.cases import ROOT
from tests.support.processes import run_together

SUPPORT = ROOT / "tests" / "support"
PROGRAM, EXCHANGE = (str(SUPPORT / each) for each in ("mesh_program.py", "exchange_program.py"))


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ("2", 2),
        pytest.param("4", 4, marks=pytest.mark.slow),
        pytest.param("2x2", 4, marks=pytest.mark.slow),
        pytest.param("2x2x2", 8, marks=pytest.mark.slow),
    ],
)
def test_tensors_cut_in_every_way_have_one_norm_and_the_bits_of_whole_ones(tmp_path, shape, count):
    """Two processes check all of the next test as well."""
    assert run_together([PROGRAM], count, tmp_path, shape) == [0] * count


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "count"), [("4", 4), ("2x2", 4)])
def test_norms_and_verdicts_are_those_of_all_processes_in_one_small_message(tmp_path, shape, count):
    assert run_together([EXCHANGE], count, tmp_path, shape) == [0] * count


@pytest.mark.slow
def test_devices_take_norm_and_verdict_together(tmp_path):
    pytest.importorskip("triton")
    program = str(SUPPORT / "device_exchange_program.py")
    assert run_together([program], 2, tmp_path, "2") == [0] * 2


@pytest.mark.slow
def test_a_record_of_shards_is_that_of_whole_tensors(tmp_path):
    program = str(SUPPORT / "recorder_program.py")
    assert run_together([program], 2, tmp_path, str(tmp_path)) == [0] * 2
