"""The program: rows are chosen by name, and what they come to is stored and shown."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adamas
from benchmarks import __main__ as program
from benchmarks import catalogue, checkpoints, memory, pages, pictures, ratios, versions
from benchmarks.claims import CLAIMS, NOT_MEASURED, claims
from benchmarks.ratios import Pair, Ratios
from benchmarks.tables import Row, Run
from tests.support.cases import PATIENCE, ROOT

STORED = [table for table in catalogue.TABLES if pages.stored(table) is not None]


def ran(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def named(table):
    return table.name


# ── what is stored and shown ───────────────────────────────────────────────────────────────────


def example():
    figure = {
        "work": "a step",
        "against": "another",
        "ours": 1e-3,
        "other": 2.5e-3,
        "ratio": 2.5,
        "lowest": 2.25,
        "highest": 123.4,
        "rounds": 11,
    }
    return {"machine": {"processor": "some"}, "quick": False, "figures": [figure]}


SOME = Ratios("some", "something", (Row("a step", "another", 2.0, pytest.fail),))


def test_the_table_tells_times_ratio_spread_and_goal():
    assert SOME.markdown(example()).splitlines() == [
        "| work | against | adamas | other | ratio | from … to | goal |",
        "|---|---|--:|--:|--:|--:|--:|",
        "| a step | another | 1 ms | 2.5 ms | 2.50× | 2.25 … 123 | 2× |",
        "",
        "Machine: processor some.",
    ]


def test_goals_are_those_of_the_rows_and_not_those_that_were_stored():
    stored = example()
    stored["figures"][0]["goal"] = 17.0
    assert next(SOME.cells(stored))[-1] == "2×"
    stored["figures"][0]["work"] = "a row that is no more"
    assert next(SOME.cells(stored))[-1] == ""


def test_what_is_stored_can_be_read_back(tmp_path):
    pages.store(SOME, example(), tmp_path)
    assert pages.stored(SOME, tmp_path) == example()
    assert (tmp_path / "some.md").read_text("utf-8") == SOME.markdown(example())


def test_small_sizes_are_marked_as_no_figures_to_quote():
    assert "no figures to quote" in SOME.markdown({**example(), "quick": True})
    assert "no figures to quote" not in SOME.markdown(example())


def test_all_tables_were_measured_but_those_that_need_a_device():
    assert {table.name for table in catalogue.TABLES} - {table.name for table in STORED} <= {
        "cuda_step",
        "cuda_phase",
    }


@pytest.mark.parametrize("table", STORED, ids=named)
def test_the_pages_in_the_results_are_those_of_what_is_stored(table):
    stored = pages.stored(table)
    assert not stored.get("quick")
    page = pages.RESULTS / f"{table.name}.md"
    assert page.read_text("utf-8") == table.markdown(stored)


def test_nothing_is_stored_that_no_table_shows():
    named_so = {f"{table.name}.json" for table in catalogue.TABLES}
    assert {path.name for path in pages.RESULTS.glob("*.json")} <= named_so


def test_the_readmes_figures_are_those_measured():
    found = pages.passages()
    readme = (ROOT / "README.md").read_text("utf-8")
    assert pages.with_passages(readme, found) == readme
    begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
    shown = readme.partition(begin)[2].partition(end)[0]
    assert shown == found["claims"]
    assert NOT_MEASURED not in " ".join(shown.split())
    assert len(re.findall(r"\*\*[\d.]+×\*\*", shown)) == sum(
        each.count(" · ") // 2 for each in CLAIMS
    )


def test_a_claim_without_a_figure_says_so():
    shown = " ".join(claims({}).split())
    assert shown.count(NOT_MEASURED) == sum(each.count("{") for each in CLAIMS)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_the_pages_show_what_is_stored_and_name_no_other_passage(page):
    text, found = page.read_text("utf-8"), pages.passages()
    assert pages.with_passages(text, found) == text
    assert any(f"<!-- {marker}: begin -->" in text for marker in found)


def test_the_readme_of_the_benchmarks_names_every_file():
    folder = ROOT / "benchmarks"
    named = set(re.findall(r"\]\((\w+\.py)\)", (folder / "README.md").read_text("utf-8")))
    assert named == {path.name for path in folder.glob("*.py")} - {"__init__.py"}


def test_a_figure_that_changes_changes_the_page(tmp_path):
    for table in STORED:
        pages.store(table, pages.stored(table), tmp_path)
    path = tmp_path / "step.json"
    stored = json.loads(path.read_text("utf-8"))
    stored["figures"][0]["ratio"] += 1
    path.write_text(json.dumps(stored), "utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert pages.with_passages(readme, pages.passages()) == readme
    assert pages.with_passages(readme, pages.passages(tmp_path)) != readme


def test_tables_that_stand_together_name_their_machines_where_these_differ(tmp_path):
    stored = pages.stored(catalogue.table("torch_step"))
    pages.store(catalogue.table("torch_step"), stored | {"machine": {"cores": 2}}, tmp_path)
    names = pages.TOGETHER["tensors"]
    assert pages.ratios(names, tmp_path).endswith("|\n\ncores 2\n")
    pages.store(catalogue.table("torch_heads"), stored | {"machine": {"cores": 4}}, tmp_path)
    assert pages.ratios(names, tmp_path).endswith(
        "|\n\ntorch_step: cores 2\n\ntorch_heads: cores 4\n"
    )


def test_the_tables_that_stand_together_are_in_the_catalogue():
    for names in pages.TOGETHER.values():
        assert all(isinstance(catalogue.table(name), Ratios) for name in names)
    assert {*itertools.chain(*pages.TOGETHER.values())} == {
        each.name for each in catalogue.TABLES if isinstance(each, Ratios)
    }


def test_a_page_says_that_there_are_no_figures_where_there_are_none(tmp_path):
    page = "<!-- cuda: begin -->\nold\n<!-- cuda: end -->\n"
    expected = page.replace("old\n", pages.NO_FIGURES)
    assert pages.with_passages(page, pages.passages(tmp_path)) == expected


# ── what is chosen ─────────────────────────────────────────────────────────────────────────────


def chosen(*names):
    return {table.name: rows for table, rows in catalogue.chosen(names)}


def test_without_a_name_all_rows_of_all_tables_are_chosen():
    assert chosen() == {table.name: table.rows for table in catalogue.TABLES}


def test_the_name_of_a_table_chooses_its_rows_and_no_others():
    step = catalogue.table("step")
    assert chosen("step") == {"step": step.rows}


def test_part_of_the_name_of_a_row_chooses_it_in_any_case():
    (rows,) = chosen("numpy STEP, 16 m · scikit").values()
    assert [row.name for row in rows] == ["NumPy step, 16 M · scikit-learn"]
    assert set(chosen("bitsandbytes", "step")) == {"step", "small_states", "cuda_step", "memory"}


def test_a_name_that_nothing_has_is_answered_with_a_near_one_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["step", "torch_stp"])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines()[-1] == (
        "python -m benchmarks: error: No table and no row is called 'torch_stp'. "
        "Did you mean 'torch_step'? --list names them all."
    )


def test_the_list_names_all_rows_and_what_they_lack(monkeypatch, capsys):
    row = Row("a step", "nobody", 3, lambda quick: pytest.fail("made"), ("no_such_package",))
    tables = (Ratios("some", "something", (row, Row("b", "c", None, pytest.fail))),)
    monkeypatch.setattr(catalogue, "TABLES", tables)
    assert program.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "some: something",
        "    a step · nobody (needs no_such_package)",
        "    b · c",
    ]


# ── from end to end ────────────────────────────────────────────────────────────────────────────


def test_a_row_is_measured_from_end_to_end_and_stored_where_it_is_wanted(tmp_path):
    name = "NumPy step, 16 M · the formula in NumPy"
    done = ran("--quick", "--results", tmp_path / "kept", name)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "kept" / "step.json").read_text("utf-8"))
    (figure,) = stored["figures"]
    assert (figure["work"], figure["against"]) == tuple(name.split(" · "))
    assert figure["rounds"] == 3
    assert figure["ratio"] > 0
    assert stored["quick"]
    assert "processor" in stored["machine"]
    page = (tmp_path / "kept" / "step.md").read_text("utf-8")
    assert page == catalogue.table("step").markdown(stored)
    assert page in done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["step.json", "step.md"]


def test_the_list_leaves_a_folder_for_results_unmade(monkeypatch, tmp_path):
    tables(monkeypatch, Row("a", "b", None, pytest.fail))
    assert program.main(["--list", "--results", str(tmp_path / "kept")]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tables", "step"], "--tables makes all pages. Leave step out."),
        (["--tables", "--quick"], "argument --quick: not allowed with argument --tables"),
        (["--list", "--quick"], "argument --quick: not allowed with argument --list"),
        (["--list", "--tables"], "argument --tables: not allowed with argument --list"),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused_before_any_page_is_made(
    monkeypatch, capsys, arguments, said
):
    monkeypatch.setattr(pages, "write_all", lambda: pytest.fail("made"))
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_option_is_told():
    done = ran("--help")
    assert done.returncode == 0
    for option in ("--list", "--quick", "--tables", "--results", "--old", "--new"):
        assert option in done.stdout


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """The program with its results and one page elsewhere."""
    page = tmp_path / "README.md"
    page.write_text("<!-- measured: begin -->\nold\n<!-- measured: end -->\n", "utf-8")
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pictures, "PICTURES", tmp_path)
    monkeypatch.setattr(pages, "PAGES", (page,))
    monkeypatch.setattr(pages, "TOGETHER", {"measured": ("some", "more")})
    monkeypatch.setattr(ratios, "taken_in_turn", lambda *_, **__: [(1.0, 2.0)])
    return tmp_path


def fine(quick):
    return Pair(lambda: None, lambda: None, lambda: None)


def failing(quick):
    raise ValueError("a | b\nand more")


def tables(monkeypatch, *rows):
    monkeypatch.setattr(catalogue, "TABLES", (Ratios("some", "something", rows),))


def test_a_table_that_was_measured_whole_is_stored_and_shown(elsewhere, monkeypatch, capsys):
    tables(monkeypatch, Row("a", "b", 2, fine), Row("c", "d", None, fine))
    monkeypatch.setattr(pages, "TOGETHER", {"measured": ("some",)})
    assert program.main([]) == 0
    stored = pages.stored(catalogue.table("some"))
    assert [figure["work"] for figure in stored["figures"]] == ["a", "c"]
    text = (elsewhere / "results" / "some.md").read_text("utf-8")
    assert text == catalogue.table("some").markdown(stored)
    assert "| a | b | 1 s | 2 s | 2.00× | 2.00 … 2.00 | 2× |" in (
        elsewhere / "README.md"
    ).read_text("utf-8")


@pytest.mark.parametrize("arguments", [["--tables"], ["some"]], ids=str)
def test_without_matplotlib_nothing_is_measured_that_has_a_picture(
    arguments, elsewhere, monkeypatch, capsys
):
    tables(monkeypatch, Row("a", "b", 2, fine))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(program, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert "need matplotlib. Install it with: pip install matplotlib" in capsys.readouterr().err
    assert [path.name for path in elsewhere.iterdir()] == ["README.md"]


@pytest.mark.parametrize("arguments", [["a ·"], ["--quick"]], ids=str)
def test_some_rows_and_small_sizes_are_told_and_not_stored(
    elsewhere, monkeypatch, capsys, arguments
):
    tables(monkeypatch, Row("a", "b", 2, fine), Row("c", "d", None, fine))
    assert program.main(arguments) == 0
    out, error = capsys.readouterr()
    assert "| a | b | 1 s | 2 s | 2.00× |" in out
    assert error == "Not stored: small sizes, or not all rows of the table.\n"
    assert [path.name for path in elsewhere.iterdir()] == ["README.md"]
    assert "old" in (elsewhere / "README.md").read_text("utf-8")


def test_rows_that_failed_are_stored_as_such_and_the_exit_code_tells_of_them(
    elsewhere, monkeypatch, capsys
):
    tables(monkeypatch, Row("a", "b", 2, failing), Row("c", "d", None, fine))
    monkeypatch.setattr(pages, "TOGETHER", {"measured": ("some",)})
    assert program.main([]) == 1
    out, error = capsys.readouterr()
    assert "and more" in out
    assert error == "some: 1 of 2 rows failed; what they raised stands above\n"
    text = (elsewhere / "README.md").read_text("utf-8")
    assert "failed: ValueError: a / b" in text
    assert "| c | d | 1 s | 2 s | 2.00× | 2.00 … 2.00 |  |" in text


def test_a_table_that_fails_keeps_no_other_from_being_measured(elsewhere, monkeypatch, capsys):
    class Failing(Ratios):
        def measured(self, rows, run):
            raise ValueError("at once")

    rows = (Row("a", "b", 2, fine),)
    both = (Failing("some", "", rows), Ratios("more", "", rows))
    monkeypatch.setattr(catalogue, "TABLES", both)
    assert program.main([]) == 1
    out, error = capsys.readouterr()
    assert "ValueError: at once" in out
    assert error == "some failed; what it raised stands above\n"
    assert (elsewhere / "results" / "more.json").exists()
    assert not (elsewhere / "results" / "some.json").exists()


def test_what_lacks_something_is_named_and_leaves_what_is_stored(elsewhere, monkeypatch, capsys):
    lacking = Row("a", "b", 2, lambda quick: pytest.fail("made"), ("no_such_package",))
    tables(monkeypatch, lacking)
    assert program.main([]) == 1
    assert capsys.readouterr() == ("", "some: needs no_such_package\n")
    assert not (elsewhere / "results").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit) as ended:
        program.main(["step", "--results", str(tmp_path / "file")])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "cannot be written to (File exists). Choose another with --results." in error
    assert (tmp_path / "file").read_text() == "kept"


# ── tables that are no ratios ──────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_bytes_of_state_are_counted_in_a_process_of_its_own():
    (row,) = (row for row in memory.rows() if row.name == "NumPy: Adam, 8bit")
    stored = catalogue.table("memory").measured([row], Run(quick=True))
    (figure,) = stored["figures"]
    assert stored["count"] == 1 << 20
    assert figure["counted"] == 2.0625
    assert f"| {row.name} | 2.06 |" in catalogue.table("memory").markdown(
        {**stored, "machine": {"processor": "some"}}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_claims_tell_the_bytes_of_state_that_were_measured():
    (row,) = (row for row in memory.rows() if row.name == "torch: AdamW, 8bit")
    stored = catalogue.table("memory").measured([row], Run(quick=True))
    assert "in 2.06 bytes for each parameter" in " ".join(claims({"memory": stored}).split())


def test_what_is_missing_for_an_optimizer_stands_in_the_table_of_memory():
    rows = [Row("some", "", None, pytest.fail, ("no_such_package",))]
    stored = catalogue.table("memory").measured(rows, Run())
    text = catalogue.table("memory").markdown({**stored, "machine": {"processor": "some"}})
    assert "| some | needs no_such_package |  |  |" in text


def test_checkpoints_are_compared_before_they_are_timed(tmp_path):
    pytest.importorskip("safetensors")
    files = checkpoints.Files(tmp_path, 1 << 10)
    files.check()
    files.arrays["parameters/2"][0] += 1
    with pytest.raises(AssertionError, match="parameters/2 in the checkpoint is not what was"):
        files.check()


@pytest.mark.slow
def test_what_checkpoints_cost_is_told_for_each_work():
    pytest.importorskip("safetensors")
    table = catalogue.table("checkpoints")
    rows = [row for row in table.rows if row.work in ("CRC-32", "adamas.save")]
    stored = table.measured(rows, Run(quick=True))
    assert list(stored["seconds for each GB"]) == ["CRC-32", "adamas.save"]
    assert all(len(each) == 2 for each in stored["seconds for each GB"].values())


@pytest.mark.slow
def test_two_versions_that_are_the_same_come_to_the_same_bits():
    pytest.importorskip("torch")
    table = catalogue.table("torch_versions")
    rows = [row for row in table.rows if row.work == "the same, new lr"]
    source = Path(adamas.__file__).parents[1]  # where the compiled module stands, too
    (figure,) = table.measured(rows, Run(quick=True, old=source, new=source))["figures"]
    assert figure["lowest"] <= figure["ratio"] <= figure["highest"]


def test_a_folder_without_a_version_is_refused_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["torch_versions", "--old", str(tmp_path), "--new", str(ROOT / "src")])
    assert ended.value.code == 2
    assert f"--old is {tmp_path}, but there is no adamas in it. Give the src" in (
        capsys.readouterr().err
    )


def test_a_version_that_was_not_compiled_is_refused(tmp_path, capsys):
    (tmp_path / "adamas").mkdir()
    (tmp_path / "adamas" / "_native.pyi").touch()
    with pytest.raises(SystemExit) as ended:
        program.main(["torch_versions", "--old", str(tmp_path), "--new", str(tmp_path)])
    assert ended.value.code == 2
    assert (
        "there is no compiled module of adamas (adamas/_native…) in it" in capsys.readouterr().err
    )


def test_a_version_that_cannot_be_imported_is_named(tmp_path, capfd):
    (tmp_path / "adamas").mkdir()
    (tmp_path / "adamas" / "__init__.py").write_text("raise ImportError('no module')")
    rows = versions.rows()[:1]
    run = Run(quick=True, old=tmp_path, new=tmp_path)
    (figure,) = catalogue.table("torch_versions").measured(rows, run)["figures"]
    assert figure["failure"] == (
        f"RuntimeError: The version in {tmp_path} has ended; see what it raised."
    )
    # Two processes write it at once, and each of its words by itself.
    said = capfd.readouterr().err
    assert "ImportError" in said
    assert "no module" in said


def test_the_process_of_a_version_needs_nothing_of_it_but_what_users_import():
    def imported(module):
        code = f"import sys, {module}; print(*(m for m in sys.modules if m.startswith('adamas')))"
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        return set(ran.stdout.split())

    assert imported("benchmarks.versions") == imported("adamas") > {"adamas"}


class Answers:
    """A version that gives these answers."""

    def __init__(self, digest):
        self.digest = digest

    def ask(self, case=None, **_):
        return self.digest if case else 1.0


def test_versions_with_other_bits_are_not_timed():
    row = versions.rows()[0]
    with pytest.raises(AssertionError, match="do not come to the same bits"):
        versions.compared(row, True, Answers("one"), Answers("other"))
    figure = versions.compared(row, True, Answers("one"), Answers("one"))
    assert figure["ratio"] == 1.0
