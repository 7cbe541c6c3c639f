"""Trainings that are followed by snapshots: what their optimizers say has changed is judged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import adamas.torch as ours
from tests.support.offloading import BFLOAT16, FLOAT16, ROUNDINGS

__all__ = ["ACTIONS", "Run", "bits_of", "changed", "check_parts", "drawn"]

METHODS = [
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"weight_decay": 0.1}),
    ("NAdam", {}),
    ("RAdam", {"betas": (0.9, 0.8)}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
]
SHAPES = [(5, 7), (33,), (), (0,), (64,), (2, 3, 4), (70,)]
RATES = [1e-2, 1e-4, 3e-6]


def bits_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, a row for each element in the order of the flattened tensor."""
    flat = tensor.detach().resolve_conj().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).view(len(flat), tensor.itemsize)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which elements have other bits, given the bytes of both."""
    return (before != after).any(1)


class Run:
    """A training with an optimizer that tracks changes, and what must be marked by now."""

    def __init__(self, optimizer: ours.Optimizer, seed: int = 0) -> None:
        self.go_on(optimizer)
        self.random = np.random.default_rng(seed)
        self.marked: dict[int, Tensor] = {}
        self.reader: dict[int, Tensor] = {}
        self.adopt()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def compared(self) -> list[Tensor]:
        return self.copies or self.parameters

    @property
    def names(self) -> list[str]:
        groups = enumerate(self.optimizer.param_groups)
        return [f"{i}.{j}" for i, group in groups for j in range(len(group["params"]))]

    def go_on(self, optimizer: ours.Optimizer) -> None:
        """Go on with an optimizer; its copies are held, since reading brings them up to date."""
        self.optimizer = optimizer
        self.copies = optimizer.copies

    def adopt(self) -> None:
        """Begin without changes; the reader has all that there is."""
        for place, each in enumerate(self.compared):
            self.marked[place] = torch.zeros(each.numel(), dtype=torch.bool)
            self.reader[place] = bits_of(each)

    def all_changed(self, *places: int) -> None:
        for place in places or range(len(self.parameters)):
            self.marked[place] = torch.ones(self.compared[place].numel(), dtype=torch.bool)

    # -- what happens --------------------------------------------------------------------------

    def give_gradients(self, *, none: float = 0.3) -> None:
        for p in self.parameters:
            p.grad = None
            if self.random.random() >= none and p.requires_grad:
                values = torch.from_numpy(self.random.normal(size=(*p.shape, 2)))
                wide = (
                    torch.complex(values[..., 0], values[..., 1])
                    if p.is_complex()
                    else values[..., 0]
                )
                wide = wide * torch.from_numpy(self.random.random((*p.shape, 1)) < 0.7)[..., 0]
                p.grad = torch.empty_like(p).copy_(wide)

    def step(self) -> None:
        """Make a step and mark what it changes."""
        before = [bits_of(each) for each in self.compared]
        self.optimizer.step()
        for place, (old, now) in enumerate(zip(before, self.compared, strict=True)):
            self.marked[place] |= changed(old, bits_of(now))

    def check(self, *, clear: bool) -> None:
        """Judge what the optimizer tells; what is cleared goes to the reader."""
        changes = self.optimizer.changes(clear=clear)
        told = {change.name: change for change in changes}
        whole = [bool(marks.all()) for marks in self.marked.values()]
        assert changes.is_whole is all(whole)
        for place, (name, each) in enumerate(zip(self.names, self.compared, strict=True)):
            wanted = self.marked[place].nonzero().view(-1)
            change = told.pop(name, None)
            if not len(wanted):
                assert change is None, name
            else:
                assert change is not None, name
                assert change.indices.dtype == torch.int32
                assert torch.equal(change.indices.to(torch.int64), wanted), name
                assert change.values.dtype == each.dtype
                assert change.shape == tuple(each.shape)
                assert torch.equal(bits_of(change.values), bits_of(each)[wanted])
                if clear:
                    self.reader[place][wanted] = bits_of(change.values)
            if clear:
                assert torch.equal(self.reader[place], bits_of(each)), name
                self.marked[place].zero_()
        assert not told


def drawn(seed: int, **more: Any) -> Run:
    """A run with an optimizer that is drawn: method, groups, dtypes, forms, roundings, copies."""
    random = np.random.default_rng(seed)
    offloads = bool(more.get("offload"))
    methods = [each for each in METHODS if not offloads or each != ("RMSprop", {"momentum": 0.9})]
    method, options = methods[random.integers(len(methods))]
    is_special = options.get("momentum") is not None and method == "RMSprop"
    dtype, rounding = ROUNDINGS[random.integers(len(ROUNDINGS))]
    phase: dict[str, Any] = {"track_changes": True, "lr": float(random.choice(RATES)), **options}
    if random.random() < 0.3:
        phase["clip_norm"] = 1.0
    if random.random() < 0.5:
        phase["on_nonfinite"] = "skip"
    if random.random() < 0.1:
        phase |= {"skip_above": 0.1, "skip_window": 4}
    if not is_special:
        if random.random() < 0.3:
            phase["ema"] = 0.9
        if random.random() < 0.2:
            phase["statistics"] = True
        if rounding is not None:
            phase["rounding"] = rounding
    keeps = method != "SGD" or "momentum" in options
    if keeps and not is_special and not options.get("amsgrad") and random.random() < 0.3:
        phase["state"] = "bfloat16" if random.random() < 0.5 else "float32"
    if random.random() < 0.3:
        phase["copy_to"] = BFLOAT16 if random.random() < 0.7 else FLOAT16
    if random.random() < 0.3 and "engine" not in more:
        phase["engine"] = "torch"
    are_wide = rounding is None and not offloads and not {"copy_to", "state"} & phase.keys()
    groups = [
        {"params": [_parameter(random, dtype, are_wide) for _ in range(random.integers(1, 4))]}
        for _ in range(random.integers(1, 3))
    ]
    return Run(getattr(ours, method)(groups, **phase, **more), seed)


def _parameter(random: np.random.Generator, dtype: torch.dtype, may_be_wide: bool) -> nn.Parameter:
    shape = SHAPES[random.integers(len(SHAPES))]
    if may_be_wide and random.random() < 0.2:
        dtype = torch.complex64 if random.random() < 0.3 else torch.float64
    values = torch.from_numpy(random.normal(size=shape)).to(dtype)
    if len(shape) > 1 and random.random() < 0.3:
        values = values.transpose(0, 1)
    return nn.Parameter(values, requires_grad=bool(random.random() < 0.9))


def check_parts(one: ours.Optimizer, other: ours.Optimizer, own_part: Callable[..., Tensor]) -> int:
    """Judge changes of distributed tensors by those of whole ones that were stepped alike.

    ``own_part`` cuts a whole tensor as a parameter is. Returns how many elements have changed here.
    """
    count = 0
    parts, wholes = ({c.name: c for c in each.changes()} for each in (one, other))
    groups = zip(one.param_groups, other.param_groups, strict=True)
    for g, (group, judges) in enumerate(groups):
        for i, (p, judge) in enumerate(zip(group["params"], judges["params"], strict=True)):
            name = f"{g}.{i}"
            values = torch.zeros(judge.numel(), dtype=judge.dtype)
            marked = torch.zeros(judge.numel(), dtype=torch.bool)
            if name in wholes:
                indices = wholes[name].indices.to(torch.int64)
                marked[indices] = True
                values = values.to(wholes[name].values.dtype).index_copy(
                    0, indices, wholes[name].values
                )
            everywhere = (marked, torch.arange(judge.numel()), values)
            mine, where, wanted = (own_part(each.view(judge.shape), p) for each in everywhere)
            found = parts.pop(name, None)
            if found is None:
                assert not mine.any(), name
                continue
            assert found.indices.dtype == torch.int32
            assert torch.equal(found.indices.to(torch.int64), where[mine]), name
            assert torch.equal(bits_of(found.values), bits_of(wanted[mine])), name
            assert found.shape == tuple(judge.shape)
            count += len(found.indices)
    assert not parts
    return count


# ── what may happen between checks ─────────────────────────────────────────────────────────────


def step(run: Run) -> None:
    run.give_gradients()
    run.step()


def step_as_before(run: Run) -> None:
    run.give_gradients(none=0.0)
    for _ in range(2):
        run.step()


def skip(run: Run) -> None:
    """A step along NaN, which is left out."""
    if run.optimizer.on_nonfinite != "skip":
        return
    run.give_gradients(none=0.0)
    for p in run.parameters:
        if p.grad is not None:
            p.grad.fill_(float("nan"))
    if any(p.grad is not None and p.numel() for p in run.parameters):
        skipped = run.optimizer.skipped
        pairs = zip(run.parameters, run.compared, strict=True)
        stepped = [each for p, each in pairs if p.grad is not None]  # copies of others are renewed
        before = [*map(bits_of, stepped)]
        run.optimizer.step()
        assert run.optimizer.skipped == skipped + 1
        assert all(map(torch.equal, before, map(bits_of, stepped)))


def write(run: Run) -> None:
    """Something else than a step writes to a parameter, in place."""
    place = int(run.random.integers(len(run.parameters)))
    with torch.no_grad():
        run.parameters[place].mul_(1.5)
    run.all_changed(place)


def replace(run: Run) -> None:
    """A parameter gets other memory."""
    place = int(run.random.integers(len(run.parameters)))
    p = run.parameters[place]
    if p.numel():
        p.data = p.data.clone()
        run.all_changed(place)


def load(run: Run) -> None:
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    run.all_changed()


def pickled(run: Run) -> None:
    run.go_on(pickle.loads(pickle.dumps(run.optimizer)))


def deepcopied(run: Run) -> None:
    run.go_on(copy.deepcopy(run.optimizer))


def copied(run: Run) -> None:
    """A copy that shares its parameters goes on in its place."""
    run.go_on(copy.copy(run.optimizer))


def add(run: Run) -> None:
    like = run.parameters[0]
    added = nn.Parameter(torch.full_like(like, 0.5))
    run.optimizer.add_param_group({"params": [added]})
    run.go_on(run.optimizer)
    place = len(run.parameters) - 1
    run.reader[place] = torch.zeros_like(bits_of(run.compared[place]))
    run.all_changed(place)


def average(run: Run) -> None:
    """The averages are swapped in and out."""
    if run.optimizer.ema is not None:
        with run.optimizer.ema_weights():
            pass


def look(run: Run) -> None:
    run.check(clear=False)


def take(run: Run) -> None:
    run.check(clear=True)


ACTIONS: dict[str, Callable[[Run], None]] = {
    each.__name__: each
    for each in (
        step, step_as_before, skip, write, replace, load, pickled, deepcopied, copied, add,
        average, look, take,
    )
}  # fmt: skip
