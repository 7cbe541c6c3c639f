"""Measuring: results are checked before they are timed, and told as they were taken."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
import pytest

from adamas import bench
from adamas.bench import arrays, measuring
from tests.support.cases import ROOT

#: Packages that are compared with and stand in no extra: large, and bound to some machines.
OTHERS = {"bitsandbytes", "torchao"}
ROWS = [row for row in bench.rows() if not OTHERS & set(row.needs) and row.cuda_memory is None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.work}, {row.against}")
def test_every_row_makes_contenders_that_agree(row):
    for name in row.needs:
        pytest.importorskip(name)
    pair = row.make(True)
    pair.check()
    pair.ours()
    pair.other()


def wrong(p, g):
    def step():
        p[...] -= 1e-3 * g

    return step


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(measuring, "taken_in_turn", lambda *_, **__: pytest.fail("it was timed"))
    row = bench.Row("a step", "plain descent", None, arrays.against(wrong))
    with pytest.raises(bench.WrongResultError, match="three steps of Adam: the results differ by"):
        bench.run([row], quick=True)


def waiting(seconds):
    def work():
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    return work


def test_the_ratio_is_the_others_time_over_ours():
    pair = bench.Pair(waiting(1e-4), waiting(1e-3), lambda: None)
    (figure,) = bench.run([bench.Row("wait", "wait longer", 2, lambda quick: pair)]).figures
    assert figure.ratio == pytest.approx(figure.other / figure.ours, rel=0.5)
    assert figure.lowest <= figure.ratio <= figure.highest
    assert figure.ratio > 1
    assert figure.rounds >= 9


def test_a_row_whose_package_is_missing_says_so():
    row = bench.Row("a step", "nobody", 3, lambda quick: pytest.fail("made"), ("no_such_package",))
    report = bench.run([row], quick=True)
    assert report.figures[0].missing == ("no_such_package",)
    assert list(bench.cells(report)) == [
        ("a step", "nobody", "", "", "needs no_such_package", "", "3×")
    ]


def example():
    figure = bench.Figure("a step", "another", 2.0, 1e-3, 2.5e-3, 2.5, 2.25, 123.4, 11)
    return bench.Report({"processor": "some"}, quick=False, figures=(figure,))


def test_the_table_tells_times_ratio_spread_and_goal():
    assert list(bench.cells(example())) == [
        ("a step", "another", "1 ms", "2.5 ms", "2.50×", "2.25 … 123", "2×")
    ]
    assert bench.markdown(example()).splitlines()[2:] == [
        "| a step | another | 1 ms | 2.5 ms | 2.50× | 2.25 … 123 | 2× |",
        "",
        "Machine: processor some.",
    ]


def test_what_is_written_can_be_read_back(tmp_path):
    bench.write_json(example(), tmp_path / "figures.json")
    assert bench.read_json(tmp_path / "figures.json") == example()


def test_small_sizes_are_marked_as_no_figures_to_quote():
    small = dataclasses.replace(example(), quick=True)
    assert "no figures to quote" in bench.markdown(small)
    assert "no figures to quote" not in bench.markdown(example())


KINDS = ["step", "torch_step", "torch_heads", "torch_phase", "small_states", "jax_step"]
RESULTS = [ROOT / "benchmarks" / "results" / f"{kind}.json" for kind in KINDS]
#: Measured where there is a device for it.
RESULTS += (ROOT / "benchmarks" / "results").glob("cuda_*.json")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_the_tables_in_the_results_are_those_of_their_figures(path):
    report = bench.read_json(path)
    assert not report.quick
    assert path.with_suffix(".md").read_text() == bench.markdown(report)


def test_the_tables_are_made_of_all_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import save

    assert sorted(save.KINDS) == sorted(KINDS)


def test_medians_are_of_the_rounds(monkeypatch):
    times = [(1.0, 2.0), (1.0, 8.0), (1.0, 3.0)]
    monkeypatch.setattr(measuring, "taken_in_turn", lambda *_, **__: times)
    pair = bench.Pair(lambda: None, lambda: None, lambda: None)
    (figure,) = bench.run([bench.Row("a", "b", None, lambda quick: pair)]).figures
    assert (figure.ratio, figure.lowest, figure.highest) == (3.0, 2.0, 8.0)
    assert np.isclose(figure.other, 3.0)


def test_the_readmes_figures_are_those_measured():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import save
    finally:
        sys.path.pop(0)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert save.with_figures(readme) == readme
    assert "| NumPy step, 16 M | the formula in NumPy |" in readme
    guide = save.GUIDE.read_text("utf-8")
    assert save.with_figures(guide) == guide
    assert "| small, 64 M, 8bit states | torch fused, float32 |" in guide
