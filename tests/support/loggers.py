"""Stand-ins for loggers that are not installed: they take what the real ones take."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def check(numbers):
    """Loggers take plain numbers by names."""
    assert numbers
    for name, number in numbers.items():
        assert isinstance(name, str)
        assert type(number) in (int, float), name


class SummaryWriter:
    """TensorBoard's."""

    def __init__(self, folder):
        self.steps = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.steps

    def add_scalar(self, tag, value, step):
        self.steps.append(int(step))
        check({tag: value.item() if hasattr(value, "item") else value})


@contextmanager
def started(**_):
    """A run of W&B or MLflow."""
    run = ModuleType("run")
    run.log = run.log_metrics = logged
    yield run


def logged(numbers, step):
    check(numbers)
    assert isinstance(step, int)


def module(name, **members):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(members)
    return made


def stand_in(monkeypatch):
    """Put a stand-in where there is no real one."""
    if not find_spec("tensorboard"):
        name = "torch.utils.tensorboard"
        monkeypatch.setitem(sys.modules, name, module(name, SummaryWriter=SummaryWriter))
    if not find_spec("wandb"):
        monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=started))
    if not find_spec("mlflow"):
        made = module("mlflow", start_run=started, log_metrics=logged)
        monkeypatch.setitem(sys.modules, "mlflow", made)
