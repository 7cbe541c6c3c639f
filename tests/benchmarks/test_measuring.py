"""Measuring: results are checked before they are timed, and told as they were taken."""

from __future__ import annotations

import types

import numpy as np
import pytest

from benchmarks import arrays, catalogue, dtensors, ratios
from benchmarks.bandwidth import compiler, read_modify_write
from benchmarks.ratios import Pair, Ratios
from benchmarks.tables import C_COMPILER, TWO_VERSIONS, Row, Run

#: Packages that are compared with and stand in no extra: large, and bound to some machines.
OTHERS = {"bitsandbytes", "torchao"}
ROWS = [
    row
    for table in catalogue.TABLES
    if isinstance(table, Ratios)
    for row in table.rows
    if not OTHERS & set(row.needs) and row.cuda_memory is None
]
#: Rows of several processes, which take seconds to start, and rows that compile for seconds.
DEAR = (*catalogue.table("ranks").rows, *catalogue.table("jax_compile").rows)
QUICK = Run(quick=True)


class Clock:
    """A clock that goes when it is told to; times that are sums of powers of two are exact."""

    def __init__(self, monkeypatch):
        self.gone = []
        clock = types.SimpleNamespace(perf_counter=lambda: sum(self.gone))
        monkeypatch.setattr(ratios, "time", clock)

    def go(self, seconds):
        self.gone.append(seconds)


@pytest.fixture(scope="module", autouse=True)
def _process_group_of_rows():
    """Destroy the process group that rows of DTensors make: other tests make their own."""
    yield
    dist = pytest.importorskip("torch.distributed")
    if dist.is_initialized():
        dist.destroy_process_group()
        dtensors._mesh.cache_clear()


