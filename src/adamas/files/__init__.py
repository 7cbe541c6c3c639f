"""Files: checkpoints, and what steps have changed.

A checkpoint holds parameters, state and counts of an optimizer, in one safetensors file.

The tensors are named ``parameters/<name>`` and ``state/<name>/<entry>``; everything else is JSON
under the key ``adamas`` of the file's metadata (numbers in Python's shortest form, which reads
back exactly). Any program that reads safetensors can read the tensors; nothing but NumPy is needed
to write them and to read them here.

Top to bottom: what a file holds of NumPy arrays (``arrays``) and of PyTorch tensors (``torch``),
what both have in common (``contents``), the bytes and their checksums (``tensors``), and how a file
takes the place of another (``atomic``).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adamas.checks import kind
from adamas.files import arrays
from adamas.files.atomic import AnyPath, naming, opened, replacing, text_of
from adamas.files.changes import apply_changes, save_changes
from adamas.files.contents import check_method
from adamas.files.tensors import read, write
from adamas.numpy import Optimizer
from adamas.turns import would_lose

if TYPE_CHECKING:
    import torch

    AnyOptimizer = Optimizer | torch.optim.Optimizer

__all__ = ["apply_changes", "load", "save", "save_changes"]


def save(path: AnyPath, optimizer: AnyOptimizer) -> None:
    """Write parameters and state of ``optimizer`` to ``path``, atomically.

    ``optimizer`` is one of NumPy arrays, one of ``adamas.torch``, or one of torch's whose state
    consists of tensors and numbers; CUDA tensors come to the host one by one. Options go with it,
    but not what concerns the step as a whole (``clip_norm`` and on), nor schedules.

    The file is written beside ``path`` under another name, and takes its place once it is safely
    stored: whatever happens meanwhile, ``path`` is the old file or the new one. What saves left
    that were killed is removed. Calls of other threads wait for it. Raises OSError
    where the file cannot be written, and TypeError for what cannot be saved, as tensors that are
    sharded over processes.
    """
    name = text_of(path)
    front_end, optimizer = _front_end(optimizer)
    front_end.check_weights(optimizer, would_lose("a checkpoint"))
    with front_end.contents(optimizer) as (sources, about), replacing(name) as file:
        write(file, sources, about)


def load(path: AnyPath, optimizer: AnyOptimizer) -> None:
    """Put what ``save`` wrote into ``optimizer`` and its parameters, in place.

    The optimizer must be over parameters of the same names, shapes and dtypes, and keep the same
    state; the run then goes on bit for bit. Every bit of the file is checked first. Raises OSError
    where the file cannot be read, KeyError where it is about other parameters or entries, and
    ValueError where it does not fit otherwise or is damaged; then nothing is changed.
    """
    name = text_of(path)
    front_end, optimizer = _front_end(optimizer)
    front_end.check_weights(optimizer, "what is loaded would be undone on leaving")
    with naming(name), opened(name) as file:
        about, tensors = read(file, name)
    check_method(name, about, front_end.KIND, type(optimizer).__name__)
    try:
        front_end.put_back(name, about, tensors, optimizer)
    except RecursionError:
        raise ValueError(f"{name} has values that are nested too deeply to be an option.") from None


def _front_end(optimizer: Any) -> tuple[ModuleType, Any]:
    """Return the module for the arrays of an optimizer, and it; TypeError where it is none."""
    if isinstance(optimizer, Optimizer):
        return arrays, optimizer
    torch = sys.modules.get("torch")  # who has a torch optimizer has imported it
    if torch is not None and isinstance(optimizer, torch.optim.Optimizer):
        from adamas.files import torch as tensors

        # accelerate and Lightning put theirs around it.
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner
        return tensors, optimizer
    raise TypeError(
        f"optimizer is {kind(optimizer)}, but a checkpoint is of an optimizer: one of "
        f"adamas, adamas.torch or torch.optim.{_way_out(optimizer, torch)}"
    )


def _way_out(given: Any, torch: Any) -> str:
    if torch is not None and isinstance(given, torch.nn.Module):
        return (
            " Give the optimizer of the model: its parameters are saved with it. A model alone is "
            "for torch.save or safetensors.torch.save_model."
        )
    if isinstance(given, dict) and not {"state", "packed_state"}.isdisjoint(given):
        return " Give the optimizer itself, not what its state_dict() returned."
    jax = sys.modules.get("jax")
    is_tree = jax is not None and not jax.tree_util.all_leaves([given])
    if is_tree or isinstance(given, (tuple, list, dict)):
        return (
            " A state of adamas.jax or optax is a pytree: save it with its parameters by "
            "orbax.checkpoint, or by numpy.savez(path, *jax.tree.leaves((params, state)))."
        )
    return ""
