"""Where trainings of one model on the same tokens end, with batches of other sizes.

A small GPT over letters sees the same sequences in the same order, whatever the batch is: only how
many make a step differs, and the decay rate β2. The rate rises over the first twentieth of the
sequences, falls linearly to 0, and its greatest is the best of a grid for each row.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

import adamas
from benchmarks.tables import Row, Run, Stored, Table, machine_line, machine_note, markdown, why_not

#: What every run sees: sequences of so many letters.
SEQUENCES, LETTERS = 4096, 32
SEEDS = 3
#: What β2 is with the large batch; the others have its half-life in letters, or its value.
BETA2 = 0.95
#: Sequences of a gradient that are held in memory at a time with the large batch.
PART = 4


class Arm(NamedTuple):
    """How sequences become steps."""

    #: Sequences for each step; of more than ``PART`` gradients are accumulated.
    batch: int
    #: Whether β2 keeps its half-life in letters, not in steps.
    scales: bool
    #: The greatest learning rates that are tried.
    rates: tuple[float, ...]

    @property
    def beta2(self) -> float:
        """The decay rate of the second moment."""
        life = adamas.half_life(BETA2, every=LARGE)
        return adamas.beta_for(life, every=self.batch) if self.scales else BETA2

    @property
    def title(self) -> str:
        """What the row is called."""
        parts = -(-self.batch // PART)
        return f"{PART} × {parts}, accumulated" if parts > 1 else str(self.batch)


LARGE = 32
ARMS = (
    Arm(LARGE, True, (0.016, 0.032, 0.064, 0.128)),
    Arm(4, True, (0.008, 0.016, 0.032, 0.064)),
    Arm(4, False, (0.008, 0.016, 0.032, 0.064)),
    Arm(1, True, (0.004, 0.008, 0.016, 0.032)),
    Arm(1, False, (0.004, 0.008, 0.016, 0.032)),
)


def of_an_arm(arm: Arm, quick: bool) -> Stored:
    """Return the held-out losses of all seeds for each learning rate."""
    sequences, seeds = (64, 2) if quick else (SEQUENCES, SEEDS)
    tried = [
        {
            "lr": lr,
            "losses": [round(trained(arm, lr, seed, sequences), 4) for seed in range(seeds)],
        }
        for lr in arm.rates
    ]
    return {"steps": sequences // arm.batch, "beta2": arm.beta2, "tried": tried}


@functools.cache
def _text() -> tuple[int, Any, Any]:
    """Return how many letters there are, and sequences: those held out, and those to be seen."""
    import torch

    from benchmarks.tasks import source

    text = source()
    places = {letter: place for place, letter in enumerate(sorted(set(text)))}
    codes = torch.tensor([places[letter] for letter in text[:400_000]])
    rows = codes.unfold(0, LETTERS + 1, LETTERS + 1)
    return len(places), rows[:512], rows[512:]


def trained(arm: Arm, rate: float, seed: int, sequences: int) -> float:
    """Return the held-out loss of one run."""
    import torch

    from adamas.torch import AdamW
    from benchmarks.tasks import GPT
    from benchmarks.trainings import one_thread

    letters, held_out, seen = _text()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(seen), generator=generator)[:sequences]

    def loss(model: Any, batch: Any) -> Any:
        guesses = model(batch[:, :-1])
        return torch.nn.functional.cross_entropy(guesses.flatten(0, 1), batch[:, 1:].flatten())

    with one_thread():
        torch.manual_seed(seed)
        model = GPT(letters, LETTERS, width=32, layers=1)
        optimizer = AdamW(model.parameters(), betas=(0.9, arm.beta2), weight_decay=0.0)
        steps = sequences // arm.batch
        for step, indices in enumerate(order.view(steps, arm.batch)):
            done = (step + 1) / steps
            optimizer.param_groups[0]["lr"] = rate * min(20 * done, 1.0, 1.0 + 1 / steps - done)
            optimizer.zero_grad()
            parts = indices.split(PART)
            for part in parts:
                (loss(model, seen[part]) / len(parts)).backward()
            optimizer.step()
        with torch.no_grad():
            return loss(model, held_out).item()


def rows() -> tuple[Row, ...]:
    """Return a row for each way."""
    return tuple(
        Row(
            arm.title,
            "half-life in letters" if arm.scales else "β2 as it was",
            None,
            functools.partial(of_an_arm, arm),
            ("torch",),
        )
        for arm in ARMS
    )


def best(figure: Stored) -> Stored:
    """Return the rate with the lowest mean loss, with its losses."""
    return min(figure["tried"], key=lambda each: statistics.mean(each["losses"]))


@dataclass(frozen=True)
class BatchSizes(Table):
    """Rows that make losses."""

    def figure(self, row: Row, run: Run) -> Stored:
        return row.make(run.quick)

    def table(self, stored: Stored) -> str:
        """Return the rows as Markdown."""
        head = ("sequences in a step", "β2", "steps", "best lr", "held-out loss", "spread")
        return markdown(head, map(_cells, stored["figures"]))

    def markdown(self, stored: Stored) -> str:
        return f"{self.table(stored)}\n{machine_note(stored)}"

    def passages(self, stored: Stored) -> dict[str, str]:
        return {"batch-size": f"{self.table(stored)}\n{machine_line(stored)}\n"}


def _cells(figure: Stored) -> tuple[str, ...]:
    if "tried" not in figure:
        return (figure["work"], why_not(figure), "", "", "", "")
    chosen = best(figure)
    losses = chosen["losses"]
    beta2 = f"{figure['beta2']:.4f}".rstrip("0")
    kept = ", as it was" if figure["against"].startswith("β2") else ""
    numbers = f"{statistics.mean(losses):.3f}", f"{statistics.stdev(losses):.3f}"
    return figure["work"], beta2 + kept, f"{figure['steps']:,}", f"{chosen['lr']:g}", *numbers