def measured(*rows, run=QUICK):
    """The figures of rows, and the cells of their table."""
    table = Ratios("some", "something", rows)
    stored = {"machine": {"processor": "some"}, **table.measured(rows, run)}
    return stored["figures"], list(table.cells(stored))


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("row", [row for row in ROWS if row not in DEAR], ids=lambda row: row.name)
def test_every_row_makes_contenders_that_agree(row):
    check_contenders(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", DEAR, ids=lambda row: row.name)
def test_every_dear_row_makes_contenders_that_agree(row):
    check_contenders(row)


def check_contenders(row):
    if missing := row.missing(QUICK):
        pytest.skip(f"needs {', '.join(missing)}")
    pair = row.make(True)
    pair.check()
    pair.ours()
    pair.other()


def wrong(p, g):
    def step():
        p[...] -= 1e-3 * g

    return step


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(ratios, "taken_in_turn", lambda *_, **__: pytest.fail("it was timed"))
    ((figure,), _) = measured(Row("a step", "plain descent", None, arrays.against(wrong)))
    assert figure["failure"].startswith(
        "WrongResultError: three steps of Adam: the results differ by"
    )
    assert "ratio" not in figure


def failing(quick):
    raise ValueError("a | b\nand more")


def test_a_row_that_fails_keeps_no_other_from_being_measured():
    heard = []
    fine = Row("a", "b", None, lambda quick: Pair(*[lambda: None] * 3))
    run = Run(quick=True, tell=heard.append)
    figures, cells = measured(Row("c", "d", 2, failing), fine, run=run)
    assert figures[0] == {"work": "c", "against": "d", "failure": "ValueError: a | b"}
    assert figures[1]["ratio"] > 0
    assert any("and more" in line for line in heard)
    assert cells[0] == ("c", "d", "", "", "failed: ValueError: a / b", "", "2×")


def test_the_ratio_is_the_others_time_over_ours(monkeypatch):
    clock = Clock(monkeypatch)
    pair = Pair(lambda: clock.go(2**-13), lambda: clock.go(2**-10), lambda: None)
    ((figure,), _) = measured(Row("wait", "wait longer", 2, lambda quick: pair), run=Run())
    assert (figure["ours"], figure["other"]) == (2**-13, 2**-10)
    assert figure["lowest"] == figure["ratio"] == figure["highest"] == 8
    assert figure["rounds"] == 11


def test_what_is_short_is_called_as_often_as_fills_a_tenth_of_a_second(monkeypatch):
    clock = Clock(monkeypatch)
    pair = Pair(lambda: clock.go(2**-13), lambda: clock.go(2**-2), lambda: None)
    rounds = ratios.taken_in_turn(pair, rounds=1, least=0.1)
    assert rounds == [(2**-13, 2**-2)]
    last_round = clock.gone[clock.gone.index(2**-2) :]
    assert last_round.count(2**-13) * 2**-13 >= 0.1
    assert last_round.count(2**-2) == 3  # to warm up, to see how long it takes, and to be timed


def test_work_that_goes_on_after_its_call_is_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    begun = []

    def wait():
        clock.go(sum(begun))
        begun.clear()

    pair = Pair(lambda: begun.append(2**-13), lambda: begun.append(2**-10), lambda: None, wait)
    ((figure,), _) = measured(Row("begin", "begin more", None, lambda quick: pair), run=Run())
    assert (figure["ours"], figure["other"]) == (2**-13, 2**-10)


def test_medians_are_of_the_rounds(monkeypatch):
    times = [(1.0, 2.0), (1.0, 8.0), (1.0, 3.0)]
    monkeypatch.setattr(ratios, "taken_in_turn", lambda *_, **__: times)
    pair = Pair(lambda: None, lambda: None, lambda: None)
    ((figure,), _) = measured(Row("a", "b", None, lambda quick: pair))
    assert (figure["ratio"], figure["lowest"], figure["highest"]) == (3.0, 2.0, 8.0)
    assert figure["other"] == 3.0


def test_a_row_whose_package_is_missing_says_so():
    row = Row("a step", "nobody", 3, lambda quick: pytest.fail("made"), ("no_such_package",))
    ((figure,), cells) = measured(row)
    assert figure["missing"] == ["no_such_package"]
    assert cells == [("a step", "nobody", "", "", "needs no_such_package", "", "3×")]


@pytest.mark.parametrize(
    ("need", "patched", "run"),
    [
        (C_COMPILER, ("benchmarks.tables.compiler", lambda: None), Run()),
        (TWO_VERSIONS, None, Run()),
        ("/proc/no/such/file", None, Run()),
    ],
)
def test_what_is_no_package_can_be_missing_too(monkeypatch, need, patched, run):
    if patched:
        monkeypatch.setattr(*patched)
    assert Row("a", "", None, pytest.fail, (need, "numpy")).missing(run) == (need,)


def test_what_is_there_is_not_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.tables.compiler", lambda: ["cc"])
    row = Row("a", "", None, pytest.fail, (C_COMPILER, TWO_VERSIONS, str(tmp_path), "numpy"))
    assert row.missing(Run(old=tmp_path, new=tmp_path)) == ()


def test_no_two_rows_of_the_catalogue_have_the_same_name_in_a_table():
    for table in catalogue.TABLES:
        names = [row.name for row in table.rows]
        assert len(names) == len(set(names)), table.name
    assert len({table.name for table in catalogue.TABLES}) == len(catalogue.TABLES)


def test_the_rows_of_the_processor_have_the_goals_that_were_set():
    goals = {row.name: row.goal for row in ROWS if row.goal is not None}
    assert goals == {
        **{
            f"{work}, {model}, {share} % change · {against}": goal
            for work, against, goal in (
                ("step with track_changes", "without", 0.97),
                ("changes", "snapshot and diff", 5),
            )
            for model in ("transformer of 4.7 M", "64 M in 1 tensor")
            for share in (1, 3, 30)
        },
        "norm, 64 K, one core · sums by tiles and lanes": 0.5,
        "norm, 64 M, one core · sums by tiles and lanes": 0.77,
        "step of 10 DTensors of 256 · plain tensors": 0.83,
        "step of 100 DTensors of 256 · plain tensors": 0.83,
        "step of 1,000 DTensors of 256 · plain tensors": 0.83,
        "10 steps, 16 M in 1 tensor, 8 processes · 1 process": 0.77,
        "10 steps, 16 M in 1 tensor, 8 processes · 1 process of 1 thread": 0.77,
        "50 steps of training, transformer of 4.7 M, PyTorch · the same without": 0.98,
        "50 steps of training, 5,702 in 6 tensors, PyTorch · the same without": 0.98,
        "50 steps of training, 5,702 in 6 tensors, NumPy · the same without": 0.98,
        "NumPy step, 16 M · the formula in NumPy": 12,
        "NumPy step, 16 M · scikit-learn": 15,
        "step, 64 M · reading and writing the arrays": 0.95,
        "NumPy step of 100 elements · 3 µs": 1,
        "import adamas · import numpy + 50 ms": 1,
        "torch step, 64 M in 1 tensor · torch fused": 1,
        "torch step, 64 M in 1 tensor · torch default": 7,
        "torch step, 5,702 in 6 tensors · torch fused": 15,
        "torch step, 5,702 in 6 tensors · torch default": 50,
        "torch step, 128 tensors of 2,080 · torch fused": 8,
        "torch step, alternating heads, 60 tensors of 32 · all gradients each step": 0.83,
        "torch step, alternating heads, 60 tensors of 32 · torch fused": 8,
        "phase, transformer of 4.7 M · torch: clip, fused step, EMA, copy": 2.2,
        "phase, 5,702 in 6 tensors · torch: clip, fused step, EMA, copy": 30,
        "small, 64 M, bfloat16 states · torch fused, float32": 1,
        "small, 64 M, compact states · torch fused, float32": 1,
        "small, 64 M, 8bit states · torch fused, float32": 0.8,
        "small, 64 M, 8bit states, bfloat16 parameters · torch fused, float32": 1.3,
        **{
            f"torch step, 2^{power} in {parts} · one thread": 1
            for power in range(17, 25)
            for parts in ("1 tensor", "16 tensors")
        },
        "training, 2^18 in 1 tensor · one thread": 1,
        "training, 2^20 in 1 tensor · one thread": 1,
        "JAX step, 16 M in 1 array · optax.adam": 1,
        "JAX step, 16 M in 1 array · optax.adamw": 1,
        "JAX step, 5,702 in 6 arrays · optax.adam": 1,
        **{
            f"compile, {arrays}, {form} · optax.adamw": 0.33 if form == "float32" else 0.17
            for arrays, forms in (
                ("GPT-2, 148 arrays", ("float32", "bfloat16", "compact", "8bit")),
                ("24 arrays of 3 kinds", ("float32", "8bit")),
            )
            for form in forms
        },
        "compile, GPT-2 of 24 layers, float32 · 12 layers": 0.45,
        "compile, GPT-2 of 24 layers, 8bit · 12 layers": 0.45,
    }


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("size", [1, 1023, 5000])
def test_the_loop_of_the_bandwidth_reads_four_arrays_and_writes_three(size):
    four = [np.arange(size, dtype=np.float32) + i for i in range(4)]
    p, g, m, v = (each.copy() for each in four)
    read_modify_write(four)
    for found, expected in zip(four, (p + g, g, m + g, v + g), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_loop_of_the_bandwidth_refuses_arrays_that_are_not_alike():
    four = [np.zeros(4, np.float32) for _ in range(4)]
    with pytest.raises(ValueError, match="four equal C-contiguous float32 arrays"):
        read_modify_write([*four[:3], np.zeros(5, np.float32)])
