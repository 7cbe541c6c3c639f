"""What a user may write, for type checkers; it is not run. Lines of mistakes end with ``refused``.

A line that ends with ``is`` and a type reveals it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import reveal_type

import adamas
import adamas.jax
from adamas.torch import SGD, Adam, AdamW, NAdam, RAdam, RMSprop, create, names, param_groups

weights = [torch.zeros(3)]
arrays = np.zeros(3)


def quadratic(x: np.ndarray) -> float:
    return float((x**2).sum())


# -- torch ---------------------------------------------------------------------------------------

Adam(weights, 1e-3, clip_norm=1, on_nonfinite="skip", ema=None, statistics=True, seed=3)
AdamW(weights, state=("bfloat16", "8bit"), rounding="remainder", copy_to=torch.bfloat16)
NAdam(weights, state="compact", copy_to=[torch.zeros(3)], clip_norm=None)
RAdam(weights, decoupled_weight_decay=True, ema=0.9)
RMSprop(weights, momentum=0.9, offload=False, state=None)
SGD(weights, lr=0.1, state="bfloat16", rounding="stochastic")

Adam(weights, clip_nrom=1)  # refused
AdamW(weights, clip_nrom=1)  # refused
NAdam(weights, clip_nrom=1)  # refused
RAdam(weights, clip_nrom=1)  # refused
RMSprop(weights, clip_nrom=1)  # refused
SGD(weights, clip_nrom=1)  # refused
Adam(weights, state="9bit")  # refused
AdamW(weights, state=("8bit", "9bit"))  # refused
NAdam(weights, on_nonfinite="ignore")  # refused
RMSprop(weights, ema="0.9")  # refused
SGD(weights, copy_to="bfloat16")  # refused
AdamW(weights, rounding="up")  # refused
AdamW(weights, seed=0.5)  # refused
AdamW(weights, statistics=None)  # refused
AdamW(weights, track_changes="all")  # refused
AdamW(weights, offload="cpu")  # refused
AdamW(weights, decoupled_weight_decay=True)  # refused

optimizer = AdamW(weights, clip_norm=1.0)
reveal_type(optimizer.clip_norm)  # is float | None
reveal_type(optimizer.ema)  # is float | None
reveal_type(optimizer.seed)  # is int
reveal_type(optimizer.track_changes)  # is bool
reveal_type(optimizer.offload)  # is bool
reveal_type(optimizer.phase)  # is Phase
reveal_type(optimizer.statistics())  # is dict[str, Tensor]
optimizer.clip_norm = 0.5
optimizer.clip_norm = None
optimizer.on_nonfinite = "raise"

optimizer.clip_norm = "0.5"  # refused
optimizer.on_nonfinite = "ignore"  # refused
optimizer.ema = 0.9  # refused
optimizer.seed = 1  # refused
optimizer.copy_to = None  # refused
optimizer.offload = True  # refused
optimizer.statistics = True  # refused

model = torch.nn.Linear(3, 2)
config: dict[str, Any] = {"lr": 0.1}
reveal_type(create("adamw", model, betas=(0.9, 0.95), clip_norm=1.0))  # is AdamW
reveal_type(create("sgd", weights, lr=0.1, momentum=0.9, nesterov=True))  # is SGD
reveal_type(create("nadam", model.named_parameters(), momentum_decay=0.0))  # is NAdam
reveal_type(create("rmsprop", model, alpha=0.9, state="8bit"))  # is RMSprop
reveal_type(create("adam", model, decoupled_weight_decay=True))  # is Adam
reveal_type(create(names()[0], model, **config))  # is Optimizer
create("adamw", model, layer_decay=0.75, layer_of=len, float32=["weight"])
AdamW(param_groups(model, 0.1, lr=1e-3, layer_decay=0.75, layer_of=len))

create("adamw", model, clip_nrom=1)  # refused
create("sgd", model, state="9bit")  # refused
create("adam", model, layer_decay="0.75")  # refused
create(model, "adamw")  # refused
create("nadam", 3)  # refused
param_groups(model, 0.1, layer_of="blocks")  # refused
param_groups(model, 0.1, layer_decy=0.75)  # refused

# -- NumPy ---------------------------------------------------------------------------------------

adamas.Adam(arrays, clip_norm=1, on_nonfinite="skip", state="8bit", dialect="torch")
adamas.Momentum(arrays, beta=0.9, ema=0.99, state=("bfloat16", "float32"))
adamas.RMSProp(arrays, eps_place="inside", decay="decoupled")

adamas.Adam(arrays, clip_nrom=1)  # refused
adamas.AdamW(arrays, state="9bit")  # refused
adamas.Momentum(arrays, betas=(0.9, 0.99))  # refused
adamas.RMSProp(arrays, on_nonfinite="ignore")  # refused

stepped = adamas.AdamW(arrays)
reveal_type(stepped.clip_norm)  # is float | None
reveal_type(stepped.phase)  # is Phase
reveal_type(stepped.statistics())  # is dict[str, Statistics]
stepped.clip_norm = 0.5
stepped.on_nonfinite = "skip"
stepped.set_options(0, lr=0.1, betas=(0.9, 0.99), state="8bit")

stepped.on_nonfinite = "ignore"  # refused
stepped.ema = 0.9  # refused
stepped.set_options(epz=1e-8)  # refused
stepped.set_options(eps="1e-8")  # refused
stepped.set_options(decay="decopled")  # refused

# -- SciPy ---------------------------------------------------------------------------------------

adamas.minimize(quadratic, [0.0], jac="3-point", maxiter=100, noisy=True, betas=(0.9, 0.99))
adamas.minimize(quadratic, 0.0, method="momentum", beta=0.5, lr=lambda step: 1 / step, workers=-1)

adamas.minimize(quadratic, [0.0], max_iter=100)  # refused
adamas.minimize(quadratic, [0.0], method="adamw")  # refused
adamas.minimize(quadratic, [0.0], dialect="pytorch")  # refused
adamas.minimize(quadratic, [0.0], patience="10")  # refused
adamas.minimize(quadratic, [0.0], seed=1)  # refused

# -- JAX -----------------------------------------------------------------------------------------

adamas.jax.adamw(1e-3, 0.9, state=("bfloat16", "8bit"), rounding="nearest", seed=1)
adamas.jax.nadam(1e-3, b2=0.99)
adamas.jax.radam(1e-3, threshold=5.0)

adamas.jax.adam(1e-3, stat="8bit")  # refused
adamas.jax.nadamw(1e-3, state="9bit")  # refused
adamas.jax.rmsprop(1e-3, rounding="remainder9")  # refused
adamas.jax.momentum(1e-3, beta=0.9)  # refused
