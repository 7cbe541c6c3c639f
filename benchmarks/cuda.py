"""Steps of CUDA tensors, beside torch, bitsandbytes and torchao, and beside a copy on the device.

A device works while its host goes on, so contenders are timed by the clock from an idle device to
an idle device, around as many steps as fill a tenth of a second. That is the device's time where a
step is large, and the host's where it is many small tensors, as in a training. What would fit into
the device's cache is there several times, and each step takes the next.

Our results are compared with the other's, within the bounds that hold on the CPU, and bit for bit
with those of our own optimizer on the CPU.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks import small
from benchmarks.checks import LR, WrongResultError, require_close_tensors
from benchmarks.ratios import Pair
from benchmarks.shapes import GPT2, Shapes
from benchmarks.tables import Row
from benchmarks.tensors import TorchPhase, phase_options

MakeOther = Callable[[list[Any]], Any]


class Work(NamedTuple):
    """Tensors to step, and what rows call them."""

    name: str
    shapes: Shapes


LARGE = Work("1 G in 1 tensor", ((1 << 30,),))
MODEL = Work("GPT-2, 124 M in 148 tensors", GPT2)
MANY = Work("1,000 tensors of 2,080", ((2080,),) * 1000)

#: What one step of float32 moves for each parameter: p, m and v in and out, g in.
_BYTES_MOVED = 28


@dataclass(frozen=True)
class Place:
    """Where contenders live, and from what their inputs are drawn."""

    device: str
    #: None: another for each row; it is told where results differ.
    seed: int | None

    def drawn(self, shapes: Shapes, seed: int) -> tuple[list[Any], list[Any]]:
        """Return parameters and gradients away from 0, where dialects of ε would differ."""
        import torch

        generator = torch.Generator(self.device).manual_seed(seed)
        values: list[Any] = []
        gradients: list[Any] = []
        for shape in shapes:
            p, g = (torch.randn(shape, generator=generator, device=self.device) for _ in range(2))
            values.append(p)
            gradients.append(g.add_(g.sign().mul_(0.1)))
        return values, gradients

    def new_seed(self) -> int:
        """Return what inputs are drawn from, for one row."""
        return secrets.randbits(32) if self.seed is None else self.seed

    def wait(self) -> None:
        """Return when the device is idle."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)

    def sets_of(self, shapes: Shapes, quick: bool) -> int:
        """Return how many sets of contenders are together four times as large as the cache.

        Counted are the bytes of m and v in the smallest of forms, and of p and g.
        """
        if quick or self.device == "cpu":
            return 2
        import torch

        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(1, math.ceil(4 * cache / (10 * _count(shapes))))


def _row(
    work: str,
    against: str,
    goal: float | None,
    shapes: Shapes,
    make: Callable[[bool], Pair],
    *,
    needs: tuple[str, ...] = (),
    each: int = 40,
) -> Row:
    """Return a row that takes ``each`` bytes for each parameter, and what checks need besides."""
    memory = each * _count(shapes) + 2 * 10**9
    return Row(work, against, goal, make, ("torch", "triton", *needs), memory)


def step_rows(place: Place) -> list[Row]:
    """Return the rows of steps, with float32 and with small states."""
    made: list[Row] = []
    others: dict[str, MakeOther] = {
        "torch fused": small.torch_fused,
        "torch foreach": torch_foreach,
        "torch default": torch_default,
    }
    for work, goal in ((LARGE, 1.0), (MODEL, 1.0), (MANY, 2.0)):
        for against, other in others.items():
            aim = goal if other is small.torch_fused else None
            make = against_other(work, other, place)
            made.append(_row(f"cuda step, {work.name}", against, aim, work.shapes, make))
    for work, goal in ((LARGE, 0.9), (MODEL, None)):
        against = "a device copy, as many bytes"
        make = against_a_copy(work, place)
        made.append(_row(f"cuda step, {work.name}", against, goal, work.shapes, make, each=52))
    return [*made, *_small_rows(place)]


def _small_rows(place: Place) -> list[Row]:
    made: list[Row] = []
    others: tuple[tuple[str, MakeOther, tuple[str, ...]], ...] = (
        ("torch fused, float32", small.torch_fused, ()),
        ("bitsandbytes 8-bit", small.bitsandbytes, ("bitsandbytes",)),
        ("torchao 8-bit", small.torchao, ("torchao",)),
    )
    for work, form in itertools.product((LARGE, MODEL), ("8bit", "compact")):
        for against, other, needs in others:
            aim = 1.5 if form == "8bit" and other is small.torch_fused else None
            make = against_other(work, other, place, {"state": form})
            name = f"cuda step, {work.name}, {form} states"
            made.append(_row(name, against, aim, work.shapes, make, needs=needs))
    return made


