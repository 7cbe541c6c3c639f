"""That the compiled module keeps the contract, whatever flags it was built with."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from adamas import _native
from tests.support.cases import ROOT, python
from tests.support.troubleshooting import quoted

X86_64 = platform.machine().lower() in {"x86_64", "amd64"}
disassembles = pytest.mark.skipif(
    not (X86_64 and sys.platform == "linux" and shutil.which("objdump")),
    reason="instructions are told by their x86-64 names, and by objdump",
)
compiles = pytest.mark.skipif(
    not (X86_64 and sys.platform == "linux"),
    reason="the flags are those of GCC and Clang on x86-64",
)

#: Flags of people who want speed, and of their package managers.
BAD_FLAGS = (
    "-Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math "
    "-ffinite-math-only -fno-signed-zeros -frounding-math -ffp-contract=fast -mrecip "
    "-fsingle-precision-constant -march=native -mtune=native -mavx512f -mfma -mfpmath=387"
)
FUSED_OR_ESTIMATED = re.compile(r"v?(fn?m(add|sub)|v4fn?madd|rcp|rsqrt|fld|fst)")


#: Where exact sums are taken, which come to the same bits with and without.
FUSED_SECTION = "adamas_fused"


def instructions(path: Path, *, fused: bool = False) -> list[str]:
    """The instructions of a binary, operands included: but for exact sums, or theirs alone."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^Disassembly of section (.+):$", text, flags=re.MULTILINE)
    lines = [
        line
        for name, body in zip(sections[1::2], sections[2::2], strict=True)
        if (name == FUSED_SECTION) == fused
        for line in body.splitlines()
    ]
    return [line.split("\t", 1)[1] for line in lines if "\t" in line]


def built(source: Path, folder: Path, **environment: str) -> Path:
    """The package in ``source``, built with CMake by the given environment; where it is."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = {"check": True, "env": {**os.environ, "PATH": tools, **environment}}
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", source, "-B", folder, *options], **run)
    subprocess.run(["cmake", "--build", folder], **run)
    package = folder / "package"
    ours = shutil.ignore_patterns("_native*.so", "__pycache__")
    shutil.copytree(ROOT / "src" / "adamas", package / "adamas", ignore=ours)
    (module,) = folder.glob("_native*.so")
    shutil.copy(module, package / "adamas")
    return package


def smoked(package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What the smoke test of an installed adamas says."""
    where = [] if package is None else [str(package)]
    path = os.pathsep.join([*where, *filter(None, sys.path)])
    smoke = (ROOT / ".ci" / "smoke.py").read_text("utf-8")
    return python(smoke, PYTHONPATH=path)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (None, b"", "has none"),
        ("_native.cpython-30-other.so", b"", "has only _native.cpython-30-other.so"),
        ("_native" + EXTENSION_SUFFIXES[-1], b"no code", "_native" + EXTENSION_SUFFIXES[-1]),
    ],
    ids=["missing", "of another Python", "damaged"],
)
def test_a_compiled_module_that_cannot_be_loaded_is_told_with_the_way_out(
    tmp_path, file, content, told
):
    package = tmp_path / "adamas"
    ours = shutil.ignore_patterns("_native*.so", "_native*.pyd", "__pycache__")
    shutil.copytree(ROOT / "src" / "adamas", package, ignore=ours)
    if file is not None:
        (package / file).write_bytes(content)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = python("import adamas", PYTHONPATH=path)
    assert done.returncode == 1
    (said,) = re.findall("^ImportError: adamas.*$", done.stderr, re.MULTILINE)
    here = f"{sys.implementation.cache_tag} on {sys.platform}"
    assert said.startswith(f"ImportError: adamas has no compiled module that {here} can load: ")
    assert told in said
    assert len(quoted(said)) == 1


# ── this build ─────────────────────────────────────────────────────────────────────────────────


@disassembles
def test_no_instruction_fuses_or_estimates_but_in_exact_sums():
    assert _native.__file__ is not None
    lines = instructions(Path(_native.__file__))
    found = {line for line in lines if re.search("[xyz]mm", line)}
    assert found
    assert {line for line in found if FUSED_OR_ESTIMATED.match(line)} == set()
    sums = {line for line in instructions(Path(_native.__file__), fused=True) if "mm" in line}
    assert {line for line in sums if re.match("vfn?m(add|sub)...pd", line)}
    assert {line for line in sums if re.match("v?(rcp|rsqrt)", line)} == set()


def test_the_smoke_test_is_content():
    done = smoked()
    assert done.returncode == 0, done.stderr
    assert "the bits are right on" in done.stdout


@disassembles
def test_import_leaves_the_floating_point_mode_as_it_was(tmp_path):
    library = tmp_path / "probe.so"
    source = ROOT / "tests" / "support" / "probe.c"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    code = """
import ctypes, sys
import numpy

probe = ctypes.PyDLL(sys.argv[1])
probe.get_mode.restype = ctypes.c_uint64
controls = 0xFFC0  # all but the flags of what has happened
before = probe.get_mode() & controls
import adamas._native
print(before == probe.get_mode() & controls)
"""
    done = python(code, str(library))
    assert done.stdout.split() == ["True"], done.stderr


