"""The page is for everybody: languages, themes, phones, keyboards, screen readers."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import DESKTOP, PHONE, settle

pytestmark = pytest.mark.browser

SMALL = {**PHONE, "viewport": {"width": 320, "height": 568}}


def texts(page):
    return page.inner_text("body")


# ── languages ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "locale", "language"),
    [("", "en-GB", "en"), ("", "uk-UA", "uk"), ("", "de-DE", "en"), ("?lang=uk", "en-GB", "uk"),
     ("?lang=en", "uk-UA", "en"), ("?lang=xx", "uk-UA", "uk")],
)  # fmt: skip
def test_the_language_is_that_of_the_link_or_of_the_browser(opened, query, locale, language):
    with opened(query, locale=locale) as page:
        assert page.get_attribute("html", "lang") == language
        title = {"en": "Play with Adam", "uk": "Adam: спробуйте самі"}[language]
        assert page.title() == page.text_content("h1") == title


def test_the_language_is_switched_on_the_page_and_stays_in_the_link(opened):
    with opened("#t=3") as page:
        numbers = page.locator("#numbers .number").all_text_contents()
        page.click("#language")
        settle(page)
        assert page.get_attribute("html", "lang") == "uk"
        assert page.text_content("#step") == "Крок"
        assert page.locator("#numbers .number").all_text_contents() == numbers
        assert "?lang=uk#" in page.url
        page.reload()
        settle(page)
        assert page.text_content("#step") == "Крок"
        page.click("#language")
        assert page.text_content("#step") == "Step"


def test_an_error_follows_the_language(opened):
    with opened() as page:
        page.fill("#amount-lr", "x")
        page.press("#amount-lr", "Tab")
        page.click("#language")
        settle(page)
        assert page.text_content("#amount-lr-error") == "Крок навчання η: «x», а має бути число."
        assert page.get_attribute("#docs", "href").endswith("/uk/")


def test_nothing_is_left_in_english_in_ukrainian(opened):
    with opened("?lang=uk#f=valley&t=3&b1=2") as page:
        page.click("#all")
        page.fill("#amount-lr", "x")
        page.press("#amount-lr", "Tab")
        settle(page)
        labels = page.evaluate(
            "[...document.querySelectorAll('[aria-label]')].map((e) => e.ariaLabel).join(' ')"
        )
        found = set(re.findall(r"[A-Za-z]{4,}", texts(page) + labels))
        methods = {"Adam", "Momentum", "RMSProp", "AMSGrad", "NAdam", "RAdam"}
        numbers = {"decay", "opposed"}
        assert found <= methods | numbers | {"English", "Shift", "float", "adamas"}


# ── themes ─────────────────────────────────────────────────────────────────────────────────────

_BRIGHTNESS = """(text) => {
  const of = (name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3);
  return of(text).reduce((sum, channel) => sum + Number(channel), 0) / 3;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_that_of_the_system_until_another_is_chosen(opened, scheme):
    with opened("#t=5", color_scheme=scheme) as page:

        def looks():
            settle(page)
            dark = page.evaluate(_BRIGHTNESS, "color") > page.evaluate(
                _BRIGHTNESS, "backgroundColor"
            )
            return dark, page.evaluate("document.getElementById('ground').toDataURL()")

        dark, picture = looks()
        assert dark == (scheme == "dark")
        page.click("#theme")
        other, other_picture = looks()
        assert other is not dark
        assert other_picture != picture
        page.reload()
        assert looks() == (other, other_picture)


_CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const written = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && !e.disabled && e.tagName !== "CANVAS" &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return written.map((e) => {
    const pair = [channels(getComputedStyle(e).color), ground(e)].map(light);
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.textContent.slice(0, 40)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(opened, scheme):
    """4.5 to 1 (WCAG 2.2, success criterion 1.4.3)."""
    with opened("#t=5&b1=2", color_scheme=scheme) as page:
        # Buttons fade into their colour as the page opens.
        page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")
        found = page.evaluate(_CONTRAST)
        assert len(found) > 60
        assert [each for each in found if each[0] < 4.5] == []


# ── phones ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("query", ["?lang=en", "?lang=uk"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL], ids=["desktop", "390 px", "320 px"])
def test_nothing_is_wider_than_the_screen(opened, query, size):
    way = "f=himmelblau&t=200&x=-123.456&y=-0.000123&lr=0.0123"
    with opened(f"{query}#{way}", **size) as page:
        page.click("#all")
        for form in ("formula", "code"):
            page.click(f"label[for=shown-as-{form}]")
            settle(page)
            width = size["viewport"]["width"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            wide = page.evaluate(
                """(width) => [...document.querySelectorAll("main *, header *")]
                  .filter((e) => e.checkVisibility() && e.id !== "start" && !e.closest("#start"))
                  .filter((e) => e.getBoundingClientRect().right > width + 0.5 ||
                                 e.getBoundingClientRect().left < -0.5)
                  .map((e) => e.id || e.className || e.tagName)""",
                width,
            )
            assert wide == []


def test_on_a_phone_the_buttons_for_steps_stay_at_the_thumb_and_the_map_in_sight(opened):
    with opened("#t=5", **PHONE) as page:
        for place in (0, 900, 10_000):
            page.evaluate(f"scrollTo(0, {place})")
            settle(page)
            for name in ("reset", "back", "step", "run", "jump"):
                box = page.locator(f"#{name}").bounding_box()
                assert box["y"] > 844 / 2, name
                assert box["y"] + box["height"] <= 844, name
                assert min(box["width"], box["height"]) >= 44, name
        page.evaluate("scrollTo(0, 900)")
        settle(page)
        box = page.locator("#map").bounding_box()
        assert box["y"] >= -1
        assert box["y"] + box["height"] < 844 / 2


def test_on_a_phone_what_is_touched_is_as_large_as_a_finger(opened):
    """24 px are the least (WCAG 2.2, success criterion 2.5.8)."""
    with opened("#t=5", **PHONE) as page:
        page.click("#all")
        settle(page)
        for each in page.locator("button, select, input:not([type=radio]), .choice label").all():
            if each.is_visible():
                box = each.bounding_box()
                assert min(box["width"], box["height"]) >= 24, each.evaluate("(e) => e.outerHTML")


@pytest.mark.parametrize("query", ["?lang=en", "?lang=uk"])
@pytest.mark.parametrize("size", [PHONE, SMALL], ids=["390 px", "320 px"])
def test_no_button_cuts_its_text(opened, query, size):
    with opened(query, **size) as page:
        for text in ("Run", "Pause"):
            cut = page.evaluate(
                """[...document.querySelectorAll("button")]
                  .filter((e) => e.id !== "start" && e.scrollWidth > e.clientWidth)
                  .map((e) => e.id)"""
            )
            assert cut == [], text
            page.click("#run")
            settle(page)


# ── colours of the system ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_colours_of_the_system_what_is_chosen_looks_other_than_the_rest(opened, scheme):
    with opened("#t=3", color_scheme=scheme, forced_colors="active") as page:
        ground = "(e) => getComputedStyle(e).backgroundColor"
        chosen, other = (
            page.locator(f"label[for=method-{method}]").evaluate(ground)
            for method in ("adam", "rmsprop")
        )
        assert chosen != other
        swatches = page.locator("#method .swatch").evaluate_all(f"(all) => all.map({ground})")
        assert len(set(swatches)) == 3


def test_in_colours_of_the_system_a_hat_does_not_hide_its_letter(opened):
    """Chromium lays a ground behind all text, and so over the letter, unless it is told not to."""
    with opened("#t=3", forced_colors="active") as page:
        adjusted = page.locator(".hat").evaluate_all(
            "(all) => all.map((e) => getComputedStyle(e, '::after').forcedColorAdjust)"
        )
        assert len(adjusted) > 3
        assert set(adjusted) == {"none"}


# ── keyboards and screen readers ───────────────────────────────────────────────────────────────


def focused(page):
    return page.evaluate("document.activeElement.id")


def test_everything_is_reached_and_done_by_keyboard_alone(opened):
    with opened() as page:
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            if focused(page) in seen:
                break
            seen.append(focused(page))
        wanted = {"start", "time", "step", "run", "jump", "function", "method-adam", "share"}
        wanted |= {"correction-paper", "slider-lr", "amount-beta2", "coordinate-x", "keep", "theme"}
        assert wanted <= set(seen)
        page.focus("#step")
        page.keyboard.press("Enter")
        page.keyboard.press("Space")
        settle(page)
        assert page.input_value("#time") == "2"
        page.focus("#method-adam")
        page.keyboard.press("ArrowLeft")
        settle(page)
        assert page.is_checked("#method-rmsprop")
        page.focus("#time")
        page.keyboard.press("ArrowLeft")
        settle(page)
        assert page.text_content("#lines-title") == "The rule at t = 1"


def test_what_has_the_focus_is_seen(opened):
    with opened() as page:
        for name in ("step", "start", "slider-lr", "amount-lr"):
            page.focus("#theme")
            page.keyboard.press("Tab")
            page.focus(f"#{name}")
            outline = page.evaluate(f"getComputedStyle(document.getElementById('{name}')).outline")
            assert "3px" in outline, name


def test_everything_that_can_be_used_has_a_name_and_a_role(opened):
    with opened("#f=valley&t=3") as page:
        page.click("#all")
        settle(page)
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        used = {"button", "slider", "textbox", "radio", "combobox", "link", "image", "application"}
        kinds = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in used
        ]
        assert len(kinds) > 40
        assert [kind for kind in kinds if not kind[1].strip()] == []
        for kind in (
            ("slider", "Iteration t"),
            ("slider", "Learning rate η: slider"),
            ("textbox", "Learning rate η: number"),
            ("button", "Start: x −4, y 2.5"),
            ("button", "One step back"),
            ("button", "Remove path A"),
            ("image", "first moment over t"),
        ):
            assert kind in kinds


def test_a_step_is_announced_and_a_run_is_not(opened):
    with opened() as page:
        page.click("#step")
        settle(page)
        assert page.get_attribute("#now", "aria-live") == "polite"
        assert page.text_content("#now").replace("\xa0", " ").startswith("t = 1   x = ")
        assert page.get_attribute("#message", "role") == "status"
