"""What people do with the page: step, run, drag, type, choose, share."""

from __future__ import annotations

import functools
import http.server
import math
import threading

import pytest

from adamas.palette import COLOURS
from tests.browser.conftest import DESKTOP, PHONE, settle, watched
from tests.browser.test_numbers import shown
from tests.support.node import PLAY

pytestmark = pytest.mark.browser


def time_of(page):
    settle(page)
    return int(page.input_value("#time"))


def start_of(page):
    settle(page)
    return [float(page.input_value(f"#amount-{letter}")) for letter in "xy"]


def centre(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def swipe(page, start, way):
    """A finger goes down at ``start`` and up again ``way`` further, as fast as fingers are."""
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        given = {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
        session.send("Input.dispatchTouchEvent", given)

    touch("touchStart", start)
    for k in range(1, 11):
        touch("touchMove", (start[0] + way[0] * k / 10, start[1] + way[1] * k / 10))
        settle(page)
    touch("touchEnd")


def message(page):
    settle(page)
    return page.text_content("#message")


# ── where it is opened from ────────────────────────────────────────────────────────────────────


def test_the_page_works_from_a_server_too(chromium):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=PLAY.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        link = f"http://127.0.0.1:{server.server_port}/play/index.html"
        with watched(chromium, link) as page:
            page.click("#step")
            assert time_of(page) == 1
        server.shutdown()


# ── steps ──────────────────────────────────────────────────────────────────────────────────────


def test_steps_go_forward_back_and_to_the_start(opened):
    with opened() as page:
        assert (time_of(page), page.is_disabled("#back"), page.is_disabled("#reset")) == (0, 1, 1)
        first = shown(page, "p").tolist()
        page.click("#step")
        page.click("#step")
        assert time_of(page) == 2
        second = shown(page, "p").tolist()
        page.click("#jump")
        assert time_of(page) == 102
        page.click("#back")
        assert time_of(page) == 101
        page.fill("#time", "2")
        assert time_of(page) == 2
        assert shown(page, "p").tolist() == second != first
        page.click("#reset")
        assert time_of(page) == 0
        assert shown(page, "p").tolist() == first


def test_a_run_goes_on_until_it_is_paused(opened):
    with opened() as page:
        page.click("#run")
        page.wait_for_function("document.getElementById('time').value > 5")
        assert page.text_content("#run") == "Pause"
        assert page.get_attribute("#now", "aria-live") == "off"
        page.click("#run")
        paused = time_of(page)
        assert page.text_content("#run") == "Run"
        page.wait_for_function(f"location.hash.includes('t={paused}&')")
        assert time_of(page) == paused > 5


def test_who_wants_no_motion_gets_the_end_of_a_run_at_once(opened):
    with opened(reduced_motion="reduce") as page:
        page.click("#run")
        assert time_of(page) == 200
        assert page.text_content("#run") == "Run"
        moving = "getComputedStyle(document.querySelector('button')).transitionDuration"
        assert page.evaluate(moving) == "0s"
        page.emulate_media(reduced_motion="no-preference")
        assert page.evaluate(moving) == "0.12s"


def test_a_path_that_diverges_says_at_which_step(opened):
    with opened("#f=rosenbrock&m=momentum&lr=1") as page:
        page.click("#jump")
        last = time_of(page)
        assert 1 < last < 100
        expected = f"It diverges at t = {last + 1}: a number is no longer finite."
        assert message(page).startswith(expected)
        page.click("#run")
        page.wait_for_function("document.getElementById('run').textContent === 'Run'")
        assert time_of(page) == last


def test_a_point_that_leaves_the_picture_is_told(opened):
    with opened("#f=himmelblau&m=adam&lr=10") as page:
        page.click("#step")
        assert message(page) == "The point has left the picture."
        page.click("#reset")
        assert message(page) == ""


def test_the_last_step_is_told(opened):
    with opened("#m=rmsprop&t=4990") as page:
        page.click("#jump")
        assert time_of(page) == 5000
        assert message(page) == "That is the last step this page makes: t = 5000."


# ── the start ──────────────────────────────────────────────────────────────────────────────────


def test_the_start_is_dragged_with_the_mouse_and_the_path_follows(opened):
    with opened("#t=20") as page:
        before = shown(page, "p").tolist()
        page.mouse.move(*centre(page, "#start"))
        page.mouse.down()
        page.mouse.move(*centre(page, "#map"), steps=5)
        page.mouse.up()
        x, y = start_of(page)
        assert math.hypot(x, y) < 0.02
        assert time_of(page) == 20
        assert shown(page, "p").tolist() != before
        page.mouse.move(10, 10)
        assert start_of(page) == [x, y]


def test_a_click_on_the_map_sets_the_start(opened):
    with opened() as page:
        box = page.locator("#map").bounding_box()
        page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
        x, y = start_of(page)
        assert abs(x - 2.5) < 0.02
        assert abs(y - 2.5) < 0.02


def test_arrow_keys_move_the_start(opened):
    with opened() as page:
        page.focus("#start")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        assert start_of(page) == [-0.4, -4.1]
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("ArrowDown")
        assert start_of(page) == [-1.4, -4.2]
        assert page.get_attribute("#start", "aria-label") == "Start: x −1.4, y −4.2"


def test_a_finger_drags_the_start_and_taps_set_it(opened):
    with opened(**PHONE) as page:
        swipe(page, centre(page, "#start"), (50, -50))
        box = page.locator("#map").bounding_box()
        expected = [-0.5 + 500 / box["width"], -4.2 + 500 / box["height"]]
        found = start_of(page)
        assert all(abs(a - b) < 0.1 for a, b in zip(found, expected, strict=True)), found
        assert page.evaluate("scrollY") == 0
        page.touchscreen.tap(*centre(page, "#map"))
        page.wait_for_function("Math.abs(document.getElementById('amount-x').value) < 0.1")
        assert all(abs(each) < 0.1 for each in start_of(page))


def test_a_finger_on_the_map_scrolls_the_page_and_leaves_the_start(opened):
    with opened(**PHONE) as page:
        swipe(page, centre(page, "#map"), (0, -200))
        page.wait_for_function("scrollY > 100")
        assert start_of(page) == [-0.5, -4.2]


# ── settings ───────────────────────────────────────────────────────────────────────────────────


def test_a_number_is_typed_with_point_or_comma(opened):
    with opened("#t=5") as page:
        before = shown(page, "p").tolist()
        for text in ("0.95", "0,5"):
            page.fill("#amount-beta1", text)
            page.press("#amount-beta1", "Enter")
            settle(page)
            after = shown(page, "p").tolist()
            assert after != before
            before = after
        page.wait_for_function("location.hash.includes('b1=0.5&')")


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("beta1", "1", "β₁, memory of m is 1, but it must be at least 0 and less than 1."),
        ("beta2", "-0.5", "β₂, memory of v is -0.5, but it must be at least 0 and less than 1."),
        ("lr", "fast", "Learning rate η is “fast”, but it must be a number."),
        ("eps", "-1", "ε, in the denominator is -1, but it must be finite and at least 0."),
        ("lr", "1e400", "Learning rate η is 1e400, but it must be finite and at least 0."),
        ("x", "5000", "Start, x is 5000, but it must be between −1000 and 1000."),
        (
            "seed",
            "1.5",
            "Seed of the noise is 1.5, but it must be a whole number from 0 to 999999.",
        ),
    ],
)
def test_a_wrong_number_is_refused_in_words_and_changes_nothing(opened, key, text, told):
    with opened("#f=valley&t=5") as page:
        before = shown(page, "p").tolist()
        page.fill(f"#amount-{key}", text)
        page.press(f"#amount-{key}", "Tab")
        settle(page)
        assert page.text_content(f"#amount-{key}-error") == told
        assert page.get_attribute(f"#amount-{key}", "aria-invalid") == "true"
        assert shown(page, "p").tolist() == before
        page.fill(f"#amount-{key}", "0")
        page.press(f"#amount-{key}", "Tab")
        settle(page)
        assert page.text_content(f"#amount-{key}-error") == ""
        assert page.get_attribute(f"#amount-{key}", "aria-invalid") is None


