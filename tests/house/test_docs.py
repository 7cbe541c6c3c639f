"""The pages say what is: code runs, formulas are those of the source, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from importlib.util import find_spec

import pytest
import torch

import adamas
from adamas.scipy import Settings
from tests.house.test_rules import PYPROJECT
from tests.support import loggers
from tests.support.cases import ROOT
from tests.support.everywhere_program import CASES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(
    r"^(?:<!-- (?P<mark>[a-z]+) -->\n)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
#: Marks of blocks that are lines of ``rule.py``, and how many these are at least.
QUOTED = {"rule": 16, "unsmoothed": 10}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def named(path):
    return str(path.relative_to(ROOT))


BLOCKS = [
    pytest.param(found["code"], id=f"{named(page)}:{number}")
    for page in PAGES
    for number, found in enumerate(CODE.finditer(page.read_text("utf-8")))
    if found["mark"] not in QUOTED
]


def test_there_is_code_in_the_pages():
    assert len(BLOCKS) >= 3


#: Pages whose code needs what is not there for every Python.
NEEDS = {"docs/guides/jax.md": "jax", "docs/start/jax.md": "jax"}


@pytest.fixture
def one_thread():
    """torch's threads wait by spinning, which takes the processor from tests beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_code_of_each_page_runs_in_order(one_thread, monkeypatch):
    loggers.stand_in(monkeypatch)
    run: set[str] = set()  # of two pages with the same code, comments aside, one
    for page in PAGES:
        if named(page) in NEEDS and not find_spec(NEEDS[named(page)]):
            continue
        found = CODE.finditer(page.read_text("utf-8"))
        blocks = [each["code"] for each in found if each["mark"] not in QUOTED]
        plain = ast.unparse(ast.parse("\n".join(blocks)))
        if plain in run:
            continue
        run.add(plain)
        names: dict[str, object] = {}
        for code in blocks:
            exec(compile(code, named(page), "exec"), names)


@pytest.mark.parametrize("mark", QUOTED)
def test_the_rule_in_the_docs_is_the_rule_in_the_source(mark):
    page = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    (quoted,) = (found["code"] for found in CODE.finditer(page) if found["mark"] == mark)
    source = (ROOT / "src" / "adamas" / "rule.py").read_text("utf-8")
    assert len(quoted.splitlines()) >= QUOTED[mark]
    assert textwrap.indent(quoted, "    ") in source


def test_the_table_of_the_note_is_what_adamas_computes():
    page = (ROOT / "docs" / "the-rule.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| 1 \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    from adamas.coefficients import one_minus_power

    for step, ratio in rows:
        t = int(step.replace(",", ""))
        m, v = one_minus_power(0.9, t), one_minus_power(0.999, t)
        assert f"{m / (1 - 0.9) / (v / (1 - 0.999)) ** 0.5:.3f}" == ratio


OTHERS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=named)
def test_links_lead_to_files_that_exist(page):
    site = ROOT / "docs"
    for target in LINK.findall(page.read_text("utf-8")):
        path = (page.parent / target.partition("?")[0]).resolve()
        assert path.exists(), target
        # The site has the folder docs alone; what is elsewhere is linked by its URL.
        assert path.is_relative_to(site) or not page.is_relative_to(site), target


def linked(*begins):
    """What the links of all pages that begin so end with, without anchors."""
    link = re.compile(rf"(?:{'|'.join(map(re.escape, begins))})([^)\s#\"'>]*)")
    return {end for page in [*PAGES, *OTHERS] for end in link.findall(page.read_text("utf-8"))}


def test_links_to_the_repository_lead_to_files_that_exist():
    repository = PYPROJECT["project"]["urls"]["Source"]
    raw = repository.replace("https://github.com", "https://raw.githubusercontent.com")
    ways = [f"{repository}/{kind}/main/" for kind in ("blob", "tree", "raw")]
    found = linked(*ways, f"{raw}/main/")
    assert len(found) > 10
    assert [path for path in found if not (ROOT / path).exists()] == []


def test_links_to_the_site_lead_to_pages_that_exist():
    found = linked(PYPROJECT["project"]["urls"]["Homepage"])
    assert len(found) > 10
    docs = ROOT / "docs"
    for url in found:
        forms = (f"{url.rstrip('/')}.md", f"{url}index.md", f"{url}index.html")
        assert any((docs / form).exists() for form in forms), url


