"""Draw the pictures of the pages: `python docs/pictures/draw.py`, or some of them by name.

One function draws one picture, for light pages and for dark ones; what it shows it computes with
adamas. The pictures of measurements are drawn from what is stored: `python -m benchmarks --tables`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pictures import Drawing, draw

#: By the name of the picture.
DRAWINGS: dict[str, Drawing] = {}


def picture(name: str) -> Callable[[Drawing], Drawing]:
    """Let a function draw the picture of that name: it makes the figure for one theme."""

    def added(drawing: Drawing) -> Drawing:
        DRAWINGS[name] = drawing
        return drawing

    return added


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in DRAWINGS]
    if unknown:
        sys.exit(f"There is no picture {unknown[0]!r}; there are {', '.join(DRAWINGS)}.")
    for name in names or DRAWINGS:
        draw(name, DRAWINGS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
