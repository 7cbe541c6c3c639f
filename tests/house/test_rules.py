"""The rules of the code: what may import what, what is promised outside the code, and where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adamas
from tests.support.cases import PATIENCE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "adamas").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
CONTRACTS = {c["id"]: c for c in PYPROJECT["tool"]["importlinter"]["contracts"]}

#: All that adamas can use and does without.
OPTIONAL = (
    *("torch", "triton", "jax", "jaxlib", "optax", "scipy", "sklearn", "pandas", "safetensors"),
    *("click", "rich", "matplotlib", "PIL", "mpmath", "hypothesis", "pytest", "nanobind"),
    "vl_convert",
)

BLOCK = f"""
import sys

OPTIONAL = {OPTIONAL!r}


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(source: Path) -> set[str]:
    """Top-level names of all packages that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


# ── imports ────────────────────────────────────────────────────────────────────────────────────


def test_adamas_imports_and_steps_where_no_optional_package_can_be_imported():
    result = run(
        BLOCK
        + """
import numpy, adamas

p = numpy.array([1.0, -1.0], dtype=numpy.float32)
adamas.Adam(p, lr=0.125).step(numpy.array([2.0, -2.0], dtype=numpy.float32))
assert p[0] < 1.0 and p[1] > -1.0, p
"""
    )
    assert result.returncode == 0, result.stderr


def test_importing_adamas_loads_no_optional_package():
    result = run(
        f"import sys, adamas; print(*sorted({{m.partition('.')[0] for m in sys.modules}}"
        f" & set({OPTIONAL!r})))"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_importing_adamas_torch_loads_no_triton():
    result = run("import sys, torch; sys.modules['triton'] = None; import adamas.torch")
    assert result.returncode == 0, result.stderr


def test_the_import_contracts_are_kept():
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys; from importlinter.cli import lint_imports;"
                "sys.exit(lint_imports(no_cache=True))"
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_definition_imports_nothing_but_numpy_and_python_itself():
    definition = CONTRACTS["definition"]["source_modules"]
    for module in definition:
        source = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        strangers = imported(source) - sys.stdlib_module_names - {"numpy", "adamas"}
        assert not strangers, f"{relative(source)} imports {sorted(strangers)}"


# ── source ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_every_module_says_what_it_is(source):
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    assert docstring, f"{relative(source)} has no docstring"
    first = docstring.splitlines()[0]
    assert first.endswith((".", "?", "!", ":")), f"{relative(source)}: {first!r} is no sentence"


#: The compiled module, by its name; what GradScaler asks an optimizer for; names of NamedTuple's
#: and of torch's that something of ours is called by, too.
NOT_PRIVATE = {
    *("_native", "_step_supports_amp_scaling"),
    *("_fields", "_replace", "_version"),
}


def names_given(tree: ast.AST) -> set[str]:
    """The names that a module gives to anything: functions, classes, variables, attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def names_read(tree: ast.AST) -> set[str]:
    """The names that a module reads of others: attributes, imports, texts given to setattr."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name.rpartition(".")[2])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_no_test_and_no_benchmark_reads_a_private_name_of_adamas():
    given = set().union(*(names_given(ast.parse(path.read_text("utf-8"))) for path in SOURCES))
    private = {name for name in given if re.fullmatch("_[^_].*", name)} - NOT_PRIVATE
    assert len(private) > 100
    for path in (*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        text = path.read_text("utf-8")
        if private.isdisjoint(re.findall(r"\w+", text)):
            continue
        tree = ast.parse(text)
        found = names_read(tree) & private - names_given(tree)
        assert not found, relative(path)


def test_no_file_and_no_class_is_too_large_to_be_read():
    assert len(SOURCES) > 100
    for path in SOURCES:
        text = path.read_text("utf-8")
        most = 560 if path.is_relative_to(ROOT / "src" / "adamas" / "torch") else 650
        assert len(text.splitlines()) <= most, relative(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 300, (relative(path), node.name)
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                assert len(methods) <= 25, (relative(path), node.name)
    assert len(TESTS) > 100
    for path in TESTS:
        assert len(path.read_text("utf-8").splitlines()) <= 600, relative(path)


def test_no_module_is_a_drawer_for_odds_and_ends():
    drawers = {"util", "utils", "helper", "helpers", "impl", "common", "misc"}
    files = [*SOURCES, *(ROOT / "native").rglob("*.*")]
    assert [relative(f) for f in files if f.stem.strip("_") in drawers] == []


def test_the_package_says_that_it_is_typed():
    assert (Path(adamas.__file__).parent / "py.typed").exists()


# ── promises ───────────────────────────────────────────────────────────────────────────────────


def test_the_readme_marks_one_test_command_and_it_runs_pytest_on_the_test_extra():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- ci: test -->\n+```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert [b.strip() for b in blocks] == ['pip install ".[test]" && pytest']


def test_every_extra_that_users_are_told_to_install_exists():
    told = {}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *SOURCES]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for extras in re.findall(r"""["' ](?:adamas|\.)\[([a-z, ]+)\]""", text):
            told.update(dict.fromkeys(re.split(r"\s*,\s*", extras), relative(page)))
    assert "test" in told
    assert {extra: page for extra, page in told.items() if extra not in EXTRAS} == {}


