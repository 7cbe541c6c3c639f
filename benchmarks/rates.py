"""Which learning rates `adamas demo` and `adamas race` take: the best of a grid for each method.

The demo's is the one with the lowest mean loss on the training set at the end, over seeds that the
demo does not show. The race's is the one by which a method is soonest near a minimum for good,
within the default steps: near one of the lowest, or where a method reaches none of these with any
rate, near whichever it ends at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamas import demo, race, tracks
from adamas.methods import METHODS
from benchmarks.tables import Row, Run, Stored, Table, machine_note, markdown, why_not

#: The demo begins with seed 0, so it shows these to nobody who does not ask for them.
SEEDS = range(100, 105)
#: The rates that were tried for each method of the race.
RACE_GRID = tuple(digit / 10**places for places in range(5) for digit in (5, 2, 1))
#: The default number of steps is the first of these with which all methods arrive for good.
STEPS = (200, 500, 1000, 2000, 5000)
#: For good: a method is near the minimum for at least the last steps.
LAST = 100

Score = tuple[Any, ...]


def of_the_demo(method: str, quick: bool) -> list[Stored]:
    """Return what came of each rate in the demo; the lower ``score``, the better."""
    rates, seeds, epochs = demo.GRID, SEEDS, demo.EPOCHS
    if quick:
        rates, seeds, epochs = rates[4:6], SEEDS[:1], 2
    found: list[Stored] = []
    for lr in rates:
        outcome = demo.compared(method, seeds=seeds, lr=lr, epochs=epochs)
        loss = float(outcome.final_losses.mean())
        found.append({"lr": lr, "score": [loss], "told": f"{loss:.4g}"})
    return found


def of_a_race(name: str, method: str, quick: bool) -> list[Stored]:
    """Return what came of each rate in a race; the lower ``score``, the better."""
    track = tracks.FUNCTIONS[name]
    rates = RACE_GRID[4:6] if quick else RACE_GRID
    return [{"lr": lr, **_arrived(track, method, lr)} for lr in rates]


def _arrived(track: tracks.Track, method: str, lr: float) -> Stored:
    (path,) = race.race(track, methods=[method], lr=lr)
    step = settled(race.distances(track, path))
    if step is not None:
        return {"score": [0, step], "told": f"step {step:,}"}
    end = tracks.local_minimum(track, path.points[-1])
    if end is not None:
        step = settled(np.hypot(*(path.points - end).T))
        if step is not None:
            return {"score": [1, step], "told": f"a local minimum, step {step:,}"}
    return {"score": [2, float(race.distances(track, path)[-1])], "told": "no minimum"}


def settled(distances: Any) -> int | None:
    """Return the step after which all distances are small; None where one of the last is not."""
    far = np.flatnonzero(distances > race.NEAR)
    step = int(far[-1]) + 1 if far.size else 0
    return step if step < len(distances) - LAST else None


def best(tried: list[Stored]) -> float:
    """Return the rate with the lowest score: the larger one, where two are alike."""
    return min(tried, key=lambda each: (each["score"], -each["lr"]))["lr"]


def rows() -> tuple[Row, ...]:
    """Return a row for each method in the demo, and in each race."""
    return tuple(_rows())


def _rows() -> Iterator[Row]:
    for method in METHODS:
        make = functools.partial(of_the_demo, method)
        yield Row("demo", method, None, make, ("sklearn", "threadpoolctl"))
    for name in tracks.FUNCTIONS:
        for method in METHODS:
            yield Row(name, method, None, functools.partial(of_a_race, name, method))


_NOTE = (
    f"The demo comes to a mean loss on the training set, over seeds {SEEDS[0]} to {SEEDS[-1]}; the"
    f" rate falls linearly to 0. A race comes to the step from which on a method is within"
    f" {race.NEAR:g} of a minimum, for at least the last {LAST} steps; the rate is constant."
    f" The grids: {', '.join(f'{lr:g}' for lr in demo.GRID)} for the demo;"
    f" {', '.join(f'{lr:g}' for lr in RACE_GRID)} for races."
)


@dataclass(frozen=True)
class Rates(Table):
    """Rows that make what came of each rate."""

    def figure(self, row: Row, run: Run) -> Stored:
        tried = row.make(run.quick)
        return {"tried": tried, "best": best(tried)}

    def markdown(self, stored: Stored) -> str:
        lines = (
            (each["work"], each["against"], *(_cells(each) or (why_not(each), "", "")))
            for each in stored["figures"]
        )
        header = ("where", "method", "best rate", "comes to", "of the others, the best")
        table = markdown(header, lines, words=2)
        return f"{table}\n{_NOTE}\n\n{machine_note(stored)}"


def _cells(figure: Stored) -> tuple[str, ...]:
    if "tried" not in figure:
        return ()
    first, *others = sorted(figure["tried"], key=lambda each: (each["score"], -each["lr"]))
    second = f"{others[0]['lr']:g}: {others[0]['told']}"
    return f"{first['lr']:g}", first["told"], second
