"""What type checkers know of the keywords: by a script of a user, and by one list of names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing

import pytest

import adamas
from adamas import keywords, options
from tests.support.cases import PATIENCE, ROOT

SCRIPT = ROOT / "tests" / "support" / "typed_script.py"
NAMES = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")


def names_and_types(of: type) -> dict[str, object]:
    return typing.get_type_hints(of)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By severity and line of the script: what pyright says, as strict as it is without options."""
    pytest.importorskip("torch")
    pytest.importorskip("jax", reason="the script is of all front-ends")
    pytest.importorskip("scipy")
    place = tmp_path_factory.mktemp("typed") / SCRIPT.name  # away from the options of this house
    place.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    # What the test extra installs is all that is asked: neither another version, nor the network.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYRIGHT_PYTHON_")}
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(
        [*command, str(place)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        cwd=place.parent,
        env=environment,
    )
    assert result.stdout.startswith("{"), (
        "pyright did not run. It needs Node.js, and the test extra has both (pyright[nodejs]): "
        f'pip install ".[test]"\n{result.stdout}{result.stderr}'
    )
    found: dict[str, dict[int, str]] = {}
    for each in json.loads(result.stdout)["generalDiagnostics"]:
        line = each["range"]["start"]["line"]
        found.setdefault(each["severity"], {})[line] = each["message"]
    return found


def lines_with(pattern: str) -> dict[int, str]:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    found = {i: re.search(pattern, line) for i, line in enumerate(lines)}
    return {i: match[match.re.groups] for i, match in found.items() if match}


def test_pyright_refuses_the_lines_with_mistakes_and_no_other(told):
    assert told["error"].keys() == lines_with("# refused$").keys()
    assert set(told) == {"error", "information"}


def test_pyright_knows_the_types_of_what_an_optimizer_shows(told):
    types = {line: re.search(r'is "(.*)"$', text)[1] for line, text in told["information"].items()}
    assert types == lines_with("# is (.*)$")


def test_the_script_plants_each_kind_of_mistake_in_each_front_end():
    text = SCRIPT.read_text(encoding="utf-8")
    for each in (
        *(f"{name}(weights, clip_nrom=1)" for name in NAMES),
        *('state="9bit"', 'on_nonfinite="ignore"', "optimizer.ema = 0.9", "max_iter=100"),
    ):
        assert re.search(re.escape(each) + r".*# refused$", text, re.MULTILINE), each


@pytest.mark.parametrize(
    ("arguments", "checked"),
    [
        (keywords.PhaseArguments, options.Phase),
        (keywords.OptionArguments, options.Options),
    ],
)
def test_keywords_are_the_options_that_are_checked(arguments, checked):
    assert names_and_types(arguments) == {
        field.name: names_and_types(checked)[field.name] for field in dataclasses.fields(checked)
    }


def test_keywords_of_torch_are_what_its_optimizers_take():
    torch = pytest.importorskip("adamas.torch")
    from adamas.torch.arguments import PhaseArguments

    usual = {
        "clip_group": None,
        "clip_norm": None,
        "clip_update": None,
        "copy_to": None,
        "decay": None,
        "ema": None,
        "engine": None,
        "lr_max": None,
        "offload": False,
        "on_nonfinite": "propagate",
        "rounding": None,
        "seed": 0,
        "skip_above": None,
        "skip_window": 128,
        "state": None,
        "statistics": False,
        "track_changes": False,
    }
    assert names_and_types(PhaseArguments).keys() == usual.keys()
    assert (
        names_and_types(PhaseArguments).items() >= names_and_types(keywords.PhaseArguments).items()
    )
    plain = repr(torch.Adam([pytest.importorskip("torch").ones(1)]))
    for name, value in usual.items():
        given: typing.Any = {name: value}
        assert repr(torch.Adam([pytest.importorskip("torch").ones(1)], **given)) == plain
    for name in (*NAMES, "Optimizer"):
        init = getattr(torch, name).__init__
        assert init.__annotations__["phase"] == "Unpack[PhaseArguments]"
        assert typing.get_type_hints(init)  # as frameworks ask for it


def test_keywords_of_minimize_are_its_settings_and_the_options_of_its_optimizers():
    scipy = pytest.importorskip("adamas.scipy")
    settings = names_and_types(scipy.Settings)
    methods = [adamas.Adam, adamas.RMSProp, adamas.Momentum]
    hints = [typing.get_type_hints(each.__init__) for each in methods]
    taken = {name: each[name] for each in reversed(hints) for name in each}
    taken = {name: each for name, each in taken.items() if name not in {*scipy.OWN, "return"}}
    assert names_and_types(keywords.MinimizeArguments) == {**taken, **settings}
