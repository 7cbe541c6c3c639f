"""The bytes of a checkpoint or of changes: a safetensors file whose every bit has a checksum.

A safetensors file is the length of its header (8 bytes, little-endian), the header in JSON, and the
tensors one after another. The header gives the dtype, shape and place of each tensor, and texts
under ``__metadata__``; here these are ``adamas``, JSON of its own, and ``checksum``. All checksums
are CRC-32 as zlib has it, in 8 hexadecimal digits: those of the tensors' bytes stand in ``adamas``
under ``checksums``, and ``checksum`` is that of the header without itself, in the form that
``_plain`` gives it.

CRC-32 finds every change of up to 32 bits in a row, wherever it is, and others but for one in four
billion. That is what disks and cables do; it is no protection against people. It is in every Python
and costs 0.3 s for a GB on a core of Zen 4, where SHA-256 costs 0.6 s with the processor's own
instructions for it, and BLAKE2b 1.2 s (benchmarks/results/checkpoints.md).
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.files.contents import CHANGES

__all__ = ["DTYPES", "FORMAT", "Source", "Stored", "read", "write"]

Bytes = NDArray[np.uint8]

#: Of the file; one with a greater number is refused. Format 1 had no checksums.
FORMAT = 2

#: By safetensors' names of dtypes: those that NumPy and torch have, and the bytes of an element.
DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2), "I16": ("int16", 2), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4), "I32": ("int32", 4), "F32": ("float32", 4),
    "U64": ("uint64", 8), "I64": ("int64", 8), "F64": ("float64", 8), "C64": ("complex64", 8),
}  # fmt: skip

#: As far as safetensors itself reads headers.
_LONGEST_HEADER = 100_000_000

#: So much is summed up and written at a time: it is still in cache when it is read again.
_CHUNK = 1 << 20


class Source(NamedTuple):
    """A tensor to be written: its bytes are asked for when their turn comes."""

    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Bytes]


class Stored(NamedTuple):
    """A tensor that was read, and agrees with its checksum."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


