"""Steps of PyTorch parameters, beside torch's own: alone, and with the phase around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

from benchmarks.checks import LR, require_close_tensors, require_within
from benchmarks.ratios import Pair
from benchmarks.shapes import MANY, MLP, SIXTY, TRANSFORMER
from benchmarks.tables import Row


def step_rows() -> list[Row]:
    """Return the rows of steps."""
    needs = ("torch",)
    large = ((1 << 26,),)
    return [
        Row("torch step, 64 M in 1 tensor", "torch fused", 1, _torch(large, fused=True), needs),
        Row("torch step, 64 M in 1 tensor", "torch default", 7, _torch(large), needs),
        Row("torch step, 5,702 in 6 tensors", "torch fused", 15, _torch(MLP, fused=True), needs),
        Row("torch step, 5,702 in 6 tensors", "torch default", 50, _torch(MLP), needs),
        Row("torch step, 128 tensors of 2,080", "torch fused", 8, _torch(MANY, fused=True), needs),
    ]


def head_rows() -> list[Row]:
    """Return the rows of two heads that have gradients alternately."""
    work, needs = "torch step, alternating heads, 60 tensors of 32", ("torch",)
    return [
        # At most 1.2 times the time of the same tensors when all of them have gradients.
        Row(work, "all gradients each step", 0.83, _heads, needs),
        Row(work, "torch fused", 8, functools.partial(_heads_of_torch, fused=True), needs),
    ]


def phase_rows() -> list[Row]:
    """Return the rows of gradient clipping, step, EMA and low-precision copy together."""
    parts, needs = "torch: clip, fused step, EMA, copy", ("torch",)
    return [
        Row("phase, transformer of 4.7 M", parts, 2.2, _torch_phase(TRANSFORMER), needs),
        Row("phase, 5,702 in 6 tensors", parts, 30, _torch_phase(MLP), needs),
        *(
            Row(f"step with update clipping, {work}", peer, None, make(shapes), needs)
            for work, shapes in (("transformer of 4.7 M", TRANSFORMER), ("5,702 in 6 tensors", MLP))
            for peer, make in (
                ("StableAdamW by torch's foreach", _stable),
                ("a step without", _unclipped),
            )
        ),
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


class _InTurn:
    """Steps of a trunk of 20 tensors with two heads of 20, only one of which has gradients.

    With ``is_steady`` all have gradients; as many are put in place before each step.
    """

    def __init__(self, optimizer: Any, parameters: list[Any], *, is_steady: bool = False) -> None:
        self._step = optimizer.step
        heads = parameters[20:40], parameters[40:]
        gradients = [[p.grad for p in head] for head in heads]
        #: Of the two kinds of steps: what is taken away first, and what is given.
        self._turns = [
            (
                heads[i] if is_steady else heads[1 - i],
                list(zip(heads[i], gradients[i], strict=True)),
            )
            for i in (0, 1)
        ]

    def step(self) -> None:
        """Make one step, and let the other head have the next."""
        self._turns.reverse()
        taken, given = self._turns[0]
        for p in taken:
            p.grad = None
        for p, gradient in given:
            p.grad = gradient
        self._step()


def _heads(quick: bool) -> Pair:
    from adamas.torch import Adam

    ours, steady = _torch_parameters(SIXTY, quick)
    looked_at, _ = _torch_parameters(SIXTY, quick)
    in_turn = _InTurn(Adam(ours, lr=LR), ours)
    # One optimizer for each of the three thirds never lacks a gradient.
    thirds = [Adam(looked_at[i : i + 20], lr=LR) for i in (0, 20, 40)]

    def check() -> None:
        for i in range(4):
            in_turn.step()
            thirds[0].step()
            thirds[2 - i % 2].step()
        require_close_tensors(ours, looked_at, 4, "four steps of Adam with alternating heads")

    return Pair(in_turn.step, _InTurn(Adam(steady, lr=LR), steady, is_steady=True).step, check)


def _heads_of_torch(quick: bool, **options: Any) -> Pair:
    import torch

    from adamas.torch import Adam

    ours, theirs = _torch_parameters(SIXTY, quick)
    mine = _InTurn(Adam(ours, lr=LR), ours)
    other = _InTurn(torch.optim.Adam(theirs, lr=LR, **options), theirs)

    def check() -> None:
        for _ in range(4):
            mine.step()
            other.step()
        require_close_tensors(ours, theirs, 4, "four steps of Adam with alternating heads")

    return Pair(mine.step, other.step, check)


def _torch_phase(shapes: Iterable[tuple[int, ...]]) -> Callable[[bool], Pair]:
    """Return clipping, AdamW, averaging and a bfloat16 copy: in one step, and in torch's parts."""

    def make(quick: bool) -> Pair:
        from adamas.torch import AdamW

        ours, theirs = _torch_parameters(shapes, quick)
        mine = AdamW(ours, lr=LR, **phase_options())
        copies = mine.copies  # read before the steps: reading them later would renew them
        phase = TorchPhase(theirs)

        def check() -> None:
            for _ in range(3):
                mine.step()
                phase.restore()
                phase.step()
            phase.require_close_to(mine, ours, copies, 3, "three phases with AdamW")

        return Pair(mine.step, phase.step, check)

    return make


