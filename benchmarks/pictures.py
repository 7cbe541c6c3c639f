"""Pictures of the pages, each drawn twice: for light pages and for dark ones.

A picture is as wide as a phone shows it, with text of nine points; wider screens enlarge it. So
panels stand one below the other, and words are few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
#: In inches: 360 CSS pixels, the width of a page's column on a phone.
WIDTH = 3.75
#: In points.
TEXT = 9


@dataclass(frozen=True)
class Theme:
    """The colours that differ between light and dark pages."""

    #: What the name of the file ends with.
    suffix: str
    #: Text and axes.
    ink: str
    #: Lines of a grid, bands, and what else is not to be looked at first.
    faint: str
    #: What the page is behind the picture, which is itself transparent.
    paper: str


LIGHT = Theme("", ink="#24292f", faint="#d0d7de", paper="#ffffff")
DARK = Theme("-dark", ink="#e6e9ef", faint="#4a4f5c", paper="#0b0c0f")

#: Makes the figure of a picture for one theme.
Drawing = Callable[[Theme], Any]


def new_figure(height: float) -> Any:
    """Return a figure of matplotlib, as wide as all pictures; ``height`` is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def draw(name: str, drawing: Drawing, folder: Path | None = None) -> None:
    """Write a picture for light and for dark pages: NAME.svg and NAME-dark.svg.

    Where no folder is given, it is PICTURES.
    """
    import matplotlib as mpl

    for theme in (LIGHT, DARK):
        with mpl.rc_context(_settings(theme)):
            figure = drawing(theme)
            _settle(figure)
            where = (folder or PICTURES) / f"{name}{theme.suffix}.svg"
            figure.savefig(where, metadata={"Date": None}, transparent=True)


def _settle(figure: Any) -> None:
    """Lay a figure out once and for all.

    The solver of the layout differs in its last digits from one call to the next; rounded, a
    picture is the same file whenever it is drawn.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(each, 6) for each in axes.get_position().bounds])


def _settings(theme: Theme) -> Any:
    """Return matplotlib's settings for a theme."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize")
    return {
        **dict.fromkeys(inked, theme.ink),
        **dict.fromkeys((*sizes, "xtick.labelsize", "ytick.labelsize"), TEXT),
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": theme.paper,
        "grid.color": theme.faint,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "svg.hashsalt": "adamas",
    }
