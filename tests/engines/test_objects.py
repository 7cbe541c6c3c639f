"""The compiled objects: one per machine, which share nothing and obey the contract.

The kernels are compiled here as the package compiles them, and their symbols and instructions
read with the tools that come with every compiler: ``nm`` and ``objdump``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adamas.engines import native
from tests.support.cases import PATIENCE, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "win32",
        reason="nm and objdump do not read what Microsoft's compiler writes",
    ),
]

MACHINES = tuple(native.targets())
IS_X86_64 = platform.machine().lower() in {"x86_64", "amd64"}

#: Letters of nm for what the linker merges or replaces: weak and unique symbols.
SHARED = "WwVvu"
#: vfmadd213ps, vfnmsub132sd; on Arm fmadd, fnmsub, fmla, fmls.
FUSED = re.compile(r"vfn?m|fn?m(add|sub|la|ls)")
#: rcpps, vrsqrt14ps; on Arm frecpe, frsqrts.
ESTIMATE = re.compile(r"v?(rcp|rsqrt)|fr(ecp|sqrt)")


def output_of(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object file of each machine."""
    build = tmp_path_factory.mktemp("build")
    output_of(
        "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"
    )
    output_of("cmake", "--build", build, "--target", *(f"kernels_{name}" for name in MACHINES))
    found = {
        name: list((build / "CMakeFiles" / f"kernels_{name}.dir").rglob("*.o")) for name in MACHINES
    }
    assert all(len(files) == 1 for files in found.values()), found
    return {name: file for name, (file,) in found.items()}


def symbols(file: Path) -> list[tuple[str, str]]:
    """Type (one letter, see ``man nm``) and name of each symbol."""
    return re.findall(r"^[0-9a-f ]* (\w) (.*)$", output_of("nm", "-C", file), re.MULTILINE)


def instructions(file: Path, *, fused: bool | None = None) -> list[tuple[str, str]]:
    """Name and operands of each instruction: of all, of exact sums alone, or of all else."""
    text = output_of("objdump", "-d", "--no-show-raw-insn", file)
    sections = re.split(r"^Disassembly of section (.+):$", text, flags=re.MULTILINE)
    return [
        each
        for name, body in zip(sections[1::2], sections[2::2], strict=True)
        if fused is None or (name == "adamas_fused") == fused
        for each in re.findall(r"^\s*[0-9a-f]+:\s+(\S+)[ \t]*(.*)$", body, re.MULTILINE)
    ]


@pytest.mark.parametrize("machine", MACHINES)
def test_an_object_defines_nothing_that_another_could_replace(objects, machine):
    # Weak and unique symbols (inline functions, templates) of all objects are merged into one: if
    # the machine with the most instructions wins, the others crash. Every function that the
    # kernels use must therefore be internal.
    assert [name for kind, name in symbols(objects[machine]) if kind in SHARED] == []


@pytest.mark.parametrize("machine", MACHINES)
def test_an_object_offers_its_table_of_kernels_and_nothing_else(objects, machine):
    offered = [name for kind, name in symbols(objects[machine]) if kind.isupper() and kind != "U"]
    assert [name.lstrip("_") for name in offered] == [f"adamas::kernels_{machine}"]


@pytest.mark.parametrize("machine", MACHINES)
def test_an_object_needs_nothing_of_adamas_or_of_the_library_of_cpp(objects, machine):
    needed = [name for kind, name in symbols(objects[machine]) if kind == "U"]
    assert [name for name in needed if "::" in name or "sqrt" in name] == []


def test_the_objects_offer_no_name_twice(objects):
    offered = [
        name
        for file in objects.values()
        for kind, name in symbols(file)
        if kind.isupper() and kind != "U"
    ]
    assert len(offered) == len(set(offered)) == len(MACHINES)


@pytest.mark.parametrize("machine", MACHINES)
def test_an_object_fuses_no_product_with_a_sum_but_in_exact_sums_and_estimates_nowhere(
    objects, machine
):
    found = instructions(objects[machine], fused=False)
    assert len(found) > 1000
    assert {name for name, _ in found if FUSED.match(name) or ESTIMATE.match(name)} == set()
    sums = instructions(objects[machine], fused=True)
    assert len(sums) > 100
    assert {name for name, _ in sums if ESTIMATE.match(name)} == set()
    has_fused = machine != "baseline" or not IS_X86_64
    assert any(FUSED.match(name) for name, _ in sums) == has_fused


def test_that_a_fused_product_and_a_shared_function_would_be_found(tmp_path):
    (tmp_path / "bad.cpp").write_text(
        "__attribute__((noinline)) inline double shared(double x) { return x + 1.0; }\n"
        "void f(double* x, const double* y) {\n"
        "    for (int i = 0; i < 4096; ++i) x[i] = x[i] * y[i] + shared(y[0]);\n"
        "}\n"
    )
    machine = ["-mfma"] if IS_X86_64 else []
    flags = ["-O3", "-ffp-contract=fast", *machine]
    output_of("c++", *flags, "-c", tmp_path / "bad.cpp", "-o", tmp_path / "bad.o")
    assert any(FUSED.match(name) for name, _ in instructions(tmp_path / "bad.o"))
    assert any(kind in SHARED for kind, _ in symbols(tmp_path / "bad.o"))


#: The widest registers of each machine, and those it must not touch.
REGISTERS = {
    "avx512": ("zmm", ""),
    "avx2": ("ymm", "zmm|ymm1[6-9]|ymm[23]\\d|xmm1[6-9]|xmm[23]\\d|%k[0-7]"),
    "baseline": ("xmm", "zmm|ymm"),
}


@pytest.mark.skipif(
    not IS_X86_64,
    reason="the registers are named for x86-64; on Arm the baseline is the only machine",
)
@pytest.mark.parametrize("machine", MACHINES)
def test_an_object_divides_and_takes_roots_in_the_widest_registers_of_its_machine(objects, machine):
    widest, forbidden = REGISTERS[machine]
    found = instructions(objects[machine])
    for name in ("sqrtps", "sqrtpd", "divps", "divpd"):
        operands = [operand for each, operand in found if each.removeprefix("v") == name]
        assert any(widest in operand for operand in operands), name
    assert [operand for _, operand in found if forbidden and re.search(forbidden, operand)] == []
    if machine == "baseline":
        assert [name for name, _ in found if name.startswith("v")] == []