#: Half of what is usual: so that updates of gradients that do not grow are clipped, too.
_BOUND = 0.5


def _stable(shapes: Iterable[tuple[int, ...]]) -> Callable[[bool], Pair]:
    """Return AdamW with clipped updates, and StableAdamW's algorithm 2 in torch's operations."""

    def make(quick: bool) -> Pair:
        from adamas.torch import AdamW

        ours, theirs = _torch_parameters(shapes, quick)
        mine, other = AdamW(ours, lr=LR, clip_update=_BOUND), StableAdamW(theirs)

        def check() -> None:
            for _ in range(3):
                mine.step()
                other.step()
            require_close_tensors(ours, theirs, 3, "three steps of StableAdamW")

        return Pair(mine.step, other.step, check)

    return make


def _unclipped(shapes: Iterable[tuple[int, ...]]) -> Callable[[bool], Pair]:
    """Return AdamW with clipped updates and without; the bound is checked where none reaches it."""

    def make(quick: bool) -> Pair:
        from adamas.torch import AdamW

        ours, theirs = _torch_parameters(shapes, quick)
        mine, other = AdamW(ours, lr=LR, clip_update=1e9), AdamW(theirs, lr=LR)

        def check() -> None:
            for _ in range(3):
                mine.step()
                other.step()
            require_close_tensors(ours, theirs, 3, "three steps whose updates are below the bound")
            mine.clip_update = _BOUND

        return Pair(mine.step, other.step, check)

    return make


class StableAdamW:
    """AdamW with update clipping (Wortsman et al. 2023, algorithm 2), by torch's foreach."""

    def __init__(self, parameters: list[Any]) -> None:
        import torch

        self._torch = cast(Any, torch)
        self._p = [p.detach() for p in parameters]
        self._g = [p.grad for p in parameters]
        self._m, self._v = ([torch.zeros_like(p) for p in self._p] for _ in range(2))
        self._steps = 0

    def step(self) -> None:
        """Make one step."""
        torch, (beta1, beta2), eps, decay = self._torch, (0.9, 0.999), 1e-8, 0.01
        self._steps += 1
        torch._foreach_lerp_(self._m, self._g, 1 - beta1)
        torch._foreach_mul_(self._v, beta2)
        torch._foreach_addcmul_(self._v, self._g, self._g, 1 - beta2)
        roots = torch._foreach_sqrt(self._v)
        torch._foreach_div_(roots, (1 - beta2**self._steps) ** 0.5)
        updates = torch._foreach_div(self._g, torch._foreach_clamp_min(roots, eps))
        norms = torch.stack(torch._foreach_norm(updates)).tolist()
        sizes = [norm / p.numel() ** 0.5 for norm, p in zip(norms, self._p, strict=True)]
        rates = [LR * min(1.0, _BOUND / size) for size in sizes]
        torch._foreach_add_(roots, eps)
        torch._foreach_mul_(self._p, [1 - rate * decay for rate in rates])
        scales = [-rate / (1 - beta1**self._steps) for rate in rates]
        torch._foreach_addcdiv_(self._p, self._m, roots, scales)


def phase_options() -> dict[str, Any]:
    """Return the options with which one step does what ``TorchPhase`` does."""
    import torch

    return {"clip_norm": 1.0, "ema": 0.999, "copy_to": torch.bfloat16}


class TorchPhase:
    """Clipping, AdamW, averaging, a bfloat16 copy: torch's parts, each the fastest there is."""

    def __init__(self, parameters: list[Any]) -> None:
        import torch

        self._parameters = parameters
        self._gradients = [p.grad.clone() for p in parameters]
        self._model = torch.nn.ParameterList(parameters)
        self._step = torch.optim.AdamW(parameters, lr=LR, fused=True).step
        self._average = torch.optim.swa_utils.AveragedModel(
            self._model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        self._values = [p.detach() for p in parameters]
        self._copies = [p.to(torch.bfloat16) for p in self._values]
        self._clip = torch.nn.utils.clip_grad_norm_
        self._copy_all = cast(Any, torch)._foreach_copy_

    def step(self) -> None:
        """Make one phase."""
        self._clip(self._parameters, 1.0)
        self._step()
        self._average.update_parameters(self._model)
        self._copy_all(self._copies, self._values)

    def restore(self) -> None:
        """Put the first gradients in place of those that clipping has scaled."""
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad.copy_(gradient)

    def require_close_to(
        self, mine: Any, ours: list[Any], copies: list[Any], steps: int, what: str
    ) -> None:
        """Raise WrongResultError where our parameters, averages or copies differ from torch's."""
        require_close_tensors(ours, self._parameters, steps, what)
        averages = [mine.state[p]["ema"] for p in ours]
        require_close_tensors(
            averages, list(self._average.parameters()), steps, f"{what}, averaged weights"
        )
        rounding = max(float(each.float().abs().max()) for each in self._copies) * 2**-7
        for a, b in zip(copies, self._copies, strict=True):
            apart = float((a.float() - b.float()).abs().max())
            require_within(apart, rounding, f"{what}, copies in bfloat16")
