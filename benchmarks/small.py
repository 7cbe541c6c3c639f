"""Steps with small states, beside torch's float32 and other libraries' 8 bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from benchmarks.arrays import drawn
from benchmarks.checks import LR, ROUNDINGS, require_close
from benchmarks.ratios import Pair
from benchmarks.tables import Row

_SMALL = {
    "bfloat16 states": {"state": "bfloat16"},
    "compact states": {"state": "compact"},
    "8bit states": {"state": "8bit"},
    "8bit states, bfloat16 parameters": {"state": "8bit"},
    "8bit states, bfloat16 parameters, stochastic rounding": {
        "state": "8bit",
        "rounding": "stochastic",
    },
    "8bit states, bfloat16 parameters with remainder": {"state": "8bit", "rounding": "remainder"},
}


def rows() -> list[Row]:
    """Return the rows of small states on the CPU."""
    fused = "torch fused, float32"
    goals = dict(zip(_SMALL, (1.0, 1.0, 0.8, 1.3, None, None), strict=True))
    rows = [
        Row(f"small, 64 M, {name}", fused, goals[name], _small(name, torch_fused), ("torch",))
        for name in _SMALL
    ]
    for name in ("compact states", "8bit states"):
        for package, other in (("bitsandbytes", bitsandbytes), ("torchao", torchao)):
            work = f"small, 64 M, {name}"
            needs = ("torch", package)
            rows.append(Row(work, f"{package} 8-bit", 20, _small(name, other), needs))
    return rows


def torch_fused(parameters: list[Any]) -> Any:
    """Return torch's fused AdamW."""
    import torch

    return torch.optim.AdamW(parameters, lr=LR, fused=True)


def bitsandbytes(parameters: list[Any]) -> Any:
    """Return the AdamW of bitsandbytes with 8-bit states."""
    module: Any = importlib.import_module("bitsandbytes.optim")
    return module.AdamW8bit(parameters, lr=LR)


def torchao(parameters: list[Any]) -> Any:
    """Return torchao's optimizer, compiled as it compiles itself."""
    module: Any = importlib.import_module("torchao.optim")
    return module.AdamW8bit(parameters, lr=LR)


def _small(name: str, make_other: Callable[[list[Any]], Any]) -> Callable[[bool], Pair]:
    """Return a step with small states, and another's over the same parameters in float32.

    A first step moves parameters by the same in all of them, but for rounding: what is stored is
    read in the second. What is stored is compared, bit for bit, with what torch's operations leave.
    """

    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        p, g = drawn(1 << 12 if quick else 1 << 26)
        dtype = torch.bfloat16 if "bfloat16 parameters" in name else torch.float32
        # In memory of torch's own, as a model's: NumPy's begins within a line of the cache, and in
        # huge pages.
        ours, theirs = (torch.nn.Parameter(torch.from_numpy(p).clone()) for _ in range(2))
        ours.data = ours.data.to(dtype)
        for each in (ours, theirs):
            each.grad = torch.from_numpy(g).to(each.dtype, copy=True)
        mine: Any = AdamW([ours], lr=LR, **cast(Any, _SMALL[name]))
        other = make_other([theirs])
        judged = torch.nn.Parameter(ours.detach()[:4096].clone())
        assert ours.grad is not None
        judged.grad = ours.grad[:4096].clone()
        # By torch's operations and NumPy's codecs.
        judge: Any = AdamW([judged], lr=LR, engine="torch", **cast(Any, _SMALL[name]))

        def check() -> None:
            for optimizer in (mine, other, judge):
                optimizer.step()
            x, y = (each.detach().float().numpy() for each in (ours, theirs))
            unit = float(np.finfo(np.float32).eps if dtype == torch.float32 else 2.0**-8)
            bound = LR * (ROUNDINGS + unit) + 2 * unit * float(np.abs(x).max())
            require_close(x, y, bound, "a first step of AdamW")
            mine.step()
            judge.step()
            a, b = (each.detach().float()[:4096].numpy() for each in (ours, judged))
            require_close(a, b, 0.0, "a second step and the reference's")

        return Pair(mine.step, other.step, check)

    return make
