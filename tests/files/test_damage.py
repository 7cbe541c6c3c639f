"""Files that are not what was saved: refused by name, and nothing is changed."""

from __future__ import annotations

import copy
import json
import math
import random
import zlib

import numpy as np
import pytest
from safetensors.numpy import save_file

import adamas
from tests.support.runs import advance, everything, made


@pytest.fixture
def saved(tmp_path):
    weights, optimizer = made()
    advance(weights, optimizer, 0, 2)
    adamas.save(tmp_path / "run", optimizer)
    return tmp_path / "run", optimizer


def small(tmp_path):
    """Return a file of few bytes, with a name that JSON has to escape, and its optimizer."""
    optimizer = adamas.Adam({"é": np.ones(2, np.float32), "b": np.ones((1, 3), np.float16)})
    optimizer.step({"é": np.ones(2, np.float32), "b": np.ones((1, 3), np.float16)})
    adamas.save(tmp_path / "run", optimizer)
    return tmp_path / "run", optimizer


def header_of(path):
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def plain(value):
    return json.dumps(value, separators=(",", ":")).encode()


def put_header(path, header, data, *, is_checked=True):
    """Write a file with this header; its checksum is right where ``is_checked``."""
    if is_checked:
        header["__metadata__"].pop("checksum", None)
        header["__metadata__"]["checksum"] = f"{zlib.crc32(plain(header)):08x}"
    encoded = plain(header)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


def refusal(path, optimizer):
    """Return the text of the error that loading gives, None where it gives none."""
    try:
        adamas.load(path, optimizer)
    except (KeyError, ValueError) as error:
        return str(error)
    return None


def spoiled(content, rng):
    """Yield the content with one bit of each byte changed, and with each byte replaced."""
    for place in range(len(content)):
        for byte in (content[place] ^ (1 << rng.randrange(8)), rng.randrange(256)):
            if byte != content[place]:
                yield place, content[:place] + bytes([byte]) + content[place + 1 :]


def test_a_change_of_any_byte_is_refused_or_means_the_same(tmp_path):
    path, optimizer = small(tmp_path)
    before = everything(optimizer)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    taken = []
    for place, other in spoiled(content, random.Random(3)):
        path.write_bytes(other)
        error = refusal(path, optimizer)
        if error is None:  # JSON has two forms of the letter in the name
            assert json.loads(other[8:start]) == json.loads(content[8:start])
            taken.append(place)
        else:
            assert str(path) in error
        assert everything(optimizer) == before
    assert len(taken) < 10


def test_every_bit_of_every_array_is_looked_at(saved):
    path, optimizer = saved
    header, data = header_of(path)
    del header["__metadata__"]
    before = everything(optimizer)
    content = path.read_bytes()
    start = len(content) - len(data)
    for name, described in header.items():
        for place in range(*described["data_offsets"]):
            other = bytearray(content)
            other[start + place] ^= 1 << place % 8
            path.write_bytes(other)
            with pytest.raises(ValueError, match=r"run is damaged: .* has the checksum") as caught:
                adamas.load(path, optimizer)
            assert f"damaged: {name} has the checksum" in str(caught.value)
    assert everything(optimizer) == before


def test_arrays_that_changed_places_are_refused(saved):
    path, optimizer = saved
    header, data = header_of(path)
    first, second = "state/a/mean", "state/a/square"
    places = [header[name]["data_offsets"] for name in (first, second)]
    header[first]["data_offsets"], header[second]["data_offsets"] = places[::-1]
    put_header(path, header, data)
    with pytest.raises(ValueError, match="is damaged: state/a/"):
        adamas.load(path, optimizer)


def test_a_file_whose_checksums_were_left_out_is_refused(saved):
    path, optimizer = saved
    header, data = header_of(path)
    about = json.loads(header["__metadata__"]["adamas"])
    for checksums in (None, {}, [], {**about["checksums"], "state/a/mean": None}):
        about["checksums"] = checksums
        header["__metadata__"]["adamas"] = json.dumps(about)
        put_header(path, header, data)
        with pytest.raises(ValueError, match=r"run (has not one checksum|is damaged)"):
            adamas.load(path, optimizer)
    del header["__metadata__"]["checksum"]
    put_header(path, header, data, is_checked=False)
    with pytest.raises(ValueError, match="run is damaged: its header"):
        adamas.load(path, optimizer)


