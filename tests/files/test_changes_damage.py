"""Files of changes that are not what was saved: refused by name, and nothing is changed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import adamas
from tests.files.test_changes import copied
from tests.files.test_damage import (
    OTHERS,
    header_of,
    places_in,
    put_header,
    shorter,
    spoiled,
    with_other,
)
from tests.support.told import Told, all_bits


@pytest.fixture
def saved(tmp_path):
    """Return a file of few bytes, with a name that JSON has to escape, and what it fits."""
    told = Told({"é": np.zeros(2, np.float32), "b": np.zeros((2, 4), np.float16)})
    target = copied(told.tensors)
    told.advance(1, 1.0)
    told.before["b"][0] = told.tensors["b"][0].view(np.uint16)  # a row that has not changed
    adamas.save_changes(tmp_path / "delta", told.changes())
    return tmp_path / "delta", target


def refusal(path, target):
    """Return the text of the error that applying gives, None where it gives none."""
    try:
        adamas.apply_changes(target, path, after=0)
    except (KeyError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("pitch", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_a_change_of_any_byte_is_refused_or_means_the_same(saved, pitch):
    """Of each byte, or of one of 37 in the header: length, header, indices, values."""
    path, target = saved
    before = all_bits(target)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    taken = []
    for place, other in spoiled(content, random.Random(3)):
        if 8 <= place < start and place % pitch:
            continue
        path.write_bytes(other)
        error = refusal(path, target)
        if error is None:  # JSON has two forms of the letter in the name
            assert json.loads(other[8:start]) == json.loads(content[8:start])
            taken.append(place)
            for name in target:
                target[name][...] = 0
        else:
            assert str(path) in error
        assert all_bits(target) == before
    assert len(taken) < 10
    path.write_bytes(content)
    assert refusal(path, target) is None
    assert all_bits(target) != before


def test_a_file_that_breaks_off_anywhere_is_refused(saved):
    path, target = saved
    before, content = all_bits(target), path.read_bytes()
    for length in [
        *range(12),
        *range(12, len(content), 59),
        *range(len(content) - 20, len(content)),
    ]:
        path.write_bytes(content[:length])
        assert "is not a complete safetensors file" in refusal(path, target)
    shorter(path)
    assert all_bits(target) == before


@pytest.mark.parametrize(
    ("kind", "pitch"),
    [
        ("changes", 4),
        pytest.param("changes", 1, marks=pytest.mark.slow),
        pytest.param("header", 1, marks=pytest.mark.slow),
    ],
)
def test_values_of_other_types_anywhere_are_refused_with_the_name_of_the_file(saved, kind, pitch):
    """Of each value, or of some types for each value, others for the next."""
    path, target = saved
    before = all_bits(target)
    whole, data = header_of(path)
    about = json.loads(whole["__metadata__"]["adamas"])
    tried = about if kind == "changes" else whole
    free = {("follows",), ("place",), ("is_whole",), ("part",), ("parts", 0), ("last_step",)}
    for number, way in enumerate(places_in(tried)):
        if not way or "checksum" in way or "checksums" in way:
            continue
        for other in OTHERS[number % pitch :: pitch]:
            changed = with_other(tried, way, other)
            if json.dumps(changed) == json.dumps(tried):
                continue
            if kind == "changes":
                texts = {"adamas": json.dumps(changed), "checksum": ""}
                changed = {**json.loads(json.dumps(whole)), "__metadata__": texts}
            put_header(path, changed, data, is_checked=isinstance(changed["__metadata__"], dict))
            error = refusal(path, target)
            if error is not None:
                assert str(path) in error, (way, other)
                assert all_bits(target) == before, (way, other)
            else:  # another number or text, which a file may have
                assert way in free, (way, other)
                for name in target:
                    target[name][...] = 0


def rewritten(path, **arrays):
    """Give a file other indices or values, with the right checksums."""
    import io
    import zlib

    header, data = header_of(path)
    about = json.loads(header["__metadata__"]["adamas"])
    for name, array in arrays.items():
        full = f"{name}/b"
        begin, end = header[full]["data_offsets"]
        assert end - begin == array.nbytes
        into = io.BytesIO(data)
        into.seek(begin)
        into.write(array.tobytes())
        data = into.getvalue()
        about["checksums"][full] = f"{zlib.crc32(array.tobytes()):08x}"
    header["__metadata__"]["adamas"] = json.dumps(about)
    put_header(path, header, data)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([4, 5, 6, 8], "b has 8 elements, but the indices go from 4 to 8"),
        ([-1, 5, 6, 7], "b has 8 elements, but the indices go from -1 to 7"),
        ([4, 6, 5, 7], "the indices of b do not ascend"),
        ([4, 4, 5, 6], "the indices of b do not ascend"),
    ],
)
def test_indices_that_make_no_sense_are_named(saved, indices, message):
    path, target = saved
    before = all_bits(target)
    rewritten(path, indices=np.array(indices, np.int32))
    error = refusal(path, target)
    assert f"delta is not built as changes are ({message}), so it cannot be applied" in error
    assert all_bits(target) == before
    rewritten(path, indices=np.array([0, 2, 3, 7], np.int32))
    assert refusal(path, target) is None


def test_a_checkpoint_is_no_file_of_changes_and_the_other_way_round(saved, tmp_path):
    path, target = saved
    optimizer = adamas.Adam({name: each.copy() for name, each in target.items()})
    adamas.save(tmp_path / "run", optimizer)
    before = all_bits(target)
    message = refusal(tmp_path / "run", target)
    assert "run is a checkpoint of adamas.save, which holds no changes. Load it into an" in message
    assert all_bits(target) == before
    with pytest.raises(ValueError, match=r"delta holds changes of parameters, .*apply_changes"):
        adamas.load(path, optimizer)
