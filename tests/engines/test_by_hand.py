"""What is written by hand for a machine: the bits of the generic code it stands for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adamas.engines import native
from tests.support.cases import PATIENCE, ROOT

MACHINES = ("avx512",)


def flags_of(machine: str) -> list[str]:
    """The flags with which ``native/targets.h`` has a machine compiled."""
    table = (ROOT / "native" / "targets.h").read_text("utf-8")
    (flags,) = re.findall(rf'^ADAMAS_TARGET\({machine}, "([^"]*)"', table, re.MULTILINE)
    return flags.split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="flags are given as GCC and Clang take them")
@pytest.mark.parametrize("machine", MACHINES)
def test_codecs_by_hand_have_the_bits_of_the_generic_ones_for_values_of_all_kinds(
    machine: str, tmp_path: Path
):
    """One of 32 values of all, evenly chosen; the argument 0 takes all, in ten minutes."""
    if not native.targets().get(machine):
        pytest.skip(f"this processor cannot run {machine}")
    source = ROOT / "tests" / "support" / "by_hand.cpp"
    own = [f"-I{ROOT / 'native'}", "-DADAMAS_X86_64", f"-DADAMAS_FOR_{machine}", "-std=c++20"]
    exact = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    built = ["c++", *exact, *own, *flags_of(machine), source, "-o", tmp_path / "by_hand"]
    subprocess.run([str(part) for part in built], check=True, timeout=PATIENCE)
    done = subprocess.run(
        [tmp_path / "by_hand", "5"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ values, \d+ rare blocks\n", done.stdout)
