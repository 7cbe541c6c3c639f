"""The built pages in Chromium: on a phone and on a desktop, on light ground and on dark."""

from __future__ import annotations

import functools
import http.server
import threading
from urllib.parse import urljoin

import pytest

from tests.browser.conftest import DESKTOP, PHONE, USUAL, settle
from tests.support.cases import ROOT

pytestmark = pytest.mark.browser

SITE = ROOT / "site"
PAGES = sorted(
    page.relative_to(ROOT / "docs").as_posix().removesuffix(".md").removesuffix("index")
    for page in (ROOT / "docs").rglob("*.md")
)

LOOK = """() => {
  const width = document.documentElement.clientWidth;
  const article = document.querySelector("article");
  const scrolls = (each) => ["auto", "scroll", "hidden"].includes(getComputedStyle(each).overflowX);
  const within = (each) => {
    for (let around = each; around; around = around.parentElement) {
      if (scrolls(around)) return true;
    }
    return false;
  };
  const shown = [...article.querySelectorAll("*")].filter((each) => each.offsetWidth);
  const pictures = [...article.querySelectorAll("img")];
  return {
    wider: document.documentElement.scrollWidth - width,
    outside: shown
      .filter((each) => each.getBoundingClientRect().right > width + 1 && !within(each))
      .map((each) => each.outerHTML.slice(0, 80)),
    formulas: article.querySelectorAll(".arithmatex").length,
    set: article.querySelectorAll(".arithmatex > .katex, .arithmatex > .katex-display").length,
    wrong: [...article.querySelectorAll(".katex-error")].map((each) => each.title),
    text: article.innerText,
    missing: pictures.filter((each) => each.src && !each.naturalWidth).map((each) => each.src),
    themed: pictures
      .filter((each) => each.src.includes("#only-") && each.offsetWidth)
      .map((each) => each.src.split("#")[1]),
  };
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    if not (SITE / "index.html").exists():
        pytest.skip("the pages are not built; build them with: .ci/docs")
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


#: What pages asked for from elsewhere, and did not get.
ELSEWHERE: list[str] = []


def refuse(route):
    ELSEWHERE.append(route.request.url)
    route.abort()


@pytest.fixture(scope="module")
def windows(chromium, address):
    """A phone on dark ground and a desktop on light, which get nothing from elsewhere."""
    phone = chromium.new_context(**USUAL | PHONE | {"color_scheme": "dark"})
    desktop = chromium.new_context(**USUAL | DESKTOP)
    for context in (phone, desktop):
        context.route(lambda url: not url.startswith(address), refuse)
    yield {"dark": phone.new_page(), "light": desktop.new_page()}
    phone.close()
    desktop.close()


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page or "index")
def seen(request, windows, address):
    """What is seen of a page, by the ground that it is on."""
    found = {}
    ELSEWHERE.clear()
    for ground, window in windows.items():
        window.goto(urljoin(address, request.param))
        for picture in window.locator("article img[src*=only-]:visible").all():
            picture.scroll_into_view_if_needed()  # it is loaded when it is near
        window.wait_for_function(
            "[...document.images].every((each) => !each.offsetWidth || each.complete)"
        )
        settle(window)
        found[ground] = window.evaluate(LOOK) | {"elsewhere": [*ELSEWHERE]}
    return found


def test_no_page_asks_for_anything_from_elsewhere(seen):
    for page in seen.values():
        assert page["elsewhere"] == []


def test_no_page_is_wider_than_its_window(seen):
    for ground, page in seen.items():
        assert page["wider"] <= 0, ground
        assert page["outside"] == [], ground


def test_every_formula_is_set(seen):
    for page in seen.values():
        assert page["wrong"] == []
        assert page["set"] == page["formulas"]
        assert "$" not in page["text"].replace("$ ", "")  # but for the prompt of a shell


def test_no_markup_is_left_in_the_text(seen):
    for page in seen.values():
        for mark in ("``", ":::", "](", ":class:", ":func:", "&lt;", "**`"):
            assert mark not in page["text"]


def test_every_picture_is_there_and_is_that_of_the_ground(seen):
    for ground, page in seen.items():
        assert page["missing"] == []
        assert set(page["themed"]) <= {f"only-{ground}"}
    assert len(seen["light"]["themed"]) == len(seen["dark"]["themed"])


def test_there_are_formulas_and_pictures(windows, address):
    window = windows["light"]
    for page, selector in (("the-rule/", ".katex-display"), ("convergence/", "img[src*=light]")):
        window.goto(urljoin(address, page))
        assert window.locator(selector).first.is_visible()


def test_the_search_finds_words_of_the_field(windows, address):
    window = windows["light"]
    window.goto(address)
    field = window.get_by_role("combobox")
    for _ in range(120):  # the page listens a while after it has loaded
        window.keyboard.press("/")
        if field.is_visible():
            break
        window.wait_for_timeout(500)
    field.fill("stochastic rounding")  # typed keys would go elsewhere until it has the focus
    window.locator("a[href*='small-states']").filter(has_text="tochastic").first.wait_for()


def test_pages_in_ukrainian_say_so(windows, address):
    window = windows["light"]
    for page, language in (("uk/the-rule/", "uk"), ("the-rule/", "en")):
        window.goto(urljoin(address, page))
        assert window.locator("article").evaluate("(a) => a.closest('[lang]').lang") == language


def test_the_reference_has_types_and_what_is_said_of_fields(windows, address):
    window = windows["light"]
    for page, name, type_, words in (
        ("numpy", "adamas.Options.betas", "tuple[float | None, float | None]", "Decay rates"),
        ("numpy", "adamas.Optimizer.on_nonfinite", "OnNonfinite", "infinite gradients"),
        ("torch", "adamas.torch.Optimizer.clip_norm", "float | None", "global norm"),
        ("scipy", "adamas.scipy.Settings.gtol", "float | None", "No component"),
    ):
        window.goto(urljoin(address, f"reference/{page}/"))
        text = window.locator(f".doc-object:has(> [id='{name}'])").inner_text()
        assert f"{name.rpartition('.')[2]}: {type_}" in text
        assert words.lower() in text.lower()
