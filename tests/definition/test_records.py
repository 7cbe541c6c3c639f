import json
import math
import os

import pytest

from adamas import records
from tests.support.made_records import append

HEADER = {"method": "AdamW", "every": 50, "groups": [{"lr": 0.1, "parameters": ["NaN", "b"]}]}


def step(number, **values):
    return {"step": number, **values}


def test_what_is_read_is_what_was_appended(tmp_path):
    path = tmp_path / "run.jsonl"
    append(path, HEADER, is_new=True)
    append(path, HEADER, step(50, lr=[0.1], notes={"loss": 1 / 3}), is_new=False)
    append(path, HEADER, step(100), is_new=False)
    (opening,) = records.read(path)
    assert opening.header == {"adamas": "record", "format": 1, **HEADER}
    assert opening.steps == [step(50, lr=[0.1], notes={"loss": 1 / 3}), step(100)]


def test_each_line_is_an_object_of_strict_json(tmp_path):
    path = tmp_path / "run.jsonl"
    values = {"a": math.inf, "b": -math.inf, "c": math.nan, "ваги": 1.0}
    append(path, HEADER, step(1, tensors=values), is_new=True)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    header, line = [json.loads(each, parse_constant=refuse) for each in lines]
    assert header["method"] == "AdamW"
    assert line["tensors"] == {"a": "Infinity", "b": "-Infinity", "c": "NaN", "ваги": 1.0}


def test_words_are_numbers_again_and_names_stay_words(tmp_path):
    path = tmp_path / "run.jsonl"
    tensors = {"NaN": {"update_norm": math.nan, "largest_update": -math.inf}}
    append(path, HEADER, step(1, tensors=tensors), is_new=True)
    (opening,) = records.read(path)
    read = opening.steps[0]["tensors"]["NaN"]
    assert math.isnan(read["update_norm"])
    assert read["largest_update"] == -math.inf
    assert opening.header["groups"][0]["parameters"] == ["NaN", "b"]


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_torn_line_costs_no_other(tmp_path, kept):
    path = tmp_path / "run.jsonl"
    append(path, HEADER, step(50), is_new=True)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step":100}'[:kept])
    assert [each.steps for each in records.read(path)] == [[step(50)]]
    append(path, HEADER, step(150), is_new=True)
    assert [each.steps for each in records.read(path)] == [[step(50)], [step(150)]]
    assert path.read_bytes().startswith(whole)


def test_a_line_is_one_write(tmp_path, monkeypatch):
    written = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, text: written.append(text) or real(file, text))
    append(tmp_path / "run.jsonl", HEADER, step(1), is_new=True)
    append(tmp_path / "run.jsonl", HEADER, step(2), is_new=False)
    assert [each.count(b"\n") for each in written] == [2, 1]
    assert written[1] == b'{"step":2}\n'


def test_a_file_that_was_emptied_begins_with_the_header(tmp_path):
    path = tmp_path / "run.jsonl"
    append(path, HEADER, step(50), is_new=True)
    path.unlink()
    append(path, HEADER, step(100), is_new=False)
    assert [each.steps for each in records.read(path)] == [[step(100)]]


@pytest.mark.parametrize(
    "content", [b'{"step": 1}\n', b"weights", b"\0" * 99, b'{"adamas":"other"}\n']
)
def test_a_file_that_is_no_record_is_not_written_to(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is there already and is no record"):
        append(path, HEADER, is_new=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"\n", b'{"adam', b'{"adam\n', b'{"adamas": "record", "f']
)
def test_a_record_whose_header_was_torn_goes_on(tmp_path, content):
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    append(path, HEADER, step(50), is_new=True)
    assert [each.steps for each in records.read(path)] == [[step(50)]]


@pytest.mark.parametrize(
    "values",
    [{"step": -1}, {"step": True}, {"step": 2**63}, {"step": 1.0}, {"tensors": [1]},
     {"tensors": {"a": 3}}, {"tensors": None}],
)  # fmt: skip
def test_a_line_of_another_form_is_left_out(tmp_path, values):
    path = tmp_path / "run.jsonl"
    append(path, HEADER, step(50), is_new=True)
    append(path, HEADER, step(100) | values, is_new=False)
    append(path, HEADER, step(150), is_new=False)
    assert [each.steps for each in records.read(path)] == [[step(50), step(150)]]


@pytest.mark.parametrize("values", [{"groups": {"a": 1}}, {"groups": [1]}, {"parameters": ["a"]}])
def test_a_header_of_another_form_makes_no_record(tmp_path, values):
    path = tmp_path / "run.jsonl"
    append(path, HEADER | values, step(50), is_new=True)
    with pytest.raises(ValueError, match=r"run.jsonl is no record"):
        records.read(path)


def test_what_is_no_record_is_refused_by_name(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"step": 1}\nno JSON\n[1]\n"text"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"other.jsonl is no record: .* adamas.Recorder"):
        records.read(path)


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"adamas": "record", "format": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="record of format 2, but this adamas reads format 1"):
        records.read(path)
