"""Which machine's code answers, and in which floating-point mode it computes."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adamas
from adamas import _native
from adamas.engines import native
from tests.support.cases import MACHINES, ROOT, each_machine, python

X86_64 = platform.machine().lower() in {"x86_64", "amd64"}
ARM64 = platform.machine().lower() in {"arm64", "aarch64"}
watched = pytest.mark.skipif(
    not (X86_64 and sys.platform == "linux"),
    reason="instructions are watched one by one on Linux on x86-64 only",
)

#: The width of the registers, in bits, in which a machine's code takes roots.
WIDTHS = {"avx512": 512, "avx2": 256, "baseline": 128}


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/support/probe.c."""
    if sys.platform == "win32" or not (X86_64 or ARM64):
        pytest.skip("tests/support/probe.c knows x86-64 and 64-bit Arm, and not Windows")
    library = tmp_path_factory.mktemp("probe") / "probe.so"
    source = ROOT / "tests" / "support" / "probe.c"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    return library


# ── the machine ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("machine", native.targets())
def test_every_machine_of_this_build_runs_here_so_that_its_bits_are_compared(machine):
    if machine not in MACHINES:
        pytest.skip(f"this processor cannot run {machine}")
    assert machine in list(each_machine())


def test_the_best_machine_answers_where_none_is_forced():
    done = python("import adamas; print(adamas.target())")
    assert done.stdout.split() == [MACHINES[0]], done.stderr


def test_there_is_always_a_machine_that_runs_here():
    assert [*native.targets()][-1] == "baseline"
    assert native.targets()["baseline"]


#: Steps once, and prints how many roots were taken in registers of each width meanwhile.
WATCH = """
import ctypes, sys
import numpy as np
import adamas

probe = ctypes.PyDLL(sys.argv[1])
probe.count_roots.restype = ctypes.c_long
parameters, gradients = np.ones(64, np.float32), np.ones(64, np.float32)
optimizer = adamas.Adam(parameters)
for target in sys.argv[2:]:
    adamas.engines.native.set_target(target)
probe.begin()
optimizer.step(gradients)
probe.end()
print(adamas.target(), *(width for width in (128, 256, 512) if probe.count_roots(width)))
"""


@watched
@pytest.mark.parametrize("machine", MACHINES)
def test_a_forced_target_is_the_one_that_answers(probe, machine):
    done = python(WATCH, str(probe), ADAMAS_TARGET=machine)
    assert done.stdout.split() == [machine, str(WIDTHS[machine])], done.stderr


@pytest.mark.quick_cases(2)
@watched
@pytest.mark.parametrize("machine", MACHINES)
def test_another_target_answers_from_the_next_step_of_an_optimizer_on(probe, machine):
    done = python(WATCH, str(probe), *MACHINES, machine)
    assert done.stdout.split() == [machine, str(WIDTHS[machine])], done.stderr


def test_an_unknown_target_is_refused_at_import_with_the_possible_ones():
    done = python("import adamas", ADAMAS_TARGET="avx9")
    possible = ", ".join(MACHINES)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ValueError: The target 'avx9' was asked for, but there is no such target. "
        f"Possible here are: {possible}. Unset ADAMAS_TARGET for the best of them."
    )


def test_a_target_that_the_processor_cannot_run_is_refused_and_the_old_one_stays(monkeypatch):
    def here(only_here: bool = False) -> list[str]:
        return ["baseline"] if only_here else ["avx512", "avx2", "baseline"]

    before = adamas.target()
    monkeypatch.setattr(_native, "targets", here)
    message = (
        "The target 'avx512' was asked for, but this processor cannot run it. "
        "Possible here are: baseline. Unset ADAMAS_TARGET for the best of them."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        native.set_target("avx512")
    assert adamas.target() == before
    with pytest.raises(ValueError, match="no such target"):
        _native.set_target("avx9")


def test_an_empty_ADAMAS_TARGET_forces_nothing():
    done = python("import adamas; print(adamas.target())", ADAMAS_TARGET="")
    assert done.stdout.split() == [MACHINES[0]], done.stderr


# ── the floating-point mode ────────────────────────────────────────────────────────────────────

#: Steps in the contract's mode and in another one, and prints what is different.
COMPARE = """
import ctypes, sys
import numpy as np
import adamas
from tests.support.cases import FLOATS, LARGE, PHASES, differences, ordinary, run, special, wide
from adamas.engines import native
from adamas.options import Options

probe = ctypes.PyDLL(sys.argv[1])
probe.get_mode.restype = ctypes.c_uint64
probe.set_mode.argtypes = [ctypes.c_uint64]
usual = probe.get_mode()
mode = ctypes.c_uint64.in_dll(probe, sys.argv[2]).value

class InMode:
    def __init__(self, groups, phase):
        self.plan = native.Plan(groups, phase)

    def step(self, *arguments):
        global kept
        probe.set_mode(mode)
        before = probe.get_mode()
        try:
            return self.plan.step(*arguments)
        finally:
            if probe.get_mode() != before:
                found.append("the mode")
            probe.set_mode(usual)

class engine:
    Plan = InMode

random = np.random.default_rng(0)
found = []
adamas.set_num_threads(3)
for phase in PHASES.values():
    for dtype in FLOATS:
        for values in (ordinary, wide, special):
            for size in (5, LARGE):
                parameters = [values(random, size, dtype)]
                gradients = [[values(random, size, dtype)] for _ in range(3)]
                options = Options(lr=0.1, weight_decay=0.01, nesterov=True, amsgrad=True)
                case = (options, phase, parameters, gradients)
                found += differences(run(native, *case, first=3), run(engine, *case, first=3))
print(found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["flush_subnormals", "round_up", "round_to_zero", "trap"])
def test_the_bits_do_not_depend_on_the_callers_mode_which_is_kept(probe, mode):
    done = python(COMPARE, str(probe), mode)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert done.stdout.strip() == "[]"


def test_the_modes_of_the_probe_make_a_difference(probe):
    code = """
import ctypes, sys

probe = ctypes.PyDLL(sys.argv[1])
probe.get_mode.restype = ctypes.c_uint64
probe.set_mode.argtypes = [ctypes.c_uint64]
usual = probe.get_mode()
seen = set()
for name in (None, "flush_subnormals", "round_up", "round_to_zero"):
    probe.set_mode(usual if name is None else ctypes.c_uint64.in_dll(probe, name).value)
    above, tiny = float.__truediv__(1.0, 10.0), float.__mul__(2.0**-1000, 2.0**-50)
    below = float.__truediv__(-1.0, 10.0)
    probe.set_mode(usual)
    seen.add((above.hex(), below.hex(), tiny.hex()))
print(len(seen))
"""
    done = python(code, str(probe))
    assert done.stdout.split() == ["4"], done.stderr
