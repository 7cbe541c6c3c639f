"""Checkpoints in files: parameters, state and counts of an optimizer, in one safetensors file.

The tensors are named ``parameters/<name>`` and ``state/<name>/<entry>``; everything else is JSON
under the key ``adamas`` of the file's metadata (numbers in Python's shortest form, which reads
back exactly). Any program that reads safetensors can read the arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.extras import require
from adamas.numpy import Optimizer

__all__ = ["load", "save"]

#: Of the layout described above; a file with a greater number is refused.
FORMAT = 1

_SUFFIX = ".adamas-partial"


def save(path: str | os.PathLike[str], optimizer: Optimizer) -> None:
    """Write parameters and state of ``optimizer`` to ``path``, whole or not at all.

    The file is written beside ``path`` under another name, and takes its place once it is safely
    stored: whatever happens meanwhile, ``path`` is the old file or the new one. Raises
    ModuleNotFoundError without safetensors, OSError where the file cannot be written.
    """
    numpy_files = _safetensors("save")
    state_dict = optimizer.state_dict(copy=False)
    tensors = {f"parameters/{name}": p for name, p in optimizer.named_parameters().items()}
    for name, entries in state_dict.pop("state").items():
        tensors |= {f"state/{name}/{entry}": array for entry, array in entries.items()}
    about = {"format": FORMAT, "method": type(optimizer).__name__, **state_dict}
    contents = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with _replacing(Path(path)) as partial:
        numpy_files.save_file(contents, partial, metadata={"adamas": json.dumps(about)})


def load(path: str | os.PathLike[str], optimizer: Optimizer) -> None:
    """Put what :func:`save` wrote into ``optimizer`` and its parameters, in place.

    The optimizer must be over parameters of the same names, shapes and dtypes, and keep the same
    state; the run then goes on bit for bit. Raises ModuleNotFoundError without safetensors,
    OSError where the file cannot be read, and ValueError, KeyError or TypeError where it does not
    fit, before anything is changed.
    """
    about, tensors = _read(Path(path))
    if about["method"] != type(optimizer).__name__:
        raise ValueError(
            f"{path} holds the state of {about['method']}, but the optimizer is "
            f"{type(optimizer).__name__}. Load it into the method it was saved from."
        )
    parameters, state = _sorted_out(path, tensors)
    _check_parameters(path, parameters, optimizer.named_parameters())
    kept = {key: value for key, value in about.items() if key not in ("format", "method")}
    stateless = {name: {} for name in parameters}
    optimizer.load_state_dict({**kept, "state": {**stateless, **state}})
    for name, parameter in optimizer.named_parameters().items():
        np.copyto(parameter, parameters[name])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    _safetensors("load")
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            about = _about(path, metadata)
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}). Give a file that adamas.save wrote."
        ) from None


def _about(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["adamas"])
        number = int(about["format"])
        str(about["method"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} is a safetensors file, but not one that adamas.save wrote."
        ) from None
    if number > FORMAT:
        raise ValueError(
            f"{path} has format {number}, but this version of adamas reads formats up to "
            f"{FORMAT}. Load it with a newer version."
        )
    return about


def _sorted_out(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, NDArray[Any]]]]:
    parameters: dict[str, NDArray[Any]] = {}
    state: dict[str, dict[str, NDArray[Any]]] = {}
    for full_name, array in tensors.items():
        kind, _, name = full_name.partition("/")
        owner, slash, entry = name.rpartition("/")
        if kind == "parameters" and name:
            parameters[name] = array
        elif kind == "state" and slash:
            state.setdefault(owner, {})[entry] = array
        else:
            raise ValueError(f"{path} has the unknown tensor {full_name!r}.")
    return parameters, state


def _check_parameters(
    path: str | os.PathLike[str],
    stored: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, NDArray[Any]],
) -> None:
    if set(stored) != set(wanted):
        raise KeyError(
            f"{path} has the parameters {sorted(stored)}, but the optimizer has {sorted(wanted)}. "
            "Load it into an optimizer over the same parameters."
        )
    for name, array in stored.items():
        parameter = wanted[name]
        if array.shape != parameter.shape or array.dtype != parameter.dtype:
            raise ValueError(
                f"{path} has {name} of shape {array.shape} and dtype {array.dtype}, but the "
                f"parameter has shape {parameter.shape} and dtype {parameter.dtype}."
            )


@contextlib.contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """Give a path to write to; what is there in the end takes the place of ``path`` at once."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(_usual_mode(path))
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
        _store_directory(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _usual_mode(path: Path) -> int:
    """Return the permissions of the file that is replaced, or those a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _store_directory(directory: Path) -> None:
    """Make the new name last through a loss of power, where the system lets a directory sync."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _safetensors(function: str) -> Any:
    return require("safetensors.numpy", f"adamas.{function}", "safetensors", "safetensors")
