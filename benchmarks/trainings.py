"""Trainings of the same models from the same seeds, each with one optimizer.

A run is one task, one seed, one optimizer: the seed decides weights, batches and the random bits
that small states are rounded with, so runs of one seed differ in the optimizer alone. The loss is
that of held-out data, at checkpoints on the way. ``tasks.py`` says what is trained, SUBJECTS in
``convergence.py`` by what.

The largest update is the largest change of any element in any step, in learning rates: of what the
step has changed, the decay's part (lr · weight_decay · p, with p from before the step) is taken
away, and the rest is divided by lr. A parameter in bfloat16 moves by its own spacing; there it is
adamas' own statistic, taken before the parameter is rounded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import adamas.torch
from benchmarks.convergence import SUBJECTS, Subject
from benchmarks.tasks import TASKS, Task, digits

POINTS = 15  # of a curve


# ── optimizers ─────────────────────────────────────────────────────────────────────────────────


def bitsandbytes(params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    module: Any = importlib.import_module("bitsandbytes.optim")
    return module.AdamW8bit(params, **options)


def torchao(
    params: list[nn.Parameter], every_tensor: bool = False, **options: Any
) -> torch.optim.Optimizer:
    """Return torchao's AdamW8bit, run without a compiler.

    Compiled it rounds differently, no more. It leaves the state of tensors in float32 that have
    fewer than 4,096 elements or no multiple of 256; with ``every_tensor`` of none: the block is the
    largest divisor up to 256 of a tensor's size.
    """
    module: Any = importlib.import_module("torchao.optim")
    large_ones: Any = module.AdamW8bit

    class EveryTensor(large_ones):
        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            size = p.numel()
            block = max(n for n in range(1, self.block_size + 1) if size % n == 0)
            return self._subclass_zeros(p, signed, block)

    torch.compiler.set_stance("force_eager")
    return (EveryTensor if every_tensor else large_ones)(params, **options)


MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamas": adamas.torch.AdamW,
    "torch": torch.optim.AdamW,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
}


# ── runs ───────────────────────────────────────────────────────────────────────────────────────


def made(task: Task, subject: Subject, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a new model and its optimizer."""
    torch.manual_seed(seed)
    model = task.model().to(getattr(torch, subject.dtype))
    options = {**task.options, **subject.options}
    if subject.package == "adamas":
        options["seed"] = seed
    return model, MAKERS[subject.package](list(model.parameters()), **options)


def run(task: Task, subject: Subject, seed: int, steps: int) -> dict[str, Any]:
    """Return the held-out loss after some of the steps, and the largest update of all steps."""
    model, optimizer = made(task, subject, seed)
    generator = torch.Generator().manual_seed(seed)
    losses: dict[int, float] = {}
    largest = torch.tensor(0.0)
    every = max(1, steps // POINTS)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        task.loss(model, task.batch(generator)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        largest = torch.maximum(largest, update(task, optimizer, model, before))
        if step % every == 0 or step == steps:
            with torch.no_grad():
                losses[step] = round(task.loss(model, task.held_out).item(), 6)
    return {"losses": losses, "largest_update": round(largest.item(), 4)}


def update(
    task: Task, optimizer: torch.optim.Optimizer, model: nn.Module, before: list[Tensor]
) -> Tensor:
    """Return the largest update of the step just made, NaN where there is any."""
    if isinstance(optimizer, adamas.torch.Optimizer) and before[0].dtype == torch.bfloat16:
        taken = optimizer.statistics().items()
        each = [value for name, value in taken if name.endswith("/largest_update")]
        return torch.stack(each).max().float()
    lr, decay = task.options["lr"], task.options["weight_decay"]
    changes = zip(before, model.parameters(), strict=True)
    return torch.stack([((p - q.detach()) / lr - decay * p).abs().max() for p, q in changes]).max()


def continuation(tell: Callable[[str], object]) -> dict[str, float]:
    """Return how far trainings end from torch's own that change to adamas half-way, or back.

    The largest difference of any parameter after 200 more steps on the digits, in learning rates.
    """
    task = digits()

    def ended(first: str, second: str) -> Tensor:
        tell(f"200 steps of {first}, then 200 of {second}")
        torch.manual_seed(0)
        model = task.model()
        generator = torch.Generator().manual_seed(0)
        state = None
        for name in (first, second):
            subject = SUBJECTS[name]
            make = MAKERS[subject.package]
            optimizer: Any = make(list(model.parameters()), **task.options, **subject.options)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(200):
                optimizer.zero_grad()
                task.loss(model, task.batch(generator)).backward()
                optimizer.step()
            state = optimizer.state_dict()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torchs, ours = "torch float32", "adamas float32"
    pairs = {
        "torch, then adamas": (torchs, ours),
        "adamas, then torch": (ours, torchs),
        "adamas throughout": (ours, ours),
    }
    with one_thread():
        unbroken = ended(torchs, torchs)
        return {
            name: (ended(*pair) - unbroken).abs().max().item() / task.options["lr"]
            for name, pair in pairs.items()
        }


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch use one thread: so many as do not change where a training ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trained(
    key: str, names: list[str], quick: bool, tell: Callable[[str], object]
) -> dict[str, Any]:
    """Return the runs of a task with the subjects of these names, seed by seed."""
    with one_thread():
        task = TASKS[key]()
        seeds, steps = (2, 20) if quick else (task.seeds, task.steps)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for seed in range(seeds):
            for name in names:
                found = run(task, SUBJECTS[name], seed, steps)
                runs[name].append(found)
                *_, loss = found["losses"].values()
                tell(f"{key} · seed {seed} · {name} · {loss} · {found['largest_update']}")
        return {"title": task.title, "seeds": seeds, "steps": steps, "runs": runs}
