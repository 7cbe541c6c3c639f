"""What it costs to know which elements of the parameters a step has changed.

Beside marks that steps set stands what people do without: a copy of the parameters is kept and
compared with them, the places that differ are found and the values there taken, and all is copied
again. Parameters are bfloat16 with a remainder, so that a learning rate decides how many change.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.checks import WrongResultError
from benchmarks.ratios import Pair, Ratios, time_in_words
from benchmarks.shapes import TRANSFORMER, Shapes
from benchmarks.tables import Row, Run, Stored, machine_note, markdown, short

MODELS: dict[str, Shapes] = {"transformer of 4.7 M": TRANSFORMER, "64 M in 1 tensor": ((1 << 26,),)}
#: Per cent of the elements that a step changes: the learning rate at which it does.
RATES = {1: 3.5e-7, 3: 1.3e-6, 30: 2.6e-5}
WORKS = ("step with track_changes", "changes")
#: A bfloat16 snapshot has 16 bits for each element, marks have one.
GOAL = 16


def rows() -> tuple[Row, ...]:
    """Return rows of steps, at most 3 % longer with marks, and of what has changed."""
    needs = ("torch",)
    found: list[Row] = []
    for model, shapes in MODELS.items():
        for per_cent in RATES:
            step, changes = (f"{work}, {_at(model, per_cent)}" for work in WORKS)
            found += [
                Row(
                    step,
                    "without",
                    0.97,
                    functools.partial(_steps, shapes, per_cent),
                    needs,
                ),
                Row(
                    changes,
                    "snapshot and diff",
                    5,
                    functools.partial(_found, shapes, per_cent),
                    needs,
                ),
            ]
    return tuple(found)


def _at(model: str, per_cent: int) -> str:
    return f"{model}, {per_cent} % change"


@dataclass(frozen=True)
class Changes(Ratios):
    """Ratios of times, and the bytes that are kept."""

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        models = {each: MODELS[each] for each in MODELS if any(each in row.name for row in rows)}
        kept = {model: kept_bytes(shapes, run.quick) for model, shapes in models.items()}
        return {"bytes kept": kept, **super().measured(rows, run)}

    def markdown(self, stored: Stored) -> str:
        lines = (
            (model, f"{marks:,}", f"{snapshot:,}", f"{snapshot / marks:.4g}×", f"{GOAL}×")
            for model, (marks, snapshot) in stored["bytes kept"].items()
        )
        header = ("bytes that are kept", "marks", "a bfloat16 snapshot", "ratio", "goal")
        return f"{markdown(header, lines)}\n{super().markdown(stored)}"

    def passages(self, stored: Stored) -> dict[str, str]:
        return {"changes": self.markdown(stored), "changes-cost": _cost(stored)}


def _cost(stored: Stored) -> str:
    """Return in a line for each model and rate what is paid, and what others pay."""
    figures = {each["work"]: each for each in stored["figures"] if "ratio" in each}
    lines: list[tuple[str, ...]] = []
    for model in MODELS:
        for per_cent in RATES:
            step, found = (figures.get(f"{work}, {_at(model, per_cent)}") for work in WORKS)
            if step and found:
                longer = f"{100 * (1 / step['ratio'] - 1):.1f} %"
                times = time_in_words(found["ours"]), time_in_words(found["other"])
                lines.append((model, f"{per_cent} %", longer, *times, f"{short(found['ratio'])}×"))
    header = (
        "parameters",
        "change",
        "a step is longer by",
        "changes",
        "snapshot and diff",
        "ratio",
    )
    return markdown(header, lines) + "\n" + machine_note(stored)


def _optimizer(shapes: Shapes, per_cent: int, quick: bool, *, track: bool) -> tuple[Any, list[Any]]:
    """Return an optimizer after three steps, and its parameters with gradients; always the same."""
    import torch

    from adamas.torch import AdamW

    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> Any:
        small = tuple(min(side, 1 << (16 if len(shape) == 1 else 6)) for side in shape)
        return torch.randn(small if quick else shape, generator=generator).bfloat16()

    parameters = [torch.nn.Parameter(drawn(shape) * 0.02) for shape in shapes]
    optimizer = AdamW(parameters, lr=1e-3, rounding="remainder", track_changes=track)
    for _ in range(3):  # remainders are what they are in a training then
        for p, shape in zip(parameters, shapes, strict=True):
            p.grad = drawn(shape)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = RATES[per_cent]
    return optimizer, parameters


def _bits(tensors: Sequence[Any]) -> list[Any]:
    import torch

    return [each.detach().view(torch.int16).view(-1) for each in tensors]


def _steps(shapes: Shapes, per_cent: int, quick: bool) -> Pair:
    import torch

    ours, tracked = _optimizer(shapes, per_cent, quick, track=True)
    other, plain = _optimizer(shapes, per_cent, quick, track=False)

    def check() -> None:
        for _ in range(3):
            ours.step()
            other.step()
        if not all(map(torch.equal, _bits(tracked), _bits(plain))):
            raise WrongResultError("Parameters have other bits where changes are tracked.")

    return Pair(ours.step, other.step, check)


def _found(shapes: Shapes, per_cent: int, quick: bool) -> Pair:
    """Return two ways to find what the first step has changed, again and again."""
    import torch

    optimizer, parameters = _optimizer(shapes, per_cent, quick, track=True)
    optimizer.changes().clear()
    before = [each.clone() for each in _bits(parameters)]
    optimizer.step()
    # What both do in the end of each turn is done to others: the next call is to find as much.
    cleared = [torch.zeros(-(-p.numel() // 32), dtype=torch.int32) for p in parameters]
    copied = [each.clone() for each in before]
    after = _bits(parameters)

    def ours() -> list[tuple[Any, Any]]:
        found = [(each.indices, each.values) for each in optimizer.changes(clear=False)]
        for marks in cleared:
            marks.zero_()
        return found

    def other() -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []
        for p, old, new, copy in zip(parameters, before, after, copied, strict=True):
            places = (old != new).nonzero().view(-1)
            found.append((places.to(torch.int32), p.detach().view(-1).index_select(0, places)))
            copy.copy_(new)
        return found

    def check() -> None:
        pairs = list(zip(ours(), (each for each in other() if len(each[0])), strict=True))
        for (indices, values), (places, taken) in pairs:
            is_same = torch.equal(indices, places) and torch.equal(*_bits([values, taken]))
            if not is_same or indices.dtype != torch.int32:
                raise WrongResultError("Marks and a diff find other changes.")
        share = sum(len(indices) for (indices, _), _ in pairs) / sum(map(len, before))
        if not 0.8 * per_cent < 100 * share < 1.2 * per_cent:
            raise WrongResultError(f"{100 * share:.2g} % change, in place of {per_cent} %.")

    return Pair(ours, other, check)


def kept_bytes(shapes: Shapes, quick: bool) -> tuple[int, int]:
    """Return the bytes of tensors that an optimizer keeps to track changes, and of a snapshot."""
    held = [_held(shapes, quick, track=track) for track in (True, False)]
    _, parameters = _optimizer(shapes, 1, quick, track=False)
    return held[0] - held[1], sum(p.nbytes for p in parameters)


def _held(shapes: Shapes, quick: bool, *, track: bool) -> int:
    before = _bytes_of_tensors()
    optimizer, parameters = _optimizer(shapes, 1, quick, track=track)
    optimizer.step()
    held = _bytes_of_tensors() - before
    del optimizer, parameters
    return held


def _bytes_of_tensors() -> int:
    """Return the bytes of all tensors that Python knows, those that share memory once."""
    import torch

    gc.collect()
    tensors = [
        each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)
    ]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(each.nbytes() for each in storages.values())
