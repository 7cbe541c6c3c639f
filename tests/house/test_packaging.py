"""What a release consists of: addresses, licences, workflows, and what the distributions hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import adamas
from tests.house.test_rules import EXTRAS, OPTIONAL, PYPROJECT, run
from tests.support.cases import PATIENCE, ROOT

PROJECT = PYPROJECT["project"]
URLS = PROJECT["urls"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def built(kind: str, folder: Path, *settings: str) -> Path:
    """The distribution that is built from this tree with what is installed."""
    options = [f"--config-setting={each}" for each in settings]
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", *options]
    command += ["--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return path


# ── addresses ──────────────────────────────────────────────────────────────────────────────────


def texts() -> dict[str, str]:
    """The texts that may name where the project lives."""
    places = [ROOT, ROOT / "docs", ROOT / "src", ROOT / ".github", ROOT / "examples"]
    found = []
    for place in places:
        for kind in ("*.md", "*.py", "*.yml", "*.cff", "*.toml", "*.html"):
            found += place.glob(kind) if place == ROOT else place.rglob(kind)
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in found}


def test_every_page_names_the_repository_and_the_site_that_the_metadata_names():
    repository, site = URLS["Source"], URLS["Homepage"]
    assert URLS["Documentation"] == site
    assert URLS["Issues"] == f"{repository}/issues"
    assert URLS["Changelog"] == f"{repository}/blob/main/CHANGELOG.md"
    named, wrong = set(), {}
    for name, text in texts().items():
        for url in re.findall(r"https://(?:github\.com/[\w-]+|[\w-]+\.github\.io)/adamas\b", text):
            named.add(name)
            if url not in (repository, site.rstrip("/")):
                wrong[name] = url
    assert {"CITATION.cff", "SECURITY.md", "pyproject.toml"} <= named
    assert wrong == {}


def test_the_citation_is_of_this_version_and_place():
    assert CITATION["version"] == adamas.__version__
    assert CITATION["repository-code"] == URLS["Source"]
    assert CITATION["url"] == URLS["Homepage"]
    assert [each["name"] for each in CITATION["authors"]] == [a["name"] for a in PROJECT["authors"]]
    # What the schema of version 1.2.0 demands.
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"


def test_a_report_of_a_bug_asks_for_adamas_info():
    forms = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in FORMS}
    required = {
        name: [
            each["attributes"]["label"]
            for each in form["body"]
            if each.get("validations", {}).get("required")
        ]
        for name, form in forms.items()
        if name != "config"
    }
    assert "What `adamas info` prints" in required["bug"]
    assert "What `adamas info` prints" in required["check"]
    assert all(required.values())


# ── workflows ──────────────────────────────────────────────────────────────────────────────────


def jobs(workflow: Path) -> dict[str, dict]:
    return yaml.safe_load(workflow.read_text("utf-8"))["jobs"]


def test_every_action_is_pinned_to_one_commit_with_its_version_beside_it():
    pins: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for used in re.findall(r"uses:[ \t]*(.*)", workflow.read_text("utf-8")):
            found = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", used)
            assert found, f"{workflow.name}: {used}"
            pins.setdefault(found[1], set()).add(found[2])
    assert {name for name, commits in pins.items() if len(commits) > 1} == set()
    assert "pypa/gh-action-pypi-publish" in pins


#: What jobs may besides reading: say who they are, and the one that deploys the docs, write these.
MAY = {
    "publish": {"id-token": "write"},
    "deploy": {"id-token": "write", "pages": "write"},
}


def test_no_job_may_write_but_those_that_publish_may_say_who_they_are():
    for workflow in WORKFLOWS:
        assert yaml.safe_load(workflow.read_text("utf-8"))["permissions"] == {"contents": "read"}
        for name, job in jobs(workflow).items():
            assert job.get("permissions") == MAY.get(name), f"{workflow.name}: {name}"


def test_what_is_published_was_built_and_tested_on_every_platform():
    (workflow,) = (path for path in WORKFLOWS if path.name == "wheels.yml")
    publish = jobs(workflow)["publish"]
    assert set(publish["needs"]) == set(jobs(workflow)) - {"publish"}
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1]["with"]["attestations"] is True


def test_what_the_classifiers_promise_is_tested():
    (ci,) = (path for path in WORKFLOWS if path.name == "ci.yml")
    (wheels,) = (path for path in WORKFLOWS if path.name == "wheels.yml")
    settings = PYPROJECT["tool"]["cibuildwheel"]
    versions = re.findall(
        r":: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE
    )
    assert len(versions) == 5
    assert f">={versions[0]}" == PROJECT["requires-python"]
    matrix = jobs(ci)["everything"]["strategy"]["matrix"]["include"]
    assert {each["python"] for each in matrix} == set(versions)
    builds = settings["build"].split()
    assert {f"cp{each.replace('.', '')}-*" for each in versions} <= set(builds)
    assert any("Free Threading" in each for each in PROJECT["classifiers"])
    assert [each for each in builds if each.endswith("t-*")]
    systems = {
        each.partition("-")[0] for each in jobs(wheels)["wheels"]["strategy"]["matrix"]["os"]
    }
    assert systems == {"ubuntu", "macos", "windows"}
    _, tests = settings["test-command"]
    folders = re.findall(r"\{project\}/(\S+)", tests)
    assert folders == ["tests/definition", "tests/engines", "tests/numpy"]
    assert all((ROOT / each).is_dir() for each in folders)
    assert set(settings["test-requires"]) <= {*EXTRAS["test"], *EXTRAS["cli"]}


# ── extras ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["info"], ["check", "adamas:Adam"]])
def test_info_and_check_run_with_numpy_and_the_extra_cli_alone(command):
    needed = {re.match(r"[\w-]+", each)[0] for each in EXTRAS["cli"]}
    assert needed == {"click", "mpmath", "rich"}
    code = f"""
