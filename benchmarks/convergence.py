"""Train the same models from the same seeds with several optimizers; compare where they end.

    python benchmarks/convergence.py            all tasks; writes results, table and picture
    python benchmarks/convergence.py --quick    a few steps, writes nothing

A run is one task, one seed, one optimizer: the seed decides weights and batches, so runs of one
seed differ in the optimizer alone. The loss is that of held-out data, at checkpoints on the way.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import adamas.torch
from adamas.bench import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "convergence.json"
PAGE = ROOT / "docs" / "convergence.md"
PICTURE = ROOT / "docs" / "pictures" / "convergence.svg"
POINTS = 30  # of a curve

Params = list[nn.Parameter]
#: What is compared, the first being the measure for the others.
SUBJECTS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW": torch.optim.AdamW,
    "adamas AdamW": adamas.torch.AdamW,
}


@dataclass(frozen=True)
class Task:
    """A model and data; ``batch`` and ``held_out`` give what ``loss`` takes."""

    title: str
    seeds: int
    steps: int
    options: dict[str, float]
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Tensor]
    held_out: Tensor
    loss: Callable[[nn.Module, Tensor], Tensor]


def digits() -> Task:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    rows = torch.cat(
        [torch.tensor(data.data / 16.0), torch.tensor(data.target[:, None], dtype=torch.float64)], 1
    ).float()[order]
    train, held_out = rows[:1400], rows[1400:]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch[:, :64]), batch[:, 64].long())

    return Task(
        title="digits, MLP",
        seeds=8,
        steps=1500,
        options={"lr": 1e-3, "weight_decay": 0.1},
        model=lambda: nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        ),
        batch=lambda generator: train[torch.randint(len(train), (64,), generator=generator)],
        held_out=held_out,
        loss=loss,
    )


class Block(nn.Module):
    """A layer of a GPT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.attend(self.before(x)).view(rows, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.think(self.between(x))


class GPT(nn.Module):
    """A small GPT over letters."""

    def __init__(self, letters: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.letter(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def library() -> str:
    """Return the source of part of Python's standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "ast", "datetime", "doctest", "inspect", "random", "tarfile", "typing")
    files = [folder / f"{name}.py" for name in names]
    return "".join(path.read_text("utf-8") for path in files if path.exists())


def letters() -> Task:
    text = library()
    alphabet = sorted(set(text))
    place = {letter: i for i, letter in enumerate(alphabet)}
    codes = torch.tensor([place[letter] for letter in text])
    length = 64
    cut = int(0.95 * len(codes))
    held_out = codes[cut:]
    held_out = held_out[: len(held_out) // (length + 1) * (length + 1)].view(-1, length + 1)[:256]

    def batch(generator: torch.Generator) -> Tensor:
        starts = torch.randint(cut - length - 1, (12,), generator=generator)
        return codes[starts[:, None] + torch.arange(length + 1)]

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    return Task(
        title="letters of Python's library, GPT",
        seeds=4,
        steps=900,
        options={"lr": 2e-3, "weight_decay": 0.1},
        model=lambda: GPT(len(alphabet), length),
        batch=batch,
        held_out=held_out,
        loss=loss,
    )


TASKS = {"digits": digits, "letters": letters}


def run(task: Task, subject: str, seed: int, steps: int) -> dict[int, float]:
    """Return the held-out loss after some of the steps."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = SUBJECTS[subject](model.parameters(), **task.options)
    generator = torch.Generator().manual_seed(seed)
    curve: dict[int, float] = {}
    every = max(1, steps // POINTS)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        task.loss(model, task.batch(generator)).backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                curve[step] = task.loss(model, task.held_out).item()
    return curve


def continuation() -> dict[str, float]:
    """Return how far trainings end from torch's own that change to adamas half-way, or back.

    The largest difference of any parameter after 200 more steps on the digits, in learning rates.
    """
    task = digits()

    def ended(first: str, second: str) -> Tensor:
        torch.manual_seed(0)
        model = task.model()
        generator = torch.Generator().manual_seed(0)
        state = None
        for name in (first, second):
            optimizer = SUBJECTS[name](model.parameters(), **task.options)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(200):
                optimizer.zero_grad()
                task.loss(model, task.batch(generator)).backward()
                optimizer.step()
            state = optimizer.state_dict()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torchs, own = "torch AdamW", "adamas AdamW"
    unbroken = ended(torchs, torchs)
    pairs = {
        "torch, then adamas": (torchs, own),
        "adamas, then torch": (own, torchs),
        "adamas throughout": (own, own),
    }
    return {
        name: (ended(*pair) - unbroken).abs().max().item() / task.options["lr"]
        for name, pair in pairs.items()
    }


def summary(runs: dict[str, list[dict[int, float]]]) -> list[tuple[str, float, float, float]]:
    """Return name, mean final loss, its spread over seeds, mean difference to the first."""
    finals = {name: [list(curve.values())[-1] for curve in curves] for name, curves in runs.items()}
    base = next(iter(finals.values()))
    return [
        (
            name,
            statistics.mean(ends),
            statistics.stdev(ends) if len(ends) > 1 else 0.0,
            statistics.mean(a - b for a, b in zip(ends, base, strict=True)),
        )
        for name, ends in finals.items()
    ]


def table(stored: dict) -> str:
    """Return the results as Markdown."""
    lines = ["| task | optimizer | final loss | spread over seeds | difference to the first |"]
    lines += ["|---|---|--:|--:|--:|"]
    for task in stored["tasks"].values():
        for name, mean, spread, difference in summary(task["runs"]):
            lines.append(
                f"| {task['title']}, {task['seeds']} seeds | {name} | {mean:.4f} | {spread:.4f} "
                f"| {difference:+.4f} |"
            )
    lines += ["", "| 200 steps, then 200 more | distance to torch's own, in learning rates |"]
    lines += ["|---|--:|"]
    lines += [f"| {name} | {value:.2g} |" for name, value in stored["continuation"].items()]
    about = " · ".join(f"{key} {value}" for key, value in stored["machine"].items())
    return "\n".join(lines) + f"\n\n{about}\n"


def picture(stored: dict) -> None:
    """Draw mean curves, each with the band between its smallest and largest seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "adamas"
    tasks = stored["tasks"].values()
    figure = Figure(figsize=(5 * len(tasks), 3.6), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for i, (name, curves) in enumerate(task["runs"].items()):
            steps = [int(step) for step in curves[0]]
            rows = list(zip(*(curve.values() for curve in curves), strict=True))
            axes.plot(
                steps, list(map(statistics.mean, rows)), "--" if i else "-", label=name, lw=1.5
            )
            axes.fill_between(steps, list(map(min, rows)), list(map(max, rows)), alpha=0.15)
        axes.set(title=task["title"], xlabel="step", ylabel="held-out loss", yscale="log")
        axes.legend(fontsize=8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def with_table(text: str, stored: dict) -> str:
    """Return the text of the page with the table between its markers."""
    return re.sub(
        r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)",
        lambda found: found[1] + table(stored) + found[2],
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    stored: dict = {"machine": machine(), "tasks": {}}
    for key, make in TASKS.items():
        task = make()
        seeds, steps = (2, 20) if quick else (task.seeds, task.steps)
        runs: dict[str, list[dict[int, float]]] = {name: [] for name in SUBJECTS}
        for seed in range(seeds):
            for name in SUBJECTS:
                runs[name].append(run(task, name, seed, steps))
                print(key, seed, name, f"{list(runs[name][-1].values())[-1]:.4f}", flush=True)
        stored["tasks"][key] = {"title": task.title, "seeds": seeds, "steps": steps, "runs": runs}
    stored["continuation"] = continuation()
    stored = json.loads(json.dumps(stored))  # as it is read back
    print(table(stored))
    if not quick:
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), stored), "utf-8")
        picture(stored)


if __name__ == "__main__":
    main()
