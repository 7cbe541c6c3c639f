"""``adamas demo``: methods learn to read digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adamas import demo
from adamas.cli.arguments import WholeNumber, check_picture, written
from adamas.cli.output import NOTE, console_of, progress_on, say_where, table_of
from adamas.extras import require
from adamas.methods import USUAL, named

__all__ = ["command"]


def _methods(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    """Return the names of methods, given with commas between them."""
    try:
        return named(text.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


@click.command("demo")
@click.option(
    "--methods",
    callback=_methods,
    metavar="NAMES",
    default=",".join(USUAL).lower(),
    show_default=True,
    help="Some of momentum, rmsprop, adam and note, with commas between them.",
)
@written(
    "--output",
    default=Path("adamas-demo.png"),
    help="Where to write the picture of the loss curves (PNG).",
)
@click.option(
    "--epochs",
    type=WholeNumber(1),
    default=demo.EPOCHS,
    show_default=True,
    help="How often each training sees all images.",
)
@click.option(
    "--seeds",
    type=WholeNumber(1),
    default=demo.SEEDS,
    show_default=True,
    help="How many trainings each method makes, each from a seed of its own.",
)
@click.option(
    "--seed",
    type=WholeNumber(0),
    default=0,
    show_default=True,
    help="The first seed: it chooses the held-out images, the start and the batches.",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def command(
    methods: tuple[str, ...],
    output: Path,
    epochs: int,
    seeds: int,
    seed: int,
    quiet: bool,
) -> None:
    """Train a classifier of handwritten digits with Momentum, RMSProp and Adam.

    Takes the 1,797 real images that ship with scikit-learn, holds a fifth of them out, and trains
    the same network by each method with NumPy alone, once for each of several seeds: a seed gives
    all methods the same start and the same batches.
    """
    console = console_of("adamas demo")
    require("matplotlib", "adamas demo", "demo", "matplotlib")
    check_picture(output, "--output", ".png")
    chosen = range(seed, seed + seeds)
    outcomes: list[demo.Outcome] = []
    with progress_on(console, hidden=quiet) as bars:
        # Each seed holds out as many images as any other.
        total = len(chosen) * demo.steps_of(demo.load_digits(seed), epochs)
        for method in methods:
            bar = bars.add_task(method, total=total)
            outcomes.append(
                demo.compared(
                    method, seeds=chosen, epochs=epochs, progress=lambda b=bar: bars.advance(b)
                )
            )
    table = table_of(
        "method",
        "learning\nrate",
        "final loss",
        "held-out\nimages read",
        "time",
        "steps/s",
        "in the\nstep",
    )
    for each in outcomes:
        table.add_row(
            each.method,
            f"{each.lr:g}",
            _around(each.final_losses, 5),
            _around(100 * each.accuracies, 2) + " %",
            f"{each.seconds:.1f} s",
            f"{each.steps_per_second:,.0f}",
            f"{each.optimizer_share:.1%}",
        )
    console.print(table)
    for line in _told(outcomes):
        console.print(line, markup=False)
    if "note" in methods:
        console.print(NOTE, markup=False)
    demo.draw(outcomes, output)
    say_where(console, output)


def _around(values: Any, digits: int) -> str:
    """Return the mean and, of several seeds, the standard deviation."""
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {demo.spread(values):.{digits}f}" if len(values) > 1 else mean


def _told(outcomes: list[demo.Outcome]) -> list[str]:
    """Return what stands under the table: what its numbers are, and what follows from them."""
    count = len(outcomes[0].runs)
    seeds = "one seed" if count == 1 else f"{count} seeds, mean ± standard deviation"
    grid = (
        f"the best of {len(demo.GRID)} at {demo.EPOCHS} epochs by the loss on the training images"
    )
    return [
        f"{seeds[0].upper()}{seeds[1:]}.",
        f"Learning rates fall linearly to 0. The first, in the table, is {grid}.",
        *demo.verdicts(outcomes),
    ]