def phase_rows(place: Place) -> list[Row]:
    """Return the rows of gradient clipping, step, EMA and low-precision copy together."""
    return [
        _row(
            f"cuda phase, {work.name}",
            "torch: clip, fused step, EMA, copy",
            1.5,
            work.shapes,
            against_parts(work, place),
            each=64,
        )
        for work in (MODEL, MANY)
    ]


def torch_foreach(parameters: list[Any]) -> Any:
    """Return torch's AdamW with ``foreach=True``."""
    import torch

    return torch.optim.AdamW(parameters, lr=LR, foreach=True)


def torch_default(parameters: list[Any]) -> Any:
    """Return torch's AdamW as it is where nothing is chosen."""
    import torch

    return torch.optim.AdamW(parameters, lr=LR)


# -- contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contest:
    """One set of parameters, stepped by us, and an equal one, stepped by another."""

    mine: Any
    ours: list[Any]
    step_other: Callable[[], object]
    #: Raises WrongResultError where the results of so many steps differ.
    compare: Callable[[int], None]
    #: After how many steps they are compared: of small states, what is stored differs from the
    #: first step on, and is read in the second.
    compared_after: int = 3
    #: Puts back what the other has overwritten of its gradients.
    restore: Callable[[], None] = lambda: None


def against_other(
    work: Work, make_other: MakeOther, place: Place, form: dict[str, Any] | None = None
) -> Callable[[bool], Pair]:
    """Return our step, with small states where a ``form`` is given, and another's."""

    def make(quick: bool) -> Pair:
        from adamas.torch import AdamW

        shapes = _sizes(work.shapes, quick)
        options: dict[str, Any] = {"fused": True, **(form or {})}
        seed = place.new_seed()

        def contest(seed: int) -> _Contest:
            values, gradients = place.drawn(shapes, seed)
            ours = parameters_of([each.clone() for each in values], gradients)
            theirs = parameters_of(values, gradients)  # neither writes a gradient
            what = f"AdamW with inputs of seed {seed}"
            return _Contest(
                mine=AdamW(ours, lr=LR, **options),
                ours=ours,
                step_other=make_other(theirs).step,
                compare=lambda steps: require_close_tensors(ours, theirs, steps, what),
                compared_after=1 if form else 3,
            )

        contests = [contest(seed + i) for i in range(place.sets_of(shapes, quick))]
        return _paired(contests, options, place, f"AdamW with inputs of seed {seed}")

    return make


def against_a_copy(work: Work, place: Place) -> Callable[[bool], Pair]:
    """Return a step, and a copy from one half of a memory to the other that moves as many bytes."""

    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        shapes = _sizes(work.shapes, quick)
        seed = place.new_seed()
        ours = parameters_of(*place.drawn(shapes, seed))
        source = torch.randn(floats_copied(_count(shapes)), device=place.device)
        target = torch.full_like(source, math.nan)

        def compare(_: int) -> None:
            if not torch.equal(source, target):
                raise WrongResultError("the copy on the device is not equal to its source")

        options: dict[str, Any] = {"fused": True}
        contest = _Contest(
            AdamW(ours, lr=LR, **options), ours, lambda: target.copy_(source), compare
        )
        return _paired([contest], options, place, f"AdamW with inputs of seed {seed}")

    return make


def floats_copied(parameters: int) -> int:
    """Return how many float32 a copy reads and writes that moves as much as a step."""
    return _BYTES_MOVED * parameters // (2 * 4)


def against_parts(work: Work, place: Place) -> Callable[[bool], Pair]:
    """Return clipping, AdamW, averaging and a bfloat16 copy: in one step, and in torch's parts."""

    def make(quick: bool) -> Pair:
        from adamas.torch import AdamW

        shapes = _sizes(work.shapes, quick)
        options: dict[str, Any] = {"fused": True, **phase_options()}
        seed = place.new_seed()

        def contest(seed: int) -> _Contest:
            values, gradients = place.drawn(shapes, seed)
            ours = parameters_of([each.clone() for each in values], [g.clone() for g in gradients])
            phase = TorchPhase(parameters_of(values, gradients))
            mine = AdamW(ours, lr=LR, **options)
            copies = mine.copies  # read before the steps: reading them later would renew them
            for copy in copies:
                copy.fill_(math.nan)  # each element is to be written
            what = f"the phase with inputs of seed {seed}"
            return _Contest(
                mine,
                ours,
                phase.step,
                compare=lambda steps: phase.require_close_to(mine, ours, copies, steps, what),
                restore=phase.restore,
            )

        contests = [contest(seed + i) for i in range(place.sets_of(shapes, quick))]
        return _paired(contests, options, place, f"the phase with inputs of seed {seed}")

    return make


def _paired(contests: Sequence[_Contest], options: dict[str, Any], place: Place, what: str) -> Pair:
    first, *rest = contests
    twin = Twin(first.mine, first.ours, options, what)

    def check() -> None:
        for number in range(1, 4):
            first.restore()
            first.step_other()
            first.mine.step()
            twin.step()
            if number == first.compared_after:
                first.compare(number)
        twin.require_same_bits()
        for each in rest:  # what is made or compiled in a first step is not timed
            each.step_other()
            each.mine.step()

    return Pair(
        in_turn(each.mine.step for each in contests),
        in_turn(each.step_other for each in contests),
        check,
        place.wait,
    )


