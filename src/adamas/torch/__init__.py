"""Optimizers for PyTorch in place of torch.optim's: same names, arguments and meaning.

    from adamas.torch import AdamW

    optimizer = AdamW(model.parameters(), lr=3e-4, clip_norm=1.0)

Each takes what torch 2.13's optimizer of the same name takes, and besides, by keyword:

``clip_norm``: global-norm gradient clipping (may be set between steps);
``on_nonfinite``: "propagate", "skip" or "raise" at NaN or infinite gradients (may be set, too);
``ema``: decay rate of the moving average (EMA) of the weights, see ``Optimizer.ema_weights``;
``statistics``: whether steps take norms and extremes, see ``Optimizer.statistics``;
``track_changes``: whether steps mark the elements that they change, see ``Optimizer.changes``;
``copy_to``: a dtype, or tensors, for copies in low precision that steps keep up to date;
``state``, ``rounding``: 8-bit and other small states, and how they and half-precision parameters
are rounded; groups may have their own;
``seed``: seed of stochastic rounding;
``offload``: whether the state of CUDA parameters is kept in host memory;
``engine``: the only engine that may step, for comparisons, see ``Optimizer.routes``.

``foreach``, ``fused`` and ``capturable`` choose in torch how a step is computed; here they are
checked and kept, and decide where ``step`` lives; with ``fused`` a GradScaler leaves unscaling to
the step.

``Packed`` lets torch.distributed.checkpoint save small states as they are stored.

``functional`` has steps as functions, for engines that own their state.
"""

from __future__ import annotations

try:
    import torch as _torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'adamas.torch needs PyTorch. Install it with: pip install "adamas[torch]"'
    ) from error

from adamas.torch import functional
from adamas.torch.by_name import create, names
from adamas.torch.checkpoints import Packed
from adamas.torch.grouping import param_groups
from adamas.torch.optimizer import Optimizer
from adamas.torch.optimizers import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "NAdam",
    "Optimizer",
    "Packed",
    "RAdam",
    "RMSprop",
    "create",
    "functional",
    "names",
    "param_groups",
]

del _torch