def write(file: FileIO, tensors: Mapping[str, Source], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``about`` (what JSON can hold) to an empty file."""
    about = {"format": FORMAT, **about}
    # The widest first, so that each is aligned to its elements.
    ordered = sorted(tensors, key=lambda name: -_bytes_of(tensors[name].dtype))
    layout: dict[str, Any] = {}
    end = 0
    for name in ordered:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + _size(dtype, shape)
        layout[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    checksums = dict.fromkeys(ordered, _digits(0))
    # A header has the same length with whatever checksums, so it can be written last.
    file.seek(len(_header(layout, about, checksums)))
    for name in ordered:
        data = tensors[name].data()
        assert data.nbytes == _size(*tensors[name][:2]), name
        checksums[name] = _digits(_write(file, data))
    file.seek(0)
    _write(file, np.frombuffer(_header(layout, about, checksums), np.uint8))


def read(
    file: FileIO, path: str, another: str = "an older checkpoint"
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return what ``write`` was given; ValueError, naming ``path``, where any bit differs.

    ``another`` is what may stand in for a damaged file.
    """
    layout, metadata, start = _layout(file, path)
    about = _about(layout, metadata, path, another)
    checksums = about.pop("checksums", None)
    if about["format"] > 1:
        _check_checksums(checksums, layout, path)
    tensors: dict[str, Stored] = {}
    for name, (dtype, shape, (begin, end)) in layout.items():
        file.seek(start + begin)
        data = np.empty(end - begin, np.uint8)
        found = _digits(_read(file, data, path))
        if about["format"] > 1 and found != checksums[name]:
            raise ValueError(
                f"{path} is damaged: {name} has the checksum {found}, but {checksums[name]} was "
                f"saved. Nothing was loaded. Use another copy of the file, or {another}."
            )
        tensors[name] = Stored(dtype, shape, data)
    return about, tensors


# ── header ─────────────────────────────────────────────────────────────────────────────────────


class _Place(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]


def _header(layout: Mapping[str, Any], about: Mapping[str, Any], checksums: Any) -> bytes:
    metadata = {"adamas": json.dumps({**about, "checksums": checksums})}
    whole = {"__metadata__": metadata, **layout}
    metadata["checksum"] = _digits(zlib.crc32(_plain(whole)))
    encoded = _plain(whole)
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _LONGEST_HEADER:
        raise ValueError(
            f"The names, shapes and options take {len(encoded)} bytes, but the header of a "
            f"safetensors file has at most {_LONGEST_HEADER}. Give parameters shorter names."
        )
    return len(encoded).to_bytes(8, "little") + encoded


def _plain(whole: Mapping[str, Any]) -> bytes:
    """Return the one form of a header: as Python writes JSON, without spaces, in its own order."""
    return json.dumps(whole, separators=(",", ":")).encode()


def _layout(file: FileIO, path: str) -> tuple[dict[str, _Place], dict[str, Any], int]:
    """Return the places of all tensors, the texts, and where the tensors begin."""

    def refusal(why: str) -> ValueError:
        return ValueError(
            f"{path} is not a complete safetensors file ({why}). Give a file that adamas.save or "
            "adamas.save_changes wrote."
        )

    length = os.fstat(file.fileno()).st_size
    first = file.read(8) or b""
    start = 8 + int.from_bytes(first, "little")
    if len(first) < 8 or start > min(length, 8 + _LONGEST_HEADER):
        raise refusal("it has no header")
    encoded = np.empty(start - 8, np.uint8)
    _read(file, encoded, path)
    try:
        whole = _parsed(encoded.tobytes())
        metadata = whole.pop("__metadata__", {})
        places = {name: _place(described) for name, described in whole.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise refusal("its header is not valid") from None
    end = 0
    for begin, after in sorted(place.offsets for place in places.values()):
        if begin != end:
            raise refusal("its tensors do not follow one another")
        end = after
    if start + end != length:
        raise refusal(f"it has {length} bytes, but should have {start + end}")
    return places, metadata, start


def _place(described: Any) -> _Place:
    if set(described) != {"dtype", "shape", "data_offsets"}:
        raise ValueError
    shape = tuple(_whole(each) for each in described["shape"])
    begin, end = (_whole(each) for each in described["data_offsets"])
    if end - begin != _size(described["dtype"], shape):
        raise ValueError
    return _Place(described["dtype"], shape, (begin, end))


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError
    return number


def _about(layout: Mapping[str, _Place], metadata: Any, path: str, another: str) -> dict[str, Any]:
    """Return what stands under ``adamas``, where it is of a format that is known."""
    try:
        texts = dict(metadata)
        about = _parsed(texts["adamas"])
        number = about["format"]
        is_known = type(about.get("method")) is str or about.get("kind") == CHANGES
        is_ours = type(number) is int and number > 0 and is_known
    except (KeyError, RecursionError, TypeError, ValueError):
        is_ours, texts, about, number = False, {}, {}, 0
    if not is_ours:
        raise ValueError(
            f"{path} is a safetensors file, but not one that adamas.save or adamas.save_changes "
            "wrote."
        )
    if number > FORMAT:
        raise ValueError(
            f"{path} has format {number}, but this version of adamas reads formats up to "
            f"{FORMAT}. Load it with a newer version."
        )
    if number > 1 or "checksum" in texts:
        saved = texts.pop("checksum", None)
        rest = {name: {**p._asdict()} for name, p in layout.items()}
        for described in rest.values():
            described["data_offsets"] = described.pop("offsets")
        found = _digits(zlib.crc32(_plain({"__metadata__": texts, **rest})))
        if found != saved:
            raise ValueError(
                f"{path} is damaged: its header has the checksum {found}, but {saved} was saved. "
                f"Nothing was loaded. Use another copy of the file, or {another}."
            )
    return about


def _check_checksums(checksums: Any, layout: Mapping[str, _Place], path: str) -> None:
    is_dict = isinstance(checksums, dict)
    if not is_dict or set(checksums) != set(layout):
        raise ValueError(f"{path} has not one checksum for each of its tensors.")


def _parsed(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return _bytes_of(dtype) * math.prod(shape)


def _bytes_of(dtype: str) -> int:
    _, count = DTYPES[dtype]
    return count


def _digits(checksum: int) -> str:
    return f"{checksum:08x}"


def _write(file: FileIO, data: Bytes) -> int:
    """Write all of ``data``; return its checksum."""
    checksum = 0
    for begin in range(0, data.nbytes, _CHUNK):
        chunk = data[begin : begin + _CHUNK].data
        checksum = zlib.crc32(chunk, checksum)
        while chunk:
            chunk = chunk[file.write(chunk) :]
    return checksum


def _read(file: FileIO, data: Bytes, path: str) -> int:
    """Fill ``data`` from the file; return its checksum."""
    checksum = 0
    for begin in range(0, data.nbytes, _CHUNK):
        chunk = data[begin : begin + _CHUNK].data
        rest = chunk
        while rest:
            count = file.readinto(rest)
            if not count:
                raise ValueError(f"{path} became shorter while it was read.")
            rest = rest[count:]
        checksum = zlib.crc32(chunk, checksum)
    return checksum
