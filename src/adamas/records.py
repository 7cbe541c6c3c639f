"""Records of runs: files of JSON lines, written as a run goes on and read when people look at it.

The file is UTF-8; each line is a JSON object. Infinite numbers and NaN, which JSON has not, are the
strings "Infinity", "-Infinity" and "NaN". There are two kinds of lines.

A **header** stands first, and again wherever a run was resumed or went back to an earlier state, or
its groups or its phase were changed: ``"adamas": "record"``, ``"format"`` (1), ``"version"`` (of
adamas), ``"method"`` (the name of the optimizer's class), ``"every"``, ``"time"`` (seconds since
1970), ``"phase"`` (options of whole steps: ``clip_norm``, ``on_nonfinite``, …), ``"groups"`` (of
each: ``lr``, ``betas``, ``eps``, ``weight_decay``; ``decay``, ``lr_max``, ``bias_correction``,
``eps_place``, ``eps_root``, ``amsgrad``, ``nesterov``, ``rectify`` and ``maximize``, as
``adamas.Options`` has them; ``state``, ``rounding``, and ``parameters``, their names) and
``"parameters"`` (of each by name: ``shape`` and ``dtype``). Of torch's NAdam and SGD, whose
formulas are not among the options, groups have ``momentum_decay``, ``dampening``, ``nesterov`` and
``maximize`` as torch does. Records of earlier versions may lack what concerns the rule.

A **line of a step** has ``"step"`` (its number, 1 first) and ``"time"``; ``"lr"`` (one for each
group); ``"gradient_norm"`` (of all tensors, before clipping); ``"clip_factor"`` (where there is a
``clip_norm``); ``"skipped"`` (steps left out so far: ``nonfinite`` and ``spikes``); ``"clipped"``
(of the steps since the last line, those whose clip factor was below 1, where that is known);
``"tensors"`` (by name: the fields of ``adamas.Statistics``, and ``below_eps``, the fraction of
elements with √v̂ < ε) and ``"notes"`` (numbers that the user gave). Where a step was left out there
are no ``"tensors"``, and ``"step"`` is the number of the last one that was made.

A line is appended by one write, so a run that is killed leaves at most one line torn, the last one.
Who goes on writing begins on a new line, and who reads leaves out lines that are torn, or of
another form.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["FORMAT", "Opening", "Writer", "last_step", "lines", "read"]

#: The number of the format that is written.
FORMAT = 1

_KIND = "record"
_BEGIN = f'{{"adamas":"{_KIND}"'.encode()
#: How numbers are written that JSON has not.
_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_WORDS = tuple(f'"{word}"'.encode() for word in _NUMBERS)
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Opening(NamedTuple):
    """A header with the lines of steps that follow it, numbers as numbers."""

    header: dict[str, Any]
    steps: list[dict[str, Any]]


def read(path: str | os.PathLike[str]) -> list[Opening]:
    """Return what a record has, in its order; torn lines are left out.

    Where a run was resumed from an earlier step, the steps after that are there twice, and the
    later ones count. Raises OSError where the file cannot be read, ValueError where it is no
    record, or one of a later format.
    """
    found: list[Opening] = []
    for line, is_header in lines(path):
        if is_header:
            found.append(Opening(line, []))
        else:
            found[-1].steps.append(line)
    return found


def lines(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the lines of a record as `read` has them, each with whether it is a header.

    One is held at a time: a record may be larger than memory.
    """
    is_record = False
    with Path(path).open("rb") as file:
        for line in _whole(file):
            if line.get("adamas") == _KIND:
                _check_format(path, line.get("format"))
                if not _is_header(line):
                    continue
                is_record = True
                yield line, True
            elif is_record and _is_of_step(line):
                yield line, False
    if not is_record:
        raise ValueError(
            f"{os.fspath(path)} is no record: it has no line with "
            f'"adamas": "{_KIND}". Give a file that adamas.Recorder has written.'
        )


def last_step(path: str | os.PathLike[str]) -> int:
    """Return the number of the step that a record has last; 0 where it has none.

    Raises as `read` does.
    """
    found = 0
    for line, is_header in lines(path):
        found = found if is_header else line["step"]
    return found


