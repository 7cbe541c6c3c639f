"""Optimizers for PyTorch in place of torch.optim's: same names, arguments and meaning.

    from adamas.torch import AdamW

    optimizer = AdamW(model.parameters(), lr=3e-4, clip_norm=1.0)

Each takes what torch 2.13's optimizer of the same name takes, and the phase of a step besides:
``clip_norm``, ``on_nonfinite``, ``ema``, ``copy_to`` and ``statistics``; it shows them, and the
first two may be set between steps. ``state`` and ``rounding`` say how things are stored, and
``offload`` keeps the state of parameters on a card in host memory.
``foreach``, ``fused`` and ``capturable`` choose in torch how a step is computed; here they are
checked and kept, and change nothing but where ``step`` lives.
"""

from __future__ import annotations

try:
    import torch as _torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'adamas.torch needs PyTorch. Install it with: pip install "adamas[torch]"'
    ) from error

from adamas.torch.grouping import param_groups
from adamas.torch.optimizer import Optimizer
from adamas.torch.optimizers import SGD, Adam, AdamW, NAdam, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "Optimizer", "RMSprop", "param_groups"]

del _torch
