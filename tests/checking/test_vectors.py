"""Test vectors: exact, the same everywhere, and of use to a program in another language."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

import adamas
from adamas.checking import vectors
from adamas.cli import main
from tests.support.cases import PATIENCE, ROOT
from tests.support.node import bits32, node


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors")
    done = CliRunner().invoke(main, ["check", "--vectors", str(path / "out")])
    assert done.exit_code == 0, done.output
    assert f"wrote {len(vectors.VECTORS)} files in " in done.output
    return path / "out"


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def number(text):
    return float.fromhex(text)


def array(nested):
    return np.array(nested, dtype=object).reshape(-1)


NAMES = [vector.name for vector in vectors.VECTORS]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_its_schema_promises(folder, name):
    content = load(folder, name)
    steps, elements = content["steps"], content["elements"]
    assert content["schema"] == vectors.SCHEMA == "adamas-vectors/1"
    assert content["name"] == name
    assert len(content["sequences"]) == len(content["start"]) == elements
    assert len(content["rates"]) == steps
    for key in ("gradients", "parameters", "m", "v"):
        assert [len(row) for row in content[key]] == [elements] * steps, key
        assert all(np.isfinite(number(x)) for row in content[key] for x in row), key
    for key in ("start", "gradients"):
        values = [number(x) for x in array(content[key])]
        assert values == [float(np.float32(x)) for x in values], key
    # A reader may look a key up as a string in quotes: no value may look like one.
    text = (folder / f"{name}.json").read_text("utf-8")
    for key in content:
        assert text.count(f'"{key}"') == 1, key


def test_writing_twice_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "VECTORS", vectors.VECTORS[::4])
    for path in vectors.write(tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} < {path.name for path in folder.iterdir()}


def test_the_first_steps_are_those_of_rational_arithmetic(folder):
    """Means and their corrections are rational, and so can be had without any rounding; a root is
    taken of squares alone: a gradient that is the same at all steps has v̂ = g²."""
    content = load(folder, "adam")
    column = content["sequences"].index("constant")
    g = Fraction(number(content["gradients"][0][column]))
    lr, eps, b1, b2 = (Fraction(number(content[k])) for k in ("lr", "eps", "beta1", "beta2"))
    p, m, v = Fraction(number(content["start"][column])), Fraction(0), Fraction(0)
    for t in range(1, content["steps"] + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        assert v / (1 - b2**t) == g * g
        p -= lr * (m / (1 - b1**t)) / (abs(g) + eps)
        # float() of a fraction rounds once, to nearest, as the file does.
        assert number(content["m"][t - 1][column]) == float(m)
        assert number(content["v"][t - 1][column]) == float(v)
        assert number(content["parameters"][t - 1][column]) == float(p)


@pytest.mark.parametrize(
    "vector", [v for v in vectors.VECTORS if v.options is not None], ids=lambda v: v.name
)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_adamas_is_as_far_from_a_vector_as_the_file_says(folder, vector, kind):
    content = load(folder, vector.name)
    worst = distance(content, kind, vector.method, vector.options)
    assert content["ulp_of_adamas"][kind] == round(float(worst), 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw-cautious", {"decay": "decoupled"}),
        ("adamw-corrected", {"decay": "fully-decoupled", "lr_max": 0.125}),
        ("adamw-clip-update", {"decay": "decoupled"}),
        ("radam", {}),
    ],
)
def test_what_lacks_the_choice_of_a_vector_is_too_far_from_it(folder, name, options):
    content = load(folder, name)
    worst = distance(content, "float32", adamas.Adam, options)
    assert worst > 1000 * (2 * content["ulp_of_adamas"]["float32"] + 1)


def distance(content, kind, method, options):
    """How far a method gets from a vector, in units in the last place of a dtype."""
    shape = (content["steps"], content["elements"])
    values = {
        key: np.array([number(x) for x in array(content[key])]).reshape(shape)
        for key in ("gradients", "parameters")
    }
    start = np.array([number(x) for x in content["start"]])
    rates = [number(x) for x in content["rates"]]
    p = start.astype(kind)
    optimizer = method(
        p,
        lr=lambda t: rates[t - 1],
        betas=(number(content["beta1"]), number(content["beta2"])),
        eps=number(content["eps"]),
        weight_decay=number(content["weight_decay"]),
        **options,
    )
    worst = 0.0
    for gradient, wanted in zip(values["gradients"], values["parameters"], strict=True):
        optimizer.step(gradient.astype(kind))
        start = np.maximum(np.abs(start), np.abs(wanted))
        worst = max(worst, (np.abs(p - wanted) / np.spacing(start.astype(kind))).max())
    return worst


# ── in C ───────────────────────────────────────────────────────────────────────────────────────

SOURCE = ROOT / "examples" / "check_vectors.c"


def compiled(source, program):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "A C compiler (cc, gcc or clang) must be installed to run the examples."
    flags = ["-std=c99", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [compiler, *flags, str(source), "-o", str(program), "-lm"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return program


def checked(program, *paths):
    return subprocess.run(
        [str(program), *map(str, paths)], capture_output=True, text=True, timeout=PATIENCE
    )


MADE_IN_C = ("adam", "adam-long", "adam-short-memory", "adam-l2", "adam-schedule", "adamw",
             "adamw-schedule")  # fmt: skip


@pytest.mark.slow
def test_the_commands_at_the_head_of_the_example_in_c_run_as_they_stand(tmp_path):
    """With `adamas` for this one, and in a shell, which spells out the asterisk."""
    commands = re.findall(r"^ \*     (\S.*?)\s*(?:\*/)?$", SOURCE.read_text("utf-8"), re.MULTILINE)
    assert [each.split()[0] for each in commands] == ["adamas", "cc", "./check_vectors"]
    shutil.copy(SOURCE, tmp_path)
    commands[0] = f'"{sys.executable}" -m {commands[0]}'
    done = subprocess.run(
        ["sh", "-ec", "\n".join(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines()[1:])
    names = [name for name in NAMES if name.startswith("adam")]
    assert set(told) == {f"vectors/{name}.json" for name in names}
    left_out = {
        "adam-efficient": "another form (its epsilon): left out",
        "adamw-fully-decoupled": "another form (its decay): left out",
        "adamw-cautious": "another form (its decay): left out",
        "adamw-corrected": "another form (its decay): left out",
        "adamw-clip-update": "another form (its clipped): left out",
    }
    for name in names:
        if name in left_out:
            assert told[f"vectors/{name}.json"] == left_out[name]
        else:
            assert told[f"vectors/{name}.json"].endswith(": ok")


def test_the_example_in_c_leaves_out_every_form_that_it_does_not_make(folder, tmp_path):
    program = compiled(SOURCE, tmp_path / "check_vectors")
    done = checked(program, *(folder / f"{name}.json" for name in NAMES))
    assert done.returncode == 0, done.stdout + done.stderr
    made = [line for line in done.stdout.splitlines() if line.endswith(": ok")]
    assert len(made) == len(MADE_IN_C)
    assert done.stdout.count(": left out\n") == len(NAMES) - len(MADE_IN_C)
    # Where nothing was checked, nothing is said to be right.
    done = checked(program, folder / "nadam.json")
    assert (done.returncode, done.stderr) == (2, "no file of a form that it makes\n")


def test_every_form_that_adamas_makes_has_a_yardstick(folder):
    without = [name for name in NAMES if "ulp_of_adamas" not in load(folder, name)]
    assert without == ["amsgrad-corrected-first"]


def test_the_example_in_c_checks_itself(folder, tmp_path):
    program = compiled(SOURCE, tmp_path / "check_vectors")
    done = checked(program, *(folder / f"{name}.json" for name in MADE_IN_C))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["ok"] * 7


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(float)(1 - pow(b1, t))", "(float)(1 - b1)"),
        ("/ (float)sqrt(1 - pow(b2, t)) + (float)eps", "+ (float)eps"),
        ("pow(b1, t)", "pow(b1, t + 1)"),
        ("sqrtf(*v)", "sqrtf(*v + (float)eps)"),
        ("top / bottom + (", "top / bottom - ("),
        ("(1 - b1) * g", "(1 - b2) * g"),
    ],
)
def test_the_example_in_c_finds_what_is_wrong_with_it(right, wrong, folder, tmp_path):
    source = SOURCE.read_text("utf-8")
    assert source.count(right) == 1
    (tmp_path / "wrong.c").write_text(source.replace(right, wrong), "utf-8")
    program = compiled(tmp_path / "wrong.c", tmp_path / "wrong")
    done = checked(program, *(folder / f"{name}.json" for name in MADE_IN_C))
    assert done.returncode == 1, done.stdout
    assert done.stdout.count(": NO\n") >= 1


def test_the_example_in_c_refuses_what_is_no_vector(folder, tmp_path):
    program = compiled(SOURCE, tmp_path / "check_vectors")
    (tmp_path / "other.json").write_text("{}", "utf-8")
    done = checked(program, tmp_path / "other.json")
    assert done.returncode == 2
    assert done.stderr == 'no "bias_correction": is this adamas-vectors/1?\n'
    assert checked(program, tmp_path / "none.json").returncode == 2


def test_the_example_in_c_is_short():
    assert len(SOURCE.read_text("utf-8").splitlines()) <= 95


# ── in JavaScript ───────────────────────────────────────────────────────────────────────────

#: All that adamas makes, but for clipping, which is no part of the rule of one element;
#: "amsgrad-corrected-first" is a form of others.
MADE = [v for v in vectors.VECTORS if v.options is not None and v.variant.clipped == "no"]

_ON_A_VECTOR = """
const number = (text) => {
  const [, sign, whole, part, power] = /^(-?)0x([01])\\.?([0-9a-f]*)p([+-]\\d+)$/.exec(text);
  const digits = BigInt("0x" + whole + part);
  let size = Number(digits), by = Number(power) - 4 * part.length;
  for (; by > 0; by--) size *= 2;
  for (; by < 0; by++) size /= 2;
  return sign === "-" ? -size : size;
};
return given.map(({ file, chosen }) => {
  const content = JSON.parse(read(file));
  const options = {
    ...DEFAULT_OPTIONS,
    beta1: number(content.beta1),
    beta2: number(content.beta2),
    eps: number(content.eps),
    weight_decay: number(content.weight_decay),
    ...chosen,
  };
  const zero = options.amsgrad ? 0 : null;
  const state = content.start.map((start) => ({ p: f(number(start)), m: 0, v: 0, w: zero }));
  return content.gradients.map((row, i) => {
    const c = rounded(at_step(options, i + 1, number(content.rates[i])));
    return row.map((text, j) => {
      const { p, m, v, w } = state[j];
      state[j] = rule(c, p, f(number(text)), m, v, w);
      return [state[j].p, state[j].m, state[j].v].map(bits32);
    });
  });
});
"""


@pytest.fixture(scope="module")
def on_the_page(folder):
    """The bits of p, m and v after each step, of all vectors, as the page's rule has them."""
    given = [
        {
            "file": str(folder / f"{each.name}.json"),
            "chosen": {**each.options, "rectify": each.method is adamas.RAdam},
        }
        for each in MADE
    ]
    return dict(zip((each.name for each in MADE), node(_ON_A_VECTOR, given), strict=True))


