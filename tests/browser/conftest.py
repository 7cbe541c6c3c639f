"""A Chromium that is there already, and pages in it that are watched."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.support.node import PLAY

FILE = (PLAY / "index.html").as_uri()
#: Names of the program, Debian's first.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
#: Whoever is asked about motion wants none, where a test does not say otherwise.
USUAL = {"locale": "en-GB", "color_scheme": "light", "reduced_motion": "no-preference"}


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip(
        "playwright.sync_api",
        reason='playwright is not installed; install it with: pip install ".[browser]"',
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(
            f"there is no Chromium: none of {', '.join(PROGRAMS)} is on the PATH; on Debian "
            "install it with: apt-get install chromium"
        )
    with api.sync_playwright() as playwright:
        # The page is ours, and as root Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield browser
        browser.close()


@contextmanager
def watched(chromium, link, **given):
    """A page of which nothing may complain, and which may ask for nothing but its own files."""
    context = chromium.new_context(**USUAL | DESKTOP | given)
    page = context.new_page()
    page.set_default_timeout(10_000)
    seen = SimpleNamespace(messages=[], requests=[])
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(link)
    settle(page)
    yield page
    context.close()
    assert seen.messages == []
    own = link.partition("?")[0].partition("#")[0].removesuffix("index.html")
    assert len(seen.requests) >= 10
    assert [url for url in seen.requests if not url.startswith((own, "data:,"))] == []


@pytest.fixture
def opened(chromium):
    """Opens the page with a query and a hash: ``with opened("?lang=uk", viewport=…) as page``."""
    return lambda after="", **given: watched(chromium, FILE + after, **given)


def settle(page):
    """Let the page draw what has been asked of it."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