def test_every_picture_is_shown_on_light_pages_and_on_dark_ones():
    picture = re.compile(r"!\[([^\]]+)\]\((?:\.\./)*pictures/([\w-]+)\.svg#(only-\w+)\)")
    shown = set()
    for page in PAGES[1:]:
        text = page.read_text("utf-8")
        pairs = picture.findall(text)
        assert len(pairs) == len(re.findall(r"\.svg", text)), named(page)
        for light, dark in zip(pairs[::2], pairs[1::2], strict=True):
            assert light[2] == "only-light"
            assert dark == (light[0], f"{light[1]}-dark", "only-dark"), named(page)
        shown |= {name for _, name, _ in pairs}
    assert shown == {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}


#: How many characters of code the column of a page shows without scrolling, at a width of 1,280.
COLUMN = 84


@pytest.mark.parametrize("page", PAGES[1:], ids=named)
def test_no_line_of_code_is_wider_than_the_column(page):
    text = page.read_text("utf-8")
    fenced = re.findall(r"^ *(```+)[^`\n]*\n(.*?)^ *\1", text, re.MULTILINE | re.DOTALL)
    lines = [line for _, block in fenced for line in block.splitlines()]
    lines += re.findall(r"(?<=\n\n) {4}.*(?:\n {4}.*)*", text)
    assert [line for block in lines for line in block.split("\n") if len(line) > COLUMN] == []


def test_every_page_stands_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    navigation = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.(?:md|html))$", text, re.MULTILINE)
    assert len(set(navigation)) == len(navigation)
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert {*navigation} == {*pages, "play/index.html"}


def test_every_public_name_is_documented():
    for name in adamas.__all__:
        assert getattr(adamas, name).__doc__, name


@pytest.mark.parametrize("options", [adamas.Options, adamas.Phase, adamas.Statistics, Settings])
def test_the_reference_says_something_of_every_field(options):
    said = re.findall(r"^ +#: .*\n(?: +#.*\n)* +(\w+):", inspect.getsource(options), re.MULTILINE)
    assert {field.name for field in dataclasses.fields(options)} == {*said}


@pytest.mark.parametrize("package", ["", ".torch", ".jax", ".checking", ".files", ".report"])
def test_every_public_name_stands_in_the_reference(package):
    source = ROOT.joinpath("src", "adamas", *package.split("."), "__init__.py").read_text("utf-8")
    public = ast.literal_eval(
        re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)[1]
    )
    pages = [page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    given = {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    assert len(public) > 1
    assert [n for n in public if {f"adamas{package}.{n}", f"adamas.{n}"}.isdisjoint(given)] == []


def test_the_reference_has_each_name_once_and_other_pages_link_to_it():
    found = {
        named(page): re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
        for page in PAGES
    }
    assert {page for page, names in found.items() if names} <= {
        named(page) for page in (ROOT / "docs" / "reference").glob("*.md")
    }
    names = [name for each in found.values() for name in each]
    assert len(names) == len(set(names)) > 50


def test_docstrings_are_written_in_markdown():
    role = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj|ref):`")
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert len(sources) > 200
    assert [named(path) for path in sources if role.search(path.read_text("utf-8"))] == []


def test_every_row_of_what_works_where_names_tests_that_exist():
    page = (ROOT / "docs" / "guides" / "distributed.md").read_text("utf-8")
    _, _, table = page.partition("## What works where")
    rows = re.findall(r"^\| .* \| (.*) \|$", table.partition("\n## ")[0], re.MULTILINE)[1:]
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = {*re.findall(r"^ *def (test_\w+)\(", tests, re.MULTILINE), *CASES}
    named = [re.findall(r"`(\w+)`", row) for row in rows]
    assert len(named) > 20
    assert all(named)
    assert [name for each in named for name in each if name not in known] == []


#: How code tells one storage form from the others, in Python and C++.
TELLS_APART = re.compile(r'[!=]= "(?:compact|8bit)"|in \("compact"|"8bit" in|Form::(?!plain)\w')


def test_where_a_storage_form_goes_names_every_file_that_tells_forms_apart():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (place,) = re.findall(r"^- \*\*A storage form\*\*.*?(?=^- )", page, re.MULTILINE | re.DOTALL)
    package = ROOT / "src" / "adamas"
    sources = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    sources |= {f"native/{path.name}": path for path in (ROOT / "native").iterdir()}
    found = {name for name, p in sources.items() if TELLS_APART.search(p.read_text("utf-8"))}
    assert {"codecs.py", "engines/triton/kernels.py", "native/codecs.h"} <= found
    assert {name for name in found if f"`{name}`" not in place} == set()
