"""What checkpoints of NumPy and of PyTorch have in common: names, and whether they fit."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "CHANGES",
    "check_method",
    "check_parameters",
    "check_structure",
    "fitting",
    "listed",
    "sorted_out",
]

#: The kind of a file that holds what steps have changed.
CHANGES = "changes"

T = TypeVar("T")


def check_method(path: str, about: Mapping[str, Any], kind: str, method: str) -> None:
    """Raise ValueError where a file was saved from another kind of optimizer."""
    if about.get("kind") == CHANGES:
        raise ValueError(
            f"{path} holds changes of parameters, no state of an optimizer. Put them into the "
            "parameters with adamas.apply_changes."
        )
    saved = about.get("kind", "numpy"), about["method"]
    if saved != (kind, method):
        raise ValueError(
            f"{path} holds the state of {_called(*saved)}, but the optimizer is "
            f"{_called(kind, method)}. Load it into an optimizer of the kind it was saved from."
        )


def _called(kind: Any, method: Any) -> str:
    return f"{method} of torch's tensors" if kind == "torch" else f"{method} of NumPy's arrays"


def check_structure(path: str, about: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Raise ValueError where what a file says beside its tensors is not what it should be."""
    entries = set(about) - {"format", "kind", "method"}
    groups = about.get("groups")
    is_whole = (
        entries == set(wanted)
        and isinstance(groups, list)
        and all(isinstance(group, dict) and _is_names(group.get("params")) for group in groups)
    )
    if not is_whole:
        raise ValueError(
            f"{path} lacks entries of an adamas checkpoint ({', '.join(wanted)}), so it cannot "
            "be loaded. Give a file that adamas.save wrote."
        )


def _is_names(params: Any) -> bool:
    return isinstance(params, list) and all(isinstance(name, str) for name in params)


def sorted_out(path: str, tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """Return parameters by name, and the entries of the state by the names of parameters."""
    parameters: dict[str, T] = {}
    state: dict[str, dict[str, T]] = {}
    for full_name, tensor in tensors.items():
        kind, _, name = full_name.partition("/")
        owner, slash, entry = name.rpartition("/")
        if kind == "parameters":
            parameters[name] = tensor
        elif kind == "state" and slash:
            state.setdefault(owner, {})[entry] = tensor
        else:
            raise ValueError(f"{path} has the unknown tensor {full_name!r}.")
    return parameters, state


def check_parameters(
    path: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], whence: str = ""
) -> None:
    """Raise KeyError or ValueError where a file is not about the parameters of an optimizer.

    ``whence`` says where names are from.
    """
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        raise KeyError(
            f"{path} has the parameters {listed(stored)}, but the optimizer has "
            f"{listed(wanted)}: the file lacks {listed(missing)}, and the optimizer "
            f"{listed(extra)}. Load it into an optimizer over the same parameters.{whence}"
        )
    for name, tensor in stored.items():
        own = wanted[name]
        if tuple(tensor.shape) != tuple(own.shape) or tensor.dtype != own.dtype:
            raise ValueError(
                f"{path} has {name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}, but "
                f"the parameter has shape {tuple(own.shape)} and dtype {own.dtype}. Give the "
                "optimizer parameters like those that were saved."
            )


@contextlib.contextmanager
def fitting(path: str) -> Generator[None]:
    """Let the errors of a state that does not fit name the file it is from.

    What a file says is never of a wrong type in the sense of Python: TypeError becomes ValueError.
    """
    try:
        yield
    except KeyError as error:
        raise KeyError(f"{path} does not fit: {_first(error)}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} does not fit: {_first(error)}") from None


def _first(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def listed(names: Iterable[str]) -> str:
    """Return some of the names: a model may have thousands."""
    shown = list(names)
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"{', '.join(shown[:5]) or 'nothing'}{more}"