# ── flags ──────────────────────────────────────────────────────────────────────────────────────


@compiles
@pytest.mark.parametrize(
    ("flags", "blamed"),
    [
        ("-ffast-math", "-ffast-math"),
        ("-Ofast", "-Ofast"),
        ("-ffinite-math-only", "-ffast-math"),
        ("-freciprocal-math -DADAMAS_FOR_avx512", "-ffast-math"),
        ("-mfpmath=387", "-mfpmath=387"),
        ("-mavx", "-mavx"),
        ("-mavx512f -DADAMAS_FOR_avx2", "-march"),
    ],
)
def test_what_breaks_the_contract_ends_the_build_by_name(flags, blamed):
    source = ["-fsyntax-only", "-DADAMAS_X86_64", "-x", "c++", ROOT / "native" / "contract.h"]
    done = subprocess.run(["c++", *flags.split(), *source], capture_output=True, text=True)
    assert done.returncode != 0
    (said,) = set(re.findall(r'#error "(adamas .*)"', done.stderr))
    assert said.endswith("out of CXXFLAGS.")
    assert blamed in said


@compiles
@pytest.mark.parametrize("flags", ["-O0", "-mavx2 -DADAMAS_FOR_avx2", "-march=nocona -O2"])
def test_what_keeps_the_contract_is_compiled(flags):
    source = ["-fsyntax-only", "-DADAMAS_X86_64", "-x", "c++", ROOT / "native" / "contract.h"]
    subprocess.run(["c++", *flags.split(), *source], check=True)


@pytest.mark.slow
@disassembles
def test_flags_that_break_the_contract_lose_and_each_machine_gets_its_own_code(tmp_path):
    package = built(ROOT, tmp_path, CXXFLAGS=BAD_FLAGS, LDFLAGS="-Ofast -ffast-math")
    done = smoked(package)
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout
    objects = {
        path.relative_to(tmp_path / "CMakeFiles").parts[0].removesuffix(".dir"): path
        for path in tmp_path.glob("CMakeFiles/kernels_*.dir/**/*.o")
    }
    for name, registers in {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}.items():
        lines = instructions(objects[f"kernels_{name}"])
        widest = max(set(re.findall("[xyz]mm", "\n".join(lines))))
        assert widest == registers, name
        assert [line for line in lines if FUSED_OR_ESTIMATED.match(line)] == []
        # What one machine compiles must not stand in for another's: nothing to be merged.
        symbols = subprocess.run(["nm", objects[f"kernels_{name}"]], capture_output=True, text=True)
        assert re.findall(r" [WVu] (.*)", symbols.stdout) == []
    others = [path for path in tmp_path.glob("CMakeFiles/**/*.o") if path not in objects.values()]
    assert len(others) > 8
    for path in others:
        assert [line for line in instructions(path) if re.search("[yz]mm|^v", line)] == [], path


@pytest.mark.slow
@compiles
def test_the_smoke_test_notices_fast_math(tmp_path):
    source = tmp_path / "source"
    for name in ("native", "cmake"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "CMakeLists.txt", source)
    # Neither flags nor checks against it; one machine is enough.
    (source / "cmake" / "contract.cmake").write_text("set(optimization -O3)\n")
    (source / "native" / "contract.h").write_text("#pragma once\n")
    targets = (source / "native" / "targets.h").read_text()
    targets = re.sub(r"ADAMAS_TARGET\(avx.*\n", "", targets)
    (source / "native" / "targets.h").write_text(targets)
    done = smoked(built(source, tmp_path / "build", CXXFLAGS="-ffast-math"))
    assert done.returncode == 1
    assert "this build has other bits than the definition" in done.stderr or (
        "importing adamas makes the process flush subnormal numbers" in done.stderr
    )


@compiles
def test_the_smoke_test_notices_a_module_that_makes_the_process_flush(tmp_path):
    library = tmp_path / "probe.so"
    source = ROOT / "tests" / "support" / "probe.c"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    (tmp_path / "adamas" / "engines").mkdir(parents=True)
    (tmp_path / "adamas" / "engines" / "__init__.py").touch()
    (tmp_path / "adamas" / "engines" / "native.py").touch()
    (tmp_path / "adamas" / "__init__.py").write_text(
        f"import ctypes\n\nctypes.PyDLL({str(library)!r}).set_mode(0x9FC0)\n"
    )
    done = smoked(tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "importing adamas makes the process flush subnormal numbers: ['float32', 'float64']"
    )


@pytest.mark.slow
def test_two_architectures_at_once_are_refused(tmp_path):
    command = ["cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_OSX_ARCHITECTURES=x86_64;arm64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "adamas is built for one architecture at a time" in done.stderr
