"""What in a module or file could be an Adam."""

from __future__ import annotations

import sys

import pytest

import adamas
from adamas.checking import CannotCheckError
from adamas.checking.candidates import candidates, the_one

FILE = '''
"""Things beside each other in a file."""

import dataclasses

from torch.optim import SGD


class Adam:
    """An Adam."""

    def __init__(self, params, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        self.params, self.lr = params, lr

    def step(self, grads):
        for p, g in zip(self.params, grads):
            p -= self.lr * g


class Base:
    def step(self, grads):
        raise NotImplementedError


@dataclasses.dataclass
class Settings:
    lr: float = 1e-3
    betas: tuple = (0.9, 0.999)


class AdamError(Exception):
    pass


def adam_step(params, grads, state, lr=1e-3):
    return params, state


def cosine_schedule(start, steps, alpha=0.0):
    return start


def loss(x, y):
    return x


def _adam(params, grads, state, lr=1e-3):
    return params, state


Same = Adam
'''


def names(place):
    found = candidates(place)
    return None if found is None else [each.name for each in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(FILE, "utf-8")
    return tmp_path


def test_a_file_without_candidates_is_run_once(folder, capsys):
    (folder / "model.py").write_text("print('training')\n", "utf-8")
    with pytest.raises(CannotCheckError):
        candidates("model.py")
    assert capsys.readouterr().out == "training\n"


@pytest.mark.parametrize("place", ["mine.py", "mine"])
def test_a_file_has_what_makes_steps_and_neither_what_it_imports_nor_what_is_no_optimizer(
    folder, place, monkeypatch
):
    assert names(place) == [f"{place}:Adam", f"{place}:adam_step"]
    sys.modules.pop("mine", None)


def test_what_names_one_thing_has_no_candidates():
    assert names("torch.optim:Adam") is None
    assert the_one("torch.optim:Adam") is None


def test_a_package_has_the_optimizers_that_it_exports():
    torchs = names("torch.optim")
    assert {"torch.optim:Adam", "torch.optim:AdamW", "torch.optim:SGD"} <= set(torchs)
    assert not {"torch.optim:Optimizer", "torch.optim:lr_scheduler"} & set(torchs)
    # Names that are loaded when they are asked for, and functions of other kinds beside them.
    assert names("adamas") == [
        f"adamas:{n}" for n in ("Adam", "AdamW", "Momentum", "RAdam", "RMSProp")
    ]


def test_the_only_one_is_the_one(folder):
    (folder / "lone.py").write_text(FILE.replace("def adam_step", "def _step"), "utf-8")
    assert the_one("lone.py").name == "lone.py:Adam"


def test_where_there_are_several_all_are_named(folder):
    with pytest.raises(CannotCheckError) as error:
        adamas.check("mine.py")
    assert str(error.value) == (
        "'mine.py' is a place, but it does not say what in it. Possible are mine.py:Adam, "
        "mine.py:adam_step."
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("json", "Nothing in json looks like an Adam: no class with one of the methods step, "),
        ("torch.optim.Adam", "neither module:Class nor path/to/file.py:Class. Did you mean 'torch"),
        ("adamas.torhc", "cannot be imported (ModuleNotFoundError: No module named 'adamas.torhc"),
        ("adamas.torhc", "). Did you mean 'torch'? Give module:Class, with"),
        ("Adam", "'Adam' is neither module:Class nor path/to/file.py:Class. For example: adamas"),
        ("mien.py", "There is no file mien.py. Did you mean 'mine.py'?"),
        (
            "deep/mine",
            "'deep/mine' is neither module:Class nor path/to/file.py:Class. Did you mean "
            "'deep/mine.py'?",
        ),
        (
            "no_such.module",
            "The module 'no_such.module' cannot be imported (ModuleNotFoundError: No module named "
            "'no_such'). Give module:Class,",
        ),
        ("./", "'./' is neither module:Class nor path/to/file.py:Class."),
        ("", "'' is neither module:Class nor path/to/file.py:Class."),
        (
            "directory_of_modules.py",
            "There is no file directory_of_modules.py. Give path/to/file.py:Class",
        ),
        (
            "book.ipynb",
            "book.ipynb is a notebook, but what is run must be Python source. Write it "
            "as such with: jupyter nbconvert --to script book.ipynb",
        ),
        (
            "model.py",
            "no function that takes lr, betas or ε and makes an optimizer or a step. "
            "Possible are model.py:Model.",
        ),
        ("broken.py", "broken.py cannot be run (ZeroDivisionError: division by zero)."),
        (
            "needs",
            "The module 'needs' cannot be imported (ModuleNotFoundError: No module named 'no",
        ),
    ],
)
def test_a_place_that_is_none_is_told_with_what_is_near(folder, place, message):
    (folder / "broken.py").write_text("1 / 0\n", "utf-8")
    (folder / "needs.py").write_text("import no_such_package\n", "utf-8")
    (folder / "model.py").write_text("class Model:\n    pass\n", "utf-8")
    (folder / "deep").mkdir()
    (folder / "deep" / "mine.py").touch()
    (folder / "directory_of_modules.py").mkdir()
    with pytest.raises(CannotCheckError) as error:
        candidates(place)
    assert message in str(error.value)
