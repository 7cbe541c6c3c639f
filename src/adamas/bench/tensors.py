"""Steps of PyTorch parameters, beside torch's own: alone, and with the phase around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from adamas.bench.checks import LR, WrongResultError, require_close_tensors
from adamas.bench.measuring import Pair, Row

__all__ = ["rows"]

_MLP = ((50, 64), (50,), (40, 50), (40,), (10, 40), (10,))
_MANY = ((2080,),) * 128


def _transformer() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a small transformer: 6 layers of width 256, 4.7 M parameters."""
    width = 256
    layer = (
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
        *((width,),) * 4,
    )
    return layer * 6


def rows() -> list[Row]:
    """Return the rows of PyTorch on the CPU."""
    needs = ("torch",)
    large = ((1 << 26,),)
    return [
        Row("torch step, 64 M in 1 tensor", "torch fused", 1, _torch(large, fused=True), needs),
        Row("torch step, 64 M in 1 tensor", "torch default", 7, _torch(large), needs),
        Row("torch step, 5,702 in 6 tensors", "torch fused", 15, _torch(_MLP, fused=True), needs),
        Row("torch step, 5,702 in 6 tensors", "torch default", 50, _torch(_MLP), needs),
        Row("torch step, 128 tensors of 2,080", "torch fused", 4, _torch(_MANY, fused=True), needs),
        Row(
            "phase, transformer of 4.7 M",
            "torch fused and friends",
            1.8,
            _torch_phase(_transformer()),
            needs,
        ),
        Row("phase, 5,702 in 6 tensors", "torch fused and friends", 20, _torch_phase(_MLP), needs),
    ]


def _torch_parameters(shapes: Iterable[tuple[int, ...]], quick: bool) -> tuple[list[Any], Any]:
    """Return two equal lists of parameters with equal gradients."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def made() -> list[Any]:
        generator.manual_seed(0)
        parameters: list[Any] = []
        for shape in shapes:
            small = tuple(min(side, 64) for side in shape) if quick else shape
            p = torch.nn.Parameter(torch.randn(small, generator=generator))
            p.grad = torch.randn(small, generator=generator)
            parameters.append(p)
        return parameters

    return made(), made()


def _torch(shapes: Iterable[tuple[int, ...]], **options: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import Adam

        ours, theirs = _torch_parameters(shapes, quick)
        mine = Adam(ours, lr=LR)
        other = torch.optim.Adam(theirs, lr=LR, **options)

        def check() -> None:
            for _ in range(3):
                mine.step()
                other.step()
            require_close_tensors(ours, theirs, 3, "three steps of Adam")

        return Pair(mine.step, other.step, check)

    return make


def _torch_phase(shapes: Iterable[tuple[int, ...]]) -> Callable[[bool], Pair]:
    """Return clipping, AdamW, averaging and a bfloat16 copy: in one step, and in torch's parts."""

    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        ours, theirs = _torch_parameters(shapes, quick)
        mine = AdamW(ours, lr=LR, clip_norm=1.0, ema=0.999, copy_to=torch.bfloat16)
        model = torch.nn.ParameterList(theirs)
        gradients = [p.grad.clone() for p in theirs]
        other = torch.optim.AdamW(theirs, lr=LR, fused=True)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        copies = [p.detach().to(torch.bfloat16) for p in theirs]
        copy_all = cast(Any, torch)._foreach_copy_  # the fastest there is

        def phase() -> None:
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            other.step()
            average.update_parameters(model)
            copy_all(copies, [p.detach() for p in theirs])

        def check() -> None:
            for _ in range(3):
                mine.step()
                for p, gradient in zip(theirs, gradients, strict=True):
                    p.grad.copy_(gradient)  # clip_grad_norm_ has scaled it
                phase()
            require_close_tensors(ours, theirs, 3, "three phases with AdamW")
            averages = [mine.state[p]["ema"] for p in ours]
            require_close_tensors(averages, list(average.parameters()), 3, "averaged weights")
            apart = [
                (a.float() - b.float()).abs().max()
                for a, b in zip(mine.copies, copies, strict=True)
            ]
            step = max(float(c.float().abs().max()) for c in copies) * 2**-7
            if max(map(float, apart)) > step:
                raise WrongResultError("the bfloat16 copies differ by more than one rounding")

        return Pair(mine.step, phase, check)

    return make
