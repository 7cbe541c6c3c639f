"""``adamas demo``: three methods learn to read digits."""

from __future__ import annotations

from pathlib import Path

import click

from adamas.cli.arguments import WholeNumber, check_writable, written
from adamas.cli.output import console_of, progress_on, say_where, table_of
from adamas.extras import require

__all__ = ["command"]


@click.command("demo")
@written(
    "--output",
    default=Path("adamas-demo.png"),
    help="Where to write the picture of the loss curves (PNG).",
)
@click.option(
    "--epochs", type=WholeNumber(1), default=None, help="How often each method sees all images."
)
@click.option(
    "--seed",
    type=WholeNumber(0),
    default=0,
    show_default=True,
    help="Chooses the held-out images, the start and the batches.",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def command(output: Path, epochs: int | None, seed: int, quiet: bool) -> None:
    """Train a classifier of handwritten digits with Momentum, RMSProp and Adam.

    Takes the 1,797 real images that ship with scikit-learn, holds a fifth of them out, and trains
    the same network three times with NumPy alone.
    """
    from adamas import demo as job

    console = console_of("adamas demo")
    require("matplotlib", "adamas demo", "demo", "matplotlib")
    check_writable(output, "--output")
    digits = job.load_digits(seed)
    epochs = job.EPOCHS if epochs is None else epochs
    runs: list[job.Run] = []
    with progress_on(console, hidden=quiet) as bars:
        for method in job.METHODS:
            bar = bars.add_task(method, total=job.steps_of(digits, epochs))
            runs.append(
                job.train(
                    digits, method, epochs=epochs, seed=seed, progress=lambda b=bar: bars.advance(b)
                )
            )
    table = table_of("method", "final loss", "held-out images read", "time", "steps/s", "optimizer")
    for run in runs:
        table.add_row(
            run.method,
            f"{run.final_loss:.5f}",
            f"{run.accuracy:.2%}",
            f"{run.seconds:.2f} s",
            f"{run.steps_per_second:,.0f}",
            f"{run.optimizer_seconds / run.seconds:.1%} of the time",
        )
    console.print(table)
    job.draw(runs, output)
    say_where(console, output)
