"""Rows and how they are measured: contenders take turns, and the ratio is that of each round."""

from __future__ import annotations

import gc
import importlib.util
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adamas.bench.hardware import free_cuda_memory, machine, why_no_cuda

__all__ = ["Figure", "Pair", "Report", "Row", "run", "taken_in_turn"]


@dataclass(frozen=True)
class Pair:
    """Two ways to do one piece of work, and how their results are compared."""

    ours: Callable[[], object]
    other: Callable[[], object]
    #: Raises WrongResultError where the results differ by more than a stated bound.
    check: Callable[[], None]
    #: Returns when all that was begun is done, for work that goes on after its call has returned.
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    against: str
    #: Ratio of the other's time to ours that is to be reached; None where a row only informs.
    goal: float | None
    #: Makes the contenders; ``quick`` asks for a small size.
    make: Callable[[bool], Pair]
    #: Modules that must be installed.
    needs: tuple[str, ...] = ()
    #: Bytes of a CUDA device's memory that the full size takes; None where none is needed.
    cuda_memory: int | None = None


@dataclass(frozen=True)
class Figure:
    """What was measured for a row. Times are medians, in seconds."""

    work: str
    against: str
    goal: float | None
    ours: float | None = None
    other: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    rounds: int = 0
    #: What is missing, modules and others; then nothing was measured.
    missing: tuple[str, ...] = ()
    #: Why the contenders could not be measured, in a line; "" where they were.
    failure: str = ""


@dataclass(frozen=True)
class Report:
    """All figures of one run, with the machine."""

    machine: dict[str, str]
    quick: bool
    figures: tuple[Figure, ...]


def run(
    rows: Iterable[Row],
    *,
    quick: bool = False,
    tell: Callable[[str], object] = lambda _: None,
    keep_going: bool = False,
) -> Report:
    """Measure ``rows`` one after another; ``tell`` hears the name of each before it begins.

    With ``keep_going`` a row that raises is no end: ``tell`` hears the traceback, and the figure
    says that it failed. That is for machines where a second run is dear.
    """
    figures: list[Figure] = []
    for row in rows:
        tell(f"{row.work} · {row.against}")
        try:
            figures.append(_measured(row, quick))
        except Exception as error:
            if not keep_going:
                raise
            tell(traceback.format_exc())
            lines = str(error).splitlines() or [""]
            failure = f"{type(error).__name__}: {lines[0]}"
            figures.append(Figure(row.work, row.against, row.goal, failure=failure))
    return Report(machine(), quick, tuple(figures))


def _measured(row: Row, quick: bool) -> Figure:
    missing = _missing(row, quick)
    if missing:
        return Figure(row.work, row.against, row.goal, missing=missing)
    pair = row.make(quick)
    pair.check()
    times = taken_in_turn(pair, rounds=3 if quick else 11, least=0.002 if quick else 0.1)
    ratios = [other / ours for ours, other in times]
    return Figure(
        row.work,
        row.against,
        row.goal,
        ours=statistics.median(ours for ours, _ in times),
        other=statistics.median(other for _, other in times),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=len(times),
    )


def _missing(row: Row, quick: bool) -> tuple[str, ...]:
    modules = tuple(name for name in row.needs if importlib.util.find_spec(name) is None)
    if row.cuda_memory is None:
        return modules
    if why_no_cuda() is not None:
        return ("CUDA", *modules)
    if not modules and not quick and free_cuda_memory() < row.cuda_memory:
        return (f"{row.cuda_memory / 1e9:.0f} GB free on the CUDA device",)
    return modules


def taken_in_turn(pair: Pair, *, rounds: int, least: float) -> list[tuple[float, float]]:
    """Return the time of one call of each contender in each round, in seconds.

    A contender that takes less than ``least`` seconds is called as often as fills them.
    """
    works, wait = (pair.ours, pair.other), pair.wait
    calls = [_calls_that_take(least, work, wait) for work in works]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return [
            (_timed(pair.ours, calls[0], wait), _timed(pair.other, calls[1], wait))
            for _ in range(rounds)
        ]
    finally:
        if collecting:
            gc.enable()


def _calls_that_take(least: float, work: Callable[[], object], wait: Callable[[], object]) -> int:
    work()  # what is done once only (plans, buffers, threads) is not timed
    calls = 1
    while (taken := _timed(work, calls, wait) * calls) < least and calls < 1_000_000:
        calls = max(calls * 2, math.ceil(calls * least / max(taken, 1e-9)))
    return calls


def _timed(work: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    wait()
    return (time.perf_counter() - begin) / calls
