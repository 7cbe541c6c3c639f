"""The page of `adamas report` in Chromium: on a phone and a desktop, light and dark."""

from __future__ import annotations

import re

import pytest

import adamas
from adamas.report import page, read
from tests.browser.conftest import DESKTOP, PHONE, USUAL, settle
from tests.browser.test_everybody import _BRIGHTNESS, _CONTRAST
from tests.support import planted_runs
from tests.support.made_records import header, large, line, write

pytest.importorskip("vl_convert", reason="needs the package vl-convert-python")
pytestmark = pytest.mark.browser

EVIL = '<img src="https://example.org/x" onerror="document.title = 1">'
BROKEN = "b\u2028c"  # a line separator
SMALL = {**PHONE, "viewport": {"width": 320, "height": 568}}
KINDS = {
    "phone": PHONE | {"color_scheme": "dark"},
    "320 px": SMALL | {"color_scheme": "light"},
    "desktop": DESKTOP | {"color_scheme": "light"},
    "dark desktop": DESKTOP | {"color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages, by what is in them."""
    folder = tmp_path_factory.mktemp("pages")

    def trained(training):
        path = folder / f"{training.__name__}.jsonl"
        training(path)
        return read(path)

    odd = header([EVIL, BROKEN])
    lines = [
        line(10 * i, (EVIL, BROKEN), of={EVIL: {"gradient_norm": 0.0}}, lr=i, notes={EVIL: i})
        for i in range(1, 9)
    ]
    empty = write(folder / "empty.jsonl", header(()), [line(10, (), gradient_norm=None, lr=None)])
    pages = {
        "one": [trained(planted_runs.stand_still)],
        "three": [
            trained(planted_runs.healthy),
            trained(planted_runs.dead_tensors),
            trained(planted_runs.clipped_always),
        ],
        "odd": [read(write(folder / "odd.jsonl", odd, lines), EVIL)],
        "empty": [read(empty)],
        "large": [large(700, 500)],
    }
    for name, runs in pages.items():
        (folder / f"{name}.html").write_text(page(runs, adamas.__version__), "utf-8")
    return folder


@pytest.fixture
def opened(chromium, files):
    """Opens a page in a kind of window; nothing may complain, nor be asked for."""
    contexts = []

    def open_(name, kind="desktop"):
        context = chromium.new_context(**USUAL | KINDS[kind])
        contexts.append(context)
        window = context.new_page()
        window.set_default_timeout(20_000)
        window.on("console", lambda message: seen.append(message.text))
        window.on("pageerror", lambda error: seen.append(str(error)))
        window.on("request", lambda request: asked.append(request.url))
        window.goto((files / f"{name}.html").as_uri())
        # The page lets no text become code, so a function cannot be waited for.
        window.locator("html[data-drawn]:not([data-drawn=''])").wait_for()
        settle(window)
        return window

    seen, asked = [], []
    yield open_
    for context in contexts:
        context.close()
    assert seen == []
    assert len(asked) >= 1
    assert [url for url in asked if not url.startswith((files.as_uri(), "data:"))] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["one", "three", "odd", "empty", "large"])
def test_nothing_is_wider_than_the_window_and_all_charts_are_drawn(opened, name, kind):
    window = opened(name, kind)
    wide = window.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          return [document.documentElement.scrollWidth - width,
            [...document.querySelectorAll("body *")]
              .filter((e) => e.checkVisibility() && !e.closest(".scroll table, svg"))
              .filter((e) => e.getBoundingClientRect().right > width + 1)
              .map((e) => e.outerHTML.slice(0, 80))];
        }"""
    )
    assert wide == [0, []]
    curves = window.locator(".chart[id^=curve]")
    for place in range(curves.count()):
        assert window.locator(f"#curve-{place} svg .mark-line path").count() >= 1
    if name == "empty":
        assert "No line of the record has numbers of layers yet." in window.inner_text("main")
        assert not window.locator("#heat, table, select, #filter").locator("visible=true").count()
    else:
        assert window.locator("#heat canvas").count() == 1
    assert window.title().endswith("adamas report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_that_of_the_ground_and_changes_with_it(opened, scheme):
    window = opened("three", "dark desktop" if scheme == "dark" else "desktop")
    for ground in (scheme, {"dark": "light", "light": "dark"}[scheme]):
        window.emulate_media(color_scheme=ground)
        window.locator(f"html[data-drawn={ground}]").wait_for()
        text, behind = (window.evaluate(_BRIGHTNESS, each) for each in ("color", "backgroundColor"))
        assert (text > behind) == (ground == "dark")
        # Charts are drawn anew: their text is as bright as that of the page.
        fills = window.locator("#curve-0 svg .mark-text text").evaluate_all(
            "(all) => all.map((e) => getComputedStyle(e).fill)"
        )
        assert len(fills) > 5
        brightness = {sum(map(int, re.findall(r"\d+", fill)[:3])) / 3 for fill in fills}
        assert all((each > behind + 60) == (ground == "dark") for each in brightness)
        found = window.evaluate(_CONTRAST)
        assert len(found) > 60
        assert [each for each in found if each[0] < 4.5] == []


def test_each_run_has_a_colour_of_its_own_that_the_legend_names(opened):
    window = opened("three")
    lines = window.locator("#curve-0 svg .mark-line path").evaluate_all(
        "(all) => all.map((e) => getComputedStyle(e).stroke)"
    )
    swatches = window.locator(".legend .swatch").evaluate_all(
        "(all) => all.map((e) => getComputedStyle(e).backgroundColor)"
    )
    assert len(swatches) == 3
    assert sorted(lines) == sorted(swatches)
    names = window.locator(".legend li").all_inner_texts()
    assert names == ["healthy.jsonl", "dead_tensors.jsonl", "clipped_always.jsonl"]


_COLOURS = """() => {
  const canvas = document.querySelector("#heat canvas");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return new Set(Array.from({ length: data.length / 4 }, (_, k) =>
    data[4 * k + 3] === 255 ? data.slice(4 * k, 4 * k + 3).join() : "")).size;
}"""


def test_the_heat_map_shows_what_is_chosen(opened):
    window = opened("three")
    pictures = set()
    for run in ("0", "1"):
        window.select_option("#run", run)
        for field in ("ratio", "gradient_norm", "unmoved", "below_eps"):
            window.select_option("#field", field)
            label = window.locator(f"#field option[value={field}]").inner_text()
            window.locator(f'#heat[aria-label="{label}, by layer and step"] canvas').wait_for()
            settle(window)
            if field == "ratio":
                assert window.evaluate(_COLOURS) > 100
            pictures.add(window.evaluate("document.querySelector('#heat canvas').toDataURL()"))
        shown = window.locator(".scroll:visible")
        assert shown.count() == 1
        assert shown.get_attribute("data-run") == run
    assert len(pictures) == 8


def test_tooltips_tell_numbers(opened):
    window = opened("three")
    chart = window.locator("#curve-0 svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    window.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = window.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    told = tooltip.inner_text()
    for name in ("step", "healthy.jsonl", "dead_tensors.jsonl", "clipped_always.jsonl"):
        assert name in told
    assert len(re.findall(r"\d\.\d+", told)) == 3
    heat = window.locator("#heat canvas")
    heat.scroll_into_view_if_needed()
    box = heat.bounding_box()
    window.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip.filter(has_text="layer").wait_for()
    assert re.search(r"\d\.(?:weight|bias)", tooltip.inner_text())


def test_names_are_text_in_charts_and_tooltips(opened):
    window = opened("odd")
    heat = window.locator("#heat canvas")
    heat.scroll_into_view_if_needed()
    box = heat.bounding_box()
    window.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60)
    window.locator("#vg-tooltip-element.visible").wait_for()
    assert window.locator("img").count() == 0
    assert window.title() != "1"
    assert window.locator("tbody th").first.inner_text() == EVIL


def column(window, place):
    cells = window.locator(f".scroll:visible tbody tr > :nth-child({place + 1})")
    return cells.all_inner_texts()


def numbers(texts):
    return [float(text.replace(",", "").replace("%", "").strip("> ")) for text in texts]


@pytest.mark.parametrize("by", ["click", "Enter", "Space"])
def test_the_table_sorts_by_each_column(opened, by):
    window = opened("one")
    heads = window.locator(".scroll:visible thead th")
    for place in range(heads.count()):
        button = heads.nth(place).locator("button")
        for order in ("first", "second"):
            if by == "click":
                button.click()
            else:
                button.focus()
                window.keyboard.press(by)
            way = heads.nth(place).get_attribute("aria-sort")
            assert window.locator("th[aria-sort]").count() == 1
            is_text = place in (0, 2)
            assert way == {
                (True, "first"): "ascending", (True, "second"): "descending",
                (False, "first"): "descending", (False, "second"): "ascending",
            }[is_text, order]  # fmt: skip
            texts = column(window, place)
            assert len(texts) == 10
            if place == 1:
                values = [eval(text.replace("×", "*")) for text in texts]
            else:
                values = texts if is_text else numbers(texts)
            assert values == sorted(values, reverse=way == "descending")


def test_the_table_scrolls_in_itself_on_a_phone_and_names_stay_in_sight(opened):
    window = opened("one", "phone")
    box = window.locator(".scroll:visible")
    widths = box.evaluate("(e) => [e.scrollWidth, e.clientWidth]")
    assert widths[0] > widths[1]
    box.evaluate("(e) => { e.scrollLeft = 400; }")
    settle(window)
    name = window.locator(".scroll:visible tbody th").first.bounding_box()
    assert 0 <= name["x"] < 100
    assert box.get_attribute("tabindex") == "0"
    for each in window.locator("button:visible, select:visible, input:visible, summary").all():
        assert min(each.bounding_box()["height"], each.bounding_box()["width"]) >= 24


def test_names_are_filtered(opened):
    window = opened("one")
    window.fill("#filter", "BIAS")
    assert window.locator(".scroll:visible tbody tr:visible").count() == 5
    assert window.inner_text("#matches") == "5 of 10"
    window.fill("#filter", "")
    assert window.locator(".scroll:visible tbody tr:visible").count() == 10


def test_everything_that_can_be_used_has_a_name(opened):
    window = opened("three")
    session = window.context.new_cdp_session(window)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    used = {
        "button",
        "combobox",
        "link",
        "searchbox",
        "region",
        "img",
        "image",
        "graphics-document",
    }
    kinds = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in used
    ]
    assert len(kinds) > 20
    assert [kind for kind in kinds if not kind[1].strip()] == []


def test_without_scripts_findings_and_table_are_read(chromium, files):
    context = chromium.new_context(**USUAL | DESKTOP, java_script_enabled=False)
    window = context.new_page()
    window.goto((files / "one.html").as_uri())
    assert "hardly move" in window.inner_text(".finding")
    assert window.locator("tbody tr").count() == 10
    assert window.locator("noscript").is_visible()
    context.close()