def in_turn(steps: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Return a function whose calls are those of each in turn."""
    every = list(steps)
    if len(every) == 1:
        return every[0]
    coming = itertools.cycle(every)

    def step() -> None:
        next(coming)()

    return step


def parameters_of(values: list[Any], gradients: list[Any]) -> list[Any]:
    """Return parameters with their gradients."""
    import torch

    parameters: list[Any] = []
    for value, gradient in zip(values, gradients, strict=True):
        parameter = torch.nn.Parameter(value)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def _sizes(shapes: Shapes, quick: bool) -> Shapes:
    if not quick:
        return shapes
    return tuple(
        tuple(min(side, 1 << 12 if len(shape) == 1 else 64) for side in shape)
        for shape in shapes[:150]
    )


def _count(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


# -- the same bits -------------------------------------------------------------------------------

#: So many parameters are compared with the CPU's as a whole; of more, the ends of each tensor.
COMPARED_WHOLE = 1 << 28
#: Elements of such an end.
COMPARED_END = 1 << 22


class Twin:
    """Our own optimizer on the CPU, with equal parameters: it must give the same bits."""

    def __init__(self, mine: Any, ours: list[Any], options: dict[str, Any], what: str) -> None:
        from adamas.torch import AdamW

        self._mine, self._what = mine, what
        self._copies = mine.copies  # now, since reading them after a step would renew them
        self._pieces = list(_pieces(ours, ends_match="state" not in options))
        values, gradients = (
            [_piece(of(ours[place]), where).to("cpu", copy=True) for place, where in self._pieces]
            for of in (lambda p: p, lambda p: p.grad)
        )
        self._ours = ours
        self._parameters = parameters_of(values, gradients)
        self._optimizer: Any = AdamW(self._parameters, lr=LR, **options)

    def step(self) -> None:
        """Make the same step on the CPU."""
        self._optimizer.step()

    def require_same_bits(self) -> None:
        """Raise WrongResultError where parameters, state or copies differ from the CPU's."""
        copies = self._copies
        if len(self._optimizer.copies) != (len(self._pieces) if copies else 0):
            self._refuse("one has copies, the other has none")
        for (place, where), copy in zip(self._pieces, self._optimizer.copies, strict=False):
            self._require_same(_piece(copies[place], where), copy, place, "copy")
        for (place, where), parameter in zip(self._pieces, self._parameters, strict=True):
            p = self._ours[place]
            self._require_same(_piece(p, where), parameter, place, "parameter")
            state, expected = self._mine.state[p], self._optimizer.state[parameter]
            if state.keys() != expected.keys():
                self._refuse(f"the states have entries {list(state)} and {list(expected)}")
            for name, entry in expected.items():
                got = state[name]
                if isinstance(entry, int):
                    if got != entry:
                        self._refuse(f"{name} of tensor {place} is {got}, not {entry}")
                    continue
                # One number for each block of elements, or one for all of them, stands in front.
                whole = got.numel() == p.numel()
                part = where if whole else slice(entry.numel())
                self._require_same(_piece(got, part), entry, place, name)

    def _require_same(self, got: Any, expected: Any, place: int, name: str) -> None:
        a, b = (bits_of(each) for each in (got.to("cpu"), expected))
        if a.dtype != b.dtype or a.shape != b.shape:
            self._refuse(f"{name} of tensor {place} is {a.dtype} of {tuple(a.shape)}")
        apart = int((a != b).sum())
        if apart:
            self._refuse(f"{name} of tensor {place} differs in {apart:,} of {a.numel():,} elements")

    def _refuse(self, difference: str) -> None:
        raise WrongResultError(
            f"{self._what}: not the bits of our own optimizer on the CPU: {difference}."
        )


def _pieces(parameters: list[Any], *, ends_match: bool) -> Iterable[tuple[int, slice]]:
    """Yield what is compared: places of parameters, with the elements of each.

    ``ends_match`` says that an element's step does not depend on where it stands; where it does,
    as in stochastic rounding, only a beginning can be made again by itself.
    """
    whole = sum(each.numel() for each in parameters) <= COMPARED_WHOLE
    for place in range(len(parameters)):
        yield place, slice(None if whole else COMPARED_END)
    if whole or not ends_match:
        return
    for place, each in enumerate(parameters):
        if each.numel() > COMPARED_END:
            yield place, slice(-COMPARED_END, None)


def _piece(tensor: Any, where: slice) -> Any:
    return tensor.detach().reshape(-1)[where]


def bits_of(tensor: Any) -> Any:
    """Return the elements as integers, in the memory of the tensor where it is contiguous."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().reshape(-1).view(integers[tensor.itemsize])