def test_a_slider_moves_by_keys_and_writes_its_number(opened):
    with opened("#t=5") as page:
        page.focus("#slider-beta1")
        page.keyboard.press("End")
        settle(page)
        assert page.input_value("#amount-beta1") == "0.9999"
        page.keyboard.press("Home")
        settle(page)
        assert page.input_value("#amount-beta1") == "0"
        assert page.get_attribute("#slider-beta1", "aria-valuetext") == "0"
        page.focus("#slider-lr")
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.input_value("#amount-lr") == "0.11"
        page.click("#defaults")
        settle(page)
        assert page.input_value("#amount-lr") == "0.1"
        assert page.input_value("#amount-beta1") == "0.9"


def test_a_method_brings_its_numbers_and_its_colour(opened):
    with opened("#t=5") as page:
        for method, hidden in (("momentum", {"beta2", "eps"}), ("rmsprop", {"beta1"})):
            page.click(f"label[for=method-{method}]")
            settle(page)
            for key in ("lr", "beta1", "beta2", "eps"):
                assert page.is_hidden(f"#amount-{key}") == (key in hidden), (method, key)
            name = {"momentum": "Momentum", "rmsprop": "RMSProp"}[method]
            colour = "document.documentElement.style.getPropertyValue('--method')"
            assert page.evaluate(colour) == COLOURS[name]
            assert time_of(page) == 5
            assert page.is_checked("#correction-none")


