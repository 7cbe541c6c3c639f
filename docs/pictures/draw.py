"""Draw the pictures of the pages: `python docs/pictures/draw.py`, or some of them by name.

One function draws one picture, for light pages and for dark ones; what it shows it computes with
adamas. The pictures of measurements are drawn from what is stored: `python -m benchmarks --tables`.
"""

import functools
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import adamas
from adamas import Options, demo, race
from adamas.coefficients import at_step, one_minus_power
from adamas.methods import METHODS
from adamas.palette import COLOURS
from adamas.tracks import FUNCTIONS
from benchmarks.pictures import (
    DARK,
    LIGHT,
    PICTURES,
    Drawing,
    Theme,
    draw,
    new_figure,
)
from tests.support import planted_runs

#: By the name of the picture.
DRAWINGS: dict[str, Drawing] = {}


def picture(name: str) -> Callable[[Drawing], Drawing]:
    """Let a function draw the picture of that name: it makes the figure for one theme."""

    def added(drawing: Drawing) -> Drawing:
        DRAWINGS[name] = drawing
        return drawing

    return added


@picture("missing-exponent")
def missing_exponent(theme: Theme) -> Any:
    """The update for gradients of 1, in learning rates: bias corrected by 1 - β^t and by 1 - β."""
    figure = new_figure(height=2.6)
    axes = figure.subplots()
    steps = sorted({round(10 ** (place / 40)) for place in range(161)})
    for correction, label, where, colour in (
        ("paper", r"$m\,/\,(1-\beta_1^t)$", (900, 1.1), COLOURS["Adam"]),
        ("first-step", r"$m\,/\,(1-\beta_1)$", (60, 1.75), COLOURS["note"]),
    ):
        options = Options(bias_correction=correction)
        updates = [_update(options, step) for step in steps]
        axes.plot(steps, updates, color=colour, linewidth=2)
        axes.annotate(label, where, color=colour, fontsize=11)
    end = updates[-1]
    axes.axhline(end, color=theme.ink, linewidth=1, linestyle=":")
    axes.annotate(
        r"$\sqrt{1-\beta_2}\,/\,(1-\beta_1)$", (1.2, end + 0.06), color=theme.ink
    )
    axes.set(xscale="log", xlim=(1, steps[-1]), ylim=(0, 2.3), yticks=[0, 1, 2])
    axes.set(xlabel="$t$", ylabel=r"$\eta_t\,/\,\eta$")
    return figure


def _update(options: Options, step: int) -> float:
    """Return the update of a step after gradients that were all 1, at learning rate 1 and ε = 0."""
    numbers = at_step(options, step, lr=1.0)
    mean, square = (one_minus_power(beta, step) for beta in options.betas)
    return numbers.from_m * mean / (sqrt(square) * numbers.root)


@picture("demo")
def digits(theme: Theme) -> Any:
    """What `adamas demo --methods momentum,rmsprop,adam,note` draws."""
    del theme  # The colours of the methods are the same on both.
    figure = new_figure(height=3.4)
    demo.plot(figure.subplots(), _outcomes())
    return figure


@functools.cache
def _outcomes() -> list[demo.Outcome]:
    seeds = range(demo.SEEDS)
    return [demo.compared(method, seeds=seeds) for method in METHODS]


@picture("race")
def himmelblau(theme: Theme) -> Any:
    """What `adamas race --note` draws."""
    figure = new_figure(height=4.2)
    track = FUNCTIONS["himmelblau"]
    paths = race.race(track, methods=tuple(METHODS))
    race.plot(figure.subplots(), track, paths, dark=theme is DARK)
    return figure


def moving_race() -> None:
    """Write race.gif: what `adamas race beale --gif race.gif` writes."""
    track = FUNCTIONS["beale"]
    race.animate(track, race.race(track), PICTURES / "race.gif")


def report_page() -> None:
    """Write report.png and report-dark.png: what `adamas report` makes, on a phone."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from adamas.report import page, read
    from tests.browser.conftest import PROGRAMS

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        runs = []
        for rounding in ("nearest", "remainder"):
            path = folder / f"{rounding}.jsonl"
            model = planted_runs.network().bfloat16()
            planted_runs.trained(path, model, lr=3e-4, rounding=rounding)
            runs.append(read(path))
        (folder / "report.html").write_text(page(runs, adamas.__version__), "utf-8")
        program = next(filter(None, map(shutil.which, PROGRAMS)))
        browser = playwright.chromium.launch(
            executable_path=program, chromium_sandbox=False
        )
        for theme, scheme in ((LIGHT, "light"), (DARK, "dark")):
            window = browser.new_page(
                viewport={"width": 432, "height": 900},
                device_scale_factor=2,
                color_scheme=scheme,
            )
            window.goto((folder / "report.html").as_uri())
            window.locator(f"html[data-drawn={scheme}]").wait_for()
            top = window.locator("#findings").bounding_box()["y"] - 12
            end = window.locator("#curve-0").bounding_box()
            shown = {"x": 0, "y": top, "width": 432}
            shown["height"] = end["y"] + end["height"] + 8 - top
            shot = window.screenshot(full_page=True, clip=shown)
            picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128)
            picture.save(PICTURES / f"report{theme.suffix}.png", optimize=True)
        browser.close()


#: What is drawn otherwise than by matplotlib, for both grounds, by a function of its own.
OTHERS = {"race.gif": moving_race, "report.png": report_page}


def main(names: list[str]) -> None:
    known = [*DRAWINGS, *OTHERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(
            f"There is no picture {unknown[0]!r}; there are {', '.join(known)}."
        )
    for name in names or known:
        if name in OTHERS:
            OTHERS[name]()
        else:
            draw(name, DRAWINGS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