import sys

for name in {sorted(set(OPTIONAL) - needed)!r}:
    sys.modules[name] = None
from adamas.cli import main

main({command!r})
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "adamas" in done.stdout


# ── distributions ──────────────────────────────────────────────────────────────────────────────


def test_the_licence_of_nanobind_is_that_of_the_package_it_is_built_with():
    shipped = [each for each in files("nanobind") or () if each.match("licenses/LICENSE")]
    (licence,) = shipped
    assert (ROOT / "licenses" / "nanobind.txt").read_text("utf-8") == licence.read_text("utf-8")


def test_the_licence_of_the_hash_map_is_that_of_the_headers_it_is_built_with():
    spec = find_spec("nanobind")
    assert spec is not None
    headers = [*Path(spec.origin).parent.glob("ext/*/include/tsl/*.h")]
    assert len(headers) == 3
    own = " ".join((ROOT / "licenses" / "robin-map.txt").read_text("utf-8").split())
    for header in headers:
        head = re.match(r"/\*(.*?)\*/", header.read_text("utf-8"), re.DOTALL)
        assert " ".join(head[1].replace("*", " ").split()) == own, header.name


@pytest.mark.slow
def test_a_wheel_holds_the_licences_of_what_is_linked_into_it(tmp_path):
    # Without the compiled module, which takes minutes; what stands beside it is the same.
    with zipfile.ZipFile(built("wheel", tmp_path, "wheel.cmake=false")) as wheel:
        folder = f"adamas-{adamas.__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
        named = metadata.get_all("License-File")
        assert named == ["LICENSE", "licenses/nanobind.txt", "licenses/robin-map.txt"]
        for name in named:
            text = wheel.read(f"{folder}/licenses/{name}").decode()
            assert text == (ROOT / name).read_text("utf-8")
    assert metadata["License-Expression"] == "MIT AND BSD-3-Clause"
    urls = dict(each.split(", ", 1) for each in metadata.get_all("Project-URL"))
    assert urls == URLS


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """A source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built("sdist", folder / "packed")) as packed:
        packed.extractall(folder)
    (found,) = folder.glob("adamas-*")
    return found


@pytest.mark.slow
def test_the_sdist_holds_all_that_git_tracks(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("what git tracks is told by a clone alone")
    command = ["git", "ls-files", "-z", "--cached"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert len(tracked) > 300
    assert tracked - found == set()


@pytest.mark.slow
def test_tests_that_read_files_pass_in_an_unpacked_sdist(sdist):
    for module in (ROOT / "src" / "adamas").glob("_native*.*"):
        shutil.copy(module, sdist / "src" / "adamas")
    for module in Path(adamas.__file__).parent.glob("_native*.*"):
        shutil.copy(module, sdist / "src" / "adamas")
    path = os.pathsep.join([str(sdist / "src"), *filter(None, sys.path)])
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["tests/house", "tests/benchmarks/test_program.py"]
    command += ["tests/benchmarks/test_convergence.py", "tests/definition/test_text_of_the_rule.py"]
    done = subprocess.run(
        [*command, "-k", "not code_of_each_page and not typing and not examples"],
        cwd=sdist,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