# ── files that are something else ──────────────────────────────────────────────────────────────


def shorter(path):
    path.write_bytes(path.read_bytes()[:-1])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no tensors here, but enough text to be read as a header")


def no_json(path):
    path.write_bytes((5).to_bytes(8, "little") + b"{" * 5)


def deep_header(path):
    path.write_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6)


def huge_header(path):
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")


def list_header(path):
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


def twins(path):
    encoded = b'{"a":1,"a":1}'
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)


def foreign(path):
    save_file({"x": np.ones(3)}, path)


def future(path):
    save_file({}, path, metadata={"adamas": json.dumps({"format": 3, "method": "Adam"})})


def deep(path):
    save_file({}, path, metadata={"adamas": "[" * 10**6})


def deep_inside(path):
    about = '{"format": 1, "method": "Adam", "groups": ' + "[" * 900 + "]" * 900 + "}"
    save_file({}, path, metadata={"adamas": about})


def infinite(path):
    save_file({}, path, metadata={"adamas": '{"format": Infinity, "method": "Adam"}'})


def true(path):
    save_file({}, path, metadata={"adamas": '{"format": true, "method": "Adam"}'})


WHOLE = "is not a complete safetensors file"
OURS = "is a safetensors file, but not one that adamas.save or adamas.save_ch"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *((each, WHOLE) for each in (shorter, longer, empty, text, no_json)),
        *((each, WHOLE) for each in (deep_header, huge_header, list_header, twins)),
        *((each, OURS) for each in (foreign, deep, infinite, true)),
        (future, "has format 3, but this version of adamas reads formats up to 2"),
        (deep_inside, "lacks entries of an adamas checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_changes_nothing(saved, spoil, message):
    path, optimizer = saved
    spoil(path)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=f"run {message}"):
        adamas.load(path, optimizer)
    assert everything(optimizer) == before


# ── what is said beside the arrays ─────────────────────────────────────────────────────────────

OTHERS = [None, True, 5, -1, 2**70, 1.5, math.nan, math.inf, "x", [], [1], {}, {"a": 1}, [[[]]]]


def places_in(value, way=()):
    """Yield the way to everything in a value of JSON."""
    yield way
    is_list = isinstance(value, list)
    named = value.items() if isinstance(value, dict) else enumerate(value if is_list else ())
    for key, each in named:
        yield from places_in(each, (*way, key))


def with_other(value, way, other):
    changed = copy.deepcopy(value)
    inner = changed
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = other
    return changed


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["numpy", "header"])
def test_values_of_other_types_anywhere_are_refused_with_the_name_of_the_file(saved, kind):
    path, optimizer = saved
    before, content = everything(optimizer), path.read_bytes()
    whole, data = header_of(path)
    about = json.loads(whole["__metadata__"]["adamas"])
    tried = about if kind == "numpy" else whole
    for way in places_in(tried):
        if not way or "checksum" in way or "checksums" in way:
            continue
        for other in OTHERS:
            changed = with_other(tried, way, other)
            if json.dumps(changed) == json.dumps(tried):
                continue
            if kind == "numpy":
                changed = {
                    **copy.deepcopy(whole),
                    "__metadata__": {"adamas": json.dumps(changed), "checksum": ""},
                }
            is_checked = isinstance(changed["__metadata__"], dict)
            put_header(path, changed, data, is_checked=is_checked)
            error = refusal(path, optimizer)
            if error is not None:
                assert str(path) in error, (way, other)
                assert everything(optimizer) == before, (way, other)
            else:  # another option of the right kind, which a file may have
                assert way[0] in ("step", "skipped", "groups"), (way, other)
                path.write_bytes(content)
                adamas.load(path, optimizer)
                assert everything(optimizer) == before
