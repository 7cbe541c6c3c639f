"""That native/dlpack.h lays out structs as the published header of DLPack does."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.cases import ROOT

OURS = ROOT / "native" / "dlpack.h"
TEXT = OURS.read_text("utf-8")
compiles = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler c++")

#: Our structs and theirs; a member that is called otherwise there, or stands in their header.
STRUCTS = {
    "Device": "DLDevice",
    "DataType": "DLDataType",
    "Tensor": "DLTensor",
    "Version": "DLPackVersion",
    "ExchangeApi": "DLPackExchangeAPI",
}
MEMBERS = {
    "version": "header.version",
    "older": "header.prev_api",
    "tensor_from_py_object_no_sync": "dltensor_from_py_object_no_sync",
}
CONSTANTS = {
    "cpu": "kDLCPU",
    "int_code": "kDLInt",
    "uint_code": "kDLUInt",
    "float_code": "kDLFloat",
    "bfloat_code": "kDLBfloat",
    "major_version": "DLPACK_MAJOR_VERSION",
}


def checked(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a compiler says of C++ text."""
    path = folder / "source.cpp"
    path.write_text(source, "utf-8")
    command = ["c++", "-std=c++20", "-Wno-invalid-offsetof", "-fsyntax-only", path]
    return subprocess.run(command, capture_output=True, text=True)


def members_of(struct: str) -> list[str]:
    (body,) = re.findall(rf"^struct {struct} {{\n(.*?)^}};", TEXT, re.MULTILINE | re.DOTALL)
    code = re.sub(r"//.*", "", body)
    return [re.findall(r"\(\*(\w+)\)|(\w+)$", line)[0] for line in code.split(";") if line.strip()]


def test_every_struct_and_every_constant_is_compared():
    assert re.findall(r"^struct (\w+) {", TEXT, re.MULTILINE) == list(STRUCTS)
    assert re.findall(r"^constexpr std::u?int\d+_t (\w+) =", TEXT, re.MULTILINE) == list(CONSTANTS)
    assert [a or b for a, b in members_of("DataType")] == ["code", "bits", "lanes"]
    assert len(members_of("ExchangeApi")) == 7


@compiles
def test_sizes_offsets_and_constants_are_those_of_the_header_that_torch_installs(tmp_path):
    torch = find_spec("torch")
    if torch is None:
        pytest.skip("torch, which installs a copy of dlpack.h, is not installed")
    theirs = Path(torch.submodule_search_locations[0]) / "include" / "ATen" / "dlpack.h"
    same = []
    for ours, other in STRUCTS.items():
        same.append(f"sizeof(ours::{ours}) == sizeof({other})")
        same.append(f"alignof(ours::{ours}) == alignof({other})")
        for name in (a or b for a, b in members_of(ours)):
            member = MEMBERS.get(name, name)
            same.append(f"offsetof(ours::{ours}, {name}) == offsetof({other}, {member})")
            same.append(f"sizeof(ours::{ours}::{name}) == sizeof((({other}*)nullptr)->{member})")
    same += [f"ours::{ours} == {other}" for ours, other in CONSTANTS.items()]
    reads = "DLPackDLTensorFromPyObjectNoSync, int (*)(void*, DLTensor*)"
    same.append(f"std::is_same_v<{reads}>")
    assert len(same) > 50
    lines = [f"static_assert({each});" for each in same]
    head = f'#include "{OURS}"\n#include "{theirs}"\nnamespace ours = adamas::dlpack;\n'
    done = checked(head + "\n".join(lines), tmp_path)
    assert done.returncode == 0, done.stderr


@compiles
@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("    std::int32_t ndim;\n", "    std::int64_t ndim;\n"),
        ("    std::uint8_t bits;\n", "    std::uint16_t bits;\n"),
        ("    ExchangeApi* older;", "    std::uint64_t spare;\n    ExchangeApi* older;"),
        (
            "    std::int64_t* shape;\n    std::int64_t* strides;\n",
            "    std::int64_t* strides;\n    std::int64_t* shape;\n",
        ),
    ],
)
def test_another_layout_is_not_compiled(line, instead, tmp_path):
    assert TEXT.count(line) == 1
    done = checked(TEXT.replace(line, instead), tmp_path)
    assert done.returncode != 0
    assert "assert" in done.stderr
