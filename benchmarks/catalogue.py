"""All tables, and how rows are chosen from them by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from benchmarks import (
    arrays,
    batch_size,
    changes,
    checkpoints,
    compiling,
    convergence,
    cuda,
    dialects,
    dtensors,
    jax,
    memory,
    messages,
    norm,
    ranks,
    rates,
    recorder,
    small,
    tensors,
    threads,
    versions,
)
from benchmarks.ratios import Ratios
from benchmarks.tables import Row, Table

_ON_DEVICE = cuda.Place("cuda", seed=None)

TABLES: tuple[Table, ...] = (
    Ratios(
        "step",
        "steps of NumPy arrays; the bandwidth of memory; the import",
        tuple(arrays.rows()),
    ),
    Ratios("torch_step", "steps of PyTorch parameters", tuple(tensors.step_rows())),
    Ratios(
        "torch_heads",
        "steps of PyTorch parameters of two heads that have gradients alternately",
        tuple(tensors.head_rows()),
    ),
    Ratios(
        "dtensors",
        "steps of DTensors on the CPU, beside plain tensors and torch's own",
        tuple(dtensors.rows()),
    ),
    Ratios(
        "torch_phase",
        "gradient clipping, step, EMA and low-precision copy together",
        tuple(tensors.phase_rows()),
    ),
    Ratios(
        "threads",
        "steps of PyTorch parameters with the usual number of threads, beside one thread",
        tuple(threads.rows()),
    ),
    Ratios(
        "recorder",
        "trainings with a recorder at its default, beside the same without",
        tuple(recorder.rows()),
    ),
    Ratios("norm", "norms on one core, exact, beside sums by tiles and lanes", tuple(norm.rows())),
    Ratios(
        "small_states",
        "steps with small states and bfloat16 parameters, beside torch's float32 and the 8-bit of"
        " bitsandbytes and torchao",
        tuple(small.rows()),
    ),
    Ratios(
        "ranks",
        "steps of eight processes with a thread each, beside one process with all the work",
        tuple(ranks.rows()),
    ),
    Ratios("jax_step", "steps of JAX arrays under jit", tuple(jax.rows())),
    compiling.Compiling(
        "jax_compile",
        "processor time in which XLA compiles a step of JAX arrays",
        tuple(compiling.rows()),
    ),
    Ratios(
        "cuda_step",
        "steps of CUDA tensors, beside torch, bitsandbytes and torchao, and beside a copy on the"
        " device",
        tuple(cuda.step_rows(_ON_DEVICE)),
    ),
    Ratios(
        "cuda_phase",
        "gradient clipping, step, EMA and low-precision copy together, of CUDA tensors",
        tuple(cuda.phase_rows(_ON_DEVICE)),
    ),
    changes.Changes(
        "changes",
        "steps that track changes, what it takes to find these, and the bytes kept for it, beside a"
        " snapshot and a diff",
        changes.rows(),
    ),
    versions.Versions(
        "torch_versions",
        "steps of PyTorch parameters by two versions of adamas (--old, --new), in turn, after both"
        " have come to the same bits",
        versions.rows(),
    ),
    memory.Memory(
        "memory",
        "bytes of state for each parameter, and what a step needs besides",
        memory.rows(),
    ),
    messages.Messages(
        "messages",
        "bytes sent for a norm, per process and step, of sharded PyTorch parameters",
        messages.rows(),
    ),
    checkpoints.Checkpoints(
        "checkpoints",
        "what saving, loading and checksums cost for each GB",
        checkpoints.rows(),
    ),
    dialects.Dialects(
        "dialects",
        "how far dialects end from the libraries they are named after",
        dialects.rows(),
    ),
    convergence.Convergence(
        "convergence",
        "where trainings end: beside torch, and small states beside float32, bitsandbytes and"
        " torchao",
        convergence.rows(),
    ),
    batch_size.BatchSizes(
        "batch_size",
        "where trainings on the same tokens end with batches of other sizes, and other β2",
        batch_size.rows(),
    ),
    rates.Rates(
        "rates",
        "which learning rates `adamas demo` and `adamas race` take: the best of a grid",
        rates.rows(),
    ),
)


def table(name: str) -> Table:
    """Return the table of this name."""
    (found,) = (each for each in TABLES if each.name == name)
    return found


def chosen(names: Iterable[str]) -> Iterator[tuple[Table, tuple[Row, ...]]]:
    """Yield tables with those of their rows that are meant: all where there are no names.

    A name is that of a table, or part of a row's, in any case.
    """
    names = list(names)
    for name in names:
        if not any(_is_meant(name, each, row) for each in TABLES for row in each.rows):
            raise LookupError(_unknown(name))
    for each in TABLES:
        rows = tuple(
            row for row in each.rows if not names or any(_is_meant(n, each, row) for n in names)
        )
        if rows:
            yield each, rows


def _is_meant(name: str, table: Table, row: Row) -> bool:
    if any(name == each.name for each in TABLES):
        return name == table.name
    return name.casefold() in row.name.casefold()


def _unknown(name: str) -> str:
    known = [each.name for each in TABLES] + [row.name for each in TABLES for row in each.rows]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"No table and no row is called {name!r}.{meant} --list names them all."
