"""Steps of PyTorch parameters with the usual number of threads, beside the same with one thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.checks import LR, WrongResultError
from benchmarks.ratios import Pair
from benchmarks.tables import Row

_AGAINST = "one thread"
_POWERS = range(17, 25)


def rows() -> list[Row]:
    """Return the rows: more threads are never slower than one."""
    steps = [
        Row(f"torch step, 2^{power} in {words}", _AGAINST, 1, _steps(power, parts), ("torch",))
        for power in _POWERS
        for parts, words in ((1, "1 tensor"), (16, "16 tensors"))
    ]
    # Here threads of the pool have fallen asleep, and those of torch still look for work.
    trainings = [
        Row(f"training, {name}", _AGAINST, 1, functools.partial(_training, width), ("torch",))
        for name, width in (("2^18 in 1 tensor", 512), ("2^20 in 1 tensor", 1024))
    ]
    return steps + trainings


def _in_turn(step: Callable[[], object]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a step with as many threads as there are now, and one with one thread."""
    import adamas

    usual = adamas.get_num_threads()

    def with_threads(count: int) -> None:
        adamas.set_num_threads(count)
        try:
            step()
        finally:
            adamas.set_num_threads(usual)

    return functools.partial(with_threads, usual), functools.partial(with_threads, 1)


def _require_equal(ours: list[Any], theirs: list[Any], what: str) -> None:
    import torch

    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise WrongResultError(f"{what}: the results depend on the number of threads.")


def _steps(power: int, parts: int) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import Adam

        size = 2 ** (17 if quick else power) // parts

        def made() -> tuple[list[Any], Any]:
            generator = torch.Generator().manual_seed(0)
            parameters: list[Any] = []
            for _ in range(parts):
                p = torch.nn.Parameter(torch.randn(size, generator=generator))
                p.grad = torch.randn(size, generator=generator)
                parameters.append(p)
            return parameters, Adam(parameters, lr=LR)

        ours, other = _in_turn(made()[1].step)

        def check() -> None:
            several, alone = made(), made()
            for _ in range(3):
                _in_turn(several[1].step)[0]()
                _in_turn(alone[1].step)[1]()
            _require_equal(several[0], alone[0], "three steps of Adam")

        return Pair(ours, other, check)

    return make


def _training(width: int, quick: bool) -> Pair:
    import torch

    from adamas.torch import Adam

    width = 400 if quick else width

    def made() -> tuple[Any, Callable[[], None]]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(width, width, generator=generator))
        x = torch.randn(64, width, generator=generator)
        optimizer = Adam([weight], lr=LR)

        def iteration() -> None:
            optimizer.zero_grad()
            (x @ weight).square().mean().backward()
            optimizer.step()

        return weight, iteration

    ours, other = _in_turn(made()[1])

    def check() -> None:
        (several, step), (alone, step_alone) = made(), made()
        for _ in range(3):
            _in_turn(step)[0]()
            _in_turn(step_alone)[1]()
        _require_equal([several], [alone], "three iterations of a training")

    return Pair(ours, other, check)