@pytest.mark.parametrize("vector", MADE, ids=lambda vector: vector.name)
def test_the_page_has_the_bits_of_adamas_on_a_test_vector(folder, on_the_page, vector):
    content = load(folder, vector.name)
    rates = [number(rate) for rate in content["rates"]]
    p = np.array([number(x) for x in content["start"]], dtype=np.float32)
    names = ("beta1", "beta2", "eps", "weight_decay")
    beta1, beta2, eps, weight_decay = (number(content[name]) for name in names)
    optimizer = vector.method(
        p, lambda t: rates[t - 1], (beta1, beta2), eps, weight_decay, **vector.options
    )
    assert len(on_the_page[vector.name]) == content["steps"]
    for row, page in zip(content["gradients"], on_the_page[vector.name], strict=True):
        optimizer.step(np.array([number(x) for x in row], dtype=np.float32))
        state = optimizer.state_dict()["state"]["x"]
        assert [bits for bits, _, _ in page] == bits32(p)
        assert [bits for _, bits, _ in page] == bits32(state["mean"])
        assert [bits for _, _, bits in page] == bits32(state["square"])


def test_the_page_is_as_far_from_the_exact_results_as_the_files_say(folder, on_the_page):
    for vector in MADE:
        content = load(folder, vector.name)
        exact = np.array([[number(x) for x in row] for row in content["parameters"]])
        page = np.array(on_the_page[vector.name], dtype=np.uint32)[:, :, 0].view(np.float32)
        start = np.array([number(x) for x in content["start"]])
        sizes = np.maximum.accumulate(np.abs(np.vstack([start, exact])))[1:].astype(np.float32)
        worst = (np.abs(page - exact) / np.spacing(sizes)).max()
        assert round(float(worst), 3) == content["ulp_of_adamas"]["float32"], vector.name
