"""`adamas report`: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from adamas.cli import main
from tests.support.made_records import header, line, run, write

vl_convert = pytest.importorskip("vl_convert")


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """What the package gives is asked for by the tests of the page: that takes a second."""
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: f"/* {snippet} */")


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *given: CliRunner().invoke(main, ["report", *map(str, given)])


@pytest.fixture
def healthy(tmp_path):
    run(tmp_path / "run.jsonl")
    return "run.jsonl"


def test_a_page_is_written_and_findings_are_printed(report, tmp_path, healthy):
    run(tmp_path / "other.jsonl", of={"c": {"gradient_norm": 0.0}})
    done = report(healthy, "other.jsonl", "-o", "page.html")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "run.jsonl: nothing found",
        "other.jsonl:",
        "  problem: The gradient of 1 tensor is 0 at all of the last 10 lines (steps 110 to 200).",
        f"wrote {(tmp_path / 'page.html').resolve()}",
    ]
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "run.jsonl" in text
    assert "other.jsonl" in text


def test_without_an_output_the_page_has_a_usual_name(report, tmp_path, healthy):
    assert report(healthy).exit_code == 0
    assert (tmp_path / "adamas-report.html").exists()


def test_records_of_the_same_name_are_told_apart_by_their_folders(report, tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        run(tmp_path / name / "run.jsonl")
    done = report("before/run.jsonl", "after/run.jsonl")
    assert [line.partition(":")[0] for line in done.output.splitlines()[:2]] == [
        "before/run.jsonl",
        "after/run.jsonl",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing.jsonl cannot be read (No such file or directory)."),
        ("", "missing.jsonl is no record"),
        ("no record\n", "missing.jsonl is no record"),
        ('{"adamas": "record", "format": 9}\n', "is a record of format 9"),
        ('{"adamas": "record", "format": 1}\n', "has a header, but no line of a step yet"),
    ],
)
def test_what_is_no_record_is_refused_and_nothing_is_written(
    report, tmp_path, healthy, content, said
):
    if content is not None:
        (tmp_path / "missing.jsonl").write_text(content)
    done = report(healthy, "missing.jsonl")
    assert done.exit_code == 1
    assert said in done.output
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "adamas-report.html").exists()


def test_names_that_are_no_text_are_no_reason_to_fail(report, tmp_path):
    head = header(["a\ud800", "\0"])
    lines = [line(10 * i, (*head["parameters"],), of={"gradient_norm": 0}) for i in range(1, 6)]
    write(tmp_path / "odd.jsonl", head, lines)
    assert report("odd.jsonl").exit_code == 0


def test_a_torn_line_and_a_resumed_run_are_read(report, tmp_path, healthy):
    with (tmp_path / healthy).open("ab") as file:
        file.write(b'{"step": 210, "ti')
    write(tmp_path / healthy, header(), [])
    assert report(healthy).exit_code == 0


@pytest.mark.parametrize("place", ["nowhere/page.html", "folder.html"])
def test_a_page_that_cannot_be_written_is_refused(report, tmp_path, healthy, place):
    (tmp_path / "folder.html").mkdir()
    done = report(healthy, "-o", place)
    assert done.exit_code == 1
    assert f"{place} cannot be written (" in done.output
    assert "Choose another with --output." in done.output


def test_a_page_is_not_written_over_a_record(report, tmp_path, healthy):
    before = (tmp_path / healthy).read_bytes()
    done = report(healthy, "-o", healthy)
    assert done.exit_code == 2
    assert "its name must end in .html" in done.output
    assert (tmp_path / healthy).read_bytes() == before


def test_no_record_at_all_is_wrong_usage(report):
    done = report()
    assert done.exit_code == 2
    assert "Missing argument 'RECORD...'" in done.output


def test_where_vega_lite_is_missing_the_extra_is_named(report, healthy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    done = report(healthy)
    assert done.exit_code == 1
    assert 'Install it with: pip install "adamas[report]"' in done.output


def test_where_the_disk_is_full_no_part_of_a_page_stays(report, tmp_path, healthy, monkeypatch):
    def write_text(path, text, **_):
        path.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    done = report(healthy, "-o", "page.html")
    assert done.exit_code == 1
    said = done.output.splitlines()[-1]
    assert said.startswith("Error: page.html cannot be written (No space left on device).")
    assert not (tmp_path / "page.html").exists()