def test_the_page_about_installing_tells_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = page.partition("<!-- extras: begin -->")[2].partition("<!-- extras: end -->")[0]
    of_users = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    (sentence,) = re.findall(r"^Extras for those who change adamas: (.*?)\.", page, re.MULTILINE)
    of_developers = re.findall(r"`(\w+)`", sentence)
    assert {*of_users, *of_developers} == {*EXTRAS}
    assert len(of_users) + len(of_developers) == len(EXTRAS)


def test_the_page_about_installing_tells_the_versions_that_are_asked_for():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    asked = re.split(">=", f"{PYPROJECT['project']['requires-python']}")[1]
    assert f"adamas needs Python {asked} or later" in page
    for name, package, told in (("", "numpy", "NumPy"), ("torch", "torch", "PyTorch")):
        needed = EXTRAS[name] if name else PYPROJECT["project"]["dependencies"]
        (least,) = (re.split(">=", each)[1] for each in needed if each.startswith(f"{package}>="))
        assert f"{told} {least} or later" in page
    built = PYPROJECT["tool"]["cibuildwheel"]["build"].split()
    versions = [re.sub(r"cp3(\d+)(t?)-\*", r"3.\1\2", each) for each in built]
    *plain, free = versions
    assert free == f"{plain[-1]}t"
    line = f"| {plain[0]} to {plain[-1]}, and {plain[-1]} free-threaded |"
    assert page.count(line) == 3


def test_every_environment_variable_that_adamas_reads_is_documented():
    read = set()
    for source in SOURCES:
        read |= set(
            re.findall(r'environ(?:ment)?\.get\("(\w+)"', source.read_text(encoding="utf-8"))
        )
    assert {"ADAMAS_NUM_THREADS", "LOCAL_WORLD_SIZE"} <= read
    page = (ROOT / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
    assert {name for name in read if f"| `{name}` |" not in page} == set()


def test_every_command_that_the_readme_shows_is_one_that_is_installed():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shells = re.findall(
        r"^```(?:sh|bash|shell|console)\n(.*?)^```", readme, re.DOTALL | re.MULTILINE
    )
    commands = {
        words[0]
        for line in re.split(r"\n|&&", "".join(shells))
        if (words := line.split("#")[0].strip().removeprefix("$ ").split())
    }
    assert commands <= {"pip", "pytest", "python", "git", "cd", *PYPROJECT["project"]["scripts"]}


def test_the_changelog_has_a_heading_for_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(adamas.__version__)}\]", changelog, re.MULTILINE)


def test_the_installed_version_is_the_one_that_adamas_states():
    from importlib.metadata import version

    assert version("adamas") == adamas.__version__
