"""Records as columns: resumed, torn, with numbers that JSON has not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adamas.report import read
from tests.support.made_records import header, line, run, write


def test_columns_are_what_lines_have(tmp_path):
    read_back = run(tmp_path / "run.jsonl", steps=4, of={"a": {"update_norm": 0.5}})
    assert read_back.steps.tolist() == [10, 20, 30, 40]
    assert read_back.name == "run.jsonl"
    assert [tensor.name for tensor in read_back.tensors] == ["a", "b", "c", "d", "e"]
    assert read_back.of["update_norm"][:, 0].tolist() == [0.5] * 4
    assert read_back.of["update_norm"][:, 1].tolist() == [0.004] * 4
    assert read_back.ratio[0].tolist() == [0.125, *[0.001] * 4]
    assert read_back.lr[:, 0].tolist() == [5e-4, 1e-3, 1e-3, 1e-3]
    assert read_back.groups[0].square_steps == pytest.approx(20)


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write(tmp_path / "run.jsonl", header(), [line(10), line(20)])
    whole = path.read_bytes()
    for torn in (whole[:-1] + b"", whole + b'{"step": 30, "ti', whole + b"\xc3"):
        path.write_bytes(torn)
        assert read(path).steps[0] == 10
        assert 30 not in read(path).steps


def test_of_a_resumed_run_the_later_lines_count(tmp_path):
    path = write(tmp_path / "run.jsonl", header(), [line(10), line(20), line(30, lr=1.0)])
    write(path, header(lr=2e-3), [line(20, lr=2.0), line(30, lr=3.0)])
    resumed = read(path)
    assert resumed.steps.tolist() == [10, 20, 30]
    assert resumed.lr[:, 0].tolist() == [1e-3, 2.0, 3.0]
    assert len(resumed.headers) == 2
    assert resumed.groups[0].lr == 2e-3


def test_numbers_that_json_has_not_are_read_as_what_they_are(tmp_path):
    lines = [line(10, of={"gradient_norm": math.inf}, gradient_norm=math.nan, lr=math.inf)]
    odd = read(write(tmp_path / "run.jsonl", header(), lines))
    assert np.isinf(odd.of["gradient_norm"]).all()
    assert np.isinf(odd.lr).all()
    # The norm of all tensors stands in for one that is missing.
    assert np.isinf(odd.gradient_norm).all()


def test_a_norm_that_is_not_recorded_is_that_of_all_tensors(tmp_path):
    lines = [line(10, "ab", of={"gradient_norm": 3.0}, gradient_norm=None)]
    assert read(write(tmp_path / "run.jsonl", header("ab"), lines)).gradient_norm[0] == 18**0.5


def test_lines_of_steps_that_were_left_out_have_no_tensors(tmp_path):
    lines = [line(10), line(10, tensors=(), skipped={"nonfinite": 1, "spikes": 0})]
    left_out = read(write(tmp_path / "run.jsonl", header(), lines))
    assert left_out.steps.tolist() == [10, 10]
    assert np.isnan(left_out.of["unmoved"][1]).all()
    assert left_out.left_out == 1


def test_tensors_that_no_header_names_are_read_all_the_same(tmp_path):
    head = header("a") | {"groups": [], "parameters": {}}
    odd = read(write(tmp_path / "run.jsonl", head, [line(10, "ab", tensors_=1)]))
    assert [tensor.name for tensor in odd.tensors] == ["a", "b"]
    assert odd.tensors[0].group is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no record"),
        (b"step,loss\n1,2\n", "is no record"),
        (b'{"adamas": "record", "format": 2}\n', "is a record of format 2"),
        (b'{"adamas": "record", "format": 1}\n', "no line of a step yet"),
        (b'{"adamas": "record", "format": 1}\n{"step": 10, "tim', "no line of a step yet"),
        (b"\x89PNG\r\n\x1a\n", "is no record"),
    ],
)
def test_what_is_no_record_is_told_by_name(tmp_path, content, message):
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        read(path)
    assert str(path) in str(told.value)
    assert str(told.value).endswith(".")


def test_a_file_that_is_not_there_and_a_folder_are_told_by_name(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(OSError, match="cannot be read") as told:
            read(path)
        assert str(path) in str(told.value)


def test_of_a_record_that_is_too_large_lines_are_left_out_and_their_counts_added(
    tmp_path, monkeypatch
):
    lines = [
        line(i, "ab", of={"a": {"nonfinite": 1}} if i == 4 else {}, clipped=1) for i in range(1, 12)
    ]
    path = write(tmp_path / "run.jsonl", header("ab"), lines)
    write(path, header("ab"), [line(8, "ab", lr=2.0, clipped=1), line(9, "ab", lr=3.0, clipped=1)])
    monkeypatch.setattr("adamas.report.reading.MOST", 4 * 7 * 2)
    thin = read(path)
    assert thin.stride == 4
    assert thin.steps.tolist() == [4, 8, 9]
    assert thin.of["nonfinite"][0].tolist() == [1, 0]
    assert thin.clipped[[0, 2]].tolist() == [4, 1]
    # What lines 5 to 7 counted is gone with the line that it was added to.
    assert np.isnan(thin.clipped[1])
    assert thin.lr[-1] == 3.0
