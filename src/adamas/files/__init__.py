"""Checkpoints in files: parameters, state and counts of an optimizer, in one safetensors file.

The tensors are named ``parameters/<name>`` and ``state/<name>/<entry>``; everything else is JSON
under the key ``adamas`` of the file's metadata (numbers in Python's shortest form, which reads
back exactly). Any program that reads safetensors can read the tensors; nothing but NumPy is needed
to write them and to read them here.

Top to bottom: what a file holds of NumPy arrays (``arrays``) and of PyTorch tensors (``torch``),
what both have in common (``contents``), the bytes and their checksums (``tensors``), and how a file
takes the place of another (``atomic``).
"""

from __future__ import annotations

from typing import Any

from adamas.files import arrays
from adamas.files.atomic import AnyPath, naming, opened, replacing, text_of
from adamas.files.contents import check_method
from adamas.files.tensors import read, write
from adamas.numpy import Optimizer

__all__ = ["load", "save"]


def save(path: AnyPath, optimizer: Optimizer) -> None:
    """Write parameters and state of ``optimizer`` to ``path``, whole or not at all.

    The file is written beside ``path`` under another name, and takes its place once it is safely
    stored: whatever happens meanwhile, ``path`` is the old file or the new one. What saves left
    that were killed is removed. Raises OSError where the file cannot be written.
    """
    name = text_of(path)
    sources, about = arrays.contents(_checked(optimizer))
    with replacing(name) as file:
        write(file, sources, about)


def load(path: AnyPath, optimizer: Optimizer) -> None:
    """Put what :func:`save` wrote into ``optimizer`` and its parameters, in place.

    The optimizer must be over parameters of the same names, shapes and dtypes, and keep the same
    state; the run then goes on bit for bit. Every bit of the file is checked first. Raises OSError
    where the file cannot be read, KeyError where it is about other parameters or entries, and
    ValueError where it does not fit otherwise or is damaged; then nothing is changed.
    """
    name = text_of(path)
    optimizer = _checked(optimizer)
    with naming(name), opened(name) as file:
        about, tensors = read(file, name)
    check_method(name, about, "numpy", type(optimizer).__name__)
    arrays.put_back(name, about, tensors, optimizer)


def _checked(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}")
    return optimizer
