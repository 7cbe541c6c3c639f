"""Pictures of the pages show what adamas computes."""

from __future__ import annotations

import importlib.util
import re

import pytest
from PIL import Image

from adamas.palette import COLOURS
from benchmarks.pictures import DARK, LIGHT, PICTURES
from tests.support.cases import ROOT

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def drawings():
    """The functions of docs/pictures/draw.py, by the names of their pictures."""
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DRAWINGS


def test_every_picture_that_is_drawn_is_there_for_light_and_for_dark_pages(drawings):
    assert drawings
    wanted = {f"{name}{theme.suffix}.svg" for name in drawings for theme in (LIGHT, DARK)}
    assert wanted <= {path.name for path in PICTURES.glob("*.svg")}


def test_the_picture_of_the_missing_exponent_has_the_numbers_of_the_table(drawings):
    page = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    table = re.findall(r"^\| ([\d,]+) \| 1 \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(table) == 7
    (axes,) = drawings["missing-exponent"](LIGHT).axes
    paper, note, end = axes.lines
    assert {round(update, 12) for update in paper.get_ydata()} == {1.0}
    shown = dict(zip(note.get_xdata(), note.get_ydata(), strict=True))
    assert [f"{shown[int(step.replace(',', ''))]:.3f}" for step, _ in table] == [
        n for _, n in table
    ]
    assert set(end.get_ydata()) == {shown[10_000]}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_picture_of_the_missing_exponent_is_stored_in_the_colours_of_the_methods(theme):
    stored = (PICTURES / f"missing-exponent{theme.suffix}.svg").read_text("utf-8")
    for colour in (COLOURS["Adam"], COLOURS["note"], theme.ink):
        assert f"stroke: {colour.lower()}" in stored


def test_the_moving_picture_of_the_race_is_small_and_on_light_ground():
    path = PICTURES / "race.gif"
    assert path.stat().st_size < 400_000
    with Image.open(path) as moving:
        assert moving.n_frames == 45
        moving.seek(44)
        last = moving.convert("RGB")
    colours = {colour for _, colour in last.getcolors(1 << 16)}
    methods = [COLOURS[method] for method in ("Momentum", "RMSProp", "Adam")]
    assert {tuple(bytes.fromhex(colour[1:])) for colour in methods} <= colours
    assert last.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["demo", "race"])
def test_demo_and_race_are_stored_in_the_colours_of_all_methods(name, theme):
    stored = (PICTURES / f"{name}{theme.suffix}.svg").read_text("utf-8")
    for colour in (*COLOURS.values(), theme.ink):
        assert f"stroke: {colour.lower()}" in stored


@pytest.mark.parametrize(("theme", "light"), [(LIGHT, True), (DARK, False)], ids=["light", "dark"])
def test_the_picture_of_a_report_is_small_and_of_the_ground_of_the_page(theme, light):
    path = PICTURES / f"report{theme.suffix}.png"
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        assert picture.width == 2 * 432  # for sharp screens
        assert (sum(picture.convert("RGB").getpixel((0, 0))) > 3 * 128) == light
