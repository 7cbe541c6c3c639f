"""Measuring on CUDA devices: all that needs none, and the rows themselves where there is one."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import catalogue, cuda, hardware, pages, pictures, ratios, tables
from benchmarks.checks import WrongResultError
from benchmarks.ratios import Pair, Ratios
from benchmarks.tables import Row, Run
from tests.support.cases import PATIENCE, ROOT

torch = pytest.importorskip("torch")

from adamas.torch import AdamW  # noqa: E402

HAS_CUDA = torch.cuda.is_available()
#: Packages that are compared with and stand in no extra; they warn as they please.
OTHERS = {"bitsandbytes", "torchao"}
CPU = cuda.Place("cpu", 7)
ROWS = [*cuda.step_rows(CPU), *cuda.phase_rows(CPU)]
HERE = [row for row in ROWS if not OTHERS & set(row.needs)]
DEVICE = cuda.Place("cuda", 7)
ON_DEVICE = [*cuda.step_rows(DEVICE), *cuda.phase_rows(DEVICE)]


def name_of(row):
    return row.name


def measured(*rows, run=None):
    """The figures of rows, and the cells of their table."""
    table = Ratios("some", "something", rows)
    stored = table.measured(rows, run or Run(quick=True))
    return stored["figures"], list(table.cells(stored))


# ── rows ───────────────────────────────────────────────────────────────────────────────────────


def test_the_shapes_of_gpt2_are_those_of_its_smallest_model():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2Model(transformers.GPT2Config())
    assert list(cuda.GPT2) == [tuple(each.shape) for each in model.parameters()]
    assert sum(map(math.prod, cuda.GPT2)) == 124_439_808
    assert len(cuda.GPT2) == 148


def test_the_rows_have_the_goals_that_were_set():
    large, model = "cuda step, 1 G in 1 tensor", "cuda step, GPT-2, 124 M in 148 tensors"
    goals = {(row.work, row.against): row.goal for row in ROWS if row.goal is not None}
    assert goals == {
        (large, "torch fused"): 1,
        (model, "torch fused"): 1,
        ("cuda step, 1,000 tensors of 2,080", "torch fused"): 2,
        (large, "a device copy, as many bytes"): 0.9,
        (f"{large}, 8bit states", "torch fused, float32"): 1.5,
        (f"{model}, 8bit states", "torch fused, float32"): 1.5,
        ("cuda phase, GPT-2, 124 M in 148 tensors", "torch: clip, fused step, EMA, copy"): 1.5,
        ("cuda phase, 1,000 tensors of 2,080", "torch: clip, fused step, EMA, copy"): 1.5,
    }


@pytest.mark.parametrize("form", ["8bit", "compact"])
@pytest.mark.parametrize("size", ["1 G in 1 tensor", "GPT-2, 124 M in 148 tensors"])
def test_small_states_are_measured_beside_float32_and_both_libraries_of_8_bits(size, form):
    needs = {
        row.against: row.needs for row in ROWS if row.work == f"cuda step, {size}, {form} states"
    }
    assert needs == {
        "torch fused, float32": ("torch", "triton"),
        "bitsandbytes 8-bit": ("torch", "triton", "bitsandbytes"),
        "torchao 8-bit": ("torch", "triton", "torchao"),
    }


def test_no_two_rows_are_of_the_same_work_against_the_same():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))


def test_the_catalogue_has_these_rows_made_on_the_device():
    found = [*catalogue.table("cuda_step").rows, *catalogue.table("cuda_phase").rows]
    assert [row.name for row in found] == [row.name for row in ROWS]
    assert all(row.cuda_memory is not None for row in found)


def test_every_row_fits_into_a_device_of_80_gb_and_says_what_it_takes():
    count = {"1 G": 1 << 30, "124 M": 124_439_808, "1,000": 2_080_000}
    for row in ROWS:
        (parameters,) = (value for name, value in count.items() if name in row.work)
        # p, m and v of two contenders, and a gradient for both: the least that float32 takes
        assert 28 * parameters <= row.cuda_memory < 75e9, name_of(row)


def test_the_copy_moves_the_bytes_of_a_step():
    read, written = (4 * cuda.floats_copied(1 << 30) for _ in range(2))
    assert read + written == (4 + 12 + 12) * (1 << 30)


# ── contenders, made on the CPU ────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("row", HERE, ids=name_of)
def test_contenders_made_on_the_cpu_agree(row):
    pair = row.make(True)
    pair.check()
    for _ in range(3):
        pair.ours()
        pair.other()
    pair.wait()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("row", ON_DEVICE, ids=name_of)
def test_contenders_made_on_the_device_agree(row):
    if OTHERS & set(row.needs):
        pytest.skip("other libraries are compared by the benchmarks alone")
    for name in row.needs:
        pytest.importorskip(name)
    pair = row.make(True)
    pair.check()
    pair.ours()
    pair.other()
    pair.wait()


TINY = cuda.Work("tiny", ((1500,), (7, 9)))


@pytest.mark.quick_cases(3)
@pytest.mark.skipif(HAS_CUDA, reason="there the kernels run on the device")
@pytest.mark.parametrize(
    "make",
    [
        cuda.against_other(TINY, cuda.torch_default, CPU),
        cuda.against_other(TINY, cuda.torch_default, CPU, {"state": "8bit"}),
        cuda.against_other(TINY, cuda.torch_default, CPU, {"state": "compact"}),
        cuda.against_a_copy(TINY, CPU),
        cuda.against_parts(TINY, CPU),
    ],
    ids=["float32", "8bit", "compact", "copy", "phase"],
)
def test_the_kernels_of_the_device_give_what_is_compared(monkeypatch, make):
    pytest.importorskip("triton")
    from adamas.engines.triton import devices
    from adamas.engines.triton.launches import Launches

    launches = []
    step, step_twin = Launches.step, cuda.Twin.step

    def counted(self, *arguments):
        launches.append(self)
        with np.errstate(all="ignore"):  # the interpreter computes with NumPy
            return step(self, *arguments)

    def step_on_the_cpu(self):
        with monkeypatch.context() as patch:
            patch.setattr(devices, "DEVICE_TYPES", ())
            step_twin(self)

    monkeypatch.setattr(devices, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(Launches, "step", counted)
    monkeypatch.setattr(cuda.Twin, "step", step_on_the_cpu)
    pair = make(True)
    pair.check()
    assert len(launches) >= 3


def descent(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


@pytest.mark.parametrize("form", [None, {"state": "8bit"}])
def test_another_that_computes_something_else_is_refused_with_the_seed_of_the_inputs(form):
    work = cuda.Work("small", ((100,), (7, 9)))
    pair = cuda.against_other(work, descent, CPU, form)(True)
    with pytest.raises(WrongResultError, match="AdamW with inputs of seed 7: the results"):
        pair.check()


def test_inputs_are_drawn_anew_for_each_row_unless_a_seed_is_given():
    seeds = {cuda.Place("cpu", None).new_seed() for _ in range(8)}
    assert len(seeds) > 1
    assert CPU.new_seed() == 7


def test_gradients_stay_away_from_zero():
    _, (gradient,) = CPU.drawn(((10_000,),), 7)
    assert gradient.abs().min() >= 0.1
    assert abs(float((gradient > 0).float().mean()) - 0.5) < 0.05


def test_what_would_fit_into_the_cache_is_made_several_times(monkeypatch):
    cache = 50 * 2**20
    properties = types.SimpleNamespace(L2_cache_size=cache)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    place = cuda.Place("cuda", 7)
    many = place.sets_of(cuda.MANY.shapes, False)
    assert many * 10 * 2_080_000 >= 4 * cache
    assert [place.sets_of(work.shapes, False) for work in (cuda.LARGE, cuda.MODEL)] == [1, 1]


def test_each_call_steps_the_next_set():
    heard = []
    step = cuda.in_turn([lambda: heard.append(1), lambda: heard.append(2)])
    for _ in range(5):
        step()
    assert heard == [1, 2, 1, 2, 1]


# ── the same bits ──────────────────────────────────────────────────────────────────────────────


def twins(options, shapes=((300,), (5, 40))):
    values, gradients = CPU.drawn(shapes, 3)
    ours = cuda.parameters_of(values, gradients)
    mine = AdamW(ours, lr=1e-3, fused=True, **options)
    twin = cuda.Twin(mine, ours, {"fused": True, **options}, "a step")
    for _ in range(2):
        mine.step()
        twin.step()
    return mine, ours, twin


def flip(tensor, at):
    bits = cuda.bits_of(tensor)
    bits[at] ^= 1


PHASE = {"clip_norm": 1.0, "ema": 0.999, "copy_to": torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ({}, "parameter"),
        ({}, "exp_avg"),
        ({}, "exp_avg_sq"),
        (PHASE, "ema"),
        (PHASE, "copy"),
        ({"state": "8bit"}, "exp_avg"),
        ({"state": "8bit"}, "header"),
        ({"state": "compact"}, "exp_avg_sq"),
    ],
    ids=str,
)
def test_one_bit_that_the_cpu_does_not_give_is_refused(options, entry):
    mine, ours, twin = twins(options)
    twin.require_same_bits()
    p = ours[1]
    tensors = {"parameter": p, "copy": mine.copies[1] if mine.copies else None, **mine.state[p]}
    flip(tensors[entry], 3)
    expected = rf"a step: not the bits .* the CPU: {entry} of tensor 1 differs in 1 of [\d,]+ elem"
    with pytest.raises(WrongResultError, match=expected):
        twin.require_same_bits()


@pytest.mark.parametrize(("at", "seen"), [(0, True), (63, True), (64, False), (-64, True)])
def test_of_the_largest_both_ends_are_compared(monkeypatch, at, seen):
    monkeypatch.setattr(cuda, "COMPARED_WHOLE", 200)
    monkeypatch.setattr(cuda, "COMPARED_END", 64)
    mine, ours, twin = twins({}, ((300,),))
    twin.require_same_bits()
    flip(mine.state[ours[0]]["exp_avg"], at)
    if not seen:
        twin.require_same_bits()
        return
    with pytest.raises(WrongResultError, match="exp_avg of tensor 0 differs in 1 of 64"):
        twin.require_same_bits()


@pytest.mark.parametrize(("at", "seen"), [(0, True), (63, True), (-1, False)])
def test_of_the_largest_with_small_states_the_beginning_is_compared(monkeypatch, at, seen):
    monkeypatch.setattr(cuda, "COMPARED_WHOLE", 200)
    monkeypatch.setattr(cuda, "COMPARED_END", 64)
    mine, ours, twin = twins({"state": "8bit"}, ((320,),))
    twin.require_same_bits()
    flip(mine.state[ours[0]]["exp_avg"], at)
    if not seen:
        twin.require_same_bits()
        return
    with pytest.raises(WrongResultError, match="exp_avg of tensor 0 differs in 1 of 64"):
        twin.require_same_bits()


# ── measuring ──────────────────────────────────────────────────────────────────────────────────


def row_on_cuda(make=lambda quick: pytest.fail("made"), memory=58 * 10**9):
    return Row("cuda step, a", "b", 2, make, ("torch",), memory)


def fine(quick):
    return Pair(lambda: None, lambda: None, lambda: None)


def test_a_row_that_needs_a_device_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr(tables, "why_no_cuda", lambda: "needs a CUDA device")
    _, cells = measured(row_on_cuda())
    assert cells == [("cuda step, a", "b", "", "", "needs a CUDA device", "", "2×")]
    without = dataclasses.replace(row_on_cuda(), needs=("torch", "no_such_package"))
    assert without.missing(Run()) == ("a CUDA device", "no_such_package")


@pytest.mark.slow
def test_a_row_that_does_not_fit_into_the_device_says_how_much_it_takes(monkeypatch):
    monkeypatch.setattr(tables, "why_no_cuda", lambda: None)
    monkeypatch.setattr(tables, "free_cuda_memory", lambda: 40 * 10**9)
    _, (cells,) = measured(row_on_cuda(), run=Run())
    assert cells[4] == "needs 58 GB free on the CUDA device"
    (figure,), _ = measured(row_on_cuda(fine, 39 * 10**9), run=Run())
    assert figure["ratio"] > 0


def test_all_rows_are_measured_where_there_is_a_device(monkeypatch):
    monkeypatch.setattr(tables, "why_no_cuda", lambda: None)
    monkeypatch.setattr(ratios, "taken_in_turn", lambda *_, **__: [(1.0, 2.0)])
    rows = [row for row in HERE if "GPT-2" in row.work]
    figures, _ = measured(*rows)
    assert [figure["ratio"] for figure in figures] == [2.0] * len(rows)


def test_a_check_that_fails_on_the_device_is_told_in_the_table(monkeypatch):
    monkeypatch.setattr(tables, "why_no_cuda", lambda: None)

    def check():
        raise WrongResultError("a | b\nand more")

    wrong = row_on_cuda(lambda quick: Pair(lambda: None, lambda: None, check))
    _, cells = measured(wrong, row_on_cuda(fine))
    assert cells[0][4] == "failed: WrongResultError: a / b"
    assert cells[1][4].endswith("×")


def test_the_machine_names_the_device(monkeypatch):
    about = types.SimpleNamespace(name="Some GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(hardware, "why_no_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    assert hardware.machine()["CUDA device"].startswith("Some GPU (80 GiB, CUDA ")


def test_without_torch_it_is_torch_that_is_missing(monkeypatch):
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    assert hardware.why_no_cuda() == (
        "needs a CUDA device, and PyTorch to use it: torch is not installed"
    )


# ── the program ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(1)
@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize("options", [[], ["--quick"]], ids=str)
def test_the_program_says_in_one_line_for_each_table_that_it_needs_a_device(options):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cuda_step", "cuda_phase", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{table}: needs a CUDA device: torch.cuda.is_available() is False"
        for table in ("cuda_step", "cuda_phase")
    ]


def test_what_is_measured_on_a_device_is_stored_and_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "why_no_cuda", lambda: None)
    monkeypatch.setattr(tables, "free_cuda_memory", lambda: 10**12)
    monkeypatch.setattr(hardware, "why_no_cuda", lambda: "none here")
    monkeypatch.setattr(ratios, "taken_in_turn", lambda *_, **__: [(1.0, 2.0)])
    step, phase = Ratios("cuda_step", "", (row_on_cuda(fine),)), Ratios("cuda_phase", "", ())
    monkeypatch.setattr(catalogue, "TABLES", (step, phase))
    page = tmp_path / "README.md"
    page.write_text("<!-- cuda: begin -->\nold\n<!-- cuda: end -->\n", "utf-8")
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pictures, "PICTURES", tmp_path)
    monkeypatch.setattr(pages, "PAGES", (page,))
    monkeypatch.setattr(pages, "TOGETHER", {"cuda": pages.TOGETHER["cuda"]})
    assert program.main(["cuda_step"]) == 0
    text = (tmp_path / "results" / "cuda_step.md").read_text("utf-8")
    assert text == step.markdown(pages.stored(step))
    assert "| cuda step, a | b | 1 s | 2 s | 2.00× | 2.00 … 2.00 | 2× |" in page.read_text("utf-8")
