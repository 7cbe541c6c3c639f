"""Records made by hand: lines that say what a test wants them to say."""

from __future__ import annotations

import numpy as np

from adamas import records
from adamas.report import read

HEADER = {
    "version": "0.1.0",
    "method": "AdamW",
    "every": 10,
    "time": 1_700_000_000.0,
    "phase": {"clip_norm": None, "on_nonfinite": "propagate", "skip_above": None},
}
#: What is usual of a tensor in a healthy run.
USUAL = {
    "gradient_norm": 0.5,
    "parameter_norm": 4.0,
    "update_norm": 0.004,
    "largest_update": 1.0,
    "nonfinite": 0,
    "unmoved": 0.0,
    "below_eps": 0.0,
}


def header(tensors=("a", "b", "c", "d", "e"), *, shape=(8, 8), dtype="float32", phase=(), **group):
    """A header whose tensors are alike, in one group."""
    options = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    options |= {"state": None, "rounding": None} | group
    return HEADER | {
        "phase": HEADER["phase"] | dict(phase),
        "groups": [options | {"parameters": [*tensors]}],
        "parameters": {name: {"shape": [*shape], "dtype": dtype} for name in tensors},
    }


def line(step, tensors=("a", "b", "c", "d", "e"), *, of=(), lr=1e-3, **more):
    """A line of a step, in whose tensors ``of`` replaces what is usual: by name, or for all."""
    told = dict(of)
    values = {
        name: USUAL | (told.get(name, {}) if set(told) & set(tensors) else told) for name in tensors
    }
    return {
        "step": step,
        "time": HEADER["time"] + step,
        "lr": [lr],
        "gradient_norm": 1.0,
        "skipped": {"nonfinite": 0, "spikes": 0},
        "tensors": values,
    } | more


def append(path, head, each=None, *, is_new):
    """Append a line as a recorder does that is there for it alone."""
    writer = records.Writer(str(path))
    writer.append(lambda: head, each, is_new=is_new)
    writer.close()


def write(path, head, lines):
    """A file with a header and lines, after what it has already."""
    for place, each in enumerate(lines):
        append(path, head, each, is_new=place == 0)
    return path


def run(path, *, steps=20, every=10, of=(), head=None, **more):
    """The run of a record whose lines are alike, but for rates that rise over the first half."""
    head = header() if head is None else head
    names = tuple(head["parameters"])
    lines = [
        line(every * (i + 1), names, of=of, lr=1e-3 * min(1.0, (i + 1) / (steps // 2)), **more)
        for i in range(steps)
    ]
    return read(write(path, head, lines))


def large(layers, lines, name="large.jsonl"):
    """A run of so many layers and lines, as none would write by hand."""
    from adamas.report.reading import FIELDS, Group, Run, Tensor

    group = Group(1e-3, (0.9, 0.95), 1e-8, 0.0, None, None)
    generator = np.random.default_rng(0)
    steps = 10 * np.arange(1, lines + 1)
    names = [f"model.layers.{i // 9}.block.{i % 9}.projection.weight" for i in range(layers)]
    of = {field: np.zeros((lines, layers)) for field in FIELDS}
    for field in ("gradient_norm", "parameter_norm", "largest_update"):
        of[field] = np.exp(generator.normal(size=(lines, layers)))
    of["update_norm"] = 1e-3 * of["parameter_norm"]
    nothing = np.full(lines, np.nan)
    return Run(
        name=name,
        headers=(header(names) | {"groups": []},),
        tensors=tuple(Tensor(each, (4096, 4096), "bfloat16", group) for each in names),
        groups=(group,),
        stride=1,
        steps=steps,
        times=1.7e9 + steps,
        lr=np.full((lines, 1), 1e-3),
        gradient_norm=np.exp(generator.normal(size=lines)),
        clip_factor=nothing,
        clipped=nothing,
        skipped={},
        notes={"loss": np.exp(generator.normal(size=lines))},
        of=of,
    )
