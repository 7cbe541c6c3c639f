"""The kernels compile without a GPU, and every operation in them rounds once."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest

from adamas import digits
from adamas.engines.triton import codecs, kernels, marks, numbers, rule, sums
from adamas.engines.triton.jobs import DTYPES, Stored
from adamas.options import Rounding, StateForm
from tests.support.cases import PATIENCE, python

pytestmark = pytest.mark.slow

CAPABILITIES = (80, 90, 100)
#: The constants of the sweep that say how a tensor is stored.
STORED = Stored._fields


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All compiled kernels; see compiled_kernels.py."""
    folder = tmp_path_factory.mktemp("compiled")
    result = python(
        "import sys; from tests.support import compiled_kernels as all; all.main(sys.argv[1])",
        str(folder / "found.json"),
        timeout=PATIENCE,
        TRITON_INTERPRET="0",
        TRITON_CACHE_DIR=str(folder / "cache"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(everything):
    """The kernels of the engine."""
    names = kernel_names()
    return [each for each in everything if each["kernel"] in names]


def kernel_names():
    return {*kernels.__all__, *numbers.__all__, "collect", "carry", "count", "places"}


def sweeps(found):
    return [each for each in found if each["kernel"] == "sweep"]


def counted(each, pattern):
    """How many instructions of a kernel match."""
    return sum(n for name, n in each["instructions"].items() if re.fullmatch(pattern, name))


def title(each):
    return f"{each['kernel']} for {each['capability']} with {each['constants']}"


# ── what is compiled ───────────────────────────────────────────────────────────────────────────


def test_every_kernel_compiles_for_every_capability(found):
    compiled = {(each["kernel"], each["capability"]) for each in found}
    assert compiled == {(name, each) for name in kernel_names() for each in CAPABILITIES}
    assert len(kernel_names()) == 11


def test_every_value_of_every_constant_is_among_what_is_compiled(found):
    forms = {None, "own", *get_args(StateForm)} - {"float32"}
    flags = {False, True}
    possible = {
        ("sweep", "P"): set(DTYPES.values()),
        ("sweep", "M"): forms,
        ("sweep", "V"): forms,
        ("sweep", "W"): flags,
        ("sweep", "HAS_EMA"): flags,
        ("sweep", "COPY_TO"): {None, "bfloat16", "float16"},
        ("sweep", "ROUNDING"): set(get_args(Rounding)),
        ("sweep", "BY_CHANCE"): flags,
        ("sweep", "SPREAD"): flags,
        ("sweep", "HAS_MARKS"): flags,
        ("sweep", "GUARDED"): flags,
        ("sweep", "RECORDED"): flags,
        ("sweep", "ALIGNED"): flags,
        ("read", "P"): set(DTYPES.values()),
        ("read", "ALIGNED"): flags,
        ("collect", "SIZE"): {16},
        ("collect", "BLOCK"): {64},
        ("number", "GUARDED"): flags,
        ("measure", "P"): set(DTYPES.values()),
        ("measure", "V"): {"own", *get_args(StateForm)} - {"float32"},
        ("measure", "W"): flags,
        ("measure", "ROUNDING"): set(get_args(Rounding)),
        ("measure", "GUARDED"): flags,
        ("measure", "ALIGNED"): flags,
        ("shorten", "STEP"): {digits.WIDTH, sums.ROW.value},
        ("conclude", "READS"): flags,
        ("conclude", "SKIPS"): flags,
        ("conclude", "COUNTS"): flags,
        ("conclude", "CLIPS"): flags,
        ("conclude", "WATCHES"): flags,
        ("conclude", "STEP"): {0, digits.WIDTH, sums.ROW.value},
    }
    compiled: dict[tuple[str, str], set[Any]] = {}
    for each in found:
        for name, value in each["constants"].items():
            compiled.setdefault((each["kernel"], name), set()).add(value)
    # Constants are those of the kernels' signatures, so that a new one is missed here.
    assert compiled == possible
    assert {name for kernel, name in possible if kernel == "sweep"} > set(STORED)


def test_every_function_of_the_engine_is_in_a_kernel_that_is_compiled(found):
    reached = {name for each in found for name in each["functions"]}
    modules = (codecs, kernels, marks, numbers, rule, sums)
    functions = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in modules
        for name, each in vars(module).items()
        if hasattr(each, "fn") and each.fn.__module__ == module.__name__
    }
    inlined = {name for name in functions if name.partition(".")[2] not in kernel_names()}
    assert inlined == reached


# ── arithmetic ─────────────────────────────────────────────────────────────────────────────────


def test_no_kernel_fuses_approximates_or_flushes(found):
    for each in found:
        assert each["forbidden"] == [], title(each)
        # A multiply-add of floats is fused, too.
        assert counted(each, r"mad\..*f(32|64)") == 0, title(each)


def test_every_operation_says_that_it_rounds_to_nearest(found):
    """Without ``rn`` the assembler of PTX may fuse an addition with a multiplication."""
    for each in found:
        for name in each["instructions"]:
            if re.fullmatch(r"(add|sub|mul|div|sqrt)\..*f(32|64)", name):
                assert re.fullmatch(r"\w+\.rn\.f(32|64)", name), (name, title(each))
    assert all(counted(each, r"mul\.rn\.f(32|64)") for each in sweeps(found))


def test_what_has_a_square_divides_and_takes_roots(found):
    for each in sweeps(found):
        constants = each["constants"]
        own = "f64" if constants["P"] == "float64" else "f32"
        other = "f32" if own == "f64" else "f64"
        for name in ("div", "sqrt"):
            has = counted(each, rf"{name}\.rn\.{own}")
            assert (has > 0) == (constants["V"] is not None), title(each)
            assert counted(each, rf"{name}\..*{other}") == 0, title(each)


def test_float64_divides_and_takes_roots_where_the_numbers_of_a_step_are_made(found):
    for each in found:
        if each["kernel"] in ("number", "shorten") or (
            each["kernel"] == "conclude" and each["constants"]["READS"]
        ):
            assert counted(each, r"div\.rn\.f64"), title(each)
            assert counted(each, r"sqrt\.rn\.f64"), title(each)


# ── memory ─────────────────────────────────────────────────────────────────────────────────────


def test_aligned_arrays_are_read_and_written_four_elements_at_a_time(found):
    """16 bytes of float32, 8 of half precision, 4 of bytes."""
    number = 0
    for each in sweeps(found):
        constants = each["constants"]
        if constants["ALIGNED"] and not constants["RECORDED"]:
            number += 1
            has_wide = constants["P"] in ("float32", "float64") or "own" in (
                constants["M"],
                constants["V"],
            )
            wide = r"\.global\.(v4\.b32|v2\.b64)" if has_wide else r"\.global\.v2\.b32"
            assert counted(each, "ld" + wide), title(each)
            assert counted(each, "st" + wide), title(each)
    assert number >= 10


def test_arrays_that_are_not_aligned_are_read_and_written_element_by_element(found):
    """Else a wide access would fault."""
    number = 0
    for each in sweeps(found):
        if not each["constants"]["ALIGNED"]:
            number += 1
            assert counted(each, r"(ld|st)\.global\.v\d.*") == 0, title(each)
    assert number >= 5


def plain_adam(found, **differing):
    """The sweep of Adam on float32, aligned, apart from what differs; that of every capability."""
    names = dict(zip(STORED, ("float32", "own", "own", *[None] * len(STORED)), strict=False))
    names |= dict.fromkeys(("W", "HAS_EMA", "BY_CHANCE", "SPREAD", "HAS_MARKS"), False)
    names |= {"ROUNDING": "nearest", "ALIGNED": True, "RECORDED": False, "GUARDED": False}
    names |= differing
    return [x for x in sweeps(found) if x["constants"] == names]


def test_plain_adam_on_float32_moves_no_more_than_it_must_where_chunks_are_whole(found):
    each, *_ = plain_adam(found)
    # p, g, m, v are read, p, m, v written: with 4 warps each thread has 4 of 512 elements.
    assert counted(each, r"ld\.global\.(v4\.b32|v2\.b64)") == 4
    assert counted(each, r"st\.global\.(v4\.b32|v2\.b64)") == 3


def test_marks_take_one_more_read_and_one_more_write_of_words_alone(found):
    """For each of the two loops, over whole chunks and over the rest; and the address of them."""
    pairs = list(zip(plain_adam(found), plain_adam(found, HAS_MARKS=True), strict=True))
    assert len(pairs) == len(CAPABILITIES)
    for without, tracked in pairs:
        more = {
            name: tracked["instructions"].get(name, 0) - without["instructions"].get(name, 0)
            for name in {*tracked["instructions"], *without["instructions"]}
            if re.fullmatch(r"(ld|st)\.global\..*", name)
        }
        changed = {name: number for name, number in more.items() if number}
        assert changed == {"ld.global.b64": 1, "ld.global.b32": 2, "st.global.b32": 2}


# ── the tests above can fail ───────────────────────────────────────────────────────────────────


def test_with_fusion_a_product_and_a_sum_are_fused(everything):
    without, fused = (x for x in everything if x["kernel"] == "multiplied_and_added")
    assert set(fused["forbidden"]) == {"fma.rn.f32"}
    assert without["forbidden"] == []
    assert counted(without, r"mul\.rn\.f32") == counted(without, r"add\.rn\.f32") > 0


def test_tritons_own_division_of_float32_is_not_the_rounded_one(everything):
    (divided,) = (x for x in everything if x["kernel"] == "plainly_divided")
    assert set(divided["forbidden"]) == {"div.full.f32"}
    assert counted(divided, r"div\.rn\.f32") == 0
