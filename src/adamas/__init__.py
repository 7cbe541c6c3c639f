"""adamas: the Adam optimizer for PyTorch, NumPy, JAX and SciPy.

One rule of arithmetic (``adamas.rule``), with the same bits on every processor, with any number of
threads, and after every resume. For NumPy arrays::

    import adamas

    optimizer = adamas.Adam(weights, lr=1e-3)  # an array, or a list, tuple or dict of arrays
    optimizer.step(gradients)  # in place

Start reading at ``adamas.rule``; ``docs/architecture.md`` shows the layout of the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas.changes import Change, Changes
from adamas.engines.native import get_num_threads, set_num_threads, target, targets
from adamas.numpy import Adam, AdamW, Momentum, Optimizer, RAdam, RMSProp
from adamas.options import Options, Phase
from adamas.smoothing import beta_for, ema, half_life
from adamas.spikes import Skipped
from adamas.statistics import Statistics

if TYPE_CHECKING:
    from adamas.checking import check
    from adamas.files import apply_changes, load, save, save_changes
    from adamas.recorder import Recorder
    from adamas.scipy import minimize

__all__ = [
    "Adam",
    "AdamW",
    "Change",
    "Changes",
    "Momentum",
    "Optimizer",
    "Options",
    "Phase",
    "RAdam",
    "RMSProp",
    "Recorder",
    "Skipped",
    "Statistics",
    "apply_changes",
    "beta_for",
    "check",
    "ema",
    "get_num_threads",
    "half_life",
    "load",
    "minimize",
    "save",
    "save_changes",
    "set_num_threads",
    "target",
    "targets",
]

__version__ = "0.1.0"

# Names whose modules are not needed to make steps, and the modules they are in.
_ON_DEMAND = {
    "Recorder": "adamas.recorder",
    "apply_changes": "adamas.files",
    "check": "adamas.checking",
    "load": "adamas.files",
    "minimize": "adamas.scipy",
    "save": "adamas.files",
    "save_changes": "adamas.files",
}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        from importlib import import_module

        return getattr(import_module(_ON_DEMAND[name]), name)
    # They are not imported here, as that takes a second and may fail: hasattr has to be harmless.
    advice = f" yet. Import it first: import adamas.{name}" if name in ("jax", "torch") else ""
    raise AttributeError(f"module 'adamas' has no attribute {name!r}{advice}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