def test_a_function_brings_its_start_and_its_picture(opened):
    with opened("#t=5") as page:
        before = page.evaluate("document.getElementById('ground').toDataURL()")
        page.select_option("#function", "rastrigin")
        assert start_of(page) == [-0.55, 0.8]
        assert time_of(page) == 0
        assert page.evaluate("document.getElementById('ground').toDataURL()") != before
        assert page.is_hidden("#amount-seed")
        page.select_option("#function", "valley")
        settle(page)
        assert page.is_visible("#amount-seed")


def test_fast_clicks_on_run_start_one_run(opened):
    with opened() as page:
        page.evaluate(
            """() => {
              const frames = window.requestAnimationFrame;
              window.waiting = new Set();
              window.requestAnimationFrame = (does) => {
                const id = frames((now) => (window.waiting.delete(id), does(now)));
                window.waiting.add(id);
                return id;
              };
              const cancel = window.cancelAnimationFrame;
              window.cancelAnimationFrame = (id) => (window.waiting.delete(id), cancel(id));
              for (let i = 0; i < 41; i++) document.getElementById("run").click();
            }"""
        )
        assert page.evaluate("window.waiting.size") <= 2  # the run, and what shows it


# ── paths that are kept, links ─────────────────────────────────────────────────────────────────


def test_paths_are_kept_compared_and_removed(opened):
    with opened("#t=15") as page:
        page.click("#keep")
        page.click("label[for=method-rmsprop]")
        page.click("#all")
        settle(page)
        kept = page.locator("#kept li")
        assert kept.count() == 5
        assert "Momentum, η 0.01, no bias correction: f =" in kept.nth(1).text_content()
        swatches = [s.get_attribute("style") for s in page.locator("#kept .swatch").all()]
        order = ("Adam", "Momentum", "RMSProp", "Adam", "note")
        assert swatches == [f"--swatch: {COLOURS[name]}" for name in order]
        page.click("#kept li:nth-child(2) button")
        settle(page)
        assert kept.count() == 4
        page.click("#all")
        settle(page)
        page.click("#all")
        assert message(page) == "8 paths can be kept at most: remove 4 first."
        assert kept.count() == 8
        page.wait_for_function("location.hash.split('keep=').length === 9")
        link = page.url.partition("index.html")[2]
        page.click("#clear")
        settle(page)
        assert kept.count() == 0
    with opened(link) as page:
        assert page.locator("#kept li").count() == 8