class Writer:
    """Appends lines to a file, each by one write; it is closed with the writer."""

    def __init__(self, path: str) -> None:
        """Take the path; nothing is opened yet."""
        self._path = Path(path)
        self._file: int | None = None
        #: What the file is and how long, after the last line that was written whole.
        self._left: tuple[int, ...] | None = None

    def append(
        self,
        header: Callable[[], Mapping[str, Any]],
        line: Mapping[str, Any] | None = None,
        *,
        is_new: bool,
    ) -> None:
        """Append a line; creates the file where there is none under the path by now.

        The header goes before it where it is new, or where the file is empty. Raises OSError where
        not all could be written, ValueError where a new header would go into a file that is no
        record.
        """
        file = self._open()
        try:
            self._write(file, header, line, is_new)
        except OSError as error:  # of a descriptor, so it names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        finally:
            if os.name == "nt":  # where nobody could rename or remove it
                self.close()

    def _write(
        self,
        file: int,
        header: Callable[[], Mapping[str, Any]],
        line: Mapping[str, Any] | None,
        is_new: bool,
    ) -> None:
        text, left, self._left = b"", self._left, None
        if is_new and os.lseek(file, 0, os.SEEK_END):
            _check_begin(self._path, file)
        if left is None:
            size = os.lseek(file, 0, os.SEEK_END)
            if size:
                os.lseek(file, -1, os.SEEK_END)
                text = b"" if os.read(file, 1) == b"\n" else b"\n"  # ends a line that is torn
            is_new = is_new or not size
        if is_new:
            text += _encoded({"adamas": _KIND, "format": FORMAT, **header()})
        if line is not None:
            text += _encoded(line)
        if os.write(file, text) < len(text):
            raise OSError(errno.ENOSPC, "Only a part of a line was written", str(self._path))
        if left is None:
            found = os.fstat(file)
            self._left = found.st_dev, found.st_ino, found.st_size
        else:
            self._left = *left[:2], left[2] + len(text)

    def _open(self) -> int:
        """Return the file that the path names by now."""
        if self._file is not None and self._left is not None and self._left == _seen(self._path):
            return self._file
        self.close()
        self._file = _opened(self._path)
        return self._file

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        file, self._file, self._left = self._file, None, None
        if file is not None:
            os.close(file)

    __del__ = close


def _seen(path: Path) -> tuple[int, ...] | None:
    """Return what a file is and how long; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def _opened(path: str | os.PathLike[str]) -> int:
    """Open a file to append to; creates it. Errors say what to do."""
    name = os.fspath(path)
    try:
        return os.open(path, _FLAGS, 0o666)
    except FileNotFoundError as error:
        folder = Path(path).parent
        if folder.is_dir():
            raise
        said = f"There is no directory {folder}. Create it first"
        raise FileNotFoundError(error.errno, said, name) from None
    except IsADirectoryError as error:
        said = "This is a directory. Name a file in it"
        raise IsADirectoryError(error.errno, said, name) from None


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        text = _encode(line)
    except ValueError:  # a number that JSON has not
        text = _encode(_without_numbers(line))
    return text.encode() + b"\n"


def _without_numbers(value: Any) -> Any:
    """Return a value with words for the numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {name: _without_numbers(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_numbers(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _with_numbers(value: Any) -> Any:
    """Return a value of a line with numbers for words that stand for them; names stay as they are.

    Names are keys, or in the lists ``parameters`` of groups.
    """
    if isinstance(value, dict):
        return {
            name: each if name == "parameters" and isinstance(each, list) else _with_numbers(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _whole(texts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the lines that are whole, numbers as numbers."""
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            has_words = any(word in text for word in _WORDS)  # which few lines have
            yield _with_numbers(line) if has_words else line


def _is_header(line: Mapping[str, Any]) -> bool:
    groups = line.get("groups", [])
    are_objects = isinstance(groups, list) and all(isinstance(each, dict) for each in groups)
    return are_objects and _has_objects(line.get("parameters", {}))


def _is_of_step(line: Mapping[str, Any]) -> bool:
    step = line.get("step")
    is_number = type(step) is int and 0 <= step < 2**63
    return is_number and _has_objects(line.get("tensors", {}))


def _has_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def _check_begin(path: str | os.PathLike[str], file: int) -> None:
    """Raise ValueError where a file begins with anything but a header, whole or torn."""
    os.lseek(file, 0, os.SEEK_SET)
    begin = os.read(file, 4 * len(_BEGIN)).partition(b"\n")[0].replace(b" ", b"")
    if not begin.startswith(_BEGIN) and not _BEGIN.startswith(begin.rstrip()):
        raise ValueError(
            f"{os.fspath(path)} is there already and is no record, so nothing was written to it. "
            "Give the path of a record, which goes on, or of a file that is not there."
        )


def _check_format(path: str | os.PathLike[str], given: Any) -> None:
    if not isinstance(given, int) or not 1 <= given <= FORMAT:
        raise ValueError(
            f"{os.fspath(path)} is a record of format {given!r}, but this adamas reads format "
            f"{FORMAT}. Read it with a newer adamas: pip install -U adamas."
        )