def test_a_link_that_says_what_cannot_be_is_told(opened):
    with opened("#b1=2&f=sphere&t=3") as page:
        assert message(page) == (
            "The link says f=sphere, b1=2, which is not possible here; defaults are taken instead."
        )
        assert time_of(page) == 3


@pytest.mark.parametrize("part", ["f=" + "A" * 5000, "keep=<img src=x onerror=alert(1)>"])
def test_a_hostile_link_is_text_and_is_cut_to_what_can_be_read(opened, part):
    with opened("#" + "&".join([part, "m=q", "c=q", "b1=2", "b2=2"])) as page:
        told = message(page)
        assert "m=q, c=q" in told
        assert "…" in told
        assert len(told) < 300
        assert page.locator("#message *").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_another_link_in_the_address_bar_is_followed(opened):
    with opened("#t=3") as page:
        page.evaluate("location.hash = '#f=beale&m=momentum&t=8'")
        page.wait_for_function("document.getElementById('time').value === '8'")
        assert page.input_value("#function") == "beale"


def test_each_experiment_shows_a_path_and_says_nothing_wrong(opened):
    with opened() as page:
        links = page.locator("#experiments a").all()
        assert len(links) == 6
        for link in links:
            link.click()
            expected = int(link.get_attribute("href").partition("&t=")[2].partition("&")[0])
            page.wait_for_function(f"document.getElementById('time').value === '{expected}'")
            assert message(page) == ""


def test_a_link_is_followed_though_the_page_is_about_to_write_its_own(opened):
    with opened() as page:
        links = page.locator("#experiments a").all()
        address, other = (each.get_attribute("href") for each in links[:2])
        page.evaluate(f"location.hash = '{address}'")
        page.wait_for_function("document.getElementById('time').value !== ''")
        # Its event comes after this script, and so after what the page writes here.
        page.evaluate(f"location.hash = '{other}'; write_hash()")
        expected = int(other.partition("&t=")[2].partition("&")[0])
        page.wait_for_function(f"document.getElementById('time').value === '{expected}'")


def test_the_link_is_copied(opened):
    with opened("#t=4", permissions=["clipboard-read", "clipboard-write"]) as page:
        page.click("#share")
        page.wait_for_function("document.getElementById('message').textContent !== ''")
        assert message(page) == "The link is copied: it holds all settings."
        assert page.evaluate("navigator.clipboard.readText()") == page.url
        assert "&t=4&" in page.url


# ── pictures ───────────────────────────────────────────────────────────────────────────────────

_COLOURS_OF = """(id) => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = {};
  for (let k = 0; k < data.length; k += 4) {
    const colour = data[k + 3] < 250 ? "none" : "#" + [0, 1, 2].map((i) =>
      data[k + i].toString(16).padStart(2, "0")).join("");
    seen[colour] = (seen[colour] ?? 0) + 1;
  }
  return seen;
}"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_contours_paths_and_plots_are_drawn_in_the_colours_of_the_methods(opened, size):
    with opened("#t=60&c=first-step", **size) as page:
        page.click("#all")
        settle(page)
        ground = page.evaluate(_COLOURS_OF, "ground")
        assert len(ground) > 200
        assert "none" not in ground
        paths, values = (page.evaluate(_COLOURS_OF, each) for each in ("paths", "values"))
        for name, colour in COLOURS.items():
            assert paths.get(colour.lower(), 0) > 50, name
            assert values.get(colour.lower(), 0) > 50, name
        assert paths["none"] > 0.8 * sum(paths.values())
        for key in ("p", "g", "m", "v", "m_hat", "v_hat", "d", "change"):
            assert len(page.evaluate(_COLOURS_OF, f"plot-{key}")) > 2, key
